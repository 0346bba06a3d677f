/* The op codes of the instruction list, one row each: X(name, class).
 *
 * The names are those of the op table in Python (src/chainrule/ops.py); the codes are the
 * positions in this list and are looked up by name, so the order is private to a build.
 * The rows of activations.h are added by ACTIVATION_ROWS: for each non-linearity `f` there are
 * the ops `f` (z -> f(z)) and `df` (g, r -> g * f'), r being its saved residual (y or z).
 */
#ifndef CHAINRULE_OPS_H
#define CHAINRULE_OPS_H

#include <stdint.h>
#include "activations.h"

/* clang-format off */

/* elementwise with broadcasting; all inputs and the output are of one float type except where said */
#define MAP_ROWS(X)                                                                               \
    X(copy, MAP)     /* x -> x */                                                                 \
    X(negative, MAP) X(exp, MAP) X(log, MAP) X(log1p, MAP) X(expm1, MAP) X(sqrt, MAP)             \
    X(square, MAP) X(abs, MAP) X(erf, MAP) X(sign, MAP)                                           \
    X(add, MAP) X(subtract, MAP) X(multiply, MAP) X(divide, MAP)                                  \
    X(maximum, MAP) X(minimum, MAP) /* NaN in, NaN out; ties give the first argument */           \
    X(power, MAP)    /* x; f[0] = exponent */                                                     \
    X(clip, MAP)     /* x; f[0] = low, f[1] = high */                                             \
    X(less, MAP) X(less_equal, MAP) X(greater, MAP) X(greater_equal, MAP) /* -> bool (uint8) */   \
    X(equal, MAP) X(not_equal, MAP)                                       /* -> bool (uint8) */   \
    X(where, MAP)    /* cond (bool), a, b */                                                      \
    X(cast, MAP)     /* any type -> any type; numpy's rules for in-range values */                \
    X(dropout, MAP)  /* x, step (int64 scalar); see random.c; f[0] = rate, i[0..1] = key */

#define OTHER_ROWS(X)                                                                             \
    X(sum, REDUCE)        /* x; i[0] = axis; the axis disappears */                               \
    X(max, REDUCE)        /* x; i[0] = axis */                                                    \
    X(argmax, REDUCE)     /* x; i[0] = axis; -> int64, first index of the maximum (or first NaN)*/\
    X(sum_squares, REDUCE)   /* x -> float64 scalar, accumulated in float64 */                    \
    X(weighted_mean, REDUCE) /* l (B), w (B) -> float64 scalar sum(w l) / sum(w) in float64; 0 where  \
                             all weights are 0 */                                                \
    X(softmax, ROWS) X(log_softmax, ROWS) /* x (..., C), along the last axis */                   \
    X(logsumexp, ROWS)                    /* x (..., C) -> (...) */                               \
    X(softmax_cross_entropy, ROWS)        /* z (B, C), y (B) int -> l (B) */                      \
    X(dsoftmax_cross_entropy, ROWS)       /* g (B), z (B, C), y (B) int -> dz (B, C) */           \
    X(matmul, CONTRACT)   /* a, b; i[0] = a is stored transposed, i[1] = b is */                  \
    X(dense, CONTRACT)    /* x (B, K), w (N, K)[, b (N)] -> y (B, N)[, z]; i[0] = activation row  \
                             index or -1, f[0] = its parameter */                                 \
    X(matmul_dact, CONTRACT) /* delta (B, N), w (N, K), r (B, K) -> (delta w) * f'(r); i, f as dense */ \
    X(matmul_update, CONTRACT) /* delta (B, N), x (B, K), w (N, K)[, s1[, s2]], coef -> w[, s1[, s2]] \
                             in place; the gradient is delta^T x; i[0] = update row index */      \
    X(take, GATHER)       /* table (V, ...), ids (...) int -> ids.shape + table.shape[1:] */      \
    X(row_sums, GATHER)   /* ids (n) int, g (n, D); i[0] = V -> rows (n) int64, sums (n, D):      \
                             distinct rows in order of first occurrence, each with the sum of its \
                             occurrences in ascending order; unused rows are -1, sums 0; an id \
                             of -1 is passed over */        \
    X(scatter_rows, GATHER)  /* rows (n), sums (n, D); i[0] = V -> (V, D), zero elsewhere */      \
    X(update_rows, GATHER)   /* rows (n), sums (n, D), w (V, D)[, s1[, s2]], coef -> in place     \
                             for rows >= 0; i[0] = update row index */                            \
    X(update, UPDATE)     /* w, g[, s1[, s2]], coef -> w[, s1[, s2]] in place; i[0] = row index */\
    X(take_along_last, GATHER) /* x (..., C), ids (...) int -> (...) */                           \
    X(put_along_last, GATHER)  /* g (...), ids (...) int; i[0] = C -> (..., C), zero elsewhere */ \
    X(transpose, COPY)    /* x; i[0..ndim-1] = axes */                                            \
    X(reshape, COPY)      /* x, same number of elements */                                        \
    X(slice, COPY)        /* x; i[0] = axis, i[1] = start, i[2] = stop, i[3] = step (may be < 0)*/\
    X(unslice, COPY)      /* g; as slice, i[4] = full length -> zero elsewhere */                 \
    X(concatenate, COPY)  /* 1..7 inputs; i[0] = axis */                                          \
    X(load, INPUT)        /* -> a minibatch of data source i[0]: rows index[0..B), cast */        \
    X(store, OUTPUT)      /* x -> rows of output i[0], at the batch's position */                 \
    X(result, OUTPUT)     /* x (0-d, float) -> column i[0] of the step's row of results, float64 */

/* clang-format on */

enum chainrule_class { MAP, REDUCE, ROWS, CONTRACT, GATHER, UPDATE, COPY, INPUT, OUTPUT };

enum chainrule_op {
#define X(name, class) OP_##name,
    MAP_ROWS(X) OTHER_ROWS(X)
#undef X
#define X(name, residual) OP_##name, OP_d##name,
        ACTIVATION_ROWS(X)
#undef X
            OP_COUNT
};

/* optimizers' updates: X(name, number of state tensors). Formulas in update.h. */
#define UPDATE_ROWS(X)                                                                             \
    X(sgd, 0) X(momentum, 1) X(nesterov, 1) X(adam, 2) X(adamw, 2) X(rmsprop, 1) X(adagrad, 1)
enum chainrule_update_row {
#define X(name, states) UPDATE_##name,
    UPDATE_ROWS(X)
#undef X
        UPDATE_COUNT
};

/* coefficients of one update step: a float64 vector, made by the optimizer for each step */
enum {
    COEF_STEP,
    COEF_DECAY,
    COEF_BETA1,
    COEF_1_BETA1,
    COEF_BETA2,
    COEF_1_BETA2,
    COEF_EPS,
    COEF_DENOM,
    COEF_CLIP,
    COEF_COUNT
};

#endif
