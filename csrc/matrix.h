/* A plain matrix product on the same tiles, for the layers around the recurrent ones.
 *
 * It is here so that a model need not leave this library's threads between two layers: a second team, as a BLAS has,
 * goes on spinning for a while where the first wants to work. c += a b by blocks of GRAD_ROWS terms, each output
 * one chain of multiply-adds over k; threads share rows or columns of c.
 */
#ifndef FRNN_MATRIX_H
#define FRNN_MATRIX_H

#include "gradient.h"

/* Pack rows [k0, k0 + depth) and columns [n0, n0 + width) of b into lines of whole vectors, `right`. */
static lines pack_right(const frnn_matrices *m, int64_t k0, int64_t depth, int64_t n0, int64_t width, real *right) {
    const lines packed = packed_lines(right, width);
    for (int64_t q = 0; q < width; q += LANES) {
        const real *b = (const real *)m->b + k0 * m->b_row + (n0 + q) * m->b_column;
        const int n = lanes_left(width, q);
        if (m->b_column == 1)
            for (int64_t d = 0; d < depth; d++) v_store(line_at(packed, d, q), v_load_n(b + d * m->b_row, n));
        else
            for (int64_t d0 = 0; d0 < depth; d0 += LANES) /* by squares: a line of b is read once */
                for (int j = 0; j < LANES; j++)
                    for (int64_t d = d0; d < least(depth, d0 + LANES); d++)
                        *line_at(packed, d, q + j) = j < n ? b[d * m->b_row + j * m->b_column] : 0;
    }
    return packed;
}

/* Pack rows [m0, m0 + height) of a, LANES at most, as [depth][LANES]. */
static void pack_left(const frnn_matrices *m, int64_t m0, int64_t height, int64_t k0, int64_t depth, real *left) {
    const real *a = (const real *)m->a + m0 * m->a_row + k0 * m->a_column;
    if (m->a_row == 1)
        for (int64_t d = 0; d < depth; d++) v_store(left + d * LANES, v_load_n(a + d * m->a_column, (int)height));
    else
        for (int64_t i = 0; i < height; i++)
            for (int64_t d = 0; d < depth; d++) left[d * LANES + i] = a[i * m->a_row + d * m->a_column];
}

/* A thread's part of c: [M, N] += a: [M, K] b: [K, N]. */
static void multiply(void *arg, int rank, int size) {
    const frnn_matrices *m = arg;
    const uint64_t flush = v_flush_on();
    scratch mine = {.z = m->scratch[rank]};
    mine.left = mine.z + TILE_VECS * LANES;
    mine.right = mine.left + GRAD_ROWS * LANES;
    const int64_t row_groups = (m->M + LANES - 1) / LANES, column_groups = (m->N + LANES - 1) / LANES;
    const int by_rows = row_groups >= column_groups;
    const int64_t m0 = by_rows ? row_groups * rank / size * LANES : 0;
    const int64_t m1 = by_rows ? least(m->M, row_groups * (rank + 1) / size * LANES) : m->M;
    const int64_t n0 = by_rows ? 0 : column_groups * rank / size * LANES;
    const int64_t n1 = by_rows ? m->N : least(m->N, column_groups * (rank + 1) / size * LANES);
    const int64_t most = grad_columns(m->l2);
    for (int64_t k0 = 0; k0 < m->K; k0 += GRAD_ROWS) {
        const int64_t depth = least(GRAD_ROWS, m->K - k0);
        for (int64_t c0 = n0; c0 < n1; c0 += most) {
            const int64_t width = least(most, n1 - c0);
            const lines right = pack_right(m, k0, depth, c0, width, mine.right);
            for (int64_t i = m0; i < m1; i += LANES) {
                const int64_t height = least(LANES, m1 - i);
                pack_left(m, i, height, k0, depth, mine.left);
                add_group(&mine, right, depth, height, width, (real *)m->c + i * m->N + c0, m->N);
            }
        }
    }
    v_flush_restore(flush);
}

#endif
