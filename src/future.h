/* future.h - Future: a result to come, and the callbacks that wait for it. */
#ifndef FASTLOOP_FUTURE_H
#define FASTLOOP_FUTURE_H

#include "loop.h"

enum { FL_PENDING = 0, FL_CANCELLED = 1, FL_FINISHED = 2 };

struct fl_future {
    union {
        PyObject ob_base;
        char base[FL_FUTURE_BASE_SIZE];
    };
    fl_state *st;        /* borrowed from the type's module */
    PyObject *loop;      /* owned; NULL: __init__ has not run */
    fl_loop *native;     /* borrowed: loop, when it is ours and not overridden */
    /* The first callback. With context0 NULL it is a Task of ours that awaits
     * this future and is pushed to the ready queue as it is. */
    PyObject *callback0; /* owned, or NULL */
    PyObject *context0;  /* owned, or NULL */
    PyObject *callbacks; /* owned list of (callback, context) tuples and Tasks, or NULL */
    PyObject *result;    /* owned, or NULL */
    PyObject *exception; /* owned, or NULL */
    PyObject *exception_tb;     /* owned: its traceback when it was set, or NULL */
    PyObject *source_traceback; /* owned, debug mode, or NULL */
    PyObject *cancel_message;   /* owned, or NULL */
    PyObject *cancelled_exc;    /* owned: raised once by result(), or NULL */
    uint8_t state;
    bool log_traceback;
    bool blocking; /* _asyncio_future_blocking */
};

/* isinstance(object, Future or Task of ours) */
static inline bool
fl_is_future(fl_state *st, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return type == st->TaskType || type == st->FutureType ||
           PyType_IsSubtype(type, st->TaskType) || PyType_IsSubtype(type, st->FutureType);
}

/* A new pending Future of a fastloop loop. */
PyObject *fl_future_new(fl_loop *loop);

/* Make a Future that gave None pending again, as good as new: true, if nobody but the
 * caller has it. */
bool fl_future_renew(fl_future *f);

/* What C code that holds a Future calls to finish it. They do what the methods
 * do: InvalidStateError (-1) if it is done already. */
int fl_future_set_result(fl_future *f, PyObject *result);
int fl_future_set_exception(fl_future *f, PyObject *exception);
/* Cancel: 1, or 0 if it was done, or -1 on error. Not for tasks. */
int fl_future_cancel(fl_future *f, PyObject *message);

/* The exception of a future that failed: new reference; NULL with an exception. */
PyObject *fl_future_failure(fl_future *f);

/* Shared with task.c, which has a Future at its head. */
int fl_future_setup(fl_future *f, fl_state *st, PyObject *loop);
int fl_future_schedule_callbacks(fl_future *f);
int fl_future_add_callback(fl_future *f, PyObject *callback, PyObject *context);
PyObject *fl_future_get_result(fl_future *f);
PyObject *fl_future_make_cancelled_error(fl_future *f);
int fl_future_traverse(fl_future *f, visitproc visit, void *arg);
void fl_future_clear(fl_future *f);
void fl_future_finalize(fl_future *f);
PyObject *fl_future_iter(PyObject *self);
void fl_future_free_lists_clear(fl_state *st);
extern PyMethodDef fl_future_methods[];
extern PyGetSetDef fl_future_getset[];

#endif
