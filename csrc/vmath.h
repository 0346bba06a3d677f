/* Elementary functions on vectors of real, from + - * /, sqrt, fma, exact bit operations and
 * selects alone, in one order: every instruction set gives the same bits (contract N2).
 *
 * The polynomials are minimax fits made by tests/ulp/fit.py; tests/ulp/ulp.c measures all errors.
 * NaN in, NaN out. Unless said otherwise the results are within 2 ULP, right at the infinities and
 * for subnormal arguments and results, and keep the sign of zero where the function is odd.
 */
#ifndef CHAINRULE_VMATH_H
#define CHAINRULE_VMATH_H

#include "isa.h"

/* Constants; NAME_LO is what NAME lost by rounding. _HIGH and _LOW are where a function's argument
 * is clipped: beyond, the result has reached its limit. */
#if CHAINRULE_REAL == 32
#define V_C(x) x##f
enum { MANTISSA = 23, BIAS = 127, LIFT = 31 };
#define LEAST_NORMAL 0x1p-126f
#define SQRT_HALF 0x1.6a09e6p-1f
#define ROUNDER 0x1.8p23f /* adding it rounds to an integer, which then stands in the low bits */
#define LN2_LO (-0x1.05c61p-29f)
#define GATE_1_LO (-0x1.857936p-25f)
#define GATE_3_LO 0x1.49b16ap-29f
#define TWO_THIRDS_LO (-0x1.555556p-26f)
#define EXP_LOW (-104.0f) /* exp is 0 below, */
#define EXP_HIGH 89.0f    /* infinite above */
#define EXPM1_LOW (-20.0f)
#define TANH_HIGH 10.0f
#define ERF_HIGH 4.0f
#define TAIL_HIGH 15.0f
#define TAIL_SHIFT 3.0f
#define TAIL_CENTRE 1.5f
#define SWISH_HIGH 110.0f
#define GATE_HIGH 11.0f
#else
#define V_C(x) x
enum { MANTISSA = 52, BIAS = 1023, LIFT = 63 };
#define LEAST_NORMAL 0x1p-1022
#define SQRT_HALF 0x1.6a09e667f3bcdp-1
#define ROUNDER 0x1.8p52
#define LN2_LO 0x1.abc9e3b39803fp-56
#define GATE_1_LO (-0x1.cbc0d30ebfd15p-54)
#define GATE_3_LO (-0x1.6c843a29d1c7p-61)
#define TWO_THIRDS_LO 0x1.5555555555555p-55
#define EXP_LOW (-746.0)
#define EXP_HIGH 710.0
#define EXPM1_LOW (-40.0)
#define TANH_HIGH 20.0
#define ERF_HIGH 6.0
#define TAIL_HIGH 39.0
#define TAIL_SHIFT 4.0
#define TAIL_CENTRE 3.0
#define SWISH_HIGH 753.0
#define GATE_HIGH 22.0
#endif
#define LN2 V_C(0x1.62e42fefa39efp-1)
#define LOG2_E V_C(0x1.71547652b82fep+0)
#define SQRT_2 V_C(0x1.6a09e667f3bcdp+0)
#define RSQRT_2PI V_C(0x1.9884533d43651p-2) /* 1 / sqrt(2 pi) */
#define GATE_1 V_C(0x1.9884533d43651p+0)    /* 2 sqrt(2 / pi) */
#define GATE_3 V_C(0x1.2444f2a4d8b4bp-4)    /* 0.044715 * 2 sqrt(2 / pi) */
#define TWO_THIRDS V_C(0x1.5555555555555p-1)

#if CHAINRULE_REAL == 32
/* (exp(r) - 1 - r) / r^2 on |r| <= ln 2 / 2, relative to exp(r) - 1: 2^-31.15 */
static const real P_EXP[] = {0x1p-1f,        0x1.555556p-3f,  0x1.5554f6p-5f,
                             0x1.111002p-7f, 0x1.6d3c86p-10f, 0x1.a24742p-13f};
/* (log(1 + f) - f + f^2 / 2) / f^3 on sqrt(1/2) <= 1 + f <= sqrt(2): 2^-30.28 */
static const real P_LOG[] = {0x1.555548p-2f,  -0x1.000006p-2f, 0x1.99a476p-3f,
                             -0x1.555c44p-3f, 0x1.233ba6p-3f,  -0x1.fc28ecp-4f,
                             0x1.e6bfd2p-4f,  -0x1.de003ap-4f, 0x1.147162p-4f};
/* (tanh(x) / x - 1) / x^2 in x^2, |x| <= 0.55: 2^-29.84 */
static const real P_TANH[] = {-0x1.55554cp-2f, 0x1.110d6ap-3f, -0x1.b931fcp-5f, 0x1.598274p-6f,
                              -0x1.9c9472p-8f};
/* erf(x) / x - 1 in x^2, |x| <= 0.75: 2^-29.2 */
static const real P_ERF[] = {0x1.06eba8p-3f,  -0x1.81273ap-2f, 0x1.ce2acep-4f,
                             -0x1.b7a75cp-6f, 0x1.4f188ap-8f,  -0x1.613e54p-11f};
/* Phi(-a) exp(a^2 / 2) (a + 3) in (a - 1.5) / (a + 3), 0 <= a <= 15: 2^-26.69 */
static const real P_TAIL[] = {0x1.da1e6p-1f,   -0x1.cdd06p-1f,   0x1.e7dd8ep-2f, -0x1.034b66p-4f,
                              -0x1.f3b6d6p-5f, 0x1.b6565p-7f,    0x1.bdd032p-7f, -0x1.f5551ap-11f,
                              -0x1.ea102ap-9f, -0x1.a9c446p-13f, 0x1.6e54b6p-11f};
/* (2 atanh(s) / s - 2 - 2/3 s^2) / s^4 in s^2, |s| <= 3 - 2 sqrt(2): 2^-36.78 */
static const real P_ATANH[] = {0x1.999ap-2f, 0x1.24527cp-2f, 0x1.dfa248p-3f};
#else
/* (exp(r) - 1 - r) / r^2 on |r| <= ln 2 / 2, relative to exp(r) - 1: 2^-61.68 */
static const real P_EXP[] = {0x1p-1,
                             0x1.5555555555559p-3,
                             0x1.5555555555556p-5,
                             0x1.111111110f627p-7,
                             0x1.6c16c16c16289p-10,
                             0x1.a01a01b02277fp-13,
                             0x1.a01a01a658a83p-16,
                             0x1.71ddf7a833ad8p-19,
                             0x1.27e4ddfcf5de2p-22,
                             0x1.af6004973c8d7p-26,
                             0x1.1f6c6a10ca39cp-29};
/* (log(1 + f) - f + f^2 / 2) / f^3 on sqrt(1/2) <= 1 + f <= sqrt(2): 2^-59.29 */
static const real P_LOG[] = {
    0x1.555555555556bp-2, -0x1.ffffffffffe85p-3, 0x1.9999999994da1p-3, -0x1.555555556ab66p-3,
    0x1.249249275ce7ap-3, -0x1.fffffff3dbc48p-4, 0x1.c71c702ea74fcp-4, -0x1.99999a998cb6fp-4,
    0x1.745d58b8aa3d8p-4, -0x1.55557740ad997p-4, 0x1.3b0d7b0015903p-4, -0x1.24894686f071cp-4,
    0x1.1169e2bc80694p-4, -0x1.00cfbcd44cac8p-4, 0x1.dc997e330b94ep-5, -0x1.b45edf8a5c40bp-5,
    0x1.bba620d73835bp-5, -0x1.0103de4727c41p-4, 0x1.d2b9c9ec118ffp-5, -0x1.8dd456adb429bp-6};
/* (tanh(x) / x - 1) / x^2 in x^2, |x| <= 0.55: 2^-60.59 */
static const real P_TANH[] = {-0x1.555555555554fp-2,  0x1.1111111110789p-3,  -0x1.ba1ba1b97bf1fp-5,
                              0x1.664f4859024e4p-6,   -0x1.226e2f0409d02p-7, 0x1.d6d298a61f99ep-9,
                              -0x1.7d8fa994fe0a7p-10, 0x1.348232f86532bp-11, -0x1.e95f6a9aa5ecep-13,
                              0x1.5d41fa08d37fp-14,   -0x1.468c5716e2855p-16};
/* erf(x) / x - 1 in x^2, |x| <= 0.75: 2^-56.33 */
static const real P_ERF[] = {0x1.06eba8214db69p-3,   -0x1.812746b037a32p-2, 0x1.ce2f21a046d47p-4,
                             -0x1.b82ce313e8e5bp-6,  0x1.565bcd4a4088p-8,   -0x1.c02dbf88040dfp-11,
                             0x1.f9a47898abb2ep-14,  -0x1.f4e8fddaa2fep-17, 0x1.bab0fe4fac861p-20,
                             -0x1.61176df77cfd2p-23, 0x1.c6bb64d79fd31p-27};
/* Phi(-a) exp(a^2 / 2) (a + 4) in (a - 3) / (a + 4), 0 <= a <= 39: 2^-54.06 */
static const real P_TAIL[] = {
    0x1.b381889ebac81p-1,  -0x1.ab8839b8e5fa9p-1,  0x1.3d6d1e8841628p-1,   -0x1.53dd8ab9d9c92p-2,
    0x1.c31811e554d3p-4,   -0x1.f1585a12af414p-8,  -0x1.6b855737484ebp-7,  0x1.b6966d3613552p-9,
    0x1.3a9d53087f5cp-10,  -0x1.4d1e1cbe19758p-11, -0x1.9bcdbd879c9d2p-13, 0x1.d38588444cd23p-14,
    0x1.891e66d5a1eacp-15, -0x1.202d753cd41f3p-16, -0x1.aba15567f8627p-17, 0x1.7021f14166aecp-20,
    0x1.bc8cb05ed9999p-19, 0x1.c27ac37b806b6p-22,  -0x1.9cc8c30d8b434p-21, -0x1.b30b283342f09p-23,
    0x1.5bbe00bdabf8bp-23, 0x1.f487fb9ea3bf6p-27,  -0x1.bd1dcb7a5efe8p-26, 0x1.528d41c4313a2p-27};
/* (2 atanh(s) / s - 2 - 2/3 s^2) / s^4 in s^2, |s| <= 3 - 2 sqrt(2): 2^-66.28 */
static const real P_ATANH[] = {0x1.9999999999b3p-2,  0x1.2492492457d5fp-2, 0x1.c71c722d66bfap-3,
                               0x1.745ce9e30da78p-3, 0x1.3b1eec203ab0dp-3, 0x1.0f7fe7161f47dp-3,
                               0x1.0e42c8959b9fdp-3};
#endif

#ifdef __clang__
#define V_UNROLL _Pragma("clang loop unroll(full)")
#else
#define V_UNROLL _Pragma("GCC unroll 32")
#endif

/* sum of c[j] x^j, by Horner's rule */
#define V_POLY(x, c) v_poly(x, c, (int)(sizeof(c) / sizeof(c[0])))
INLINE vreal v_poly(vreal x, const real *c, int n) {
    vreal y = v_splat(c[n - 1]);
    V_UNROLL for (int j = n - 2; j >= 0; j--) y = v_fma(y, x, v_splat(c[j]));
    return y;
}

INLINE vreal v_clip(vreal x, vreal low, vreal high) {
    return v_select(x < low, low, v_at_most(x, high));
}

/* x = k ln 2 + r with |r| <= ln 2 / 2: yields exp(r) - 1 and *t = k + ROUNDER. x is clipped by the
 * caller; from x + lo, |lo| < ULP(x), by exp_reduced_sum. */
INLINE vreal exp_reduced(vreal x, vreal *t) {
    *t = v_fma(x, v_splat(LOG2_E), v_splat(ROUNDER));
    vreal k = *t - ROUNDER, r = v_fma(k, v_splat(-LN2_LO), v_fma(k, v_splat(-LN2), x));
    return v_fma(r * r, V_POLY(r, P_EXP), r);
}
INLINE vreal exp_reduced_sum(vreal x, vreal lo, vreal *t) {
    *t = v_fma(x, v_splat(LOG2_E), v_splat(ROUNDER));
    vreal k = *t - ROUNDER, r = v_fma(k, v_splat(-LN2), x) + v_fma(k, v_splat(-LN2_LO), lo);
    return v_fma(r * r, V_POLY(r, P_EXP), r);
}

/* x * 2^k, rounded once, and 2^k for normal results alone; t = k + ROUNDER */
INLINE vreal v_scale(vreal x, vreal t) {
#if defined(CHAINRULE_ISA_AVX512) && CHAINRULE_REAL == 32
    return (vreal)_mm512_scalef_ps((__m512)x, (__m512)(t - ROUNDER));
#elif defined(CHAINRULE_ISA_AVX512)
    return (vreal)_mm512_scalef_pd((__m512d)x, (__m512d)(t - ROUNDER));
#else
    /* in two steps, the first of them exact; the sum of the two biased exponents is positive */
    vuint sum = (vuint)((vint)t - ((vint)v_splat(ROUNDER) - 2 * BIAS));
    vuint half = sum >> 1;
    return x * (vreal)(half << MANTISSA) * (vreal)((sum - half) << MANTISSA);
#endif
}
INLINE vreal power_of_2(vreal t) { return (vreal)(((vuint)t + BIAS) << MANTISSA); }

/* at most 1 ULP */
INLINE vreal v_exp(vreal x) {
    vreal t, e;
    e = exp_reduced(v_at_least(v_at_most(x, v_splat(EXP_HIGH)), v_splat(EXP_LOW)), &t);
    return v_scale(1 + e, t);
}

INLINE vreal v_expm1(vreal x) {
    vreal clipped = v_at_least(v_at_most(x, v_splat(EXP_HIGH)), v_splat(EXPM1_LOW));
    vreal t = v_fma(clipped, v_splat(LOG2_E), v_splat(ROUNDER)), k = t - ROUNDER;
    /* as exp_reduced, but r's rounding error counts where 2^k - 1 cancels: add it again */
    vreal high = v_fma(k, v_splat(-LN2), clipped), r = v_fma(k, v_splat(-LN2_LO), high);
    vreal lost = v_fma(k, v_splat(-LN2_LO), high - r);
    vreal e = r + v_fma(r * r, V_POLY(r, P_EXP), lost);
    /* 2^k e + (2^k - 1), which for the largest k would overflow before its time */
    vint largest = t > ROUNDER + BIAS;
    vreal power = power_of_2((vreal)((vint)t + largest));
    vreal y = v_fma(power, e, power - 1);
    return v_or_sign(v_select(largest, y + y, y), x);
}

/* log(1 + f) + k ln 2, for |log(1 + f)| <= ln 2 / 2 */
INLINE vreal log_reduced(vreal f, vreal k) {
    vreal square = f * f, y = k * LN2_LO;
    y = v_fma(f * square, V_POLY(f, P_LOG), y);
    y = v_fma(square, v_splat(V_C(-0.5)), y) + f;
    return v_fma(k, v_splat(LN2), y);
}

/* x = m * 2^k with m in [sqrt(1/2), sqrt(2)); x positive, normal, finite */
INLINE vreal split_exponent(vreal x, vreal *k) {
    vuint offset = (vuint)v_splat(SQRT_HALF);
    vuint biased = ((vuint)x - offset + ((ureal)BIAS << MANTISSA)) >> MANTISSA;
    /* an integer in the low bits of 2^MANTISSA: int to real without an instruction for it */
    vreal base = v_splat((real)((ureal)1 << MANTISSA));
    *k = (vreal)(biased | (vuint)base) - (base + BIAS);
    return (vreal)((vuint)x - (biased << MANTISSA) + ((ureal)BIAS << MANTISSA));
}

INLINE vreal v_log(vreal x) {
    vreal k, m, y;
    vint subnormal = x < LEAST_NORMAL;
    const real up = (real)((ureal)1 << LIFT);
    m = split_exponent(v_select(subnormal, x * up, x), &k);
    k = v_select(subnormal, k - LIFT, k);
    y = log_reduced(m - 1, k);
    y = v_select(x < INFINITY, y, x);
    y = v_select(x == 0, v_splat(-INFINITY), y);
    return v_select(x < 0, v_splat(NAN), y);
}

INLINE vreal v_log1p(vreal x) {
    vreal k, m, y, sum = 1 + x;
    vreal lost = x - (sum - 1); /* of x, by rounding 1 + x */
    m = split_exponent(sum, &k);
    vreal inverse = V_C(0.5) * (vreal)((vuint)v_splat(2) - ((vuint)sum - (vuint)m)); /* 2^-k */
    y = log_reduced(v_fma(lost, inverse, m - 1), k);
    y = v_select(x < INFINITY, y, x);
    y = v_select(x == -1, v_splat(-INFINITY), y);
    return v_select(x < -1, v_splat(NAN), v_or_sign(y, x));
}

/* Small |x|: a polynomial; else 1 - 2 / (exp(2 |x|) + 1). */
INLINE vreal v_tanh(vreal x) {
    vreal t, e, a = v_abs(x), square = x * x;
    vreal small = v_fma(x * square, V_POLY(square, P_TANH), x);
    e = exp_reduced(v_at_most(a + a, v_splat(2 * TANH_HIGH)), &t);
    vreal power = power_of_2(t);
    vreal large = 1 - 2 / (v_fma(power, e, power + 1));
    return v_or_sign(v_select(a < V_C(0.55), small, large), x);
}

/* 1 / (1 + exp(-x)), without early overflow or underflow */
INLINE vreal v_sigmoid(vreal x) {
    vreal t, e;
    x = v_at_most(v_at_least(-x, v_splat(EXPM1_LOW)), v_splat(-EXP_LOW));
    e = exp_reduced(x, &t);
    vreal most = v_at_most(t, v_splat(ROUNDER + (BIAS - 7))), power = power_of_2(most);
    /* 1 + power (1 + e), rounded once where 1 + power is exact and about once elsewhere */
    vreal sum = 1 + power, lost = 1 - (sum - power);
    sum = sum + v_fma(power, e, lost);
    return 1 / sum * power_of_2(ROUNDER + (most - t));
}

/* max(x, 0) + log(1 + exp(-|x|)); within 4 ULP */
INLINE vreal v_softplus(vreal x) {
    vreal t, e;
    e = exp_reduced(v_at_least(-v_abs(x), v_splat(EXP_LOW)), &t);
    vreal power = power_of_2(t), less_1 = v_fma(power, e, power - 1); /* exp(-|x|) - 1, if large */
    e = v_scale(1 + e, t);
    vint large = e > V_C(0.41421356237309503);
    vreal f = v_select(large, less_1 * V_C(0.5), e);
    /* what max(x, 0) + ln 2 loses is added to the small logarithm: rounding it away would let the
     * sum of a rising and a falling term step back */
    vreal k = v_select(large, v_splat(1), v_splat(0)), rising = v_at_least(x, v_splat(0));
    vreal sum = v_fma(k, v_splat(LN2), rising);
    vreal lost = v_fma(k, v_splat(LN2), rising - sum) + k * LN2_LO;
    vreal y = sum + (log_reduced(f, v_splat(0)) + lost);
    return v_select(x == INFINITY, x, y);
}

/* Phi(-a) exp(a^2 / 2), Phi being the normal distribution, and what it lost by the last roundings;
 * 0 <= a <= TAIL_HIGH */
INLINE vreal v_tail(vreal a, vreal *lo) {
    const int n = (int)(sizeof P_TAIL / sizeof *P_TAIL);
    vreal sum = a + TAIL_SHIFT, u = 1 / sum;
    /* u (1 + lost) is the reciprocal to almost twice the precision: errors of u would grow */
    vreal lost = v_fma((sum - TAIL_SHIFT) - a, u, v_fma(-sum, u, v_splat(1)));
    vreal t = v_fma(u, v_splat(-(TAIL_SHIFT + TAIL_CENTRE)), v_splat(1));
    t = v_fma(u * lost, v_splat(-(TAIL_SHIFT + TAIL_CENTRE)), t);
    vreal q = v_poly(t, P_TAIL + 1, n - 1), first = v_splat(P_TAIL[0]);
    vreal p = v_fma(q, t, first), p_lo = v_fma(q, t, first - p);
    vreal y = u * p;
    *lo = v_fma(u, p_lo, v_fma(y, lost, v_fma(u, p, -y)));
    return y;
}

/* exp(-a^2 / 2) - 1 reduced, the square to twice the precision */
INLINE vreal exp_half_square(vreal a, vreal *t) {
    vreal half = V_C(-0.5) * a, square = half * a;
    return exp_reduced_sum(square, v_fma(half, a, -square), t);
}

/* Small |x|: a polynomial; else 1 - 2 Phi(-sqrt(2) |x|). */
INLINE vreal v_erf(vreal x) {
    vreal t, e, lo, a = v_abs(x), square = x * x;
    vreal small = v_fma(x, V_POLY(square, P_ERF), x);
    a = v_at_most(a, v_splat(ERF_HIGH));
    e = exp_reduced(-(a * a), &t);
    vreal power = -2 * power_of_2(t) * v_tail(a * SQRT_2, &lo);
    vreal large = 1 + v_fma(power, e, power);
    return v_or_sign(v_select(a < V_C(0.75), small, large), x);
}

/* swish, gelu and gelu_tanh are x P(x) with P(-x) = 1 - P(x), hence max(x, 0) - |x| P(-|x|); and
 * their derivatives are 1 - D(|x|) for x >= 0, else D(|x|). P(-a) and D(a) are small without
 * cancellation, except D around its zero (a = 1.28, 0.75, 0.75), where its error is absolute. */
INLINE vreal gated(vreal x, vreal below) { return v_or_sign(v_at_least(x, v_splat(0)) - below, x); }
INLINE vreal dgated(vreal x, vreal below) { return v_select(x < 0, below, 1 - below); }

/* a / (1 + exp(w + lo)), w >= 0, for swish and gelu_tanh */
INLINE vreal gate_below(vreal a, vreal w, vreal lo) {
    vreal t, e = exp_reduced_sum(-w, -lo, &t);
    return v_scale(v_fma(a, e, a), t) / (1 + v_scale(1 + e, t));
}
/* and its derivative's D: with e = exp(-w) it is e / (1 + e) (1 - a w' / (1 + e)) */
INLINE vreal dgate_below(vreal slope_a, vreal w, vreal lo) {
    vreal t, e = exp_reduced_sum(-w, -lo, &t);
    vreal power = 1 + e, s = 1 / (1 + v_scale(power, t));
    return v_scale(power * (s * v_fma(-slope_a, s, v_splat(1))), t);
}

INLINE vreal v_swish(vreal x) {
    vreal a = v_at_most(v_abs(x), v_splat(SWISH_HIGH));
    return gated(x, gate_below(a, a, v_splat(0)));
}
INLINE vreal v_dswish(vreal x) {
    vreal a = v_at_most(v_abs(x), v_splat(SWISH_HIGH));
    return dgated(x, dgate_below(a, a, v_splat(0)));
}

/* x Phi(x); within 4 ULP */
INLINE vreal v_gelu(vreal x) {
    vreal t, lo, a = v_at_most(v_abs(x), v_splat(TAIL_HIGH)), e = exp_half_square(a, &t);
    vreal ratio = v_tail(a, &lo), y = a * ratio;
    lo = v_fma(a, lo, v_fma(a, ratio, -y));
    return gated(x, v_scale(y + v_fma(y, e, v_fma(lo, e, lo)), t));
}
/* Phi(x) + x Phi'(x) */
INLINE vreal v_dgelu(vreal x) {
    vreal t, lo, a = v_at_most(v_abs(x), v_splat(TAIL_HIGH)), e = exp_half_square(a, &t);
    vreal y = v_fma(a, v_splat(-RSQRT_2PI), v_tail(a, &lo)) + lo;
    return dgated(x, v_scale(v_fma(y, e, y), t));
}

/* x sigmoid(w), w = 2 sqrt(2 / pi) (x + 0.044715 x^3); w to twice the precision, since its
 * absolute error is the relative error of the result. Within 4 ULP. */
INLINE vreal gate_argument(vreal a, vreal *lo) {
    vreal square = a * a, square_lo = v_fma(a, a, -square);
    vreal cubic = square * GATE_3, cubic_lo = v_fma(square, v_splat(GATE_3), -cubic);
    cubic_lo = v_fma(square_lo, v_splat(GATE_3), v_fma(square, v_splat(GATE_3_LO), cubic_lo));
    vreal sum = cubic + GATE_1, part = sum - cubic; /* exact sum: Knuth's, either may be larger */
    vreal sum_lo = (cubic - (sum - part)) + (GATE_1 - part) + (cubic_lo + GATE_1_LO);
    vreal w = a * sum;
    *lo = v_fma(a, sum_lo, v_fma(a, sum, -w));
    return w;
}
INLINE vreal v_gelu_tanh(vreal x) {
    vreal lo, a = v_at_most(v_abs(x), v_splat(GATE_HIGH)), w = gate_argument(a, &lo);
    return gated(x, gate_below(a, w, lo));
}
INLINE vreal v_dgelu_tanh(vreal x) {
    vreal lo, a = v_at_most(v_abs(x), v_splat(GATE_HIGH)), w = gate_argument(a, &lo);
    vreal slope_a = a * v_fma(a * a, v_splat(3 * GATE_3), v_splat(GATE_1));
    return dgated(x, dgate_below(slope_a, w, lo));
}

/* x^c by exp(c log |x|), the logarithm to twice the precision */
INLINE vreal v_pow(vreal x, real c) {
    const real size = c < 0 ? -c : c, exact = (real)((ureal)2 << MANTISSA);
    const int whole = !(size < exact) || c == (real)(ireal)c;
    const int odd = whole && size < exact && (ireal)c % 2;
    vreal a = v_abs(x), k, m;
    vint subnormal = a < LEAST_NORMAL;
    const real up = (real)((ureal)1 << LIFT);
    m = split_exponent(v_select(subnormal, a * up, a), &k);
    k = v_select(subnormal, k - LIFT, k);

    /* log m = 2 s + s (2/3 s^2 + s^4 P(s^2)), s = f / (2 + f), each sum as hi + lo */
    vreal f = m - 1, d = m + 1, d_lo = f - (d - 2);
    vreal s = f / d, s_lo = v_fma(-s, d_lo, v_fma(-s, d, f)) / d;
    vreal u = s * s, u_lo = v_fma(s, s, -u);
    vreal q = u * TWO_THIRDS, q_lo = v_fma(u, v_splat(TWO_THIRDS), -q);
    q_lo = v_fma(u, v_splat(TWO_THIRDS_LO), v_fma(u_lo, v_splat(TWO_THIRDS), q_lo));
    q_lo = v_fma(s * s_lo, v_splat(2 * TWO_THIRDS), q_lo);
    vreal rest = v_fma(u * u, V_POLY(u, P_ATANH), q_lo), p = q + rest;
    vreal p_lo = rest - (p - q);
    vreal cube = s * p, cube_lo = v_fma(s, p_lo, v_fma(s_lo, p, v_fma(s, p, -cube)));
    vreal base = k * LN2, base_lo = v_fma(k, v_splat(LN2_LO), v_fma(k, v_splat(LN2), -base));
    vreal sum = base + 2 * s, log_lo = 2 * s - (sum - base);
    vreal log = sum + cube;
    log_lo = (log_lo + (cube - (log - sum))) + (base_lo + (2 * s_lo + cube_lo));

    vreal t, e, y = log * c, y_lo = v_fma(log, v_splat(c), -y) + log_lo * c;
    y_lo = v_select(v_abs(y) < -2 * EXP_LOW, y_lo, v_splat(0));
    e = exp_reduced_sum(v_at_least(v_at_most(y, v_splat(EXP_HIGH)), v_splat(EXP_LOW)), y_lo, &t);
    y = v_scale(1 + e, t);

    y = v_select(a == 0, v_splat(c > 0 ? 0 : INFINITY), y);
    y = v_select(a == INFINITY, v_splat(c > 0 ? INFINITY : 0), y);
    y = v_select(a == 1, v_splat(1), y);
    if (odd) y = v_or_sign(y, x);
    if (!whole) y = v_select((x < 0) & (a < INFINITY), v_splat(NAN), y);
    return c == c ? v_select(x == x, y, x) : v_splat(c);
}

#endif
