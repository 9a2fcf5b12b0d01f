/* The GRU's pointwise parts (Cho et al. 2014; the form that resets after the product is cuDNN's):
 *
 *     r, z = s(a_r), s(a_z)
 *     after:   n = t(a_n + r q), q = W_hn h' + b_hn          one part
 *     before:  n = t(a_n + W_hn q), q = r h'                 two parts, the product of W_hn between them
 *     keep:    h = z h' + (1 - z) n;   write: h = (1 - z) h' + z n
 *
 * with a_n what the input feeds. z[]: [rows, vectors, panels, LANES] for rows r.. and units of panels p...
 */
#ifndef FRNN_GRU_H
#define FRNN_GRU_H

#include "activation.h"
#include "sequence.h"

/* plain: w->plain, where it is not known already. */
INLINE vec gru_gate(const frnn_weights *w, int plain, vec a) { return plain ? v_sigmoid(a) : act(&w->act[0], a); }
INLINE vec gru_candidate(const frnn_weights *w, int plain, vec a) { return plain ? v_tanh(a) : act(&w->act[1], a); }
INLINE vec gru_gate_grad(const frnn_weights *w, int plain, vec y) { return plain ? sigmoid_grad(y) : act_grad(&w->act[0], y); }
INLINE vec gru_candidate_grad(const frnn_weights *w, int plain, vec y) { return plain ? tanh_grad(y) : act_grad(&w->act[1], y); }

/* h = keep * h' + (1 - keep) * n, where keep is z or 1 - z. */
INLINE void gru_update(const step *k, const block *y, int64_t r, int64_t u, vec z, vec n) {
    const frnn_weights *w = k->w;
    const vec h_in = v_load(k->h_in + r * w->Pp + u);
    const int keep = w->spec.update == FRNN_UPDATE_KEEP;
    const vec a = keep ? h_in : n, b = keep ? n : h_in;
    const vec h = v_fma(z, a, v_fnma(z, b, b));
    v_store(k->h_out + r * w->Pp + u, h);
    put_output(k, y, r, u, h);
}

/* Reset after: z[] holds a_r, a_z and q, and before them a_n, unless that waits in its plane. All r and z of some tiles come before
 * the first n, which waits for them. y: where the standard cell stores its outputs, or NULL. */
INLINE void gru_after_forward_as(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z, const block *y) {
    const frnn_weights *w = k->w;
    const int plain = y || w->plain, has_n = k->run->joint;
    const int64_t Hp = w->Hp, plane = panels * LANES;
    vec candidates[ROWS_AT_ONCE], updates[ROWS_AT_ONCE]; /* or panels of one row */
    int count = 0;
    for (int i = 0; i < rows; i++, z += (3 + has_n) * plane)
        for (int j = 0; j < panels; j++) {
            real *gate = k->gates + (r + i) * k->ld + (p + j) * LANES;
            const real *const n = has_n ? z + j * LANES : gate + PLANE_N * Hp, *a = z + has_n * plane + j * LANES;
            vec x[2] = {v_load(a), v_load(a + plane)};
            if (plain) v_sigmoids_tanhs(2, 0, x);
            else x[0] = act(&w->act[0], x[0]), x[1] = act(&w->act[0], x[1]);
            const vec reset = x[0], update = x[1], q = v_load(a + 2 * plane);
            candidates[count] = v_fma(reset, q, v_load(n));
            updates[count++] = update;
            if (k->keep) {
                v_store(gate + PLANE_R * Hp, reset);
                v_store(gate + PLANE_Z * Hp, update);
                v_store(gate + PLANE_Q * Hp, q);
            }
        }
    if (plain) v_tanhs(count, candidates);
    else for (int i = 0; i < count; i++) candidates[i] = act(&w->act[1], candidates[i]);
    count = 0;
    for (int i = 0; i < rows; i++, r++)
        for (int j = 0; j < panels; j++, count++) {
            const int64_t u = (p + j) * LANES;
            if (k->keep) v_store(k->gates + r * k->ld + PLANE_N * Hp + u, candidates[count]);
            gru_update(k, y, r, u, updates[count], candidates[count]);
        }
}

static void gru_after_forward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const block y = k->w->plain ? plain_output(k, p, panels) : (block){0};
    const block even = in_order(y);
    if (y.place) gru_after_forward_as(k, r, rows, p, panels, z, &y);
    else if (y.row && rows == 1 && panels == 1) /* as constants: its vectors then stay in registers */
        gru_after_forward_as(k, r, 1, p, 1, z, &even);
    else if (y.row && panels == 1) gru_after_forward_as(k, r, rows, p, 1, z, &even);
    else if (y.row) gru_after_forward_as(k, r, rows, p, panels, z, &even);
    else gru_after_forward_as(k, r, rows, p, panels, z, NULL);
}

/* dL/dz and dL/dn of h = keep h' + (1 - keep) n, and the direct part of dL/dh'. */
INLINE void gru_update_grad(const step *k, int64_t r, int64_t u, vec dh, vec z, vec n, vec *dz, vec *dn, vec *dh_in) {
    const vec h_in = v_load(k->h_in + r * k->w->Pp + u), one = v_set1(1);
    const int keep = k->w->spec.update == FRNN_UPDATE_KEEP;
    *dz = dh * (keep ? h_in - n : n - h_in);
    *dn = dh * (keep ? one - z : z);
    *dh_in = dh * (keep ? z : one - z);
}

/* z[]: dL/dh through the next step. Leaves the gradients of a_n, a_r, a_z and q in their planes. */
INLINE void gru_after_backward_as(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z, const block *dy) {
    const frnn_weights *w = k->w;
    const int plain = dy || w->plain;
    const int64_t Hp = w->Hp;
    for (int i = 0; i < rows; i++, r++)
        for (int j = 0; j < panels; j++, z += LANES) {
            const int64_t u = (p + j) * LANES;
            const int m = dy ? LANES : lanes_left(w->H, u);
            real *gate = k->gates + r * k->ld + u;
            const vec n = v_load(gate + PLANE_N * Hp), reset = v_load(gate + PLANE_R * Hp);
            const vec update = v_load(gate + PLANE_Z * Hp), q = v_load(gate + PLANE_Q * Hp);
            vec dz, dn, dh_in;
            gru_update_grad(k, r, u, v_load(z) + get_output_grad(k, dy, r, u), update, n, &dz, &dn, &dh_in);
            /* n = t(a_n + r q) */
            const vec da_n = dn * gru_candidate_grad(w, plain, n);
            v_store(gate + PLANE_N * Hp, mask_units(da_n, m));
            v_store(gate + PLANE_R * Hp, mask_units(da_n * q * gru_gate_grad(w, plain, reset), m));
            v_store(gate + PLANE_Z * Hp, mask_units(dz * gru_gate_grad(w, plain, update), m));
            v_store(gate + PLANE_Q * Hp, mask_units(da_n * reset, m));
            v_store((real *)k->lane->carry_h + r * w->Pp + u, dh_in);
        }
}

static void gru_after_backward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const block dy = k->w->plain ? plain_output_grad(k, p, panels) : (block){0};
    const block even = in_order(dy);
    if (dy.place) gru_after_backward_as(k, r, rows, p, panels, z, &dy);
    else if (dy.row) gru_after_backward_as(k, r, rows, p, panels, z, &even);
    else gru_after_backward_as(k, r, rows, p, panels, z, NULL);
}

/* Reset before, first part: z[] holds a_r and a_z; leaves r, z and q = r h' in their planes. */
static void gru_before_forward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const frnn_weights *w = k->w;
    const int64_t Hp = w->Hp, plane = panels * LANES;
    for (int i = 0; i < rows; i++, r++, z += 2 * plane)
        for (int j = 0; j < panels; j++) {
            const int64_t u = (p + j) * LANES;
            real *gate = k->gates + r * k->ld + u;
            const vec reset = gru_gate(w, w->plain, v_load(z + j * LANES));
            v_store(gate + PLANE_R * Hp, reset);
            v_store(gate + PLANE_Z * Hp, gru_gate(w, w->plain, v_load(z + j * LANES + plane)));
            v_store(gate + PLANE_Q * Hp, reset * v_load(k->h_in + r * w->Pp + u));
        }
}

/* Second part: z[] holds a_n + W_hn q. */
static void gru_before_forward_n(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const frnn_weights *w = k->w;
    for (int i = 0; i < rows; i++, r++)
        for (int j = 0; j < panels; j++, z += LANES) {
            const int64_t u = (p + j) * LANES;
            real *gate = k->gates + r * k->ld + u;
            const vec n = gru_candidate(w, w->plain, v_load(z));
            v_store(gate + PLANE_N * w->Hp, n);
            gru_update(k, NULL, r, u, v_load(gate + PLANE_Z * w->Hp), n);
        }
}

/* First part backward: z[] holds dL/dh through the next step. Leaves the gradients of a_n and a_z. */
static void gru_before_backward(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const frnn_weights *w = k->w;
    const int64_t Hp = w->Hp;
    for (int i = 0; i < rows; i++, r++)
        for (int j = 0; j < panels; j++, z += LANES) {
            const int64_t u = (p + j) * LANES;
            const int m = lanes_left(w->H, u);
            real *gate = k->gates + r * k->ld + u;
            const vec n = v_load(gate + PLANE_N * Hp), update = v_load(gate + PLANE_Z * Hp);
            vec dz, dn, dh_in;
            gru_update_grad(k, r, u, v_load(z) + get_output_grad(k, NULL, r, u), update, n, &dz, &dn, &dh_in);
            v_store(gate + PLANE_N * Hp, mask_units(dn * gru_candidate_grad(w, w->plain, n), m));
            v_store(gate + PLANE_Z * Hp, mask_units(dz * gru_gate_grad(w, w->plain, update), m));
            v_store((real *)k->lane->carry_h + r * w->Pp + u, dh_in);
        }
}

/* Second part backward: z[] holds dL/dq. q = r h'. */
static void gru_before_backward_q(const step *k, int64_t r, int rows, int64_t p, int panels, const real *z) {
    const frnn_weights *w = k->w;
    for (int i = 0; i < rows; i++, r++)
        for (int j = 0; j < panels; j++, z += LANES) {
            const int64_t u = (p + j) * LANES;
            real *gate = k->gates + r * k->ld + PLANE_R * w->Hp + u;
            real *carry_h = (real *)k->lane->carry_h + r * w->Pp + u;
            const vec reset = v_load(gate), dq = v_load(z);
            v_store(carry_h, v_fma(dq, reset, v_load(carry_h)));
            const vec da_r = dq * v_load(k->h_in + r * w->Pp + u) * gru_gate_grad(w, w->plain, reset);
            v_store(gate, mask_units(da_r, lanes_left(w->H, u)));
        }
}

#endif
