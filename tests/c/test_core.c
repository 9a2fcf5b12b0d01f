/* The core through its public header: every cell it runs, both types, stacks, lengths, training, threads, errors; and by
 * itself, how many threads share a call.
 *
 * What is checked needs no other implementation: gradients against finite differences, instruction sets and ways of
 * calling against each other, and, under the sanitizers that the Makefile builds it with, every address and every
 * access of two threads. That the numbers are the reference's is tests/test_backends.py's to show. Ends with "ok";
 * a check that fails ends the program with its place, and an alarm does where it hangs. Next: net.h.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* cpu_set_t and the like under strict standards */
#endif
#include <pthread.h>
#include <sys/wait.h>

#if defined(__linux__)
#include <sched.h>
#endif

#include "net.h"
#include "share.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#if defined(__SANITIZE_THREAD__)
#define TSAN 1
#elif defined(__SANITIZE_ADDRESS__)
#define ASAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TSAN 1
#elif __has_feature(address_sanitizer)
#define ASAN 1
#endif
#endif
#ifndef TSAN
#define TSAN 0
#endif
#ifndef ASAN
#define ASAN 0
#endif

enum { MOST_THREADS = 4 };

/* Memory that was never written is NaN; what cannot be had is NULL, not the end of the program. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1:max_malloc_fill_size=1073741824:malloc_fill_byte=255";
}

const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "allocator_may_return_null=1"; }

#if defined(__linux__)
/* The core makes no more threads than there are processors: tell it of four on any machine. */
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *mask)
{
    (void)pid;
    CPU_ZERO_S(size, mask);
    for (int i = 0; i < MOST_THREADS; i++)
        CPU_SET_S(i, size, mask);
    return 0;
}
#endif

/* ----------------------------------------------------------------------------------------------------------- errors */

static void expect(int code, int wanted, const char *what)
{
    CHECK(code == wanted, "%s: \"%s\" instead of \"%s\"", what, frnn_error(code), frnn_error(wanted));
}

static void expect_spec(frnn_spec spec, int wanted, const char *what)
{
    frnn_weights *weights = NULL;
    expect(frnn_weights_new(&spec, NULL, &weights), wanted, what);
    CHECK(wanted == FRNN_OK || !weights, "%s: weights although it failed", what);
    frnn_weights_free(weights);
}

#define EXPECT_SPEC(kind, wanted, change)                                  \
    do {                                                                   \
        frnn_spec spec = spec_of(kind, 4, 3, 5, 1, 1);                     \
        spec.change;                                                       \
        expect_spec(spec, wanted, #change);                                \
    } while (0)

static void test_spec_errors(void)
{
    enum { RNN = FRNN_KIND_RNN, LSTM = FRNN_KIND_LSTM, GRU = FRNN_KIND_GRU, SPEC = FRNN_ERROR_SPEC };
    EXPECT_SPEC(RNN, FRNN_OK, real_size = 4);
    EXPECT_SPEC(RNN, SPEC, real_size = 2);
    EXPECT_SPEC(RNN, SPEC, kind = 3);
    EXPECT_SPEC(RNN, SPEC, kind = -1);
    EXPECT_SPEC(RNN, SPEC, activation[0] = 11);
    EXPECT_SPEC(RNN, SPEC, activation[0] = -1);
    EXPECT_SPEC(RNN, SPEC, clip = -1);
    EXPECT_SPEC(RNN, SPEC, clip = NAN);
    EXPECT_SPEC(RNN, SPEC, input_size = -1);
    EXPECT_SPEC(RNN, FRNN_OK, input_size = 0);
    EXPECT_SPEC(RNN, SPEC, hidden_size = 0);
    EXPECT_SPEC(RNN, SPEC, num_layers = 0);
    EXPECT_SPEC(RNN, SPEC, num_directions = 0);
    EXPECT_SPEC(RNN, SPEC, num_directions = 3);
    EXPECT_SPEC(RNN, SPEC, proj_size = 2);
    EXPECT_SPEC(GRU, SPEC, forget = FRNN_FORGET_NONE);
    EXPECT_SPEC(GRU, SPEC, peephole = FRNN_PEEPHOLE_DIAGONAL);
    EXPECT_SPEC(GRU, SPEC, reset = 2);
    EXPECT_SPEC(GRU, SPEC, update = 2);
    EXPECT_SPEC(LSTM, SPEC, forget = 3);
    EXPECT_SPEC(LSTM, SPEC, peephole = 4);
    EXPECT_SPEC(LSTM, SPEC, proj_size = 5);
    EXPECT_SPEC(LSTM, SPEC, proj_size = -1);
    EXPECT_SPEC(LSTM, FRNN_OK, proj_size = 4);
    EXPECT_SPEC(LSTM, FRNN_ERROR_UNSUPPORTED, peephole = FRNN_PEEPHOLE_FULL);
    frnn_spec both = spec_of(LSTM, 4, 3, 5, 1, 1);
    both.peephole = FRNN_PEEPHOLE_CELL;
    both.proj_size = 2;
    expect_spec(both, FRNN_ERROR_UNSUPPORTED, "a projection where the gates see the cell");

    EXPECT_SPEC(LSTM, FRNN_ERROR_SIZE, hidden_size = INT64_C(1) << 40);
    EXPECT_SPEC(LSTM, FRNN_ERROR_SIZE, hidden_size = INT64_MAX);
    EXPECT_SPEC(LSTM, FRNN_ERROR_SIZE, input_size = INT64_MAX);
    EXPECT_SPEC(LSTM, FRNN_ERROR_SIZE, num_layers = INT64_MAX);
    EXPECT_SPEC(LSTM, FRNN_ERROR_SIZE, hidden_size = INT64_C(1) << 30);
    EXPECT_SPEC(LSTM, FRNN_ERROR_MEMORY, hidden_size = INT64_C(1) << 24); /* 2 PiB: more than an address space */
}

static void test_null_errors(void)
{
    frnn_spec spec = spec_of(FRNN_KIND_LSTM, 8, 3, 5, 1, 1);
    spec.proj_size = 2;
    frnn_weights *weights = NULL;
    frnn_plan *plan = NULL;
    expect(frnn_weights_new(NULL, NULL, &weights), FRNN_ERROR_NULL, "no spec");
    expect(frnn_weights_new(&spec, NULL, NULL), FRNN_ERROR_NULL, "nowhere for the weights");
    expect(frnn_weights_new(&spec, "sse9", &weights), FRNN_ERROR_ISA, "an unknown instruction set");
    expect(frnn_weights_new(&spec, "", &weights), FRNN_ERROR_ISA, "an instruction set of no name");
    expect(frnn_plan_new(NULL, &plan), FRNN_ERROR_NULL, "no weights");
    expect(frnn_weights_pack(NULL, NULL, 0), FRNN_ERROR_NULL, "no weights to pack");
    expect((int)-frnn_tape_bytes(NULL, NULL), FRNN_ERROR_NULL, "the tape of nothing");
    expect(frnn_forward(NULL, NULL), FRNN_ERROR_NULL, "no plan");
    expect(frnn_backward(NULL, NULL, NULL), FRNN_ERROR_NULL, "no plan");
    expect(frnn_infer(NULL, 1, 1, NULL, NULL, NULL, NULL, NULL, NULL), FRNN_ERROR_NULL, "no plan");
    expect((int)-frnn_step(NULL, NULL), FRNN_ERROR_NULL, "no stream");
    expect((int)-frnn_step(&(frnn_stream){.call = &(frnn_call){.T = 1}, .y = &plan, .room = 1}, &plan), FRNN_ERROR_NULL, "no plan");
    frnn_weights_free(NULL);
    frnn_plan_free(NULL);
    CHECK(frnn_weights_bytes(NULL) == 0 && frnn_plan_bytes(NULL) == 0, "nothing takes memory");

    net n;
    net_new(&n, &spec, NULL, 3, 2, 0);
    expect(frnn_plan_new(n.weights, NULL), FRNN_ERROR_NULL, "nowhere for the plan");
    const int needed[] = {0, 1, 4}; /* weight_ih, weight_hh, weight_hr */
    for (int i = 0; i < 3; i++) {
        const void *kept = n.param_table[needed[i]];
        n.param_table[needed[i]] = NULL;
        expect(frnn_weights_pack(n.weights, n.param_table, 1), FRNN_ERROR_NULL, "packing without a matrix");
        n.param_table[needed[i]] = kept;
    }
    expect(frnn_weights_pack(n.weights, n.param_table, 1), FRNN_OK, "packing again");

    const void **const read[] = {&n.call.x};
    void **const forward[] = {&n.call.y, &n.call.hn, &n.call.cn};
    for (int i = 0; i < 3; i++) {
        void *kept = *forward[i];
        *forward[i] = NULL;
        expect(frnn_forward(n.plan, &n.call), FRNN_ERROR_NULL, "forward with nowhere to write");
        *forward[i] = kept;
    }
    *read[0] = NULL;
    expect(frnn_forward(n.plan, &n.call), FRNN_ERROR_NULL, "forward without x");
    *read[0] = n.x.data;
    void *const out[] = {n.y.data, n.hn.data, n.cn.data};
    expect(frnn_infer(n.plan, 3, 2, NULL, NULL, NULL, out[0], out[1], out[2]), FRNN_ERROR_NULL, "inference without x");
    expect(frnn_infer(n.plan, 3, 2, n.x.data, NULL, NULL, out[0], out[1], NULL), FRNN_ERROR_NULL, "inference without cn");
    expect(frnn_infer(n.plan, -1, 2, n.x.data, NULL, NULL, out[0], out[1], out[2]), FRNN_ERROR_SIZE, "negative T");
    frnn_stream stream = {.plan = n.plan, .call = &n.call, .room = 2};
    expect((int)-frnn_step(&stream, n.x.data), FRNN_ERROR_NULL, "a step with nowhere to write");
    stream.y = n.y.data;
    expect((int)-frnn_step(&stream, NULL), FRNN_ERROR_NULL, "a step without x");
    stream.next = 1, stream.y = (char *)n.y.data - n.y.n * spec.real_size;
    CHECK(frnn_step(&stream, n.x.data) == 1, "a step that has everything is the second");
    expect((int)-frnn_step(&stream, n.x.data), FRNN_ERROR_ROOM, "a step with no room left");
    stream.next = -1;
    expect((int)-frnn_step(&stream, n.x.data), FRNN_ERROR_ROOM, "a step before the first");
    void **const backward[] = {&n.call.tape,       &n.grads.dh0,       &n.grads.dc0,
                               &n.dparam_table[0], &n.dparam_table[1], &n.dparam_table[4]};
    for (unsigned i = 0; i < sizeof backward / sizeof *backward; i++) {
        void *kept = *backward[i];
        *backward[i] = NULL;
        expect(frnn_backward(n.plan, &n.call, &n.grads), FRNN_ERROR_NULL, "backward without an array");
        *backward[i] = kept;
    }
    expect(frnn_backward(n.plan, &n.call, NULL), FRNN_ERROR_NULL, "backward without gradients");
    net_backward(&n);
    n.call.x = NULL;
    expect(frnn_backward(n.plan, &n.call, &n.grads), FRNN_ERROR_NULL, "backward without x");
    net_free(&n);
}

static void test_call_errors(void)
{
    const frnn_spec spec = spec_of(FRNN_KIND_GRU, 4, 3, 5, 2, 2);
    net n;
    net_new(&n, &spec, NULL, 4, 3, LENGTHS);
    int64_t *const length = n.lengths.data;
    const int64_t wrong[] = {-1, 5, INT64_MIN, INT64_MAX}, kept = length[2];
    for (int i = 0; i < 4; i++) {
        length[2] = wrong[i];
        expect(frnn_forward(n.plan, &n.call), FRNN_ERROR_LENGTH, "a length out of range");
        expect(frnn_backward(n.plan, &n.call, &n.grads), FRNN_ERROR_LENGTH, "a length out of range");
        expect((int)-frnn_tape_bytes(n.weights, &n.call), FRNN_ERROR_LENGTH, "a length out of range");
    }
    length[2] = kept;
    n.call.lengths = NULL;
    static const int64_t sizes[][2] = {{-1, 3},          {4, -1},        {INT64_MAX, 3}, {4, INT64_MAX},
                                       {INT64_MIN, 3},   {INT64_MAX, INT64_MAX}, {INT64_C(1) << 32, INT64_C(1) << 32},
                                       {0, INT64_C(1) << 60}, {INT64_C(1) << 60, 0}};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        n.call.T = sizes[i][0];
        n.call.B = sizes[i][1];
        expect(frnn_forward(n.plan, &n.call), FRNN_ERROR_SIZE, "an impossible T and B");
        expect((int)-frnn_tape_bytes(n.weights, &n.call), FRNN_ERROR_SIZE, "the tape of an impossible T and B");
    }
    n.call.T = 0; /* a possible size, but of more memory than there is: nothing of it is touched */
    n.call.B = INT64_C(1) << 47;
    expect(frnn_forward(n.plan, &n.call), FRNN_ERROR_MEMORY, "a workspace larger than an address space");
    n.call.T = 4;
    n.call.B = 3;
    n.call.lengths = length;
    net_forward(&n); /* and the plan is as good as before */
    net_free(&n);
}

static void test_unpacked(void)
{
    const frnn_spec spec = spec_of(FRNN_KIND_LSTM, 4, 3, 5, 1, 1);
    net n;
    net_new(&n, &spec, NULL, 3, 2, 0);
    net_forward(&n);
    frnn_weights *raw;
    frnn_plan *plan;
    expect(frnn_weights_new(&spec, NULL, &raw), FRNN_OK, "weights");
    expect(frnn_plan_new(raw, &plan), FRNN_OK, "plan");
    expect(frnn_forward(plan, &n.call), FRNN_ERROR_UNPACKED, "forward of weights that were not packed");
    expect(frnn_backward(plan, &n.call, &n.grads), FRNN_ERROR_UNPACKED, "backward of weights that were not packed");
    expect(frnn_weights_pack(raw, n.param_table, 0), FRNN_OK, "packing");
    expect(frnn_forward(plan, &n.call), FRNN_OK, "forward of weights that were packed for it");
    expect(frnn_backward(plan, &n.call, &n.grads), FRNN_ERROR_UNPACKED, "backward without transposes");
    expect(frnn_weights_pack(raw, n.param_table, 1), FRNN_OK, "packing");
    expect(frnn_backward(plan, &n.call, &n.grads), FRNN_OK, "backward with transposes");
    CHECK(frnn_weights_bytes(raw) > 0 && frnn_plan_bytes(plan) > 0, "weights and plans take memory");
    frnn_plan_free(plan);
    frnn_weights_free(raw);
    net_free(&n);
}

static void test_names(void)
{
    for (int code = FRNN_OK; code <= FRNN_ERROR_ROOM + 1; code++)
        for (int other = FRNN_OK; other < code; other++)
            CHECK(*frnn_error(code) && strcmp(frnn_error(code), frnn_error(other)), "codes %d and %d", code, other);
    int i = 0;
    for (; frnn_isa_name(i); i++)
        ;
    CHECK(i > 0 && !strcmp(frnn_isa_name(i - 1), "generic") && frnn_isa_usable(i - 1), "the last is always there");
    CHECK(!frnn_isa_name(-1) && !frnn_isa_usable(-1) && !frnn_isa_usable(i), "no more than there are");
}

/* --------------------------------------------------------------------------------------------- many nets, many ways */

/* The first `count` results are the same bits. */
static void check_same(const net *one, const net *other, const char *what, int64_t count)
{
    const int64_t size = one->spec.real_size;
    for (int64_t i = 0; i < count; i++) {
        const array a = net_result(one, i), b = net_result(other, i);
        int64_t j = 0;
        const int same = !a.n || !memcmp(a.data, b.data, (size_t)(a.n * size));
        while (!same && !memcmp((char *)a.data + j * size, (char *)b.data + j * size, (size_t)size))
            j++;
        CHECK(same, "%s: %s: %s[%d]: %.17g and %.17g", one->name, what, result_name(i), (int)j, get(one, a, j),
              get(other, b, j));
    }
}

static void run(net *n, int threads)
{
    frnn_set_threads(threads);
    net_forward(n);
    if (n->tape.data)
        net_backward(n);
}

/* The same net with all instruction sets, all numbers of threads, and without a tape. */
static void check_net(const frnn_spec *spec, int64_t T, int64_t B, int options)
{
    const double roundings = 100; /* five times what was measured */
    net first, n;
    net_new(&first, spec, "generic", T, B, options);
    run(&first, 1);
    for (int isa = 0; frnn_isa_name(isa); isa++) {
        if (!frnn_isa_usable(isa))
            continue;
        net alone;
        net_new(&alone, spec, frnn_isa_name(isa), T, B, options);
        run(&alone, 1);
        check_close(&alone, &first, roundings);
        net_new(&n, spec, frnn_isa_name(isa), T, B, options);
        for (int threads = TSAN && isa ? MOST_THREADS : 2; threads <= MOST_THREADS; threads++) { /* which is slow */
            run(&n, threads);
            check_same(&n, &alone, "more threads", results_of(&n));
        }
        n.call.tape = NULL; /* as in evaluation */
        net_forward(&n);
        check_same(&n, &alone, "without a tape", OUTPUTS);
        net_free(&n);
        net_free(&alone);
    }
    net_free(&first);
}

static void test_variants(void)
{
    static const struct {
        int64_t T, B, I, H, P, L, D;
    } sizes[] = {{4, 3, 3, 17, 5, 2, 2}, {1, 1, 1, 1, 0, 1, 1}, {5, 7, 0, 9, 8, 1, 2}, {3, 2, 17, 33, 16, 3, 1}};
    frnn_spec spec;
    for (int i = 0, turn = 0; variant(i, 4, 1, 2, 1, 1, 1, &spec); i++)
        for (int real_size = 4; real_size <= 8; real_size += 4, turn++) {
            const int at = (i + i / 4 + real_size / 4) % (TSAN ? 3 : 4);
            variant(i, real_size, sizes[at].I, sizes[at].H, sizes[at].P, sizes[at].L, sizes[at].D, &spec);
            check_net(&spec, sizes[at].T, sizes[at].B, OPTIONS[turn % OPTION_COUNT]);
        }
}

/* Sizes where threads have work: by rows, by panels of units, a direction each, layers each; and every size of nothing. */
static void test_sizes(void)
{
    static const struct {
        int64_t T, B, I, H, P, L, D;
    } sizes[] = {
        {0, 3, 2, 5, 0, 2, 2},    {3, 0, 2, 5, 2, 2, 1},   {0, 0, 0, 1, 0, 1, 1},     {2, 1, 0, 2, 1, 3, 2},
        {20, 1, 7, 130, 0, 1, 1}, {9, 2, 9, 129, 40, 1, 2}, {9, 37, 30, 50, 0, 2, 1}, {8, 5, 70, 40, 33, 2, 2},
        {1100, 1, 3, 6, 0, 2, 1}, {3, 130, 5, 31, 0, 1, 2}, {600, 1, 9, 10, 4, 4, 1}, {70, 3, 40, 30, 0, 3, 1},
        {40, 37, 30, 20, 0, 3, 1}, {21, 9, 5, 17, 6, 1, 1},
    };
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int kind = FRNN_KIND_RNN; kind <= FRNN_KIND_GRU; kind++) {
            frnn_spec spec = spec_of(kind, (i + kind) % 2 ? 4 : 8, sizes[i].I, sizes[i].H, sizes[i].L, sizes[i].D);
            spec.proj_size = kind == FRNN_KIND_LSTM ? sizes[i].P : 0;
            spec.reset = i % 2;
            check_net(&spec, sizes[i].T, sizes[i].B, i % 3 ? LENGTHS : MASKS);
        }
}

/* Backward does not mind how many threads forward had. */
static void test_shards(void)
{
    static const int options[] = {0, LENGTHS, MASKS | CELLS | LENGTHS};
    for (int i = 0; i < 3; i++)
        for (int kind = FRNN_KIND_RNN; kind <= FRNN_KIND_GRU; kind++) {
            const frnn_spec spec = spec_of(kind, i % 2 ? 8 : 4, 16, 16, 1 + i, 1);
            net alone, n;
            net_new(&alone, &spec, NULL, 19, 13, options[i]);
            run(&alone, 1);
            net_new(&n, &spec, NULL, 19, 13, options[i]);
            for (int there = 1; there <= MOST_THREADS; there++)
                for (int back = 1; back <= MOST_THREADS; back++) {
                    frnn_set_threads(there);
                    net_forward(&n);
                    frnn_set_threads(back);
                    net_backward(&n);
                    check_same(&n, &alone, "other threads back", results_of(&n));
                }
            net_free(&n);
            net_free(&alone);
        }
}

/* hn may be h0, and a step is a forward call. */
static void test_steps(void)
{
    for (int kind = FRNN_KIND_RNN; kind <= FRNN_KIND_GRU; kind++) {
        const frnn_spec spec = spec_of(kind, 4, 5, 19, 2, 1);
        net n, whole;
        net_new(&whole, &spec, NULL, 9, 2, NO_TAPE | NO_STATE);
        net_forward(&whole);
        net_new(&n, &spec, NULL, 9, 2, NO_TAPE | NO_STATE);
        memset(n.hn.data, 0, (size_t)n.hn.n * sizeof(float));
        if (n.cn.data)
            memset(n.cn.data, 0, (size_t)n.cn.n * sizeof(float));
        n.call.h0 = n.call.hn;
        n.call.c0 = n.call.cn;
        n.call.T = 1;
        frnn_stream stream = {.plan = n.plan, .call = &n.call, .y = n.y.data, .room = 9};
        for (int64_t t = 0; t < 9; t++) {
            const int64_t made = frnn_step(&stream, (const float *)n.x.data + t * 2 * 5);
            CHECK(made == t, "step %d is %d", (int)t, (int)made);
        }
        check_same(&n, &whole, "step by step", OUTPUTS);
        net_free(&n);
        net_free(&whole);
    }
}

/* What frnn_infer makes is what frnn_forward does, whatever went before it on the plan. */
static void test_inference(void)
{
    for (int kind = FRNN_KIND_RNN; kind <= FRNN_KIND_GRU; kind++) {
        const frnn_spec spec = spec_of(kind, 4, 5, 19, 2, 1);
        net n, whole;
        net_new(&whole, &spec, NULL, 9, 2, NO_TAPE);
        net_forward(&whole);
        net_new(&n, &spec, NULL, 9, 2, NO_TAPE);
        for (int before = 0; before < 2; before++) {
            const array written[] = {n.y, n.hn, n.cn};
            for (int i = 0; i < 3; i++)
                fill_nan(&n, written[i]);
            const int code = frnn_infer(n.plan, 9, 2, n.x.data, n.h0.data, n.c0.data, n.y.data, n.hn.data, n.cn.data);
            CHECK(!code, "%s", frnn_error(code));
            check_same(&n, &whole, before ? "inference after a forward" : "inference", OUTPUTS);
            net_forward(&n);
        }
        net_free(&n);
        net_free(&whole);
    }
}

/* A plan's memory grows to the largest call and serves the smaller ones. */
static void test_workspace(void)
{
    const frnn_spec spec = spec_of(FRNN_KIND_LSTM, 8, 3, 20, 2, 2);
    net large, small;
    net_new(&large, &spec, NULL, 30, 9, LENGTHS);
    net_new(&small, &spec, NULL, 2, 3, LENGTHS);
    run(&small, 2);
    frnn_plan *own = small.plan;
    small.plan = large.plan;
    const int64_t before = frnn_plan_bytes(large.plan);
    net again;
    net_new(&again, &spec, NULL, 2, 3, LENGTHS);
    run(&large, 2);
    const int64_t grown = frnn_plan_bytes(large.plan);
    frnn_plan *const other = again.plan;
    again.plan = large.plan; /* the same parameters: nets of one spec are drawn alike */
    run(&again, 2);
    check_same(&again, &small, "on another plan", results_of(&again));
    CHECK(before == 0 && grown > 0 && frnn_plan_bytes(large.plan) == grown, "%d, %d, %d", (int)before, (int)grown,
          (int)frnn_plan_bytes(large.plan));
    small.plan = own;
    again.plan = other;
    net_free(&large);
    net_free(&small);
    net_free(&again);
}

/* A batch of no rows takes no time, however many steps it has, and changes nothing. */
static void test_no_rows(void)
{
    const frnn_spec spec = spec_of(FRNN_KIND_LSTM, 4, 3, 5, 2, 1);
    net n;
    net_new(&n, &spec, NULL, 3, 0, 0);
    for (int taped = 0; taped < 2; taped++) {
        n.call.T = INT64_C(1) << 40;
        n.call.tape = taped ? n.tape.data : NULL;
        n.call.sharded = 1;
        expect(frnn_forward(n.plan, &n.call), FRNN_OK, "a forward of no rows");
        CHECK(n.call.sharded == 0, "a tape of no rows is sharded");
    }
    for (int64_t p = 0; p < n.parameters; p++)
        for (int64_t j = 0; j < n.dparams[p].n; j++)
            set(&n, n.dparams[p], j, 7);
    expect(frnn_backward(n.plan, &n.call, &n.grads), FRNN_OK, "a backward of no rows");
    for (int64_t p = 0; p < n.parameters; p++)
        for (int64_t j = 0; j < n.dparams[p].n; j++)
            CHECK(get(&n, n.dparams[p], j) == 7, "no rows add to a gradient");
    net_free(&n);
}

/* The team's part of the calls of several sizes by turns, each of which it takes twice as long for as one thread alone. */
static double teams_part(frnn_run *run, const int64_t (*sizes)[2], int count)
{
    enum { CALLS = 4000 };
    static frnn_trial trials[3][FRNN_TRIALS];
    memset(trials, 0, sizeof trials);
    int teams = 0;
    for (int i = 0; i < CALLS; i++) {
        frnn_run one = *run;
        one.T = sizes[i % count][0], one.B = one.batch = one.shard_rows = sizes[i % count][1];
        one.rows = one.T * one.B;
        frnn_trial *const doubt = frnn_share(&one, trials);
        CHECK(doubt, "sizes that leave no doubt");
        frnn_note_trial(doubt, one.size > 1, one.size > 1 ? 2 : 1);
        teams += one.size > 1;
    }
    return (double)teams / CALLS;
}

/* What is found out of one size is not forgotten for another's sake. */
static void test_trials(void)
{
    static const int64_t sizes[][2] = {{20, 2}, {40, 2}, {10, 2}, {40, 7}, {10, 7}, {20, 7}, {40, 4}, {40, 8}};
    const frnn_spec spec = spec_of(FRNN_KIND_LSTM, 4, 32, 32, 1, 1);
    frnn_weights *weights = NULL;
    expect(frnn_weights_new(&spec, NULL, &weights), FRNN_OK, "weights");
    frnn_set_threads(2);
    frnn_run run = {.weights = weights, .shards = 1};
    for (int count = 1; count <= (int)(sizeof sizes / sizeof *sizes); count++) {
        const double part = teams_part(&run, sizes, count);
        CHECK(part < 0.2, "of %d sizes by turns the team, which is slower, has %.0f %%", count, 100 * part);
    }
    frnn_weights_free(weights);
}

/* Subnormal numbers are flushed while a kernel runs, and not a moment longer. */
static void test_subnormals(void)
{
    const frnn_spec spec = spec_of(FRNN_KIND_GRU, 4, 3, 40, 1, 1);
    net n;
    net_new(&n, &spec, NULL, 20, 4, 0);
    run(&n, 2);
    volatile float tiny = 0x1p-100f, product = tiny * 0x1p-40f;
    uint32_t bits; /* a comparison would take a subnormal number for zero where they are flushed */
    memcpy(&bits, (void *)&product, sizeof bits);
    CHECK(bits == 1 << 9, "the caller's arithmetic has changed: 2^-140 is %#x", bits);
    net_free(&n);
}

/* The tape can be read, however many threads wrote it: of each shard its initial states, then step by step the others. */
static void check_tape_layout(int64_t T, int64_t B, int D, int threads)
{
    const frnn_spec spec = spec_of(FRNN_KIND_LSTM, 8, 3, 6, 2, D);
    net n;
    net_new(&n, &spec, NULL, T, B, 0);
    frnn_set_threads(threads);
    net_forward(&n);
    frnn_tape_view view;
    for (int64_t k = 0; k < n.tracks; k++) {
        expect(frnn_tape_layout(n.weights, &n.call, k, &view), FRNN_OK, "the tape's layout");
        CHECK(view.shards == (threads > 1 && T > 16 && B > 8 && D == 1 ? 2 : 1), "%d shards", (int)view.shards);
        for (int64_t i = 0, low = 0, high; i < view.shards; i++, low = high) {
            high = B * (i + 1) / view.shards;
            for (int64_t b = low; b < high; b++)
                for (int64_t u = 0; u < 6; u++) {
                    const int64_t start = low * (T + 1) + b - low, end = start + T * (high - low);
                    CHECK(get(&n, n.tape, view.h + end * view.h_ld + u) == get(&n, n.hn, (k * B + b) * 6 + u), "h");
                    CHECK(get(&n, n.tape, view.c + end * view.c_ld + u) == get(&n, n.cn, (k * B + b) * 6 + u), "c");
                    CHECK(get(&n, n.tape, view.h + start * view.h_ld + u) == get(&n, n.h0, (k * B + b) * 6 + u), "h0");
                    const int64_t last = low * T + (T - 1) * (high - low) + b - low;
                    const double o = get(&n, n.tape, view.gates + last * view.gates_ld + 3 * view.plane + u);
                    CHECK(o > 0 && o < 1, "a gate of %g", o);
                }
        }
    }
    net_free(&n);
}

static void test_tape_layout(void)
{
    check_tape_layout(5, 3, 2, 2);
    check_tape_layout(30, 11, 2, 2);
    check_tape_layout(30, 11, 1, 1);
    check_tape_layout(30, 11, 1, 2);
}

static void test_multiply(void)
{
    static const int64_t large[2][3] = {{35, 110, 130}, {110, 35, 130}}; /* where threads have work */
    float alone[35 * 110], shared[35 * 110];
    for (int isa = 0; frnn_isa_name(isa); isa++) {
        if (!frnn_isa_usable(isa))
            continue;
        const char *name = frnn_isa_name(isa);
        for (int turned = 0; turned < 4; turned++) {
            for (int i = 0; i < PRODUCT_COUNT; i++) {
                check_multiply(name, 4, PRODUCTS[i], turned & 1, turned >> 1, NULL);
                check_multiply(name, 8, PRODUCTS[i], turned & 1, turned >> 1, NULL);
            }
            for (int threads = 1; threads <= MOST_THREADS; threads++) {
                frnn_set_threads(threads);
                check_multiply(name, 4, large[turned & 1], turned & 1, turned >> 1, threads == 1 ? alone : shared);
                CHECK(threads == 1 || !memcmp(alone, shared, sizeof alone), "%d threads give other bits", threads);
            }
        }
    }
    float one = 1;
    expect(frnn_multiply(2, NULL, 1, 1, 1, &one, 1, 1, &one, 1, 1, &one), FRNN_ERROR_SPEC, "half precision");
    expect(frnn_multiply(4, "sse9", 1, 1, 1, &one, 1, 1, &one, 1, 1, &one), FRNN_ERROR_ISA, "an unknown set");
    expect(frnn_multiply(4, NULL, -1, 1, 1, &one, 1, 1, &one, 1, 1, &one), FRNN_ERROR_SIZE, "a negative size");
    expect(frnn_multiply(4, NULL, 1, -1, 1, &one, 1, 1, &one, 1, 1, &one), FRNN_ERROR_SIZE, "a negative size");
    expect(frnn_multiply(4, NULL, 1, 1, -1, &one, 1, 1, &one, 1, 1, &one), FRNN_ERROR_SIZE, "a negative size");
    expect(frnn_multiply(4, NULL, 1, 1, 1, NULL, 1, 1, &one, 1, 1, &one), FRNN_ERROR_NULL, "no a");
    expect(frnn_multiply(4, NULL, 1, 1, 1, &one, 1, 1, NULL, 1, 1, &one), FRNN_ERROR_NULL, "no b");
    expect(frnn_multiply(4, NULL, 1, 1, 1, &one, 1, 1, &one, 1, 1, NULL), FRNN_ERROR_NULL, "no c");
    expect(frnn_multiply(4, NULL, 0, 1, 1, NULL, 1, 1, NULL, 1, 1, NULL), FRNN_OK, "a product of nothing");
}

static void test_softmax(void)
{
    const float one = 1;
    float peak = 7, sum = 7, out = 7;
    expect(frnn_softmax_sums(2, NULL, 1, 1, &one, &peak, &sum), FRNN_ERROR_SPEC, "half precision");
    expect(frnn_softmax_sums(4, "sse9", 1, 1, &one, &peak, &sum), FRNN_ERROR_ISA, "an unknown set");
    expect(frnn_softmax_sums(4, NULL, -1, 1, &one, &peak, &sum), FRNN_ERROR_SIZE, "a negative size");
    expect(frnn_softmax_sums(4, NULL, 1, -1, &one, &peak, &sum), FRNN_ERROR_SIZE, "a negative size");
    expect(frnn_softmax_sums(4, NULL, 1, 1, NULL, &peak, &sum), FRNN_ERROR_NULL, "no x");
    expect(frnn_softmax_sums(4, NULL, 1, 1, &one, NULL, &sum), FRNN_ERROR_NULL, "no peak");
    expect(frnn_softmax_sums(4, NULL, 1, 1, &one, &peak, NULL), FRNN_ERROR_NULL, "no sum");
    expect(frnn_softmax_sums(4, NULL, 0, 1, NULL, NULL, NULL), FRNN_OK, "the sums of nothing");
    expect(frnn_softmax_sums(4, NULL, 1, 1, &one, &peak, &sum), FRNN_OK, "one number's sum");
    CHECK(peak == one && sum == 1, "the peak and sum of one number are %g, %g", (double)peak, (double)sum);
    expect(frnn_scaled_exponentials(2, NULL, 1, 1, &one, &peak, &sum, &out), FRNN_ERROR_SPEC, "half precision");
    expect(frnn_scaled_exponentials(4, "sse9", 1, 1, &one, &peak, &sum, &out), FRNN_ERROR_ISA, "an unknown set");
    expect(frnn_scaled_exponentials(4, NULL, 1, -1, &one, &peak, &sum, &out), FRNN_ERROR_SIZE, "a negative size");
    expect(frnn_scaled_exponentials(4, NULL, 1, 1, &one, &peak, NULL, &out), FRNN_ERROR_NULL, "no factor");
    expect(frnn_scaled_exponentials(4, NULL, 1, 1, &one, &peak, &sum, NULL), FRNN_ERROR_NULL, "no out");
    expect(frnn_scaled_exponentials(4, NULL, 1, 0, NULL, NULL, NULL, NULL), FRNN_OK, "the exponentials of nothing");
    expect(frnn_scaled_exponentials(4, NULL, 1, 1, &one, &peak, &sum, &out), FRNN_OK, "one exponential");
    CHECK(out == 1, "exp(1 - 1) is %g", (double)out);
}

static void test_updates(void)
{
    enum { N = FRNN_SQUARES + 37 }; /* past a piece, and past whole vectors */
    static float w[N], g[N], m[N], v[N], b[N];
    double sums[2];
    for (int i = 0; i < N; i++)
        w[i] = 1, g[i] = 2;
    for (int isa = 0; frnn_isa_name(isa); isa++) {
        if (!frnn_isa_usable(isa))
            continue;
        const char *name = frnn_isa_name(isa);
        expect(frnn_sums_of_squares(4, name, N, g, sums), FRNN_OK, "squares");
        CHECK(sums[0] == 4.0 * FRNN_SQUARES && sums[1] == 4.0 * 37, "the squares' sums are %g and %g", sums[0], sums[1]);
        expect(frnn_sgd(4, name, &(frnn_sgd_step){.n = N, .w = w, .g = g, .lr = 0.25}), FRNN_OK, "gradient descent");
        CHECK(w[0] == 0.5f && w[N - 1] == 0.5f, "1 - 0.25 2 is %g, and last %g", (double)w[0], (double)w[N - 1]);
        expect(frnn_scale(4, name, N, w, 2), FRNN_OK, "scaling");
        CHECK(w[0] == 1 && w[N - 1] == 1, "2 0.5 is %g, and last %g", (double)w[0], (double)w[N - 1]);
        frnn_adam_step first = {.n = N, .w = w, .g = g, .m = m, .v = v, .b1 = 0.5, .b2 = 0.5, .rate = 0.5, .eps = 1, .shrink = 1};
        for (int i = 0; i < N; i++)
            m[i] = 0, v[i] = 16, g[i] = 4;
        expect(frnn_adam(4, name, &first), FRNN_OK, "Adam");
        for (int i = 0; i < N; i += N - 1) { /* m = 2, v = 16, w = 1 - 0.5 2 / (4 + 1) */
            CHECK(m[i] == 2 && v[i] == 16, "Adam's moments are %g and %g", (double)m[i], (double)v[i]);
            CHECK(w[i] == 1 - 2.0f / 5 * 0.5f, "Adam moves to %g", (double)w[i]);
            b[i] = 100, g[i] = 2, w[i] = 1;
        }
        first.peak = b;
        expect(frnn_adam(4, name, &first), FRNN_OK, "Adam with the greatest v"); /* m = 2, v = 10 */
        CHECK(v[0] == 10 && b[0] == 100 && w[0] == 1 - 2.0f / 11 * 0.5f, "AMSGrad moves to %g", (double)w[0]);
        frnn_sgd_step on = {.n = N, .w = w, .g = g, .b = b, .lr = 0.5, .momentum = 0.5, .fresh = 0.25};
        w[0] = 1, b[0] = 8;
        expect(frnn_sgd(4, name, &on), FRNN_OK, "momentum");
        CHECK(b[0] == 4.5f && w[0] == -1.25f, "a momentum of %g moves to %g", (double)b[0], (double)w[0]);
        on.nesterov = 1, w[0] = 1, b[0] = 8;
        expect(frnn_sgd(4, name, &on), FRNN_OK, "Nesterov's");
        CHECK(b[0] == 4.5f && w[0] == -1.125f, "Nesterov's momentum of %g moves to %g", (double)b[0], (double)w[0]);
        frnn_rmsprop_step root = {.n = N, .w = w, .g = g, .v = v, .lr = 0.5, .alpha = 0.5, .eps = 1, .momentum = 0.5};
        for (int i = 0; i < N; i++)
            w[i] = 1, g[i] = 4, v[i] = 16, m[i] = 0, b[i] = 2;
        expect(frnn_rmsprop(4, name, &root), FRNN_OK, "RMSprop");
        for (int i = 0; i < N; i += N - 1) { /* v = 16, w = 1 - 0.5 4 / (4 + 1) */
            CHECK(v[i] == 16 && w[i] == 1 - 4.0f / 5 * 0.5f, "RMSprop's %g moves to %g", (double)v[i], (double)w[i]);
            w[i] = 1, v[i] = 24;
        }
        root.mean = m, root.b = b;
        expect(frnn_rmsprop(4, name, &root), FRNN_OK, "RMSprop with all"); /* v = 20, m = 2, sqrt(20 - 2^2) = 4, b = 0.5 2 + 4 / 5 */
        for (int i = 0; i < N; i += N - 1) {
            CHECK(v[i] == 20 && m[i] == 2 && b[i] == 4.0f / 5 + 1, "RMSprop keeps %g, %g, %g", (double)v[i], (double)m[i], (double)b[i]);
            CHECK(w[i] == 1 - b[i] * 0.5f, "RMSprop with all moves to %g", (double)w[i]);
        }
        for (int i = 0; i < N; i++)
            w[i] = 1, g[i] = 2;
    }
    const frnn_sgd_step sgd = {.n = 1, .w = w, .g = g}, no_w = {.n = 1, .g = g}, no_g = {.n = 1, .w = w}, less = {.n = -1};
    expect(frnn_sgd(2, NULL, &sgd), FRNN_ERROR_SPEC, "half precision");
    expect(frnn_sgd(4, "sse9", &sgd), FRNN_ERROR_ISA, "an unknown set");
    expect(frnn_sgd(4, NULL, NULL), FRNN_ERROR_NULL, "no step");
    expect(frnn_sgd(4, NULL, &no_w), FRNN_ERROR_NULL, "no w");
    expect(frnn_sgd(4, NULL, &no_g), FRNN_ERROR_NULL, "no g");
    expect(frnn_sgd(4, NULL, &less), FRNN_ERROR_SIZE, "a negative size");
    expect(frnn_sgd(4, NULL, &(frnn_sgd_step){.n = 0}), FRNN_OK, "a step of nothing");
    const frnn_rmsprop_step rmsprop = {.n = 1, .w = w, .g = g}, no = {.n = -1};
    expect(frnn_rmsprop(2, NULL, &rmsprop), FRNN_ERROR_SPEC, "half precision");
    expect(frnn_rmsprop(4, NULL, NULL), FRNN_ERROR_NULL, "no step");
    expect(frnn_rmsprop(4, NULL, &rmsprop), FRNN_ERROR_NULL, "no v");
    expect(frnn_rmsprop(4, NULL, &no), FRNN_ERROR_SIZE, "a negative size");
    const frnn_adam_step adam = {.n = 1, .w = w, .g = g, .m = m}, none = {.n = -1};
    expect(frnn_adam(2, NULL, &adam), FRNN_ERROR_SPEC, "half precision");
    expect(frnn_adam(4, NULL, NULL), FRNN_ERROR_NULL, "no step");
    expect(frnn_adam(4, NULL, &adam), FRNN_ERROR_NULL, "no v");
    expect(frnn_adam(4, NULL, &none), FRNN_ERROR_SIZE, "a negative size");
    expect(frnn_scale(4, NULL, -1, w, 1), FRNN_ERROR_SIZE, "a negative size");
    expect(frnn_scale(4, NULL, 1, NULL, 1), FRNN_ERROR_NULL, "no x");
    expect(frnn_scale(4, NULL, 0, NULL, 1), FRNN_OK, "nothing to scale");
    expect(frnn_sums_of_squares(4, NULL, -1, w, sums), FRNN_ERROR_SIZE, "a negative size");
    expect(frnn_sums_of_squares(4, NULL, 1, w, NULL), FRNN_ERROR_NULL, "no sums");
    expect(frnn_sums_of_squares(4, NULL, 0, NULL, NULL), FRNN_OK, "the squares of nothing");
}

/* -------------------------------------------------------------------------------------------------------- gradients */

static double loss(net *n)
{
    const int code = frnn_weights_pack(n->weights, n->param_table, 0);
    CHECK(!code, "%s", frnn_error(code));
    net_forward(n);
    const array outputs[] = {n->y, n->hn, n->cn}, grads[] = {n->dy, n->dhn, n->dcn};
    double sum = 0;
    for (int i = 0; i < 3; i++)
        for (int64_t j = 0; j < grads[i].n; j++)
            sum += get(n, outputs[i], j) * get(n, grads[i], j);
    return sum;
}

/* A few entries of an array's gradient against central differences. offset: what the gradient was added to. */
static void check_differences(net *n, array at, array gradient, double offset, const char *what)
{
    const double h = 1e-5;
    for (int64_t i = 0; i < at.n; i += at.n / 5 + 1) {
        const double before = get(n, at, i), given = get(n, gradient, i) - offset;
        set(n, at, i, before + h);
        const double above = loss(n);
        set(n, at, i, before - h);
        const double below = loss(n);
        set(n, at, i, before);
        const double wanted = (above - below) / (2 * h);
        CHECK(fabs(given - wanted) <= 1e-7 * (1 + fabs(wanted)), "%s: %s[%d]: %.12g, by differences %.12g", n->name,
              what, (int)i, given, wanted);
    }
}

static void test_differences(void)
{
    static const int names[] = {0, 1, 2, 3, 4, 5};
    frnn_spec spec;
    for (int i = 0; variant(i, 8, 4, 6, 3, 1 + i % 2, 1 + i / 2 % 2, &spec); i++) {
        spec.clip = 0; /* a difference across a corner is no derivative */
        for (int role = 0; role < 3; role++)
            if (spec.activation[role] == FRNN_RELU || spec.activation[role] == FRNN_LEAKY_RELU ||
                spec.activation[role] == FRNN_THRESHOLDED_RELU || spec.activation[role] == FRNN_HARD_SIGMOID)
                spec.activation[role] = FRNN_SOFTSIGN;
        net n;
        net_new(&n, &spec, NULL, 4, 3, LENGTHS | MASKS);
        net_forward(&n);
        net_backward(&n);
        check_differences(&n, n.x, n.dx, 0, "x");
        check_differences(&n, n.h0, n.dh0, 0, "h0");
        check_differences(&n, n.c0, n.dc0, 0, "c0");
        for (int64_t p = 0; p < n.parameters; p++)
            check_differences(&n, n.params[p], n.dparams[p], 1, result_name(RESULTS + names[p % PER_TRACK]));
        net_free(&n);
    }
}

/* -------------------------------------------------------------------------------------------------- several callers */

enum { CALLERS = 4, ROUNDS = TSAN ? 15 : 60 };

typedef struct caller {
    net n;
    const net *wanted;
    int own_plan;
    pthread_t thread;
} caller;

static void *call_often(void *arg)
{
    caller *const me = arg;
    for (int round = 0; round < ROUNDS; round++) {
        net_forward(&me->n);
        net_backward(&me->n);
        check_same(&me->n, me->wanted, "several callers", results_of(&me->n));
        frnn_set_threads(1 + round % MOST_THREADS); /* whoever else is within a call */
    }
    return NULL;
}

/* Several callers at once: each with weights and plan of its own, all with the same weights, all on one plan. */
static void test_callers(void)
{
    const frnn_spec spec = spec_of(FRNN_KIND_GRU, 4, 9, 65, 2, 1);
    net wanted;
    net_new(&wanted, &spec, NULL, 25, 3, LENGTHS);
    run(&wanted, 1);
    for (int shared = 0; shared < 3; shared++) {
        caller callers[CALLERS];
        for (int i = 0; i < CALLERS; i++) {
            caller *const me = &callers[i];
            me->wanted = &wanted;
            net_new(&me->n, &spec, NULL, 25, 3, LENGTHS);
            if (shared && i) {
                frnn_plan_free(me->n.plan);
                frnn_weights_free(me->n.weights);
                me->n.weights = NULL;
                me->n.plan = callers[0].n.plan;
                if (shared == 1)
                    expect(frnn_plan_new(callers[0].n.weights, &me->n.plan), FRNN_OK, "a second plan");
            }
        }
        frnn_set_threads(3);
        for (int i = 0; i < CALLERS; i++)
            CHECK(pthread_create(&callers[i].thread, NULL, call_often, &callers[i]) == 0, "no thread for the test");
        for (int i = 0; i < CALLERS; i++)
            pthread_join(callers[i].thread, NULL);
        for (int i = CALLERS - 1; i >= 0; i--) {
            if (shared == 2 && i)
                callers[i].n.plan = NULL;
            net_free(&callers[i].n);
        }
    }
    net_free(&wanted);
}

static _Atomic int stop;

static void *keep_calling(void *arg)
{
    while (!stop)
        net_forward(arg);
    return NULL;
}

/* A child has its parent's plans and weights, but none of its threads: not even the one that was within a call. */
static void test_fork(void)
{
    const frnn_spec spec = spec_of(FRNN_KIND_LSTM, 4, 9, 65, 2, 2);
    net n, busy, wanted, large;
    net_new(&n, &spec, NULL, 25, 4, 0);
    net_new(&large, &spec, NULL, 2000, 9, NO_TAPE);
    net_new(&busy, &spec, NULL, 25, 4, NO_TAPE);
    net_new(&wanted, &spec, NULL, 25, 4, 0);
    run(&wanted, 3);
    frnn_plan *const own = busy.plan, *const larges = large.plan;
    busy.plan = large.plan = n.plan;
    run(&n, 3);
    net_forward(&busy);
    const int64_t had = frnn_plan_bytes(n.plan);
    /* Not under AddressSanitizer: a thread that allocates leaves GCC 12's locked in one child of a hundred. */
    pthread_t other;
    CHECK(ASAN || pthread_create(&other, NULL, keep_calling, &busy) == 0, "no thread for the test");
    for (int round = 0; round < 10; round++) {
        usleep((useconds_t)(round * 137));
        const pid_t child = fork();
        if (child == 0) {
            alarm(20); /* which is not inherited */
            frnn_set_threads(TSAN ? 1 : 3); /* ThreadSanitizer does not follow a child's new threads */
            net_forward(&large);
            CHECK(frnn_plan_bytes(large.plan) > had, "in a child a call has not the plan's memory");
            for (int again = 0; again < 2; again++) {
                run(&n, TSAN ? 1 : 3);
                check_same(&n, &wanted, "in a child", results_of(&n));
            }
            _exit(0);
        }
        run(&n, 3);
        check_same(&n, &wanted, "beside a child", results_of(&n));
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
              "the child ended with status %#x", status);
    }
    stop = 1;
    if (!ASAN)
        pthread_join(other, NULL);
    busy.plan = own, large.plan = larges;
    net_free(&large);
    net_free(&n);
    net_free(&busy);
    net_free(&wanted);
}

int main(void)
{
    alarm(300);
#if defined(__GLIBC__)
    mallopt(M_PERTURB, 0x100); /* fill new memory with 0xff, the complement of the low byte: NaN */
#endif
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
        {"names", test_names},
        {"spec errors", test_spec_errors},
        {"null errors", test_null_errors},
        {"call errors", test_call_errors},
        {"unpacked", test_unpacked},
        {"inference", test_inference},
        {"steps", test_steps},
        {"workspace", test_workspace},
        {"no rows", test_no_rows},
        {"trials", test_trials},
        {"subnormals", test_subnormals},
        {"tape layout", test_tape_layout},
        {"multiply", test_multiply},
        {"softmax", test_softmax},
        {"updates", test_updates},
        {"differences", test_differences},
        {"variants", test_variants},
        {"fork", test_fork},
        {"sizes", test_sizes},
        {"shards", test_shards},
        {"callers", test_callers},
    };
    for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++) {
        tests[i].run();
        fprintf(stderr, "%s: done\n", tests[i].name);
    }
    puts("ok");
    return 0;
}
