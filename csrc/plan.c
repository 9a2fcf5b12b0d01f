/* Plans: checks, memory, packed weights, and how many threads share a call and what. No arithmetic on data.
 *
 * A call is prepared here as a frnn_run, whose buffers lie in the plan's workspace or on the caller's tape, and
 * handed to the team with the kernels of the chosen instruction set. Next: kernels.h, what a thread then does.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "cpu.h"
#include "fastrnn.h"
#include "threads.h"

enum { ALIGNMENT = 128 }; /* bytes, at least a cache line and a vector */

/* The cost model: bench/costs.py measures what can be measured by itself. Only ratios matter, and only near the points
 * where one way of sharing overtakes another; where alone and together are close, calls are timed both ways. What differs
 * most between processors is given for those with vectors of 64 bytes (measured on a Zen 5) and for others (on a Zen 1): to
 * think one slower than it is costs a few trials, to think it faster keeps the team from work that it would halve. */
static const double FLOPS_PER_NS[] = {150, 40};    /* of float32 FMAs, one thread */
static const double L2_BYTES_PER_NS[] = {120, 80}; /* read, one thread */
static const double PACK_BYTES_PER_NS[] = {15, 3}; /* packed, one thread */
static const double GATE_NS[] = {4, 20};           /* a vector of units' gate: its activation and what goes with it */
static const double STEP_NS[] = {50, 90};          /* what a step costs beside */
static const double L3_BYTES_PER_NS = 60;          /* read, each of several threads */
static const double BARRIER_NS = 250;              /* a barrier of running threads */
static const double TEAM_NS = 1000;                /* setting a waiting team to work, and waiting for its last */
static const double WAKE_NS = 30000;               /* and a sleeping one */
static const double SURE = 0.6;                    /* the team's part of the time alone from which on there is no doubt, */
static const double SMALL_NS = 500000;             /* but for calls as short as that; */
static const double HOPELESS = 1.5;                /* and from which on it is not worth a trial */
static const double TILE_HEIGHT = 6;               /* rows that one reading of the weights serves */
static const double TILES_L2 = 2;                  /* times L2 that weights may have for each tile that a thread reads them for */
static const double WAVE_L2 = 0.6;                 /* the part of L2 for a layer's recurrent weights where its input's pass every few steps */

/* Which of the two. */
static int narrow(int lanes, int64_t real_size) { return lanes * real_size < 64; }

/* Rows whose input product is made at once: enough to use each weight often, few enough to stay in L2. Where weights push
 * each other out of the last cache, CHUNK_FAR: input weights, in a stack all of a layer's, then come from memory once for many
 * steps. */
enum { CHUNK_BYTES = 192 * 1024, CHUNK_LEAST = 48, CHUNK_MOST = 1024, CHUNK_FAR = 512 };

/* The most inputs and states that a step takes side by side (of each direction below, in a stack), and the fewest rows that a
 * thread then has of it: enough to fill tiles, as the input's product by itself would with the rows of several steps. */
enum { STACK_MOST = 64, STACK_ROWS = 4 };

/* Whether the team helps calls of one kind, found out by timing both where the model cannot tell: what a barrier costs, and
 * whether the team is awake, changes from machine to machine and from minute to minute. */
typedef struct trial {
    int64_t key; /* what the calls have in common */
    unsigned calls;
    int team;     /* what is best so far */
    double ns[2]; /* a step of a row: alone, by the team */
} trial;

struct frnn_plan {
    const frnn_weights *weights;
    pthread_mutex_t lock;
    frnn_barrier team, group[FRNN_MAX_GROUPS];
    void *scratch[FRNN_MAX_THREADS];
    frnn_lane *lanes; /* [L*D] */
    void **between;   /* [L] layer l's input buffer */
    void *memory;     /* the workspace: grows to the largest call's need */
    size_t bytes;
    trial trials[3]; /* forward, forward with a tape, backward */
    frnn_run run;    /* the call under way, or the last */
    trial *doubt;    /* that decided how the run is shared, or NULL */
    int settled;     /* whether a plain call of the same sizes may be run as it stands */
    int threads;     /* the team's size when it was prepared */
};

static const struct {
    const frnn_kernels *of_float, *of_double;
    unsigned needs;
} ISAS[] = {
#ifdef FRNN_HAVE_AVX512
    {&frnn_avx512_float, &frnn_avx512_double, FRNN_CPU_AVX512},
#endif
#ifdef FRNN_HAVE_AVX2
    {&frnn_avx2_float, &frnn_avx2_double, FRNN_CPU_AVX2},
#endif
#ifdef FRNN_HAVE_NEON
    {&frnn_neon_float, &frnn_neon_double, FRNN_CPU_NEON},
#endif
    {&frnn_generic_float, &frnn_generic_double, 0},
};
enum { ISA_COUNT = sizeof ISAS / sizeof ISAS[0] };

/* What there is to know of the machine, looked up once: on a virtual one each question takes microseconds. Where the system does
 * not say how large caches are, they have what many machines have. */
static struct machine {
    unsigned features;
    int64_t caches[3];
} machine;
static void look_up_machine(void) {
    static const int64_t usual[3] = {32 * 1024, 512 * 1024, 8 * 1024 * 1024};
    machine.features = frnn_cpu_features();
    frnn_cpu_caches(machine.caches);
    for (int i = 0; i < 3; i++)
        if (machine.caches[i] <= 0) machine.caches[i] = usual[i];
}
static const struct machine *this_machine(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, look_up_machine);
    return &machine;
}

const char *frnn_isa_name(int i) { return i >= 0 && i < (int)ISA_COUNT ? ISAS[i].of_float->name : NULL; }

int frnn_isa_usable(int i) {
    return i >= 0 && i < (int)ISA_COUNT && (this_machine()->features & ISAS[i].needs) == ISAS[i].needs;
}

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
    default: return "unknown error code";
    }
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

/* Hands out aligned pieces of a block; with no block it only measures. Sizes that overflow make it fail. */
typedef struct arena {
    char *base;
    size_t used;
    int failed;
} arena;

static size_t multiply(arena *a, size_t x, size_t y) {
    size_t product;
    if (__builtin_mul_overflow(x, y, &product)) a->failed = 1, product = 0;
    return product;
}

/* count items of size bytes, or NULL while measuring. */
static void *take(arena *a, int64_t count, size_t size) {
    void *piece = a->base ? a->base + a->used : NULL;
    const size_t bytes = multiply(a, (size_t)count, size);
    if (__builtin_add_overflow(a->used, bytes, &a->used) || a->used > PTRDIFF_MAX - ALIGNMENT) a->failed = 1, a->used = 0;
    a->used = (a->used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return piece;
}

static void *allocate(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, ALIGNMENT, bytes ? bytes : ALIGNMENT) ? NULL : memory;
}

/* ---- the team's worth ---------------------------------------------------------------------------------------------- */

/* How many threads plain work had better have that takes one so long: all, where half of that is more than the team costs. */
static int threads_for(double ns) { return ns / 2 > (frnn_team_awake() ? TEAM_NS : WAKE_NS) ? frnn_get_threads() : 1; }

/* Calls in a row that try the team, which may have to be woken, and to fill its caches: under 1 % of all, for the 99th
 * percentile not to show it. Then so many alone that its threads fall asleep meanwhile: where two processors are one core, they
 * slow their caller. */
enum { TRIAL_TEAM = 8, TRIAL_ALONE = 16, TRIAL_CALLS = TRIAL_TEAM + TRIAL_ALONE, TRIAL_PERIOD = 1024 };
/* At first more often: the very first trial finds caches cold and threads asleep. */
enum { TRIAL_EARLY = 64 };
static int is_early(unsigned call) { return call < TRIAL_PERIOD / 4; }
static unsigned trial_place(unsigned call) { return call % (is_early(call) ? TRIAL_EARLY : TRIAL_PERIOD); }

/* Whether the next call of this kind is the team's: as was better, but for some calls in a row that try both ways. */
static int choose_by_trial(trial *t, int64_t key) {
    if (t->key != key) *t = (trial){.key = key};
    const unsigned n = trial_place(t->calls);
    if (n >= TRIAL_CALLS) return t->team;
    const int team = n < TRIAL_TEAM;
    if (!is_early(t->calls) && (n == 0 || n == TRIAL_TEAM)) t->ns[team] = 0; /* forget what it was long ago */
    return team;
}

static void note_trial(trial *t, int team, double ns) {
    t->calls++;
    double *const known = &t->ns[team];
    if (*known == 0 || ns < *known) *known = ns;
    else *known += (ns < 2 * *known ? ns - *known : *known) / 32; /* a call that was interrupted tells little */
    if (t->ns[0] > 0 && t->ns[1] > 0 && trial_place(t->calls) >= TRIAL_CALLS) t->team = t->ns[1] < t->ns[0];
}

/* ---- weights --------------------------------------------------------------------------------------------------- */

static int within(int value, int most) { return value >= 0 && value <= most; }

static int check_spec(const frnn_spec *s) {
    if (s->real_size != 4 && s->real_size != 8) return FRNN_ERROR_SPEC;
    if (!within(s->kind, FRNN_KIND_GRU) || !within(s->forget, FRNN_FORGET_COUPLED) || !within(s->peephole, FRNN_PEEPHOLE_FULL) ||
        !within(s->reset, FRNN_RESET_BEFORE) || !within(s->update, FRNN_UPDATE_WRITE) || !(s->clip >= 0))
        return FRNN_ERROR_SPEC;
    for (int i = 0; i < 3; i++)
        if (!within(s->activation[i], FRNN_SOFTPLUS)) return FRNN_ERROR_SPEC;
    if (s->input_size < 0 || s->hidden_size < 1 || s->proj_size < 0 || s->proj_size >= s->hidden_size || s->num_layers < 1 ||
        s->num_directions < 1 || s->num_directions > 2)
        return FRNN_ERROR_SPEC;
    if (s->kind != FRNN_KIND_LSTM && (s->forget || s->peephole || s->proj_size)) return FRNN_ERROR_SPEC;
    const int64_t most = INT64_C(1) << 31; /* products of two sizes then fit in 64 bits */
    if (s->input_size > most || s->hidden_size > most || s->num_layers > 1 << 16) return FRNN_ERROR_SIZE;
    if (s->peephole == FRNN_PEEPHOLE_FULL || (s->peephole == FRNN_PEEPHOLE_CELL && s->proj_size)) return FRNN_ERROR_UNSUPPORTED;
    return FRNN_OK;
}

static int find_kernels(int real_size, const char *isa, const frnn_kernels **out) {
    for (int i = 0; i < (int)ISA_COUNT; i++)
        if (frnn_isa_usable(i) && (!isa || !strcmp(isa, frnn_isa_name(i)))) {
            *out = real_size == 4 ? ISAS[i].of_float : ISAS[i].of_double;
            return FRNN_OK;
        }
    return FRNN_ERROR_ISA;
}

/* Panels of `units` outputs, `depth` deep. */
static void *take_panels(arena *a, const frnn_weights *w, int64_t units, int64_t depth, int vecs) {
    const int64_t padded = (units + w->lanes - 1) / w->lanes * w->lanes;
    return take(a, padded, multiply(a, (size_t)depth, (size_t)vecs * (size_t)w->spec.real_size));
}

/* Whether a step may take the input's product with its own: a tile then starts and ends once instead of twice, and no sums go
 * by way of the gates. An LSTM's layer where that is much of a tile; an RNN's would lose more by rows stacked up for it. */
static int stackable(const frnn_weights *w) {
    const frnn_spec *s = &w->spec;
    return s->kind == FRNN_KIND_LSTM && s->peephole != FRNN_PEEPHOLE_CELL && s->input_size <= STACK_MOST && w->P <= STACK_MOST;
}

/* The transposes, which only backward reads, come last: a plan that never trains does not touch their pages. */
static void lay_out_weights(frnn_weights *w, arena *a) {
    const frnn_spec *s = &w->spec;
    const int before = s->kind == FRNN_KIND_GRU && s->reset == FRNN_RESET_BEFORE;
    const int after = s->kind == FRNN_KIND_GRU && !before, stacked = stackable(w);
    const int64_t tracks = s->num_layers * s->num_directions;
    for (int64_t k = 0; k < tracks; k++) {
        frnn_track *t = &w->tracks[k];
        t->I = k < s->num_directions ? s->input_size : s->num_directions * w->P;
        const int64_t x_panel = t->I * w->gates * w->lanes, h_panel = w->P * w->h_vecs * w->lanes;
        t->wx_panel = stacked ? x_panel + h_panel : x_panel;
        t->wh_panel = stacked ? x_panel + h_panel : h_panel;
        t->wx = take_panels(a, w, w->H, stacked ? t->I + w->P : t->I, w->gates);
        t->wh = !stacked ? take_panels(a, w, w->H, w->P, w->h_vecs) : t->wx ? (char *)t->wx + x_panel * s->real_size : NULL;
        t->wn = before ? take_panels(a, w, w->H, w->H, 1) : NULL;
        t->wr = s->proj_size ? take_panels(a, w, w->P, w->H, 1) : NULL;
        t->bx = take_panels(a, w, w->H, 1, w->gates);
        t->bq = after ? take_panels(a, w, w->H, 1, 1) : NULL;
        t->eye = s->peephole == FRNN_PEEPHOLE_DIAGONAL ? take_panels(a, w, w->H, 1, w->gates - 1) : NULL;
    }
    for (int64_t k = 0; k < tracks; k++) {
        frnn_track *t = &w->tracks[k];
        t->wxt = take_panels(a, w, t->I, w->gates * w->Hp, 1);
        t->wht = take_panels(a, w, w->P, w->h_vecs * w->Hp, 1);
        t->wnt = before ? take_panels(a, w, w->H, w->Hp, 1) : NULL;
        t->wrt = s->proj_size ? take_panels(a, w, w->H, w->P, 1) : NULL;
    }
}

int frnn_weights_new(const frnn_spec *spec, const char *isa, frnn_weights **out) {
    if (!spec || !out) return FRNN_ERROR_NULL;
    int code = check_spec(spec);
    const frnn_kernels *kernels = NULL;
    if (!code) code = find_kernels(spec->real_size, isa, &kernels);
    if (code) return code;

    frnn_weights *w = calloc(1, sizeof *w);
    if (!w) return FRNN_ERROR_MEMORY;
    const int gru = spec->kind == FRNN_KIND_GRU, rnn = spec->kind == FRNN_KIND_RNN, lanes = kernels->lanes;
    w->spec = *spec;
    w->kernels = kernels;
    w->lanes = lanes;
    w->H = spec->hidden_size;
    w->P = spec->proj_size ? spec->proj_size : w->H;
    w->Hp = (w->H + lanes - 1) / lanes * lanes;
    w->Pp = (w->P + lanes - 1) / lanes * lanes;
    w->gates = rnn ? 1 : gru || spec->forget != FRNN_FORGET_GATE ? 3 : 4;
    w->planes = gru ? 4 : w->gates;
    w->h_plane = gru ? PLANE_R : 0;
    w->h_vecs = gru && spec->reset == FRNN_RESET_BEFORE ? 2 : w->gates;
    static const int standard[3][3] = {{FRNN_TANH}, {FRNN_SIGMOID, FRNN_TANH, FRNN_TANH}, {FRNN_SIGMOID, FRNN_TANH}};
    w->plain = !spec->clip && !spec->forget && !spec->peephole;
    for (int i = 0; i < (rnn ? 1 : gru ? 2 : 3); i++) {
        w->plain = w->plain && spec->activation[i] == standard[spec->kind][i];
        const int is_gate = !(spec->kind == FRNN_KIND_LSTM && i == 2);
        w->act[i] = (frnn_act){.code = spec->activation[i], .clipped = is_gate && spec->clip > 0, .alpha = spec->alpha[i],
                               .beta = spec->beta[i], .clip = spec->clip};
    }
    arena measure = {0};
    w->tracks = calloc((size_t)(spec->num_layers * spec->num_directions), sizeof *w->tracks);
    if (w->tracks) {
        lay_out_weights(w, &measure);
        if (!measure.failed) w->memory = allocate(measure.used);
    }
    if (!w->memory) {
        frnn_weights_free(w);
        return measure.failed ? FRNN_ERROR_SIZE : FRNN_ERROR_MEMORY;
    }
    w->bytes = measure.used;
    arena real = {.base = w->memory};
    lay_out_weights(w, &real);
    *out = w;
    return FRNN_OK;
}

int frnn_weights_pack(frnn_weights *w, const void *const *params, int backward) {
    if (!w || !params) return FRNN_ERROR_NULL;
    const frnn_spec *s = &w->spec;
    for (int64_t k = 0; k < s->num_layers * s->num_directions; k++) {
        const void *const *p = params + 6 * k;
        if (!p[0] || !p[1] || (s->proj_size && !p[4]) || (s->peephole == FRNN_PEEPHOLE_DIAGONAL && !p[5])) return FRNN_ERROR_NULL;
    }
    frnn_packing job = {.weights = w, .params = params, .backward = backward};
    const double ns = (double)w->bytes / PACK_BYTES_PER_NS[narrow(w->lanes, s->real_size)];
    frnn_team_run(threads_for(ns), w->kernels->pack, &job);
    w->packed = 1;
    w->packed_backward = backward;
    return FRNN_OK;
}

int64_t frnn_weights_bytes(const frnn_weights *w) { return w ? (int64_t)w->bytes : 0; }

void frnn_weights_free(frnn_weights *w) {
    if (!w) return;
    free(w->memory);
    free(w->tracks);
    free(w);
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
    if (!plan->lanes || !plan->between || pthread_mutex_init(&plan->lock, NULL)) {
        free(plan->lanes);
        free(plan->between);
        free(plan);
        return FRNN_ERROR_MEMORY;
    }
    *out = plan;
    return FRNN_OK;
}

void frnn_plan_free(frnn_plan *plan) {
    if (!plan) return;
    pthread_mutex_destroy(&plan->lock);
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

/* Rows sorted by length, longest first and otherwise in order, by counting; and what each step then holds. */
static void lay_out_lengths(frnn_run *run, arena *a) {
    const frnn_call *c = run->call;
    if (!c->lengths) return;
    int64_t *const perm = take(a, run->B, sizeof *perm), *const length = take(a, run->B, sizeof *length);
    int64_t *const last = take(a, run->B, sizeof *last);
    int64_t *const active = take(a, run->T + 1, sizeof *active), *const first = take(a, run->T + 1, sizeof *first);
    run->perm = perm, run->length = length, run->last = last, run->active = active, run->first = first;
    if (!a->base) return;
    memset(active, 0, (size_t)(run->T + 1) * sizeof *active);
    for (int64_t b = 0; b < run->B; b++)
        if (c->lengths[b]) active[c->lengths[b] - 1]++; /* rows whose last step this is */
    for (int64_t s = run->T - 1; s > 0; s--) active[s - 1] += active[s]; /* rows that take the step */
    /* A row of length l comes after the rows that are longer: active[l] of them. */
    memcpy(first, active, (size_t)(run->T + 1) * sizeof *first);
    for (int64_t b = 0; b < run->B; b++) {
        const int64_t r = c->lengths[b] < run->T ? first[c->lengths[b]]++ : first[run->T]++;
        perm[r] = b;
        length[r] = c->lengths[b];
        last[r] = (length[r] - 1) * run->B + b;
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
                      .rows = real_steps(call), .taped = call->tape != NULL};
}

/* The bytes of a layer's weights. */
static double layer_bytes(const frnn_weights *w) {
    const int64_t I = w->tracks[0].I > w->P ? w->tracks[0].I : w->P;
    return (double)(w->gates * w->Hp * w->spec.real_size) * (double)(I + w->P);
}

/* The bytes of the weights that a chunk of steps takes in turn: with one direction, of all layers. */
static double bytes_in_turn(const frnn_weights *w) {
    if (w->spec.num_directions == 2) return layer_bytes(w);
    const int64_t inputs = w->tracks[0].I + (2 * w->spec.num_layers - 1) * w->P;
    return (double)(w->gates * w->Hp * w->spec.real_size) * (double)inputs;
}

/* How many steps' input product is made at once. */
static void choose_chunk(frnn_run *run, double l3) {
    const frnn_weights *w = run->weights;
    const int64_t B = run->B, fits = CHUNK_BYTES / (w->planes * w->Hp * w->spec.real_size);
    const int64_t least = bytes_in_turn(w) > l3 / 2 ? CHUNK_FAR : CHUNK_LEAST;
    const int64_t rows = fits < least ? least : fits > CHUNK_MOST ? CHUNK_MOST : fits;
    run->chunk = B && rows > B ? rows / B : 1;
    if (run->chunk > run->T) run->chunk = run->T ? run->T : 1;
}

/* How many rows of a mean step a thread has. */
static int64_t thread_rows(const frnn_run *run) {
    const int64_t sharers = run->by_panel || run->size < run->groups ? 1 : run->size / run->groups;
    return run->T ? run->rows / run->T / sharers : 0;
}

/* All buffers of a run, in the workspace and on the caller's tape. */
static void lay_out_run(frnn_run *run, frnn_plan *plan, arena *a) {
    const frnn_weights *w = run->weights;
    const frnn_spec *s = &w->spec;
    const frnn_call *c = run->call;
    const int64_t D = s->num_directions, L = s->num_layers;
    const size_t size = (size_t)s->real_size;
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
        const int64_t apart = frnn_layered(run) ? L : D; /* each layer's last until its next part, or its end */
        for (int64_t k = 0; k < L * D; k++) {
            lanes[k].carry_h = k < apart ? take(a, c->B, (size_t)w->Pp * size) : lanes[k - apart].carry_h;
            lanes[k].carry_c = k < apart ? take(a, c->B, (size_t)w->Hp * size) : lanes[k - apart].carry_c;
            if (k < apart) take(a, run->size > 1, FRNN_APART);
        }
        for (int i = 0; i < 2; i++) run->mid[i] = L > 2 - i ? take_between(run, a, c->T * c->B) : NULL;
    }
    const size_t bytes = w->kernels->scratch_bytes(w, run);
    for (int i = 0; i < run->size; i++) {
        if (i) take(a, 1, FRNN_APART);
        plan->scratch[i] = take(a, 1, bytes);
    }
    run->scratch = plan->scratch;
}

/* The caller's arrays at the ends of the stack. */
static void connect_ends(frnn_run *run, const void *x, void *y) {
    const frnn_weights *w = run->weights;
    const int64_t D = w->spec.num_directions, last = (w->spec.num_layers - 1) * D;
    for (int64_t d = 0; d < D; d++) {
        run->lanes[d].x = x;
        run->lanes[last + d].y = y ? (char *)y + d * w->P * w->spec.real_size : NULL;
    }
}

/* Where the layers read and write in between, and all else of the caller's. */
static void connect(frnn_run *run, frnn_plan *plan) {
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

/* ---- threads --------------------------------------------------------------------------------------------------- */

/* The time of a step with `rows` rows for a thread that has that part of the units. */
static double step_ns(const frnn_run *run, double rows, double part, double l2) {
    const frnn_weights *w = run->weights;
    const int cpu = narrow(w->lanes, w->spec.real_size);
    const double size = w->spec.real_size, reals = (double)(w->h_vecs * w->Hp * w->P) * part, bytes = reals * size;
    const double compute = 2 * rows * reals * size / (4 * FLOPS_PER_NS[cpu]);
    const double near = bytes * (rows < TILE_HEIGHT ? 1 : rows / TILE_HEIGHT) / L2_BYTES_PER_NS[cpu];
    const double far = bytes > l2 ? bytes / L3_BYTES_PER_NS : 0;
    const double product = compute > near ? (compute > far ? compute : far) : (near > far ? near : far);
    return product + rows * part * (double)(w->gates * w->Hp / w->lanes) * GATE_NS[cpu] + STEP_NS[cpu];
}

/* The time of a step for a group of so many threads, and whether they had better share its units than its rows: always where
 * weights fill the last cache, for each that owns rows would fetch them all from memory, or are much for the few tiles that it
 * would fetch them for. */
static double group_ns(const frnn_run *run, double rows, double threads, double l2, double l3, int *by_panel) {
    const frnn_weights *w = run->weights;
    const double phases = w->spec.proj_size || w->h_vecs == 2 ? 2 : 1, panels = (double)(w->Hp / w->lanes);
    const double heads = (double)run->B < threads ? (double)run->B : threads;
    const double by_rows = step_ns(run, rows / (heads < 1 ? 1 : heads), 1, l2);
    const double part = threads <= 1 ? 1 : 1 / (panels < threads ? panels : threads);
    const double by_panels = step_ns(run, rows, part, l2) + (threads > 1 ? phases * BARRIER_NS : 0);
    const double weights = (double)(w->h_vecs * w->Hp * w->P * w->spec.real_size), tiles = rows / threads / TILE_HEIGHT;
    const int often = panels >= 2 * threads && weights >= TILES_L2 * l2 * (tiles < 1 ? 1 : tiles);
    *by_panel = threads > 1 && (heads <= 1 || by_panels < by_rows || often || layer_bytes(w) >= l3);
    return *by_panel ? by_panels : by_rows;
}

/* How many recurrent products' time the layers from low to high take, input products included: of the first layer's input
 * size, and of D*P. */
static double layers_cost(const frnn_weights *w, int64_t low, int64_t high) {
    const double D = (double)w->spec.num_directions;
    return (1 + D) * (double)(high - low) + (low == 0 ? (double)w->spec.input_size / (double)w->P - D : 0);
}

/* Give each of the groups some of the layers, as evenly as can be; the heaviest one's cost. */
static double divide_layers(const frnn_weights *w, int groups, int64_t edges[]) {
    const int64_t L = w->spec.num_layers;
    const double all = layers_cost(w, 0, L);
    double heaviest = 0;
    edges[0] = 0;
    for (int g = 0; g < groups; g++) {
        int64_t edge = edges[g] + 1; /* one layer at least, and one at least for each group to come */
        const double goal = all * (g + 1) / groups - layers_cost(w, 0, edges[g]);
        while (edge < L - (groups - 1 - g) && layers_cost(w, edges[g], edge) + layers_cost(w, edge, edge + 1) / 2 < goal) edge++;
        edges[g + 1] = g == groups - 1 ? L : edge;
        const double cost = layers_cost(w, edges[g], edges[g + 1]);
        if (cost > heaviest) heaviest = cost;
    }
    return heaviest;
}

/* The time of groups that run layers at the same time, the slowest taking of_group alone, and how many steps they had
 * better hand over at once: few, that none waits long for its first, but a tile's rows, and worth a barrier, and reading
 * the group's weights again. */
static double waves_ns(const frnn_run *run, double of_group, int groups, double l2, int64_t *steps) {
    const double weights = layer_bytes(run->weights) * (double)run->weights->spec.num_layers / groups;
    const double a_round = BARRIER_NS + (weights > l2 ? weights / L3_BYTES_PER_NS : 0);
    double best = 0;
    for (int64_t s = run->chunk; s && (best == 0 || (double)(s * run->B) >= TILE_HEIGHT); s /= 2) {
        const double parts = (double)((run->T + s - 1) / s), rounds = parts + groups - 1;
        const double ns = rounds * (of_group / parts + a_round);
        if (best == 0 || ns < best) best = ns, *steps = s;
    }
    return best;
}

/* How many threads, and what each owns; the trial that decided, or NULL. */
static trial *share_work(frnn_run *run, frnn_plan *plan) {
    const frnn_weights *w = run->weights;
    const int team = frnn_get_threads();
    const int64_t D = w->spec.num_directions, L = w->spec.num_layers;
    const double l2 = (double)run->l2, l3 = (double)this_machine()->caches[2];
    run->size = run->groups = 1;
    if (team == 1 || run->rows == 0) return NULL;

    const double rows = (double)run->rows / (double)run->T; /* of a mean step */
    const double weight = run->grads ? 3 : 1; /* what stands beside the recurrent product: inputs, gradients */
    const double times = (double)run->T * weight, stack = layers_cost(w, 0, L) * times;
    const double whole = (double)D * step_ns(run, rows, 1, l2) * stack;
    int by_panel, groups = (int)D;
    int64_t steps = run->chunk;
    double shared = group_ns(run, rows, (double)team / (double)D, l2, l3, &by_panel) * stack + TEAM_NS;
    if (D == 1 && L > 1) {
        const int most = team < FRNN_MAX_GROUPS ? team : FRNN_MAX_GROUPS, n = L < most ? (int)L : most;
        int panels_of_group;
        const double step = group_ns(run, rows, team / n, WAVE_L2 * l2, l3, &panels_of_group);
        const double layered = waves_ns(run, divide_layers(w, n, run->layers) * step * times, n, l2, &steps) + TEAM_NS;
        if (layered < shared) shared = layered, groups = n, by_panel = panels_of_group;
    }
    if (shared >= (whole < SMALL_NS ? HOPELESS : 1) * whole) return NULL;
    trial *doubt = NULL;
    if (shared > SURE * whole || whole < SMALL_NS) {
        doubt = &plan->trials[run->grads ? 2 : run->taped];
        int bucket = 0; /* of T: a long sequence is worth more than a short one */
        for (int64_t T = run->T; T > 1; T /= 2) bucket++;
        if (!choose_by_trial(doubt, run->B * 64 + bucket)) return doubt;
    }
    run->size = team;
    run->groups = groups;
    run->by_panel = by_panel;
    if (frnn_layered(run)) run->chunk = steps;
    return doubt;
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
    run->l2 = this_machine()->caches[1];
    choose_chunk(run, (double)this_machine()->caches[2]);
    plan->doubt = share_work(run, plan);
    run->stacked = !grads && stackable(run->weights) && thread_rows(run) >= STACK_ROWS;
    run->most_rows = run->chunk * run->B;
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
    frnn_barrier_init(&plan->team, run->size);
    for (int g = 0; g < run->groups; g++)
        frnn_barrier_init(&plan->group[g],
                          frnn_group_start(g + 1, run->groups, run->size) - frnn_group_start(g, run->groups, run->size));
    run->team = &plan->team;
    run->group = plan->group;
    connect(run, plan);
    plan->settled = is_plain(call, grads);
    return FRNN_OK;
}

/* Whether the last run serves this call too, whose x and y alone are others: a small network's step takes less than to
 * prepare for it, and what is not written anew need not travel to the other threads' caches. */
static int prepared(const frnn_plan *plan, const frnn_call *call, const frnn_grads *grads) {
    return plan->settled && is_plain(call, grads) && call->T == plan->run.T && call->B == plan->run.B &&
           plan->threads == frnn_get_threads() &&
           (!plan->doubt || choose_by_trial(plan->doubt, plan->doubt->key) == (plan->run.size > 1));
}

/* x and y in place of the call's own. */
static int run_call(frnn_plan *plan, const frnn_call *call, const frnn_grads *grads, const void *x, void *y) {
    const frnn_weights *w = plan->weights;
    int code = check_call(w, call);
    if (code) return code;
    if (pthread_mutex_trylock(&plan->lock)) {
        /* Someone else's call is under way, or was when this process was forked: take a workspace for this call. */
        frnn_plan *own = NULL;
        code = frnn_plan_new(w, &own);
        if (!code) code = run_call(own, call, grads, x, y);
        frnn_plan_free(own);
        return code;
    }
    frnn_run *const run = &plan->run;
    if (!prepared(plan, call, grads)) code = prepare(plan, call, grads);
    else if (run->call != call) run->call = call;
    if (!code) {
        connect_ends(run, x, y);
        trial *const doubt = plan->doubt;
        const int64_t begin = doubt ? frnn_now_ns() : 0;
        const frnn_task task = grads ? w->kernels->backward : w->kernels->forward;
        if (run->size == 1) task(run, 0, 1);
        else frnn_team_run(run->size, task, run);
        if (doubt) note_trial(doubt, run->size > 1, (double)(frnn_now_ns() - begin) / (double)run->rows);
    }
    pthread_mutex_unlock(&plan->lock);
    return code;
}

/* frnn_forward with x and y in place of the call's own. */
static int forward(frnn_plan *plan, const frnn_call *call, const void *x, void *y) {
    const frnn_weights *w = plan->weights;
    if (!w->packed) return FRNN_ERROR_UNPACKED;
    if (!y || !call->hn || (w->spec.kind == FRNN_KIND_LSTM && !call->cn) || (!x && w->spec.input_size)) return FRNN_ERROR_NULL;
    return run_call(plan, call, NULL, x, y);
}

int frnn_forward(frnn_plan *plan, const frnn_call *call) {
    return plan && call ? forward(plan, call, call->x, call->y) : FRNN_ERROR_NULL;
}

int frnn_step(frnn_plan *plan, const frnn_call *call, const void *x, void *y, int64_t index) {
    if (!plan || !call || !y) return FRNN_ERROR_NULL;
    const frnn_spec *s = &plan->weights->spec; /* T and B are checked later */
    const uint64_t reals = (uint64_t)call->T * (uint64_t)call->B * (uint64_t)(s->num_directions * plan->weights->P);
    return forward(plan, call, x, (void *)((uintptr_t)y + (uintptr_t)((uint64_t)index * reals * (uint64_t)s->real_size)));
}

int frnn_backward(frnn_plan *plan, const frnn_call *call, const frnn_grads *grads) {
    if (!plan || !call || !grads) return FRNN_ERROR_NULL;
    const frnn_weights *w = plan->weights;
    if (!w->packed_backward) return FRNN_ERROR_UNPACKED;
    if (!call->tape || !grads->dh0 || (w->spec.kind == FRNN_KIND_LSTM && !grads->dc0) || !grads->params ||
        (!call->x && w->spec.input_size))
        return FRNN_ERROR_NULL;
    for (int64_t k = 0; k < w->spec.num_layers * w->spec.num_directions; k++) {
        void *const *p = grads->params + 6 * k;
        if (!p[0] || !p[1] || (w->spec.proj_size && !p[4]) || (w->spec.peephole == FRNN_PEEPHOLE_DIAGONAL && !p[5])) return FRNN_ERROR_NULL;
    }
    return run_call(plan, call, grads, call->x, call->y);
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
        .gates = ((char *)lane.gates - tape.base) / size, .gates_ld = w->planes * w->Hp, .plane = w->Hp,
        .h = ((char *)lane.h - tape.base) / size, .h_ld = w->Pp,
        .c = lane.c ? ((char *)lane.c - tape.base) / size : 0, .c_ld = w->Hp,
    };
    return FRNN_OK;
}

/* ---- around the recurrent layers ---------------------------------------------------------------------------------- */

/* The kernels for plain work on that type. */
static int kernels_for(int real_size, const char *isa, const frnn_kernels **out) {
    return real_size == 4 || real_size == 8 ? find_kernels(real_size, isa, out) : FRNN_ERROR_SPEC;
}

int frnn_multiply(int real_size, const char *isa, int64_t M, int64_t N, int64_t K, const void *a, int64_t a_row,
                  int64_t a_column, const void *b, int64_t b_row, int64_t b_column, void *c) {
    const frnn_kernels *kernels = NULL;
    const int code = kernels_for(real_size, isa, &kernels);
    if (code) return code;
    if (M < 0 || N < 0 || K < 0) return FRNN_ERROR_SIZE;
    if (M == 0 || N == 0 || K == 0) return FRNN_OK;
    if (!a || !b || !c) return FRNN_ERROR_NULL;
    frnn_matrices job = {.l2 = this_machine()->caches[1], .M = M, .N = N, .K = K, .a = a, .b = b, .a_row = a_row, .a_column = a_column,
                         .b_row = b_row, .b_column = b_column, .c = c};
    const double ns = 2 * (double)M * (double)N * (double)K * real_size / (4 * FLOPS_PER_NS[narrow(kernels->lanes, real_size)]);
    const int size = threads_for(ns);
    char *const memory = allocate((size_t)size * kernels->matrix_bytes);
    if (!memory) return FRNN_ERROR_MEMORY;
    for (int i = 0; i < size; i++) job.scratch[i] = memory + (size_t)i * kernels->matrix_bytes;
    frnn_team_run(size, kernels->multiply, &job);
    free(memory);
    return FRNN_OK;
}

/* One of softmax's passes. */
static void run_softmax(const frnn_kernels *kernels, int real_size, frnn_task pass, frnn_softmax *job) {
    const double ns = (double)job->rows * (double)job->n / kernels->lanes * GATE_NS[narrow(kernels->lanes, real_size)];
    frnn_team_run(threads_for(ns), pass, job);
}

int frnn_softmax_sums(int real_size, const char *isa, int64_t rows, int64_t n, const void *x, void *peak, void *sum) {
    const frnn_kernels *kernels = NULL;
    const int code = kernels_for(real_size, isa, &kernels);
    if (code) return code;
    if (rows < 0 || n < 0) return FRNN_ERROR_SIZE;
    if (rows && (!peak || !sum || (n && !x))) return FRNN_ERROR_NULL;
    run_softmax(kernels, real_size, kernels->softmax_sums,
                &(frnn_softmax){.rows = rows, .n = n, .x = x, .peak = peak, .sum = sum});
    return FRNN_OK;
}

int frnn_scaled_exponentials(int real_size, const char *isa, int64_t rows, int64_t n, const void *x, const void *peak,
                             const void *factor, void *out) {
    const frnn_kernels *kernels = NULL;
    const int code = kernels_for(real_size, isa, &kernels);
    if (code) return code;
    if (rows < 0 || n < 0) return FRNN_ERROR_SIZE;
    if (rows == 0 || n == 0) return FRNN_OK;
    if (!x || !peak || !factor || !out) return FRNN_ERROR_NULL;
    run_softmax(kernels, real_size, kernels->scaled_exponentials,
                &(frnn_softmax){.rows = rows, .n = n, .x = x, .peak = (void *)peak, .factor = factor, .out = out});
    return FRNN_OK;
}

/* Work that goes through so many arrays of n numbers from end to end, far from the caches, if those that it needs are there. */
static int check_sweep(int real_size, const char *isa, int64_t n, int there, const frnn_kernels **out) {
    const int code = kernels_for(real_size, isa, out);
    return code ? code : n < 0 ? FRNN_ERROR_SIZE : n && !there ? FRNN_ERROR_NULL : FRNN_OK;
}
static void sweep(frnn_task task, const void *job, int64_t n, int arrays, int real_size) {
    frnn_team_run(threads_for((double)n * arrays * real_size / L3_BYTES_PER_NS), task, (void *)job);
}

int frnn_sums_of_squares(int real_size, const char *isa, int64_t n, const void *x, double *sums) {
    const frnn_kernels *kernels = NULL;
    const int code = check_sweep(real_size, isa, n, x && sums, &kernels);
    if (!code) sweep(kernels->sums_of_squares, &(frnn_squares){.n = n, .x = x, .sums = sums}, n, 1, real_size);
    return code;
}

int frnn_scale(int real_size, const char *isa, int64_t n, void *x, double factor) {
    const frnn_kernels *kernels = NULL;
    const int code = check_sweep(real_size, isa, n, x != NULL, &kernels);
    if (!code) sweep(kernels->scale, &(frnn_scaling){.n = n, .x = x, .factor = factor}, n, 2, real_size);
    return code;
}

int frnn_sgd(int real_size, const char *isa, const frnn_sgd_step *step) {
    const frnn_kernels *kernels = NULL;
    if (!step) return FRNN_ERROR_NULL;
    const int code = check_sweep(real_size, isa, step->n, step->w && step->g, &kernels);
    if (!code) sweep(kernels->sgd, step, step->n, step->b ? 5 : 3, real_size);
    return code;
}

int frnn_adam(int real_size, const char *isa, const frnn_adam_step *step) {
    const frnn_kernels *kernels = NULL;
    if (!step) return FRNN_ERROR_NULL;
    const int code = check_sweep(real_size, isa, step->n, step->w && step->g && step->m && step->v, &kernels);
    if (!code) sweep(kernels->adam, step, step->n, step->peak ? 9 : 7, real_size);
    return code;
}
