/* Random numbers that depend on (key, step, element) only, never on threads or on who drew before.
 * One object for all ISAs: integer operations and one fma an element. Private to the core. */
#ifndef CHAINRULE_RANDOM_H
#define CHAINRULE_RANDOM_H

#include <stdint.h>

/* Philox4x32-10: the four random words of one counter; key's low half is the first key word.
 * J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
void chainrule_philox(const uint32_t counter[4], uint64_t key, uint32_t out[4]);

/* out[e] = fma(u, high - low, low) in the element type (DT_F32 or DT_F64), e < n; counters are
 * {block lo, block hi, step lo, step hi}. u in [0, 1):
 *   float32: the upper 24 bits of word e % 4 of block e / 4
 *   float64: the upper 53 bits of words 2 (e % 2) (low) and 2 (e % 2) + 1 (high) of block e / 2 */
void chainrule_random_uniform(uint64_t key, uint64_t step, double low, double high, int dtype,
                              void *out, int64_t n);

/* A random order of 0 ... n - 1: Fisher-Yates from the last position i down to 1, which changes
 * places with position u (i + 1) / 2^64, u being words 0 (low) and 1 (high) of block i. */
void chainrule_random_permutation(uint64_t key, uint64_t epoch, int64_t *out, int64_t n);

#endif
