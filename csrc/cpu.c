/* What this machine offers, asked of the CPU itself (CPUID, XGETBV), of the kernel and of its control groups.
 *
 * The compiler's __builtin_cpu_supports is not used: not every compiler's checks that the operating system saves the
 * registers too. Numbers that cannot be found are 0, never a guess. Next: machine.c and threads.c, who ask.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sched.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

/* ----------------------------------------------------------------------------------------------------------- x86 */

static uint64_t xgetbv0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int all(uint64_t bits, uint64_t wanted)
{
    return (bits & wanted) == wanted;
}

unsigned frnn_cpu_features(void)
{
    /* Intel's Software Developer's Manual: volume 2, CPUID; volume 1, 13.3 for XCR0. */
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28 };                                        /* 1: ecx */
    enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 };               /* 7: ebx */
    const uint32_t AVX512VL = UINT32_C(1) << 31;
    enum { XMM = 1 << 1, YMM = 1 << 2, OPMASK = 1 << 5, ZMM_HIGH = 1 << 6, ZMM_16_31 = 1 << 7 };     /* XCR0 */

    unsigned a, b, c, d, features = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !all(c, FMA | OSXSAVE | AVX))
        return 0;
    uint64_t saved = xgetbv0();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !all(b, AVX2) || !all(saved, XMM | YMM))
        return 0;
    features |= FRNN_CPU_AVX2;
    if (all(b, AVX512F | AVX512DQ | AVX512BW | AVX512VL) && all(saved, OPMASK | ZMM_HIGH | ZMM_16_31))
        features |= FRNN_CPU_AVX512;
    return features;
}

static void brand(char out[64])
{
    unsigned words[12];
    for (unsigned i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002 + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]))
            return;
    const char *text = (const char *)words; /* 48 bytes with blanks before and NULs or blanks after */
    size_t from = 0, to = strnlen(text, sizeof words);
    while (from < to && text[from] == ' ')
        from++;
    while (to > from && text[to - 1] == ' ')
        to--;
    memcpy(out, text + from, to - from);
    out[to - from] = 0;
}

#else

unsigned frnn_cpu_features(void)
{
#if defined(__aarch64__)
    return FRNN_CPU_NEON; /* part of the architecture */
#else
    return 0;
#endif
}

static void brand(char out[64])
{
#if defined(__APPLE__)
    size_t size = 64;
    if (sysctlbyname("machdep.cpu.brand_string", out, &size, NULL, 0) != 0)
        out[0] = 0;
#else
    (void)out;
#endif
}

#endif

void frnn_cpu_name(char out[64])
{
    out[0] = 0;
    brand(out);
    if (out[0] == 0) {
        struct utsname system;
        snprintf(out, 64, "%.63s", uname(&system) < 0 ? "unknown" : system.machine);
    }
}

/* ---------------------------------------------------------------------------------------------------------- Linux */

#if defined(__linux__)

enum { PATH_BYTES = 4096 };

/* The first line of a file without its end; 0 where there is none. */
static int first_line(const char *path, char *line, int size)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    int found = fgets(line, size, file) != NULL;
    fclose(file);
    if (found)
        line[strcspn(line, "\n")] = 0;
    return found;
}

static int cache_fact(int index, const char *fact, char out[32])
{
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, fact);
    return first_line(path, out, 32);
}

void frnn_cpu_caches(int64_t out[3])
{
    out[0] = out[1] = out[2] = 0;
    char level[32], type[32], size[32];
    for (int i = 0; cache_fact(i, "level", level) && cache_fact(i, "type", type) && cache_fact(i, "size", size); i++) {
        int n = atoi(level);
        if (n < 1 || n > 3 || strcmp(type, "Instruction") == 0)
            continue;
        char *unit;
        out[n - 1] = strtoll(size, &unit, 10);
        out[n - 1] <<= *unit == 'K' ? 10 : *unit == 'M' ? 20 : 0;
    }
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    /* Second to ask: on chips of several dies it takes their L3 caches for one. */
    const int names[3] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
    for (int i = 0; i < 3; i++)
        if (out[i] == 0 && sysconf(names[i]) > 0)
            out[i] = sysconf(names[i]);
#endif
}

/* The main thread's mask, whoever asks: threads that a program puts on a processor say nothing of the others. */
static int in_affinity_mask(void)
{
    /* The kernel refuses a mask shorter than its own, so longer ones are tried. */
    for (int n = CPU_SETSIZE; n <= 1 << 20; n *= 2) {
        cpu_set_t *mask = CPU_ALLOC(n);
        if (!mask)
            break;
        int failed = sched_getaffinity(getpid(), CPU_ALLOC_SIZE(n), mask);
        int count = failed ? 0 : CPU_COUNT_S(CPU_ALLOC_SIZE(n), mask);
        CPU_FREE(mask);
        if (!failed)
            return count;
    }
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

/* Whether a list such as "rw,cpu,cpuacct" holds the item. */
static int listed(const char *list, const char *item)
{
    size_t length = strlen(item);
    for (;; list++) {
        size_t word = strcspn(list, ",\n");
        if (word == length && memcmp(list, item, length) == 0)
            return 1;
        list += word;
        if (*list != ',')
            return 0;
    }
}

/* The path of this process's control group, as /proc/self/cgroup has it: "hierarchy:controllers:path", where
 * version 2 has no controllers. */
static int own_group(const char *root, int version, char out[PATH_BYTES])
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    char *line = NULL;
    size_t room = 0;
    int found = 0;
    while (!found && getline(&line, &room, file) > 0) {
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(++controllers, ':') : NULL;
        if (!group)
            continue;
        *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        found = version == 2 ? *controllers == 0 : listed(controllers, "cpu");
        if (found)
            snprintf(out, PATH_BYTES, "%s", group);
    }
    free(line);
    fclose(file);
    return found;
}

/* Processors that the quota of this very group allows, rounded up; 0 for no bound. */
static int group_quota(const char *folder, int version)
{
    char path[PATH_BYTES + 32], line[64];
    long long quota, period;
    if (version == 2) {
        snprintf(path, sizeof path, "%s/cpu.max", folder); /* "max 100000" has no number first */
        if (!first_line(path, line, sizeof line) || sscanf(line, "%lld %lld", &quota, &period) != 2)
            return 0;
    } else {
        snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder); /* -1: no bound */
        if (!first_line(path, line, sizeof line) || sscanf(line, "%lld", &quota) != 1)
            return 0;
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
        if (!first_line(path, line, sizeof line) || sscanf(line, "%lld", &period) != 1)
            return 0;
    }
    if (quota <= 0 || period <= 0)
        return 0;
    long long processors = (quota + period - 1) / period;
    return processors < INT32_MAX ? (int)processors : 0;
}

/* The least of what this process's group and those above it allow; 0 for no bound. */
static int least_quota(const char *root)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/proc/self/mountinfo", root);
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    char *line = NULL;
    size_t room = 0;
    int least = 0;
    while (getline(&line, &room, file) > 0) {
        /* proc(5): "36 35 98:0 /root /mount options ... - type source options", /root being the group that is
         * mounted there: in a container often not the topmost. */
        char top[1024], mount[1024], type[32], options[1024], group[PATH_BYTES];
        const char *rest = strstr(line, " - ");
        if (!rest || sscanf(line, "%*s %*s %*s %1023s %1023s", top, mount) != 2 ||
            sscanf(rest, " - %31s %*s %1023s", type, options) != 2)
            continue;
        int version = strcmp(type, "cgroup2") == 0 ? 2 : strcmp(type, "cgroup") == 0 && listed(options, "cpu") ? 1 : 0;
        if (version == 0 || !own_group(root, version, group))
            continue;
        size_t skip = strcmp(top, "/") == 0 ? 0 : strlen(top);
        int within = strncmp(group, top, skip) == 0 && (group[skip] == '/' || group[skip] == 0);
        char *below = within ? group + skip : group + strlen(group);
        for (;;) {
            char folder[PATH_BYTES];
            int length = snprintf(folder, sizeof folder, "%s%s%s", root, mount, below);
            int quota = length < PATH_BYTES ? group_quota(folder, version) : 0;
            if (quota > 0 && (least == 0 || quota < least))
                least = quota;
            char *last = strrchr(below, '/');
            if (!last)
                break;
            *last = 0;
        }
    }
    free(line);
    fclose(file);
    return least;
}

int frnn_cpu_count(const char *root)
{
    int count = in_affinity_mask();
    int quota = least_quota(root);
    if (quota > 0 && quota < count)
        count = quota;
    return count > 1 ? count : 1;
}

#else

/* ------------------------------------------------------------------------------------------------ macOS and others */

#if defined(__APPLE__)

static int64_t system_fact(const char *name)
{
    int64_t value = 0; /* an int is written to its low half */
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 ? value : 0;
}

void frnn_cpu_caches(int64_t out[3])
{
    out[0] = system_fact("hw.l1dcachesize");
    out[1] = system_fact("hw.l2cachesize");
    out[2] = system_fact("hw.l3cachesize");
}

int frnn_cpu_count(const char *root)
{
    (void)root;
    int64_t count = system_fact("hw.activecpu");
    return count > 1 ? (int)count : 1;
}

#else

void frnn_cpu_caches(int64_t out[3])
{
    out[0] = out[1] = out[2] = 0;
}

int frnn_cpu_count(const char *root)
{
    (void)root;
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 1 ? (int)count : 1;
}

#endif
#endif
