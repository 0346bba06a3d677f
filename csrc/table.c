/* The kernel table of one (ISA, element type). */
#include "isa.h"
#include "kernels.h"

#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

extern size_t K(contract_scratch)(const chainrule_contract *, int);
extern void K(contract)(const chainrule_contract *, void *, int, int);
extern void K(pack)(const void *, int64_t, int64_t, chainrule_panels, int, int);
extern void K(unpack)(chainrule_panels, void *, int64_t, int64_t, int, int);
extern void K(transpose_panels)(chainrule_panels, chainrule_panels, int64_t, int64_t);
extern void K(map)(const chainrule_call *, int64_t, int64_t);
extern void K(update)(const chainrule_call *, int64_t, int64_t);
extern void K(reduce)(const chainrule_call *, void *, int, int);
extern void K(rows)(const chainrule_call *, int64_t, int64_t);
extern void K(gather)(const chainrule_call *, void *, int, int, int64_t *);

extern const chainrule_kernels K(kernels);
const chainrule_kernels K(kernels) = {
    .isa = STRING(ISA_SUFFIX),
    .panel = 2 * VLANES,
    .contract_scratch = K(contract_scratch),
    .contract = K(contract),
    .pack = K(pack),
    .unpack = K(unpack),
    .transpose_panels = K(transpose_panels),
    .map = K(map),
    .update = K(update),
    .reduce = K(reduce),
    .rows = K(rows),
    .gather = K(gather),
};
