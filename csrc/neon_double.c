/* The kernels for AArch64 Advanced SIMD, float64. */
#define FRNN_DOUBLE
#include "neon.c"
