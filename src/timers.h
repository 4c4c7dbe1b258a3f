/* timers.h - the timers of a loop, by deadline.
 *
 * asyncio code makes most timers only to cancel them, so a new timer goes to an
 * unsorted list, where cancelling is a swap with the last. The list is moved to
 * a binary heap when one of its deadlines is due or the loop is about to block.
 * Both hold an owned reference to each handle.
 */
#ifndef FASTLOOP_TIMERS_H
#define FASTLOOP_TIMERS_H

#include "handle.h"

typedef struct {
    fl_timer **items;
    size_t len, cap;
} fl_timer_array;

typedef struct {
    fl_timer_array fresh; /* unsorted */
    fl_timer_array heap;  /* least (due, order) first */
    int64_t fresh_min;    /* no fresh timer is due earlier; INT64_MAX if none */
    uint64_t next_order;
} fl_timers;

void fl_timers_open(fl_timers *t);
void fl_timers_close(fl_timers *t); /* drops every timer */

/* Schedule: takes a new reference. -1 with MemoryError. */
int fl_timers_add(fl_timers *t, fl_timer *h);

/* Take out a scheduled timer and drop the reference held to it. */
void fl_timers_remove(fl_timers *t, fl_timer *h);

/* The earliest timer in *first, borrowed, or NULL. Sorts what is fresh; -1 with
 * MemoryError. */
int fl_timers_first(fl_timers *t, fl_timer **first);

/* Take out the earliest timer that is due at `now` or before: 1 and an owned
 * reference in *h, 0 if none is due, -1 with MemoryError. */
int fl_timers_pop_due(fl_timers *t, int64_t now, fl_timer **h);

/* The loop goes by another clock from now on: its time() is not ours any more. */
void fl_timers_sort_anew(fl_timers *t);

static inline size_t
fl_timers_len(const fl_timers *t)
{
    return t->fresh.len + t->heap.len;
}

#endif
