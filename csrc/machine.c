/* Which kernels there are, in order of preference, and which of them this machine can run.
 * On a virtual machine each question to the CPU takes microseconds: all are asked once. Next: weights.c, who chooses. */
#include "machine.h"

#include <pthread.h>
#include <string.h>

#include "cpu.h"

static const struct {
    const frnn_kernels *of_float, *of_double;
    unsigned needs;
} ISAS[] = {
#ifdef FRNN_HAVE_AVX512
    {&frnn_avx512_float, &frnn_avx512_double, FRNN_CPU_AVX512},
#endif
#ifdef FRNN_HAVE_AVX2
    {&frnn_avx2_float, &frnn_avx2_double, FRNN_CPU_AVX2},
#endif
#ifdef FRNN_HAVE_NEON
    {&frnn_neon_float, &frnn_neon_double, FRNN_CPU_NEON},
#endif
    {&frnn_generic_float, &frnn_generic_double, 0},
};
enum { ISA_COUNT = sizeof ISAS / sizeof ISAS[0] };

static frnn_machine machine;

static void look_up(void) {
    int64_t caches[3];
    frnn_cpu_caches(caches);
    machine.features = frnn_cpu_features();
    machine.l1 = caches[0] > 0 ? caches[0] : 32 * 1024;
    machine.l2 = caches[1] > 0 ? caches[1] : 512 * 1024;
    machine.l3 = caches[2] > 0 ? caches[2] : 8 * 1024 * 1024;
}

const frnn_machine *frnn_this_machine(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, look_up);
    return &machine;
}

const char *frnn_isa_name(int i) { return i >= 0 && i < (int)ISA_COUNT ? ISAS[i].of_float->name : NULL; }

int frnn_isa_usable(int i) {
    return i >= 0 && i < (int)ISA_COUNT && (frnn_this_machine()->features & ISAS[i].needs) == ISAS[i].needs;
}

int frnn_find_kernels(int real_size, const char *isa, const frnn_kernels **out) {
    if (real_size != 4 && real_size != 8) return FRNN_ERROR_SPEC;
    for (int i = 0; i < (int)ISA_COUNT; i++)
        if (frnn_isa_usable(i) && (!isa || !strcmp(isa, frnn_isa_name(i)))) {
            *out = real_size == 4 ? ISAS[i].of_float : ISAS[i].of_double;
            return FRNN_OK;
        }
    return FRNN_ERROR_ISA;
}
