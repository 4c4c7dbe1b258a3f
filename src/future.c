/* future.c - Future, and the iterator by which it is awaited. */
#include "future.h"

#include <string.h>

#include "report.h"
#include "task.h"

enum { FL_FREE_ITERS_MAX = 128 };

static inline fl_future *
as_future(PyObject *self)
{
    return (fl_future *)self;
}

static int
future_check_alive(const fl_future *f)
{
    if (f->loop == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Future object is not initialized.");
        return -1;
    }
    return 0;
}

/* --- callbacks --- */

/* loop.call_soon(callback, self, context=context) */
static int
future_call_soon(fl_future *f, PyObject *callback, PyObject *context)
{
    PyObject *self = (PyObject *)f;
    if (f->native != NULL) {
        return fl_loop_call_soon(f->native, callback, &self, 1, context);
    }
    PyObject *args[4] = {f->loop, callback, self, context};
    PyObject *handle = PyObject_VectorcallMethod(f->st->str_call_soon, args, 3,
                                                 f->st->kwnames_context);
    Py_XDECREF(handle);
    return handle == NULL ? -1 : 0;
}

/* A callback is a Task of ours (context NULL) or any callable with its context. */
static int
future_schedule(fl_future *f, PyObject *callback, PyObject *context)
{
    if (context == NULL) {
        return fl_task_push(f->native, (fl_task *)callback);
    }
    return future_call_soon(f, callback, context);
}

int
fl_future_schedule_callbacks(fl_future *f)
{
    PyObject *callback = f->callback0, *context = f->context0, *list = f->callbacks;
    int rc = 0;

    if (callback == NULL && list == NULL) {
        return 0;
    }
    f->callback0 = f->context0 = f->callbacks = NULL;
    if (callback != NULL) {
        rc = future_schedule(f, callback, context);
        Py_DECREF(callback);
        Py_XDECREF(context);
    }
    for (Py_ssize_t i = 0; rc == 0 && list != NULL && i < PyList_GET_SIZE(list); i++) {
        PyObject *item = PyList_GET_ITEM(list, i);
        if (PyTuple_CheckExact(item)) {
            rc = future_schedule(f, PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1));
        }
        else {
            rc = future_schedule(f, item, NULL);
        }
    }
    Py_XDECREF(list);
    return rc;
}

int
fl_future_add_callback(fl_future *f, PyObject *callback, PyObject *context)
{
    if (f->state != FL_PENDING) {
        return future_schedule(f, callback, context);
    }
    if (f->callback0 == NULL && f->callbacks == NULL) {
        f->callback0 = Py_NewRef(callback);
        f->context0 = Py_XNewRef(context);
        return 0;
    }
    if (f->callbacks == NULL && (f->callbacks = PyList_New(0)) == NULL) {
        return -1;
    }
    if (context == NULL) {
        return PyList_Append(f->callbacks, callback);
    }
    PyObject *pair = PyTuple_Pack(2, callback, context);
    if (pair == NULL) {
        return -1;
    }
    int rc = PyList_Append(f->callbacks, pair);
    Py_DECREF(pair);
    return rc;
}

PyDoc_STRVAR(add_done_callback_doc,
             "add_done_callback($self, fn, /, *, context=None)\n--\n\n"
             "Call fn(self) by the loop's call_soon() when the future is done; soon, if it is.");

static PyObject *
future_add_done_callback(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                         PyObject *kwnames)
{
    fl_future *f = as_future(self);
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    PyObject *context = NULL;

    if (future_check_alive(f) < 0) {
        return NULL;
    }
    if (nargs != 1 || nkw > 1) {
        PyErr_Format(PyExc_TypeError,
                     "add_done_callback() takes exactly 1 positional argument (%zd given)",
                     nargs);
        return NULL;
    }
    if (nkw == 1) {
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "context") != 0) {
            PyErr_Format(PyExc_TypeError,
                         "add_done_callback() got an unexpected keyword argument '%U'",
                         PyTuple_GET_ITEM(kwnames, 0));
            return NULL;
        }
        context = args[1];
    }
    if (context == NULL || context == Py_None) {
        context = PyContext_CopyCurrent();
        if (context == NULL) {
            return NULL;
        }
    }
    else {
        Py_INCREF(context);
    }
    int rc = fl_future_add_callback(f, args[0], context);
    Py_DECREF(context);
    if (rc < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Whether a list entry is the callable `fn`; comparing can run any code. */
static int
entry_is(PyObject *entry, PyObject *fn)
{
    if (!PyTuple_CheckExact(entry)) {
        return entry == fn;
    }
    return PyObject_RichCompareBool(PyTuple_GET_ITEM(entry, 0), fn, Py_EQ);
}

PyDoc_STRVAR(remove_done_callback_doc,
             "remove_done_callback($self, fn, /)\n--\n\n"
             "Remove every callback equal to fn; returns how many there were.");

static PyObject *
future_remove_done_callback(PyObject *self, PyObject *fn)
{
    fl_future *f = as_future(self);
    Py_ssize_t removed = 0;

    if (future_check_alive(f) < 0) {
        return NULL;
    }
    if (f->callback0 != NULL && f->context0 != NULL) {
        PyObject *callback = Py_NewRef(f->callback0);
        int same = PyObject_RichCompareBool(callback, fn, Py_EQ);
        if (same > 0 && f->callback0 == callback) {
            Py_CLEAR(f->callback0);
            Py_CLEAR(f->context0);
            removed++;
        }
        Py_DECREF(callback);
        if (same < 0) {
            return NULL;
        }
    }
    PyObject *kept = f->callbacks == NULL ? NULL : PyList_New(0);
    if (f->callbacks != NULL && kept == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; f->callbacks != NULL && i < PyList_GET_SIZE(f->callbacks); i++) {
        PyObject *entry = Py_NewRef(PyList_GET_ITEM(f->callbacks, i));
        int same = entry_is(entry, fn);
        if (same == 0) {
            same = PyList_Append(kept, entry);
        }
        else if (same > 0) {
            removed++;
        }
        Py_DECREF(entry);
        if (same < 0) {
            Py_DECREF(kept);
            return NULL;
        }
    }
    if (f->callbacks == NULL) { /* none, or the comparison finished the future */
        Py_XDECREF(kept);
    }
    else if (PyList_GET_SIZE(kept) == 0) {
        Py_DECREF(kept);
        Py_CLEAR(f->callbacks);
    }
    else {
        Py_SETREF(f->callbacks, kept);
    }
    return PyLong_FromSsize_t(removed);
}

/* --- result --- */

static int
future_check_pending(const fl_future *f)
{
    if (future_check_alive(f) < 0) {
        return -1;
    }
    if (f->state != FL_PENDING) {
        PyErr_SetString(f->st->InvalidStateError, "invalid state");
        return -1;
    }
    return 0;
}

int
fl_future_set_result(fl_future *f, PyObject *result)
{
    if (future_check_pending(f) < 0) {
        return -1;
    }
    f->result = Py_NewRef(result);
    f->state = FL_FINISHED;
    return fl_future_schedule_callbacks(f);
}

/* An exception instance for what set_exception() was given; new reference. */
static PyObject *
future_exception_instance(PyObject *exception)
{
    PyObject *value = PyExceptionClass_Check(exception) ? PyObject_CallNoArgs(exception)
                                                        : Py_NewRef(exception);
    if (value == NULL) {
        return NULL;
    }
    if (!PyExceptionInstance_Check(value)) {
        Py_DECREF(value);
        PyErr_SetString(PyExc_TypeError, "invalid exception object");
        return NULL;
    }
    const char *text = "StopIteration interacts badly with generators and cannot be "
                       "raised into a Future";
    if (Py_Version < 0x030c0600) { /* asyncio changed in a bugfix release: gh-112182 */
        if (!Py_IS_TYPE(value, (PyTypeObject *)PyExc_StopIteration)) {
            return value;
        }
        Py_DECREF(value);
        PyErr_SetString(PyExc_TypeError, text);
        return NULL;
    }
    if (!PyErr_GivenExceptionMatches(value, PyExc_StopIteration)) {
        return value;
    }
    PyObject *wrapped = PyObject_CallFunction(PyExc_RuntimeError, "s", text);
    if (wrapped != NULL) {
        PyException_SetCause(wrapped, Py_NewRef(value));
        PyException_SetContext(wrapped, Py_NewRef(value));
    }
    Py_DECREF(value);
    return wrapped;
}

int
fl_future_set_exception(fl_future *f, PyObject *exception)
{
    if (future_check_pending(f) < 0) {
        return -1;
    }
    PyObject *value = future_exception_instance(exception);
    if (value == NULL) {
        return -1;
    }
    if (future_check_pending(f) < 0) { /* its constructor can have finished us */
        Py_DECREF(value);
        return -1;
    }
    f->exception = value;
    f->exception_tb = PyException_GetTraceback(value);
    f->state = FL_FINISHED;
    if (fl_future_schedule_callbacks(f) < 0) {
        return -1;
    }
    f->log_traceback = true;
    return 0;
}

PyObject *
fl_future_make_cancelled_error(fl_future *f)
{
    if (f->cancelled_exc != NULL) {
        PyObject *exc = f->cancelled_exc;
        f->cancelled_exc = NULL;
        return exc;
    }
    if (f->cancel_message == NULL || f->cancel_message == Py_None) {
        return PyObject_CallNoArgs(f->st->CancelledError);
    }
    return PyObject_CallOneArg(f->st->CancelledError, f->cancel_message);
}

static void
future_raise_cancelled(fl_future *f)
{
    PyObject *exc = fl_future_make_cancelled_error(f);
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
}

int
fl_future_cancel(fl_future *f, PyObject *message)
{
    f->log_traceback = false;
    if (f->state != FL_PENDING) {
        return 0;
    }
    f->state = FL_CANCELLED;
    Py_XSETREF(f->cancel_message, Py_XNewRef(message));
    return fl_future_schedule_callbacks(f) < 0 ? -1 : 1;
}

/* Cancelled: raise, -1. Pending: InvalidStateError(text), -1. Done: 0. */
static int
future_check_done(fl_future *f, const char *pending_text)
{
    if (f->state == FL_FINISHED) {
        return 0;
    }
    if (f->state == FL_CANCELLED) {
        future_raise_cancelled(f);
    }
    else {
        PyErr_SetString(f->st->InvalidStateError, pending_text);
    }
    return -1;
}

PyObject *
fl_future_failure(fl_future *f)
{
    PyObject *exc = Py_NewRef(f->exception);
    /* The first retrieval begins with the traceback it was set with, later ones with none:
     * or it would grow with every await. */
    PyObject *tb = f->exception_tb != NULL ? f->exception_tb : Py_None;

    f->log_traceback = false;
    if (PyException_SetTraceback(exc, tb) < 0) {
        Py_DECREF(exc);
        return NULL;
    }
    Py_CLEAR(f->exception_tb);
    return exc;
}

PyObject *
fl_future_get_result(fl_future *f)
{
    if (future_check_done(f, "Result is not set.") < 0) {
        return NULL;
    }
    f->log_traceback = false;
    if (f->exception == NULL) {
        return Py_NewRef(f->result);
    }
    PyObject *exc = fl_future_failure(f);
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
    return NULL;
}

PyDoc_STRVAR(result_doc, "result($self, /)\n--\n\n"
                         "The result. Raises the exception that was set, CancelledError if "
                         "cancelled,\nInvalidStateError if not done.");

static PyObject *
future_result(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_future *f = as_future(self);
    if (f->loop == NULL) {
        PyErr_SetString(f->st->InvalidStateError, "Future object is not initialized.");
        return NULL;
    }
    return fl_future_get_result(f);
}

PyDoc_STRVAR(exception_doc, "exception($self, /)\n--\n\n"
                            "The exception that was set, or None. Raises as result().");

static PyObject *
future_exception(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_future *f = as_future(self);
    if (f->loop == NULL) {
        PyErr_SetString(f->st->InvalidStateError, "Future object is not initialized.");
        return NULL;
    }
    if (future_check_done(f, "Exception is not set.") < 0) {
        return NULL;
    }
    f->log_traceback = false;
    return Py_NewRef(f->exception == NULL ? Py_None : f->exception);
}

PyDoc_STRVAR(set_result_doc, "set_result($self, result, /)\n--\n\n"
                             "Mark done with a result. Raises InvalidStateError if done.");

static PyObject *
future_set_result(PyObject *self, PyObject *result)
{
    if (fl_future_set_result(as_future(self), result) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_exception_doc, "set_exception($self, exception, /)\n--\n\n"
                                "Mark done with an exception, an instance or a class. Raises "
                                "InvalidStateError if\ndone.");

static PyObject *
future_set_exception(PyObject *self, PyObject *exception)
{
    if (fl_future_set_exception(as_future(self), exception) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(cancel_doc, "cancel($self, /, msg=None)\n--\n\n"
                         "Cancel, and schedule callbacks. False if it was done already.");

static PyObject *
future_cancel(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"msg", NULL};
    PyObject *message = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:cancel", names, &message) ||
        future_check_alive(as_future(self)) < 0) {
        return NULL;
    }
    int rc = fl_future_cancel(as_future(self), message);
    return rc < 0 ? NULL : PyBool_FromLong(rc);
}

PyDoc_STRVAR(cancelled_doc, "cancelled($self, /)\n--\n\nTrue if it was cancelled.");

static PyObject *
future_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(as_future(self)->state == FL_CANCELLED);
}

PyDoc_STRVAR(done_doc, "done($self, /)\n--\n\nTrue with a result, an exception, or cancelled.");

static PyObject *
future_done(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_future *f = as_future(self);
    return PyBool_FromLong(f->loop != NULL && f->state != FL_PENDING);
}

PyDoc_STRVAR(get_loop_doc, "get_loop($self, /)\n--\n\nThe event loop it belongs to.");

static PyObject *
future_get_loop(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (future_check_alive(as_future(self)) < 0) {
        return NULL;
    }
    return Py_NewRef(as_future(self)->loop);
}

PyDoc_STRVAR(make_cancelled_error_doc, "_make_cancelled_error($self, /)\n--\n\n"
                                       "The CancelledError to raise for this future.");

static PyObject *
future_make_cancelled_error(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return fl_future_make_cancelled_error(as_future(self));
}

PyMethodDef fl_future_methods[] = {
    {"add_done_callback", (PyCFunction)(void (*)(void))future_add_done_callback,
     METH_FASTCALL | METH_KEYWORDS, add_done_callback_doc},
    {"remove_done_callback", future_remove_done_callback, METH_O, remove_done_callback_doc},
    {"result", future_result, METH_NOARGS, result_doc},
    {"exception", future_exception, METH_NOARGS, exception_doc},
    {"set_result", future_set_result, METH_O, set_result_doc},
    {"set_exception", future_set_exception, METH_O, set_exception_doc},
    {"cancel", (PyCFunction)(void (*)(void))future_cancel, METH_VARARGS | METH_KEYWORDS,
     cancel_doc},
    {"cancelled", future_cancelled, METH_NOARGS, cancelled_doc},
    {"done", future_done, METH_NOARGS, done_doc},
    {"get_loop", future_get_loop, METH_NOARGS, get_loop_doc},
    {"_make_cancelled_error", future_make_cancelled_error, METH_NOARGS,
     make_cancelled_error_doc},
    {NULL, NULL, 0, NULL},
};

/* --- attributes that asyncio's Python code, debuggers and frameworks read --- */

static PyObject *
get_state(PyObject *self, void *Py_UNUSED(closure))
{
    static const char *const names[] = {"PENDING", "CANCELLED", "FINISHED"};
    return PyUnicode_InternFromString(names[as_future(self)->state]);
}

static PyObject *
get_blocking(PyObject *self, void *Py_UNUSED(closure))
{
    fl_future *f = as_future(self);
    return PyBool_FromLong(f->loop != NULL && f->blocking);
}

static int
set_blocking(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (future_check_alive(as_future(self)) < 0) {
        return -1;
    }
    int truth = fl_attribute_truth(value);
    if (truth < 0) {
        return -1;
    }
    as_future(self)->blocking = truth;
    return 0;
}

static PyObject *
get_loop_attr(PyObject *self, void *Py_UNUSED(closure))
{
    return fl_none_or(as_future(self)->loop);
}

/* (callback, context); for a Task that awaits us, what asyncio would show. */
static PyObject *
callback_pair(PyObject *callback, PyObject *context)
{
    bool is_task = context == NULL;
    PyObject *pair = NULL;
    /* references of its own: making objects can collect garbage, which can run any code */
    Py_INCREF(callback);
    context = Py_NewRef(is_task ? ((fl_task *)callback)->context : context);
    if (is_task) {
        Py_SETREF(callback, fl_task_wakeup_callable((fl_task *)callback));
    }
    if (callback != NULL) {
        pair = PyTuple_Pack(2, callback, context);
    }
    Py_XDECREF(callback);
    Py_DECREF(context);
    return pair;
}

static int
append_pair(PyObject *list, PyObject *pair)
{
    if (pair == NULL) {
        return -1;
    }
    int rc = PyList_Append(list, pair);
    Py_DECREF(pair);
    return rc;
}

static PyObject *
get_callbacks(PyObject *self, void *Py_UNUSED(closure))
{
    fl_future *f = as_future(self);
    if (f->callback0 == NULL && f->callbacks == NULL) {
        Py_RETURN_NONE;
    }
    PyObject *list = PyList_New(0);
    if (list == NULL) {
        return NULL;
    }
    if (f->callback0 != NULL && append_pair(list, callback_pair(f->callback0, f->context0)) < 0) {
        goto fail;
    }
    for (Py_ssize_t i = 0; f->callbacks != NULL && i < PyList_GET_SIZE(f->callbacks); i++) {
        PyObject *entry = PyList_GET_ITEM(f->callbacks, i);
        PyObject *pair = PyTuple_CheckExact(entry) ? Py_NewRef(entry) : callback_pair(entry, NULL);
        if (append_pair(list, pair) < 0) {
            goto fail;
        }
    }
    return list;
fail:
    Py_DECREF(list);
    return NULL;
}

static PyObject *
get_result_attr(PyObject *self, void *Py_UNUSED(closure))
{
    return fl_none_or(as_future(self)->result);
}

static PyObject *
get_exception_attr(PyObject *self, void *Py_UNUSED(closure))
{
    return fl_none_or(as_future(self)->exception);
}

static PyObject *
get_log_traceback(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(as_future(self)->log_traceback);
}

static int
set_log_traceback(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int truth = fl_attribute_truth(value);
    if (truth < 0) {
        return -1;
    }
    if (truth) {
        PyErr_SetString(PyExc_ValueError, "_log_traceback can only be set to False");
        return -1;
    }
    as_future(self)->log_traceback = false;
    return 0;
}

static PyObject *
get_source_traceback(PyObject *self, void *Py_UNUSED(closure))
{
    return fl_none_or(as_future(self)->source_traceback);
}

static PyObject *
get_cancel_message(PyObject *self, void *Py_UNUSED(closure))
{
    return fl_none_or(as_future(self)->cancel_message);
}

static int
set_cancel_message(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete attribute");
        return -1;
    }
    Py_XSETREF(as_future(self)->cancel_message, Py_NewRef(value));
    return 0;
}

PyGetSetDef fl_future_getset[] = {
    {"_state", get_state, NULL, NULL, NULL},
    {"_asyncio_future_blocking", get_blocking, set_blocking, NULL, NULL},
    {"_loop", get_loop_attr, NULL, NULL, NULL},
    {"_callbacks", get_callbacks, NULL, NULL, NULL},
    {"_result", get_result_attr, NULL, NULL, NULL},
    {"_exception", get_exception_attr, NULL, NULL, NULL},
    {"_log_traceback", get_log_traceback, set_log_traceback, NULL, NULL},
    {"_source_traceback", get_source_traceback, NULL, NULL, NULL},
    {"_cancel_message", get_cancel_message, set_cancel_message, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* --- life --- */

/* loop.get_debug(), without the call for a loop of ours */
static int
loop_is_debug(fl_state *st, PyObject *loop)
{
    if (fl_is_loop(st, loop)) {
        return ((fl_loop *)loop)->debug;
    }
    PyObject *debug = PyObject_CallMethodNoArgs(loop, st->str_get_debug);
    if (debug == NULL) {
        return -1;
    }
    int truth = PyObject_IsTrue(debug);
    Py_DECREF(debug);
    return truth;
}

int
fl_future_setup(fl_future *f, fl_state *st, PyObject *loop)
{
    if (f->loop != NULL && Py_Version >= 0x030f0000) { /* earlier, asyncio begins again */
        PyErr_Format(PyExc_RuntimeError, "%s object is already initialized",
                     Py_TYPE(f)->tp_name);
        return -1;
    }
    fl_future_clear(f);
    f->st = st;
    f->state = FL_PENDING;
    f->log_traceback = f->blocking = false;
    if (loop == NULL || loop == Py_None) {
        f->loop = PyObject_CallNoArgs(st->get_event_loop);
        if (f->loop == NULL) {
            return -1;
        }
    }
    else {
        f->loop = Py_NewRef(loop);
    }
    f->native = NULL;
    if (fl_is_loop(st, f->loop) && ((fl_loop *)f->loop)->native) {
        f->native = (fl_loop *)f->loop;
    }
    int debug = loop_is_debug(st, f->loop);
    if (debug < 0) {
        return -1;
    }
    if (debug && !fl_is_finalizing()) {
        f->source_traceback = PyObject_CallNoArgs(st->extract_stack);
        if (f->source_traceback == NULL) {
            return -1;
        }
    }
    return 0;
}

PyObject *
fl_future_new(fl_loop *loop)
{
    fl_state *st = loop->st;
    fl_future *f = (fl_future *)st->FutureType->tp_alloc(st->FutureType, 0);
    if (f == NULL) {
        return NULL;
    }
    f->st = st;
    if (!loop->native || loop->debug) {
        if (fl_future_setup(f, st, (PyObject *)loop) < 0) {
            Py_CLEAR(f);
        }
        return (PyObject *)f;
    }
    f->loop = Py_NewRef(loop);
    f->native = loop;
    return (PyObject *)f;
}

bool
fl_future_renew(fl_future *f)
{
    if (Py_REFCNT(f) != 1 || f->state != FL_FINISHED || f->result != Py_None ||
        f->native == NULL || f->native->debug) {
        return false;
    }
    f->state = FL_PENDING;
    f->blocking = false;
    Py_CLEAR(f->result);
    Py_CLEAR(f->source_traceback); /* of a loop that was in debug mode */
    return true;
}

static PyObject *
future_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    fl_state *st = fl_state_of_type(type);
    if (st == NULL) {
        return NULL;
    }
    fl_future *f = (fl_future *)type->tp_alloc(type, 0);
    if (f != NULL) {
        f->st = st;
    }
    return (PyObject *)f;
}

static int
future_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop", NULL};
    PyObject *loop = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$O:Future", names, &loop)) {
        return -1;
    }
    return fl_future_setup(as_future(self), as_future(self)->st, loop);
}

int
fl_future_traverse(fl_future *f, visitproc visit, void *arg)
{
    Py_VISIT(f->loop);
    Py_VISIT(f->callback0);
    Py_VISIT(f->context0);
    Py_VISIT(f->callbacks);
    Py_VISIT(f->result);
    Py_VISIT(f->exception);
    Py_VISIT(f->exception_tb);
    Py_VISIT(f->source_traceback);
    Py_VISIT(f->cancel_message);
    Py_VISIT(f->cancelled_exc);
    return 0;
}

void
fl_future_clear(fl_future *f)
{
    f->native = NULL;
    Py_CLEAR(f->loop);
    Py_CLEAR(f->callback0);
    Py_CLEAR(f->context0);
    Py_CLEAR(f->callbacks);
    Py_CLEAR(f->result);
    Py_CLEAR(f->exception);
    Py_CLEAR(f->exception_tb);
    Py_CLEAR(f->source_traceback);
    Py_CLEAR(f->cancel_message);
    Py_CLEAR(f->cancelled_exc);
}

void
fl_future_finalize(fl_future *f)
{
    if (!f->log_traceback || f->loop == NULL) {
        return;
    }
    f->log_traceback = false;
    const char *name = strrchr(Py_TYPE(f)->tp_name, '.');
    char message[160];
    PyOS_snprintf(message, sizeof(message), "%.100s exception was never retrieved",
                  name == NULL ? Py_TYPE(f)->tp_name : name + 1);
    fl_report_from_finalizer((PyObject *)f, f->loop, message, f->exception,
                             f->source_traceback, "future");
}

static int
future_traverse(PyObject *self, visitproc visit, void *arg)
{
    fl_future *f = as_future(self);
#if PY_VERSION_HEX < 0x030c0000
    Py_VISIT(Py_TYPE(self)); /* 3.11's base is a static type and leaves this to us */
#endif
    int rc = fl_future_traverse(f, visit, arg);
    return rc != 0 ? rc : f->st->BaseFuture->tp_traverse(self, visit, arg);
}

static int
future_clear(PyObject *self)
{
    fl_future_clear(as_future(self));
    return as_future(self)->st->BaseFuture->tp_clear(self);
}

static void
future_finalize(PyObject *self)
{
    fl_future_finalize(as_future(self));
}

static void
future_end(PyObject *self)
{
    fl_future_clear(as_future(self));
    fl_dealloc_base(self, as_future(self)->st->BaseFuture);
}

static void
future_dealloc(PyObject *self)
{
    fl_future *f = as_future(self);
    if (f->log_traceback && PyObject_CallFinalizerFromDealloc(self) < 0) {
        return; /* resurrected */
    }
    PyObject_GC_UnTrack(self);
    fl_dealloc_bounded(f->st, self, future_dealloc, future_end);
}

static PyObject *
future_repr(PyObject *self)
{
    return PyObject_CallOneArg(as_future(self)->st->future_repr, self);
}

static PyType_Slot future_slots[] = {
    {Py_tp_doc, "Future(*, loop=None)\n--\n\nA result to come; see asyncio.Future."},
    {Py_tp_new, future_new},
    {Py_tp_init, future_init},
    {Py_tp_dealloc, future_dealloc},
    {Py_tp_traverse, future_traverse},
    {Py_tp_clear, future_clear},
    {Py_tp_finalize, future_finalize},
    {Py_tp_repr, future_repr},
    {Py_tp_methods, fl_future_methods},
    {Py_tp_getset, fl_future_getset},
    {Py_tp_iter, fl_future_iter},
    {Py_am_await, fl_future_iter},
    {0, NULL},
};

static PyType_Spec future_spec = {
    .name = "fastloop.Future",
    .basicsize = sizeof(fl_future),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = future_slots,
};

/* --- the iterator --- */

typedef struct {
    PyObject_HEAD
    fl_state *st;      /* borrowed from the type's module */
    fl_future *future; /* owned; NULL once it has ended */
} fl_future_iterator;

PyObject *
fl_future_iter(PyObject *self)
{
    fl_future *f = as_future(self);
    fl_state *st = f->st;
    fl_future_iterator *it = (fl_future_iterator *)st->free_future_iters;

    if (future_check_alive(f) < 0) {
        return NULL;
    }
    if (it != NULL) {
        st->free_future_iters = (PyObject *)it->future;
        st->n_free_future_iters--;
        PyObject_Init((PyObject *)it, st->FutureIterType);
    }
    else {
        it = PyObject_GC_New(fl_future_iterator, st->FutureIterType);
        if (it == NULL) {
            return NULL;
        }
        it->st = st;
    }
    it->future = (fl_future *)Py_NewRef(self);
    PyObject_GC_Track(it);
    return (PyObject *)it;
}

static PySendResult
iter_am_send(PyObject *self, PyObject *Py_UNUSED(value), PyObject **result)
{
    fl_future_iterator *it = (fl_future_iterator *)self;
    fl_future *f = it->future;

    if (f == NULL) {
        *result = Py_NewRef(Py_None);
        return PYGEN_RETURN;
    }
    if (f->state == FL_PENDING) {
        if (!f->blocking) {
            f->blocking = true;
            *result = Py_NewRef(f);
            return PYGEN_NEXT;
        }
        PyErr_SetString(PyExc_RuntimeError, "await wasn't used with future");
        *result = NULL;
        return PYGEN_ERROR;
    }
    it->future = NULL;
    *result = fl_future_get_result(f);
    Py_DECREF(f);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

/* What am_send gave, as tp_iternext says it: NULL with StopIteration(value). */
static PyObject *
iter_next_value(PySendResult status, PyObject *value)
{
    if (status != PYGEN_RETURN) {
        return value;
    }
    if (value != Py_None) {
        if (PyTuple_Check(value) || PyExceptionInstance_Check(value)) {
            /* PyErr_SetObject would take these for the constructor's arguments */
            PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
            if (stop != NULL) {
                PyErr_SetObject(PyExc_StopIteration, stop);
                Py_DECREF(stop);
            }
        }
        else {
            PyErr_SetObject(PyExc_StopIteration, value);
        }
    }
    Py_DECREF(value);
    return NULL;
}

static PyObject *
iter_iternext(PyObject *self)
{
    PyObject *value;
    PySendResult status = iter_am_send(self, Py_None, &value);
    return iter_next_value(status, value);
}

static PyObject *
iter_send(PyObject *self, PyObject *Py_UNUSED(arg))
{
    PyObject *value = iter_iternext(self);
    if (value == NULL && !PyErr_Occurred()) {
        PyErr_SetNone(PyExc_StopIteration);
    }
    return value;
}

static PyObject *
iter_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fl_future_iterator *it = (fl_future_iterator *)self;
    if (nargs < 1 || nargs > 3) {
        PyErr_Format(PyExc_TypeError, "throw expected 1 to 3 arguments, got %zd", nargs);
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030c0000
    if (nargs > 1 &&
        PyErr_WarnEx(PyExc_DeprecationWarning,
                     "the (type, exc, tb) signature of throw() is deprecated, "
                     "use the single-arg signature instead.",
                     1) < 0) {
        return NULL;
    }
#endif
    PyObject *type = args[0];
    PyObject *value = nargs > 1 ? args[1] : NULL;
    PyObject *tb = nargs > 2 ? args[2] : NULL;

    if (tb == Py_None) {
        tb = NULL;
    }
    else if (tb != NULL && !PyTraceBack_Check(tb)) {
        PyErr_SetString(PyExc_TypeError, "throw() third argument must be a traceback");
        return NULL;
    }
    Py_INCREF(type);
    Py_XINCREF(value);
    Py_XINCREF(tb);
    if (PyExceptionClass_Check(type)) {
        PyErr_NormalizeException(&type, &value, &tb);
        if (tb != NULL) {
            PyException_SetTraceback(value, tb);
        }
    }
    else if (PyExceptionInstance_Check(type)) {
        if (value != NULL) {
            PyErr_SetString(PyExc_TypeError, "instance exception may not have a separate value");
            goto fail;
        }
        value = type;
        type = Py_NewRef(Py_TYPE(value));
        if (tb == NULL) {
            tb = PyException_GetTraceback(value);
        }
    }
    else {
        PyErr_SetString(PyExc_TypeError, "exceptions must be classes deriving BaseException or "
                                         "instances of such a class");
        goto fail;
    }
    Py_CLEAR(it->future);
    PyErr_Restore(type, value, tb);
    return NULL;
fail:
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
    return NULL;
}

static PyObject *
iter_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    Py_CLEAR(((fl_future_iterator *)self)->future);
    Py_RETURN_NONE;
}

static int
iter_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((fl_future_iterator *)self)->future);
    return 0;
}

static int
iter_clear(PyObject *self)
{
    Py_CLEAR(((fl_future_iterator *)self)->future);
    return 0;
}

static void
iter_dealloc(PyObject *self)
{
    fl_future_iterator *it = (fl_future_iterator *)self;
    fl_state *st = it->st;
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    Py_CLEAR(it->future);
    if (st->n_free_future_iters < FL_FREE_ITERS_MAX) {
        it->future = (fl_future *)st->free_future_iters;
        st->free_future_iters = self;
        st->n_free_future_iters++;
    }
    else {
        PyObject_GC_Del(self);
    }
    Py_DECREF(type);
}

static PyMethodDef iter_methods[] = {
    {"send", iter_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))iter_throw, METH_FASTCALL, NULL},
    {"close", iter_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot iter_slots[] = {
    {Py_tp_dealloc, iter_dealloc},
    {Py_tp_traverse, iter_traverse},
    {Py_tp_clear, iter_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, iter_iternext},
    {Py_am_send, iter_am_send},
    {Py_tp_methods, iter_methods},
    {0, NULL},
};

static PyType_Spec iter_spec = {
    .name = "fastloop._core.FutureIter",
    .basicsize = sizeof(fl_future_iterator),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = iter_slots,
};

void
fl_future_free_lists_clear(fl_state *st)
{
    while (st->free_future_iters != NULL) {
        PyObject *it = st->free_future_iters;
        st->free_future_iters = (PyObject *)((fl_future_iterator *)it)->future;
        PyObject_GC_Del(it);
    }
    st->n_free_future_iters = 0;
}

int
fl_future_init(PyObject *module, fl_state *st)
{
    st->FutureType = fl_add_type(module, &future_spec, st->BaseFuture, FL_FUTURE_BASE_SIZE);
    st->FutureIterType = fl_add_type(module, &iter_spec, NULL, 0);
    return st->FutureType == NULL || st->FutureIterType == NULL ? -1 : 0;
}
