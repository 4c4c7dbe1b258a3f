/* executor.c - see executor.h */
#include "executor.h"

#include <string.h>

#include "threadsafe.h"

/* fastloop._executor imports this extension, so it is imported when the first
 * executor is asked for, not when the extension is. */
static int
load_thread_pool_executor(fl_state *st)
{
    if (st->executor_submit != NULL) {
        return 0;
    }
    PyObject *module = PyImport_ImportModule("fastloop._executor");
    if (module == NULL) {
        return -1;
    }
    PyObject *cls = PyObject_GetAttrString(module, "ThreadPoolExecutor");
    Py_DECREF(module);
    if (cls == NULL) {
        return -1;
    }
    PyObject *submit = PyObject_GetAttr(cls, st->str_submit);
    if (submit == NULL) {
        Py_DECREF(cls);
        return -1;
    }
    Py_XSETREF(st->ThreadPoolExecutor, cls);
    Py_XSETREF(st->executor_submit, submit);
    return 0;
}

/* asyncio's checks of loop._default_executor, and its making. New reference. */
static PyObject *
default_executor(PyObject *self, fl_state *st)
{
    PyObject *executor = PyObject_GetAttr(self, st->str__default_executor);
    if (executor == NULL) {
        return NULL;
    }
    PyObject *r = PyObject_CallMethodNoArgs(self, st->str__check_default_executor);
    if (r == NULL) {
        Py_DECREF(executor);
        return NULL;
    }
    Py_DECREF(r);
    if (executor != Py_None) {
        return executor;
    }
    Py_DECREF(executor);
    PyObject *args[] = {NULL, Py_None, st->str_asyncio}; /* max_workers, thread_name_prefix */
    executor = PyObject_Vectorcall(st->ThreadPoolExecutor, args + 1,
                                   2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    if (executor != NULL && PyObject_SetAttr(self, st->str__default_executor, executor) < 0) {
        Py_CLEAR(executor);
    }
    return executor;
}

/* BaseEventLoop.run_in_executor(self, *args): `args` as a vectorcall has them. */
static PyObject *
run_inherited(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t total = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject **stack = PyMem_New(PyObject *, total + 1);
    if (stack == NULL) {
        return PyErr_NoMemory();
    }
    stack[0] = self;
    memcpy(stack + 1, args, (size_t)total * sizeof(*args));
    PyObject *r = PyObject_Vectorcall(((fl_loop *)self)->st->base_run_in_executor, stack,
                                      (size_t)nargs + 1, kwnames);
    PyMem_Free(stack);
    return r;
}

/* run_in_executor(executor=..., func=...): called again with both by position. */
static PyObject *
run_with_keywords(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *stack[2] = {nargs > 0 ? args[0] : NULL, NULL};
    Py_ssize_t n = PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < n && nargs + n == 2; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (PyUnicode_CompareWithASCIIString(name, "func") == 0) {
            stack[1] = args[nargs + i];
        }
        else if (nargs == 0 && PyUnicode_CompareWithASCIIString(name, "executor") == 0) {
            stack[0] = args[nargs + i];
        }
    }
    if (stack[0] == NULL || stack[1] == NULL) {
        return run_inherited(self, args, nargs, kwnames); /* for its TypeError */
    }
    return fl_loop_run_in_executor(self, stack, 2, NULL);
}

/* What asyncio does with an executor that is not ours. */
static PyObject *
run_by_submit(PyObject *self, PyObject *executor, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject **stack = PyMem_New(PyObject *, nargs);
    if (stack == NULL) {
        return PyErr_NoMemory();
    }
    memcpy(stack, args, (size_t)nargs * sizeof(*args));
    stack[0] = executor;
    PyObject *r = run_inherited(self, stack, nargs, NULL);
    PyMem_Free(stack);
    return r;
}

static int
check_callback(PyObject *self, fl_state *st, PyObject *func)
{
    PyObject *args[] = {self, func, st->str_run_in_executor};
    PyObject *r = PyObject_VectorcallMethod(st->str__check_callback, args,
                                            3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

const char fl_loop_run_in_executor_doc[] = PyDoc_STR(
"run_in_executor($self, executor, func, *args)\n--\n\n"
"Call func(*args) in a thread or process of the executor; return a Future.\n\n"
"executor None is the loop's own: a fastloop.ThreadPoolExecutor, made when first\n"
"asked for. Cancelling the future keeps a call that has not begun from beginning;\n"
"one that has begun goes on and its outcome is dropped. Raises RuntimeError if\n"
"the loop is closed or the executor shut down.");

PyObject *
fl_loop_run_in_executor(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                        PyObject *kwnames)
{
    fl_loop *loop = (fl_loop *)self;
    fl_state *st = loop->st;
    if (kwnames != NULL && PyTuple_GET_SIZE(kwnames) > 0) {
        return run_with_keywords(self, args, nargs, kwnames);
    }
    if (nargs < 2) {
        return run_inherited(self, args, nargs, NULL); /* for its TypeError */
    }
    if (fl_loop_check_closed(loop) < 0 ||
        (loop->debug && check_callback(self, st, args[1]) < 0) ||
        load_thread_pool_executor(st) < 0) {
        return NULL;
    }
    PyObject *executor = args[0] == Py_None ? default_executor(self, st) : Py_NewRef(args[0]);
    if (executor == NULL) {
        return NULL;
    }
    PyObject *future = NULL;
    fl_pool *pool = NULL;
    int direct = loop->native ? fl_pool_of_executor(st, executor, &pool) : 0;
    if (direct == 0) {
        future = run_by_submit(self, executor, args, nargs);
    }
    else if (direct > 0 && (future = fl_future_new(loop)) != NULL &&
             fl_pool_submit(pool, executor, future, true, args[1], args + 2, nargs - 2,
                            NULL) < 0) {
        Py_CLEAR(future);
    }
    Py_XDECREF(pool);
    Py_DECREF(executor);
    return future;
}

/* Import `module` and put its attribute `name` (NULL: itself) into *where. */
static int
import_into(PyObject **where, const char *module, const char *name)
{
    PyObject *m = PyImport_ImportModule(module);
    if (m == NULL) {
        return -1;
    }
    if (name == NULL) {
        *where = m;
        return 0;
    }
    *where = PyObject_GetAttrString(m, name);
    Py_DECREF(m);
    return *where == NULL ? -1 : 0;
}

int
fl_executor_init(PyObject *module, fl_state *st)
{
    PyObject *base = NULL;
    if (import_into(&st->executor_module, "concurrent.futures.thread", NULL) < 0 ||
        import_into(&st->BrokenThreadPool, "concurrent.futures.thread", "BrokenThreadPool") < 0 ||
        import_into(&st->executor_logger, "concurrent.futures._base", "LOGGER") < 0 ||
        import_into(&st->ConcurrentCancelledError, "concurrent.futures", "CancelledError") < 0 ||
        import_into(&st->ConcurrentInvalidStateError, "concurrent.futures", "InvalidStateError") < 0 ||
        import_into(&st->convert_future_exc, "asyncio.futures", "_convert_future_exc") < 0 ||
        import_into(&base, "asyncio.base_events", "BaseEventLoop") < 0) {
        return -1;
    }
    st->base_run_in_executor = PyObject_GetAttr(base, st->str_run_in_executor);
    Py_DECREF(base);
    if (st->base_run_in_executor == NULL) {
        return -1;
    }
    return fl_threadsafe_init(st) < 0 ? -1 : fl_pool_init(module, st);
}
