/* introspect.h - what tools that read a process's memory see of a task. */
#ifndef FASTLOOP_INTROSPECT_H
#define FASTLOOP_INTROSPECT_H

#include "task.h"

/* Find out where _asyncio.Task keeps the fields that such tools read. Once a
 * module, after its types are made. -1 with an exception set. */
int fl_introspect_init(fl_state *st);

/* The task's name: in the base's field where that is known, else in our own. */
static inline PyObject **
fl_task_name(fl_task *t)
{
    return (PyObject **)((char *)t + t->fut.st->task_name_at);
}

/* The task's coroutine becomes `coro` (NULL: none), for the tools as well. */
static inline void
fl_task_set_coro(fl_task *t, PyObject *coro)
{
    const fl_state *st = t->fut.st;
    Py_XSETREF(t->coro, Py_XNewRef(coro));
    if (st->task_coro_at != 0) {
        /* they take it for a coroutine of the interpreter's own */
        PyObject *shown = coro != NULL && PyCoro_CheckExact(coro) ? Py_NewRef(coro) : NULL;
        Py_XSETREF(*(PyObject **)((char *)t + st->task_coro_at), shown);
        ((char *)t)[st->task_mark_at] = 1;
    }
}

#endif
