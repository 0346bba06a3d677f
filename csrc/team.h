/* A team of threads and the floating-point environment they work in. Private to the core. */
#ifndef CHAINRULE_TEAM_H
#define CHAINRULE_TEAM_H

#include <stdatomic.h>
#include <stdint.h>

/* Round to nearest, nothing flushed; the value to restore. */
typedef uint64_t chainrule_fp;
static inline chainrule_fp chainrule_fp_enter(void) {
#if defined(__x86_64__)
    uint32_t old, plain = 0x1f80;
    __asm__ volatile("stmxcsr %0" : "=m"(old));
    __asm__ volatile("ldmxcsr %0" : : "m"(plain));
    return old;
#elif defined(__aarch64__)
    uint64_t old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return old;
#else
    return 0;
#endif
}
static inline void chainrule_fp_leave(chainrule_fp old) {
#if defined(__x86_64__)
    uint32_t value = (uint32_t)old;
    __asm__ volatile("ldmxcsr %0" : : "m"(value));
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(old));
#else
    (void)old;
#endif
}

/* Sense-reversing barrier. Waiting threads spin, then yield; where there are fewer cores than
 * threads they yield at once. */
typedef struct {
    _Alignas(64) atomic_int missing;
    _Alignas(64) atomic_int sense;
    _Alignas(64) int size, spins;
} chainrule_barrier;

/* Wait for the whole team; the last to arrive calls last(argument), if not NULL, before the others
 * go on. `sense` is the caller's own, 0 before its first barrier. */
void chainrule_barrier_wait(chainrule_barrier *, int *sense, void (*last)(void *), void *argument);

/* Cores that this process may use. */
int chainrule_cores(void);

/* Call part(argument, t, n, barrier) on n threads at once, t < n, with the plain floating-point
 * environment. n is `team`, or fewer where so many cannot be had: one in a build without OpenMP,
 * and one in a child of fork() whose parent had a team, because OpenMP does not survive that. */
typedef void chainrule_part_of_team(void *argument, int t, int n, chainrule_barrier *);
void chainrule_team_run(int team, chainrule_part_of_team *part, void *argument);

#endif
