/* After a chunk of steps has run backward: the gradients of weights, biases and inputs that these steps add.
 *
 * dW[u, i] += sum over rows of da[row, u] b[row, i] goes by blocks of at most GRAD_ROWS rows while they are still in a
 * cache, da packed by each thread for itself, b where it does not stand evenly; threads share the outputs, never the sum, so
 * that the bits do not depend on their number.
 */
#ifndef FRNN_GRADIENT_H
#define FRNN_GRADIENT_H

#include "sequence.h"

/* What a gate's gradient is multiplied by. INPUT: the track's input; STATE: h before the step; CELL, NEW_CELL: c before
 * and after it; RESET_STATE: r h; MERGED: the output before the projection. */
typedef enum operand { INPUT, STATE, CELL, NEW_CELL, RESET_STATE, MERGED } operand;

/* The step that packed row n belongs to, and its row there. */
typedef struct place {
    int64_t s, r;
} place;
static place place_of(const frnn_run *run, int64_t n) {
    if (!run->first) return run->B ? (place){n / run->B, n % run->B} : (place){0, 0};
    int64_t low = 0, high = run->T; /* the last s with first(s) <= n and rows of its own */
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (first(run, middle) <= n) low = middle;
        else high = middle;
    }
    return (place){low, n - first(run, low)};
}

/* Where row (s, r) of an operand stands, and how far behind it the next row of that step. */
INLINE const real *operand_row(const frnn_run *run, int64_t k, operand what, place at, int64_t *ld) {
    const frnn_weights *w = run->weights;
    const frnn_lane *lane = &run->lanes[k];
    const int64_t n = first(run, at.s) + at.r;
    switch (what) {
    case INPUT: *ld = lane->x_ld; break;
    case STATE: *ld = w->Pp; return taped_row(run, lane->h, w->Pp, at.s) + at.r * w->Pp;
    case CELL: *ld = w->Hp; return taped_row(run, lane->c, w->Hp, at.s) + at.r * w->Hp;
    case NEW_CELL: *ld = w->Hp; return taped_row(run, lane->c, w->Hp, at.s + 1) + at.r * w->Hp;
    case RESET_STATE: *ld = w->planes * w->Hp; return (const real *)lane->gates + n * *ld + PLANE_Q * w->Hp;
    case MERGED: *ld = w->Hp; return (const real *)lane->m + n * w->Hp;
    }
    return input_row(run, lane, (int)(k % w->spec.num_directions), at.s, at.r);
}

/* The rows [n, n + count) of an operand. */
static void find_rows(const frnn_run *run, int64_t k, operand what, int64_t n, int64_t count, const real **rows) {
    const int one_by_one = what == INPUT && input_scattered(run, &run->lanes[k]);
    const int reverse = what == INPUT && k % run->weights->spec.num_directions;
    place at = place_of(run, n);
    for (int64_t i = 0; i < count;) {
        const int64_t end = one_by_one ? i + 1 : run->length || reverse ? least(count, i + active(run, at.s) - at.r) : count;
        int64_t ld = 0;
        const real *row = operand_row(run, k, what, at, &ld);
        for (at.r += end - i; i < end; i++, row += ld) rows[i] = row;
        if (at.r == active(run, at.s)) at.r = 0, at.s++; /* or all is done */
    }
}

/* How many columns of a right operand meet all of the left one before the next do. To pack the left one anew, vector by vector
 * from rows that are pages apart, costs more than to read columns from L3, which but one tile of each vector does; where vectors
 * are short, whole groups that take about half of L2. */
INLINE int64_t grad_columns(int64_t l2) {
    if (MANY_COLUMNS) return GRAD_COLUMNS;
    const int64_t fit = l2 / 2 / (GRAD_ROWS * (int64_t)sizeof(real));
    return fit < GROUP ? GROUP : least((fit + GROUP - 1) / GROUP * GROUP, GRAD_COLUMNS);
}

/* A product's right operand, [depth, columns]: a tile takes GROUP columns at most, those of line d at at + d * ld. Packed, the
 * next GROUP columns stand `next` reals behind. */
typedef struct lines {
    real *at;
    int64_t ld, next;
} lines;

INLINE real *line_at(lines a, int64_t d, int64_t column) { return a.at + column / GROUP * a.next + d * a.ld + column % GROUP; }

/* Packed: what a tile reads stands together. */
INLINE lines packed_lines(real *memory, int64_t width) {
    return (lines){memory, width < GROUP ? (width + LANES - 1) / LANES * LANES : GROUP, GRAD_ROWS * GROUP};
}

/* Add a [rows, columns] block of a product to out: [*, out_ld], where the last vector may be partial. */
static void add_tile(const scratch *mine, const real *left, lines right, int64_t depth, int rows, int columns, real *out,
                     int64_t out_ld) {
    const real *a[8] = {left};
    real *to[8];
    const int panels = (columns + LANES - 1) / LANES, whole = columns == panels * LANES;
    for (int m = 0; m < rows; m++) {
        a[m] = left + m;
        to[m] = whole ? out + m * out_ld : mine->z + m * GROUP;
        if (!whole)
            for (int q = 0; q < panels; q++) v_store(to[m] + q * LANES, v_load_n(out + m * out_ld + q * LANES, lanes_left(columns, q * LANES)));
    }
    /* The rows that the next tile adds to come from afar: on their way while this one is summed. */
    for (int m = 0; m < rows; m++)
        for (int q = 0; q < panels; q++) __builtin_prefetch(out + (m + rows) * out_ld + q * LANES, 1);
    static const tile_fn *const grad[5] = {NULL, grad_1x1, grad_2x1, grad_3x1, grad_4x1};
    const terms all = {a, 0, depth, NULL};
    const edge e = {to, 0, 0};
    grad[panels][rows](&all, right.at, right.ld, &e, &e);
    if (!whole)
        for (int m = 0; m < rows; m++)
            for (int q = 0; q < panels; q++)
                v_store_n(out + m * out_ld + q * LANES, v_load(to[m] + q * LANES), lanes_left(columns, q * LANES));
}

/* out: [height, width] += the packed left, LANES rows at most, times right. */
static void add_group(const scratch *mine, lines right, int64_t depth, int64_t height, int64_t width, real *out, int64_t out_ld) {
    for (int64_t q = 0; q < width; q += GROUP, right.at += right.next) {
        const int columns = (int)least(GROUP, width - q), panels = (columns + LANES - 1) / LANES;
        for (int64_t m = 0; m < height;) {
            const int rows = tile_rows(height - m, MOST_ROWS(panels));
            add_tile(mine, mine->left + m, right, depth, rows, columns, out + m * out_ld + q, out_ld);
            m += rows;
        }
    }
}

/* A gradient of weights: [blocks * units, columns] += left^T right, and of the biases beside them: the sums of left. */
typedef struct weight_grad {
    const real *left; /* [rows, left_ld]: of each block its units, `plane` reals into the row */
    int64_t left_ld, units;
    int blocks;
    int64_t plane[4];
    operand right;
    int64_t columns;
    real *weight, *bias; /* bias: NULL where there is none */
} weight_grad;

/* Columns [c0, c0 + width) of rows mine->from[0], ...: where they stand, if that is at even distances of at most IN_PLACE
 * reals (farther apart than a few times what a tile takes of each they push each other out of L2) and in whole vectors;
 * else packed. */
enum { IN_PLACE = 8 * GROUP };
static lines right_operand(const scratch *mine, const weight_grad *job, int64_t depth, int64_t c0, int64_t width) {
    const int64_t ld = depth > 1 ? mine->from[1] - mine->from[0] : 0;
    int64_t even = ld < -IN_PLACE || ld > IN_PLACE || (job->right == INPUT && width % LANES) ? 0 : 1;
    while (even && even < depth && mine->from[even] == mine->from[0] + even * ld) even++;
    if (even == depth) return (lines){(real *)mine->from[0] + c0, ld, GROUP};
    const lines copy = packed_lines(mine->right, width);
    for (int64_t d = 0; d < depth; d++)
        for (int64_t q = 0; q < width; q += LANES)
            v_store(line_at(copy, d, q), v_load_n(mine->from[d] + c0 + q, lanes_left(width, q)));
    return copy;
}

/* Its units in vectors, of each block; and what such a vector costs. */
INLINE int64_t grad_vectors(const weight_grad *job) { return (job->units + LANES - 1) / LANES; }
INLINE int64_t grad_cost(const weight_grad *job) { return job->columns + 1; }

/* What rows [n0, n1) add to it: vectors [i0, i1) of all blocks' units. */
static void add_weight_grad(const frnn_run *run, const scratch *mine, int64_t k, const weight_grad *job, int64_t n0,
                            int64_t n1, int64_t i0, int64_t i1) {
    const int64_t groups = grad_vectors(job), pieces = i0 < i1 ? (n1 - n0 + GRAD_ROWS - 1) / GRAD_ROWS : 0;
    const int64_t most = grad_columns(run->l2);
    for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t n = n0 + (n1 - n0) * piece / pieces, depth = n0 + (n1 - n0) * (piece + 1) / pieces - n;
        find_rows(run, k, job->right, n, depth, mine->from);
        int64_t c0 = 0;
        do { /* once at least, for the biases */
            const int64_t width = least(most, job->columns - c0);
            const lines right = right_operand(mine, job, depth, c0, width);
            for (int64_t i = i0; i < i1; i++) {
                const int64_t block = i / groups, u = i % groups * LANES, height = lanes_left(job->units, u);
                const real *from = job->left + n * job->left_ld + job->plane[block] + u;
                vec sum[4] = {0}; /* apart, for an addition must not wait for the last one */
                for (int64_t d = 0; d < depth; d++, from += job->left_ld) {
                    const vec da = v_load(from);
                    v_store(mine->left + d * LANES, da);
                    sum[d % 4] += da;
                }
                if (job->bias && c0 == 0) {
                    real *bias = job->bias + block * job->units + u;
                    v_store_n(bias, v_load_n(bias, (int)height) + ((sum[0] + sum[1]) + (sum[2] + sum[3])), (int)height);
                }
                add_group(mine, right, depth, height, width, job->weight + (block * job->units + u) * job->columns + c0, job->columns);
            }
            c0 += most;
        } while (c0 < job->columns);
    }
}

/* How many vectors of so much each lie before `cost`, the last by more than half. */
INLINE int64_t nearest_edge(int64_t cost, int64_t each, int64_t vectors) {
    return cost <= 0 ? 0 : least((cost + each / 2) / each, vectors);
}

/* The same of several, all of which threads share as one: a small layer's gate has but one vector of units. */
static void add_weight_grads(const frnn_run *run, const scratch *mine, int64_t k, const weight_grad *jobs, int count, int64_t n0,
                             int64_t n1, int rank, int size) {
    int64_t all = 0, before = 0;
    for (int j = 0; j < count; j++) all += jobs[j].blocks * grad_vectors(&jobs[j]) * grad_cost(&jobs[j]);
    const int64_t from = all * rank / size, to = all * (rank + 1) / size;
    for (int j = 0; j < count; j++) {
        const int64_t vectors = jobs[j].blocks * grad_vectors(&jobs[j]), cost = grad_cost(&jobs[j]);
        add_weight_grad(run, mine, k, &jobs[j], n0, n1, nearest_edge(from - before, cost, vectors),
                        nearest_edge(to - before, cost, vectors));
        before += vectors * cost;
    }
}

/* The gradient of a gate's diagonal peephole, [units]: over rows [n0, n1) the sum of da c. */
static void add_peephole_grad(const frnn_run *run, const scratch *mine, int64_t k, int plane, operand cell, int64_t n0,
                              int64_t n1, int rank, int size, real *out) {
    const frnn_weights *w = run->weights;
    const int64_t groups = w->Hp / LANES, ld = w->planes * w->Hp;
    for (int64_t n = n0; n < n1; n += GRAD_ROWS) {
        const int64_t depth = least(GRAD_ROWS, n1 - n);
        find_rows(run, k, cell, n, depth, mine->from);
        for (int64_t u = groups * rank / size * LANES; u < groups * (rank + 1) / size * LANES; u += LANES) {
            const real *da = (const real *)run->lanes[k].gates + n * ld + plane * w->Hp + u;
            vec sum = v_load_n(out + u, lanes_left(w->H, u));
            for (int64_t d = 0; d < depth; d++, da += ld) sum = v_fma(v_load(da), v_load(mine->from[d] + u), sum);
            v_store_n(out + u, sum, lanes_left(w->H, u));
        }
    }
}

/* What rows [n0, n1) add to the gradients of a track's parameters, this thread's part. grads: the track's six pointers. */
static void add_track_grads(const frnn_run *run, const scratch *mine, int64_t k, void *const *grads, int64_t n0, int64_t n1,
                            int rank, int size) {
    const frnn_weights *w = run->weights;
    const frnn_spec *spec = &w->spec;
    const frnn_lane *lane = &run->lanes[k];
    const int64_t H = w->H, Hp = w->Hp;
    const int gru = spec->kind == FRNN_KIND_GRU, before = gru && spec->reset == FRNN_RESET_BEFORE;
    const weight_grad of_gates = {.left = lane->gates, .left_ld = w->planes * Hp, .units = H, .blocks = w->gates};

    weight_grad jobs[3] = {of_gates, of_gates}, *const input = jobs, *const state = jobs + 1, *const more = jobs + 2;
    int count = 2;
    input->right = INPUT, input->columns = lane->w->I, input->weight = grads[0], input->bias = grads[2];
    state->right = spec->peephole == FRNN_PEEPHOLE_CELL ? CELL : STATE;
    state->columns = w->P, state->weight = grads[1], state->bias = grads[3];
    for (int block = 0; block < w->gates; block++) {
        input->plane[block] = (gru ? (block + 1) % 3 : block) * Hp;
        state->plane[block] = gru && !before ? (block + 1) * Hp : input->plane[block];
    }
    if (before) { /* W_hn has r h beside it */
        *more = *state;
        more->right = RESET_STATE, more->plane[0] = state->plane[2], more->weight += 2 * H * H;
        if (more->bias) more->bias += 2 * H;
        state->blocks = 2, more->blocks = 1, count = 3;
    }
    if (grads[4]) {
        *more = (weight_grad){.left = lane->dh, .left_ld = w->Pp, .units = w->P, .blocks = 1, .right = MERGED,
                              .columns = H, .weight = grads[4]};
        count = 3;
    }
    add_weight_grads(run, mine, k, jobs, count, n0, n1, rank, size);
    if (grads[5]) /* all gates but g, and o sees the new c */
        for (int row = 0; row < w->gates - 1; row++) {
            const int is_o = row == w->gates - 2;
            add_peephole_grad(run, mine, k, row + is_o, is_o ? NEW_CELL : CELL, n0, n1, rank, size, (real *)grads[5] + row * H);
        }
}

/* dx = da W_ih for rows [n0, n1), this thread's part; the second direction adds to what the first has written. */
static void input_grad(const frnn_run *run, const scratch *mine, int64_t k, real *dx, int64_t n0, int64_t n1, int rank, int size) {
    const frnn_weights *w = run->weights;
    const frnn_lane *lane = &run->lanes[k];
    const int reverse = (int)(k % w->spec.num_directions);
    const int64_t I = lane->w->I, panels = (I + LANES - 1) / LANES, depth = w->gates * w->Hp, ld = w->planes * w->Hp;
    const int64_t low = n0 + (n1 - n0) * rank / size, high = n0 + (n1 - n0) * (rank + 1) / size;
    const int direct = !reverse && I % LANES == 0, even = direct && !run->perm; /* a tile may write to dx itself; in order */
    for (int64_t p = 0; p < panels;) {
        const shape form = shape_of(1, 0, high - low, panels - p);
        const int64_t width = form.panels * LANES;
        const real *a[8];
        real *in[8], *out[8], *to[8];
        for (int m = 0; m < form.most && m < high - low; m++)
            a[m] = (const real *)lane->gates + m * ld, in[m] = (real *)zeros, out[m] = mine->z + m * width, to[m] = dx + m * I;
        const edge start_at = {in, 0, 0};
        place at = place_of(run, low);
        for (int64_t n = low; n < high;) {
            const int rows = tile_rows(high - n, form.most);
            const edge end_at = {direct ? to : out, even ? n * I + p * LANES : 0, 0};
            for (int m = 0; m < rows && !even; m++) {
                to[m] = dx + outer_row(run, reverse, at.s, at.r) * I + p * LANES;
                if (++at.r == active(run, at.s)) at.r = 0, at.s++;
            }
            const terms all = {a, n * ld, depth, NULL};
            form.fn[rows](&all, (const real *)lane->w->wxt + p * depth * LANES, depth * LANES, &start_at, &end_at);
            n += rows;
            for (int m = 0; m < rows && !direct; m++)
                for (int q = 0; q < form.panels; q++, to[m] += LANES) {
                    const vec d = v_load(out[m] + q * LANES);
                    const int lanes = lanes_left(I, (p + q) * LANES);
                    v_store_n(to[m], reverse ? d + v_load_n(to[m], lanes) : d, lanes);
                }
        }
        p += form.panels;
    }
}

#endif
