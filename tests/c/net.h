/* A network with everything that a call of the core takes, for the programs of this folder.
 *
 * Every array is an allocation of its own and of its exact size, so that a sanitizer sees a kernel read or write one
 * real too many; outputs and the tape begin as NaN, so that what is read before it is written shows. Values are
 * drawn alike for both types. Which nets are run and what is expected of them: test_core.c, test_neon.c.
 */
#ifndef NET_H
#define NET_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fastrnn.h"

#define CHECK(truth, ...)                                               \
    do {                                                                \
        if (!(truth)) {                                                 \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #truth); \
            fprintf(stderr, __VA_ARGS__);                               \
            fputc('\n', stderr);                                        \
            _exit(1);                                                   \
        }                                                               \
    } while (0)

typedef struct array {
    void *data; /* NULL where there are none */
    int64_t n;
} array;

enum { PER_TRACK = 6, MOST_PARAMS = PER_TRACK * 6 };

/* The options of a net beside its spec and sizes. */
enum { NO_BIAS = 1, NO_STATE = 2, LENGTHS = 4, MASKS = 8, CELLS = 16, NO_TAPE = 32, NO_DY = 64, NO_DSTATE = 128 };

static const int OPTIONS[] = {LENGTHS | MASKS,   CELLS,         NO_BIAS | NO_STATE,
                              NO_TAPE | LENGTHS, MASKS | CELLS, NO_DY | MASKS | CELLS, NO_DSTATE | LENGTHS};
enum { OPTION_COUNT = sizeof OPTIONS / sizeof *OPTIONS };

typedef struct net {
    frnn_spec spec;
    char name[160]; /* for messages */
    int64_t G, H, P, tracks, parameters;
    array params[MOST_PARAMS], dparams[MOST_PARAMS];
    array lengths, x, h0, c0, masks, y, hn, cn, cells, tape, dy, dhn, dcn, dx, dh0, dc0;
    const void *param_table[MOST_PARAMS];
    void *dparam_table[MOST_PARAMS];
    frnn_call call;
    frnn_grads grads;
    frnn_weights *weights;
    frnn_plan *plan;
} net;

/* The next number in [0, 2^31) of a generator that is the same everywhere. */
static int64_t next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)(*seed >> 33);
}

static double get(const net *n, array a, int64_t i)
{
    return n->spec.real_size == 4 ? ((const float *)a.data)[i] : ((const double *)a.data)[i];
}

static void set(const net *n, array a, int64_t i, double value)
{
    if (n->spec.real_size == 4)
        ((float *)a.data)[i] = (float)value;
    else
        ((double *)a.data)[i] = value;
}

static void fill_random(const net *n, array a, double scale, uint64_t *seed)
{
    for (int64_t i = 0; i < a.n; i++)
        set(n, a, i, scale * (double)(next_random(seed) % 2049 - 1024) / 1024);
}

static void fill_nan(const net *n, array a)
{
    if (a.data)
        memset(a.data, 0xff, (size_t)(a.n * n->spec.real_size));
}

static array array_of(const net *n, int wanted, int64_t count)
{
    if (!wanted)
        return (array){0};
    array a = {malloc((size_t)(count * n->spec.real_size)), count};
    CHECK(a.data, "no memory for the test");
    fill_nan(n, a);
    return a;
}

/* Gates that the cell has, and peepholes. */
static int64_t gates_of(const frnn_spec *s)
{
    return s->kind == FRNN_KIND_RNN ? 1 : s->kind == FRNN_KIND_GRU || s->forget != FRNN_FORGET_GATE ? 3 : 4;
}

/* A spec with torch's activations. */
static frnn_spec spec_of(int kind, int real_size, int64_t I, int64_t H, int64_t L, int64_t D)
{
    frnn_spec s = {.real_size = real_size, .kind = kind};
    s.input_size = I, s.hidden_size = H, s.num_layers = L, s.num_directions = D;
    for (int i = 0; i < 3; i++)
        s.activation[i] = kind == FRNN_KIND_RNN || i > 0 ? FRNN_TANH : FRNN_SIGMOID;
    return s;
}

static void net_name(net *n, const char *isa, int options)
{
    const frnn_spec *s = &n->spec;
    const int cell = snprintf(n->name, sizeof n->name,
                              "%s f%d kind %d forget %d peephole %d reset %d update %d act %d %d %d clip %g",
                              isa ? isa : "best", 8 * s->real_size, s->kind, s->forget, s->peephole, s->reset,
                              s->update, s->activation[0], s->activation[1], s->activation[2], s->clip);
    snprintf(n->name + cell, sizeof n->name - (size_t)cell, " T%d B%d I%d H%d P%d L%d D%d options %d", (int)n->call.T,
             (int)n->call.B, (int)s->input_size, (int)s->hidden_size, (int)s->proj_size, (int)s->num_layers,
             (int)s->num_directions, options);
}

/* The arrays, with what a call reads filled in. */
static void net_arrays(net *n, int options)
{
    const frnn_spec *s = &n->spec;
    const int lstm = s->kind == FRNN_KIND_LSTM, state = !(options & NO_STATE), dstate = !(options & NO_DSTATE);
    const int64_t H = n->H, P = n->P, D = s->num_directions, TB = n->call.T * n->call.B, B = n->call.B;
    uint64_t seed = 1;
    for (int64_t k = 0; k < n->tracks; k++) {
        const int64_t I = k < D ? s->input_size : D * P, G = n->G;
        const int64_t sizes[PER_TRACK] = {G * H * I, G * H * P, G * H, G * H, P * H, (G - 1) * H};
        const int there[PER_TRACK] = {1, 1, !(options & NO_BIAS), !(options & NO_BIAS), s->proj_size > 0,
                                      s->peephole == FRNN_PEEPHOLE_DIAGONAL};
        for (int i = 0; i < PER_TRACK; i++) {
            const int64_t at = k * PER_TRACK + i;
            n->params[at] = array_of(n, there[i], sizes[i]);
            n->dparams[at] = array_of(n, there[i], sizes[i]);
            fill_random(n, n->params[at], 1 / sqrt((double)H), &seed);
            n->param_table[at] = n->params[at].data;
            n->dparam_table[at] = n->dparams[at].data;
        }
    }
    n->x = array_of(n, 1, TB * s->input_size);
    n->h0 = array_of(n, state, n->tracks * B * P);
    n->c0 = array_of(n, state && lstm, n->tracks * B * H);
    n->masks = array_of(n, (options & MASKS) && s->num_layers > 1, (s->num_layers - 1) * TB * D * P);
    n->y = array_of(n, 1, TB * D * P);
    n->hn = array_of(n, 1, n->tracks * B * P);
    n->cn = array_of(n, lstm, n->tracks * B * H);
    n->cells = array_of(n, lstm && (options & CELLS), TB * D * H);
    n->dy = array_of(n, !(options & NO_DY), TB * D * P);
    n->dhn = array_of(n, dstate, n->tracks * B * P);
    n->dcn = array_of(n, dstate && lstm, n->tracks * B * H);
    n->dx = array_of(n, 1, TB * s->input_size);
    n->dh0 = array_of(n, 1, n->tracks * B * P);
    n->dc0 = array_of(n, lstm, n->tracks * B * H);
    const array given[] = {n->x, n->h0, n->c0, n->dy, n->dhn, n->dcn};
    for (unsigned i = 0; i < sizeof given / sizeof *given; i++)
        fill_random(n, given[i], 1, &seed);
    for (int64_t i = 0; i < n->masks.n; i++)
        set(n, n->masks, i, next_random(&seed) % 3 ? 1.5 : 0);
    if (options & LENGTHS) {
        int64_t *const lengths = malloc((size_t)B * sizeof *lengths);
        CHECK(lengths, "no memory for the test");
        for (int64_t b = 0; b < B; b++)
            lengths[b] = b == 1 ? n->call.T : next_random(&seed) % (n->call.T + 1);
        n->lengths = (array){lengths, B};
    }
}

/* Everything but the weights and the plan. isa: for messages. */
static void net_begin(net *n, const frnn_spec *spec, const char *isa, int64_t T, int64_t B, int options)
{
    *n = (net){.spec = *spec, .call = {.T = T, .B = B}};
    n->G = gates_of(spec);
    n->H = spec->hidden_size;
    n->P = spec->proj_size ? spec->proj_size : n->H;
    n->tracks = spec->num_layers * spec->num_directions;
    n->parameters = PER_TRACK * n->tracks;
    CHECK(n->parameters <= MOST_PARAMS, "too many layers for the test");
    net_name(n, isa, options);
    net_arrays(n, options);
    n->call = (frnn_call){.T = T, .B = B, .lengths = n->lengths.data, .x = n->x.data,
                          .h0 = n->h0.data, .c0 = n->c0.data, .masks = n->masks.data, .y = n->y.data,
                          .hn = n->hn.data, .cn = n->cn.data, .cells = n->cells.data};
    n->grads = (frnn_grads){.dy = n->dy.data, .dhn = n->dhn.data, .dcn = n->dcn.data, .dx = n->dx.data,
                            .dh0 = n->dh0.data, .dc0 = n->dc0.data, .params = n->dparam_table};
}

static void net_new(net *n, const frnn_spec *spec, const char *isa, int64_t T, int64_t B, int options)
{
    net_begin(n, spec, isa, T, B, options);
    int code = frnn_weights_new(spec, isa, &n->weights);
    CHECK(!code, "%s: %s", n->name, frnn_error(code));
    code = frnn_weights_pack(n->weights, n->param_table, !(options & NO_TAPE));
    CHECK(!code, "%s: %s", n->name, frnn_error(code));
    code = frnn_plan_new(n->weights, &n->plan);
    CHECK(!code, "%s: %s", n->name, frnn_error(code));
    if (!(options & NO_TAPE)) {
        const int64_t bytes = frnn_tape_bytes(n->weights, &n->call);
        CHECK(bytes >= 0, "%s: %s", n->name, frnn_error((int)-bytes));
        n->tape = array_of(n, 1, bytes / spec->real_size + 1);
        n->call.tape = n->tape.data;
    }
}

static void net_free(net *n)
{
    frnn_plan_free(n->plan);
    frnn_weights_free(n->weights);
    array *const all[] = {&n->lengths, &n->x, &n->h0, &n->c0, &n->masks, &n->y, &n->hn, &n->cn, &n->cells, &n->tape,
                          &n->dy, &n->dhn, &n->dcn, &n->dx, &n->dh0, &n->dc0};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]->data);
    for (int64_t i = 0; i < n->parameters; i++) {
        free(n->params[i].data);
        free(n->dparams[i].data);
    }
}

/* Run forward, over whatever is in its outputs. */
static void net_forward(net *n)
{
    const array written[] = {n->y, n->hn, n->cn, n->cells, n->tape};
    for (unsigned i = 0; i < sizeof written / sizeof *written; i++)
        fill_nan(n, written[i]);
    const int code = frnn_forward(n->plan, &n->call);
    CHECK(!code, "%s: %s", n->name, frnn_error(code));
}

/* Run backward. The gradients of the parameters are added to ones. */
static void net_backward(net *n)
{
    const array written[] = {n->dx, n->dh0, n->dc0};
    for (unsigned i = 0; i < sizeof written / sizeof *written; i++)
        fill_nan(n, written[i]);
    for (int64_t i = 0; i < n->parameters; i++)
        for (int64_t j = 0; j < n->dparams[i].n; j++)
            set(n, n->dparams[i], j, 1);
    const int code = frnn_backward(n->plan, &n->call, &n->grads);
    CHECK(!code, "%s: %s", n->name, frnn_error(code));
}

enum { OUTPUTS = 4, RESULTS = 7 };

/* What forward and backward wrote: y hn cn cells, dx dh0 dc0, then the gradients of the parameters. */
static array net_result(const net *n, int64_t i)
{
    const array all[RESULTS] = {n->y, n->hn, n->cn, n->cells, n->dx, n->dh0, n->dc0};
    return i < RESULTS ? all[i] : n->dparams[i - RESULTS];
}

/* How many of them there are. */
static int64_t results_of(const net *n) { return n->tape.data ? RESULTS + n->parameters : OUTPUTS; }

static const char *result_name(int64_t i)
{
    static const char *const names[RESULTS] = {"y", "hn", "cn", "cells", "dx", "dh0", "dc0"};
    static const char *const params[PER_TRACK] = {"dweight_ih", "dweight_hh", "dbias_ih",
                                                  "dbias_hh",   "dweight_hr", "dweight_ch"};
    return i < RESULTS ? names[i] : params[(i - RESULTS) % PER_TRACK];
}

/* The results of two nets are the same within so many roundings of the largest in each array. */
static void check_close(const net *one, const net *other, double roundings)
{
    const double eps = one->spec.real_size == 4 ? 0x1p-24 : 0x1p-53;
    for (int64_t i = 0; i < results_of(one); i++) {
        const array a = net_result(one, i), b = net_result(other, i);
        double scale = 1;
        for (int64_t j = 0; j < b.n; j++)
            scale = fmax(scale, fabs(get(other, b, j)));
        for (int64_t j = 0; j < a.n; j++) {
            const double u = get(one, a, j), v = get(other, b, j);
            CHECK(fabs(u - v) <= roundings * eps * scale, "%s: %s[%d] (%d): %.17g and %.17g, off by %.3g roundings",
                  one->name, result_name(i), (int)j, (int)i, u, v, fabs(u - v) / eps / scale);
        }
    }
}

/* frnn_multiply of sizes M, N, K and any strides against a plain loop. c: [M, N], if not NULL, is given the result. */
static void check_multiply(const char *isa, int real_size, const int64_t size[3], int a_turned, int b_turned, void *c)
{
    const int64_t M = size[0], N = size[1], K = size[2];
    const net n = {.spec.real_size = real_size}; /* for the type */
    const array a = array_of(&n, 1, M * K), b = array_of(&n, 1, K * N);
    const array start = array_of(&n, 1, M * N), sum = array_of(&n, 1, M * N);
    const int64_t a_row = a_turned ? 1 : K, a_column = a_turned ? M : 1;
    const int64_t b_row = b_turned ? 1 : N, b_column = b_turned ? K : 1;
    uint64_t seed = 2;
    fill_random(&n, a, 1, &seed);
    fill_random(&n, b, 1, &seed);
    fill_random(&n, start, 1, &seed);
    memcpy(sum.data, start.data, (size_t)(M * N * real_size));
    const int code = frnn_multiply(real_size, isa, M, N, K, a.data, a_row, a_column, b.data, b_row, b_column, sum.data);
    CHECK(!code, "%s", frnn_error(code));
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) {
            double wanted = get(&n, start, i * N + j);
            for (int64_t k = 0; k < K; k++)
                wanted += get(&n, a, i * a_row + k * a_column) * get(&n, b, k * b_row + j * b_column);
            const double given = get(&n, sum, i * N + j), eps = real_size == 4 ? 0x1p-24 : 0x1p-53;
            CHECK(fabs(given - wanted) <= (double)(K + 2) * (double)(K + 1) * eps,
                  "%s f%d [%d, %d, %d] %d %d: c[%d, %d] is %.17g, not %.17g", isa, 8 * real_size, (int)M, (int)N,
                  (int)K, a_turned, b_turned, (int)i, (int)j, given, wanted);
        }
    if (c)
        memcpy(c, sum.data, (size_t)(M * N * real_size));
    free(a.data);
    free(b.data);
    free(sum.data);
    free(start.data);
}

/* Rows and columns off the lane width and the tiles' height, none and one, and past the blocks of 256 terms and 512
 * columns. */
static const int64_t PRODUCTS[][3] = {{1, 1, 1},  {3, 5, 7},    {16, 16, 16}, {17, 33, 15}, {0, 3, 4},
                                      {4, 0, 3},  {3, 4, 0},    {1, 70, 300}, {70, 1, 257}, {5, 530, 9},
                                      {31, 65, 40}, {130, 129, 20}};
enum { PRODUCT_COUNT = sizeof PRODUCTS / sizeof *PRODUCTS };

/* The i-th of the cells that the core runs, in sizes I, H, L, D and with P where the cell may have a projection; 0 past
 * the last. Every value of every option is there, each activation in every role. */
static int variant(int i, int real_size, int64_t I, int64_t H, int64_t P, int64_t L, int64_t D, frnn_spec *out)
{
    enum { ACTIVATIONS = FRNN_SOFTPLUS + 1, LSTMS = 18, GRUS = 4 };
    static const double alpha[ACTIVATIONS] = {0, 0, 0, 0.8, 0.1, 0.05, 0.9, 0.3, 0.7, 0, 0};
    static const double beta[ACTIVATIONS] = {0, 0, 0, 0.1, 0, 0, 0.8, 0.4, 0, 0, 0};
    const int kinds[3] = {FRNN_KIND_RNN, FRNN_KIND_LSTM, FRNN_KIND_GRU};
    if (i < 3 * ACTIVATIONS) { /* activations, every other one with a bound on its input */
        *out = spec_of(kinds[i / ACTIVATIONS], real_size, I, H, L, D);
        for (int role = 0; role < 3; role++) {
            const int f = out->activation[role] = (i + role) % ACTIVATIONS;
            out->alpha[role] = alpha[f];
            out->beta[role] = beta[f];
        }
        out->clip = i % 2 ? 0.5 : 0;
        return 1;
    }
    i -= 3 * ACTIVATIONS;
    if (i < LSTMS) { /* three ways to forget, three kinds of peepholes, with a projection and without */
        *out = spec_of(FRNN_KIND_LSTM, real_size, I, H, L, D);
        out->forget = i % 3;
        out->peephole = i / 3 % 3;
        out->proj_size = i < 9 || out->peephole == FRNN_PEEPHOLE_CELL ? 0 : P;
        return 1;
    }
    i -= LSTMS;
    *out = spec_of(FRNN_KIND_GRU, real_size, I, H, L, D);
    out->reset = i & 1;
    out->update = i >> 1 & 1;
    return i < GRUS;
}

#endif
