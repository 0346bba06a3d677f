/* The public interface, but for programs: arguments are checked, then the kernel table is called.
 */
#include "call.h"
#include "dispatch.h"
#include "plan.h"
#include "random.h"
#include "team.h"

#include <stdlib.h>
#include <string.h>

int chainrule_abi(void) { return CHAINRULE_ABI; }

#if defined(__clang__)
const char *chainrule_compiler(void) { return __VERSION__; }
#else
const char *chainrule_compiler(void) { return "GCC " __VERSION__; }
#endif

int chainrule_openmp(void) {
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}

const char *chainrule_isa(void) { return chainrule_table(DT_F32)->isa; }

chainrule_status chainrule_set_isa(const char *name) {
    return name && !chainrule_choose_isa(name) ? CHAINRULE_OK : CHAINRULE_VALUE;
}

chainrule_status chainrule_uniform(uint64_t key, uint64_t step, double low, double high, int dtype,
                                   void *out, int64_t n) {
    if (dtype != DT_F32 && dtype != DT_F64) return CHAINRULE_TYPE;
    if (n < 0) return CHAINRULE_VALUE;
    const chainrule_fp old = chainrule_fp_enter();
    chainrule_random_uniform(key, step, low, high, dtype, out, n);
    chainrule_fp_leave(old);
    return CHAINRULE_OK;
}

chainrule_status chainrule_permutation(uint64_t key, uint64_t epoch, int64_t *out, int64_t n) {
    if (n < 0) return CHAINRULE_VALUE;
    chainrule_random_permutation(key, epoch, out, n);
    return CHAINRULE_OK;
}

/* ---- one instruction ---------------------------------------------------------------------------
 */

typedef struct {
    chainrule_task task;
    chainrule_split split;
    int is_contract, team; /* that the scratch is for */
    size_t scratch_bytes;  /* of a thread */
    char *scratch;
    _Atomic int64_t bad;
} eager;

static void eager_part(void *argument, int t, int n, chainrule_barrier *barrier) {
    (void)barrier;
    eager *x = argument;
    char *scratch = x->scratch + (size_t)t * x->scratch_bytes;
    if (x->is_contract) {
        /* the parts that were planned for, also where fewer threads came */
        for (int part = t; part < x->team; part += n)
            x->task.kernels->contract(&x->task.contract, scratch, part, x->team);
        return;
    }
    int64_t bad;
    if (n == 1) {
        bad = chainrule_task_run(&x->task, scratch);
    } else {
        chainrule_task part = x->task;
        if (!chainrule_narrow(&part, &x->split, t, n)) return;
        bad = chainrule_task_run(&part, scratch);
    }
    int64_t seen = atomic_load(&x->bad);
    while (bad >= 0 && (seen < 0 || bad < seen) &&
           !atomic_compare_exchange_weak(&x->bad, &seen, bad)) {
    }
}

/* Axes after the first contiguous: what every class but MAP wants. */
static int has_contiguous_rows(const chainrule_view *v) {
    int64_t step = 1;
    for (int a = v->ndim - 1; a >= 0; a--) {
        if (v->shape[a] == 0) return 1;
        if ((a > 0 || v->ndim == 1) && v->shape[a] > 1 && v->stride[a] != step) return 0;
        step *= v->shape[a];
    }
    return 1;
}

/* A row or a column that is never stepped over may come with any stride; kernels count on none. */
static void settle_strides(chainrule_view *v) {
    int64_t step = 1;
    for (int a = v->ndim - 1; a >= 0; a--) {
        if (v->shape[a] <= 1) v->stride[a] = step;
        step *= v->shape[a];
    }
}

static chainrule_status take_view(chainrule_view *v, const chainrule_array *a, int op,
                                  const char *role, int j, chainrule_error *e) {
    if (e) e->position = j;
    if (a->dtype < 0 || a->dtype >= DT_COUNT)
        return chainrule_fail(e, CHAINRULE_TYPE, "%s: %s %d: unknown element type",
                              chainrule_op_name(op), role, j);
    if (a->ndim < 0 || a->ndim > MAX_DIMS)
        return chainrule_fail(e, CHAINRULE_VALUE, "%s: %s %d: expected at most %d axes, got %d",
                              chainrule_op_name(op), role, j, MAX_DIMS, a->ndim);
    v->data = a->data;
    v->dtype = a->dtype;
    v->ndim = a->ndim;
    for (int k = 0; k < a->ndim; k++) {
        if (a->shape[k] < 0)
            return chainrule_fail(e, CHAINRULE_VALUE, "%s: %s %d: a negative size",
                                  chainrule_op_name(op), role, j);
        v->shape[k] = a->shape[k];
        v->stride[k] = a->stride[k];
    }
    if (chainrule_class_of(op) == MAP) return CHAINRULE_OK;
    if (!has_contiguous_rows(v))
        return chainrule_fail(e, CHAINRULE_VALUE,
                              "%s: %s %d: expected contiguous axes after the first",
                              chainrule_op_name(op), role, j);
    settle_strides(v);
    return CHAINRULE_OK;
}

static int is_empty(const chainrule_call *call) {
    for (int j = 0; j < call->n_out; j++)
        for (int a = 0; a < call->out[j].ndim; a++)
            if (call->out[j].shape[a] == 0) return 1;
    return 0;
}

chainrule_status chainrule_run(int op, int n_out, const chainrule_array *out, int n_in,
                               const chainrule_array *in, int n_ints, const int64_t *ints,
                               int n_floats, const double *floats, int threads,
                               chainrule_error *e) {
    chainrule_clear(e);
    if (op < 0 || op >= OP_COUNT || chainrule_class_of(op) >= INPUT)
        return chainrule_fail(e, CHAINRULE_VALUE, "run: op %d is not one to run by itself", op);
    if (e) e->op = op;
    if (n_out < 0 || n_out > MAX_OUT || n_in < 0 || n_in > MAX_IN || n_ints < 0 ||
        n_ints > MAX_INTS || n_floats < 0 || n_floats > MAX_FLOATS || threads < 0 || threads > 1024)
        return chainrule_fail(e, CHAINRULE_VALUE, "%s: too many operands, attributes or threads",
                              chainrule_op_name(op));
    chainrule_call call = {.op = op, .n_out = n_out, .n_in = n_in};
    chainrule_status s = CHAINRULE_OK;
    for (int j = 0; !s && j < n_out; j++) s = take_view(&call.out[j], &out[j], op, "output", j, e);
    for (int j = 0; !s && j < n_in; j++) s = take_view(&call.in[j], &in[j], op, "input", j, e);
    if (s) return s;
    if (n_ints) memcpy(call.i, ints, (size_t)n_ints * sizeof *ints);
    if (n_floats) memcpy(call.f, floats, (size_t)n_floats * sizeof *floats);
    if ((s = chainrule_check(&call, e))) return s;
    for (int j = 0; j < n_out; j++) {
        const int updated = chainrule_in_place(op, j);
        if (updated < 0) break;
        const chainrule_view *a = &call.out[j], *b = &call.in[updated];
        if (a->data != b->data || (a->ndim > 1 && a->stride[0] != b->stride[0]))
            return chainrule_fail(e, CHAINRULE_VALUE, "%s: output %d: expected to be input %d",
                                  chainrule_op_name(op), j, updated);
    }
    if (is_empty(&call)) return CHAINRULE_OK;

    const chainrule_kernels *const tables[2] = {chainrule_table(DT_F32), chainrule_table(DT_F64)};
    eager x = {.split = chainrule_split_of(&call),
               .is_contract = chainrule_class_of(op) == CONTRACT,
               .bad = -1};
    int team = chainrule_choose_threads(threads, chainrule_work(&call));
    if (x.split.extent == 1 && !x.is_contract) team = 1;
    chainrule_prepare(&x.task, &call, chainrule_kernels_for(&call, tables), NULL, NULL);
    x.team = team;
    x.scratch_bytes = (chainrule_scratch(&x.task, team) + 63) / 64 * 64;
    _Alignas(64) char small[4096];
    const size_t bytes = x.scratch_bytes * (size_t)team;
    x.scratch = bytes <= sizeof small ? small : chainrule_allocate(bytes);
    if (!x.scratch) return chainrule_fail(e, CHAINRULE_MEMORY, "no memory for scratch");
    chainrule_team_run(team, eager_part, &x);
    if (x.scratch != small) free(x.scratch);
    const int64_t bad = atomic_load(&x.bad);
    if (bad < 0) return CHAINRULE_OK;
    if (e) e->position = bad;
    return chainrule_fail(e, CHAINRULE_INDEX, "%s: index out of range at position %lld",
                          chainrule_op_name(op), (long long)bad);
}
