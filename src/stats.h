/* stats.h - what loop.stats() tells, and the noting of what was slow. */
#ifndef FASTLOOP_STATS_H
#define FASTLOOP_STATS_H

#include "state.h"

extern PyMethodDef fl_stats_methods[];

/* A turn ran callbacks from loop->now_ns until `now`, nanoseconds. */
void fl_stats_turn_ran(fl_loop *loop, int64_t now);

/* What debug mode calls an entry of the ready queue: a new str, or NULL with an exception. */
PyObject *fl_stats_name(fl_loop *loop, PyObject *entry);

/* Debug mode: `entry` ran for `ns` nanoseconds. Its name is kept if it is the slowest. */
void fl_stats_entry_ran(fl_loop *loop, PyObject *entry, int64_t ns);

#endif
