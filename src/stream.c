/* stream.c - SocketTransport: its birth and its end. */
#include "addr.h"
#include "report.h"
#include "sockops.h"
#include "tls.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

/* ---- small services of the other files -------------------------------- */

/* sock.fileno(): -2 with an exception set if it fails. */
static int
socket_fileno(fl_stream_state *ss, PyObject *sock)
{
    PyObject *number = PyObject_CallMethodNoArgs(sock, ss->str_fileno);
    long fd;

    if (number == NULL) {
        return -2;
    }
    fd = PyLong_AsLong(number);
    Py_DECREF(number);
    return fd == -1 && PyErr_Occurred() ? -2 : (int)fd;
}

bool
fl_stream_fd_valid(fl_stream *t)
{
    int fd = -1;

    if (t->sock_fd != NULL) {
        fd = *t->sock_fd;
    }
    else if (t->sock != NULL) {
        fd = socket_fileno(t->st->stream, t->sock);
        if (fd == -2) {
            PyErr_Clear();
        }
    }
    if (fd == t->fd && fd >= 0) {
        return true;
    }
    errno = EBADF;
    return false;
}

int
fl_stream_report(fl_stream *t, PyObject *loop, const char *message)
{
    return fl_report_raised(loop, message, "transport", t, (char *)NULL);
}

/* asyncio's selector refers to a transport while it watches for it; a transport
 * that nobody refers to is closed with a ResourceWarning. */
void
fl_stream_update_hold(fl_stream *t)
{
    bool hold = t->conn_lost == 0 && !t->lent &&
                (t->out.bytes > 0 ||
                 (t->started && fl_stream_is_reading(t) && !t->no_more_reads));
    fl_watch_hold(t->loop, &t->watch, hold);
}

/* logger.debug("%r: %s", self, message, exc_info=exc) */
static int
log_os_error(fl_stream *t, const char *message, PyObject *exc)
{
    PyObject *debug = NULL, *args = NULL, *kwargs = NULL, *result = NULL;

    if (!t->loop->debug) {
        return 0;
    }
    debug = PyObject_GetAttr(t->st->logger, t->st->stream->str_debug);
    args = Py_BuildValue("sOs", "%r: %s", t, message);
    kwargs = Py_BuildValue("{sO}", "exc_info", exc);
    if (debug != NULL && args != NULL && kwargs != NULL) {
        result = PyObject_Call(debug, args, kwargs);
    }
    Py_XDECREF(debug);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int
fl_stream_fatal(fl_stream *t, const char *message)
{
    PyObject *exc;
    int status;

    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
        PyErr_ExceptionMatches(PyExc_SystemExit)) {
        return -1;
    }
    exc = fl_take_exception();
    Py_INCREF(t);
    if (t->loop == NULL) {
        status = 0; /* already lost: nobody is left to tell */
    }
    else if (PyObject_TypeCheck(exc, (PyTypeObject *)PyExc_OSError)) {
        status = log_os_error(t, message, exc);
    }
    else {
        fl_restore_exception(Py_NewRef(exc));
        status = fl_report_raised((PyObject *)t->loop, message, "transport", t, "protocol",
                                t->protocol, (char *)NULL);
    }
    if (status == 0) {
        status = fl_stream_force_close(t, exc);
    }
    Py_DECREF(exc);
    Py_DECREF(t);
    return status;
}

/* ---- closing ---------------------------------------------------------- */

/* call_soon(self._call_connection_lost, exc) */
static int
schedule_connection_lost(fl_stream *t, PyObject *exc)
{
    PyObject *arg = exc != NULL ? exc : Py_None, *callback;
    int status;

    t->conn_lost++;
    fl_stream_update_hold(t);
    callback = PyObject_GetAttr((PyObject *)t, t->st->stream->str__call_connection_lost);
    if (callback == NULL) {
        return -1;
    }
    status = fl_loop_call_soon(t->loop, callback, &arg, 1, t->loop_context);
    Py_DECREF(callback);
    return status;
}

int
fl_stream_close(fl_stream *t)
{
    fl_stream_settle(t);
    if (t->closing) {
        return 0;
    }
    t->closing = true;
    if (t->out.bytes > 0 && !t->blocked && fl_stream_send_waiting(t) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        fl_chunks_clear(&t->out);
        return fl_stream_fatal(t, "Fatal write error on socket transport");
    }
    if (t->out.bytes == 0) {
        return schedule_connection_lost(t, NULL);
    }
    fl_stream_update_hold(t);
    return 0;
}

int
fl_stream_force_close(fl_stream *t, PyObject *exc)
{
    t->failed |= exc != NULL;
    fl_stream_settle(t);
    if (t->conn_lost) {
        return 0;
    }
    if (t->out.bytes > 0 && !t->blocked) {
        /* asyncio would have sent this before now; the end is here anyway */
        (void)fl_stream_send_waiting(t);
    }
    fl_chunks_clear(&t->out);
    t->closing = true;
    return schedule_connection_lost(t, exc);
}

/* server._attach(self) or _detach(self); before 3.13 without the argument. */
static int
tell_server(fl_stream *t, PyObject *server, PyObject *name)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *result = PyObject_CallMethodOneArg(server, name, (PyObject *)t);
#else
    PyObject *result = PyObject_CallMethodNoArgs(server, name);
    (void)t;
#endif
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Close the socket and tell the server; errors are printed, not raised. */
void
fl_stream_release_socket(fl_stream *t)
{
    fl_stream_state *ss = t->st->stream;
    PyObject *sock = t->sock, *server = t->server, *result;

    fl_watch_stop(t->loop, &t->watch);
    t->sock = NULL;
    t->sock_fd = NULL;
    t->server = NULL;
    if (sock != NULL) {
        result = PyObject_CallMethodNoArgs(sock, ss->str_close);
        if (result == NULL) {
            PyErr_WriteUnraisable((PyObject *)t);
        }
        Py_XDECREF(result);
        Py_DECREF(sock);
    }
    if (server != NULL) {
        if (tell_server(t, server, ss->str__detach) < 0) {
            PyErr_WriteUnraisable((PyObject *)t);
        }
        Py_DECREF(server);
    }
}

/* The empty waiter gets ConnectionError("Connection is closed by peer"). */
static void
fail_empty_waiter(fl_stream *t)
{
    PyObject *exc;

    if (t->empty_waiter == NULL) {
        return;
    }
    exc = PyObject_CallFunction(PyExc_ConnectionError, "s", "Connection is closed by peer");
    if (exc == NULL || fl_stream_finish_empty_waiter(t, exc) < 0) {
        PyErr_WriteUnraisable((PyObject *)t);
    }
    Py_XDECREF(exc);
}

int
fl_stream_connection_lost(fl_stream *t, PyObject *exc)
{
    PyObject *result = Py_None, *raised;

    if (t->loop == NULL) {
        return 0;
    }
    Py_INCREF(t);
    /* Also where somebody calls this by hand: from now on every method takes it for lost. */
    t->closing = true;
    t->conn_lost += t->conn_lost == 0;
    fl_watch_hold(t->loop, &t->watch, false);
    fl_chunks_clear(&t->out);
    t->blocked = false;
    if (t->connected) {
        PyObject *protocol = Py_NewRef(t->protocol);
        result = PyObject_CallMethodOneArg(protocol, t->st->stream->str_connection_lost,
                                           exc != NULL ? exc : Py_None);
        Py_XDECREF(result);
        Py_DECREF(protocol);
    }
    raised = result == NULL ? fl_take_exception() : NULL;
    if (t->loop != NULL) {
        if (t->lent && fl_stream_end_loan(t) < 0) {
            PyErr_WriteUnraisable((PyObject *)t);
        }
        fl_stream_release_socket(t);
        fail_empty_waiter(t);
        Py_CLEAR(t->protocol);
        Py_CLEAR(t->reader);
        Py_CLEAR(t->reader_ref);
        Py_CLEAR(t->read_waiter);
        Py_CLEAR(t->loop);
    }
    Py_DECREF(t);
    if (raised != NULL) {
        fl_restore_exception(raised);
        return -1;
    }
    return 0;
}

/* ---- birth ------------------------------------------------------------ */

int
fl_stream_set_protocol(fl_stream *t, PyObject *protocol)
{
    fl_stream_state *ss = t->st->stream;
    int buffered = PyObject_IsInstance(protocol, ss->BufferedProtocol);

    if (buffered < 0) {
        return -1;
    }
    fl_stream_settle(t);
    Py_CLEAR(t->reader); /* its read() was for the protocol until now */
    t->buffered = buffered;
    t->stock = Py_IS_TYPE(protocol, ss->StreamReaderProtocol);
    Py_XSETREF(t->reader_ref, t->stock ? fl_streams_reader_ref(ss, protocol) : NULL);
    t->tls = fl_tls_check(t->st, protocol);
    t->connected = true;
    Py_XSETREF(t->protocol, Py_NewRef(protocol));
    return 0;
}

const int *
fl_find_sock_fd(fl_state *st, PyObject *sock, int fd)
{
    const int *inside = (const int *)((const char *)sock + sizeof(PyObject));
    Py_ssize_t needed = (Py_ssize_t)(sizeof(PyObject) + sizeof(int));

    return st->stream->RawSocketType->tp_basicsize < needed || *inside != fd ? NULL : inside;
}

typedef int (*address_call)(int, struct sockaddr *, socklen_t *);

/* extra[key] = the address that getsockname() or getpeername() gives, or None */
static int
set_address(fl_stream *t, PyObject *key, PyObject *method, address_call call,
            int *family)
{
    fl_addr address = {.len = sizeof(address.storage)};
    bool known;
    PyObject *value = NULL;
    int status;

    if (call(t->fd, &address.sa, &address.len) == 0) {
        *family = address.sa.sa_family;
        value = fl_addr_to_python(&address, &known);
        if (!known) {
            value = PyObject_CallMethodNoArgs(t->sock, method);
        }
        if (value == NULL && PyErr_ExceptionMatches(PyExc_OSError)) {
            PyErr_Clear();
            value = Py_NewRef(Py_None);
        }
    }
    else {
        value = Py_NewRef(Py_None);
    }
    if (value == NULL) {
        return -1;
    }
    status = PyDict_SetItem(t->extra, key, value);
    Py_DECREF(value);
    return status;
}

int
fl_stream_watch(fl_stream *t, bool for_writing)
{
    t->watch.fd = t->fd;
    t->awaits_write = for_writing;
    if (fl_watch_start(t->loop, &t->watch,
                       FL_READ | FL_EDGE | (for_writing ? FL_WRITE : 0)) < 0) {
        t->watch.fd = -1;
        return -1;
    }
    return 0;
}

/* By the kernel: the socket object may say proto 0, which is TCP for a stream too. */
static bool
is_tcp(int fd)
{
#ifdef SO_PROTOCOL
    int protocol = 0;
    socklen_t size = sizeof(protocol);
    return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0 &&
           protocol == IPPROTO_TCP;
#else /* macOS and the BSDs: no MPTCP or SCTP to tell from it */
    (void)fd;
    return true;
#endif
}

/* What get_extra_info("socket") gives: it knows of the transport, and has what was gathered sent
 * before the program does anything to the socket (_streams.py). */
static PyObject *
wrap_socket(fl_stream *t)
{
    fl_stream_state *ss = t->st->stream;

    if (ss->OurSocket == NULL) {
        PyObject *module = PyImport_ImportModule("fastloop._streams");
        ss->OurSocket = module == NULL ? NULL : PyObject_GetAttrString(module, "TransportSocket");
        Py_XDECREF(module);
        if (ss->OurSocket == NULL) {
            return NULL;
        }
    }
    return PyObject_CallFunctionObjArgs(ss->OurSocket, t->sock, (PyObject *)t, NULL);
}

/* The keys 'socket', 'sockname' and 'peername' of get_extra_info(), and
 * TCP_NODELAY as base_events._set_nodelay sets it. */
static int
describe_socket(fl_stream *t)
{
    fl_stream_state *ss = t->st->stream;
    PyObject *wrapped = wrap_socket(t), *proto;
    int family = AF_UNSPEC, other, found, on = 1;
    long number;

    if (wrapped == NULL || PyDict_SetItem(t->extra, ss->str_socket, wrapped) < 0) {
        Py_XDECREF(wrapped);
        return -1;
    }
    Py_DECREF(wrapped);
    if (set_address(t, ss->str_sockname, ss->str_getsockname, getsockname, &family) < 0) {
        return -1;
    }
    found = PyDict_Contains(t->extra, ss->str_peername);
    if (found < 0 || (found == 0 && set_address(t, ss->str_peername, ss->str_getpeername,
                                                getpeername, &other) < 0)) {
        return -1;
    }
    t->awaits_write = family != AF_UNIX; /* see set_up() */
    t->kind = family == AF_UNIX ? FL_STREAM_UNIX : FL_STREAM_OTHER;
    if (family != AF_INET && family != AF_INET6) {
        return 0;
    }
    proto = PyObject_GetAttr(t->sock, ss->str_proto);
    if (proto == NULL) {
        return -1;
    }
    number = PyLong_AsLong(proto);
    Py_DECREF(proto);
    if (is_tcp(t->fd)) {
        t->kind = FL_STREAM_TCP;
    }
    if (number == IPPROTO_TCP &&
        setsockopt(t->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return number == -1 && PyErr_Occurred() ? -1 : 0;
}

static PyObject *
or_null(PyObject *object)
{
    return object == Py_None ? NULL : object;
}

/* Call connection_made() soon; then reading starts and the waiter is woken. */
static int
schedule_start(fl_stream *t)
{
    PyObject *self = (PyObject *)t, *made;
    int status;

    made = PyObject_GetAttr(t->protocol, t->st->stream->str_connection_made);
    if (made == NULL) {
        return -1;
    }
    status = fl_loop_call_soon(t->loop, made, &self, 1, t->loop_context);
    Py_DECREF(made);
    if (status < 0) {
        return -1;
    }
    t->start_due = true;
    return fl_watch_queue(t->loop, &t->watch, FL_WATCH_WAKE);
}

static fl_stream *
allocate(fl_loop *loop, PyObject *sock, int fd)
{
    fl_stream_state *ss = loop->st->stream;
    fl_stream *t = (fl_stream *)ss->StreamType->tp_alloc(ss->StreamType, 0);

    if (t == NULL) {
        return NULL;
    }
    t->st = loop->st;
    t->loop = (fl_loop *)Py_NewRef(loop);
    t->sock = Py_NewRef(sock);
    t->fd = fd;
    t->sock_fd = fl_find_sock_fd(loop->st, sock, fd);
    t->high_water = 64 * 1024;
    t->low_water = 16 * 1024;
    t->write_turn = UINT64_MAX;
    t->watch.owner = t->flush.owner = (PyObject *)t;
    t->watch.fd = -1;
    t->watch.on_event = fl_stream_on_event;
    t->flush.flush = fl_stream_on_flush;
    return t;
}

/* The rest of fl_stream_new, in asyncio's order. */
static int
set_up(fl_stream *t, PyObject *protocol, PyObject *waiter, PyObject *extra,
       PyObject *server, PyObject *context)
{
    t->loop_context = Py_XNewRef(or_null(context));
    t->context = t->loop_context != NULL ? PyContext_Copy(t->loop_context)
                                         : PyContext_CopyCurrent();
    t->extra = or_null(extra) != NULL ? Py_NewRef(extra) : PyDict_New();
    if (t->context == NULL || t->extra == NULL) {
        return -1;
    }
    if (!PyDict_Check(t->extra)) {
        PyErr_Format(PyExc_TypeError, "extra must be a dict, not %R", t->extra);
        return -1;
    }
    if (describe_socket(t) < 0 || fl_stream_set_protocol(t, protocol) < 0) {
        return -1;
    }
    if (or_null(server) != NULL) {
        t->server = Py_NewRef(server);
        if (tell_server(t, server, t->st->stream->str__attach) < 0) {
            return -1;
        }
    }
    t->waiter = Py_XNewRef(or_null(waiter));
    /* A Unix socket wakes who waits to write whenever its peer reads (Linux,
     * unix_write_space), a TCP socket only after it was full. */
    return fl_stream_watch(t, t->awaits_write) < 0 ? -1 : schedule_start(t);
}

PyObject *
fl_stream_new(fl_loop *loop, PyObject *sock, PyObject *protocol, PyObject *waiter,
              PyObject *extra, PyObject *server, PyObject *context)
{
    fl_stream_state *ss = loop->st->stream;
    int fd = socket_fileno(ss, sock);
    fl_stream *t;

    if (fd == -2 || fl_ensure_fd_no_transport(loop, fd, sock) < 0) {
        return NULL;
    }
    t = allocate(loop, sock, fd);
    if (t != NULL && set_up(t, protocol, waiter, extra, server, context) < 0) {
        PyObject *exc = fl_take_exception(); /* the finalizer will warn */
        Py_DECREF(t);
        fl_restore_exception(exc);
        return NULL;
    }
    return (PyObject *)t;
}

/* ---- who uses an fd --------------------------------------------------- */

static int
fd_is_used(PyObject *object, PyObject *transport)
{
    PyErr_Format(PyExc_RuntimeError, "File descriptor %R is used by transport %R", object,
                 transport);
    return -1;
}

/* The same question to loop._transports, where asyncio's own transports are. */
static int
ensure_fd_not_in_python(fl_loop *loop, int fd, PyObject *object)
{
    fl_stream_state *ss = loop->st->stream;
    PyObject *transports = PyObject_GetAttr((PyObject *)loop, ss->str__transports);
    PyObject *data = NULL, *transport = NULL, *closing = NULL;
    int status = -1;

    if (transports == NULL) {
        PyErr_Clear(); /* asyncio's __init__ has not run */
        return 0;
    }
    data = PyObject_GetAttr(transports, ss->str_data);
    if (data == NULL) {
        goto done;
    }
    if (PyDict_Check(data) && PyDict_GET_SIZE(data) == 0) {
        status = 0;
        goto done;
    }
    transport = PyObject_CallMethod(transports, "get", "i", fd);
    if (transport == NULL || transport == Py_None) {
        status = transport == NULL ? -1 : 0;
        goto done;
    }
    closing = PyObject_CallMethodNoArgs(transport, ss->str_is_closing);
    status = closing == NULL ? -1 : PyObject_IsTrue(closing);
    if (status == 0) {
        status = fd_is_used(object, transport);
    }
done:
    Py_DECREF(transports);
    Py_XDECREF(data);
    Py_XDECREF(transport);
    Py_XDECREF(closing);
    return status < 0 ? -1 : 0;
}

int
fl_ensure_fd_no_transport(fl_loop *loop, int fd, PyObject *object)
{
    if (fd >= 0 && fd < loop->fds.len && loop->fds.entries[fd].watch != NULL) {
        PyObject *owner = loop->fds.entries[fd].watch->owner;
        if (Py_IS_TYPE(owner, loop->st->stream->StreamType) &&
            !((fl_stream *)owner)->closing) {
            int gone = fl_fd_forget_closed(loop, fd);
            if (gone <= 0) {
                return gone < 0 ? -1 : fd_is_used(object, owner);
            }
        }
    }
    return ensure_fd_not_in_python(loop, fd, object);
}

/* The int, or -1 for one that no transport's fd can be: the poller refuses it. */
static int
number_to_fd(PyObject *number)
{
    int overflow;
    long fd = PyLong_AsLongAndOverflow(number, &overflow);
    return overflow != 0 || fd < 0 || fd > INT_MAX ? -1 : (int)fd;
}

/* The int that `object` is or that its fileno() gives: -2 with an exception. */
static int
file_descriptor(fl_stream_state *ss, PyObject *object)
{
    PyObject *number, *fileno;
    int fd;

    if (PyLong_Check(object)) {
        return number_to_fd(object);
    }
    fileno = PyObject_CallMethodNoArgs(object, ss->str_fileno);
    number = fileno == NULL ? NULL : PyNumber_Long(fileno);
    Py_XDECREF(fileno);
    if (number != NULL) {
        fd = number_to_fd(number);
        Py_DECREF(number);
        return fd;
    }
    if (PyErr_ExceptionMatches(PyExc_AttributeError) ||
        PyErr_ExceptionMatches(PyExc_TypeError) ||
        PyErr_ExceptionMatches(PyExc_ValueError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "Invalid file object: %R", object);
    }
    return -2;
}

PyDoc_STRVAR(ensure_fd_doc,
"_ensure_fd_no_transport($self, fd, /)\n--\n\n"
"Raise RuntimeError if a transport that is not closing uses the file descriptor.");

static PyObject *
loop_ensure_fd_no_transport(fl_loop *loop, PyObject *object)
{
    int fd = file_descriptor(loop->st->stream, object);

    if (fd == -2 || fl_ensure_fd_no_transport(loop, fd, object) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(make_socket_transport_doc,
"_make_socket_transport($self, sock, protocol, waiter=None, *, extra=None,\n"
"                       server=None)\n--\n\n"
"A SocketTransport for a connected, non-blocking socket.socket. A subclass, and what\n"
"else behaves like a socket, gets asyncio's own transport, which calls its methods.");

static PyObject *
loop_make_socket_transport(fl_loop *loop, PyObject *args, PyObject *kwargs)
{
#if PY_VERSION_HEX >= 0x030F0000
    static char *names[] = {"sock", "protocol", "waiter", "extra", "server", "context",
                            NULL};
    const char *format = "OO|O$OOO:_make_socket_transport";
#else
    static char *names[] = {"sock", "protocol", "waiter", "extra", "server", NULL};
    const char *format = "OO|O$OO:_make_socket_transport";
#endif
    PyObject *sock, *protocol, *waiter = NULL, *extra = NULL, *server = NULL;
    PyObject *context = NULL;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &sock, &protocol,
                                     &waiter, &extra, &server, &context) ||
        fl_loop_check_closed(loop) < 0) {
        return NULL;
    }
    if (fl_socket_is_stock(loop->st, sock)) {
        return fl_stream_new(loop, sock, protocol, waiter, extra, server, context);
    }
    PyObject *method = PyObject_GetAttr(loop->st->stream->SelectorLoop,
                                        loop->st->stream->str__make_socket_transport);
    PyObject *bound = method == NULL ? NULL : PyMethod_New(method, (PyObject *)loop);
    PyObject *result = bound == NULL ? NULL : PyObject_Call(bound, args, kwargs);
    Py_XDECREF(method);
    Py_XDECREF(bound);
    return result;
}

PyMethodDef fl_stream_loop_methods[] = {
    {"_make_socket_transport", (PyCFunction)(void (*)(void))loop_make_socket_transport,
     METH_VARARGS | METH_KEYWORDS, make_socket_transport_doc},
    {"_ensure_fd_no_transport", (PyCFunction)loop_ensure_fd_no_transport, METH_O,
     ensure_fd_doc},
    {NULL, NULL, 0, NULL},
};
