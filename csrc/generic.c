/* The kernels for any CPU: 16-byte vectors, no fused multiply-add, float32. */
#define FRNN_ISA generic
#define FRNN_ISA_GENERIC
#include "kernels.h"
