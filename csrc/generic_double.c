/* The kernels for any CPU: 16-byte vectors, no fused multiply-add, float64. */
#define FRNN_DOUBLE
#include "generic.c"
