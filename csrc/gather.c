/* K(gather): rows taken from a table, and gradients on their way back to it.
 *
 * An index out of range is reported as its position (the first one that this part meets), and no
 * memory is touched for it: what would be taken is 0, what would be written is left out.
 * Part t of a team does
 *   take, take_along_last, put_along_last  a range of axis 0 of the indices
 *   row_sums, update_rows                  the distinct rows t, t + team, ...: as unused ones come
 *                                          last, ranges would be uneven
 *   scatter_rows                           a range of the result's rows
 */
#include "update.h"

#include "kernels.h"

enum {
    AHEAD = 8,      /* rows that are prefetched before their turn */
    PRIVATE = 2048, /* row_sums: indices for which each thread keeps books of its own; one thread
                       does all of it for more */
    HEADS = 8192    /* and buckets of its hash table, at most */
};

/* ---- small things ---------------------------------------------------------------------------- */

INLINE int64_t item_size(int dtype) { return dtype == DT_F32 || dtype == DT_I32 ? 4 : 8; }

INLINE int64_t index_at(const chainrule_view *ids, int64_t i) {
    return ids->dtype == DT_I64 ? ((const int64_t *)ids->data)[i] : ((const int32_t *)ids->data)[i];
}

INLINE void report(int64_t *bad, int64_t position) {
    if (*bad < 0) *bad = position;
}

/* number of elements of axes from `axis` on, before `end` */
INLINE int64_t extent(const chainrule_view *v, int axis, int end) {
    int64_t n = 1;
    for (int d = axis; d < end; d++) n *= v->shape[d];
    return n;
}

/* Axis 0 has its own stride, the axes after it are contiguous. */
INLINE int64_t pitch(const chainrule_view *v) { return v->ndim ? v->stride[0] : 0; }

INLINE void prefetch(const char *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

/* Whole vectors, the last of which overlaps the one before it; bytes is a multiple of 4. */
INLINE void copy_bytes(char *to, const char *from, int64_t bytes) {
    typedef char vbytes __attribute__((vector_size(VBYTES), aligned(1), may_alias));
    if (bytes < VBYTES) {
        for (int64_t i = 0; i < bytes; i += 4) memcpy(to + i, from + i, 4);
        return;
    }
    for (int64_t i = 0; i < bytes - VBYTES; i += VBYTES)
        *(vbytes *)(to + i) = *(const vbytes *)(from + i);
    *(vbytes *)(to + bytes - VBYTES) = *(const vbytes *)(from + bytes - VBYTES);
}

INLINE void add_row(real *to, const real *from, int64_t n) {
    int64_t i = 0;
    for (; i + VLANES <= n; i += VLANES) v_store(to + i, v_load(to + i) + v_load(from + i));
    if (i < n) {
        const int left = (int)(n - i);
        v_store_n(to + i, v_load_n(to + i, left) + v_load_n(from + i, left), left);
    }
}

/* ---- take ------------------------------------------------------------------------------------ */

static void take(const chainrule_call *call, int t, int team, int64_t *bad) {
    const chainrule_view *table = &call->in[0], *ids = &call->in[1], *out = &call->out[0];
    const int64_t size = item_size(table->dtype), rows = table->shape[0];
    const int64_t width = extent(table, 1, table->ndim) * size, step = table->stride[0] * size;
    const char *from = table->data;
    char *to = out->data;
    if (ids->ndim == 0) { /* one row, which loses its axis: what was axis 1 has the pitch now */
        const int64_t id = index_at(ids, 0), pieces = out->ndim ? out->shape[0] : 1;
        if (t || pieces == 0) return;
        const int valid = id >= 0 && id < rows;
        if (!valid) report(bad, 0);
        const int64_t piece = width / pieces, to_step = pitch(out) * size;
        for (int64_t i = 0; i < pieces; i++)
            if (valid)
                copy_bytes(to + i * to_step, from + id * step + i * piece, piece);
            else
                memset(to + i * to_step, 0, (size_t)piece);
        return;
    }
    const int64_t inner = extent(ids, 1, ids->ndim), id_step = pitch(ids);
    const int64_t to_step = pitch(out) * size;
    int64_t begin, end;
    chainrule_part(ids->shape[0], 1, t, team, &begin, &end);
    if (rows == 0 || inner == 0) {
        for (int64_t i = begin; i < end && inner; i++) {
            memset(to + i * to_step, 0, (size_t)(inner * width));
            report(bad, i * inner);
        }
        return;
    }
    /* (ni, nj) runs AHEAD rows before (i, j) */
    int64_t ni = begin, nj = 0;
#define PREFETCH_NEXT                                                                              \
    if (ni < end) {                                                                                \
        const int64_t next = index_at(ids, ni * id_step + nj);                                     \
        if (next >= 0 && next < rows) prefetch(from + next * step, width);                         \
        if (++nj == inner) nj = 0, ni++;                                                           \
    }
    for (int k = 0; k < AHEAD; k++) PREFETCH_NEXT
    for (int64_t i = begin; i < end; i++) {
        char *row = to + i * to_step;
        for (int64_t j = 0; j < inner; j++, row += width) {
            const int64_t id = index_at(ids, i * id_step + j);
            PREFETCH_NEXT
            if (id >= 0 && id < rows) {
                copy_bytes(row, from + id * step, width);
            } else {
                memset(row, 0, (size_t)width);
                report(bad, i * inner + j);
            }
        }
    }
#undef PREFETCH_NEXT
}

/* ---- row_sums -------------------------------------------------------------------------------- */

/* The distinct rows so far, and for each the one before it in its bucket of the hash table. A row
 * number and a link share 64 bits, so that the output `rows` can hold the books of any number of
 * indices. Where the numbers are too large for that all rows share one bucket, linked in order. */
typedef struct {
    int64_t *book;
    int32_t head[HEADS]; /* slot + 1, or 0 */
    uint64_t mask;
    int64_t count;
    int linked;
} distinct;

INLINE uint64_t bucket_of(const distinct *d, int64_t row) {
    return ((uint64_t)row * 0x9E3779B97F4A7C15u >> 40) & d->mask;
}

INLINE int64_t row_of(const distinct *d, int64_t slot) {
    return d->linked ? (int64_t)(uint32_t)d->book[slot] : d->book[slot];
}

/* The slot of a row; a new one is d->count - 1 afterwards. */
INLINE int64_t slot_of(distinct *d, int64_t row) {
    if (!d->linked) {
        for (int64_t slot = 0; slot < d->count; slot++)
            if (d->book[slot] == row) return slot;
        d->book[d->count] = row;
        return d->count++;
    }
    int32_t *head = &d->head[bucket_of(d, row)];
    for (int64_t slot = *head; slot; slot = d->book[slot - 1] >> 32)
        if ((uint32_t)d->book[slot - 1] == (uint64_t)row) return slot - 1;
    d->book[d->count] = (int64_t)*head << 32 | row;
    *head = (int32_t)++d->count;
    return d->count - 1;
}

static void row_sums(const chainrule_call *call, int t, int team, int64_t *bad) {
    const chainrule_view *ids = &call->in[0], *g = &call->in[1];
    int64_t *rows = call->out[0].data;
    const chainrule_view *sums = &call->out[1];
    const int64_t n = ids->shape[0], width = g->shape[1], table_rows = call->i[0];
    const int64_t g_step = pitch(g), sum_step = pitch(sums), id_step = pitch(ids);
    const real *from = g->data;
    real *to = sums->data;
    int64_t book[PRIVATE];
    distinct d;
    d.book = team > 1 && n <= PRIVATE ? book : rows;
    d.linked = table_rows <= UINT32_MAX && n < INT32_MAX;
    d.count = 0;
    if (d.book == rows) { /* only one thread can keep its books there */
        if (t) return;
        team = 1;
    }
    uint64_t heads = 16;
    while (heads < 4 * (uint64_t)n && heads < HEADS) heads *= 2;
    d.mask = heads - 1;
    memset(d.head, 0, heads * sizeof *d.head);
    for (int64_t i = 0; i < n; i++) {
        const int64_t id = index_at(ids, i * id_step), count = d.count;
        if (id < 0 || id >= table_rows) { /* -1 is no row: sums of sums have such places */
            if (id != -1) report(bad, i);
            continue;
        }
        const int64_t slot = slot_of(&d, id);
        if (team > 1 && slot % team != t) continue;
        if (slot == count)
            copy_bytes((char *)(to + slot * sum_step), (const char *)(from + i * g_step),
                       width * (int64_t)sizeof(real));
        else
            add_row(to + slot * sum_step, from + i * g_step, width);
    }
    for (int64_t slot = d.count; slot < n; slot++)
        if (slot % team == t) memset(to + slot * sum_step, 0, (size_t)width * sizeof(real));
    if (t) return;
    for (int64_t slot = 0; slot < d.count; slot++) rows[slot] = row_of(&d, slot);
    for (int64_t slot = d.count; slot < n; slot++) rows[slot] = -1;
}

/* ---- what is done with the sums -------------------------------------------------------------- */

static void scatter_rows(const chainrule_call *call, int t, int team, int64_t *bad) {
    const chainrule_view *rows = &call->in[0], *sums = &call->in[1], *out = &call->out[0];
    const int64_t width = out->shape[1], table_rows = out->shape[0], step = pitch(out);
    const int64_t bytes = width * (int64_t)sizeof(real);
    int64_t begin, end;
    chainrule_part(table_rows, 1, t, team, &begin, &end);
    real *to = out->data;
    if (step == width && begin < end)
        memset(to + begin * step, 0, (size_t)((end - begin) * bytes));
    else
        for (int64_t r = begin; r < end; r++) memset(to + r * step, 0, (size_t)bytes);
    for (int64_t i = 0; i < rows->shape[0]; i++) {
        const int64_t row = ((const int64_t *)rows->data)[i * pitch(rows)];
        if (row >= table_rows) report(bad, i);
        if (row < begin || row >= end) continue;
        copy_bytes((char *)(to + row * step),
                   (const char *)((const real *)sums->data + i * pitch(sums)), bytes);
    }
}

INLINE void update_touched(const int row, const int states, const update_coef *coef,
                           const chainrule_call *call, int t, int team, int64_t *bad) {
    enum { OPERANDS = 3 };
    const chainrule_view *rows = &call->in[0], *sums = &call->in[1];
    const int64_t *touched = rows->data;
    const int64_t n = rows->shape[0], row_step = pitch(rows), sum_step = pitch(sums);
    const int64_t table_rows = call->out[0].shape[0], width = call->out[0].shape[1];
    real *to[OPERANDS];
    const real *from[OPERANDS];
    int64_t to_step[OPERANDS], from_step[OPERANDS];
    for (int o = 0; o <= states; o++) {
        from[o] = call->in[2 + o].data;
        from_step[o] = pitch(&call->in[2 + o]);
        to[o] = call->out[o].data;
        to_step[o] = pitch(&call->out[o]);
    }
    for (int64_t i = t - (int64_t)AHEAD * team; i < n; i += team) {
        const int64_t next = i + (int64_t)AHEAD * team;
        if (next < n) {
            const int64_t r = touched[next * row_step];
            if (r >= 0 && r < table_rows)
                for (int o = 0; o <= states; o++)
                    prefetch((const char *)(from[o] + r * from_step[o]),
                             width * (int64_t)sizeof(real));
        }
        if (i < 0) continue;
        const int64_t r = touched[i * row_step];
        if (r < 0) continue;
        if (r >= table_rows) {
            report(bad, i);
            continue;
        }
        const real *g = (const real *)sums->data + i * sum_step;
        real *out[OPERANDS];
        const real *in[OPERANDS];
        for (int o = 0; o <= states; o++) {
            in[o] = from[o] + r * from_step[o];
            out[o] = to[o] + r * to_step[o];
        }
        for (int64_t c = 0; c < width; c += VLANES) {
            const int left = width - c < VLANES ? (int)(width - c) : VLANES;
            const int whole = left == VLANES;
#define GET(p) (whole ? v_load(p) : v_load_n(p, left))
#define PUT(p, v) (whole ? v_store(p, v) : v_store_n(p, v, left))
            const vreal w = GET(in[0] + c);
            vreal s1 = w, s2 = w;
            if (states > 0) s1 = GET(in[1] + c);
            if (states > 1) s2 = GET(in[2] + c);
            const vreal new_w = update_row(row, coef, w, GET(g + c), &s1, &s2);
            PUT(out[0] + c, new_w);
            if (states > 0) PUT(out[1] + c, s1);
            if (states > 1) PUT(out[2] + c, s2);
#undef GET
#undef PUT
        }
    }
}

static void update_rows(const chainrule_call *call, int t, int team, int64_t *bad) {
    const update_coef coef = update_coefs(call->in[call->n_in - 1].data);
    switch (call->i[0]) {
#define X(name, states)                                                                            \
    case UPDATE_##name:                                                                            \
        update_touched(UPDATE_##name, states, &coef, call, t, team, bad);                          \
        break;
        UPDATE_ROWS(X)
#undef X
    }
}

/* ---- along the last axis --------------------------------------------------------------------- */

/* x (..., C), ids (...), y (...): `takes` y = x[..., ids], or else x is y at ids and zero elsewhere
 */
static void along_last(const chainrule_view *x, const chainrule_view *ids, const chainrule_view *y,
                       int takes, int t, int team, int64_t *bad) {
    const int64_t size = item_size(x->dtype), classes = x->shape[x->ndim - 1];
    const int64_t inner = extent(ids, 1, ids->ndim);
    const int64_t x_step = ids->ndim ? pitch(x) : 0;
    int64_t begin, end;
    chainrule_part(ids->ndim ? ids->shape[0] : 1, 1, t, team, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        char *row = (char *)x->data + i * x_step * size;
        char *number = (char *)y->data + i * pitch(y) * size;
        if (!takes) memset(row, 0, (size_t)(inner * classes * size));
        for (int64_t j = 0; j < inner; j++, row += classes * size, number += size) {
            const int64_t id = index_at(ids, i * pitch(ids) + j);
            const int valid = id >= 0 && id < classes;
            if (!valid) report(bad, i * inner + j);
            if (valid && takes)
                copy_bytes(number, row + id * size, size);
            else if (valid)
                copy_bytes(row + id * size, number, size);
            else if (takes)
                memset(number, 0, (size_t)size);
        }
    }
}

void K(gather)(const chainrule_call *call, void *scratch, int t, int team, int64_t *bad) {
    (void)scratch;
    int64_t first = -1;
    switch (call->op) {
    case OP_take:
        take(call, t, team, &first);
        break;
    case OP_row_sums:
        row_sums(call, t, team, &first);
        break;
    case OP_scatter_rows:
        scatter_rows(call, t, team, &first);
        break;
    case OP_update_rows:
        update_rows(call, t, team, &first);
        break;
    case OP_take_along_last:
        along_last(&call->in[0], &call->in[1], &call->out[0], 1, t, team, &first);
        break;
    case OP_put_along_last:
        along_last(&call->out[0], &call->in[1], &call->in[0], 0, t, team, &first);
        break;
    }
    if (first >= 0) *bad = first;
}
