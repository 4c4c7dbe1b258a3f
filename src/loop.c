/* loop.c - the Loop type: call_soon and its kin, futures and tasks, its life.
 * What happens in one turn is in turn.c. */
#include "loop.h"

#include <errno.h>
#include <structmember.h>
#include <string.h>
#include <time.h>

#include "arguments.h"
#include "executor.h"
#include "sockops.h"
#include "stats.h"
#include "task.h"
#include "threadsafe.h"
#include "turn.h"

static inline fl_loop *
as_loop(PyObject *self)
{
    return (fl_loop *)self;
}

/* Any real number, as asyncio takes it: what float arithmetic accepts. */
static int
to_seconds(PyObject *number, double *seconds)
{
    if (PyFloat_CheckExact(number)) {
        *seconds = PyFloat_AS_DOUBLE(number);
        return 0;
    }
    *seconds = PyFloat_AsDouble(number);
    return *seconds == -1.0 && PyErr_Occurred() ? -1 : 0;
}

int64_t
fl_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* --- for the other files --- */

int
fl_loop_time(fl_loop *loop, double *seconds)
{
    if (!loop->own_time) {
        *seconds = (double)fl_clock_ns() / 1e9; /* as time.monotonic(), to the last bit */
        return 0;
    }
    PyObject *now = PyObject_CallMethodNoArgs((PyObject *)loop, loop->st->str_time);
    int rc = now == NULL ? -1 : to_seconds(now, seconds);
    Py_XDECREF(now);
    return rc;
}

int
fl_loop_check_closed(fl_loop *loop)
{
    if (loop->closed || !loop->open) {
        PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
        return -1;
    }
    return 0;
}

/* asyncio's debug mode refuses call_soon() & co. from a foreign thread. */
static int
check_thread(fl_loop *loop)
{
    if (loop->thread_id == 0 || loop->thread_id == PyThread_get_thread_ident()) {
        return 0;
    }
    PyErr_SetString(PyExc_RuntimeError,
                    "Non-thread-safe operation invoked on an event loop other than the "
                    "current one");
    return -1;
}

static int
check_callable_now(fl_loop *loop)
{
    if (fl_loop_check_closed(loop) < 0) {
        return -1;
    }
    return loop->debug ? check_thread(loop) : 0;
}

int
fl_loop_push_task(fl_loop *loop, fl_task *task)
{
    if (check_callable_now(loop) < 0 ||
        fl_ready_push(&loop->ready, task, FL_READY_TASK) < 0) {
        return -1;
    }
    Py_INCREF(task);
    return 0;
}

int
fl_loop_push_handle(fl_loop *loop, fl_handle *handle)
{
    if (fl_ready_push(&loop->ready, handle, FL_READY_HANDLE) < 0) {
        return -1;
    }
    Py_INCREF(handle);
    return 0;
}

int
fl_loop_call_soon(fl_loop *loop, PyObject *callback, PyObject *const *args, Py_ssize_t nargs,
                  PyObject *context)
{
    if (check_callable_now(loop) < 0) {
        return -1;
    }
    fl_handle *h = fl_handle_new(loop, callback, args, nargs, context);
    if (h == NULL) {
        return -1;
    }
    if (fl_ready_push(&loop->ready, h, FL_READY_HANDLE) < 0) {
        Py_DECREF(h);
        return -1;
    }
    return 0;
}

void
fl_loop_flush_later(fl_loop *loop, fl_flush *f)
{
    if (f->queued) {
        return;
    }
    f->queued = true;
    f->next = NULL;
    Py_INCREF(f->owner);
    if (loop->flush_tail == NULL) {
        loop->flush_head = f;
        loop->flush_since = fl_clock_ns();
    }
    else {
        loop->flush_tail->next = f;
    }
    loop->flush_tail = f;
}

char *
fl_loop_recv_buffer(fl_loop *loop)
{
    if (loop->recv_buffer == NULL) {
        loop->recv_buffer = PyMem_Malloc(FL_RECV_BUFFER_SIZE);
        if (loop->recv_buffer == NULL) {
            PyErr_NoMemory();
        }
    }
    return loop->recv_buffer;
}

int
fl_loop_swap_current(fl_loop *loop, PyObject *task)
{
    fl_state *st = loop->st;
    int rc;

    if (loop->current_task == task) {
        return 0;
    }
#if PY_VERSION_HEX >= 0x030e0000
    PyObject *args[2] = {(PyObject *)loop, task == NULL ? Py_None : task};
    PyObject *before = fl_call_cfunction(st->swap_current_task, args, 2);
    rc = before == NULL ? -1 : 0;
    Py_XDECREF(before);
#else
    if (task != NULL) {
        rc = PyDict_SetItem(st->current_tasks, (PyObject *)loop, task);
    }
    else {
        rc = PyDict_DelItem(st->current_tasks, (PyObject *)loop);
        if (rc < 0 && PyErr_ExceptionMatches(PyExc_KeyError)) {
            PyErr_Clear(); /* user code has left the task itself */
            rc = 0;
        }
    }
#endif
    if (rc == 0) {
        PyObject *old = loop->current_task;
        loop->current_task = Py_XNewRef(task);
        Py_XDECREF(old);
    }
    return rc;
}

int
fl_loop_enter_nested(fl_loop *loop, PyObject *task, fl_current *saved)
{
    fl_state *st = loop->st;
#if PY_VERSION_HEX >= 0x030e0000
    PyObject *args[2] = {(PyObject *)loop, task};
    PyObject *before = fl_call_cfunction(st->swap_current_task, args, 2);
    if (before == NULL) {
        return -1;
    }
    if (before == Py_None) {
        Py_CLEAR(before);
    }
#else
    PyObject *before = Py_XNewRef(PyDict_GetItemWithError(st->current_tasks, (PyObject *)loop));
    if ((before == NULL && PyErr_Occurred()) ||
        PyDict_SetItem(st->current_tasks, (PyObject *)loop, task) < 0) {
        Py_XDECREF(before);
        return -1;
    }
#endif
    saved->task = before;
    saved->own = loop->current_task; /* the reference moves */
    loop->current_task = Py_NewRef(task);
    return 0;
}

void
fl_current_done(fl_current *saved)
{
    Py_CLEAR(saved->task);
    Py_CLEAR(saved->own);
}

int
fl_loop_leave_nested(fl_loop *loop, fl_current *saved)
{
    PyObject *task = saved->task, *last = loop->current_task;
    int rc;

#if PY_VERSION_HEX >= 0x030e0000
    PyObject *args[2] = {(PyObject *)loop, task == NULL ? Py_None : task};
    PyObject *before = fl_call_cfunction(loop->st->swap_current_task, args, 2);
    rc = before == NULL ? -1 : 0;
    Py_XDECREF(before);
#else
    if (task != NULL) {
        rc = PyDict_SetItem(loop->st->current_tasks, (PyObject *)loop, task);
    }
    else {
        rc = PyDict_DelItem(loop->st->current_tasks, (PyObject *)loop);
        if (rc < 0 && PyErr_ExceptionMatches(PyExc_KeyError)) {
            PyErr_Clear(); /* user code has left the task itself */
            rc = 0;
        }
    }
#endif
    loop->current_task = saved->own;
    saved->own = NULL;
    Py_XDECREF(last);
    fl_current_done(saved);
    return rc;
}

int
fl_loop_restore_current(fl_loop *loop, PyObject *task)
{
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    int rc = fl_loop_swap_current(loop, task);
    if (type != NULL) {
        if (rc < 0) {
            PyErr_Clear();
        }
        PyErr_Restore(type, value, tb);
    }
    return rc;
}

/* --- call_soon and its kin --- */

static const char *const takes_callback[] = {"callback", NULL};
static const char *const takes_delay[] = {"delay", "callback"};
static const char *const takes_when[] = {"when", "callback"};

/* Debug mode: asyncio's own _check_callback(callback, method). */
static int
check_callback(fl_loop *loop, PyObject *callback, const char *method)
{
    PyObject *none = PyObject_CallMethod((PyObject *)loop, "_check_callback", "Os", callback,
                                         method);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

typedef fl_handle *(*handle_maker)(fl_loop *, PyObject *, PyObject *const *, Py_ssize_t,
                                   PyObject *);

static PyObject *
call_soon(fl_loop *loop, const char *name, PyObject *const *args, Py_ssize_t nargs,
          PyObject *kwnames, handle_maker make)
{
    fl_call_args c = {args, nargs, NULL, {NULL, NULL}};
    if (fl_parse_call(name, &c, takes_callback, kwnames) < 0) {
        return NULL;
    }
    if (loop->debug && check_callback(loop, c.args[0], name) < 0) {
        return NULL;
    }
    fl_handle *h = make(loop, c.args[0], c.args + 1, c.nargs - 1, c.context);
    if (h != NULL && fl_loop_push_handle(loop, h) < 0) {
        Py_CLEAR(h);
    }
    return (PyObject *)h;
}

PyDoc_STRVAR(call_soon_doc,
             "call_soon($self, callback, *args, context=None)\n--\n\n"
             "Call callback(*args) in the next turn. Returns a Handle. RuntimeError if closed.");

static PyObject *
loop_call_soon(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (check_callable_now(as_loop(self)) < 0) {
        return NULL;
    }
    return call_soon(as_loop(self), "call_soon", args, nargs, kwnames, fl_handle_new);
}

PyDoc_STRVAR(call_soon_threadsafe_doc,
             "call_soon_threadsafe($self, callback, *args, context=None)\n--\n\n"
             "call_soon() from any thread or signal handler.");

static PyObject *
loop_call_soon_threadsafe(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *kwnames)
{
    if (fl_loop_check_closed(as_loop(self)) < 0) {
        return NULL;
    }
    PyObject *h = call_soon(as_loop(self), "call_soon_threadsafe", args, nargs, kwnames,
                            fl_shared_handle_new);
    if (h != NULL) {
        fl_loop_wake_for(as_loop(self), args[0]);
    }
    return h;
}

static PyObject *
schedule_timer(fl_loop *loop, const char *name, double when, const fl_call_args *c)
{
    if (check_callable_now(loop) < 0 ||
        (loop->debug && check_callback(loop, c->args[1], name) < 0)) {
        return NULL;
    }
    fl_timer *t = fl_timer_new(loop, when, c->args[1], c->args + 2, c->nargs - 2, c->context);
    if (t != NULL && (fl_loop_check_closed(loop) < 0 || fl_timers_add(&loop->timers, t) < 0)) {
        Py_CLEAR(t);
    }
    return (PyObject *)t;
}

PyDoc_STRVAR(call_later_doc,
             "call_later($self, delay, callback, *args, context=None)\n--\n\n"
             "Call callback(*args) after delay seconds. Returns a TimerHandle.");

/* time() + delay by Python's rules, as asyncio adds them: not every number goes with a float. */
static PyObject *
call_later_unusual(fl_loop *loop, double now, fl_call_args *c)
{
    PyObject *time = PyFloat_FromDouble(now);
    PyObject *when = time == NULL ? NULL : PyNumber_Add(time, c->args[0]);
    double seconds = 0;
    int rc = when == NULL ? -1 : to_seconds(when, &seconds);

    Py_XDECREF(time);
    Py_XDECREF(when);
    return rc < 0 ? NULL : schedule_timer(loop, "call_later", seconds, c);
}

static PyObject *
loop_call_later(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    fl_call_args c = {args, nargs, NULL, {NULL, NULL}};
    double delay;
    if (fl_parse_call("call_later", &c, takes_delay, kwnames) < 0) {
        return NULL;
    }
    if (c.args[0] == Py_None) {
        PyErr_SetString(PyExc_TypeError, "delay must not be None");
        return NULL;
    }
    double now;
    if (fl_loop_time(as_loop(self), &now) < 0) {
        return NULL;
    }
    if (!PyFloat_Check(c.args[0]) && !PyLong_Check(c.args[0])) {
        return call_later_unusual(as_loop(self), now, &c);
    }
    if (to_seconds(c.args[0], &delay) < 0) {
        return NULL;
    }
    return schedule_timer(as_loop(self), "call_later", now + delay, &c);
}

PyDoc_STRVAR(call_at_doc,
             "call_at($self, when, callback, *args, context=None)\n--\n\n"
             "Call callback(*args) at loop.time() == when (seconds). Returns a TimerHandle.");

static PyObject *
loop_call_at(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    fl_call_args c = {args, nargs, NULL, {NULL, NULL}};
    double when;
    if (fl_parse_call("call_at", &c, takes_when, kwnames) < 0) {
        return NULL;
    }
    if (c.args[0] == Py_None) {
        PyErr_SetString(PyExc_TypeError, "when cannot be None");
        return NULL;
    }
    if (to_seconds(c.args[0], &when) < 0) {
        return NULL;
    }
    PyObject *timer = schedule_timer(as_loop(self), "call_at", when, &c);
    if (timer != NULL) {
        ((fl_timer *)timer)->handle.when_is_int = PyLong_CheckExact(c.args[0]);
    }
    return timer;
}

PyDoc_STRVAR(time_doc, "time($self, /)\n--\n\nThe loop's clock, time.monotonic(), in seconds.");

static PyObject *
loop_time(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    return PyFloat_FromDouble((double)fl_clock_ns() / 1e9);
}

/* --- futures and tasks --- */

PyDoc_STRVAR(create_future_doc, "create_future($self, /)\n--\n\nA new fastloop.Future.");

static PyObject *
loop_create_future(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return fl_future_new(as_loop(self));
}

/* asyncio's create_task(), which knows how this version calls a task factory. */
static PyObject *
create_task_by_factory(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                       PyObject *kwnames)
{
    PyObject *stack[16] = {self};
    Py_ssize_t total = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    if (total > 15) {
        PyErr_SetString(PyExc_TypeError, "create_task() got too many arguments");
        return NULL;
    }
    memcpy(stack + 1, args, (size_t)total * sizeof(*args));
    return PyObject_Vectorcall(as_loop(self)->st->base_create_task, stack, (size_t)nargs + 1,
                               kwnames);
}

/* In debug mode a task's traceback ends in the caller of create_task(); made from
 * C it does so already. */
#if PY_VERSION_HEX >= 0x030d0000
#define CREATE_TASK_SIGNATURE "create_task($self, coro, *, name=None, context=None, eager_start=None)"
#else
#define CREATE_TASK_SIGNATURE "create_task($self, coro, *, name=None, context=None)"
#endif
PyDoc_STRVAR(create_task_doc,
             CREATE_TASK_SIGNATURE "\n--\n\n"
             "A fastloop.Task that runs coro, or what the task factory makes of it.");

static PyObject *
loop_create_task(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    fl_loop *loop = as_loop(self);
    PyObject *coro = nargs > 0 ? args[0] : NULL, *name = NULL, *context = NULL;
    int eager = 0;
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);

    if (loop->task_factory != NULL && loop->task_factory != Py_None) {
        return create_task_by_factory(self, args, nargs, kwnames);
    }
    for (Py_ssize_t i = 0; i < nkw; i++) {
        PyObject *key = PyTuple_GET_ITEM(kwnames, i);
        PyObject *value = args[nargs + i];
        if (coro == NULL && PyUnicode_CompareWithASCIIString(key, "coro") == 0) {
            coro = value;
        }
        else if (PyUnicode_CompareWithASCIIString(key, "name") == 0) {
            name = value;
        }
        else if (PyUnicode_CompareWithASCIIString(key, "context") == 0) {
            context = value;
        }
#if PY_VERSION_HEX >= 0x030d0000
        else if (PyUnicode_CompareWithASCIIString(key, "eager_start") == 0) {
            if ((eager = PyObject_IsTrue(value)) < 0) {
                return NULL;
            }
        }
#endif
        else {
            PyErr_Format(PyExc_TypeError,
                         "create_task() got an unexpected keyword argument '%U'", key);
            return NULL;
        }
    }
    if (coro == NULL || nargs > 1) {
        PyErr_Format(PyExc_TypeError,
                     "create_task() takes 1 positional argument but %zd were given", nargs);
        return NULL;
    }
    if (fl_loop_check_closed(loop) < 0) {
        return NULL;
    }
    return fl_task_new(loop, coro, name, context, eager);
}

/* --- state --- */

PyDoc_STRVAR(stop_doc, "stop($self, /)\n--\n\nHave run_forever() return after this turn.");

static PyObject *
loop_stop(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    as_loop(self)->stopping = true;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(is_running_doc, "is_running($self, /)\n--\n\nTrue inside run_forever().");

static PyObject *
loop_is_running(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(as_loop(self)->thread_id != 0);
}

PyDoc_STRVAR(is_closed_doc, "is_closed($self, /)\n--\n\nTrue after close().");

static PyObject *
loop_is_closed(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(as_loop(self)->closed);
}

PyDoc_STRVAR(get_debug_doc, "get_debug($self, /)\n--\n\nTrue in debug mode.");

static PyObject *
loop_get_debug(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(as_loop(self)->debug);
}

PyDoc_STRVAR(run_doc, "_run($self, /)\n--\n\nTurn until stop(); the inside of run_forever().");

static PyObject *
loop_run(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (fl_loop_check_closed(as_loop(self)) < 0 || fl_loop_run(as_loop(self)) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(run_once_doc, "_run_once($self, /)\n--\n\nOne turn.");

static PyObject *
loop_run_once(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (fl_loop_check_closed(as_loop(self)) < 0) {
        return NULL;
    }
    PyObject *before = Py_XNewRef(as_loop(self)->current_task); /* a task that calls this */
    as_loop(self)->first_turn = true;
    int rc = fl_loop_turn(as_loop(self));
    if (fl_loop_restore_current(as_loop(self), before) < 0) {
        rc = -1;
    }
    Py_XDECREF(before);
    if (rc < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(write_to_self_doc, "_write_to_self($self, /)\n--\n\nEnd a blocking poll.");

static PyObject *
loop_write_to_self(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_loop_wake(as_loop(self));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(add_callback_doc, "_add_callback($self, handle, /)\n--\n\n"
                               "Append a handle, ours or asyncio's, to the ready queue.");

static PyObject *
loop_add_callback(PyObject *self, PyObject *handle)
{
    fl_loop *loop = as_loop(self);
    fl_state *st = loop->st;
    int rc;

    if (fl_loop_check_closed(loop) < 0) {
        return NULL;
    }
    if (Py_IS_TYPE(handle, st->HandleType) || Py_IS_TYPE(handle, st->TimerHandleType) ||
        Py_IS_TYPE(handle, st->SharedHandleType)) {
        rc = fl_loop_push_handle(loop, (fl_handle *)handle);
    }
    else { /* asyncio's own code makes asyncio.Handle: for signals */
        PyObject *run = PyObject_GetAttrString(handle, "_run");
        rc = run == NULL ? -1 : fl_loop_call_soon(loop, run, NULL, 0, NULL);
        Py_XDECREF(run);
    }
    if (rc < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* --- attributes that asyncio's Python code sets and reads --- */

static PyObject *
get_closed(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(as_loop(self)->closed);
}

static PyObject *
get_stopping(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(as_loop(self)->stopping);
}

static PyObject *
get_debug(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(as_loop(self)->debug);
}

/* A bool field that Python code may set: its offset is the closure. */
static int
set_flag(PyObject *self, PyObject *value, void *closure)
{
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth < 0) {
        return -1;
    }
    *(bool *)((char *)self + (size_t)closure) = truth;
    return 0;
}

static PyObject *
get_thread_id(PyObject *self, void *Py_UNUSED(closure))
{
    unsigned long id = as_loop(self)->thread_id;
    if (id == 0) {
        Py_RETURN_NONE;
    }
    return PyLong_FromUnsignedLong(id);
}

static int
set_thread_id(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    unsigned long id = 0;
    if (value != NULL && value != Py_None) {
        id = PyLong_AsUnsignedLong(value);
        if (id == (unsigned long)-1 && PyErr_Occurred()) {
            return -1;
        }
    }
    as_loop(self)->thread_id = id;
    return 0;
}

/* An owned object field (NULL: None): its offset is the closure. */
static PyObject *
get_object(PyObject *self, void *closure)
{
    PyObject *object = *(PyObject **)((char *)self + (size_t)closure);
    return fl_none_or(object);
}

static int
set_object(PyObject *self, PyObject *value, void *closure)
{
    PyObject **field = (PyObject **)((char *)self + (size_t)closure);
    Py_XSETREF(*field, value == Py_None ? NULL : Py_XNewRef(value));
    return 0;
}

static PyObject *
get_ready(PyObject *self, void *Py_UNUSED(closure))
{
    fl_ready *q = &as_loop(self)->ready;
    PyObject *list = PyList_New(0);
    for (size_t i = q->head; list != NULL && i != q->tail; i++) {
        uintptr_t entry = *fl_ready_slot(q, i);
        void *object = (void *)(entry & ~(uintptr_t)FL_READY_TAGS);
        PyObject *item = (entry & FL_READY_TAGS) == FL_READY_WATCH ? ((fl_watch *)object)->owner
                                                                   : object;
        if (PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *
get_scheduled(PyObject *self, void *Py_UNUSED(closure))
{
    fl_timers *t = &as_loop(self)->timers;
    PyObject *list = PyList_New(0);
    const fl_timer_array *arrays[2] = {&t->heap, &t->fresh};
    for (int a = 0; a < 2; a++) {
        for (size_t i = 0; list != NULL && i < arrays[a]->len; i++) {
            if (PyList_Append(list, (PyObject *)arrays[a]->items[i]) < 0) {
                Py_CLEAR(list);
            }
        }
    }
    return list;
}

/* asyncio's initialiser assigns empty queues; ours are not replaced. */
static int
set_ignored(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(value), void *Py_UNUSED(closure))
{
    return 0;
}

static PyGetSetDef loop_getset[] = {
    {"_closed", get_closed, set_flag, NULL, (void *)offsetof(fl_loop, closed)},
    {"_stopping", get_stopping, set_flag, NULL, (void *)offsetof(fl_loop, stopping)},
    {"_debug", get_debug, set_flag, NULL, (void *)offsetof(fl_loop, debug)},
    {"_thread_id", get_thread_id, set_thread_id, NULL, NULL},
    {"_task_factory", get_object, set_object, NULL, (void *)offsetof(fl_loop, task_factory)},
    {"_current_handle", get_object, set_object, NULL,
     (void *)offsetof(fl_loop, current_handle)},
    {"slow_callback_duration", get_object, set_object,
     "Debug mode logs a callback or task step that takes as long as this, in seconds.",
     (void *)offsetof(fl_loop, slow_callback_duration)},
    {"_ready", get_ready, set_ignored, NULL, NULL},
    {"_scheduled", get_scheduled, set_ignored, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef loop_members[] = {
#define FL_ATTRIBUTE_MEMBER(name)                                                         \
    {#name, T_OBJECT_EX,                                                                  \
     (Py_ssize_t)offsetof(fl_loop, attributes) +                                          \
         FL_ATTRIBUTE_##name * (Py_ssize_t)sizeof(PyObject *),                            \
     0, NULL},
    FL_LOOP_ATTRIBUTES(FL_ATTRIBUTE_MEMBER)
#undef FL_ATTRIBUTE_MEMBER
    {NULL, 0, 0, 0, NULL},
};

/* --- life --- */

void
fl_loop_drop_entry(uintptr_t entry)
{
    void *object = (void *)(entry & ~(uintptr_t)FL_READY_TAGS);
    if ((entry & FL_READY_TAGS) == FL_READY_WATCH) {
        fl_watch *w = object;
        w->queued = false;
        object = w->owner;
    }
    Py_DECREF((PyObject *)object);
}

/* Drop what waits in the queues. Any code can run: everything is emptied first. */
static void
loop_drop_queues(fl_loop *loop)
{
    fl_ready q = loop->ready;
    loop->ready = (fl_ready){0};
    while (fl_ready_len(&q) > 0) {
        fl_loop_drop_entry(fl_ready_pop(&q));
    }
    fl_ready_close(&q);
    fl_flush *f = loop->flush_head;
    loop->flush_head = loop->flush_tail = NULL;
    while (f != NULL) {
        fl_flush *next = f->next;
        f->queued = false;
        Py_DECREF(f->owner);
        f = next;
    }
    fl_timers_close(&loop->timers);
    fl_fd_table_close(loop);
}

PyDoc_STRVAR(close_engine_doc, "_close_engine($self, /)\n--\n\n"
                               "Drop the queues and close the poller; the end of close().");

static PyObject *
loop_close_engine(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_loop *loop = as_loop(self);
    if (loop->thread_id != 0) {
        PyErr_SetString(PyExc_RuntimeError, "Cannot close a running event loop");
        return NULL;
    }
    loop->closed = true;
    if (loop->open) {
        loop->open = false;
        fl_waker_close(&loop->waker);
        fl_poll_close(&loop->poller);
        loop_drop_queues(loop);
    }
    Py_RETURN_NONE;
}

/* Whether a method is ours, not a subclass's: then C code need not call it as a method. */
static int
has_native(PyTypeObject *type, PyObject *name, PyCFunction function)
{
    PyObject *own = PyObject_GetAttr((PyObject *)type, name);
    if (own == NULL) {
        return -1;
    }
    int ours = Py_IS_TYPE(own, &PyMethodDescr_Type) &&
               ((PyMethodDescrObject *)own)->d_method->ml_meth == function;
    Py_DECREF(own);
    return ours;
}

static PyObject *
loop_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    fl_state *st = fl_state_of_type(type);
    fl_loop *loop = st == NULL ? NULL : (fl_loop *)type->tp_alloc(type, 0);
    if (loop == NULL) {
        return NULL;
    }
    loop->st = st;
    loop->poller.fd = loop->waker.read_fd = loop->waker.write_fd = -1;
    loop->spin.possible = loop->caller_spin.possible = fl_spin_possible();
    loop->closed = true; /* until __init__ */
    fl_timers_open(&loop->timers);
    int native = has_native(type, st->str_call_soon, (PyCFunction)(void (*)(void))loop_call_soon);
    int time = has_native(type, st->str_time, loop_time);
    if (native < 0 || time < 0) {
        Py_DECREF(loop);
        return NULL;
    }
    loop->native = native;
    loop->own_time = !time;
    return (PyObject *)loop;
}

/* Large messages come and go by malloc() and free(). As soon as 128 KiB are free at
 * the heap's end glibc gives them back to the kernel, and each page of the next
 * message is a page fault. Freeing one block that was mapped teaches it to keep up
 * to twice that block's size (mallopt(3), M_MMAP_THRESHOLD: dynamic). */
static void
keep_freed_memory(void)
{
    enum { ONCE_FREED = 1024 * 1024 };
    volatile char *block = PyMem_RawMalloc(ONCE_FREED); /* volatile: not optimized out */

    PyMem_RawFree((void *)block);
}

static int
loop_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    fl_loop *loop = as_loop(self);

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Loop", names)) {
        return -1;
    }
    if (loop->open) {
        PyErr_SetString(PyExc_RuntimeError, "the event loop is initialised already");
        return -1;
    }
    if (fl_ready_open(&loop->ready) < 0) {
        return -1;
    }
    if (fl_poll_open(&loop->poller) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto fail;
    }
    if (fl_waker_open(&loop->waker, &loop->poller) < 0) {
        goto fail;
    }
    keep_freed_memory();
    loop->open = true;
    loop->closed = false;
    return 0;
fail:
    fl_poll_close(&loop->poller);
    fl_ready_close(&loop->ready);
    return -1;
}

/* A call_soon set on one loop (a monitor's, a test's) has to see every call, and a
 * clock set in place of time() says when timers are due. */
static int
loop_setattro(PyObject *self, PyObject *name, PyObject *value)
{
    int rc = PyObject_GenericSetAttr(self, name, value);
    if (rc == 0 && PyUnicode_Compare(name, as_loop(self)->st->str_call_soon) == 0) {
        as_loop(self)->native = false;
    }
    else if (rc == 0 && PyUnicode_Compare(name, as_loop(self)->st->str_time) == 0) {
        as_loop(self)->own_time = true; /* also when it is deleted: the class's is asked then */
        fl_timers_sort_anew(&as_loop(self)->timers);
    }
    return rc;
}

static int
loop_traverse(PyObject *self, visitproc visit, void *arg)
{
    fl_loop *loop = as_loop(self);
    Py_VISIT(Py_TYPE(self));
    for (size_t i = loop->ready.head; i != loop->ready.tail; i++) {
        uintptr_t entry = *fl_ready_slot(&loop->ready, i);
        void *object = (void *)(entry & ~(uintptr_t)FL_READY_TAGS);
        if ((entry & FL_READY_TAGS) == FL_READY_WATCH) {
            Py_VISIT(((fl_watch *)object)->owner);
        }
        else {
            Py_VISIT((PyObject *)object);
        }
    }
    for (fl_flush *f = loop->flush_head; f != NULL; f = f->next) {
        Py_VISIT(f->owner);
    }
    const fl_timer_array *arrays[2] = {&loop->timers.heap, &loop->timers.fresh};
    for (int a = 0; a < 2; a++) {
        for (size_t i = 0; i < arrays[a]->len; i++) {
            Py_VISIT((PyObject *)arrays[a]->items[i]);
        }
    }
    Py_VISIT(loop->task_factory);
    Py_VISIT(loop->current_task);
    Py_VISIT(loop->current_handle);
    Py_VISIT(loop->slow_callback_duration);
    Py_VISIT(loop->empty_context);
    for (int i = 0; i < FL_ATTRIBUTE_COUNT; i++) {
        Py_VISIT(loop->attributes[i]);
    }
    return fl_fd_visit(loop, visit, arg);
}

static int
loop_clear(PyObject *self)
{
    fl_loop *loop = as_loop(self);
    loop->open = false;
    loop->closed = true;
    fl_waker_close(&loop->waker);
    fl_poll_close(&loop->poller);
    loop_drop_queues(loop);
    Py_CLEAR(loop->task_factory);
    Py_CLEAR(loop->current_task);
    Py_CLEAR(loop->current_handle);
    Py_CLEAR(loop->slowest_callback);
    Py_CLEAR(loop->slow_callback_duration);
    Py_CLEAR(loop->empty_context);
    for (int i = 0; i < FL_ATTRIBUTE_COUNT; i++) {
        Py_CLEAR(loop->attributes[i]);
    }
    return 0;
}

static void
loop_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    loop_clear(self);
    PyMem_Free(as_loop(self)->recv_buffer);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(bind_methods_doc,
             "_bind_methods($type, /)\n--\n\n"
             "Give a subclass the methods that it inherits from here as its own.");

/* The interpreter's specialised calls of C methods want the object's type to be
 * the very type the method was made for, not a base of it (CALL_METHOD_DESCRIPTOR_*
 * in CPython's Python/bytecodes.c). */
static PyObject *
loop_bind_methods(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyTypeObject *type = (PyTypeObject *)self;
    fl_state *st = fl_state_of_type(type);
    if (st == NULL) {
        return NULL;
    }
    for (PyMethodDef *def = st->LoopType->tp_methods; def->ml_name != NULL; def++) {
        if (def->ml_flags & METH_CLASS || def->ml_name[0] == '_') {
            continue;
        }
        PyObject *method = PyDescr_NewMethod(type, def);
        int rc = method == NULL ? -1 : PyObject_SetAttrString(self, def->ml_name, method);
        Py_XDECREF(method);
        if (rc < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyMethodDef loop_methods[] = {
    {"call_soon", (PyCFunction)(void (*)(void))loop_call_soon, METH_FASTCALL | METH_KEYWORDS,
     call_soon_doc},
    {"call_soon_threadsafe", (PyCFunction)(void (*)(void))loop_call_soon_threadsafe,
     METH_FASTCALL | METH_KEYWORDS, call_soon_threadsafe_doc},
    {"call_later", (PyCFunction)(void (*)(void))loop_call_later, METH_FASTCALL | METH_KEYWORDS,
     call_later_doc},
    {"call_at", (PyCFunction)(void (*)(void))loop_call_at, METH_FASTCALL | METH_KEYWORDS,
     call_at_doc},
    {"time", loop_time, METH_NOARGS, time_doc},
    {"create_future", loop_create_future, METH_NOARGS, create_future_doc},
    {"create_task", (PyCFunction)(void (*)(void))loop_create_task,
     METH_FASTCALL | METH_KEYWORDS, create_task_doc},
    {"stop", loop_stop, METH_NOARGS, stop_doc},
    {"is_running", loop_is_running, METH_NOARGS, is_running_doc},
    {"is_closed", loop_is_closed, METH_NOARGS, is_closed_doc},
    {"get_debug", loop_get_debug, METH_NOARGS, get_debug_doc},
    {"_run", loop_run, METH_NOARGS, run_doc},
    {"_run_once", loop_run_once, METH_NOARGS, run_once_doc},
    {"_write_to_self", loop_write_to_self, METH_NOARGS, write_to_self_doc},
    {"_add_callback", loop_add_callback, METH_O, add_callback_doc},
    {"run_in_executor", (PyCFunction)(void (*)(void))fl_loop_run_in_executor,
     METH_FASTCALL | METH_KEYWORDS, fl_loop_run_in_executor_doc},
    {"_close_engine", loop_close_engine, METH_NOARGS, close_engine_doc},
    {"_bind_methods", loop_bind_methods, METH_NOARGS | METH_CLASS, bind_methods_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot loop_slots[] = {
    {Py_tp_doc, "The engine of fastloop.Loop."},
    {Py_tp_new, loop_new},
    {Py_tp_init, loop_init},
    {Py_tp_setattro, loop_setattro},
    {Py_tp_dealloc, loop_dealloc},
    {Py_tp_traverse, loop_traverse},
    {Py_tp_clear, loop_clear},
    {Py_tp_methods, loop_methods},
    {Py_tp_getset, loop_getset},
    {Py_tp_members, loop_members},
    {0, NULL},
};

static PyType_Spec loop_spec = {
    .name = "fastloop._core.Loop",
    .basicsize = sizeof(fl_loop),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = loop_slots,
};

int
fl_loop_init(PyObject *module, fl_state *st)
{
    st->LoopType = fl_add_type(module, &loop_spec, NULL, 0);
    if (st->LoopType == NULL || fl_add_methods(st->LoopType, fl_watch_methods) < 0) {
        return -1;
    }
    return fl_add_methods(st->LoopType, fl_stats_methods);
}
