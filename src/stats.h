/* stats.h - what loop.stats() tells, and the noting of what was slow. */
#ifndef FASTLOOP_STATS_H
#define FASTLOOP_STATS_H

#include "loop.h"

/* One entry of the ready queue is timed for each of these nanoseconds that go by. */
enum { FL_TIMING_EVERY = 20000 };

/* Whether to time the entry that runs next. */
static inline bool
fl_stats_may_time(fl_loop *loop)
{
    if (loop->timing_ns < FL_TIMING_EVERY) {
        return loop->debug;
    }
    loop->timing_ns -= FL_TIMING_EVERY;
    return true;
}

extern PyMethodDef fl_stats_methods[];

/* A turn ran callbacks from loop->now_ns until `now`, nanoseconds. */
void fl_stats_turn_ran(fl_loop *loop, int64_t now);

/* This turn began at loop->now_ns and polled until `now`, nanoseconds. */
void fl_stats_polled(fl_loop *loop, int64_t now);

/* What reports call an entry of the ready queue: a new str, or NULL with an exception. */
PyObject *fl_stats_name(fl_loop *loop, PyObject *entry);

/* `entry` ran for `ns` nanoseconds. Its name is kept if it is slow, and the slowest. -1 with
 * KeyboardInterrupt and what else must leave run_forever(). */
int fl_stats_entry_ran(fl_loop *loop, PyObject *entry, int64_t ns);

#endif
