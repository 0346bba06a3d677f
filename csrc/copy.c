#include "copy.h"

#include <string.h>

/* ---- strided copies -------------------------------------------------------------------------- */

#define MOVE(type)                                                                                 \
    for (int64_t i = 0; i < n; i++, to += to_step, from += from_step)                              \
        *(type *)to = *(const type *)from;

static void copy_line(int64_t size, int64_t n, char *to, int64_t to_step, const char *from,
                      int64_t from_step) {
    if (to_step == size && from_step == size)
        memcpy(to, from, (size_t)(n * size));
    else if (size == 1)
        MOVE(uint8_t)
    else if (size == 4)
        MOVE(uint32_t)
    else
        MOVE(uint64_t)
}

/* Blocks keep the lines of both sides in cache while a matrix is transposed. */
enum { BLOCK = 16 };
static void copy_plane(int64_t size, const int64_t shape[2], char *to, const int64_t to_step[2],
                       const char *from, const int64_t from_step[2]) {
    if (from_step[1] <= from_step[0] || from_step[0] == 0) {
        for (int64_t i = 0; i < shape[0]; i++)
            copy_line(size, shape[1], to + i * to_step[0], to_step[1], from + i * from_step[0],
                      from_step[1]);
        return;
    }
    for (int64_t i0 = 0; i0 < shape[0]; i0 += BLOCK)
        for (int64_t j = 0; j < shape[1]; j += BLOCK) {
            const int64_t i1 = i0 + BLOCK < shape[0] ? i0 + BLOCK : shape[0];
            const int64_t n = j + BLOCK < shape[1] ? BLOCK : shape[1] - j;
            for (int64_t i = i0; i < i1; i++)
                copy_line(size, n, to + i * to_step[0] + j * to_step[1], to_step[1],
                          from + i * from_step[0] + j * from_step[1], from_step[1]);
        }
}

/* to(i...) = from(i...), steps in bytes */
static void copy_strided(int64_t size, const int64_t shape[MAX_DIMS], char *to,
                         const int64_t to_step[MAX_DIMS], const char *from,
                         const int64_t from_step[MAX_DIMS]) {
    for (int64_t i = 0; i < shape[0]; i++)
        for (int64_t j = 0; j < shape[1]; j++)
            copy_plane(size, shape + 2, to + i * to_step[0] + j * to_step[1], to_step + 2,
                       from + i * from_step[0] + j * from_step[1], from_step + 2);
}

/* A view in bytes, padded in front to MAX_DIMS axes of size 1, so that axis a is at `base` + a. */
typedef struct {
    char *data;
    int base;
    int64_t size, shape[MAX_DIMS], step[MAX_DIMS];
} bytes;

static bytes in_bytes(const chainrule_view *v) {
    bytes b = {.data = v->data, .base = MAX_DIMS - v->ndim, .size = chainrule_size(v->dtype)};
    for (int a = 0; a < MAX_DIMS; a++) {
        const int from = a - b.base;
        b.shape[a] = from < 0 ? 1 : v->shape[from];
        b.step[a] = from < 0 ? 0 : v->stride[from] * b.size;
    }
    return b;
}

/* Keep [begin, end) of an axis. */
static void keep(bytes *b, int axis, int64_t begin, int64_t end) {
    axis += b->base;
    if (axis >= MAX_DIMS) return; /* 0-d: its only part is all of it */
    b->data += begin * b->step[axis];
    b->shape[axis] = end - begin;
}

static void copy_bytes(const bytes *to, const bytes *from) {
    copy_strided(to->size, to->shape, to->data, to->step, from->data, from->step);
}

/* ---- the ops --------------------------------------------------------------------------------- */

static void zero(const bytes *to) {
    static const uint64_t nothing;
    const int64_t still[MAX_DIMS] = {0};
    if (to->step[MAX_DIMS - 1] != to->size) {
        copy_strided(to->size, to->shape, to->data, to->step, (const char *)&nothing, still);
        return;
    }
    for (int64_t i = 0; i < to->shape[0]; i++)
        for (int64_t j = 0; j < to->shape[1]; j++)
            for (int64_t k = 0; k < to->shape[2]; k++)
                memset(to->data + i * to->step[0] + j * to->step[1] + k * to->step[2], 0,
                       (size_t)(to->shape[3] * to->size));
}

static void transpose(const chainrule_call *call, int64_t begin, int64_t end) {
    bytes to = in_bytes(&call->out[0]), from = in_bytes(&call->in[0]), moved = from;
    for (int a = 0; a < call->out[0].ndim; a++)
        moved.step[moved.base + a] = from.step[from.base + (int)call->i[a]];
    if (to.base < MAX_DIMS) moved.data += begin * moved.step[to.base];
    keep(&to, 0, begin, end);
    copy_bytes(&to, &moved);
}

/* Rows of one length to rows of another: as long as both last. */
static void reshape(const chainrule_call *call, int64_t begin, int64_t end) {
    const chainrule_view *to = &call->out[0], *from = &call->in[0];
    const int64_t size = chainrule_size(to->dtype);
    int64_t to_width = 1, from_width = 1;
    for (int a = 1; a < to->ndim; a++) to_width *= to->shape[a];
    for (int a = 1; a < from->ndim; a++) from_width *= from->shape[a];
    const int64_t to_pitch = to->ndim ? to->stride[0] : 1;
    const int64_t from_pitch = from->ndim ? from->stride[0] : 1;
    for (int64_t at = begin * to_width; at < end * to_width;) {
        const int64_t to_column = at % to_width, from_column = at % from_width;
        int64_t n = to_width - to_column;
        if (n > from_width - from_column) n = from_width - from_column;
        memcpy((char *)to->data + (at / to_width * to_pitch + to_column) * size,
               (char *)from->data + (at / from_width * from_pitch + from_column) * size,
               (size_t)(n * size));
        at += n;
    }
}

/* Make b, which has the full length along the axis, the slice start, start + step, ... of n. */
static void cut(bytes *b, const chainrule_call *call, int64_t n) {
    const int axis = b->base + (int)call->i[0];
    b->data += n > 0 ? call->i[1] * b->step[axis] : 0;
    b->step[axis] *= call->i[3];
    b->shape[axis] = n;
}

static void slice(const chainrule_call *call, int64_t begin, int64_t end) {
    bytes to = in_bytes(&call->out[0]), from = in_bytes(&call->in[0]);
    cut(&from, call, call->out[0].shape[call->i[0]]);
    keep(&to, 0, begin, end);
    keep(&from, 0, begin, end);
    copy_bytes(&to, &from);
}

static void unslice(const chainrule_call *call, int64_t begin, int64_t end) {
    bytes to = in_bytes(&call->out[0]), from = in_bytes(&call->in[0]), part = to;
    keep(&part, 0, begin, end);
    zero(&part);
    const int axis = (int)call->i[0];
    const int64_t start = call->i[1], step = call->i[3], n = call->in[0].shape[axis];
    cut(&to, call, n);
    if (axis > 0) {
        keep(&to, 0, begin, end);
        keep(&from, 0, begin, end);
    } else {
        /* those of the n rows that go to [begin, end); start + i * step is monotone in i */
        int64_t i0 = 0, i1 = n;
        while (i0 < i1 && !(start + i0 * step >= begin && start + i0 * step < end)) i0++;
        while (i1 > i0 && !(start + (i1 - 1) * step >= begin && start + (i1 - 1) * step < end))
            i1--;
        keep(&to, 0, i0, i1);
        keep(&from, 0, i0, i1);
    }
    copy_bytes(&to, &from);
}

static void concatenate(const chainrule_call *call, int64_t begin, int64_t end) {
    const int axis = (int)call->i[0];
    int64_t start = 0;
    for (int j = 0; j < call->n_in; j++) {
        const int64_t stop = start + call->in[j].shape[axis];
        bytes to = in_bytes(&call->out[0]), from = in_bytes(&call->in[j]);
        if (axis > 0) {
            keep(&to, axis, start, stop);
            keep(&to, 0, begin, end);
            keep(&from, 0, begin, end);
            copy_bytes(&to, &from);
        } else {
            const int64_t lower = start > begin ? start : begin, upper = stop < end ? stop : end;
            if (lower < upper) {
                keep(&to, 0, lower, upper);
                keep(&from, 0, lower - start, upper - start);
                copy_bytes(&to, &from);
            }
        }
        start = stop;
    }
}

void chainrule_copy(const chainrule_call *call, int64_t begin, int64_t end) {
    switch (call->op) {
    case OP_transpose:
        transpose(call, begin, end);
        break;
    case OP_reshape:
        reshape(call, begin, end);
        break;
    case OP_slice:
        slice(call, begin, end);
        break;
    case OP_unslice:
        unslice(call, begin, end);
        break;
    case OP_concatenate:
        concatenate(call, begin, end);
        break;
    }
}

/* ---- casts ----------------------------------------------------------------------------------- */

#define CAST(to_t, from_t, value)                                                                  \
    {                                                                                              \
        to_t *t = to;                                                                              \
        const from_t *f = from;                                                                    \
        for (int64_t i = 0; i < n; i++) t[i] = (value);                                            \
        break;                                                                                     \
    }
#define FITS(low, high) (f[i] >= (low) && f[i] < (high))
#define PAIR(to_type, from_type) ((to_type) * DT_COUNT + (from_type))
#define TO_FLOAT(type, to_t)                                                                       \
    case PAIR(type, DT_F32):                                                                       \
        CAST(to_t, float, (to_t)f[i])                                                              \
    case PAIR(type, DT_F64):                                                                       \
        CAST(to_t, double, (to_t)f[i])                                                             \
    case PAIR(type, DT_I32):                                                                       \
        CAST(to_t, int32_t, (to_t)f[i])                                                            \
    case PAIR(type, DT_I64):                                                                       \
        CAST(to_t, int64_t, (to_t)f[i])                                                            \
    case PAIR(type, DT_BOOL):                                                                      \
        CAST(to_t, uint8_t, (to_t)(f[i] != 0))

void chainrule_cast(int to_type, void *to, int from_type, const void *from, int64_t n) {
    if (to_type == from_type) {
        memcpy(to, from, (size_t)(n * chainrule_size(to_type)));
        return;
    }
    switch (PAIR(to_type, from_type)) {
        TO_FLOAT(DT_F32, float)
        TO_FLOAT(DT_F64, double)
    case PAIR(DT_I32, DT_F32):
        CAST(int32_t, float, FITS(-0x1p31f, 0x1p31f) ? (int32_t)f[i] : INT32_MIN)
    case PAIR(DT_I32, DT_F64):
        CAST(int32_t, double, f[i] > -0x1p31 - 1 && f[i] < 0x1p31 ? (int32_t)f[i] : INT32_MIN)
    case PAIR(DT_I32, DT_I64):
        CAST(int32_t, int64_t, (int32_t)(uint32_t)f[i])
    case PAIR(DT_I32, DT_BOOL):
        CAST(int32_t, uint8_t, f[i] != 0)
    case PAIR(DT_I64, DT_F32):
        CAST(int64_t, float, FITS(-0x1p63f, 0x1p63f) ? (int64_t)f[i] : INT64_MIN)
    case PAIR(DT_I64, DT_F64):
        CAST(int64_t, double, FITS(-0x1p63, 0x1p63) ? (int64_t)f[i] : INT64_MIN)
    case PAIR(DT_I64, DT_I32):
        CAST(int64_t, int32_t, f[i])
    case PAIR(DT_I64, DT_BOOL):
        CAST(int64_t, uint8_t, f[i] != 0)
    case PAIR(DT_BOOL, DT_F32):
        CAST(uint8_t, float, f[i] != 0)
    case PAIR(DT_BOOL, DT_F64):
        CAST(uint8_t, double, f[i] != 0)
    case PAIR(DT_BOOL, DT_I32):
        CAST(uint8_t, int32_t, f[i] != 0)
    case PAIR(DT_BOOL, DT_I64):
        CAST(uint8_t, int64_t, f[i] != 0)
    }
}

/* ---- in and out ------------------------------------------------------------------------------ */

enum { AHEAD = 6, LINE = 64, MOST_LINES = 32 }; /* rows fetched ahead, and how much of each */

int64_t chainrule_load(const chainrule_view *to, const chainrule_rows *source, const int64_t *index,
                       int64_t first, int64_t begin, int64_t end) {
    const int64_t to_size = chainrule_size(to->dtype);
    const int64_t to_pitch = to->ndim ? to->stride[0] * to_size : 0;
    int64_t fetched = source->width * chainrule_size(source->dtype);
    if (fetched > MOST_LINES * LINE) fetched = MOST_LINES * LINE;
    for (int64_t r = begin; r < end; r++) {
        if (index && r + AHEAD < end) {
            /* not checked yet, but an address that is only prefetched may be any */
            const uintptr_t next =
                (uintptr_t)source->data + (uintptr_t)index[r + AHEAD] * (uintptr_t)source->pitch;
            for (int64_t at = 0; at < fetched; at += LINE)
                __builtin_prefetch((const void *)(next + (uintptr_t)at));
        }
        const int64_t row = index ? index[r] : first + r;
        if (row < 0 || row >= source->rows) return r;
        chainrule_cast(to->dtype, (char *)to->data + r * to_pitch, source->dtype,
                       source->data + row * source->pitch, source->width);
    }
    return -1;
}

void chainrule_store(const chainrule_view *from, const chainrule_rows *output, int64_t first,
                     int64_t begin, int64_t end) {
    const int64_t size = chainrule_size(from->dtype);
    const int64_t pitch = from->ndim ? from->stride[0] * size : 0;
    for (int64_t r = begin; r < end; r++)
        memcpy(output->data + (first + r) * output->pitch, (char *)from->data + r * pitch,
               (size_t)(output->width * size));
}
