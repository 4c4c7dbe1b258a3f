/* state.h - what one import of fastloop._core owns: its types, the asyncio
 * objects it works with, interned names, and the list of live tasks.
 *
 * There are no mutable globals: every object reaches its fl_state through a
 * pointer of its own (loop->st, future->st, handle->loop->st).
 */
#ifndef FASTLOOP_STATE_H
#define FASTLOOP_STATE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Our Future and Task begin with the bytes of _asyncio.Future / _asyncio.Task,
 * which we never use but whose size the subtype must keep. The largest is
 * 3.11's Task with 176 bytes; module.c refuses to load where it is not enough. */
enum { FL_FUTURE_BASE_SIZE = 176 };

/* The same for asyncio.Handle / asyncio.TimerHandle. */
#if PY_VERSION_HEX < 0x030c0000
enum { FL_HANDLE_BASE_SIZE = 96 };
#else
enum { FL_HANDLE_BASE_SIZE = 88 };
#endif

typedef struct fl_state fl_state;
typedef struct fl_loop fl_loop;
typedef struct fl_future fl_future;
typedef struct fl_task fl_task;
typedef struct fl_handle fl_handle;
typedef struct fl_timer fl_timer;

/* Interned attribute and method names, one field a name. */
#define FL_NAMES(X)                                                                      \
    X(_asyncio_future_blocking) X(add_done_callback) X(call_soon) X(cancel) X(get_loop)  \
    X(_loop) X(get_debug) X(throw) X(is_running) X(_check_callback) X(_shutdown)         \
    X(_start_worker) X(_work_queue) X(_default_executor) X(_check_default_executor)      \
    X(asyncio) X(critical) X(run_in_executor) X(set_result) X(set_exception)             \
    X(set_running_or_notify_cancel) X(submit) X(_state) X(time)

struct fl_state {
    PyObject *module; /* borrowed: the module owns this state */

    /* our types */
    PyTypeObject *LoopType;
    PyTypeObject *HandleType;
    PyTypeObject *TimerHandleType;
    PyTypeObject *SharedHandleType; /* 3.14 and later, else NULL */
    PyTypeObject *FutureType;
    PyTypeObject *FutureIterType;
    PyTypeObject *TaskType;
    PyTypeObject *PoolType; /* WorkQueue */
    PyTypeObject *WorkType;

    /* asyncio's types and functions */
    PyTypeObject *BaseFuture; /* _asyncio.Future */
    PyTypeObject *BaseTask;   /* _asyncio.Task */
    PyObject *CancelledError;
    PyObject *InvalidStateError;
    PyObject *iscoroutine;               /* coroutines.iscoroutine */
    PyObject *isgenerator;               /* inspect.isgenerator */
    PyObject *extract_stack;             /* format_helpers.extract_stack */
    PyObject *format_callback_source;    /* format_helpers._format_callback_source */
    bool format_callback_takes_debug;    /* it has a keyword `debug` (3.13+) */
    PyObject *future_repr;               /* base_futures._future_repr */
    PyObject *task_repr;                 /* base_tasks._task_repr */
    PyObject *task_get_stack;            /* base_tasks._task_get_stack */
    PyObject *task_print_stack;          /* base_tasks._task_print_stack */
    PyObject *set_result_unless_cancelled; /* futures._set_result_unless_cancelled */
    PyObject *get_event_loop;            /* events.get_event_loop */
    PyObject *current_tasks;             /* 3.11-3.13: tasks._current_tasks, a dict */
    PyObject *swap_current_task;         /* 3.12+: _asyncio._swap_current_task */
    PyObject *enter_task, *leave_task;   /* tasks._enter_task, _leave_task */
    PyObject *register_task;             /* 3.14+: _asyncio._register_task */
    PyObject *register_eager_task;       /* 3.12+ */
    PyObject *unregister_eager_task;     /* 3.12+ */
    PyObject *awaited_by_add;            /* 3.14+: future_add_to_awaited_by */
    PyObject *awaited_by_discard;        /* 3.14+ */
    PyObject *base_create_task;          /* BaseEventLoop.create_task */
    PyObject *format_handle;             /* base_events._format_handle */
    PyObject *plain_name;                /* fastloop._names.plain_name, or NULL: not needed yet */
    PyObject *logger;                    /* asyncio.log.logger */
    PyObject *do_nothing;                /* lambda: None */
    /* executor.c: concurrent.futures' and, once asked for, ours */
    PyObject *executor_module;  /* concurrent.futures.thread */
    PyObject *executor_logger;  /* concurrent.futures._base.LOGGER */
    PyObject *BrokenThreadPool;
    PyObject *ConcurrentCancelledError;
    PyObject *ConcurrentInvalidStateError;
    PyObject *convert_future_exc;   /* futures._convert_future_exc */
    PyObject *base_run_in_executor; /* BaseEventLoop.run_in_executor */
    PyObject *ThreadPoolExecutor;   /* fastloop.ThreadPoolExecutor, or NULL */
    PyObject *executor_submit;      /* its submit(), or NULL */
    /* threadsafe.c: the code of run_coroutine_threadsafe()'s callback, or NULL,
     * and which of its free variables is the future */
    PyObject *call_code;
    Py_ssize_t call_future_cell;
    PyObject *empty_tuple;
    PyObject *kwnames_context;           /* ("context",) */
    PyObject *kwnames_debug;             /* ("debug",) */

#define FL_NAME_FIELD(name) PyObject *str_##name;
    FL_NAMES(FL_NAME_FIELD)
#undef FL_NAME_FIELD

    struct fl_stream_state *stream; /* owned: stream.h */
    struct fl_sock_state *sock; /* owned: sockops.h */
    struct fl_tls_state *tls; /* owned: tls.h */

    /* Tasks that are not done, newest first: asyncio.all_tasks() on 3.11-3.13
     * (3.14 keeps such a list itself). Weak: a task unlinks itself. */
    fl_task *tasks;
    uint64_t task_counter; /* for "Task-N" */

    /* introspect.c: offsets into a task. The last two are 0 if not known. */
    Py_ssize_t task_name_at; /* its name: the base's field, or ours */
    Py_ssize_t task_coro_at; /* the base's coroutine */
    Py_ssize_t task_mark_at; /* the byte that is 1 in tasks */

    /* Freed handles, timers and future iterators kept for reuse, linked through
     * a field of theirs. */
    fl_handle *free_handles;
    fl_handle *free_timers;
    int n_free_handles, n_free_timers;
    PyObject *free_future_iters;
    int n_free_future_iters;

    /* See fl_dealloc_bounded(): how many are under way, the thread of the last of them, and (3.13)
     * what it has put off. */
    int dealloc_depth;
    unsigned long dealloc_thread;
    struct fl_put_off *put_off;
    size_t n_put_off, room_put_off;
};

/* An object that is to be freed by `end`. */
struct fl_put_off {
    PyObject *object;
    destructor end;
};

extern struct PyModuleDef fl_module_def;

/* The state of the module that defined `type` or one of its bases. Sets
 * TypeError and gives NULL for a type that is not ours. */
static inline fl_state *
fl_state_of_type(PyTypeObject *type)
{
    PyObject *module = PyType_GetModuleByDef(type, &fl_module_def);
    return module == NULL ? NULL : (fl_state *)PyModule_GetState(module);
}

static inline fl_state *
fl_state_of_module(PyObject *module)
{
    return (fl_state *)PyModule_GetState(module);
}

/* Each file that owns types or module functions registers them here. Return 0,
 * or -1 with an exception set. Called once per module, in this order. */
int fl_handle_init(PyObject *module, fl_state *st);
int fl_future_init(PyObject *module, fl_state *st);
int fl_task_init(PyObject *module, fl_state *st);
int fl_loop_init(PyObject *module, fl_state *st);
int fl_stream_init(PyObject *module, fl_state *st);
int fl_sock_init(PyObject *module, fl_state *st);
int fl_executor_init(PyObject *module, fl_state *st);

/* Make a heap type of `spec` with one base (NULL: object), add it to the module
 * under its own name, and return a new reference. Our structs begin with room
 * for the base's own fields: base_size bytes, which must be enough. */
PyTypeObject *fl_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject *base,
                          Py_ssize_t base_size);

/* dealloc.c: put it off, false if there is no memory; free all that was put off. */
bool fl_dealloc_put_off(fl_state *st, PyObject *self, destructor end);
void fl_dealloc_rest(fl_state *st);

/* Free an untracked object by `end`, which may free others of ours in turn, and so on: a chain of
 * any length must not take more than so much of the C stack. Since 3.14 the interpreter sees to
 * that for every type; before, for those that ask for it, which costs more than most of our
 * deallocations: so only where several are under way, of all threads together. `dealloc` is the
 * type's, which calls this, and is called once more for an object that was put off. */
static inline void
fl_dealloc_bounded(fl_state *st, PyObject *self, destructor dealloc, destructor end)
{
#if PY_VERSION_HEX < 0x030e0000
    enum { FEW = 16 };
    if (st->dealloc_depth >= FEW) {
#if PY_VERSION_HEX >= 0x030d0000
        /* 3.13's own lets a chain take as much of the stack as a main thread has. */
        if (st->dealloc_thread == PyThread_get_thread_ident() &&
            fl_dealloc_put_off(st, self, end)) {
            return;
        }
#endif
        Py_TRASHCAN_BEGIN(self, dealloc)
        end(self);
        Py_TRASHCAN_END
        return;
    }
    bool last = ++st->dealloc_depth == FEW;
    if (last) {
        st->dealloc_thread = PyThread_get_thread_ident();
    }
    end(self);
    if (last) {
        fl_dealloc_rest(st);
    }
    st->dealloc_depth--;
#else
    (void)st;
    (void)dealloc;
    end(self);
#endif
}

/* End of the dealloc of a subtype of _asyncio.Future / Task: let the base free
 * its own fields and the object. */
static inline void
fl_dealloc_base(PyObject *self, PyTypeObject *base)
{
#ifdef Py_DEBUG
    /* the base calls the finalizer once more, which a debug interpreter allows
     * for tracked objects only; ours is empty by now, so that is all it is for */
    PyObject_GC_Track(self);
#endif
#if PY_VERSION_HEX < 0x030c0000
    /* 3.11's base is a static type, which does not know that its subtype is not */
    PyTypeObject *type = Py_TYPE(self);
    base->tp_dealloc(self);
    Py_DECREF(type);
#else
    base->tp_dealloc(self);
#endif
}

/* A new reference to what an attribute shows for `object`. */
static inline PyObject *
fl_none_or(PyObject *object)
{
    return Py_NewRef(object == NULL ? Py_None : object);
}

/* The truth of what an attribute is set to; -1 with an exception set, as when it
 * is deleted (NULL). */
static inline int
fl_attribute_truth(PyObject *value)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete attribute");
        return -1;
    }
    return PyObject_IsTrue(value);
}

static inline bool
fl_is_finalizing(void)
{
#if PY_VERSION_HEX >= 0x030d0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
}

typedef PyObject *(*fl_fastcall)(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);

/* Call a METH_FASTCALL | METH_KEYWORDS function of C without the call protocol
 * around it; for the few functions of _asyncio that every task step needs. */
static inline PyObject *
fl_call_cfunction(PyObject *function, PyObject *const *args, Py_ssize_t nargs)
{
    fl_fastcall call = (fl_fastcall)(void (*)(void))PyCFunction_GET_FUNCTION(function);
    return call(PyCFunction_GET_SELF(function), args, nargs, NULL);
}

/* Let a thread that waits for the GIL have it, as a Python function does when it
 * is entered. To let go of the GIL and take it again is worse than nothing: the
 * waiter is woken too late, and starts again on the 5 ms after which it asks for
 * the GIL (take_gil() in CPython's ceval_gil.c), so that it never does. */
static inline int
fl_let_threads_in(fl_state *st)
{
    PyObject *r = PyObject_CallNoArgs(st->do_nothing);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

#endif
