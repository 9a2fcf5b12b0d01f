/* A softmax over rows in its two passes, for the losses of language models.
 *
 * Threads share rows, and a row's sum goes by vectors in the order of their places, so that its bits hang on nothing else.
 */
#ifndef FRNN_SOFTMAX_H
#define FRNN_SOFTMAX_H

#include "activation.h"
#include "sequence.h"

/* exp(x) for x <= 0, in lockstep: 0 where it would be subnormal, NaN where x is. Largest error over all such float32: 1.1 ulp. */
INLINE void v_exps(vec *x) {
    vec two_n[SEVERAL];
    EACH(SEVERAL) x[i] = v_max(v_set1(-EXP_BOUND), x[i]);
    exp_parts(SEVERAL, x, two_n);
    EACH(SEVERAL) x[i] = two_n[i] * (v_set1(1) + x[i]); /* no term of it is subnormal unless the result is */
}

/* Several vectors from place j of a row of n numbers on, for none to wait for the last one; past its end -inf. */
INLINE void load_several(const real *row, int64_t j, int64_t n, vec *x) {
    const vec none = v_set1((real)-INFINITY);
    EACH(SEVERAL) {
        const int64_t u = j + i * LANES;
        if (u + LANES <= n) x[i] = v_load(row + u);
        else x[i] = u < n ? v_select(v_first((int)(n - u)), v_load_n(row + u, (int)(n - u)), none) : none;
    }
}

/* The same of exp(row - peak). */
INLINE void several_exps(const real *row, int64_t j, int64_t n, real peak, vec *x) {
    load_several(row, j, n, x);
    EACH(SEVERAL) x[i] -= v_set1(peak);
    v_exps(x);
}

INLINE real row_peak(const real *row, int64_t n) {
    vec most[SEVERAL], x[SEVERAL];
    EACH(SEVERAL) most[i] = v_set1((real)-INFINITY);
    for (int64_t j = 0; j < n; j += SEVERAL * LANES) {
        load_several(row, j, n, x);
        EACH(SEVERAL) most[i] = v_max(x[i], most[i]); /* of a NaN the sum will tell */
    }
    EACH(SEVERAL) most[0] = v_max(most[i], most[0]);
    real peak = most[0][0];
    for (int i = 1; i < LANES; i++) peak = most[0][i] > peak ? most[0][i] : peak;
    return peak;
}

INLINE real row_sum(const real *row, int64_t n, real peak) {
    vec sum[SEVERAL], x[SEVERAL];
    EACH(SEVERAL) sum[i] = v_zero();
    for (int64_t j = 0; j < n; j += SEVERAL * LANES) {
        several_exps(row, j, n, peak, x);
        EACH(SEVERAL) sum[i] += x[i];
    }
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    real all = 0;
    for (int i = 0; i < LANES; i++) all += sum[0][i];
    return all;
}

INLINE void row_exponentials(const real *row, int64_t n, real peak, real factor, real *out) {
    for (int64_t j = 0; j < n; j += SEVERAL * LANES) {
        vec x[SEVERAL];
        several_exps(row, j, n, peak, x);
        EACH(SEVERAL) {
            const int64_t u = j + i * LANES;
            if (u < n) v_store_n(out + u, x[i] * v_set1(factor), lanes_left(n, u));
        }
    }
}

/* Of every row its maximum and the sum of exp(row - maximum). */
static void softmax_sums(void *arg, int rank, int size) {
    const frnn_softmax *job = arg;
    const uint64_t flush = v_flush_on();
    real *const peak = job->peak, *const sum = job->sum;
    for (int64_t r = job->rows * rank / size; r < job->rows * (rank + 1) / size; r++) {
        const real *row = (const real *)job->x + r * job->n;
        peak[r] = row_peak(row, job->n);
        sum[r] = row_sum(row, job->n, peak[r]);
    }
    v_flush_restore(flush);
}

/* out = exp(x - peak) * factor. */
static void scaled_exponentials(void *arg, int rank, int size) {
    const frnn_softmax *job = arg;
    const uint64_t flush = v_flush_on();
    const real *const peak = job->peak, *const factor = job->factor;
    for (int64_t r = job->rows * rank / size; r < job->rows * (rank + 1) / size; r++)
        row_exponentials((const real *)job->x + r * job->n, job->n, peak[r], factor[r], (real *)job->out + r * job->n);
    v_flush_restore(flush);
}

#endif
