/* chainrule: training of dense networks on the CPU. The C interface.
 *
 * Compiles as C99 and as C++17. Every function that can fail returns a status and, where it takes a
 * chainrule_error, says more there; none aborts, prints or throws.
 *
 * Shape letters: B rows of the minibatch, K inputs, N outputs, C classes. Matrices are row-major;
 * ld* is the distance of two rows in elements. `dtype` is CHAINRULE_F32 or CHAINRULE_F64 and is the
 * type of every `void *` operand. Operands that are written must not overlap any other operand,
 * except where said. Pointers are aligned to their elements.
 *
 * Results do not depend on the number of threads nor on the instruction set: an element of a matrix
 * product with K terms is the chain acc = fma(a_k, b_k, acc) from +0 in ascending k.
 */
#ifndef CHAINRULE_H
#define CHAINRULE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define CHAINRULE_API __attribute__((visibility("default")))
#else
#define CHAINRULE_API
#endif

/* Grows when functions are added; none is ever changed or removed. */
#define CHAINRULE_ABI 1

typedef enum chainrule_status {
    CHAINRULE_OK = 0,
    CHAINRULE_VALUE,  /* shapes, sizes or numbers that do not fit */
    CHAINRULE_TYPE,   /* an element type that does not fit */
    CHAINRULE_INDEX,  /* an index out of range */
    CHAINRULE_MEMORY, /* memory could not be had */
    CHAINRULE_STATE   /* a call that is out of turn, e.g. run before begin */
} chainrule_status;

typedef enum chainrule_dtype {
    CHAINRULE_F32,
    CHAINRULE_F64,
    CHAINRULE_I32,
    CHAINRULE_I64,
    CHAINRULE_BOOL /* one byte, 0 or 1 */
} chainrule_dtype;

/* What went wrong. Fields that do not apply are -1. */
typedef struct chainrule_error {
    int32_t status;
    int32_t op;          /* op code */
    int64_t instruction; /* of a program, counted from 0 */
    int64_t step;        /* of a run, counted from 0 */
    int64_t position;    /* of the operand, or of the index that is out of range */
    int64_t expected, got;
    char message[192]; /* a sentence */
} chainrule_error;

/* ---- the library ------------------------------------------------------------------------------
 */

/* CHAINRULE_ABI of the library that runs. Thread-safe. */
CHAINRULE_API int chainrule_abi(void);

/* Name and version of the compiler; whether this build can use several threads. Thread-safe. */
CHAINRULE_API const char *chainrule_compiler(void);
CHAINRULE_API int chainrule_openmp(void);

/* Name of the i-th instruction set that this build has and this CPU runs ("portable", "avx2",
 * "avx512", "neon"), from the plainest to the widest; NULL past the last. Thread-safe. */
CHAINRULE_API const char *chainrule_isa_at(int i);

/* Name of the instruction set in use: the widest, unless the environment variable CHAINRULE_ISA
 * names another. Thread-safe. */
CHAINRULE_API const char *chainrule_isa(void);

/* Use another from now on; programs that exist keep theirs. CHAINRULE_VALUE if there is none of
 * that name. Thread-safe. */
CHAINRULE_API chainrule_status chainrule_set_isa(const char *name);

/* Name of an op code, of an activation row, of an update row; NULL past the last. Thread-safe.
 * residual: what the derivative is computed from, "y" or "z". states: arrays beside the weights. */
CHAINRULE_API const char *chainrule_op_name(int op);
CHAINRULE_API const char *chainrule_activation(int row, const char **residual);
CHAINRULE_API const char *chainrule_update_name(int row, int *states);

/* out[e] = low + u_e (high - low), rounded once, in float32 or float64; u_e in [0, 1) depends on
 * key, step and e alone (Philox4x32-10). Thread-safe. */
CHAINRULE_API chainrule_status chainrule_uniform(uint64_t key, uint64_t step, double low,
                                                 double high, int dtype, void *out, int64_t n);

/* A random order of 0 ... n - 1 that depends on key and epoch alone. Thread-safe. */
CHAINRULE_API chainrule_status chainrule_permutation(uint64_t key, uint64_t epoch, int64_t *out,
                                                     int64_t n);

/* ---- one instruction --------------------------------------------------------------------------
 */

/* An array of up to four axes; strides in elements. */
typedef struct chainrule_array {
    void *data;
    int32_t dtype, ndim;
    int64_t shape[4], stride[4];
} chainrule_array;

/* out = op(in), any op but load, store and result. Thread-safe.
 * out, in: the operands in the order of the op table; shapes and types are checked. Elementwise ops
 *   take any strides, others want the axes after the first contiguous.
 * ints, floats: the op's attributes, up to eight and four.
 * threads: how many to use, 0 to let the size decide. */
CHAINRULE_API chainrule_status chainrule_run(int op, int n_out, const chainrule_array *out,
                                             int n_in, const chainrule_array *in, int n_ints,
                                             const int64_t *ints, int n_floats,
                                             const double *floats, int threads,
                                             chainrule_error *error);

/* ---- layers: the bricks of another trainer ------------------------------------------------------
 */

/* How a weight matrix is stored. */
enum chainrule_layout {
    CHAINRULE_OUT_IN, /* (N, K), ldw >= K */
    CHAINRULE_IN_OUT  /* (K, N), ldw >= N */
};

/* y = f(z), z = x W^T + bias. Thread-safe.
 * x: (B, K), ldx.  w: as `layout` says, ldw.  bias: (N), or NULL for none.
 * activation: a row of chainrule_activation with its parameter, or -1 for y = z.
 * y: (B, N), ldy.  z: (B, N), ldz, or NULL if it is not wanted. */
CHAINRULE_API chainrule_status chainrule_dense_forward(int dtype, int64_t B, int64_t K, int64_t N,
                                                       const void *x, int64_t ldx, const void *w,
                                                       int64_t ldw, int layout, const void *bias,
                                                       int activation, double param, void *y,
                                                       int64_t ldy, void *z, int64_t ldz,
                                                       int threads);

/* dx = (delta W) f'(r), the error signal of the layer below, or dx = delta W. Thread-safe.
 * delta: (B, N), ldd.  w: as `layout` says, ldw.
 * r: (B, K), ldr, the residual (y or z) of the layer below; not read if activation is -1.
 * dx: (B, K), ldx. */
CHAINRULE_API chainrule_status chainrule_dense_input_gradient(
    int dtype, int64_t B, int64_t K, int64_t N, const void *delta, int64_t ldd, const void *w,
    int64_t ldw, int layout, const void *r, int64_t ldr, int activation, double param, void *dx,
    int64_t ldx, int threads);

/* dW = delta^T x + (accumulate ? dW : 0), in the layout of W, and the same for db = sum_b delta.
 * Without `accumulate` the outputs are not read. Thread-safe.
 * delta: (B, N), ldd.  x: (B, K), ldx.  dw: as `layout` says, ldw.  db: (N), or NULL. */
CHAINRULE_API chainrule_status chainrule_dense_weight_gradient(
    int dtype, int64_t B, int64_t K, int64_t N, const void *delta, int64_t ldd, const void *x,
    int64_t ldx, int accumulate, void *dw, int64_t ldw, int layout, void *db, int threads);

/* Places in the coefficients of an update: step size, weight decay, decays of the moments and one
 * minus them, eps, the second moment's bias correction, and the bound that gradients are clipped to
 * (infinity: none). All but the first may be 0 for "sgd", where clip is the exception. */
enum chainrule_coefficient {
    CHAINRULE_STEP,
    CHAINRULE_DECAY,
    CHAINRULE_BETA1,
    CHAINRULE_1_BETA1,
    CHAINRULE_BETA2,
    CHAINRULE_1_BETA2,
    CHAINRULE_EPS,
    CHAINRULE_DENOM,
    CHAINRULE_CLIP,
    CHAINRULE_COEFFICIENTS
};

/* W = update(W, delta^T x), one step of an optimizer without a gradient in memory. Thread-safe.
 * delta: (B, N), ldd.  x: (B, K), ldx.  w: as `layout` says, ldw; changed in place.
 * update: a row of chainrule_update_name.  s1, s2: its states, stored as w; NULL where it has none.
 * coefficients: CHAINRULE_COEFFICIENTS numbers. */
CHAINRULE_API chainrule_status chainrule_dense_update(int dtype, int64_t B, int64_t K, int64_t N,
                                                      const void *delta, int64_t ldd, const void *x,
                                                      int64_t ldx, int update,
                                                      const double *coefficients, void *w,
                                                      int64_t ldw, int layout, void *s1, void *s2,
                                                      int threads);

/* loss_b = log sum_c exp(z_bc) - z_by, dz = g_b (softmax(z_b) - onehot(y_b)). Thread-safe.
 * z: (B, C), ldz.  labels: (B) int64; CHAINRULE_INDEX if one is not in [0, C), *bad is its
 * position. loss: (B), or NULL.  g: (B), the upstream gradient, and dz: (B, C), lddz; both NULL if
 * not wanted. */
CHAINRULE_API chainrule_status chainrule_softmax_cross_entropy(
    int dtype, int64_t B, int64_t C, const void *z, int64_t ldz, const int64_t *labels, void *loss,
    const void *g, void *dz, int64_t lddz, int64_t *bad, int threads);

/* ---- programs ---------------------------------------------------------------------------------
 */

/* A step of a training or a prediction as a flat list of instructions. One thread at a time may use
 * a program; different programs are independent, unless they are bound to the same memory. */
typedef struct chainrule_program chainrule_program;

enum {
    CHAINRULE_BUFFER_FIELDS = 8,       /* kind, dtype, ndim, shape[4], extra */
    CHAINRULE_INSTRUCTION_FIELDS = 24, /* op, n_out, out[4], n_in, in[8], ints[8], 0 */
    CHAINRULE_FLOAT_FIELDS = 4
};

enum chainrule_kind {
    CHAINRULE_TEMP,   /* the program's own */
    CHAINRULE_PARAM,  /* bound memory, read and written */
    CHAINRULE_CONST,  /* bound memory, read */
    CHAINRULE_SCALARS /* from the table of scalars: float64 () or (n,), or int64 (); extra is the
                         first column */
};

/* A program of the given tables, which are checked completely and copied.
 * buffers: (n_buffers, 8).  instructions: (n_instructions, 24).  floats: (n_instructions, 4). */
CHAINRULE_API chainrule_status chainrule_program_create(
    int64_t n_buffers, const int64_t *buffers, int64_t n_instructions, const int64_t *instructions,
    const double *floats, chainrule_program **program, chainrule_error *error);

/* Release it. Does not write parameters back. NULL is fine. */
CHAINRULE_API void chainrule_program_free(chainrule_program *program);

/* Use this array, C-contiguous and of the buffer's type and shape, for a PARAM or CONST. It is
 * borrowed until another is bound or the program is freed. Not while the program is begun. */
CHAINRULE_API chainrule_status chainrule_program_bind(chainrule_program *program, int64_t buffer,
                                                      const chainrule_array *array,
                                                      chainrule_error *error);

/* Whether some instruction writes a buffer: what is bound to it must be writable. */
CHAINRULE_API int chainrule_program_writes(const chainrule_program *program, int64_t buffer);

/* Take the parameters into the program's own layout. They must not be touched until the end.
 * threads: as in chainrule_run; the size is that of a step. */
CHAINRULE_API chainrule_status chainrule_program_begin(chainrule_program *program, int threads,
                                                       chainrule_error *error);

/* Data source or output: `rows` rows of `width` contiguous elements, `pitch` elements apart. */
typedef struct chainrule_rows_of {
    void *data;
    int64_t rows, width, pitch;
    int32_t dtype;
} chainrule_rows_of;

typedef struct chainrule_batch {
    int64_t steps;     /* to run */
    int64_t n_sources; /* what `load` reads */
    const chainrule_rows_of *sources;
    const int64_t *index; /* (steps * B) row numbers, or NULL: first_row, first_row + 1, ... */
    int64_t first_row;    /* also of the outputs */
    int64_t n_scalars;
    const double *scalars; /* (steps, n_scalars) */
    int64_t n_results;
    double *results;   /* (steps, n_results), what `result` writes */
    int64_t n_outputs; /* what `store` writes, from first_row on */
    const chainrule_rows_of *outputs;
    int64_t budget_ns; /* start no step after that time, but run at least one; 0: no limit */
} chainrule_batch;

/* Run up to batch->steps steps. Stops early after a step whose result in column 0 is not finite.
 * done: the number of whole steps. An index out of range ends the run with CHAINRULE_INDEX in the
 *   step number `done`, before that step changes a parameter. */
CHAINRULE_API chainrule_status chainrule_program_run(chainrule_program *program,
                                                     const chainrule_batch *batch, int64_t *done,
                                                     chainrule_error *error);

/* Write the parameters back to the bound memory. Nothing happens if it is not begun. */
CHAINRULE_API void chainrule_program_end(chainrule_program *program);

typedef struct chainrule_program_stats {
    int64_t temporary_bytes, instructions, barriers, panelled, threads, batch;
} chainrule_program_stats;

CHAINRULE_API void chainrule_program_describe(const chainrule_program *program,
                                              chainrule_program_stats *stats);

#ifdef __cplusplus
}
#endif

#endif
