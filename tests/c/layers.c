/* The layer calls beside plain loops: both layouts, strides wider than rows, 1 to 3 threads, and
 * the caller's own threads. Sums are compared to the bit: each is the chain that chainrule.h says.
 */
#include <chainrule.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>

enum { B = 7, K = 45, N = 33, LDX = 50, LDW = 60, LDT = 40, LDY = 40 };

typedef struct failures {
    int count;
} failures;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            if (!f->count++) fprintf(stderr, "line %d: %s\n", __LINE__, #condition);               \
        }                                                                                          \
    } while (0)
#define RUN(call) CHECK((call) == CHAINRULE_OK)

typedef struct operands {
    double x[B][LDX], w[N][LDW], wt[K][LDT], bias[N], z[B][LDY], y[B][LDY], delta[B][LDY];
} operands;

static void fill(operands *o) {
    for (int i = 0; i < B; i++)
        for (int k = 0; k < K; k++) o->x[i][k] = sin(i * 3.1 + k);
    for (int n = 0; n < N; n++) {
        o->bias[n] = n * 0.01;
        for (int k = 0; k < K; k++) o->wt[k][n] = o->w[n][k] = cos(n * 1.7 + k * 0.3) / 7;
    }
}

static void forward(operands *o, int activation, int threads, failures *f) {
    static _Thread_local double y2[B][LDY];
    RUN(chainrule_dense_forward(CHAINRULE_F64, B, K, N, o->x, LDX, o->w, LDW, CHAINRULE_OUT_IN,
                                o->bias, activation, 0, o->y, LDY, o->z, LDY, threads));
    RUN(chainrule_dense_forward(CHAINRULE_F64, B, K, N, o->x, LDX, o->wt, LDT, CHAINRULE_IN_OUT,
                                o->bias, activation, 0, y2, LDY, NULL, 0, threads));
    for (int i = 0; i < B; i++)
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum = fma(o->x[i][k], o->w[n][k], sum);
            CHECK(o->z[i][n] == sum + o->bias[n]);
            CHECK(fabs(o->y[i][n] - tanh(o->z[i][n])) < 1e-15);
            CHECK(y2[i][n] == o->y[i][n]);
            o->delta[i][n] = o->y[i][n] * 0.1;
        }
}

static void input_gradient(operands *o, int activation, int threads, failures *f) {
    static _Thread_local double dx[B][LDX], dx2[B][LDX];
    RUN(chainrule_dense_input_gradient(CHAINRULE_F64, B, K, N, o->delta, LDY, o->w, LDW,
                                       CHAINRULE_OUT_IN, o->x, LDX, activation, 0, dx, LDX,
                                       threads));
    RUN(chainrule_dense_input_gradient(CHAINRULE_F64, B, K, N, o->delta, LDY, o->wt, LDT,
                                       CHAINRULE_IN_OUT, o->x, LDX, activation, 0, dx2, LDX,
                                       threads));
    for (int i = 0; i < B; i++)
        for (int k = 0; k < K; k++) {
            double sum = 0;
            for (int n = 0; n < N; n++) sum = fma(o->delta[i][n], o->w[n][k], sum);
            CHECK(fabs(dx[i][k] - sum * (1 - o->x[i][k] * o->x[i][k])) < 1e-14);
            CHECK(dx2[i][k] == dx[i][k]);
        }
}

static double weight_gradient_at(const operands *o, int n, int k) {
    double sum = 0;
    for (int i = 0; i < B; i++) sum = fma(o->delta[i][n], o->x[i][k], sum);
    return sum;
}

static void weight_gradient(operands *o, int threads, failures *f) {
    static _Thread_local double dw[N][LDW], dwt[K][LDT], db[N], db2[N];
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        RUN(chainrule_dense_weight_gradient(CHAINRULE_F64, B, K, N, o->delta, LDY, o->x, LDX,
                                            accumulate, dw, LDW, CHAINRULE_OUT_IN, db, threads));
        RUN(chainrule_dense_weight_gradient(CHAINRULE_F64, B, K, N, o->delta, LDY, o->x, LDX,
                                            accumulate, dwt, LDT, CHAINRULE_IN_OUT, db2, threads));
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int i = 0; i < B; i++) sum += o->delta[i][n];
            CHECK(db[n] == sum * (accumulate + 1));
            CHECK(db2[n] == db[n]);
            for (int k = 0; k < K; k++) {
                CHECK(dw[n][k] == weight_gradient_at(o, n, k) * (accumulate + 1));
                CHECK(dwt[k][n] == dw[n][k]);
            }
        }
    }
}

static void update(operands *o, int threads, failures *f) {
    static _Thread_local double w[N][LDW], wt[K][LDT];
    double coefficients[CHAINRULE_COEFFICIENTS] = {0.1};
    coefficients[CHAINRULE_CLIP] = INFINITY;
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) wt[k][n] = w[n][k] = o->w[n][k];
    RUN(chainrule_dense_update(CHAINRULE_F64, B, K, N, o->delta, LDY, o->x, LDX, 0, coefficients, w,
                               LDW, CHAINRULE_OUT_IN, NULL, NULL, threads));
    RUN(chainrule_dense_update(CHAINRULE_F64, B, K, N, o->delta, LDY, o->x, LDX, 0, coefficients,
                               wt, LDT, CHAINRULE_IN_OUT, NULL, NULL, threads));
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            CHECK(w[n][k] == fma(-0.1, weight_gradient_at(o, n, k), o->w[n][k]));
            CHECK(wt[k][n] == w[n][k]);
        }
}

static void cross_entropy(operands *o, int threads, failures *f) {
    static _Thread_local double loss[B], ones[B], dz[B][LDY];
    int64_t labels[B] = {0, 1, 2, 3, 4, 5, N}, bad = -1;
    CHECK(chainrule_softmax_cross_entropy(CHAINRULE_F64, B, N, o->z, LDY, labels, loss, NULL, NULL,
                                          0, &bad, threads) == CHAINRULE_INDEX);
    CHECK(bad == B - 1);
    labels[B - 1] = 6;
    for (int i = 0; i < B; i++) ones[i] = 1;
    RUN(chainrule_softmax_cross_entropy(CHAINRULE_F64, B, N, o->z, LDY, labels, loss, ones, dz, LDY,
                                        &bad, threads));
    for (int i = 0; i < B; i++) {
        double total = 0;
        for (int n = 0; n < N; n++) total += exp(o->z[i][n]);
        CHECK(fabs(loss[i] - (log(total) - o->z[i][labels[i]])) < 1e-13);
        for (int n = 0; n < N; n++)
            CHECK(fabs(dz[i][n] - (exp(o->z[i][n]) / total - (n == labels[i]))) < 1e-13);
    }
}

static void *check_all(void *argument) {
    static _Thread_local operands o;
    failures *f = argument;
    int activation = 0;
    while (chainrule_activation(activation, NULL) &&
           chainrule_activation(activation, NULL)[0] != 't')
        activation++;
    fill(&o);
    for (int threads = 1; threads < 4; threads++) {
        forward(&o, activation, threads, f);
        input_gradient(&o, activation, threads, f);
        weight_gradient(&o, threads, f);
        update(&o, threads, f);
        cross_entropy(&o, threads, f);
    }
    return NULL;
}

int main(void) {
    failures found[4] = {{0}};
    pthread_t team[3];
    check_all(&found[3]);
    for (int t = 0; t < 3; t++)
        if (pthread_create(&team[t], NULL, check_all, &found[t])) return 2;
    for (int t = 0; t < 3; t++) pthread_join(team[t], NULL);
    int count = 0;
    for (int t = 0; t < 4; t++) count += found[t].count;
    printf("%d failures, abi %d, isa %s, openmp %d\n", count, chainrule_abi(), chainrule_isa(),
           chainrule_openmp());
    return count != 0 || chainrule_abi() != CHAINRULE_ABI;
}
