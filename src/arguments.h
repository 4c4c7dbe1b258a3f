/* arguments.h - the arguments of call_soon() and its kin: one or two that are required,
 * those of the callback, and a context by keyword. */
#ifndef FASTLOOP_ARGUMENTS_H
#define FASTLOOP_ARGUMENTS_H

#include <Python.h>

/* The arguments of one call; all borrowed. */
typedef struct {
    PyObject *const *args;
    Py_ssize_t nargs;
    PyObject *context; /* NULL: not given */
    PyObject *named[2]; /* args, if not all that are required came by position */
} fl_call_args;

/* fl_parse_call() for keywords, and for what is missing. */
int fl_parse_slowly(const char *method, fl_call_args *c, const char *const *names,
                    PyObject *kwnames);

/* c has args and nargs of a vectorcall, and the rest NULL. `names` are those of the two
 * that are required, the second NULL if there is but one. -1 with asyncio's TypeError. */
static inline int
fl_parse_call(const char *method, fl_call_args *c, const char *const *names, PyObject *kwnames)
{
    if (kwnames == NULL && c->nargs >= (names[1] == NULL ? 1 : 2)) {
        return 0;
    }
    return fl_parse_slowly(method, c, names, kwnames);
}

#endif
