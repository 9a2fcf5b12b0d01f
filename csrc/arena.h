/* One block of memory, handed out in aligned pieces: first to measure what is needed, then for good. */
#ifndef FRNN_ARENA_H
#define FRNN_ARENA_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

enum { ALIGNMENT = 128 }; /* bytes, at least a cache line and a vector */

/* With no block it only measures. Sizes that overflow make it fail. */
typedef struct arena {
    char *base;
    size_t used;
    int failed;
} arena;

static inline size_t multiply(arena *a, size_t x, size_t y) {
    size_t product;
    if (__builtin_mul_overflow(x, y, &product)) a->failed = 1, product = 0;
    return product;
}

/* count items of size bytes, or NULL while measuring. */
static inline void *take(arena *a, int64_t count, size_t size) {
    void *piece = a->base ? a->base + a->used : NULL;
    const size_t bytes = multiply(a, (size_t)count, size);
    if (__builtin_add_overflow(a->used, bytes, &a->used) || a->used > PTRDIFF_MAX - ALIGNMENT) a->failed = 1, a->used = 0;
    a->used = (a->used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return piece;
}

static inline void *allocate(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, ALIGNMENT, bytes ? bytes : ALIGNMENT) ? NULL : memory;
}

#endif
