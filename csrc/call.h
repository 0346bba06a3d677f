/* One instruction: what its operands must look like, what it divides among threads, and how its
 * part is run. Eager calls and programs both go through here, so nothing is checked twice. Private.
 */
#ifndef CHAINRULE_CALL_H
#define CHAINRULE_CALL_H

#include "chainrule.h"
#include "kernels.h"

/* No error yet; an error. Both take NULL; the second returns the status. */
void chainrule_clear(chainrule_error *);
chainrule_status chainrule_fail(chainrule_error *, chainrule_status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* enum chainrule_class of an op */
int chainrule_class_of(int op);

/* The input that output j overwrites, or -1 where the op is not one in place. */
int chainrule_in_place(int op, int j);

/* What an op's indices must stay below, and which operand they are; -1 where it has none. */
int64_t chainrule_index_bound(const chainrule_call *, int *operand);

/* The table, of those for float32 and float64, that an op is run with: where bits are only moved,
 * the one of the same size. */
const chainrule_kernels *chainrule_kernels_for(const chainrule_call *,
                                               const chainrule_kernels *const tables[2]);

/* Types, shapes and attributes against the op's rule. Looks at no data, stride or pointer. */
chainrule_status chainrule_check(const chainrule_call *, chainrule_error *);

/* Number of floating-point operations, roughly: what a team is chosen by. */
double chainrule_work(const chainrule_call *);
/* Threads for that much work where the caller leaves the choice. */
int chainrule_choose_threads(int threads, double work);

/* Parts of an instruction: [begin, end) of `extent`, which is the size of axis 0 or 1 of some of
 * the operands; WHOLE is an operand that every part uses all of. An extent of 1 with nothing
 * divided: one thread does it. */
enum { WHOLE = -1 };
typedef struct {
    int64_t extent;
    int8_t out[MAX_OUT], in[MAX_IN];
    int8_t by_kernel; /* the kernel is told which part, and divides the work in its own way */
} chainrule_split;
chainrule_split chainrule_split_of(const chainrule_call *);

/* An instruction, or a part of one, ready to run. */
typedef struct {
    chainrule_call call;
    const chainrule_kernels *kernels;
    chainrule_contract contract; /* class CONTRACT */
    int64_t begin, end;          /* classes that take a range */
    int64_t base;                /* position of the first index of this part in the whole */
    int t, team;                 /* the part, for kernels that divide by themselves */
} chainrule_task;

/* A whole instruction. panels: where operand w of a contraction lives, if not in the call's view,
 * and state: the two update states' (kernels: those that laid the panels out). */
void chainrule_prepare(chainrule_task *, const chainrule_call *, const chainrule_kernels *,
                       const chainrule_panels *w, void *const state[2]);

/* Reduce a prepared task to part t of team of its split; 0 if that is empty. */
int chainrule_narrow(chainrule_task *, const chainrule_split *, int t, int team);

/* Reduce a prepared update of panels to panels [begin, end). */
void chainrule_narrow_panels(chainrule_task *, int64_t begin, int64_t end);

/* Bytes of scratch that a thread takes to run it; team: of how many a contraction is shared by. */
size_t chainrule_scratch(const chainrule_task *, int team);

/* Any class but INPUT and OUTPUT. Returns -1, or the position of an index out of range, counted in
 * the whole instruction's operand. */
int64_t chainrule_task_run(const chainrule_task *, void *scratch);

#endif
