/* The machine that this process runs on, looked up once: its caches, and the kernels for its best instruction set.
 * How it is looked up is cpu.c's. Next: machine.c. */
#ifndef FRNN_MACHINE_H
#define FRNN_MACHINE_H

#include "core.h"

typedef struct frnn_machine {
    unsigned features;  /* as in cpu.h */
    int64_t l1, l2, l3; /* bytes; where the system does not say, what many machines have */
} frnn_machine;

const frnn_machine *frnn_this_machine(void);

/* The kernels for reals of that size, by the instruction set's name, or the best there are; an error code. */
int frnn_find_kernels(int real_size, const char *isa, const frnn_kernels **out);

#endif
