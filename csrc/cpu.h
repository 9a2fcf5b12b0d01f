/* What this machine offers: instruction sets, processors, caches, a name. The name and the caches are in fastrnn.h.
 * It says what is there; what to make of it is machine.c's and threads.c's to decide. Next: cpu.c. */
#ifndef FRNN_CPU_H
#define FRNN_CPU_H

#include "fastrnn.h"

enum {
    FRNN_CPU_AVX2 = 1,   /* AVX2 and FMA */
    FRNN_CPU_AVX512 = 2, /* AVX-512 F, DQ, BW and VL, and AVX2 and FMA too */
    FRNN_CPU_NEON = 4
};

/* The instruction sets that the CPU has and whose registers the operating system saves. */
unsigned frnn_cpu_features(void);

/* The processors that this process may keep busy: those of its main thread's affinity mask, or fewer where the CPU quota of its
 * control group, or of one above it, allows less; a part of one counts as one. At least 1. root stands before
 * /proc: "" for this machine's. */
int frnn_cpu_count(const char *root);

#endif
