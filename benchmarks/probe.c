/* What this machine can do, and a plain C loop to compare with. Compiled by measure.py and by
 * tests/test_speed.py. */
#include <math.h>
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

/* One SGD step of K-H-N tanh with softmax cross entropy on rows index[0 .. B): three plain loops a
 * layer. w1: (K, H), w2: (H, N); work: B * 2 (H + N) floats. */
void naive_step(int B, int K, int H, int N, const float *x, const long *y, const long *index,
                float lr, float *w1, float *b1, float *w2, float *b2, float *work) {
    float *h = work, *p = h + (size_t)B * H, *d = p + (size_t)B * N;
    for (int r = 0; r < B; r++) {
        const float *row = x + index[r] * K;
        for (int j = 0; j < H; j++) h[r * H + j] = b1[j];
        for (int k = 0; k < K; k++)
            for (int j = 0; j < H; j++) h[r * H + j] += row[k] * w1[k * H + j];
        for (int j = 0; j < H; j++) h[r * H + j] = tanhf(h[r * H + j]);
        for (int j = 0; j < N; j++) p[r * N + j] = b2[j];
        for (int k = 0; k < H; k++)
            for (int j = 0; j < N; j++) p[r * N + j] += h[r * H + k] * w2[k * N + j];
        float top = p[r * N], sum = 0.0f;
        for (int j = 1; j < N; j++) top = p[r * N + j] > top ? p[r * N + j] : top;
        for (int j = 0; j < N; j++) sum += p[r * N + j] = expf(p[r * N + j] - top);
        for (int j = 0; j < N; j++) p[r * N + j] /= sum * (float)B;
        p[r * N + y[index[r]]] -= 1.0f / (float)B;
        for (int k = 0; k < H; k++) {
            float s = 0.0f;
            for (int j = 0; j < N; j++) s += p[r * N + j] * w2[k * N + j];
            d[r * H + k] = s * (1.0f - h[r * H + k] * h[r * H + k]);
        }
    }
    for (int r = 0; r < B; r++) {
        const float *row = x + index[r] * K;
        for (int k = 0; k < H; k++)
            for (int j = 0; j < N; j++) w2[k * N + j] -= lr * h[r * H + k] * p[r * N + j];
        for (int j = 0; j < N; j++) b2[j] -= lr * p[r * N + j];
        for (int k = 0; k < K; k++)
            for (int j = 0; j < H; j++) w1[k * H + j] -= lr * row[k] * d[r * H + j];
        for (int j = 0; j < H; j++) b1[j] -= lr * d[r * H + j];
    }
}
