/* After the steps have run backward: gradients of weights, biases and inputs, as products over all rows at once.
 *
 * dW[u, i] += sum over rows of da[row, u] b[row, i] goes by blocks of GRAD_ROWS rows, packed by each thread for
 * itself; threads share the outputs, never the sum, so that the bits do not depend on their number.
 */
#ifndef FRNN_GRADIENT_H
#define FRNN_GRADIENT_H

#include "sequence.h"

/* Where row n of an operand stands. INPUT: the track's input; STATE: the state before the step (h, or c where the
 * gates see the cell); GATES: a plane of the gates row; MERGED: the output before the projection; OUTPUT_GRAD: dh. */
typedef enum operand { INPUT, STATE, GATES, MERGED, OUTPUT_GRAD } operand;

/* Walks the packed rows: (s, r) of the row n that it stands at. */
typedef struct walk {
    int64_t s, r, n;
} walk;
INLINE void walk_next(const frnn_run *run, walk *at) {
    at->n++;
    if (++at->r == active(run, at->s)) at->r = 0, at->s++;
}
static walk walk_to(const frnn_run *run, int64_t n) {
    walk at = {.n = n};
    if (run->B && !run->first) at.s = n / run->B, at.r = n % run->B;
    else if (run->first) {
        int64_t low = 0, high = run->T; /* the last s with first(s) <= n and rows of its own */
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            if (first(run, middle) <= n) low = middle;
            else high = middle;
        }
        at.s = low, at.r = n - first(run, low);
    }
    return at;
}

INLINE const real *operand_row(const frnn_run *run, int64_t k, operand what, int plane, const walk *at) {
    const frnn_weights *w = run->weights;
    const frnn_lane *lane = &run->lanes[k];
    switch (what) {
    case INPUT: {
        const int64_t row = lane->x_packed ? at->n : outer_row(run, (int)(k % w->spec.num_directions), at->s, at->r);
        return (const real *)lane->x + row * lane->x_ld;
    }
    case STATE:
        if (w->spec.peephole == FRNN_PEEPHOLE_CELL) return state_row(run, lane->c, w->Hp, at->s) + at->r * w->Hp;
        return state_row(run, lane->h, w->Pp, at->s) + at->r * w->Pp;
    case GATES: return (const real *)lane->gates + at->n * w->planes * w->Hp + plane * w->Hp;
    case MERGED: return (const real *)lane->m + at->n * w->Hp;
    default: return (const real *)lane->dh + at->n * w->Pp;
    }
}

/* Add a [rows, columns] block of a product to out: [*, out_ld], where the last vector may be partial. */
static void add_tile(const scratch *mine, const real *left, const real *right, int64_t depth, int rows, int columns,
                     real *out, int64_t out_ld) {
    const real *a[8];
    real *to[8];
    const int panels = (columns + LANES - 1) / LANES, whole = columns == 4 * LANES;
    for (int m = 0; m < rows; m++) {
        a[m] = left + m;
        to[m] = whole ? out + m * out_ld : mine->z + m * 4 * LANES;
        if (!whole)
            for (int q = 0; q < panels; q++) v_store(to[m] + q * LANES, v_load_n(out + m * out_ld + q * LANES, lanes_left(columns, q * LANES)));
    }
    const int64_t panel = GRAD_ROWS * LANES;
    if (panels == 4) {
        const edge e = {to, 0, 0};
        grad_4x1[rows](a, depth, right, panel, e, e);
    } else {
        for (int q = 0; q < panels; q++) {
            const edge e = {to, q * LANES, 0};
            grad_1x1[rows](a, depth, right + q * panel, panel, e, e);
        }
    }
    if (!whole)
        for (int m = 0; m < rows; m++)
            for (int q = 0; q < panels; q++)
                v_store_n(out + m * out_ld + q * LANES, v_load(to[m] + q * LANES), lanes_left(columns, q * LANES));
}

/* out: [height, width] += the packed left, LANES rows at most, times the packed right. */
static void add_group(const scratch *mine, int64_t depth, int64_t height, int64_t width, real *out, int64_t out_ld) {
    for (int64_t q = 0; q < width; q += 4 * LANES)
        for (int64_t m = 0; m < height;) {
            const int rows = tile_rows(height - m, MOST_ROWS(4));
            add_tile(mine, mine->left + m, mine->right + q * GRAD_ROWS, depth, rows, (int)least(4 * LANES, width - q),
                     out + m * out_ld + q, out_ld);
            m += rows;
        }
}

/* dW: [units, columns] += sum over rows of left[row, unit] right[row, column], for vectors of units [g0, g1). */
static void weight_grad(const frnn_run *run, const scratch *mine, int64_t k, operand left, int left_plane, operand right,
                        int right_plane, int64_t units, int64_t columns, int64_t g0, int64_t g1, real *out) {
    for (int64_t n0 = 0; n0 < run->rows; n0 += GRAD_ROWS) {
        const int64_t depth = least(GRAD_ROWS, run->rows - n0);
        for (int64_t c0 = 0; c0 < columns; c0 += GRAD_COLUMNS) {
            const int64_t width = least(GRAD_COLUMNS, columns - c0);
            walk at = walk_to(run, n0);
            for (int64_t d = 0; d < depth; d++, walk_next(run, &at)) {
                const real *row = operand_row(run, k, right, right_plane, &at) + c0;
                for (int64_t q = 0; q < width; q += LANES)
                    v_store(mine->right + (q * GRAD_ROWS + d * LANES), v_load_n(row + q, lanes_left(width, q)));
            }
            for (int64_t g = g0; g < g1; g++) {
                walk from = walk_to(run, n0);
                for (int64_t d = 0; d < depth; d++, walk_next(run, &from))
                    v_store(mine->left + d * LANES, v_load(operand_row(run, k, left, left_plane, &from) + g * LANES));
                add_group(mine, depth, least(LANES, units - g * LANES), width, out + g * LANES * columns + c0, columns);
            }
        }
    }
}

/* db: [units] += sum over rows of a plane, for vectors of units [g0, g1); with `times`, of the plane times c. */
static void column_sums(const frnn_run *run, int64_t k, int plane, const real *c, int c_before, int64_t units, int64_t g0,
                        int64_t g1, real *out) {
    const frnn_weights *w = run->weights;
    for (int64_t g = g0; g < g1; g++) {
        const real *a = (const real *)run->lanes[k].gates + plane * w->Hp + g * LANES;
        const int n = lanes_left(units, g * LANES);
        vec sum = v_load_n(out + g * LANES, n);
        walk at = {0};
        for (; at.n < run->rows; walk_next(run, &at), a += w->planes * w->Hp)
            if (!c) sum += v_load(a);
            else sum = v_fma(v_load(a), v_load(state_row(run, (void *)c, w->Hp, at.s + !c_before) + at.r * w->Hp + g * LANES), sum);
        v_store_n(out + g * LANES, sum, n);
    }
}

/* All gradients of a track's parameters, this thread's part of them. grads: the track's six pointers. */
static void track_grads(const frnn_run *run, const scratch *mine, int64_t k, void *const *grads, int rank, int size) {
    const frnn_weights *w = run->weights;
    const frnn_spec *spec = &w->spec;
    const int64_t H = w->H, P = w->P, I = run->lanes[k].w->I, groups = w->Hp / LANES;
    const int gru = spec->kind == FRNN_KIND_GRU, before = gru && spec->reset == FRNN_RESET_BEFORE;
    for (int block = 0; block < w->gates; block++) {
        /* The blocks' vectors of units are dealt out in one line, so that every thread has its share. */
        const int64_t all = w->gates * groups, low = all * rank / size, high = all * (rank + 1) / size;
        const int64_t g0 = low - block * groups > 0 ? least(low - block * groups, groups) : 0;
        const int64_t g1 = high - block * groups > 0 ? least(high - block * groups, groups) : 0;
        if (g0 >= g1) continue;
        const int x_plane = gru ? (block + 1) % 3 : block;
        const int h_plane = gru && !before ? block + 1 : x_plane;
        const int on_q = before && block == 2;
        real *const bx = grads[2] ? (real *)grads[2] + block * H : NULL, *const bh = grads[3] ? (real *)grads[3] + block * H : NULL;
        weight_grad(run, mine, k, GATES, x_plane, INPUT, 0, H, I, g0, g1, (real *)grads[0] + block * H * I);
        weight_grad(run, mine, k, GATES, h_plane, on_q ? GATES : STATE, PLANE_Q, H, P, g0, g1, (real *)grads[1] + block * H * P);
        if (bx) column_sums(run, k, x_plane, NULL, 0, H, g0, g1, bx);
        if (bh) column_sums(run, k, h_plane, NULL, 0, H, g0, g1, bh);
        if (grads[5] && block != w->gates - 2) { /* peepholes: all gates but g; o sees the new c */
            const int is_o = block == w->gates - 1, row = is_o ? block - 1 : block;
            column_sums(run, k, x_plane, run->lanes[k].c, !is_o, H, g0, g1, (real *)grads[5] + row * H);
        }
    }
    if (grads[4]) {
        const int64_t all = w->Pp / LANES;
        weight_grad(run, mine, k, OUTPUT_GRAD, 0, MERGED, 0, P, H, all * rank / size, all * (rank + 1) / size, grads[4]);
    }
}

/* dx = da W_ih for this thread's packed rows; the second direction adds to what the first has written. */
static void input_grad(const frnn_run *run, const scratch *mine, int64_t k, real *dx, int rank, int size) {
    const frnn_weights *w = run->weights;
    const frnn_lane *lane = &run->lanes[k];
    const int reverse = (int)(k % w->spec.num_directions);
    const int64_t I = lane->w->I, panels = (I + LANES - 1) / LANES, depth = w->gates * w->Hp;
    const int64_t n0 = run->rows * rank / size, n1 = run->rows * (rank + 1) / size;
    static const real zeros[4 * LANES];
    for (int64_t p = 0; p < panels;) {
        const shape form = shape_of(1, n1 - n0, panels - p);
        walk at = walk_to(run, n0);
        for (int64_t n = n0; n < n1;) {
            const int rows = tile_rows(n1 - n, form.most);
            const real *a[8];
            real *in[8], *out[8];
            for (int m = 0; m < rows; m++) {
                a[m] = (const real *)lane->gates + (n + m) * w->planes * w->Hp;
                in[m] = (real *)zeros;
                out[m] = mine->z + m * form.panels * LANES;
            }
            form.fn[rows](a, depth, (const real *)lane->w->wxt + p * depth * LANES, depth * LANES, (edge){in, 0, 0}, (edge){out, 0, 0});
            for (int m = 0; m < rows; m++, n++, walk_next(run, &at))
                for (int q = 0; q < form.panels; q++) {
                    const int64_t u = (p + q) * LANES;
                    real *to = dx + outer_row(run, reverse, at.s, at.r) * I + u;
                    const vec d = v_load(out[m] + q * LANES);
                    v_store_n(to, reverse ? d + v_load_n(to, lanes_left(I, u)) : d, lanes_left(I, u));
                }
        }
        p += form.panels;
    }
}

#endif
