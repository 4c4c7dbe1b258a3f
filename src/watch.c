/* watch.c - the table of watched file descriptors, and the methods of Loop by which
 * Python code puts its handles there. */
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "arguments.h"
#include "loop.h"

static inline uint64_t
entry_key(const fl_fd_entry *e, int fd)
{
    return (uint64_t)e->generation << 32 | (uint32_t)fd;
}

static int
table_reserve(fl_fd_table *t, int fd)
{
    if (fd < t->len) {
        return 0;
    }
    if (fcntl(fd, F_GETFD) < 0) { /* no fd: its number must not size the table */
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    int len = t->len == 0 ? 64 : t->len;
    while (len <= fd) {
        len = len > INT32_MAX / 2 ? INT32_MAX : len * 2;
    }
    fl_fd_entry *entries = PyMem_Realloc(t->entries, (size_t)len * sizeof(*entries));
    if (entries == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memset(entries + t->len, 0, (size_t)(len - t->len) * sizeof(*entries));
    t->entries = entries;
    t->len = len;
    return 0;
}

static fl_fd_entry *
entry_of(fl_loop *loop, int fd)
{
    return fd >= 0 && fd < loop->fds.len ? &loop->fds.entries[fd] : NULL;
}

/* Tell the poller the interest that e now has: 1 if it had forgotten the last one. */
static int
entry_set_interest(fl_loop *loop, fl_fd_entry *e, int fd, unsigned interest)
{
    if (interest == 0 && e->interest == 0) {
        return 0;
    }
    if (interest == 0) {
        e->generation++; /* events already fetched from the kernel are stale */
    }
    int forgotten = fl_poll_set(&loop->poller, fd, e->interest, interest, entry_key(e, fd));
    if (forgotten < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    loop->fds.active += (interest != 0) - (e->interest != 0);
    e->interest = interest;
    return forgotten;
}

/* Let go of all that watched the fd, which is another file's now: its watcher has no fd any
 * more, its handles are cancelled. The interest stays: the caller sets its own. */
static int
entry_evict(fl_loop *loop, int fd)
{
    fl_fd_entry *e = &loop->fds.entries[fd];
    fl_fd_entry old = *e;
    int status = 0;

    e->reader = e->writer = NULL;
    e->watch = NULL;
    e->file = NULL;
    e->generation++;
    if (old.watch != NULL) {
        old.watch->fd = -1;
        old.watch->events &= FL_WATCH_WAKE;
        if (old.watch->held) {
            old.watch->held = false;
            Py_DECREF(old.watch->owner);
        }
    }
    if (old.reader != NULL && fl_handle_cancel(old.reader) < 0) {
        status = -1;
    }
    if (old.writer != NULL && status == 0 && fl_handle_cancel(old.writer) < 0) {
        status = -1;
    }
    Py_XDECREF(old.reader);
    Py_XDECREF(old.writer);
    Py_XDECREF(old.file);
    return status;
}

int
fl_fd_forget_closed(fl_loop *loop, int fd)
{
    fl_fd_entry *e = entry_of(loop, fd);

    if (e == NULL || e->interest == 0 || loop->poller.fd < 0 ||
        (e->watch != NULL && e->watch->give_way != NULL)) {
        return 0;
    }
    /* Asking again for what was asked for changes nothing, unless the kernel forgot it. */
    int forgotten = fl_poll_set(&loop->poller, fd, e->interest, e->interest, entry_key(e, fd));
    return forgotten <= 0 ? 0 : entry_evict(loop, fd) < 0 ? -1 : 1;
}

int
fl_fd_is_new(fl_loop *loop, int fd)
{
    fl_fd_entry *e = entry_of(loop, fd);

    if (e == NULL || (e->watch == NULL && e->reader == NULL && e->writer == NULL)) {
        return 0;
    }
    if (e->watch != NULL && e->watch->give_way != NULL) {
        return 0; /* fl_watch_start() tells it */
    }
    return entry_evict(loop, fd);
}

/* Take the fd from a watcher that gives way. The interest stays as it is, for the
 * kernel still has it: the caller sets its own. */
static int
entry_take(fl_loop *loop, int fd, bool to_handles)
{
    fl_fd_entry *e = entry_of(loop, fd);
    fl_watch *w = e == NULL ? NULL : e->watch;
    if (w == NULL || w->give_way == NULL) {
        return 0;
    }
    e->watch = NULL;
    e->generation++;
    w->events = 0;
    w->held = false;
    PyObject *owner = w->owner; /* the table's reference is ours now */
    int rc = w->give_way(w, to_handles);
    Py_DECREF(owner);
    return rc;
}

int
fl_fd_set_handle(fl_loop *loop, int fd, unsigned which, fl_handle *h)
{
    if (entry_take(loop, fd, true) < 0 || table_reserve(&loop->fds, fd) < 0) {
        return -1;
    }
    if (loop->fds.entries[fd].watch != NULL && fl_fd_forget_closed(loop, fd) < 0) {
        return -1;
    }
    fl_fd_entry *e = entry_of(loop, fd);
    if (e != NULL && e->watch != NULL) {
        PyErr_Format(PyExc_RuntimeError, "File descriptor %d is used by transport %R", fd,
                     e->watch->owner);
        return -1;
    }
    if (e == NULL) { /* a handle's end closed the loop */
        return fl_loop_check_closed(loop);
    }
    /* The poller is told even if nothing changes: the fd may have been closed
     * and its number used again without remove_reader(). */
    unsigned interest = which;
    interest |= e->reader != NULL ? FL_READ : 0;
    interest |= e->writer != NULL ? FL_WRITE : 0;
    int forgotten = entry_set_interest(loop, e, fd, interest);
    if (forgotten < 0) {
        return -1;
    }
    if (forgotten > 0) { /* the handles here were the closed file's */
        if (entry_evict(loop, fd) < 0) {
            return -1;
        }
        e = entry_of(loop, fd);
        if (e == NULL) {
            return fl_loop_check_closed(loop);
        }
        if (entry_set_interest(loop, e, fd, which) < 0) {
            return -1;
        }
    }
    fl_handle **slot = which == FL_READ ? &e->reader : &e->writer;
    fl_handle *old = *slot;
    *slot = (fl_handle *)Py_NewRef(h);
    fl_handle_track(h); /* it can wait for long, and the loop end without it */
    if (old != NULL) {
        int rc = fl_handle_cancel(old);
        Py_DECREF(old);
        return rc;
    }
    return 0;
}

int
fl_fd_remove_handle(fl_loop *loop, int fd, unsigned which)
{
    fl_fd_entry *e = entry_of(loop, fd);
    if (e == NULL) {
        return 0;
    }
    fl_handle **slot = which == FL_READ ? &e->reader : &e->writer;
    fl_handle *old = *slot;
    if (old == NULL) {
        return 0;
    }
    *slot = NULL;
    PyObject *file = e->reader == NULL && e->writer == NULL ? e->file : NULL;
    if (file != NULL) {
        e->file = NULL;
    }
    int rc = entry_set_interest(loop, e, fd, e->interest & ~which);
    if (rc >= 0) {
        rc = fl_handle_cancel(old);
    }
    Py_DECREF(old);
    Py_XDECREF(file);
    return rc < 0 ? -1 : 1;
}

void
fl_fd_handles(fl_loop *loop, int fd, fl_handle **reader, fl_handle **writer)
{
    fl_fd_entry *e = entry_of(loop, fd);
    *reader = e == NULL ? NULL : e->reader;
    *writer = e == NULL ? NULL : e->writer;
}

int
fl_watch_start(fl_loop *loop, fl_watch *w, unsigned interest)
{
    if (entry_take(loop, w->fd, false) < 0 || table_reserve(&loop->fds, w->fd) < 0) {
        return -1;
    }
    if (loop->fds.entries[w->fd].watch != NULL && fl_fd_forget_closed(loop, w->fd) < 0) {
        return -1;
    }
    fl_fd_entry *e = entry_of(loop, w->fd);
    if (e != NULL && e->watch != NULL) {
        PyErr_Format(PyExc_RuntimeError, "File descriptor %d is already watched", w->fd);
        return -1;
    }
    /* As asyncio, a transport takes the place of a reader and a writer of its fd; often they
     * were those of a file that was closed without remove_reader(). */
    if (e != NULL && (e->reader != NULL || e->writer != NULL)) {
        if (entry_evict(loop, w->fd) < 0) {
            return -1;
        }
        e = entry_of(loop, w->fd);
    }
    if (e == NULL) {
        return fl_loop_check_closed(loop);
    }
    if (entry_set_interest(loop, e, w->fd, interest) < 0) {
        return -1;
    }
    e->watch = w;
    return 0;
}

int
fl_watch_change(fl_loop *loop, fl_watch *w, unsigned interest)
{
    fl_fd_entry *e = entry_of(loop, w->fd);
    if (e == NULL || e->watch != w) {
        PyErr_SetString(PyExc_RuntimeError, "file descriptor is not watched");
        return -1;
    }
    return entry_set_interest(loop, e, w->fd, interest) < 0 ? -1 : 0;
}

void
fl_watch_stop(fl_loop *loop, fl_watch *w)
{
    fl_fd_entry *e = entry_of(loop, w->fd);
    w->events &= FL_WATCH_WAKE;
    if (e == NULL || e->watch != w) {
        return;
    }
    e->watch = NULL;
    if (loop->poller.fd < 0) { /* the loop is closed, and the poller with it */
        e->interest = 0;
    }
    else if (entry_set_interest(loop, e, w->fd, 0) < 0) {
        PyErr_Clear(); /* nothing is lost: the fd is about to be closed */
        e->interest = 0;
    }
}

void
fl_watch_hold(fl_loop *loop, fl_watch *w, bool hold)
{
    fl_fd_entry *e = entry_of(loop, w->fd);

    if (e == NULL || e->watch != w) {
        hold = false;
    }
    if (hold == w->held) {
        return;
    }
    w->held = hold;
    if (hold) {
        Py_INCREF(w->owner);
    }
    else {
        Py_DECREF(w->owner);
    }
}

int
fl_watch_queue(fl_loop *loop, fl_watch *w, unsigned events)
{
    if (!loop->open) {
        return 0;
    }
    w->events |= events;
    if (w->queued) {
        return 0;
    }
    if (fl_ready_push(&loop->ready, w, FL_READY_WATCH) < 0) {
        return -1;
    }
    Py_INCREF(w->owner);
    w->queued = true;
    return 0;
}

static int
queue_handle(fl_loop *loop, fl_handle *h)
{
    return h == NULL || h->cancelled ? 0 : fl_loop_push_handle(loop, h);
}

int
fl_fd_dispatch(fl_loop *loop, const fl_event *events, int n)
{
    for (int i = 0; i < n; i++) {
        int fd = (int)(uint32_t)events[i].key;
        unsigned got = events[i].events;
        if (fd == loop->waker.read_fd) {
            fl_waker_drain(&loop->waker);
            continue;
        }
        fl_fd_entry *e = entry_of(loop, fd);
        if (e == NULL || e->generation != (uint32_t)(events[i].key >> 32)) {
            continue;
        }
        if (e->watch != NULL) {
            if (fl_watch_queue(loop, e->watch, got) < 0) {
                return -1;
            }
            continue;
        }
        if ((got & FL_READ && queue_handle(loop, e->reader) < 0) ||
            (got & FL_WRITE && queue_handle(loop, e->writer) < 0)) {
            return -1;
        }
    }
    return 0;
}

int
fl_fd_visit(fl_loop *loop, visitproc visit, void *arg)
{
    for (int fd = 0; fd < loop->fds.len; fd++) {
        Py_VISIT(loop->fds.entries[fd].reader);
        Py_VISIT(loop->fds.entries[fd].writer);
        Py_VISIT(loop->fds.entries[fd].file);
        fl_watch *w = loop->fds.entries[fd].watch;
        if (w != NULL && w->held) {
            Py_VISIT(w->owner);
        }
    }
    return 0;
}

void
fl_fd_table_close(fl_loop *loop)
{
    /* Dropping a handle can run any code: take the table away first. Watchers'
     * owners find no entry in fl_watch_stop, which is what it expects. */
    fl_fd_table t = loop->fds;
    loop->fds = (fl_fd_table){0};
    for (int fd = 0; fd < t.len; fd++) {
        fl_watch *w = t.entries[fd].watch;
        if (w != NULL && w->held) { /* it has no reader: that place is free */
            w->held = false;
            t.entries[fd].reader = (fl_handle *)w->owner;
        }
    }
    for (int fd = 0; fd < t.len; fd++) {
        Py_CLEAR(t.entries[fd].reader);
        Py_CLEAR(t.entries[fd].writer);
        Py_CLEAR(t.entries[fd].file);
    }
    PyMem_Free(t.entries);
}

/* --- Loop._add_reader() and its kin --- */

/* As selectors._fileobj_to_fd; and OverflowError, which the poller would raise, for
 * a number that no fd can have. */
static int
number_to_fd(PyObject *number)
{
    int overflow;
    long fd = PyLong_AsLongAndOverflow(number, &overflow);
    if (overflow < 0 || (overflow == 0 && fd < 0)) {
        PyErr_Format(PyExc_ValueError, "Invalid file descriptor: %S", number);
        return -1;
    }
    if (overflow > 0 || fd > INT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "Python int too large to convert to C int");
        return -1;
    }
    return (int)fd;
}

/* A file descriptor, or an object with fileno(); -1 with asyncio's errors. */
static int
to_fd(PyObject *object)
{
    if (PyLong_Check(object)) {
        return number_to_fd(object);
    }
    PyObject *fileno = PyObject_CallMethod(object, "fileno", NULL);
    PyObject *number = fileno == NULL ? NULL : PyNumber_Long(fileno);
    Py_XDECREF(fileno);
    if (number == NULL) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError) ||
            PyErr_ExceptionMatches(PyExc_TypeError) ||
            PyErr_ExceptionMatches(PyExc_ValueError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError, "Invalid file object: %R", object);
        }
        return -1;
    }
    int fd = number_to_fd(number);
    Py_DECREF(number);
    return fd;
}

/* The fd that a file object had when it was added, if it was closed since; or -1,
 * with the exception that to_fd() raised. */
static int
fd_of_closed(fl_loop *loop, PyObject *file)
{
    for (int fd = 0; fd < loop->fds.len && PyErr_ExceptionMatches(PyExc_ValueError); fd++) {
        if (loop->fds.entries[fd].file == file) {
            PyErr_Clear();
            return fd;
        }
    }
    return -1;
}

/* Keep the file object that a handle was just added for. */
static void
keep_file(fl_loop *loop, int fd, PyObject *file)
{
    fl_fd_entry *e = entry_of(loop, fd);
    if (e != NULL && (e->reader != NULL || e->writer != NULL) && !PyLong_Check(file)) {
        Py_XSETREF(e->file, Py_NewRef(file));
    }
}

static const char *const takes_fd[] = {"fd", "callback"};

static PyObject *
add_fd_handle(PyObject *self, const char *name, PyObject *const *args, Py_ssize_t nargs,
              PyObject *kwnames, unsigned which)
{
    fl_loop *loop = (fl_loop *)self;
    fl_call_args c = {args, nargs, NULL, {NULL, NULL}};
    if (fl_parse_call(name, &c, takes_fd, kwnames) < 0 || fl_loop_check_closed(loop) < 0) {
        return NULL;
    }
    int fd = to_fd(c.args[0]);
    if (fd < 0) {
        return NULL;
    }
    fl_handle *h = fl_handle_new(loop, c.args[1], c.args + 2, c.nargs - 2, c.context);
    if (h != NULL && fl_fd_set_handle(loop, fd, which, h) < 0) {
        Py_CLEAR(h);
    }
    if (h != NULL) {
        keep_file(loop, fd, c.args[0]);
    }
    return (PyObject *)h;
}

static PyObject *
remove_fd_handle(PyObject *self, PyObject *object, unsigned which)
{
    fl_loop *loop = (fl_loop *)self;
    if (loop->closed) {
        Py_RETURN_FALSE;
    }
    int fd = to_fd(object);
    if (fd < 0) {
        fd = fd_of_closed(loop, object);
    }
    if (fd < 0) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) { /* then it was never added */
            PyErr_Clear();
            Py_RETURN_FALSE;
        }
        return NULL;
    }
    int removed = fl_fd_remove_handle(loop, fd, which);
    return removed < 0 ? NULL : PyBool_FromLong(removed);
}

PyDoc_STRVAR(add_reader_doc, "_add_reader($self, fd, callback, *args, context=None)\n--\n\n"
                             "add_reader() without the check for a transport's fd.");

static PyObject *
loop_add_reader(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return add_fd_handle(self, "add_reader", args, nargs, kwnames, FL_READ);
}

PyDoc_STRVAR(add_writer_doc, "_add_writer($self, fd, callback, *args, context=None)\n--\n\n"
                             "add_writer() without the check for a transport's fd.");

static PyObject *
loop_add_writer(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return add_fd_handle(self, "add_writer", args, nargs, kwnames, FL_WRITE);
}

PyDoc_STRVAR(remove_reader_doc, "_remove_reader($self, fd, /)\n--\n\n"
                                "remove_reader() without the check for a transport's fd.");

static PyObject *
loop_remove_reader(PyObject *self, PyObject *fd)
{
    return remove_fd_handle(self, fd, FL_READ);
}

PyDoc_STRVAR(remove_writer_doc, "_remove_writer($self, fd, /)\n--\n\n"
                                "remove_writer() without the check for a transport's fd.");

static PyObject *
loop_remove_writer(PyObject *self, PyObject *fd)
{
    return remove_fd_handle(self, fd, FL_WRITE);
}

PyDoc_STRVAR(handles_of_doc, "_handles_of($self, fd, /)\n--\n\n"
                             "The (reader, writer) handles or Nones of an fd: what a selector "
                             "would hold.");

static PyObject *
loop_handles_of(PyObject *self, PyObject *object)
{
    int fd = to_fd(object);
    if (fd < 0) {
        return NULL;
    }
    fl_handle *reader, *writer;
    fl_fd_handles((fl_loop *)self, fd, &reader, &writer);
    return Py_BuildValue("(NN)", fl_none_or((PyObject *)reader), fl_none_or((PyObject *)writer));
}

PyMethodDef fl_watch_methods[] = {
    {"_add_reader", (PyCFunction)(void (*)(void))loop_add_reader,
     METH_FASTCALL | METH_KEYWORDS, add_reader_doc},
    {"_add_writer", (PyCFunction)(void (*)(void))loop_add_writer,
     METH_FASTCALL | METH_KEYWORDS, add_writer_doc},
    {"_remove_reader", loop_remove_reader, METH_O, remove_reader_doc},
    {"_remove_writer", loop_remove_writer, METH_O, remove_writer_doc},
    {"_handles_of", loop_handles_of, METH_O, handles_of_doc},
    {NULL, NULL, 0, NULL},
};
