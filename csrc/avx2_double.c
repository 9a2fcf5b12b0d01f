/* The kernels for AVX2 and FMA, float64. */
#define FRNN_DOUBLE
#include "avx2.c"
