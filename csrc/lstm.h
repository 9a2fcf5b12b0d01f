/* The LSTM's pointwise part (Hochreiter and Schmidhuber 1997; Gers et al. 2000, 2002; Greff et al. 2017):
 *
 *     i, f, o = s(a_i + p_i c'), s(a_f + p_f c'), s(a_o + p_o c)      c' the state before, p the peepholes
 *     g = t(a_g);  c = f c' + i g;  h = o u(c)
 *
 * with c = c' + i g where there is no forget gate, i = 1 - f where it is coupled, and h = u(o c) where the gates
 * see the cell. With a projection h here is the m that W_hr then reads.
 * z: [rows, gates, panels, LANES] holds the a for rows r.. and units of panels p...
 */
#ifndef FRNN_LSTM_H
#define FRNN_LSTM_H

#include "activation.h"
#include "sequence.h"

/* What a vector of units leaves behind: its new h, and where cells are wanted the c that it has stored. */
INLINE void lstm_store(const step *k, int64_t r, int64_t u, vec h) {
    const frnn_weights *w = k->w;
    if (k->lane->cells) {
        const int64_t D = w->spec.num_directions;
        real *row = (real *)k->lane->cells + outer_row(k->run, k->reverse, k->s, r) * D * w->H;
        v_store_n(row + k->reverse * w->H + u, v_load(k->c_out + r * w->Hp + u), lanes_left(w->H, u));
    }
    if (k->m) {
        v_store(k->m + r * w->Hp + u, h);
    } else {
        v_store(k->h_out + r * w->Pp + u, h);
        put_output(k, NULL, r, u, h);
    }
}

INLINE void lstm_keep(const step *k, int64_t r, int64_t u, int gates, const vec *gate) {
    if (!k->keep) return;
    for (int v = 0; v < gates; v++) v_store(k->gates + r * k->ld + v * k->w->Hp + u, gate[v]);
}

/* Any cell. */
static void lstm_forward_any(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const frnn_weights *w = k->w;
    const int forget = w->spec.forget, gates = w->gates, see_cell = w->spec.peephole == FRNN_PEEPHOLE_CELL;
    const real *eye = k->lane->w->eye;
    const int64_t Hp = w->Hp, plane = panels * LANES;
    for (int i = 0; i < rows; i++, r++, z += gates * plane)
        for (int q = 0; q < panels; q++) {
            const int64_t u = (p + q) * LANES;
            const real *a = z + q * LANES;
            const vec c_in = v_load(k->c_in + r * Hp + u);
            vec gate[4]; /* i or f; f; g; o, in the order of the planes */
            int v = 0;
            for (; v < gates - 2; v++) {
                vec x = v_load(a + v * plane);
                if (eye) x = v_fma(v_load(eye + v * Hp + u), c_in, x);
                gate[v] = act(&w->act[0], x);
            }
            const vec g = gate[v] = act(&w->act[1], v_load(a + v * plane));
            vec c;
            if (forget == FRNN_FORGET_GATE) c = v_fma(gate[1], c_in, gate[0] * g);
            else if (forget == FRNN_FORGET_NONE) c = v_fma(gate[0], g, c_in);
            else c = v_fma(gate[0], c_in, v_fnma(gate[0], g, g));
            vec x = v_load(a + (v + 1) * plane);
            if (eye) x = v_fma(v_load(eye + v * Hp + u), c, x);
            const vec o = gate[v + 1] = act(&w->act[0], x);
            lstm_keep(k, r, u, gates, gate);
            v_store(k->c_out + r * Hp + u, c);
            lstm_store(k, r, u, see_cell ? act(&w->act[2], o * c) : o * act(&w->act[2], c));
        }
}

/* The standard cell: no switches between its vectors, and all c of some tiles before the first u(c), which waits for it.
 * y: where it stores its outputs, or NULL: rows that want looking after. */
INLINE void lstm_forward_plain(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z, const block *y) {
    const int64_t Hp = k->w->Hp, plane = panels * LANES;
    vec o[ROWS_AT_ONCE], u_c[ROWS_AT_ONCE];
    int n = 0;
    for (int i = 0; i < rows; i++, z += 4 * plane)
        for (int q = 0; q < panels; q++, n++) {
            const int64_t u = (p + q) * LANES;
            const real *a = z + q * LANES;
            vec x[4] = {v_load(a), v_load(a + plane), v_load(a + 3 * plane), v_load(a + 2 * plane)};
            v_sigmoids_tanhs(3, 1, x);
            const vec gate[4] = {x[0], x[1], x[3], x[2]}; /* i f g o */
            lstm_keep(k, r + i, u, 4, gate);
            u_c[n] = v_fma(gate[1], v_load(k->c_in + (r + i) * Hp + u), gate[0] * gate[2]);
            v_store(k->c_out + (r + i) * Hp + u, u_c[n]);
            o[n] = gate[3];
        }
    v_tanhs(n, u_c);
    n = 0;
    for (int64_t i = 0; i < rows; i++, r++)
        for (int64_t q = 0; q < panels; q++, n++) {
            const int64_t u = (p + q) * LANES, at = r * Hp + u;
            const vec h = o[n] * u_c[n];
            if (y) {
                v_store(k->h_out + at, h);
                put_output(k, y, r, u, h);
            } else {
                lstm_store(k, r, u, h);
            }
        }
}

static void lstm_forward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const block y = k->m || k->lane->cells ? (block){0} : plain_output(k, p, panels);
    const block even = in_order(y);
    if (!k->w->plain) lstm_forward_any(k, r, rows, p, panels, z);
    else if (y.place) lstm_forward_plain(k, r, rows, p, panels, z, &y);
    else if (y.row && rows == 1 && panels == 1) /* as constants: its vectors then stay in registers */
        lstm_forward_plain(k, r, 1, p, 1, z, &even);
    else if (y.row && panels == 1) lstm_forward_plain(k, r, rows, p, 1, z, &even);
    else if (y.row) lstm_forward_plain(k, r, rows, p, panels, z, &even);
    else lstm_forward_plain(k, r, rows, p, panels, z, NULL);
}

/* z: dL/dh through the next step (through the projection, where there is one: complete), or, where the gates see the
 * cell, dL/dc through the next step's gates. Leaves the gates' gradients in the gates row, dL/dc' in carry_c. */
INLINE void lstm_backward_as(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z, const int plain,
                             const block *dy) {
    const frnn_weights *w = k->w;
    const int forget = plain ? FRNN_FORGET_GATE : w->spec.forget, gates = plain ? 4 : w->gates;
    const int see_cell = !plain && w->spec.peephole == FRNN_PEEPHOLE_CELL;
    const real *eye = plain ? NULL : k->lane->w->eye;
    const int64_t Hp = w->Hp;
    const vec one = v_set1(1);
    for (int m = 0; m < rows; m++, r++)
        for (int q = 0; q < panels; q++, z += LANES) {
            const int64_t u = (p + q) * LANES;
            const int n = dy ? LANES : lanes_left(w->H, u), last = gates - 1;
            real *gate = k->gates + r * k->ld + u;
            real *carry_c = (real *)k->lane->carry_c + r * Hp + u;
            const vec c_in = v_load(k->c_in + r * Hp + u), c = v_load(k->c_out + r * Hp + u);
            const vec i = v_load(gate), f = v_load(gate + Hp), g = v_load(gate + (last - 1) * Hp), o = v_load(gate + last * Hp);
            vec dc = v_load(carry_c), dh = v_load(z), da[4], dout;
            if (see_cell) {
                real *const final_dh = (real *)k->lane->carry_h + r * w->Pp + u;
                dc += dh;
                dh = v_load(final_dh);
                v_store(final_dh, v_zero());
            }
            if (dy || !k->m) dh += get_output_grad(k, dy, r, u);
            if (see_cell) {
                /* h = u(o c) */
                const vec doc = dh * act_grad(&w->act[2], act(&w->act[2], o * c));
                dout = doc * c;
                dc += doc * o;
            } else {
                /* h = o u(c) */
                const vec t = plain ? v_tanh(c) : act(&w->act[2], c);
                dout = dh * t;
                dc = v_fma(dh * o, plain ? tanh_grad(t) : act_grad(&w->act[2], t), dc);
            }
            /* o = s(a_o + p_o c) */
            da[last] = dout * (plain ? sigmoid_grad(o) : act_grad(&w->act[0], o));
            if (eye) dc = v_fma(v_load(eye + (last - 1) * Hp + u), da[last], dc);
            /* c = f c' + i g */
            vec dc_in;
            if (forget == FRNN_FORGET_GATE) {
                da[0] = dc * g * (plain ? sigmoid_grad(i) : act_grad(&w->act[0], i));
                da[1] = dc * c_in * (plain ? sigmoid_grad(f) : act_grad(&w->act[0], f));
                da[2] = dc * i * (plain ? tanh_grad(g) : act_grad(&w->act[1], g));
                dc_in = dc * f;
            } else if (forget == FRNN_FORGET_NONE) { /* c = c' + i g */
                da[0] = dc * g * act_grad(&w->act[0], i);
                da[1] = dc * i * act_grad(&w->act[1], g);
                dc_in = dc;
            } else { /* c = f c' + (1 - f) g, f the first plane */
                da[0] = dc * (c_in - g) * act_grad(&w->act[0], i);
                da[1] = dc * (one - i) * act_grad(&w->act[1], g);
                dc_in = dc * i;
            }
            if (eye)
                for (int v = 0; v < last - 1; v++) dc_in = v_fma(v_load(eye + v * Hp + u), da[v], dc_in);
            for (int v = 0; v < gates; v++) v_store(gate + v * Hp, mask_units(da[v], n));
            v_store(carry_c, dc_in);
        }
}

static void lstm_backward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const block dy = k->w->plain && !k->m ? plain_output_grad(k, p, panels) : (block){0};
    const block even = in_order(dy);
    if (dy.place) lstm_backward_as(k, r, rows, p, panels, z, 1, &dy);
    else if (dy.row) lstm_backward_as(k, r, rows, p, panels, z, 1, &even);
    else if (k->w->plain) lstm_backward_as(k, r, rows, p, panels, z, 1, NULL);
    else lstm_backward_as(k, r, rows, p, panels, z, 0, NULL);
}

#endif
