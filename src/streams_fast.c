/* streams_fast.c - the short way into asyncio.StreamReader.
 *
 * For a protocol that is exactly asyncio.StreamReaderProtocol, with a reader that
 * is exactly asyncio.StreamReader, and neither's methods replaced (on the class or
 * on the object), received bytes are appended to the reader's bytearray and its
 * waiter is woken: what StreamReaderProtocol.data_received() and
 * StreamReader.feed_data() do, without a bytes object or a Python frame. The
 * attributes of the reader stay the truth, so all its other methods are asyncio's.
 */
#include "stream.h"

#include <errno.h>

/* object.<name> is the method that its class had when asyncio was imported. */
static bool
is_stock_method(PyObject *object, PyObject *name, PyObject *function)
{
    PyObject *method = PyObject_GetAttr(object, name);
    bool stock = false;

    if (method == NULL) {
        PyErr_Clear();
        return false;
    }
    stock = PyMethod_Check(method) && PyMethod_GET_FUNCTION(method) == function &&
            PyMethod_GET_SELF(method) == object;
    Py_DECREF(method);
    return stock;
}

/* A strong reference to what a weakref refers to; NULL if it is gone. */
static PyObject *
dereference(PyObject *weakref)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *object = NULL;
    if (PyWeakref_GetRef(weakref, &object) < 0) {
        PyErr_Clear();
    }
    return object;
#else
    PyObject *object = PyWeakref_GetObject(weakref);
    return object == Py_None ? NULL : Py_XNewRef(object);
#endif
}

/* protocol._stream_reader: 1 and an owned reader, 0 if there is none any more, -1
 * if this protocol is not for us. */
static int
stream_reader(fl_stream_state *ss, PyObject *protocol, PyObject **reader)
{
    PyObject *weakref = PyObject_GetAttr(protocol, ss->str__stream_reader_wr);
    int found = -1;

    if (weakref == NULL) {
        PyErr_Clear();
        return -1;
    }
    if (weakref == Py_None) {
        found = 0;
    }
    else if (PyWeakref_CheckRefExact(weakref)) {
        *reader = dereference(weakref);
        found = *reader != NULL;
    }
    Py_DECREF(weakref);
    return found;
}

/* The reader's bytearray, owned; NULL if the reader is not for us. */
static PyObject *
open_buffer(fl_stream_state *ss, PyObject *reader)
{
    PyObject *eof = PyObject_GetAttr(reader, ss->str__eof);
    PyObject *buffer = PyObject_GetAttr(reader, ss->str__buffer);

    if (eof == NULL || buffer == NULL) {
        PyErr_Clear();
    }
    if (eof != Py_False || buffer == NULL || !PyByteArray_CheckExact(buffer)) {
        Py_CLEAR(buffer);
    }
    Py_XDECREF(eof);
    return buffer;
}

/* recv() behind what the bytearray holds, without a copy. */
static int
receive_in_place(fl_stream *t, PyObject *buffer, size_t room, ssize_t *n)
{
    Py_ssize_t old = PyByteArray_GET_SIZE(buffer);
    int error;

    if (PyByteArray_Resize(buffer, old + (Py_ssize_t)room) < 0) {
        PyErr_Clear(); /* somebody has a view of it: feed_data() will say so */
        return 0;
    }
    *n = fl_stream_receive(t, PyByteArray_AS_STRING(buffer) + old, room);
    error = errno;
    if (PyByteArray_Resize(buffer, old + (*n > 0 ? *n : 0)) < 0) {
        return -1;
    }
    errno = error;
    return 1;
}

/* recv(), then append: an idle reader needs no room of its own. */
static int
receive_and_append(fl_stream *t, PyObject *buffer, ssize_t *n)
{
    Py_ssize_t old = PyByteArray_GET_SIZE(buffer);
    char *data = fl_loop_recv_buffer(t->loop);

    if (data == NULL) {
        return -1;
    }
    *n = fl_stream_receive(t, data, FL_RECV_BUFFER_SIZE);
    if (*n > 0) {
        if (PyByteArray_Resize(buffer, old + *n) < 0) {
            return -1;
        }
        memcpy(PyByteArray_AS_STRING(buffer) + old, data, (size_t)*n);
    }
    return 1;
}

/* waiter.set_result(None) unless it is cancelled */
static int
finish_waiter(fl_state *st, PyObject *waiter)
{
    fl_stream_state *ss = st->stream;
    PyObject *result;
    int cancelled;

    if (Py_IS_TYPE(waiter, st->FutureType)) {
        fl_future *future = (fl_future *)waiter;
        return future->state == FL_CANCELLED ? 0 : fl_future_set_result(future, Py_None);
    }
    result = PyObject_CallMethodNoArgs(waiter, ss->str_cancelled);
    cancelled = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    if (cancelled != 0) {
        return cancelled < 0 ? -1 : 0;
    }
    result = PyObject_CallMethodOneArg(waiter, ss->str_set_result, Py_None);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* StreamReader._wakeup_waiter */
static int
wake_waiter(fl_state *st, PyObject *reader)
{
    fl_stream_state *ss = st->stream;
    PyObject *waiter = PyObject_GetAttr(reader, ss->str__waiter);
    int status = -1;

    if (waiter == NULL) {
        return -1;
    }
    if (waiter == Py_None) {
        status = 0;
    }
    else if (PyObject_SetAttr(reader, ss->str__waiter, Py_None) == 0) {
        status = finish_waiter(st, waiter);
    }
    Py_DECREF(waiter);
    return status;
}

/* reader._transport.pause_reading(), which some transports do not have. */
static int
pause_transport(fl_stream_state *ss, fl_stream *t, PyObject *reader, PyObject *transport)
{
    PyObject *result;

    if (transport == (PyObject *)t) {
        if (fl_stream_pause_reading(t) < 0) {
            return -1;
        }
        return PyObject_SetAttr(reader, ss->str__paused, Py_True);
    }
    result = PyObject_CallMethodNoArgs(transport, ss->str_pause_reading);
    if (result != NULL) {
        Py_DECREF(result);
        return PyObject_SetAttr(reader, ss->str__paused, Py_True);
    }
    if (!PyErr_ExceptionMatches(PyExc_NotImplementedError)) {
        return -1;
    }
    PyErr_Clear();
    return PyObject_SetAttr(reader, ss->str__transport, Py_None);
}

/* The reader holds more than twice its limit. */
static int
over_limit(fl_stream_state *ss, PyObject *reader, Py_ssize_t total)
{
    PyObject *limit = PyObject_GetAttr(reader, ss->str__limit);
    PyObject *size, *twice;
    int over = -1;

    if (limit == NULL) {
        return -1;
    }
    if (PyLong_CheckExact(limit)) {
        Py_ssize_t bytes = PyLong_AsSsize_t(limit);
        if (bytes == -1 && PyErr_Occurred()) {
            PyErr_Clear();
            bytes = PY_SSIZE_T_MAX;
        }
        Py_DECREF(limit);
        return total > bytes && total - bytes > bytes;
    }
    size = PyLong_FromSsize_t(total);
    twice = PyNumber_Add(limit, limit);
    if (size != NULL && twice != NULL) {
        over = PyObject_RichCompareBool(size, twice, Py_GT);
    }
    Py_XDECREF(size);
    Py_XDECREF(twice);
    Py_DECREF(limit);
    return over;
}

/* The end of StreamReader.feed_data: pause a transport that is too fast. */
static int
maybe_pause(fl_stream_state *ss, fl_stream *t, PyObject *reader, Py_ssize_t total)
{
    PyObject *transport = NULL, *paused = NULL;
    int is_paused, status = over_limit(ss, reader, total);

    if (status <= 0) {
        return status;
    }
    status = -1;
    transport = PyObject_GetAttr(reader, ss->str__transport);
    if (transport == NULL || transport == Py_None) {
        status = transport == NULL ? -1 : 0;
        goto done;
    }
    paused = PyObject_GetAttr(reader, ss->str__paused);
    is_paused = paused == NULL ? -1 : PyObject_IsTrue(paused);
    if (is_paused >= 0) {
        status = is_paused ? 0 : pause_transport(ss, t, reader, transport);
    }
done:
    Py_XDECREF(transport);
    Py_XDECREF(paused);
    return status;
}

int
fl_streams_fed(fl_state *st, fl_stream *t, PyObject *reader, Py_ssize_t total)
{
    return wake_waiter(st, reader) < 0 || maybe_pause(st->stream, t, reader, total) < 0 ? -1
                                                                                       : 0;
}

bool
fl_streams_open(fl_state *st, PyObject *protocol, PyObject **reader, PyObject **buffer)
{
    fl_stream_state *ss = st->stream;

    *buffer = NULL;
    if (!is_stock_method(protocol, ss->str_data_received, ss->data_received) ||
        stream_reader(ss, protocol, reader) <= 0) {
        return false;
    }
    if (Py_IS_TYPE(*reader, ss->StreamReader) &&
        is_stock_method(*reader, ss->str_feed_data, ss->feed_data)) {
        *buffer = open_buffer(ss, *reader);
    }
    if (*buffer == NULL) {
        Py_CLEAR(*reader);
    }
    return *buffer != NULL;
}

int
fl_streams_read(fl_stream *t, ssize_t *n)
{
    PyObject *reader, *buffer;
    size_t room;
    int done, error;

    if (!fl_streams_open(t->st, t->protocol, &reader, &buffer)) {
        return 0;
    }
    room = fl_stream_expected(t);
    done = room > 0 ? receive_in_place(t, buffer, room, n)
                    : receive_and_append(t, buffer, n);
    error = errno;
    if (done > 0 && *n > 0 &&
        fl_streams_fed(t->st, t, reader, PyByteArray_GET_SIZE(buffer)) < 0) {
        done = -1;
    }
    Py_DECREF(buffer);
    Py_DECREF(reader);
    errno = error;
    return done;
}
