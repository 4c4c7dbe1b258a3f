/* task.c - Task: the life of a coroutine, one step at a time.
 *
 * A step is scheduled by pushing the task itself to the ready queue. While it
 * awaits a future of ours it stands, as itself, among that future's callbacks.
 */
#include "task.h"

#include "introspect.h"
#include "report.h"

static inline fl_task *
as_task(PyObject *self)
{
    return (fl_task *)self;
}

/* --- the list of live tasks (3.11 - 3.13) --- */

static void
task_link(fl_task *t)
{
    fl_state *st = t->fut.st;
    t->next = st->tasks;
    t->prev = NULL;
    if (st->tasks != NULL) {
        st->tasks->prev = t;
    }
    st->tasks = t;
    t->linked = true;
}

static void
task_unlink(fl_task *t)
{
    if (!t->linked) {
        return;
    }
    if (t->prev != NULL) {
        t->prev->next = t->next;
    }
    else {
        t->fut.st->tasks = t->next;
    }
    if (t->next != NULL) {
        t->next->prev = t->prev;
    }
    t->linked = false;
}

/* Make asyncio.all_tasks() see it. */
static int
task_register(fl_task *t)
{
    fl_state *st = t->fut.st;
    if (st->register_task == NULL) {
        if (!t->linked) {
            task_link(t);
        }
        return 0;
    }
    PyObject *self = (PyObject *)t;
    PyObject *none = fl_call_cfunction(st->register_task, &self, 1);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

PyObject *
fl_live_tasks(fl_state *st)
{
    PyObject *list = PyList_New(0);
    if (list == NULL) {
        return NULL;
    }
    for (fl_task *t = st->tasks; t != NULL; t = t->next) {
        /* No references: one that is being deallocated; leave it alone. */
        if (t->fut.state == FL_PENDING && Py_REFCNT(t) > 0 &&
            PyList_Append(list, (PyObject *)t) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

/* --- scheduling --- */

static PyObject *task_step_call(PyObject *self, PyObject *ignored);
static PyObject *task_wakeup_call(PyObject *self, PyObject *future);

static PyMethodDef step_def = {"task_step", task_step_call, METH_NOARGS, NULL};
static PyMethodDef wakeup_def = {"task_wakeup", task_wakeup_call, METH_O, NULL};

/* Debug mode: a step is a handle, which knows where it was made and shows in loop._current_handle
 * for call_exception_handler(), as on asyncio. */
static int
push_step_handle(fl_loop *loop, fl_task *task)
{
    PyObject *step = PyCFunction_New(&step_def, (PyObject *)task);
    int rc = step == NULL ? -1 : fl_loop_call_soon(loop, step, NULL, 0, task->context);

    Py_XDECREF(step);
    return rc;
}

int
fl_task_push(fl_loop *loop, fl_task *task)
{
    return loop->debug ? push_step_handle(loop, task) : fl_loop_push_task(loop, task);
}

PyObject *
fl_task_wakeup_callable(fl_task *task)
{
    return PyCFunction_New(&wakeup_def, (PyObject *)task);
}

/* call_soon(step); `exc`, if any, is what the step will throw. */
static int
task_step_soon(fl_task *t, PyObject *exc)
{
    Py_XSETREF(t->step_exc, Py_XNewRef(exc));
    if (t->fut.native != NULL) {
        return fl_task_push(t->fut.native, t);
    }
    if (t->fut.loop == NULL) { /* its __init__ was called once more, and failed */
        PyErr_SetString(PyExc_RuntimeError, "Task object is not initialized.");
        return -1;
    }
    PyObject *step = PyCFunction_New(&step_def, (PyObject *)t);
    if (step == NULL) {
        return -1;
    }
    PyObject *args[3] = {t->fut.loop, step, t->context};
    PyObject *handle = PyObject_VectorcallMethod(t->fut.st->str_call_soon, args, 2,
                                                 t->fut.st->kwnames_context);
    Py_DECREF(step);
    Py_XDECREF(handle);
    return handle == NULL ? -1 : 0;
}

/* The coroutine yielded something it must not: its next step throws a
 * RuntimeError; `format` takes the objects a and b (%R). */
static int
task_throw_soon(fl_task *t, const char *format, PyObject *a, PyObject *b)
{
    /* Made, not raised: what the loop's caller is handling is not its __context__. */
    PyObject *text = PyUnicode_FromFormat(format, a, b);
    PyObject *exc = text == NULL ? NULL : PyObject_CallOneArg(PyExc_RuntimeError, text);
    int rc = exc == NULL ? -1 : task_step_soon(t, exc);
    Py_XDECREF(text);
    Py_XDECREF(exc);
    return rc;
}

/* --- awaiting --- */

static const char OTHER_LOOP[] = "Task %R got Future %R attached to a different loop";
static const char NOT_YIELD_FROM[] = "yield was used instead of yield from in task %R with %R";

/* 3.14+: asyncio.capture_call_graph() follows who awaits whom. */
static int
task_note_awaited(fl_task *t, PyObject *function)
{
    if (function == NULL || t->fut_waiter == NULL) {
        return 0;
    }
    PyObject *args[2] = {t->fut_waiter, (PyObject *)t};
    PyObject *none = PyObject_Vectorcall(function, args, 2, NULL);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

/* It now awaits `future` (whose callback is in place): remember it, and pass on
 * a cancel() that came during the step. */
static int
task_set_waiter(fl_task *t, PyObject *future)
{
    Py_XSETREF(t->fut_waiter, Py_NewRef(future));
    if (task_note_awaited(t, t->fut.st->awaited_by_add) < 0) {
        return -1;
    }
    if (!t->must_cancel) {
        return 0;
    }
    PyObject *message = t->fut.cancel_message == NULL ? Py_None : t->fut.cancel_message;
    PyObject *cancel = PyObject_GetAttr(future, t->fut.st->str_cancel);
    PyObject *kwargs = cancel == NULL ? NULL : Py_BuildValue("{sO}", "msg", message);
    PyObject *result = kwargs == NULL ? NULL : PyObject_Call(cancel, t->fut.st->empty_tuple, kwargs);
    Py_XDECREF(cancel);
    Py_XDECREF(kwargs);
    int truth = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    if (truth > 0) {
        t->must_cancel = false;
    }
    return truth < 0 ? -1 : 0;
}

static int
task_await_native(fl_task *t, fl_future *f)
{
    PyObject *self = (PyObject *)f;
    if (f->loop != t->fut.loop) {
        return task_throw_soon(t, OTHER_LOOP, (PyObject *)t, self);
    }
    if (!f->blocking) {
        return task_throw_soon(t, NOT_YIELD_FROM, (PyObject *)t, self);
    }
    f->blocking = false;
    int rc;
    if (f->native != NULL) {
        rc = fl_future_add_callback(f, (PyObject *)t, NULL);
    }
    else {
        PyObject *wakeup = fl_task_wakeup_callable(t);
        rc = wakeup == NULL ? -1 : fl_future_add_callback(f, wakeup, t->context);
        Py_XDECREF(wakeup);
    }
    return rc < 0 ? -1 : task_set_waiter(t, self);
}

/* futures._get_loop(future); new reference */
static PyObject *
future_loop(fl_state *st, PyObject *future)
{
    PyObject *get_loop = PyObject_GetAttr(future, st->str_get_loop);
    if (get_loop == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return NULL;
        }
        PyErr_Clear();
        return PyObject_GetAttr(future, st->str__loop);
    }
    PyObject *loop = PyObject_CallNoArgs(get_loop);
    Py_DECREF(get_loop);
    return loop;
}

static int
task_await_foreign(fl_task *t, PyObject *future, int blocking)
{
    fl_state *st = t->fut.st;
    PyObject *loop = future_loop(st, future);
    if (loop == NULL) {
        return -1;
    }
    Py_DECREF(loop); /* only its identity matters, and the task's own loop lives */
    if (loop != t->fut.loop) {
        return task_throw_soon(t, OTHER_LOOP, (PyObject *)t, future);
    }
    if (!blocking) {
        return task_throw_soon(t, NOT_YIELD_FROM, (PyObject *)t, future);
    }
    if (PyObject_SetAttr(future, st->str__asyncio_future_blocking, Py_False) < 0) {
        return -1;
    }
    PyObject *wakeup = fl_task_wakeup_callable(t);
    if (wakeup == NULL) {
        return -1;
    }
    PyObject *args[3] = {future, wakeup, t->context};
    PyObject *none = PyObject_VectorcallMethod(st->str_add_done_callback, args, 2,
                                               st->kwnames_context);
    Py_DECREF(wakeup);
    Py_XDECREF(none);
    return none == NULL ? -1 : task_set_waiter(t, future);
}

/* `future._asyncio_future_blocking`: 0 or 1, 2 if it is None or missing (no
 * future at all), -1 on error. */
static int
foreign_blocking(fl_state *st, PyObject *object)
{
    PyObject *value = PyObject_GetAttr(object, st->str__asyncio_future_blocking);
    if (value == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return -1;
        }
        PyErr_Clear();
        return 2;
    }
    int truth = value == Py_None ? 2 : PyObject_IsTrue(value);
    Py_DECREF(value);
    return truth;
}

/* What the coroutine yielded decides when the next step comes. */
static int
task_handle_yield(fl_task *t, PyObject *yielded)
{
    fl_state *st = t->fut.st;

    if (yielded == Py_None) {
        return task_step_soon(t, NULL);
    }
    if (yielded == (PyObject *)t) {
        return task_throw_soon(t, "Task cannot await on itself: %R", yielded, NULL);
    }
    PyTypeObject *type = Py_TYPE(yielded);
    if (type == st->FutureType || type == st->TaskType) {
        return task_await_native(t, (fl_future *)yielded);
    }
    int blocking = foreign_blocking(st, yielded);
    if (blocking < 0) {
        return -1;
    }
    if (blocking != 2) {
        return task_await_foreign(t, yielded, blocking);
    }
    PyObject *is_generator = PyObject_CallOneArg(st->isgenerator, yielded);
    if (is_generator == NULL) {
        return -1;
    }
    int truth = PyObject_IsTrue(is_generator);
    Py_DECREF(is_generator);
    if (truth < 0) {
        return -1;
    }
    if (truth) {
        return task_throw_soon(
            t, "yield was used instead of yield from for generator in task %R with %R",
            (PyObject *)t, yielded);
    }
    return task_throw_soon(t, "Task got bad yield: %R", yielded, NULL);
}

/* --- one step --- */

/* The task could not be made to wait. asyncio tells the exception handler, and the
 * task never runs again; if memory was lacking, its coroutine gets to know. */
static int
task_throw_memory_error(fl_task *t)
{
    if (!PyErr_ExceptionMatches(PyExc_MemoryError)) {
        return -1;
    }
    PyObject *exc = fl_take_raised();
    int rc = task_step_soon(t, exc);
    Py_DECREF(exc);
    return rc;
}

/* The coroutine raised. KeyboardInterrupt and SystemExit are set on the task
 * and raised on: -1. */
static int
task_end_raised(fl_task *t)
{
    fl_future *f = &t->fut;
    if (PyErr_ExceptionMatches(f->st->CancelledError)) {
        Py_XSETREF(f->cancelled_exc, fl_take_raised());
        return fl_future_cancel(f, NULL) < 0 ? -1 : 0;
    }
    PyObject *exc = fl_take_raised();
    int rc = fl_future_set_exception(f, exc);
    if (rc == 0 && (PyErr_GivenExceptionMatches(exc, PyExc_KeyboardInterrupt) ||
                    PyErr_GivenExceptionMatches(exc, PyExc_SystemExit))) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        rc = -1;
    }
    Py_DECREF(exc);
    return rc;
}

static int
task_end_returned(fl_task *t, PyObject *result)
{
    if (t->must_cancel) { /* cancelled during its last step */
        t->must_cancel = false;
        PyObject *message = Py_XNewRef(t->fut.cancel_message);
        int rc = fl_future_cancel(&t->fut, message);
        Py_XDECREF(message);
        return rc < 0 ? -1 : 0;
    }
    return fl_future_set_result(&t->fut, result);
}

/* coro.throw(exc), with the outcome as PyIter_Send tells it. */
static PySendResult
coro_throw(fl_state *st, PyObject *coro, PyObject *exc, PyObject **result)
{
    *result = PyObject_CallMethodOneArg(coro, st->str_throw, exc);
    if (*result != NULL) {
        return PYGEN_NEXT;
    }
    if (PyErr_ExceptionMatches(PyExc_StopIteration)) {
        PyObject *stop = fl_take_raised();
        if (PyErr_GivenExceptionMatches(stop, PyExc_StopIteration)) {
            *result = Py_NewRef(((PyStopIterationObject *)stop)->value);
            Py_DECREF(stop);
            return PYGEN_RETURN;
        }
        PyErr_SetObject((PyObject *)Py_TYPE(stop), stop); /* no memory for a StopIteration */
        Py_DECREF(stop);
    }
    return PYGEN_ERROR;
}

/* What a cancelled step must throw: exc if it is a CancelledError already, else
 * our own. Takes exc over. */
static PyObject *
task_cancel_exc(fl_task *t, PyObject *exc)
{
    t->must_cancel = false;
    if (exc != NULL && PyErr_GivenExceptionMatches(exc, t->fut.st->CancelledError)) {
        return exc;
    }
    Py_XDECREF(exc);
    return fl_future_make_cancelled_error(&t->fut);
}

/* Step the coroutine, throwing exc (taken over) unless NULL. The task's context
 * is entered and the task is current. -1 with KeyboardInterrupt or SystemExit,
 * or what asyncio would raise out of __step(). */
static int
task_step(fl_task *t, PyObject *exc)
{
    fl_state *st = t->fut.st;
    PyObject *result = NULL;
    PySendResult status;
    int rc;

    if (t->fut.state != FL_PENDING) {
        PyErr_Format(st->InvalidStateError, "__step(): already done: %R %R", t,
                     exc == NULL ? Py_None : exc);
        Py_XDECREF(exc);
        return -1;
    }
    if (t->must_cancel && (exc = task_cancel_exc(t, exc)) == NULL) {
        return -1;
    }
    if (t->fut_waiter != NULL) {
        if (task_note_awaited(t, st->awaited_by_discard) < 0) {
            Py_XDECREF(exc);
            return -1;
        }
        Py_CLEAR(t->fut_waiter);
    }
    PyObject *coro = t->coro;
    if (coro == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "uninitialized Task object");
        Py_XDECREF(exc);
        return -1;
    }
    Py_INCREF(coro);
    if (exc == NULL) {
        status = PyIter_Send(coro, Py_None, &result);
    }
    else {
        status = coro_throw(st, coro, exc, &result);
        Py_DECREF(exc);
    }
    Py_DECREF(coro);
    if (status == PYGEN_NEXT) {
        rc = task_handle_yield(t, result);
        if (rc < 0 && t->fut_waiter == NULL) {
            rc = task_throw_memory_error(t);
        }
    }
    else if (status == PYGEN_RETURN) {
        rc = task_end_returned(t, result);
    }
    else {
        rc = task_end_raised(t);
    }
    Py_XDECREF(result);
    return rc;
}

/* The future of ours that it awaited is done: what to throw into the coroutine
 * (new reference), or NULL to send None. */
static PyObject *
waiter_exc(fl_future *f)
{
    if (f->state == FL_FINISHED && f->exception == NULL) {
        f->log_traceback = false;
        return NULL;
    }
    Py_INCREF(f);
    if (f->state == FL_FINISHED) { /* not raised: what is being handled is not its __context__ */
        PyObject *exc = fl_future_failure(f);
        Py_DECREF(f);
        return exc != NULL ? exc : fl_take_raised();
    }
    PyObject *result = fl_future_get_result(f);
    Py_DECREF(f);
    Py_XDECREF(result);
    return fl_take_raised();
}

static inline bool
is_native(const fl_state *st, PyObject *future)
{
    return Py_IS_TYPE(future, st->FutureType) || Py_IS_TYPE(future, st->TaskType);
}

/* What the next step throws (new reference), or NULL. */
static inline PyObject *
take_step_exc(fl_task *t)
{
    PyObject *exc = t->step_exc;

    t->step_exc = NULL;
    /* not native: woken in vain by a future that it awaited before */
    if (exc == NULL && t->fut_waiter != NULL && is_native(t->fut.st, t->fut_waiter)) {
        exc = waiter_exc((fl_future *)t->fut_waiter);
    }
    return exc;
}

int
fl_task_run(fl_loop *loop, fl_task *t)
{
    PyObject *exc = take_step_exc(t);
    PyObject *context = Py_NewRef(t->context);
    int rc = -1;

    if ((loop->current_task == (PyObject *)t ||
         fl_loop_swap_current(loop, (PyObject *)t) == 0) &&
        PyContext_Enter(context) == 0) {
        rc = task_step(t, exc);
        exc = NULL;
        if (PyContext_Exit(context) < 0) {
            rc = -1;
        }
    }
    Py_XDECREF(exc);
    Py_DECREF(context);
    if (rc < 0) {
        rc = fl_report_raised((PyObject *)loop, "Exception in a task's step", "task",
                              (PyObject *)t, (char *)NULL);
    }
    return rc;
}

/* Step from a callback, whose handle has entered the context already. */
static int
task_step_as_callback(fl_task *t, PyObject *exc)
{
    fl_state *st = t->fut.st;
    if (t->fut.native != NULL) {
        fl_loop *loop = t->fut.native;
        PyObject *before = Py_XNewRef(loop->current_task);
        int rc = fl_loop_swap_current(loop, (PyObject *)t);
        if (rc < 0) {
            Py_XDECREF(exc);
        }
        else {
            rc = task_step(t, exc);
            rc = fl_loop_restore_current(loop, before) < 0 ? -1 : rc;
        }
        Py_XDECREF(before);
        return rc;
    }
    PyObject *args[2] = {t->fut.loop, (PyObject *)t};
    PyObject *none = PyObject_Vectorcall(st->enter_task, args, 2, NULL);
    if (none == NULL) {
        Py_XDECREF(exc);
        return -1;
    }
    Py_DECREF(none);
    int rc = task_step(t, exc);
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    none = PyObject_Vectorcall(st->leave_task, args, 2, NULL);
    if (none == NULL) {
        rc = -1;
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(tb);
    }
    else {
        Py_DECREF(none);
        PyErr_Restore(type, value, tb);
    }
    return rc;
}

static PyObject *
task_step_call(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *exc = take_step_exc(as_task(self));
    if (task_step_as_callback(as_task(self), exc) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Done-callback of a future that is not ours. */
static PyObject *
task_wakeup_call(PyObject *self, PyObject *future)
{
    fl_state *st = as_task(self)->fut.st;
    PyObject *exc = NULL;

    if (is_native(st, future)) {
        exc = waiter_exc((fl_future *)future);
    }
    else {
        PyObject *result = PyObject_CallMethod(future, "result", NULL);
        if (result == NULL) {
            exc = fl_take_raised();
        }
        Py_XDECREF(result);
    }
    if (task_step_as_callback(as_task(self), exc) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* --- making --- */

static int
is_coroutine(fl_state *st, PyObject *coro)
{
    if (PyCoro_CheckExact(coro)) {
        return 1;
    }
    PyObject *result = PyObject_CallOneArg(st->iscoroutine, coro);
    int truth = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    return truth;
}

static int
loop_is_running(fl_task *t)
{
    if (t->fut.native != NULL) {
        return t->fut.native->thread_id != 0;
    }
    PyObject *result = PyObject_CallMethodNoArgs(t->fut.loop, t->fut.st->str_is_running);
    int truth = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    return truth;
}

static int
call_with_task(PyObject *function, fl_task *t)
{
    PyObject *none = PyObject_CallOneArg(function, (PyObject *)t);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

/* Current task of a loop that is not ours becomes `now` (NULL: none); *before is what it was
 * (may be NULL). Only for a loop that runs in this thread. */
static int
swap_current(fl_task *t, PyObject *now, PyObject **before)
{
    PyObject *args[2] = {t->fut.loop, now == NULL ? Py_None : now};
    *before = PyObject_Vectorcall(t->fut.st->swap_current_task, args, 2, NULL);
    if (*before == Py_None) {
        Py_CLEAR(*before);
        return 0;
    }
    return *before == NULL ? -1 : 0;
}

/* First step at once, inside the caller's (3.12+, eager_start=True). */
static int
task_start_eagerly(fl_task *t)
{
    fl_state *st = t->fut.st;
    fl_current saved = {NULL, NULL};
    PyObject *before = NULL, *last = NULL;
    PyObject *type, *value, *tb;
    int rc = -1;

    /* The caller may be a task of asyncio's own class, which the loop does not know of. */
    if (t->fut.native != NULL ? fl_loop_enter_nested(t->fut.native, (PyObject *)t, &saved) < 0
                              : swap_current(t, (PyObject *)t, &before) < 0) {
        return -1;
    }
    if (call_with_task(st->register_eager_task, t) == 0) {
        if (PyContext_Enter(t->context) == 0) {
            rc = task_step(t, NULL);
            if (PyContext_Exit(t->context) < 0) {
                rc = -1;
            }
        }
        PyErr_Fetch(&type, &value, &tb);
        if (call_with_task(st->unregister_eager_task, t) < 0) {
            PyErr_Clear(); /* the set held it: it cannot fail but by user patching */
        }
        PyErr_Restore(type, value, tb);
    }
    PyErr_Fetch(&type, &value, &tb);
    if (t->fut.loop == NULL) { /* its __init__ was called once more, and failed */
        fl_current_done(&saved);
    }
    else if (t->fut.native != NULL ? fl_loop_leave_nested(t->fut.native, &saved) < 0
                                   : swap_current(t, before, &last) < 0) {
        PyErr_WriteUnraisable((PyObject *)t);
        rc = -1;
    }
    PyErr_Restore(type, value, tb);
    Py_XDECREF(last);
    Py_XDECREF(before);
    if (rc < 0) {
        return -1;
    }
    if (t->fut.state == FL_PENDING) {
        return task_register(t);
    }
    fl_task_set_coro(t, NULL);
    return 0;
}

static PyObject *
task_name_object(fl_state *st, PyObject *name)
{
    if (name == NULL || name == Py_None) {
        return PyLong_FromUnsignedLongLong(++st->task_counter);
    }
    return PyUnicode_CheckExact(name) ? Py_NewRef(name) : PyObject_Str(name);
}

/* The rest of __init__, after the Future's. */
static int
task_setup(fl_task *t, PyObject *coro, PyObject *name, PyObject *context, int eager)
{
    fl_state *st = t->fut.st;

    t->must_cancel = false;
    t->num_cancels_requested = 0;
    t->log_destroy_pending = false;
    int ok = is_coroutine(st, coro);
    if (ok <= 0) {
        if (ok == 0) {
            PyErr_Format(PyExc_TypeError, "a coroutine was expected, got %R", coro);
        }
        return -1;
    }
    if (context != NULL && context != Py_None && !PyContext_CheckExact(context) &&
        Py_Version >= 0x030f0000) { /* gh-157301; earlier, the first step fails */
        PyErr_Format(PyExc_TypeError, "a contextvars.Context was expected, got %s",
                     Py_TYPE(context)->tp_name);
        return -1;
    }
    PyObject *own_context = context == NULL || context == Py_None ? PyContext_CopyCurrent()
                                                                  : Py_NewRef(context);
    if (own_context == NULL) {
        return -1;
    }
    Py_XSETREF(t->context, own_context);
    PyObject *own_name = task_name_object(st, name);
    if (own_name == NULL) {
        return -1;
    }
    Py_XSETREF(*fl_task_name(t), own_name);
    Py_CLEAR(t->fut_waiter);
    Py_CLEAR(t->step_exc);
    fl_task_set_coro(t, coro);
    t->log_destroy_pending = true;
    if (eager) {
        int running = loop_is_running(t);
        if (running < 0) {
            return -1;
        }
        if (running) {
            return task_start_eagerly(t);
        }
    }
    return task_step_soon(t, NULL) < 0 ? -1 : task_register(t);
}

PyObject *
fl_task_new(fl_loop *loop, PyObject *coro, PyObject *name, PyObject *context, int eager_start)
{
    fl_state *st = loop->st;
    fl_task *t = (fl_task *)st->TaskType->tp_alloc(st->TaskType, 0);
    if (t == NULL) {
        return NULL;
    }
    t->fut.st = st;
    if (!loop->native || loop->debug) {
        if (fl_future_setup(&t->fut, st, (PyObject *)loop) < 0) {
            goto fail;
        }
    }
    else {
        t->fut.loop = Py_NewRef(loop);
        t->fut.native = loop;
    }
    if (task_setup(t, coro, name, context, eager_start) < 0) {
        goto fail;
    }
    return (PyObject *)t;
fail:
    t->log_destroy_pending = false;
    Py_DECREF(t);
    return NULL;
}

static PyObject *
task_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    fl_state *st = fl_state_of_type(type);
    if (st == NULL) {
        return NULL;
    }
    fl_task *t = (fl_task *)type->tp_alloc(type, 0);
    if (t != NULL) {
        t->fut.st = st;
    }
    return (PyObject *)t;
}

static int
task_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"coro", "loop", "name", "context",
#if PY_VERSION_HEX >= 0x030c0000
                            "eager_start",
#endif
                            NULL};
    PyObject *coro, *loop = NULL, *name = NULL, *context = NULL;
    int eager = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs,
#if PY_VERSION_HEX >= 0x030c0000
                                     "O|$OOOp:Task",
#else
                                     "O|$OOO:Task",
#endif
                                     names, &coro, &loop, &name, &context, &eager)) {
        return -1;
    }
    fl_task *t = as_task(self);
    if (fl_future_setup(&t->fut, t->fut.st, loop) < 0) {
        return -1;
    }
    return task_setup(t, coro, name, context, eager);
}

/* --- methods --- */

/* Cancel what the task awaits: 1 if that took it, 0 if not, -1 on error. */
static int
cancel_waiter(fl_task *t, PyObject *message)
{
    fl_state *st = t->fut.st;
    if (t->fut_waiter == NULL) {
        return 0;
    }
    if (Py_IS_TYPE(t->fut_waiter, st->FutureType)) {
        PyObject *waiter = Py_NewRef(t->fut_waiter);
        int rc = fl_future_cancel((fl_future *)waiter, message);
        Py_DECREF(waiter);
        return rc;
    }
    PyObject *waiter = Py_NewRef(t->fut_waiter);
    PyObject *cancel = PyObject_GetAttr(waiter, st->str_cancel);
    PyObject *kwargs = cancel == NULL ? NULL : Py_BuildValue("{sO}", "msg", message);
    PyObject *result = kwargs == NULL ? NULL : PyObject_Call(cancel, st->empty_tuple, kwargs);
    Py_XDECREF(cancel);
    Py_XDECREF(kwargs);
    Py_DECREF(waiter);
    int truth = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    return truth;
}

PyDoc_STRVAR(cancel_doc,
             "cancel($self, /, msg=None)\n--\n\n"
             "Have CancelledError(msg) raised in the coroutine at its next step. False if "
             "it is\ndone already. See asyncio.Task.cancel.");

static PyObject *
task_cancel(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"msg", NULL};
    fl_task *t = as_task(self);
    PyObject *message = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:cancel", names, &message)) {
        return NULL;
    }
    t->fut.log_traceback = false;
    if (t->fut.state != FL_PENDING) {
        Py_RETURN_FALSE;
    }
    t->num_cancels_requested++;
    int taken = cancel_waiter(t, message);
    if (taken < 0) {
        return NULL;
    }
    if (!taken) {
        t->must_cancel = true;
        Py_XSETREF(t->fut.cancel_message, Py_NewRef(message));
    }
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(cancelling_doc, "cancelling($self, /)\n--\n\n"
                             "How many cancel() calls are not undone by uncancel().");

static PyObject *
task_cancelling(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSsize_t(as_task(self)->num_cancels_requested);
}

PyDoc_STRVAR(uncancel_doc, "uncancel($self, /)\n--\n\n"
                           "Take one cancel() back; gives how many remain.");

static PyObject *
task_uncancel(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_task *t = as_task(self);
    if (t->num_cancels_requested > 0) {
        t->num_cancels_requested--;
#if PY_VERSION_HEX >= 0x030d0000
        if (t->num_cancels_requested == 0) {
            t->must_cancel = false;
        }
#endif
    }
    return PyLong_FromSsize_t(t->num_cancels_requested);
}

PyDoc_STRVAR(get_coro_doc, "get_coro($self, /)\n--\n\nThe coroutine it runs.");

static PyObject *
task_get_coro(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *coro = as_task(self)->coro;
    return Py_NewRef(coro == NULL ? Py_None : coro);
}

PyDoc_STRVAR(get_context_doc, "get_context($self, /)\n--\n\n"
                              "The contextvars.Context it runs in.");

static PyObject *
task_get_context(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *context = as_task(self)->context;
    return Py_NewRef(context == NULL ? Py_None : context);
}

PyDoc_STRVAR(get_name_doc, "get_name($self, /)\n--\n\nIts name, a str.");

static PyObject *
task_get_name(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject **name = fl_task_name(as_task(self));
    if (*name == NULL) {
        Py_RETURN_NONE;
    }
    if (PyLong_CheckExact(*name)) {
        PyObject *text = PyUnicode_FromFormat("Task-%S", *name);
        if (text == NULL) {
            return NULL;
        }
        Py_SETREF(*name, text);
    }
    return Py_NewRef(*name);
}

PyDoc_STRVAR(set_name_doc, "set_name($self, value, /)\n--\n\nName it str(value).");

static PyObject *
task_set_name(PyObject *self, PyObject *value)
{
    PyObject *name = PyUnicode_CheckExact(value) ? Py_NewRef(value) : PyObject_Str(value);
    if (name == NULL) {
        return NULL;
    }
    Py_XSETREF(*fl_task_name(as_task(self)), name);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(get_stack_doc, "get_stack($self, /, *, limit=None)\n--\n\n"
                            "The frames of the suspended coroutine; see asyncio.Task.get_stack.");

static PyObject *
task_get_stack(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"limit", NULL};
    PyObject *limit = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$O:get_stack", names, &limit)) {
        return NULL;
    }
    return PyObject_CallFunctionObjArgs(as_task(self)->fut.st->task_get_stack, self, limit,
                                        NULL);
}

PyDoc_STRVAR(print_stack_doc, "print_stack($self, /, *, limit=None, file=None)\n--\n\n"
                              "Print what get_stack() gives, as a traceback.");

static PyObject *
task_print_stack(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"limit", "file", NULL};
    PyObject *limit = Py_None, *file = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OO:print_stack", names, &limit, &file)) {
        return NULL;
    }
    return PyObject_CallFunctionObjArgs(as_task(self)->fut.st->task_print_stack, self, limit,
                                        file, NULL);
}

static PyObject *
task_set_result(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(result))
{
    PyErr_SetString(PyExc_RuntimeError, "Task does not support set_result operation");
    return NULL;
}

static PyObject *
task_set_exception(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(exception))
{
    PyErr_SetString(PyExc_RuntimeError, "Task does not support set_exception operation");
    return NULL;
}

static PyMethodDef task_methods[] = {
    {"cancel", (PyCFunction)(void (*)(void))task_cancel, METH_VARARGS | METH_KEYWORDS,
     cancel_doc},
    {"cancelling", task_cancelling, METH_NOARGS, cancelling_doc},
    {"uncancel", task_uncancel, METH_NOARGS, uncancel_doc},
    {"get_coro", task_get_coro, METH_NOARGS, get_coro_doc},
    {"get_context", task_get_context, METH_NOARGS, get_context_doc},
    {"get_name", task_get_name, METH_NOARGS, get_name_doc},
    {"set_name", task_set_name, METH_O, set_name_doc},
    {"get_stack", (PyCFunction)(void (*)(void))task_get_stack, METH_VARARGS | METH_KEYWORDS,
     get_stack_doc},
    {"print_stack", (PyCFunction)(void (*)(void))task_print_stack,
     METH_VARARGS | METH_KEYWORDS, print_stack_doc},
    {"set_result", task_set_result, METH_O, "Raises RuntimeError: the coroutine decides."},
    {"set_exception", task_set_exception, METH_O,
     "Raises RuntimeError: the coroutine decides."},
    {NULL, NULL, 0, NULL},
};

static PyObject *
get_log_destroy_pending(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(as_task(self)->log_destroy_pending);
}

static int
set_log_destroy_pending(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int truth = fl_attribute_truth(value);
    if (truth < 0) {
        return -1;
    }
    as_task(self)->log_destroy_pending = truth;
    return 0;
}

static PyObject *
get_must_cancel(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(as_task(self)->must_cancel);
}

static PyObject *
get_coro(PyObject *self, void *Py_UNUSED(closure))
{
    return task_get_coro(self, NULL);
}

static PyObject *
get_fut_waiter(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *waiter = as_task(self)->fut_waiter;
    return Py_NewRef(waiter == NULL ? Py_None : waiter);
}

static PyGetSetDef task_getset[] = {
    {"_log_destroy_pending", get_log_destroy_pending, set_log_destroy_pending, NULL, NULL},
    {"_must_cancel", get_must_cancel, NULL, NULL, NULL},
    {"_coro", get_coro, NULL, NULL, NULL},
    {"_fut_waiter", get_fut_waiter, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* --- life --- */

static int
task_traverse(PyObject *self, visitproc visit, void *arg)
{
    fl_task *t = as_task(self);
#if PY_VERSION_HEX < 0x030c0000
    Py_VISIT(Py_TYPE(self)); /* 3.11's base is a static type and leaves this to us */
#endif
    Py_VISIT(t->fut_waiter);
    Py_VISIT(t->coro);
    Py_VISIT(t->name);
    Py_VISIT(t->context);
    Py_VISIT(t->step_exc);
    int rc = fl_future_traverse(&t->fut, visit, arg);
    return rc != 0 ? rc : t->fut.st->BaseTask->tp_traverse(self, visit, arg);
}

static void
task_clear_own(fl_task *t)
{
    Py_CLEAR(t->fut_waiter);
    Py_CLEAR(t->coro);
    Py_CLEAR(t->name);
    Py_CLEAR(t->context);
    Py_CLEAR(t->step_exc);
    fl_future_clear(&t->fut);
}

static int
task_clear(PyObject *self)
{
    task_clear_own(as_task(self));
    return as_task(self)->fut.st->BaseTask->tp_clear(self);
}

static void
task_finalize(PyObject *self)
{
    fl_task *t = as_task(self);
    task_unlink(t); /* as from asyncio's WeakSet: who keeps the report's task has it for himself */
    if (t->fut.loop != NULL && t->fut.state == FL_PENDING && t->log_destroy_pending) {
        t->log_destroy_pending = false;
        fl_report_from_finalizer(self, t->fut.loop, "Task was destroyed but it is pending!",
                                 NULL, t->fut.source_traceback, "task");
    }
    fl_future_finalize(&t->fut);
}

static void
task_end(PyObject *self)
{
    task_clear_own(as_task(self));
    fl_dealloc_base(self, as_task(self)->fut.st->BaseTask);
}

static void
task_dealloc(PyObject *self)
{
    fl_task *t = as_task(self);
    bool report = t->fut.log_traceback ||
                  (t->fut.state == FL_PENDING && t->log_destroy_pending);
    if (report && PyObject_CallFinalizerFromDealloc(self) < 0) {
        return; /* resurrected */
    }
    PyObject_GC_UnTrack(self);
    task_unlink(t);
    fl_dealloc_bounded(t->fut.st, self, task_dealloc, task_end);
}

static PyObject *
task_repr(PyObject *self)
{
    return PyObject_CallOneArg(as_task(self)->fut.st->task_repr, self);
}

static PyType_Slot task_slots[] = {
    {Py_tp_doc, "Task(coro, *, loop=None, name=None, context=None, eager_start=False)\n--\n\n"
                "Runs a coroutine; see asyncio.Task."},
    {Py_tp_new, task_new},
    {Py_tp_init, task_init},
    {Py_tp_dealloc, task_dealloc},
    {Py_tp_traverse, task_traverse},
    {Py_tp_clear, task_clear},
    {Py_tp_finalize, task_finalize},
    {Py_tp_repr, task_repr},
    {Py_tp_methods, task_methods},
    {Py_tp_getset, task_getset},
    {Py_tp_iter, fl_future_iter},
    {Py_am_await, fl_future_iter},
    {0, NULL},
};

static PyType_Spec task_spec = {
    .name = "fastloop.Task",
    .basicsize = sizeof(fl_task),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = task_slots,
};

/* Task's base is _asyncio.Task, so what it shares with our Future is not
 * inherited: give it descriptors of the same functions. */
static int
add_future_descriptors(fl_state *st)
{
    PyTypeObject *type = st->TaskType;
    int rc = 0;
    for (PyMethodDef *m = fl_future_methods; rc == 0 && m->ml_name != NULL; m++) {
        int own = PyDict_GetItemString(type->tp_dict, m->ml_name) != NULL;
        PyObject *descriptor = own ? NULL : PyDescr_NewMethod(type, m);
        if (!own) {
            rc = descriptor == NULL
                     ? -1
                     : PyObject_SetAttrString((PyObject *)type, m->ml_name, descriptor);
        }
        Py_XDECREF(descriptor);
    }
    for (PyGetSetDef *g = fl_future_getset; rc == 0 && g->name != NULL; g++) {
        PyObject *descriptor = PyDescr_NewGetSet(type, g);
        rc = descriptor == NULL ? -1
                                : PyObject_SetAttrString((PyObject *)type, g->name, descriptor);
        Py_XDECREF(descriptor);
    }
    return rc;
}

int
fl_task_init(PyObject *module, fl_state *st)
{
    st->TaskType = fl_add_type(module, &task_spec, st->BaseTask, FL_FUTURE_BASE_SIZE);
    return st->TaskType == NULL || add_future_descriptors(st) < 0 ? -1 : fl_introspect_init(st);
}
