/* XOR, learnt in C by the layer calls: 2-8-1, tanh, squared error, gradient descent.
 *
 * Prints the loss and the four outputs; fails where they are not the truth table.
 */
#include <chainrule.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { B = 4, K = 2, H = 8, STEPS = 5000 };

/* The position of a name among the rows of a table. */
static int activation_row(const char *name) {
    for (int row = 0; chainrule_activation(row, NULL); row++)
        if (!strcmp(chainrule_activation(row, NULL), name)) return row;
    return -1;
}

static int update_row(const char *name) {
    for (int row = 0; chainrule_update_name(row, NULL); row++)
        if (!strcmp(chainrule_update_name(row, NULL), name)) return row;
    return -1;
}

int main(void) {
    const float x[B][K] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}}, target[B] = {0, 1, 1, 0};
    float w1[H][K], b1[H] = {0}, w2[1][H], b2[1] = {0};
    float h[B][H], y[B][1], delta1[B][H], delta2[B][1], db1[H], db2[1], dw[H * K];
    double coefficients[CHAINRULE_COEFFICIENTS] = {0}, loss = 0;
    const int tanh_row = activation_row("tanh"), sgd = update_row("sgd");
    const float lr = 0.1f;
    int status = 0;

    coefficients[CHAINRULE_STEP] = lr;
    coefficients[CHAINRULE_CLIP] = INFINITY;
    status |= chainrule_uniform(1, 0, -1.5, 1.5, CHAINRULE_F32, w1, H * K);
    status |= chainrule_uniform(2, 0, -0.8, 0.8, CHAINRULE_F32, w2, H);

    for (int step = 0; step < STEPS && !status; step++) {
        status |= chainrule_dense_forward(CHAINRULE_F32, B, K, H, x, K, w1, K, CHAINRULE_OUT_IN, b1,
                                          tanh_row, 0, h, H, NULL, 0, 1);
        status |= chainrule_dense_forward(CHAINRULE_F32, B, H, 1, h, H, w2, H, CHAINRULE_OUT_IN, b2,
                                          -1, 0, y, 1, NULL, 0, 1);
        loss = 0;
        for (int i = 0; i < B; i++) {
            const float error = y[i][0] - target[i];
            loss += error * error / B;
            delta2[i][0] = 2 * error / B;
        }
        /* backward reads the weights before any update */
        status |= chainrule_dense_input_gradient(CHAINRULE_F32, B, H, 1, delta2, 1, w2, H,
                                                 CHAINRULE_OUT_IN, h, H, tanh_row, 0, delta1, H, 1);
        /* the biases by their gradient, the weights in one pass without one */
        status |= chainrule_dense_weight_gradient(CHAINRULE_F32, B, H, 1, delta2, 1, h, H, 0, dw, H,
                                                  CHAINRULE_OUT_IN, db2, 1);
        status |= chainrule_dense_weight_gradient(CHAINRULE_F32, B, K, H, delta1, H, x, K, 0, dw, K,
                                                  CHAINRULE_OUT_IN, db1, 1);
        for (int n = 0; n < H; n++) b1[n] -= lr * db1[n];
        b2[0] -= lr * db2[0];
        status |= chainrule_dense_update(CHAINRULE_F32, B, H, 1, delta2, 1, h, H, sgd, coefficients,
                                         w2, H, CHAINRULE_OUT_IN, NULL, NULL, 1);
        status |= chainrule_dense_update(CHAINRULE_F32, B, K, H, delta1, H, x, K, sgd, coefficients,
                                         w1, K, CHAINRULE_OUT_IN, NULL, NULL, 1);
    }
    printf("loss %.6f after %d steps on %s\n", loss, STEPS, chainrule_isa());
    for (int i = 0; i < B; i++) {
        printf("%g xor %g = %.3f\n", x[i][0], x[i][1], y[i][0]);
        if (!(fabsf(y[i][0] - target[i]) < 0.1f)) status |= 1;
    }
    return status != 0;
}
