/* What the engine takes things to cost, to say how many threads share them: bench/costs.py measures what can be measured
 * by itself.
 *
 * Only ratios matter, and only near the points where one way of sharing overtakes another; where alone and together are
 * close, calls are timed both ways. What differs most between processors is given for those with vectors of 64 bytes
 * (measured on a Zen 5) and for others (on a Zen 1): to think one slower than it is costs a few trials, to think it faster
 * keeps the team from work that it would halve. Next: share.c, who weighs it.
 */
#ifndef FRNN_COST_H
#define FRNN_COST_H

#include "threads.h"

static const double FLOPS_PER_NS[] = {150, 40};    /* of float32 FMAs, one thread */
static const double L2_BYTES_PER_NS[] = {120, 80}; /* read, one thread */
static const double PACK_BYTES_PER_NS[] = {15, 3}; /* packed, one thread */
static const double GATE_NS[] = {4, 20};           /* a vector of units' gate: its activation and what goes with it */
static const double STEP_NS[] = {50, 90};          /* what a step costs beside */
static const double L3_BYTES_PER_NS = 60;          /* read, each of several threads */
static const double BARRIER_NS = 250;              /* a barrier of running threads */
static const double TEAM_NS = 1000;                /* setting a waiting team to work, and waiting for its last */
static const double WAKE_NS = 30000;               /* and a sleeping one */
static const double SURE = 0.6;                    /* the team's part of the time alone from which on there is no doubt, */
static const double SMALL_NS = 500000;             /* but for calls as short as that; */
static const double HOPELESS = 2.2;                /* and from which on it is not worth a trial, */
static const double HOPELESS_TAPED = 1.5;          /* nor for one half of a training step, whose other half finds its numbers far off */
static const double TILE_HEIGHT = 6;               /* rows that one reading of the weights serves */
static const double TILES_L2 = 2;                  /* times L2 that weights may have for each tile that a thread reads them for */
static const double WAVE_L2 = 0.6;                 /* the part of L2 for a layer's recurrent weights where its input's pass every few steps */

/* Which of the two. */
static inline int narrow(int lanes, int64_t real_size) { return lanes * real_size < 64; }

/* Of so many multiply-adds, one thread. */
static inline double multiply_ns(double terms, int lanes, int64_t real_size) {
    return 2 * terms * (double)real_size / (4 * FLOPS_PER_NS[narrow(lanes, real_size)]);
}

/* How many threads plain work had better have that takes one so long: all, where half of that is more than the team costs. */
static inline int threads_for(double ns) { return ns / 2 > (frnn_team_awake() ? TEAM_NS : WAKE_NS) ? frnn_get_threads() : 1; }

#endif
