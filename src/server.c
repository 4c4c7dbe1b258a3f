/* server.c - accepting connections on a listening socket.
 *
 * Overrides the loop's hook that asyncio's Server has called when its socket is
 * readable. Without TLS the protocol and its transport are made on the spot, in a
 * context of the connection's own; asyncio makes a task for that.
 */
#include "addr.h"
#include "report.h"
#include "sockops.h"
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>

/* The arguments of asyncio's _accept_connection; borrowed. */
typedef struct {
    PyObject *protocol_factory;
    PyObject *sock;
    PyObject *sslcontext;
    PyObject *server;
    PyObject *backlog;
    PyObject *handshake_timeout;
    PyObject *shutdown_timeout;
    PyObject *context; /* 3.15 */
} accept_args;

/* An accepted connection; fields are owned. */
typedef struct {
    PyObject *sock;
    PyObject *extra; /* {'peername': address} */
} connection;

/* ---- one connection --------------------------------------------------- */

/* accept(): a non-blocking, non-inherited fd, or -1 with errno. */
static int
accept_fd(int listening, fl_addr *address)
{
    int fd;

    do {
        address->len = sizeof(address->storage);
#if defined(__linux__) || defined(__FreeBSD__) || defined(__OpenBSD__) || defined(__NetBSD__)
        fd = accept4(listening, &address->sa, &address->len, SOCK_NONBLOCK | SOCK_CLOEXEC);
#else
        fd = accept(listening, &address->sa, &address->len);
        if (fd >= 0 && (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ||
                        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)) {
            int error = errno;
            close(fd);
            errno = error;
            return -1;
        }
#endif
    } while (fd < 0 && errno == EINTR);
    return fd;
}

/* An int attribute of the plain socket below socket.socket, whose own are enums. */
static PyObject *
raw_attribute(fl_stream_state *ss, PyObject *sock, PyObject *name)
{
    PyObject *super = PyObject_CallFunctionObjArgs((PyObject *)&PySuper_Type,
                                                   (PyObject *)ss->SocketType, sock, NULL);
    PyObject *value = super == NULL ? NULL : PyObject_GetAttr(super, name);

    Py_XDECREF(super);
    return value;
}

/* socket.socket(family, type, proto, fd), non-blocking; closes fd on failure. */
static PyObject *
make_socket(fl_stream_state *ss, PyObject *listening, int fd)
{
    PyObject *family = raw_attribute(ss, listening, ss->str_family);
    PyObject *type = family == NULL ? NULL : raw_attribute(ss, listening, ss->str_type);
    PyObject *proto = type == NULL ? NULL : raw_attribute(ss, listening, ss->str_proto);
    PyObject *sock = NULL, *result;
    long kind = proto == NULL ? -1 : PyLong_AsLong(type);

    if (proto != NULL && !(kind == -1 && PyErr_Occurred())) {
#ifdef SOCK_NONBLOCK
        kind |= SOCK_NONBLOCK; /* tells the object what the fd is already */
#endif
        sock = PyObject_CallFunction((PyObject *)ss->SocketType, "OlOi", family, kind,
                                     proto, fd);
    }
    Py_XDECREF(family);
    Py_XDECREF(type);
    Py_XDECREF(proto);
    if (sock == NULL) {
        close(fd);
        return NULL;
    }
#ifndef SOCK_NONBLOCK
    result = PyObject_CallMethod(sock, "setblocking", "O", Py_False);
    if (result == NULL) {
        Py_DECREF(sock);
        return NULL;
    }
    Py_DECREF(result);
#else
    (void)result;
#endif
    return sock;
}

/* 0: nothing to accept now (or an error, with errno in *error), 1: accepted, -1:
 * exception. */
static int
accept_one(fl_loop *loop, const accept_args *a, int listening, connection *c, int *error)
{
    fl_stream_state *ss = loop->st->stream;
    fl_addr address;
    PyObject *peername;
    bool known;
    int fd = accept_fd(listening, &address);

    if (fd < 0) {
        *error = errno;
        return 0;
    }
    c->sock = make_socket(ss, a->sock, fd);
    if (c->sock == NULL || fl_fd_is_new(loop, fd) < 0) {
        Py_CLEAR(c->sock);
        return -1;
    }
    peername = fl_addr_to_python(&address, &known);
    if (!known) {
        peername = PyObject_CallMethodNoArgs(c->sock, ss->str_getpeername);
    }
    c->extra = peername == NULL ? NULL : PyDict_New();
    if (c->extra == NULL || PyDict_SetItem(c->extra, ss->str_peername, peername) < 0) {
        Py_XDECREF(peername);
        Py_CLEAR(c->sock);
        Py_CLEAR(c->extra);
        return -1;
    }
    Py_DECREF(peername);
    if (loop->debug) {
        PyObject *result = PyObject_CallMethod(
            loop->st->logger, "debug", "sOOO", "%r got a new connection from %r: %r",
            a->server, PyDict_GetItem(c->extra, ss->str_peername), c->sock);
        Py_XDECREF(result);
        if (result == NULL) {
            Py_CLEAR(c->sock);
            Py_CLEAR(c->extra);
            return -1;
        }
    }
    return 1;
}

/* TLS: asyncio's own coroutine makes the transport, in a task. */
static int
serve_tls(fl_loop *loop, const accept_args *a, const connection *c, PyObject *context)
{
    fl_stream_state *ss = loop->st->stream;
    PyObject *self = (PyObject *)loop, *coro, *task;

#if PY_VERSION_HEX >= 0x030F0000
    PyObject *shared = a->context == Py_None ? Py_None : context;
    PyObject *names = Py_BuildValue("(s)", "context");
    PyObject *args[] = {self, a->protocol_factory, c->sock, c->extra, a->sslcontext,
                        a->server, a->handshake_timeout, a->shutdown_timeout, shared};
    if (names == NULL) {
        return -1;
    }
    coro = PyObject_VectorcallMethod(ss->str__accept_connection2, args, 8, names);
    PyObject *task_args[] = {self, coro, shared};
    task = coro == NULL ? NULL
                        : PyObject_VectorcallMethod(ss->str_create_task, task_args, 2, names);
    Py_DECREF(names);
#else
    (void)context;
    coro = PyObject_CallMethodObjArgs(self, ss->str__accept_connection2,
                                      a->protocol_factory, c->sock, c->extra,
                                      a->sslcontext, a->server, a->handshake_timeout,
                                      a->shutdown_timeout, NULL);
    task = coro == NULL ? NULL : PyObject_CallMethodOneArg(self, ss->str_create_task, coro);
#endif
    Py_XDECREF(coro);
    Py_XDECREF(task);
    return task == NULL ? -1 : 0;
}

static int
serve_plain(fl_loop *loop, const accept_args *a, const connection *c, PyObject *context)
{
    PyObject *protocol = PyObject_CallNoArgs(a->protocol_factory), *transport = NULL;
    int status = -1;

    if (protocol != NULL) {
        transport = fl_stream_new(loop, c->sock, protocol, NULL, c->extra, a->server,
                                  a->context == Py_None ? NULL : context);
    }
    if (transport != NULL) {
        status = 0;
    }
    else if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
             PyErr_ExceptionMatches(PyExc_SystemExit)) {
        status = -1;
    }
    else { /* asyncio reports it in debug mode only, and a server that fails does so in silence */
        status = fl_report_raised((PyObject *)loop,
                                "Error on transport creation for incoming connection",
                                "protocol", protocol, (char *)NULL);
    }
    Py_XDECREF(protocol);
    Py_XDECREF(transport);
    return status;
}

static int
serve(fl_loop *loop, const accept_args *a, const connection *c)
{
    PyObject *context =
        a->context == Py_None ? PyContext_CopyCurrent() : PyContext_Copy(a->context);
    int status;

    if (context == NULL) {
        return -1;
    }
    if (PyContext_Enter(context) < 0) {
        Py_DECREF(context);
        return -1;
    }
    status = a->sslcontext != Py_None ? serve_tls(loop, a, c, context)
                                      : serve_plain(loop, a, c, context);
    if (PyContext_Exit(context) < 0) {
        status = -1;
    }
    Py_DECREF(context);
    return status;
}

/* ---- the listening socket --------------------------------------------- */

/* No more fds or memory: a level-triggered poller would report the socket for
 * ever, so stop listening to it and try again in a while. */
static int
back_off(fl_loop *loop, const accept_args *a, int listening)
{
    fl_stream_state *ss = loop->st->stream;
    PyObject *self = (PyObject *)loop, *wrapped, *serving = NULL, *result = NULL;
    PyObject *exc = fl_take_exception();
    int status = -1;

    wrapped = PyObject_CallOneArg(ss->TransportSocket, a->sock);
    if (wrapped != NULL) {
        status = fl_report(self, "socket.accept() out of system resource", exc, "socket",
                           wrapped, (char *)NULL);
        Py_DECREF(wrapped);
    }
    Py_DECREF(exc);
    if (status < 0) {
        return -1;
    }
    result = PyObject_CallMethod(self, "_remove_reader", "i", listening);
    serving = result == NULL ? NULL : PyObject_GetAttr(self, ss->str__start_serving);
    Py_XDECREF(result);
    if (serving == NULL) {
        return -1;
    }
    result = PyObject_CallMethodObjArgs(
        self, ss->str_call_later, ss->accept_retry_delay, serving, a->protocol_factory,
        a->sock, a->sslcontext, a->server, a->backlog, a->handshake_timeout,
        a->shutdown_timeout,
#if PY_VERSION_HEX >= 0x030F0000
        a->context,
#endif
        NULL);
    Py_DECREF(serving);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* accept() failed: 1 to go on, 0 to leave it at that, -1 with an exception. */
static int
accept_failed(fl_loop *loop, const accept_args *a, int listening, int error)
{
    switch (error) {
    case EAGAIN:
#if EWOULDBLOCK != EAGAIN
    case EWOULDBLOCK:
#endif
        return 0;
    case ECONNABORTED:
#if PY_VERSION_HEX >= 0x030E0000
        return 1;
#else
        return 0;
#endif
    default:
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM) {
            return back_off(loop, a, listening);
        }
        return -1; /* the event loop logs and ignores it */
    }
}

static int
listening_fd(fl_stream_state *ss, PyObject *sock)
{
    PyObject *number = PyObject_CallMethodNoArgs(sock, ss->str_fileno);
    long fd = number == NULL ? -1 : PyLong_AsLong(number);

    Py_XDECREF(number);
    return (int)fd;
}

static int
accept_all(fl_loop *loop, const accept_args *a, long tries)
{
    for (; tries > 0 && !loop->closed; tries--) {
        connection c = {NULL, NULL};
        int error = 0, status, fd = listening_fd(loop->st->stream, a->sock);

        if (fd < 0) { /* closed, perhaps by the protocol factory */
            return PyErr_Occurred() ? -1 : 0;
        }
        status = accept_one(loop, a, fd, &c, &error);
        if (status > 0) {
            status = serve(loop, a, &c);
            Py_DECREF(c.sock);
            Py_DECREF(c.extra);
            if (status < 0) {
                return -1;
            }
        }
        else if (status < 0 || (status = accept_failed(loop, a, fd, error)) <= 0) {
            return status;
        }
    }
    return 0;
}

PyDoc_STRVAR(accept_connection_doc,
"_accept_connection($self, protocol_factory, sock, sslcontext=None, server=None,\n"
"                   backlog=100, ssl_handshake_timeout=None,\n"
"                   ssl_shutdown_timeout=None)\n--\n\n"
"Accept at most `backlog` connections that wait on the listening socket.");

static PyObject *
loop_accept_connection(fl_loop *loop, PyObject *args, PyObject *kwargs)
{
    fl_stream_state *ss = loop->st->stream;
    static char *names[] = {"protocol_factory", "sock", "sslcontext", "server", "backlog",
                            "ssl_handshake_timeout", "ssl_shutdown_timeout", "context",
                            NULL};
    accept_args a = {NULL, NULL, Py_None, Py_None, NULL, Py_None, Py_None, Py_None};
    long tries = 100;
    int status;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OOOOOO:_accept_connection", names,
                                     &a.protocol_factory, &a.sock, &a.sslcontext,
                                     &a.server, &a.backlog, &a.handshake_timeout,
                                     &a.shutdown_timeout, &a.context)) {
        return NULL;
    }
    if (!fl_socket_is_stock(loop->st, a.sock)) {
        PyObject *method = PyObject_GetAttr(ss->SelectorLoop, ss->str__accept_connection);
        PyObject *bound = method == NULL ? NULL : PyMethod_New(method, (PyObject *)loop);
        PyObject *result = bound == NULL ? NULL : PyObject_Call(bound, args, kwargs);
        Py_XDECREF(method);
        Py_XDECREF(bound);
        return result;
    }
    if (a.backlog != NULL) {
        tries = PyLong_AsLong(a.backlog);
        if (tries == -1 && PyErr_Occurred()) {
            return NULL;
        }
        Py_INCREF(a.backlog);
    }
    else if ((a.backlog = PyLong_FromLong(tries)) == NULL) {
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030E0000
    tries++;
#endif
    status = accept_all(loop, &a, tries);
    Py_DECREF(a.backlog);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

PyMethodDef fl_server_loop_methods[] = {
    {"_accept_connection", (PyCFunction)(void (*)(void))loop_accept_connection,
     METH_VARARGS | METH_KEYWORDS, accept_connection_doc},
    {NULL, NULL, 0, NULL},
};
