/* udp.c - the hot half of a datagram transport: receiving and sending.
 *
 * The transport is a subclass, in Python, of asyncio's own, which keeps what is
 * cold: closing, flow control, errors, texts. Its reader and its sendto() are the
 * methods of an object here. Whatever is out of the ordinary (something waits to
 * be sent, a bad argument, an address that is no literal, a socket that is closed or
 * whose methods somebody replaced) is left to asyncio's _read_ready() and sendto().
 */
#include "report.h"
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
    PyObject *transport; /* owned; a cycle that the transport breaks when it is lost, so
                            that a sendto() somebody kept still is asyncio's */
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

/* The fd, as long as the socket object still has it; else -1, without an exception. */
static int
udp_fd(fl_udp *u)
{
    int fd;
    if (u->sock_fd != NULL) {
        fd = *u->sock_fd;
    }
    else {
        PyObject *number = PyObject_CallMethodNoArgs(u->sock, u->st->sock->str_fileno);
        fd = number == NULL ? -1 : (int)PyLong_AsLong(number);
        Py_XDECREF(number);
        PyErr_Clear();
    }
    return fd == u->fd ? fd : -1;
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

/* protocol.error_received() or, if the exception that is set is no OSError, the end of
 * the transport, as in asyncio within an except clause; `fatal` says what failed then. */
static int
report_error(fl_udp *u, const char *fatal)
{
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
        PyErr_ExceptionMatches(PyExc_SystemExit)) {
        return -1;
    }
    int rc, is_os_error = PyErr_ExceptionMatches(PyExc_OSError);
    PyObject *exc = fl_take_raised(), *handled = PyErr_GetHandledException();
    PyErr_SetHandledException(exc);
    if (is_os_error) {
        rc = call_protocol(u, u->st->sock->str_error_received, exc, NULL);
    }
    else {
        PyObject *none = PyObject_CallMethod(u->transport, "_fatal_error", "Os", exc, fatal);
        rc = none == NULL ? -1 : 0;
        Py_XDECREF(none);
    }
    PyErr_SetHandledException(handled);
    Py_XDECREF(handled);
    Py_DECREF(exc);
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
receive_one(fl_udp *u, int fd, char *buffer, size_t size)
{
    fl_addr from;
    from.len = sizeof(from.storage);
    ssize_t n = recvfrom(fd, buffer, size, MSG_DONTWAIT, &from.sa, &from.len);
    if (n < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
            return 0;
        }
        PyErr_SetFromErrno(PyExc_OSError);
        return report_error(u, NULL) < 0 ? -1 : 0;
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

/* transport.max_size; 0, without an exception, if it is not just a size that the buffer has. */
static size_t
read_size(fl_udp *u)
{
    PyObject *number = PyObject_GetAttr(u->transport, u->st->sock->str_max_size);
    size_t size = number == NULL ? 0 : PyLong_AsSize_t(number);
    Py_XDECREF(number);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return size > FL_RECV_BUFFER_SIZE ? 0 : size;
}

PyDoc_STRVAR(receive_doc, "receive($self, /)\n--\n\n"
                          "The socket is readable: pass datagrams to the protocol.");

static PyObject *
udp_receive(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_udp *u = as_udp(self);
    int fd, rc, n = 0;

    if (u->transport == NULL) {
        Py_RETURN_NONE;
    }
    int lost = is_lost(u);
    if (lost != 0) {
        return lost < 0 ? NULL : Py_NewRef(Py_None);
    }
    size_t size = read_size(u);
    if (size == 0 || !fl_socket_is_stock(u->st, u->sock) || (fd = udp_fd(u)) < 0) {
        return PyObject_CallMethod(u->transport, "_read_ready", NULL);
    }
    char *buffer = fl_loop_recv_buffer(u->loop);
    if (buffer == NULL) {
        return NULL;
    }
    do {
        rc = receive_one(u, fd, buffer, size);
    } while (rc > 0 && ++n < FL_UDP_BURST && is_reading(u) && (fd = udp_fd(u)) >= 0);
    return rc < 0 ? NULL : Py_NewRef(Py_None);
}

/* --- sending --- */

/* Whether this is an ordinary sendto(): 0 if not, -1 with an exception. */
static int
is_ordinary(fl_udp *u, PyObject *data, PyObject *address)
{
    if (!PyBytes_CheckExact(data) || PyBytes_GET_SIZE(data) == 0 ||
        !fl_socket_is_stock(u->st, u->sock)) {
        return 0;
    }
    Py_ssize_t waiting = PyObject_Size(u->waiting);
    /* asyncio looks at _conn_lost only where the peer is fixed; else the socket tells */
    int lost = waiting != 0 ? (waiting < 0 ? -1 : 1) : u->remote != Py_None ? is_lost(u) : 0;
    if (lost != 0) {
        return lost < 0 ? -1 : 0;
    }
    return u->remote == Py_None || address == Py_None || address == u->remote;
}

/* The result of send() or sendto(): 1, 0 if it is to wait, -1 with an exception. */
static int
after_send(fl_udp *u, ssize_t n)
{
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

#ifdef MSG_NOSIGNAL
enum { SEND_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL };
#else
enum { SEND_FLAGS = MSG_DONTWAIT };
#endif

/* Send: 1, 0 if asyncio's sendto() has to see to it, -1 with an exception. */
static int
send_connected(fl_udp *u, PyObject *data)
{
    int fd = udp_fd(u);
    if (fd < 0) {
        return 0;
    }
    return after_send(u, send(fd, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data),
                              SEND_FLAGS));
}

static int
send_to(fl_udp *u, PyObject *data, PyObject *address)
{
    if (!set_destination(u, address)) {
        return 0;
    }
    if (PySys_Audit("socket.sendto", "OO", u->sock, address) < 0) {
        return -1;
    }
    int fd = udp_fd(u); /* the hook can have closed it, or sent something elsewhere */
    if (fd < 0 || (u->sent != address && !set_destination(u, address))) {
        return 0;
    }
    return after_send(u, sendto(fd, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data),
                                SEND_FLAGS, &u->to.sa, u->to.len));
}

static int
send_now(fl_udp *u, PyObject *data, PyObject *address)
{
    int ordinary = is_ordinary(u, data, address);
    if (ordinary <= 0) {
        return ordinary;
    }
    if (u->connected) {
        return send_connected(u, data);
    }
    return send_to(u, data, u->remote != Py_None ? u->remote : address);
}

/* asyncio's sendto(), which also knows what to say about wrong arguments */
static PyObject *
send_slowly(fl_udp *u, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *method = PyObject_GetAttr(u->transport, u->st->sock->str__sendto_slowly);
    PyObject *result = method == NULL ? NULL : PyObject_Vectorcall(method, args, nargs, kwnames);
    Py_XDECREF(method);
    return result;
}

/* data and addr, borrowed, of a call of sendto(); false if it is not to be called so. */
static bool
sendto_arguments(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, PyObject **data,
                 PyObject **address)
{
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);

    *data = nargs > 0 ? args[0] : NULL;
    *address = nargs > 1 ? args[1] : Py_None;
    for (Py_ssize_t i = 0; i < nkw; i++) {
        PyObject *key = PyTuple_GET_ITEM(kwnames, i);
        if (nargs < 1 && PyUnicode_CompareWithASCIIString(key, "data") == 0) {
            *data = args[nargs + i];
        }
        else if (nargs < 2 && PyUnicode_CompareWithASCIIString(key, "addr") == 0) {
            *address = args[nargs + i];
        }
        else {
            return false;
        }
    }
    return *data != NULL && nargs <= 2;
}

PyDoc_STRVAR(sendto_doc,
             "sendto($self, /, data, addr=None)\n--\n\n"
             "Send a datagram, bytes-like, to addr (None: where the socket is connected to).\n"
             "Never blocks: what the kernel does not take waits.");

static PyObject *
udp_sendto(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    fl_udp *u = as_udp(self);
    PyObject *data, *address;

    if (u->transport == NULL) { /* a finalizer calls us */
        PyErr_SetString(PyExc_RuntimeError, "the transport is gone");
        return NULL;
    }
    if (!sendto_arguments(args, nargs, kwnames, &data, &address)) {
        return send_slowly(u, args, nargs, kwnames);
    }
    int rc = send_now(u, data, address);
    if (rc == 0) {
        return send_slowly(u, args, nargs, kwnames);
    }
    if (rc < 0 && report_error(u, "Fatal write error on datagram transport") < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* --- life --- */

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
