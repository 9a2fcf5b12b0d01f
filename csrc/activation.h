/* The activations, and their derivatives written in the activation's output.
 *
 * sigmoid, tanh and elu are made of exp on a reduced argument, as vectors; what they cost in accuracy stands
 * above each, measured over all float32 inputs by tests/test_accuracy.py. No tables, no branches on data.
 * Next: product.h.
 */
#ifndef FRNN_ACTIVATION_H
#define FRNN_ACTIVATION_H

#include <math.h>

#include "core.h"
#include "simd.h"

/* exp(x) = 2^n exp(r) with n = round(x / ln 2), r = x - n ln 2. x must lie within +-EXP_BOUND (NaN passes). Rounding to n
 * by adding 1.5 * 2^23 (2^52) leaves it in the low bits of the sum, ready to be moved into an exponent.
 *
 * Several vectors go in lockstep, for each is one long chain of operations that wait for each other. */
#define EXP_BOUND PER_TYPE(88.0f, 709.0)
#define EXPONENT_SHIFT PER_TYPE(23, 52)
#define ONE_BITS PER_TYPE(0x3f800000, 0x3ff0000000000000) /* 1.0: its exponent plus n is that of 2^n */
enum { SEVERAL = 4 }; /* the most vectors in lockstep: what the registers hold */
#define EACH(n) UNROLL for (int i = 0; i < (n); i++)

/* x becomes r; n is left where an exponent stands. The first `exact` of n vectors subtract ln 2 in two parts; for the others it is
 * one number, 1.9e-9 (in float64 2.3e-17) from it, and r by so much times n. */
INLINE void exp_reduce(const int n, const int exact, vec *x, bits *exponent) {
    const vec magic = v_set1(PER_TYPE(12582912.0f, 6755399441055744.0)), ln_2 = v_set1(PER_TYPE(0.693147182f, 0.69314718055994531));
    const vec high = v_set1(PER_TYPE(0.693145751953125f, 0.6931471803691238));
    const vec low = v_set1(PER_TYPE(1.42860682e-6f, 1.9082149292705877e-10));
    vec t[SEVERAL];
    EACH(n) t[i] = v_fma(x[i], v_set1(PER_TYPE(1.44269504f, 1.4426950408889634)), magic);
    EACH(n) exponent[i] = (bits)t[i] << EXPONENT_SHIFT;
    EACH(n) t[i] -= magic;
    EACH(n) x[i] = v_fnma(t[i], i < exact ? high : ln_2, x[i]);
    EACH(exact) x[i] = v_fnma(t[i], low, x[i]);
}

/* two_n becomes 2^n, x expm1(r) = r + r^2 q(r), with q the best polynomial on |r| <= ln 2 / 2; its relative error is 1.4e-8 in float32
 * (degree 4) and 1.9e-17 in float64 (degree 9). */
INLINE void exp_parts(const int n, vec *x, vec *two_n) {
#ifdef FRNN_DOUBLE
    static const real q[] = {2.5053777736851027957e-8, 2.7626161424905040285e-7, 2.7557407861056161998e-6,
                             2.4801504978878475321e-5, 1.9841269718346295646e-4, 1.3888888931794995529e-3,
                             8.3333333333899568998e-3, 4.1666666666576108693e-2, 1.6666666666666588583e-1,
                             5.0000000000000052258e-1};
#else
    static const real q[] = {1.3882510493565301e-3f, 8.3665803281462136e-3f, 4.1667201773213947e-2f,
                             1.6666543178112161e-1f, 4.9999998144090187e-1f};
#endif
    vec square[SEVERAL], p[SEVERAL];
    bits exponent[SEVERAL];
    exp_reduce(n, n, x, exponent);
    EACH(n) two_n[i] = (vec)(ONE_BITS + exponent[i]);
    EACH(n) square[i] = x[i] * x[i];
    EACH(n) p[i] = v_set1(q[0]);
    UNROLL for (size_t k = 1; k < sizeof q / sizeof q[0]; k++) EACH(n) p[i] = v_fma(p[i], x[i], v_set1(q[k]));
    EACH(n) x[i] = v_fma(p[i], square[i], x[i]);
}

/* R(r) = r coth(r / 2), of which exp(r) = (R + r) / (R - r) (as fdlibm's exp has it): even, so that for what divides anyway half as
 * many terms do. 2 + r^2 q(r^2) with the best q on |r| <= ln 2 / 2; relative error 2.2e-9 in float32, 8.5e-19 in float64. */
INLINE void exp_ratio(const int n, const vec *r, vec *R) {
#ifdef FRNN_DOUBLE
    static const real q[] = {4.1381407633658530913e-8, -1.6533902344316951523e-6, 6.6137563215883673386e-5,
                             -2.7777777777016119475e-3, 1.6666666666666602194e-1, 2.0};
#else
    static const real q[] = {-2.7667585392002392e-3f, 1.6666625800929484e-1f, 2.0f};
#endif
    vec square[SEVERAL];
    EACH(n) square[i] = r[i] * r[i];
    EACH(n) R[i] = v_set1(q[0]);
    UNROLL for (size_t k = 1; k < sizeof q / sizeof q[0]; k++) EACH(n) R[i] = v_fma(R[i], square[i], v_set1(q[k]));
}

/* The first `sigmoids` vectors become 1 / (1 + exp(-x)) = (R + r) / (R + r + 2^-n (R - r)). Largest error over all float32: 2.44
 * ulp, 9.0e-8; in float64, sampled: 2.5 ulp, 1.7e-16.
 *
 * The next `tanhs` become tanh(x) = (exp(2x) - 1) / (exp(2x) + 1), both times R - r, as multiples of R and of r, so that small x
 * keep their relative accuracy. Past the bound tanh is 1 in the type at hand. Largest error over all float32: 2.5 ulp,
 * 1.5e-7; in float64, sampled: 2.5 ulp, 2.8e-16; where a multiply-add rounds twice, 4.3 and 4.4 ulp. */
INLINE void v_sigmoids_tanhs(const int sigmoids, const int tanhs, vec *x) {
    const int n = sigmoids + tanhs;
    const vec most = v_set1(EXP_BOUND), bound = v_set1(PER_TYPE(20.0f, 44.0)), one = v_set1(1);
    vec R[SEVERAL], over[SEVERAL], under[SEVERAL];
    bits exponent[SEVERAL];
    EACH(n) x[i] = i < sigmoids ? v_min(most, v_max(-most, x[i])) : v_min(bound, v_max(-bound, x[i] + x[i]));
    exp_reduce(n, sigmoids, x, exponent);
    exp_ratio(n, x, R);
    EACH(n) {
        if (i < sigmoids) {
            over[i] = R[i] + x[i];
            under[i] = v_fma((vec)(ONE_BITS - exponent[i]), R[i] - x[i], over[i]);
        } else {
            const vec two_n = (vec)(ONE_BITS + exponent[i]), less = two_n - one, more = two_n + one;
            over[i] = v_fma(less, R[i], more * x[i]);
            under[i] = v_fma(more, R[i], less * x[i]);
        }
    }
    EACH(n) x[i] = over[i] / under[i];
}
INLINE vec v_sigmoid(vec x) {
    v_sigmoids_tanhs(1, 0, &x);
    return x;
}
INLINE vec v_tanh(vec x) {
    v_sigmoids_tanhs(0, 1, &x);
    return x;
}

/* tanh of n vectors, which do not wait for each other. */
INLINE void v_tanhs(int n, vec *x) {
    for (; n >= SEVERAL; n -= SEVERAL, x += SEVERAL) v_sigmoids_tanhs(0, SEVERAL, x);
    for (; n > 0; n--, x++) *x = v_tanh(*x);
}

/* exp(x) - 1 for x <= 0 (larger x give 0). Largest error over all float32: 1.1 ulp, 4.2e-8. */
INLINE vec v_expm1_negative(vec x) {
    vec two_n;
    x = v_max(v_set1(-EXP_BOUND), v_min(v_zero(), x));
    exp_parts(1, &x, &two_n);
    return v_fma(two_n, x, two_n - v_set1(1));
}

/* log(1 + exp(x)), lane by lane: too rare to deserve more. */
INLINE vec v_softplus(vec x) {
    for (int i = 0; i < LANES; i++) {
        const real a = x[i];
        x[i] = (a > 0 ? a : 0) + PER_TYPE(log1pf, log1p)(PER_TYPE(expf, exp)(-PER_TYPE(fabsf, fabs)(a)));
    }
    return x;
}

INLINE vec v_relu(vec x) { return v_max(v_zero(), x); }

/* The bound that a cell may set on the inputs of its gates' activations. */
INLINE vec v_clip(const frnn_act *f, vec x) {
    return f->clipped ? v_min(v_set1((real)f->clip), v_max(v_set1((real)-f->clip), x)) : x;
}

/* f(clip(x)) for any activation. */
static vec act(const frnn_act *f, vec x) {
    const vec alpha = v_set1((real)f->alpha), beta = v_set1((real)f->beta), one = v_set1(1);
    x = v_clip(f, x);
    switch (f->code) {
    case FRNN_SIGMOID: return v_sigmoid(x);
    case FRNN_TANH: return v_tanh(x);
    case FRNN_RELU: return v_relu(x);
    case FRNN_AFFINE: return v_fma(alpha, x, beta);
    case FRNN_LEAKY_RELU: return v_select(x < v_zero(), alpha * x, x);
    case FRNN_THRESHOLDED_RELU: return v_select(x < alpha, v_zero(), x);
    case FRNN_SCALED_TANH: return alpha * v_tanh(beta * x);
    case FRNN_HARD_SIGMOID: return v_min(one, v_max(v_zero(), v_fma(alpha, x, beta)));
    case FRNN_ELU: return v_select(x < v_zero(), alpha * v_expm1_negative(x), x);
    case FRNN_SOFTSIGN: return x / (one + v_abs(x));
    default: return v_softplus(x);
    }
}

/* df/da at the output y = f(clip(a)). An output of a bound was clipped: its derivative is zero. */
static vec act_grad(const frnn_act *f, vec y) {
    const vec alpha = v_set1((real)f->alpha), beta = v_set1((real)f->beta), one = v_set1(1), zero = v_zero();
    vec d;
    switch (f->code) {
    case FRNN_SIGMOID: d = y * (one - y); break;
    case FRNN_TANH: d = v_fnma(y, y, one); break;
    case FRNN_RELU: d = v_select(y > zero, one, zero); break;
    case FRNN_AFFINE: d = alpha; break;
    case FRNN_LEAKY_RELU: d = v_select(y > zero, one, alpha); break;
    case FRNN_THRESHOLDED_RELU: d = v_select(y != zero, one, zero); break;
    case FRNN_SCALED_TANH: d = beta * (alpha - y * y / alpha); break;
    case FRNN_HARD_SIGMOID: d = v_select((y > zero) & (y < one), alpha, zero); break;
    case FRNN_ELU: d = v_select(y > zero, one, y + alpha); break;
    case FRNN_SOFTSIGN: d = (one - v_abs(y)) * (one - v_abs(y)); break;
    default: d = -v_expm1_negative(-y); break;
    }
    if (!f->clipped) return d;
    const vec high = act(f, v_set1((real)f->clip)), low = act(f, v_set1((real)-f->clip));
    return v_select((y == high) | (y == low), zero, d);
}

INLINE vec sigmoid_grad(vec y) { return y * (v_set1(1) - y); }
INLINE vec tanh_grad(vec y) { return v_fnma(y, y, v_set1(1)); }

#endif
