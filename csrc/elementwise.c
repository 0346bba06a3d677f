/* K(map): every elementwise op, by one strided loop.
 *
 * The engine collapses axes, walks the outer ones, and hands blocks of the innermost axis to the
 * op's row function. A row function sees unit-stride operands only: a broadcast operand is a
 * vector of equal elements that it reads again and again (step 0), any other stride is copied
 * through a block on the stack. In-place is allowed where buffer and strides are the same.
 */
#include "activations.h"
#include "isa.h"
#include "kernels.h"

enum { MAX_MAP_IN = 3, BLOCK = 512 };

/* what a row function works on: n elements, input k at in[k] + i * step[k], step 0 or 1 */
typedef struct {
    int64_t n;
    int64_t position; /* of the first element, in the C order of the output */
    void *out;
    const void *in[MAX_MAP_IN];
    int64_t step[MAX_MAP_IN];
} map_row;

typedef void (*map_function)(const map_row *, const chainrule_call *);

/* DEFINE_MAP(name, n_in, y): out = y, an expression of vectors a, b and of f(k), the call's k-th
 * float rounded to real. */
#define f(k) v_splat((real)call->f[k])
#define DEFINE_MAP(name, n_in, y)                                                                  \
    INLINE vreal y_##name(vreal a, vreal b, const chainrule_call *call) {                          \
        (void)a, (void)b, (void)call;                                                              \
        return y;                                                                                  \
    }                                                                                              \
    static void row_##name(const map_row *row, const chainrule_call *call) {                       \
        real *out = row->out;                                                                      \
        const real *pa = row->in[0], *pb = n_in == 2 ? row->in[1] : pa;                            \
        const int64_t sa = row->step[0], sb = n_in == 2 ? row->step[1] : sa;                       \
        int64_t i = 0;                                                                             \
        for (; i + VLANES <= row->n; i += VLANES) {                                                \
            vreal a = v_load(pa + i * sa), b = n_in == 2 ? v_load(pb + i * sb) : a;                \
            v_store(out + i, y_##name(a, b, call));                                                \
        }                                                                                          \
        if (i < row->n) {                                                                          \
            int left = (int)(row->n - i);                                                          \
            vreal a = v_load_n(pa + i * sa, left);                                                 \
            vreal b = n_in == 2 ? v_load_n(pb + i * sb, left) : a;                                 \
            v_store_n(out + i, y_##name(a, b, call), left);                                        \
        }                                                                                          \
    }

DEFINE_MAP(negative, 1, -a)
DEFINE_MAP(exp, 1, v_exp(a))
DEFINE_MAP(log, 1, v_log(a))
DEFINE_MAP(log1p, 1, v_log1p(a))
DEFINE_MAP(expm1, 1, v_expm1(a))
DEFINE_MAP(sqrt, 1, v_sqrt(a))
DEFINE_MAP(square, 1, a *a)
DEFINE_MAP(abs, 1, v_abs(a))
DEFINE_MAP(erf, 1, v_erf(a))
DEFINE_MAP(sign, 1, v_select(a > 0, v_splat(1), v_select(a < 0, v_splat(-1), a + 0)))
DEFINE_MAP(add, 2, a + b)
DEFINE_MAP(subtract, 2, a - b)
DEFINE_MAP(multiply, 2, a *b)
DEFINE_MAP(divide, 2, a / b)
DEFINE_MAP(maximum, 2, v_max(a, b))
DEFINE_MAP(minimum, 2, v_min(a, b))
DEFINE_MAP(clip, 1, v_clip(a, f(0), f(1)))

#define X(name, residual)                                                                          \
    DEFINE_MAP(f_##name, 1, f_##name(a, f(0)))                                                     \
    DEFINE_MAP(d_##name, 2, d_##name(a, b, f(0)))
ACTIVATION_ROWS(X)
#undef X

/* x^exponent: small whole numbers by squaring, which costs at most 1/2 ULP a factor; 0.5 by the
 * square root; -1 by division; the rest by log and exp */
enum { SMALL_POWER = 8 };
INLINE vreal power_small(vreal x, int n) {
    vreal y = v_splat(1);
    for (; n; n >>= 1, x = x * x)
        if (n & 1) y = y * x;
    return y;
}
DEFINE_MAP(power_small, 1, power_small(a, (int)call->f[0]))
DEFINE_MAP(power_reciprocal, 1, 1 / a)
DEFINE_MAP(power_half, 1, v_sqrt(a))
DEFINE_MAP(power_any, 1, v_pow(a, (real)call->f[0]))

static void row_power(const map_row *row, const chainrule_call *call) {
    const double exponent = (real)call->f[0];
    if (exponent == 0.5)
        row_power_half(row, call);
    else if (exponent == -1)
        row_power_reciprocal(row, call);
    else if (exponent >= 0 && exponent <= SMALL_POWER && exponent == (int)exponent)
        row_power_small(row, call);
    else
        row_power_any(row, call);
}

/* comparisons: out is one byte an element, 0 or 1 */
typedef uint8_t vbytes __attribute__((vector_size(VBYTES * 8 / CHAINRULE_REAL)));

#define DEFINE_COMPARE(name, op)                                                                   \
    static void row_##name(const map_row *row, const chainrule_call *call) {                       \
        (void)call;                                                                                \
        const real *pa = row->in[0], *pb = row->in[1];                                             \
        const int64_t sa = row->step[0], sb = row->step[1];                                        \
        uint8_t *out = row->out;                                                                   \
        int64_t i = 0;                                                                             \
        for (; i + VLANES <= row->n; i += VLANES) {                                                \
            vint mask = v_load(pa + i * sa) op v_load(pb + i * sb);                                \
            vbytes bytes = __builtin_convertvector(mask, vbytes) & 1;                              \
            memcpy(out + i, &bytes, sizeof bytes);                                                 \
        }                                                                                          \
        for (; i < row->n; i++) out[i] = pa[i * sa] op pb[i * sb];                                 \
    }
DEFINE_COMPARE(less, <)
DEFINE_COMPARE(less_equal, <=)
DEFINE_COMPARE(greater, >)
DEFINE_COMPARE(greater_equal, >=)
DEFINE_COMPARE(equal, ==)
DEFINE_COMPARE(not_equal, !=)

static void row_where(const map_row *row, const chainrule_call *call) {
    (void)call;
    const uint8_t *cond = row->in[0];
    const real *a = row->in[1], *b = row->in[2];
    real *out = row->out;
    int64_t i = 0;
    for (; i + VLANES <= row->n; i += VLANES) {
        vbytes bytes;
        memcpy(&bytes, cond + i * row->step[0], sizeof bytes);
        vint mask = __builtin_convertvector(bytes, vint) != 0;
        v_store(out + i,
                v_select(mask, v_load(a + i * row->step[1]), v_load(b + i * row->step[2])));
    }
    for (; i < row->n; i++)
        out[i] = cond[i * row->step[0]] ? a[i * row->step[1]] : b[i * row->step[2]];
}

/* cast (and copy): the 25 pairs of types */
#define CAST_ROWS(X)                                                                               \
    X(DT_F32, float)                                                                               \
    X(DT_F64, double)                                                                              \
    X(DT_I32, int32_t)                                                                             \
    X(DT_I64, int64_t)

#define CAST_LOOP(to, value)                                                                       \
    do {                                                                                           \
        to *out = row->out;                                                                        \
        for (int64_t i = 0; i < row->n; i++) {                                                     \
            out[i] = (to)(value);                                                                  \
        }                                                                                          \
    } while (0)

#define DEFINE_CAST_FROM(code, from)                                                               \
    static void cast_##code(const map_row *row, int32_t dtype) {                                   \
        const from *x = row->in[0];                                                                \
        const int64_t step = row->step[0];                                                         \
        switch (dtype) {                                                                           \
        case DT_F32:                                                                               \
            CAST_LOOP(float, x[i * step]);                                                         \
            break;                                                                                 \
        case DT_F64:                                                                               \
            CAST_LOOP(double, x[i * step]);                                                        \
            break;                                                                                 \
        case DT_I32:                                                                               \
            CAST_LOOP(int32_t, x[i * step]);                                                       \
            break;                                                                                 \
        case DT_I64:                                                                               \
            CAST_LOOP(int64_t, x[i * step]);                                                       \
            break;                                                                                 \
        default:                                                                                   \
            CAST_LOOP(uint8_t, x[i * step] != 0);                                                  \
        }                                                                                          \
    }
CAST_ROWS(DEFINE_CAST_FROM)
DEFINE_CAST_FROM(DT_BOOL, uint8_t)

static void row_cast(const map_row *row, const chainrule_call *call) {
    const int32_t to = call->out[0].dtype;
    switch (call->in[0].dtype) {
#define X(code, from)                                                                              \
    case code:                                                                                     \
        cast_##code(row, to);                                                                      \
        break;
        CAST_ROWS(X)
#undef X
    default:
        cast_DT_BOOL(row, to);
    }
}

static void row_copy(const map_row *row, const chainrule_call *call) { row_cast(row, call); }

/* chainrule_philox of consecutive blocks at once, one a lane; only low halves of lanes count */
enum { LANES = VBYTES / 8 };
static void philox_blocks(uint64_t block, uint64_t step, uint64_t key, uint32_t word[4 * LANES]) {
    const vu64 zero = {0}, low = zero + UINT32_MAX;
    vu64 key0 = zero + key, key1 = zero + (key >> 32), x0, x1, x2 = zero + step,
         x3 = zero + (step >> 32);
    for (int j = 0; j < LANES; j++) x0[j] = block + (uint64_t)j;
    x1 = x0 >> 32;
    for (int round = 0; round < 10; round++) {
        const vu64 p = v_multiply_low(x0, zero + 0xD2511F53),
                   q = v_multiply_low(x2, zero + 0xCD9E8D57);
        x0 = (q >> 32) ^ x1 ^ key0;
        x1 = q;
        x2 = (p >> 32) ^ x3 ^ key1;
        x3 = p;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    const vu64 first = (x0 & low) | x1 << 32, second = (x2 & low) | x3 << 32;
    for (int j = 0; j < LANES; j++) {
        word[4 * j] = (uint32_t)first[j];
        word[4 * j + 1] = (uint32_t)(first[j] >> 32);
        word[4 * j + 2] = (uint32_t)second[j];
        word[4 * j + 3] = (uint32_t)(second[j] >> 32);
    }
}

/* Element e of the operand draws word e % 4 of block e / 4 of Philox, of which 24 bits count. */
static void row_dropout(const map_row *row, const chainrule_call *call) {
    const uint64_t key = (uint64_t)call->i[0] ^ (uint64_t)call->i[1] << 32;
    const uint64_t step = (uint64_t)*(const int64_t *)call->in[1].data;
    const float rate = (float)call->f[0] * 0x1p24f; /* exact */
    const uint32_t least = (uint32_t)rate + ((float)(uint32_t)rate < rate);
    const real scale = (real)(1 / (1 - call->f[0]));
    const real *x = row->in[0];
    real *out = row->out;
    for (int64_t i = 0; i < row->n;) {
        const uint64_t first = (uint64_t)(row->position + i);
        uint32_t word[4 * LANES];
        philox_blocks(first / 4, step, key, word);
        const int skip = (int)(first % 4), left = 4 * LANES - skip;
        const int n = row->n - i < left ? (int)(row->n - i) : left;
        for (int k = 0; k < n; k++)
            out[i + k] = word[skip + k] >> 8 >= least ? x[(i + k) * row->step[0]] * scale : 0;
        i += n;
    }
}

static const map_function functions[OP_COUNT] = {
#define X(name, class) [OP_##name] = row_##name,
    MAP_ROWS(X)
#undef X
#define X(name, residual) [OP_##name] = row_f_##name, [OP_d##name] = row_d_##name,
        ACTIVATION_ROWS(X)
#undef X
};

static const size_t item_size[DT_COUNT] = {4, 8, 4, 8, 1};

/* one operand as the engine walks it; axis MAX_DIMS - 1 is the innermost, strides in bytes */
typedef struct {
    char *data;
    size_t size;
    int64_t stride[MAX_DIMS];
} operand;

static operand operand_of(const chainrule_view *view, const chainrule_view *out) {
    operand o = {view->data, item_size[view->dtype], {0}};
    for (int d = 0; d < view->ndim; d++) {
        const int axis = MAX_DIMS - view->ndim + d;
        const int whole = d + out->ndim - view->ndim; /* the same axis of the output */
        if (view->shape[d] != 1 || out->shape[whole] == 1)
            o.stride[axis] = view->stride[d] * (int64_t)o.size;
    }
    return o;
}

#define COPY_STRIDED(type)                                                                         \
    for (int64_t i = 0; i < n; i++)                                                                \
    *(type *)(to + i * to_step) = *(const type *)(from + i * from_step)

/* n elements of `size` bytes each from one stride (in bytes) to another */
static void copy_strided(size_t size, int64_t n, char *to, int64_t to_step, const char *from,
                         int64_t from_step) {
    if (size == 1)
        COPY_STRIDED(uint8_t);
    else if (size == 4)
        COPY_STRIDED(uint32_t);
    else
        COPY_STRIDED(uint64_t);
}

/* the innermost axis: n elements from `position` on, operands o[0] = out, o[1..n_in] = inputs */
static void map_axis(map_function function, const chainrule_call *call, int n_in, const operand *o,
                     char *const *at, int64_t n, int64_t position) {
    _Alignas(64) char block[1 + MAX_MAP_IN][BLOCK * sizeof(double)];
    char *data[1 + MAX_MAP_IN];
    int64_t stride[1 + MAX_MAP_IN];
    int direct = 1;
    map_row row = {n, position, at[0], {0}, {0}};
    for (int k = 0; k <= n_in; k++) {
        data[k] = at[k];
        stride[k] = o[k].stride[MAX_DIMS - 1];
        if (k && stride[k] == 0) { /* one vector of equal elements */
            copy_strided(o[k].size, VLANES, block[k], (int64_t)o[k].size, at[k], 0);
            data[k] = block[k];
        } else if (n > 1 && stride[k] != (int64_t)o[k].size) {
            direct = 0;
        }
        if (k) {
            row.in[k - 1] = data[k];
            row.step[k - 1] = stride[k] != 0;
        }
    }
    if (direct) {
        function(&row, call);
        return;
    }
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t part = n - i < BLOCK ? n - i : BLOCK;
        for (int k = 1; k <= n_in; k++) {
            const int64_t size = (int64_t)o[k].size;
            if (stride[k] == 0) continue;
            row.in[k - 1] = data[k] + i * stride[k];
            if (stride[k] == size) continue;
            copy_strided(o[k].size, part, block[k], size, data[k] + i * stride[k], stride[k]);
            row.in[k - 1] = block[k];
        }
        const int64_t size = (int64_t)o[0].size;
        char *out = data[0] + i * stride[0];
        row.n = part;
        row.position = position + i;
        row.out = stride[0] == size ? out : block[0];
        function(&row, call);
        if (stride[0] != size) copy_strided(o[0].size, part, out, stride[0], block[0], size);
    }
}

void K(map)(const chainrule_call *call, int64_t begin, int64_t end) {
    const chainrule_view *out = &call->out[0];
    const map_function function = functions[call->op];
    /* dropout's second input, the step, is not an elementwise operand */
    const int n_in = call->op == OP_dropout ? 1 : call->n_in;
    int64_t shape[MAX_DIMS] = {1, 1, 1, 1}, inner = 1;
    operand o[1 + MAX_MAP_IN];
    if (!function || begin >= end || n_in > MAX_MAP_IN) return;

    o[0] = operand_of(out, out);
    for (int k = 0; k < n_in; k++) o[k + 1] = operand_of(&call->in[k], out);
    const int outermost = out->ndim ? MAX_DIMS - out->ndim : MAX_DIMS - 1;
    for (int d = 0; d < out->ndim; d++) shape[outermost + d] = out->shape[d];
    shape[outermost] = end - begin;
    for (int d = outermost + 1; d < MAX_DIMS; d++) inner *= shape[d];
    if (inner == 0) return;
    for (int k = 0; k <= n_in; k++) o[k].data += begin * o[k].stride[outermost];
    int64_t position = begin * inner;

    /* Axes that every operand walks as one become one, the innermost. */
    int last = MAX_DIMS - 1; /* axis that the next one outside may join */
    for (int d = last - 1; d >= outermost; d--) {
        int joins = shape[last] == 1 || shape[d] == 1;
        if (!joins) {
            joins = 1;
            for (int k = 0; k <= n_in; k++)
                joins &= o[k].stride[d] == o[k].stride[last] * shape[last];
        }
        if (!joins) {
            last--;
            if (last == d) continue;
            for (int k = 0; k <= n_in; k++) o[k].stride[last] = o[k].stride[d];
            shape[last] = shape[d];
        } else {
            if (shape[last] == 1)
                for (int k = 0; k <= n_in; k++) o[k].stride[last] = o[k].stride[d];
            shape[last] *= shape[d];
        }
        shape[d] = 1;
    }

    const int64_t n = shape[3];
    for (int64_t i = 0; i < shape[0]; i++)
        for (int64_t j = 0; j < shape[1]; j++)
            for (int64_t l = 0; l < shape[2]; l++, position += n) {
                char *at[1 + MAX_MAP_IN];
                for (int k = 0; k <= n_in; k++)
                    at[k] =
                        o[k].data + i * o[k].stride[0] + j * o[k].stride[1] + l * o[k].stride[2];
                map_axis(function, call, n_in, o, at, n, position);
            }
}
