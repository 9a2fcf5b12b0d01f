/* The team of threads: run a function on several threads at once, and meet at a barrier in between.
 *
 * It knows no mathematics: work is split by whoever writes the task, from its rank and the size of the team. There
 * is one team for the process, made when first needed; its threads sleep when there is nothing to do, and whoever
 * waits spins for some microseconds only before it sleeps, so a neighbour on the same cores loses nothing.
 * The team's size, frnn_set_threads and its kin, is in fastrnn.h. Next: threads.c.
 */
#ifndef FRNN_THREADS_H
#define FRNN_THREADS_H

#include <stdatomic.h>
#include <stdint.h>

#include "fastrnn.h"

enum {
    FRNN_MAX_THREADS = 64,
    FRNN_CACHE_LINE = 128 /* bytes that two threads should not share: x86 prefetches lines of 64 in pairs */
};

typedef void (*frnn_task)(void *arg, int rank, int size);

/* Run task(arg, rank, size) for every rank below size, the caller being rank 0, and return when all are done.
 *
 * Returns the size really used, which is also the one that the task is given: fewer than asked where threads cannot
 * be created, and 1, the caller alone, while the team works for another caller. That includes a task that calls
 * this again. What was written before the call is visible to the task, and the task's writes to the caller. Floating-point
 * control words are the caller's on all of them. */
int frnn_team_run(int size, frnn_task task, void *arg);

/* Nanoseconds of a clock that never goes back. */
int64_t frnn_now_ns(void);

/* Whether the team is awake: it has worked a moment ago, so that to call it costs little. */
int frnn_team_awake(void);

/* Which process this is of a line of forks: another number in a child than in its parent. Threads that a fork leaves behind are
 * told by it. */
uint32_t frnn_process(void);

/* A point where `size` threads wait for each other, as often as wanted. What any of them wrote before is visible to
 * all of them after. It lies with its owner, needs no destruction, and is free once the last thread has left. */
typedef struct frnn_barrier {
    _Alignas(FRNN_CACHE_LINE) _Atomic uint32_t arrived; /* threads that are here in this phase */
    _Atomic uint32_t phase;                             /* a word to wait for: see threads.c */
    int size;
} frnn_barrier;

void frnn_barrier_init(frnn_barrier *barrier, int size);
void frnn_barrier_wait(frnn_barrier *barrier);

#endif
