/* The team of threads, on C11 atomics and, to sleep, a futex (Linux) or a condition variable (elsewhere).
 *
 * All waiting is one thing: a *word* holds an even number, waiters wait until it changes, and whoever changes it
 * wakes them only if one has marked it as slept on, in its lowest bit. The barrier's phase, a worker's next job and
 * the end of a job are such words. Not here: priorities, work stealing, pinning. Next: cpu.c, or share.c, who
 * decides what the team is worth.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getcpu, sched_setaffinity */
#endif
#include "threads.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <time.h>

#include "control.h"
#include "cpu.h"

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__linux__) && !defined(FRNN_NO_FUTEX)
#include <limits.h>
#include <linux/futex.h>
#define FUTEX 1
#endif

typedef _Atomic uint32_t word;

enum { ASLEEP = 1, NEXT = 2 }; /* the mark; the distance from a word's number to its next */

/* The longest spin is twice what it costs to put a thread to sleep and wake it (measured: 25 us in a virtual machine).
 * With less than that, two threads that take turns at a barrier can go on waking each other for ever: each is asleep
 * by the time that the other has got up. */
enum {
    SPIN_NS = 50000,      /* the longest spin */
    SHORT_SPIN_NS = 1250, /* and what is left of it after PATIENCE spins in vain, */
    PATIENCE = 4,
    RETRY = 16,           /* but for every so many-th, in case times have changed */
    BURST = 16,           /* looks at the word between looks at the clock */
    STACK_BYTES = 1 << 20
};

/* ------------------------------------------------------------------------------------------------ sleep and wake */

#ifdef FUTEX

static void sleep_while(word *w, uint32_t value)
{
    syscall(SYS_futex, w, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake_all(word *w)
{
    syscall(SYS_futex, w, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void forget_sleepers(void) {}

#else

enum { BEDS = 64 };

static struct bed {
    pthread_mutex_t mutex;
    pthread_cond_t bell;
} beds[BEDS] = {[0 ... BEDS - 1] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER}};

static struct bed *bed_of(word *w)
{
    return &beds[(uintptr_t)w / FRNN_CACHE_LINE % BEDS];
}

static void sleep_while(word *w, uint32_t value)
{
    struct bed *bed = bed_of(w);
    pthread_mutex_lock(&bed->mutex);
    while (atomic_load_explicit(w, memory_order_relaxed) == value)
        pthread_cond_wait(&bed->bell, &bed->mutex);
    pthread_mutex_unlock(&bed->mutex);
}

static void wake_all(word *w)
{
    struct bed *bed = bed_of(w);
    pthread_mutex_lock(&bed->mutex);
    pthread_cond_broadcast(&bed->bell);
    pthread_mutex_unlock(&bed->mutex);
}

static void forget_sleepers(void)
{
    for (int i = 0; i < BEDS; i++) {
        pthread_mutex_init(&beds[i].mutex, NULL);
        pthread_cond_init(&beds[i].bell, NULL);
    }
}

#endif

/* ---------------------------------------------------------------------------------------------------------- words */

int64_t frnn_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

static uint32_t read_word(word *w)
{
    return atomic_load_explicit(w, memory_order_acquire) & ~(uint32_t)ASLEEP;
}

/* Whether the word moved on from `old` within that time. The clock bounds the spin, not the number of looks: a
 * thread that lost its core meanwhile gives up as soon as it has it back. */
static int spin(word *w, uint32_t old, int64_t ns)
{
    for (int64_t end = 0;;) {
        for (int i = 0; i < BURST; i++) {
            if (read_word(w) != old)
                return 1;
            relax();
        }
        int64_t now = frnn_now_ns();
        if (end == 0)
            end = now + ns;
        else if (now >= end)
            return 0;
    }
}

/* Wait until the word moves on from `old`. vain counts the spins in vain since the last that was not: where cores are
 * short, the thread waited for may need the very core that the spinning takes. */
static void await(word *w, uint32_t old, _Atomic unsigned *vain)
{
    unsigned before = atomic_load_explicit(vain, memory_order_relaxed);
    if (spin(w, old, before < PATIENCE || before % RETRY == 0 ? SPIN_NS : SHORT_SPIN_NS)) {
        if (before != 0)
            atomic_store_explicit(vain, 0, memory_order_relaxed);
        return;
    }
    atomic_store_explicit(vain, before + 1, memory_order_relaxed);
    while (read_word(w) == old) {
        uint32_t value = old;
        if (atomic_compare_exchange_strong_explicit(w, &value, old | ASLEEP, memory_order_release,
                                                    memory_order_relaxed) ||
            value == (old | ASLEEP))
            sleep_while(w, old | ASLEEP);
    }
}

static void move_word(word *w, uint32_t value)
{
    if (atomic_exchange_explicit(w, value, memory_order_acq_rel) & ASLEEP)
        wake_all(w);
}

/* -------------------------------------------------------------------------------------------------------- barrier */

static _Alignas(FRNN_CACHE_LINE) _Atomic unsigned vain; /* of all waits within a job */

void frnn_barrier_init(frnn_barrier *barrier, int size)
{
    atomic_init(&barrier->arrived, 0);
    atomic_init(&barrier->phase, 0);
    barrier->size = size;
}

void frnn_barrier_wait(frnn_barrier *barrier)
{
    if (barrier->size == 1)
        return;
    /* The phase cannot move before this thread has arrived, so to read it first is safe. */
    uint32_t phase = read_word(&barrier->phase);
    uint32_t before = atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel);
    if (before + 1 < (uint32_t)barrier->size) {
        await(&barrier->phase, phase, &vain);
    } else {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed); /* the phase publishes it */
        move_word(&barrier->phase, phase + NEXT);
    }
}

/* ----------------------------------------------------------------------------------------------------------- team */

/* Where a worker may run: schedulers like to put the thread that is woken where the thread is that wakes it, and two
 * threads that take turns at sleeping can stay on one processor for ever, beside an idle one, since they never both want
 * to run. So a worker is barred from the processor that its last job was handed over on. */
typedef struct place {
#if defined(__linux__)
    pid_t thread;
    cpu_set_t home, given; /* the processors that are its own, and those that it was left with here */
    int barred;            /* the one that it may not run on now, or -1 */
#else
    char unused;
#endif
} place;

/* What there is to do, and the caller's floating-point control word: the parts of a task must not round apart. */
typedef struct order {
    int size;
    frnn_task task;
    void *arg;
    uint64_t control;
} order;

/* A worker's letter box. The order is written first, then the word moves. */
typedef struct slot {
    _Alignas(FRNN_CACHE_LINE) word job;
    int rank;
    order order;
    int from;       /* the processor that handed it over */
    int64_t posted; /* when it did, if the worker had to be woken, or 0 */
    place place;
} slot;

static struct {
    atomic_flag busy;    /* whoever sets it is the caller, and owns all that follows */
    _Atomic int workers; /* threads there are: others may ask */
    slot slots[FRNN_MAX_THREADS]; /* [rank]; the caller's is not used */
    _Alignas(FRNN_CACHE_LINE) _Atomic int running; /* workers still in the job */
    word done;                                     /* moves when there are none */
} team = {.busy = ATOMIC_FLAG_INIT};

#if defined(__linux__)

static int processor(void)
{
    return sched_getcpu();
}

/* A worker is the whole process's: it may run where the main thread may, wherever its first caller has been put. */
static void settle(place *own)
{
    own->thread = (pid_t)syscall(SYS_gettid);
    own->barred = -1;
    if (sched_getaffinity(getpid(), sizeof own->home, &own->home) == 0)
        sched_setaffinity(own->thread, sizeof own->home, &own->home);
    else
        CPU_ZERO(&own->home);
    own->given = own->home;
}

/* Keep a worker off a processor, unless it has no other. Costs nothing where that is so already. */
static void bar(place *own, int from)
{
    cpu_set_t now;
    if (from == own->barred || from < 0 || from >= CPU_SETSIZE || sched_getaffinity(own->thread, sizeof now, &now) != 0)
        return;
    if (!CPU_EQUAL(&now, &own->given))
        own->home = now; /* someone else has decided where it may run */
    now = own->home;
    CPU_CLR(from, &now);
    if (CPU_COUNT(&now) == 0 || sched_setaffinity(own->thread, sizeof now, &now) != 0)
        return;
    own->given = now;
    own->barred = from;
}

#else

static int processor(void)
{
    return -1;
}

static void settle(place *own)
{
    (void)own;
}

static void bar(place *own, int from)
{
    (void)own;
    (void)from;
}

#endif

/* Hand the job on to the ranks that follow this one in a binomial tree: rank + 2^k for every 2^k above rank. Waking
 * a sleeper costs microseconds, so no thread does it for all. */
static void hand_on(int rank, const order *what)
{
    int step = 1;
    while (step <= rank)
        step *= 2;
    for (; rank + step < what->size; step *= 2) {
        slot *next = &team.slots[rank + step];
        next->order = *what;
        next->from = processor();
        next->posted = 0;
        if (atomic_load_explicit(&next->job, memory_order_acquire) & ASLEEP) {
            next->posted = frnn_now_ns();
            bar(&next->place, next->from);
        }
        move_word(&next->job, read_word(&next->job) + NEXT);
    }
}

static void *work(void *arg)
{
    slot *own = arg;
    settle(&own->place);
    _Atomic unsigned idle_in_vain = 0;
    for (uint32_t seen = 0;;) {
        const int64_t idle = frnn_now_ns();
        await(&own->job, seen, &idle_in_vain);
        /* Even if it slept, for it takes long to get up: where jobs come so fast, to spin is right again. */
        if (own->posted - idle < SPIN_NS)
            atomic_store_explicit(&idle_in_vain, 0, memory_order_relaxed);
        seen = read_word(&own->job); /* now: there may be a next job as soon as this one is done */
        if (own->from == processor())
            bar(&own->place, own->from);
        hand_on(own->rank, &own->order);
        frnn_set_control(own->order.control);
        own->order.task(own->order.arg, own->rank, own->order.size);
        if (atomic_fetch_sub_explicit(&team.running, 1, memory_order_acq_rel) == 1)
            move_word(&team.done, read_word(&team.done) + NEXT);
    }
    return NULL;
}

static _Atomic int most;     /* that the team may be, or 0: not asked yet */
static uint32_t process = 1; /* how many-th in its line of forks */

static int workers(void)
{
    return atomic_load_explicit(&team.workers, memory_order_relaxed);
}

/* A forked child has the calling thread alone, whatever the others were doing, and may be given other processors. */
static void start_afresh(void)
{
    process++;
    atomic_store_explicit(&most, 0, memory_order_relaxed);
    for (int rank = 1; rank < FRNN_MAX_THREADS; rank++)
        atomic_init(&team.slots[rank].job, 0);
    atomic_init(&team.done, 0);
    atomic_store_explicit(&team.workers, 0, memory_order_relaxed);
    forget_sleepers();
    atomic_flag_clear_explicit(&team.busy, memory_order_release);
}

static void at_forks(void)
{
    pthread_atfork(NULL, NULL, start_afresh);
}

static void watch_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, at_forks);
}

uint32_t frnn_process(void)
{
    watch_forks();
    return process;
}

/* Create workers until there are so many, or as many as can be. They take no signals, which belong to the threads of the
 * program, Python's handlers to its main one: none but for those of their own faults, which kill unheard where they are
 * blocked. */
static void hire(int wanted)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    watch_forks();

    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0)
        return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (unsigned i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&blocked, faults[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    for (int rank = workers() + 1; rank <= wanted; rank++) {
        team.slots[rank].rank = rank;
        pthread_t thread;
        if (pthread_create(&thread, &attributes, work, &team.slots[rank]) != 0)
            break;
        atomic_store_explicit(&team.workers, rank, memory_order_relaxed);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

int frnn_team_run(int size, frnn_task task, void *arg)
{
    if (size > FRNN_MAX_THREADS)
        size = FRNN_MAX_THREADS;
    if (size <= 1 || atomic_flag_test_and_set_explicit(&team.busy, memory_order_acquire)) {
        task(arg, 0, 1);
        return 1;
    }
    if (workers() < size - 1)
        hire(size - 1);
    if (workers() < size - 1)
        size = workers() + 1;

    uint32_t done = read_word(&team.done);
    atomic_store_explicit(&team.running, size - 1, memory_order_relaxed);
    hand_on(0, &(order){size, task, arg, frnn_control()});
    task(arg, 0, size);
    if (size > 1)
        await(&team.done, done, &vain);
    atomic_flag_clear_explicit(&team.busy, memory_order_release);
    return size;
}

int frnn_team_awake(void)
{
    return workers() > 0 && !(atomic_load_explicit(&team.slots[1].job, memory_order_relaxed) & ASLEEP);
}

/* ----------------------------------------------------------------------------------------------------------- size */

static _Atomic int threads; /* 0: nobody has said, so as many as make sense */

int frnn_team_limit(void)
{
    int n = atomic_load_explicit(&most, memory_order_relaxed);
    if (n == 0) {
        watch_forks();
        n = frnn_cpu_count("");
        if (n > FRNN_MAX_THREADS)
            n = FRNN_MAX_THREADS;
        atomic_store_explicit(&most, n, memory_order_relaxed);
    }
    return n;
}

int frnn_set_threads(int n)
{
    int limit = frnn_team_limit();
    n = n < 1 ? 1 : n > limit ? limit : n;
    atomic_store_explicit(&threads, n, memory_order_relaxed);
    return n;
}

int frnn_get_threads(void)
{
    int n = atomic_load_explicit(&threads, memory_order_relaxed), limit = frnn_team_limit();
    return n && n < limit ? n : limit; /* what was said in a parent may be too much here */
}
