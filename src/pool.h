/* pool.h - the queue of a thread pool, and the loop that its worker threads run.
 *
 * A worker is a threading.Thread whose target ends in fl_pool's `work` method:
 * so it has one thread state for its life, a name, a place in
 * threading.enumerate(), and the interpreter joins it at exit as it joins any
 * other. Everything here is touched with the GIL held, but for what an idle
 * worker waits on: its state, and the lock that it sleeps on.
 */
#ifndef FASTLOOP_POOL_H
#define FASTLOOP_POOL_H

#include "future.h"

typedef struct fl_work fl_work;
typedef struct fl_worker fl_worker;
typedef struct fl_pool fl_pool;

/* A call that waits for a worker; afterwards, the way of its outcome back. */
struct fl_work {
    PyObject_VAR_HEAD
    fl_state *st;
    fl_work *next;      /* owned: the next in the pool's queue */
    PyObject *future;   /* owned: a fastloop.Future (for_loop) or a
                           concurrent.futures.Future; NULL: call nothing */
    PyObject *func;     /* owned; NULL once it has been called */
    PyObject *kwargs;   /* owned dict, or NULL */
    PyObject *result;   /* owned, or NULL: see exception */
    PyObject *exception; /* owned, or NULL; both NULL: cancelled by the pool */
    fl_watch delivery;  /* for_loop: the entry in the loop's ready queue */
    bool for_loop;
    bool begun; /* a worker has taken it */
    bool due;   /* one of loop->answers_due */
    /* args[0] is scratch space for PY_VECTORCALL_ARGUMENTS_OFFSET; the
     * ob_size - 1 others are owned */
    PyObject *args[];
};

/* A worker thread, on its own stack. */
struct fl_worker {
    PyThread_type_lock wake; /* held, and released to end the sleep */
    fl_worker *next_idle;
    atomic_int state;  /* FL_SPINS, FL_SLEEPS or FL_WOKEN: see wakeup.h */
    fl_waker *caller;  /* borrowed: of the loop that woke it and has the GIL, or NULL */
    fl_waker *answered; /* of the loop that is to be told of an answer, or NULL */
};

struct fl_pool {
    PyObject_HEAD
    fl_state *st;
    PyObject *owner;     /* owned: weak reference to the executor, or NULL */
    PyObject *broken;    /* owned: why it takes no more calls, or NULL */
    fl_work *head, *tail; /* calls not begun, oldest first */
    fl_worker *idle;     /* borrowed: sleeping workers, the last to sleep first */
    Py_ssize_t queued;   /* length of head */
    Py_ssize_t n_idle;   /* length of idle */
    Py_ssize_t n_waking; /* woken, and not looked at the queue yet */
    Py_ssize_t n_starting; /* started, and not looked at the queue yet */
    Py_ssize_t n_threads;
    Py_ssize_t max_threads;
    unsigned generation; /* changes in the child of a fork */
    bool closed;         /* no more calls; workers end when the queue is empty */
    bool direct;         /* loops may pass by the executor's submit() */
    bool starting;       /* a thread is being started */
    bool spinning;       /* an idle worker does not sleep yet */
    fl_spin spin;        /* whether that pays */
};

/* The pool of `executor` if calls may be given to it directly: a
 * fastloop.ThreadPoolExecutor whose submit() nobody has overridden. 1 and a new
 * reference, 0 if not, -1 with an exception set. */
int fl_pool_of_executor(fl_state *st, PyObject *executor, fl_pool **pool);

/* Queue func(*args, **kwargs) and see to it that a worker comes. `future` is a
 * pending fastloop.Future when for_loop, else a concurrent.futures.Future. */
int fl_pool_submit(fl_pool *pool, PyObject *executor, PyObject *future, bool for_loop,
                   PyObject *func, PyObject *const *args, Py_ssize_t nargs,
                   PyObject *kwargs);

int fl_pool_init(PyObject *module, fl_state *st);

#endif
