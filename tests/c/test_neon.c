/* The NEON kernels against the generic ones: every cell the core runs, forward and backward, both types.
 *
 * For AArch64, or for an emulator of it. What the generic kernels compute is tests/test_backends.py's to judge; the
 * two differ by how they round products (NEON fuses them) and add sums up. Ends with "ok". Next: net.h.
 */
#include "net.h"

/* Off the lane width by one on either side, at it, and well above; one and none. */
static const struct {
    int64_t T, B, I, H, P, L, D;
} SIZES[] = {
    {3, 3, 5, 7, 3, 2, 2},    {6, 2, 1, 4, 2, 3, 1},    {1, 1, 0, 1, 0, 1, 1},
    {5, 5, 9, 17, 16, 1, 2},  {2, 20, 33, 33, 5, 2, 1}, {0, 2, 3, 5, 2, 2, 2},
};
enum { SIZE_COUNT = sizeof SIZES / sizeof *SIZES };

static void compare(const frnn_spec *spec, int64_t T, int64_t B, int options)
{
    net neon, generic;
    net_new(&neon, spec, "neon", T, B, options);
    net_new(&generic, spec, "generic", T, B, options);
    net_forward(&neon);
    net_forward(&generic);
    if (neon.tape.data) {
        net_backward(&neon);
        net_backward(&generic);
    }
    check_close(&neon, &generic, 64); /* roundings: five times what was measured */
    net_free(&neon);
    net_free(&generic);
}

int main(void)
{
    frnn_spec spec;
    int compared = 0;
    for (int i = 0; variant(i, 4, 1, 2, 1, 1, 1, &spec); i++)
        for (int at = 0; at < SIZE_COUNT; at++)
            for (int real_size = 4; real_size <= 8; real_size += 4, compared++) {
                variant(i, real_size, SIZES[at].I, SIZES[at].H, SIZES[at].P, SIZES[at].L, SIZES[at].D, &spec);
                compare(&spec, SIZES[at].T, SIZES[at].B, OPTIONS[(i + at) % OPTION_COUNT]);
            }
    for (int i = 0; i < PRODUCT_COUNT; i++)
        for (int turned = 0; turned < 4; turned++)
            for (int real_size = 4; real_size <= 8; real_size += 4, compared++)
                check_multiply("neon", real_size, PRODUCTS[i], turned & 1, turned >> 1, NULL);
    printf("ok %d\n", compared);
    return 0;
}
