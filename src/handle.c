/* handle.c - Handle and TimerHandle. */
#include "handle.h"

#include <math.h>
#include <string.h>

#include "context.h"
#include "future.h"
#include "report.h"

/* About 140 bytes each, 9 MB at most: what another thread queues in the 5 ms in
 * which it has the GIL. A burst that outgrows the list makes the garbage collector
 * look at every handle, and the allocator give pages back and ask for them anew. */
enum { FL_FREE_HANDLES_MAX = 65536 };

static inline fl_handle *
as_handle(PyObject *self)
{
    return (fl_handle *)self;
}

static inline PyObject **
handle_weakrefs(fl_handle *h)
{
    return (PyObject **)((char *)h + Py_TYPE(h)->tp_weaklistoffset);
}

/* Not owned: a handle without its loop is one that is being made or freed. */
static inline fl_loop *
loop_of(const fl_handle *h)
{
    return (fl_loop *)h->loop;
}

/* futures._set_result_unless_cancelled(future, result), as asyncio.sleep() passes
 * it to call_later(): done in C, without a context. */
static inline bool
is_sleep_end(const fl_state *st, PyObject *callback, PyObject *const *args, Py_ssize_t nargs)
{
    return callback == st->set_result_unless_cancelled && nargs == 2 &&
           Py_IS_TYPE(args[0], st->FutureType);
}

/* A handle or timer without its callback. The free lists hold ones that have no
 * object left in them but their type.
 *
 * Most handles are run and dropped by the loop alone. Telling the garbage
 * collector of each would cost a tenth of a call_soon(), so a handle made by a
 * running loop stays untracked until it has been run and somebody still holds
 * it, or until the loop stops: a running loop is no garbage, nor is what its
 * queue holds. */
static fl_handle *
handle_alloc(fl_loop *loop, bool is_timer)
{
    fl_state *st = loop->st;
    fl_handle **list = is_timer ? &st->free_timers : &st->free_handles;
    fl_handle *h = *list;

    if (h == NULL) {
        PyTypeObject *type = is_timer ? st->TimerHandleType : st->HandleType;
        h = (fl_handle *)type->tp_alloc(type, 0); /* zeroed and tracked */
        if (h == NULL) {
            return NULL;
        }
        h->is_timer = is_timer;
        h->tracked = true;
    }
    else {
        *list = (fl_handle *)h->more_args;
        *(is_timer ? &st->n_free_timers : &st->n_free_handles) -= 1;
        h->more_args = NULL;
        h->where = h->runs_in = 0;
        h->cancelled = false;
        Py_INCREF(Py_TYPE(h));
        _Py_NewReference((PyObject *)h);
    }
    if (h->tracked == (loop->turning && !is_timer)) {
        h->tracked ? PyObject_GC_UnTrack(h) : PyObject_GC_Track(h);
        h->tracked = !h->tracked;
    }
    return h;
}

/* False: the list is full. */
static inline bool
free_list_push(fl_state *st, fl_handle *h)
{
    int *count = h->is_timer ? &st->n_free_timers : &st->n_free_handles;
    fl_handle **list = h->is_timer ? &st->free_timers : &st->free_handles;
    if (*count >= FL_FREE_HANDLES_MAX || h->is_shared) {
        return false;
    }
    h->more_args = (PyObject *)*list;
    *list = h;
    *count += 1;
    return true;
}

void
fl_handle_track(fl_handle *h)
{
    if (!h->tracked) {
        h->tracked = true;
        PyObject_GC_Track(h);
    }
}

static int
handle_fill(fl_handle *h, fl_loop *loop, PyObject *callback, PyObject *const *args,
            Py_ssize_t nargs, PyObject *context)
{
    h->loop = Py_NewRef(loop);
    h->callback = Py_NewRef(callback);
    if (nargs <= FL_HANDLE_INLINE_ARGS) {
        for (Py_ssize_t i = 0; i < nargs; i++) {
            h->args[i] = Py_NewRef(args[i]);
        }
        h->nargs = (uint8_t)nargs;
    }
    else {
        h->more_args = PyTuple_New(nargs);
        if (h->more_args == NULL) {
            return -1;
        }
        for (Py_ssize_t i = 0; i < nargs; i++) {
            PyTuple_SET_ITEM(h->more_args, i, Py_NewRef(args[i]));
        }
    }
    if (context != NULL && context != Py_None) {
        h->context = Py_NewRef(context);
    }
    else if (is_sleep_end(loop->st, callback, args, nargs)) {
        h->runs_in = FL_RUN_SLEEP_END;
    }
    else if (fl_context_is_empty()) {
        h->runs_in = FL_RUN_IN_EMPTY;
    }
    else {
        h->context = PyContext_CopyCurrent();
        if (h->context == NULL) {
            return -1;
        }
    }
    if (loop->debug) {
        h->source_traceback = PyObject_CallNoArgs(loop->st->extract_stack);
        if (h->source_traceback == NULL) {
            return -1;
        }
    }
    return 0;
}

fl_handle *
fl_handle_new(fl_loop *loop, PyObject *callback, PyObject *const *args, Py_ssize_t nargs,
              PyObject *context)
{
    fl_handle *h = handle_alloc(loop, false);
    if (h != NULL && handle_fill(h, loop, callback, args, nargs, context) < 0) {
        Py_CLEAR(h);
    }
    return h;
}

static inline int64_t
due_in_ns(double when)
{
    double ns = ceil(when * 1e9);
    if (ns >= 9.2e18) { /* later than the clock can count: never */
        return INT64_MAX - 1;
    }
    return ns > -4.6e18 ? (int64_t)ns : INT64_MIN / 2; /* or NaN; the clock can be subtracted */
}

/* The bits of a float, IEEE 754's sign and magnitude, are in order but for the sign. */
static int64_t
due_in_order(double when)
{
    int64_t bits;
    memcpy(&bits, &when, sizeof(bits));
    if (isnan(when)) {
        return INT64_MIN;
    }
    return bits < 0 ? INT64_MIN - bits : bits;
}

int64_t
fl_timer_due(bool own_time, double when)
{
    return own_time ? due_in_order(when) : due_in_ns(when);
}

fl_timer *
fl_timer_new(fl_loop *loop, double when, PyObject *callback, PyObject *const *args,
             Py_ssize_t nargs, PyObject *context)
{
    fl_timer *t = (fl_timer *)handle_alloc(loop, true);
    if (t == NULL) {
        return NULL;
    }
    t->when = when;
    t->due = fl_timer_due(loop->own_time, when);
    t->handle.when_is_int = false;
    if (handle_fill(&t->handle, loop, callback, args, nargs, context) < 0) {
        Py_CLEAR(t);
    }
    return t;
}

static PyObject *
handle_args_tuple(const fl_handle *h)
{
    if (h->more_args != NULL) {
        return Py_NewRef(h->more_args);
    }
    PyObject *tuple = PyTuple_New(h->nargs);
    if (tuple != NULL) {
        for (int i = 0; i < h->nargs; i++) {
            PyTuple_SET_ITEM(tuple, i, Py_NewRef(h->args[i]));
        }
    }
    return tuple;
}

/* "f(1) at file.py:2", by asyncio's own formatter. */
static PyObject *
format_callback(const fl_handle *h, PyObject *callback)
{
    fl_loop *loop = loop_of(h);
    PyObject *text = NULL, *args = handle_args_tuple(h);
    PyObject *kwnames = loop->st->format_callback_takes_debug ? loop->st->kwnames_debug : NULL;
    if (args != NULL) {
        PyObject *call[3] = {callback, args, loop->debug ? Py_True : Py_False};
        text = PyObject_Vectorcall(loop->st->format_callback_source, call, 2, kwnames);
        Py_DECREF(args);
    }
    return text;
}

/* "Exception in callback f(1)" to the exception handler, with the exception that
 * is set. */
static int
handle_report(fl_handle *h, PyObject *callback)
{
    PyObject *loop = Py_NewRef(h->loop);
    PyObject *type, *value, *tb;

    PyErr_Fetch(&type, &value, &tb);
    PyObject *source = format_callback(h, callback);
    PyObject *message =
        source == NULL ? NULL : PyUnicode_FromFormat("Exception in callback %S", source);
    const char *text = message == NULL ? NULL : PyUnicode_AsUTF8(message);
    PyErr_Clear(); /* a repr that raises must not hide the exception itself */
    PyErr_Restore(type, value, tb);
    int rc = fl_report_raised(loop, text == NULL ? "Exception in callback ?" : text, "handle",
                              (PyObject *)h, "source_traceback", h->source_traceback,
                              (char *)NULL);
    Py_XDECREF(source);
    Py_XDECREF(message);
    Py_DECREF(loop);
    return rc;
}

/* The callback and inline arguments of a handle that runs. cancel() during the
 * call drops the handle's own references, so these are held apart: moved out of
 * a handle that nobody else knows, else new references. */
typedef struct {
    PyObject *callback;
    PyObject *args[1 + FL_HANDLE_INLINE_ARGS]; /* args[0]: scratch */
    PyObject *more_args;
    int nargs;
} handle_invocation;

static void
invocation_begin(handle_invocation *in, fl_handle *h)
{
    in->callback = h->callback;
    in->more_args = h->more_args;
    in->nargs = h->nargs;
    for (int i = 0; i < in->nargs; i++) {
        in->args[1 + i] = h->args[i];
    }
    if (Py_REFCNT(h) == 1) {
        h->callback = h->more_args = NULL;
        h->nargs = 0;
        return;
    }
    Py_INCREF(in->callback);
    Py_XINCREF(in->more_args);
    for (int i = 1; i <= in->nargs; i++) {
        Py_INCREF(in->args[i]);
    }
}

/* Give the references back to the handle if it lent them and is still to be
 * shown (`keep`), else drop them. */
static void
invocation_end(handle_invocation *in, fl_handle *h, bool keep)
{
    if (keep && h->callback == NULL && !h->cancelled) {
        h->callback = in->callback;
        h->more_args = in->more_args;
        for (int i = 0; i < in->nargs; i++) {
            h->args[i] = in->args[1 + i];
        }
        h->nargs = (uint8_t)in->nargs;
        return;
    }
    Py_DECREF(in->callback);
    Py_XDECREF(in->more_args);
    for (int i = 1; i <= in->nargs; i++) {
        Py_DECREF(in->args[i]);
    }
}

static PyObject *
invocation_call(handle_invocation *in)
{
    if (in->more_args != NULL) {
        return PyObject_Call(in->callback, in->more_args, NULL);
    }
    return PyObject_Vectorcall(in->callback, in->args + 1,
                               (size_t)in->nargs | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
}

static PyObject *
call_in_empty_context(fl_handle *h, handle_invocation *in)
{
    fl_loop *loop = loop_of(h);
    if (fl_empty_context_enter(loop) < 0) {
        return NULL;
    }
    h->context = Py_NewRef(loop->empty_context); /* for who asks while it runs */
    PyObject *result = invocation_call(in);
    if (result == NULL) { /* the exception handler runs in it, too */
        Py_DECREF(fl_empty_context_take(loop));
        h->runs_in = FL_RUN_IN_CONTEXT;
        return NULL;
    }
    if (h->runs_in == FL_RUN_IN_EMPTY) { /* nobody asked */
        Py_CLEAR(h->context);
    }
    if (fl_empty_context_check(loop) < 0) {
        Py_CLEAR(result);
    }
    return result;
}

static PyObject *
call_in_own_context(fl_handle *h, handle_invocation *in)
{
    PyObject *context = Py_NewRef(h->context);
    PyObject *result = NULL;
    if (PyContext_Enter(context) == 0) {
        result = invocation_call(in);
        if (PyContext_Exit(context) < 0) {
            Py_CLEAR(result);
        }
    }
    Py_DECREF(context);
    return result;
}

/* The end of an asyncio.sleep() */
static PyObject *
finish_sleep(handle_invocation *in)
{
    fl_future *f = (fl_future *)in->args[1];
    if (f->state != FL_CANCELLED && fl_future_set_result(f, in->args[2]) < 0) {
        return NULL;
    }
    return Py_NewRef(Py_None);
}

/* Call it in its context. An exception goes to the loop's exception handler; only
 * KeyboardInterrupt and SystemExit come back, as -1. */
static int
handle_run_now(fl_handle *h)
{
    handle_invocation in;
    PyObject *result;
    int rc = 0;

    if (h->cancelled || h->callback == NULL) { /* NULL: it runs already */
        return 0;
    }
    invocation_begin(&in, h);
    if (h->runs_in == FL_RUN_IN_EMPTY) {
        result = call_in_empty_context(h, &in);
    }
    else if (h->runs_in == FL_RUN_SLEEP_END) {
        result = finish_sleep(&in);
    }
    else {
        result = call_in_own_context(h, &in);
    }
    if (result == NULL) {
        PyObject *callback = Py_NewRef(in.callback);
        invocation_end(&in, h, true);
        rc = handle_report(h, callback);
        Py_DECREF(callback);
        return rc;
    }
    Py_DECREF(result);
    invocation_end(&in, h, Py_REFCNT(h) > 1);
    return rc;
}

/* --- handles that other threads have --- */

#if PY_VERSION_HEX >= 0x030E0000
typedef struct {
    fl_handle handle;
    unsigned long runner;     /* the thread that runs the callback now, or 0 */
    PyThread_type_lock ended; /* held while it runs; NULL: nobody has waited */
} fl_shared_handle;

static int
shared_run_handle(fl_handle *h)
{
    fl_shared_handle *s = (fl_shared_handle *)h;
    if (s->ended != NULL) {
        (void)PyThread_acquire_lock(s->ended, NOWAIT_LOCK);
    }
    s->runner = PyThread_get_thread_ident();
    int rc = handle_run_now(h);
    s->runner = 0;
    if (s->ended != NULL) {
        PyThread_release_lock(s->ended);
    }
    return rc;
}

/* In another thread than the callback's: wait until it has ended. */
static int
shared_wait(fl_shared_handle *s)
{
    while (s->runner != 0 && s->runner != PyThread_get_thread_ident()) {
        if (s->ended == NULL) {
            s->ended = PyThread_allocate_lock();
            if (s->ended == NULL) {
                PyErr_NoMemory();
                return -1;
            }
            (void)PyThread_acquire_lock(s->ended, NOWAIT_LOCK);
        }
        Py_INCREF(s);
        Py_BEGIN_ALLOW_THREADS
        PyThread_acquire_lock(s->ended, WAIT_LOCK);
        PyThread_release_lock(s->ended); /* for the next who waits */
        Py_END_ALLOW_THREADS
        Py_DECREF(s);
    }
    return 0;
}
#else
static int
shared_run_handle(fl_handle *h)
{
    return handle_run_now(h);
}
#endif

/* Nobody but the caller can come by it, so that its callback and arguments stay
 * what they are: no reference, strong, weak or through the garbage collector.
 * And it has nothing else in it. */
static inline bool
handle_is_private(fl_handle *h)
{
    return Py_REFCNT(h) == 1 && !h->tracked &&
           h->callback != NULL && h->more_args == NULL && h->source_traceback == NULL &&
           *handle_weakrefs(h) == NULL;
}

static inline PyObject *
call_in_place(fl_handle *h)
{
    size_t nargsf = (size_t)h->nargs | PY_VECTORCALL_ARGUMENTS_OFFSET;
    if (Py_IS_TYPE(h->callback, &PyFunction_Type)) {
        return ((PyFunctionObject *)h->callback)->vectorcall(h->callback, h->args, nargsf, NULL);
    }
    return PyObject_Vectorcall(h->callback, h->args, nargsf, NULL);
}

/* A private handle that has run: onto the free list without the detour through
 * handle_dealloc(), which a debug interpreter needs for its count of references. */
static inline void
handle_recycle(fl_handle *h)
{
    PyObject *callback = h->callback, *args[FL_HANDLE_INLINE_ARGS];
    int nargs = h->nargs;

    for (int i = 0; i < nargs; i++) {
        args[i] = h->args[i];
    }
    h->callback = NULL;
    h->nargs = 0;
#ifdef Py_REF_DEBUG
    Py_DECREF(h);
#else
    PyObject *loop = h->loop; /* it runs: this is not the last reference */
    if (free_list_push(loop_of(h)->st, h)) {
        h->loop = NULL;
        Py_DECREF(Py_TYPE(h));
        Py_DECREF(loop);
    }
    else {
        Py_DECREF(h);
    }
#endif
    Py_DECREF(callback); /* last: this can run any code */
    for (int i = 0; i < nargs; i++) {
        Py_DECREF(args[i]);
    }
}

/* The way of nearly every call_soon(): a callback whose handle was not kept. */
static int
run_private(fl_handle *h)
{
    fl_loop *loop = loop_of(h);
    if (fl_empty_context_enter(loop) < 0) {
        Py_DECREF(h);
        return -1;
    }
    PyObject *result = call_in_place(h);
    if (result == NULL) { /* the exception handler runs in it, too */
        h->context = fl_empty_context_take(loop);
        h->runs_in = FL_RUN_IN_CONTEXT;
        PyObject *callback = Py_NewRef(h->callback);
        int rc = handle_report(h, callback);
        Py_DECREF(callback);
        fl_handle_track(h);
        Py_DECREF(h);
        return rc;
    }
    Py_DECREF(result);
    int rc = fl_empty_context_check(loop);
    handle_recycle(h);
    return rc;
}

int
fl_handle_run_queued(fl_handle *h)
{
    if (h->runs_in == FL_RUN_IN_EMPTY && handle_is_private(h)) {
        return run_private(h);
    }
    int rc = -1;
    if (h->runs_in != FL_RUN_IN_CONTEXT || fl_empty_context_leave(loop_of(h)) == 0) {
        rc = h->is_shared ? shared_run_handle(h) : handle_run_now(h);
    }
    if (Py_REFCNT(h) > 1) {
        fl_handle_track(h);
    }
    Py_DECREF(h);
    return rc;
}

static void
handle_drop_call(fl_handle *h)
{
    PyObject *callback = h->callback, *more_args = h->more_args;
    PyObject *args[FL_HANDLE_INLINE_ARGS];
    int nargs = h->nargs;

    memcpy(args, h->args, sizeof(args));
    h->callback = h->more_args = NULL;
    h->nargs = 0;
    Py_XDECREF(callback);
    Py_XDECREF(more_args);
    for (int i = 0; i < nargs; i++) {
        Py_DECREF(args[i]);
    }
}

int
fl_handle_cancel(fl_handle *h)
{
    if (h->cancelled) {
        return 0;
    }
    h->cancelled = true;
    if (h->loop != NULL && loop_of(h)->debug) {
        /* Kept so that the repr still tells what it was (asyncio does so too). */
        PyObject *repr = PyObject_Repr((PyObject *)h);
        if (repr == NULL) {
            return -1;
        }
        Py_XSETREF(h->repr, repr);
    }
    Py_INCREF(h);
    handle_drop_call(h);
    if (h->is_timer && h->loop != NULL) {
        fl_timers_remove(&loop_of(h)->timers, (fl_timer *)h);
    }
    Py_DECREF(h);
    return 0;
}

/* --- methods --- */

static PyObject *
handle_cancel(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (fl_handle_cancel(as_handle(self)) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
handle_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(as_handle(self)->cancelled);
}

/* Have it run in a context of its own: it has to be shown, or is not run by the queue. */
static int
handle_need_context(fl_handle *h)
{
    if (h->runs_in == FL_RUN_IN_CONTEXT) {
        return 0;
    }
    if (h->context == NULL && (h->context = PyContext_New()) == NULL) {
        return -1;
    }
    h->runs_in = FL_RUN_IN_CONTEXT;
    return 0;
}

static PyObject *
handle_run(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_handle *h = as_handle(self);
    /* Called from a callback, that one may be in the shared context. */
    if (h->runs_in == FL_RUN_IN_EMPTY && handle_need_context(h) < 0) {
        return NULL;
    }
    Py_INCREF(h); /* the interpreter can have lent us its only reference */
    int rc = h->is_shared ? shared_run_handle(h) : handle_run_now(h);
    Py_DECREF(h);
    if (rc < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
handle_get_context_attr(PyObject *self, void *Py_UNUSED(closure))
{
    if (handle_need_context(as_handle(self)) < 0) {
        return NULL;
    }
    return fl_none_or(as_handle(self)->context);
}

static PyObject *
handle_get_context(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return handle_get_context_attr(self, NULL);
}

static PyObject *
timer_get_when(PyObject *self, void *Py_UNUSED(closure))
{
    fl_timer *t = (fl_timer *)self;
    return t->handle.when_is_int ? PyLong_FromDouble(t->when) : PyFloat_FromDouble(t->when);
}

static PyObject *
timer_when(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return timer_get_when(self, NULL);
}

static PyObject *
handle_get_loop(PyObject *self, void *Py_UNUSED(closure))
{
    return fl_none_or(as_handle(self)->loop);
}

static PyObject *
handle_get_callback(PyObject *self, void *Py_UNUSED(closure))
{
    return fl_none_or(as_handle(self)->callback);
}

static PyObject *
handle_get_args(PyObject *self, void *Py_UNUSED(closure))
{
    fl_handle *h = as_handle(self);
    if (h->cancelled && h->callback == NULL) {
        Py_RETURN_NONE;
    }
    return handle_args_tuple(h);
}

static PyObject *
handle_get_cancelled(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(as_handle(self)->cancelled);
}

static PyObject *
handle_get_repr(PyObject *self, void *Py_UNUSED(closure))
{
    return fl_none_or(as_handle(self)->repr);
}

static PyObject *
handle_get_source_traceback(PyObject *self, void *Py_UNUSED(closure))
{
    return fl_none_or(as_handle(self)->source_traceback);
}

static int
handle_set_source_traceback(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    Py_XSETREF(as_handle(self)->source_traceback,
               value == Py_None ? NULL : Py_XNewRef(value));
    return 0;
}

static PyObject *
timer_get_scheduled(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(as_handle(self)->where != FL_TIMER_IDLE);
}

/* --- life --- */

static int
handle_traverse(PyObject *self, visitproc visit, void *arg)
{
    fl_handle *h = as_handle(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(h->loop);
    Py_VISIT(h->context);
    Py_VISIT(h->callback);
    for (int i = 0; i < h->nargs; i++) {
        Py_VISIT(h->args[i]);
    }
    Py_VISIT(h->more_args);
    Py_VISIT(h->source_traceback);
    return 0;
}

static int
handle_clear(PyObject *self)
{
    fl_handle *h = as_handle(self);
    h->cancelled = true; /* it has nothing left to call */
    handle_drop_call(h);
    Py_CLEAR(h->loop);
    Py_CLEAR(h->context);
    Py_CLEAR(h->source_traceback);
    Py_CLEAR(h->repr);
    return 0;
}

static void
handle_end(PyObject *self)
{
    fl_handle *h = as_handle(self);
    PyTypeObject *type = Py_TYPE(self);
    /* the loop outlives this function: it owns the state and the free list */
    PyObject *loop = h->loop;
    fl_state *st = loop == NULL ? NULL : ((fl_loop *)loop)->st;

    if (*handle_weakrefs(h) != NULL) {
        PyObject_ClearWeakRefs(self);
    }
    for (int i = 0; i < h->nargs; i++) {
        Py_DECREF(h->args[i]);
    }
    Py_XDECREF(h->callback);
    Py_XDECREF(h->context);
    Py_XDECREF(h->more_args);
    Py_XDECREF(h->source_traceback);
    Py_XDECREF(h->repr);
    h->loop = h->callback = h->context = h->source_traceback = h->repr = NULL;
    h->nargs = 0;
    if (st == NULL || !free_list_push(st, h)) {
        type->tp_free(self);
    }
    Py_DECREF(type);
    Py_XDECREF(loop);
}

static void
handle_dealloc(PyObject *self)
{
    fl_handle *h = as_handle(self);

    PyObject_GC_UnTrack(self);
    h->tracked = false;
    if (h->loop == NULL) { /* cleared: it holds nothing else of ours */
        handle_end(self);
        return;
    }
    fl_dealloc_bounded(loop_of(h)->st, self, Py_TYPE(self)->tp_dealloc, handle_end);
}

PyDoc_STRVAR(cancel_doc, "cancel($self, /)\n--\n\nCancel the callback; without effect once it ran.");
PyDoc_STRVAR(cancelled_doc, "cancelled($self, /)\n--\n\nTrue if the callback was cancelled.");
PyDoc_STRVAR(get_context_doc, "get_context($self, /)\n--\n\nThe contextvars.Context the callback runs in.");
PyDoc_STRVAR(run_doc, "_run($self, /)\n--\n\nCall the callback now, in its context.");
PyDoc_STRVAR(when_doc, "when($self, /)\n--\n\nThe loop.time() (seconds) at which the callback is due.");

/* What a TimerHandle has beyond a Handle comes first: a Handle's tables are the rest. */
enum { TIMER_METHODS = 1, TIMER_ATTRIBUTES = 2 };

static PyMethodDef methods[] = {
    {"when", timer_when, METH_NOARGS, when_doc},
    {"cancel", handle_cancel, METH_NOARGS, cancel_doc},
    {"cancelled", handle_cancelled, METH_NOARGS, cancelled_doc},
    {"get_context", handle_get_context, METH_NOARGS, get_context_doc},
    {"_run", handle_run, METH_NOARGS, run_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getset[] = {
    {"_when", timer_get_when, NULL, NULL, NULL},
    {"_scheduled", timer_get_scheduled, NULL, NULL, NULL},
    {"_loop", handle_get_loop, NULL, NULL, NULL},
    {"_callback", handle_get_callback, NULL, NULL, NULL},
    {"_args", handle_get_args, NULL, NULL, NULL},
    {"_context", handle_get_context_attr, NULL, NULL, NULL},
    {"_cancelled", handle_get_cancelled, NULL, NULL, NULL},
    {"_repr", handle_get_repr, NULL, NULL, NULL},
    {"_source_traceback", handle_get_source_traceback, handle_set_source_traceback, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, "A callback in the ready queue; see asyncio.Handle."},
    {Py_tp_methods, methods + TIMER_METHODS},
    {Py_tp_getset, getset + TIMER_ATTRIBUTES},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_dealloc, handle_dealloc},
    {0, NULL},
};

static PyType_Slot timer_slots[] = {
    {Py_tp_doc, "A callback due at some time; see asyncio.TimerHandle."},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_dealloc, handle_dealloc},
    {0, NULL},
};

static PyType_Spec handle_spec = {
    .name = "fastloop._core.Handle",
    .basicsize = sizeof(fl_handle),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = handle_slots,
};

static PyType_Spec timer_spec = {
    .name = "fastloop._core.TimerHandle",
    .basicsize = sizeof(fl_timer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = timer_slots,
};

#if PY_VERSION_HEX >= 0x030E0000
static PyObject *
shared_cancel(PyObject *self, PyObject *ignored)
{
    return shared_wait((fl_shared_handle *)self) < 0 ? NULL : handle_cancel(self, ignored);
}

static PyObject *
shared_cancelled(PyObject *self, PyObject *ignored)
{
    return shared_wait((fl_shared_handle *)self) < 0 ? NULL : handle_cancelled(self, ignored);
}

static void
shared_dealloc(PyObject *self)
{
    fl_shared_handle *s = (fl_shared_handle *)self;
    if (s->ended != NULL) {
        PyThread_free_lock(s->ended);
        s->ended = NULL;
    }
    handle_dealloc(self);
}

static PyMethodDef shared_methods[] = {
    {"cancel", shared_cancel, METH_NOARGS, cancel_doc},
    {"cancelled", shared_cancelled, METH_NOARGS, cancelled_doc},
    {"get_context", handle_get_context, METH_NOARGS, get_context_doc},
    {"_run", handle_run, METH_NOARGS, run_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot shared_slots[] = {
    {Py_tp_doc, "A callback of call_soon_threadsafe(): other threads wait for it to cancel it."},
    {Py_tp_methods, shared_methods},
    {Py_tp_getset, getset + TIMER_ATTRIBUTES},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_dealloc, shared_dealloc},
    {0, NULL},
};

static PyType_Spec shared_spec = {
    .name = "fastloop._core.ThreadSafeHandle",
    .basicsize = sizeof(fl_shared_handle),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = shared_slots,
};

fl_handle *
fl_shared_handle_new(fl_loop *loop, PyObject *callback, PyObject *const *args,
                     Py_ssize_t nargs, PyObject *context)
{
    PyTypeObject *type = loop->st->SharedHandleType;
    fl_handle *h = (fl_handle *)type->tp_alloc(type, 0); /* zeroed and tracked */
    if (h == NULL) {
        return NULL;
    }
    h->is_shared = h->tracked = true;
    if (handle_fill(h, loop, callback, args, nargs, context) < 0) {
        Py_CLEAR(h);
    }
    return h;
}

/* Its base has one more slot, which lies where we keep source_traceback: an object
 * pointer or NULL, too. */
static int
make_shared_type(PyObject *module, fl_state *st, PyObject *events)
{
    PyObject *base = PyObject_GetAttrString(events, "_ThreadSafeHandle");
    if (base != NULL) {
        st->SharedHandleType = fl_add_type(module, &shared_spec, (PyTypeObject *)base,
                                           FL_HANDLE_BASE_SIZE + sizeof(PyObject *));
        Py_DECREF(base);
    }
    return st->SharedHandleType == NULL ? -1 : 0;
}
#else
static int
make_shared_type(PyObject *Py_UNUSED(module), fl_state *Py_UNUSED(st),
                 PyObject *Py_UNUSED(events))
{
    return 0;
}
#endif

static void
free_list_clear(fl_handle **list, PyTypeObject *type)
{
    while (*list != NULL) {
        fl_handle *h = *list;
        *list = (fl_handle *)h->more_args;
        type->tp_free((PyObject *)h);
    }
}

void
fl_handle_free_lists_clear(fl_state *st)
{
    free_list_clear(&st->free_handles, st->HandleType);
    free_list_clear(&st->free_timers, st->TimerHandleType);
    st->n_free_handles = st->n_free_timers = 0;
}

int
fl_handle_init(PyObject *module, fl_state *st)
{
    int rc = -1;
    PyObject *base = NULL, *timer_base = NULL;
    PyObject *events = PyImport_ImportModule("asyncio.events");

    if (events == NULL ||
        (base = PyObject_GetAttrString(events, "Handle")) == NULL ||
        (timer_base = PyObject_GetAttrString(events, "TimerHandle")) == NULL) {
        goto done;
    }
    st->HandleType = fl_add_type(module, &handle_spec, (PyTypeObject *)base,
                                 FL_HANDLE_BASE_SIZE);
    st->TimerHandleType = fl_add_type(module, &timer_spec, (PyTypeObject *)timer_base,
                                      FL_HANDLE_BASE_SIZE);
    if (st->HandleType != NULL && st->TimerHandleType != NULL) {
        rc = make_shared_type(module, st, events);
    }
done:
    Py_XDECREF(events);
    Py_XDECREF(base);
    Py_XDECREF(timer_base);
    return rc;
}
