/* What a kernel variant offers: one table per (ISA, element type). Private to the core.
 *
 * A kernel trusts its arguments: shapes, strides and indices were checked by api.c / program.c.
 * Strides are in elements of the operand's own type. A kernel called by thread t of T does its
 * part and nothing else; parts never overlap in what they write, and the split never changes a
 * bit (only outputs are partitioned, no sum is).
 */
#ifndef CHAINRULE_KERNELS_H
#define CHAINRULE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "ops.h"

enum { DT_F32, DT_F64, DT_I32, DT_I64, DT_BOOL, DT_COUNT };
enum { MAX_DIMS = 4, MAX_IN = 8, MAX_OUT = 4, MAX_INTS = 8, MAX_FLOATS = 4 };

/* a dense array seen by one instruction; broadcast axes have stride 0 */
typedef struct {
    void *data;
    int32_t dtype, ndim;
    int64_t shape[MAX_DIMS], stride[MAX_DIMS];
} chainrule_view;

/* one instruction, operands resolved to memory: what every kernel of table.run receives */
typedef struct {
    int32_t op, n_out, n_in;
    chainrule_view out[MAX_OUT], in[MAX_IN];
    int64_t i[MAX_INTS];
    double f[MAX_FLOATS];
} chainrule_call;

/* where a contraction's second operand or output lives in panels: (ceil(n/panel), k, panel) */
typedef struct {
    int64_t k, n; /* rows (chain length) and columns of the panelled matrix */
    void *data;   /* panel p at data + p * k * panel; columns past n are zero */
} chainrule_panels;

/* What happens to a finished tile, in this order: chain, bias, activation or derivative, update. */
enum { EPI_STORE, EPI_BIAS_ACT, EPI_DACT, EPI_UPDATE };
typedef struct {
    int32_t kind, act, update; /* act: activation row index or -1; update: update row index */
    double act_param;
    const void *bias; /* EPI_BIAS_ACT: (N), contiguous, or NULL */
    void *z;          /* EPI_BIAS_ACT: pre-activation output with C's strides, or NULL */
    int64_t ldz;
    const void *r; /* EPI_DACT: residual (M, N) */
    int64_t ldr;
    void *s1, *s2;      /* EPI_UPDATE: state, laid out as C */
    const double *coef; /* EPI_UPDATE: COEF_COUNT numbers */
} chainrule_epilogue;

/* C(m, n) = epilogue(sum_k A(m, k) B(k, n)), chains ascending in k from +0 by fma.
 * A(m, k) = a[m * a_rs + k * a_ks], one of the strides is 1.
 * B(k, n) = b[k * b_ks + n * b_ns], one of the strides is 1; or panels (then b is NULL).
 * C(m, n) = c[m * ldc + n], or, if c_panels.data, the panels of the (M rows) x (N columns) matrix
 * (epilogue state s1, s2 in the same panel layout).
 * Aliasing: C may be read by the epilogue (update) but never overlaps A or B.
 */
typedef struct {
    int64_t m, n, k;
    const void *a;
    int64_t a_rs, a_ks;
    const void *b;
    int64_t b_ks, b_ns;
    chainrule_panels b_panels;
    void *c;
    int64_t ldc;
    chainrule_panels c_panels;
    chainrule_epilogue epilogue;
} chainrule_contract;

typedef struct {
    const char *isa;
    int panel; /* columns of a weight panel */
    /* elements of real that contract() needs as scratch for one thread (may depend on shapes);
     * the scratch is 64-byte aligned, private to the thread, its contents need not survive */
    size_t (*contract_scratch)(const chainrule_contract *, int team);
    /* rows or panels are divided among the team; no barrier inside */
    void (*contract)(const chainrule_contract *, void *scratch, int t, int team);
    /* pack matrix B(k, n) = b[k * b_ks + n * b_ns] into panels, or back; part t of team */
    void (*pack)(const void *b, int64_t b_ks, int64_t b_ns, chainrule_panels to, int t, int team);
    void (*unpack)(chainrule_panels from, void *b, int64_t b_ks, int64_t b_ns, int t, int team);
    /* panels of the transposed matrix: from (k, n) -> to (n, k), from's panels [p0, p1) only */
    void (*transpose_panels)(chainrule_panels from, chainrule_panels to, int64_t p0, int64_t p1);
    /* classes MAP and UPDATE: part [begin, end) of the output's outermost axis */
    void (*map)(const chainrule_call *, int64_t begin, int64_t end);
    void (*update)(const chainrule_call *, int64_t begin, int64_t end);
    /* classes REDUCE (axis reductions) and ROWS: part t of team */
    void (*reduce)(const chainrule_call *, void *scratch, int t, int team);
    void (*rows)(const chainrule_call *, int64_t begin, int64_t end);
    /* class GATHER; *bad is set to the position of an index out of range, else left alone */
    void (*gather)(const chainrule_call *, void *scratch, int t, int team, int64_t *bad);
} chainrule_kernels;

/* [begin, end) of n items for part t of team, in units of `unit` items */
static inline void chainrule_part(int64_t n, int64_t unit, int t, int team, int64_t *begin,
                                  int64_t *end) {
    int64_t units = (n + unit - 1) / unit;
    *begin = units * t / team * unit;
    *end = units * (t + 1) / team * unit;
    if (*end > n) *end = n;
    if (*begin > n) *begin = n;
}

#endif
