/* report.c - telling the loop's exception handler. */
#include "report.h"

#include <stdarg.h>

static int
report(PyObject *loop, const char *message, PyObject *exception, va_list pairs)
{
    PyObject *text = NULL, *result = NULL;
    PyObject *context = PyDict_New();
    int rc = -1;

    if (context == NULL || (text = PyUnicode_FromString(message)) == NULL ||
        PyDict_SetItemString(context, "message", text) < 0 ||
        (exception != NULL && PyDict_SetItemString(context, "exception", exception) < 0)) {
        goto done;
    }
    for (const char *key; (key = va_arg(pairs, const char *)) != NULL;) {
        PyObject *value = va_arg(pairs, PyObject *);
        if (value != NULL && PyDict_SetItemString(context, key, value) < 0) {
            goto done;
        }
    }
    result = PyObject_CallMethod(loop, "call_exception_handler", "O", context);
    rc = result == NULL ? -1 : 0;
done:
    Py_XDECREF(result);
    Py_XDECREF(text);
    Py_XDECREF(context);
    return rc;
}

int
fl_report(PyObject *loop, const char *message, PyObject *exception, ...)
{
    va_list pairs;
    va_start(pairs, exception);
    int rc = report(loop, message, exception, pairs);
    va_end(pairs);
    return rc;
}

void
fl_report_from_finalizer(PyObject *self, PyObject *loop, const char *message,
                         PyObject *exception, PyObject *source_traceback, const char *key)
{
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (fl_report(loop, message, exception, key, self, "source_traceback", source_traceback,
                  (char *)NULL) < 0) {
        PyErr_WriteUnraisable(self);
    }
    PyErr_Restore(type, value, tb);
}

PyObject *
fl_take_raised(void)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (type == NULL) { /* lost by the interpreter, where memory was lacking */
        PyErr_NoMemory();
        PyErr_Fetch(&type, &value, &tb);
    }
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL) {
        PyException_SetTraceback(value, tb);
    }
    Py_XDECREF(type);
    Py_XDECREF(tb);
    return value;
#endif
}

int
fl_report_raised(PyObject *loop, const char *message, ...)
{
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
        PyErr_ExceptionMatches(PyExc_SystemExit)) {
        return -1;
    }
    PyObject *exception = fl_take_raised(), *handled = PyErr_GetHandledException();
    va_list pairs;
    va_start(pairs, message);
    PyErr_SetHandledException(exception); /* asyncio tells it within an except clause */
    int rc = report(loop, message, exception, pairs);
    PyErr_SetHandledException(handled);
    va_end(pairs);
    Py_XDECREF(handled);
    Py_DECREF(exception);
    return rc;
}
