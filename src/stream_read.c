/* stream_read.c - what the poller says about a SocketTransport, and reading.
 *
 * The fd is registered once, edge-triggered, for reading and writing. A read that
 * comes back short has emptied the socket, so nothing more is asked of the kernel
 * until its next edge; unless the peer has ended, which gives no further edge: then
 * the socket is read on until the end shows. One recv() an event, as asyncio: what
 * is left is queued behind the others.
 */
#include "tls.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

static const char DATA_RECEIVED_FAILED[] =
    "Fatal error: protocol.data_received() call failed.";

/* A large message may come in pieces, the last of them small: one of those does not
 * yet say that reads are small now. */
static void
note_size(fl_stream *t, unsigned n)
{
    t->usual_read = n >= t->usual_read ? n : t->usual_read - (t->usual_read - n) / 8;
}

/* recv() from a Unix socket. *more: it stopped behind a message whose descriptors or credentials
 * were dropped, so that a short read does not say that there is nothing left (Linux,
 * unix_stream_read_generic; recvmsg(2), MSG_CTRUNC). */
static ssize_t
receive_unix(int fd, void *buffer, size_t size, bool *more)
{
    struct iovec iov = {.iov_base = buffer, .iov_len = size};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n = recvmsg(fd, &message, 0);

    *more = n > 0 && (message.msg_flags & MSG_CTRUNC) != 0;
    return n;
}

/* After a read that filled the protocol's own buffer: is there anything else? Asked without
 * receiving, which would meet an error of the socket. A protocol whose buffer is full for good
 * must not be asked for room in vain. */
static bool
has_more(fl_stream *t)
{
    int waiting = 0;

    return t->hung_up || ioctl(t->fd, FIONREAD, &waiting) < 0 || waiting > 0;
}

ssize_t
fl_stream_receive(fl_stream *t, void *buffer, size_t size)
{
    ssize_t n;

    if (!fl_stream_fd_valid(t)) {
        return -1;
    }
    bool more = t->kind == FL_STREAM_OTHER; /* a short read says nothing */
    do {
        n = t->kind == FL_STREAM_UNIX ? receive_unix(t->fd, buffer, size, &more)
                                      : recv(t->fd, buffer, size, 0);
    } while (n < 0 && errno == EINTR);
    if (n == 0) {
        t->hung_up = true;
    }
    t->readable = n > 0 && ((size_t)n == size || more || t->hung_up);
    if (n > 0) {
        note_size(t, (unsigned)n);
        t->loop->bytes_in += (size_t)n;
    }
    return n;
}

/* After a large read the next one is expected to be large too, and worth to be
 * received where it will stay. The room is a little more than usual, so that a
 * short count still shows that the socket is empty, and that reads grow while
 * there is more. */
size_t
fl_stream_expected(fl_stream *t)
{
    size_t room = t->usual_read + t->usual_read / 4;

    if (t->usual_read < FL_STREAM_LARGE) {
        return 0;
    }
    return room < FL_RECV_BUFFER_SIZE ? room : FL_RECV_BUFFER_SIZE;
}

int
fl_stream_receive_failed(fl_stream *t)
{
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
        t->hung_up = false;
        return 0;
    }
    PyErr_SetFromErrno(PyExc_OSError);
    return fl_stream_fatal(t, "Fatal read error on socket transport");
}

int
fl_stream_log_debug(fl_stream *t, const char *format)
{
    PyObject *result;

    if (t->loop == NULL || !t->loop->debug) {
        return 0;
    }
    result = PyObject_CallMethod(t->st->logger, "debug", "sO", format, t);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int
on_eof(fl_stream *t)
{
    PyObject *protocol, *result;
    int keep_open;

    if (fl_stream_log_debug(t, "%r received EOF") < 0) {
        return -1;
    }
    protocol = Py_NewRef(t->protocol);
    result = PyObject_CallMethodNoArgs(protocol, t->st->stream->str_eof_received);
    Py_DECREF(protocol);
    if (result == NULL) {
        return fl_stream_fatal(t, "Fatal error: protocol.eof_received() call failed.");
    }
    keep_open = PyObject_IsTrue(result);
    Py_DECREF(result);
    if (keep_open < 0) {
        return -1;
    }
    if (!keep_open) {
        return fl_stream_close(t);
    }
    t->no_more_reads = true;
    fl_stream_update_hold(t);
    return 0;
}

PyObject *
fl_stream_receive_bytes(fl_stream *t, size_t room, ssize_t *n)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);

    *n = -1;
    if (bytes == NULL) {
        return NULL;
    }
    *n = fl_stream_receive(t, PyBytes_AS_STRING(bytes), room);
    if (*n <= 0) {
        int error = errno;
        Py_DECREF(bytes);
        errno = error;
        return NULL;
    }
    _PyBytes_Resize(&bytes, *n); /* NULL with an exception on failure */
    return bytes;
}

/* The next bytes: as fl_stream_receive_bytes(). */
static PyObject *
receive_some(fl_stream *t, ssize_t *n)
{
    size_t expected = fl_stream_expected(t);
    char *buffer;

    if (expected > 0) {
        return fl_stream_receive_bytes(t, expected, n);
    }
    *n = -1;
    errno = 0;
    buffer = fl_loop_recv_buffer(t->loop);
    *n = buffer == NULL ? -1 : fl_stream_receive(t, buffer, FL_RECV_BUFFER_SIZE);
    return *n <= 0 ? NULL : PyBytes_FromStringAndSize(buffer, *n);
}

/* recv() gave no data: the end, or an error in errno. With an error met by a send, recv()
 * gives 0 too: that is no end. */
static int
received_nothing(fl_stream *t, ssize_t n)
{
    if (t->failed) {
        return 0;
    }
    return n == 0 ? on_eof(t) : fl_stream_receive_failed(t);
}

/* Protocol: one exact bytes object a read. */
static int
read_ready_data(fl_stream *t)
{
    PyObject *bytes, *protocol, *result;
    ssize_t n;

    bytes = receive_some(t, &n);
    if (bytes == NULL) {
        return PyErr_Occurred()
                   ? fl_stream_fatal(t, "Fatal read error on socket transport")
                   : received_nothing(t, n);
    }
    protocol = Py_NewRef(t->protocol);
    result = PyObject_CallMethodOneArg(protocol, t->st->stream->str_data_received, bytes);
    Py_DECREF(protocol);
    Py_DECREF(bytes);
    if (result == NULL) {
        return fl_stream_fatal(t, DATA_RECEIVED_FAILED);
    }
    Py_DECREF(result);
    return 0;
}

/* Wake the read() that waits: 1 if there is nothing else to do, 0 if the bytes are to be
 * received now, -1 with an exception. */
static int
wake_read(fl_stream *t)
{
    int status = t->reader == NULL ? 0 : fl_streams_offer(t);

    if (status < 0 && fl_stream_fatal(t, DATA_RECEIVED_FAILED) == 0) {
        status = 1;
    }
    return status == 0 && t->loop == NULL ? 1 : status;
}

/* A stock StreamReaderProtocol: into its reader, where that is possible. */
static int
read_ready_stock(fl_stream *t)
{
    ssize_t n = -1;
    int done = wake_read(t);

    if (done != 0) {
        return done < 0 ? -1 : 0;
    }
    done = fl_streams_read(t, &n);
    if (done == 0) {
        return read_ready_data(t);
    }
    if (done < 0) {
        return fl_stream_fatal(t, DATA_RECEIVED_FAILED);
    }
    return n > 0 ? 0 : received_nothing(t, n);
}

/* Our own TLSProtocol: records into it. */
static int
read_ready_tls(fl_stream *t)
{
    ssize_t n;

    if (fl_tls_receive(t, &n) < 0) {
        return fl_stream_fatal(t, "Fatal error: protocol.buffer_updated() call failed.");
    }
    return n > 0 ? 0 : received_nothing(t, n);
}

/* The buffer that protocol.get_buffer() gives, which may be anything. */
static int
get_buffer(fl_stream *t, Py_buffer *view)
{
    fl_stream_state *ss = t->st->stream;
    const char *failure = "Fatal error: protocol.get_buffer() call failed.";
    PyObject *hint = PyLong_FromLong(-1), *protocol, *buffer;
    Py_ssize_t len;

    if (hint == NULL) {
        return fl_stream_fatal(t, failure) < 0 ? -1 : 0;
    }
    protocol = Py_NewRef(t->protocol);
    buffer = PyObject_CallMethodOneArg(protocol, ss->str_get_buffer, hint);
    Py_DECREF(protocol);
    Py_DECREF(hint);
    len = buffer == NULL ? -1 : PyObject_Size(buffer);
    if (len == 0) {
        PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
    }
    if (len <= 0) {
        Py_XDECREF(buffer);
        return fl_stream_fatal(t, failure) < 0 ? -1 : 0;
    }
    if (PyObject_GetBuffer(buffer, view, PyBUF_WRITABLE) < 0) {
        PyErr_Format(PyExc_TypeError,
                     "recv_into() argument 1 must be read-write bytes-like object, "
                     "not %.50s",
                     Py_TYPE(buffer)->tp_name);
        Py_DECREF(buffer);
        return fl_stream_fatal(t, "Fatal read error on socket transport") < 0 ? -1 : 0;
    }
    Py_DECREF(buffer);
    return 1;
}

static int
buffer_updated(fl_stream *t, ssize_t n)
{
    PyObject *count = PyLong_FromSsize_t(n), *protocol, *result;

    if (count == NULL) {
        return fl_stream_fatal(t, "Fatal error: protocol.buffer_updated() call failed.");
    }
    protocol = Py_NewRef(t->protocol);
    result = PyObject_CallMethodOneArg(protocol, t->st->stream->str_buffer_updated, count);
    Py_DECREF(protocol);
    Py_DECREF(count);
    if (result == NULL) {
        return fl_stream_fatal(t, "Fatal error: protocol.buffer_updated() call failed.");
    }
    Py_DECREF(result);
    return 0;
}

static int
read_ready_buffer(fl_stream *t)
{
    Py_buffer view;
    ssize_t n;
    int error, status = get_buffer(t, &view);

    if (status <= 0) {
        return status;
    }
    if (t->loop == NULL) { /* get_buffer() was long enough to lose the connection */
        PyBuffer_Release(&view);
        return 0;
    }
    n = fl_stream_receive(t, view.buf, (size_t)view.len);
    error = errno;
    if (n == view.len) {
        t->readable = has_more(t);
    }
    PyBuffer_Release(&view);
    if (t->loop == NULL) {
        return 0;
    }
    if (n < 0) {
        errno = error;
        return fl_stream_receive_failed(t);
    }
    return n == 0 ? on_eof(t) : buffer_updated(t, n);
}

bool
fl_stream_may_read(const fl_stream *t)
{
    return t->started && t->readable && fl_stream_is_reading(t) && !t->no_more_reads &&
           t->conn_lost == 0;
}

static int
read_ready(fl_stream *t)
{
    int status = t->tls        ? read_ready_tls(t)
                 : t->buffered ? read_ready_buffer(t)
                 : t->stock    ? read_ready_stock(t)
                               : read_ready_data(t);

    if (status == 0 && fl_stream_may_read(t) && !t->offered) {
        status = fl_watch_queue(t->loop, &t->watch, FL_READ);
    }
    return status;
}

void
fl_stream_settle(fl_stream *t)
{
    if (!t->offered) {
        return;
    }
    t->offered = false;
    if (fl_stream_may_read(t) && t->loop->open && read_ready(t) < 0) {
        PyErr_WriteUnraisable((PyObject *)t);
    }
}

/* connection_made() has been called: read from now on, and wake who waits for the
 * connection. */
static int
start(fl_stream *t)
{
    PyObject *waiter = t->waiter, *result;

    t->started = true;
    if (t->loop != NULL) {
        fl_stream_update_hold(t);
        fl_streams_adopt(t);
    }
    if (waiter == NULL) {
        return 0;
    }
    t->waiter = NULL;
    result = PyObject_CallFunctionObjArgs(t->st->set_result_unless_cancelled, waiter,
                                          Py_None, NULL);
    Py_DECREF(waiter);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int
handle_events(fl_stream *t, PyObject *loop, unsigned events)
{
    int status = 0;

    if (t->start_due) {
        t->start_due = false;
        status = start(t);
        if (status == 0 && fl_stream_may_read(t)) { /* behind what connection_made() scheduled */
            status = fl_watch_queue(t->loop, &t->watch, FL_READ);
        }
        if (status < 0) {
            status = fl_stream_report(t, loop, "Exception in starting a transport");
        }
    }
    else if (fl_stream_may_read(t)) {
        status = read_ready(t);
        if (status < 0) {
            status = fl_stream_report(t, loop, "Exception in reading from a transport");
        }
    }
    if (status == 0 && (events & FL_WRITE) && t->loop != NULL && t->blocked) {
        /* As asyncio, read before writing: an error of the socket is told once, and is
         * the reader's if both could meet it. */
        fl_stream_settle(t);
        status = t->loop == NULL ? 0 : fl_stream_write_ready(t);
        if (status < 0) {
            status = fl_stream_report(t, loop, "Exception in writing to a transport");
        }
    }
    return status;
}

int
fl_stream_on_event(fl_watch *w, unsigned events)
{
    fl_stream *t = (fl_stream *)w->owner;
    PyObject *context, *loop;
    int status;

    if (t->loop == NULL) {
        return 0;
    }
    if (events & FL_READ) {
        t->readable = true;
    }
    if (events & (FL_HANGUP | FL_EOF)) {
        t->hung_up = true;
    }
    if (!t->start_due && !t->blocked) {
        if (!fl_stream_may_read(t)) {
            return 0;
        }
        status = wake_read(t); /* which runs no code of the protocol: not in its context */
        if (status != 0) {
            return status < 0 ? -1 : 0;
        }
    }
    loop = Py_NewRef(t->loop);
    context = Py_NewRef(t->context);
    if (PyContext_Enter(context) < 0) {
        status = fl_stream_fatal(t, "Fatal error on transport");
    }
    else {
        status = handle_events(t, loop, events);
        if (PyContext_Exit(context) < 0) {
            status = -1;
        }
    }
    Py_DECREF(context);
    Py_DECREF(loop);
    return status;
}

int
fl_stream_pause_reading(fl_stream *t)
{
    if (!fl_stream_is_reading(t)) {
        return 0;
    }
    fl_stream_settle(t);
    if (!fl_stream_is_reading(t)) {
        return 0;
    }
    t->paused = true;
    fl_stream_update_hold(t);
    return fl_stream_log_debug(t, "%r pauses reading");
}

int
fl_stream_resume_reading(fl_stream *t)
{
    if (t->closing || !t->paused) {
        return 0;
    }
    t->paused = false;
    t->no_more_reads = false; /* asyncio reads, and calls eof_received(), again */
    t->readable |= t->hung_up;
    if (t->conn_lost == 0) {
        fl_stream_update_hold(t);
        if (fl_stream_may_read(t) && fl_watch_queue(t->loop, &t->watch, FL_READ) < 0) {
            return -1;
        }
    }
    return fl_stream_log_debug(t, "%r resumes reading");
}
