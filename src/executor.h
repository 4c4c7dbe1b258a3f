/* executor.h - loop.run_in_executor(): a call from the loop to a worker thread,
 * and its outcome back, without a concurrent.futures.Future in between. */
#ifndef FASTLOOP_EXECUTOR_H
#define FASTLOOP_EXECUTOR_H

#include "pool.h"

/* A METH_FASTCALL | METH_KEYWORDS method of Loop. */
PyObject *fl_loop_run_in_executor(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *kwnames);
extern const char fl_loop_run_in_executor_doc[];

#endif
