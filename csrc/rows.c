/* K(rows): softmax and its kin, each row of C elements along the last axis by itself.
 *
 * With m the maximum of a row x and s = sum exp(x - m), by the lanes of lanes.h:
 *   softmax                 exp(x - m) / s
 *   log_softmax             (x - m) - log s
 *   logsumexp               m + log s, but m if that is infinite
 *   softmax_cross_entropy   log s - (x_y - m)
 *   dsoftmax_cross_entropy  g (softmax(x)_c - [c = y])
 * A label out of range makes the loss NaN and the gradient's row 0.
 */
#include "lanes.h"
#include "vmath.h"

#include "kernels.h"

typedef struct {
    real max, sum;
} moments;

/* Rows of at most 16 elements stay in registers: `vectors` of them, each with its mask. */
typedef struct {
    vreal x[LANE_VECTORS];
    vint mask[LANE_VECTORS];
    int left[LANE_VECTORS];
} few;

INLINE void few_prepare(few *f, int vectors, int64_t n) {
    for (int j = 0; j < vectors; j++) {
        f->left[j] = v_left(n, j * VLANES);
        f->mask[j] = v_first(f->left[j]);
    }
}

/* m and s; leaves exp(x - m) in f->x */
INLINE moments few_exp(few *f, const int vectors, const real *x) {
    const vreal least = v_splat((real)-INFINITY), zero = v_splat(0);
    vreal lane[LANE_VECTORS];
    moments m;
    for (int j = 0; j < LANE_VECTORS; j++) {
        lane[j] = least;
        if (j >= vectors) continue;
        f->x[j] = v_load_n(x + j * VLANES, f->left[j]);
        lane[j] = v_select(f->mask[j], f->x[j], least);
    }
    m.max = lanes_max(lane);
    for (int j = 0; j < LANE_VECTORS; j++) {
        lane[j] = zero;
        if (j >= vectors) continue;
        f->x[j] = v_select(f->mask[j], v_exp(f->x[j] - v_splat(m.max)), zero);
        lane[j] = f->x[j];
    }
    m.sum = lanes_sum(lane);
    return m;
}

INLINE void few_store(const few *f, const int vectors, real *to) {
    for (int j = 0; j < vectors; j++) v_store_n(to + j * VLANES, f->x[j], f->left[j]);
}

/* m and s of any row; exp(x - m) goes to `to` unless that is NULL */
INLINE moments many_exp(const real *x, int64_t n, real *to) {
    vreal lane[LANE_VECTORS];
    moments m = {.max = row_max(x, n)};
    const vreal max = v_splat(m.max);
    int64_t i = 0;
    for (int j = 0; j < LANE_VECTORS; j++) lane[j] = v_splat(0);
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANE_VECTORS; j++) {
            const vreal e = v_exp(v_load(x + i + j * VLANES) - max);
            if (to) v_store(to + i + j * VLANES, e);
            lane[j] = lane[j] + e;
        }
    for (int j = 0; j < LANE_VECTORS && i + j * VLANES < n; j++) {
        const int left = v_left(n, i + j * VLANES);
        const vreal e = v_fill(v_exp(v_load_n(x + i + j * VLANES, left) - max), v_splat(0), left);
        if (to) v_store_n(to + i + j * VLANES, e, left);
        lane[j] = lane[j] + e;
    }
    m.sum = lanes_sum(lane);
    return m;
}

/* to = y, an expression of the row's vector x */
#define EACH_VECTOR(to, from, n, y)                                                                \
    for (int64_t i = 0; i < n; i += VLANES) {                                                      \
        const int left = v_left(n, i);                                                             \
        const vreal x = left == VLANES ? v_load(from + i) : v_load_n(from + i, left);              \
        if (left == VLANES)                                                                        \
            v_store(to + i, y);                                                                    \
        else                                                                                       \
            v_store_n(to + i, y, left);                                                            \
    }

/* ---- rows ------------------------------------------------------------------------------------ */

/* What a function of rows works on: `rows` rows of n elements, those of x and y (a row's vector, or
 * its single number) x_pitch and y_pitch apart. */
typedef struct {
    int64_t rows, n, x_pitch, y_pitch;
    const real *x, *g;
    real *y;
    const void *labels;
    int wide; /* labels are int64 */
    int64_t g_pitch, label_pitch;
} job;

INLINE int64_t label(const job *a, int64_t r) {
    const int64_t i = r * a->label_pitch;
    const int64_t y = a->wide ? ((const int64_t *)a->labels)[i] : ((const int32_t *)a->labels)[i];
    return y >= 0 && y < a->n ? y : -1;
}

/* vectors: those of a row that stays in registers, 0 for longer rows */
INLINE void softmax(const int vectors, const job *a) {
    few f;
    few_prepare(&f, vectors, a->n);
    for (int64_t r = 0; r < a->rows; r++) {
        const real *from = a->x + r * a->x_pitch;
        real *y = a->y + r * a->y_pitch;
        if (vectors) {
            const vreal sum = v_splat(few_exp(&f, vectors, from).sum);
            for (int j = 0; j < vectors; j++) f.x[j] = f.x[j] / sum;
            few_store(&f, vectors, y);
        } else {
            const vreal sum = v_splat(many_exp(from, a->n, y).sum);
            EACH_VECTOR(y, y, a->n, x / sum)
        }
    }
}

INLINE void dsoftmax_cross_entropy(const int vectors, const job *a) {
    few f;
    few_prepare(&f, vectors, a->n);
    for (int64_t r = 0; r < a->rows; r++) {
        const real *from = a->x + r * a->x_pitch, g = a->g[r * a->g_pitch];
        real *y = a->y + r * a->y_pitch;
        const int64_t of = label(a, r);
        if (of < 0) {
            memset(y, 0, (size_t)a->n * sizeof(real));
        } else if (vectors) {
            const vreal sum = v_splat(few_exp(&f, vectors, from).sum);
            for (int j = 0; j < vectors; j++) {
                const vint before = v_first(of - j * VLANES), upto = v_first(of + 1 - j * VLANES);
                const vreal one = v_select(upto & ~before, v_splat(1), v_splat(0));
                f.x[j] = v_splat(g) * (f.x[j] / sum - one);
            }
            few_store(&f, vectors, y);
        } else {
            const vreal sum = v_splat(many_exp(from, a->n, y).sum), scale = v_splat(g);
            const real at_label = y[of];
            EACH_VECTOR(y, y, a->n, scale * (x / sum))
            y[of] = g * (at_label / sum[0] - 1);
        }
    }
}

/* The logarithms of a vector full of rows are taken at once. */
INLINE void logarithms(const int vectors, const int op, const job *a) {
    few f;
    few_prepare(&f, vectors, a->n);
    for (int64_t r = 0; r < a->rows; r += VLANES) {
        const int count = v_left(a->rows, r);
        real max[VLANES], sum[VLANES], at_label[VLANES];
        for (int k = 0; k < VLANES; k++) max[k] = at_label[k] = 0, sum[k] = 1;
        for (int k = 0; k < count; k++) {
            const real *from = a->x + (r + k) * a->x_pitch;
            const moments m = vectors ? few_exp(&f, vectors, from) : many_exp(from, a->n, NULL);
            max[k] = m.max;
            sum[k] = m.sum;
            if (op == OP_softmax_cross_entropy) {
                const int64_t of = label(a, r + k);
                at_label[k] = of < 0 ? (real)NAN : from[of];
            }
        }
        const vreal m = v_load(max), log_sum = v_log(v_load(sum));
        if (op == OP_log_softmax) {
            for (int k = 0; k < count; k++) {
                const real *from = a->x + (r + k) * a->x_pitch;
                real *y = a->y + (r + k) * a->y_pitch;
                EACH_VECTOR(y, from, a->n, (x - v_splat(m[k])) - v_splat(log_sum[k]))
            }
        } else {
            vreal y = log_sum - (v_load(at_label) - m);
            if (op == OP_logsumexp) y = v_select(v_abs(m) == (real)INFINITY, m, m + log_sum);
            if (a->y_pitch == 1)
                v_store_n(a->y + r, y, count);
            else
                for (int k = 0; k < count; k++) a->y[(r + k) * a->y_pitch] = y[k];
        }
    }
}

/* one function a number of vectors that a row fills, so that rows of few classes have no loops */
#define DEFINE_ROWS(vectors)                                                                       \
    static void rows_##vectors(int op, const job *a) {                                             \
        switch (op) {                                                                              \
        case OP_softmax:                                                                           \
            softmax(vectors, a);                                                                   \
            break;                                                                                 \
        case OP_log_softmax:                                                                       \
            logarithms(vectors, OP_log_softmax, a);                                                \
            break;                                                                                 \
        case OP_logsumexp:                                                                         \
            logarithms(vectors, OP_logsumexp, a);                                                  \
            break;                                                                                 \
        case OP_softmax_cross_entropy:                                                             \
            logarithms(vectors, OP_softmax_cross_entropy, a);                                      \
            break;                                                                                 \
        case OP_dsoftmax_cross_entropy:                                                            \
            dsoftmax_cross_entropy(vectors, a);                                                    \
            break;                                                                                 \
        }                                                                                          \
    }
DEFINE_ROWS(0)
DEFINE_ROWS(1)
#if 16 * CHAINRULE_REAL / 8 / VBYTES >= 2
DEFINE_ROWS(2)
#endif
#if 16 * CHAINRULE_REAL / 8 / VBYTES >= 4
DEFINE_ROWS(4)
#endif

static void run(int op, const job *a) {
    if (a->n <= VLANES) {
        rows_1(op, a);
        return;
    }
#if 16 * CHAINRULE_REAL / 8 / VBYTES >= 2
    if (a->n <= 2 * VLANES) {
        rows_2(op, a);
        return;
    }
#endif
#if 16 * CHAINRULE_REAL / 8 / VBYTES >= 4
    if (a->n <= 4 * VLANES) {
        rows_4(op, a);
        return;
    }
#endif
    rows_0(op, a);
}

/* Axis 0 of the operands has its own stride, the axes after it are contiguous. */
static int64_t pitch(const chainrule_view *v) { return v->ndim ? v->stride[0] : 0; }

void K(rows)(const chainrule_call *call, int64_t begin, int64_t end) {
    const int cross = call->op == OP_softmax_cross_entropy || call->op == OP_dsoftmax_cross_entropy;
    const int gradient = call->op == OP_dsoftmax_cross_entropy;
    const chainrule_view *x = &call->in[gradient], *y = &call->out[0];
    const int reduces = call->op == OP_logsumexp || call->op == OP_softmax_cross_entropy;
    job a = {.rows = 1, .n = x->shape[x->ndim - 1]};
    a.x_pitch = a.n;
    a.y_pitch = reduces ? 1 : a.n;
    if (x->ndim == 1) { /* a single row, which is not divided */
        if (begin > 0) return;
        end = end < 1 ? end : 1;
    }
    for (int d = 1; d < x->ndim - 1; d++) a.rows *= x->shape[d];
    const int64_t x_pitch = x->ndim > 1 ? pitch(x) : 0, y_pitch = x->ndim > 1 ? pitch(y) : 0;
    if (cross) {
        a.labels = call->in[gradient + 1].data;
        a.wide = call->in[gradient + 1].dtype == DT_I64;
        a.label_pitch = pitch(&call->in[gradient + 1]);
        a.g = call->in[0].data;
        a.g_pitch = pitch(&call->in[0]);
    }
    if (x->ndim == 2) { /* all in one */
        a.rows = end - begin;
        a.x_pitch = x_pitch;
        a.y_pitch = y_pitch;
        const int64_t labels = begin * a.label_pitch * (a.wide ? 8 : 4);
        if (cross) a.labels = (const char *)a.labels + labels;
        if (cross) a.g += begin * a.g_pitch;
        end = begin + (a.rows > 0);
    }
    for (int64_t i = begin; i < end; i++) {
        a.x = (const real *)x->data + i * x_pitch;
        a.y = (real *)y->data + i * y_pitch;
        run(call->op, &a);
    }
}
