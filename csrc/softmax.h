/* The exponentials of a softmax over rows, for the losses of language models.
 *
 * Threads share rows, and a row's sum goes by vectors in the order of their places, so that its bits hang on nothing else.
 */
#ifndef FRNN_SOFTMAX_H
#define FRNN_SOFTMAX_H

#include "activation.h"
#include "sequence.h"

enum { SUMS = 4 }; /* vectors at once: an addition, and an exponential more so, must not wait for the last one */

/* exp(x) for x <= 0, in lockstep: 0 where it would be subnormal, NaN where x is. Largest error over all such float32: 1.1 ulp. */
INLINE void v_exps(vec *x) {
    vec two_n[SUMS];
    EACH(SUMS) x[i] = v_max(v_set1(-EXP_BOUND), x[i]);
    exp_parts(SUMS, x, two_n);
    EACH(SUMS) x[i] = two_n[i] * (v_set1(1) + x[i]); /* no term of it is subnormal unless the result is */
}

/* The SUMS vectors from place j of a row of n numbers on; past its end `fill`. */
INLINE void load_some(const real *row, int64_t j, int64_t n, vec fill, vec *x) {
    EACH(SUMS) {
        const int64_t u = j + i * LANES;
        if (u + LANES <= n) x[i] = v_load(row + u);
        else x[i] = u < n ? v_select(v_first((int)(n - u)), v_load_n(row + u, (int)(n - u)), fill) : fill;
    }
}

INLINE real row_peak(const real *row, int64_t n) {
    const vec least_of_all = v_set1((real)-INFINITY);
    vec most[SUMS], x[SUMS];
    EACH(SUMS) most[i] = least_of_all;
    for (int64_t j = 0; j < n; j += SUMS * LANES) {
        load_some(row, j, n, least_of_all, x);
        EACH(SUMS) most[i] = v_max(x[i], most[i]); /* of a NaN the sum will tell */
    }
    EACH(SUMS) most[0] = v_max(most[i], most[0]);
    real peak = most[0][0];
    for (int i = 1; i < LANES; i++) peak = most[0][i] > peak ? most[0][i] : peak;
    return peak;
}

INLINE real row_sum(const real *row, int64_t n, real peak) {
    const vec top = v_set1(peak);
    vec sum[SUMS], x[SUMS];
    EACH(SUMS) sum[i] = v_zero();
    for (int64_t j = 0; j < n; j += SUMS * LANES) {
        load_some(row, j, n, v_set1((real)-INFINITY), x);
        EACH(SUMS) x[i] -= top;
        v_exps(x);
        EACH(SUMS) sum[i] += x[i];
    }
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    real all = 0;
    for (int i = 0; i < LANES; i++) all += sum[0][i];
    return all;
}

INLINE void row_exponentials(const real *row, int64_t n, real peak, real factor, real *out) {
    const vec top = v_set1(peak), times = v_set1(factor);
    for (int64_t j = 0; j < n; j += SUMS * LANES) {
        vec x[SUMS];
        load_some(row, j, n, v_zero(), x);
        EACH(SUMS) x[i] -= top;
        v_exps(x);
        EACH(SUMS) {
            const int64_t u = j + i * LANES;
            if (u < n) v_store_n(out + u, x[i] * times, lanes_left(n, u));
        }
    }
}

static void exponentials(void *arg, int rank, int size) {
    const frnn_exponentials *job = arg;
    const uint64_t flush = v_flush_on();
    real *const peak = job->peak, *const sum = job->sum;
    for (int64_t r = job->rows * rank / size; r < job->rows * (rank + 1) / size; r++) {
        const real *row = (const real *)job->x + r * job->n;
        if (job->out) {
            row_exponentials(row, job->n, peak[r], ((const real *)job->factor)[r], (real *)job->out + r * job->n);
        } else {
            peak[r] = row_peak(row, job->n);
            sum[r] = row_sum(row, job->n, peak[r]);
        }
    }
    v_flush_restore(flush);
}

#endif
