/* arguments.c - see arguments.h */
#include "arguments.h"

static int
missing_arguments(const char *method, const fl_call_args *c, const char *const *names)
{
    if (c->named[0] == NULL && names[1] != NULL && c->named[1] == NULL) {
        PyErr_Format(PyExc_TypeError,
                     "BaseEventLoop.%s() missing 2 required positional arguments: '%s' and '%s'",
                     method, names[0], names[1]);
    }
    else {
        PyErr_Format(PyExc_TypeError,
                     "BaseEventLoop.%s() missing 1 required positional argument: '%s'", method,
                     names[c->named[0] != NULL]);
    }
    return -1;
}

/* One keyword: context, or a required argument that did not come by position. */
static int
parse_keyword(const char *method, fl_call_args *c, const char *const *names,
              Py_ssize_t by_position, PyObject *key, PyObject *value)
{
    if (PyUnicode_CompareWithASCIIString(key, "context") == 0) {
        c->context = value;
        return 0;
    }
    for (int i = 0; i < 2 && names[i] != NULL; i++) {
        if (PyUnicode_CompareWithASCIIString(key, names[i]) == 0) {
            if (i < by_position) {
                PyErr_Format(PyExc_TypeError,
                             "BaseEventLoop.%s() got multiple values for argument '%s'", method,
                             names[i]);
                return -1;
            }
            c->named[i] = value;
            return 0;
        }
    }
    PyErr_Format(PyExc_TypeError, "BaseEventLoop.%s() got an unexpected keyword argument '%U'",
                 method, key);
    return -1;
}

int
fl_parse_slowly(const char *method, fl_call_args *c, const char *const *names, PyObject *kwnames)
{
    Py_ssize_t by_position = c->nargs, required = names[1] == NULL ? 1 : 2;
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    PyObject *const *values = c->args + c->nargs;

    if (by_position < required) {
        for (Py_ssize_t i = 0; i < required; i++) {
            c->named[i] = i < by_position ? c->args[i] : NULL;
        }
        c->args = c->named;
        c->nargs = required;
    }
    for (Py_ssize_t i = 0; i < nkw; i++) {
        if (parse_keyword(method, c, names, by_position, PyTuple_GET_ITEM(kwnames, i),
                          values[i]) < 0) {
            return -1;
        }
    }
    if (by_position < required &&
        (c->named[0] == NULL || (required == 2 && c->named[1] == NULL))) {
        return missing_arguments(method, c, names);
    }
    if (c->context != NULL && c->context != Py_None && !PyContext_CheckExact(c->context)) {
        PyErr_Format(PyExc_TypeError, "%s() context must be a contextvars.Context, not %.100s",
                     method, Py_TYPE(c->context)->tp_name);
        return -1;
    }
    return 0;
}
