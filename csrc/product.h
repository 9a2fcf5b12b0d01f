/* The one matrix product: a tile of rows times panels of packed weights, each output a chain of FMAs over k.
 *
 * Everything goes through `tile`: projections of the input, recurrent steps, their transposes, weight gradients.
 * Because an output's terms are added one after the other in the order of k, starting from what `in` holds, its
 * bits depend neither on the tile it falls in, nor on the other rows, nor on how the chain is cut into calls.
 * Several outputs at once hide the FMA's latency; at one row these are the gates of several panels.
 * Next: sequence.h.
 */
#ifndef FRNN_PRODUCT_H
#define FRNN_PRODUCT_H

#include "simd.h"

/* The terms that a loop over them takes at once: its own instructions are then few among the multiply-adds, which tells where
 * a core's other thread, a neighbour's on a virtual machine, has half of what it can issue. Not where the compiler would take more
 * registers for it than there are. */
#if defined(__SANITIZE_ADDRESS__) && !defined(TERMS)
#define TERMS 1 /* to check all four would take the compiler minutes */
#endif
#ifndef TERMS
#define TERMS (VEC_BYTES >= 32 ? 4 : 1)
#endif

/* What a tile asks for while it sums, for the next panel's to find it in L2: with every TERMS terms some lines, the first at
 * `at`, `apart` bytes from one to the next, then those `pace` bytes further on. */
typedef struct ahead {
    const char *at;
    int64_t pace, apart;
} ahead;

/* How many lines: so many that this number of tiles gets through a panel like their own. */
INLINE int lines_asked(int vectors, int tiles) { return (TERMS * vectors * VEC_BYTES + 64 * tiles - 1) / (64 * tiles); }

/* The next ones of them. */
INLINE void ask_lines(const int lines, const ahead *next, const char **ask) {
    UNROLL for (int i = 0; i < lines; i++) __builtin_prefetch(*ask + i * next->apart, 0, 2);
    *ask += next->pace;
}

/* Rows of a tile's start or end: vector v of panel q of row m stands at row[m] + at + v * plane + q * LANES. */
typedef struct edge {
    real *const *row;
    int64_t at, plane;
    const ahead *next; /* of a start: what to ask for, where tiles do */
} edge;

/* What a tile sums over: of row m the K terms from row[m] + at on, then those of `then`, where there is one. */
typedef struct terms {
    const real *const *row;
    int64_t at, K;
    const struct terms *then;
} terms;

/* A term of all sums, of which a row has `planes` for each panel: a[m][k] w[q][v]. A tile of rows loads its vectors once; but one may
 * be an operand in memory, which takes an instruction less, if they are `packed`, so that none lies across two lines, and that
 * leaves the loads fewer than the multiply-adds. At one row all are. */
INLINE void add_term(const int rows, const int packed, const int panels, const int vecs, const int planes, const real *const *row,
                     int64_t k, const real *w, int64_t panel, vec *sum) {
    const int loaded = panels * vecs, in_memory = packed && loaded - 1 + 2 * rows < rows * loaded;
    const int held = rows == 1 ? 0 : loaded - in_memory;
    vec f[16];
    UNROLL for (int j = 0; j < held; j++) f[j] = v_load(w + j / vecs * panel + j % vecs * LANES);
    UNROLL for (int m = 0; m < rows; m++, sum += panels * planes) {
        if (held == 1 && loaded == 1) {
            v_add_scaled(sum, row[m] + k, f[0]);
            continue;
        }
        const vec b = v_set1(row[m][k]);
        UNROLL for (int j = 0; j < loaded; j++) {
            const int to = j / vecs * planes + j % vecs;
            if (j < held) v_add_product(&sum[to], b, f[j]);
            else v_add_product_at(&sum[to], b, w + j / vecs * panel + j % vecs * LANES);
        }
    }
}

/* The first K terms of a source: where their weights end. */
INLINE const real *add_terms(const int rows, const int asking, const int panels, const int vecs, const int planes, const int64_t step,
                             const terms *a, int64_t K, const real *w, int64_t line, int64_t panel, const ahead *next, const char **ask,
                             vec *sum) {
    const int packed = step == 1; /* else weight gradients' operands, which may be a caller's rows */
    const real *row[8];
    UNROLL for (int m = 0; m < rows; m++) row[m] = a->row[m] + a->at;
    int64_t k = 0;
    for (; rows > 1 && k + TERMS <= K; k += TERMS, w += TERMS * line) {
        if (asking) ask_lines(lines_asked(panels * vecs, asking), next, ask);
        UNROLL for (int i = 0; i < TERMS; i++) add_term(rows, packed, panels, vecs, planes, row, (k + i) * step, w + i * line, panel, sum);
    }
    for (; k < K; k++, w += line) add_term(rows, packed, panels, vecs, planes, row, k * step, w, panel, sum);
    return w;
}

/* Whether the upper half of a tile's rows takes its last LATE terms, and is stored, before the lower half does. A core's queue may
 * have no room for all stores at once, where 64 bytes take two places and its other thread half of them, and behind stores that
 * wait nothing comes in: neither what follows the tile nor the next one's multiply-adds. */
enum { LATE = 8 };
#ifndef STORES_AT_ONCE
#define STORES_AT_ONCE (VEC_BYTES == 64 ? 18 : 32)
#endif
INLINE int by_halves(int rows, int sums, int64_t step) { return step == 1 && rows > 1 && rows * sums > STORES_AT_ONCE; }

/* out[m][q][v] = in[m][q][v] + sum_k a[m][k * step] w[q][k][v] over the terms k of all of a's sources, where the vectors v of one
 * k stand side by side, those of the next k `line` reals behind, those of the next q `panel`. asking: 0, or by how many tiles the
 * next panel is asked for. offset: 0, or 1 where a panel has one more vector of sums than of weights, and the second of two
 * sources adds to those from the second on: a GRU's input feeds n r z, its state r z q. */
INLINE void tile(const int rows, const int asking, const int panels, const int vecs, const int offset, const int64_t step, const terms *a,
                 const real *w, int64_t line, int64_t panel, const edge *in, const edge *out) {
    const int planes = vecs + offset, sums = panels * planes;
    vec sum[32];
    const char *ask = asking ? in->next->at : NULL;
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int q = 0; q < panels; q++)
            UNROLL for (int v = 0; v < planes; v++)
                sum[m * sums + q * planes + v] = v_load(in->row[m] + in->at + v * in->plane + q * LANES);
    const int halves = by_halves(rows, sums, step), most = halves ? (rows + 1) / 2 : rows;
    if (offset) {
        w = add_terms(rows, asking, panels, vecs, planes, step, a, a->K, w, line, panel, in->next, &ask, sum);
        a = a->then;
    }
    int64_t late;
    for (;; a = a->then) {
        late = halves && !a->then && a->K >= LATE ? LATE : 0;
        w = add_terms(rows, asking, panels, vecs, planes, step, a, a->K - late, w, line, panel, in->next, &ask, sum + offset);
        if (!a->then) break;
    }
    UNROLL for (int m0 = 0; m0 < rows; m0 += most) {
        const int some = rows - m0 < most ? rows - m0 : most;
        if (late) {
            const real *row[8];
            UNROLL for (int m = 0; m < some; m++) row[m] = a->row[m0 + m] + a->at + a->K - LATE;
            UNROLL for (int k = 0; k < LATE; k++) {
                if (asking && m0 == 0 && k % TERMS == 0) ask_lines(lines_asked(panels * vecs, asking), in->next, &ask);
                add_term(some, 1, panels, vecs, planes, row, k, w + k * line, panel, sum + m0 * sums + offset);
            }
        }
        UNROLL for (int m = m0; m < m0 + some; m++)
            UNROLL for (int q = 0; q < panels; q++)
                UNROLL for (int v = 0; v < planes; v++)
                    v_store(out->row[m] + out->at + v * out->plane + q * LANES, sum[m * sums + q * planes + v]);
        if (halves) __asm__ volatile("" ::: "memory"); /* or the compiler would store all at the end again */
    }
}

/* apart: from one panel to the next; for weight gradients, whose panels stand side by side, from one line to the next. */
typedef void (*tile_fn)(const terms *a, const real *w, int64_t apart, const edge *in, const edge *out);

/* One function for each number of rows; those whose sums would not fit the registers are empty, and never asked for. */
#define TILE(name, rows, asking, panels, vecs, offset, step, line, panel)                                      \
    static void name##_##rows(const terms *a, const real *w, int64_t apart, const edge *in, const edge *out) { \
        if ((rows) * (panels) * ((vecs) + (offset)) <= ACCUMULATORS || (rows) == 1)                            \
            tile(rows, asking, panels, vecs, offset, step, a, w, line, panel, in, out);                        \
    }
#define TILES(name, ...)                                                                                       \
    TILE(name, 1, __VA_ARGS__) TILE(name, 2, __VA_ARGS__) TILE(name, 3, __VA_ARGS__) TILE(name, 4, __VA_ARGS__) \
    TILE(name, 5, __VA_ARGS__) TILE(name, 6, __VA_ARGS__) TILE(name, 7, __VA_ARGS__) TILE(name, 8, __VA_ARGS__) \
    static const tile_fn name[9] = {0, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8};

TILES(tile_1x4, 0, 1, 4, 0, 1, 4 * LANES, apart)
TILES(tile_1x3, 0, 1, 3, 0, 1, 3 * LANES, apart)
TILES(tile_1x2, 0, 1, 2, 0, 1, 2 * LANES, apart)
TILES(tile_1x1, 0, 1, 1, 0, 1, LANES, apart)
TILES(gru_1x3, 0, 1, 3, 1, 1, 3 * LANES, apart)
TILES(tile_2x1, 0, 2, 1, 0, 1, LANES, apart)
TILES(tile_3x1, 0, 3, 1, 0, 1, LANES, apart)
TILES(tile_4x1, 0, 4, 1, 0, 1, LANES, apart)
TILES(ask2_1x4, 2, 1, 4, 0, 1, 4 * LANES, apart)
TILES(ask2_1x3, 2, 1, 3, 0, 1, 3 * LANES, apart)
TILES(ask2_4x1, 2, 4, 1, 0, 1, LANES, apart)
TILES(ask4_1x4, 4, 1, 4, 0, 1, 4 * LANES, apart)
TILES(ask4_1x3, 4, 1, 3, 0, 1, 3 * LANES, apart)
TILES(ask4_4x1, 4, 4, 1, 0, 1, LANES, apart)
TILES(ask8_1x4, 8, 1, 4, 0, 1, 4 * LANES, apart)
TILES(ask8_1x3, 8, 1, 3, 0, 1, 3 * LANES, apart)
TILES(ask8_4x1, 8, 4, 1, 0, 1, LANES, apart)
TILES(grad_1x1, 0, 1, 1, 0, LANES, apart, LANES)
TILES(grad_2x1, 0, 2, 1, 0, LANES, apart, LANES)
TILES(grad_3x1, 0, 3, 1, 0, LANES, apart, LANES)
TILES(grad_4x1, 0, 4, 1, 0, LANES, apart, LANES)
TILE(tile_8x1, 1, 0, 8, 1, 0, 1, LANES, apart)
TILE(tile_2x2, 1, 0, 2, 2, 0, 1, 2 * LANES, apart)
TILE(tile_2x3, 1, 0, 2, 3, 0, 1, 3 * LANES, apart)
TILE(tile_2x4, 1, 0, 2, 4, 0, 1, 4 * LANES, apart)
TILE(gru_2x3, 1, 0, 2, 3, 1, 1, 3 * LANES, apart)
TILE(gru_4x3, 1, 0, 4, 3, 1, 1, 3 * LANES, apart)
TILE(tile_4x4, 1, 0, 4, 4, 0, 1, 4 * LANES, apart)
TILE(tile_4x3, 1, 0, 4, 3, 0, 1, 3 * LANES, apart)
TILE(tile_4x2, 1, 0, 4, 2, 0, 1, 2 * LANES, apart)

/* A shape of tile: how many panels at once, the most rows, and the functions for each number of rows; the same asking ahead
 * as one of 2, 4 or 8 tiles at least, or NULL. */
typedef struct shape {
    int panels, most;
    const tile_fn *fn, *const *asking;
} shape;

#define MOST_ROWS(vectors) (ACCUMULATORS / (vectors) < 8 ? ACCUMULATORS / (vectors) : 8)

/* The shape for `rows` rows and `panels` panels of `vecs` vectors, with as many sums, or one more. */
INLINE shape shape_of(int vecs, int offset, int64_t rows, int64_t panels) {
    static const tile_fn *const single[5] = {NULL, tile_1x1, tile_1x2, tile_1x3, tile_1x4};
    static const tile_fn *const asking[5][3] = {
        {NULL}, {ask2_4x1, ask4_4x1, ask8_4x1}, {NULL}, {ask2_1x3, ask4_1x3, ask8_1x3}, {ask2_1x4, ask4_1x4, ask8_1x4}};
    static const tile_fn *const several[5] = {NULL, tile_1x1, tile_2x1, tile_3x1, tile_4x1};
    static const tile_fn two[5][2] = {{0}, {0}, {0, tile_2x2_1}, {0, tile_2x3_1}, {0, tile_2x4_1}};
    static const tile_fn four[5][2] = {{0}, {0}, {0, tile_4x2_1}, {0, tile_4x3_1}, {0, tile_4x4_1}};
    if (offset) {
        static const tile_fn two_of_gru[2] = {0, gru_2x3_1}, four_of_gru[2] = {0, gru_4x3_1};
        if (rows == 1 && panels >= 4 && ACCUMULATORS >= 16) return (shape){4, 1, four_of_gru, NULL};
        if (rows == 1 && panels >= 2) return (shape){2, 1, two_of_gru, NULL};
        return (shape){1, MOST_ROWS(vecs + 1), gru_1x3, NULL};
    }
    if (vecs == 1) {
        static const tile_fn eight[2] = {0, tile_8x1_1};
        if (rows == 1 && panels >= 8 && ACCUMULATORS == 12) return (shape){8, 1, eight, NULL};
        const int n = panels < 4 ? (int)panels : 4;
        return (shape){n, MOST_ROWS(n), several[n], n == 4 ? asking[1] : NULL};
    }
    if (rows == 1 && panels >= 2) {
        /* An LSTM's last four go two at a time: where they are all, half of them is then still in L1 at the next step. */
        if (panels >= 4 && (vecs < 4 || (panels > 4 && ACCUMULATORS >= 16))) return (shape){4, 1, four[vecs], NULL};
        return (shape){2, 1, two[vecs], NULL};
    }
    return (shape){1, MOST_ROWS(vecs), single[vecs], vecs > 2 ? asking[vecs] : NULL};
}

/* The rows of the next tile: `left` rows go into the fewest tiles, of nearly the same height. */
INLINE int tile_rows(int64_t left, int most) {
    if (left <= most) return (int)left;
    if (left >= 4 * most) return most; /* the last few share what is then left */
    const unsigned rows = (unsigned)left, tiles = (rows + (unsigned)most - 1) / (unsigned)most;
    return (int)((rows + tiles - 1) / tiles);
}

/* The tiles of a panel that are to ask for the next one: how many, with which functions, and what; each asks for `part` bytes
 * from every place where it begins. */
typedef struct askers {
    const tile_fn *fn;
    int64_t tiles, part;
    ahead next;
} askers;

/* Those of `rows` rows and K terms, the next panel being at w. A single one cannot. */
INLINE askers ask_for(const shape *form, int vecs, int64_t rows, int64_t K, const real *w) {
    const int64_t tiles = (rows + form->most - 1) / form->most, times = K / TERMS;
    if (!form->asking || tiles < 2 || times == 0) return (askers){0};
    const int as = tiles < 4 ? 0 : tiles < 8 ? 1 : 2, by = 2 << as;
    const int64_t bytes = K * form->panels * vecs * VEC_BYTES / lines_asked(form->panels * vecs, by);
    const int64_t pace = (bytes + times * by - 1) / (times * by), part = times * pace;
    return (askers){form->asking[as], by, part, {(const char *)w - part, pace, bytes}};
}

/* The function for the panel's next tile. */
INLINE tile_fn tile_of(const shape *form, askers *ask, int rows) {
    if (ask->tiles == 0) return form->fn[rows];
    ask->tiles--;
    ask->next.at += ask->part;
    return ask->fn[rows];
}

/* Packing of units [p0, p1) * LANES: `to` gets their panels [K][vecs][LANES] of src[v][unit * K + k], `panel` reals apart, zero
 * past the last unit, and `back`, where it is not NULL, their rows of the transpose's panels [K / LANES][vecs][depth][LANES]. By squares
 * that are read once for both, some cache lines of a row after one another, since rows may be pages apart; the row's next
 * ones are then on their way. */
enum { PACK_AT_ONCE = 4 * CACHE_LINE };
INLINE void pack_panels(real *to, int64_t panel, real *back, const real *const *src, int vecs, int64_t K, int64_t units,
                        int64_t depth, int64_t p0, int64_t p1) {
    for (int64_t unit = p0 * LANES; unit < p1 * LANES; unit += LANES)
        for (int64_t k0 = 0; k0 < K; k0 += PACK_AT_ONCE)
            for (int v = 0; v < vecs; v++)
                for (int64_t k = k0; k < K && k < k0 + PACK_AT_ONCE; k += LANES) {
                    const int n = K - k < LANES ? (int)(K - k) : LANES, rows = units - unit < LANES ? (int)(units - unit) : LANES;
                    const real *from = src[v] + unit * K + k;
                    vec square[LANES];
                    UNROLL for (int j = 0; j < LANES; j++) {
                        square[j] = j < rows ? v_load_n(from + j * K, n) : v_zero();
                        __builtin_prefetch(from + j * K + PACK_AT_ONCE);
                    }
                    for (int j = 0; back && j < LANES && unit + j < depth; j++)
                        v_store(back + ((k / LANES * vecs + v) * depth + unit + j) * LANES, square[j]);
                    v_transpose(square);
                    for (int j = 0; j < n; j++) v_store(to + unit / LANES * panel + ((k + j) * vecs + v) * LANES, square[j]);
                }
}

#endif
