/* How many threads share a call, and what each owns: by the cost model, and by trials where it cannot tell. And what goes with
 * it: how many steps' input product is made at once, and where. Constants: cost.h. Next: plan.c. */
#include "share.h"

#include "cost.h"
#include "machine.h"

/* Rows whose input product is made at once: enough to use each weight often, few enough to stay in L2. Where weights push
 * each other out of the last cache, CHUNK_FAR: input weights, in a stack all of a layer's, then come from memory once for many
 * steps. */
enum { CHUNK_BYTES = 192 * 1024, CHUNK_LEAST = 48, CHUNK_MOST = 1024, CHUNK_FAR = 512 };

/* The fewest rows that a thread has of a step that makes the input's product with its own: enough to fill tiles, as that by itself
 * would with the rows of several steps. Where vectors are short and tiles low, that takes more, but for small layers: of a tile
 * so small, to start and to end is more. */
enum { JOINT_ROWS = 4, JOINT_ROWS_NARROW = 16, JOINT_SMALL = 64 };
/* A GRU's tiles have one sum more a row then, and are lower: its layers must be small, and smaller still where vectors are short or
 * the gates are written anyway. */
enum { JOINT_GRU = 64, JOINT_GRU_SMALL = 16 };

/* A shard's fewest rows, and steps: else its sums are too much beside them. And the most bytes of a network's weights, and of a
 * shard's states at one step: past these two threads that share rows lose little by each other. */
enum { SHARD_ROWS = 4, SHARD_STEPS = 16, SHARD_WEIGHTS = 256 * 1024, SHARD_STATES = 2 * FRNN_APART };

/* ---- trials ------------------------------------------------------------------------------------------------------ */

/* Calls in a row that try the team, which may have to be woken, and to fill its caches: under 1 % of all, for the 99th
 * percentile not to show it. Then so many alone that its threads fall asleep meanwhile: where two processors are one core, they
 * slow their caller. */
enum { TRIAL_TEAM = 8, TRIAL_ALONE = 16, TRIAL_CALLS = TRIAL_TEAM + TRIAL_ALONE, TRIAL_PERIOD = 1024 };
/* At first more often: the very first trial finds caches cold and threads asleep. */
enum { TRIAL_EARLY = 64 };
static int is_early(unsigned call) { return call < TRIAL_PERIOD / 4; }
static unsigned trial_place(unsigned call) { return call % (is_early(call) ? TRIAL_EARLY : TRIAL_PERIOD); }

/* The trial of a key, or the one that makes room for it, any of them: where there are more sizes than trials, some stay. */
static frnn_trial *find_trial(frnn_trial trials[FRNN_TRIALS], int64_t key) {
    for (int i = 0; i < FRNN_TRIALS; i++)
        if (trials[i].key == key || trials[i].key == 0) return &trials[i]; /* they fill up in order, and no key is 0 */
    return &trials[((uint64_t)key * UINT64_C(0x9e3779b97f4a7c15) >> 32) % FRNN_TRIALS];
}

/* As was better, but for some calls in a row that try both ways. */
int frnn_choose_by_trial(frnn_trial *t, int64_t key) {
    if (t->key != key) *t = (frnn_trial){.key = key};
    const unsigned n = trial_place(t->calls);
    if (n >= TRIAL_CALLS) return t->team;
    const int team = n < TRIAL_TEAM;
    if (!is_early(t->calls) && (n == 0 || n == TRIAL_TEAM)) t->ns[team] = 0; /* forget what it was long ago */
    return team;
}

void frnn_note_trial(frnn_trial *t, int team, double ns) {
    t->calls++;
    double *const known = &t->ns[team];
    if (*known == 0 || ns < *known) *known = ns;
    else *known += (ns < 2 * *known ? ns - *known : *known) / 32; /* a call that was interrupted tells little */
    if (t->ns[0] > 0 && t->ns[1] > 0 && trial_place(t->calls) >= TRIAL_CALLS) t->team = t->ns[1] < t->ns[0];
}

/* ---- the cost model ------------------------------------------------------------------------------------------------- */

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

int frnn_shards(const frnn_weights *w, int64_t T, int64_t B) {
    const int64_t rows = B / FRNN_SHARDS;
    if (w->spec.num_directions == 2 || T < SHARD_STEPS || rows < SHARD_ROWS) return 1; /* a direction each is as good */
    const double weights = layer_bytes(w) * (double)w->spec.num_layers, states = (double)rows * (double)(w->P * w->spec.real_size);
    return weights <= SHARD_WEIGHTS && states <= SHARD_STATES ? FRNN_SHARDS : 1;
}

/* How many steps' input product is made at once. */
static void choose_chunk(frnn_run *run) {
    const frnn_weights *w = run->weights;
    const int64_t B = run->sharded ? run->shard_rows : run->B, fits = CHUNK_BYTES / (w->planes * w->Hp * w->spec.real_size);
    const int64_t least = bytes_in_turn(w) > (double)frnn_this_machine()->l3 / 2 ? CHUNK_FAR : CHUNK_LEAST;
    const int64_t rows = fits < least ? least : fits > CHUNK_MOST ? CHUNK_MOST : fits;
    run->chunk = B && rows > B ? rows / B : 1;
    if (run->chunk > run->T) run->chunk = run->T ? run->T : 1;
}

/* The time of a step with `rows` rows for a thread that has that part of the units. */
static double step_ns(const frnn_run *run, double rows, double part, double l2) {
    const frnn_weights *w = run->weights;
    const int cpu = narrow(w->lanes, w->spec.real_size);
    const double size = w->spec.real_size, reals = (double)(w->h_vecs * w->Hp * w->P) * part, bytes = reals * size;
    const double compute = multiply_ns(rows * reals, w->lanes, w->spec.real_size);
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

/* The threads, and what each owns; the trial that decided, or NULL. */
static frnn_trial *choose_threads(frnn_run *run, frnn_trial trials[3][FRNN_TRIALS]) {
    const frnn_weights *w = run->weights;
    const int team = frnn_get_threads();
    const int64_t D = w->spec.num_directions, L = w->spec.num_layers;
    const double l2 = (double)run->l2, l3 = (double)frnn_this_machine()->l3;
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
    int sharded = run->sharded; /* backward as forward was */
    if (sharded || (run->shards > 1 && !run->grads)) {
        const double ns = step_ns(run, rows / team, 1, l2) * stack + TEAM_NS;
        if (sharded || ns <= shared) shared = ns, groups = 1, by_panel = 0, sharded = 1;
    }
    if (shared >= (whole >= SMALL_NS ? 1 : run->taped ? HOPELESS_TAPED : HOPELESS) * whole) return NULL;
    frnn_trial *doubt = NULL;
    if (shared > SURE * whole || whole < SMALL_NS) {
        int bucket = 0; /* of T: a long sequence is worth more than a short one */
        for (int64_t T = run->T; T > 1; T /= 2) bucket++;
        const int64_t key = run->B * 64 + bucket;
        doubt = find_trial(trials[run->grads ? 2 : run->taped], key);
        if (!frnn_choose_by_trial(doubt, key)) return doubt;
    }
    run->size = team;
    run->groups = groups;
    run->by_panel = by_panel;
    run->sharded = sharded;
    if (sharded) choose_chunk(run);
    else if (frnn_layered(run)) run->chunk = steps;
    return doubt;
}

/* How many rows of a mean step a thread has. */
static int64_t thread_rows(const frnn_run *run) {
    const int shards = run->sharded ? run->shards : 1, groups = run->groups * shards;
    const int64_t sharers = run->by_panel || run->size < groups ? 1 : run->size / groups;
    return run->T ? run->rows / run->T / shards / sharers : 0;
}

/* Whether a step makes the input's product with its own: a tile then starts and ends once instead of twice, and no sums go by way of
 * the gates. */
static int is_joint(const frnn_run *run) {
    const frnn_weights *w = run->weights;
    const int gru = w->spec.kind == FRNN_KIND_GRU, is_narrow = narrow(w->lanes, w->spec.real_size);
    const int64_t size = w->spec.input_size > w->P ? w->spec.input_size : w->P;
    if (run->grads || !w->joinable) return 0;
    if (run->T == 1 && (run->B == 1 || !gru)) return 1; /* by itself it would have no more rows */
    if (gru && size > (run->taped || is_narrow ? JOINT_GRU_SMALL : JOINT_GRU)) return 0;
    return thread_rows(run) >= (is_narrow && size > JOINT_SMALL ? JOINT_ROWS_NARROW : JOINT_ROWS);
}

/* Whether an RNN writes a tile's rows from the last to the first: along rising addresses hardware reads on ahead, but not past a
 * page, there into rows that another thread is about to write, and takes their lines to this core. A step of other cells is too
 * long for that to tell. */
static int is_last_first(const frnn_run *run) {
    const frnn_spec *s = &run->weights->spec;
    return run->size > run->groups && !run->by_panel &&
           thread_rows(run) * s->num_directions * run->weights->P * s->real_size <= FRNN_APART;
}

frnn_trial *frnn_share(frnn_run *run, frnn_trial trials[3][FRNN_TRIALS]) {
    run->l1 = frnn_this_machine()->l1;
    run->l2 = frnn_this_machine()->l2;
    choose_chunk(run);
    frnn_trial *const doubt = choose_threads(run, trials);
    const int sharers = frnn_layered(run) ? run->size : run->by_panel ? run->size / run->groups : 1;
    run->fills = bytes_in_turn(run->weights) >= (double)(run->l1 * sharers);
    run->joint = is_joint(run);
    run->last_first = is_last_first(run);
    return doubt;
}
