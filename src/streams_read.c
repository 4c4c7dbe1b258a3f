/* streams_read.c - StreamReader.read() straight from the socket, and what else is quick.
 *
 * A read() that waits for bytes (fastloop/_streams.py) is only woken, and receives
 * into the bytes object that it returns: nothing is copied, and what is large is
 * still in the processor's cache when the program uses it. Until then the bytes
 * are in the kernel, where a cancelled read() leaves them; whatever would keep the
 * transport from receiving later receives them first (fl_stream_settle).
 *
 * The other methods are asyncio's, save that what the reader's buffer holds already
 * is taken out of it at once.
 */
#include "stream.h"

/* The transport of a reader if it is a SocketTransport, borrowed; else NULL. */
static fl_stream *
socket_transport(fl_stream_state *ss, PyObject *transport)
{
    return transport != NULL && Py_IS_TYPE(transport, ss->StreamType)
               ? (fl_stream *)transport
               : NULL;
}

/* No read() waits any more. The reader's transport receives now what it left to one that
 * was woken, as it would have before; the reader need not be a stock one any more. */
static void
settle(fl_stream_state *ss, PyObject *reader)
{
    PyObject *attributes = PyObject_GenericGetDict(reader, NULL);
    fl_stream *t;

    if (attributes == NULL) {
        PyErr_Clear();
        return;
    }
    t = socket_transport(ss, fl_reader_attribute(attributes, ss->str__transport));
    if (t != NULL) {
        Py_INCREF(t);
        Py_CLEAR(t->reader);
        fl_stream_settle(t);
        Py_DECREF(t);
    }
    Py_DECREF(attributes);
}

/* fl_reader_look() at a reader that has all that has arrived; *transport is borrowed, NULL
 * if it is not a SocketTransport. */
static bool
look_settled(fl_stream_state *ss, PyObject *reader, fl_reader *r, fl_stream **transport)
{
    bool stock = fl_reader_look(ss, reader, r);
    fl_stream *t = stock ? socket_transport(ss, fl_reader_get(r, FL_READER_TRANSPORT)) : NULL;

    if (!stock || (t != NULL && t->offered)) {
        if (stock) {
            fl_reader_done(r);
        }
        settle(ss, reader);
        if (!stock || !fl_reader_look(ss, reader, r)) {
            return false;
        }
        t = socket_transport(ss, fl_reader_get(r, FL_READER_TRANSPORT));
    }
    *transport = t;
    return true;
}

/* The number of bytes that read(n) wants at most; 0 if that is not for us. */
static Py_ssize_t
size_of(PyObject *n)
{
    Py_ssize_t size = PyLong_CheckExact(n) ? PyLong_AsSsize_t(n) : 0;

    if (size == -1) {
        PyErr_Clear(); /* too large for a number of bytes */
    }
    return size < 0 ? 0 : size;
}

/* Nothing is to be raised, nor a transport to be resumed. */
static bool
is_untroubled(const fl_reader *r)
{
    return fl_reader_get(r, FL_READER_EXCEPTION) == Py_None &&
           fl_reader_get(r, FL_READER_PAUSED) == Py_False;
}

/* The reader's transport will receive for read(); false if there is something to return or
 * to raise at once, or the transport does not read for the reader. */
static bool
must_wait(const fl_reader *r, const fl_stream *t)
{
    PyObject *buffer = r->buffer;

    return t != NULL && buffer != NULL && PyByteArray_GET_SIZE(buffer) == 0 &&
           is_untroubled(r) && fl_reader_get(r, FL_READER_WAITER) == Py_None &&
           t->loop != NULL && fl_streams_serves(t, r->object) && fl_stream_is_reading(t) &&
           fl_reader_get(r, FL_READER_LOOP) == (PyObject *)t->loop;
}

/* A future as reader._waiter; reader._loop is one of ours. */
static PyObject *
make_waiter(fl_stream_state *ss, const fl_reader *r)
{
    PyObject *waiter = fl_future_new((fl_loop *)fl_reader_get(r, FL_READER_LOOP));

    if (waiter != NULL && PyDict_SetItem(r->attributes, ss->str__waiter, waiter) < 0) {
        Py_CLEAR(waiter);
    }
    return waiter;
}

/* The same for a read() that t will wake: the future of the last one, if that is free. */
static PyObject *
wait_for(fl_stream *t, const fl_reader *r)
{
    bool renewed = t->read_waiter != NULL && fl_future_renew(t->read_waiter);
    PyObject *waiter = renewed ? Py_NewRef(t->read_waiter) : fl_future_new(t->loop);

    if (waiter == NULL ||
        PyDict_SetItem(r->attributes, t->st->stream->str__waiter, waiter) < 0) {
        Py_XDECREF(waiter);
        return NULL;
    }
    Py_XSETREF(t->read_waiter, (fl_future *)Py_NewRef(waiter));
    Py_XSETREF(t->reader, Py_NewRef(r->object));
    return waiter;
}

static bool
has_two(Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "a reader and a size are needed");
    }
    return nargs == 2;
}

PyDoc_STRVAR(begin_read_doc,
"_begin_read($module, reader, n, /)\n--\n\n"
"The future that `await reader.read(n)` has to wait for before _end_read(); None if\n"
"there is nothing to wait for, or not in the stock way.");

static PyObject *
begin_read(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    fl_stream_state *ss = fl_state_of_module(module)->stream;
    PyObject *waiter = NULL;
    fl_stream *t;
    fl_reader r;

    if (!has_two(nargs)) {
        return NULL;
    }
    if (look_settled(ss, args[0], &r, &t)) {
        if (size_of(args[1]) > 0 && must_wait(&r, t)) {
            Py_INCREF(t);
            waiter = wait_for(t, &r);
            Py_DECREF(t);
        }
        fl_reader_done(&r);
    }
    return waiter != NULL || PyErr_Occurred() ? waiter : Py_NewRef(Py_None);
}

/* reader._waiter = None, if it was `waiter`: 1; 0 if not; -1 with an exception. */
static int
clear_waiter(fl_stream_state *ss, PyObject *reader, fl_future *waiter)
{
    PyObject *attributes = PyObject_GenericGetDict(reader, NULL);
    int status = -1;

    if (attributes != NULL) {
        status = fl_reader_attribute(attributes, ss->str__waiter) == (PyObject *)waiter;
    }
    if (status > 0 && PyDict_SetItem(attributes, ss->str__waiter, Py_None) < 0) {
        status = -1;
    }
    Py_XDECREF(attributes);
    return status;
}

/* Whatever else has become of the reader since, _end_read() will look at. */
int
fl_streams_offer(fl_stream *t)
{
    fl_stream_state *ss = t->st->stream;
    fl_future *waiter = (fl_future *)Py_NewRef(t->read_waiter);
    PyObject *reader = t->reader, *protocol = Py_NewRef(t->protocol);
    int status = 0;

    t->reader = NULL; /* the reference is ours now */
    if (waiter->state == FL_PENDING && fl_streams_protocol_is_stock(ss, protocol)) {
        status = clear_waiter(ss, reader, waiter);
    }
    if (status > 0) {
        t->offered = true; /* before a call_soon() of somebody's own, which may settle it */
        if (fl_future_set_result(waiter, Py_None) < 0) {
            t->offered = false;
            status = -1;
        }
    }
    Py_DECREF(waiter);
    Py_DECREF(reader);
    Py_DECREF(protocol);
    return status;
}

/* recv() for read(n), into a bytes object; what is too much goes to the reader's
 * empty buffer. NULL: as fl_stream_receive_bytes(). */
static PyObject *
receive_for_read(fl_stream *t, PyObject *buffer, size_t size, ssize_t *n)
{
    size_t room = fl_stream_expected(t), more;
    char *data;

    if (room > 0 && size >= FL_STREAM_LARGE) {
        return fl_stream_receive_bytes(t, room < size ? room : size, n);
    }
    data = fl_loop_recv_buffer(t->loop);
    *n = data == NULL ? -1 : fl_stream_receive(t, data, FL_RECV_BUFFER_SIZE);
    if (*n <= 0) {
        return NULL;
    }
    more = (size_t)*n > size ? (size_t)*n - size : 0;
    if (more > 0) {
        if (PyByteArray_Resize(buffer, (Py_ssize_t)more) < 0) {
            return NULL;
        }
        memcpy(PyByteArray_AS_STRING(buffer), data + size, more);
    }
    return PyBytes_FromStringAndSize(data, *n - (Py_ssize_t)more);
}

/* recv() gave nothing: an error is the transport's end; the end of the stream, too,
 * is the transport's to tell. */
static void
received_nothing(fl_stream *t, ssize_t n)
{
    if (n < 0) {
        (void)fl_stream_receive_failed(t);
    }
    else {
        t->readable = true;
    }
}

/* The bytes of read(n); NULL without an exception if it must look again: at the
 * buffer, or wait for more. */
static PyObject *
take_offered(fl_stream *t, PyObject *reader, PyObject *buffer, size_t size)
{
    PyObject *bytes = NULL;
    Py_ssize_t more;
    ssize_t n = 0;

    t->offered = false;
    if (fl_stream_may_read(t) && PyByteArray_GET_SIZE(buffer) == 0) {
        bytes = receive_for_read(t, buffer, size, &n);
        if (bytes == NULL && !PyErr_Occurred()) {
            received_nothing(t, n);
        }
    }
    more = PyByteArray_GET_SIZE(buffer);
    if (PyErr_Occurred() ||
        (bytes != NULL && more > 0 && fl_streams_fed(t->st, t, reader, more) < 0) ||
        (fl_stream_may_read(t) && fl_watch_queue(t->loop, &t->watch, FL_READ) < 0)) {
        Py_CLEAR(bytes);
    }
    return bytes;
}

PyDoc_STRVAR(end_read_doc,
"_end_read($module, reader, n, /)\n--\n\n"
"The bytes that `await reader.read(n)` returns, or None: then the reader must be\n"
"looked at again. n = 0: the read was cancelled.");

static PyObject *
end_read(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    fl_stream_state *ss = fl_state_of_module(module)->stream;
    PyObject *bytes = NULL, *buffer;
    fl_stream *t = NULL;
    fl_reader r;

    if (!has_two(nargs)) {
        return NULL;
    }
    Py_ssize_t size = size_of(args[1]);
    if (size > 0 && fl_reader_look(ss, args[0], &r)) {
        t = socket_transport(ss, fl_reader_get(&r, FL_READER_TRANSPORT));
        buffer = r.buffer;
        if (t != NULL && t->offered && t->loop != NULL && buffer != NULL &&
            fl_streams_serves(t, r.object)) {
            Py_INCREF(t);
            Py_INCREF(buffer);
            bytes = take_offered(t, args[0], buffer, (size_t)size);
            Py_DECREF(buffer);
            Py_DECREF(t);
        }
        else {
            t = NULL;
        }
        fl_reader_done(&r);
    }
    if (t == NULL) {
        settle(ss, args[0]);
    }
    return bytes != NULL || PyErr_Occurred() ? bytes : Py_NewRef(Py_None);
}

/* ---- what the buffer holds already ----------------------------------------- */

/* Where in the buffer, behind `from`, the first separator begins; -1: nowhere. */
static Py_ssize_t
find(PyObject *buffer, PyObject *separator, Py_ssize_t from)
{
    const char *data = PyByteArray_AS_STRING(buffer), *what = PyBytes_AS_STRING(separator);
    size_t len = (size_t)(PyByteArray_GET_SIZE(buffer) - from);
    size_t size = (size_t)PyBytes_GET_SIZE(separator);
    const char *found = size == 1 ? memchr(data + from, what[0], len)
                                  : memmem(data + from, len, what, size);

    return found == NULL ? -1 : found - data;
}

/* reader._limit does not forbid so many bytes. */
static bool
in_limit(const fl_reader *r, Py_ssize_t bytes)
{
    PyObject *limit = fl_reader_get(r, FL_READER_LIMIT);
    Py_ssize_t most = limit != NULL && PyLong_CheckExact(limit) ? PyLong_AsSsize_t(limit) : -1;

    if (most == -1) {
        PyErr_Clear(); /* too large for a number of bytes */
    }
    return most >= 0 && bytes <= most;
}

/* The first `size` bytes of the buffer, no longer in it. */
static PyObject *
take(PyObject *buffer, Py_ssize_t size)
{
    PyObject *bytes = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(buffer), size);

    Py_INCREF(buffer); /* a slice object is made: that can collect garbage */
    if (bytes != NULL && PySequence_DelSlice(buffer, 0, size) < 0) {
        Py_CLEAR(bytes);
    }
    Py_DECREF(buffer);
    return bytes;
}

/* How many bytes of the buffer readuntil(separator) returns; 0 if it must wait for
 * more, -1 if it is not for us. No separator begins before `from`. */
static Py_ssize_t
size_until(const fl_reader *r, PyObject *separator, Py_ssize_t from)
{
    Py_ssize_t size, found, len = PyByteArray_GET_SIZE(r->buffer);

    if (!PyBytes_CheckExact(separator) || PyBytes_GET_SIZE(separator) == 0 || from > len) {
        return -1;
    }
    size = PyBytes_GET_SIZE(separator);
    found = find(r->buffer, separator, from);
    if (!in_limit(r, found >= 0 ? found : len + 1 - size)) {
        return -1;
    }
    return found >= 0 ? found + size : 0;
}

/* The same of readexactly(n). */
static Py_ssize_t
size_exactly(const fl_reader *r, PyObject *n)
{
    Py_ssize_t size = size_of(n);

    return size == 0 ? -1 : size <= PyByteArray_GET_SIZE(r->buffer) ? size : 0;
}

/* Somebody can wait for more, and nobody does. */
static bool
can_wait(fl_state *st, const fl_reader *r)
{
    PyObject *loop = fl_reader_get(r, FL_READER_LOOP);

    return loop != NULL && fl_is_loop(st, loop) && fl_reader_get(r, FL_READER_WAITER) == Py_None;
}

/* What a function below returns, with `from` for _take_until(), -1 for the other. */
static PyObject *
take_or_wait(fl_state *st, PyObject *reader, PyObject *what, Py_ssize_t from)
{
    PyObject *result = NULL;
    Py_ssize_t size;
    fl_stream *t;
    fl_reader r;

    if (look_settled(st->stream, reader, &r, &t)) {
        if (is_untroubled(&r) && r.buffer != NULL) {
            size = from >= 0 ? size_until(&r, what, from) : size_exactly(&r, what);
            if (size > 0) {
                result = take(r.buffer, size);
            }
            else if (size == 0 && can_wait(st, &r)) {
                result = make_waiter(st->stream, &r);
            }
        }
        fl_reader_done(&r);
    }
    return result != NULL || PyErr_Occurred() ? result : Py_NewRef(Py_None);
}

PyDoc_STRVAR(take_until_doc,
"_take_until($module, reader, separator, searched, /)\n--\n\n"
"What `await reader.readuntil(separator)` returns if the reader holds it; a future, now\n"
"reader._waiter, if it must wait for more; None if it has to raise something, or is\n"
"unusual. No separator begins in the first `searched` bytes.");

static PyObject *
take_until(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Py_ssize_t from = nargs == 3 ? PyLong_AsSsize_t(args[2]) : -1;

    if (from < 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "a reader, a separator and a size are needed");
        }
        return NULL;
    }
    return take_or_wait(fl_state_of_module(module), args[0], args[1], from);
}

PyDoc_STRVAR(take_exactly_doc,
"_take_exactly($module, reader, n, /)\n--\n\n"
"The same for readexactly(n).");

static PyObject *
take_exactly(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    return !has_two(nargs) ? NULL : take_or_wait(fl_state_of_module(module), args[0], args[1], -1);
}

PyDoc_STRVAR(flush_writes_doc,
"_flush_writes($module, reader, /)\n--\n\n"
"Have the reader's transport send what it gathered until the end of the turn.");

static PyObject *
flush_writes(PyObject *module, PyObject *reader)
{
    fl_stream_state *ss = fl_state_of_module(module)->stream;
    PyObject *attributes = PyObject_GenericGetDict(reader, NULL);
    fl_stream *t;
    int status = 0;

    if (attributes == NULL) {
        return NULL;
    }
    t = socket_transport(ss, fl_reader_attribute(attributes, ss->str__transport));
    Py_DECREF(attributes);
    if (t != NULL && t->out.bytes > 0 && t->loop != NULL &&
        t->loop->thread_id == PyThread_get_thread_ident()) {
        Py_INCREF(t);
        status = fl_stream_flush_now(t);
        Py_DECREF(t);
    }
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

PyMethodDef fl_streams_module_methods[] = {
    {"_flush_writes", flush_writes, METH_O, flush_writes_doc},
    {"_begin_read", (PyCFunction)(void (*)(void))begin_read, METH_FASTCALL, begin_read_doc},
    {"_end_read", (PyCFunction)(void (*)(void))end_read, METH_FASTCALL, end_read_doc},
    {"_take_until", (PyCFunction)(void (*)(void))take_until, METH_FASTCALL, take_until_doc},
    {"_take_exactly", (PyCFunction)(void (*)(void))take_exactly, METH_FASTCALL,
     take_exactly_doc},
    {NULL, NULL, 0, NULL},
};

void
fl_streams_adopt(fl_stream *t)
{
    fl_stream_state *ss = t->st->stream;
    fl_reader r;

    if (!t->stock || !fl_streams_open(t->st, t->protocol, &r)) {
        return;
    }
    if ((ss->OurStreamReader != NULL || fl_streams_import_ours(ss) == 0) &&
        Py_IS_TYPE(r.object, ss->StreamReader)) {
        (void)PyObject_SetAttr(r.object, ss->str___class__, (PyObject *)ss->OurStreamReader);
    }
    PyErr_Clear(); /* it is an asyncio.StreamReader still, and works as one */
    fl_reader_done(&r);
}
