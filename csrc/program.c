/* begin, run, end. A run does what the arithmetic needs and no more: items were prepared before,
 * nothing is allocated, one thread meets neither OpenMP nor an atomic. */
#if defined(__linux__)
#define _GNU_SOURCE /* clock_gettime under -std=c11 */
#endif
#include "plan.h"

#include "dispatch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int64_t bytes_of(const chainrule_view *v) {
    int64_t n = chainrule_size(v->dtype);
    for (int a = 0; a < v->ndim; a++) n *= v->shape[a];
    return n;
}

static int is_bound(const chainrule_buffer *b) {
    return b->kind == KIND_PARAM || b->kind == KIND_CONST;
}

chainrule_status chainrule_program_create(int64_t n_buffers, const int64_t *buffers,
                                          int64_t n_instructions, const int64_t *instructions,
                                          const double *floats, chainrule_program **program,
                                          chainrule_error *e) {
    chainrule_clear(e);
    *program = NULL;
    chainrule_program *p = calloc(1, sizeof *p);
    if (!p) return chainrule_fail(e, CHAINRULE_MEMORY, "out of memory");
    p->kernels[0] = chainrule_table(DT_F32);
    p->kernels[1] = chainrule_table(DT_F64);
    chainrule_status s =
        chainrule_parse(p, n_buffers, buffers, n_instructions, instructions, floats, e);
    if (!s) s = chainrule_plan(p, chainrule_choose_threads(0, p->work), e);
    if (s)
        chainrule_program_free(p);
    else
        *program = p;
    return s;
}

void chainrule_program_free(chainrule_program *p) {
    if (!p) return;
    chainrule_unplan(p);
    free(p->buffers);
    free(p->instructions);
    free(p->scalars);
    free(p->panel_memory);
    free(p);
}

chainrule_status chainrule_program_bind(chainrule_program *p, int64_t buffer,
                                        const chainrule_array *array, chainrule_error *e) {
    chainrule_clear(e);
    if (e) e->position = buffer;
    if (p->begun) return chainrule_fail(e, CHAINRULE_STATE, "bind: the program is begun");
    if (buffer < 0 || buffer >= p->n_buffers || !is_bound(&p->buffers[buffer]))
        return chainrule_fail(e, CHAINRULE_VALUE, "bind: buffer %lld is neither PARAM nor CONST",
                              (long long)buffer);
    chainrule_view *v = &p->buffers[buffer].view;
    if (array->dtype != v->dtype)
        return chainrule_fail(e, CHAINRULE_TYPE, "bind: buffer %lld has another element type",
                              (long long)buffer);
    int same = array->ndim == v->ndim;
    for (int a = 0; same && a < v->ndim; a++) same = array->shape[a] == v->shape[a];
    if (!same)
        return chainrule_fail(e, CHAINRULE_VALUE, "bind: buffer %lld has another shape",
                              (long long)buffer);
    for (int a = 0; a < v->ndim && bytes_of(v); a++)
        same &= v->shape[a] == 1 || array->stride[a] == v->stride[a];
    if (!same || (uintptr_t)array->data % (uintptr_t)chainrule_size(v->dtype))
        return chainrule_fail(e, CHAINRULE_VALUE,
                              "bind: buffer %lld: expected a C-contiguous, "
                              "aligned array",
                              (long long)buffer);
    p->stale |= v->data != array->data;
    v->data = array->data;
    return CHAINRULE_OK;
}

int chainrule_program_writes(const chainrule_program *p, int64_t buffer) {
    return buffer >= 0 && buffer < p->n_buffers && p->buffers[buffer].written > 0;
}

/* ---- begin and end -----------------------------------------------------------------------------
 */

static chainrule_status check_bound(const chainrule_program *p, chainrule_error *e) {
    for (int64_t b = 0; b < p->n_buffers; b++) {
        const chainrule_buffer *x = &p->buffers[b];
        if (!is_bound(x)) continue;
        if (!x->view.data && bytes_of(&x->view))
            return chainrule_fail(e, CHAINRULE_STATE, "begin: buffer %lld is not bound",
                                  (long long)b);
        if (!x->written) continue;
        const uintptr_t start = (uintptr_t)x->view.data;
        for (int64_t c = 0; c < p->n_buffers; c++) {
            const chainrule_buffer *y = &p->buffers[c];
            const uintptr_t other = (uintptr_t)y->view.data;
            if (c != b && is_bound(y) && start < other + (uintptr_t)bytes_of(&y->view) &&
                other < start + (uintptr_t)bytes_of(&x->view))
                return chainrule_fail(e, CHAINRULE_VALUE,
                                      "begin: buffer %lld is written and shares memory with %lld",
                                      (long long)b, (long long)c);
        }
    }
    return CHAINRULE_OK;
}

typedef struct {
    chainrule_program *p;
    int out; /* from the panels back */
} transfer;

static void transfer_part(void *argument, int t, int team, chainrule_barrier *barrier) {
    (void)barrier;
    const transfer *x = argument;
    for (int64_t b = 0; b < x->p->n_all; b++) {
        const chainrule_buffer *w = &x->p->buffers[b];
        if (!w->panels.data || (x->out && !w->written)) continue;
        const chainrule_kernels *kernels = chainrule_kernels_of(x->p, w->view.dtype);
        const int copy = w->kind == KIND_TRANSPOSED;
        void *bound = copy ? x->p->buffers[w->of].view.data : w->view.data;
        const int64_t k = w->view.shape[1]; /* w is (N, K), row-major */
        if (x->out)
            kernels->unpack(w->panels, bound, 1, k, t, team);
        else
            kernels->pack(bound, copy ? k : 1, copy ? 1 : k, w->panels, t, team);
    }
}

static void move_parameters(chainrule_program *p, int out) {
    transfer x = {p, out};
    int64_t bytes = 0;
    for (int64_t b = 0; b < p->n_all; b++)
        if (p->buffers[b].panels.data) bytes += bytes_of(&p->buffers[b].view);
    if (bytes) chainrule_team_run(bytes > 1 << 19 ? p->team : 1, transfer_part, &x);
}

chainrule_status chainrule_program_begin(chainrule_program *p, int threads, chainrule_error *e) {
    chainrule_clear(e);
    if (p->begun) return chainrule_fail(e, CHAINRULE_STATE, "begin: the program is begun already");
    if (threads < 0 || threads > 1024)
        return chainrule_fail(e, CHAINRULE_VALUE, "begin: expected 0 to 1024 threads, got %d",
                              threads);
    chainrule_status s = check_bound(p, e);
    const int team = chainrule_choose_threads(threads, p->work);
    if (!s && team != p->team) s = chainrule_plan(p, team, e);
    if (!s && p->stale) s = chainrule_fill(p, e);
    if (s) return s;
    move_parameters(p, 0);
    p->begun = 1;
    return CHAINRULE_OK;
}

void chainrule_program_end(chainrule_program *p) {
    if (!p->begun) return;
    move_parameters(p, 1);
    p->begun = 0;
}

/* ---- run ---------------------------------------------------------------------------------------
 */

typedef struct {
    chainrule_program *p;
    const chainrule_batch *batch;
    int64_t step, deadline;
    int stop;
    chainrule_failure failure;
} run;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static chainrule_rows rows_of(const chainrule_rows_of *r) {
    const int64_t size = chainrule_size(r->dtype);
    return (chainrule_rows){r->data, r->rows, r->pitch * size, r->dtype, r->width};
}

static void read_scalars(const run *r, chainrule_worker *w) {
    const chainrule_program *p = r->p;
    const double *row = r->batch->scalars + r->step * r->batch->n_scalars;
    for (int64_t k = 0; k < p->n_scalar_buffers; k++) {
        const chainrule_buffer *x = &p->buffers[p->scalars[k]];
        if (x->view.dtype == DT_F64)
            memcpy(w->scalars + x->offset, row + x->column, (size_t)x->bytes);
        else
            chainrule_cast(DT_I64, w->scalars + x->offset, DT_F64, row + x->column, 1);
    }
}

static double number(const chainrule_view *v) {
    return v->dtype == DT_F32 ? *(const float *)v->data : *(const double *)v->data;
}

/* -1, or the position of an index out of range */
static int64_t run_item(const run *r, const chainrule_worker *w, const chainrule_item *item) {
    const chainrule_task *task = &item->task;
    const chainrule_call *call = &task->call;
    const chainrule_batch *batch = r->batch;
    const int64_t at = r->step * r->p->batch;
    switch (call->op) {
    case OP_load: {
        const chainrule_rows source = rows_of(&batch->sources[call->i[0]]);
        return chainrule_load(&call->out[0], &source, batch->index ? batch->index + at : NULL,
                              batch->first_row + at, task->begin, task->end);
    }
    case OP_store: {
        const chainrule_rows output = rows_of(&batch->outputs[call->i[0]]);
        chainrule_store(&call->in[0], &output, batch->first_row + at, task->begin, task->end);
        return -1;
    }
    case OP_result:
        batch->results[r->step * batch->n_results + call->i[0]] = number(&call->in[0]);
        return -1;
    case OP_TRANSPOSE_PANELS:
        task->kernels->transpose_panels(item->from, item->to, task->begin, task->end);
        return -1;
    }
    return chainrule_task_run(task, w->scratch);
}

/* One thread's part of a phase; it leaves off at its first failure. */
static void run_phase(const run *r, chainrule_worker *w, int64_t phase) {
    for (int64_t k = phase ? w->phase_end[phase - 1] : 0; k < w->phase_end[phase]; k++) {
        const int64_t bad = run_item(r, w, &w->items[k]);
        if (bad >= 0) {
            w->failure = (chainrule_failure){w->items[k].number, bad};
            return;
        }
    }
}

/* After a phase, by one thread while the others wait: the failure that comes first in the list. */
static void after_phase(void *argument) {
    run *r = argument;
    for (int t = 0; t < r->p->team; t++) {
        const chainrule_failure *f = &r->p->workers[t].failure;
        if (f->number < 0) continue;
        if (!r->stop || f->number < r->failure.number ||
            (f->number == r->failure.number && f->position < r->failure.position))
            r->failure = *f;
        r->stop = 1;
    }
}

static void after_step(void *argument) {
    run *r = argument;
    after_phase(r);
    if (r->stop) return;
    const chainrule_batch *batch = r->batch;
    const double *results = batch->results + r->step * batch->n_results;
    r->step++;
    r->stop = r->step >= batch->steps || (r->p->n_results && !isfinite(results[0])) ||
              (r->deadline && now() >= r->deadline);
}

/* Thread t of n runs the parts of workers t, t + n, ...: n is the team that was planned for, unless
 * it could not be had. */
static void run_part(void *argument, int t, int n, chainrule_barrier *barrier) {
    run *r = argument;
    chainrule_program *p = r->p;
    int sense = 0;
    while (!r->stop) {
        for (int q = t; q < p->team; q += n) read_scalars(r, &p->workers[q]);
        for (int64_t phase = 0; phase < p->phases && !r->stop; phase++) {
            for (int q = t; q < p->team; q += n) run_phase(r, &p->workers[q], phase);
            chainrule_barrier_wait(barrier, &sense,
                                   phase + 1 == p->phases ? after_step : after_phase, r);
        }
    }
}

static chainrule_status check_rows(const chainrule_instruction *x, const chainrule_rows_of *r,
                                   chainrule_error *e) {
    const chainrule_view *v = x->call.op == OP_load ? &x->call.out[0] : &x->call.in[0];
    int64_t width = 1;
    for (int a = 1; a < v->ndim; a++) width *= v->shape[a];
    const char *what = x->call.op == OP_load ? "source" : "output";
    if (e) e->op = x->call.op, e->instruction = x->number, e->position = x->call.i[0];
    if (r->width != width) {
        if (e) e->expected = width, e->got = r->width;
        return chainrule_fail(e, CHAINRULE_VALUE,
                              "%s %lld: expected rows of %lld elements, got %lld", what,
                              (long long)x->call.i[0], (long long)width, (long long)r->width);
    }
    if (r->dtype < 0 || r->dtype >= DT_COUNT || (x->call.op == OP_store && r->dtype != v->dtype)) {
        if (e) e->expected = v->dtype, e->got = r->dtype;
        return chainrule_fail(e, CHAINRULE_TYPE, "%s %lld: wrong element type", what,
                              (long long)x->call.i[0]);
    }
    return CHAINRULE_OK;
}

static chainrule_status check_batch(const chainrule_program *p, const chainrule_batch *b,
                                    chainrule_error *e) {
    const struct {
        const char *what;
        int64_t needed, got;
    } counts[] = {
        {"sources", p->n_sources, b->n_sources},
        {"outputs", p->n_outputs, b->n_outputs},
        {"columns of scalars", p->n_scalars, b->n_scalars},
        {"columns of results", p->n_results, b->n_results},
    };
    for (size_t k = 0; k < sizeof counts / sizeof *counts; k++)
        if (counts[k].got < counts[k].needed)
            return chainrule_fail(e, CHAINRULE_VALUE, "run: expected %lld %s, got %lld",
                                  (long long)counts[k].needed, counts[k].what,
                                  (long long)counts[k].got);
    if (b->steps < 0 || b->first_row < 0 || b->first_row > INT64_MAX / 4 ||
        (p->batch && b->steps > INT64_MAX / 4 / p->batch))
        return chainrule_fail(e, CHAINRULE_VALUE, "run: steps or first_row out of range");
    const int64_t last = b->first_row + b->steps * p->batch;
    for (int64_t k = 0; k < p->n_instructions; k++) {
        const chainrule_instruction *x = &p->instructions[k];
        if (x->call.op != OP_load && x->call.op != OP_store) continue;
        const chainrule_rows_of *r =
            x->call.op == OP_load ? &b->sources[x->call.i[0]] : &b->outputs[x->call.i[0]];
        const chainrule_status s = check_rows(x, r, e);
        if (s) return s;
        if (x->call.op == OP_store && r->rows < last)
            return chainrule_fail(e, CHAINRULE_VALUE, "output %lld: expected %lld rows, got %lld",
                                  (long long)x->call.i[0], (long long)last, (long long)r->rows);
    }
    return CHAINRULE_OK;
}

chainrule_status chainrule_program_run(chainrule_program *p, const chainrule_batch *batch,
                                       int64_t *done, chainrule_error *e) {
    chainrule_clear(e);
    *done = 0;
    if (!p->begun) return chainrule_fail(e, CHAINRULE_STATE, "run: call begin first");
    chainrule_status s = check_batch(p, batch, e);
    if (s || batch->steps == 0) return s;
    run r = {.p = p, .batch = batch, .failure.number = -1};
    if (batch->budget_ns > 0) r.deadline = now() + batch->budget_ns;
    for (int t = 0; t < p->team; t++) p->workers[t].failure.number = -1;
    chainrule_team_run(p->team, run_part, &r);
    *done = r.step;
    if (r.failure.number < 0) return CHAINRULE_OK;
    int op = -1;
    for (int64_t k = 0; k < p->n_instructions; k++)
        if (p->instructions[k].number == r.failure.number && p->instructions[k].call.op < OP_COUNT)
            op = p->instructions[k].call.op;
    if (e) {
        e->op = op;
        e->instruction = r.failure.number;
        e->step = r.step;
        e->position = r.failure.position;
    }
    return chainrule_fail(e, CHAINRULE_INDEX, "step %lld: %s: index out of range at position %lld",
                          (long long)r.step, chainrule_op_name(op), (long long)r.failure.position);
}

void chainrule_program_describe(const chainrule_program *p, chainrule_program_stats *stats) {
    *stats = (chainrule_program_stats){
        .temporary_bytes = p->arena_bytes,
        .instructions = p->n_instructions,
        .barriers = p->team > 1 ? p->phases : 0,
        .threads = p->team,
        .batch = p->batch,
    };
    for (int64_t b = 0; b < p->n_buffers; b++) stats->panelled += p->buffers[b].panelled;
}
