/* The team of threads under stress: every rank once, memory seen across the barrier, callers at the same time, forks,
 * busy neighbours, no threads to be had. Each check ends the program where it fails, and an alarm where it hangs.
 *
 *     test_threads            run everything
 *     test_threads measure    print what a barrier and a call cost instead
 *
 * Built plain, with FRNN_NO_FUTEX and with ThreadSanitizer: see tests/test_build.py and the Makefile.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* pthread_sigmask, usleep and the like under strict standards */
#endif
#include "control.h"
#include "cpu.h"
#include "threads.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

enum { ROUNDS = SANITIZED ? 300 : 3000, CALLERS = 4 };

#define CHECK(truth, ...)                                               \
    do {                                                                \
        if (!(truth)) {                                                 \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #truth); \
            fprintf(stderr, __VA_ARGS__);                               \
            fputc('\n', stderr);                                        \
            _exit(1);                                                   \
        }                                                               \
    } while (0)

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void work_for(int64_t ns)
{
    for (int64_t end = now_ns() + ns; now_ns() < end;)
        ;
}

/* -------------------------------------------------------------------------------------------------- a job's ranks */

/* No atomics here: that the team orders these writes is what is tested, the more so under ThreadSanitizer. */
typedef struct {
    int size, runs[FRNN_MAX_THREADS], input, output[FRNN_MAX_THREADS];
} roll_call;

static void answer(void *arg, int rank, int size)
{
    roll_call *call = arg;
    if (rank == 0)
        call->size = size;
    call->runs[rank]++;
    call->output[rank] = call->input + rank;
}

static int check_roll_call(int asked, int input)
{
    roll_call call = {.input = input};
    int size = frnn_team_run(asked, answer, &call);
    CHECK(size >= 1 && (size <= asked || asked < 1) && size == call.size, "asked for %d, got %d, task was told %d",
          asked, size, call.size);
    for (int rank = 0; rank < FRNN_MAX_THREADS; rank++) {
        CHECK(call.runs[rank] == (rank < size), "rank %d of %d ran %d times", rank, size, call.runs[rank]);
        CHECK(rank >= size || call.output[rank] == input + rank, "rank %d wrote %d", rank, call.output[rank]);
    }
    return size;
}

static void *call_for_more(void *arg)
{
    int *most = arg;
    for (int size = 2; size <= FRNN_MAX_THREADS; size++) {
        frnn_team_awake(); /* which others ask while a caller hires */
        int got = check_roll_call(size, size);
        *most = got > *most ? got : *most;
    }
    return NULL;
}

/* Two callers who find no team yet. */
static void let_two_hire(void)
{
    pthread_t threads[2];
    int most[2] = {0};
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, call_for_more, &most[i]) == 0, "no thread for the test");
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    CHECK(most[0] > 1 || most[1] > 1, "nobody ever got the team");
}

static void test_ranks(void)
{
    let_two_hire();
    static const int sizes[] = {1, 2, 3, 2, 8, 5, 1, 4, FRNN_MAX_THREADS, 2, FRNN_MAX_THREADS + 7, 0, -1};
    for (int round = 0; round < ROUNDS / 100; round++)
        for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            int asked = sizes[i];
            int wanted = asked < 1 ? 1 : asked > FRNN_MAX_THREADS ? FRNN_MAX_THREADS : asked;
            int size = check_roll_call(asked, round);
            CHECK(size == wanted, "asked for %d, got %d", asked, size);
        }
    for (int round = 0; round < ROUNDS; round++) {
        check_roll_call(2 + round % 3, round);
        if (round % 64 == 0)
            usleep(300); /* let them fall asleep */
    }
}

/* -------------------------------------------------------------------------------------------------------- barrier */

typedef struct {
    frnn_barrier barrier;
    int rounds, nap;
    int64_t cell[FRNN_MAX_THREADS];
} meeting;

static void meet(void *arg, int rank, int size)
{
    meeting *m = arg;
    if (size != m->barrier.size)
        return; /* there is a test of its own for that */
    for (int round = 1; round <= m->rounds; round++) {
        if (m->nap && (round + rank) % 50 == 0)
            usleep(m->nap);
        m->cell[rank] += round;
        frnn_barrier_wait(&m->barrier);
        for (int other = 0; other < size; other++)
            CHECK(m->cell[other] == (int64_t)round * (round + 1) / 2, "round %d: rank %d saw %lld of rank %d", round,
                  rank, (long long)m->cell[other], other);
        frnn_barrier_wait(&m->barrier);
    }
}

static void test_barrier(void)
{
    static const int sizes[] = {1, 2, 3, 5, 8};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int nap = 0; nap <= 200; nap += 200) {
            meeting m = {.rounds = sizes[i] > 2 ? ROUNDS / 10 : ROUNDS, .nap = nap};
            frnn_barrier_init(&m.barrier, sizes[i]);
            int size = frnn_team_run(sizes[i], meet, &m);
            CHECK(size == sizes[i], "asked for %d, got %d", sizes[i], size);
            CHECK(m.cell[size - 1] == (int64_t)m.rounds * (m.rounds + 1) / 2, "the last rank did not run");
        }
}

/* -------------------------------------------------------------------------------------------------------- callers */

static void call_again(void *arg, int rank, int size)
{
    (void)arg, (void)size;
    int inner = check_roll_call(2, rank);
    CHECK(inner == 1, "a task called for 2 threads and got %d", inner);
}

static void test_task_that_calls(void)
{
    int size = frnn_team_run(2, call_again, NULL);
    CHECK(size == 2, "got %d", size);
}

static void *call_often(void *arg)
{
    int *alone = arg;
    for (int round = 0; round < ROUNDS; round++) {
        int size = check_roll_call(3, round);
        CHECK(size == 1 || size == 3, "got %d", size);
        *alone += size == 1;
    }
    return NULL;
}

static void test_callers_at_once(void)
{
    pthread_t threads[CALLERS];
    int alone[CALLERS] = {0}, total = 0;
    for (int i = 0; i < CALLERS; i++)
        CHECK(pthread_create(&threads[i], NULL, call_often, &alone[i]) == 0, "no thread for the test");
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        total += alone[i];
    }
    CHECK(total < CALLERS * ROUNDS, "nobody ever got the team");
    CHECK(check_roll_call(3, 0) == 3, "the team was not given back");
}

/* -------------------------------------------------------------------------------------------------------- signals */

static void check_mask(void *arg, int rank, int size)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    (void)arg, (void)size;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    CHECK(sigismember(&mask, SIGINT) == (rank > 0), "rank %d", rank);
    CHECK(sigismember(&mask, SIGTERM) == (rank > 0), "rank %d", rank);
    for (unsigned i = 0; i < sizeof faults / sizeof *faults; i++)
        CHECK(!sigismember(&mask, faults[i]), "rank %d would die of signal %d without a handler", rank, faults[i]);
}

static void check_control(void *arg, int rank, int size)
{
    const uint64_t *wanted = arg;
    (void)size;
    CHECK((frnn_control() & FRNN_FLUSH) == *wanted, "rank %d flushes otherwise than its caller", rank);
}

/* What else a thread has of its own: the caller's is set for all. */
static void test_control(void)
{
    const uint64_t before = frnn_control(), plain = before & ~(uint64_t)FRNN_FLUSH;
    for (int round = 0; round < 4; round++) {
        uint64_t wanted = round % 2 ? FRNN_FLUSH : 0;
        frnn_set_control(plain | wanted);
        CHECK(frnn_team_run(5, check_control, &wanted) == 5, "too few threads");
    }
    frnn_set_control(before);
}

static void test_signals(void)
{
    CHECK(frnn_team_run(4, check_mask, NULL) == 4, "too few threads");
    test_control();
}

/* ----------------------------------------------------------------------------------------------------------- size */

static void test_size(void)
{
    int limit = frnn_team_limit();
    CHECK(limit >= 1 && limit <= FRNN_MAX_THREADS, "%d", limit);
    CHECK(frnn_get_threads() == limit, "%d before anyone has said", frnn_get_threads());
    static const int asked[] = {-3, 0, 1, 1000000};
    for (unsigned i = 0; i < sizeof asked / sizeof *asked; i++) {
        int wanted = asked[i] < 1 ? 1 : asked[i] > limit ? limit : asked[i];
        int set = frnn_set_threads(asked[i]);
        CHECK(set == wanted && frnn_get_threads() == wanted, "asked for %d, got %d", asked[i], set);
    }
}

/* ----------------------------------------------------------------------------------------------- forks, neighbours */

static void expect_success(pid_t child, const char *what)
{
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child, "%s: no child", what);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: the child ended with status %#x", what, status);
}

static void in_child(void (*test)(void), const char *what)
{
    pid_t child = fork();
    if (child == 0) {
        alarm(20); /* which is not inherited */
        test();
        _exit(0);
    }
    expect_success(child, what);
}

static void run_fresh_team(void)
{
    for (int round = 0; round < 100; round++) {
        int size = check_roll_call(8, round);
        CHECK(size == 8, "got %d", size);
    }
}

static void fork_again(void)
{
    run_fresh_team();
    in_child(run_fresh_team, "a child's child");
}

#if defined(__linux__)

static cpu_set_t worker_may; /* run on these */

static void look_around(void *arg, int rank, int size)
{
    (void)size;
    if (rank == 1 && arg)
        CHECK(sched_setaffinity(0, sizeof(cpu_set_t), arg) == 0, "cannot set a worker's processors");
    if (rank == 1)
        CHECK(sched_getaffinity(0, sizeof worker_may, &worker_may) == 0, "no affinity");
}

/* A worker keeps off its caller's processor, but not where someone else has put it there. */
static void keep_apart(void)
{
    cpu_set_t allowed, one;
    CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0, "no affinity");
    if (CPU_COUNT(&allowed) < 2)
        return;
    frnn_team_run(2, look_around, NULL); /* it is born with all of them */
    for (int cpu = 0, round = 0; round < 6; cpu++) {
        if (!CPU_ISSET(cpu % CPU_SETSIZE, &allowed))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu % CPU_SETSIZE, &one);
        CHECK(sched_setaffinity(0, sizeof one, &one) == 0, "cannot go to processor %d", cpu % CPU_SETSIZE);
        round++;
        usleep(20000); /* it goes to sleep: one that is awake elsewhere may stay there */
        frnn_team_run(2, look_around, NULL);
        CHECK(!CPU_ISSET(cpu % CPU_SETSIZE, &worker_may), "a worker may run on its caller's processor");
        CHECK(CPU_COUNT(&worker_may) == CPU_COUNT(&allowed) - 1, "a worker was kept off more than its caller's processor");
    }
    frnn_team_run(2, look_around, &one);
    for (int round = 0; round < 3; round++) {
        usleep(20000);
        frnn_team_run(2, look_around, NULL);
        CHECK(CPU_EQUAL(&worker_may, &one), "a worker left the processor that someone else had put it on");
    }
}

static void *hire_from_one_processor(void *arg)
{
    cpu_set_t *one = arg;
    CHECK(sched_setaffinity(0, sizeof *one, one) == 0, "cannot stay on a processor");
    CHECK(frnn_team_limit() == frnn_get_threads(), "nobody has said");
    CHECK(frnn_team_run(2, look_around, NULL) == 2, "no team");
    return NULL;
}

/* Where the thread may run that asks first, or hires, says nothing of the others; what a child may do is its own. */
static void keep_the_process_whole(void)
{
    const int limit = frnn_cpu_count("");
    cpu_set_t allowed, one;
    CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0, "no affinity");
    if (CPU_COUNT(&allowed) < 2)
        return;
    int first = 0;
    while (!CPU_ISSET(first, &allowed))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, hire_from_one_processor, &one) == 0, "no thread for the test");
    pthread_join(thread, NULL);
    CHECK(frnn_team_limit() == limit, "%d threads of %d: one asked who may run on one processor", frnn_team_limit(), limit);
    CHECK(CPU_COUNT(&worker_may) >= CPU_COUNT(&allowed) - 1, "a worker stays where it was hired");
    pid_t child = fork();
    if (child == 0) {
        CHECK(sched_setaffinity(0, sizeof one, &one) == 0, "cannot stay on a processor");
        CHECK(frnn_team_limit() == 1 && frnn_get_threads() == 1, "%d threads on one processor", frnn_get_threads());
        _exit(0);
    }
    expect_success(child, "a child on one processor");
}

#endif

static _Atomic int stop;

static void be_busy(void *arg, int rank, int size)
{
    (void)arg, (void)rank, (void)size;
    work_for(200000);
}

static void *keep_team_busy(void *arg)
{
    while (!atomic_load(&stop))
        frnn_team_run(2, be_busy, arg);
    return NULL;
}

static void test_fork(void)
{
    check_roll_call(8, 0);
    in_child(fork_again, "a fork of an idle team");

    pthread_t other;
    CHECK(pthread_create(&other, NULL, keep_team_busy, NULL) == 0, "no thread for the test");
    for (int round = 0; round < 20; round++) {
        usleep(round * 37);
        in_child(run_fresh_team, "a fork amid another thread's job");
    }
    atomic_store(&stop, 1);
    pthread_join(other, NULL);
    run_fresh_team();
}

static void test_busy_neighbours(void)
{
    pid_t neighbours[FRNN_MAX_THREADS];
    int n = frnn_cpu_count("");
    n = n > FRNN_MAX_THREADS ? FRNN_MAX_THREADS : n;
    for (int i = 0; i < n; i++)
        if ((neighbours[i] = fork()) == 0) {
            alarm(60);
            for (;;)
                work_for(1000000);
        }
    meeting m = {.rounds = 1000};
    frnn_barrier_init(&m.barrier, 2);
    int64_t start = now_ns();
    int size = frnn_team_run(2, meet, &m);
    double each = (now_ns() - start) / (2e3 * m.rounds);
    for (int i = 0; i < n; i++) {
        kill(neighbours[i], SIGKILL);
        waitpid(neighbours[i], NULL, 0);
    }
    CHECK(size == 2, "got %d", size);
    CHECK(each < 2000, "a barrier took %.0f us beside busy neighbours: it waits for the scheduler's tick", each);
}

static void get_no_threads(void)
{
    struct rlimit none = {1 << 16, 1 << 16};
    CHECK(setrlimit(RLIMIT_AS, &none) == 0, "cannot limit memory");
    int size = check_roll_call(4, 0);
    CHECK(size == 1, "%d threads although there is no memory for a stack", size);
}

/* -------------------------------------------------------------------------------------------------------- measure */

static void do_nothing(void *arg, int rank, int size)
{
    (void)arg, (void)rank, (void)size;
}

static void only_meet(void *arg, int rank, int size)
{
    (void)rank, (void)size;
    meeting *m = arg;
    for (int round = 0; round < m->rounds; round++)
        frnn_barrier_wait(&m->barrier);
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void measure(void)
{
    enum { CALLS = 201 };
    static const int idle_us[] = {0, 20, 1000, 10000};
    int64_t took[CALLS];
    for (int k = 0; k < CALLS; k++) {
        meeting m = {.rounds = 1000};
        frnn_barrier_init(&m.barrier, 2);
        int64_t start = now_ns();
        frnn_team_run(2, only_meet, &m);
        took[k] = (now_ns() - start) / m.rounds;
    }
    qsort(took, CALLS, sizeof *took, by_value);
    printf("2 threads: a barrier takes %lld ns (median; best %lld, worst %lld)\n", (long long)took[CALLS / 2],
           (long long)took[0], (long long)took[CALLS - 1]);
    for (unsigned i = 0; i < sizeof idle_us / sizeof *idle_us; i++) {
        for (int k = 0; k < CALLS; k++) {
            work_for(idle_us[i] * 1000LL);
            int64_t start = now_ns();
            frnn_team_run(2, do_nothing, NULL);
            took[k] = now_ns() - start;
        }
        qsort(took, CALLS, sizeof *took, by_value);
        printf("2 threads: a call that does nothing, after %d us of no calls: %lld ns (median; best %lld, worst %lld)\n",
               idle_us[i], (long long)took[CALLS / 2], (long long)took[0], (long long)took[CALLS - 1]);
    }
}

int main(int argc, char **argv)
{
    alarm(300);
    if (argc > 1 && strcmp(argv[1], "measure") == 0) {
        measure();
        return 0;
    }
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
        {"size", test_size},
        {"ranks", test_ranks},
        {"barrier", test_barrier},
        {"a task that calls", test_task_that_calls},
        {"callers at once", test_callers_at_once},
        {"signals", test_signals},
    };
    if (!SANITIZED) /* a sanitizer needs memory of its own */
        in_child(get_no_threads, "no threads to be had");
    for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++) {
        tests[i].run();
        printf("ok %s\n", tests[i].name);
    }
    if (!SANITIZED) { /* nor do sanitizers follow a forked child's new threads */
        test_fork();
        printf("ok fork\n");
#if defined(__linux__)
        in_child(keep_apart, "workers on other processors");
        in_child(keep_the_process_whole, "a caller on one processor");
        printf("ok places\n");
#endif
        test_busy_neighbours();
        printf("ok busy neighbours\n");
    }
    check_roll_call(4, 0); /* leave while they are still awake */
    return 0;
}
