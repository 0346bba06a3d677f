#include "random.h"

#include <math.h>

#include "kernels.h"

enum { ROUNDS = 10 };

void chainrule_philox(const uint32_t counter[4], uint64_t key, uint32_t out[4]) {
    uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < ROUNDS; round++) {
        const uint64_t p0 = (uint64_t)x0 * 0xD2511F53u, p1 = (uint64_t)x2 * 0xCD9E8D57u;
        x0 = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
        x1 = (uint32_t)p1;
        x2 = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
        x3 = (uint32_t)p0;
        k0 += 0x9E3779B9u; /* the golden ratio and sqrt(3) - 1, as fractions of 2^32 */
        k1 += 0xBB67AE85u;
    }
    out[0] = x0;
    out[1] = x1;
    out[2] = x2;
    out[3] = x3;
}

static void draw(uint64_t key, uint64_t step, uint64_t block, uint32_t out[4]) {
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)step,
                                 (uint32_t)(step >> 32)};
    chainrule_philox(counter, key, out);
}

static uint64_t join(uint32_t low, uint32_t high) { return low | (uint64_t)high << 32; }

void chainrule_random_uniform(uint64_t key, uint64_t step, double low, double high, int dtype,
                              void *out, int64_t n) {
    uint32_t word[4];
    if (dtype == DT_F32) {
        const float from = (float)low, width = (float)high - from;
        for (int64_t e = 0; e < n; e++) {
            if (e % 4 == 0) draw(key, step, (uint64_t)e / 4, word);
            ((float *)out)[e] = fmaf((float)(word[e % 4] >> 8) * 0x1p-24f, width, from);
        }
    } else {
        const double width = high - low;
        for (int64_t e = 0; e < n; e++) {
            if (e % 2 == 0) draw(key, step, (uint64_t)e / 2, word);
            const uint64_t bits = join(word[e % 2 * 2], word[e % 2 * 2 + 1]) >> 11;
            ((double *)out)[e] = fma((double)bits * 0x1p-53, width, low);
        }
    }
}

/* The upper half of a product of 64-bit numbers. */
static uint64_t multiply_high(uint64_t a, uint64_t b) {
    const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (uint32_t)middle;
    return a1 * b1 + (middle >> 32) + (other >> 32);
}

void chainrule_random_permutation(uint64_t key, uint64_t epoch, int64_t *out, int64_t n) {
    uint32_t word[4];
    for (int64_t i = 0; i < n; i++) out[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        draw(key, epoch, (uint64_t)i, word);
        const uint64_t j = multiply_high(join(word[0], word[1]), (uint64_t)i + 1);
        const int64_t moved = out[i];
        out[i] = out[j];
        out[j] = moved;
    }
}
