/* handle.h - Handle and TimerHandle: a callback with its arguments and context.
 *
 * They are subtypes of asyncio.Handle / asyncio.TimerHandle, whose repr,
 * comparison and hash they inherit; the data lives in our own fields.
 */
#ifndef FASTLOOP_HANDLE_H
#define FASTLOOP_HANDLE_H

#include "state.h"

enum { FL_HANDLE_INLINE_ARGS = 3 };

/* What its callback runs in, in fl_handle.runs_in. */
enum {
    FL_RUN_IN_CONTEXT = 0, /* fl_handle.context */
    FL_RUN_IN_EMPTY = 1,   /* the loop's shared empty context: see context.h */
    FL_RUN_SLEEP_END = 2   /* none: it only finishes a future, in C */
};

/* Where a TimerHandle is, in fl_handle.where. */
enum { FL_TIMER_IDLE = 0, FL_TIMER_FRESH = 1, FL_TIMER_HEAPED = 2 };

/* A burst of callbacks is bound by memory, so a handle is kept small: seven of
 * its objects lie where asyncio.Handle has its seven __slots__, which nothing
 * uses here (both are object pointers or NULL, so even a look through asyncio's
 * own descriptors is harmless). */
struct fl_handle {
    PyObject ob_base;
    PyObject *loop;      /* owned; NULL while on the free list */
    PyObject *context;   /* owned; NULL unless FL_RUN_IN_CONTEXT or running */
    PyObject *callback;  /* owned; NULL once cancelled, or while it runs */
    PyObject *args[FL_HANDLE_INLINE_ARGS]; /* owned */
    PyObject *more_args; /* owned tuple of all arguments, or NULL */
    char other_base_fields[FL_HANDLE_BASE_SIZE - sizeof(PyObject) - 7 * sizeof(PyObject *)];
    PyObject *source_traceback; /* owned, debug mode only, or NULL */
    PyObject *repr;             /* owned: repr kept by cancel() in debug mode */
    uint8_t nargs;              /* inline arguments */
    uint8_t where;
    uint8_t runs_in;
    bool cancelled;
    bool is_timer; /* it is an fl_timer */
    bool is_shared; /* it is a ThreadSafeHandle */
    bool when_is_int; /* of an fl_timer: call_at() was given an int, and when() gives it back */
    bool tracked;  /* by the garbage collector: see handle_alloc() */
};

struct fl_timer {
    fl_handle handle; /* must be first */
    double when;      /* loop.time() it is due, seconds */
    int64_t due;      /* the same, as timers are sorted by it: fl_timer_due() */
    uint64_t order;   /* breaks ties of due: first made, first run */
    size_t index;     /* position in the array that handle.where names */
};

/* A new Handle. `context` NULL means a copy of the current one. */
fl_handle *fl_handle_new(fl_loop *loop, PyObject *callback, PyObject *const *args,
                         Py_ssize_t nargs, PyObject *context);

/* A new TimerHandle due at `when` (seconds of loop.time()). */
fl_timer *fl_timer_new(fl_loop *loop, double when, PyObject *callback,
                       PyObject *const *args, Py_ssize_t nargs, PyObject *context);

/* What a timer that is due at `when` is sorted by. By the system's clock: nanoseconds,
 * rounded up so that it never runs early. If the loop's time() is not ours (own_time),
 * any float may come: a number that is greater for a greater float, and for NaN the
 * least, as no clock is ever before it. */
int64_t fl_timer_due(bool own_time, double when);

/* Call the callback of the handle that the ready queue gave, in its context; takes
 * over the queue's reference. An exception goes to the loop's exception handler; only
 * KeyboardInterrupt and SystemExit come back, as -1. */
int fl_handle_run_queued(fl_handle *h);

/* From now on it may be found in a reference cycle. */
void fl_handle_track(fl_handle *h);

/* Mark cancelled and drop callback and arguments. */
int fl_handle_cancel(fl_handle *h);

/* From 3.14 on, call_soon_threadsafe() gives a handle whose cancel() and cancelled(),
 * called in another thread while the callback runs, wait for its end. */
#if PY_VERSION_HEX >= 0x030E0000
fl_handle *fl_shared_handle_new(fl_loop *loop, PyObject *callback, PyObject *const *args,
                                Py_ssize_t nargs, PyObject *context);
#else
static inline fl_handle *
fl_shared_handle_new(fl_loop *loop, PyObject *callback, PyObject *const *args,
                     Py_ssize_t nargs, PyObject *context)
{
    return fl_handle_new(loop, callback, args, nargs, context);
}
#endif

void fl_handle_free_lists_clear(fl_state *st);

#endif
