/* sockcalls.c - the system calls of socket operations, each tried once.
 *
 * On an exact socket.socket they are made directly, with MSG_DONTWAIT, so that a
 * blocking socket does not block the loop; and without giving up the GIL, since
 * they only copy. Anything else (a subclass, an address in some rare form) is
 * asked through its own methods, whose errors are then Python's.
 */
#define _GNU_SOURCE /* accept4 */
#include "sockops.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

/* Larger reads go straight into a bytes object, which is cut to size after. */
enum { READ_VIA_BUFFER = 64 * 1024 };

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

int
fl_sockop_fileno(fl_sockop *op)
{
    PyObject *number = PyObject_CallMethodNoArgs(op->sock, op->st->sock->str_fileno);
    if (number == NULL) {
        return -1;
    }
    long fd = PyLong_AsLong(number);
    Py_DECREF(number);
    if (fd == -1 && PyErr_Occurred()) {
        return -1;
    }
    op->fd = fd < 0 || fd > INT_MAX ? -1 : (int)fd;
    return 0;
}

int
fl_sock_int(fl_state *st, PyObject *sock, PyObject *descriptor)
{
    PyObject *number = Py_TYPE(descriptor)->tp_descr_get(
        descriptor, sock, (PyObject *)st->sock->SocketType);
    if (number == NULL) {
        return -1;
    }
    int value = (int)PyLong_AsLong(number);
    Py_DECREF(number);
    return value;
}

/* What a failed system call means: 0 if it would block, 2 if it is to be made
 * again, -1 with OSError. */
static int
call_failed(fl_sockop *op)
{
    if (errno == EINTR) {
        return PyErr_CheckSignals() < 0 ? -1 : FL_SOCK_AGAIN;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
        fl_sockwait_note_empty(op);
        return 0;
    }
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* The outcome of a method call: `value` is taken over. */
static int
method_result(PyObject *value, PyObject **result)
{
    if (value != NULL) {
        *result = value;
        return 1;
    }
    if (PyErr_ExceptionMatches(PyExc_BlockingIOError) ||
        PyErr_ExceptionMatches(PyExc_InterruptedError)) {
        PyErr_Clear();
        return 0;
    }
    return -1;
}

static int
call_method(fl_sockop *op, PyObject *name, PyObject *a, PyObject *b, PyObject **result)
{
    PyObject *args[3] = {op->sock, a, b};
    size_t n = 1 + (a != NULL) + (b != NULL);
    return method_result(PyObject_VectorcallMethod(name, args, n, NULL), result);
}

/* --- receiving --- */

static int
recv_via_buffer(fl_sockop *op, PyObject **result)
{
    char *buffer = fl_loop_recv_buffer(op->loop);
    if (buffer == NULL) {
        return -1;
    }
    ssize_t n = recv(op->fd, buffer, (size_t)op->size, MSG_DONTWAIT);
    if (n < 0) {
        return call_failed(op);
    }
    if (n > 0 && n < op->size) {
        fl_sockwait_note_short(op);
    }
    *result = PyBytes_FromStringAndSize(buffer, n);
    return *result == NULL ? -1 : 1;
}

static int
recv_into_bytes(fl_sockop *op, PyObject **result)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, op->size);
    if (bytes == NULL) {
        return -1;
    }
    ssize_t n = recv(op->fd, PyBytes_AS_STRING(bytes), (size_t)op->size, MSG_DONTWAIT);
    if (n < 0) {
        Py_DECREF(bytes);
        return call_failed(op);
    }
    if (n > 0 && n < op->size) {
        fl_sockwait_note_short(op);
    }
    if (n < op->size && _PyBytes_Resize(&bytes, n) < 0) {
        return -1;
    }
    *result = bytes;
    return 1;
}

/* A size given as argument; socket.recv() is asked to complain of a bad one. */
static bool
get_size(fl_sockop *op, PyObject *number)
{
    if (op->size < 0 && PyLong_CheckExact(number)) {
        op->size = PyLong_AsSsize_t(number);
        if (op->size == -1 && PyErr_Occurred()) {
            PyErr_Clear();
        }
    }
    return op->size > 0;
}

static int
call_recv(fl_sockop *op, PyObject **result)
{
    if (!op->native || !get_size(op, op->args[0])) {
        return call_method(op, op->st->sock->str_recv, op->args[0], NULL, result);
    }
    return op->size <= READ_VIA_BUFFER ? recv_via_buffer(op, result)
                                       : recv_into_bytes(op, result);
}

/* A writable buffer, or none: then the socket's method says why not. */
static bool
get_writable(fl_sockop *op, Py_buffer *view)
{
    if (!op->native) {
        return false;
    }
    if (PyObject_GetBuffer(op->args[0], view, PyBUF_WRITABLE) < 0) {
        PyErr_Clear();
        return false;
    }
    return true;
}

static int
call_recv_into(fl_sockop *op, PyObject **result)
{
    Py_buffer view;
    if (!get_writable(op, &view)) {
        return call_method(op, op->st->sock->str_recv_into, op->args[0], NULL, result);
    }
    ssize_t n = view.len == 0 ? 0 : recv(op->fd, view.buf, (size_t)view.len, MSG_DONTWAIT);
    Py_ssize_t wanted = view.len;
    int error = errno;
    PyBuffer_Release(&view);
    if (n < 0) {
        errno = error;
        return call_failed(op);
    }
    if (n > 0 && n < wanted) {
        fl_sockwait_note_short(op);
    }
    *result = PyLong_FromSsize_t(n);
    return *result == NULL ? -1 : 1;
}

/* (data, address); `data` is taken over. */
static int
pair_with_address(PyObject *data, const fl_addr *from, PyObject **result)
{
    bool known;
    PyObject *address = data == NULL ? NULL : fl_addr_to_python(from, &known);
    *result = address == NULL ? NULL : PyTuple_Pack(2, data, address);
    Py_XDECREF(data);
    Py_XDECREF(address);
    return *result == NULL ? -1 : 1;
}

/* Whether addresses of op's socket are known to addr.c; -1 with an exception. */
static int
has_known_addresses(fl_sockop *op)
{
    if (!op->native) {
        return 0;
    }
    int family = fl_sock_int(op->st, op->sock, op->st->sock->raw_family);
    if (family == -1 && PyErr_Occurred()) {
        return -1;
    }
    return family == AF_INET || family == AF_INET6 || family == AF_UNIX;
}

static int
call_recvfrom(fl_sockop *op, PyObject **result)
{
    int known = has_known_addresses(op);
    if (known < 0) {
        return -1;
    }
    if (!known || !get_size(op, op->args[0]) || op->size > FL_RECV_BUFFER_SIZE) {
        return call_method(op, op->st->sock->str_recvfrom, op->args[0], NULL, result);
    }
    fl_addr from = {.len = sizeof(from.storage)};
    char *buffer = fl_loop_recv_buffer(op->loop);
    if (buffer == NULL) {
        return -1;
    }
    ssize_t n = recvfrom(op->fd, buffer, (size_t)op->size, MSG_DONTWAIT, &from.sa, &from.len);
    if (n < 0) {
        return call_failed(op);
    }
    return pair_with_address(PyBytes_FromStringAndSize(buffer, n), &from, result);
}

/* sock.recvfrom_into(buf, nbytes), as asyncio calls it. */
static int
recvfrom_into_method(fl_sockop *op, PyObject **result)
{
    PyObject *nbytes = op->args[1];
    int given = nbytes == NULL ? 0 : PyObject_IsTrue(nbytes);
    if (given < 0) {
        return -1;
    }
    if (given) {
        return call_method(op, op->st->sock->str_recvfrom_into, op->args[0], nbytes, result);
    }
    Py_ssize_t len = PyObject_Size(op->args[0]);
    nbytes = len < 0 ? NULL : PyLong_FromSsize_t(len);
    if (nbytes == NULL) {
        return -1;
    }
    int rc = call_method(op, op->st->sock->str_recvfrom_into, op->args[0], nbytes, result);
    Py_DECREF(nbytes);
    return rc;
}

static int
call_recvfrom_into(fl_sockop *op, PyObject **result)
{
    Py_buffer view;
    int known = has_known_addresses(op);
    if (known < 0) {
        return -1;
    }
    /* a number of bytes that is not simply smaller than the buffer is rare */
    bool whole = op->args[1] == NULL || get_size(op, op->args[1]);
    if (!known || !whole || !get_writable(op, &view)) {
        return recvfrom_into_method(op, result);
    }
    Py_ssize_t size = op->args[1] == NULL ? view.len : op->size;
    if (size > view.len || view.len == 0) {
        PyBuffer_Release(&view);
        return recvfrom_into_method(op, result);
    }
    fl_addr from = {.len = sizeof(from.storage)};
    ssize_t n = recvfrom(op->fd, view.buf, (size_t)size, MSG_DONTWAIT, &from.sa, &from.len);
    int error = errno;
    PyBuffer_Release(&view);
    if (n < 0) {
        errno = error;
        return call_failed(op);
    }
    return pair_with_address(PyLong_FromSsize_t(n), &from, result);
}

/* --- sending --- */

/* asyncio's way: sock.send(data), then of memoryview(data)[sent:]. */
static int
sendall_by_method(fl_sockop *op)
{
    PyObject *part = Py_NewRef(op->args[0]);
    PyObject *number = NULL;
    if (op->sent > 0) {
        PyObject *whole = PyMemoryView_FromObject(op->args[0]);
        Py_SETREF(part, whole == NULL ? NULL : PySequence_GetSlice(whole, op->sent, op->size));
        Py_XDECREF(whole);
        if (part == NULL) {
            return -1;
        }
    }
    int rc = call_method(op, op->st->sock->str_send, part, NULL, &number);
    Py_DECREF(part);
    if (rc > 0) {
        Py_ssize_t n = PyNumber_AsSsize_t(number, PyExc_OverflowError);
        Py_DECREF(number);
        if (n == -1 && PyErr_Occurred()) {
            return -1;
        }
        op->sent += n;
    }
    return rc;
}

/* Send what the kernel takes: to the last byte, or until it would block. */
static int
send_once(fl_sockop *op)
{
    if (!op->native) {
        return sendall_by_method(op);
    }
    ssize_t n = send(op->fd, (char *)op->view.buf + op->sent, (size_t)(op->size - op->sent),
                     MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) {
        return call_failed(op);
    }
    op->sent += n;
    op->loop->io_done = true;
    return 1;
}

static int
call_sendall(fl_sockop *op, PyObject **result)
{
    if (op->view.obj == NULL) {
        if (PyObject_GetBuffer(op->args[0], &op->view, PyBUF_SIMPLE) < 0) {
            return -1;
        }
        op->size = op->view.len;
    }
    do {
        int rc = send_once(op);
        if (rc != 1) {
            return rc;
        }
        if (!op->native && op->sent < op->size) {
            return 0; /* as asyncio: one call, then wait */
        }
    } while (op->sent < op->size);
    *result = Py_NewRef(Py_None);
    return 1;
}

/* A literal address in the kernel's form; 0: not one; -1 with an exception. */
static int
literal_address(fl_sockop *op, PyObject *address, fl_addr *to)
{
    int family = fl_sock_int(op->st, op->sock, op->st->sock->raw_family);
    if (family == -1 && PyErr_Occurred()) {
        return -1;
    }
    return fl_addr_from_python(family, address, to);
}

static int
sendto_address(fl_sockop *op, const fl_addr *to, PyObject **result)
{
    Py_buffer view;
    if (PySys_Audit("socket.sendto", "OO", op->sock, op->args[1]) < 0 ||
        PyObject_GetBuffer(op->args[0], &view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    ssize_t n = sendto(op->fd, view.buf, (size_t)view.len, MSG_DONTWAIT | MSG_NOSIGNAL, &to->sa,
                       to->len);
    int error = errno;
    PyBuffer_Release(&view);
    if (n < 0) {
        errno = error;
        return call_failed(op);
    }
    op->loop->io_done = true;
    *result = PyLong_FromSsize_t(n);
    return *result == NULL ? -1 : 1;
}

static int
call_sendto(fl_sockop *op, PyObject **result)
{
    fl_addr to;
    int literal = op->native ? literal_address(op, op->args[1], &to) : 0;
    if (literal < 0) {
        return -1;
    }
    if (literal) {
        return sendto_address(op, &to, result);
    }
    int rc = call_method(op, op->st->sock->str_sendto, op->args[0], op->args[1], result);
    op->loop->io_done = true;
    return rc;
}

/* --- connecting --- */

static int
connect_failed(fl_sockop *op, int error)
{
    PyObject *text = PyUnicode_FromFormat("Connect call failed %S", op->args[0]);
    PyObject *exc =
        text == NULL ? NULL : PyObject_CallFunction(PyExc_OSError, "iO", error, text);
    Py_XDECREF(text);
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
    return -1;
}

/* How a connection in progress stands, by its SO_ERROR. */
static int
connect_outcome(fl_sockop *op, PyObject **result)
{
    int error = 0;
    if (op->native) {
        socklen_t len = sizeof(error);
        if (getsockopt(op->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
    else {
        PyObject *number = PyObject_CallMethod(op->sock, "getsockopt", "ii", SOL_SOCKET, SO_ERROR);
        if (number == NULL) {
            return method_result(NULL, result);
        }
        error = (int)PyLong_AsLong(number);
        Py_DECREF(number);
        if (error == -1 && PyErr_Occurred()) {
            return -1;
        }
    }
    if (error != 0) {
        return connect_failed(op, error);
    }
    *result = Py_NewRef(Py_None);
    return 1;
}

/* The same where a sandbox refuses poll(2). */
static int
state_of_connect(int fd)
{
#ifdef __linux__
    struct tcp_info info;
    socklen_t size = sizeof(info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0) {
        return info.tcpi_state == TCP_SYN_SENT ? 0 : POLLOUT;
    }
#endif
    (void)fd;
    return POLLOUT; /* the event loop's own poller said so, or will once more */
}

/* What of POLLOUT, POLLERR and POLLHUP holds for the socket now. */
static int
poll_now(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    int n = poll(&p, 1, 0);

    return n == 1 ? p.revents : n < 0 ? state_of_connect(fd) : 0;
}

/* Whether the socket is non-blocking; -1 with an exception. */
static int
is_nonblocking(fl_sockop *op)
{
    PyObject *timeout = PyObject_CallMethodNoArgs(op->sock, op->st->sock->str_gettimeout);
    if (timeout == NULL) {
        return -1;
    }
    int result = PyFloat_Check(timeout) && PyFloat_AS_DOUBLE(timeout) == 0;
    Py_DECREF(timeout);
    return result;
}

/* connect(2) to a literal address, else sock.connect(): 1, 0 or -1. */
static int
connect_once(fl_sockop *op)
{
    fl_addr to;
    PyObject *none = NULL;
    /* a blocking socket blocks as asyncio's does, but not with the GIL held */
    int direct = op->native ? is_nonblocking(op) : 0;
    if (direct > 0) {
        direct = literal_address(op, op->args[0], &to);
    }
    if (direct < 0) {
        return -1;
    }
    if (!direct) {
        int rc = call_method(op, op->st->sock->str_connect, op->args[0], NULL, &none);
        Py_XDECREF(none);
        return rc;
    }
    if (PySys_Audit("socket.connect", "OO", op->sock, op->args[0]) < 0) {
        return -1;
    }
    if (connect(op->fd, &to.sa, to.len) == 0) {
        return 1;
    }
    if (errno == EINPROGRESS || errno == EAGAIN || errno == EINTR) {
        return 0;
    }
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

static int
call_connect(fl_sockop *op, PyObject **result)
{
    if (op->started) {
        return op->native && poll_now(op->fd) == 0 ? 0 : connect_outcome(op, result);
    }
    op->started = true;
    int rc = connect_once(op);
    op->loop->io_done = true;
    if (rc > 0) {
        *result = Py_NewRef(Py_None);
        return 1;
    }
    /* On the same machine the connection may be there already. Yet the loop tells, as on
     * asyncio: until then the caller can be cancelled without having connected. */
    return rc;
}

/* --- accepting --- */

#ifdef SOCK_NONBLOCK
static int
accept_nonblocking(int fd, struct sockaddr *address, socklen_t *len)
{
    return accept4(fd, address, len, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

/* socket.socket(family, type, proto, fd); the fd is closed if that fails. */
static PyObject *
socket_of(fl_sockop *op, int fd)
{
    fl_sock_state *ss = op->st->sock;
    int family = fl_sock_int(op->st, op->sock, ss->raw_family);
    int type = PyErr_Occurred() ? -1 : fl_sock_int(op->st, op->sock, ss->raw_type);
    int proto = PyErr_Occurred() ? -1 : fl_sock_int(op->st, op->sock, ss->raw_proto);
    PyObject *sock = NULL;
    if (!PyErr_Occurred()) {
        /* SOCK_NONBLOCK in the type spares it the system call to find out */
        sock = PyObject_CallFunction((PyObject *)ss->SocketType, "iiii", family,
                                     type | SOCK_NONBLOCK, proto, fd);
    }
    if (sock == NULL) {
        close(fd);
    }
    return sock;
}

static int
accept_native(fl_sockop *op, PyObject **result)
{
    fl_addr from = {.len = sizeof(from.storage)};
    int fd = accept_nonblocking(op->fd, &from.sa, &from.len);
    if (fd < 0) {
        return call_failed(op);
    }
    return pair_with_address(socket_of(op, fd), &from, result);
}
#endif

static int
accept_by_method(fl_sockop *op, PyObject **result)
{
    PyObject *pair;
    int rc = call_method(op, op->st->sock->str_accept, NULL, NULL, &pair);
    if (rc <= 0) {
        return rc;
    }
    PyObject *conn, *address;
    if (!PyArg_ParseTuple(pair, "OO", &conn, &address)) {
        Py_DECREF(pair);
        return -1;
    }
    PyObject *none = PyObject_CallMethodOneArg(conn, op->st->sock->str_setblocking, Py_False);
    if (none == NULL) {
        Py_DECREF(pair);
        return -1;
    }
    Py_DECREF(none);
    *result = pair;
    return 1;
}

static int
call_accept(fl_sockop *op, PyObject **result)
{
#ifdef SOCK_NONBLOCK
    int known = has_known_addresses(op);
    if (known < 0) {
        return -1;
    }
    int direct = known ? is_nonblocking(op) : 0;
    if (direct != 0) {
        return direct < 0 ? -1 : accept_native(op, result);
    }
#endif
    return accept_by_method(op, result);
}

/* --- the table --- */

const fl_sockop_kind fl_sock_kinds[FL_SOCK_KINDS] = {
    [FL_SOCK_RECV] = {"sock_recv", {"sock", "n"}, 2, 2, false, FL_READ, call_recv},
    [FL_SOCK_RECV_INTO] = {"sock_recv_into", {"sock", "buf"}, 2, 2, false, FL_READ,
                           call_recv_into},
    [FL_SOCK_RECVFROM] = {"sock_recvfrom", {"sock", "bufsize"}, 2, 2, false, FL_READ,
                          call_recvfrom},
    [FL_SOCK_RECVFROM_INTO] = {"sock_recvfrom_into", {"sock", "buf", "nbytes"}, 2, 3, false,
                               FL_READ, call_recvfrom_into},
    [FL_SOCK_SENDALL] = {"sock_sendall", {"sock", "data"}, 2, 2, false, FL_WRITE, call_sendall},
    [FL_SOCK_SENDTO] = {"sock_sendto", {"sock", "data", "address"}, 3, 3, false, FL_WRITE,
                        call_sendto},
    [FL_SOCK_CONNECT] = {"sock_connect", {"sock", "address"}, 2, 2, true, FL_WRITE,
                         call_connect},
    [FL_SOCK_ACCEPT] = {"sock_accept", {"sock"}, 1, 1, false, FL_READ, call_accept},
};
