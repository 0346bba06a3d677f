/* The optimizers' updates: one row each, every fma written out, for vectors of elements.
 *
 * The coefficients are those of ops.h (COEF_*), made by the optimizer for each step: STEP and DENOM
 * contain Adam's bias corrections, and DECAY of adamw is already multiplied by the learning rate.
 */
#ifndef CHAINRULE_UPDATE_H
#define CHAINRULE_UPDATE_H

#include "isa.h"
#include "ops.h"

/* the coefficients, each rounded once to real; loaded once a kernel call */
typedef struct {
    vreal c[COEF_COUNT];
    int decays, clips; /* DECAY is not 0; CLIP is finite */
} update_coef;

INLINE update_coef update_coefs(const double *coef) {
    update_coef u;
    for (int i = 0; i < COEF_COUNT; i++) u.c[i] = v_splat((real)coef[i]);
    u.decays = (real)coef[COEF_DECAY] != 0;
    u.clips = (real)coef[COEF_CLIP] < (real)INFINITY;
    return u;
}

/* The new weights of gradient g; *s1 and *s2 are replaced where the row has such states. */
INLINE vreal update_row(int row, const update_coef *u, vreal w, vreal g, vreal *s1, vreal *s2) {
    const vreal step = -u->c[COEF_STEP], decay = u->c[COEF_DECAY], eps = u->c[COEF_EPS];
    const vreal beta1 = u->c[COEF_BETA1], one_beta1 = u->c[COEF_1_BETA1];
    const vreal beta2 = u->c[COEF_BETA2], one_beta2 = u->c[COEF_1_BETA2];
    if (u->clips) g = v_at_least(v_at_most(g, u->c[COEF_CLIP]), -u->c[COEF_CLIP]);
    if (row == UPDATE_adamw)
        w = v_fma(-decay, w, w);
    else if (u->decays)
        g = v_fma(decay, w, g);
    switch (row) {
    case UPDATE_sgd:
        return v_fma(step, g, w);
    case UPDATE_momentum:
        *s1 = v_fma(beta1, *s1, g);
        return v_fma(step, *s1, w);
    case UPDATE_nesterov:
        *s1 = v_fma(beta1, *s1, g);
        return v_fma(step, v_fma(beta1, *s1, g), w);
    case UPDATE_adam:
    case UPDATE_adamw:
        *s1 = v_fma(beta1, *s1, one_beta1 * g);
        *s2 = v_fma(beta2, *s2, one_beta2 * (g * g));
        return v_fma(step, *s1 / (v_sqrt(*s2) / u->c[COEF_DENOM] + eps), w);
    case UPDATE_rmsprop:
        *s1 = v_fma(beta2, *s1, one_beta2 * (g * g));
        return v_fma(step, g / (v_sqrt(*s1) + eps), w);
    case UPDATE_adagrad:
        *s1 = v_fma(g, g, *s1);
        return v_fma(step, g / (v_sqrt(*s1) + eps), w);
    }
    return w;
}

#endif
