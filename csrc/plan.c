/* Plans: what a call is checked for, the memory that it takes, and its way to the team.
 *
 * A call is prepared here as a frnn_run, whose buffers lie in the plan's workspace or on the caller's tape, and
 * handed to the team with the kernels of the chosen instruction set. No arithmetic on data. Next: kernels.h, what a thread
 * then does.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "core.h"
#include "fastrnn.h"
#include "share.h"
#include "threads.h"

struct frnn_plan {
    const frnn_weights *weights;
    _Atomic uint32_t owner; /* the process whose call is under way, see frnn_process(), or 0 */
    frnn_barrier team, group[FRNN_MAX_GROUPS];
    void *scratch[FRNN_MAX_THREADS];
    frnn_lane *lanes; /* [L*D] */
    void **between;   /* [L] layer l's input buffer */
    void *memory;     /* the workspace: grows to the largest call's need */
    size_t bytes;
    frnn_trial trials[3][FRNN_TRIALS]; /* forward, forward with a tape, backward */
    frnn_run run;         /* the call under way, or the last, whose arrays may be gone */
    frnn_run shard[FRNN_SHARDS]; /* where it is sharded, its parts */
    frnn_trial *doubt;    /* that decided how the run is shared, or NULL */
    int settled;          /* whether a plain call of the same sizes may be run as it stands */
    int threads;          /* the team's size when it was prepared */
};

const char *frnn_error(int code) {
    switch (code) {
    case FRNN_OK: return "success";
    case FRNN_ERROR_MEMORY: return "out of memory";
    case FRNN_ERROR_SPEC: return "the spec holds a value that does not exist, or a size below its least";
    case FRNN_ERROR_UNSUPPORTED: return "the C kernels do not run full-matrix peepholes, nor a projection where the gates see the cell";
    case FRNN_ERROR_ISA: return "the instruction set is unknown, not built, or not on this CPU";
    case FRNN_ERROR_SIZE: return "T or B is negative, or the sizes' product does not fit in memory";
    case FRNN_ERROR_LENGTH: return "a length is below 0 or above T";
    case FRNN_ERROR_NULL: return "a pointer that must not be NULL is NULL";
    case FRNN_ERROR_UNPACKED: return "the weights were not packed, or not with their transposes";
    case FRNN_ERROR_ROOM: return "the stream has no room for another y";
    default: return "unknown error code";
    }
}

/* ---- plans ----------------------------------------------------------------------------------------------------- */

int frnn_plan_new(const frnn_weights *weights, frnn_plan **out) {
    if (!weights || !out) return FRNN_ERROR_NULL;
    frnn_plan *plan = allocate(sizeof *plan); /* the barriers want their alignment */
    if (!plan) return FRNN_ERROR_MEMORY;
    memset(plan, 0, sizeof *plan);
    const int64_t L = weights->spec.num_layers;
    plan->weights = weights;
    plan->lanes = calloc((size_t)(L * weights->spec.num_directions), sizeof *plan->lanes);
    plan->between = calloc((size_t)L, sizeof *plan->between);
    if (!plan->lanes || !plan->between) {
        free(plan->lanes);
        free(plan->between);
        free(plan);
        return FRNN_ERROR_MEMORY;
    }
    *out = plan;
    return FRNN_OK;
}

/* Take a plan for a call; whether it was free. In a forked child a call that the parent had under way is nobody's: what it may
 * have left half done is forgotten, and the memory, which it may have been about to replace, is left where it is. */
static int take_plan(frnn_plan *plan) {
    const uint32_t process = frnn_process();
    uint32_t owner = 0;
    if (atomic_compare_exchange_strong(&plan->owner, &owner, process)) return 1;
    if (owner == process || !atomic_compare_exchange_strong(&plan->owner, &owner, process)) return 0;
    plan->memory = NULL;
    plan->bytes = 0;
    plan->settled = 0;
    return 1;
}

static void give_back(frnn_plan *plan) { atomic_store_explicit(&plan->owner, 0, memory_order_release); }

void frnn_plan_free(frnn_plan *plan) {
    if (!plan) return;
    take_plan(plan); /* for what a fork has cut off to be forgotten */
    free(plan->lanes);
    free(plan->between);
    free(plan->memory);
    free(plan);
}

int64_t frnn_plan_bytes(const frnn_plan *plan) { return plan ? (int64_t)plan->bytes : 0; }

/* ---- one call --------------------------------------------------------------------------------------------------- */

static int check_call(const frnn_weights *w, const frnn_call *c) {
    const int64_t most = INT64_C(1) << 48;
    if (c->T < 0 || c->B < 0 || c->T > most || c->B > most) return FRNN_ERROR_SIZE;
    const frnn_spec *s = &w->spec;
    int64_t elements = 1; /* of the widest array, with room for its bytes */
    const int64_t widest = s->input_size > 4 * w->Hp ? s->input_size : 4 * w->Hp;
    if (__builtin_mul_overflow(c->T + 2, c->B + 1, &elements) || __builtin_mul_overflow(elements, widest + 1, &elements) ||
        elements > INT64_MAX / 64)
        return FRNN_ERROR_SIZE;
    for (int64_t b = 0; c->lengths && b < c->B; b++)
        if (c->lengths[b] < 0 || c->lengths[b] > c->T) return FRNN_ERROR_LENGTH;
    return FRNN_OK;
}

static int64_t real_steps(const frnn_call *c) {
    if (!c->lengths) return c->T * c->B;
    int64_t sum = 0;
    for (int64_t b = 0; b < c->B; b++) sum += c->lengths[b];
    return sum;
}

/* A run's tables of its rows and steps, to be filled in. */
typedef struct tables {
    int64_t *perm, *length, *last, *active, *first;
} tables;
static tables take_tables(frnn_run *run, arena *a) {
    tables t;
    run->perm = t.perm = take(a, run->B, sizeof(int64_t));
    run->length = t.length = take(a, run->B, sizeof(int64_t));
    run->last = t.last = take(a, run->B, sizeof(int64_t));
    run->active = t.active = take(a, run->T + 1, sizeof(int64_t));
    run->first = t.first = take(a, run->T + 1, sizeof(int64_t));
    return t;
}

/* Rows sorted by length, longest first and otherwise in order, by counting; and what each step then holds. */
static void lay_out_lengths(frnn_run *run, arena *a) {
    const frnn_call *c = run->call;
    if (!c->lengths) return;
    const tables t = take_tables(run, a);
    int64_t *const active = t.active, *const first = t.first;
    if (!a->base) return;
    memset(active, 0, (size_t)(run->T + 1) * sizeof *active);
    for (int64_t b = 0; b < run->B; b++)
        if (c->lengths[b]) active[c->lengths[b] - 1]++; /* rows whose last step this is */
    for (int64_t s = run->T - 1; s > 0; s--) active[s - 1] += active[s]; /* rows that take the step */
    /* A row of length l comes after the rows that are longer: active[l] of them. */
    memcpy(first, active, (size_t)(run->T + 1) * sizeof *first);
    for (int64_t b = 0; b < run->B; b++) {
        const int64_t r = c->lengths[b] < run->T ? first[c->lengths[b]]++ : first[run->T]++;
        t.perm[r] = b;
        t.length[r] = c->lengths[b];
        t.last[r] = (c->lengths[b] - 1) * run->B + b;
    }
    first[0] = 0;
    for (int64_t s = 0; s < run->T; s++) first[s + 1] = first[s] + active[s];
}

/* Rows that threads share: without a tape there is room to set them apart. */
static void *take_rows(const frnn_run *run, arena *a, int64_t rows, int64_t width) {
    void *const piece = take(a, rows, multiply(a, (size_t)width, (size_t)run->weights->spec.real_size));
    if (!run->taped) take(a, run->size - 1, FRNN_APART);
    return piece;
}

/* What the tape keeps of a track, or the workspace where there is no tape. */
static void lay_out_track(const frnn_run *run, frnn_lane *lane, arena *a) {
    const frnn_weights *w = run->weights;
    const int64_t states = run->taped ? run->B + run->rows : 2 * run->B;
    const size_t size = (size_t)w->spec.real_size;
    lane->h = take_rows(run, a, states, w->Pp);
    lane->c = w->spec.kind == FRNN_KIND_LSTM ? take_rows(run, a, states, w->Hp) : NULL;
    lane->m = w->spec.proj_size ? take(a, run->taped ? run->rows : run->B, (size_t)w->Hp * size) : NULL;
    if (!run->taped) return;
    lane->gates = take(a, run->rows, (size_t)(w->planes * w->Hp) * size);
    lane->dh = w->spec.proj_size ? take(a, run->rows, (size_t)w->Pp * size) : NULL;
}

/* Whether the tape that forward has written is sharded, whatever the number of threads when backward comes. */
static int is_sharded(const frnn_run *run) { return run->call->sharded && run->shards > 1; }

/* One direction reads the layer below from its tape of h, unless dropout came in between. */
static int reads_tape(const frnn_run *run) {
    return run->taped && run->weights->spec.num_directions == 1 && !run->call->masks;
}

/* A layer's output for the layer above. */
static void *take_between(const frnn_run *run, arena *a, int64_t rows) {
    const frnn_spec *s = &run->weights->spec;
    return take(a, rows, (size_t)(s->num_directions * run->weights->P * s->real_size));
}

/* The tape: every track's sequences, and the layers' outputs where they differ from the sequences of h.
 * lanes and between may be NULL, to measure. */
static void lay_out_tape(const frnn_run *run, frnn_lane *lanes, void **between, arena *tape) {
    const frnn_spec *s = &run->weights->spec;
    frnn_lane spare;
    for (int64_t k = 0; k < s->num_layers * s->num_directions; k++) lay_out_track(run, lanes ? &lanes[k] : &spare, tape);
    for (int64_t layer = 1; layer < s->num_layers && !reads_tape(run); layer++) {
        void *const rows = take_between(run, tape, run->T * run->B);
        if (between) between[layer] = rows;
    }
}

/* The sizes of a run that its tape follows from. */
static void begin_run(frnn_run *run, const frnn_weights *w, const frnn_call *call, const frnn_grads *grads) {
    *run = (frnn_run){.weights = w, .call = call, .grads = grads, .T = call->T, .B = call->B,
                      .rows = real_steps(call), .batch = call->B, .taped = call->tape != NULL};
    run->shards = run->taped ? frnn_shards(w, run->T, run->B) : 1;
    run->shard_rows = (run->B + run->shards - 1) / run->shards;
}

/* Of sorted rows a shard has every shards-th: about as many steps as another. */
static void lay_out_shard_lengths(const frnn_run *run, frnn_run *shard, arena *a) {
    const tables t = take_tables(shard, a);
    if (!a->base) return;
    const int64_t n = run->shards, i = shard->index;
    for (int64_t r = 0, from = i; r < shard->B; r++, from += n) {
        t.perm[r] = run->perm[from];
        t.length[r] = run->length[from];
        t.last[r] = run->last[from];
    }
    shard->rows = 0;
    for (int64_t s = 0; s <= run->T; s++) {
        t.active[s] = (run->active[s] - i + n - 1) / n;
        t.first[s] = shard->rows;
        shard->rows += t.active[s]; /* none at T */
    }
}

/* What backward carries from step to step: of all layers, or where each is done before the next begins, of one. */
static void lay_out_carried(const frnn_run *run, frnn_lane *lanes, arena *a) {
    const frnn_weights *w = run->weights;
    const int64_t D = w->spec.num_directions, L = w->spec.num_layers, apart = frnn_layered(run) ? L : D;
    const size_t size = (size_t)w->spec.real_size;
    void *h = NULL, *c = NULL;
    for (int64_t k = 0; k < L * D; k++) {
        if (k < apart) {
            h = take(a, run->B, (size_t)w->Pp * size), c = take(a, run->B, (size_t)w->Hp * size);
            take(a, run->size > 1, FRNN_APART);
        }
        if (!lanes) continue;
        lanes[k].carry_h = k < apart ? h : lanes[k - apart].carry_h;
        lanes[k].carry_c = k < apart ? c : lanes[k - apart].carry_c;
    }
}

/* A shard's gradients of parameters: the first one's are the caller's. */
static frnn_grads *lay_out_shard_grads(const frnn_run *run, int index, arena *a) {
    const frnn_weights *w = run->weights;
    const int64_t n = 6 * w->spec.num_layers * w->spec.num_directions;
    frnn_grads *const grads = take(a, 1, sizeof *grads);
    void **const params = take(a, n, sizeof *params);
    if (a->base) *grads = *run->grads, grads->params = params;
    for (int64_t i = 0; i < n; i++) {
        void *grad = run->grads->params[i];
        const int64_t size = frnn_parameter_size(w, i / 6, (int)(i % 6));
        if (index && grad) grad = take(a, size, (size_t)w->spec.real_size);
        if (a->base) params[i] = grad;
    }
    return grads;
}

static void *move_on(void *p, int64_t bytes) { return p ? (char *)p + bytes : NULL; }

/* A shard as a run by itself: its threads, what they write, and its part of each of the tape's sequences, before which so
 * many of the batch's rows stand, and so many of their steps. */
static void lay_out_sharded(const frnn_run *run, frnn_run *shard, int64_t rows, int64_t steps, frnn_plan *plan, arena *a) {
    const frnn_weights *w = run->weights;
    const int64_t tracks = w->spec.num_layers * w->spec.num_directions, size = w->spec.real_size;
    const int n = run->shards, i = shard->index, several = run->size > n;
    const int low = several ? frnn_group_start(i, n, run->size) : ((i + 1) * run->size - 1) / n; /* see run_shards */
    shard->size = several ? frnn_group_start(i + 1, n, run->size) - low : 1;
    shard->scratch = run->scratch + low;
    shard->team = shard->group = &plan->group[i];
    frnn_lane *const lanes = take(a, tracks, sizeof *lanes);
    for (int64_t k = 0; lanes && k < tracks; k++) {
        frnn_lane *const lane = &lanes[k];
        *lane = run->lanes[k];
        lane->gates = move_on(lane->gates, steps * w->planes * w->Hp * size);
        lane->h = move_on(lane->h, (rows + steps) * w->Pp * size); /* with an initial state for each row */
        lane->c = move_on(lane->c, (rows + steps) * w->Hp * size);
        lane->m = move_on(lane->m, steps * w->Hp * size);
        lane->dh = move_on(lane->dh, steps * w->Pp * size);
    }
    shard->lanes = lanes;
    if (run->grads) lay_out_carried(shard, lanes, a);
    take(a, 1, FRNN_APART);
}

/* The shards of a run that is laid out: in order, or with lengths as cards are dealt. */
static void lay_out_shards(frnn_run *run, frnn_plan *plan, arena *a) {
    const int64_t n = run->shards;
    int64_t rows = 0, steps = 0;
    run->shard = plan->shard;
    for (int64_t i = 0; i < n; i++) {
        frnn_run *const shard = &plan->shard[i];
        *shard = *run;
        shard->shards = 1, shard->sharded = 0, shard->index = (int)i;
        shard->row0 = run->call->lengths ? 0 : run->B * i / n;
        shard->B = run->call->lengths ? (run->B - i + n - 1) / n : run->B * (i + 1) / n - shard->row0;
        shard->rows = run->T * shard->B;
        if (run->call->lengths) lay_out_shard_lengths(run, shard, a);
        if (run->grads) shard->grads = lay_out_shard_grads(run, (int)i, a);
        if (run->sharded) lay_out_sharded(run, shard, rows, steps, plan, a);
        rows += shard->B, steps += shard->rows;
    }
}

/* All buffers of a run, in the workspace and on the caller's tape. */
static void lay_out_run(frnn_run *run, frnn_plan *plan, arena *a) {
    const frnn_weights *w = run->weights;
    const frnn_spec *s = &w->spec;
    const frnn_call *c = run->call;
    const int64_t D = s->num_directions, L = s->num_layers;
    frnn_lane *const lanes = run->lanes = plan->lanes;
    memset(lanes, 0, (size_t)(L * D) * sizeof *lanes);
    lay_out_lengths(run, a);
    if (run->taped) {
        arena tape = {.base = c->tape};
        lay_out_tape(run, lanes, plan->between, &tape);
    } else {
        /* The layers of one direction go chunk by chunk; two directions need a layer's whole output. Layers that run one
         * after the other share a buffer of gates, and take turns with two between them. */
        const int64_t rows = D == 1 ? run->between * c->B : c->T * c->B;
        for (int64_t layer = 0, first = 0, group = 0; layer < L; layer++) {
            if (frnn_layered(run) && layer == run->layers[group + 1]) first = layer, group++;
            for (int64_t k = layer * D; k < layer * D + D; k++) {
                lay_out_track(run, &lanes[k], a);
                lanes[k].gates = layer == first ? take_rows(run, a, run->most_rows, w->planes * w->Hp) : lanes[k - D].gates;
            }
            if (layer) plan->between[layer] = layer - first <= 2 ? take_between(run, a, rows) : plan->between[layer - 2];
        }
    }
    if (run->grads) {
        if (!run->sharded) lay_out_carried(run, lanes, a);
        for (int i = 0; i < 2; i++) run->mid[i] = L > 2 - i ? take_between(run, a, c->T * c->B) : NULL;
    }
    const size_t bytes = w->kernels->scratch_bytes(run);
    for (int i = 0; i < run->size; i++) {
        if (i) take(a, 1, FRNN_APART);
        plan->scratch[i] = take(a, 1, bytes);
    }
    run->scratch = plan->scratch;
    if (run->sharded || (run->grads && run->shards > 1)) lay_out_shards(run, plan, a);
}

/* The caller's arrays at the ends of the stack. */
static void connect_ends(const frnn_run *run, const void *x, void *y) {
    const frnn_weights *w = run->weights;
    const int64_t D = w->spec.num_directions, last = (w->spec.num_layers - 1) * D;
    for (int64_t d = 0; d < D; d++) {
        run->lanes[d].x = x;
        run->lanes[last + d].y = y ? (char *)y + d * w->P * w->spec.real_size : NULL;
    }
}

/* Where the layers read and write in between, and all else of the caller's. */
static void connect(const frnn_run *run, const frnn_plan *plan) {
    const frnn_weights *w = run->weights;
    const frnn_call *c = run->call;
    const int64_t D = w->spec.num_directions, L = w->spec.num_layers, size = w->spec.real_size;
    const int chunked = !run->taped && D == 1;
    for (int64_t k = 0; k < L * D; k++) {
        frnn_lane *const lane = &run->lanes[k];
        const int64_t layer = k / D, column = k % D * w->P * size;
        const int top = layer == L - 1;
        lane->w = &w->tracks[k];
        lane->y_ld = D * w->P;
        if (layer == 0) {
            lane->x_ld = lane->w->I;
        } else if (reads_tape(run)) {
            lane->x = (char *)run->lanes[k - 1].h + run->B * w->Pp * size, lane->x_ld = w->Pp, lane->x_packed = 1;
        } else {
            lane->x = plan->between[layer], lane->x_ld = D * w->P, lane->x_chunked = chunked;
        }
        char *const y = top || reads_tape(run) ? NULL : plan->between[layer + 1];
        lane->y = y ? y + column : NULL;
        lane->y_chunked = !top && chunked;
        lane->mask = !top && c->masks ? (const char *)c->masks + layer * c->T * c->B * D * w->P * size + column : NULL;
        lane->cells = top ? c->cells : NULL;
        if (run->grads) {
            const char *const dy = top ? run->grads->dy : run->mid[(layer + 1) & 1];
            lane->dy = dy ? dy + column : NULL;
        }
    }
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

/* Whether all that a call is prepared for follows from its T and B, and its x and y. */
static int is_plain(const frnn_call *call, const frnn_grads *grads) {
    return !grads && !call->tape && !call->lengths && !call->masks && !call->cells;
}

/* Prepare plan->run for a call: sizes, threads, memory, addresses. */
static int prepare(frnn_plan *plan, const frnn_call *call, const frnn_grads *grads) {
    frnn_run *const run = &plan->run;
    plan->settled = 0;
    plan->threads = frnn_get_threads();
    begin_run(run, plan->weights, call, grads);
    if (grads) run->sharded = is_sharded(run);
    plan->doubt = frnn_share(run, plan->trials);
    run->most_rows = run->chunk * (run->sharded ? run->shard_rows : run->B);
    run->between = frnn_layered(run) ? 2 * run->chunk : run->chunk; /* two: one that is written, one that is read */
    arena measure = {0};
    lay_out_run(run, plan, &measure);
    if (measure.failed) return FRNN_ERROR_SIZE;
    if (measure.used > plan->bytes) {
        free(plan->memory);
        plan->memory = allocate(measure.used);
        plan->bytes = plan->memory ? measure.used : 0;
        if (!plan->memory) return FRNN_ERROR_MEMORY;
    }
    arena real = {.base = plan->memory};
    lay_out_run(run, plan, &real);
    for (int i = 0; i < run->size; i++) *(frnn_own *)plan->scratch[i] = (frnn_own){0};
    frnn_barrier_init(&plan->team, run->size);
    for (int g = 0; g < run->groups; g++)
        frnn_barrier_init(&plan->group[g],
                          frnn_group_start(g + 1, run->groups, run->size) - frnn_group_start(g, run->groups, run->size));
    run->team = &plan->team;
    run->group = plan->group;
    connect(run, plan);
    for (int i = 0; run->sharded && i < run->shards; i++) {
        frnn_barrier_init(&plan->group[i], plan->shard[i].size);
        connect(&plan->shard[i], plan);
    }
    plan->settled = is_plain(call, grads);
    return FRNN_OK;
}

/* Whether the last run serves this call too, whose x and y alone are others: a small network's step takes less than to
 * prepare for it, and what is not written anew need not travel to the other threads' caches. */
static int prepared(const frnn_plan *plan, const frnn_call *call, const frnn_grads *grads) {
    return plan->settled && is_plain(call, grads) && call->T == plan->run.T && call->B == plan->run.B &&
           plan->threads == frnn_get_threads() &&
           (!plan->doubt || frnn_choose_by_trial(plan->doubt, plan->doubt->key) == (plan->run.size > 1));
}

/* x and y in place of the call's own. sharded: where to say whether it was, or NULL. */
static int run_call(frnn_plan *plan, const frnn_call *call, const frnn_grads *grads, const void *x, void *y, int *sharded) {
    const frnn_weights *w = plan->weights;
    int code = check_call(w, call);
    if (code) return code;
    if (call->B == 0) { /* nothing to read, nor to write */
        if (sharded) *sharded = 0;
        return FRNN_OK;
    }
    if (!take_plan(plan)) { /* someone else's call is under way: a workspace for this one */
        frnn_plan *own = NULL;
        code = frnn_plan_new(w, &own);
        if (!code) code = run_call(own, call, grads, x, y, sharded);
        frnn_plan_free(own);
        return code;
    }
    frnn_run *const run = &plan->run;
    if (!prepared(plan, call, grads)) code = prepare(plan, call, grads);
    else if (run->call != call) run->call = call;
    if (!code) {
        if (sharded) *sharded = run->sharded;
        connect_ends(run, x, y);
        for (int i = 0; run->sharded && i < run->shards; i++) connect_ends(&run->shard[i], x, y);
        frnn_trial *const doubt = plan->doubt;
        const int64_t begin = doubt ? frnn_now_ns() : 0;
        const frnn_task task = grads ? w->kernels->backward : w->kernels->forward;
        if (run->size == 1) task(run, 0, 1);
        else frnn_team_run(run->size, task, run);
        if (doubt) frnn_note_trial(doubt, run->size > 1, (double)(frnn_now_ns() - begin) / (double)run->rows);
    }
    give_back(plan);
    return code;
}

/* frnn_forward with x and y in place of the call's own. */
static int forward(frnn_plan *plan, const frnn_call *call, const void *x, void *y, int *sharded) {
    const frnn_weights *w = plan->weights;
    if (!w->packed) return FRNN_ERROR_UNPACKED;
    if (!y || !call->hn || (w->spec.kind == FRNN_KIND_LSTM && !call->cn) || (!x && w->spec.input_size)) return FRNN_ERROR_NULL;
    return run_call(plan, call, NULL, x, y, sharded);
}

int frnn_forward(frnn_plan *plan, frnn_call *call) {
    return plan && call ? forward(plan, call, call->x, call->y, &call->sharded) : FRNN_ERROR_NULL;
}

int frnn_infer(frnn_plan *plan, int64_t T, int64_t B, const void *x, const void *h0, const void *c0, void *y, void *hn,
               void *cn) {
    frnn_call call = {.T = T, .B = B, .x = x, .h0 = h0, .c0 = c0, .y = y, .hn = hn, .cn = cn};
    return frnn_forward(plan, &call);
}

int64_t frnn_step(frnn_stream *stream, const void *x) {
    if (!stream || !stream->plan || !stream->call) return -FRNN_ERROR_NULL;
    if (stream->next < 0 || stream->next >= stream->room) return -FRNN_ERROR_ROOM;
    if (!stream->y) return -FRNN_ERROR_NULL;
    const int64_t next = __atomic_fetch_add(&stream->next, 1, __ATOMIC_RELAXED); /* another thread may have come in between */
    if (next >= stream->room) return -FRNN_ERROR_ROOM;
    const frnn_weights *w = stream->plan->weights;
    const frnn_call *call = stream->call; /* T and B are checked later */
    const uint64_t reals = (uint64_t)call->T * (uint64_t)call->B * (uint64_t)(w->spec.num_directions * w->P);
    const uint64_t bytes = (uint64_t)next * reals * (uint64_t)w->spec.real_size;
    const int code = forward(stream->plan, call, x, (void *)((uintptr_t)stream->y + (uintptr_t)bytes), NULL);
    return code ? -code : next;
}

int frnn_backward(frnn_plan *plan, const frnn_call *call, const frnn_grads *grads) {
    if (!plan || !call || !grads) return FRNN_ERROR_NULL;
    const frnn_weights *w = plan->weights;
    if (!w->packed_backward) return FRNN_ERROR_UNPACKED;
    if (!call->tape || !grads->dh0 || (w->spec.kind == FRNN_KIND_LSTM && !grads->dc0) || !grads->params ||
        (!call->x && w->spec.input_size))
        return FRNN_ERROR_NULL;
    if (!frnn_has_parameters(w, (const void *const *)grads->params)) return FRNN_ERROR_NULL;
    return run_call(plan, call, grads, call->x, call->y, NULL);
}

/* A run that tapes, to measure its tape with. */
static int taping_run(frnn_run *run, const frnn_weights *w, const frnn_call *call) {
    const int code = check_call(w, call);
    if (code) return code;
    begin_run(run, w, call, NULL);
    run->taped = 1;
    return FRNN_OK;
}

int64_t frnn_tape_bytes(const frnn_weights *w, const frnn_call *call) {
    if (!w || !call) return -FRNN_ERROR_NULL;
    frnn_run run;
    const int code = taping_run(&run, w, call);
    if (code) return -code;
    arena tape = {0};
    lay_out_tape(&run, NULL, NULL, &tape);
    return tape.failed ? -FRNN_ERROR_SIZE : (int64_t)tape.used;
}

int frnn_tape_layout(const frnn_weights *w, const frnn_call *call, int64_t k, frnn_tape_view *out) {
    if (!w || !call || !out) return FRNN_ERROR_NULL;
    if (k < 0 || k >= w->spec.num_layers * w->spec.num_directions) return FRNN_ERROR_SIZE;
    frnn_run run;
    const int code = taping_run(&run, w, call);
    if (code) return code;
    arena tape = {.base = (char *)(uintptr_t)ALIGNMENT};
    frnn_lane lane;
    for (int64_t i = 0; i <= k; i++) lay_out_track(&run, &lane, &tape);
    const int64_t size = w->spec.real_size;
    *out = (frnn_tape_view){
        .shards = is_sharded(&run) ? run.shards : 1,
        .gates = ((char *)lane.gates - tape.base) / size, .gates_ld = w->planes * w->Hp, .plane = w->Hp,
        .h = ((char *)lane.h - tape.base) / size, .h_ld = w->Pp,
        .c = lane.c ? ((char *)lane.c - tape.base) / size : 0, .c_ld = w->Hp,
    };
    return FRNN_OK;
}
