/* What follows a backward pass: the gradients' norm, and an optimiser's step in one pass over its parameters.
 *
 * The steps are those of fastrnn/optim.py, operation by operation, and so are their bits: nothing is fused, and subnormal numbers
 * stay, which a tiny eps may be. A sum of squares goes piece by piece, in an order that hangs on n alone.
 */
#ifndef FRNN_UPDATE_H
#define FRNN_UPDATE_H

#include "sequence.h"

static void sums_of_squares(void *arg, int rank, int size) {
    const frnn_squares *job = arg;
    const int64_t pieces = (job->n + FRNN_SQUARES - 1) / FRNN_SQUARES;
    for (int64_t p = pieces * rank / size; p < pieces * (rank + 1) / size; p++) {
        const real *x = (const real *)job->x + p * FRNN_SQUARES;
        const int64_t n = least(job->n - p * FRNN_SQUARES, FRNN_SQUARES);
        double lane[16] = {0}, sum = 0;
        int64_t i = 0;
        for (; i + 16 <= n; i += 16)
            for (int j = 0; j < 16; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
        for (int j = 0; j < 16; j++) sum += lane[j];
        for (; i < n; i++) sum += (double)x[i] * (double)x[i];
        job->sums[p] = sum;
    }
}

static void scale(void *arg, int rank, int size) {
    const frnn_scaling *job = arg;
    const span part = part_of(job->n, rank, size);
    const vec factor = v_set1((real)job->factor);
    for (int64_t i = part.start; i < part.end; i += LANES) {
        real *const x = (real *)job->x + i;
        const int n = lanes_left(part.end, i);
        v_store_n(x, v_load_n(x, n) * factor, n);
    }
}

/* g + decay w; without a decay g, for a w may be infinite. */
INLINE vec decayed(double decay, vec g, vec w) { return decay != 0 ? g + w * v_set1((real)decay) : g; }

static void sgd(void *arg, int rank, int size) {
    const frnn_sgd_step *o = arg;
    const span part = part_of(o->n, rank, size);
    const vec lr = v_set1((real)o->lr), momentum = v_set1((real)o->momentum), fresh = v_set1((real)o->fresh);
    for (int64_t i = part.start; i < part.end; i += LANES) {
        const int n = lanes_left(part.end, i);
        const vec w = v_load_n((real *)o->w + i, n);
        vec g = decayed(o->decay, v_load_n((const real *)o->g + i, n), w);
        if (o->b) {
            real *const kept = (real *)o->b + i;
            const vec b = v_load_n(kept, n) * momentum + g * fresh;
            v_store_n(kept, b, n);
            g = o->nesterov ? g + b * momentum : b;
        }
        v_store_n((real *)o->w + i, w - g * lr, n);
    }
}

static void rmsprop(void *arg, int rank, int size) {
    const frnn_rmsprop_step *o = arg;
    const span part = part_of(o->n, rank, size);
    const vec lr = v_set1((real)o->lr), momentum = v_set1((real)o->momentum), eps = v_set1((real)o->eps);
    const vec alpha = v_set1((real)o->alpha), fresh = v_set1((real)(1 - o->alpha));
    for (int64_t i = part.start; i < part.end; i += LANES) {
        const int n = lanes_left(part.end, i);
        const vec w = v_load_n((real *)o->w + i, n);
        const vec g = decayed(o->decay, v_load_n((const real *)o->g + i, n), w);
        vec v = v_load_n((real *)o->v + i, n) * alpha + g * g * fresh;
        v_store_n((real *)o->v + i, v, n);
        if (o->mean) {
            const vec mean = v_load_n((real *)o->mean + i, n) * alpha + g * fresh;
            v_store_n((real *)o->mean + i, mean, n);
            v -= mean * mean;
        }
        vec change = g / (v_sqrt(v) + eps);
        if (o->b) {
            change += v_load_n((real *)o->b + i, n) * momentum;
            v_store_n((real *)o->b + i, change, n);
        }
        v_store_n((real *)o->w + i, w - change * lr, n);
    }
}

static void adam(void *arg, int rank, int size) {
    const frnn_adam_step *o = arg;
    const span part = part_of(o->n, rank, size);
    const vec rate = v_set1((real)o->rate), eps = v_set1((real)o->eps), shrink = v_set1((real)o->shrink);
    const vec b1 = v_set1((real)o->b1), new1 = v_set1((real)(1 - o->b1)), b2 = v_set1((real)o->b2), new2 = v_set1((real)(1 - o->b2));
    for (int64_t i = part.start; i < part.end; i += LANES) {
        const int n = lanes_left(part.end, i);
        const vec w = v_load_n((real *)o->w + i, n) * shrink;
        const vec g = decayed(o->decay, v_load_n((const real *)o->g + i, n), w);
        const vec m = v_load_n((real *)o->m + i, n) * b1 + g * new1;
        vec v = v_load_n((real *)o->v + i, n) * b2 + g * g * new2;
        v_store_n((real *)o->m + i, m, n);
        v_store_n((real *)o->v + i, v, n);
        if (o->peak) {
            const vec peak = v_load_n((real *)o->peak + i, n);
            v = v_select(peak != peak, peak, v_max(peak, v)); /* NaN, whichever of the two is */
            v_store_n((real *)o->peak + i, v, n);
        }
        v_store_n((real *)o->w + i, w - m / (v_sqrt(v) + eps) * rate, n);
    }
}

#endif
