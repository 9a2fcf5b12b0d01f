/* The kernels for AVX-512 F, DQ, BW and VL, float64. */
#define FRNN_DOUBLE
#include "avx512.c"
