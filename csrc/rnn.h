/* The vanilla RNN's pointwise part: h = f(a), a = W_ih x + b_ih + W_hh h + b_hh (Elman 1990).
 *
 * z: [rows, panels, LANES] holds a for rows r.. and units of panels p..; forward and backward are neighbours.
 */
#ifndef FRNN_RNN_H
#define FRNN_RNN_H

#include "activation.h"
#include "sequence.h"

static void rnn_forward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    for (int i = 0; i < rows; i++, r++)
        for (int q = 0; q < panels; q++, z += LANES) {
            const int64_t u = (p + q) * LANES;
            const vec h = k->w->plain ? v_tanh(v_load(z)) : act(&k->w->act[0], v_load(z));
            v_store(k->h_out + r * k->w->Pp + u, h);
            put_output(k, r, u, h);
        }
}

/* z: dL/dh through the next step, without dy. Leaves da in the gates row. */
static void rnn_backward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const frnn_weights *w = k->w;
    for (int i = 0; i < rows; i++, r++)
        for (int q = 0; q < panels; q++, z += LANES) {
            const int64_t u = (p + q) * LANES;
            const vec h = v_load(k->h_out + r * w->Pp + u);
            const vec dh = v_load(z) + get_output_grad(k, r, u);
            /* h = f(a) */
            const vec da = dh * (w->plain ? tanh_grad(h) : act_grad(&w->act[0], h));
            v_store(k->gates + r * k->ld + u, mask_units(da, lanes_left(w->H, u)));
            v_store((real *)k->lane->carry_h + r * w->Pp + u, v_zero());
        }
}

#endif
