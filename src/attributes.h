/* attributes.h - the instance attributes that asyncio's Python code gives a loop.
 *
 * They are members of the C struct, so that a loop has no __dict__ until someone
 * adds an attribute of their own: the interpreter then specialises every
 * `loop.method`, instead of looking into the __dict__ and along the MRO
 * (LOAD_ATTR_METHOD_LAZY_DICT and _WITH_VALUES in CPython's Python/bytecodes.c). */
#ifndef FASTLOOP_ATTRIBUTES_H
#define FASTLOOP_ATTRIBUTES_H

#include "state.h"

#define FL_LOOP_ATTRIBUTES(X)                                                             \
    X(_asyncgens) X(_asyncgens_shutdown_called) X(_clock_resolution)                      \
    X(_coroutine_origin_tracking_enabled) X(_coroutine_origin_tracking_saved_depth)       \
    X(_csock) X(_default_executor) X(_exception_handler) X(_executor_shutdown_called)     \
    X(_internal_fds) X(_old_agen_hooks) X(_selector) X(_signal_handlers) X(_ssock)        \
    X(_timer_cancelled_count) X(_transports) X(_unix_server_sockets) X(_watcher)

enum {
#define FL_ATTRIBUTE_INDEX(name) FL_ATTRIBUTE_##name,
    FL_LOOP_ATTRIBUTES(FL_ATTRIBUTE_INDEX)
#undef FL_ATTRIBUTE_INDEX
    FL_ATTRIBUTE_COUNT
};

#endif
