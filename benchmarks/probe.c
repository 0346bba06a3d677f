/* What this machine can do. Compiled for it by measure.py. */
#include <stddef.h>

#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
#if defined(__x86_64__)
#define HIDE(value) __asm__ volatile("" : "+x"(value))
#else
#define HIDE(value) __asm__ volatile("" : "+w"(value))
#endif
typedef float vector __attribute__((vector_size(BYTES)));

/* A fixed number of float32 fused multiply-adds on registers alone; how many flops they are. Twelve
 * chains cover the latency of two FMA units; variables, because an array would live in memory. */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define DECLARE(i) vector c##i = a;
#define STEP(i)                                                                                    \
    c##i = c##i * a + b;                                                                           \
    HIDE(c##i);
#define ADD(i) sum += c##i;
double fma_loop(long rounds) {
    vector a, b;
    for (size_t i = 0; i < BYTES / sizeof(float); i++) a[i] = 1.0f, b[i] = 0.0f;
    HIDE(a); /* or the compiler knows what a product by one is */
    HIDE(b);
    EACH(DECLARE)
    for (long r = 0; r < rounds; r++) {
        EACH(STEP)
    }
    vector sum = b;
    EACH(ADD)
    volatile float sink = sum[0];
    (void)sink;
    return 2.0 * 12 * (double)rounds * (BYTES / sizeof(float));
}

/* x[i] = x[i] * 0.5 + y[i]: three passes over memory. */
void triad(float *x, const float *y, long n) {
    for (long i = 0; i < n; i++) x[i] = x[i] * 0.5f + y[i];
}
