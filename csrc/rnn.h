/* The vanilla RNN's pointwise part: h = f(a), a = W_ih x + b_ih + W_hh h + b_hh (Elman 1990).
 *
 * z: [rows, panels, LANES] holds a for rows r.. and units of panels p..; forward and backward are neighbours.
 */
#ifndef FRNN_RNN_H
#define FRNN_RNN_H

#include "activation.h"
#include "sequence.h"

/* y: where the standard cell stores its outputs, or NULL: any cell, or rows that want looking after. on: 1, or -1 for rows from the
 * last to the first (share.c, is_last_first). */
INLINE void rnn_forward_as(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z, const block *y, const int on) {
    const frnn_weights *w = k->w;
    for (int i = on > 0 ? 0 : rows - 1; i >= 0 && i < rows; i += on)
        for (int q = 0; q < panels; q++) {
            const int64_t u = (p + q) * LANES;
            const vec a = v_load(z + (i * panels + q) * LANES), h = y || w->plain ? v_tanh(a) : act(&w->act[0], a);
            v_store(k->h_out + (r + i) * w->Pp + u, h);
            put_output(k, y, r + i, u, h);
        }
}

static void rnn_forward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const block y = k->w->plain ? plain_output(k, p, panels) : (block){0};
    const block even = in_order(y);
    if (y.place) rnn_forward_as(k, r, rows, p, panels, z, &y, 1);
    else if (y.row && k->run->last_first) rnn_forward_as(k, r, rows, p, panels, z, &even, -1);
    else if (y.row) rnn_forward_as(k, r, rows, p, panels, z, &even, 1);
    else rnn_forward_as(k, r, rows, p, panels, z, NULL, 1);
}

/* z: dL/dh through the next step, without dy. Leaves da in the gates row. */
INLINE void rnn_backward_as(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z, const block *dy) {
    const frnn_weights *w = k->w;
    for (int i = 0; i < rows; i++, r++)
        for (int q = 0; q < panels; q++, z += LANES) {
            const int64_t u = (p + q) * LANES;
            const vec h = v_load(k->h_out + r * w->Pp + u);
            const vec dh = v_load(z) + get_output_grad(k, dy, r, u);
            /* h = f(a) */
            const vec da = dh * (dy || w->plain ? tanh_grad(h) : act_grad(&w->act[0], h));
            v_store(k->gates + r * k->ld + u, mask_units(da, dy ? LANES : lanes_left(w->H, u)));
        }
}

static void rnn_backward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const block dy = k->w->plain ? plain_output_grad(k, p, panels) : (block){0};
    const block even = in_order(dy);
    if (dy.place) rnn_backward_as(k, r, rows, p, panels, z, &dy);
    else if (dy.row) rnn_backward_as(k, r, rows, p, panels, z, &even);
    else rnn_backward_as(k, r, rows, p, panels, z, NULL);
}

#endif
