/* report.h - telling the loop's exception handler. */
#ifndef FASTLOOP_REPORT_H
#define FASTLOOP_REPORT_H

#include "state.h"

/* loop.call_exception_handler({'message': message, 'exception': exception, ...}).
 * `exception` may be NULL. Then come pairs (const char *key, PyObject *value) up
 * to a NULL key; a pair whose value is NULL is left out. No exception may be
 * set. -1 with the exception that the call raised. */
int fl_report(PyObject *loop, const char *message, PyObject *exception, ...);

/* The same from a finalizer: an exception that is set stays set, what the
 * handler raises goes to sys.unraisablehook. */
void fl_report_from_finalizer(PyObject *self, PyObject *loop, const char *message,
                              PyObject *exception, PyObject *source_traceback,
                              const char *key);

/* The exception that is set, as an instance with its traceback; it is cleared. */
PyObject *fl_take_raised(void);

/* Report the exception that is set, and clear it; but KeyboardInterrupt and
 * SystemExit stay set, for run_forever to let out: -1. */
int fl_report_raised(PyObject *loop, const char *message, ...);

#endif
