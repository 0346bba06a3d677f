/* Sums along contiguous elements, the same for every vector width: element i belongs to lane i %
 * 16, each lane adds its elements in ascending order from +0, and a fixed tree adds the lanes: l
 * and l + 8, then l + 4, l + 2, l + 1. Maxima go the same way, so that even the sign of a zero that
 * wins a tie is the same everywhere.
 */
#ifndef CHAINRULE_LANES_H
#define CHAINRULE_LANES_H

#include "isa.h"

enum { LANES = 16, LANE_VECTORS = LANES / VLANES };

#if defined(__clang__)
#define V_SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define V_SHUFFLE(v, ...) __builtin_shuffle(v, (vint){__VA_ARGS__})
#endif

/* all ones in the first n lanes */
INLINE vint v_first(int64_t n) {
    static const ireal position[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return *(const vint_u *)position < v_isplat((ireal)n);
}

/* x but `other` in all lanes but the first n */
INLINE vreal v_fill(vreal x, vreal other, int64_t n) { return v_select(v_first(n), x, other); }

/* how many elements of the vector that begins at i there are, of n */
INLINE int v_left(int64_t n, int64_t i) {
    return n - i >= VLANES ? VLANES : n - i <= 0 ? 0 : (int)(n - i);
}

/* one step of the tree inside a vector: `and` of lanes l and l + half, for l < half */
#if 16 * CHAINRULE_REAL / 8 == VBYTES
#define LANE_TREE(v, and)                                                                          \
    v = and(v, V_SHUFFLE(v, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));          \
    v = and(v, V_SHUFFLE(v, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7));                      \
    v = and(v, V_SHUFFLE(v, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3));                      \
    v = and(v, V_SHUFFLE(v, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1))
#elif 8 * CHAINRULE_REAL / 8 == VBYTES
#define LANE_TREE(v, and)                                                                          \
    v = and(v, V_SHUFFLE(v, 4, 5, 6, 7, 4, 5, 6, 7));                                              \
    v = and(v, V_SHUFFLE(v, 2, 3, 2, 3, 2, 3, 2, 3));                                              \
    v = and(v, V_SHUFFLE(v, 1, 1, 1, 1, 1, 1, 1, 1))
#elif 4 * CHAINRULE_REAL / 8 == VBYTES
#define LANE_TREE(v, and)                                                                          \
    v = and(v, V_SHUFFLE(v, 2, 3, 2, 3));                                                          \
    v = and(v, V_SHUFFLE(v, 1, 1, 1, 1))
#else
#define LANE_TREE(v, and) v = and(v, V_SHUFFLE(v, 1, 1))
#endif

INLINE vreal v_add(vreal a, vreal b) { return a + b; }

/* The 16 lanes of v[0..LANE_VECTORS) to one number; v is used up. */
INLINE real lanes_sum(vreal *v) {
    for (int half = LANE_VECTORS / 2; half; half /= 2)
        for (int j = 0; j < half; j++) v[j] = v[j] + v[j + half];
    LANE_TREE(v[0], v_add);
    return v[0][0];
}

INLINE real lanes_max(vreal *v) {
    for (int half = LANE_VECTORS / 2; half; half /= 2)
        for (int j = 0; j < half; j++) v[j] = v_max(v[j], v[j + half]);
    LANE_TREE(v[0], v_max);
    return v[0][0];
}

/* sum and maximum of n contiguous elements */
INLINE real row_sum(const real *x, int64_t n) {
    vreal sum[LANE_VECTORS];
    int64_t i = 0;
    for (int j = 0; j < LANE_VECTORS; j++) sum[j] = v_splat(0);
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANE_VECTORS; j++) sum[j] = sum[j] + v_load(x + i + j * VLANES);
    if (i < n)
        for (int j = 0; j < LANE_VECTORS; j++)
            if (i + j * VLANES < n)
                sum[j] = sum[j] + v_load_n(x + i + j * VLANES, v_left(n, i + j * VLANES));
    return lanes_sum(sum);
}

INLINE real row_max(const real *x, int64_t n) {
    const vreal least = v_splat((real)-INFINITY);
    vreal top[LANE_VECTORS];
    int64_t i = 0;
    for (int j = 0; j < LANE_VECTORS; j++) top[j] = least;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANE_VECTORS; j++) top[j] = v_max(top[j], v_load(x + i + j * VLANES));
    if (i < n)
        for (int j = 0; j < LANE_VECTORS; j++)
            if (i + j * VLANES < n) {
                const int left = v_left(n, i + j * VLANES);
                top[j] = v_max(top[j], v_fill(v_load_n(x + i + j * VLANES, left), least, left));
            }
    return lanes_max(top);
}

#endif
