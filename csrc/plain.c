/* What surrounds the recurrent layers, checked and shared among the team: a product, a softmax, an optimiser's step.
 * No arithmetic on data: matrix.h, softmax.h and update.h do that. */
#include "arena.h"
#include "core.h"
#include "cost.h"
#include "machine.h"

int frnn_multiply(int real_size, const char *isa, int64_t M, int64_t N, int64_t K, const void *a, int64_t a_row,
                  int64_t a_column, const void *b, int64_t b_row, int64_t b_column, void *c) {
    const frnn_kernels *kernels = NULL;
    const int code = frnn_find_kernels(real_size, isa, &kernels);
    if (code) return code;
    if (M < 0 || N < 0 || K < 0) return FRNN_ERROR_SIZE;
    if (M == 0 || N == 0 || K == 0) return FRNN_OK;
    if (!a || !b || !c) return FRNN_ERROR_NULL;
    frnn_matrices job = {.l2 = frnn_this_machine()->l2, .M = M, .N = N, .K = K, .a = a, .b = b, .a_row = a_row, .a_column = a_column,
                         .b_row = b_row, .b_column = b_column, .c = c};
    const double ns = multiply_ns((double)M * (double)N * (double)K, kernels->lanes, real_size);
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
    const int code = frnn_find_kernels(real_size, isa, &kernels);
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
    const int code = frnn_find_kernels(real_size, isa, &kernels);
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
    const int code = frnn_find_kernels(real_size, isa, out);
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

int frnn_rmsprop(int real_size, const char *isa, const frnn_rmsprop_step *step) {
    const frnn_kernels *kernels = NULL;
    if (!step) return FRNN_ERROR_NULL;
    const int code = check_sweep(real_size, isa, step->n, step->w && step->g && step->v, &kernels);
    if (!code) sweep(kernels->rmsprop, step, step->n, 5 + 2 * (step->mean != NULL) + 2 * (step->b != NULL), real_size);
    return code;
}

int frnn_adam(int real_size, const char *isa, const frnn_adam_step *step) {
    const frnn_kernels *kernels = NULL;
    if (!step) return FRNN_ERROR_NULL;
    const int code = check_sweep(real_size, isa, step->n, step->w && step->g && step->m && step->v, &kernels);
    if (!code) sweep(kernels->adam, step, step->n, step->peak ? 9 : 7, real_size);
    return code;
}
