/* How many units in the last place the core's functions are off, on every ISA of this CPU.
 *
 *   ulp [STRIDE [FUNCTION...]]
 *
 * float32: every STRIDE-th of the 2^32 inputs (1, the default, takes them all), against libm in
 * float64. float64: dense samples (fewer for larger strides), against quadruple precision. Errors
 * are in ULP of the exact result, 2^-149 (2^-1074) where that is subnormal. The widest ISA is
 * measured, the others must give the same bits; the portable one, which is slow, is compared on
 * every 16th block. Non-decreasing functions may step back by 1 ULP.
 * Exit status 1: an error above its bound, a step back, or a different bit.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"

#if defined(__x86_64__) && !defined(__clang__)
#include <quadmath.h>
typedef __float128 wide;
#define WIDE(f) f##q
#else
typedef long double wide; /* quadruple precision on aarch64, 64 bits on x86 */
#define WIDE(f) f##l
#endif
#define DOUBLE(f) f

/* The truth: REFERENCES(f32, double, DOUBLE) and (f64, wide, WIDE). Limits at the infinities. */
#define REFERENCES(type, real, M)                                                                  \
    static real type##_exp(real x) { return M(exp)(x); }                                           \
    static real type##_log(real x) { return M(log)(x); }                                           \
    static real type##_log1p(real x) { return M(log1p)(x); }                                       \
    static real type##_expm1(real x) { return M(expm1)(x); }                                       \
    static real type##_erf(real x) { return M(erf)(x); }                                           \
    static real type##_tanh(real x) { return M(tanh)(x); }                                         \
    static real type##_sigmoid(real x) {                                                           \
        return x < 0 ? M(exp)(x) / (1 + M(exp)(x)) : 1 / (1 + M(exp)(-x));                         \
    }                                                                                              \
    static real type##_elu(real x) { return x > 0 ? x : M(expm1)(x); }                             \
    static real type##_softplus(real x) {                                                          \
        return x > 0 ? x + M(log1p)(M(exp)(-x)) : M(log1p)(M(exp)(x));                             \
    }                                                                                              \
    static real type##_gate(real x, real w) { /* x sigmoid(w) */                                   \
        if (x == -INFINITY) return -(real)0;                                                       \
        return w < 0 ? x * M(exp)(w) / (1 + M(exp)(w)) : x / (1 + M(exp)(-w));                     \
    }                                                                                              \
    static real type##_swish(real x) { return type##_gate(x, x); }                                 \
    static real type##_argument(real x) { /* 2 sqrt(2 / pi) (x + 0.044715 x^3) */                  \
        const real root = M(sqrt)(8 / (4 * M(atan)((real)1)));                                     \
        return root * (x + (real)44715 / 1000000 * x * x * x);                                     \
    }                                                                                              \
    static real type##_gelu_tanh(real x) { return type##_gate(x, type##_argument(x)); }            \
    static real type##_gelu(real x) {                                                              \
        if (x == -INFINITY) return -(real)0;                                                       \
        return x / 2 * M(erfc)(-x / M(sqrt)((real)2));                                             \
    }                                                                                              \
    static real type##_dsoftplus(real x) { return type##_sigmoid(x); }                             \
    static real type##_dgate(real x, real w, real slope) {                                         \
        const real e = M(exp)(-M(fabs)(w)), below = e / (1 + e), above = 1 / (1 + e);              \
        if (x - x != 0) return x != x ? x : x > 0;                                                 \
        return (w < 0 ? below : above) + x * (below * above) * slope;                              \
    }                                                                                              \
    static real type##_dswish(real x) { return type##_dgate(x, x, 1); }                            \
    static real type##_dgelu_tanh(real x) {                                                        \
        const real root = M(sqrt)(8 / (4 * M(atan)((real)1)));                                     \
        return type##_dgate(x, type##_argument(x), root * (1 + (real)134145 / 1000000 * x * x));   \
    }                                                                                              \
    static real type##_dgelu(real x) {                                                             \
        if (x - x != 0) return x != x ? x : x > 0;                                                 \
        return M(erfc)(-x / M(sqrt)((real)2)) / 2 +                                                \
               x * M(exp)(-x * x / 2) / M(sqrt)(8 * M(atan)((real)1));                             \
    }                                                                                              \
    static real type##_power(real x, real c) { return c == (real)0.5 ? M(sqrt)(x) : M(pow)(x, c); }
REFERENCES(f32, double, DOUBLE)
REFERENCES(f64, wide, WIDE)

/* X(name, bound in ULP, is non-decreasing, is derivative) */
#define FUNCTIONS(X)                                                                               \
    X(exp, 2, 1, 0)                                                                                \
    X(log, 2, 1, 0)                                                                                \
    X(log1p, 2, 1, 0)                                                                              \
    X(expm1, 2, 1, 0)                                                                              \
    X(erf, 2, 1, 0)                                                                                \
    X(tanh, 2, 1, 0)                                                                               \
    X(sigmoid, 2, 1, 0)                                                                            \
    X(elu, 4, 1, 0)                                                                                \
    X(softplus, 4, 1, 0)                                                                           \
    X(swish, 4, 0, 0)                                                                              \
    X(gelu, 4, 0, 0)                                                                               \
    X(gelu_tanh, 4, 0, 0)                                                                          \
    X(dsoftplus, 2, 1, 1)                                                                          \
    X(dswish, 8, 0, 1)                                                                             \
    X(dgelu, 8, 0, 1)                                                                              \
    X(dgelu_tanh, 8, 0, 1)

typedef struct {
    const char *name;
    int op, monotone, derivative;
    double bound, exponent;
    double (*f32)(double);
    wide (*f64)(wide);
} function;

static const function functions[] = {
#define X(name, bound, monotone, derivative)                                                       \
    {#name, OP_##name, monotone, derivative, bound, 0, f32_##name, f64_##name},
    FUNCTIONS(X)
#undef X
#define X(c) {"power " #c, OP_power, 0, 0, 8, c, NULL, NULL},
        X(-2.5) X(-2) X(-1) X(-0.25) X(0.3) X(0.5) X(1.5) X(3) X(7) X(17) X(100.1)
#undef X
};

enum { BLOCK = 1 << 14 };

/* Floats in ascending order as integers, and back: -NaN ... -0, 0 ... NaN. */
static float float_at(uint64_t key) {
    const uint32_t bits = key >> 31 ? (uint32_t)key - 0x80000000u : ~(uint32_t)key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static uint64_t random_state = 1;
static uint64_t draw(void) { /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}
static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* n float64 in ascending order: any bits, the ranges where something happens, neighbours; and
 * what is special */
static double *samples(int64_t n) {
    static const double special[] = {0.0,
                                     -0.0,
                                     1,
                                     -1,
                                     0x1p-1074,
                                     -0x1p-1074,
                                     0x1p-1022,
                                     -0x1p-1022,
                                     0x1.fffffffffffffp1023,
                                     -0x1.fffffffffffffp1023,
                                     INFINITY,
                                     -INFINITY};
    double *x = malloc((size_t)n * sizeof *x);
    if (!x) return NULL;
    for (int64_t i = 0; i < n; i++) {
        const double u = (double)(draw() >> 11) * 0x1p-52 - 1;
        if (i < (int64_t)(sizeof special / sizeof *special)) {
            x[i] = special[i];
            continue;
        }
        switch (i % 8) {
        case 0:
            do {
                const uint64_t bits = draw();
                memcpy(&x[i], &bits, sizeof bits);
            } while (x[i] != x[i]);
            break;
        case 1:
            x[i] = 760 * u;
            break;
        case 2:
            x[i] = 40 * u;
            break;
        case 3:
            x[i] = 4 * u;
            break;
        case 4:
            x[i] = u;
            break;
        case 5:
            x[i] = ldexp(u, -(int)(draw() % 60));
            break;
        case 6:
            x[i] = 2 + 2 * u;
            break;
        default:
            x[i] = nextafter(x[i - 1 - (int64_t)(draw() % 7)], INFINITY);
        }
    }
    qsort(x, (size_t)n, sizeof *x, ascending);
    return x;
}

/* out = op(x) by one ISA's kernels; the derivatives' upstream gradient is 1 */
static void evaluate(const chainrule_kernels *kernels, const function *f, int dtype, void *x,
                     void *out, int64_t n) {
    static const float one_f32 = 1;
    static const double one_f64 = 1;
    chainrule_view view = {x, dtype, 1, {n}, {1}}, one = view;
    chainrule_call call = {.op = f->op, .n_out = 1, .n_in = 1, .f = {f->exponent}};
    one.data = (void *)(dtype == DT_F32 ? (const void *)&one_f32 : (const void *)&one_f64);
    one.stride[0] = 0;
    if (f->op == OP_elu) call.f[0] = 1;
    call.in[f->derivative] = view;
    if (f->derivative) call.in[0] = one;
    call.n_in += f->derivative;
    view.data = out;
    call.out[0] = view;
    kernels->map(&call, 0, n);
}

typedef struct {
    double error, at;
    int64_t back;      /* steps back by more than 1 ULP */
    int64_t different; /* results of which another ISA has other bits */
} result;

/* Distance in ULP of the truth, or of `least_size` where the truth is smaller. */
static double error_of(wide truth, double got, int dtype, double least_size) {
    const int digits = dtype == DT_F32 ? 24 : 53, least = dtype == DT_F32 ? -149 : -1074;
    const wide limit = 2 * (wide)ldexp(1, dtype == DT_F32 ? 127 : 1023);
    const wide size = truth < 0 ? -truth : truth;
    if (truth != truth || got != got) return truth != truth && got != got ? 0 : INFINITY;
    if (truth == 0 && got == 0)
        return least_size > 0 || signbit((double)truth) == signbit(got) ? 0 : INFINITY;
    if (isinf(got) && (got > 0) == (truth > 0) && size >= limit - limit * ldexp(1, -digits - 1))
        return 0;
    if (size >= limit) return INFINITY;
    const wide value = isinf(got) ? (got > 0 ? limit : -limit) : got;
    const wide difference = value > truth ? value - truth : truth - value;
    const double reference = size > (wide)least_size ? (double)size : least_size;
    int exponent = reference > 0 ? ilogb(reference) - digits + 1 : least;
    if (exponent < least) exponent = least;
    return (double)(difference / (wide)ldexp(1, exponent));
}

/* One block against the truth; got is as double, exact for both types. */
static void measure(const function *f, int dtype, const double *x, const double *got, int n,
                    result *r) {
    /* a derivative that crosses zero is measured as if it were no smaller than 1/8 */
    const double least_size = f->derivative && !f->monotone ? 0.125 : 0;
    const double least = dtype == DT_F32 ? 0x1p-149 : 0x1p-1074;
    for (int i = 0; i < n; i++) {
        wide truth;
        if (f->f32)
            truth = dtype == DT_F32 ? (wide)f->f32(x[i]) : f->f64(x[i]);
        else if (dtype == DT_F32)
            truth = f32_power(x[i], (float)f->exponent);
        else
            truth = f64_power(x[i], f->exponent);
        const double error = error_of(truth, got[i], dtype, least_size);
        if (!(error <= r->error)) r->error = error, r->at = x[i];
        if (f->monotone && i && got[i] < got[i - 1]) {
            const double size = fmax(fabs(got[i]), fabs(got[i - 1]));
            const double unit = ldexp(1, ilogb(size) - (dtype == DT_F32 ? 23 : 52));
            r->back += got[i - 1] - got[i] > fmax(unit, least);
        }
    }
}

/* results of one ISA that differ from those of another; NaNs are equal */
static int64_t compare(int dtype, const void *a, const void *b, int n) {
    int64_t different = 0;
    for (int i = 0; i < n; i++) {
        if (dtype == DT_F32) {
            const float *x = a, *y = b;
            different += memcmp(x + i, y + i, sizeof *x) && !(x[i] != x[i] && y[i] != y[i]);
        } else {
            const double *x = a, *y = b;
            different += memcmp(x + i, y + i, sizeof *x) && !(x[i] != x[i] && y[i] != y[i]);
        }
    }
    return different;
}

enum { MAX_ISAS = 8 };
static const chainrule_kernels *tables[2][MAX_ISAS];
static int n_isas;

static result check(const function *f, int dtype, uint64_t stride, const double *x64, int64_t n64) {
    const int64_t n =
        dtype == DT_F32 ? (int64_t)((((uint64_t)1 << 32) + stride - 1) / stride) : n64;
    const int64_t blocks = (n + BLOCK - 2) / (BLOCK - 1); /* they share an input with the next */
    result total = {0};
#pragma omp parallel for schedule(dynamic, 16)
    for (int64_t block = 0; block < blocks; block++) {
        static _Thread_local union {
            float f32[BLOCK];
            double f64[BLOCK];
        } in, out, other;
        static _Thread_local double x[BLOCK], got[BLOCK];
        const int64_t begin = block * (BLOCK - 1);
        const int m = (int)(n - begin < BLOCK ? n - begin : BLOCK);
        result r = {0};
        for (int i = 0; i < m; i++) {
            if (dtype == DT_F32)
                x[i] = in.f32[i] = float_at((uint64_t)(begin + i) * stride);
            else
                x[i] = in.f64[i] = x64[begin + i];
        }
        evaluate(tables[dtype][n_isas - 1], f, dtype, &in, &out, m);
        for (int i = 0; i < m; i++) got[i] = dtype == DT_F32 ? out.f32[i] : out.f64[i];
        measure(f, dtype, x, got, m, &r);
        for (int k = 0; k < n_isas - 1; k++) {
            if (k == 0 && block % 16) continue;
            evaluate(tables[dtype][k], f, dtype, &in, &other, m);
            r.different += compare(dtype, &out, &other, m);
        }
#pragma omp critical
        {
            if (!(r.error <= total.error)) total.error = r.error, total.at = r.at;
            total.back += r.back;
            total.different += r.different;
        }
    }
    return total;
}

int main(int argc, char **argv) {
    const uint64_t stride = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    int failed = 0;
    if (stride == 0) {
        fprintf(stderr, "usage: ulp [STRIDE [FUNCTION...]]\n");
        return 2;
    }
    for (; n_isas < MAX_ISAS && chainrule_isa_at(n_isas); n_isas++) {
        chainrule_choose_isa(chainrule_isa_at(n_isas));
        tables[DT_F32][n_isas] = chainrule_table(DT_F32);
        tables[DT_F64][n_isas] = chainrule_table(DT_F64);
    }
    int64_t n64 = (int64_t)(1 << 24) / (int64_t)(stride < 256 ? stride : 256);
    if (n64 > 1 << 22) n64 = 1 << 22;
    double *x64 = samples(n64);
    if (!x64) return 2;

    printf("measured on %s; float32: every %" PRIu64 ". input, float64: %" PRId64 " samples\n",
           chainrule_isa_at(n_isas - 1), stride, n64);
    printf("%-12s %-8s %9s %9s %26s %6s %10s\n", "function", "type", "max ULP", "bound", "at",
           "back", "other bits");
    for (size_t k = 0; k < sizeof functions / sizeof *functions; k++) {
        const function *f = &functions[k];
        int wanted = argc <= 2;
        for (int i = 2; i < argc; i++) wanted |= !strcmp(argv[i], f->name);
        for (int dtype = DT_F32; wanted && dtype <= DT_F64; dtype++) {
            const result r = check(f, dtype, stride, x64, n64);
            const int bad = !(r.error <= f->bound) || r.back || r.different;
            printf("%-12s %-8s %9.3f %9g %26.17g %6" PRId64 " %10" PRId64 "%s\n", f->name,
                   dtype == DT_F32 ? "float32" : "float64", r.error, f->bound, r.at, r.back,
                   r.different, bad ? "  FAILED" : "");
            fflush(stdout);
            failed |= bad;
        }
    }
    free(x64);
    return failed;
}
