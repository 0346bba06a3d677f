/* The layer calls of the public interface: dense layers as contractions, the rest as instructions.
 */
#include "call.h"
#include "copy.h"
#include "dispatch.h"
#include "plan.h"
#include "team.h"

#include <stdlib.h>
#include <string.h>

/* ---- contractions ------------------------------------------------------------------------------
 */

typedef struct {
    const chainrule_kernels *kernels;
    const chainrule_contract *contract;
    char *scratch;
    size_t bytes; /* of a thread */
    int team;     /* that the scratch is for */
} job;

static void job_part(void *argument, int t, int n, chainrule_barrier *barrier) {
    (void)barrier;
    const job *x = argument;
    /* the parts that were planned for, also where fewer threads came */
    for (int part = t; part < x->team; part += n)
        x->kernels->contract(x->contract, x->scratch + (size_t)t * x->bytes, part, x->team);
}

static chainrule_status contract(int dtype, const chainrule_contract *g, int threads) {
    if (g->m == 0 || g->n == 0) return CHAINRULE_OK;
    const double work = 2 * (double)g->m * (double)g->n * (double)g->k;
    const int team = chainrule_choose_threads(threads, work);
    job x = {.kernels = chainrule_table(dtype), .contract = g, .team = team};
    x.bytes = x.kernels->contract_scratch(g, team) * (size_t)chainrule_size(dtype);
    x.bytes = (x.bytes + 63) / 64 * 64;
    x.scratch = chainrule_allocate(x.bytes * (size_t)team);
    if (!x.scratch) return CHAINRULE_MEMORY;
    chainrule_team_run(team, job_part, &x);
    free(x.scratch);
    return CHAINRULE_OK;
}

static chainrule_status check(int dtype, int64_t B, int64_t K, int64_t N, int64_t lda, int64_t ldb,
                              int64_t ldw, int layout, int threads) {
    if (dtype != DT_F32 && dtype != DT_F64) return CHAINRULE_TYPE;
    const int in_out = layout == CHAINRULE_IN_OUT;
    if (B < 0 || K < 0 || N < 0 || lda < K || ldb < N || ldw < (in_out ? N : K) ||
        (!in_out && layout != CHAINRULE_OUT_IN) || threads < 0 || threads > 1024)
        return CHAINRULE_VALUE;
    return CHAINRULE_OK;
}

chainrule_status chainrule_dense_forward(int dtype, int64_t B, int64_t K, int64_t N, const void *x,
                                         int64_t ldx, const void *w, int64_t ldw, int layout,
                                         const void *bias, int activation, double param, void *y,
                                         int64_t ldy, void *z, int64_t ldz, int threads) {
    const chainrule_status s = check(dtype, B, K, N, ldx, ldy, ldw, layout, threads);
    if (s) return s;
    if (activation < -1 || activation >= ACT_COUNT || (z && ldz < N)) return CHAINRULE_VALUE;
    const int in_out = layout == CHAINRULE_IN_OUT;
    const chainrule_contract g = {
        .m = B,
        .n = N,
        .k = K,
        .a = x,
        .a_rs = ldx,
        .a_ks = 1,
        .b = w,
        .b_ks = in_out ? ldw : 1,
        .b_ns = in_out ? 1 : ldw,
        .c = y,
        .ldc = ldy,
        .epilogue = {.kind = EPI_BIAS_ACT,
                     .act = activation,
                     .act_param = param,
                     .bias = bias,
                     .z = z,
                     .ldz = ldz},
    };
    return contract(dtype, &g, threads);
}

chainrule_status chainrule_dense_input_gradient(int dtype, int64_t B, int64_t K, int64_t N,
                                                const void *delta, int64_t ldd, const void *w,
                                                int64_t ldw, int layout, const void *r, int64_t ldr,
                                                int activation, double param, void *dx, int64_t ldx,
                                                int threads) {
    const chainrule_status s = check(dtype, B, K, N, ldx, ldd, ldw, layout, threads);
    if (s) return s;
    if (activation < -1 || activation >= ACT_COUNT || (activation >= 0 && (!r || ldr < K)))
        return CHAINRULE_VALUE;
    const int in_out = layout == CHAINRULE_IN_OUT;
    const chainrule_contract g = {
        .m = B,
        .n = K,
        .k = N,
        .a = delta,
        .a_rs = ldd,
        .a_ks = 1,
        .b = w,
        .b_ks = in_out ? 1 : ldw,
        .b_ns = in_out ? ldw : 1,
        .c = dx,
        .ldc = ldx,
        .epilogue = {.kind = activation < 0 ? EPI_STORE : EPI_DACT,
                     .act = activation,
                     .act_param = param,
                     .r = r,
                     .ldr = ldr},
    };
    return contract(dtype, &g, threads);
}

/* delta^T x in the layout of W */
static chainrule_contract weight_gradient(int64_t B, int64_t K, int64_t N, const void *delta,
                                          int64_t ldd, const void *x, int64_t ldx, void *c,
                                          int64_t ldc, int layout) {
    const int in_out = layout == CHAINRULE_IN_OUT;
    return (chainrule_contract){
        .m = in_out ? K : N,
        .n = in_out ? N : K,
        .k = B,
        .a = in_out ? x : delta,
        .a_rs = 1,
        .a_ks = in_out ? ldx : ldd,
        .b = in_out ? delta : x,
        .b_ks = in_out ? ldd : ldx,
        .b_ns = 1,
        .c = c,
        .ldc = ldc,
        .epilogue = {.kind = EPI_STORE, .act = -1},
    };
}

/* ---- arrays ------------------------------------------------------------------------------------
 */

static chainrule_array matrix(int dtype, const void *data, int64_t rows, int64_t columns,
                              int64_t ld) {
    return (chainrule_array){(void *)data, dtype, 2, {rows, columns}, {ld, 1}};
}

static chainrule_array vector(int dtype, const void *data, int64_t n) {
    return (chainrule_array){(void *)data, dtype, 1, {n}, {1}};
}

static chainrule_status add(chainrule_array to, chainrule_array from, int threads) {
    const chainrule_array in[2] = {to, from};
    return chainrule_run(OP_add, 1, &to, 2, in, 0, NULL, 0, NULL, threads, NULL);
}

chainrule_status chainrule_dense_weight_gradient(int dtype, int64_t B, int64_t K, int64_t N,
                                                 const void *delta, int64_t ldd, const void *x,
                                                 int64_t ldx, int accumulate, void *dw, int64_t ldw,
                                                 int layout, void *db, int threads) {
    chainrule_status s = check(dtype, B, K, N, ldx, ldd, ldw, layout, threads);
    if (s) return s;
    const int64_t rows = layout == CHAINRULE_IN_OUT ? K : N;
    const int64_t wide = layout == CHAINRULE_IN_OUT ? N : K;
    char *own = NULL; /* a whole chain is added to what is there, never continued from it */
    const size_t matrix_bytes = (size_t)(rows * wide * chainrule_size(dtype) + 63) / 64 * 64;
    if (accumulate) {
        own = chainrule_allocate(matrix_bytes + (size_t)(N * chainrule_size(dtype)));
        if (!own) return CHAINRULE_MEMORY;
    }
    const chainrule_contract g =
        weight_gradient(B, K, N, delta, ldd, x, ldx, own ? own : dw, own ? wide : ldw, layout);
    s = contract(dtype, &g, threads);
    if (!s && own)
        s = add(matrix(dtype, dw, rows, wide, ldw), matrix(dtype, own, rows, wide, wide), threads);
    if (!s && db) {
        const chainrule_array from = matrix(dtype, delta, B, N, ldd);
        const chainrule_array to = vector(dtype, own ? own + matrix_bytes : db, N);
        const int64_t axis = 0;
        s = chainrule_run(OP_sum, 1, &to, 1, &from, 1, &axis, 0, NULL, threads, NULL);
        if (!s && own) s = add(vector(dtype, db, N), to, threads);
    }
    free(own);
    return s;
}

chainrule_status chainrule_dense_update(int dtype, int64_t B, int64_t K, int64_t N,
                                        const void *delta, int64_t ldd, const void *x, int64_t ldx,
                                        int update, const double *coefficients, void *w,
                                        int64_t ldw, int layout, void *s1, void *s2, int threads) {
    const chainrule_status s = check(dtype, B, K, N, ldx, ldd, ldw, layout, threads);
    if (s) return s;
    int states;
    if (!chainrule_update_name(update, &states) || (states > 0 && !s1) || (states > 1 && !s2) ||
        !coefficients)
        return CHAINRULE_VALUE;
    chainrule_contract g = weight_gradient(B, K, N, delta, ldd, x, ldx, w, ldw, layout);
    g.epilogue.kind = EPI_UPDATE;
    g.epilogue.update = update;
    g.epilogue.s1 = s1;
    g.epilogue.s2 = s2;
    g.epilogue.coef = coefficients;
    return contract(dtype, &g, threads);
}

chainrule_status chainrule_softmax_cross_entropy(int dtype, int64_t B, int64_t C, const void *z,
                                                 int64_t ldz, const int64_t *labels, void *loss,
                                                 const void *g, void *dz, int64_t lddz,
                                                 int64_t *bad, int threads) {
    if (B < 0 || C < 1 || ldz < C || !g != !dz || (dz && lddz < C)) return CHAINRULE_VALUE;
    const chainrule_array in[3] = {vector(dtype, g, B), matrix(dtype, z, B, C, ldz),
                                   vector(DT_I64, labels, B)};
    chainrule_error error;
    chainrule_status s = CHAINRULE_OK;
    if (loss) {
        const chainrule_array out = vector(dtype, loss, B);
        s = chainrule_run(OP_softmax_cross_entropy, 1, &out, 2, in + 1, 0, NULL, 0, NULL, threads,
                          &error);
    }
    if (!s && dz) {
        const chainrule_array out = matrix(dtype, dz, B, C, lddz);
        s = chainrule_run(OP_dsoftmax_cross_entropy, 1, &out, 3, in, 0, NULL, 0, NULL, threads,
                          &error);
    }
    if (s == CHAINRULE_INDEX && bad) *bad = error.position;
    return s;
}
