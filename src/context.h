/* context.h - the shared empty context.
 *
 * Most callbacks are scheduled where no context variable is set, and set none
 * themselves. Copying a context for each, entering and leaving it would cost
 * as much as all the rest of a call_soon(). Instead such a handle is marked
 * FL_RUN_IN_EMPTY, and the loop runs all of them in one empty context, which it
 * stays in from one to the next. A callback that leaves something in it, or that
 * somebody could still refer to it from, keeps it for itself: the loop makes
 * another. So each callback still sees what asyncio would show it.
 */
#ifndef FASTLOOP_CONTEXT_H
#define FASTLOOP_CONTEXT_H

#include "loop.h"

/* len(context) == 0; by the slot, because this is asked twice for each callback. */
static inline bool
fl_context_has_nothing(PyObject *context)
{
    return PyContext_Type.tp_as_mapping->mp_length(context) == 0;
}

/* Whether no context variable is set in this thread's current context. */
static inline bool
fl_context_is_empty(void)
{
    PyObject *current = PyThreadState_Get()->context;
    return current == NULL || fl_context_has_nothing(current);
}

/* Enter the shared empty context, unless the loop is in it. -1 on error. */
int fl_empty_context_enter(fl_loop *loop);

/* Leave it, if the loop is in it; an exception that is set is kept. */
int fl_empty_context_leave(fl_loop *loop);

/* After a callback: the context stays shared if it is as it was before. */
int fl_empty_context_check(fl_loop *loop);

/* Leave it and hand it over, for a callback that failed: a new reference. */
PyObject *fl_empty_context_take(fl_loop *loop);

#endif
