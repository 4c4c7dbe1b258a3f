/* udp.c - the hot half of a datagram transport: receiving and sending.
 *
 * The transport is a subclass, in Python, of asyncio's own, which keeps what is
 * cold: closing, flow control, errors, texts. Its _read_ready and sendto are the
 * methods of an object here. Whatever is out of the ordinary (something waits to
 * be sent, a bad argument, an address that is no literal) is left to asyncio's
 * sendto().
 */
#include "sockops.h"
#include "stream.h"

#include <errno.h>

/* A peer's address in both forms; python: owned, or NULL in an empty place. */
typedef struct {
    fl_addr address;
    PyObject *python;
} fl_peer;

enum { FL_UDP_PEERS = 64 }; /* a power of two */

typedef struct {
    PyObject_HEAD
    fl_state *st;        /* borrowed from the type's module */
    fl_loop *loop;       /* owned */
    PyObject *transport; /* owned; a cycle that the transport breaks when it is lost */
    PyObject *sock;      /* owned socket.socket */
    PyObject *waiting;   /* owned: the transport's deque of datagrams to be sent */
    PyObject *remote;    /* owned: its _address, or None */
    PyObject *sent;      /* owned: what `to` was made of, or NULL */
    fl_addr to;
    fl_peer *peers;      /* who sent last: FL_UDP_PEERS places, chosen by a hash */
    uint8_t peer_of[FL_UDP_PEERS]; /* hash of a Python address -> its place */
    const int *sock_fd;  /* the fd inside sock, or NULL: ask sock.fileno() */
    int family;
    int fd;         /* the reader is registered under this number */
    bool connected; /* send() instead of sendto() */
} fl_udp;

/* Datagrams are read until there is none: a server that has time for the call in vain
 * does not miss it. More than this at once would keep others from their turn. */
enum { FL_UDP_BURST = 64 };

static inline fl_udp *
as_udp(PyObject *self)
{
    return (fl_udp *)self;
}

/* The fd, as long as the socket object still has it; -1 with an exception. */
static int
udp_fd(fl_udp *u)
{
    int fd;
    if (u->sock_fd != NULL) {
        fd = *u->sock_fd;
    }
    else {
        PyObject *number = PyObject_CallMethodNoArgs(u->sock, u->st->sock->str_fileno);
        if (number == NULL) {
            return -1;
        }
        fd = (int)PyLong_AsLong(number);
        Py_DECREF(number);
    }
    if (fd == u->fd) {
        return fd;
    }
    if (!PyErr_Occurred()) {
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return -1;
}

/* transport._conn_lost: 0, 1 or -1 with an exception. */
static int
is_lost(fl_udp *u)
{
    PyObject *count = PyObject_GetAttr(u->transport, u->st->sock->str__conn_lost);
    if (count == NULL) {
        return -1;
    }
    int lost = PyObject_IsTrue(count);
    Py_DECREF(count);
    return lost;
}

/* transport._protocol.name(a, b); b may be NULL. */
static int
call_protocol(fl_udp *u, PyObject *name, PyObject *a, PyObject *b)
{
    PyObject *protocol = PyObject_GetAttr(u->transport, u->st->sock->str__protocol);
    if (protocol == NULL) {
        return -1;
    }
    PyObject *args[3] = {protocol, a, b};
    PyObject *result = PyObject_VectorcallMethod(name, args, b == NULL ? 2 : 3, NULL);
    Py_DECREF(protocol);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* protocol.error_received() with the exception that is set, if it is an OSError;
 * any other stays set: -1. */
static int
report_os_error(fl_udp *u)
{
    PyObject *type, *exc, *tb;
    if (!PyErr_ExceptionMatches(PyExc_OSError)) {
        return -1;
    }
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    int rc = call_protocol(u, u->st->sock->str_error_received, exc, NULL);
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(tb);
    return rc;
}

/* --- peers --- */

/* FNV-1a of what tells peers apart. */
static size_t
hash_of_address(const fl_addr *a)
{
    size_t len = a->len < sizeof(a->in6) ? a->len : sizeof(a->in6), hash = 2166136261u;
    const unsigned char *bytes = (const unsigned char *)&a->storage;
    for (size_t i = 0; i < len; i++) {
        hash = (hash ^ bytes[i]) * 16777619u;
    }
    return hash % FL_UDP_PEERS;
}

static size_t
hash_of_object(const PyObject *object)
{
    return ((uintptr_t)object >> 4) % FL_UDP_PEERS;
}

/* Python's form of a sender's address: the same object as last time, most often. */
static PyObject *
sender(fl_udp *u, const fl_addr *from)
{
    bool known;
    size_t place = hash_of_address(from);
    fl_peer *peer = u->peers + place;
    if (peer->python == NULL || !fl_addr_equal(from, &peer->address)) {
        PyObject *python = fl_addr_to_python(from, &known);
        if (python == NULL) {
            return NULL;
        }
        peer->address = *from;
        Py_XSETREF(peer->python, python);
    }
    u->peer_of[hash_of_object(peer->python)] = (uint8_t)place;
    return Py_NewRef(peer->python);
}

/* u->to for an address given to sendto(); false: not in the ordinary form. */
static bool
set_destination(fl_udp *u, PyObject *address)
{
    if (u->sent == address) {
        return true;
    }
    fl_peer *peer = u->peers + u->peer_of[hash_of_object(address)];
    if (peer->python == address && address != Py_None) {
        u->to = peer->address;
    }
    else if (!fl_addr_from_python(u->family, address, &u->to)) {
        Py_CLEAR(u->sent);
        return false;
    }
    Py_XSETREF(u->sent, Py_NewRef(address)); /* immutable: its identity says it all */
    return true;
}

/* --- receiving --- */

/* Receive one datagram and hand it on: 1, 0 if there is none, -1 on error. */
static int
receive_one(fl_udp *u, char *buffer, size_t size)
{
    fl_addr from;
    from.len = sizeof(from.storage);
    int fd = udp_fd(u);
    ssize_t n = fd < 0 ? -1 : recvfrom(fd, buffer, size, MSG_DONTWAIT, &from.sa, &from.len);
    if (n < 0) {
        if (fd >= 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
            return 0;
        }
        if (fd >= 0) {
            PyErr_SetFromErrno(PyExc_OSError);
        }
        return report_os_error(u) < 0 ? -1 : 0;
    }
    PyObject *data = PyBytes_FromStringAndSize(buffer, n);
    PyObject *address = data == NULL ? NULL : sender(u, &from);
    int rc = address == NULL
                 ? -1
                 : call_protocol(u, u->st->sock->str_datagram_received, data, address);
    Py_XDECREF(data);
    Py_XDECREF(address);
    return rc < 0 ? -1 : 1;
}

/* Whether the transport still reads: not closed, not paused. */
static bool
is_reading(fl_udp *u)
{
    fl_handle *reader, *writer;
    fl_fd_handles(u->loop, u->fd, &reader, &writer);
    return reader != NULL;
}

/* transport.max_size, as far as the buffer goes; 0 with an exception. */
static size_t
read_size(fl_udp *u)
{
    PyObject *number = PyObject_GetAttr(u->transport, u->st->sock->str_max_size);
    if (number == NULL) {
        return 0;
    }
    size_t size = PyLong_AsSize_t(number);
    Py_DECREF(number);
    if (size == (size_t)-1 && PyErr_Occurred()) {
        return 0;
    }
    return size > FL_RECV_BUFFER_SIZE ? FL_RECV_BUFFER_SIZE : size;
}

PyDoc_STRVAR(receive_doc, "receive($self, /)\n--\n\n"
                          "The socket is readable: pass datagrams to the protocol.");

static PyObject *
udp_receive(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_udp *u = as_udp(self);
    int rc = 1;

    if (u->transport == NULL) {
        Py_RETURN_NONE;
    }
    int lost = is_lost(u);
    if (lost != 0) {
        return lost < 0 ? NULL : Py_NewRef(Py_None);
    }
    size_t size = read_size(u);
    char *buffer = size == 0 ? NULL : fl_loop_recv_buffer(u->loop);
    if (buffer == NULL) {
        return NULL;
    }
    for (int n = 0; n < FL_UDP_BURST && (rc = receive_one(u, buffer, size)) > 0; n++) {
        if (u->transport == NULL || !is_reading(u)) {
            Py_RETURN_NONE;
        }
    }
    return rc < 0 ? NULL : Py_NewRef(Py_None);
}

/* --- sending --- */

/* Whether this is an ordinary sendto(): 0 if not, -1 with an exception. */
static int
is_ordinary(fl_udp *u, PyObject *data, PyObject *address)
{
    if (u->transport == NULL || !PyBytes_CheckExact(data) || PyBytes_GET_SIZE(data) == 0) {
        return 0;
    }
    Py_ssize_t waiting = PyObject_Size(u->waiting);
    /* asyncio looks at _conn_lost only where the peer is fixed; else the socket tells */
    int lost = waiting != 0 ? (waiting < 0 ? -1 : 1) : u->remote != Py_None ? is_lost(u) : 0;
    if (lost != 0) {
        return lost < 0 ? -1 : 0;
    }
    if (u->remote != Py_None && address != Py_None && address != u->remote) {
        return 0;
    }
    if (u->connected) {
        return 1;
    }
    return set_destination(u, u->remote != Py_None ? u->remote : address);
}

/* Send: 1, 0 if it is to wait, -1 with an exception. */
static int
send_now(fl_udp *u, PyObject *data)
{
    int flags = MSG_DONTWAIT;
    ssize_t n;
#ifdef MSG_NOSIGNAL
    flags |= MSG_NOSIGNAL;
#endif
    int fd = udp_fd(u);
    if (fd < 0) {
        return -1;
    }
    if (u->connected) {
        n = send(fd, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data), flags);
    }
    else {
        if (PySys_Audit("socket.sendto", "OO", u->sock, u->sent) < 0) {
            return -1;
        }
        n = sendto(fd, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data), flags,
                   &u->to.sa, u->to.len);
    }
    u->loop->io_done = true;
    if (n >= 0) {
        return 1;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
        return 0;
    }
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* asyncio's sendto() */
static PyObject *
send_slowly(fl_udp *u, PyObject *data, PyObject *address)
{
    if (u->transport == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the transport is gone");
        return NULL;
    }
    PyObject *args[3] = {u->transport, data, address};
    return PyObject_VectorcallMethod(u->st->sock->str__sendto_slowly, args, 3, NULL);
}

PyDoc_STRVAR(sendto_doc,
             "sendto($self, /, data, addr=None)\n--\n\n"
             "Send a datagram, bytes-like, to addr (None: where the socket is connected to).\n"
             "Never blocks: what the kernel does not take waits.");

static PyObject *
udp_sendto(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    fl_udp *u = as_udp(self);
    PyObject *data = nargs > 0 ? args[0] : NULL;
    PyObject *address = nargs > 1 ? args[1] : Py_None;
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);

    for (Py_ssize_t i = 0; i < nkw; i++) {
        PyObject *key = PyTuple_GET_ITEM(kwnames, i);
        if (data == NULL && PyUnicode_CompareWithASCIIString(key, "data") == 0) {
            data = args[nargs + i];
        }
        else if (nargs < 2 && PyUnicode_CompareWithASCIIString(key, "addr") == 0) {
            address = args[nargs + i];
        }
        else {
            PyErr_Format(PyExc_TypeError, "sendto() got an unexpected argument '%U'", key);
            return NULL;
        }
    }
    if (data == NULL || nargs > 2) {
        PyErr_SetString(PyExc_TypeError, "sendto() takes data and an optional addr");
        return NULL;
    }
    int ordinary = is_ordinary(u, data, address);
    if (ordinary < 0) {
        return NULL;
    }
    int rc = ordinary ? send_now(u, data) : 0;
    if (rc == 0) {
        return send_slowly(u, data, address);
    }
    if (rc < 0 && report_os_error(u) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* --- life --- */

PyDoc_STRVAR(forget_doc, "forget($self, /)\n--\n\nThe transport is lost: let go of it.");

static PyObject *
udp_forget(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    Py_CLEAR(as_udp(self)->transport);
    Py_RETURN_NONE;
}

/* Datagrams(loop, transport, sock): of a transport whose __init__ has run. */
static PyObject *
udp_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop", "transport", "sock", NULL};
    fl_state *st = fl_state_of_type(type);
    PyObject *loop, *transport, *sock, *extra = NULL;

    if (st == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!OO!:Datagrams", names,
                                                   st->LoopType, &loop, &transport,
                                                   st->sock->SocketType, &sock)) {
        return NULL;
    }
    fl_udp *u = (fl_udp *)type->tp_alloc(type, 0);
    if (u == NULL) {
        return NULL;
    }
    u->st = st;
    u->loop = (fl_loop *)Py_NewRef(loop);
    u->transport = Py_NewRef(transport);
    u->sock = Py_NewRef(sock);
    u->peers = PyMem_Calloc(FL_UDP_PEERS, sizeof(fl_peer));
    if (u->peers == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    u->waiting = PyObject_GetAttrString(transport, "_buffer");
    u->remote = u->waiting == NULL ? NULL : PyObject_GetAttrString(transport, "_address");
    if (u->remote == NULL) {
        goto fail;
    }
    PyObject *number = PyObject_GetAttrString(transport, "_sock_fd");
    if (number == NULL) {
        goto fail;
    }
    u->fd = (int)PyLong_AsLong(number);
    Py_DECREF(number);
    u->sock_fd = fl_find_sock_fd(st, sock, u->fd);
    u->family = fl_sock_int(st, sock, st->sock->raw_family);
    extra = PyObject_CallMethod(transport, "get_extra_info", "s", "peername");
    int connected = extra == NULL ? -1 : PyObject_IsTrue(extra);
    Py_XDECREF(extra);
    if (connected < 0 || PyErr_Occurred()) {
        goto fail;
    }
    u->connected = connected;
    return (PyObject *)u;
fail:
    Py_DECREF(u);
    return NULL;
}

static int
udp_traverse(PyObject *self, visitproc visit, void *arg)
{
    fl_udp *u = as_udp(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(u->loop);
    Py_VISIT(u->transport);
    Py_VISIT(u->sock);
    Py_VISIT(u->waiting);
    Py_VISIT(u->remote);
    Py_VISIT(u->sent);
    for (int i = 0; u->peers != NULL && i < FL_UDP_PEERS; i++) {
        Py_VISIT(u->peers[i].python);
    }
    return 0;
}

static int
udp_clear(PyObject *self)
{
    Py_CLEAR(as_udp(self)->transport);
    return 0;
}

static void
udp_dealloc(PyObject *self)
{
    fl_udp *u = as_udp(self);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(u->transport);
    Py_CLEAR(u->sock);
    Py_CLEAR(u->waiting);
    Py_CLEAR(u->remote);
    Py_CLEAR(u->sent);
    for (int i = 0; u->peers != NULL && i < FL_UDP_PEERS; i++) {
        Py_CLEAR(u->peers[i].python);
    }
    PyMem_Free(u->peers);
    Py_CLEAR(u->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef udp_methods[] = {
    {"receive", udp_receive, METH_NOARGS, receive_doc},
    {"sendto", (PyCFunction)(void (*)(void))udp_sendto, METH_FASTCALL | METH_KEYWORDS,
     sendto_doc},
    {"forget", udp_forget, METH_NOARGS, forget_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(udp_doc, "Datagrams(loop, transport, sock)\n--\n\n"
                      "What a DatagramTransport receives and sends with.");

static PyType_Slot udp_slots[] = {
    {Py_tp_doc, (void *)udp_doc},
    {Py_tp_new, udp_new},
    {Py_tp_dealloc, udp_dealloc},
    {Py_tp_traverse, udp_traverse},
    {Py_tp_clear, udp_clear},
    {Py_tp_methods, udp_methods},
    {0, NULL},
};

static PyType_Spec udp_spec = {
    .name = "fastloop._core.Datagrams",
    .basicsize = sizeof(fl_udp),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = udp_slots,
};

int
fl_udp_init(PyObject *module, fl_state *st)
{
    (void)st;
    PyTypeObject *type = fl_add_type(module, &udp_spec, NULL, 0);
    Py_XDECREF(type); /* the module keeps it */
    return type == NULL ? -1 : 0;
}
