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

/* Short rows, of at most 16 elements, are turned: a vector holds one element of each of VLANES
 * rows, so that nothing is wasted on lanes that a row does not fill, and the tree needs no
 * shuffles. */
typedef struct {
    vreal x[LANES]; /* x[c]: element c of the rows */
    vreal max, sum;
} turned;

/* lane l and lane l + half, as in lanes.h; lanes past n hold what `and` leaves alone */
#define FOLD(v, n, and)                                                                            \
    for (int half = LANES / 2; half; half /= 2)                                                    \
        for (int l = 0; l < half && l + half < (n); l++) v[l] = and(v[l], v[l + half])

/* m, s and exp(x - m) of `count` rows */
INLINE void turned_exp(turned *t, int n, const real *x, int64_t pitch, int count) {
    real buffer[LANES][VLANES];
    for (int k = 0; k < VLANES; k++)
        for (int c = 0; c < n; c++) buffer[c][k] = k < count ? x[k * pitch + c] : 0;
    vreal lane[LANES];
    lane[0] = v_splat((real)-INFINITY);
    for (int c = 0; c < n; c++) lane[c] = t->x[c] = v_load(buffer[c]);
    FOLD(lane, n, v_max);
    t->max = lane[0];
    lane[0] = v_splat(0);
    for (int c = 0; c < n; c++) lane[c] = t->x[c] = v_exp(t->x[c] - t->max);
    FOLD(lane, n, v_add);
    t->sum = lane[0];
}

INLINE void turned_store(const turned *t, int n, real *y, int64_t pitch, int count) {
    real buffer[LANES][VLANES];
    for (int c = 0; c < n; c++) v_store(buffer[c], t->x[c]);
    for (int k = 0; k < count; k++)
        for (int c = 0; c < n; c++) y[k * pitch + c] = buffer[c][k];
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

static void softmax(const job *a) {
    turned t;
    if (a->n <= LANES) {
        for (int64_t r = 0; r < a->rows; r += VLANES) {
            const int n = (int)a->n, count = v_left(a->rows, r);
            turned_exp(&t, n, a->x + r * a->x_pitch, a->x_pitch, count);
            for (int c = 0; c < n; c++) t.x[c] = t.x[c] / t.sum;
            turned_store(&t, n, a->y + r * a->y_pitch, a->y_pitch, count);
        }
        return;
    }
    for (int64_t r = 0; r < a->rows; r++) {
        real *y = a->y + r * a->y_pitch;
        const vreal sum = v_splat(many_exp(a->x + r * a->x_pitch, a->n, y).sum);
        EACH_VECTOR(y, y, a->n, x / sum)
    }
}

static void dsoftmax_cross_entropy(const job *a) {
    turned t;
    if (a->n <= LANES) {
        for (int64_t r = 0; r < a->rows; r += VLANES) {
            const int n = (int)a->n, count = v_left(a->rows, r);
            real g[VLANES] = {0};
            ireal of[VLANES];
            turned_exp(&t, n, a->x + r * a->x_pitch, a->x_pitch, count);
            for (int k = 0; k < VLANES; k++) {
                of[k] = k < count ? (ireal)label(a, r + k) : -1;
                if (k < count) g[k] = a->g[(r + k) * a->g_pitch];
            }
            const vreal scale = v_load(g);
            const vint y = *(const vint_u *)of, good = y >= 0;
            for (int c = 0; c < n; c++) {
                const vreal one = v_select(y == c, v_splat(1), v_splat(0));
                t.x[c] = v_select(good, scale * (t.x[c] / t.sum - one), v_splat(0));
            }
            turned_store(&t, n, a->y + r * a->y_pitch, a->y_pitch, count);
        }
        return;
    }
    for (int64_t r = 0; r < a->rows; r++) {
        real *y = a->y + r * a->y_pitch;
        const real g = a->g[r * a->g_pitch];
        const int64_t of = label(a, r);
        if (of < 0) {
            memset(y, 0, (size_t)a->n * sizeof(real));
            continue;
        }
        const vreal sum = v_splat(many_exp(a->x + r * a->x_pitch, a->n, y).sum), scale = v_splat(g);
        const real at_label = y[of];
        EACH_VECTOR(y, y, a->n, scale * (x / sum))
        y[of] = g * (at_label / sum[0] - 1);
    }
}

/* The logarithms of a vector full of rows are taken at once. */
static void logarithms(int op, const job *a) {
    for (int64_t r = 0; r < a->rows; r += VLANES) {
        const int count = v_left(a->rows, r);
        real max[VLANES], sum[VLANES], at_label[VLANES];
        for (int k = 0; k < VLANES; k++) max[k] = at_label[k] = 0, sum[k] = 1;
        if (a->n <= LANES) {
            turned t;
            turned_exp(&t, (int)a->n, a->x + r * a->x_pitch, a->x_pitch, count);
            v_store(max, t.max);
            v_store(sum, t.sum);
        } else {
            for (int k = 0; k < count; k++) {
                const moments m = many_exp(a->x + (r + k) * a->x_pitch, a->n, NULL);
                max[k] = m.max;
                sum[k] = m.sum;
            }
        }
        for (int k = 0; k < count && op == OP_softmax_cross_entropy; k++) {
            const int64_t of = label(a, r + k);
            at_label[k] = of < 0 ? (real)NAN : a->x[(r + k) * a->x_pitch + of];
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

static void run(int op, const job *a) {
    if (op == OP_softmax)
        softmax(a);
    else if (op == OP_dsoftmax_cross_entropy)
        dsoftmax_cross_entropy(a);
    else
        logarithms(op, a);
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
