/* The vanilla RNN's pointwise part: h = f(a), a = W_ih x + b_ih + W_hh h + b_hh (Elman 1990).
 *
 * z: [rows, panels, LANES] holds a for rows r.. and units of panels p..; forward and backward are neighbours.
 */
#ifndef FRNN_RNN_H
#define FRNN_RNN_H

#include "activation.h"
#include "sequence.h"

/* y: where the standard cell stores its outputs, or NULL: any cell, or rows that want looking after. */
INLINE void rnn_forward_as(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z, const block *y) {
    const int64_t Pp = k->w->Pp;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t u = p * LANES; u < (p + panels) * LANES; u += LANES, z += LANES) {
            const vec h = y || k->w->plain ? v_tanh(v_load(z)) : act(&k->w->act[0], v_load(z));
            v_store(k->h_out + (r + i) * Pp + u, h);
            if (y) v_store(y->row + i * y->ld + u, h);
            else put_output(k, r + i, u, h);
        }
}

static void rnn_forward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const block y = k->w->plain ? plain_output(k, r, p, panels) : (block){0};
    if (y.row) rnn_forward_as(k, r, rows, p, panels, z, &y);
    else rnn_forward_as(k, r, rows, p, panels, z, NULL);
}

/* z: dL/dh through the next step, without dy. Leaves da in the gates row. */
INLINE void rnn_backward_as(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z, const block *dy) {
    const frnn_weights *w = k->w;
    real *const carry_h = k->lane->carry_h;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t u = p * LANES; u < (p + panels) * LANES; u += LANES, z += LANES) {
            const vec h = v_load(k->h_out + (r + i) * w->Pp + u);
            const vec dh = v_load(z) + (dy ? v_load(dy->row + i * dy->ld + u) : get_output_grad(k, r + i, u));
            /* h = f(a) */
            const vec da = dh * (dy || w->plain ? tanh_grad(h) : act_grad(&w->act[0], h));
            v_store(k->gates + (r + i) * k->ld + u, dy ? da : mask_units(da, lanes_left(w->H, u)));
            v_store(carry_h + (r + i) * w->Pp + u, v_zero());
        }
}

static void rnn_backward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const block dy = k->w->plain ? plain_output_grad(k, r, p, panels) : (block){0};
    if (dy.row) rnn_backward_as(k, r, rows, p, panels, z, &dy);
    else rnn_backward_as(k, r, rows, p, panels, z, NULL);
}

#endif
