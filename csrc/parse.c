/* Tables to buffers and instructions: everything is checked here, once. */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

enum { MOST = 1 << 20 }; /* buffers, instructions */
static const int64_t MOST_ELEMENTS = INT64_C(1) << 40;

void *chainrule_allocate(size_t n) { return aligned_alloc(64, (n + 64) / 64 * 64); }

static int64_t inner_of(const chainrule_view *v) {
    int64_t n = 1;
    for (int a = 1; a < v->ndim; a++) n *= v->shape[a];
    return n;
}

static int64_t rows_of(const chainrule_view *v) { return v->ndim ? v->shape[0] : 1; }

/* Rows contiguous inside, `pitch` apart. */
static void set_strides(chainrule_view *v, int64_t pitch) {
    int64_t step = 1;
    for (int a = v->ndim - 1; a >= 0; a--) {
        v->stride[a] = a == 0 && v->ndim > 1 ? pitch : step;
        step *= v->shape[a];
    }
}

/* Whole vectors a row, but no power of two of them: rows would fall into the same cache sets. */
static int64_t padded(const chainrule_view *v) {
    const int64_t inner = inner_of(v);
    if (v->ndim < 2 || inner == 1) return inner;
    const int64_t pitch = (inner + 15) / 16 * 16;
    return pitch % 256 == 0 ? pitch + 16 : pitch;
}

static chainrule_status bad(chainrule_error *e, const char *what, int64_t at, int64_t got) {
    if (e) e->got = got;
    return chainrule_fail(e, CHAINRULE_VALUE, "%s %lld: got %lld", what, (long long)at,
                          (long long)got);
}

static chainrule_status parse_buffer(chainrule_buffer *b, const int64_t *row, int64_t number,
                                     chainrule_error *e) {
    if (row[0] < 0 || row[0] > KIND_SCALARS) return bad(e, "kind of buffer", number, row[0]);
    if (row[1] < 0 || row[1] >= DT_COUNT) return bad(e, "dtype of buffer", number, row[1]);
    if (row[2] < 0 || row[2] > MAX_DIMS) return bad(e, "axes of buffer", number, row[2]);
    b->kind = (int32_t)row[0];
    b->view.dtype = (int32_t)row[1];
    b->view.ndim = (int32_t)row[2];
    b->root = number;
    b->of = -1;
    int64_t n = 1;
    for (int a = 0; a < b->view.ndim; a++) {
        const int64_t size = row[3 + a];
        if (size < 0 || size > MOST_ELEMENTS || (n && size > MOST_ELEMENTS / n))
            return bad(e, "size of buffer", number, size);
        b->view.shape[a] = size;
        n *= size;
    }
    if (b->kind == KIND_TEMP) {
        const int64_t pitch = padded(&b->view);
        set_strides(&b->view, pitch);
        b->bytes = rows_of(&b->view) * pitch * chainrule_size(b->view.dtype);
    } else {
        set_strides(&b->view, inner_of(&b->view));
    }
    if (b->kind == KIND_SCALARS) {
        const int real = b->view.dtype == DT_F64 && b->view.ndim < 2;
        if (!real && !(b->view.dtype == DT_I64 && b->view.ndim == 0))
            return bad(e, "type and axes of scalars, buffer", number, b->view.ndim);
        if (row[7] < 0 || row[7] > MOST) return bad(e, "column of scalars, buffer", number, row[7]);
        if (n > MOST) return bad(e, "number of scalars, buffer", number, n);
        b->column = row[7];
        b->bytes = n * 8;
    }
    return CHAINRULE_OK;
}

/* Whether an earlier instruction has looked at the same indices with the same bound. */
static int checked_before(const chainrule_program *p, int64_t k) {
    const chainrule_instruction *x = &p->instructions[k];
    int operand, other;
    const int64_t bound = chainrule_index_bound(&x->call, &operand);
    for (int64_t j = 0; j < k; j++) {
        const chainrule_instruction *y = &p->instructions[j];
        if (chainrule_index_bound(&y->call, &other) != bound || other < 0) continue;
        if (y->in[other] == x->in[operand]) return 1;
        if (y->call.op == OP_row_sums && y->out[0] == x->in[operand]) return 1;
    }
    return 0;
}

static chainrule_status parse_instruction(chainrule_program *p, int64_t k, const int64_t *row,
                                          const double *floats, int64_t *writer,
                                          chainrule_error *e) {
    chainrule_instruction *x = &p->instructions[k];
    chainrule_call *call = &x->call;
    if (row[0] < 0 || row[0] >= OP_COUNT) return bad(e, "op of instruction", k, row[0]);
    if (e) e->op = (int32_t)row[0];
    if (row[1] < 0 || row[1] > MAX_OUT) return bad(e, "outputs of instruction", k, row[1]);
    if (row[6] < 0 || row[6] > MAX_IN) return bad(e, "inputs of instruction", k, row[6]);
    call->op = (int32_t)row[0];
    call->n_out = (int32_t)row[1];
    call->n_in = (int32_t)row[6];
    memcpy(call->i, row + 15, sizeof call->i);
    memcpy(call->f, floats, sizeof call->f);
    x->number = k;

    for (int j = 0; j < call->n_in; j++) {
        const int64_t b = x->in[j] = row[7 + j];
        if (b < 0 || b >= p->n_buffers) return bad(e, "buffer of instruction", k, b);
        if (p->buffers[b].kind == KIND_TEMP && writer[b] < 0)
            return bad(e, "not written yet, buffer of instruction", k, b);
        call->in[j] = p->buffers[b].view;
    }
    for (int j = 0; j < call->n_out; j++) {
        const int64_t b = x->out[j] = row[2 + j];
        if (b < 0 || b >= p->n_buffers) return bad(e, "buffer of instruction", k, b);
        if (p->buffers[b].kind != KIND_TEMP && p->buffers[b].kind != KIND_PARAM)
            return bad(e, "not to be written, buffer of instruction", k, b);
        call->out[j] = p->buffers[b].view;
        for (int i = 0; i < j; i++)
            if (x->out[i] == b) return bad(e, "written twice, buffer of instruction", k, b);
        for (int i = 0; i < call->n_in; i++) {
            /* in place: its own operand only, or an elementwise op on the same elements */
            const int updated = chainrule_in_place(call->op, j);
            const int own = updated >= 0 ? i == updated
                                         : chainrule_class_of(call->op) == MAP &&
                                               call->op != OP_cast && call->n_out == 1;
            if (x->in[i] == b && !own)
                return bad(e, "read and written, buffer of instruction", k, b);
        }
    }
    chainrule_status s = chainrule_check(call, e);
    if (s) return s;
    for (int j = 0; j < call->n_out; j++) {
        const int64_t b = x->out[j];
        const int updated = chainrule_in_place(call->op, j);
        if (updated >= 0 && x->in[updated] != b)
            return bad(e, "expected to be updated in place, buffer of instruction", k, b);
        int reads = 0;
        for (int i = 0; i < call->n_in; i++) reads |= x->in[i] == b;
        if (p->buffers[b].kind == KIND_TEMP && writer[b] >= 0 && !reads)
            return bad(e, "written again, buffer of instruction", k, b);
        writer[b] = k;
        p->buffers[b].written++;
        x->writes_param |= p->buffers[b].kind == KIND_PARAM;
    }

    const chainrule_view *lead = call->op == OP_load    ? &call->out[0]
                                 : call->op == OP_store ? &call->in[0]
                                                        : NULL;
    if (lead) {
        const int64_t batch = rows_of(lead);
        if (p->batch >= 0 && p->batch != batch) return bad(e, "batch of instruction", k, batch);
        p->batch = batch;
        int64_t *most = call->op == OP_load ? &p->n_sources : &p->n_outputs;
        if (call->i[0] >= MOST) return bad(e, "number in instruction", k, call->i[0]);
        if (call->i[0] >= *most) *most = call->i[0] + 1;
    }
    if (call->op == OP_result) {
        if (call->i[0] >= MOST) return bad(e, "column of instruction", k, call->i[0]);
        if (call->i[0] >= p->n_results) p->n_results = call->i[0] + 1;
    }
    int operand;
    chainrule_index_bound(call, &operand);
    x->checks = call->op == OP_load || (operand >= 0 && !checked_before(p, k));
    p->work += chainrule_work(call);
    return CHAINRULE_OK;
}

/* ---- free reshapes -----------------------------------------------------------------------------
 */

/* A reshape costs nothing where the storage reads the same under both shapes and nobody writes it
 * while the new name is in use. */
static void free_reshapes(chainrule_program *p) {
    int64_t kept = 0;
    for (int64_t k = 0; k < p->n_instructions; k++) {
        chainrule_instruction *x = &p->instructions[k];
        int free_of_charge = x->call.op == OP_reshape && x->in[0] != x->out[0];
        if (free_of_charge) {
            chainrule_buffer *to = &p->buffers[x->out[0]], *from = &p->buffers[x->in[0]];
            const int64_t root = from->root, width = inner_of(&from->view);
            const int64_t pitch = from->view.ndim > 1 ? from->view.stride[0] : 1;
            const int dense = from->view.ndim < 2 || pitch == width;
            const int same_rows = rows_of(&to->view) == rows_of(&from->view);
            free_of_charge = to->kind == KIND_TEMP && to->written == 1 &&
                             p->buffers[root].kind != KIND_SCALARS && (dense || same_rows);
            int64_t last_use = k;
            for (int64_t j = k + 1; j < p->n_instructions; j++)
                for (int i = 0; i < p->instructions[j].call.n_in; i++)
                    if (p->instructions[j].in[i] == x->out[0]) last_use = j;
            for (int64_t j = k + 1; j <= last_use; j++)
                for (int i = 0; i < p->instructions[j].call.n_out; i++)
                    if (p->buffers[p->instructions[j].out[i]].root == root) free_of_charge = 0;
            if (free_of_charge) {
                to->root = root;
                to->bytes = 0;
                set_strides(&to->view, dense ? inner_of(&to->view) : pitch);
            }
        }
        if (!free_of_charge) p->instructions[kept++] = *x;
    }
    p->n_instructions = kept;
    for (int64_t k = 0; k < kept; k++) {
        chainrule_instruction *x = &p->instructions[k];
        for (int j = 0; j < x->call.n_in; j++) x->call.in[j] = p->buffers[x->in[j]].view;
        for (int j = 0; j < x->call.n_out; j++) x->call.out[j] = p->buffers[x->out[j]].view;
    }
}

/* ---- panels ------------------------------------------------------------------------------------
 */

enum {
    USE_NONE,
    USE_FORWARD = 1,
    USE_TRANSPOSED = 2,
    USE_UPDATE = 4,
    USE_STATE = 8,
    USE_OTHER = 16
};

/* How operand j of an instruction is used, as far as panels go. */
static int use_of(const chainrule_call *call, int j) {
    switch (call->op) {
    case OP_dense:
        return j == 1 ? USE_FORWARD : USE_OTHER;
    case OP_matmul_dact:
        return j == 1 ? USE_TRANSPOSED : USE_OTHER;
    case OP_matmul:
        return j == 0 ? USE_OTHER : call->i[1] ? USE_FORWARD : USE_TRANSPOSED;
    case OP_matmul_update:
        return j < 2 || j == call->n_in - 1 ? USE_OTHER : j == 2 ? USE_UPDATE : USE_STATE;
    }
    return USE_OTHER;
}

/* Weights live in panels where every use of them can take that, and so does their state. */
static chainrule_status choose_panels(chainrule_program *p, chainrule_error *e) {
    int *uses = calloc((size_t)p->n_buffers + 1, sizeof *uses);
    if (!uses) return chainrule_fail(e, CHAINRULE_MEMORY, "out of memory");
    for (int64_t k = 0; k < p->n_instructions; k++) {
        const chainrule_instruction *x = &p->instructions[k];
        for (int j = 0; j < x->call.n_in; j++) {
            const int64_t root = p->buffers[x->in[j]].root;
            uses[root] |= root == x->in[j] ? use_of(&x->call, j) : USE_OTHER;
        }
        for (int j = 0; j < x->call.n_out; j++)
            if (x->call.op != OP_matmul_update) uses[p->buffers[x->out[j]].root] |= USE_OTHER;
    }
    for (int64_t b = 0; b < p->n_buffers; b++) {
        chainrule_buffer *w = &p->buffers[b];
        const int bound = w->kind == KIND_PARAM || w->kind == KIND_CONST;
        w->panelled = bound && (uses[b] & (USE_FORWARD | USE_TRANSPOSED)) &&
                      !(uses[b] & (USE_STATE | USE_OTHER)) && w->view.shape[0] && w->view.shape[1];
    }
    /* weights and their state stay together, in or out of panels */
    for (int64_t k = 0; k < p->n_instructions; k++) {
        const chainrule_instruction *x = &p->instructions[k];
        if (x->call.op != OP_matmul_update) continue;
        for (int j = 1; j < x->call.n_out; j++) {
            const chainrule_buffer *state = &p->buffers[x->out[j]];
            int64_t sharers = 0;
            for (int64_t i = 0; i < p->n_instructions; i++)
                for (int q = 0; q < p->instructions[i].call.n_in; q++)
                    sharers += p->instructions[i].in[q] == x->out[j];
            if (state->kind != KIND_PARAM || uses[x->out[j]] != USE_STATE || sharers != 1)
                p->buffers[x->out[0]].panelled = 0;
        }
    }
    for (int64_t k = 0; k < p->n_instructions; k++) {
        const chainrule_instruction *x = &p->instructions[k];
        if (x->call.op == OP_matmul_update && p->buffers[x->out[0]].panelled)
            for (int j = 1; j < x->call.n_out; j++) p->buffers[x->out[j]].panelled = 1;
    }

    /* room for the transposed copies, and for the instructions that renew them */
    int64_t copies = 0, updates = 0;
    for (int64_t b = 0; b < p->n_buffers; b++)
        copies += p->buffers[b].panelled && (uses[b] & USE_TRANSPOSED);
    for (int64_t k = 0; k < p->n_instructions; k++)
        updates += p->instructions[k].call.op == OP_matmul_update;
    chainrule_buffer *buffers =
        realloc(p->buffers, (size_t)(p->n_buffers + copies + 1) * sizeof *buffers);
    if (buffers) p->buffers = buffers;
    chainrule_instruction *list = calloc((size_t)(p->n_instructions + updates + 1), sizeof *list);
    if (!buffers || !list) {
        free(uses);
        free(list);
        return chainrule_fail(e, CHAINRULE_MEMORY, "out of memory");
    }
    p->n_all = p->n_buffers;
    size_t bytes = 0;
    for (int64_t b = 0; b < p->n_buffers; b++) {
        chainrule_buffer *w = &p->buffers[b];
        if (!w->panelled) continue;
        const int64_t n = w->view.shape[0], k = w->view.shape[1];
        if (uses[b] & (USE_FORWARD | USE_UPDATE | USE_STATE)) {
            w->panels.k = k;
            w->panels.n = n;
        }
        if (uses[b] & USE_TRANSPOSED) {
            const int64_t copy = p->n_all++;
            p->buffers[copy] = (chainrule_buffer){
                .kind = KIND_TRANSPOSED,
                .view = w->view,
                .root = copy,
                .of = b,
                .panelled = 1,
                .panels = {.k = n, .n = k},
            };
        }
    }
    for (int64_t b = 0; b < p->n_all; b++) {
        chainrule_buffer *w = &p->buffers[b];
        const int64_t panel = chainrule_kernels_of(p, w->view.dtype)->panel;
        if (!w->panelled) continue;
        w->offset = (int64_t)bytes;
        bytes += (size_t)((w->panels.n + panel - 1) / panel * panel * w->panels.k *
                              chainrule_size(w->view.dtype) +
                          63) /
                 64 * 64;
    }
    p->panel_memory = chainrule_allocate(bytes);
    if (!p->panel_memory) {
        free(uses);
        free(list);
        return chainrule_fail(e, CHAINRULE_MEMORY, "out of memory");
    }
    for (int64_t b = 0; b < p->n_all; b++)
        if (p->buffers[b].panelled && p->buffers[b].panels.k)
            p->buffers[b].panels.data = p->panel_memory + p->buffers[b].offset;

    int64_t n = 0;
    for (int64_t k = 0; k < p->n_instructions; k++) {
        chainrule_instruction *x = &list[n++];
        *x = p->instructions[k];
        const int64_t w = x->call.op == OP_matmul_update ? x->out[0]
                          : x->call.n_in > 1             ? x->in[1]
                                                         : -1;
        if (w < 0 || !p->buffers[w].panelled) continue;
        int64_t copy = -1;
        for (int64_t b = p->n_buffers; b < p->n_all; b++)
            if (p->buffers[b].of == w) copy = b;
        if (use_of(&x->call, 1) == USE_TRANSPOSED) {
            x->in[1] = copy;
        } else if (x->call.op == OP_matmul_update && copy >= 0) {
            list[n++] = (chainrule_instruction){
                .call = {.op = OP_TRANSPOSE_PANELS,
                         .n_out = 1,
                         .n_in = 1,
                         .in = {p->buffers[w].view},
                         .out = {p->buffers[w].view}},
                .in = {w},
                .out = {copy},
                .number = x->number,
                .writes_param = 1,
            };
        }
    }
    free(p->instructions);
    p->instructions = list;
    p->n_instructions = n;
    free(uses);
    return CHAINRULE_OK;
}

chainrule_status chainrule_parse(chainrule_program *p, int64_t n_buffers, const int64_t *buffers,
                                 int64_t n_instructions, const int64_t *instructions,
                                 const double *floats, chainrule_error *e) {
    if (n_buffers < 0 || n_buffers > MOST) return bad(e, "buffers of program", 0, n_buffers);
    if (n_instructions < 0 || n_instructions > MOST)
        return bad(e, "instructions of program", 0, n_instructions);
    p->batch = -1;
    p->n_buffers = n_buffers;
    p->n_instructions = n_instructions;
    p->buffers = calloc((size_t)n_buffers + 1, sizeof *p->buffers);
    p->instructions = calloc((size_t)n_instructions + 1, sizeof *p->instructions);
    p->scalars = malloc(((size_t)n_buffers + 1) * sizeof *p->scalars);
    int64_t *writer = malloc(((size_t)n_buffers + 1) * sizeof *writer);
    if (!p->buffers || !p->instructions || !p->scalars || !writer) {
        free(writer);
        return chainrule_fail(e, CHAINRULE_MEMORY, "out of memory");
    }
    chainrule_status s = CHAINRULE_OK;
    int64_t scalars = 0;
    for (int64_t b = 0; !s && b < n_buffers; b++) {
        chainrule_buffer *buffer = &p->buffers[b];
        s = parse_buffer(buffer, buffers + b * CHAINRULE_BUFFER_FIELDS, b, e);
        writer[b] = -1;
        if (!s && buffer->kind == KIND_SCALARS) {
            const int64_t end = buffer->column + buffer->bytes / 8;
            if (end > p->n_scalars) p->n_scalars = end;
            p->scalars[p->n_scalar_buffers++] = b;
            buffer->offset = scalars;
            scalars += buffer->bytes;
        }
    }
    for (int64_t k = 0; !s && k < n_instructions; k++) {
        s = parse_instruction(p, k, instructions + k * CHAINRULE_INSTRUCTION_FIELDS,
                              floats + k * CHAINRULE_FLOAT_FIELDS, writer, e);
        if (s && e) e->instruction = k;
    }
    free(writer);
    if (s) return s;
    if (p->batch < 0) p->batch = 0;
    free_reshapes(p);
    return choose_panels(p, e);
}
