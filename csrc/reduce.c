/* K(reduce): sums, maxima and their positions along one axis, and the two sums that end in a
 * float64 number.
 *
 * Along the last axis a sum is that of lanes.h. Down any other axis it is a chain from +0 within
 * each block of 4096 rows, and a balanced tree over the blocks: neighbours are added in pairs,
 * their sums in pairs, and so on; one that is left over goes up unchanged. Which of the two holds
 * is decided by the number of axes, never by a size, because a part of the columns may be a single
 * one.
 */
#include "lanes.h"

#include "kernels.h"

enum {
    CHAIN_ROWS = 4096,
    LEVELS = 50,        /* of the tree: more than 2^62 rows */
    COLUMN_VECTORS = 8, /* chains side by side hide the latency of the additions */
};

/* ---- down the rows --------------------------------------------------------------------------- */

/* sums of `count` columns, count <= vectors * VLANES and all of them whole but the last */
INLINE void sum_columns(const int vectors, const real *x, int64_t pitch, int64_t rows, real *out,
                        int count) {
    vreal sum[COLUMN_VECTORS], level[LEVELS][COLUMN_VECTORS];
    const int last = count - (vectors - 1) * VLANES;
    int64_t block = 0;
    do {
        const int64_t left = rows - block * CHAIN_ROWS;
        const int64_t length = left < CHAIN_ROWS ? left : CHAIN_ROWS;
        for (int j = 0; j < vectors; j++) sum[j] = v_splat(0);
        for (int64_t r = 0; r < length; r++, x += pitch) {
            for (int j = 0; j < vectors - 1; j++) sum[j] = sum[j] + v_load(x + j * VLANES);
            const real *end = x + (vectors - 1) * VLANES;
            sum[vectors - 1] =
                sum[vectors - 1] + (last == VLANES ? v_load(end) : v_load_n(end, last));
        }
        block++;
        /* As in a binary counter: each 1 that a carry passes is a pair to be added. After the last
         * block, every 1 that is left. */
        const int finished = block * CHAIN_ROWS >= rows;
        int l = 0;
        for (int64_t ones = block - 1; finished ? ones > 0 : ones & 1; ones >>= 1, l++)
            if (ones & 1)
                for (int j = 0; j < vectors; j++) sum[j] = level[l][j] + sum[j];
        if (finished) break;
        for (int j = 0; j < vectors; j++) level[l][j] = sum[j];
    } while (1);
    for (int j = 0; j < vectors - 1; j++) v_store(out + j * VLANES, sum[j]);
    v_store_n(out + (vectors - 1) * VLANES, sum[vectors - 1], last);
}

INLINE void max_columns(const int vectors, const real *x, int64_t pitch, int64_t rows, real *out,
                        int count) {
    vreal top[COLUMN_VECTORS];
    const int last = count - (vectors - 1) * VLANES;
    for (int j = 0; j < vectors; j++) top[j] = v_load_n(x + j * VLANES, v_left(count, j * VLANES));
    for (int64_t r = 1; r < rows; r++) {
        x += pitch;
        for (int j = 0; j < vectors - 1; j++) top[j] = v_max(top[j], v_load(x + j * VLANES));
        top[vectors - 1] = v_max(top[vectors - 1], v_load_n(x + (vectors - 1) * VLANES, last));
    }
    for (int j = 0; j < vectors - 1; j++) v_store(out + j * VLANES, top[j]);
    v_store_n(out + (vectors - 1) * VLANES, top[vectors - 1], last);
}

static void reduce_columns(int op, const real *x, int64_t pitch, int64_t rows, real *out,
                           int64_t columns) {
    for (int64_t c = 0; c < columns;) {
        const int64_t left = columns - c;
#define CASE(vectors)                                                                              \
    if (left > (vectors - 1) * VLANES || vectors == 1) {                                           \
        const int count = left < vectors * VLANES ? (int)left : vectors * VLANES;                  \
        if (op == OP_sum)                                                                          \
            sum_columns(vectors, x + c, pitch, rows, out + c, count);                              \
        else                                                                                       \
            max_columns(vectors, x + c, pitch, rows, out + c, count);                              \
        c += count;                                                                                \
        continue;                                                                                  \
    }
        CASE(8)
        CASE(4)
        CASE(2)
        CASE(1)
#undef CASE
    }
}

/* Does x go before the best so far? NaN before all numbers, the first of equals. */
INLINE int better(real x, real best) { return x > best || (x != x && best == best); }

static void argmax_columns(const real *x, int64_t pitch, int64_t rows, int64_t *out,
                           int64_t columns) {
    for (int64_t c = 0; c < columns; c++) out[c] = 0;
    for (int64_t r = 1; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            if (better(x[r * pitch + c], x[out[c] * pitch + c])) out[c] = r;
}

/* ---- the axis -------------------------------------------------------------------------------- */

static void argmax_row(const real *x, int64_t n, int64_t *out) {
    int64_t at = 0;
    for (int64_t i = 1; i < n; i++)
        if (better(x[i], x[at])) at = i;
    *out = at;
}

/* out = op of x along an axis of `rows` elements, `pitch` apart; `columns` contiguous ones beside
 * each, none (0) if the axis is the last one */
static void reduce_axis(int op, const real *x, int64_t pitch, int64_t rows, void *out,
                        int64_t columns) {
    if (op == OP_argmax && columns)
        argmax_columns(x, pitch, rows, out, columns);
    else if (op == OP_argmax)
        argmax_row(x, rows, out);
    else if (columns)
        reduce_columns(op, x, pitch, rows, out, columns);
    else
        *(real *)out = op == OP_sum ? row_sum(x, rows) : row_max(x, rows);
}

/* The axes after the first are contiguous in x and in the output. */
static void reduce_view(const chainrule_call *call, int t, int team) {
    const chainrule_view *x = &call->in[0], *y = &call->out[0];
    const int axis = (int)call->i[0], is_last = axis == x->ndim - 1;
    const int64_t size = call->op == OP_argmax ? (int64_t)sizeof(int64_t) : (int64_t)sizeof(real);
    const int64_t y_pitch = y->ndim ? y->stride[0] : 0;
    const real *from = x->data;
    char *to = y->data;
    int64_t inner = 1, begin, end;
    for (int d = axis + 1; d < x->ndim; d++) inner *= x->shape[d];
    if (inner == 0) return;
    if (axis == 0) {
        /* output rows lie y_pitch apart, and the columns of x as close as they can */
        const int64_t y_rows = y->ndim > 1 ? y->shape[0] : 1, columns = inner / y_rows;
        for (int64_t i = 0; i < y_rows; i++) {
            chainrule_part(columns, VLANES, t, team, &begin, &end);
            if (begin < end)
                reduce_axis(call->op, from + i * columns + begin, x->stride[0], x->shape[0],
                            to + (i * y_pitch + begin) * size, is_last ? 0 : end - begin);
        }
        return;
    }
    int64_t middle = 1;
    for (int d = 1; d < axis; d++) middle *= x->shape[d];
    const int64_t block = x->shape[axis] * inner;
    chainrule_part(x->shape[0], 1, t, team, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < middle; j++)
            reduce_axis(call->op, from + i * x->stride[0] + j * block, inner, x->shape[axis],
                        to + (i * y_pitch + j * inner) * size, is_last ? 0 : inner);
}

/* ---- float64 numbers ------------------------------------------------------------------------- */

enum { DLANES = VBYTES / 8, DVECTORS = LANES / DLANES };
typedef double vdouble __attribute__((vector_size(VBYTES)));
typedef real vnarrow
    __attribute__((vector_size(DLANES * sizeof(real)), aligned(sizeof(real)), may_alias));

INLINE vdouble widen(const real *p) {
    return __builtin_convertvector(*(const vnarrow *)p, vdouble);
}

INLINE double double_sum(const vdouble *v) {
    double lane[LANES];
    memcpy(lane, v, sizeof lane);
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] = lane[l] + lane[l + half];
    return lane[0];
}

/* 16 elements from i on, of n; zeros follow the last. They leave a lane's sum as it is. */
INLINE const real *sixteen(const real *p, int64_t i, int64_t n, real *copy) {
    if (i + LANES <= n) return p + i;
    for (int j = 0; j < LANES; j += VLANES) {
        const int left = v_left(n, i + j);
        v_store(copy + j, left ? v_load_n(p + i + j, left) : v_splat(0));
    }
    return copy;
}

/* Each row, of all axes but the first, begins with lane 0: so padding cannot shift the lanes. */
static void sum_squares(const chainrule_call *call) {
    const chainrule_view *x = &call->in[0];
    const int64_t rows = x->ndim > 1 ? x->shape[0] : 1;
    int64_t n = x->ndim == 1 ? x->shape[0] : 1;
    for (int d = 1; d < x->ndim; d++) n *= x->shape[d];
    vdouble sum[DVECTORS] = {{0}};
    real copy[LANES];
    for (int64_t r = 0; r < rows; r++) {
        const real *row = (const real *)x->data + r * (x->ndim > 1 ? x->stride[0] : 0);
        for (int64_t i = 0; i < n; i += LANES) {
            const real *p = sixteen(row, i, n, copy);
            for (int j = 0; j < DVECTORS; j++) {
                const vdouble v = widen(p + j * DLANES);
                sum[j] = sum[j] + v * v;
            }
        }
    }
    *(double *)call->out[0].data = double_sum(sum);
}

static void weighted_mean(const chainrule_call *call) {
    const real *l = call->in[0].data, *w = call->in[1].data;
    const int64_t n = call->in[0].shape[0];
    vdouble losses[DVECTORS] = {{0}}, weights[DVECTORS] = {{0}};
    real copy[2][LANES];
    for (int64_t i = 0; i < n; i += LANES) {
        const real *pl = sixteen(l, i, n, copy[0]), *pw = sixteen(w, i, n, copy[1]);
        for (int j = 0; j < DVECTORS; j++) {
            const vdouble weight = widen(pw + j * DLANES);
            losses[j] = losses[j] + weight * widen(pl + j * DLANES);
            weights[j] = weights[j] + weight;
        }
    }
    const double total = double_sum(weights);
    *(double *)call->out[0].data = total == 0 ? 0 : double_sum(losses) / total;
}

void K(reduce)(const chainrule_call *call, void *scratch, int t, int team) {
    (void)scratch;
    if (call->op != OP_sum_squares && call->op != OP_weighted_mean)
        reduce_view(call, t, team);
    else if (t == 0 && call->op == OP_sum_squares)
        sum_squares(call);
    else if (t == 0)
        weighted_mean(call);
}
