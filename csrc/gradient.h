/* After a chunk of steps has run backward: the gradients of weights, biases and inputs that these steps add.
 *
 * dW[u, i] += sum over rows of da[row, u] b[row, i] goes by blocks of at most GRAD_ROWS rows while they are still in a
 * cache, da packed by each thread for itself, b where it does not stand evenly. Shards of the batch have sums of their own;
 * else threads share the outputs, never a sum: the bits do not depend on their number.
 */
#ifndef FRNN_GRADIENT_H
#define FRNN_GRADIENT_H

#include "sequence.h"

/* What meets in a weight gradient. GATES: their gradients; PROJECTED: dL/dh of a projection. INPUT: the track's input; STATE:
 * h before the step; CELL, NEW_CELL: c before and after it; RESET_STATE: r h; MERGED: the output before the projection. */
typedef enum operand { GATES, PROJECTED, INPUT, STATE, CELL, NEW_CELL, RESET_STATE, MERGED } operand;

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
    case GATES: *ld = w->planes * w->Hp; return (const real *)lane->gates + n * *ld;
    case PROJECTED: *ld = w->Pp; return (const real *)lane->dh + n * *ld;
    case INPUT: *ld = lane->x_ld; break;
    case STATE: *ld = w->Pp; return taped_row(run, lane->h, w->Pp, at.s) + at.r * w->Pp;
    case CELL: *ld = w->Hp; return taped_row(run, lane->c, w->Hp, at.s) + at.r * w->Hp;
    case NEW_CELL: *ld = w->Hp; return taped_row(run, lane->c, w->Hp, at.s + 1) + at.r * w->Hp;
    case RESET_STATE: *ld = w->planes * w->Hp; return (const real *)lane->gates + n * *ld + PLANE_Q * w->Hp;
    case MERGED: *ld = w->Hp; return (const real *)lane->m + n * w->Hp;
    }
    return input_row(run, lane, (int)(k % w->spec.num_directions), at.s, at.r);
}

/* Which row of a run its shard's row r is; the run may be the shard itself. */
INLINE int64_t row_of_shard(const frnn_run *run, const frnn_run *shard, int64_t r) {
    return run == shard ? r : run->perm ? shard->index + r * run->shards : shard->row0 + r;
}

/* Rows of an operand, one after the other: `height` of a step stand ld reals apart, the next step's `apart` reals behind
 * them; or each where the list says. */
typedef struct operand_rows {
    const real *row, *step; /* the next row; the first of its step */
    int64_t ld, r, height, apart;
    const real *const *list;
} operand_rows;

INLINE const real *next_row(operand_rows *a) {
    if (a->list) return *a->list++;
    const real *const row = a->row;
    a->row += a->ld;
    if (++a->r == a->height) a->r = 0, a->row = a->step += a->apart;
    return row;
}

/* Whether the next `count` rows stand ld reals apart. */
INLINE int in_line(const operand_rows *a, int64_t count) { return !a->list && count <= a->height - a->r; }

/* Of a shard's rows [n, n + count) of an operand; list: [count], in case. */
static operand_rows find_rows(const frnn_run *run, const frnn_run *shard, int64_t k, operand what, int64_t n, int64_t count,
                              const real **list) {
    const place at = place_of(shard, n);
    int64_t ld = 0, s = at.s, r = at.r;
    if (!run->perm) { /* steps, too, stand at even distances */
        const real *const step = operand_row(run, k, what, (place){s, row_of_shard(run, shard, 0)}, &ld);
        const int64_t outer = k % run->weights->spec.num_directions ? -run->batch : run->batch;
        const int64_t apart = what == INPUT && !run->lanes[k].x_packed ? outer : run->B;
        if (shard->B == 1) return (operand_rows){.row = step, .ld = apart * ld, .height = INT64_MAX};
        if (apart == shard->B) return (operand_rows){.row = step + r * ld, .ld = ld, .height = INT64_MAX};
        return (operand_rows){step + r * ld, step, ld, r, shard->B, apart * ld, NULL};
    }
    if (run == shard && (what == GATES || what == PROJECTED)) { /* by packed number */
        const real *const row = operand_row(run, k, what, at, &ld);
        return (operand_rows){.row = row, .ld = ld, .height = INT64_MAX};
    }
    const int one_by_one = run != shard || (what == INPUT && input_scattered(run, &run->lanes[k]));
    for (int64_t i = 0; i < count;) {
        const int64_t end = one_by_one ? i + 1 : least(count, i + active(shard, s) - r);
        const real *row = operand_row(run, k, what, (place){s, row_of_shard(run, shard, r)}, &ld);
        for (r += end - i; i < end; i++, row += ld) list[i] = row;
        if (r == active(shard, s)) r = 0, s++; /* or all is done */
    }
    return (operand_rows){.list = list};
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
    operand left; /* of each block its units, `plane` reals into the row */
    int64_t units;
    int blocks;
    int64_t plane[4];
    operand right;
    int64_t columns;
    real *weight, *bias; /* bias: NULL where there is none */
} weight_grad;

/* Vectors 0 to `last` of each row from column c on, that of `lanes` lanes. */
INLINE void copy_columns(operand_rows from, int64_t depth, int64_t c, const int last, int lanes, real *to, int64_t ld) {
    for (int64_t d = 0; d < depth; d++, to += ld) {
        const real *const row = next_row(&from) + c;
        for (int v = 0; v < last; v++) v_store(to + v * LANES, v_load(row + v * LANES));
        v_store(to + last * LANES, v_load_n(row + last * LANES, lanes));
    }
}

/* A vector of each row of a left operand, that at `at`, and their sum, in four parts: an addition must not wait for the last
 * one. */
INLINE vec copy_vectors(operand_rows from, int64_t depth, int64_t at, const int line, real *to) {
    vec sum[4] = {0};
    for (int64_t d = 0; d < depth; d++) {
        const vec a = v_load((line ? from.row + d * from.ld : next_row(&from)) + at);
        v_store(to + d * LANES, a);
        sum[d % 4] += a;
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Columns [c0, c0 + width) of a right operand's rows: where they stand, if that is at even distances of at most IN_PLACE
 * reals (farther apart than a few times what a tile takes of each they push each other out of L2) and in whole vectors;
 * else packed. */
enum { IN_PLACE = 6 * GROUP };
static lines right_operand(const scratch *mine, const weight_grad *job, operand_rows from, int64_t depth, int64_t c0,
                           int64_t width) {
    const real *const first = from.list ? from.list[0] : from.row;
    const int64_t ld = !from.list ? from.ld : depth > 1 ? from.list[1] - first : 0;
    int64_t even = in_line(&from, depth) ? depth : 0;
    while (from.list && even < depth && from.list[even] == first + even * ld) even++;
    if (even == depth && ld >= -IN_PLACE && ld <= IN_PLACE && !(job->right == INPUT && width % LANES))
        return (lines){(real *)first + c0, ld, GROUP};
    const lines copy = packed_lines(mine->right, width);
    for (int64_t q = 0; q < width; q += GROUP) {
        const int64_t columns = least(GROUP, width - q), last = (columns - 1) / LANES;
        const int lanes = lanes_left(columns, last * LANES);
        if (last == 0) copy_columns(from, depth, c0 + q, 0, lanes, line_at(copy, 0, q), copy.ld);
        else if (last == 1) copy_columns(from, depth, c0 + q, 1, lanes, line_at(copy, 0, q), copy.ld);
        else if (last == 2) copy_columns(from, depth, c0 + q, 2, lanes, line_at(copy, 0, q), copy.ld);
        else copy_columns(from, depth, c0 + q, 3, lanes, line_at(copy, 0, q), copy.ld);
    }
    return copy;
}

/* Its units in vectors, of each block; and what such a vector costs. */
INLINE int64_t grad_vectors(const weight_grad *job) { return (job->units + LANES - 1) / LANES; }
INLINE int64_t grad_cost(const weight_grad *job) { return job->columns + 1; }

/* What a shard's rows [n0, n1) add to it: vectors [i0, i1) of all blocks' units. */
static void add_weight_grad(const frnn_run *run, const frnn_run *shard, const scratch *mine, int64_t k,
                            const weight_grad *job, int64_t n0, int64_t n1, int64_t i0, int64_t i1) {
    const int64_t groups = grad_vectors(job), pieces = i0 < i1 ? (n1 - n0 + GRAD_ROWS - 1) / GRAD_ROWS : 0;
    const int64_t most = grad_columns(run->l2);
    for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t n = n0 + (n1 - n0) * piece / pieces, depth = n0 + (n1 - n0) * (piece + 1) / pieces - n;
        const operand_rows from = find_rows(run, shard, k, job->left, n, depth, (const real **)mine->to);
        const operand_rows beside = find_rows(run, shard, k, job->right, n, depth, mine->from);
        int64_t c0 = 0;
        do { /* once at least, for the biases */
            const int64_t width = least(most, job->columns - c0);
            const lines right = right_operand(mine, job, beside, depth, c0, width);
            for (int64_t i = i0; i < i1; i++) {
                const int64_t block = i / groups, u = i % groups * LANES, height = lanes_left(job->units, u);
                const int64_t at = job->plane[block] + u;
                const vec sum = in_line(&from, depth) ? copy_vectors(from, depth, at, 1, mine->left)
                                                      : copy_vectors(from, depth, at, 0, mine->left);
                if (job->bias && c0 == 0) {
                    real *bias = job->bias + block * job->units + u;
                    v_store_n(bias, v_load_n(bias, (int)height) + sum, (int)height);
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
static void add_weight_grads(const frnn_run *run, const frnn_run *shard, const scratch *mine, int64_t k,
                             const weight_grad *jobs, int count, int64_t n0, int64_t n1, int rank, int size) {
    int64_t all = 0, before = 0;
    for (int j = 0; j < count; j++) all += jobs[j].blocks * grad_vectors(&jobs[j]) * grad_cost(&jobs[j]);
    const int64_t from = all * rank / size, to = all * (rank + 1) / size;
    for (int j = 0; j < count; j++) {
        const int64_t vectors = jobs[j].blocks * grad_vectors(&jobs[j]), cost = grad_cost(&jobs[j]);
        add_weight_grad(run, shard, mine, k, &jobs[j], n0, n1, nearest_edge(from - before, cost, vectors),
                        nearest_edge(to - before, cost, vectors));
        before += vectors * cost;
    }
}

/* The gradients of diagonal peepholes, of all gates but g: over a shard's rows [n0, n1) the sums of da c. */
static void add_peephole_grads(const frnn_run *run, const frnn_run *shard, const scratch *mine, int64_t k, int64_t n0, int64_t n1,
                               int rank, int size, real *out) {
    const frnn_weights *w = run->weights;
    const int64_t groups = w->Hp / LANES;
    for (int64_t n = n0; n < n1; n += GRAD_ROWS) {
        const int64_t depth = least(GRAD_ROWS, n1 - n);
        const operand_rows from = find_rows(run, shard, k, GATES, n, depth, (const real **)mine->to);
        for (int gate = 0; gate < w->gates - 1; gate++) {
            const int is_o = gate == w->gates - 2; /* behind g, and it sees the new c */
            const operand_rows beside = find_rows(run, shard, k, is_o ? NEW_CELL : CELL, n, depth, mine->from);
            for (int64_t u = groups * rank / size * LANES; u < groups * (rank + 1) / size * LANES; u += LANES) {
                real *const to = out + gate * w->H + u;
                vec sum = v_load_n(to, lanes_left(w->H, u));
                operand_rows left = from, right = beside;
                for (int64_t d = 0; d < depth; d++)
                    sum = v_fma(v_load(next_row(&left) + (gate + is_o) * w->Hp + u), v_load(next_row(&right) + u), sum);
                v_store_n(to, sum, lanes_left(w->H, u));
            }
        }
    }
}

/* What steps [s0, s1) of a shard add to its gradients of a track's parameters, this thread's part. */
static void add_track_grads(const frnn_run *run, const frnn_run *shard, const scratch *mine, int64_t k, int64_t s0,
                            int64_t s1, int rank, int size) {
    const frnn_weights *w = run->weights;
    const frnn_spec *spec = &w->spec;
    const frnn_lane *lane = &run->lanes[k];
    void *const *const grads = shard->grads->params + 6 * k;
    const int64_t n0 = first(shard, s0), n1 = first(shard, s1);
    const int64_t H = w->H, Hp = w->Hp;
    const int gru = spec->kind == FRNN_KIND_GRU, before = gru && spec->reset == FRNN_RESET_BEFORE;
    const weight_grad of_gates = {.left = GATES, .units = H, .blocks = w->gates};

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
        *more = (weight_grad){.left = PROJECTED, .units = w->P, .blocks = 1, .right = MERGED, .columns = H, .weight = grads[4]};
        count = 3;
    }
    add_weight_grads(run, shard, mine, k, jobs, count, n0, n1, rank, size);
    if (grads[5]) add_peephole_grads(run, shard, mine, k, n0, n1, rank, size, grads[5]);
}

/* dx = da W_ih for rows [n0, n1), this thread's part; the second direction adds to what the first has written. */
static void input_grad(const frnn_run *run, const scratch *mine, int64_t k, real *dx, int64_t n0, int64_t n1, int rank, int size) {
    const frnn_weights *w = run->weights;
    const frnn_lane *lane = &run->lanes[k];
    const int reverse = (int)(k % w->spec.num_directions);
    const int64_t I = lane->w->I, panels = (I + LANES - 1) / LANES, depth = w->gates * w->Hp, ld = w->planes * w->Hp;
    const int64_t low = n0 + (n1 - n0) * rank / size, high = n0 + (n1 - n0) * (rank + 1) / size;
    const int direct = !reverse && I % LANES == 0; /* a tile may write to dx itself; if all rows are here, in order */
    const int even = direct && !run->perm && run->B == run->batch;
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
