/* wakeup.h - how a loop waits, and how another thread ends its wait.
 *
 * The ready queue is only touched with the GIL held, so another thread appends
 * to it directly and then calls fl_waker_wake(), which costs a system call only
 * if the loop sleeps in the poller.
 *
 * A thread of ours may do so after it let go of the GIL, so that the loop finds
 * it free. It borrows the waker with the GIL held and gives it back without ever
 * waiting for the GIL in between; closing the loop waits for that.
 */
#ifndef FASTLOOP_WAKEUP_H
#define FASTLOOP_WAKEUP_H

#include "poll.h" /* Python.h, which has to come before the C library's headers */
#include "spin.h"

#include <stdatomic.h>
#include <sys/types.h>

/* What the loop's thread does, in fl_waker.state. */
enum {
    FL_AWAKE = 0, /* it looks at the ready queue before it waits again */
    FL_LEAVES,    /* about to let go of the GIL and to wait */
    FL_SPINS,     /* waits, looking at this state */
    FL_SLEEPS,    /* waits in the poller: the event ends it */
    FL_WOKEN,     /* a wakeup is on its way */
};

typedef struct {
    atomic_int state;
    atomic_int borrowers;
    int read_fd, write_fd; /* an eventfd; elsewhere than on Linux a pipe */
    pid_t pid;             /* that opened it: a fork takes no borrower along */
} fl_waker;

int fl_waker_open(fl_waker *w, fl_poller *p);
void fl_waker_close(fl_waker *w);

/* Without the GIL: wait for events as fl_poll_wait does. timeout is not 0, and
 * state is FL_LEAVES since before the GIL was let go. With `spin` only for a
 * moment, in which the poller is looked at too; *paid is whether a wakeup came. */
int fl_waker_wait(fl_waker *w, fl_poller *p, int64_t timeout, fl_event *events, int max);
int fl_waker_spin(fl_waker *w, fl_poller *p, fl_event *events, int max, bool *paid);

/* End the wait. Any thread that holds the GIL, or has borrowed the waker. */
void fl_waker_wake(fl_waker *w);

/* The poller reported read_fd. */
void fl_waker_drain(fl_waker *w);

static inline void
fl_waker_borrow(fl_waker *w)
{
    atomic_fetch_add(&w->borrowers, 1);
}

static inline void
fl_waker_give_back(fl_waker *w)
{
    atomic_fetch_sub(&w->borrowers, 1);
}

/* Without the GIL: wait a moment for the loop's thread to let go of it. */
void fl_waker_await_gil(const fl_waker *w);

/* The same until it has seen to its wakeup and waits again. */
void fl_waker_await_wait(const fl_waker *w);

#endif
