/* The kernels for AArch64 Advanced SIMD, float32. */
#define FRNN_ISA neon
#define FRNN_ISA_NEON
#include "kernels.h"
