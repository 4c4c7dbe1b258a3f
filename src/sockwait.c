/* sockwait.c - which operations wait for an fd.
 *
 * The first operation that has to wait for a socket registers its fd with the
 * poller, edge-triggered and for both directions, and it stays so: the later
 * ones cost no system call for it. A weak reference to the socket object tells
 * whether the fd is still that socket's. The registration gives way to anybody
 * else who wants the fd (add_reader, a transport). Where one of those is there
 * already, or the socket is not an exact socket.socket, an operation waits the
 * way asyncio does it: by a handle put in and taken out again.
 */
#include "sockops.h"

#include <sys/socket.h>

struct fl_sockwait {
    PyObject_HEAD
    fl_watch watch;
    PyObject *sockref;  /* owned weak reference to the socket */
    fl_sockop *ops[2];  /* owned or NULL: the reader, the writer */
    bool ready[2];      /* the kernel may have something since it last would block */
    bool tcp;           /* a short read means that there is no more */
    bool ended;         /* ... but for what the poller calls FL_EOF or FL_HANGUP */
};

static inline int
side(unsigned which)
{
    return which == FL_READ ? 0 : 1;
}

/* Whether a weak reference is to this very object. */
static inline bool
refers_to(PyObject *ref, PyObject *object)
{
#if PY_VERSION_HEX >= 0x030d0000
    PyObject *referent;
    if (PyWeakref_GetRef(ref, &referent) <= 0) {
        return false;
    }
    Py_DECREF(referent); /* only its identity matters */
    return referent == object;
#else
    return PyWeakref_GET_OBJECT(ref) == object;
#endif
}

/* The registration of op's socket, borrowed, or NULL. */
static fl_sockwait *
find(fl_sockop *op)
{
    fl_fd_table *t = &op->loop->fds;
    if (!op->native || op->fd < 0 || op->fd >= t->len) {
        return NULL;
    }
    fl_watch *w = t->entries[op->fd].watch;
    if (w == NULL || Py_TYPE(w->owner) != op->st->sock->SockWaitType) {
        return NULL;
    }
    fl_sockwait *wait = (fl_sockwait *)w->owner;
    return refers_to(wait->sockref, op->sock) ? wait : NULL;
}

bool
fl_sockwait_known_empty(fl_sockop *op)
{
    fl_sockwait *wait = find(op);
    return wait != NULL && !wait->ready[side(op->kind->which)];
}

void
fl_sockwait_note_empty(fl_sockop *op)
{
    fl_sockwait *wait = find(op);
    if (wait != NULL) {
        wait->ready[side(op->kind->which)] = false;
    }
}

void
fl_sockwait_note_short(fl_sockop *op)
{
    fl_sockwait *wait = find(op);
    if (wait != NULL && wait->tcp && !wait->ended) {
        wait->ready[0] = false;
    }
}

/* Finish what op waits on; its task then tries again. */
static int
wake(fl_sockop *op)
{
    if (op->waiter == NULL || op->waiter->state != FL_PENDING) {
        return 0; /* cancelled, and about to be told */
    }
    return fl_future_set_result(op->waiter, Py_None);
}

/* fl_watch.on_event */
static int
on_event(fl_watch *w, unsigned events)
{
    fl_sockwait *wait = (fl_sockwait *)w->owner;
    if (events & (FL_EOF | FL_HANGUP)) {
        wait->ended = true;
    }
    for (int i = 0; i < 2; i++) {
        if ((events & (i == 0 ? FL_READ : FL_WRITE)) == 0) {
            continue;
        }
        wait->ready[i] = true;
        if (wait->ops[i] != NULL && wake(wait->ops[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Op is no longer among wait's. */
static void
drop_op(fl_sockwait *wait, int i)
{
    fl_sockop *op = wait->ops[i];
    if (op != NULL) {
        wait->ops[i] = NULL;
        op->wait = NULL;
        Py_DECREF(op);
    }
}

/* --- waiting by a handle --- */

static PyObject *
handle_fired(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_sockop *op = (fl_sockop *)self;
    if (wake(op) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef handle_fired_def = {"sock_ready", handle_fired, METH_NOARGS, NULL};

static int
begin_by_handle(fl_sockop *op)
{
    PyObject *callback = PyCFunction_New(&handle_fired_def, (PyObject *)op);
    if (callback == NULL) {
        return -1;
    }
    fl_handle *h = fl_handle_new(op->loop, callback, NULL, 0, NULL);
    Py_DECREF(callback);
    if (h == NULL) {
        return -1;
    }
    if (fl_fd_set_handle(op->loop, op->fd, op->kind->which, h) < 0) {
        Py_DECREF(h);
        return -1;
    }
    Py_XSETREF(op->handle, h);
    return 0;
}

static void
end_by_handle(fl_sockop *op)
{
    fl_handle *h = op->handle;
    op->handle = NULL;
    /* cancelled: another one has taken its place, which is not ours to remove */
    if (!h->cancelled && !op->loop->closed &&
        fl_fd_remove_handle(op->loop, op->fd, op->kind->which) < 0) {
        PyErr_WriteUnraisable((PyObject *)op->loop);
    }
    Py_DECREF(h);
}

/* --- waiting by a registration --- */

/* Whether op still waits, and for the socket that the fd belongs to: after its
 * socket was closed the number may be another's. */
static int
still_waits(fl_sockop *op, int fd)
{
    if (op->waiter == NULL || op->waiter->state != FL_PENDING) {
        return 0;
    }
    return fl_sockop_fileno(op) < 0 ? -1 : op->fd == fd;
}

/* fl_watch.give_way: somebody else wants the fd. */
static int
give_way(fl_watch *w, bool to_handles)
{
    fl_sockwait *wait = (fl_sockwait *)w->owner;
    int rc = 0;
    for (int i = 0; i < 2; i++) {
        fl_sockop *op = (fl_sockop *)Py_XNewRef(wait->ops[i]);
        drop_op(wait, i);
        if (op != NULL && to_handles && rc == 0) {
            rc = still_waits(op, w->fd);
            rc = rc > 0 ? begin_by_handle(op) : rc;
        }
        Py_XDECREF(op);
    }
    return rc;
}

/* Of a Unix socket a read ends early where a message carried descriptors. */
static bool
is_tcp(fl_sockop *op)
{
    fl_sock_state *ss = op->st->sock;
    int family = fl_sock_int(op->st, op->sock, ss->raw_family);
    int type = fl_sock_int(op->st, op->sock, ss->raw_type);
    PyErr_Clear(); /* they are ints of the object itself */
    return (family == AF_INET || family == AF_INET6) && type == SOCK_STREAM;
}

static fl_sockwait *
sockwait_new(fl_sockop *op)
{
    PyTypeObject *type = op->st->sock->SockWaitType;
    PyObject *ref = PyWeakref_NewRef(op->sock, NULL);
    fl_sockwait *wait = ref == NULL ? NULL : (fl_sockwait *)type->tp_alloc(type, 0);
    if (wait == NULL) {
        Py_XDECREF(ref);
        return NULL;
    }
    wait->sockref = ref;
    wait->tcp = is_tcp(op);
    wait->watch = (fl_watch){.owner = (PyObject *)wait,
                             .fd = op->fd,
                             .on_event = on_event,
                             .give_way = give_way};
    return wait;
}

/* asyncio's check: RuntimeError if a transport uses the fd. */
static int
check_no_transport(fl_sockop *op)
{
    fl_sock_state *ss = op->st->sock;
    PyObject *fd = PyLong_FromLong(op->fd);
    if (fd == NULL) {
        return -1;
    }
    PyObject *none = PyObject_CallMethodOneArg((PyObject *)op->loop,
                                               ss->str__ensure_fd_no_transport, fd);
    Py_DECREF(fd);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

static int
begin(fl_sockop *op)
{
    int i = side(op->kind->which);
    fl_sockwait *wait = find(op);

    if (wait == NULL) {
        if (check_no_transport(op) < 0) {
            return -1;
        }
        fl_handle *reader, *writer;
        fl_fd_handles(op->loop, op->fd, &reader, &writer);
        if (!op->native || reader != NULL || writer != NULL) {
            return begin_by_handle(op);
        }
        wait = sockwait_new(op);
        if (wait == NULL) {
            return -1;
        }
        int rc = fl_watch_start(op->loop, &wait->watch, FL_READ | FL_WRITE | FL_EDGE);
        if (rc == 0) {
            fl_watch_hold(op->loop, &wait->watch, true);
        }
        Py_DECREF(wait);
        if (rc < 0) {
            return -1;
        }
        /* The operation that waits has just been refused; of the other side
         * nothing is known but what the first event will tell. */
        wait->ready[1 - i] = true;
    }
    /* The new one first: the end of the old can run any code, also such as takes the fd away. */
    fl_sockop *old = wait->ops[i];
    wait->ops[i] = (fl_sockop *)Py_NewRef(op);
    op->wait = wait;
    if (old != NULL) {
        old->wait = NULL;
        Py_DECREF(old);
    }
    return 0;
}

int
fl_sockwait_begin(fl_sockop *op)
{
    if (fl_loop_check_closed(op->loop) < 0) {
        return -1;
    }
    op->waiter = (fl_future *)fl_future_new(op->loop);
    if (op->waiter == NULL) {
        return -1;
    }
    if (begin(op) < 0) {
        fl_sockwait_end(op);
        return -1;
    }
    return 0;
}

void
fl_sockwait_end(fl_sockop *op)
{
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (op->wait != NULL) {
        drop_op(op->wait, side(op->kind->which));
    }
    if (op->handle != NULL) {
        end_by_handle(op);
    }
    Py_CLEAR(op->waiter);
    PyErr_Restore(type, value, tb);
}

/* --- the type, which no Python code ever sees --- */

static int
sockwait_traverse(PyObject *self, visitproc visit, void *arg)
{
    fl_sockwait *wait = (fl_sockwait *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(wait->sockref);
    Py_VISIT(wait->ops[0]);
    Py_VISIT(wait->ops[1]);
    return 0;
}

static int
sockwait_clear(PyObject *self)
{
    fl_sockwait *wait = (fl_sockwait *)self;
    drop_op(wait, 0);
    drop_op(wait, 1);
    return 0;
}

static void
sockwait_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    sockwait_clear(self);
    Py_CLEAR(((fl_sockwait *)self)->sockref);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot sockwait_slots[] = {
    {Py_tp_doc, "The operations that wait for a socket."},
    {Py_tp_dealloc, sockwait_dealloc},
    {Py_tp_traverse, sockwait_traverse},
    {Py_tp_clear, sockwait_clear},
    {0, NULL},
};

static PyType_Spec sockwait_spec = {
    .name = "fastloop._core.SocketWait",
    .basicsize = sizeof(fl_sockwait),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = sockwait_slots,
};

int
fl_sockwait_init(PyObject *module, fl_state *st)
{
    st->sock->SockWaitType =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &sockwait_spec, NULL);
    return st->sock->SockWaitType == NULL ? -1 : 0;
}
