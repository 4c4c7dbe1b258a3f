/* stream_write.c - writing to a SocketTransport and its flow control.
 *
 * A write is sent at once, so that a program which writes and then blocks its
 * thread has sent its bytes. A transport that is written to twice in one turn of
 * the loop is taken for one that writes in pieces (a head, then a body): from then
 * on its writes wait for the end of the turn and go out in one sendmsg(), until
 * several turns in a row brought a single write. All writes wait while the loop
 * answers many peers slowly (turn.c, learn_to_gather).
 *
 * What waits is in fl_stream.out: because the turn has not ended, or, with
 * `blocked`, because the kernel would take no more (EAGAIN) and the poller will
 * say when it does.
 */
#include "report.h"
#include "stream.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#ifndef MSG_NOSIGNAL /* macOS: Python ignores SIGPIPE anyway */
#define MSG_NOSIGNAL 0
#endif

enum {
    IOVECS = 128,            /* slices handed to one sendmsg() */
    FLUSH_EARLY = 64 * 1024, /* bytes that do not wait for the end of the turn */
    SINGLE_TURNS = 4,        /* turns with one write that end writing in pieces */
    LOG_THRESHOLD = 5        /* asyncio.constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES */
};

/* ---- what waits ------------------------------------------------------- */

static int
chunks_reserve(fl_chunks *c, size_t more)
{
    if (c->count + more <= c->capacity) {
        return 0;
    }
    size_t used = c->count - c->head;
    if (c->head > 0) {
        memmove(c->items, c->items + c->head, used * sizeof(fl_chunk));
        c->head = 0;
        c->count = used;
    }
    if (used + more <= c->capacity) {
        return 0;
    }
    size_t capacity = c->capacity ? c->capacity * 2 : 4;
    while (capacity < used + more) {
        capacity *= 2;
    }
    fl_chunk *items = PyMem_Realloc(c->items, capacity * sizeof(fl_chunk));
    if (items == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    c->items = items;
    c->capacity = capacity;
    return 0;
}

/* Append to reserved space; takes over the reference to owner. */
static void
chunks_push(fl_chunks *c, PyObject *owner, const char *data, size_t len)
{
    fl_chunk *chunk = &c->items[c->count++];
    chunk->owner = owner;
    chunk->data = data;
    chunk->len = len;
    c->bytes += len;
}

/* Drop the first n bytes. */
static void
chunks_consume(fl_chunks *c, size_t n)
{
    c->bytes -= n;
    while (c->head < c->count) {
        fl_chunk *chunk = &c->items[c->head];
        if (chunk->len > n) {
            chunk->data += n;
            chunk->len -= n;
            return;
        }
        n -= chunk->len;
        c->head++;
        Py_DECREF(chunk->owner); /* a bytes object: runs no Python code */
    }
    c->head = c->count = 0;
}

void
fl_chunks_clear(fl_chunks *c)
{
    for (size_t i = c->head; i < c->count; i++) {
        Py_DECREF(c->items[i].owner);
    }
    PyMem_Free(c->items);
    memset(c, 0, sizeof(*c));
}

/* Append data[offset:] of a bytes-like object; `view` is its buffer, or NULL for
 * bytes. What its owner could still change is copied. */
static int
append_from(fl_stream *t, PyObject *data, Py_buffer *view, size_t offset)
{
    const char *start;
    size_t len;
    PyObject *owner;

    if (view == NULL && PyBytes_CheckExact(data)) {
        owner = Py_NewRef(data);
        start = PyBytes_AS_STRING(data) + offset;
        len = (size_t)PyBytes_GET_SIZE(data) - offset;
    }
    else {
        /* A subclass of bytes is copied, too: its finalizer could come back to this list. */
        start = view == NULL ? PyBytes_AS_STRING(data) : view->buf;
        start += offset;
        len = (size_t)(view == NULL ? PyBytes_GET_SIZE(data) : view->len) - offset;
        PyObject *base = PyMemoryView_Check(data) ? PyMemoryView_GET_BASE(data) : NULL;
        if (base != NULL && PyBytes_CheckExact(base)) {
            owner = Py_NewRef(base);
        }
        else {
            owner = PyBytes_FromStringAndSize(start, (Py_ssize_t)len);
            if (owner == NULL) {
                return -1;
            }
            start = PyBytes_AS_STRING(owner);
        }
    }
    if (chunks_reserve(&t->out, 1) < 0) {
        Py_DECREF(owner);
        return -1;
    }
    chunks_push(&t->out, owner, start, len);
    return 0;
}

/* ---- sending ---------------------------------------------------------- */

static bool
would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK;
}

/* The number of bytes the kernel took: 0 if it would block, -1 with errno. */
static ssize_t
send_bytes(fl_stream *t, const char *data, size_t len)
{
    ssize_t n;

    if (!fl_stream_fd_valid(t)) {
        return -1;
    }
    do {
        n = send(t->fd, data, len, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return would_block(errno) ? 0 : -1;
    }
    t->loop->io_done = true;
    t->loop->bytes_out += (uint64_t)n;
    return n;
}

static ssize_t
send_chunks(fl_stream *t)
{
    struct iovec iov[IOVECS];
    struct msghdr message = {.msg_iov = iov};
    fl_chunks *c = &t->out;
    size_t n = c->count - c->head;
    ssize_t sent;

    if (n == 1) {
        return send_bytes(t, c->items[c->head].data, c->items[c->head].len);
    }
    if (!fl_stream_fd_valid(t)) {
        return -1;
    }
    if (n > IOVECS) {
        n = IOVECS;
    }
    for (size_t i = 0; i < n; i++) {
        iov[i].iov_base = (void *)c->items[c->head + i].data;
        iov[i].iov_len = c->items[c->head + i].len;
    }
    message.msg_iovlen = n;
    do {
        sent = sendmsg(t->fd, &message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) {
        return would_block(errno) ? 0 : -1;
    }
    t->loop->io_done = true;
    t->loop->bytes_out += (uint64_t)sent;
    return sent;
}

/* Have the poller say when the kernel takes more. -1 with errno. */
static int
await_write(fl_stream *t)
{
    if (t->awaits_write || t->lent) {
        return 0;
    }
    if (fl_watch_change(t->loop, &t->watch, FL_READ | FL_WRITE | FL_EDGE) < 0) {
        PyErr_Clear();
        return -1;
    }
    t->awaits_write = true;
    return 0;
}

int
fl_stream_send_waiting(fl_stream *t)
{
    while (t->out.bytes > 0) {
        ssize_t n = send_chunks(t);
        if (n < 0) {
            return -1;
        }
        if (n == 0) {
            t->blocked = true;
            return await_write(t);
        }
        chunks_consume(&t->out, (size_t)n);
    }
    t->blocked = false;
    return 0;
}

/* errno of a failed send becomes the transport's end. */
static int
write_failed(fl_stream *t)
{
    PyErr_SetFromErrno(PyExc_OSError);
    fl_chunks_clear(&t->out);
    return fl_stream_fatal(t, "Fatal write error on socket transport");
}

/* ---- flow control ----------------------------------------------------- */

/* Call protocol.<name>(); its errors go to the exception handler. */
static int
call_flow(fl_stream *t, PyObject *name, const char *failure)
{
    PyObject *protocol = Py_NewRef(t->protocol);
    PyObject *loop = Py_NewRef(t->loop);
    PyObject *result = PyObject_CallMethodNoArgs(protocol, name);
    int status = 0;

    if (result == NULL) {
        status = fl_report_raised(loop, failure, "transport", t, "protocol", protocol,
                                (char *)NULL);
    }
    Py_XDECREF(result);
    Py_DECREF(loop);
    Py_DECREF(protocol);
    return status;
}

/* Only a blocked transport pauses its protocol: what merely waits for the end of the turn is
 * sent by whoever lowers the limit (stream.h, "The states of writing"). */
static int
maybe_pause_protocol(fl_stream *t)
{
    if (!t->blocked || (Py_ssize_t)t->out.bytes <= t->high_water || t->protocol_paused ||
        t->protocol == NULL) {
        return 0;
    }
    t->protocol_paused = true;
    return call_flow(t, t->st->stream->str_pause_writing,
                     "protocol.pause_writing() failed");
}

static int
maybe_resume_protocol(fl_stream *t)
{
    if (!t->protocol_paused || (Py_ssize_t)t->out.bytes > t->low_water ||
        t->protocol == NULL) {
        return 0;
    }
    t->protocol_paused = false;
    return call_flow(t, t->st->stream->str_resume_writing,
                     "protocol.resume_writing() failed");
}

/* ---- the loop's side -------------------------------------------------- */

int
fl_stream_finish_empty_waiter(fl_stream *t, PyObject *exc)
{
    fl_stream_state *ss = t->st->stream;
    PyObject *waiter = t->empty_waiter;
    int status = -1;

    if (waiter == NULL) {
        return 0;
    }
    Py_INCREF(waiter);
    PyObject *done = PyObject_CallMethodNoArgs(waiter, ss->str_done);
    int is_done = done == NULL ? -1 : PyObject_IsTrue(done);
    Py_XDECREF(done);
    if (is_done == 0) {
        PyObject *result =
            exc != NULL ? PyObject_CallMethodOneArg(waiter, ss->str_set_exception, exc)
                        : PyObject_CallMethodOneArg(waiter, ss->str_set_result, Py_None);
        is_done = result == NULL ? -1 : 1;
        Py_XDECREF(result);
    }
    if (is_done >= 0) {
        status = 0;
    }
    Py_DECREF(waiter);
    return status;
}

static int
write_ready_failed(fl_stream *t)
{
    PyObject *waiter = t->empty_waiter, *exc;
    int status;

    PyErr_SetFromErrno(PyExc_OSError);
    fl_chunks_clear(&t->out);
    if (waiter == NULL) {
        return fl_stream_fatal(t, "Fatal write error on socket transport");
    }
    exc = PyErr_Occurred() ? fl_take_exception() : NULL;
    fl_restore_exception(Py_XNewRef(exc));
    status = fl_stream_fatal(t, "Fatal write error on socket transport");
    if (status == 0) {
        status = fl_stream_finish_empty_waiter(t, exc);
    }
    Py_XDECREF(exc);
    return status;
}

/* All has been sent: do what waited for that. */
static int
drained(fl_stream *t)
{
    if (fl_stream_finish_empty_waiter(t, NULL) < 0) {
        return -1;
    }
    if (t->closing) {
        if (t->conn_lost == 0) {
            t->conn_lost++;
            return fl_stream_connection_lost(t, NULL);
        }
    }
    else if (t->eof && t->out.bytes == 0) {
        if (!fl_stream_fd_valid(t) || shutdown(t->fd, SHUT_WR) < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
    return 0;
}

int
fl_stream_write_ready(fl_stream *t)
{
    int status = 0;

    if (t->conn_lost || t->out.bytes == 0) {
        return 0;
    }
    if (fl_stream_send_waiting(t) < 0) {
        return write_ready_failed(t);
    }
    if (t->protocol_paused) {
        status = maybe_resume_protocol(t);
    }
    if (status == 0 && t->out.bytes == 0 && t->loop != NULL) {
        status = drained(t);
    }
    if (t->loop != NULL) {
        fl_stream_update_hold(t);
    }
    return status;
}

int
fl_stream_on_flush(fl_flush *f)
{
    fl_stream *t = (fl_stream *)f->owner;
    PyObject *context, *loop;
    int status;

    if (t->blocked || t->loop == NULL) {
        return 0;
    }
    loop = Py_NewRef(t->loop);
    context = Py_NewRef(t->context);
    if (PyContext_Enter(context) < 0) {
        /* A callback of the protocol, which is in this context, turns the loop itself. */
        PyErr_Clear();
        Py_CLEAR(context);
    }
    status = fl_stream_write_ready(t);
    if (status < 0) {
        status = fl_stream_report(t, loop, "Exception in writing to a transport");
    }
    if (context != NULL && PyContext_Exit(context) < 0) {
        status = -1;
    }
    Py_XDECREF(context);
    Py_DECREF(loop);
    return status;
}

/* ---- the writer's side ------------------------------------------------ */

/* Count this write and tell whether it waits for the end of the turn. */
static bool
note_write(fl_stream *t)
{
    fl_loop *loop = t->loop;

    if (!loop->turning || loop->thread_id != PyThread_get_thread_ident()) {
        return false; /* the loop does not run, or sleeps: its turn may never end */
    }
    if (t->write_turn == loop->turns) {
        t->pieces = SINGLE_TURNS;
        t->writes_again = true;
    }
    else {
        if (t->pieces > 0 && !t->writes_again) {
            t->pieces--;
        }
        t->writes_again = false;
        t->write_turn = loop->turns;
        loop->writers++;
    }
    return t->pieces > 0 || loop->gathers;
}

/* Something was appended to t->out: send it, now or later. */
static int
send_or_wait(fl_stream *t, bool gather)
{
    if (!t->blocked) {
        Py_ssize_t early = t->high_water < FLUSH_EARLY ? t->high_water : FLUSH_EARLY;
        if (gather && (Py_ssize_t)t->out.bytes <= early) {
            fl_loop_flush_later(t->loop, &t->flush);
            return 0;
        }
        if (fl_stream_send_waiting(t) < 0) {
            return write_failed(t);
        }
    }
    fl_stream_update_hold(t);
    return maybe_pause_protocol(t);
}

int
fl_stream_flush_now(fl_stream *t)
{
    if (t->out.bytes == 0 || t->blocked || t->lent || t->loop == NULL || t->conn_lost > 0) {
        return 0;
    }
    if (fl_stream_send_waiting(t) < 0) {
        return write_failed(t);
    }
    fl_stream_update_hold(t);
    return maybe_pause_protocol(t);
}

/* A write to a lost connection: 1 if it is one (-1 on error). */
static int
is_lost_write(fl_stream *t)
{
    if (t->conn_lost == 0) {
        return 0;
    }
    if (t->conn_lost >= LOG_THRESHOLD) {
        PyObject *result = PyObject_CallMethod(t->st->logger, "warning", "s",
                                               "socket.send() raised exception.");
        if (result == NULL) {
            return -1;
        }
        Py_DECREF(result);
    }
    t->conn_lost++;
    return 1;
}

static int
check_writable(fl_stream *t, const char *eof_text, const char *sendfile_text)
{
    if (t->eof) {
        PyErr_SetString(PyExc_RuntimeError, eof_text);
        return -1;
    }
    if (t->empty_waiter != NULL) {
        PyErr_SetString(PyExc_RuntimeError, sendfile_text);
        return -1;
    }
    return 0;
}

/* write() of the non-empty `len` bytes at `start`, which `data` holds. */
static int
write_bytes(fl_stream *t, PyObject *data, Py_buffer *view, const char *start, size_t len)
{
    bool gather = note_write(t) && len <= FLUSH_EARLY;
    size_t sent = 0;

    if (t->out.bytes == 0 && !gather) {
        ssize_t n = send_bytes(t, start, len);
        if (n < 0) {
            return write_failed(t);
        }
        if ((size_t)n == len) {
            return 0;
        }
        sent = (size_t)n;
    }
    if (append_from(t, data, view, sent) < 0) {
        return -1;
    }
    return send_or_wait(t, gather);
}

static PyObject *
bad_type(PyObject *data)
{
#if PY_VERSION_HEX >= 0x030E0000
    const char *format = "data argument must be a bytes, bytearray, or memoryview "
                         "object, not %R";
#else
    const char *format = "data argument must be a bytes-like object, not %R";
#endif
    PyObject *name = PyType_GetName(Py_TYPE(data));
    if (name != NULL) {
        PyErr_Format(PyExc_TypeError, format, name);
        Py_DECREF(name);
    }
    return NULL;
}

static int
write_view(fl_stream *t, PyObject *data)
{
    Py_buffer view;

    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        /* not contiguous: to asyncio this is an error of sock.send() */
        return fl_stream_fatal(t, "Fatal write error on socket transport");
    }
    int status = write_bytes(t, data, &view, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return status;
}

PyDoc_STRVAR(write_doc,
"write($self, /, data)\n--\n\n"
"Write bytes, a bytearray or a memoryview; never blocks.\n\n"
"What the kernel does not take now is sent when it can be. Raises TypeError for\n"
"other types and RuntimeError after write_eof(). As asyncio.WriteTransport.write.");

PyObject *
fl_stream_write(fl_stream *t, PyObject *data)
{
    bool is_bytes = PyBytes_Check(data);
    int status;

    if (!is_bytes && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
        return bad_type(data);
    }
    if (check_writable(t, "Cannot call write() after write_eof()",
                       "unable to write; sendfile is in progress") < 0) {
        return NULL;
    }
    status = PyObject_IsTrue(data);
    if (status <= 0) {
        return status < 0 ? NULL : Py_NewRef(Py_None);
    }
    status = is_lost_write(t);
    if (status != 0) {
        return status < 0 ? NULL : Py_NewRef(Py_None);
    }
    Py_INCREF(t); /* pause_writing() & co. can do anything */
    status = is_bytes ? write_bytes(t, data, NULL, PyBytes_AS_STRING(data),
                                    (size_t)PyBytes_GET_SIZE(data))
                      : write_view(t, data);
    Py_DECREF(t);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
stream_write(fl_stream *t, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *data = fl_only_argument("write", "data", args, nargs, kwnames);

    return data == NULL ? NULL : fl_stream_write(t, data);
}

/* One item of writelines() becomes a chunk of `c`. -1 with an exception. */
static int
collect_item(fl_chunks *c, PyObject *item, Py_ssize_t index)
{
    PyObject *owner;
#if PY_VERSION_HEX >= 0x030E0000
    int truth;
#endif

    if (PyBytes_CheckExact(item)) {
        owner = Py_NewRef(item);
    }
#if PY_VERSION_HEX >= 0x030E0000
    else if ((truth = PyObject_IsTrue(item)) <= 0) {
        return truth; /* asyncio skips what is false before it looks at its type */
    }
#endif
    else if (!PyObject_CheckBuffer(item)) {
        const char *name = Py_TYPE(item)->tp_name;
#if PY_VERSION_HEX >= 0x030C0000
        (void)index;
        PyErr_Format(PyExc_TypeError,
                     "memoryview: a bytes-like object is required, not '%.200s'", name);
#else
        PyErr_Format(PyExc_TypeError,
                     "sequence item %zd: expected a bytes-like object, %.80s found",
                     index, name);
#endif
        return -1;
    }
    else {
        Py_buffer view;
        if (PyObject_GetBuffer(item, &view, PyBUF_SIMPLE) < 0) {
            return -1;
        }
        owner = PyBytes_FromStringAndSize(view.buf, view.len);
        PyBuffer_Release(&view);
        if (owner == NULL) {
            return -1;
        }
    }
    if (PyBytes_GET_SIZE(owner) == 0) { /* it could never be sent */
        Py_DECREF(owner);
        return 0;
    }
    if (chunks_reserve(c, 1) < 0) {
        Py_DECREF(owner);
        return -1;
    }
    chunks_push(c, owner, PyBytes_AS_STRING(owner), (size_t)PyBytes_GET_SIZE(owner));
    return 0;
}

/* The items of an iterable as chunks: all of them, or an exception and none. */
static int
collect_lines(fl_chunks *c, PyObject *lines)
{
    PyObject *tuple = PySequence_Tuple(lines);
    int status = 0;

    if (tuple == NULL) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple) && status == 0; i++) {
        status = collect_item(c, PyTuple_GET_ITEM(tuple, i), i);
    }
    Py_DECREF(tuple);
    if (status < 0) {
        fl_chunks_clear(c);
    }
    return status;
}

/* Move the chunks of `from` behind those of t->out. */
static int
append_chunks(fl_stream *t, fl_chunks *from)
{
    fl_chunks *to = &t->out;

    if (to->bytes == 0) {
        fl_chunks_clear(to);
        *to = *from;
        memset(from, 0, sizeof(*from));
        return 0;
    }
    if (chunks_reserve(to, from->count) < 0) {
        return -1;
    }
    memcpy(to->items + to->count, from->items, from->count * sizeof(fl_chunk));
    to->count += from->count;
    to->bytes += from->bytes;
    from->head = from->count; /* the references have moved */
    return 0;
}

/* writelines() of what was collected. */
static int
write_chunks(fl_stream *t, fl_chunks *lines)
{
    int status = is_lost_write(t);

    if (status != 0) {
        return status < 0 ? -1 : 0;
    }
    if (lines->bytes == 0 || t->loop == NULL) {
        return 0;
    }
    if (append_chunks(t, lines) < 0) {
        return -1;
    }
    return send_or_wait(t, note_write(t));
}

PyDoc_STRVAR(writelines_doc,
"writelines($self, /, list_of_data)\n--\n\n"
"Write an iterable of bytes-like objects as one piece.\n\n"
"Raises TypeError, having written nothing, if an item is not bytes-like.");

static PyObject *
stream_writelines(fl_stream *t, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *lines = fl_only_argument("writelines", "list_of_data", args, nargs, kwnames);
    fl_chunks collected = {0};
    int status;

    if (lines == NULL) {
        return NULL;
    }
#if PY_VERSION_HEX >= 0x030C0000
    if (check_writable(t, "Cannot call writelines() after write_eof()",
                       "unable to writelines; sendfile is in progress") < 0) {
        return NULL;
    }
    status = PyObject_IsTrue(lines);
    if (status <= 0) {
        return status < 0 ? NULL : Py_NewRef(Py_None);
    }
#endif
    Py_INCREF(t);
    status = collect_lines(&collected, lines);
    if (status < 0 && PyErr_ExceptionMatches(PyExc_BufferError) && t->loop != NULL) {
        status = fl_stream_fatal(t, "Fatal write error on socket transport");
    }
    else if (status == 0 && /* again: iterating may have run anything */
             check_writable(t, "Cannot call write() after write_eof()",
                            "unable to write; sendfile is in progress") < 0) {
        status = -1;
    }
    else if (status == 0) {
        status = write_chunks(t, &collected);
    }
    fl_chunks_clear(&collected);
    Py_DECREF(t);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(write_eof_doc,
"write_eof($self, /)\n--\n\n"
"Close the sending half once all that was written has been sent.");

static PyObject *
stream_write_eof(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    int status = 0;

    if (t->closing || t->eof) {
        Py_RETURN_NONE;
    }
    t->eof = true;
    if (t->out.bytes > 0 && !t->blocked) {
        status = send_or_wait(t, false);
    }
    if (status == 0 && t->out.bytes == 0 && !t->closing) {
        if (!fl_stream_fd_valid(t) || shutdown(t->fd, SHUT_WR) < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            status = -1;
        }
    }
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(can_write_eof_doc,
"can_write_eof($self, /)\n--\n\nTrue: a socket can be closed by halves.");

static PyObject *
stream_can_write_eof(fl_stream *Py_UNUSED(t), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_TRUE;
}

/* ---- limits ----------------------------------------------------------- */

PyDoc_STRVAR(get_write_buffer_size_doc,
"get_write_buffer_size($self, /)\n--\n\n"
"The number of bytes that were written and wait to be sent.");

static PyObject *
stream_get_write_buffer_size(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(t->out.bytes);
}

static PyObject *
water_mark(PyObject *object, Py_ssize_t bytes)
{
    return object != NULL ? Py_NewRef(object) : PyLong_FromSsize_t(bytes);
}

PyDoc_STRVAR(get_write_buffer_limits_doc,
"get_write_buffer_limits($self, /)\n--\n\n"
"The low and high water marks, bytes, as a tuple.");

static PyObject *
stream_get_write_buffer_limits(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("NN", water_mark(t->low_object, t->low_water),
                         water_mark(t->high_object, t->high_water));
}

/* A limit as a number of bytes to compare with: what is not an int that fits is
 * rounded down (a float) or taken for no limit. */
static Py_ssize_t
limit_bytes(PyObject *limit)
{
    double value = PyFloat_Check(limit) ? PyFloat_AS_DOUBLE(limit) : 0;

    if (PyLong_Check(limit)) {
        Py_ssize_t n = PyLong_AsSsize_t(limit);
        if (n == -1 && PyErr_Occurred()) {
            PyErr_Clear();
            return PY_SSIZE_T_MAX;
        }
        return n;
    }
    return PyFloat_Check(limit) && value < 9e18 ? (Py_ssize_t)value : PY_SSIZE_T_MAX;
}

/* `high >= low >= 0` as Python compares them. */
static int
limits_in_order(PyObject *high, PyObject *low)
{
    PyObject *zero = PyLong_FromLong(0);
    int ok = -1;

    if (zero != NULL) {
        ok = PyObject_RichCompareBool(high, low, Py_GE);
        if (ok > 0) {
            ok = PyObject_RichCompareBool(low, zero, Py_GE);
        }
        Py_DECREF(zero);
    }
    return ok;
}

/* number * 4 (or // 4 with `divide`) */
static PyObject *
scaled_by_4(PyObject *number, bool divide)
{
    PyObject *four = PyLong_FromLong(4), *result = NULL;

    if (four != NULL) {
        result = divide ? PyNumber_FloorDivide(number, four)
                        : PyNumber_Multiply(four, number);
        Py_DECREF(four);
    }
    return result;
}

PyDoc_STRVAR(set_write_buffer_limits_doc,
"set_write_buffer_limits($self, /, high=None, low=None)\n--\n\n"
"Set the water marks of flow control, bytes.\n\n"
"protocol.pause_writing() is called when more than `high` bytes wait and\n"
"resume_writing() when at most `low` do. Defaults: 64 KiB and a quarter of high.\n"
"Raises ValueError unless high >= low >= 0.");

static PyObject *
stream_set_write_buffer_limits(fl_stream *t, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"high", "low", NULL};
    PyObject *high = Py_None, *low = Py_None;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:set_write_buffer_limits", names,
                                     &high, &low)) {
        return NULL;
    }
    if (high != Py_None) {
        Py_INCREF(high);
    }
    else {
        high = low == Py_None ? PyLong_FromLong(64 * 1024) : scaled_by_4(low, false);
    }
    if (high == NULL) {
        return NULL;
    }
    low = low != Py_None ? Py_NewRef(low) : scaled_by_4(high, true);
    int ok = low == NULL ? -1 : limits_in_order(high, low);
    if (ok <= 0) {
        if (ok == 0) {
            PyErr_Format(PyExc_ValueError, "high (%R) must be >= low (%R) must be >= 0",
                         high, low);
        }
        Py_DECREF(high);
        Py_XDECREF(low);
        return NULL;
    }
    t->high_water = limit_bytes(high);
    t->low_water = limit_bytes(low);
    Py_XSETREF(t->high_object, high);
    Py_XSETREF(t->low_object, low);
    Py_INCREF(t);
    int status = fl_stream_flush_now(t);
    if (status == 0) {
        status = maybe_pause_protocol(t);
    }
    Py_DECREF(t);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- sendfile's hooks ------------------------------------------------- */

PyDoc_STRVAR(make_empty_waiter_doc,
"_make_empty_waiter($self, /)\n--\n\n"
"A future that is done when nothing waits to be sent; no write is allowed until\n"
"_reset_empty_waiter(). Used by loop.sendfile().");

static PyObject *
stream_make_empty_waiter(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    if (t->empty_waiter != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Empty waiter is already set");
        return NULL;
    }
    if (t->loop == NULL) {
        PyErr_SetString(PyExc_AttributeError,
                        "'NoneType' object has no attribute 'create_future'");
        return NULL;
    }
    if (t->out.bytes > 0 && !t->blocked && send_or_wait(t, false) < 0) {
        return NULL;
    }
    t->empty_waiter = fl_future_new(t->loop);
    if (t->empty_waiter == NULL ||
        (t->out.bytes == 0 && fl_stream_finish_empty_waiter(t, NULL) < 0)) {
        return NULL;
    }
    return Py_NewRef(t->empty_waiter);
}

PyDoc_STRVAR(reset_empty_waiter_doc,
"_reset_empty_waiter($self, /)\n--\n\nAllow writing again.");

static PyObject *
stream_reset_empty_waiter(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    Py_CLEAR(t->empty_waiter);
    Py_RETURN_NONE;
}

PyMethodDef fl_stream_write_methods[] = {
    {"write", (PyCFunction)(void (*)(void))stream_write, METH_FASTCALL | METH_KEYWORDS,
     write_doc},
    {"writelines", (PyCFunction)(void (*)(void))stream_writelines,
     METH_FASTCALL | METH_KEYWORDS, writelines_doc},
    {"write_eof", (PyCFunction)stream_write_eof, METH_NOARGS, write_eof_doc},
    {"can_write_eof", (PyCFunction)stream_can_write_eof, METH_NOARGS, can_write_eof_doc},
    {"get_write_buffer_size", (PyCFunction)stream_get_write_buffer_size, METH_NOARGS,
     get_write_buffer_size_doc},
    {"get_write_buffer_limits", (PyCFunction)stream_get_write_buffer_limits, METH_NOARGS,
     get_write_buffer_limits_doc},
    {"set_write_buffer_limits", (PyCFunction)(void (*)(void))stream_set_write_buffer_limits,
     METH_VARARGS | METH_KEYWORDS, set_write_buffer_limits_doc},
    {"_make_empty_waiter", (PyCFunction)stream_make_empty_waiter, METH_NOARGS,
     make_empty_waiter_doc},
    {"_reset_empty_waiter", (PyCFunction)stream_reset_empty_waiter, METH_NOARGS,
     reset_empty_waiter_doc},
    {NULL, NULL, 0, NULL},
};
