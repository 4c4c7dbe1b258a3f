/* spin.h - waiting for another thread without going to sleep.
 *
 * Putting a thread to sleep and waking it on another core costs tens of
 * microseconds; a short call in a worker thread takes two. So who expects a
 * quick answer first looks for it for a moment. Whether that pays is learnt: two
 * out of three have to succeed, else it is only tried now and then.
 */
#ifndef FASTLOOP_SPIN_H
#define FASTLOOP_SPIN_H

#include <stdbool.h>
#include <stdint.h>

enum {
    FL_SPIN_NS = 50000,   /* about what a sleep and a wakeup cost */
    FL_SPIN_BEST = 6,     /* the highest score */
    FL_SPIN_REST = 200,   /* sleeps without a try after failures */
    FL_SPIN_LOOKS = 32,   /* between two looks at the clock */
};

/* Learnt by one waiter. Touched by whoever waits, one thread at a time. */
typedef struct {
    bool possible; /* there is more than one core */
    int8_t score;
    uint8_t rest;  /* sleeps left until the next try */
} fl_spin;

/* Whether this process may use several cores. */
bool fl_spin_possible(void);

static inline bool
fl_spin_wanted(fl_spin *s)
{
    if (s->rest > 0) {
        s->rest--;
        return false;
    }
    return s->possible;
}

static inline void
fl_spin_learn(fl_spin *s, bool paid)
{
    if (paid) {
        s->score += s->score < FL_SPIN_BEST;
        return;
    }
    s->score -= 2;
    if (s->score < 0) {
        s->score = 0;
        s->rest = FL_SPIN_REST;
    }
}

/* Tell the core that this is a loop that waits. */
static inline void
fl_spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
