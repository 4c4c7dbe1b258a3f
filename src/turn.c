/* turn.c - one turn of the loop, in asyncio's order: poll, queue the handles of
 * ready fds, queue the timers that are due, then run the entries that are in the
 * ready queue now (not those they add), then flush gathered writes. */
#include "turn.h"

#include <errno.h>
#include <math.h>
#include <sys/resource.h>

#include "context.h"
#include "report.h"
#include "stats.h"
#include "task.h"

/* asyncio polls in every turn. A turn of ours can be shorter than that system
 * call, so while there is work in the queue we poll when bytes were sent (they
 * may have been to ourselves), and at least this often, in nanoseconds. */
enum { FL_POLL_EVERY_WITH_FDS = 20000, FL_POLL_EVERY_WITHOUT = 100000 };

/* A poll that comes this much too late, in nanoseconds, was kept from its time by
 * a long turn, by another thread that had the GIL, or by the machine. If it may have been
 * the GIL, the loop lets go of it once a turn, as asyncio does, for as long as the second
 * number says; and again, if it had to wait for it in that time. */
enum { FL_POLL_LATE = 20000, FL_SHARE_GIL = 20000000 };

/* Writes that are gathered wait for the end of the turn, but no longer than this (in
 * nanoseconds): so the peers have something to do during a long turn. */
static const int64_t FL_FLUSH_WITHIN = 2000000;

/* Peers that are sent something more rarely than this (in nanoseconds) have gone to
 * sleep in between; that many more slow turns than quick ones tell slow handlers from a
 * processor that was taken away for a moment. */
enum { FL_PEER_SLEEPS = 8000, FL_SLOW_TURNS = 4 };

/* selectors and asyncio wait no longer than this either (24 h, in nanoseconds):
 * a longer timeout overflows some pollers. */
static const int64_t FL_POLL_LONGEST = 24LL * 3600 * 1000000000;

/* time() of a loop whose own is not ours, in seconds. */
static int
own_time(fl_loop *loop, double *now)
{
    return fl_loop_restore_current(loop, NULL) < 0 ? -1 : fl_loop_time(loop, now);
}

/* How long to wait for the first timer, in nanoseconds. */
static int
timer_timeout(fl_loop *loop, int64_t *timeout)
{
    fl_timer *first;
    double now = 0;
    if ((loop->own_time && own_time(loop, &now) < 0) ||
        fl_timers_first(&loop->timers, &first) < 0) {
        return -1;
    }
    if (first == NULL) { /* time() cancelled them */
        *timeout = -1;
        return 0;
    }
    int64_t wait;
    if (!loop->own_time) {
        wait = first->due - loop->now_ns;
    }
    else { /* in floats, which any two times can be subtracted in; NaN: not at all */
        double ns = ceil((first->when - now) * 1e9);
        wait = ns >= (double)FL_POLL_LONGEST ? FL_POLL_LONGEST : ns > 0 ? (int64_t)ns : 0;
    }
    *timeout = wait < 0 ? 0 : wait > FL_POLL_LONGEST ? FL_POLL_LONGEST : wait;
    return 0;
}

/* How long this turn may block, in nanoseconds; -1: until something happens. */
static int
poll_timeout(fl_loop *loop, int64_t *timeout)
{
    *timeout = 0;
    if (fl_ready_len(&loop->ready) > 0 || loop->flush_head != NULL || loop->stopping) {
        return 0; /* a finalizer may have written something since the last flush */
    }
    if (fl_timers_len(&loop->timers) == 0) {
        *timeout = -1;
        return 0;
    }
    if (timer_timeout(loop, timeout) < 0) {
        return -1;
    }
    if (loop->own_time && (fl_ready_len(&loop->ready) > 0 || loop->flush_head != NULL || loop->stopping)) {
        *timeout = 0; /* time() itself, or another thread during it, has queued or stopped something */
    }
    return 0;
}

/* Whether to look for the answer of a worker thread before blocking. What comes
 * of it in vain is a turn with nothing to do, in which signals are seen to, and
 * the next blocks. */
static bool
spin_pays(fl_loop *loop, int64_t timeout)
{
    return (loop->answers_due > 0 || loop->caller_due) && !loop->spun && (timeout < 0 || timeout > 2 * FL_SPIN_NS) &&
           fl_spin_wanted(&loop->spin);
}

/* Wait for events without the GIL. */
static int
poll_waiting(fl_loop *loop, int64_t timeout, fl_event *events)
{
    bool spin = spin_pays(loop, timeout), paid = false;
    int n, error;

    atomic_store(&loop->waker.state, FL_LEAVES);
    Py_BEGIN_ALLOW_THREADS
    if (spin) {
        n = fl_waker_spin(&loop->waker, &loop->poller, events, FL_POLL_MAX_EVENTS, &paid);
    }
    else {
        n = fl_waker_wait(&loop->waker, &loop->poller, timeout, events, FL_POLL_MAX_EVENTS);
    }
    error = errno;
    Py_END_ALLOW_THREADS
    loop->spun = spin && !paid && n == 0;
    if (paid || loop->spun) {
        fl_spin_learn(&loop->spin, paid);
        loop->caller_due &= paid;
    }
    errno = error;
    return n;
}

static bool
shares_gil(const fl_loop *loop)
{
    return loop->answers_due > 0 || loop->now_ns < loop->share_gil_until_ns;
}

static int64_t
poll_interval(const fl_loop *loop)
{
    return loop->fds.active > 0 ? FL_POLL_EVERY_WITH_FDS : FL_POLL_EVERY_WITHOUT;
}

/* No other thread has a Python thread state, so nobody waits for the GIL. New ones are put
 * at the head: only our own is looked into, which cannot go away. */
static bool
is_only_thread(void)
{
    PyThreadState *self = PyThreadState_Get();
    return PyInterpreterState_ThreadHead(PyThreadState_GetInterpreter(self)) == self &&
           PyThreadState_Next(self) == NULL;
}

/* Whether it may be for the GIL that a poll came late: there are other threads, and this one
 * has slept since that was asked last, as it does while it waits for the GIL. Neither a
 * long turn nor a machine that stutters puts it to sleep. */
static bool
may_lack_gil(fl_loop *loop)
{
    if (is_only_thread()) {
        return false;
    }
#ifdef RUSAGE_THREAD /* Linux, FreeBSD */
    struct rusage usage;
    if (getrusage(RUSAGE_THREAD, &usage) == 0) {
        bool slept = usage.ru_nvcsw != loop->times_slept;
        loop->times_slept = usage.ru_nvcsw;
        return slept;
    }
#endif
    return true;
}

/* Look for events while there is work in the queue. A thread that waits for the
 * GIL asks for it after 5 ms in which nobody let go of it. To let go now and then
 * for less time than its waking takes would only have it wait anew, for ever: it
 * is done every turn or not at all, and then who asks is let in by bytecode. */
static int
poll_working(fl_loop *loop, bool shares, fl_event *events)
{
    int64_t due = loop->polled_ns + (shares ? 0 : poll_interval(loop));
    int n, error;

    PyThreadState *thread = shares ? PyEval_SaveThread() : NULL;
    n = fl_poll_wait(&loop->poller, 0, events, FL_POLL_MAX_EVENTS);
    error = errno;
    if (shares) {
        PyEval_RestoreThread(thread);
    }
    int64_t now = fl_clock_ns();
    bool ends = loop->share_gil_until_ns > 0 && now >= loop->share_gil_until_ns;
    if ((ends || now - due > FL_POLL_LATE) && may_lack_gil(loop)) {
        loop->share_gil_until_ns = now + FL_SHARE_GIL;
    }
    else if (ends) {
        loop->share_gil_until_ns = 0;
    }
    errno = error;
    return n;
}

static int
poll_events(fl_loop *loop, int64_t timeout)
{
    fl_event events[FL_POLL_MAX_EVENTS];
    bool shares = loop->io_done || loop->first_turn || shares_gil(loop);

    loop->polls++;
    loop->polled_turn = loop->turns;
    if (timeout == 0 && !shares && fl_let_threads_in(loop->st) < 0) {
        return -1;
    }
    int n = timeout == 0 ? poll_working(loop, shares, events) : poll_waiting(loop, timeout, events);
    int error = errno;
    loop->io_done = loop->first_turn = false;
    int64_t now = fl_clock_ns();
    fl_stats_polled(loop, now);
    loop->now_ns = loop->polled_ns = now;
    if (n < 0 && error != EINTR) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (fl_fd_dispatch(loop, events, n) < 0) {
        return -1;
    }
    return PyErr_CheckSignals();
}

static bool
poll_is_due(const fl_loop *loop)
{
    if (fl_ready_len(&loop->ready) == 0 || loop->first_turn || loop->stopping) {
        return true;
    }
    if (loop->gathers && loop->polled_turn == loop->turns - 1) {
        return false; /* see learn_to_gather() */
    }
    return loop->io_done || shares_gil(loop) ||
           loop->now_ns - loop->polled_ns >= poll_interval(loop);
}

/* The last that is due now by a time() that is not ours: what is less than a clock tick,
 * or than the next float, ahead. asyncio looks at the latter since 3.15; before, a clock
 * that is far from zero and stands still has its loop turn for ever. */
static int
own_time_due(fl_loop *loop, int64_t *due)
{
    double now, tick;
    PyObject *resolution = PyObject_GetAttrString((PyObject *)loop, "_clock_resolution");
    tick = resolution == NULL ? -1 : PyFloat_AsDouble(resolution);
    Py_XDECREF(resolution);
    if (PyErr_Occurred() || own_time(loop, &now) < 0) {
        return -1;
    }
    *due = isnan(now) ? INT64_MAX : fl_timer_due(true, fmax(now + tick, nextafter(now, INFINITY))) - 1;
    return 0;
}

static int
queue_due_timers(fl_loop *loop)
{
    fl_timer *t;
    int64_t now = loop->now_ns;
    int found;
    if (loop->own_time && own_time_due(loop, &now) < 0) {
        return -1;
    }
    while ((found = fl_timers_pop_due(&loop->timers, now, &t)) > 0) {
        if (fl_ready_push(&loop->ready, t, FL_READY_HANDLE) < 0) {
            Py_DECREF(t);
            return -1;
        }
    }
    return found;
}

static int
run_watch(fl_watch *w)
{
    PyObject *owner = w->owner; /* the queue's reference is ours now */
    unsigned events = w->events;
    int rc = 0;
    w->queued = false;
    w->events = 0;
    if (events != 0) {
        rc = w->on_event(w, events);
    }
    Py_DECREF(owner);
    return rc;
}

/* Drop the queue's reference to a task that was stepped. Its finalizer must see
 * no current task: asyncio has left it by then. */
static int
release_task(fl_loop *loop, fl_task *task)
{
    int rc = 0;
    /* held by: the queue, loop->current_task, and asyncio's own record of it */
    if (task->fut.state != FL_PENDING && Py_REFCNT(task) <= 3) {
        rc = fl_loop_restore_current(loop, NULL);
    }
    Py_DECREF(task);
    return rc;
}

static int
run_entry(fl_loop *loop, uintptr_t entry)
{
    void *object = (void *)(entry & ~(uintptr_t)FL_READY_TAGS);

    if (loop->in_empty_context && (entry & FL_READY_TAGS) != FL_READY_HANDLE &&
        fl_empty_context_leave(loop) < 0) {
        fl_loop_drop_entry(entry);
        return -1;
    }
    if ((entry & FL_READY_TAGS) == FL_READY_TASK) {
        int rc = fl_task_run(loop, object);
        return release_task(loop, object) < 0 ? -1 : rc;
    }
    if (loop->current_task != NULL && fl_loop_swap_current(loop, NULL) < 0) {
        fl_loop_drop_entry(entry);
        return -1;
    }
    if ((entry & FL_READY_TAGS) == FL_READY_WATCH) {
        return run_watch(object);
    }
    return fl_handle_run_queued(object);
}

/* Log "Executing <handle> took 0.123 seconds", as asyncio does. */
static int
log_slow(fl_loop *loop, PyObject *object, double seconds)
{
    PyObject *text = fl_stats_name(loop, object);
    if (text == NULL) {
        return -1;
    }
    /* where asyncio's own turn looks it up, and where programs replace it */
    PyObject *base_events = PyImport_ImportModule("asyncio.base_events");
    PyObject *logger = base_events == NULL ? NULL : PyObject_GetAttrString(base_events, "logger");
    PyObject *result = logger == NULL ? NULL
                                      : PyObject_CallMethod(logger, "warning", "sOd",
                                                            "Executing %s took %.3f seconds",
                                                            text, seconds);
    Py_XDECREF(base_events);
    Py_XDECREF(logger);
    Py_DECREF(text);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Debug mode: log an entry that took longer than loop.slow_callback_duration. */
static int
report_slow(fl_loop *loop, PyObject *object, double seconds)
{
    double limit = 0.1;
    if (loop->slow_callback_duration != NULL) {
        limit = PyFloat_AsDouble(loop->slow_callback_duration);
        if (limit == -1.0 && PyErr_Occurred()) {
            return -1;
        }
    }
    return seconds >= limit ? log_slow(loop, object, seconds) : 0;
}

/* Debug mode, and where it costs next to nothing (fl_stats_may_time): the entry is
 * timed. In debug mode a handle is loop._current_handle while it runs. */
static int
run_entry_timed(fl_loop *loop, uintptr_t entry, int64_t *now)
{
    void *pointer = (void *)(entry & ~(uintptr_t)FL_READY_TAGS);
    bool is_watch = (entry & FL_READY_TAGS) == FL_READY_WATCH;
    PyObject *object = Py_NewRef(is_watch ? ((fl_watch *)pointer)->owner : pointer);

    if (loop->debug && (entry & FL_READY_TAGS) == FL_READY_HANDLE) {
        Py_XSETREF(loop->current_handle, Py_NewRef(object));
    }
    int64_t begin = *now != 0 ? *now : fl_clock_ns();
    int rc = run_entry(loop, entry);
    *now = fl_clock_ns();
    int64_t ns = *now - begin;
    Py_CLEAR(loop->current_handle);
    if (rc == 0) {
        rc = fl_stats_entry_ran(loop, object, ns);
    }
    if (rc == 0 && loop->debug) {
        rc = report_slow(loop, object, (double)ns * 1e-9);
    }
    bool is_task = (entry & FL_READY_TAGS) == FL_READY_TASK;
    if (loop->debug || loop->slowest_callback_ns == ns || Py_REFCNT(object) == 1 ||
        (is_task && ((fl_task *)object)->fut.state != FL_PENDING)) {
        *now = 0; /* logging, naming and finalizers are not the next entry's time */
    }
    if (is_task) {
        return release_task(loop, (fl_task *)object) < 0 ? -1 : rc;
    }
    Py_DECREF(object);
    return rc;
}

static int
flush_writes(fl_loop *loop)
{
    int rc = 0;
    if (loop->flush_head == NULL) {
        return 0;
    }
    rc = fl_loop_restore_current(loop, NULL); /* protocols are told to pause, resume */
    while (rc == 0 && loop->flush_head != NULL) {
        fl_flush *f = loop->flush_head;
        PyObject *owner = f->owner; /* the list's reference is ours now */
        loop->flush_head = f->next;
        if (loop->flush_head == NULL) {
            loop->flush_tail = NULL;
        }
        f->queued = false;
        rc = f->flush(f);
        Py_DECREF(owner);
    }
    return rc;
}

/* A callback turns the loop itself (loop._run_once()): the context it is in is
 * not for others. */
static int
turn_in_callback(fl_loop *loop)
{
    PyObject *context = loop->empty_context;
    loop->empty_context = NULL;
    loop->in_empty_context = false;
    int rc = fl_loop_turn(loop);
    Py_XSETREF(loop->empty_context, context);
    loop->in_empty_context = true;
    return rc;
}

/* Has what waits for the end of the turn waited long enough? */
static bool
flush_is_due(const fl_loop *loop, int64_t *now)
{
    if (loop->flush_head == NULL) {
        return false;
    }
    if (*now == 0) {
        *now = fl_clock_ns();
    }
    return *now - loop->flush_since >= FL_FLUSH_WITHIN;
}

/* Run one entry. *now is the clock if it was looked at when the entry before was done, or
 * 0; and then the same of this entry. */
static int
run_next(fl_loop *loop, int64_t *now)
{
    uintptr_t entry = fl_ready_pop(&loop->ready);
    int rc;

    loop->steps++;
    if (fl_stats_may_time(loop)) {
        rc = run_entry_timed(loop, entry, now);
    }
    else {
        *now = 0;
        rc = run_entry(loop, entry);
    }
    if (rc == 0 && flush_is_due(loop, now)) {
        *now = 0;
        rc = fl_empty_context_leave(loop) < 0 ? -1 : flush_writes(loop);
    }
    return rc;
}

static int
run_ready(fl_loop *loop)
{
    int64_t now = 0;
    int rc = 0;
    for (size_t n = fl_ready_len(&loop->ready); n > 0 && rc == 0; n--) {
        if (fl_ready_len(&loop->ready) == 0) {
            break; /* a callback turned the loop itself */
        }
        rc = run_next(loop, &now);
    }
    return fl_empty_context_leave(loop) < 0 ? -1 : rc;
}

/* Sending to a peer that sleeps wakes it, which costs more than the rest of the system
 * call: as much as a whole small HTTP request. If turn after turn writes to several
 * transports, and takes so long from one to the next that whoever is at their other
 * ends has time to fall asleep again, what comes next is sent at the turn's end, one
 * after the other. Where nobody sleeps, sending at once is cheaper.
 * One quick turn does not end that: a single request makes one, and until it was learned
 * anew every answer would wake its peer.
 *
 * For the same reason the requests that one poll brings are then answered together, in
 * the turn after it: another poll in between would bring a few more, whose answers would
 * be a turn behind, and so have the peers woken twice. */
static void
learn_to_gather(fl_loop *loop)
{
    if (loop->writers == 0) {
        return;
    }
    if (loop->writers > 1 && fl_clock_ns() - loop->now_ns > (int64_t)loop->writers * FL_PEER_SLEEPS) {
        loop->slow_turns += loop->slow_turns < FL_SLOW_TURNS;
    }
    else {
        loop->slow_turns -= loop->slow_turns > 0;
    }
    if (loop->slow_turns == 0 || loop->slow_turns == FL_SLOW_TURNS) {
        loop->gathers = loop->slow_turns > 0;
    }
    loop->writers = 0;
}

int
fl_loop_turn(fl_loop *loop)
{
    int64_t timeout;

    if (loop->in_empty_context) {
        return turn_in_callback(loop);
    }
    int64_t now = fl_clock_ns();
    loop->turns++;
    if (!loop->first_turn) {
        fl_stats_turn_ran(loop, now);
    }
    loop->now_ns = now;
    if (poll_is_due(loop)) {
        /* other threads can look now; a finished task dies here, and may call us */
        if (fl_loop_swap_current(loop, NULL) < 0) {
            return -1;
        }
        if (poll_timeout(loop, &timeout) < 0 || poll_events(loop, timeout) < 0) {
            return -1;
        }
    }
    if (fl_timers_len(&loop->timers) > 0 && queue_due_timers(loop) < 0) {
        return -1;
    }
    if (run_ready(loop) == 0 && flush_writes(loop) == 0) {
        learn_to_gather(loop);
        return 0;
    }
    /* An exception leaves run_forever(): what was written is sent all the same. */
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (flush_writes(loop) < 0) {
        PyErr_WriteUnraisable((PyObject *)loop);
    }
    PyErr_Restore(type, value, tb);
    return -1;
}

/* A loop that does not run can be garbage, together with what waits in its queue. */
static void
track_queued_handles(fl_loop *loop)
{
    for (size_t i = loop->ready.head; i != loop->ready.tail; i++) {
        uintptr_t entry = *fl_ready_slot(&loop->ready, i);
        if ((entry & FL_READY_TAGS) == FL_READY_HANDLE) {
            fl_handle_track((fl_handle *)entry);
        }
    }
}

int
fl_loop_run(fl_loop *loop)
{
    int rc;
    loop->first_turn = loop->turning = true;
    do {
        rc = fl_loop_turn(loop);
    } while (rc == 0 && !loop->stopping);
    loop->turning = false;
    fl_stats_turn_ran(loop, fl_clock_ns());
    track_queued_handles(loop);
    if (fl_loop_restore_current(loop, NULL) < 0) {
        rc = -1;
    }
    return rc;
}
