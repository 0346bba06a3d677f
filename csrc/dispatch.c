/* CPU features, once, to kernel tables. This file is built without ISA flags: it must run anywhere.
 */
#include "dispatch.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#error "dispatch.c decides what the CPU can run: build it without ISA flags"
#endif

#define TABLES(isa)                                                                                \
    extern const chainrule_kernels chainrule_kernels_##isa##_f32, chainrule_kernels_##isa##_f64;
TABLES(portable)
#if defined(CHAINRULE_HAVE_X86)
TABLES(avx2)
TABLES(avx512)
#endif
#if defined(CHAINRULE_HAVE_NEON)
TABLES(neon)
#endif

typedef struct {
    const char *name;
    const chainrule_kernels *kernels[2];
} isa;

#define ISA(isa)                                                                                   \
    {                                                                                              \
        #isa, { &chainrule_kernels_##isa##_f32, &chainrule_kernels_##isa##_f64 }                   \
    }
/* from the plainest to the widest: each CPU that runs one runs those before it */
static const isa isas[] = {
    ISA(portable),
#if defined(CHAINRULE_HAVE_X86)
    ISA(avx2),
    ISA(avx512),
#endif
#if defined(CHAINRULE_HAVE_NEON)
    ISA(neon),
#endif
};

static int supported(void) {
#if defined(CHAINRULE_HAVE_X86)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        return 2;
#endif
    return (int)(sizeof isas / sizeof *isas);
}

/* Index into isas, or -1 until the first question. Racing threads compute the same answer. */
static atomic_int chosen = -1;

static int find(const char *name) {
    for (int i = 0; i < supported(); i++)
        if (!strcmp(isas[i].name, name)) return i;
    return -1;
}

const chainrule_kernels *chainrule_table(int dtype) {
    int i = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (i < 0) {
        const char *cap = getenv("CHAINRULE_ISA");
        i = cap ? find(cap) : -1;
        if (i < 0) i = supported() - 1;
        atomic_store_explicit(&chosen, i, memory_order_relaxed);
    }
    return isas[i].kernels[dtype == DT_F64];
}

const char *chainrule_isa_at(int i) { return i >= 0 && i < supported() ? isas[i].name : NULL; }

int chainrule_choose_isa(const char *name) {
    const int i = find(name);
    if (i < 0) return -1;
    atomic_store_explicit(&chosen, i, memory_order_relaxed);
    return 0;
}
