/* pool.c - see pool.h */
#include "pool.h"

#include "report.h"

/* A worker that goes from call to call asks the interpreter this often whether
 * another thread waits for the GIL, which otherwise only bytecode does. */
enum { BREATHE_NS = 1000000 };

/* -- Work: one call ------------------------------------------------------- */

static int
work_traverse(PyObject *self, visitproc visit, void *arg)
{
    fl_work *work = (fl_work *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(work->future);
    Py_VISIT(work->func);
    Py_VISIT(work->kwargs);
    Py_VISIT(work->result);
    Py_VISIT(work->exception);
    for (Py_ssize_t i = 1; i < Py_SIZE(work); i++) {
        Py_VISIT(work->args[i]);
    }
    return 0;
}

/* Forget the function and its arguments. */
static void
work_drop_call(fl_work *work)
{
    Py_ssize_t n = Py_SIZE(work);
    for (Py_ssize_t i = 1; i < n; i++) {
        Py_CLEAR(work->args[i]);
    }
    Py_CLEAR(work->kwargs);
    Py_CLEAR(work->func);
}

/* The loop need not look out for its answer any more. */
static void
work_not_due(fl_work *work)
{
    fl_loop *loop = work->due ? ((fl_future *)work->future)->native : NULL;
    if (loop != NULL) {
        loop->answers_due--;
    }
    work->due = false;
}

static int
work_clear(PyObject *self)
{
    fl_work *work = (fl_work *)self;
    work_not_due(work);
    work_drop_call(work);
    Py_CLEAR(work->future);
    Py_CLEAR(work->result);
    Py_CLEAR(work->exception);
    return 0;
}

static void
work_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    work_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* Log the exception that is set, as concurrent.futures does with one that is
 * not the called function's. */
static void
log_worker_exception(fl_state *st)
{
    PyObject *exception = fl_take_raised();
    PyObject *critical = PyObject_GetAttr(st->executor_logger, st->str_critical);
    PyObject *args = Py_BuildValue("(s)", "Exception in worker");
    PyObject *kwargs = Py_BuildValue("{s:O}", "exc_info", exception);
    if (critical == NULL || args == NULL || kwargs == NULL) {
        PyErr_WriteUnraisable(NULL);
    }
    else {
        PyObject *r = PyObject_Call(critical, args, kwargs);
        if (r == NULL) {
            PyErr_WriteUnraisable(critical);
        }
        Py_XDECREF(r);
    }
    Py_XDECREF(critical);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(exception);
}

/* asyncio gives the awaiter its own CancelledError and InvalidStateError for
 * those of concurrent.futures. */
static int
set_loop_exception(fl_state *st, fl_future *future, PyObject *exception)
{
    if (!Py_IS_TYPE(exception, (PyTypeObject *)st->ConcurrentCancelledError) &&
        !Py_IS_TYPE(exception, (PyTypeObject *)st->ConcurrentInvalidStateError)) {
        return fl_future_set_exception(future, exception);
    }
    PyObject *converted = PyObject_CallOneArg(st->convert_future_exc, exception);
    if (converted == NULL) {
        return -1;
    }
    int rc = fl_future_set_exception(future, converted);
    Py_DECREF(converted);
    return rc;
}

/* fl_watch.on_event: in the loop's thread, finish the future unless it has been
 * cancelled meanwhile. */
static int
work_deliver(fl_watch *watch, unsigned events)
{
    (void)events;
    fl_work *work = (fl_work *)watch->owner;
    fl_future *future = (fl_future *)work->future;
    int rc = 0;
    work_not_due(work);
    if (future->state != FL_CANCELLED) {
        if (work->result != NULL) {
            rc = fl_future_set_result(future, work->result);
        }
        else if (work->exception != NULL) {
            rc = set_loop_exception(work->st, future, work->exception);
        }
        else {
            rc = fl_future_cancel(future, NULL);
        }
    }
    if (rc < 0) {
        return fl_report_raised(future->loop, "Exception in callback of run_in_executor()",
                                "future", (PyObject *)future, (char *)NULL);
    }
    return 0;
}

/* Send the outcome to the loop, and return it: it is still to be woken. NULL once
 * the loop is closed: nobody waits for it then. */
static fl_loop *
work_send(fl_work *work)
{
    fl_future *future = (fl_future *)work->future;
    fl_loop *loop = future->native;
    if (loop == NULL || loop->closed) {
        return NULL;
    }
    if (fl_watch_queue(loop, &work->delivery, FL_READ) < 0) {
        log_worker_exception(work->st);
        return NULL;
    }
    return loop;
}

/* Hand the outcome of a submit() to its concurrent.futures.Future. */
static int
work_settle(fl_work *work)
{
    fl_state *st = work->st;
    PyObject *r = work->exception != NULL
                      ? PyObject_CallMethodOneArg(work->future, st->str_set_exception,
                                                  work->exception)
                      : PyObject_CallMethodOneArg(work->future, st->str_set_result,
                                                  work->result);
    if (r == NULL) {
        return -1;
    }
    Py_DECREF(r);
    return 0;
}

/* Whether it is still wanted: 1, 0, or -1 with an exception set. */
static int
work_begin(fl_work *work)
{
    if (work->future == NULL) {
        return 0;
    }
    if (work->for_loop) {
        return ((fl_future *)work->future)->state != FL_CANCELLED;
    }
    PyObject *r = PyObject_CallMethodNoArgs(work->future,
                                            work->st->str_set_running_or_notify_cancel);
    if (r == NULL) {
        return -1;
    }
    int wanted = PyObject_IsTrue(r);
    Py_DECREF(r);
    return wanted;
}

/* Call it. */
static void
work_call(fl_work *work)
{
    size_t nargsf = (size_t)(Py_SIZE(work) - 1) | PY_VECTORCALL_ARGUMENTS_OFFSET;
    work->result = PyObject_VectorcallDict(work->func, work->args + 1, nargsf, work->kwargs);
    if (work->result == NULL) {
        work->exception = fl_take_raised();
    }
    work_drop_call(work);
}

/* Do everything a worker does with it, but for waking the loop that is returned. */
static fl_loop *
work_run(fl_work *work, fl_pool *pool)
{
    unsigned generation = pool->generation;
    work->begun = true;
    int wanted = work_begin(work);
    if (wanted <= 0) {
        work_drop_call(work);
        if (wanted < 0) {
            log_worker_exception(work->st);
        }
        return NULL;
    }
    work_call(work);
    if (!work->for_loop) {
        if (work_settle(work) < 0) {
            log_worker_exception(work->st);
        }
    }
    else if (pool->generation == generation) {
        /* The loop of a forked child is a copy whose wakeup fd is the parent's. */
        return work_send(work);
    }
    return NULL;
}

static fl_work *
work_new(fl_state *st, PyObject *future, bool for_loop, PyObject *func,
         PyObject *const *args, Py_ssize_t nargs, PyObject *kwargs)
{
    fl_work *work = PyObject_GC_NewVar(fl_work, st->WorkType, nargs + 1);
    if (work == NULL) {
        return NULL;
    }
    work->st = st;
    work->next = NULL;
    work->future = Py_NewRef(future);
    work->func = Py_NewRef(func);
    work->kwargs = Py_XNewRef(kwargs);
    work->result = NULL;
    work->exception = NULL;
    work->for_loop = for_loop;
    work->begun = false;
    work->due = false;
    work->delivery = (fl_watch){
        .owner = (PyObject *)work, .fd = -1, .on_event = work_deliver};
    work->args[0] = NULL;
    for (Py_ssize_t i = 0; i < nargs; i++) {
        work->args[i + 1] = Py_NewRef(args[i]);
    }
    PyObject_GC_Track(work);
    return work;
}

static PyType_Slot work_slots[] = {
    {Py_tp_doc, "A call that waits for a worker thread."},
    {Py_tp_traverse, work_traverse},
    {Py_tp_clear, work_clear},
    {Py_tp_dealloc, work_dealloc},
    {0, NULL},
};

static PyType_Spec work_spec = {
    .name = "fastloop._core.Work",
    .basicsize = (int)offsetof(fl_work, args),
    .itemsize = (int)sizeof(PyObject *),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = work_slots,
};

/* -- the queue ------------------------------------------------------------ */

/* Takes a new reference. */
static void
pool_push(fl_pool *pool, fl_work *work)
{
    Py_INCREF(work);
    if (pool->tail == NULL) {
        pool->head = work;
    }
    else {
        pool->tail->next = work;
    }
    pool->tail = work;
    pool->queued++;
}

/* The oldest call, an owned reference, or NULL. */
static fl_work *
pool_pop(fl_pool *pool)
{
    fl_work *work = pool->head;
    if (work == NULL) {
        return NULL;
    }
    pool->head = work->next;
    if (pool->head == NULL) {
        pool->tail = NULL;
    }
    work->next = NULL;
    pool->queued--;
    return work;
}

/* Throw away what is queued. */
static void
pool_drop_all(fl_pool *pool)
{
    fl_work *work;
    while ((work = pool_pop(pool)) != NULL) {
        Py_DECREF(work);
    }
}

/* -- workers -------------------------------------------------------------- */

/* `caller`: the loop whose thread calls this, or NULL. */
static void
pool_wake_one(fl_pool *pool, fl_loop *caller)
{
    fl_worker *worker = pool->idle;
    pool->idle = worker->next_idle;
    pool->n_idle--;
    pool->n_waking++;
    if (caller != NULL && atomic_load(&worker->state) == FL_SPINS) {
        worker->caller = &caller->waker;
        fl_waker_borrow(worker->caller);
    }
    if (atomic_exchange(&worker->state, FL_WOKEN) == FL_SLEEPS) {
        PyThread_release_lock(worker->wake);
    }
}

static void
pool_wake_all(fl_pool *pool)
{
    while (pool->idle != NULL) {
        pool_wake_one(pool, NULL);
    }
}

/* One worker on its way is enough: when it takes a call and leaves others it
 * wakes the next itself, before it runs its own. */
static inline void
pool_wake_if_needed(fl_pool *pool, fl_loop *caller)
{
    if (pool->queued > 0 && pool->n_waking == 0 && pool->idle != NULL) {
        pool_wake_one(pool, caller);
    }
}

/* The interpreter is shutting down, as concurrent.futures.thread sees it: its
 * exit function then calls our put(None) and joins the threads. Runs no code but
 * the interpreter's. */
static int
interpreter_exits(fl_state *st)
{
    PyObject *names = PyModule_GetDict(st->executor_module);
    PyObject *value = PyDict_GetItemWithError(names, st->str__shutdown);
    if (value == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    return value == Py_True;
}

/* Look for a moment whether somebody wakes this worker. */
static bool
worker_spin(fl_worker *worker)
{
    int64_t end = fl_clock_ns() + FL_SPIN_NS;
    do {
        for (int i = 0; i < FL_SPIN_LOOKS; i++) {
            if (atomic_load_explicit(&worker->state, memory_order_relaxed) == FL_WOKEN) {
                return true;
            }
            fl_spin_pause();
        }
    } while (fl_clock_ns() < end);
    int state = FL_SPINS;
    return !atomic_compare_exchange_strong(&worker->state, &state, FL_SLEEPS);
}

/* Wait without the GIL until somebody has taken this worker out of pool->idle.
 * The loop that was answered is told when the GIL is free, and a loop that calls
 * is given the time to let go of it: who finds it taken is put to sleep. */
static void
worker_sleep(fl_worker *worker, fl_pool *pool)
{
    fl_waker *answered = worker->answered;
    bool spin = !pool->spinning && fl_spin_wanted(&pool->spin), woken = false;
    worker->answered = worker->caller = NULL;
    atomic_store(&worker->state, spin ? FL_SPINS : FL_SLEEPS);
    worker->next_idle = pool->idle;
    pool->idle = worker;
    pool->n_idle++;
    pool->spinning |= spin;
    if (answered != NULL) {
        fl_waker_borrow(answered);
    }
    Py_BEGIN_ALLOW_THREADS
    if (answered != NULL) {
        fl_waker_wake(answered);
        fl_waker_give_back(answered);
    }
    if (spin) {
        woken = worker_spin(worker);
    }
    if (!woken) {
        PyThread_acquire_lock(worker->wake, WAIT_LOCK);
    }
    fl_waker *caller = atomic_load(&worker->state) == FL_WOKEN ? worker->caller : NULL;
    if (caller != NULL) {
        fl_waker_await_gil(caller);
        fl_waker_give_back(caller);
    }
    Py_END_ALLOW_THREADS
    if (spin) {
        pool->spinning = false;
        fl_spin_learn(&pool->spin, woken);
    }
}

/* Tell the loop that it was answered, if that is still to be done. */
static inline void
worker_tell(fl_worker *worker)
{
    if (worker->answered != NULL) {
        fl_waker_wake(worker->answered);
        worker->answered = NULL;
    }
}

/* Run calls until the pool is closed and empty. Between an answer and telling its
 * loop the GIL is not let go of and no code but ours runs, so the loop is there. */
static int
worker_loop(fl_worker *worker, fl_pool *pool)
{
    unsigned generation = pool->generation;
    int64_t since = 0;
    while (pool->generation == generation) {
        fl_work *work = pool_pop(pool);
        if (work != NULL) {
            worker_tell(worker);
            pool_wake_if_needed(pool, NULL);
            fl_loop *loop = work_run(work, pool);
            worker->answered = loop == NULL ? NULL : &loop->waker;
            Py_DECREF(work); /* if there was an answer the loop holds another */
            if (pool->queued > 0) {
                int64_t now = fl_clock_ns();
                if (now - since > BREATHE_NS) {
                    worker_tell(worker);
                    since = now;
                    if (fl_let_threads_in(pool->st) < 0) {
                        return -1;
                    }
                }
            }
            continue;
        }
        int exits = interpreter_exits(pool->st);
        if (exits != 0) {
            pool->closed = true;
        }
        if (pool->closed) {
            worker_tell(worker);
            return exits < 0 ? -1 : 0;
        }
        worker_sleep(worker, pool);
        if (pool->generation != generation) {
            return 0;
        }
        pool->n_waking--;
        since = fl_clock_ns();
    }
    return 0;
}

/* A thread that was started has a ticket, its only byte one of these. Starting can
 * fail (an interrupt) although the thread comes to life later. */
enum { TICKET_STARTING = 0, TICKET_ARRIVED, TICKET_GIVEN_UP };

/* The thread with that ticket has come. -1 with TypeError for something else. */
static int
pool_arrive(fl_pool *pool, PyObject *ticket)
{
    if (!PyByteArray_CheckExact(ticket) || PyByteArray_GET_SIZE(ticket) != 1) {
        PyErr_SetString(PyExc_TypeError, "only a thread that the queue asked for is a worker");
        return -1;
    }
    if (*PyByteArray_AS_STRING(ticket) == TICKET_GIVEN_UP) {
        pool->n_threads++;
    }
    else if (*PyByteArray_AS_STRING(ticket) == TICKET_STARTING) {
        pool->n_starting--;
    }
    *PyByteArray_AS_STRING(ticket) = TICKET_ARRIVED;
    return 0;
}

static void pool_refuse_all(fl_pool *pool, PyObject *exception);

/* A thread ends with the exception that is set, which stays set. If it was the only one, the calls
 * that wait would wait for ever: they get that exception. */
static void
pool_lost_worker(fl_pool *pool, unsigned generation)
{
    PyObject *exc = fl_take_raised();

    if (pool->generation == generation) {
        pool->n_threads--;
        if (pool->n_threads == 0 && pool->queued > 0) {
            pool_refuse_all(pool, exc);
        }
    }
    PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    Py_DECREF(exc);
}

PyDoc_STRVAR(pool_work_doc,
"work($self, ticket, /)\n--\n\n"
"Be a worker: run calls in this thread until the pool is closed and empty.");

static PyObject *
pool_work(PyObject *self, PyObject *ticket)
{
    fl_pool *pool = (fl_pool *)self;
    if (pool_arrive(pool, ticket) < 0) {
        return NULL;
    }
    unsigned generation = pool->generation;
    fl_worker worker = {.wake = PyThread_allocate_lock(), .state = FL_AWAKE};
    if (worker.wake == NULL) {
        PyErr_NoMemory();
        pool_lost_worker(pool, generation);
        return NULL;
    }
    PyThread_acquire_lock(worker.wake, WAIT_LOCK);
    int rc = worker_loop(&worker, pool);
    PyThread_free_lock(worker.wake);
    if (rc < 0) {
        pool_lost_worker(pool, generation);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Start threads while there are more calls than workers free to take them. The
 * executor's _start_worker() makes one threading.Thread. */
static int
pool_grow(fl_pool *pool, PyObject *executor)
{
    int rc = 0;
    while (rc == 0 && !pool->starting && pool->n_threads < pool->max_threads &&
           pool->queued > pool->n_idle + pool->n_waking + pool->n_starting) {
        unsigned generation = pool->generation;
        PyObject *ticket = PyByteArray_FromStringAndSize("", 1);
        if (ticket == NULL) {
            return -1;
        }
        *PyByteArray_AS_STRING(ticket) = TICKET_STARTING;
        pool->starting = true;
        pool->n_threads++;
        pool->n_starting++;
        PyObject *r = PyObject_CallMethodOneArg(executor, pool->st->str__start_worker, ticket);
        rc = r == NULL ? -1 : 0;
        if (pool->generation == generation) {
            pool->starting = false;
            if (rc < 0 && *PyByteArray_AS_STRING(ticket) == TICKET_STARTING) {
                *PyByteArray_AS_STRING(ticket) = TICKET_GIVEN_UP;
                pool->n_threads--;
                pool->n_starting--;
            }
        }
        Py_XDECREF(r);
        Py_DECREF(ticket);
        if (pool->generation != generation) {
            return rc; /* in the child of a fork */
        }
    }
    return rc;
}

/* -- submitting ----------------------------------------------------------- */

/* The stdlib's errors for a pool that takes no more calls. */
static int
pool_check_open(fl_pool *pool)
{
    if (pool->broken != NULL) {
        PyErr_SetObject(pool->st->BrokenThreadPool, pool->broken);
        return -1;
    }
    if (pool->closed) {
        PyErr_SetString(PyExc_RuntimeError, "cannot schedule new futures after shutdown");
        return -1;
    }
    int exits = interpreter_exits(pool->st);
    if (exits > 0) {
        PyErr_SetString(PyExc_RuntimeError,
                        "cannot schedule new futures after interpreter shutdown");
    }
    return exits == 0 ? 0 : -1;
}

/* Starting a thread failed for one call with `exc`. Calls that other threads submitted meanwhile relied
 * on that thread: try again for them, and if there is none at all, they fail as well. Returns what
 * to raise: `exc`, or an interrupt that came during that. Takes `exc` over. */
static PyObject *
pool_grow_for_others(fl_pool *pool, PyObject *executor, PyObject *exc)
{
    if (pool_grow(pool, executor) == 0) {
        return exc;
    }
    PyObject *again = fl_take_raised();
    if (pool->n_threads == 0) {
        pool_refuse_all(pool, again);
    }
    if (!PyErr_GivenExceptionMatches(again, PyExc_Exception)) {
        Py_SETREF(exc, Py_NewRef(again));
    }
    Py_DECREF(again);
    return exc;
}

int
fl_pool_submit(fl_pool *pool, PyObject *executor, PyObject *future, bool for_loop,
               PyObject *func, PyObject *const *args, Py_ssize_t nargs, PyObject *kwargs)
{
    fl_loop *loop, *caller = NULL;
    fl_work *work = work_new(pool->st, future, for_loop, func, args, nargs, kwargs);
    if (work == NULL) {
        return -1;
    }
    /* Only now: up to 3.11 to allocate may collect garbage, which may shut the pool down. */
    if (pool_check_open(pool) < 0) {
        Py_DECREF(work);
        return -1;
    }
    pool_push(pool, work);
    if (for_loop && ((fl_future *)future)->native != NULL) {
        loop = ((fl_future *)future)->native;
        loop->answers_due++;
        work->due = true;
        caller = loop->thread_id == PyThread_get_thread_ident() ? loop : NULL;
    }
    pool_wake_if_needed(pool, caller);
    int rc = pool_grow(pool, executor);
    if (rc < 0 && work->begun) {
        /* Another worker has taken it: that no thread could be had is no matter. */
        if (PyErr_ExceptionMatches(PyExc_RuntimeError)) {
            PyErr_Clear();
            rc = 0;
        }
    }
    else if (rc < 0) {
        /* The caller is told that it failed, so it must not run later. */
        PyObject *exc = fl_take_raised();
        work_clear((PyObject *)work);
        exc = pool_grow_for_others(pool, executor, exc);
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
    Py_DECREF(work);
    return rc;
}

int
fl_pool_of_executor(fl_state *st, PyObject *executor, fl_pool **pool)
{
    PyObject *queue = NULL, *submit = NULL;
    *pool = NULL;
    if (st->executor_submit == NULL ||
        !PyObject_TypeCheck(executor, (PyTypeObject *)st->ThreadPoolExecutor)) {
        return 0;
    }
    submit = PyObject_GetAttr(executor, st->str_submit);
    if (submit == NULL) {
        return -1;
    }
    if (PyMethod_Check(submit) && PyMethod_GET_FUNCTION(submit) == st->executor_submit) {
        queue = PyObject_GetAttr(executor, st->str__work_queue);
    }
    Py_DECREF(submit);
    if (queue == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    if (!Py_IS_TYPE(queue, st->PoolType) || !((fl_pool *)queue)->direct) {
        Py_DECREF(queue);
        return 0;
    }
    *pool = (fl_pool *)queue;
    return 1;
}

PyDoc_STRVAR(pool_submit_doc,
"submit($self, executor, future, func, args, kwargs, /)\n--\n\n"
"Queue func(*args, **kwargs); its outcome goes to the concurrent.futures.Future.");

static PyObject *
pool_submit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 5 || !PyTuple_CheckExact(args[3]) || !PyDict_CheckExact(args[4])) {
        PyErr_SetString(PyExc_TypeError,
                        "submit() takes an executor, a future, a function, a tuple and a dict");
        return NULL;
    }
    PyObject *kwargs = PyDict_GET_SIZE(args[4]) > 0 ? args[4] : NULL;
    if (fl_pool_submit((fl_pool *)self, args[0], args[1], false, args[2],
                       ((PyTupleObject *)args[3])->ob_item, PyTuple_GET_SIZE(args[3]),
                       kwargs) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* -- the end -------------------------------------------------------------- */

/* Settle every queued call: cancelled, or, when `exception` is given, failed. */
static void
pool_refuse_all(fl_pool *pool, PyObject *exception)
{
    fl_state *st = pool->st;
    fl_work *work;
    while ((work = pool_pop(pool)) != NULL) {
        PyObject *r = NULL;
        if (work->future == NULL) {
            r = Py_NewRef(Py_None);
        }
        else if (work->for_loop) {
            work_drop_call(work);
            work->exception = Py_XNewRef(exception);
            fl_loop *loop = work_send(work);
            if (loop != NULL) {
                fl_loop_wake(loop);
            }
            r = Py_NewRef(Py_None);
        }
        else if (exception != NULL) {
            r = PyObject_CallMethodOneArg(work->future, st->str_set_exception, exception);
        }
        else {
            r = PyObject_CallMethodNoArgs(work->future, st->str_cancel);
        }
        if (r == NULL) {
            log_worker_exception(st);
        }
        Py_XDECREF(r);
        Py_DECREF(work);
    }
}

PyDoc_STRVAR(pool_close_doc,
"close($self, cancel=False, /)\n--\n\n"
"Take no more calls; workers end when the queue is empty. With cancel, cancel\n"
"what is queued.");

static PyObject *
pool_close(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fl_pool *pool = (fl_pool *)self;
    int cancel = nargs > 0 ? PyObject_IsTrue(args[0]) : 0;
    if (cancel < 0) {
        return NULL;
    }
    pool->closed = true;
    if (cancel) {
        pool_refuse_all(pool, NULL);
    }
    pool_wake_all(pool);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(pool_fail_doc,
"fail($self, ticket, message, /)\n--\n\n"
"Called by a worker whose initializer raised, instead of work(): the pool is\n"
"broken and every queued call fails with BrokenThreadPool(message).");

static PyObject *
pool_fail(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fl_pool *pool = (fl_pool *)self;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "fail() takes a ticket and a message");
        return NULL;
    }
    if (pool_arrive(pool, args[0]) < 0) {
        return NULL;
    }
    PyObject *message = args[1];
    PyObject *exception = PyObject_CallOneArg(pool->st->BrokenThreadPool, message);
    if (exception == NULL) {
        return NULL;
    }
    Py_XSETREF(pool->broken, Py_NewRef(message));
    pool_refuse_all(pool, exception);
    Py_DECREF(exception);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(pool_abandon_doc,
"abandon($self, ref, /)\n--\n\n"
"Callback of the weak reference to the executor: close().");

static PyObject *
pool_abandon(PyObject *self, PyObject *ref)
{
    (void)ref;
    fl_pool *pool = (fl_pool *)self;
    pool->closed = true;
    pool_wake_all(pool);
    Py_CLEAR(pool->owner);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(pool_put_doc,
"put($self, item, /)\n--\n\n"
"put(None) has every idle worker look whether it should end. It is what\n"
"concurrent.futures calls at interpreter exit; nothing else can be put.");

static PyObject *
pool_put(PyObject *self, PyObject *item)
{
    if (item != Py_None) {
        PyErr_SetString(PyExc_TypeError, "use ThreadPoolExecutor.submit()");
        return NULL;
    }
    pool_wake_all((fl_pool *)self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(pool_reset_doc,
"reset($self, /)\n--\n\n"
"In the child of a fork: no thread is left, and the calls are the parent's.");

static PyObject *
pool_reset(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_pool *pool = (fl_pool *)self;
    pool->generation++;
    pool->idle = NULL;
    pool->n_idle = pool->n_waking = pool->n_starting = pool->n_threads = 0;
    pool->starting = pool->spinning = false;
    pool_drop_all(pool);
    Py_RETURN_NONE;
}

/* -- the type ------------------------------------------------------------- */

PyDoc_STRVAR(pool_qsize_doc, "qsize($self, /)\n--\n\nThe number of calls that no worker has taken yet.");

static PyObject *
pool_qsize(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSsize_t(((fl_pool *)self)->queued);
}

PyDoc_STRVAR(pool_empty_doc, "empty($self, /)\n--\n\nqsize() == 0");

static PyObject *
pool_empty(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((fl_pool *)self)->queued == 0);
}

static PyObject *
pool_get_closed(PyObject *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((fl_pool *)self)->closed);
}

static PyObject *
pool_get_broken(PyObject *self, void *closure)
{
    (void)closure;
    fl_pool *pool = (fl_pool *)self;
    return Py_NewRef(pool->broken != NULL ? pool->broken : Py_False);
}

static PyObject *
pool_get_starting(PyObject *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((fl_pool *)self)->starting);
}

static PyObject *
pool_get_idle(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromSsize_t(((fl_pool *)self)->n_idle);
}

static PyObject *
pool_get_owner(PyObject *self, void *closure)
{
    (void)closure;
    fl_pool *pool = (fl_pool *)self;
    return Py_NewRef(pool->owner != NULL ? pool->owner : Py_None);
}

static int
pool_set_owner(PyObject *self, PyObject *value, void *closure)
{
    (void)closure;
    Py_XSETREF(((fl_pool *)self)->owner, Py_XNewRef(value));
    return 0;
}

static PyObject *
pool_get_direct(PyObject *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((fl_pool *)self)->direct);
}

static int
pool_set_direct(PyObject *self, PyObject *value, void *closure)
{
    (void)closure;
    int direct = fl_attribute_truth(value);
    if (direct < 0) {
        return -1;
    }
    ((fl_pool *)self)->direct = direct;
    return 0;
}

PyDoc_STRVAR(pool_doc,
"WorkQueue(max_workers, /)\n--\n\n"
"The queue of a fastloop.ThreadPoolExecutor, and the loop of its workers.");

static PyObject *
pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t max_threads;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "WorkQueue() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "n:WorkQueue", &max_threads)) {
        return NULL;
    }
    fl_pool *pool = (fl_pool *)type->tp_alloc(type, 0);
    if (pool == NULL) {
        return NULL;
    }
    pool->st = fl_state_of_type(type);
    pool->max_threads = max_threads;
    pool->direct = true;
    pool->spin.possible = fl_spin_possible();
    return (PyObject *)pool;
}

static int
pool_traverse(PyObject *self, visitproc visit, void *arg)
{
    fl_pool *pool = (fl_pool *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(pool->owner);
    Py_VISIT(pool->broken);
    for (fl_work *work = pool->head; work != NULL; work = work->next) {
        Py_VISIT(work);
    }
    return 0;
}

static int
pool_clear(PyObject *self)
{
    fl_pool *pool = (fl_pool *)self;
    Py_CLEAR(pool->owner);
    Py_CLEAR(pool->broken);
    pool_drop_all(pool);
    return 0;
}

static void
pool_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    pool_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef pool_methods[] = {
    {"submit", (PyCFunction)(void (*)(void))pool_submit, METH_FASTCALL, pool_submit_doc},
    {"work", pool_work, METH_O, pool_work_doc},
    {"fail", (PyCFunction)(void (*)(void))pool_fail, METH_FASTCALL, pool_fail_doc},
    {"close", (PyCFunction)(void (*)(void))pool_close, METH_FASTCALL, pool_close_doc},
    {"abandon", pool_abandon, METH_O, pool_abandon_doc},
    {"put", pool_put, METH_O, pool_put_doc},
    {"reset", pool_reset, METH_NOARGS, pool_reset_doc},
    {"qsize", pool_qsize, METH_NOARGS, pool_qsize_doc},
    {"empty", pool_empty, METH_NOARGS, pool_empty_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pool_getset[] = {
    {"closed", pool_get_closed, NULL, "Whether it takes no more calls.", NULL},
    {"broken", pool_get_broken, NULL, "Why it is broken (a str), or False.", NULL},
    {"starting", pool_get_starting, NULL, "Whether a thread is being started.", NULL},
    {"idle", pool_get_idle, NULL, "The number of sleeping workers.", NULL},
    {"owner", pool_get_owner, pool_set_owner, "The weak reference to the executor.", NULL},
    {"direct", pool_get_direct, pool_set_direct, "Whether loops may pass by submit().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pool_slots[] = {
    {Py_tp_doc, (void *)pool_doc},
    {Py_tp_new, pool_new},
    {Py_tp_traverse, pool_traverse},
    {Py_tp_clear, pool_clear},
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_methods, pool_methods},
    {Py_tp_getset, pool_getset},
    {0, NULL},
};

static PyType_Spec pool_spec = {
    .name = "fastloop._core.WorkQueue",
    .basicsize = (int)sizeof(fl_pool),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = pool_slots,
};

int
fl_pool_init(PyObject *module, fl_state *st)
{
    st->WorkType = fl_add_type(module, &work_spec, NULL, 0);
    st->PoolType = fl_add_type(module, &pool_spec, NULL, 0);
    return st->WorkType == NULL || st->PoolType == NULL ? -1 : 0;
}
