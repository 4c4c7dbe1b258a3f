/* task.h - Task: drives a coroutine; it is itself the ready queue's entry. */
#ifndef FASTLOOP_TASK_H
#define FASTLOOP_TASK_H

#include "future.h"

struct fl_task {
    fl_future fut; /* must be first */
    PyObject *fut_waiter; /* owned: what it awaits, or NULL */
    PyObject *coro;       /* owned; fl_task_set_coro() */
    PyObject *name;       /* owned str, or an int N to become "Task-N"; fl_task_name() */
    PyObject *context;    /* owned contextvars.Context */
    PyObject *step_exc;   /* owned: the scheduled step throws this, or NULL */
    fl_task *prev, *next; /* fl_state.tasks */
    Py_ssize_t num_cancels_requested;
    bool must_cancel;
    bool log_destroy_pending;
    bool linked; /* in fl_state.tasks */
};

/* loop.create_task() without a factory. `name` and `context` may be NULL. */
PyObject *fl_task_new(fl_loop *loop, PyObject *coro, PyObject *name, PyObject *context,
                      int eager_start);

/* Have it stepped soon. In debug mode by a handle. */
int fl_task_push(fl_loop *loop, fl_task *task);

/* The callable that asyncio would have put among a future's callbacks: wakes the
 * task with the future it is called with. New reference. */
PyObject *fl_task_wakeup_callable(fl_task *task);

/* The tasks of st->tasks that are not done, as a new list. */
PyObject *fl_live_tasks(fl_state *st);

/* Run one step from the ready queue; asyncio.current_task() is set by it.
 * -1 only for KeyboardInterrupt and SystemExit. */
int fl_task_run(fl_loop *loop, fl_task *task);

#endif
