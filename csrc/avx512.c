/* The kernels for AVX-512 F, DQ, BW and VL, float32. */
#define FRNN_ISA avx512
#define FRNN_ISA_AVX512
#include "kernels.h"
