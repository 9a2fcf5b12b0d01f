/* fastrnn: recurrent networks on CPUs. The public C interface; cffi reads this very file as the binding.
 *
 * Words: T steps, B batch, I input size, H hidden size, P projected size (P = H without projection), L layers,
 * D directions. Arrays are row-major, time first; all of them are of the type the spec names, and float32 and
 * float64 alike are passed as void *. Parameters have torch's shapes and gate order. Every function that can fail
 * returns a code (0 is success) which frnn_error() turns into a sentence. Next: weights.c, plan.c.
 *
 * A program: fill a frnn_spec; frnn_weights_new, frnn_weights_pack; frnn_plan_new; frnn_forward as often as wanted.
 * Weights may be shared by plans. A call on a plan that is busy with another gets a workspace of its own for the time.
 */
#ifndef FASTRNN_H
#define FASTRNN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cdef: begin */
enum {
    FRNN_OK = 0,
    FRNN_ERROR_MEMORY = 1,      /* a buffer could not be allocated */
    FRNN_ERROR_SPEC = 2,        /* the spec holds a value that does not exist, or a size below its least */
    FRNN_ERROR_UNSUPPORTED = 3, /* a cell that these kernels do not run: full-matrix peepholes, or cell ones and a projection */
    FRNN_ERROR_ISA = 4,         /* an instruction set that is unknown, not built or not on this CPU */
    FRNN_ERROR_SIZE = 5,        /* negative T or B, sizes whose product does not fit in memory */
    FRNN_ERROR_LENGTH = 6,      /* a length below 0 or above T */
    FRNN_ERROR_NULL = 7,        /* a pointer that must not be NULL */
    FRNN_ERROR_UNPACKED = 8,    /* weights used before they were packed, or packed without their transposes */
    FRNN_ERROR_ROOM = 9         /* a stream that has no room for another y */
};

enum { FRNN_KIND_RNN = 0, FRNN_KIND_LSTM = 1, FRNN_KIND_GRU = 2 };
enum { FRNN_FORGET_GATE = 0, FRNN_FORGET_NONE = 1, FRNN_FORGET_COUPLED = 2 };
enum { FRNN_PEEPHOLE_NONE = 0, FRNN_PEEPHOLE_DIAGONAL = 1, FRNN_PEEPHOLE_CELL = 2, FRNN_PEEPHOLE_FULL = 3 };
enum { FRNN_RESET_AFTER = 0, FRNN_RESET_BEFORE = 1 };
enum { FRNN_UPDATE_KEEP = 0, FRNN_UPDATE_WRITE = 1 };
enum {
    FRNN_SIGMOID = 0, FRNN_TANH = 1, FRNN_RELU = 2, FRNN_AFFINE = 3, FRNN_LEAKY_RELU = 4,
    FRNN_THRESHOLDED_RELU = 5, FRNN_SCALED_TANH = 6, FRNN_HARD_SIGMOID = 7, FRNN_ELU = 8,
    FRNN_SOFTSIGN = 9, FRNN_SOFTPLUS = 10
};

/* A cell with its sizes. */
typedef struct frnn_spec {
    int real_size;           /* 4: float32, 8: float64 */
    int kind, forget, peephole, reset, update;
    int activation[3];       /* RNN: hidden; LSTM: gate, candidate, output; GRU: gate, candidate */
    double alpha[3], beta[3];
    double clip;             /* bound on the inputs of the gates' activations; 0: none */
    int64_t input_size, hidden_size, proj_size, num_layers, num_directions;
} frnn_spec;

/* The arrays of one call. NULL where a comment says so. */
typedef struct frnn_call {
    int64_t T, B;
    const int64_t *lengths;  /* [B], or NULL: every row takes T steps */
    const void *x;           /* [T, B, I] */
    const void *h0, *c0;     /* [L*D, B, P] and [L*D, B, H], or NULL: zeros */
    const void *masks;       /* [L-1, T, B, D*P] dropout between layers, or NULL */
    void *y;                 /* [T, B, D*P] */
    void *hn, *cn;           /* as h0 and c0, which they may be; c only for LSTM */
    void *cells;             /* [T, B, D*H] c at every step of the last layer, or NULL */
    void *tape;              /* frnn_tape_bytes() bytes for backward to read, or NULL */
    int sharded;             /* how the tape's rows stand, which forward says here */
} frnn_call;

/* The gradients of one call. Its T, B, lengths, x, masks, tape and sharded must be those of the forward call; what its other
 * pointers point to is not read. */
typedef struct frnn_grads {
    const void *dy;          /* as y, or NULL: zeros */
    const void *dhn, *dcn;   /* as hn and cn, or NULL: zeros */
    void *dx;                /* as x, or NULL: not wanted */
    void *dh0, *dc0;         /* as h0 and c0 */
    void *const *params;     /* as for frnn_weights_pack, no array twice; added to */
} frnn_grads;

/* A step of gradient descent for n parameters w with the gradient g: b = momentum b + fresh (g + decay w), w -= lr b, or with
 * nesterov lr (g + decay w + momentum b). */
typedef struct frnn_sgd_step {
    int64_t n;
    void *w, *b;  /* b NULL: without momentum */
    const void *g;
    double lr, momentum, fresh, decay;
    int nesterov;
} frnn_sgd_step;

/* A step of Adam: w *= shrink, g += decay w, m and v the running means of g and g^2, w -= rate m / (sqrt(v) + eps). */
typedef struct frnn_adam_step {
    int64_t n;
    void *w, *m, *v, *peak;  /* peak, the greatest v so far, which then takes its place, or NULL */
    const void *g;
    double b1, b2, rate, eps, shrink, decay;
} frnn_adam_step;

/* A step of RMSprop: g += decay w, v and mean the running means of g^2 and g; the change is g / (sqrt(v - mean^2) + eps), with
 * momentum b = momentum b + that; w -= lr times it. */
typedef struct frnn_rmsprop_step {
    int64_t n;
    void *w, *v, *mean, *b;  /* mean NULL: not centered; b NULL: without momentum */
    const void *g;
    double lr, alpha, eps, momentum, decay;
} frnn_rmsprop_step;

/* Where the tape that forward has written keeps a layer and direction's sequences: offsets in reals, rows padded to `ld`
 * reals. One shard of the batch comes after the other: shard i of n has rows B i / n to B (i + 1) / n of it, or with
 * lengths, of rows from the longest to the shortest and otherwise in order, the i-th and every n-th after it. */
typedef struct frnn_tape_view {
    int64_t shards;
    int64_t gates, gates_ld, plane;  /* [rows, planes, plane]: activated gates; GRU: n r z and W_hn h + b_hn or r h */
    int64_t h, h_ld;                 /* [B + rows, h_ld] */
    int64_t c, c_ld;                 /* [B + rows, c_ld], LSTM */
} frnn_tape_view;

typedef struct frnn_weights frnn_weights;
typedef struct frnn_plan frnn_plan;

/* A call that is made again and again, with another x and y each time. Where hn and cn are h0 and c0, the state moves on. */
typedef struct frnn_stream {
    frnn_plan *plan;
    const frnn_call *call; /* its x and y are not read */
    void *y;               /* [room, T, B, D*P] */
    int64_t room, next;    /* the first of them that no call has taken */
} frnn_stream;

const char *frnn_error(int code);

/* Instruction sets in order of preference: the name of the i-th, or NULL past the last; whether this CPU has it. */
const char *frnn_isa_name(int i);
int frnn_isa_usable(int i);
void frnn_cpu_name(char out[64]);
void frnn_cpu_caches(int64_t out[3]);

/* Packed weights for an instruction set (NULL: the best there is). params: six pointers for each layer and direction,
 * weight_ih [G*H, I], weight_hh [G*H, P], bias_ih [G*H], bias_hh [G*H], weight_hr [P, H], weight_ch [k*H], NULL where
 * the cell has none. backward: whether to pack the transposes too. */
int frnn_weights_new(const frnn_spec *spec, const char *isa, frnn_weights **out);
int frnn_weights_pack(frnn_weights *weights, const void *const *params, int backward);
int64_t frnn_weights_bytes(const frnn_weights *weights);
void frnn_weights_free(frnn_weights *weights);

/* A plan holds a workspace, which grows to the largest call's need. The weights must outlive it. */
int frnn_plan_new(const frnn_weights *weights, frnn_plan **out);
void frnn_plan_free(frnn_plan *plan);
int64_t frnn_plan_bytes(const frnn_plan *plan);

int64_t frnn_tape_bytes(const frnn_weights *weights, const frnn_call *call); /* < 0: minus an error code */
int frnn_tape_layout(const frnn_weights *weights, const frnn_call *call, int64_t k, frnn_tape_view *out);

int frnn_forward(frnn_plan *plan, frnn_call *call);

/* frnn_forward of a call with these arrays and no others. */
int frnn_infer(frnn_plan *plan, int64_t T, int64_t B, const void *x, const void *h0, const void *c0, void *y, void *hn,
               void *cn);
int frnn_backward(frnn_plan *plan, const frnn_call *call, const frnn_grads *grads);

/* frnn_forward of the stream's call with that x, and for its y the next of the stream's: which of these, or minus an error
 * code, -FRNN_ERROR_ROOM where none is left. */
int64_t frnn_step(frnn_stream *stream, const void *x);

/* c: [M, N] += a: [M, K] b: [K, N], by the instruction set named, or the best. The rows of c are contiguous; a's
 * element (i, k) stands at a[i * a_row + k * a_column], b's (k, j) likewise, strides in elements. */
int frnn_multiply(int real_size, const char *isa, int64_t M, int64_t N, int64_t K, const void *a, int64_t a_row,
                  int64_t a_column, const void *b, int64_t b_row, int64_t b_column, void *c);

/* softmax over rows of n numbers x: [rows, n], by the instruction set named, or the best: peak [rows], their maximum, and sum
 * [rows], of exp(x - peak); then, with any factor [rows] such as 1 / sum, out: [rows, n] = exp(x - peak) * factor. */
int frnn_softmax_sums(int real_size, const char *isa, int64_t rows, int64_t n, const void *x, void *peak, void *sum);
int frnn_scaled_exponentials(int real_size, const char *isa, int64_t rows, int64_t n, const void *x, const void *peak,
                             const void *factor, void *out);

/* After a backward pass, on the team, by the instruction set named, or the best: of n numbers x the sum of squares, of each
 * FRNN_SQUARES of them; x times a factor; an optimiser's steps. */
enum { FRNN_SQUARES = 16384 };
int frnn_sums_of_squares(int real_size, const char *isa, int64_t n, const void *x, double *sums);
int frnn_scale(int real_size, const char *isa, int64_t n, void *x, double factor);
int frnn_sgd(int real_size, const char *isa, const frnn_sgd_step *step);
int frnn_rmsprop(int real_size, const char *isa, const frnn_rmsprop_step *step);
int frnn_adam(int real_size, const char *isa, const frnn_adam_step *step);

/* The team of threads that calls share: its size, and the most that this process may use. */
int frnn_set_threads(int n);
int frnn_get_threads(void);
int frnn_team_limit(void);
/* cdef: end */

#ifdef __cplusplus
}
#endif

#endif
