/* introspect.c - makes our tasks seen by tools that read a process's memory.
 *
 * From 3.14 on `python -m asyncio ps` and the like read tasks by offsets into
 * _asyncio.Task's struct that _asyncio publishes for other processes only
 * (AsyncioDebug in CPython's Modules/_asynciomodule.c): its name, its coroutine and
 * a mark that tells it from a Future. Here they are found by what the base's own
 * methods do to a task that never runs; where that is not as expected our tasks
 * stay invisible, and nothing else changes. Who awaits whom is in the base's fields
 * already, as asyncio's own functions note it (task.c).
 *
 * The base owns what its fields hold: it visits, clears and frees them.
 */
#include "introspect.h"

#include <string.h>

#if PY_VERSION_HEX >= 0x030e0000

static PyObject **
field_at(PyObject *task, Py_ssize_t offset)
{
    return (PyObject **)((char *)task + offset);
}

/* base.method(task, argument), or without an argument (NULL) */
static PyObject *
call_base(fl_state *st, const char *method, PyObject *task, PyObject *argument)
{
    PyObject *function = PyObject_GetAttrString((PyObject *)st->BaseTask, method);
    PyObject *result = function == NULL
                           ? NULL
                           : PyObject_CallFunctionObjArgs(function, task, argument, NULL);
    Py_XDECREF(function);
    return result;
}

/* The field that holds `value`, or 0. */
static Py_ssize_t
find_value(PyObject *task, Py_ssize_t size, PyObject *value)
{
    for (Py_ssize_t at = sizeof(PyObject); at + (Py_ssize_t)sizeof(value) <= size;
         at += sizeof(value)) {
        if (*field_at(task, at) == value) {
            return at;
        }
    }
    return 0;
}

/* The empty field of which get_coro() tells what is in it, or 0. */
static Py_ssize_t
find_coro(fl_state *st, PyObject *task, Py_ssize_t size, PyObject *value)
{
    for (Py_ssize_t at = sizeof(PyObject); at + (Py_ssize_t)sizeof(value) <= size;
         at += sizeof(value)) {
        if (*field_at(task, at) != NULL) {
            continue;
        }
        *field_at(task, at) = value;
        PyObject *told = call_base(st, "get_coro", task, NULL);
        *field_at(task, at) = NULL;
        Py_XDECREF(told);
        if (told == value || told == NULL) {
            return told == NULL ? 0 : at;
        }
    }
    return 0;
}

/* The one byte that __init__ sets to 1 before it refuses what is no coroutine, or 0.
 * The only other thing that it sets is the loop. */
static Py_ssize_t
find_mark(fl_state *st, PyObject *task, Py_ssize_t size, PyObject *loop)
{
    char before[FL_FUTURE_BASE_SIZE];
    memcpy(before, task, size);
    PyObject *args = PyTuple_Pack(1, Py_None);
    PyObject *kwargs = Py_BuildValue("{sO}", "loop", loop);
    int rc = args == NULL || kwargs == NULL ? -1 : st->BaseTask->tp_init(task, args, kwargs);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    if (rc == 0 || !PyErr_ExceptionMatches(PyExc_TypeError)) {
        return 0;
    }
    PyErr_Clear();
    Py_ssize_t loop_at = find_value(task, size, loop), mark = 0;
    for (Py_ssize_t at = sizeof(PyObject); at < size; at++) {
        bool is_loop = at >= loop_at && at < loop_at + (Py_ssize_t)sizeof(loop);
        char now = ((char *)task)[at];
        if (is_loop || now == before[at]) {
            continue;
        }
        if (mark != 0 || before[at] != 0 || now != 1) {
            return 0;
        }
        mark = at;
    }
    return mark;
}

/* An object with the get_debug() that a future asks its loop for. */
static PyObject *
make_loop(void)
{
    PyObject *names = PyDict_New();
    PyObject *loop = names == NULL ? NULL
                                   : PyRun_String("type('Loop', (), {'get_debug': bool})()",
                                                  Py_eval_input, names, names);
    Py_XDECREF(names);
    return loop;
}

static void
find_fields(fl_state *st, PyObject *task, PyObject *name, PyObject *loop)
{
    Py_ssize_t size = st->BaseTask->tp_basicsize;
    PyObject *none = call_base(st, "set_name", task, name);
    Py_ssize_t name_at = none == NULL ? 0 : find_value(task, size, name);
    Py_ssize_t coro_at = name_at == 0 ? 0 : find_coro(st, task, size, name);
    Py_ssize_t mark_at = coro_at == 0 ? 0 : find_mark(st, task, size, loop);
    Py_XDECREF(none);
    if (mark_at != 0) {
        st->task_name_at = name_at;
        st->task_coro_at = coro_at;
        st->task_mark_at = mark_at;
    }
}

int
fl_introspect_init(fl_state *st)
{
    st->task_name_at = offsetof(fl_task, name);
    PyObject *name = PyUnicode_FromString("fastloop's probe");
    PyObject *loop = make_loop();
    PyObject *task = st->BaseTask->tp_new(st->BaseTask, st->empty_tuple, NULL);
    if (name != NULL && loop != NULL && task != NULL) {
        find_fields(st, task, name, loop);
    }
    Py_XDECREF(task);
    Py_XDECREF(loop);
    Py_XDECREF(name);
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception) &&
        !PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear(); /* its methods have changed */
    }
    return PyErr_Occurred() ? -1 : 0;
}

#else

int
fl_introspect_init(fl_state *st)
{
    st->task_name_at = offsetof(fl_task, name);
    return 0;
}

#endif
