/* The walk through a stack, forward and backward, and the packing of weights: the body of every instruction set.
 *
 * forward() and backward() are a thread's part of one call: (rank, size) in, nothing allocated, no globals. Threads
 * share rows of the batch (and wait for each other at weight gradients alone), or panels of units (one barrier a step).
 * Groups of them take a direction each, or some layers each, a chunk of steps behind those below; or shards of the batch,
 * which are runs by themselves. plan.c prepares the run and starts the team. Read lstm.h for what happens between two products.
 */
#ifndef FRNN_KERNELS_H
#define FRNN_KERNELS_H

#include "gradient.h"
#include "gru.h"
#include "lstm.h"
#include "matrix.h"
#include "rnn.h"
#include "softmax.h"
#include "update.h"

/* ---- memory ---------------------------------------------------------------------------------------------------- */

/* Rows that a thread points to: of a chunk's input product, or of a weight gradient's operand. */
INLINE int64_t row_pointers(const frnn_run *run) { return run->grads ? GRAD_ROWS : run->most_rows; }

static size_t scratch_bytes(const frnn_run *run) {
    const int64_t reals = TILE_VECS * LANES + (run->grads ? GRAD_ROWS * (LANES + GRAD_COLUMNS) : 0);
    return sizeof(frnn_own) + (size_t)reals * sizeof(real) + 2 * (size_t)row_pointers(run) * sizeof(void *);
}

static scratch carve(const frnn_run *run, int rank) {
    scratch mine;
    mine.own = run->scratch[rank];
    mine.z = (real *)(mine.own + 1);
    mine.from = (const real **)(mine.z + LANES * TILE_VECS);
    mine.to = (real **)(mine.from + row_pointers(run));
    mine.left = (real *)(mine.to + row_pointers(run));
    mine.right = run->grads ? mine.left + GRAD_ROWS * LANES : NULL;
    return mine;
}

/* A thread's part of packing: of every operand, its share of the panels. */
static void pack(void *arg, int rank, int size) {
    const frnn_packing *job = arg;
    const frnn_weights *w = job->weights;
    const frnn_spec *spec = &w->spec;
    const int gru = spec->kind == FRNN_KIND_GRU, before = gru && spec->reset == FRNN_RESET_BEFORE, G = w->gates;
    const int64_t H = w->H, Hp = w->Hp, P = w->P;
    const int64_t h0 = Hp / LANES * rank / size, h1 = Hp / LANES * (rank + 1) / size;
    const int64_t p0 = w->Pp / LANES * rank / size, p1 = w->Pp / LANES * (rank + 1) / size;
    const int backward = job->backward;
    const void *const *params = job->params;
    for (int64_t k = 0; k < spec->num_layers * spec->num_directions; k++, params += 6) {
        frnn_track *t = &w->tracks[k];
        const int64_t I = t->I;
        const real *const ih = params[0], *const hh = params[1], *const b_ih = params[2], *const b_hh = params[3];
        const real *const hr = params[4], *const ch = params[5];
        const real *from_x[4] = {0}, *from_h[4] = {0};
        for (int v = 0; v < G; v++) {
            const int block = gru ? (v + 2) % 3 : v;
            from_x[v] = ih + block * H * I;
            from_h[v] = hh + v * H * P;
            for (int64_t j = h0 * LANES; j < h1 * LANES; j++) {
                real b = j < H && b_ih ? b_ih[block * H + j] : 0;
                if (j < H && b_hh && !(gru && !before && block == 2)) b += b_hh[block * H + j];
                ((real *)t->bx)[v * Hp + j] = b;
                if (ch && v < G - 1) ((real *)t->eye)[v * Hp + j] = j < H ? ch[v * H + j] : 0;
            }
        }
        for (int64_t j = h0 * LANES; t->bq && j < h1 * LANES; j++) ((real *)t->bq)[j] = j < H && b_hh ? b_hh[2 * H + j] : 0;
        pack_panels(t->wx, t->wx_panel, backward ? t->wxt : NULL, from_x, G, I, H, Hp, h0, h1);
        pack_panels(t->wh, t->wh_panel, backward ? t->wht : NULL, from_h, w->h_vecs, P, H, Hp, h0, h1);
        if (before) pack_panels(t->wn, H * LANES, backward ? t->wnt : NULL, from_h + 2, 1, H, H, Hp, h0, h1);
        if (hr) pack_panels(t->wr, H * LANES, backward ? t->wrt : NULL, &hr, 1, H, P, P, p0, p1);
    }
}

/* ---- one product and what follows it ----------------------------------------------------------------------------- */

typedef void (*pointwise)(const step *, int64_t r, int rows, int64_t p, int panels, const real *z);

/* Whether so many reals come from afar each time that they are read; and whether a call's rows of so many do, and tiles are long
 * enough for what is wanted after one to be on its way while it is summed. */
enum { NEAR_L2 = 4 /* times that is near enough */, FETCH_DEPTH = 64 };
INLINE int is_far(const frnn_run *run, int64_t reals) { return reals * (int64_t)sizeof(real) > NEAR_L2 * run->l2; }
INLINE int fetch_ahead(const frnn_run *run, int64_t depth, int64_t reals) {
    return depth >= FETCH_DEPTH && is_far(run, run->rows * reals);
}
/* Whether weights are, of so many panels and a thread's part of them, which it keeps if that fits its own cache. */
INLINE int weights_far(const frnn_run *run, int64_t panels, int64_t part, int64_t panel) {
    return is_far(run, panels * panel) && part * panel * (int64_t)sizeof(real) > run->l2;
}
INLINE void fetch_rows(const real *base, int64_t ld, int64_t r, int rows, int64_t u, int64_t units) {
    for (const real *row = base + r * ld + u; rows > 0; rows--, row += ld) fetch(row, units);
}

/* What a tile's part of a step backward reads of the tape and of dy; its new states were the next step's old ones. */
static void fetch_step(const step *k, int64_t r, int rows, int64_t p, int panels) {
    const frnn_weights *w = k->w;
    const int64_t u = p * LANES, units = panels * LANES;
    const block dy = k->m ? (block){0} : plain_output_grad(k, p, panels);
    for (int v = 0; v < w->planes; v++) fetch_rows(k->gates + v * w->Hp, k->ld, r, rows, u, units);
    if (k->c_in) fetch_rows(k->c_in, w->Hp, r, rows, u, units);
    else fetch_rows(k->h_in, w->Pp, r, rows, u, units);
    for (int i = 0; dy.row && i < rows; i++) fetch(row_of(&dy, r + i) + u, units);
}

/* A product over rows of the batch: K terms of each of from [rows, from_ld] times panels w of `units` outputs, `panel` reals
 * apart, starting from `in` [rows, in_ld] with its vectors `in_plane` apart, or from zero. With the input, I terms of the step's
 * x come before those K, and in each panel their weights before the others. */
typedef struct product {
    const real *from;
    int64_t from_ld, K;
    int with_input;
    const real *w;
    int64_t panel;
    int vecs, offset; /* see tile */
    int64_t at_once;  /* the most panels that a row by itself takes at once, or 0: any number */
    int64_t units;
    const real *in;
    int64_t in_ld, in_plane;
    pointwise then;
    int fetch; /* whether what `then` does backward reads from afar */
} product;

/* Weights that outgrow a cache are swept up on one step and down on the next, the input's on those that chunks begin with: what
 * was read last is still there. */
INLINE int sweeps_down(const scratch *mine, int64_t s) { return (int)((s + mine->own->steps) & 1); }

/* The first of the panels that a sweep over [p0, p1) comes to after those at p: as many, or as many as there are. */
INLINE int64_t swept_after(int down, int64_t p, int panels, int64_t p0, int64_t p1) {
    const int64_t after = down ? p - panels : p + panels;
    return after < p0 ? p0 : least(after, p1 - panels);
}

/* How many panels, of depth terms, a single row had better take at once: where a thread's are more than L1 holds beside all else,
 * so few that it holds those, which the next sweep begins with, or most of one; where it holds all, or not even that, any number. Of
 * vectors half as long so few would leave the multiply-adds waiting. */
static int64_t panels_at_once(const frnn_run *run, const share *me, const product *job, int64_t depth) {
    int64_t p0, p1;
    share_panels(me, job->units / LANES, &p0, &p1);
    const int64_t panel = depth * job->vecs * VEC_BYTES, most = run->l1 / 4 * 3; /* the rest is for rows and what is stored */
    if (VEC_BYTES < 64 || panel > run->l1 || (p1 - p0) * panel <= most) return 0;
    return 2 * panel <= most ? 2 : 1;
}

/* A product of one row, which is short of all that the rows of a tile, and tiles, need: a step's chain waits for it. */
static void run_row(const step *k, const share *me, const scratch *mine, const product *job, int64_t r) {
    int64_t p0, p1;
    share_panels(me, job->units / LANES, &p0, &p1);
    const real *a = job->from + r * job->from_ld, *x = job->with_input ? step_input(k, r) : NULL;
    const terms own = {&a, 0, job->K, NULL}, input = {&x, 0, k->lane->w->I, &own};
    real *in = (real *)(job->in ? job->in + r * job->in_ld : zeros), *out = mine->z;
    const int down = sweeps_down(mine, k->s);
    for (int64_t left = p1 - p0; left > 0;) {
        const shape form = shape_of(job->vecs, job->offset, 1, job->at_once ? least(left, job->at_once) : left);
        const int64_t p = down ? p0 + left - form.panels : p1 - left, u = p * LANES;
        const edge start_at = {&in, job->in ? u : 0, job->in ? job->in_plane : 0}, end_at = {&out, 0, form.panels * LANES};
        if (job->fetch) fetch_step(k, r, 1, p, form.panels);
        form.fn[1](job->with_input ? &input : &own, job->w + p * job->panel, job->panel, &start_at, &end_at);
        job->then(k, r, 1, p, form.panels, mine->z);
        left -= form.panels;
    }
}

static void run_product(const step *k, const share *me, const scratch *mine, const product *job, int64_t r0, int64_t r1) {
    if (r1 - r0 <= 1) {
        if (r0 < r1) run_row(k, me, mine, job, r0);
        return;
    }
    int64_t p0, p1;
    share_panels(me, job->units / LANES, &p0, &p1);
    const int64_t in_ld = job->in ? job->in_ld : 0, x_ld = k->lane->x_ld;
    const int scattered = job->with_input && input_scattered(k->run, k->lane), even = job->with_input && !scattered;
    /* The rows of the first tile; where a later one's stand, the tile is told by how far behind. */
    const real *const start = job->in ? job->in : zeros, *const first_x = even ? step_input(k, 0) : NULL, *a[8], *x[8];
    real *in[8], *out[8];
    for (int m = 0; m < 8 && m < r1 - r0; m++) a[m] = job->from + m * job->from_ld, in[m] = (real *)start + m * in_ld;
    for (int m = 0; even && m < 8 && m < r1 - r0; m++) x[m] = first_x + m * x_ld;
    terms own = {a, 0, job->K, NULL}, input = {x, 0, job->with_input ? k->lane->w->I : 0, &own};
    const int down = sweeps_down(mine, k->s);
    const int far = weights_far(k->run, job->units / LANES, p1 - p0, job->panel);
    for (int64_t left = p1 - p0; left > 0;) {
        const shape form = shape_of(job->vecs, job->offset, r1 - r0, left);
        const int64_t p = down ? p0 + left - form.panels : p1 - left, width = form.panels * (job->vecs + job->offset) * LANES;
        for (int m = 0; m < form.most && m < r1 - r0; m++) out[m] = mine->z + m * width;
        edge start_at = {in, 0, job->in ? job->in_plane : 0}, end_at = {out, 0, form.panels * LANES};
        askers ask = {.tiles = 0};
        if (far && left > form.panels) {
            const real *const after = job->w + swept_after(down, p, form.panels, p0, p1) * job->panel;
            ask = ask_for(&form, job->vecs, r1 - r0, input.K + own.K, after);
            start_at.next = &ask.next;
        }
        for (int64_t r = r0, done = r0; r < r1; done = r) {
            for (int tiles = 0; tiles < TILES_AT_ONCE && r < r1; tiles++) {
                const int rows = tile_rows(r1 - r, form.most);
                start_at.at = job->in ? r * in_ld + p * LANES : 0;
                end_at.at = (r - done) * width;
                own.at = r * job->from_ld;
                input.at = even ? r * x_ld : 0;
                for (int m = 0; scattered && m < rows; m++) x[m] = step_input(k, r + m);
                if (job->fetch) fetch_step(k, r, rows, p, form.panels);
                tile_of(&form, &ask, rows)(job->with_input ? &input : &own, job->w + p * job->panel, job->panel, &start_at, &end_at);
                r += rows;
            }
            job->then(k, done, (int)(r - done), p, form.panels, mine->z);
        }
        left -= form.panels;
    }
}

/* z: h = W_hr m. */
static void project_output(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    for (int i = 0; i < rows; i++, r++)
        for (int q = 0; q < panels; q++, z += LANES) {
            v_store(k->h_out + r * k->w->Pp + (p + q) * LANES, v_load(z));
            put_output(k, NULL, r, (p + q) * LANES, v_load(z));
        }
}

/* z: dL/dh of a projected h through the next step. */
static void project_output_grad(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    for (int i = 0; i < rows; i++, r++)
        for (int q = 0; q < panels; q++, z += LANES) {
            const int64_t u = (p + q) * LANES;
            v_store(k->dh + r * k->w->Pp + u, v_load(z) + get_output_grad(k, NULL, r, u));
        }
}

/* z: what flows into the initial state: dL/dh, or dL/dc where the gates see the cell. */
static void store_state_grad(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const frnn_weights *w = k->w;
    const int see_cell = w->spec.peephole == FRNN_PEEPHOLE_CELL;
    for (int i = 0; i < rows; i++, r++)
        for (int q = 0; q < panels; q++, z += LANES) {
            const int64_t u = (p + q) * LANES, at = k->k * k->run->batch + outer_batch(k->run, r);
            vec dh = v_load(z);
            if (see_cell) {
                const vec dc = dh + v_load((const real *)k->lane->carry_c + r * w->Hp + u);
                v_store_n((real *)k->run->grads->dc0 + at * w->H + u, dc, lanes_left(w->H, u));
                dh = v_load((const real *)k->lane->carry_h + r * w->Pp + u);
            }
            v_store_n((real *)k->run->grads->dh0 + at * w->P + u, dh, lanes_left(w->P, u));
        }
}

/* ---- states ------------------------------------------------------------------------------------------------------ */

/* Copy this thread's part of a state between the caller's [B, n] rows and padded rows in sorted order. */
static void load_state(const frnn_run *run, const share *me, const real *from, int64_t n, real *to, int64_t ld) {
    int64_t p0, p1;
    share_panels(me, ld / LANES, &p0, &p1);
    for (int64_t r = me->r0; r < me->r1; r++)
        for (int64_t u = p0 * LANES; u < p1 * LANES; u += LANES)
            v_store(to + r * ld + u, from ? v_load_n(from + outer_batch(run, r) * n + u, lanes_left(n, u)) : v_zero());
}

static void store_state(const frnn_run *run, const share *me, void *from, real *to, int64_t n, int64_t ld, int carried) {
    int64_t p0, p1;
    share_panels(me, ld / LANES, &p0, &p1);
    for (int64_t r = me->r0; r < me->r1; r++) {
        const real *row = (carried ? (real *)from : state_row(run, me, from, ld, steps_of(run, r))) + r * ld;
        for (int64_t u = p0 * LANES; u < p1 * LANES; u += LANES)
            v_store_n(to + outer_batch(run, r) * n + u, v_load(row + u), lanes_left(n, u));
    }
}

/* Zero the rows past the ends of sequences in a [T, B] array of rows of n reals. */
static void clear_past_ends(const frnn_run *run, real *rows, int64_t n, int rank, int size) {
    if (!run->perm || !rows) return;
    for (int64_t r = run->B * rank / size; r < run->B * (rank + 1) / size; r++)
        for (int64_t t = run->length[r]; t < run->T; t++)
            memset(rows + (t * run->batch + run->perm[r]) * n, 0, (size_t)n * sizeof(real));
}

/* The state or gradient of track k in a caller's [L*D, B, n] array, or NULL. */
INLINE real *track_state(const frnn_run *run, const void *base, int64_t k, int64_t n) {
    return base ? (real *)base + k * run->batch * n : NULL;
}

/* ---- forward ----------------------------------------------------------------------------------------------------- */

/* The input's part of steps [s0, s1), as one product over all their rows: gates = W_ih x + b. */
static void project_input(const frnn_run *run, const share *me, const scratch *mine, int64_t k, int64_t s0, int64_t s1) {
    const frnn_weights *w = run->weights;
    const frnn_lane *lane = &run->lanes[k];
    const int64_t ld = w->planes * w->Hp, I = lane->w->I;
    const int reverse = (int)(k % w->spec.num_directions), scattered = input_scattered(run, lane);
    int64_t rows = 0, p0, p1;
    real *row = gates_row(run, me, lane, s0) + me->r0 * ld;
    for (int64_t s = s0; s < s1 && me->r0 < active(run, s); s++) {
        const int64_t end = least(me->r1, active(run, s));
        const real *from = input_row(run, lane, reverse, s, me->r0);
        real *to = row;
        for (int64_t r = me->r0; r < end; r++, rows++, to += ld, from += lane->x_ld) {
            if (scattered) from = input_row(run, lane, reverse, s, r);
            mine->from[rows] = from;
            mine->to[rows] = to;
        }
        row += (run->taped ? active(run, s) : me->r1 - me->r0) * ld;
    }
    share_panels(me, w->Hp / LANES, &p0, &p1);
    const int64_t panel = lane->w->wx_panel;
    const real *const weights = lane->w->wx;
    const int down = sweeps_down(mine, s0);
    real *bias[8];
    for (int m = 0; m < 8; m++) bias[m] = lane->w->bx;
    const int far = weights_far(run, w->Hp / LANES, p1 - p0, panel);
    int from_afar = !lane->x_chunked && fetch_ahead(run, I, lane->x_ld); /* once: the next panels find these rows near */
    for (int64_t left = rows ? p1 - p0 : 0; left > 0;) {
        const shape form = shape_of(w->gates, 0, rows, left);
        const int64_t p = down ? p0 + left - form.panels : p1 - left;
        askers ask = {.tiles = 0};
        if (far && left > form.panels)
            ask = ask_for(&form, w->gates, rows, I, weights + swept_after(down, p, form.panels, p0, p1) * panel);
        for (int64_t n = 0; n < rows;) {
            const int height = tile_rows(rows - n, form.most);
            const edge start_at = {bias, p * LANES, w->Hp, &ask.next}, end_at = {mine->to + n, p * LANES, w->Hp};
            for (int64_t m = n + height; from_afar && m < least(rows, n + 2 * height); m++) fetch(mine->from[m], I);
            const terms all = {mine->from + n, 0, I, NULL};
            tile_of(&form, &ask, height)(&all, weights + p * panel, panel, &start_at, &end_at);
            n += height;
        }
        if (lane->w->bq && (run->taped || s0 == 0 || w->spec.num_layers > 1)) /* what q starts from, unless it still stands there */
            for (int64_t n = 0; n < rows; n++)
                for (int64_t u = p * LANES; u < (p + form.panels) * LANES; u += LANES)
                    v_store(mine->to[n] + PLANE_Q * w->Hp + u, v_load((const real *)lane->w->bq + u));
        left -= form.panels;
        from_afar = 0;
    }
}

/* Steps [from, to) of a chunk, whose input product stands in the gates rows unless it is made with the steps'. */
static void forward_steps(const frnn_run *run, const share *me, const scratch *mine, int64_t k, int64_t from, int64_t to) {
    const frnn_weights *w = run->weights;
    const frnn_track *t = run->lanes[k].w;
    const int gru = w->spec.kind == FRNN_KIND_GRU, before = gru && w->spec.reset == FRNN_RESET_BEFORE;
    const int see_cell = w->spec.peephole == FRNN_PEEPHOLE_CELL;
    step at = step_at(run, me, k, from);
    product gates = {
        .from_ld = w->Pp, .K = w->P, .w = t->wh, .panel = t->wh_panel, .vecs = w->h_vecs, .units = w->Hp, .in_ld = at.ld,
        .in_plane = w->Hp,
        .then = before ? gru_before_forward : gru ? gru_after_forward
                : w->spec.kind == FRNN_KIND_LSTM ? lstm_forward : rnn_forward,
    };
    /* Nobody waits for the top layer's last step: of it each thread stores but its own part. */
    const int top = k >= (w->spec.num_layers - 1) * w->spec.num_directions;
    if (run->joint) gates.with_input = 1, gates.offset = gru, gates.w = t->wx, gates.in_ld = 0;
    /* Of single vectors four are needed for the multiply-adds not to wait. */
    if (run->B == 1 && gates.vecs > 1) gates.at_once = panels_at_once(run, me, &gates, run->joint ? t->I + w->P : w->P);
    for (int64_t s = from; s < to; s++, step_on(&at)) {
        const int64_t r1 = least(me->r1, active(run, s));
        gates.from = see_cell ? at.c_in : at.h_in;
        gates.in = run->joint ? t->bx : at.gates + w->h_plane * w->Hp;
        run_product(&at, me, mine, &gates, me->r0, r1);
        if (before) {
            const product candidate = {
                .from = at.gates + PLANE_Q * w->Hp, .from_ld = at.ld, .K = w->H, .w = t->wn, .panel = w->H * LANES, .vecs = 1,
                .units = w->Hp, .in = at.gates + PLANE_N * w->Hp, .in_ld = at.ld, .then = gru_before_forward_n,
            };
            share_wait(me);
            run_product(&at, me, mine, &candidate, me->r0, r1);
        }
        if (at.m) {
            const product projection = {
                .from = at.m, .from_ld = w->Hp, .K = w->H, .w = t->wr, .panel = w->H * LANES, .vecs = 1, .units = w->Pp,
                .then = project_output,
            };
            share_wait(me);
            run_product(&at, me, mine, &projection, me->r0, r1);
        }
        if (!(top && s == run->T - 1)) share_wait(me);
    }
}

/* Steps [s0, s1) of a track, with the initial state before the first and the final one after the last. */
static void forward_track(const frnn_run *run, const share *me, const scratch *mine, int64_t k, int64_t s0, int64_t s1) {
    const frnn_weights *w = run->weights;
    const frnn_lane *lane = &run->lanes[k];
    const frnn_call *call = run->call;
    if (s0 == 0) {
        load_state(run, me, track_state(run, call->h0, k, w->P), w->P, state_row(run, me, lane->h, w->Pp, 0), w->Pp);
        real *const c = state_row(run, me, lane->c, w->Hp, 0);
        if (c) load_state(run, me, track_state(run, call->c0, k, w->H), w->H, c, w->Hp);
        share_wait(me);
    }
    for (int64_t from = s0; from < s1; from += run->chunk) {
        const int64_t to = least(s1, from + run->chunk);
        if (!run->joint) project_input(run, me, mine, k, from, to);
        forward_steps(run, me, mine, k, from, to);
    }
    if (s1 == run->T) {
        store_state(run, me, lane->h, track_state(run, call->hn, k, w->P), w->P, w->Pp, 0);
        if (lane->c) store_state(run, me, lane->c, track_state(run, call->cn, k, w->H), w->H, w->Hp, 0);
    }
}

/* Which group of threads this one is in, and its part of a track's work. */
static share share_of(const frnn_run *run, int rank, int size, int *group) {
    const int groups = size > 1 ? run->groups : 1;
    *group = rank * groups / size;
    const int low = frnn_group_start(*group, groups, size), high = frnn_group_start(*group + 1, groups, size);
    share me = {.rank = rank - low, .size = high - low, .by_panel = run->by_panel && high - low > 1,
                .barrier = &run->group[*group]};
    me.r0 = me.by_panel ? 0 : share_edge(run, me.rank, me.size);
    me.r1 = me.by_panel ? run->B : share_edge(run, me.rank + 1, me.size);
    me.apart = me.by_panel ? 0 : me.rank * (FRNN_APART / (int64_t)sizeof(real));
    return me;
}

/* A task for every shard: some threads take each, or each some. */
static void run_shards(const frnn_run *run, frnn_task task, int rank, int size) {
    const int n = run->shards, i = rank * n / size, start = frnn_group_start(i, n, size);
    if (size > n) task((void *)&run->shard[i], rank - start, frnn_group_start(i + 1, n, size) - start);
    else
        for (int k = i; k < n * (rank + 1) / size; k++) task((void *)&run->shard[k], 0, 1);
}

static void forward(void *arg, int rank, int size) {
    const frnn_run *run = arg;
    const frnn_weights *w = run->weights;
    const int64_t D = w->spec.num_directions, L = w->spec.num_layers;
    if (size < run->size) { /* a thread could not be had: the barriers would wait for it */
        if (rank) return;
        size = 1;
    }
    if (run->sharded) {
        run_shards(run, forward, rank, size);
        return;
    }
    const uint64_t flush = v_flush_on();
    const scratch mine = carve(run, rank);
    int group;
    const share me = share_of(run, rank, size, &group);
    const int apart = D == 2 && run->groups == 2 && size > 1, waves = size > 1 && frnn_layered(run);
    /* One direction: all layers of a chunk of time, then the next chunk. Two: a layer needs both ends of its input. */
    const int64_t stride = D == 1 ? run->chunk : run->T;
    const int64_t k0 = waves ? run->layers[group] : 0, k1 = waves ? run->layers[group + 1] : L * D;
    if (waves) fall_behind(run, group);
    int64_t s0 = 0;
    do {
        const int64_t s1 = least(run->T, s0 + stride);
        for (int64_t k = k0; k < k1; k++) {
            if (!apart || k % D == group) forward_track(run, &me, &mine, k, s0, s1);
            if (apart && k % D == 1) frnn_barrier_wait(run->team);
        }
        if (waves) frnn_barrier_wait(run->team);
        s0 = s1;
    } while (s0 < run->T);
    if (waves) fall_behind(run, run->groups - 1 - group);
    if (run->fills) mine.own->steps += run->T;
    clear_past_ends(run, run->lanes[(L - 1) * D].y, D * w->P, rank, size);
    clear_past_ends(run, run->call->cells, D * w->H, rank, size);
    v_flush_restore(flush);
}

/* ---- backward ---------------------------------------------------------------------------------------------------- */

/* Steps [s0, s1) from the last to the first: into each flows what the recurrent product makes of the gates' gradients of
 * the next. Before the first step stands the initial state, s0 = -1. */
static void backward_steps(const frnn_run *run, const share *me, const scratch *mine, int64_t k, int64_t s0, int64_t s1) {
    const frnn_weights *w = run->weights;
    const frnn_lane *lane = &run->lanes[k];
    const int gru = w->spec.kind == FRNN_KIND_GRU, before = gru && w->spec.reset == FRNN_RESET_BEFORE;
    const int64_t depth = w->h_vecs * w->Hp, ld = w->planes * w->Hp;
    const pointwise then = lane->m ? project_output_grad : before ? gru_before_backward : gru ? gru_after_backward
                           : w->spec.kind == FRNN_KIND_LSTM ? lstm_backward : rnn_backward;
    product job = {
        .from_ld = ld, .w = lane->w->wht, .panel = depth * LANES, .vecs = 1, .units = w->Pp, .in_ld = w->Pp,
    };
    const real *const carried = w->spec.peephole == FRNN_PEEPHOLE_CELL ? NULL : lane->carry_h;
    step at = step_at(run, me, k, s1 - 1 > 0 ? s1 - 1 : 0);
    job.from = gates_row(run, me, lane, s1) + w->h_plane * w->Hp;
    const int fetch = fetch_ahead(run, depth, ld + w->Hp + w->Pp);
    for (int64_t s = s1 - 1; s >= s0; s--) {
        const int64_t r1 = s < 0 ? me->r1 : least(me->r1, active(run, s));
        const int64_t going_on = least(r1, active(run, s + 1)); /* rows whose last step this is have no next one */
        job.then = s < 0 ? store_state_grad : then;
        job.K = depth;
        job.in = gru ? carried : NULL; /* what of dL/dh went past the product */
        job.fetch = fetch && s >= 0 && !at.m;
        run_product(&at, me, mine, &job, me->r0, going_on);
        job.K = job.fetch = 0;
        job.in = carried; /* dL/dh of the final state */
        run_product(&at, me, mine, &job, going_on > me->r0 ? going_on : me->r0, r1);
        if (s >= 0 && at.m) {
            const product merged = {
                .from = at.dh, .from_ld = w->Pp, .K = w->P, .w = lane->w->wrt, .panel = w->P * LANES, .vecs = 1, .units = w->Hp,
                .then = lstm_backward, .fetch = fetch && w->P >= FETCH_DEPTH,
            };
            share_wait(me);
            run_product(&at, me, mine, &merged, me->r0, r1);
        }
        if (s >= 0 && before) {
            const product through_q = {
                .from = at.gates + PLANE_N * w->Hp, .from_ld = ld, .K = w->Hp, .w = lane->w->wnt, .panel = w->Hp * LANES, .vecs = 1,
                .units = w->Hp, .then = gru_before_backward_q,
            };
            share_wait(me);
            run_product(&at, me, mine, &through_q, me->r0, r1);
        }
        share_wait(me);
        job.from = at.gates + w->h_plane * w->Hp;
        if (s > 0) step_back(&at);
    }
}

/* Steps [s0, s1) of a track, all later ones being done, and where dx is not NULL what they add to the input's gradient. */
static void backward_track(const frnn_run *run, const share *me, const scratch *mine, int64_t k, real *dx, int64_t s0, int64_t s1) {
    const frnn_weights *w = run->weights;
    const frnn_lane *lane = &run->lanes[k];
    const frnn_grads *grads = run->grads;
    if (s1 == run->T) {
        load_state(run, me, track_state(run, grads->dhn, k, w->P), w->P, lane->carry_h, w->Pp);
        if (lane->c) load_state(run, me, track_state(run, grads->dcn, k, w->H), w->H, lane->carry_c, w->Hp);
        share_wait(me);
    }
    backward_steps(run, me, mine, k, s0 ? s0 : -1, s1);
    share_meet(me);
    if (dx) input_grad(run, mine, k, dx, first(run, s0), first(run, s1), me->rank, me->size);
    if (s0 == 0 && lane->c && w->spec.peephole != FRNN_PEEPHOLE_CELL)
        store_state(run, me, lane->carry_c, track_state(run, grads->dc0, k, w->H), w->H, w->Hp, 1);
}

/* Weight gradients go by chunks of steps, while a chunk's rows are still in a cache: the one that step s1 - 1 is in. Counted from
 * the end whoever shares the work: the sums' bits hang on it. */
static span grad_chunk(const frnn_run *run, int64_t s1) {
    const int64_t rows = run->shard_rows, steps = rows < GRAD_ROWS ? GRAD_ROWS / (rows ? rows : 1) : 1;
    const int64_t end = run->T - (run->T - s1) / steps * steps;
    return (span){end > steps ? end - steps : 0, end};
}

static void add_chunk_grads(const frnn_run *run, const share *me, const scratch *mine, int64_t k, span chunk) {
    if (run->shards == 1) add_track_grads(run, run, mine, k, chunk.start, chunk.end, me->rank, me->size);
    else
        for (int i = 0; i < run->shards; i++)
            add_track_grads(run, &run->shard[i], mine, k, chunk.start, chunk.end, me->rank, me->size);
}

INLINE real *layer_input_grad(const frnn_run *run, int64_t layer) { return layer ? run->mid[layer & 1] : run->grads->dx; }

/* Layer by layer, each by a team that shares it; two directions one after the other, or by a group each. */
static void backward_layers(const frnn_run *run, const share *me, const scratch *mine, int group, int rank, int size) {
    const int64_t D = run->weights->spec.num_directions;
    const int apart = D == 2 && run->groups == 2 && size > 1;
    for (int64_t layer = run->weights->spec.num_layers - 1; layer >= 0; layer--) {
        real *const dx = layer_input_grad(run, layer);
        for (int64_t k = layer * D; k < layer * D + D; k++) {
            if (apart && k % D != group) continue;
            span chunk = {.start = run->T};
            do {
                chunk = grad_chunk(run, chunk.start);
                backward_track(run, me, mine, k, D == 1 ? dx : NULL, chunk.start, chunk.end);
                add_chunk_grads(run, me, mine, k, chunk);
            } while (chunk.start > 0);
        }
        if (size > 1) frnn_barrier_wait(run->team);
        for (int64_t k = layer * D; D == 2 && dx && k < layer * D + D; k++) { /* one after the other: both write all of dx */
            input_grad(run, mine, k, dx, 0, run->rows, rank, size);
            if (size > 1) frnn_barrier_wait(run->team);
        }
    }
}

/* The part of a chunk's steps that ends at s1. */
static int64_t part_start(const frnn_run *run, int64_t s1) {
    const int64_t start = grad_chunk(run, s1).start;
    return s1 - run->chunk > start ? s1 - run->chunk : start;
}

/* All layers at once, by groups: each takes a part of a chunk's steps, then they meet. The lowest layers are the last to
 * have a chunk done; only then all of them add to the gradients of weights, lest one group wait while another does. */
static void backward_waves(const frnn_run *run, const share *me, const scratch *mine, int group) {
    const int64_t low = run->layers[group], high = run->layers[group + 1];
    const int last = run->groups - 1;
    int64_t s1 = run->T, done = run->T; /* where this group's next part ends, and the lowest one's */
    for (int64_t round = 0; done > 0; round++) {
        if (round >= last - group && s1 > 0) {
            const int64_t s0 = part_start(run, s1);
            for (int64_t k = high - 1; k >= low; k--) {
                backward_track(run, me, mine, k, layer_input_grad(run, k), s0, s1);
                if (me->size > 1) frnn_barrier_wait(me->barrier);
            }
            s1 = s0;
        }
        if (round >= last) {
            const span chunk = grad_chunk(run, done);
            done = part_start(run, done);
            for (int64_t k = low; done == chunk.start && k < high; k++) add_chunk_grads(run, me, mine, k, chunk);
        }
        frnn_barrier_wait(run->team);
    }
}

/* A shard's gradients of parameters begin with zeros, but for the first one's, which are the caller's. */
static void clear_grads(const frnn_run *shard, int rank, int size) {
    const frnn_weights *w = shard->weights;
    for (int64_t n = 0; n < 6 * w->spec.num_layers * w->spec.num_directions; n++) {
        real *const grad = shard->grads->params[n];
        const span part = part_of(frnn_parameter_size(w, n / 6, (int)(n % 6)), rank, size);
        if (grad && part.start < part.end) memset(grad + part.start, 0, (size_t)(part.end - part.start) * sizeof(real));
    }
}

/* The sum of all shards' gradients, in order. */
static void add_shards(const frnn_run *run, int rank, int size) {
    const frnn_weights *w = run->weights;
    for (int64_t n = 0; n < 6 * w->spec.num_layers * w->spec.num_directions; n++) {
        real *const to = run->grads->params[n];
        const span part = part_of(frnn_parameter_size(w, n / 6, (int)(n % 6)), rank, size);
        for (int64_t j = part.start; to && j < part.end; j += LANES) {
            const int lanes = lanes_left(part.end, j);
            vec sum = v_load_n(to + j, lanes);
            for (int i = 1; i < run->shards; i++) sum += v_load_n((const real *)run->shard[i].grads->params[n] + j, lanes);
            v_store_n(to + j, sum, lanes);
        }
    }
}

static void backward(void *arg, int rank, int size) {
    const frnn_run *run = arg;
    const frnn_weights *w = run->weights;
    if (size < run->size) { /* a thread could not be had: the barriers would wait for it */
        if (rank) return;
        size = 1;
    }
    const uint64_t flush = v_flush_on();
    if (run->sharded) {
        run_shards(run, backward, rank, size);
    } else {
        const scratch mine = carve(run, rank);
        int group;
        const share me = share_of(run, rank, size, &group);
        clear_past_ends(run, run->grads->dx, w->tracks[0].I, rank, size);
        if (run->index) clear_grads(run, rank, size);
        for (int i = 1; i < run->shards; i++) clear_grads(&run->shard[i], rank, size);
        if (size > 1 && (run->index || run->shards > 1)) frnn_barrier_wait(run->team);
        if (size > 1 && frnn_layered(run)) backward_waves(run, &me, &mine, group);
        else backward_layers(run, &me, &mine, group, rank, size);
    }
    if (run->shards > 1) {
        if (size > 1) frnn_barrier_wait(run->team);
        add_shards(run, rank, size);
    }
    v_flush_restore(flush);
}

#define TABLE_NAME_(isa, type) frnn_##isa##_##type
#define TABLE_NAME(isa, type) TABLE_NAME_(isa, type)
const frnn_kernels TABLE_NAME(FRNN_ISA, PER_TYPE(float, double)) = {
    .name = FRNN_ISA_NAME, .lanes = LANES, .scratch_bytes = scratch_bytes, .pack = pack, .forward = forward, .backward = backward,
    .matrix_bytes = sizeof(real) * (TILE_VECS * LANES + GRAD_ROWS * (LANES + GRAD_COLUMNS)), .multiply = multiply,
    .softmax_sums = softmax_sums, .scaled_exponentials = scaled_exponentials,
    .sums_of_squares = sums_of_squares, .scale = scale, .sgd = sgd, .rmsprop = rmsprop, .adam = adam,
};

#endif
