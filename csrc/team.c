#if defined(__linux__)
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "team.h"

#include <sched.h>
#include <unistd.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

enum { SPINS = 4000 }; /* some 50 us: longer than any part of a step that is worth sharing waits */

static void barrier_init(chainrule_barrier *b, int size) {
    atomic_init(&b->missing, size);
    atomic_init(&b->sense, 0);
    b->size = size;
    b->spins = size > 1 && size <= chainrule_cores() ? SPINS : 0;
}

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void chainrule_barrier_wait(chainrule_barrier *b, int *sense, void (*last)(void *),
                            void *argument) {
    if (b->size == 1) {
        if (last) last(argument);
        return;
    }
    const int turn = *sense = !*sense;
    if (atomic_fetch_sub_explicit(&b->missing, 1, memory_order_acq_rel) == 1) {
        if (last) last(argument);
        atomic_store_explicit(&b->missing, b->size, memory_order_relaxed);
        atomic_store_explicit(&b->sense, turn, memory_order_release);
        return;
    }
    for (int i = 0; atomic_load_explicit(&b->sense, memory_order_acquire) != turn; i++) {
        if (i < b->spins)
            pause_briefly();
        else
            sched_yield();
    }
}

int chainrule_cores(void) {
    int n = 0;
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
#endif
    if (n < 1) n = (int)sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n;
}

static void part_plainly(chainrule_part_of_team *part, void *argument, int t, int n,
                         chainrule_barrier *barrier) {
    const chainrule_fp old = chainrule_fp_enter();
    part(argument, t, n, barrier);
    chainrule_fp_leave(old);
}

void chainrule_team_run(int team, chainrule_part_of_team *part, void *argument) {
    chainrule_barrier barrier;
#if defined(_OPENMP)
    if (team > 1) {
        static atomic_int owner; /* the process that has had a team */
        int none = 0;
        const int self = (int)getpid();
        if (atomic_compare_exchange_strong(&owner, &none, self) || none == self) {
#pragma omp parallel num_threads(team)
            {
#pragma omp single
                barrier_init(&barrier, omp_get_num_threads());
                part_plainly(part, argument, omp_get_thread_num(), omp_get_num_threads(), &barrier);
            }
            return;
        }
    }
#else
    (void)team;
#endif
    barrier_init(&barrier, 1);
    part_plainly(part, argument, 0, 1, &barrier);
}
