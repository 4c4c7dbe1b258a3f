/* module.c - the extension module fastloop._core: finds what it needs of asyncio
 * and registers the types. */
#include "future.h"
#include "handle.h"
#include "loop.h"
#include "sockops.h"
#include "state.h"
#include "stream.h"
#include "task.h"
#include "tls.h"

PyTypeObject *
fl_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject *base, Py_ssize_t base_size)
{
    if (base != NULL && base->tp_basicsize > base_size) {
        PyErr_Format(PyExc_ImportError,
                     "fastloop was built for a %s of at most %zd bytes, but this Python's "
                     "has %zd: please report it",
                     base->tp_name, base_size, base->tp_basicsize);
        return NULL;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, spec, (PyObject *)base);
    if (type != NULL && PyModule_AddType(module, (PyTypeObject *)type) < 0) {
        Py_CLEAR(type);
    }
    return (PyTypeObject *)type;
}

/* module.name into *slot; `optional`: NULL if this Python has no such thing. */
static int
import_attr(const char *module_name, const char *name, bool optional, PyObject **slot)
{
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL) {
        return -1;
    }
    *slot = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    if (*slot == NULL && optional && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        return 0;
    }
    return *slot == NULL ? -1 : 0;
}

/* Whether our tasks are in a list of our own, which _live_tasks.py then shows in
 * asyncio.all_tasks(). 3.14 keeps such a list itself. On 3.11 all interpreters
 * share one set, which only the main one may change. */
static bool
keeps_live_tasks(void)
{
#if PY_VERSION_HEX >= 0x030e0000
    return false;
#elif PY_VERSION_HEX >= 0x030c0000
    return true;
#else
    return PyInterpreterState_Get() == PyInterpreterState_Main();
#endif
}

static int
import_asyncio(fl_state *st)
{
    const struct {
        const char *module, *name;
        bool optional;
        PyObject **slot;
    } wanted[] = {
        {"_asyncio", "Future", false, (PyObject **)&st->BaseFuture},
        {"_asyncio", "Task", false, (PyObject **)&st->BaseTask},
        {"_asyncio", "_swap_current_task", true, &st->swap_current_task},
        {"_asyncio", "_enter_task", false, &st->enter_task},
        {"_asyncio", "_leave_task", false, &st->leave_task},
        {"_asyncio", "_register_task", false, &st->register_task},
        {"_asyncio", "_register_eager_task", true, &st->register_eager_task},
        {"_asyncio", "_unregister_eager_task", true, &st->unregister_eager_task},
        {"_asyncio", "future_add_to_awaited_by", true, &st->awaited_by_add},
        {"_asyncio", "future_discard_from_awaited_by", true, &st->awaited_by_discard},
        {"asyncio.exceptions", "CancelledError", false, &st->CancelledError},
        {"asyncio.exceptions", "InvalidStateError", false, &st->InvalidStateError},
        {"asyncio.coroutines", "iscoroutine", false, &st->iscoroutine},
        {"inspect", "isgenerator", false, &st->isgenerator},
        {"asyncio.format_helpers", "extract_stack", false, &st->extract_stack},
        {"asyncio.format_helpers", "_format_callback_source", false,
         &st->format_callback_source},
        {"asyncio.base_futures", "_future_repr", false, &st->future_repr},
        {"asyncio.base_tasks", "_task_repr", false, &st->task_repr},
        {"asyncio.base_tasks", "_task_get_stack", false, &st->task_get_stack},
        {"asyncio.base_tasks", "_task_print_stack", false, &st->task_print_stack},
        {"asyncio.futures", "_set_result_unless_cancelled", false,
         &st->set_result_unless_cancelled},
        {"asyncio.events", "get_event_loop", false, &st->get_event_loop},
        {"asyncio.tasks", "_current_tasks", true, &st->current_tasks},
        {"asyncio.base_events", "_format_handle", false, &st->format_handle},
        {"asyncio.log", "logger", false, &st->logger},
    };
    /* asyncio before _asyncio: the other way round _asyncio imports asyncio while it is
     * half made itself, and asyncio falls back to its Python classes for good. */
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    if (asyncio == NULL) {
        return -1;
    }
    Py_DECREF(asyncio);
    for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
        if (import_attr(wanted[i].module, wanted[i].name, wanted[i].optional,
                        wanted[i].slot) < 0) {
            return -1;
        }
    }
    if (keeps_live_tasks()) {
        Py_CLEAR(st->register_task); /* a WeakSet.add: our own list is cheaper */
    }
    return 0;
}

static int
import_helpers(fl_state *st)
{
    PyObject *base_loop = NULL, *defaults = NULL, *names = PyDict_New();
    int rc = -1;

    if (names == NULL ||
        (st->do_nothing = PyRun_String("lambda: None", Py_eval_input, names, names)) == NULL) {
        goto done;
    }
    if (import_attr("asyncio.base_events", "BaseEventLoop", false, &base_loop) < 0) {
        goto done;
    }
    st->base_create_task = PyObject_GetAttrString(base_loop, "create_task");
    defaults = PyObject_GetAttrString(st->format_callback_source, "__kwdefaults__");
    if (st->base_create_task == NULL || defaults == NULL) {
        goto done;
    }
    st->format_callback_takes_debug =
        PyDict_Check(defaults) && PyDict_GetItemString(defaults, "debug") != NULL;
    rc = 0;
done:
    Py_XDECREF(base_loop);
    Py_XDECREF(defaults);
    Py_XDECREF(names);
    return rc;
}

static int
intern_names(fl_state *st)
{
#define FL_INTERN(name)                                                                  \
    if ((st->str_##name = PyUnicode_InternFromString(#name)) == NULL) {                  \
        return -1;                                                                       \
    }
    FL_NAMES(FL_INTERN)
#undef FL_INTERN
    st->empty_tuple = PyTuple_New(0);
    st->kwnames_context = Py_BuildValue("(s)", "context");
    st->kwnames_debug = Py_BuildValue("(s)", "debug");
    return st->empty_tuple == NULL || st->kwnames_context == NULL || st->kwnames_debug == NULL
               ? -1
               : 0;
}

static int
module_exec(PyObject *module)
{
    fl_state *st = fl_state_of_module(module);
    st->module = module;
    if (intern_names(st) < 0 || import_asyncio(st) < 0 || import_helpers(st) < 0 ||
        fl_handle_init(module, st) < 0 || fl_future_init(module, st) < 0 ||
        fl_task_init(module, st) < 0 || fl_loop_init(module, st) < 0 ||
        PyModule_AddObjectRef(module, "_keeps_live_tasks",
                              keeps_live_tasks() ? Py_True : Py_False) < 0 ||
        fl_stream_init(module, st) < 0 || fl_sock_init(module, st) < 0 ||
        fl_executor_init(module, st) < 0 || fl_tls_init(module, st) < 0) {
        return -1;
    }
    return 0;
}

/* Every owned object of the state, for traverse and clear. */
typedef int (*slot_function)(PyObject **slot, void *arg);

static int
each_slot(fl_state *st, slot_function function, void *arg)
{
    PyObject **slots[] = {
        (PyObject **)&st->LoopType, (PyObject **)&st->HandleType,
        (PyObject **)&st->TimerHandleType, (PyObject **)&st->SharedHandleType,
        (PyObject **)&st->FutureType,
        (PyObject **)&st->FutureIterType, (PyObject **)&st->TaskType,
        (PyObject **)&st->BaseFuture, (PyObject **)&st->BaseTask, &st->CancelledError,
        &st->InvalidStateError, &st->iscoroutine, &st->isgenerator, &st->extract_stack,
        &st->format_callback_source, &st->future_repr, &st->task_repr, &st->task_get_stack,
        &st->task_print_stack, &st->set_result_unless_cancelled, &st->get_event_loop,
        &st->current_tasks, &st->swap_current_task, &st->enter_task, &st->leave_task,
        &st->register_task, &st->register_eager_task, &st->unregister_eager_task,
        &st->awaited_by_add, &st->awaited_by_discard, &st->base_create_task,
        &st->format_handle, &st->plain_name, &st->logger, &st->empty_tuple, &st->kwnames_context,
        &st->kwnames_debug,
        (PyObject **)&st->PoolType, (PyObject **)&st->WorkType, &st->executor_module,
        &st->executor_logger, &st->BrokenThreadPool, &st->ConcurrentCancelledError,
        &st->ConcurrentInvalidStateError, &st->convert_future_exc, &st->base_run_in_executor,
        &st->ThreadPoolExecutor, &st->executor_submit, &st->do_nothing, &st->call_code,
#define FL_NAME_SLOT(name) &st->str_##name,
        FL_NAMES(FL_NAME_SLOT)
#undef FL_NAME_SLOT
    };
    for (size_t i = 0; i < sizeof(slots) / sizeof(*slots); i++) {
        int rc = function(slots[i], arg);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

typedef struct {
    visitproc visit;
    void *arg;
} visitor;

static int
visit_slot(PyObject **slot, void *arg)
{
    visitor *v = arg;
    return *slot == NULL ? 0 : v->visit(*slot, v->arg);
}

static int
clear_slot(PyObject **slot, void *Py_UNUSED(arg))
{
    Py_CLEAR(*slot);
    return 0;
}

/* The last collections of an interpreter take everything in one go and clear it in any order,
 * but no object of ours can be freed without the state. What is not visited is not garbage: types
 * and state stay to the very end. Whether it has come shows as importlib sees it (main and
 * subinterpreters alike; CPython's finalize_modules() in Python/pylifecycle.c does it first). */
static bool
interpreter_ends(void)
{
    PyObject *meta_path = PySys_GetObject("meta_path");
    return meta_path == NULL || meta_path == Py_None;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    if (interpreter_ends()) {
        return 0;
    }
    visitor v = {visit, arg};
    int rc = fl_stream_state_traverse(fl_state_of_module(module), visit, arg);
    if (rc == 0) {
        rc = fl_sock_state_traverse(fl_state_of_module(module), visit, arg);
    }
    if (rc == 0) {
        rc = fl_tls_state_traverse(fl_state_of_module(module), visit, arg);
    }
    if (rc != 0) {
        return rc;
    }
    return each_slot(fl_state_of_module(module), visit_slot, &v);
}

static int
module_clear(PyObject *module)
{
    fl_state *st = fl_state_of_module(module);
    if (st->HandleType != NULL && st->TimerHandleType != NULL) {
        fl_handle_free_lists_clear(st);
    }
    fl_future_free_lists_clear(st);
    fl_stream_state_clear(st);
    fl_sock_state_clear(st);
    fl_tls_state_clear(st);
    return each_slot(st, clear_slot, NULL);
}

static void
module_free(void *module)
{
    module_clear(module);
    PyMem_Free(fl_state_of_module(module)->stream);
    PyMem_Free(fl_state_of_module(module)->tls);
    fl_sock_state_free(fl_state_of_module(module));
}

PyDoc_STRVAR(live_tasks_doc, "_live_tasks($module, /)\n--\n\n"
                             "The fastloop tasks that are not done (3.11 to 3.13).");

static PyObject *
module_live_tasks(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    return fl_live_tasks(fl_state_of_module(module));
}

static PyMethodDef module_methods[] = {
    {"_live_tasks", module_live_tasks, METH_NOARGS, live_tasks_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

struct PyModuleDef fl_module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fastloop._core",
    .m_doc = "The C core of fastloop.",
    .m_size = sizeof(fl_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&fl_module_def);
}
