/* Which kernels run: the CPU is asked once, CHAINRULE_ISA may cap the answer. Private to the core.
 */
#ifndef CHAINRULE_DISPATCH_H
#define CHAINRULE_DISPATCH_H

#include "kernels.h"

/* The kernels in use for DT_F32 or DT_F64. */
const chainrule_kernels *chainrule_table(int dtype);

/* Name of the i-th ISA that this build has and this CPU runs, from the plainest to the widest, or
 * NULL past the last. */
const char *chainrule_isa_at(int i);

/* Use the ISA of that name from now on; 0, or -1 if it is not one of chainrule_isa_at. Programs
 * keep the kernels they were created with. */
int chainrule_choose_isa(const char *name);

#endif
