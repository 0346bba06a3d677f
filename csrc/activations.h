/* The non-linearities: one row each, X(name, residual).
 *
 * The residual is what the derivative reads: Y, the output y = f(z), or Z, the input z. For each
 * row there are f_<name>(z, param) = f(z) and d_<name>(g, r, param) = g * f'(r). The parameter is
 * the slope of leaky_relu and the alpha of elu; the other rows ignore it.
 *
 * Without CHAINRULE_REAL only the rows are defined, so that ops.h can be included anywhere.
 */
#ifndef CHAINRULE_ACTIVATIONS_H
#define CHAINRULE_ACTIVATIONS_H

#define ACTIVATION_ROWS(X)                                                                         \
    X(sigmoid, Y)                                                                                  \
    X(tanh, Y)                                                                                     \
    X(hard_tanh, Y)                                                                                \
    X(relu, Y)                                                                                     \
    X(leaky_relu, Y)                                                                               \
    X(elu, Y)                                                                                      \
    X(softplus, Z)                                                                                 \
    X(swish, Z)                                                                                    \
    X(gelu, Z)                                                                                     \
    X(gelu_tanh, Z)

enum chainrule_activation {
#define X(name, residual) ACT_##name,
    ACTIVATION_ROWS(X)
#undef X
        ACT_COUNT
};

enum chainrule_residual { RESIDUAL_Y, RESIDUAL_Z };

/* one chainrule_residual a row: static const int table[] = ACTIVATION_RESIDUALS; */
#define ACTIVATION_RESIDUAL_OF(name, residual) RESIDUAL_##residual,
#define ACTIVATION_RESIDUALS {ACTIVATION_ROWS(ACTIVATION_RESIDUAL_OF)}

#endif

#if defined(CHAINRULE_REAL) && !defined(CHAINRULE_ACTIVATION_FUNCTIONS)
#define CHAINRULE_ACTIVATION_FUNCTIONS

#include "vmath.h"

INLINE vreal f_sigmoid(vreal z, vreal param) {
    (void)param;
    return v_sigmoid(z);
}
INLINE vreal f_tanh(vreal z, vreal param) {
    (void)param;
    return v_tanh(z);
}
INLINE vreal f_hard_tanh(vreal z, vreal param) {
    (void)param;
    return v_clip(z, v_splat(-1), v_splat(1));
}
INLINE vreal f_relu(vreal z, vreal param) {
    (void)param;
    return v_select(z <= 0, v_splat(0), z);
}
INLINE vreal f_leaky_relu(vreal z, vreal param) { return v_select(z > 0, z, param * z); }
INLINE vreal f_elu(vreal z, vreal param) { return v_select(z > 0, z, param * v_expm1(z)); }
INLINE vreal f_softplus(vreal z, vreal param) {
    (void)param;
    return v_softplus(z);
}
INLINE vreal f_swish(vreal z, vreal param) {
    (void)param;
    return v_swish(z);
}
INLINE vreal f_gelu(vreal z, vreal param) {
    (void)param;
    return v_gelu(z);
}
INLINE vreal f_gelu_tanh(vreal z, vreal param) {
    (void)param;
    return v_gelu_tanh(z);
}

/* g where the mask holds, else 0; NaN in g or r stays NaN */
INLINE vreal d_gate(vint open, vreal g, vreal r) {
    return v_select(r == r, g * v_select(open, v_splat(1), v_splat(0)), r);
}
INLINE vreal d_sigmoid(vreal g, vreal y, vreal param) {
    (void)param;
    return g * (y * (1 - y));
}
INLINE vreal d_tanh(vreal g, vreal y, vreal param) {
    (void)param;
    return g * v_fma(-y, y, v_splat(1));
}
INLINE vreal d_hard_tanh(vreal g, vreal y, vreal param) {
    (void)param;
    return d_gate((y > -1) & (y < 1), g, y);
}
INLINE vreal d_relu(vreal g, vreal y, vreal param) {
    (void)param;
    return d_gate(y > 0, g, y);
}
INLINE vreal d_leaky_relu(vreal g, vreal y, vreal param) {
    return v_select(y == y, g * v_select(y > 0, v_splat(1), param), y);
}
INLINE vreal d_elu(vreal g, vreal y, vreal param) {
    return g * v_select(y > 0, v_splat(1), y + param);
}
INLINE vreal d_softplus(vreal g, vreal z, vreal param) {
    (void)param;
    return g * v_sigmoid(z);
}
INLINE vreal d_swish(vreal g, vreal z, vreal param) {
    (void)param;
    return g * v_dswish(z);
}
INLINE vreal d_gelu(vreal g, vreal z, vreal param) {
    (void)param;
    return g * v_dgelu(z);
}
INLINE vreal d_gelu_tanh(vreal g, vreal z, vreal param) {
    (void)param;
    return g * v_dgelu_tanh(z);
}

/* f(z) of a row known only at run time */
INLINE vreal act_f(int row, vreal param, vreal z) {
    switch (row) {
#define X(name, residual)                                                                          \
    case ACT_##name:                                                                               \
        return f_##name(z, param);
        ACTIVATION_ROWS(X)
#undef X
    }
    return z;
}

/* g * f'(r) of a row known only at run time */
INLINE vreal act_d(int row, vreal param, vreal g, vreal r) {
    switch (row) {
#define X(name, residual)                                                                          \
    case ACT_##name:                                                                               \
        return d_##name(g, r, param);
        ACTIVATION_ROWS(X)
#undef X
    }
    return g;
}

#endif
