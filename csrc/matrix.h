/* A plain matrix product on the same tiles, for the layers around the recurrent ones.
 *
 * It is here so that a model need not leave this library's threads between two layers: a second team, as a BLAS has,
 * goes on spinning for a while where the first wants to work. c += a b by blocks of GRAD_ROWS terms, each output
 * one chain of multiply-adds over k; threads share rows or columns of c.
 */
#ifndef FRNN_MATRIX_H
#define FRNN_MATRIX_H

#include "gradient.h"

/* Pack LANES lanes of a matrix, of which the first `lanes` are there, as [depth][ld]: its numbers stand `lane` reals from one lane
 * to the next and `line` from one line to the next. Lanes that lie along the depth go by squares, transposed in registers. */
static void pack_lines(const real *from, int64_t lane, int64_t line, int lanes, int64_t depth, real *to, int64_t ld) {
    if (lane == 1)
        for (int64_t d = 0; d < depth; d++) v_store(to + d * ld, v_load_n(from + d * line, lanes));
    else if (line == 1)
        for (int64_t d = 0; d < depth; d += LANES) {
            const int n = lanes_left(depth, d);
            vec square[LANES];
            UNROLL for (int i = 0; i < LANES; i++) square[i] = i < lanes ? v_load_n(from + i * lane + d, n) : v_zero();
            v_transpose(square);
            for (int i = 0; i < n; i++) v_store(to + (d + i) * ld, square[i]);
        }
    else
        for (int64_t d = 0; d < depth; d++)
            for (int i = 0; i < LANES; i++) to[d * ld + i] = i < lanes ? from[d * line + i * lane] : 0;
}

/* Rows [k0, k0 + depth) and columns [n0, n0 + width) of b: packed into lines of whole vectors, or in place, where they are read
 * but once and whole vectors are there. */
static lines right_lines(const frnn_matrices *m, int64_t k0, int64_t depth, int64_t n0, int64_t width, real *right) {
    if (m->M <= LANES && m->b_column == 1 && width % LANES == 0)
        return (lines){(real *)m->b + k0 * m->b_row + n0, m->b_row, GROUP};
    const lines packed = packed_lines(right, width);
    for (int64_t q = 0; q < width; q += LANES)
        pack_lines((const real *)m->b + k0 * m->b_row + (n0 + q) * m->b_column, m->b_column, m->b_row, lanes_left(width, q), depth,
                   line_at(packed, 0, q), packed.ld);
    return packed;
}

/* A thread's part of c: [M, N] += a: [M, K] b: [K, N]. */
static void multiply(void *arg, int rank, int size) {
    const frnn_matrices *m = arg;
    const uint64_t flush = v_flush_on();
    scratch mine = {.z = m->scratch[rank]};
    mine.left = mine.z + TILE_VECS * LANES;
    mine.right = mine.left + GRAD_ROWS * LANES;
    const int by_rows = (m->M + LANES - 1) / LANES >= (m->N + LANES - 1) / LANES;
    const span rows = part_of(m->M, by_rows ? rank : 0, by_rows ? size : 1);
    const span columns = part_of(m->N, by_rows ? 0 : rank, by_rows ? 1 : size);
    const int64_t most = grad_columns(m->l2);
    const int64_t pieces = (m->K + GRAD_ROWS - 1) / GRAD_ROWS;
    for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t k0 = m->K * piece / pieces, depth = m->K * (piece + 1) / pieces - k0;
        for (int64_t c0 = columns.start; c0 < columns.end; c0 += most) {
            const int64_t width = least(most, columns.end - c0);
            const lines right = right_lines(m, k0, depth, c0, width, mine.right);
            for (int64_t i = rows.start; i < rows.end; i += LANES) {
                const int64_t height = least(LANES, rows.end - i);
                pack_lines((const real *)m->a + i * m->a_row + k0 * m->a_column, m->a_row, m->a_column, (int)height, depth,
                           mine.left, LANES);
                add_group(&mine, right, depth, height, width, (real *)m->c + i * m->N + c0, m->N);
            }
        }
    }
    v_flush_restore(flush);
}

#endif
