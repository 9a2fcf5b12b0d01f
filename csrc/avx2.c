/* The kernels for AVX2 and FMA, float32. */
#define FRNN_ISA avx2
#define FRNN_ISA_AVX2
#include "kernels.h"
