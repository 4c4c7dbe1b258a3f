/* stats.c - loop.stats().
 *
 * Counting costs an increment where something happens. The clock is looked at once a turn,
 * which the loop does anyway. To find the slowest callback takes two looks more for each
 * (some 60 ns): outside of debug mode as many are timed as cost 0.3 % of the time that
 * goes by. That is all of them on a loop that is idle now and then or whose callbacks take
 * longer than 20 us, and some of them on one that is busy with shorter ones. */
#include "stats.h"

#include "handle.h"

/* How long a callback takes at least to be called slow, and named, in nanoseconds. */
enum { FL_SLOW = 10000000 };

static void
time_went_by(fl_loop *loop, int64_t ns)
{
    enum { SAVED_UP = 1000 * FL_TIMING_EVERY };
    loop->timing_ns = loop->timing_ns + ns < SAVED_UP ? loop->timing_ns + ns : SAVED_UP;
}

void
fl_stats_polled(fl_loop *loop, int64_t now)
{
    time_went_by(loop, now - loop->now_ns);
}

void
fl_stats_turn_ran(fl_loop *loop, int64_t now)
{
    int64_t ran = now - loop->now_ns;
    time_went_by(loop, ran);
    if (ran > loop->slowest_turn_ns) {
        loop->slowest_turn_ns = ran;
    }
}

PyObject *
fl_stats_name(fl_loop *loop, PyObject *entry)
{
    fl_state *st = loop->st;
    if (Py_IS_TYPE(entry, st->HandleType) || Py_IS_TYPE(entry, st->TimerHandleType) ||
        Py_IS_TYPE(entry, st->SharedHandleType)) {
        return PyObject_CallOneArg(st->format_handle, entry);
    }
    return PyObject_Repr(entry); /* a task or a transport */
}

/* What names an entry without running the program's code. */
static PyObject *
plain_name(fl_state *st, PyObject *entry)
{
    if (st->plain_name == NULL) {
        PyObject *module = PyImport_ImportModule("fastloop._names");
        st->plain_name = module == NULL ? NULL : PyObject_GetAttrString(module, "plain_name");
        Py_XDECREF(module);
    }
    return st->plain_name == NULL ? NULL : PyObject_CallOneArg(st->plain_name, entry);
}

/* KeyboardInterrupt and SystemExit come out of the loop; what else a repr() raises is only told. */
int
fl_stats_entry_ran(fl_loop *loop, PyObject *entry, int64_t ns)
{
    if (ns <= loop->slowest_callback_ns || (ns < FL_SLOW && !loop->debug)) {
        return 0;
    }
    PyObject *name = loop->debug ? fl_stats_name(loop, entry) : plain_name(loop->st, entry);
    if (name == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_Exception)) {
            return -1;
        }
        PyErr_WriteUnraisable(entry);
        return 0;
    }
    loop->slowest_callback_ns = ns;
    Py_XSETREF(loop->slowest_callback, name);
    return 0;
}

/* Transports with a socket: those that wait for a socket only give way. */
static int
count_transports(const fl_loop *loop)
{
    int n = 0;
    for (int fd = 0; fd < loop->fds.len; fd++) {
        const fl_watch *w = loop->fds.entries[fd].watch;
        n += w != NULL && w->give_way == NULL;
    }
    return n;
}

/* What `method` of `object` gives as a size; 0 where there is no such thing. */
static Py_ssize_t
size_by_method(PyObject *object, const char *attribute, const char *method)
{
    PyObject *owner = PyObject_GetAttrString(object, attribute);
    PyObject *size = owner == NULL ? NULL : PyObject_CallMethod(owner, method, NULL);
    Py_ssize_t n = size == NULL ? -1 : PyNumber_AsSsize_t(size, NULL);
    if (n < 0 || PyErr_Occurred()) {
        PyErr_Clear(); /* an executor of a kind we do not know */
        n = 0;
    }
    Py_XDECREF(owner);
    Py_XDECREF(size);
    return n;
}

static PyObject *
slowest_callback(const fl_loop *loop)
{
    if (loop->slowest_callback == NULL) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(dO)", (double)loop->slowest_callback_ns * 1e-9, loop->slowest_callback);
}

PyDoc_STRVAR(stats_doc,
             "stats($self, /)\n--\n\n"
             "What the loop does and did, as a new dict. Of this moment: ready (callbacks and\n"
             "task steps that wait to run), timers, fds (watched file descriptors), transports\n"
             "(open ones over sockets), executor_queue (calls that wait for a thread of the\n"
             "default executor) and executor_threads. Since the loop was made: turns, polls,\n"
             "steps (callbacks and task steps run), bytes_in and bytes_out (of stream sockets),\n"
             "slowest_turn (seconds in which the callbacks of one turn kept all others waiting)\n"
             "and slowest_callback: (seconds, str that names it), or None. Debug mode times every\n"
             "callback and task step. Else it is the slowest of those that took 10 ms or more, and a\n"
             "loop that has callbacks of less than 20 us to run all the time may miss one.");

static PyObject *
loop_stats(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_loop *loop = (fl_loop *)self;
    PyObject *executor = Py_XNewRef(loop->attributes[FL_ATTRIBUTE__default_executor]);
    Py_ssize_t waiting = 0, threads = 0;
    if (executor != NULL && executor != Py_None) {
        waiting = size_by_method(executor, "_work_queue", "qsize");
        threads = size_by_method(executor, "_threads", "__len__");
    }
    Py_XDECREF(executor);
    return Py_BuildValue("{sn sn si si sn sn sK sK sK sK sK sd sN}",
                         "ready", (Py_ssize_t)fl_ready_len(&loop->ready),
                         "timers", (Py_ssize_t)fl_timers_len(&loop->timers),
                         "fds", loop->fds.active,
                         "transports", count_transports(loop),
                         "executor_queue", waiting,
                         "executor_threads", threads,
                         "turns", (unsigned long long)loop->turns,
                         "polls", (unsigned long long)loop->polls,
                         "steps", (unsigned long long)loop->steps,
                         "bytes_in", (unsigned long long)loop->bytes_in,
                         "bytes_out", (unsigned long long)loop->bytes_out,
                         "slowest_turn", (double)loop->slowest_turn_ns * 1e-9,
                         "slowest_callback", slowest_callback(loop));
}

PyMethodDef fl_stats_methods[] = {
    {"stats", loop_stats, METH_NOARGS, stats_doc},
    {NULL, NULL, 0, NULL},
};
