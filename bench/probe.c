/* What this machine can do at most: float32 multiply-adds, and reads from a level of its memory.
 *
 *     probe fma  THREADS SECONDS          prints GFLOP/s, a multiply-add being two
 *     probe mix  THREADS SECONDS          prints 1e9 instructions/s, a few multiply-adds, of threads that meet often
 *     probe read THREADS SECONDS BYTES    prints GB/s (1e9), each thread reading its own BYTES over and over
 *
 * To be compiled for the very machine: how wide a vector is follows from the flags. A run lasts a few milliseconds,
 * and of all the runs in SECONDS the best counts: what else the machine does can only slow one down. A mix is there to
 * tell how much it does: of its runs the mean counts. Not measured by itself: latency, and writing. Next: probe.py,
 * which compiles this and chooses BYTES.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_setaffinity, madvise */
#endif
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define INLINE static inline __attribute__((always_inline))

/* ACCUMULATORS: more than the multiply-adds that can be under way at once (ports times latency: 2 * 5 on x86, 4 * 4 on
 * Arm), fewer than there are registers. REGISTER: the compiler's letter for a vector register. */
#if defined(__AVX512F__)
#define VEC_BYTES 64
#define ACCUMULATORS 24
#define REGISTER "v"
#elif defined(__AVX__)
#define VEC_BYTES 32
#define ACCUMULATORS 12
#define REGISTER "x"
#elif defined(__x86_64__)
#define VEC_BYTES 16
#define ACCUMULATORS 12
#define REGISTER "x"
#elif defined(__aarch64__)
#define VEC_BYTES 16
#define ACCUMULATORS 24
#define REGISTER "w"
#else
#error "the probe knows x86-64 and 64-bit Arm only"
#endif

enum {
    LANES = VEC_BYTES / sizeof(float),
    LOADS = 8,             /* vectors read by a turn of the loop */
    BLOCK = LOADS * VEC_BYTES,
    FMA_TURNS = 1000,      /* turns of the loop that make a pass */
    MIX_TURNS = 250,       /* the same of a mix, whose threads meet after each: 1 to 2 us, as a network's step takes */
    OTHERS = 4,            /* other instructions of a mix for each multiply-add */
    INTEGERS = 4,          /* registers that half of these add to */
    LINE = 128,            /* at least a cache line */
    HUGE_PAGE = 2 << 20,
    MAX_THREADS = 1024,
    RUN_NS = 3000000,      /* a run is made to last this long at least, */
    LEAST_RUNS = 3         /* and there are so many however long they take */
};

typedef float vec __attribute__((vector_size(VEC_BYTES)));

/* -------------------------------------------------------------------------------------------------------- kernels */

/* Multiply-adds in registers, and `others` more instructions for each. The compiler does not know the factor and may not
 * reorder float arithmetic, so it has to do them all; and as the sum rounds back to a, they can go on for ever. */
INLINE float multiply_add(size_t turns, const int others)
{
    volatile float tiny = 1e-9f;
    const vec factor = (vec){0} + tiny;
    vec a[ACCUMULATORS];
    size_t sums[INTEGERS] = {0};
    UNROLL for (int i = 0; i < ACCUMULATORS; i++) a[i] = (vec){0} + (float)(i + 1);
    for (; turns > 0; turns--) {
        UNROLL for (int i = 0; i < ACCUMULATORS; i++) {
            a[i] += a[i] * factor;
            UNROLL for (int j = 0; j < others / 2; j++) {
                size_t *sum = &sums[(i * (others / 2) + j) % INTEGERS];
                *sum += 1;
                __asm__ volatile("nop" : "+r"(*sum));
            }
        }
    }
    UNROLL for (int i = 1; i < ACCUMULATORS; i++) a[0] += a[i];
    return a[0][0];
}

static float fma_passes(size_t passes) { return multiply_add(passes * FMA_TURNS, 0); }

/* About as many others as a core takes in beside them. Whoever has its other thread takes some of these places, whatever
 * it does; of the multiply-adds it may leave all. */
static float mix_pass(void) { return multiply_add(MIX_TURNS, OTHERS); }

/* Loads into registers, and nothing done with them. Two streams, by turns: prefetchers get more out of memory so, and
 * Zen 4 reaches its full rate from L1 with vectors of 64 bytes only so. After each load all memory may have changed for
 * all the compiler knows: it loads again in every pass, and in this order. */
static void read_passes(const vec *data, size_t vectors, size_t passes)
{
    const vec *middle = data + vectors / 2;
    for (; passes > 0; passes--) {
        for (const vec *p = data, *q = middle; p < middle; p += LOADS / 2, q += LOADS / 2) {
            UNROLL for (int i = 0; i < LOADS / 2; i++) {
                __asm__ volatile("" ::REGISTER(p[i]) : "memory");
                __asm__ volatile("" ::REGISTER(q[i]) : "memory");
            }
        }
    }
}

/* -------------------------------------------------------------------------------------------------------- threads */

typedef struct probe {
    int threads;
    size_t bytes; /* that each thread reads; 0: multiply-adds, */
    int mixed;    /* among others or alone */
    size_t passes;
    atomic_int arrived;
    _Alignas(LINE) atomic_size_t met; /* how often a thread of a mix has ended a pass */
} probe;

typedef struct worker {
    _Alignas(LINE) probe *probe;
    int processor; /* to run on; -1: any */
    vec *data;     /* [bytes] its own */
    int64_t begin, end;
    size_t meetings;
    float result; /* of no use but that it takes the work to get it */
} worker;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void fail(const char *what)
{
    fprintf(stderr, "probe: %s\n", what);
    exit(1);
}

#if defined(__linux__)

/* What tells a processor's core from the others: the first processor on it. */
static int core_of(int processor)
{
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", processor);
    FILE *file = fopen(path, "r");
    int core;
    if (!file || fscanf(file, "%d", &core) != 1 || core < 0 || core >= CPU_SETSIZE)
        core = processor;
    if (file)
        fclose(file);
    return core;
}

/* A processor for each worker, on cores of their own as far as there are enough. A single one is left to the
 * scheduler, which knows the idle cores. A mix is to tell of the first processors, on which engines are timed. */
static void assign(worker *workers, int threads)
{
    const int in_order = workers->probe->mixed;
    cpu_set_t allowed, cores;
    if (threads == 1 && !in_order)
        return;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < threads)
        return;
    CPU_ZERO(&cores);
    for (int shared = in_order, rank = 0; shared <= 1; shared++) {
        for (int processor = 0; processor < CPU_SETSIZE && rank < threads; processor++) {
            if (!CPU_ISSET(processor, &allowed) || (!shared && CPU_ISSET(core_of(processor), &cores)))
                continue;
            CPU_SET(core_of(processor), &cores);
            CPU_CLR(processor, &allowed);
            workers[rank++].processor = processor;
        }
    }
}

static void move_to(int processor)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    sched_setaffinity(0, sizeof one, &one);
}

#else

static void assign(worker *workers, int threads)
{
    (void)workers, (void)threads;
}

static void move_to(int processor)
{
    (void)processor;
}

#endif

/* Memory that its reader is the first to touch, so that it lies near; in huge pages where they can be had, so that
 * a cache is not measured through the misses of the TLB. */
static vec *own_data(size_t bytes)
{
    void *data;
    size_t whole = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if (posix_memalign(&data, HUGE_PAGE, whole) != 0)
        fail("not enough memory");
#ifdef MADV_HUGEPAGE
    madvise(data, whole, MADV_HUGEPAGE);
#endif
    memset(data, 1, whole); /* pages never written to may all be one */
    return data;
}

/* Where processors are far apart it takes ten times as long as where they are near. */
static void meet(worker *w)
{
    atomic_fetch_add(&w->probe->met, 1);
    for (w->meetings++; atomic_load(&w->probe->met) < w->meetings * (size_t)w->probe->threads;)
        ;
}

static void do_passes(worker *w, size_t passes)
{
    if (w->probe->bytes)
        read_passes(w->data, w->probe->bytes / VEC_BYTES, passes);
    else if (w->probe->mixed)
        for (; passes > 0; passes--, meet(w))
            w->result = mix_pass();
    else
        w->result = fma_passes(passes);
}

static void *work(void *arg)
{
    worker *w = arg;
    probe *p = w->probe;
    if (w->processor >= 0)
        move_to(w->processor);
    if (p->bytes && !w->data)
        w->data = own_data(p->bytes);
    do_passes(w, 1); /* to fill the caches */
    atomic_fetch_add(&p->arrived, 1);
    while (atomic_load(&p->arrived) < p->threads)
        ;
    w->begin = now_ns();
    do_passes(w, p->passes);
    w->end = now_ns();
    return NULL;
}

/* All threads do their passes, while the caller sleeps. Returns ns from the first one's begin to the last one's end:
 * where they did not run at the same time, it shows. */
static int64_t run(worker *workers, int threads)
{
    pthread_t ids[MAX_THREADS];
    atomic_store(&workers->probe->arrived, 0);
    atomic_store(&workers->probe->met, 0);
    for (int rank = 0; rank < threads; rank++) {
        workers[rank].meetings = 0;
        if (pthread_create(&ids[rank], NULL, work, &workers[rank]) != 0)
            fail("not so many threads to be had");
    }
    int64_t begin = INT64_MAX, end = 0;
    for (int rank = 0; rank < threads; rank++) {
        pthread_join(ids[rank], NULL);
        begin = workers[rank].begin < begin ? workers[rank].begin : begin;
        end = workers[rank].end > end ? workers[rank].end : end;
    }
    return end - begin;
}

/* ns that the quickest thread took: the others may have had to wait for a processor. */
static int64_t shortest(const worker *workers, int threads)
{
    int64_t ns = INT64_MAX;
    for (int rank = 0; rank < threads; rank++)
        ns = workers[rank].end - workers[rank].begin < ns ? workers[rank].end - workers[rank].begin : ns;
    return ns;
}

/* The rate of runs within that time, in units of 1e9 a second: the best one's, or a mix's mean. A thread does `units` in
 * a pass. */
static double rate(probe *p, double units, int64_t ns)
{
    static worker workers[MAX_THREADS];
    for (int rank = 0; rank < p->threads; rank++)
        workers[rank] = (worker){.probe = p, .processor = -1};
    assign(workers, p->threads);
    double best = 0, sum = 0;
    int64_t stop = now_ns() + ns;
    int runs = 0;
    while (runs < LEAST_RUNS || now_ns() < stop) {
        double found = units * (double)p->passes * p->threads / (double)run(workers, p->threads);
        best = found > best ? found : best;
        if (shortest(workers, p->threads) < RUN_NS)
            p->passes *= 2;
        else
            runs++, sum += found;
    }
    return p->mixed ? sum / runs : best;
}

int main(int argc, char **argv)
{
    int fma = argc == 4 && strcmp(argv[1], "fma") == 0, mix = argc == 4 && strcmp(argv[1], "mix") == 0;
    int reads = argc == 5 && strcmp(argv[1], "read") == 0;
    if (!fma && !mix && !reads)
        fail("wanted: fma or mix THREADS SECONDS, or read THREADS SECONDS BYTES");
    probe p = {.threads = atoi(argv[2]), .mixed = mix, .passes = 1};
    int64_t ns = (int64_t)(1e9 * atof(argv[3]));
    if (p.threads < 1 || p.threads > MAX_THREADS)
        fail("THREADS is from 1 to 1024");
    if (reads && (p.bytes = strtoull(argv[4], NULL, 10) / BLOCK * BLOCK) == 0)
        fail("BYTES is at least 512");
    double units = fma   ? 2.0 * LANES * ACCUMULATORS * FMA_TURNS
                   : mix ? (1.0 + OTHERS) * ACCUMULATORS * MIX_TURNS
                         : (double)p.bytes;
    printf("%.3f\n", rate(&p, units, ns));
    return 0;
}
