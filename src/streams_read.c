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

/* reader.<name>, borrowed out of its __dict__; NULL if there is none. */
static PyObject *
attribute(PyObject *attributes, PyObject *name)
{
    PyObject *value = PyDict_GetItemWithError(attributes, name);

    if (value == NULL) {
        PyErr_Clear();
    }
    return value;
}

/* The __dict__ of a reader of ours, owned; NULL for another one. */
static PyObject *
attributes_of(fl_stream_state *ss, PyObject *reader)
{
    PyObject *attributes = NULL;

    if (Py_IS_TYPE(reader, ss->OurStreamReader)) {
        attributes = PyObject_GenericGetDict(reader, NULL);
        PyErr_Clear();
    }
    return attributes;
}

/* The reader's transport if it is a SocketTransport, owned; else NULL. */
static fl_stream *
transport_of(fl_stream_state *ss, PyObject *attributes)
{
    PyObject *transport = attribute(attributes, ss->str__transport);

    if (transport == NULL || !Py_IS_TYPE(transport, ss->StreamType)) {
        return NULL;
    }
    return (fl_stream *)Py_NewRef(transport);
}

/* The transport reads, and feeds the reader in the stock way. */
static bool
feeds(fl_stream *t, PyObject *reader, PyObject *attributes)
{
    return t->loop != NULL && t->stock && fl_stream_is_reading(t) &&
           attribute(attributes, t->st->stream->str__loop) == (PyObject *)t->loop &&
           fl_streams_feeds(t->st, t->protocol, reader);
}

static bool
method_is(PyTypeObject *type, PyObject *name, PyObject *method)
{
    PyObject *found = PyObject_GetAttr((PyObject *)type, name);

    if (found == NULL) {
        PyErr_Clear();
        return false;
    }
    Py_DECREF(found);
    return found == method;
}

/* asyncio's methods are those that ours stand for. */
static bool
reading_is_stock(fl_stream_state *ss)
{
    PyTypeObject *type = ss->StreamReader;

    if (type->tp_version_tag != 0 && type->tp_version_tag == ss->read_version) {
        return true;
    }
    if (!method_is(type, ss->str_read, ss->read) ||
        !method_is(type, ss->str_readline, ss->readline) ||
        !method_is(type, ss->str_readuntil, ss->readuntil) ||
        !method_is(type, ss->str_readexactly, ss->readexactly)) {
        return false;
    }
    ss->read_version = type->tp_version_tag;
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

/* The transport of the reader that is args[0], a new reference, and its attributes,
 * another. NULL if there is none of ours, and with TypeError for a wrong call. */
static inline fl_stream *
stream_of_reader(fl_stream_state *ss, PyObject *const *args, Py_ssize_t nargs,
                 PyObject **attributes)
{
    *attributes = NULL;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "a reader and a size are needed");
        return NULL;
    }
    *attributes = attributes_of(ss, args[0]);
    return *attributes == NULL ? NULL : transport_of(ss, *attributes);
}

/* The reader has nothing that read() would have to return or raise at once. */
static bool
must_wait(fl_stream_state *ss, PyObject *reader, PyObject *attributes)
{
    PyObject *buffer = fl_streams_buffer(ss, reader, attributes);

    return buffer != NULL && PyByteArray_GET_SIZE(buffer) == 0 &&
           attribute(attributes, ss->str__waiter) == Py_None &&
           attribute(attributes, ss->str__exception) == Py_None &&
           attribute(attributes, ss->str__paused) == Py_False;
}

/* A future as reader._waiter, known to the transport. */
static PyObject *
make_waiter(fl_stream *t, PyObject *attributes)
{
    PyObject *waiter = fl_future_new(t->loop);

    if (waiter == NULL) {
        return NULL;
    }
    if (PyDict_SetItem(attributes, t->st->stream->str__waiter, waiter) < 0) {
        Py_DECREF(waiter);
        return NULL;
    }
    Py_XSETREF(t->read_waiter, (fl_future *)Py_NewRef(waiter));
    return waiter;
}

PyDoc_STRVAR(begin_read_doc,
"_begin_read($module, reader, n, /)\n--\n\n"
"The future that `await reader.read(n)` has to wait for before _end_read(); None if\n"
"there is nothing to wait for, or not in the stock way.");

static PyObject *
begin_read(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    fl_stream_state *ss = fl_state_of_module(module)->stream;
    PyObject *attributes, *waiter = NULL;
    fl_stream *t = stream_of_reader(ss, args, nargs, &attributes);

    if (t != NULL) {
        fl_stream_settle(t);
        if (size_of(args[1]) > 0 && must_wait(ss, args[0], attributes) &&
            feeds(t, args[0], attributes) && reading_is_stock(ss)) {
            waiter = make_waiter(t, attributes);
        }
        Py_DECREF(t);
    }
    Py_XDECREF(attributes);
    return waiter != NULL || PyErr_Occurred() ? waiter : Py_NewRef(Py_None);
}

int
fl_streams_offer(fl_stream *t, PyObject *reader, PyObject *buffer)
{
    fl_stream_state *ss = t->st->stream;
    fl_future *waiter = t->read_waiter;
    PyObject *attributes = NULL;
    int status = 0;

    if (waiter->state == FL_PENDING && PyByteArray_GET_SIZE(buffer) == 0) {
        attributes = attributes_of(ss, reader);
    }
    if (attributes != NULL && attribute(attributes, ss->str__waiter) == (PyObject *)waiter) {
        t->read_waiter = NULL; /* the reference is ours now */
        status = PyDict_SetItem(attributes, ss->str__waiter, Py_None);
        if (status == 0) {
            status = fl_future_set_result(waiter, Py_None);
        }
        t->offered = status == 0;
        status = status < 0 ? -1 : FL_STREAMS_OFFERED;
        Py_DECREF(waiter);
    }
    Py_XDECREF(attributes);
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
    PyObject *attributes, *buffer, *bytes = NULL;
    Py_ssize_t size;
    fl_stream *t = stream_of_reader(ss, args, nargs, &attributes);

    if (t != NULL && t->offered) {
        buffer = Py_XNewRef(fl_streams_buffer(ss, args[0], attributes));
        size = size_of(args[1]);
        if (size > 0 && buffer != NULL && feeds(t, args[0], attributes)) {
            bytes = take_offered(t, args[0], buffer, (size_t)size);
        }
        else {
            fl_stream_settle(t);
        }
        Py_XDECREF(buffer);
    }
    Py_XDECREF(t);
    Py_XDECREF(attributes);
    return bytes != NULL || PyErr_Occurred() ? bytes : Py_NewRef(Py_None);
}

/* ---- what the buffer holds already ----------------------------------------- */

/* The buffer of a reader that has nothing to raise and no transport to resume, owned;
 * NULL without an exception: asyncio's method must look. */
static PyObject *
held(fl_stream_state *ss, PyObject *reader, PyObject *attributes)
{
    if (attribute(attributes, ss->str__exception) != Py_None ||
        attribute(attributes, ss->str__paused) != Py_False ||
        attribute(attributes, ss->str_readuntil) != NULL || !reading_is_stock(ss)) {
        return NULL;
    }
    return Py_XNewRef(fl_streams_buffer(ss, reader, attributes));
}

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
in_limit(fl_stream_state *ss, PyObject *attributes, Py_ssize_t bytes)
{
    PyObject *limit = attribute(attributes, ss->str__limit);
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

    if (bytes != NULL && PySequence_DelSlice(buffer, 0, size) < 0) {
        Py_CLEAR(bytes);
    }
    return bytes;
}

/* A new future as reader._waiter; NULL if there is one already. */
static PyObject *
wait_for_data(fl_stream_state *ss, PyObject *attributes, fl_state *st)
{
    PyObject *loop = attribute(attributes, ss->str__loop), *waiter;

    if (attribute(attributes, ss->str__waiter) != Py_None || loop == NULL ||
        !fl_is_loop(st, loop)) {
        return NULL;
    }
    waiter = fl_future_new((fl_loop *)loop);
    if (waiter != NULL && PyDict_SetItem(attributes, ss->str__waiter, waiter) < 0) {
        Py_CLEAR(waiter);
    }
    return waiter;
}

/* How many bytes of the buffer readuntil(separator) returns; 0 if it must wait for
 * more, -1 if it is not for us. No separator begins before `from`. */
static Py_ssize_t
size_until(fl_stream_state *ss, PyObject *attributes, PyObject *buffer, PyObject *separator,
           Py_ssize_t from)
{
    Py_ssize_t size, found, len = PyByteArray_GET_SIZE(buffer);

    if (!PyBytes_CheckExact(separator) || PyBytes_GET_SIZE(separator) == 0 || from > len) {
        return -1;
    }
    size = PyBytes_GET_SIZE(separator);
    found = find(buffer, separator, from);
    if (!in_limit(ss, attributes, found >= 0 ? found : len + 1 - size)) {
        return -1;
    }
    return found >= 0 ? found + size : 0;
}

/* The same of readexactly(n). */
static Py_ssize_t
size_exactly(PyObject *buffer, PyObject *n)
{
    Py_ssize_t size = size_of(n);

    return size == 0 ? -1 : size <= PyByteArray_GET_SIZE(buffer) ? size : 0;
}

/* What a function below returns, with `from` for _take_until(), -1 for the other. */
static PyObject *
take_or_wait(fl_state *st, PyObject *reader, PyObject *what, Py_ssize_t from)
{
    fl_stream_state *ss = st->stream;
    PyObject *attributes = attributes_of(ss, reader), *buffer, *result = NULL;
    Py_ssize_t size;

    if (attributes == NULL) {
        Py_RETURN_NONE;
    }
    buffer = held(ss, reader, attributes);
    if (buffer != NULL) {
        size = from >= 0 ? size_until(ss, attributes, buffer, what, from)
                         : size_exactly(buffer, what);
        if (size >= 0) {
            result = size > 0 ? take(buffer, size) : wait_for_data(ss, attributes, st);
        }
        Py_DECREF(buffer);
    }
    Py_DECREF(attributes);
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
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "a reader and a size are needed");
        return NULL;
    }
    return take_or_wait(fl_state_of_module(module), args[0], args[1], -1);
}

PyMethodDef fl_streams_module_methods[] = {
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
    PyObject *reader = NULL, *buffer = NULL;

    if (!t->stock || !fl_streams_open(t->st, t->protocol, &reader, &buffer)) {
        return;
    }
    if (ss->OurStreamReader == NULL) {
        PyObject *streams = PyImport_ImportModule("fastloop._streams");
        PyObject *type = streams == NULL ? NULL : PyObject_GetAttrString(streams, "StreamReader");
        Py_XDECREF(streams);
        ss->OurStreamReader = (PyTypeObject *)type;
    }
    if (ss->OurStreamReader != NULL && Py_IS_TYPE(reader, ss->StreamReader)) {
        (void)PyObject_SetAttr(reader, ss->str___class__, (PyObject *)ss->OurStreamReader);
    }
    PyErr_Clear(); /* it is an asyncio.StreamReader still, and works as one */
    Py_DECREF(reader);
    Py_DECREF(buffer);
}
