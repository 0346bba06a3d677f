/* Vector types and the few primitives that differ between instruction sets.
 *
 * Every kernel file is compiled once per (ISA, element type) with
 *   -DCHAINRULE_ISA_<NAME>   one of PORTABLE AVX2 AVX512 NEON
 *   -DCHAINRULE_REAL=32|64   the element type `real`
 * and names what it defines with K(name), e.g. K(map) -> chainrule_map_avx2_f32.
 *
 * All primitives round once, to nearest; v_fma is the only contraction (the build passes
 * -ffp-contract=off), so every variant yields the same bits in each lane.
 */
#ifndef CHAINRULE_ISA_H
#define CHAINRULE_ISA_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if CHAINRULE_REAL == 32
typedef float real;
typedef int32_t ireal; /* integers as wide as real */
typedef uint32_t ureal;
#define REAL_SUFFIX f32
#else
typedef double real;
typedef int64_t ireal;
typedef uint64_t ureal;
#define REAL_SUFFIX f64
#endif

#if defined(CHAINRULE_ISA_AVX512)
#include <immintrin.h>
#define VBYTES 64
#define ISA_SUFFIX avx512
#elif defined(CHAINRULE_ISA_AVX2)
#include <immintrin.h>
#define VBYTES 32
#define ISA_SUFFIX avx2
#elif defined(CHAINRULE_ISA_NEON)
#include <arm_neon.h>
#define VBYTES 16
#define ISA_SUFFIX neon
#else
#define VBYTES 16
#define ISA_SUFFIX portable
#endif

#define K_PASTE(a, b, c) chainrule_##a##_##b##_##c
#define K_EXPAND(a, b, c) K_PASTE(a, b, c)
#define K(name) K_EXPAND(name, ISA_SUFFIX, REAL_SUFFIX)

#define VLANES ((int)(VBYTES / sizeof(real)))
#define INLINE static inline __attribute__((always_inline, unused))

typedef real vreal __attribute__((vector_size(VBYTES), may_alias));
typedef real vreal_u __attribute__((vector_size(VBYTES), aligned(sizeof(real)), may_alias));
typedef ireal vint __attribute__((vector_size(VBYTES), may_alias));
typedef ureal vuint __attribute__((vector_size(VBYTES), may_alias));
typedef ireal vint_u __attribute__((vector_size(VBYTES), aligned(sizeof(real)), may_alias));

INLINE vreal v_load(const real *p) { return *(const vreal_u *)p; }
INLINE void v_store(real *p, vreal v) { *(vreal_u *)p = v; }
INLINE vreal v_splat(real x) { return x - (vreal){0}; }
INLINE vint v_isplat(ireal x) { return x - (vint){0}; }

/* The first n lanes (0 <= n <= VLANES); the others are zero. Memory past n is never touched. */
#if defined(CHAINRULE_ISA_AVX512) && CHAINRULE_REAL == 32
#define V_MASK(n) ((__mmask16)((1u << (n)) - 1))
INLINE vreal v_load_n(const real *p, int n) { return (vreal)_mm512_maskz_loadu_ps(V_MASK(n), p); }
INLINE void v_store_n(real *p, vreal v, int n) { _mm512_mask_storeu_ps(p, V_MASK(n), (__m512)v); }
#elif defined(CHAINRULE_ISA_AVX512)
#define V_MASK(n) ((__mmask8)((1u << (n)) - 1))
INLINE vreal v_load_n(const real *p, int n) { return (vreal)_mm512_maskz_loadu_pd(V_MASK(n), p); }
INLINE void v_store_n(real *p, vreal v, int n) { _mm512_mask_storeu_pd(p, V_MASK(n), (__m512d)v); }
#elif defined(CHAINRULE_ISA_AVX2) && CHAINRULE_REAL == 32
#define V_MASK(n)                                                                                  \
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
INLINE vreal v_load_n(const real *p, int n) { return (vreal)_mm256_maskload_ps(p, V_MASK(n)); }
INLINE void v_store_n(real *p, vreal v, int n) { _mm256_maskstore_ps(p, V_MASK(n), (__m256)v); }
#elif defined(CHAINRULE_ISA_AVX2)
#define V_MASK(n) _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3))
INLINE vreal v_load_n(const real *p, int n) { return (vreal)_mm256_maskload_pd(p, V_MASK(n)); }
INLINE void v_store_n(real *p, vreal v, int n) { _mm256_maskstore_pd(p, V_MASK(n), (__m256d)v); }
#else
INLINE vreal v_load_n(const real *p, int n) {
    vreal v = {0};
    memcpy(&v, p, (size_t)n * sizeof(real));
    return v;
}
INLINE void v_store_n(real *p, vreal v, int n) { memcpy(p, &v, (size_t)n * sizeof(real)); }
#endif

/* The value stays in a register: keeps a load from being repeated inside the instructions that
 * use it. */
INLINE vreal v_keep(vreal v) {
#if defined(CHAINRULE_ISA_AVX512)
    __asm__("" : "+v"(v));
#elif defined(CHAINRULE_ISA_AVX2)
    __asm__("" : "+x"(v));
#elif defined(CHAINRULE_ISA_NEON)
    __asm__("" : "+w"(v));
#endif
    return v;
}

/* 64-bit products of the lanes' low halves */
typedef uint64_t vu64 __attribute__((vector_size(VBYTES), may_alias));
INLINE vu64 v_multiply_low(vu64 a, vu64 b) {
#if defined(CHAINRULE_ISA_AVX512)
    return (vu64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(CHAINRULE_ISA_AVX2)
    return (vu64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(CHAINRULE_ISA_NEON)
    return (vu64)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
    return (a & UINT32_MAX) * (b & UINT32_MAX);
#endif
}

/* mask lanes are 0 or -1, as vector comparisons yield them */
INLINE vreal v_select(vint mask, vreal yes, vreal no) {
#if defined(CHAINRULE_ISA_AVX512) && CHAINRULE_REAL == 32
    return (vreal)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), (__m512)no,
                                       (__m512)yes);
#elif defined(CHAINRULE_ISA_AVX512)
    return (vreal)_mm512_mask_blend_pd(_mm512_movepi64_mask((__m512i)mask), (__m512d)no,
                                       (__m512d)yes);
#elif defined(CHAINRULE_ISA_AVX2) && CHAINRULE_REAL == 32
    return (vreal)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)mask);
#elif defined(CHAINRULE_ISA_AVX2)
    return (vreal)_mm256_blendv_pd((__m256d)no, (__m256d)yes, (__m256d)mask);
#else
    return (vreal)(((vint)yes & mask) | ((vint)no & ~mask));
#endif
}

/* x, but bound where x > bound (x < bound); NaN in x stays, and so does x where they are equal.
 * x86's min and max are just this, provided that the operands stand in this order. */
INLINE vreal v_at_most(vreal x, vreal bound) {
#if defined(CHAINRULE_ISA_AVX512) && CHAINRULE_REAL == 32
    return (vreal)_mm512_min_ps((__m512)bound, (__m512)x);
#elif defined(CHAINRULE_ISA_AVX512)
    return (vreal)_mm512_min_pd((__m512d)bound, (__m512d)x);
#elif defined(CHAINRULE_ISA_AVX2) && CHAINRULE_REAL == 32
    return (vreal)_mm256_min_ps((__m256)bound, (__m256)x);
#elif defined(CHAINRULE_ISA_AVX2)
    return (vreal)_mm256_min_pd((__m256d)bound, (__m256d)x);
#else
    return v_select(x > bound, bound, x);
#endif
}
INLINE vreal v_at_least(vreal x, vreal bound) {
#if defined(CHAINRULE_ISA_AVX512) && CHAINRULE_REAL == 32
    return (vreal)_mm512_max_ps((__m512)bound, (__m512)x);
#elif defined(CHAINRULE_ISA_AVX512)
    return (vreal)_mm512_max_pd((__m512d)bound, (__m512d)x);
#elif defined(CHAINRULE_ISA_AVX2) && CHAINRULE_REAL == 32
    return (vreal)_mm256_max_ps((__m256)bound, (__m256)x);
#elif defined(CHAINRULE_ISA_AVX2)
    return (vreal)_mm256_max_pd((__m256d)bound, (__m256d)x);
#else
    return v_select(x < bound, bound, x);
#endif
}

/* of two, with ties to the first; NaN in either is NaN out */
INLINE vreal v_max(vreal a, vreal b) { return v_select(b != b, b, v_at_least(a, b)); }
INLINE vreal v_min(vreal a, vreal b) { return v_select(b != b, b, v_at_most(a, b)); }

INLINE vreal v_abs(vreal x) { return (vreal)((vint)x & ~(vint)v_splat((real)-0.0)); }
/* x with the sign bit of s set as well */
INLINE vreal v_or_sign(vreal x, vreal s) {
    return (vreal)((vint)x | ((vint)s & (vint)v_splat((real)-0.0)));
}

INLINE vreal v_fma(vreal a, vreal b, vreal c) {
#if defined(CHAINRULE_ISA_AVX512) && CHAINRULE_REAL == 32
    return (vreal)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(CHAINRULE_ISA_AVX512)
    return (vreal)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(CHAINRULE_ISA_AVX2) && CHAINRULE_REAL == 32
    return (vreal)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(CHAINRULE_ISA_AVX2)
    return (vreal)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(CHAINRULE_ISA_NEON) && CHAINRULE_REAL == 32
    return (vreal)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(CHAINRULE_ISA_NEON)
    return (vreal)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    vreal r;
    for (int i = 0; i < VLANES; i++)
        r[i] = sizeof(real) == 4 ? (real)fmaf((float)a[i], (float)b[i], (float)c[i])
                                 : (real)fma(a[i], b[i], c[i]);
    return r;
#endif
}

INLINE vreal v_sqrt(vreal a) {
#if defined(CHAINRULE_ISA_AVX512) && CHAINRULE_REAL == 32
    return (vreal)_mm512_sqrt_ps((__m512)a);
#elif defined(CHAINRULE_ISA_AVX512)
    return (vreal)_mm512_sqrt_pd((__m512d)a);
#elif defined(CHAINRULE_ISA_AVX2) && CHAINRULE_REAL == 32
    return (vreal)_mm256_sqrt_ps((__m256)a);
#elif defined(CHAINRULE_ISA_AVX2)
    return (vreal)_mm256_sqrt_pd((__m256d)a);
#elif defined(CHAINRULE_ISA_NEON) && CHAINRULE_REAL == 32
    return (vreal)vsqrtq_f32((float32x4_t)a);
#elif defined(CHAINRULE_ISA_NEON)
    return (vreal)vsqrtq_f64((float64x2_t)a);
#else
    vreal r;
    for (int i = 0; i < VLANES; i++)
        r[i] = sizeof(real) == 4 ? (real)sqrtf((float)a[i]) : (real)sqrt(a[i]);
    return r;
#endif
}

#endif
