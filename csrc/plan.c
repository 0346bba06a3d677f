/* Order, barriers and memory of a program for one size of team.
 *
 * Each instruction divides something: the rows of the minibatch, the rows or panels of a weight
 * matrix, or nothing (one thread does it). Two instructions that divide a buffer in the same way
 * need no barrier between them, because each thread meets only what it wrote itself. Instructions
 * that can do without one are brought together into a phase; a barrier ends each phase.
 */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

/* How the threads share out a buffer: beyond the axes 0 and 1 of chainrule_split */
enum { ALL = WHOLE, ONE = 2, PANELS = 3, PANEL_ROWS = 4 };

typedef struct {
    int64_t buffer, extent;
    int32_t how, writes;
} access;

enum { MOST_ACCESSES = MAX_IN + MAX_OUT };

static int is_transposing(const chainrule_instruction *x) {
    return x->call.op == OP_TRANSPOSE_PANELS;
}

static int64_t panels_of(const chainrule_program *p, const chainrule_buffer *w) {
    const int64_t panel = chainrule_kernels_of(p, w->view.dtype)->panel;
    return (w->panels.n + panel - 1) / panel;
}

static int updates_panels(const chainrule_program *p, const chainrule_instruction *x) {
    return x->call.op == OP_matmul_update && p->buffers[x->out[0]].panelled;
}

/* Whole panels where they come out even, or nearly; else the rows of all panels, which always do,
 * but then the transposed copy waits for a barrier: a matter of some 10,000 operations. */
static int by_panels(const chainrule_program *p, const chainrule_instruction *x, int team) {
    const chainrule_buffer *w = &p->buffers[x->out[0]];
    const int64_t panel = chainrule_kernels_of(p, w->view.dtype)->panel;
    int64_t most = (panels_of(p, w) + team - 1) / team * panel;
    if (most > w->panels.n) most = w->panels.n;
    const double excess = (double)most - (double)w->panels.n / team;
    const double work = 2 * excess * (double)w->panels.k * (double)x->call.in[0].shape[0];
    return work < 20000 || w->panels.k < team;
}

static chainrule_split split_of(const chainrule_program *p, const chainrule_instruction *x,
                                int team, int *how) {
    chainrule_split s;
    if (is_transposing(x) || updates_panels(p, x)) {
        const chainrule_buffer *w = &p->buffers[is_transposing(x) ? x->in[0] : x->out[0]];
        *how = is_transposing(x) || by_panels(p, x, team) ? PANELS : PANEL_ROWS;
        memset(&s, WHOLE, sizeof s);
        s.extent = *how == PANELS ? panels_of(p, w) : w->panels.k;
        s.by_kernel = 0;
        return s;
    }
    s = chainrule_split_of(&x->call);
    *how = s.extent == 1 ? ONE : 0;
    return s;
}

static int accesses_of(const chainrule_program *p, const chainrule_instruction *x, int team,
                       access list[MOST_ACCESSES]) {
    int how, n = 0;
    const chainrule_split s = split_of(p, x, team, &how);
    const int updated = is_transposing(x) ? 0 : chainrule_in_place(x->call.op, 0);
    for (int j = 0; j < x->call.n_in; j++) {
        if (p->buffers[x->in[j]].kind == KIND_SCALARS) continue; /* each thread has its own */
        const int own = updated >= 0 && j >= updated && j < updated + x->call.n_out;
        list[n++] = (access){x->in[j], s.extent,
                             how >= PANELS && own ? how
                             : how                ? ALL
                                                  : s.in[j],
                             0};
        if (how == ONE) list[n - 1].how = ONE;
    }
    for (int j = 0; j < x->call.n_out; j++)
        list[n++] = (access){x->out[j], s.extent,
                             is_transposing(x) ? ALL
                             : how             ? how
                                               : s.out[j],
                             1};
    return n;
}

/* Does each thread meet only its own part of what both use? */
static int aligned(const access *a, const access *b) {
    return a->how == b->how && a->how != ALL && a->extent == b->extent &&
           (a->how != 1 || a->buffer == b->buffer);
}

/* ---- order and barriers ------------------------------------------------------------------------
 */

/* What happened to a root in the current phase. */
typedef struct {
    int64_t phase;
    access first;
    int mixed, written;
} touched;

static int needs_barrier(const chainrule_program *p, const touched *roots, int64_t phase,
                         const access *list, int n) {
    for (int j = 0; j < n; j++) {
        const touched *t = &roots[p->buffers[list[j].buffer].root];
        if (t->phase == phase && (t->written || list[j].writes) &&
            (t->mixed || !aligned(&t->first, &list[j])))
            return 1;
    }
    return 0;
}

static void touch(const chainrule_program *p, touched *roots, int64_t phase, const access *list,
                  int n) {
    for (int j = 0; j < n; j++) {
        touched *t = &roots[p->buffers[list[j].buffer].root];
        if (t->phase != phase)
            *t = (touched){phase, list[j], 0, list[j].writes};
        else {
            t->mixed |= !aligned(&t->first, &list[j]);
            t->written |= list[j].writes;
        }
    }
}

/* Do instructions a < b of the list have to keep their order? */
static int depends(const chainrule_program *p, const chainrule_instruction *a,
                   const chainrule_instruction *b) {
    if (a->checks && b->writes_param) return 1;
    for (int j = 0; j < a->call.n_out; j++) {
        const int64_t root = p->buffers[a->out[j]].root;
        for (int i = 0; i < b->call.n_in; i++)
            if (p->buffers[b->in[i]].root == root) return 1;
        for (int i = 0; i < b->call.n_out; i++)
            if (p->buffers[b->out[i]].root == root) return 1;
    }
    for (int j = 0; j < a->call.n_in; j++)
        for (int i = 0; i < b->call.n_out; i++)
            if (p->buffers[b->out[i]].root == p->buffers[a->in[j]].root) return 1;
    return 0;
}

static chainrule_status schedule(chainrule_program *p, int team, chainrule_error *e) {
    const int64_t n = p->n_instructions;
    if (team == 1) {
        for (int64_t k = 0; k < n; k++) p->order[k] = k, p->phase_of[k] = 0;
        p->phases = 1;
        return CHAINRULE_OK;
    }
    touched *roots = calloc((size_t)p->n_all + 1, sizeof *roots);
    if (!roots) return chainrule_fail(e, CHAINRULE_MEMORY, "out of memory");
    for (int64_t b = 0; b < p->n_all; b++) roots[b].phase = -1;
    for (int64_t k = 0; k < n; k++) p->phase_of[k] = -1;
    int64_t done = 0, phase = 0, first = 0;
    for (; done < n; phase++) {
        int has_checks = 0;
        for (int64_t k = first; k < n; k++) {
            if (p->phase_of[k] >= 0) continue;
            const chainrule_instruction *x = &p->instructions[k];
            int ready = !(x->writes_param && has_checks);
            for (int64_t j = first; ready && j < k; j++)
                ready = p->phase_of[j] >= 0 || !depends(p, &p->instructions[j], x);
            if (!ready) continue;
            access list[MOST_ACCESSES];
            const int m = accesses_of(p, x, team, list);
            if (needs_barrier(p, roots, phase, list, m)) continue;
            touch(p, roots, phase, list, m);
            has_checks |= x->checks;
            p->phase_of[k] = phase;
            p->order[done++] = k;
        }
        while (first < n && p->phase_of[first] >= 0) first++;
    }
    p->phases = phase ? phase : 1;
    free(roots);
    return CHAINRULE_OK;
}

/* ---- temporaries -------------------------------------------------------------------------------
 */

typedef struct {
    int64_t first, last; /* positions in the order */
    int64_t first_phase, last_phase;
    int64_t rows; /* extent if only ever divided by rows, else -1 */
} lifetime;

typedef struct {
    int64_t bytes, pitch, offset;
    lifetime life; /* of its latest tenant */
} slot;

/* A slot is free again once its tenant's last phase is over; or within the phase, if both are
 * divided by rows alike, so that each thread moves into rows of its own. */
static int is_free(const slot *s, const lifetime *l, int64_t pitch, int team) {
    if (s->life.last >= l->first) return 0;
    return team == 1 || s->life.last_phase < l->first_phase ||
           (l->rows >= 0 && s->life.rows == l->rows && s->pitch == pitch);
}

static int64_t row_bytes(const chainrule_buffer *b) {
    return (b->view.ndim ? b->view.stride[0] : 1) * chainrule_size(b->view.dtype);
}

static chainrule_status place(chainrule_program *p, int team, chainrule_error *e) {
    lifetime *life = malloc(((size_t)p->n_all + 1) * sizeof *life);
    slot *slots = malloc(((size_t)p->n_all + 1) * sizeof *slots);
    int64_t *slot_of = malloc(((size_t)p->n_all + 1) * sizeof *slot_of);
    chainrule_status s = CHAINRULE_OK;
    if (!life || !slots || !slot_of) {
        s = chainrule_fail(e, CHAINRULE_MEMORY, "out of memory");
        goto out;
    }
    for (int64_t b = 0; b < p->n_all; b++) life[b] = (lifetime){-1, -1, 0, 0, -2}, slot_of[b] = -1;
    for (int64_t at = 0; at < p->n_instructions; at++) {
        const chainrule_instruction *x = &p->instructions[p->order[at]];
        access list[MOST_ACCESSES];
        const int n = accesses_of(p, x, team, list);
        for (int j = 0; j < n; j++) {
            lifetime *l = &life[p->buffers[list[j].buffer].root];
            const int64_t phase = p->phase_of[p->order[at]];
            if (l->first < 0) l->first = at, l->first_phase = phase;
            l->last = at;
            l->last_phase = phase;
            const int64_t rows = list[j].how == 0 ? list[j].extent : -1;
            l->rows = l->rows == -2 || l->rows == rows ? rows : -1;
        }
    }
    int64_t n_slots = 0;
    for (int64_t at = 0; at < p->n_instructions; at++) {
        const chainrule_instruction *x = &p->instructions[p->order[at]];
        for (int j = 0; j < x->call.n_out; j++) {
            const int64_t root = p->buffers[x->out[j]].root;
            const chainrule_buffer *b = &p->buffers[root];
            if (b->kind != KIND_TEMP || slot_of[root] >= 0) continue;
            /* the tightest free slot that is large enough, else the largest, which grows */
            int64_t best = -1;
            for (int64_t k = 0; k < n_slots; k++) {
                if (!is_free(&slots[k], &life[root], row_bytes(b), team)) continue;
                const int64_t old = best < 0 ? 0 : slots[best].bytes, new = slots[k].bytes;
                if (best < 0 || (old < b->bytes ? new > old : new >= b->bytes && new < old))
                    best = k;
            }
            if (best < 0) slots[best = n_slots++].bytes = 0;
            if (slots[best].bytes < b->bytes) slots[best].bytes = b->bytes;
            slots[best].pitch = row_bytes(b);
            slots[best].life = life[root];
            slot_of[root] = best;
        }
    }
    p->arena_bytes = 0;
    for (int64_t k = 0; k < n_slots; k++) {
        slots[k].offset = p->arena_bytes;
        p->arena_bytes += (slots[k].bytes + 63) / 64 * 64;
    }
    for (int64_t b = 0; b < p->n_buffers; b++)
        if (slot_of[b] >= 0) p->buffers[b].offset = slots[slot_of[b]].offset;
    p->arena = chainrule_allocate((size_t)p->arena_bytes);
    if (!p->arena)
        s = chainrule_fail(e, CHAINRULE_MEMORY, "no memory for %lld bytes of temporaries",
                           (long long)p->arena_bytes);
out:
    free(life);
    free(slots);
    free(slot_of);
    return s;
}

/* ---- the threads' lists ------------------------------------------------------------------------
 */

static void *storage(const chainrule_program *p, const chainrule_worker *w, int64_t b) {
    const chainrule_buffer *root = &p->buffers[p->buffers[b].root];
    return root->kind == KIND_TEMP      ? p->arena + root->offset
           : root->kind == KIND_SCALARS ? w->scalars + root->offset
                                        : root->view.data;
}

/* Part t of an instruction; 0 if it is empty. */
static int fill_item(const chainrule_program *p, int t, const chainrule_instruction *x,
                     chainrule_item *item) {
    int how;
    const chainrule_split s = split_of(p, x, p->team, &how);
    int64_t begin, end;
    chainrule_part(s.extent, 1, t, p->team, &begin, &end);
    item->number = x->number;
    if (is_transposing(x)) {
        const chainrule_buffer *w = &p->buffers[x->in[0]];
        item->task.kernels = chainrule_kernels_of(p, w->view.dtype);
        item->task.call.op = x->call.op;
        item->task.begin = begin;
        item->task.end = end;
        item->from = w->panels;
        item->to = p->buffers[x->out[0]].panels;
        return begin < end;
    }
    const chainrule_worker *w = &p->workers[t];
    chainrule_call call = x->call;
    for (int j = 0; j < call.n_in; j++) call.in[j].data = storage(p, w, x->in[j]);
    for (int j = 0; j < call.n_out; j++) call.out[j].data = storage(p, w, x->out[j]);

    const chainrule_panels *panels = NULL;
    void *state[2] = {NULL, NULL};
    if (updates_panels(p, x)) {
        panels = &p->buffers[x->out[0]].panels;
        for (int j = 1; j < call.n_out; j++) state[j - 1] = p->buffers[x->out[j]].panels.data;
    } else if (chainrule_class_of(call.op) == CONTRACT && p->buffers[x->in[1]].panelled) {
        panels = &p->buffers[x->in[1]].panels;
    }
    chainrule_prepare(&item->task, &call, chainrule_kernels_for(&call, p->kernels), panels, state);
    if (how != PANELS) return chainrule_narrow(&item->task, &s, t, p->team);
    if (begin < end) chainrule_narrow_panels(&item->task, begin, end);
    return begin < end;
}

void chainrule_unplan(chainrule_program *p) {
    for (int t = 0; p->workers && t < p->team; t++) {
        free(p->workers[t].scratch);
        free(p->workers[t].scalars);
        free(p->workers[t].items);
        free(p->workers[t].phase_end);
    }
    free(p->workers);
    free(p->order);
    free(p->phase_of);
    free(p->arena);
    p->workers = NULL;
    p->order = p->phase_of = NULL;
    p->arena = NULL;
    p->team = 0;
}

/* The part of thread t, in phases, items that are empty left out. */
static void fill_worker(chainrule_program *p, int t) {
    chainrule_worker *w = &p->workers[t];
    int64_t n = 0, phase = 0;
    for (int64_t at = 0; at < p->n_instructions; at++) {
        const int64_t k = p->order[at];
        while (phase < p->phase_of[k]) w->phase_end[phase++] = n;
        n += fill_item(p, t, &p->instructions[k], &w->items[n]);
    }
    while (phase < p->phases) w->phase_end[phase++] = n;
    w->n_items = n;
}

chainrule_status chainrule_fill(chainrule_program *p, chainrule_error *e) {
    for (int t = 0; t < p->team; t++) {
        chainrule_worker *w = &p->workers[t];
        fill_worker(p, t);
        size_t scratch = 0;
        for (int64_t k = 0; k < w->n_items; k++) {
            const chainrule_task *task = &w->items[k].task;
            if (task->call.op == OP_TRANSPOSE_PANELS) continue;
            const size_t size = chainrule_scratch(task, 1);
            if (size > scratch) scratch = size;
        }
        free(w->scratch);
        w->scratch = chainrule_allocate(scratch);
        if (!w->scratch) return chainrule_fail(e, CHAINRULE_MEMORY, "no memory for scratch");
    }
    p->stale = 0;
    return CHAINRULE_OK;
}

chainrule_status chainrule_plan(chainrule_program *p, int team, chainrule_error *e) {
    chainrule_unplan(p);
    const size_t n = (size_t)p->n_instructions + 1;
    p->team = team;
    p->stale = 1;
    p->order = malloc(n * sizeof *p->order);
    p->phase_of = malloc(n * sizeof *p->phase_of);
    p->workers = chainrule_allocate((size_t)team * sizeof *p->workers);
    if (p->workers) memset(p->workers, 0, (size_t)team * sizeof *p->workers);
    chainrule_status s = CHAINRULE_OK;
    if (!p->order || !p->phase_of || !p->workers)
        s = chainrule_fail(e, CHAINRULE_MEMORY, "out of memory");
    if (!s) s = schedule(p, team, e);
    if (!s) s = place(p, team, e);
    size_t scalars = 0;
    for (int64_t b = 0; b < p->n_buffers; b++)
        if (p->buffers[b].kind == KIND_SCALARS) scalars += (size_t)p->buffers[b].bytes;
    for (int t = 0; !s && t < team; t++) {
        chainrule_worker *w = &p->workers[t];
        w->items = calloc(n, sizeof *w->items);
        w->phase_end = calloc((size_t)p->phases, sizeof *w->phase_end);
        w->scalars = chainrule_allocate(scalars);
        if (!w->items || !w->phase_end || !w->scalars)
            s = chainrule_fail(e, CHAINRULE_MEMORY, "out of memory");
    }
    if (s) chainrule_unplan(p);
    return s;
}
