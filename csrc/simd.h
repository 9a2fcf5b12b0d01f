/* The vector vocabulary: one set of names for every instruction set and both types.
 *
 * A kernel body is written once on `real`, `vec`, LANES and the v_ functions below, and compiled for each
 * instruction set by a file of a few lines (avx2.c, ...), which defines FRNN_ISA_*, and FRNN_DOUBLE for
 * float64. Arithmetic is the compiler's own on vector types (a * b + c rounds twice: only v_fma fuses, the
 * build says -ffp-contract=off). Nothing here knows of networks. Next: activation.h, product.h.
 */
#ifndef FRNN_SIMD_H
#define FRNN_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "control.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

#ifdef FRNN_DOUBLE
typedef double real;
typedef int64_t bits_t;
#define PER_TYPE(f32, f64) f64
#else
typedef float real;
typedef int32_t bits_t;
#define PER_TYPE(f32, f64) f32
#endif

/* ACCUMULATORS: how many of the vector registers a product may sum in, leaving room for its operands. */
#if defined(FRNN_ISA_AVX512)
#include <immintrin.h>
#define FRNN_ISA_NAME "avx512"
#define VEC_BYTES 64
#define ACCUMULATORS 24
#define V_ZIP PER_TYPE(ZIP16, ZIP8)
#define V_OP(op) PER_TYPE(_mm512_##op##_ps, _mm512_##op##_pd)
#elif defined(FRNN_ISA_AVX2)
#include <immintrin.h>
#define FRNN_ISA_NAME "avx2"
#define VEC_BYTES 32
#define ACCUMULATORS 12
#define V_ZIP PER_TYPE(ZIP8, ZIP4)
#define V_OP(op) PER_TYPE(_mm256_##op##_ps, _mm256_##op##_pd)
#elif defined(FRNN_ISA_NEON)
#include <arm_neon.h>
#define FRNN_ISA_NAME "neon"
#define VEC_BYTES 16
#define ACCUMULATORS 24
#define V_ZIP PER_TYPE(ZIP4, ZIP2)
#define V_OP(op) PER_TYPE(v##op##q_f32, v##op##q_f64)
#else
#define FRNN_ISA_NAME "generic"
#define VEC_BYTES 16
#define ACCUMULATORS 12
#define V_ZIP PER_TYPE(ZIP4, ZIP2)
#endif

#define LANES ((int)(VEC_BYTES / sizeof(real)))

typedef real vec __attribute__((vector_size(VEC_BYTES)));
typedef bits_t bits __attribute__((vector_size(VEC_BYTES)));
typedef vec vec_unaligned __attribute__((aligned(sizeof(real))));

INLINE vec v_load(const real *p) { return *(const vec_unaligned *)p; }
INLINE void v_store(real *p, vec a) { *(vec_unaligned *)p = a; }

/* The first n lanes only, 0 <= n <= LANES; the others load as zero. */
#if defined(FRNN_ISA_AVX512) && !defined(__SANITIZE_ADDRESS__) /* which does not look at masks */
#define V_MASK(n) ((PER_TYPE(__mmask16, __mmask8))((1u << (n)) - 1))
INLINE vec v_load_n(const real *p, int n) {
    if (n == LANES) return v_load(p);
    return V_OP(maskz_loadu)(V_MASK(n), p);
}
INLINE void v_store_n(real *p, vec a, int n) {
    if (n == LANES) v_store(p, a);
    else V_OP(mask_storeu)(p, V_MASK(n), a);
}
#else
INLINE vec v_load_n(const real *p, int n) {
    if (n == LANES) return v_load(p);
    vec a = {0};
    memcpy(&a, p, (size_t)n * sizeof(real));
    return a;
}
INLINE void v_store_n(real *p, vec a, int n) {
    if (n == LANES) v_store(p, a);
    else memcpy(p, &a, (size_t)n * sizeof(real));
}
#endif

/* Ask for n reals, which are then on their way to a cache. */
enum { CACHE_LINE = 64 / (int)sizeof(real) };
INLINE void fetch(const real *p, int64_t n) {
    for (int64_t i = 0; i < n; i += CACHE_LINE) __builtin_prefetch(p + i);
}

/* a * b + c and c - a * b, rounded once wherever the machine can; min and max that return b where it is NaN; the root. */
#if defined(FRNN_ISA_AVX512) || defined(FRNN_ISA_AVX2)
INLINE vec v_set1(real a) { return V_OP(set1)(a); }
INLINE vec v_fma(vec a, vec b, vec c) { return V_OP(fmadd)(a, b, c); }
INLINE vec v_fnma(vec a, vec b, vec c) { return V_OP(fnmadd)(a, b, c); }
INLINE vec v_min(vec a, vec b) { return V_OP(min)(a, b); }
INLINE vec v_max(vec a, vec b) { return V_OP(max)(a, b); }
INLINE vec v_sqrt(vec a) { return V_OP(sqrt)(a); }
#elif defined(FRNN_ISA_NEON)
INLINE vec v_set1(real a) { return PER_TYPE(vdupq_n_f32, vdupq_n_f64)(a); }
INLINE vec v_fma(vec a, vec b, vec c) { return V_OP(fma)(c, a, b); }
INLINE vec v_fnma(vec a, vec b, vec c) { return V_OP(fms)(c, a, b); }
INLINE vec v_min(vec a, vec b) { return V_OP(min)(a, b); }
INLINE vec v_max(vec a, vec b) { return V_OP(max)(a, b); }
INLINE vec v_sqrt(vec a) { return V_OP(sqrt)(a); }
#else
INLINE vec v_set1(real a) { return a - (vec){0}; }
INLINE vec v_fma(vec a, vec b, vec c) { return a * b + c; }
INLINE vec v_fnma(vec a, vec b, vec c) { return c - a * b; }
INLINE vec v_pick(bits mask, vec a, vec b) { return (vec)(((bits)a & mask) | ((bits)b & ~mask)); }
INLINE vec v_min(vec a, vec b) { return v_pick(a < b, a, b); }
INLINE vec v_max(vec a, vec b) { return v_pick(a > b, a, b); }
INLINE vec v_sqrt(vec a) {
    UNROLL for (int i = 0; i < LANES; i++) a[i] = PER_TYPE(__builtin_sqrtf, __builtin_sqrt)(a[i]);
    return a;
}
#endif

INLINE vec v_zero(void) { return (vec){0}; }

/* sum += a b, in the very register where sum is, with b in one too, or read from memory by the multiply-add itself. Left to
 * choose between these forms, GCC moves sums about and loads what is used a few times each time. */
#if (defined(FRNN_ISA_AVX512) || defined(FRNN_ISA_AVX2)) && !defined(__SANITIZE_ADDRESS__) /* which does not look into asm */
#define V_ADD_PRODUCT "vfmadd231" PER_TYPE("ps", "pd") " %2, %1, %0"
INLINE void v_add_product(vec *sum, vec a, vec b) { __asm__(V_ADD_PRODUCT : "+v"(*sum) : "v"(a), "v"(b)); }
INLINE void v_add_product_at(vec *sum, vec a, const real *b) {
    __asm__(V_ADD_PRODUCT : "+v"(*sum) : "v"(a), "m"(*(const vec_unaligned *)b));
}
#else
INLINE void v_add_product(vec *sum, vec a, vec b) { *sum = v_fma(a, b, *sum); }
INLINE void v_add_product_at(vec *sum, vec a, const real *b) { *sum = v_fma(a, v_load(b), *sum); }
#endif

/* The same with a number a for all lanes, which is used once: an AVX-512 multiply-add reads it by itself, and to load it apart
 * takes a Zen 4 half as long again. */
#if defined(FRNN_ISA_AVX512) && !defined(__SANITIZE_ADDRESS__)
INLINE void v_add_scaled(vec *sum, const real *a, vec b) {
    __asm__("vfmadd231" PER_TYPE("ps %2%{1to16%}", "pd %2%{1to8%}") ", %1, %0" : "+v"(*sum) : "v"(b), "m"(*a));
}
#else
INLINE void v_add_scaled(vec *sum, const real *a, vec b) { v_add_product(sum, v_set1(*a), b); }
#endif

/* a where the mask's lanes are all ones, b where they are zero. */
INLINE vec v_select(bits mask, vec a, vec b) { return (vec)(((bits)a & mask) | ((bits)b & ~mask)); }
INLINE vec v_abs(vec a) {
    const bits_t sign = (bits_t)PER_TYPE(0x7fffffff, 0x7fffffffffffffff);
    return (vec)((bits)a & (sign - (bits){0}));
}

/* Lanes of a and of b by turns, from the first on or from the middle. */
#define ZIP2(i) (i), (i) + LANES
#define ZIP4(i) ZIP2(i), ZIP2((i) + 1)
#define ZIP8(i) ZIP4(i), ZIP4((i) + 2)
#define ZIP16(i) ZIP8(i), ZIP8((i) + 4)
#if defined(__clang__)
#define V_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define V_PICK(a, b, ...) __builtin_shuffle(a, b, (bits){__VA_ARGS__})
#endif
INLINE vec v_zip_low(vec a, vec b) { return V_PICK(a, b, V_ZIP(0)); }
INLINE vec v_zip_high(vec a, vec b) { return V_PICK(a, b, V_ZIP(LANES / 2)); }

/* A square of LANES vectors: each time that the upper half is dealt out among the lower one, an index's first bit becomes
 * its last. */
INLINE void v_transpose(vec *a) {
    UNROLL for (int bit = 1; bit < LANES; bit *= 2) {
        vec b[LANES];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            b[2 * i] = v_zip_low(a[i], a[i + LANES / 2]);
            b[2 * i + 1] = v_zip_high(a[i], a[i + LANES / 2]);
        }
        UNROLL for (int i = 0; i < LANES; i++) a[i] = b[i];
    }
}

/* All ones in the first n lanes. */
INLINE bits v_first(int n) {
    bits mask = {0};
    for (int i = 0; i < LANES; i++) mask[i] = i < n ? -1 : 0;
    return mask;
}

/* Subnormal numbers make some steps twenty times slower and mean nothing here: flush them to zero
 * while a kernel runs. v_flush_on returns what v_flush_restore needs, which on x86 brings the exception flags back too: the
 * kernels' own underflows are nobody's business. */
INLINE uint64_t v_flush_on(void) {
    const uint64_t before = frnn_control();
    frnn_set_control(before | FRNN_FLUSH);
    return before;
}
INLINE void v_flush_restore(uint64_t before) { frnn_set_control(before); }

#endif
