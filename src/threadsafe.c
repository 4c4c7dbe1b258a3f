/* threadsafe.c - see threadsafe.h
 *
 * asyncio.run_coroutine_threadsafe(coro, loop).result() is a thread that waits
 * for the loop: it goes to sleep while it has the GIL that the loop wants, and is
 * woken while the loop has it. Seeing asyncio's own callback come, the calling
 * thread lets go of the GIL at once and looks out for a moment until the loop has
 * run what there was and waits again. Then result() mostly has nothing to wait
 * for. Where it does, this costs a moment in two hundred calls: see spin.h.
 */
#include "threadsafe.h"

/* The state of the concurrent.futures.Future that asyncio's callback refers to. */
static bool
call_is_done(fl_state *st, PyObject *callback)
{
    PyObject *closure = PyFunction_GetClosure(callback);
    if (closure == NULL || st->call_future_cell >= PyTuple_GET_SIZE(closure)) {
        return false;
    }
    PyObject *future = PyCell_Get(PyTuple_GET_ITEM(closure, st->call_future_cell));
    PyObject *state = future == NULL ? NULL : PyObject_GetAttr(future, st->str__state);
    bool done = state != NULL && PyUnicode_Check(state) &&
                PyUnicode_CompareWithASCIIString(state, "FINISHED") == 0;
    Py_XDECREF(state);
    Py_XDECREF(future);
    PyErr_Clear();
    return done;
}

void
fl_loop_wake_for(fl_loop *loop, PyObject *callback)
{
    fl_state *st = loop->st;
    if (st->call_code == NULL || !PyFunction_Check(callback) ||
        PyFunction_GET_CODE(callback) != st->call_code || loop->thread_id == 0 ||
        loop->thread_id == PyThread_get_thread_ident() ||
        atomic_load(&loop->waker.state) == FL_AWAKE || !fl_spin_wanted(&loop->caller_spin)) {
        fl_loop_wake(loop);
        return;
    }
    fl_waker *waker = &loop->waker;
    fl_waker_borrow(waker);
    Py_INCREF(callback);
    Py_BEGIN_ALLOW_THREADS
    fl_waker_wake(waker);
    fl_waker_await_wait(waker);
    fl_waker_give_back(waker);
    Py_END_ALLOW_THREADS
    loop->caller_due = call_is_done(st, callback);
    fl_spin_learn(&loop->caller_spin, loop->caller_due);
    Py_DECREF(callback);
}

/* Find the code of the function that run_coroutine_threadsafe() passes to
 * call_soon_threadsafe(), and which of its free variables is the future. */
static int
find_call_code(fl_state *st, PyObject *code)
{
    PyObject *constants = PyObject_GetAttrString(code, "co_consts");
    Py_ssize_t n = constants != NULL && PyTuple_Check(constants) ? PyTuple_GET_SIZE(constants) : 0;
    for (Py_ssize_t i = 0; i < n && st->call_code == NULL; i++) {
        PyObject *inner = PyTuple_GET_ITEM(constants, i);
        PyObject *names = PyCode_Check(inner) ? PyObject_GetAttrString(inner, "co_freevars") : NULL;
        PyObject *name = names == NULL ? NULL : PyUnicode_FromString("future");
        Py_ssize_t cell = name == NULL ? -1 : PySequence_Index(names, name);
        if (cell >= 0) {
            st->call_code = Py_NewRef(inner);
            st->call_future_cell = cell;
        }
        Py_XDECREF(name);
        Py_XDECREF(names);
        if (PyErr_Occurred()) {
            PyErr_Clear(); /* not this one */
        }
    }
    Py_XDECREF(constants);
    return constants == NULL ? -1 : 0;
}

int
fl_threadsafe_init(fl_state *st)
{
    PyObject *tasks = PyImport_ImportModule("asyncio.tasks");
    PyObject *function = tasks == NULL ? NULL
                                       : PyObject_GetAttrString(tasks, "run_coroutine_threadsafe");
    int rc = -1;
    if (function != NULL) {
        /* somebody's own in its place: nothing to recognise */
        rc = PyFunction_Check(function) ? find_call_code(st, PyFunction_GET_CODE(function)) : 0;
    }
    Py_XDECREF(function);
    Py_XDECREF(tasks);
    return rc;
}
