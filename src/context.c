/* context.c - the shared empty context. */
#include "context.h"

int
fl_empty_context_enter(fl_loop *loop)
{
    if (loop->in_empty_context) {
        return 0;
    }
    if (loop->empty_context == NULL && (loop->empty_context = PyContext_New()) == NULL) {
        return -1;
    }
    if (PyContext_Enter(loop->empty_context) < 0) {
        return -1;
    }
    loop->in_empty_context = true;
    return 0;
}

int
fl_empty_context_leave(fl_loop *loop)
{
    if (!loop->in_empty_context) {
        return 0;
    }
    loop->in_empty_context = false;
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    int rc = PyContext_Exit(loop->empty_context);
    if (type != NULL) {
        PyErr_Restore(type, value, tb);
    }
    return rc;
}

int
fl_empty_context_check(fl_loop *loop)
{
    /* referred to by the loop and, being entered, by the thread; any other
     * reference is a token of ContextVar.set() or the like */
    if (Py_REFCNT(loop->empty_context) <= 2 && fl_context_has_nothing(loop->empty_context)) {
        return 0;
    }
    int rc = fl_empty_context_leave(loop);
    Py_CLEAR(loop->empty_context);
    return rc;
}

PyObject *
fl_empty_context_take(fl_loop *loop)
{
    fl_empty_context_leave(loop);
    PyObject *context = loop->empty_context;
    loop->empty_context = NULL;
    return context;
}
