#include "call.h"

#include "copy.h"
#include "team.h"

static int64_t elements(const chainrule_view *v) {
    int64_t n = 1;
    for (int a = 0; a < v->ndim; a++) n *= v->shape[a];
    return n;
}

/* Is the first, the second operand of a product stored transposed? */
static int transposed(const chainrule_call *call, int operand) {
    switch (call->op) {
    case OP_matmul:
        return call->i[operand] != 0;
    case OP_dense:
        return operand == 1;
    case OP_matmul_update:
        return operand == 0;
    default:
        return 0;
    }
}

double chainrule_work(const chainrule_call *call) {
    double work = 1;
    for (int j = 0; j < call->n_in; j++) work += (double)elements(&call->in[j]);
    for (int j = 0; j < call->n_out; j++) work += (double)elements(&call->out[j]);
    if (chainrule_class_of(call->op) != CONTRACT) return 2 * work;
    const double terms = (double)call->in[0].shape[!transposed(call, 0)];
    return work + 2 * terms * (double)elements(&call->out[0]);
}

int chainrule_choose_threads(int threads, double work) {
    if (threads > 0) return threads;
    const double enough = 1.5e6; /* some 15 us of a core: sharing less gains too little */
    if (work < 2 * enough) return 1;
    const int cores = chainrule_cores();
    return work / enough < cores ? (int)(work / enough) : cores;
}

int64_t chainrule_index_bound(const chainrule_call *call, int *operand) {
    *operand = 1;
    switch (call->op) {
    case OP_take:
        return call->in[0].shape[0];
    case OP_take_along_last:
        return call->in[0].shape[call->in[0].ndim - 1];
    case OP_put_along_last:
        return call->i[0];
    case OP_softmax_cross_entropy:
        return call->in[0].shape[1];
    case OP_dsoftmax_cross_entropy:
        *operand = 2;
        return call->in[1].shape[1];
    case OP_row_sums:
    case OP_scatter_rows:
        *operand = 0;
        return call->i[0];
    case OP_update_rows:
        *operand = 0;
        return call->in[2].shape[0];
    }
    *operand = -1;
    return 0;
}

const chainrule_kernels *chainrule_kernels_for(const chainrule_call *call,
                                               const chainrule_kernels *const tables[2]) {
    int lead = 0;
    if (call->op == OP_where || call->op == OP_row_sums || call->op == OP_scatter_rows ||
        call->op == OP_update_rows)
        lead = 1;
    return tables[lead < call->n_in && chainrule_size(call->in[lead].dtype) == 8];
}

/* ---- splits ------------------------------------------------------------------------------------
 */

static chainrule_split undivided(void) {
    chainrule_split s = {.extent = 1};
    for (int j = 0; j < MAX_OUT; j++) s.out[j] = WHOLE;
    for (int j = 0; j < MAX_IN; j++) s.in[j] = WHOLE;
    return s;
}

/* Every operand whose axis 0 is output 0's. */
static chainrule_split by_rows(const chainrule_call *call) {
    chainrule_split s = undivided();
    const chainrule_view *lead = call->n_out ? &call->out[0] : &call->in[0];
    if (lead->ndim == 0 || lead->shape[0] == 1) return s;
    s.extent = lead->shape[0];
    for (int j = 0; j < call->n_out; j++) s.out[j] = 0;
    for (int j = 0; j < call->n_in; j++)
        if (call->in[j].ndim == lead->ndim && call->in[j].shape[0] == s.extent) s.in[j] = 0;
    return s;
}

chainrule_split chainrule_split_of(const chainrule_call *call) {
    chainrule_split s = by_rows(call);
    switch (call->op) {
    case OP_dropout:
        s.in[1] = WHOLE;
        break;
    case OP_sum:
    case OP_max:
    case OP_argmax:
        if (call->i[0] > 0) {
            s.in[0] = s.extent > 1 ? 0 : WHOLE;
        } else { /* down axis 0: the columns are shared out */
            s.in[0] = s.extent > 1 ? 1 : WHOLE;
        }
        break;
    case OP_softmax:
    case OP_log_softmax:
        return call->in[0].ndim == 1 ? undivided() : s;
    case OP_sum_squares:
    case OP_weighted_mean:
    case OP_result:
        return undivided();
    case OP_logsumexp:
    case OP_softmax_cross_entropy:
    case OP_dsoftmax_cross_entropy:
    case OP_take_along_last:
    case OP_put_along_last:
        if (call->op == OP_put_along_last && call->in[1].ndim == 0) return undivided();
        if (s.extent > 1)
            for (int j = 0; j < call->n_in; j++) s.in[j] = 0;
        break;
    case OP_matmul:
        s.in[0] = s.extent > 1 ? (int8_t)transposed(call, 0) : WHOLE;
        s.in[1] = WHOLE;
        break;
    case OP_dense:
        s.in[1] = s.in[2] = WHOLE;
        break;
    case OP_matmul_dact:
        s.in[1] = WHOLE;
        break;
    case OP_matmul_update:
        s.in[0] = s.extent > 1 ? 1 : WHOLE;
        s.in[1] = s.in[call->n_in - 1] = WHOLE;
        break;
    case OP_update:
        s.in[call->n_in - 1] = WHOLE;
        break;
    case OP_row_sums:
    case OP_update_rows: /* by distinct rows */
        s = undivided();
        s.extent = call->in[0].shape[0];
        s.by_kernel = s.extent > 1;
        break;
    case OP_scatter_rows:
        s.in[0] = s.in[1] = WHOLE;
        s.by_kernel = s.extent > 1;
        break;
    case OP_take:
        s.in[0] = WHOLE;
        if (call->in[1].ndim == 0) return undivided();
        s.in[1] = s.extent > 1 ? 0 : WHOLE;
        break;
    case OP_transpose:
        s.in[0] = s.extent > 1 && call->i[0] < 2 ? (int8_t)call->i[0] : WHOLE;
        break;
    case OP_slice:
    case OP_unslice:
    case OP_concatenate:
        if (call->i[0] == 0)
            for (int j = 0; j < call->n_in; j++) s.in[j] = WHOLE;
        break;
    }
    return s;
}

/* ---- tasks -------------------------------------------------------------------------------------
 */

static const chainrule_view no_view;

static int64_t pitch(const chainrule_view *v) { return v->ndim > 1 ? v->stride[0] : 1; }

static void prepare_contract(chainrule_task *task, const chainrule_panels *w,
                             void *const state[2]) {
    const chainrule_call *call = &task->call;
    chainrule_contract *g = &task->contract;
    const chainrule_view *a = &call->in[0], *b = &call->in[1], *c = &call->out[0];
    const int update = call->op == OP_matmul_update;
    const int a_transposed = transposed(call, 0), b_transposed = transposed(call, 1);
    *g = (chainrule_contract){.epilogue.kind = EPI_STORE, .epilogue.act = -1};
    g->m = c->shape[0];
    g->n = c->shape[1];
    g->k = a->shape[!a_transposed];
    g->a = a->data;
    g->a_rs = a_transposed ? 1 : pitch(a);
    g->a_ks = a_transposed ? pitch(a) : 1;
    g->b = b->data;
    g->b_ks = b_transposed ? 1 : pitch(b);
    g->b_ns = b_transposed ? pitch(b) : 1;
    g->c = c->data;
    g->ldc = pitch(c);
    switch (call->op) {
    case OP_dense:
        g->epilogue.kind = EPI_BIAS_ACT;
        g->epilogue.bias = call->n_in > 2 ? call->in[2].data : NULL;
        g->epilogue.z = call->n_out > 1 ? call->out[1].data : NULL;
        g->epilogue.ldz = call->n_out > 1 ? pitch(&call->out[1]) : 0;
        break;
    case OP_matmul_dact:
        g->epilogue.kind = call->i[0] < 0 ? EPI_STORE : EPI_DACT;
        g->epilogue.r = call->in[2].data;
        g->epilogue.ldr = pitch(&call->in[2]);
        break;
    case OP_matmul_update:
        g->epilogue.kind = EPI_UPDATE;
        g->epilogue.update = (int32_t)call->i[0];
        g->epilogue.s1 = call->n_out > 1 ? call->out[1].data : NULL;
        g->epilogue.s2 = call->n_out > 2 ? call->out[2].data : NULL;
        g->epilogue.coef = call->in[call->n_in - 1].data;
        break;
    }
    if (call->op == OP_dense || call->op == OP_matmul_dact) {
        g->epilogue.act = (int32_t)call->i[0];
        g->epilogue.act_param = call->f[0];
    }
    if (w && update) {
        /* the panels hold W's transpose: C = x^T delta, the factors of each term exchanged */
        const int64_t m = g->m;
        g->m = g->n;
        g->n = m;
        g->b = a->data;
        g->b_ks = pitch(a);
        g->b_ns = 1;
        g->a = b->data;
        g->a_rs = 1;
        g->a_ks = pitch(b);
        g->c = NULL;
        g->c_panels = *w;
        g->epilogue.s1 = state[0];
        g->epilogue.s2 = state[1];
    } else if (w) {
        g->b = NULL;
        g->b_panels = *w;
    }
}

void chainrule_prepare(chainrule_task *task, const chainrule_call *call,
                       const chainrule_kernels *kernels, const chainrule_panels *w,
                       void *const state[2]) {
    task->call = *call;
    task->kernels = kernels;
    task->begin = task->base = task->t = 0;
    task->team = 1;
    const chainrule_view *lead = call->n_out ? &call->out[0] : call->n_in ? &call->in[0] : &no_view;
    task->end = lead->ndim ? lead->shape[0] : 1;
    if (chainrule_class_of(call->op) == CONTRACT) prepare_contract(task, w, state);
}

static void narrow_view(chainrule_view *v, int axis, int64_t begin, int64_t end) {
    if (axis == WHOLE) return;
    v->data = (char *)v->data + begin * v->stride[axis] * chainrule_size(v->dtype);
    v->shape[axis] = end - begin;
}

static const void *offset(const void *p, int64_t n, int64_t size) {
    return p ? (const char *)p + n * size : NULL;
}

static void narrow_contract(chainrule_contract *g, int64_t begin, int64_t end, int64_t size,
                            int panel) {
    chainrule_epilogue *e = &g->epilogue;
    const int64_t ld = g->c_panels.data ? panel : g->ldc;
    g->m = end - begin;
    g->a = offset(g->a, begin * g->a_rs, size);
    g->c = (void *)offset(g->c, begin * ld, size);
    g->c_panels.data = (void *)offset(g->c_panels.data, begin * ld, size);
    e->s1 = (void *)offset(e->s1, begin * ld, size);
    e->s2 = (void *)offset(e->s2, begin * ld, size);
    e->z = (void *)offset(e->z, begin * e->ldz, size);
    e->r = offset(e->r, begin * e->ldr, size);
}

int chainrule_narrow(chainrule_task *task, const chainrule_split *split, int t, int team) {
    chainrule_call *call = &task->call;
    if (split->by_kernel) {
        task->t = t;
        task->team = team;
        return 1;
    }
    int64_t begin, end;
    chainrule_part(split->extent, 1, t, team, &begin, &end);
    if (begin >= end) return 0;
    if (split->extent == 1) return 1;
    int ids;
    chainrule_index_bound(call, &ids);
    if (ids >= 0) {
        task->base = begin;
        for (int a = 1; a < call->in[ids].ndim; a++) task->base *= call->in[ids].shape[a];
    }
    switch (chainrule_class_of(call->op)) {
    case CONTRACT:
        narrow_contract(&task->contract, begin, end, chainrule_size(call->in[0].dtype),
                        task->kernels->panel);
        break;
    case REDUCE:
    case ROWS:
    case GATHER:
        for (int j = 0; j < call->n_out; j++) narrow_view(&call->out[j], split->out[j], begin, end);
        for (int j = 0; j < call->n_in; j++) narrow_view(&call->in[j], split->in[j], begin, end);
        task->end = end - begin;
        break;
    default:
        task->begin = begin;
        task->end = end;
    }
    return 1;
}

void chainrule_narrow_panels(chainrule_task *task, int64_t begin, int64_t end) {
    chainrule_contract *g = &task->contract;
    const int64_t size = chainrule_size(task->call.in[0].dtype), panel = task->kernels->panel;
    const int64_t column = begin * panel, at = column * g->c_panels.k;
    g->n = end * panel < g->n ? (end - begin) * panel : g->n - column;
    g->b = offset(g->b, column * g->b_ns, size);
    g->c_panels.n = g->n;
    g->c_panels.data = (void *)offset(g->c_panels.data, at, size);
    g->epilogue.s1 = (void *)offset(g->epilogue.s1, at, size);
    g->epilogue.s2 = (void *)offset(g->epilogue.s2, at, size);
}

size_t chainrule_scratch(const chainrule_task *task, int team) {
    const chainrule_call *call = &task->call;
    const size_t size = (size_t)chainrule_size(call->n_in ? call->in[0].dtype : DT_F64);
    switch (chainrule_class_of(call->op)) {
    case CONTRACT:
        return task->kernels->contract_scratch(&task->contract, team) * size;
    default:
        return 0;
    }
}

/* The kernels of class ROWS trust their labels. */
static int64_t first_bad_label(const chainrule_call *call) {
    int operand;
    const int64_t bound = chainrule_index_bound(call, &operand);
    if (operand < 0) return -1;
    const chainrule_view *y = &call->in[operand];
    for (int64_t i = 0; i < y->shape[0]; i++) {
        const int64_t at = i * y->stride[0];
        const int64_t id =
            y->dtype == DT_I32 ? ((const int32_t *)y->data)[at] : ((const int64_t *)y->data)[at];
        if (id < 0 || id >= bound) return i;
    }
    return -1;
}

int64_t chainrule_task_run(const chainrule_task *task, void *scratch) {
    const chainrule_call *call = &task->call;
    int64_t bad = -1;
    switch (chainrule_class_of(call->op)) {
    case MAP:
        task->kernels->map(call, task->begin, task->end);
        break;
    case UPDATE:
        task->kernels->update(call, task->begin, task->end);
        break;
    case REDUCE:
        task->kernels->reduce(call, scratch, 0, 1);
        break;
    case ROWS:
        bad = first_bad_label(call);
        if (bad < 0) task->kernels->rows(call, task->begin, task->end);
        break;
    case CONTRACT:
        task->kernels->contract(&task->contract, scratch, 0, 1);
        break;
    case GATHER:
        task->kernels->gather(call, scratch, task->t, task->team, &bad);
        break;
    case COPY:
        chainrule_copy(call, task->begin, task->end);
        break;
    }
    return bad < 0 ? -1 : task->base + bad;
}
