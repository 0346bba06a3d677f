/* A program: what was read from its tables, and the plan for one size of team. Private to the core.
 *
 *   parse.c    tables -> buffers and instructions, checked; panels and free reshapes chosen
 *   plan.c     for a team: order, barriers, memory, and the list of each thread's items
 *   program.c  begin, run, end
 */
#ifndef CHAINRULE_PLAN_H
#define CHAINRULE_PLAN_H

#include "call.h"
#include "copy.h"
#include "team.h"

enum { KIND_TEMP, KIND_PARAM, KIND_CONST, KIND_SCALARS, KIND_TRANSPOSED };

/* Beyond the op codes: from the panels of a weight matrix to those of its transpose. */
enum { OP_TRANSPOSE_PANELS = OP_COUNT };

typedef struct {
    int32_t kind;
    chainrule_view view;     /* data: for a PARAM or CONST, the bound array */
    int64_t column;          /* SCALARS: the first of the table */
    int64_t root;            /* whose storage it is: a reshaped buffer's, or its own number */
    int64_t bytes;           /* TEMP: of storage; SCALARS: of a thread's copy */
    int64_t offset;          /* TEMP: in the arena; SCALARS: in a thread's copy */
    int32_t written;         /* PARAM: by some instruction */
    int32_t panelled;        /* lives in `panels` while the program is begun */
    chainrule_panels panels; /* (K x N) of w (N, K); TRANSPOSED: (N x K) of w = `of` */
    int64_t of;
} chainrule_buffer;

typedef struct {
    chainrule_call call; /* operands without data */
    int64_t out[MAX_OUT], in[MAX_IN];
    int64_t number; /* in the caller's list */
    int32_t checks; /* may find an index out of range */
    int32_t writes_param;
} chainrule_instruction;

/* A thread's part of an instruction. */
typedef struct {
    chainrule_task task;
    int64_t number; /* of the instruction, in the caller's list */
    chainrule_panels from, to;
} chainrule_item;

typedef struct {
    int64_t number, position;
} chainrule_failure; /* number -1: none */

typedef struct {
    _Alignas(64) char *scratch;
    char *scalars;
    chainrule_item *items;
    int64_t *phase_end; /* index past the last item of each phase */
    int64_t n_items;
    chainrule_failure failure;
} chainrule_worker;

struct chainrule_program {
    int64_t n_buffers, n_all, n_instructions; /* all: with the transposed copies */
    chainrule_buffer *buffers;
    chainrule_instruction *instructions;
    const chainrule_kernels *kernels[2];                       /* f32, f64 */
    int64_t batch, n_sources, n_outputs, n_scalars, n_results; /* as many as are needed */
    int64_t *scalars, n_scalar_buffers;                        /* the buffers of kind SCALARS */
    double work;
    char *panel_memory;

    int team;                          /* that the plan is for; 0: none yet */
    int64_t phases, *order, *phase_of; /* instructions in order, and the phase of each */
    chainrule_worker *workers;
    char *arena;
    int64_t arena_bytes;
    int stale; /* pointers of items do not match what is bound */
    int begun;
};

chainrule_status chainrule_parse(chainrule_program *, int64_t n_buffers, const int64_t *buffers,
                                 int64_t n_instructions, const int64_t *instructions,
                                 const double *floats, chainrule_error *);

/* Plan for that many threads; on failure the program has no plan. */
chainrule_status chainrule_plan(chainrule_program *, int team, chainrule_error *);
void chainrule_unplan(chainrule_program *);

/* Fill the items in: from here on they point to what is bound. */
chainrule_status chainrule_fill(chainrule_program *, chainrule_error *);

static inline const chainrule_kernels *chainrule_kernels_of(const chainrule_program *p, int dtype) {
    return p->kernels[dtype == DT_F64];
}

/* 64-byte aligned, or NULL; n may be 0 */
void *chainrule_allocate(size_t n);

#endif
