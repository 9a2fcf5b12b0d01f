/* How many threads share a call, and what each of them owns: core.h's size, groups, by_panel and layers. Next: share.c. */
#ifndef FRNN_SHARE_H
#define FRNN_SHARE_H

#include "core.h"

/* Whether the team helps calls of one kind, found out by timing both where the model cannot tell: what a barrier costs, and
 * whether the team is awake, changes from machine to machine and from minute to minute. */
typedef struct frnn_trial {
    int64_t key; /* what the calls have in common */
    unsigned calls;
    int team;     /* what is best so far */
    double ns[2]; /* a step of a row: alone, by the team */
} frnn_trial;

/* Trials of a kind: where calls are of several sizes by turns, as the last batch of an epoch is, each size has its own. */
enum { FRNN_TRIALS = 16 };

/* Whether the next call of this kind is the team's; and how long it took. */
int frnn_choose_by_trial(frnn_trial *t, int64_t key);
void frnn_note_trial(frnn_trial *t, int team, double ns);

/* Into how many shards a call with a tape divides its batch. It must hang on nothing but the network, T and B: the bits of weight
 * gradients hang on it. */
int frnn_shards(const frnn_weights *w, int64_t T, int64_t B);

/* Decide how a run is shared whose weights and sizes are known, its chunk, and what follows from both. The trial that decided, of
 * forward, forward with a tape or backward, or NULL. */
frnn_trial *frnn_share(frnn_run *run, frnn_trial trials[3][FRNN_TRIALS]);

#endif
