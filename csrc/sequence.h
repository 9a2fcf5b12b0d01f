/* Where things stand: steps, rows and planes of a run, and how threads share them.
 *
 * No arithmetic on numbers here, only on addresses. A row that a thread owns it owns for all steps; panels of
 * units likewise. Next: rnn.h, lstm.h, gru.h, then kernels.h which walks the steps.
 */
#ifndef FRNN_SEQUENCE_H
#define FRNN_SEQUENCE_H

#include "core.h"
#include "product.h"

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct span {
    int64_t start, end;
} span;

/* A thread's part of n numbers, in whole vectors but for the last. */
INLINE span part_of(int64_t n, int rank, int size) {
    const int64_t vectors = (n + LANES - 1) / LANES;
    return (span){vectors * rank / size * LANES, least(n, vectors * (rank + 1) / size * LANES)};
}

/* How many rows take step s, and the packed number of the first of them. */
INLINE int64_t active(const frnn_run *run, int64_t s) { return run->active ? run->active[s] : s < run->T ? run->B : 0; }
INLINE int64_t first(const frnn_run *run, int64_t s) { return run->first ? run->first[s] : s * run->B; }

/* The row of the caller's [T, B] arrays that sorted row r reads and writes at step s: a step's rows lie in order from
 * step_row() on, or with lengths at so many rows behind it as places() says. */
INLINE const int64_t *places(const frnn_run *run, int reverse) { return reverse ? run->last : run->perm; }
INLINE int64_t place_among(const int64_t *place, int64_t r) { return place ? place[r] : r; }
INLINE int64_t step_row(const frnn_run *run, int reverse, int64_t s) {
    return (reverse ? (run->perm ? 0 : run->T - 1) - s : s) * run->batch + run->row0;
}
INLINE int64_t outer_row(const frnn_run *run, int reverse, int64_t s, int64_t r) {
    return step_row(run, reverse, s) + place_among(places(run, reverse), r);
}
INLINE int64_t outer_batch(const frnn_run *run, int64_t r) { return run->perm ? run->perm[r] : run->row0 + r; }
INLINE int64_t steps_of(const frnn_run *run, int64_t r) { return run->length ? run->length[r] : run->T; }

/* A thread's part: rows [r0, r1) of the batch, and of a number of panels those that share_panels says. */
typedef struct share {
    int rank, size; /* within the group that runs a track */
    int by_panel;
    int64_t r0, r1;
    int64_t apart; /* reals by which its own memory is set off */
    frnn_barrier *barrier;
} share;

INLINE void share_panels(const share *me, int64_t panels, int64_t *p0, int64_t *p1) {
    *p0 = me->by_panel ? panels * me->rank / me->size : 0;
    *p1 = me->by_panel ? panels * (me->rank + 1) / me->size : panels;
}

/* The rows that hold 1/size of all steps each. */
static int64_t share_edge(const frnn_run *run, int rank, int size) {
    if (!run->length) return run->B * rank / size;
    const int64_t goal = run->rows * rank / size;
    int64_t r = 0;
    for (int64_t sum = 0; r < run->B && sum + run->length[r] / 2 < goal; r++) sum += run->length[r];
    return rank == size ? run->B : r;
}

/* After a step: threads that share its units wait for each other, those that own rows need not. */
INLINE void share_wait(const share *me) {
    if (me->by_panel) frnn_barrier_wait(me->barrier);
}

/* After a chunk of steps: now those too. */
INLINE void share_meet(const share *me) {
    if (me->size > 1 && !me->by_panel) frnn_barrier_wait(me->barrier);
}

/* Groups that take layers hand over chunk by chunk, all at once: a group is so many chunks behind another. */
static void fall_behind(const frnn_run *run, int chunks) {
    while (chunks-- > 0) frnn_barrier_wait(run->team);
}

/* A vector of units in a row of n reals: how many lanes are real. */
INLINE int lanes_left(int64_t n, int64_t u) { return n - u < LANES ? (int)(n - u) : LANES; }

/* Tiles whose sums wait for what comes after them: with AVX2 one is but three rows. */
#ifndef TILES_AT_ONCE
#define TILES_AT_ONCE (VEC_BYTES == 32 ? 4 : 1)
#endif

/* A thread's scratch memory: some tiles' outcome, row pointers of a chunk, and operands packed for weight gradients. */
enum {
    GRAD_ROWS = 512,
    GRAD_VECS = ACCUMULATORS == 12 ? 3 : 4, /* of a tile's columns: then its most rows go into LANES, or nearly */
    GROUP = GRAD_VECS * LANES,
    MANY_COLUMNS = VEC_BYTES >= 32, /* where they come from L3 rather than from L2, see grad_columns */
    GRAD_COLUMNS = ((MANY_COLUMNS ? 64 * VEC_BYTES / (int)sizeof(real) : 256) + GROUP - 1) / GROUP * GROUP,
    ROWS_AT_ONCE = TILES_AT_ONCE * 8,
    TILE_VECS = TILES_AT_ONCE == 1 ? 32 : TILES_AT_ONCE * ACCUMULATORS
};
static const real zeros[TILE_VECS * LANES]; /* where a tile's sums start that start from nothing */
typedef struct scratch {
    frnn_own *own;
    real *z;            /* [TILE_VECS * LANES] */
    real *left, *right; /* [GRAD_ROWS, LANES], [GRAD_ROWS, GRAD_COLUMNS] */
    const real **from;  /* [row_pointers()] */
    real **to;
} scratch;

/* Everything a cell's pointwise functions need at one step of a track. */
typedef struct step {
    const frnn_run *run;
    const frnn_weights *w;
    const frnn_lane *lane;
    const share *me;
    int64_t s, k; /* step; track number */
    int reverse;
    int keep;    /* whether the gates are wanted afterwards */
    int64_t ld;  /* of a gates row */
    real *gates; /* the gates rows of this step; the others likewise */
    real *h_in, *h_out, *c_in, *c_out, *m, *dh;
    int64_t y_row, y_origin; /* of y: step_row(), and the caller's row that y begins with */
} step;

/* Row 0 of a taped sequence of states at step s: index 0 is the initial one. */
INLINE real *taped_row(const frnn_run *run, void *base, int64_t ld, int64_t s) {
    return (real *)base + (s ? run->B + first(run, s - 1) : 0) * ld;
}

/* The same on a tape or not; NULL where there is no such state. */
INLINE real *state_row(const frnn_run *run, const share *me, void *base, int64_t ld, int64_t s) {
    if (!base) return NULL;
    if (run->taped) return taped_row(run, base, ld, s);
    return (real *)base + (me->r0 + (s & 1) * (me->r1 - me->r0)) * ld + me->apart;
}

/* The step that row 0 of a buffer between layers stands for: such a buffer may hold a chunk or two only. */
INLINE int64_t origin(const frnn_run *run, int chunked, int64_t s) { return chunked ? s / run->between * run->between : 0; }

/* The row of a layer's input that row r reads at step s, and whether the rows of a step lie in any order: else each stands
 * x_ld reals behind the one before. */
INLINE const real *input_row(const frnn_run *run, const frnn_lane *lane, int reverse, int64_t s, int64_t r) {
    const int64_t row = lane->x_packed ? first(run, s) + r : outer_row(run, reverse, s, r) - origin(run, lane->x_chunked, s) * run->batch;
    return (const real *)lane->x + row * lane->x_ld;
}
INLINE int input_scattered(const frnn_run *run, const frnn_lane *lane) { return run->perm && !lane->x_packed; }

/* Row 0 of the gates of step s. Without a tape, a row of the batch has the same place in every chunk: threads that share
 * rows do not wait. */
INLINE real *gates_row(const frnn_run *run, const share *me, const frnn_lane *lane, int64_t s) {
    const int64_t ld = run->weights->planes * run->weights->Hp;
    if (run->taped) return (real *)lane->gates + first(run, s) * ld;
    return (real *)lane->gates + (me->r0 * (run->chunk - 1) + s % run->chunk * (me->r1 - me->r0)) * ld + me->apart;
}

INLINE step step_at(const frnn_run *run, const share *me, int64_t k, int64_t s) {
    const frnn_weights *w = run->weights;
    const frnn_lane *lane = &run->lanes[k];
    const int64_t n = first(run, s), y_origin = origin(run, lane->y_chunked, s) * run->batch;
    const int reverse = (int)(k % w->spec.num_directions);
    return (step){
        .run = run, .w = w, .lane = lane, .me = me, .s = s, .k = k, .reverse = reverse,
        .y_row = step_row(run, reverse, s) - y_origin, .y_origin = y_origin,
        .keep = run->taped, .ld = w->planes * w->Hp, .gates = gates_row(run, me, lane, s),
        .h_in = state_row(run, me, lane->h, w->Pp, s), .h_out = state_row(run, me, lane->h, w->Pp, s + 1),
        .c_in = state_row(run, me, lane->c, w->Hp, s), .c_out = state_row(run, me, lane->c, w->Hp, s + 1),
        .m = lane->m ? (real *)lane->m + (run->taped ? n : 0) * w->Hp : NULL,
        .dh = lane->dh ? (real *)lane->dh + n * w->Pp : NULL,
    };
}

/* On to the next step of the same chunk: what step_at would find, for less. */
INLINE void step_on(step *k) {
    const frnn_run *run = k->run;
    const frnn_weights *w = k->w;
    const int64_t rows = run->taped ? active(run, k->s) : k->me->r1 - k->me->r0;
    real *const h = k->h_in, *const c = k->c_in;
    k->gates += rows * k->ld;
    k->h_in = k->h_out;
    k->h_out = run->taped ? k->h_out + rows * w->Pp : h;
    k->c_in = k->c_out;
    if (c) k->c_out = run->taped ? k->c_out + rows * w->Hp : c;
    if (k->m && run->taped) k->m += rows * w->Hp;
    if (k->dh) k->dh += rows * w->Pp;
    k->y_row += k->reverse ? -run->batch : run->batch;
    k->s++;
}

/* Back to the step before, on a tape. */
INLINE void step_back(step *k) {
    const frnn_run *run = k->run;
    const frnn_weights *w = k->w;
    const int64_t rows = active(run, --k->s);
    k->gates -= rows * k->ld;
    k->h_out = k->h_in;
    k->h_in = state_row(run, k->me, k->lane->h, w->Pp, k->s);
    k->c_out = k->c_in;
    k->c_in = state_row(run, k->me, k->lane->c, w->Hp, k->s);
    if (k->m) k->m -= rows * w->Hp;
    if (k->dh) k->dh -= rows * w->Pp;
    k->y_row += k->reverse ? run->batch : -run->batch;
}

/* The row of the layer's input that row r reads. */
INLINE const real *step_input(const step *k, int64_t r) { return input_row(k->run, k->lane, k->reverse, k->s, r); }

/* The row of y, and of its gradient, that row r writes. */
INLINE int64_t output_row(const step *k, int64_t r) {
    return k->y_row + place_among(places(k->run, k->reverse), r);
}

/* A step's rows of y or its gradient: in order from `row` on, or at their places, counted from row `from` of all. */
typedef struct block {
    real *row; /* or NULL */
    int64_t ld;
    const int64_t *place;
    int64_t from;
} block;

INLINE block block_at(const step *k, const void *rows) {
    const int64_t *const place = places(k->run, k->reverse);
    const int64_t ld = k->lane->y_ld;
    return (block){(real *)rows + (place ? 0 : k->y_row * ld), ld, place, k->y_row};
}
INLINE real *row_of(const block *b, int64_t r) { return b->row + (b->place ? b->from + b->place[r] : r) * b->ld; }

/* The same, known to be in order: what is made for it does not look. */
INLINE block in_order(block b) { return (block){b.row, b.ld}; }

/* This step's rows of output, where a tile may store to them as to h: whole vectors, no mask; where none is asked for, h
 * itself. Looked up once for the tile: after each store the compiler would have to look again. */
INLINE block plain_output(const step *k, int64_t p, int panels) {
    const frnn_lane *lane = k->lane;
    if (!lane->y) return (block){k->h_out, k->w->Pp};
    if (lane->mask || (p + panels) * LANES > k->w->P) return (block){0};
    return block_at(k, lane->y);
}

/* Write units [u, u + LANES) of an output h of row r, as the layer above or the caller wants it: to y, or where y is NULL
 * as the lane says. */
INLINE void put_output(const step *k, const block *y, int64_t r, int64_t u, vec h) {
    if (y) {
        v_store(row_of(y, r) + u, h);
        return;
    }
    if (!k->lane->y) return;
    const int64_t at = output_row(k, r) * k->lane->y_ld + u;
    const int n = lanes_left(k->w->P, u);
    if (k->lane->mask) h *= v_load_n((const real *)k->lane->mask + at + k->y_origin * k->lane->y_ld, n);
    v_store_n((real *)k->lane->y + at, h, n);
}

/* The same for the rows of its gradient. */
INLINE block plain_output_grad(const step *k, int64_t p, int panels) {
    const frnn_lane *lane = k->lane;
    if (!lane->dy || lane->mask || (p + panels) * LANES > k->w->P) return (block){0};
    return block_at(k, lane->dy);
}

/* dL/dh of row r as the caller or the layer above gives it. */
INLINE vec get_output_grad(const step *k, const block *dy, int64_t r, int64_t u) {
    if (dy) return v_load(row_of(dy, r) + u);
    if (!k->lane->dy) return v_zero();
    const int64_t at = output_row(k, r) * k->lane->y_ld + u;
    const int n = lanes_left(k->w->P, u);
    const vec given = v_load_n((const real *)k->lane->dy + at, n);
    return k->lane->mask ? given * v_load_n((const real *)k->lane->mask + at, n) : given;
}

/* Zero in the padding lanes of a gradient, so that what garbage they hold never meets a product. */
INLINE vec mask_units(vec a, int n) { return n == LANES ? a : (vec)((bits)a & v_first(n)); }

#endif
