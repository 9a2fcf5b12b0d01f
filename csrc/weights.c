/* Packed weights: what a spec must hold, where each layer's panels lie, and the team's packing of them.
 * No arithmetic on data: kernels.h packs. Next: plan.c. */
#include <stdlib.h>

#include "arena.h"
#include "core.h"
#include "cost.h"
#include "machine.h"

/* The most inputs or states (of a stack's first layer) of layers whose W_hh goes on where each panel of W_ih ends; a GRU's steps have
 * less use of it. Of larger ones, products of W_hh alone lose more by its panels being far apart than steps gain. */
enum { JOINABLE = 512, JOINABLE_GRU = 256 };

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

/* Panels of `units` outputs, `depth` deep. */
static void *take_panels(arena *a, const frnn_weights *w, int64_t units, int64_t depth, int vecs) {
    const int64_t padded = (units + w->lanes - 1) / w->lanes * w->lanes;
    return take(a, padded, multiply(a, (size_t)depth, (size_t)vecs * (size_t)w->spec.real_size));
}

/* The transposes, which only backward reads, come last: a plan that never trains does not touch their pages. */
static void lay_out_weights(frnn_weights *w, arena *a) {
    const frnn_spec *s = &w->spec;
    const int before = s->kind == FRNN_KIND_GRU && s->reset == FRNN_RESET_BEFORE;
    const int after = s->kind == FRNN_KIND_GRU && !before, joint = w->joinable;
    const int64_t tracks = s->num_layers * s->num_directions;
    for (int64_t k = 0; k < tracks; k++) {
        frnn_track *t = &w->tracks[k];
        t->I = k < s->num_directions ? s->input_size : s->num_directions * w->P;
        const int64_t x_panel = t->I * w->gates * w->lanes, h_panel = w->P * w->h_vecs * w->lanes;
        t->wx_panel = joint ? x_panel + h_panel : x_panel;
        t->wh_panel = joint ? x_panel + h_panel : h_panel;
        t->wx = take_panels(a, w, w->H, joint ? t->I + w->P : t->I, w->gates);
        t->wh = !joint ? take_panels(a, w, w->H, w->P, w->h_vecs) : t->wx ? (char *)t->wx + x_panel * s->real_size : NULL;
        t->wn = before ? take_panels(a, w, w->H, w->H, 1) : NULL;
        t->wr = s->proj_size ? take_panels(a, w, w->P, w->H, 1) : NULL;
        t->bx = take_panels(a, w, w->H, 1, w->gates + after);
        t->bq = after && t->bx ? (char *)t->bx + w->gates * w->Hp * s->real_size : NULL;
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
    if (!code) code = frnn_find_kernels(spec->real_size, isa, &kernels);
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
    const int64_t most = gru ? JOINABLE_GRU : JOINABLE;
    w->joinable = spec->peephole != FRNN_PEEPHOLE_CELL && !(gru && spec->reset == FRNN_RESET_BEFORE) && w->P <= most &&
                  spec->input_size <= most;
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
    if (!frnn_has_parameters(w, params)) return FRNN_ERROR_NULL;
    frnn_packing job = {.weights = w, .params = params, .backward = backward};
    const double ns = (double)w->bytes / PACK_BYTES_PER_NS[narrow(w->lanes, w->spec.real_size)];
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
