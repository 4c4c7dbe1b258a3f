/* loop.h - the Loop object and what other files may ask of it. */
#ifndef FASTLOOP_LOOP_H
#define FASTLOOP_LOOP_H

#include "attributes.h"
#include "poll.h"
#include "ready.h"
#include "timers.h"
#include "wakeup.h"
#include "watch.h"

typedef struct fl_flush fl_flush;

/* Embedded in a transport that gathers writes: a link in the list of those to
 * be flushed at the end of the turn. */
struct fl_flush {
    fl_flush *next;
    PyObject *owner; /* borrowed; the list owns a reference while queued */
    bool queued;
    int (*flush)(fl_flush *f); /* as fl_watch.on_event: handles its own errors */
};

struct fl_loop {
    PyObject_HEAD
    fl_state *st;
    fl_ready ready;
    fl_timers timers;
    fl_poller poller;
    fl_fd_table fds;

    fl_waker waker;         /* ends a blocking poll */
    fl_spin spin;           /* whether to look for an answer before blocking */
    bool spun;              /* in vain: the next poll blocks */
    fl_spin caller_spin;    /* whether a thread that calls should look for its answer */
    bool caller_due;        /* one got its answer so: it may call again */
    Py_ssize_t answers_due; /* calls that worker threads have to answer */

    /* end-of-turn flush */
    fl_flush *flush_head, *flush_tail;
    int64_t flush_since; /* when the first of them began to wait, in nanoseconds */
    unsigned writers;    /* stream transports that were written to in this turn */
    unsigned slow_turns; /* in which several were, slowly, less the quick: 0 to FL_SLOW_TURNS */
    bool gathers;        /* what they write waits for the end of the turn */

    bool open;          /* the poller and the queues exist */
    bool closed;
    bool stopping;
    bool debug;
    bool native;        /* call_soon & co. are ours, not a Python subclass's */
    bool own_time;      /* time() is not ours: a subclass's, or set on the loop */
    bool io_done;       /* bytes were sent since the last poll: poll next turn */
    bool turning;       /* fl_loop_run() is at work */
    bool first_turn;    /* of this run: it polls, as every turn of asyncio's does */
    unsigned long thread_id; /* of run_forever, 0 when not running */
    int64_t now_ns;     /* clock at the beginning of this turn */
    int64_t polled_ns;  /* clock at the last poll */
    uint64_t polled_turn; /* number of the turn that polled last */
    int64_t share_gil_until_ns; /* poll every turn, without the GIL */
    long times_slept;           /* of the thread, when may_lack_gil() looked last */

    PyObject *task_factory;   /* owned, or NULL */
    PyObject *current_task;   /* owned: what asyncio.current_task() gives, or NULL */
    PyObject *current_handle; /* owned, debug mode: the handle that runs, or NULL */
    PyObject *slow_callback_duration; /* owned: a number of seconds */
    PyObject *empty_context;  /* owned, or NULL: see context.h */
    bool in_empty_context;    /* it is entered now */

    /* Receive buffer shared by the loop's transports (only used between a
     * recv and the making of its bytes object); allocated on first use. */
    char *recv_buffer;

    PyObject *attributes[FL_ATTRIBUTE_COUNT]; /* owned, or NULL: not set */

    /* for loop.stats() */
    uint64_t turns, polls, steps, bytes_in, bytes_out;
    int64_t slowest_turn_ns, slowest_callback_ns;
    PyObject *slowest_callback; /* owned str, or NULL */
    int64_t timing_ns;          /* time that went by for which no entry was timed yet */
};

enum { FL_RECV_BUFFER_SIZE = 256 * 1024 };

/* True for a Loop (or subclass) of this module. */
static inline bool
fl_is_loop(fl_state *st, PyObject *object)
{
    return PyObject_TypeCheck(object, st->LoopType);
}

int64_t fl_clock_ns(void);

/* What time() says, which may be a program's (a test's clock). Runs Python code if
 * loop->own_time. */
int fl_loop_time(fl_loop *loop, double *seconds);

/* End a blocking poll. Any thread, GIL held; cheap when the loop is awake. */
static inline void
fl_loop_wake(fl_loop *loop)
{
    fl_waker_wake(&loop->waker);
}

/* RuntimeError('Event loop is closed') and -1 if it is. */
int fl_loop_check_closed(fl_loop *loop);

/* Append a task step / a handle; take a new reference. Callable from any
 * thread that holds the GIL; a foreign thread calls fl_loop_wake after it. */
int fl_loop_push_task(fl_loop *loop, fl_task *task);
int fl_loop_push_handle(fl_loop *loop, fl_handle *handle);

/* Give up an entry that the ready queue gave. A watcher keeps its events for when it
 * is queued again. */
void fl_loop_drop_entry(uintptr_t entry);

/* call_soon from C: `callback(*args)`; context NULL copies the current one. */
int fl_loop_call_soon(fl_loop *loop, PyObject *callback, PyObject *const *args,
                      Py_ssize_t nargs, PyObject *context);

/* Have f->flush called at the end of this turn. */
void fl_loop_flush_later(fl_loop *loop, fl_flush *f);

/* The shared receive buffer, FL_RECV_BUFFER_SIZE bytes, or NULL with MemoryError. */
char *fl_loop_recv_buffer(fl_loop *loop);

/* asyncio.current_task() of this loop becomes `task` (NULL: none). */
int fl_loop_swap_current(fl_loop *loop, PyObject *task);

/* What asyncio.current_task() was, whoever set it, and what the loop itself had set: references. */
typedef struct {
    PyObject *task, *own;
} fl_current;

/* `task` begins within another one's step, which may be of asyncio's own class, and ends. */
int fl_loop_enter_nested(fl_loop *loop, PyObject *task, fl_current *saved);
int fl_loop_leave_nested(fl_loop *loop, fl_current *saved);
void fl_current_done(fl_current *saved);

/* The same, while an exception may be set, which is kept. */
int fl_loop_restore_current(fl_loop *loop, PyObject *task);

#endif
