/* A thread's floating-point control word: how it rounds, what it traps, whether it flushes subnormal numbers to zero. Where the
 * machine's is not known here it is 0, and setting it does nothing. */
#ifndef FRNN_CONTROL_H
#define FRNN_CONTROL_H

#include <stdint.h>

#if defined(__x86_64__) || defined(__SSE__)
#include <xmmintrin.h>
enum { FRNN_FLUSH = 0x8040 }; /* FTZ, DAZ */
static inline uint64_t frnn_control(void) { return _mm_getcsr(); }
static inline void frnn_set_control(uint64_t word) { _mm_setcsr((unsigned)word); }
#elif defined(__aarch64__)
enum { FRNN_FLUSH = 1 << 24 };
static inline uint64_t frnn_control(void) {
    uint64_t word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
}
static inline void frnn_set_control(uint64_t word) { __asm__ volatile("msr fpcr, %0" : : "r"(word)); }
#else
enum { FRNN_FLUSH = 0 };
static inline uint64_t frnn_control(void) { return 0; }
static inline void frnn_set_control(uint64_t word) { (void)word; }
#endif

#endif
