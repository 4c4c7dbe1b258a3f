/* threadsafe.h - a thread that calls into the loop, and what it waits for. */
#ifndef FASTLOOP_THREADSAFE_H
#define FASTLOOP_THREADSAFE_H

#include "loop.h"

/* Tell the loop of a callback that call_soon_threadsafe() has queued. */
void fl_loop_wake_for(fl_loop *loop, PyObject *callback);

int fl_threadsafe_init(fl_state *st);

#endif
