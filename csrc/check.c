/* What the operands of each op must look like: one signature an op, one reader of signatures.
 *
 * An operand is a type letter and its axes, a leading ? makes it optional:
 *   r  float32 or float64, w  any of 4 or 8 bytes, x  any: the same type wherever the letter stands
 *   d  float64, l  int64, b  bool, i  int32 or int64, f  float32 or float64, a  any: each for
 * itself A capital letter is an axis and stands for one size throughout. * and + are any number of
 * axes, the same throughout; ~ is a shape that broadcasts to output 0's; 9 is COEF_COUNT.
 */
#include "call.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void chainrule_clear(chainrule_error *e) {
    if (e)
        *e = (chainrule_error){
            .op = -1, .instruction = -1, .step = -1, .position = -1, .expected = -1, .got = -1};
}

chainrule_status chainrule_fail(chainrule_error *e, chainrule_status status, const char *format,
                                ...) {
    if (e) {
        va_list arguments;
        va_start(arguments, format);
        e->status = (int32_t)status;
        vsnprintf(e->message, sizeof e->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

static const struct {
    const char *name;
    int class;
} ops[] = {
#define X(name, class) [OP_##name] = {#name, class},
    MAP_ROWS(X) OTHER_ROWS(X)
#undef X
#define X(name, residual) [OP_##name] = {#name, MAP}, [OP_d##name] = {"d" #name, MAP},
        ACTIVATION_ROWS(X)
#undef X
};

static const struct {
    const char *name, *residual;
} activations[] = {
#define X(name, residual) [ACT_##name] = {#name, RESIDUAL_##residual == RESIDUAL_Y ? "y" : "z"},
    ACTIVATION_ROWS(X)
#undef X
};

static const struct {
    const char *name;
    int states;
} updates[] = {
#define X(name, states) [UPDATE_##name] = {#name, states},
    UPDATE_ROWS(X)
#undef X
};

const char *chainrule_op_name(int op) { return op >= 0 && op < OP_COUNT ? ops[op].name : NULL; }

const char *chainrule_activation(int row, const char **residual) {
    if (row < 0 || row >= ACT_COUNT) return NULL;
    if (residual) *residual = activations[row].residual;
    return activations[row].name;
}

const char *chainrule_update_name(int row, int *states) {
    if (row < 0 || row >= UPDATE_COUNT) return NULL;
    if (states) *states = updates[row].states;
    return updates[row].name;
}

int chainrule_class_of(int op) { return ops[op].class; }

int chainrule_in_place(int op, int j) {
    if (op == OP_matmul_update || op == OP_update_rows) return 2 + j;
    return op == OP_update ? (j ? 1 + j : 0) : -1; /* w, g, states */
}

/* ---- signatures --------------------------------------------------------------------------------
 */

static const char *signature_of(const chainrule_call *call) {
    static const char *const product[4] = {"rMK rKN -> rMN", "rMK rNK -> rMN", "rKM rKN -> rMN",
                                           "rKM rNK -> rMN"};
    static const char *const update[3] = {"r* r* d9 -> r*", "r* r* r* d9 -> r* r*",
                                          "r* r* r* r* d9 -> r* r* r*"};
    static const char *const rows[3] = {"lM rMD rVD d9 -> rVD", "lM rMD rVD rVD d9 -> rVD rVD",
                                        "lM rMD rVD rVD rVD d9 -> rVD rVD rVD"};
    static const char *const fused[3] = {"rBN rBK rNK d9 -> rNK", "rBN rBK rNK rNK d9 -> rNK rNK",
                                         "rBN rBK rNK rNK rNK d9 -> rNK rNK rNK"};
    switch (call->op) {
    case OP_copy:
        return "x~ -> x~";
    case OP_cast:
        return "a~ -> a~";
    case OP_add:
    case OP_subtract:
    case OP_multiply:
    case OP_divide:
    case OP_maximum:
    case OP_minimum:
        return "r~ r~ -> r~";
    case OP_less:
    case OP_less_equal:
    case OP_greater:
    case OP_greater_equal:
    case OP_equal:
    case OP_not_equal:
        return "r~ r~ -> b~";
    case OP_where:
        return "b~ w~ w~ -> w~";
    case OP_dropout:
        return "r* l -> r*";
    case OP_sum:
    case OP_max:
    case OP_argmax:
        return NULL; /* the axis is an attribute: see reduction() */
    case OP_sum_squares:
        return "r* -> d";
    case OP_weighted_mean:
        return "rB rB -> d";
    case OP_softmax:
    case OP_log_softmax:
        return "r*C -> r*C";
    case OP_logsumexp:
        return "r*C -> r*";
    case OP_softmax_cross_entropy:
        return "rBC iB -> rB";
    case OP_dsoftmax_cross_entropy:
        return "rB rBC iB -> rBC";
    case OP_matmul:
        return product[(call->i[0] != 0) * 2 + (call->i[1] != 0)];
    case OP_dense:
        return "rBK rNK ?rN -> rBN ?rBN";
    case OP_matmul_dact:
        return "rBN rNK rBK -> rBK";
    case OP_matmul_update:
        return fused[updates[call->i[0]].states];
    case OP_update_rows:
        return rows[updates[call->i[0]].states];
    case OP_update:
        return update[updates[call->i[0]].states];
    case OP_take:
        return "wV+ i* -> w*+";
    case OP_row_sums:
        return "iM rMD -> lM rMD";
    case OP_scatter_rows:
        return "lM rMD -> rVD";
    case OP_take_along_last:
        return "w*C i* -> w*";
    case OP_put_along_last:
        return "r* i* -> r*C";
    case OP_transpose:
    case OP_reshape:
    case OP_slice:
    case OP_unslice:
    case OP_concatenate:
        return NULL; /* see movement() */
    case OP_load:
        return " -> a*";
    case OP_store:
        return "a* -> ";
    case OP_result:
        return "f -> ";
    }
    /* The rest are functions of one operand, and every other one at the end, the derivatives of the
     * activations, of two. */
    const int activation = call->op - (OP_COUNT - 2 * ACT_COUNT);
    return activation >= 0 && activation % 2 ? "r~ r~ -> r~" : "r~ -> r~";
}

/* What the letters stand for so far. */
typedef struct {
    const chainrule_call *call;
    chainrule_error *error;
    int32_t type[3];  /* r, w, x */
    int64_t axis[26]; /* A to Z */
    int count[2];     /* of * and + */
    int64_t axes[2][MAX_DIMS];
} reader;

static const char *const type_names[DT_COUNT] = {"float32", "float64", "int32", "int64", "bool"};

static const char *role(int is_out) { return is_out ? "output" : "input"; }

static chainrule_status wrong_type(reader *r, int is_out, int j, const char *expected, int got) {
    if (r->error) r->error->position = j;
    return chainrule_fail(r->error, CHAINRULE_TYPE, "%s: %s %d: expected %s, got %s",
                          ops[r->call->op].name, role(is_out), j, expected, type_names[got]);
}

static chainrule_status wrong_axes(reader *r, int is_out, int j, int expected, int got) {
    if (r->error) r->error->position = j, r->error->expected = expected, r->error->got = got;
    return chainrule_fail(r->error, CHAINRULE_VALUE, "%s: %s %d: expected %d axes, got %d",
                          ops[r->call->op].name, role(is_out), j, expected, got);
}

static chainrule_status wrong_size(reader *r, int is_out, int j, int axis, int64_t expected,
                                   int64_t got) {
    if (r->error) r->error->position = j, r->error->expected = expected, r->error->got = got;
    return chainrule_fail(
        r->error, CHAINRULE_VALUE, "%s: %s %d: expected size %lld on axis %d, got %lld",
        ops[r->call->op].name, role(is_out), j, (long long)expected, axis, (long long)got);
}

static chainrule_status wrong_attribute(reader *r, const char *what, int64_t got) {
    if (r->error) r->error->got = got;
    return chainrule_fail(r->error, CHAINRULE_VALUE, "%s: %s %lld", ops[r->call->op].name, what,
                          (long long)got);
}

static chainrule_status read_type(reader *r, char letter, int is_out, int j, int32_t type) {
    static const char *const common = "rwx";
    const int real = type == DT_F32 || type == DT_F64;
    const char *expected = NULL;
    switch (letter) {
    case 'r':
    case 'f':
        if (!real) expected = "float32 or float64";
        break;
    case 'w':
        if (type == DT_BOOL) expected = "a number";
        break;
    case 'd':
        if (type != DT_F64) expected = type_names[DT_F64];
        break;
    case 'l':
        if (type != DT_I64) expected = type_names[DT_I64];
        break;
    case 'b':
        if (type != DT_BOOL) expected = type_names[DT_BOOL];
        break;
    case 'i':
        if (type != DT_I32 && type != DT_I64) expected = "int32 or int64";
        break;
    }
    const char *at = strchr(common, letter);
    if (!expected && at) {
        int32_t *bound = &r->type[at - common];
        if (*bound < 0) *bound = type;
        if (*bound != type) expected = type_names[*bound];
    }
    return expected ? wrong_type(r, is_out, j, expected, type) : CHAINRULE_OK;
}

static chainrule_status broadcasts(reader *r, int is_out, int j, const chainrule_view *v) {
    const chainrule_view *out = &r->call->out[0];
    const int lead = out->ndim - v->ndim;
    if (lead < 0) return wrong_axes(r, is_out, j, out->ndim, v->ndim);
    for (int a = 0; a < v->ndim; a++)
        if (v->shape[a] != 1 && v->shape[a] != out->shape[lead + a])
            return wrong_size(r, is_out, j, a, out->shape[lead + a], v->shape[a]);
    return CHAINRULE_OK;
}

static chainrule_status read_axes(reader *r, const char *axes, int length, int is_out, int j,
                                  const chainrule_view *v) {
    if (length == 1 && axes[0] == '~') return broadcasts(r, is_out, j, v);
    int known = 0, open = -1;
    for (int k = 0; k < length; k++) {
        const int run = axes[k] == '*' ? 0 : axes[k] == '+' ? 1 : -1;
        if (run < 0)
            known++;
        else if (r->count[run] >= 0)
            known += r->count[run];
        else
            open = run;
    }
    if (open < 0 ? v->ndim != known : v->ndim < known)
        return wrong_axes(r, is_out, j, known, v->ndim);
    int at = 0;
    for (int k = 0; k < length; k++) {
        const int run = axes[k] == '*' ? 0 : axes[k] == '+' ? 1 : -1;
        const int fresh = run >= 0 && r->count[run] < 0;
        if (fresh) r->count[run] = v->ndim - known;
        const int n = run < 0 ? 1 : r->count[run];
        for (int a = 0; a < n; a++, at++) {
            int64_t nine = COEF_COUNT;
            int64_t *bound = axes[k] == '9' ? &nine
                             : run < 0      ? &r->axis[axes[k] - 'A']
                                            : &r->axes[run][a];
            if (fresh || *bound < 0) *bound = v->shape[at];
            if (*bound != v->shape[at]) return wrong_size(r, is_out, j, at, *bound, v->shape[at]);
        }
    }
    return CHAINRULE_OK;
}

static chainrule_status read_signature(reader *r, const char *text) {
    const chainrule_call *call = r->call;
    int is_out = 0, j = 0;
    for (;;) {
        while (*text == ' ') text++;
        const int n = is_out ? call->n_out : call->n_in;
        const int arrow = text[0] == '-', done = !*text;
        if (arrow || done) {
            if (j != n)
                return chainrule_fail(r->error, CHAINRULE_VALUE, "%s: expected %d %ss, got %d",
                                      ops[call->op].name, j, role(is_out), n);
            if (done) return CHAINRULE_OK;
            is_out = 1, j = 0, text += 2;
            continue;
        }
        const int length = (int)strcspn(text, " ");
        if (*text == '?' && j >= n) {
            text += length;
            continue;
        }
        const int skip = *text == '?';
        if (j >= n)
            return chainrule_fail(r->error, CHAINRULE_VALUE, "%s: expected %s %d, got %d operands",
                                  ops[call->op].name, role(is_out), j, n);
        const chainrule_view *v = is_out ? &call->out[j] : &call->in[j];
        chainrule_status s = read_type(r, text[skip], is_out, j, v->dtype);
        if (!s) s = read_axes(r, text + skip + 1, length - skip - 1, is_out, j, v);
        if (s) return s;
        text += length, j++;
    }
}

/* ---- what a signature does not say --------------------------------------------------------------
 */

static int64_t count_elements(const chainrule_view *v) {
    int64_t n = 1;
    for (int a = 0; a < v->ndim; a++) n *= v->shape[a];
    return n;
}

static chainrule_status counts(reader *r, int n_in, int n_out) {
    const chainrule_call *call = r->call;
    if (call->n_in != n_in || call->n_out != n_out)
        return chainrule_fail(r->error, CHAINRULE_VALUE,
                              "%s: expected %d inputs and %d outputs, got %d and %d",
                              ops[call->op].name, n_in, n_out, call->n_in, call->n_out);
    return CHAINRULE_OK;
}

static chainrule_status reduction(reader *r) {
    chainrule_status s = counts(r, 1, 1);
    if (s) return s;
    const chainrule_call *call = r->call;
    const chainrule_view *x = &call->in[0], *y = &call->out[0];
    const int64_t axis = call->i[0];
    if ((s = read_type(r, 'r', 0, 0, x->dtype))) return s;
    if ((s = read_type(r, call->op == OP_argmax ? 'l' : 'r', 1, 0, y->dtype))) return s;
    if (axis < 0 || axis >= x->ndim) return wrong_attribute(r, "there is no axis", axis);
    if (call->op != OP_sum && x->shape[axis] == 0)
        return wrong_attribute(r, "nothing to choose from on axis", axis);
    if (y->ndim != x->ndim - 1) return wrong_axes(r, 1, 0, x->ndim - 1, y->ndim);
    for (int a = 0; a < y->ndim; a++)
        if (y->shape[a] != x->shape[a + (a >= axis)])
            return wrong_size(r, 1, 0, a, x->shape[a + (a >= axis)], y->shape[a]);
    return CHAINRULE_OK;
}

/* Elements of range(start, stop, step), all of them in [0, n); -1 if not. */
static int64_t slice_length(int64_t start, int64_t stop, int64_t step, int64_t n) {
    if (step == 0 || start < -1 || start > n || stop < -1 || stop > n) return -1;
    if (step > n) step = n + 1; /* as good as larger ones, and does not overflow below */
    if (step < -n) step = -n - 1;
    const int64_t span = step > 0 ? stop - start : start - stop, size = step > 0 ? step : -step;
    if (span <= 0) return 0;
    return start >= 0 && start < n ? (span + size - 1) / size : -1;
}

static chainrule_status movement(reader *r) {
    const chainrule_call *call = r->call;
    const chainrule_view *x = &call->in[0], *y = &call->out[0];
    const int joins = call->op == OP_concatenate;
    if (joins && (call->n_in < 1 || call->n_in > MAX_IN - 1))
        return wrong_attribute(r, "expected 1 to 7 inputs, got", call->n_in);
    chainrule_status s = counts(r, joins ? call->n_in : 1, 1);
    for (int j = 0; !s && j < call->n_in; j++) s = read_type(r, 'x', 0, j, call->in[j].dtype);
    if (!s) s = read_type(r, 'x', 1, 0, y->dtype);
    if (s) return s;

    if (call->op == OP_reshape) {
        if (count_elements(x) != count_elements(y))
            return wrong_size(r, 1, 0, 0, count_elements(x), count_elements(y));
        return CHAINRULE_OK;
    }
    if (y->ndim != x->ndim) return wrong_axes(r, 1, 0, x->ndim, y->ndim);
    if (call->op == OP_transpose) {
        unsigned seen = 0;
        for (int a = 0; a < x->ndim; a++) {
            if (call->i[a] < 0 || call->i[a] >= x->ndim || seen & 1u << call->i[a])
                return wrong_attribute(r, "no permutation: axis", call->i[a]);
            seen |= 1u << call->i[a];
            if (y->shape[a] != x->shape[call->i[a]])
                return wrong_size(r, 1, 0, a, x->shape[call->i[a]], y->shape[a]);
        }
        return CHAINRULE_OK;
    }
    const int64_t axis = call->i[0];
    if (axis < 0 || axis >= x->ndim) return wrong_attribute(r, "there is no axis", axis);
    int64_t expected = 0;
    if (joins) {
        for (int j = 0; j < call->n_in; j++) {
            const chainrule_view *v = &call->in[j];
            if (v->ndim != x->ndim) return wrong_axes(r, 0, j, x->ndim, v->ndim);
            for (int a = 0; a < x->ndim; a++)
                if (a != axis && v->shape[a] != x->shape[a])
                    return wrong_size(r, 0, j, a, x->shape[a], v->shape[a]);
            expected += v->shape[axis];
        }
    } else {
        const int apart = call->op == OP_unslice;
        const int64_t length = apart ? call->i[4] : x->shape[axis];
        const int64_t n = slice_length(call->i[1], call->i[2], call->i[3], length);
        if (n < 0) return wrong_attribute(r, "a slice beyond the size", length);
        if (apart && x->shape[axis] != n) return wrong_size(r, 0, 0, (int)axis, n, x->shape[axis]);
        expected = apart ? length : n;
    }
    for (int a = 0; a < y->ndim; a++) {
        const int64_t size = a == axis ? expected : x->shape[a];
        if (y->shape[a] != size) return wrong_size(r, 1, 0, a, size, y->shape[a]);
    }
    return CHAINRULE_OK;
}

static chainrule_status attributes(reader *r) {
    const chainrule_call *call = r->call;
    switch (call->op) {
    case OP_dense:
    case OP_matmul_dact:
        if (call->i[0] < -1 || call->i[0] >= ACT_COUNT)
            return wrong_attribute(r, "there is no activation row", call->i[0]);
        break;
    case OP_matmul_update:
    case OP_update:
    case OP_update_rows:
        if (call->i[0] < 0 || call->i[0] >= UPDATE_COUNT)
            return wrong_attribute(r, "there is no update row", call->i[0]);
        break;
    case OP_dropout:
        if (!(call->f[0] >= 0 && call->f[0] < 1))
            return chainrule_fail(r->error, CHAINRULE_VALUE,
                                  "dropout: expected a rate in [0, 1), got %g", call->f[0]);
        break;
    case OP_row_sums:
    case OP_scatter_rows:
    case OP_put_along_last:
        if (call->i[0] < 0) return wrong_attribute(r, "expected a size, got", call->i[0]);
        break;
    case OP_load:
    case OP_store:
    case OP_result:
        if (call->i[0] < 0) return wrong_attribute(r, "expected a number, got", call->i[0]);
        break;
    }
    return CHAINRULE_OK;
}

chainrule_status chainrule_check(const chainrule_call *call, chainrule_error *error) {
    reader r = {.call = call, .error = error, .type = {-1, -1, -1}, .count = {-1, -1}};
    for (int k = 0; k < 26; k++) r.axis[k] = -1;
    if (error) error->op = call->op;
    chainrule_status s = attributes(&r);
    if (s) return s;
    const char *signature = signature_of(call);
    if (!signature) return ops[call->op].class == REDUCE ? reduction(&r) : movement(&r);
    /* sizes that stand in attributes only */
    if (call->op == OP_scatter_rows) r.axis['V' - 'A'] = call->i[0];
    if (call->op == OP_put_along_last) r.axis['C' - 'A'] = call->i[0];
    if ((s = read_signature(&r, signature))) return s;
    if (ops[call->op].class == ROWS && r.axis['C' - 'A'] == 0)
        return wrong_attribute(&r, "rows are empty: size", 0);
    return CHAINRULE_OK;
}
