/* What the plans and the kernels agree on: packed weights, one call's buffers, the table of an instruction set.
 *
 * Nothing here depends on an instruction set but for `lanes`, the reals in a vector. Buffers are `void *`: the
 * kernels know whether they hold float or double. Sizes ending in p are padded up to whole vectors.
 *
 * A *track* is one layer in one direction. Its steps are numbered in the order they run; rows of the batch are
 * sorted by length, longest first, so the rows that take step s are the first active(s), and the pair (step, row)
 * has the packed number first(s) + row. A gates row holds `planes` planes of Hp reals:
 *     RNN   a                     LSTM  the cell's gates: i f g o, i g o or f g o
 *     GRU   n r z q               with q = W_hn h + b_hn (reset after) or r h (reset before)
 * so that what the input feeds (GRU: n r z) and what the state feeds (GRU after: r z q) are each contiguous.
 */
#ifndef FRNN_CORE_H
#define FRNN_CORE_H

#include <stddef.h>
#include <stdint.h>

#include "fastrnn.h"
#include "threads.h"

typedef struct frnn_act {
    int code;
    int clipped; /* whether inputs are bounded to +-clip first */
    double alpha, beta, clip;
} frnn_act;

typedef struct frnn_track {
    int64_t I; /* the layer's input size */
    /* Panels [units / lanes][k][vectors][lanes]: for a vector of units, all their gates at each k. Where they are joinable, W_hh goes
     * on where each panel of W_ih ends. */
    void *wx, *wh;   /* W_ih and W_hh (GRU before: its r and z rows) */
    int64_t wx_panel, wh_panel; /* reals from one panel to the next */
    void *wn;        /* GRU before: the n rows of W_hh */
    void *wr;        /* projection */
    void *bx, *bq;   /* biases in planes: what joins the input's product; GRU after: b_hn, one plane on */
    void *eye;       /* diagonal peepholes in planes, zero where a gate has none: i f o */
    /* Transposes, for backward: panels [columns / lanes][planes * Hp][1][lanes]. */
    void *wxt, *wht, *wnt, *wrt;
} frnn_track;

struct frnn_kernels;

struct frnn_weights {
    frnn_spec spec;
    const struct frnn_kernels *kernels;
    int lanes;
    int64_t H, P; /* hidden and projected, which the recurrent product reads */
    int64_t Hp, Pp;
    int gates;   /* G */
    int planes;  /* of a gates row */
    int h_plane; /* the first plane that the recurrent product feeds */
    int h_vecs;  /* the planes it feeds */
    int plain;   /* the standard activations and no clip */
    int joinable; /* whether a step may make the input's product with its own: as many gates see x as see h, none c instead */
    int packed, packed_backward;
    frnn_act act[3];
    frnn_track *tracks; /* [L*D] */
    void *memory;
    size_t bytes;
};

/* One track's buffers in one call. */
typedef struct frnn_lane {
    const frnn_track *w;
    /* Without a tape, of each thread's rows in turn: gates of a chunk of steps, and two states, taken in turn. */
    void *gates; /* [rows, planes * Hp] */
    void *h;     /* taped: [B + rows, Pp], the initial state first; else two of [B, Pp] */
    void *c;     /* LSTM: the same with Hp */
    void *m;     /* projection: [rows or B, Hp] the output before it */
    void *dh;    /* projection, taped: [rows, Pp] dL/dh */
    const void *x; /* input rows of x_ld reals: by packed number where x_packed, else in the order [T, B] */
    int64_t x_ld;
    int x_packed, x_chunked, y_chunked; /* chunked: the rows of a chunk of steps or two only, of run->between */
    void *y; /* output rows [T, B] of y_ld reals, at this direction's columns, or NULL */
    int64_t y_ld;
    const void *mask; /* what y is multiplied by, laid out as y, or NULL */
    void *cells;      /* [T, B] rows of D*H reals, or NULL */
    const void *dy;   /* as y, or NULL */
    void *carry_h, *carry_c; /* backward: [B, Pp], [B, Hp] */
} frnn_lane;

enum { FRNN_MAX_GROUPS = 8 }; /* of threads, with layers, a direction or a shard of their own */

/* A small network is trained on parts of a batch that are runs by themselves, each with its part of the tape and its own
 * sums of weight gradients, which are added in the end. With more than two, a thread that takes several has low tiles. */
enum { FRNN_SHARDS = 2 };

/* One call, as the kernels see it. */
typedef struct frnn_run {
    const frnn_weights *weights;
    const frnn_call *call;
    const frnn_grads *grads;
    int64_t T, B, rows; /* rows: real steps, the sum of the lengths */
    int64_t batch, row0; /* the caller's B; without lengths, which of its rows is the first here */
    /* NULL without lengths; of sorted rows [B] which of the caller's each is, its length, and where its last step stands in the
     * caller's [T, B] rows; of steps, [T+1]. */
    const int64_t *perm, *length, *last, *active, *first;
    frnn_lane *lanes; /* [L*D] */
    int taped;
    int64_t chunk;       /* steps whose input product is made at once; that groups of layers hand over at once */
    int64_t most_rows;   /* chunk * B */
    int64_t between;     /* steps that a chunked buffer between layers holds: whole chunks */
    int64_t l1, l2;      /* bytes of a core's own caches */
    int fills;           /* whether a thread's weights fill L1: a call's sweeps then go on where the last call's ended */
    int last_first;      /* whether an RNN writes a tile's rows from the last to the first */
    int joint;           /* whether a step makes the input's product with its own; else that comes first, by chunks */
    int size, groups;    /* threads, and groups of them: 2 for two directions, or each some of the layers */
    int by_panel;        /* how a group shares a step: by panels of units or by rows */
    int shards;          /* parts of the batch, or 1, of which each sums its weight gradients by itself */
    int sharded;         /* whether each is a run by itself, and the tape theirs; else they are but for the sums */
    const struct frnn_run *shard; /* [shards], if so or in backward */
    int64_t shard_rows;  /* B of the largest */
    int index;           /* which of them this run is */
    int64_t layers[FRNN_MAX_GROUPS + 1]; /* one direction: group g runs the layers from layers[g] to layers[g + 1] */
    frnn_barrier *team, *group; /* of all, and [groups] */
    void *const *scratch; /* per thread */
    void *mid[2];         /* backward: gradients between layers, [T, B, D*P] */
} frnn_run;

/* The first thread of a group. */
static inline int frnn_group_start(int group, int groups, int size) { return (group * size + groups - 1) / groups; }

/* How many numbers the i-th of a track's six parameters has, where the cell has it. */
static inline int64_t frnn_parameter_size(const frnn_weights *w, int64_t track, int i) {
    const int64_t of_gates = w->gates * w->H;
    const int64_t sizes[] = {of_gates * w->tracks[track].I, of_gates * w->P, of_gates, of_gates, w->P * w->H, of_gates - w->H};
    return sizes[i];
}

/* Whether of a table of parameters, or of their gradients, all are there that may not be NULL: all but the biases. */
static inline int frnn_has_parameters(const frnn_weights *w, const void *const *params) {
    const frnn_spec *s = &w->spec;
    const int diagonal = s->peephole == FRNN_PEEPHOLE_DIAGONAL;
    for (int64_t k = 0; k < s->num_layers * s->num_directions; k++, params += 6)
        if (!params[0] || !params[1] || (s->proj_size && !params[4]) || (diagonal && !params[5])) return 0;
    return 1;
}

/* Whether groups of threads run layers at the same time. */
static inline int frnn_layered(const frnn_run *run) { return run->groups > 1 && run->weights->spec.num_directions == 1; }

/* Bytes between what different threads write to, but for a tape: hardware that reads ahead past the end of one thread's
 * memory takes lines from the other's core, but does not read past a page. */
enum { FRNN_APART = 4096 };

/* What a thread keeps from call to call, at the head of its scratch memory. */
typedef struct frnn_own {
    _Alignas(FRNN_CACHE_LINE) int64_t steps; /* since the plan was prepared, where weights fill L1, or 0: see sweeps_down */
} frnn_own;

/* What there is to pack: six pointers for each track, as in fastrnn.h. */
typedef struct frnn_packing {
    const frnn_weights *weights;
    const void *const *params;
    int backward;
} frnn_packing;

/* c: [M, N], rows contiguous, += a: [M, K] b: [K, N], whose elements lie at any strides, in reals. */
typedef struct frnn_matrices {
    int64_t M, N, K;
    const void *a, *b;
    int64_t a_row, a_column, b_row, b_column;
    void *c;
    int64_t l2; /* bytes of a core's own cache */
    void *scratch[FRNN_MAX_THREADS];
} frnn_matrices;

/* softmax(x) over rows of n numbers: of each its maximum and the sum of exp(x - maximum); or out = exp(x - peak) * factor. */
typedef struct frnn_softmax {
    int64_t rows, n;
    const void *x, *factor;
    void *peak, *sum, *out;
} frnn_softmax;

/* Of n numbers x the sum of squares, of each FRNN_SQUARES of them: sums [n / FRNN_SQUARES, rounded up]. */
typedef struct frnn_squares {
    int64_t n;
    const void *x;
    double *sums;
} frnn_squares;

/* n numbers x times a factor. */
typedef struct frnn_scaling {
    int64_t n;
    void *x;
    double factor;
} frnn_scaling;

/* The accelerated surface: one table per instruction set and type. */
typedef struct frnn_kernels {
    const char *name;
    int lanes;
    size_t (*scratch_bytes)(const frnn_run *);
    frnn_task pack;              /* of a frnn_packing */
    frnn_task forward, backward; /* of a frnn_run */
    size_t matrix_bytes;         /* of scratch, a thread */
    frnn_task multiply;          /* of frnn_matrices */
    frnn_task softmax_sums, scaled_exponentials; /* of frnn_softmax */
    frnn_task sums_of_squares;   /* of frnn_squares */
    frnn_task scale;             /* of frnn_scaling */
    frnn_task sgd, rmsprop, adam; /* of a frnn_sgd_step and so on */
} frnn_kernels;

/* Defined by the instruction sets' files. */
extern const frnn_kernels frnn_generic_float, frnn_generic_double;
extern const frnn_kernels frnn_avx2_float, frnn_avx2_double;
extern const frnn_kernels frnn_avx512_float, frnn_avx512_double;
extern const frnn_kernels frnn_neon_float, frnn_neon_double;

/* GRU planes. */
enum { PLANE_N = 0, PLANE_R = 1, PLANE_Z = 2, PLANE_Q = 3 };

#endif
