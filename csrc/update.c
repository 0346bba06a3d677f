/* K(update): one optimizer step of one parameter, in place. Views of any strides. */
#include "update.h"

#include "kernels.h"

/* inputs w, g, s1, s2, then outputs w, s1, s2 */
enum { IN_W, IN_G, IN_S1, IN_S2, OUT_W, OUT_S1, OUT_S2, OPERANDS };

INLINE vreal get(const real *p, int64_t stride, int unit, int n) {
    if (unit) return n == VLANES ? v_load(p) : v_load_n(p, n);
    vreal v = {0};
    for (int l = 0; l < n; l++) v[l] = p[l * stride];
    return v;
}

INLINE void put(real *p, int64_t stride, int unit, int n, vreal v) {
    if (unit && n == VLANES) {
        v_store(p, v);
    } else if (unit) {
        v_store_n(p, v, n);
    } else {
        for (int l = 0; l < n; l++) p[l * stride] = v[l];
    }
}

INLINE void update_vector(int row, int states, int unit, const update_coef *coef,
                          real *const p[OPERANDS], const int64_t *stride, int64_t i, int n) {
#define AT(o) p[o] + i *(unit ? 1 : stride[o]), stride[o], unit, n
    const vreal w = get(AT(IN_W)), g = get(AT(IN_G));
    vreal s1 = states > 0 ? get(AT(IN_S1)) : w, s2 = states > 1 ? get(AT(IN_S2)) : w;
    put(AT(OUT_W), update_row(row, coef, w, g, &s1, &s2));
    if (states > 0) put(AT(OUT_S1), s1);
    if (states > 1) put(AT(OUT_S2), s2);
#undef AT
}

INLINE void update_axis(int row, int states, int unit, const update_coef *coef,
                        real *const p[OPERANDS], const int64_t *stride, int64_t n) {
    int64_t i = 0;
    for (; i + VLANES <= n; i += VLANES)
        update_vector(row, states, unit, coef, p, stride, i, VLANES);
    if (i < n) update_vector(row, states, unit, coef, p, stride, i, (int)(n - i));
}

/* n elements of each operand */
static void update_any(int64_t row, int unit, const update_coef *coef, real *const p[OPERANDS],
                       const int64_t *stride, int64_t n) {
    switch (row) {
#define X(name, states)                                                                            \
    case UPDATE_##name:                                                                            \
        if (unit)                                                                                  \
            update_axis(UPDATE_##name, states, 1, coef, p, stride, n);                             \
        else                                                                                       \
            update_axis(UPDATE_##name, states, 0, coef, p, stride, n);                             \
        break;
        UPDATE_ROWS(X)
#undef X
    }
}

void K(update)(const chainrule_call *call, int64_t begin, int64_t end) {
    const chainrule_view *w = &call->in[0];
    const int states = call->n_out - 1, last = MAX_DIMS - 1;
    const chainrule_view *views[OPERANDS] = {
        w, &call->in[1], w, w, &call->out[0], &call->out[0], &call->out[0]};
    for (int s = 0; s < states; s++) {
        views[IN_S1 + s] = &call->in[2 + s];
        views[OUT_S1 + s] = &call->out[1 + s];
    }
    int64_t shape[MAX_DIMS] = {1, 1, 1, 1}, stride[OPERANDS][MAX_DIMS] = {{0}};
    const int first = w->ndim ? MAX_DIMS - w->ndim : last;
    for (int d = 0; d < w->ndim; d++) {
        shape[first + d] = w->shape[d];
        for (int o = 0; o < OPERANDS; o++) stride[o][first + d] = views[o]->stride[d];
    }
    real *p[OPERANDS];
    for (int o = 0; o < OPERANDS; o++) p[o] = (real *)views[o]->data + begin * stride[o][first];
    shape[first] = end - begin;
    for (int d = 0; d < MAX_DIMS; d++)
        if (shape[d] <= 0) return;

    /* the axes that all operands walk as one join the innermost */
    int64_t n = shape[last], inner[OPERANDS];
    for (int o = 0; o < OPERANDS; o++) inner[o] = stride[o][last];
    for (int d = last - 1; d >= first; d--) {
        int joins = 1;
        if (shape[d] == 1) continue;
        for (int o = 0; o < OPERANDS; o++) {
            if (n == 1) inner[o] = stride[o][d];
            joins &= stride[o][d] == inner[o] * n;
        }
        if (n > 1 && !joins) break;
        n *= shape[d];
        shape[d] = 1;
    }
    shape[last] = 1;

    int unit = 1;
    for (int o = 0; o < OPERANDS; o++) unit &= inner[o] == 1 || n == 1;
    const update_coef coef = update_coefs(call->in[call->n_in - 1].data);
    for (int64_t i = 0; i < shape[0]; i++)
        for (int64_t j = 0; j < shape[1]; j++)
            for (int64_t k = 0; k < shape[2]; k++) {
                real *at[OPERANDS];
                for (int o = 0; o < OPERANDS; o++)
                    at[o] = p[o] + i * stride[o][0] + j * stride[o][1] + k * stride[o][2];
                update_any(call->i[0], unit, &coef, at, inner, n);
            }
}
