/* Prints what csrc/cpu.c finds out, for tests/test_build.py to hold against what the operating system says.
 *
 *     test_cpu [root]    root stands before /proc: a made-up machine's files
 */
#include "cpu.h"

#include <stdio.h>

int main(int argc, char **argv)
{
    char name[64];
    int64_t caches[3];
    unsigned features = frnn_cpu_features();
    frnn_cpu_name(name);
    frnn_cpu_caches(caches);
    printf("name %s\n", name);
    printf("caches %lld %lld %lld\n", (long long)caches[0], (long long)caches[1], (long long)caches[2]);
    printf("features%s%s%s\n", features & FRNN_CPU_AVX2 ? " avx2" : "", features & FRNN_CPU_AVX512 ? " avx512" : "",
           features & FRNN_CPU_NEON ? " neon" : "");
    printf("count %d\n", frnn_cpu_count(argc > 1 ? argv[1] : ""));
    return 0;
}
