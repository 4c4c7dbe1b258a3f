/* streams_fast.c - the short way into asyncio.StreamReader.
 *
 * For a protocol that is exactly asyncio.StreamReaderProtocol, with a reader that
 * is exactly asyncio.StreamReader, and neither's methods replaced (on the class or
 * on the object), received bytes are appended to the reader's bytearray and its
 * waiter is woken: what StreamReaderProtocol.data_received() and
 * StreamReader.feed_data() do, without a bytes object or a Python frame.
 */
#include "stream.h"

#include <errno.h>

static int
missing(PyObject *name)
{
    PyErr_SetObject(PyExc_AttributeError, name);
    return -1;
}

/* ---- receiving ------------------------------------------------------------ */

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

/* ---- StreamReader.feed_data() behind the append ---------------------------- */

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
wake_waiter(fl_state *st, PyObject *attributes)
{
    PyObject *name = st->stream->str__waiter, *waiter = fl_reader_attribute(attributes, name);
    int status = 0;

    if (waiter == NULL) {
        return missing(name);
    }
    if (waiter != Py_None) {
        Py_INCREF(waiter);
        status = PyDict_SetItem(attributes, name, Py_None);
        if (status == 0) {
            status = finish_waiter(st, waiter);
        }
        Py_DECREF(waiter);
    }
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
over_limit(fl_stream_state *ss, PyObject *attributes, Py_ssize_t total)
{
    PyObject *limit = fl_reader_attribute(attributes, ss->str__limit);
    PyObject *size, *twice;
    int over = -1;

    if (limit == NULL) {
        return missing(ss->str__limit);
    }
    if (PyLong_CheckExact(limit)) {
        Py_ssize_t bytes = PyLong_AsSsize_t(limit);
        if (bytes == -1 && PyErr_Occurred()) {
            PyErr_Clear();
            bytes = PY_SSIZE_T_MAX;
        }
        return total > bytes && total - bytes > bytes;
    }
    Py_INCREF(limit);
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
maybe_pause(fl_stream_state *ss, fl_stream *t, PyObject *reader, PyObject *attributes,
            Py_ssize_t total)
{
    PyObject *transport = NULL, *paused = NULL;
    int is_paused, status = over_limit(ss, attributes, total);

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
    PyObject *attributes = PyObject_GenericGetDict(reader, NULL);
    int status = -1;

    if (attributes != NULL && wake_waiter(st, attributes) == 0 &&
        maybe_pause(st->stream, t, reader, attributes, total) == 0) {
        status = 0;
    }
    Py_XDECREF(attributes);
    return status;
}

/* recv() into the reader. */
static int
receive_for(fl_stream *t, fl_reader *r, ssize_t *n)
{
    PyObject *buffer = r->buffer;
    size_t room = fl_stream_expected(t);
    int done = room > 0 ? receive_in_place(t, buffer, room, n)
                        : receive_and_append(t, buffer, n);
    int error = errno;

    if (done == 1 && *n > 0 &&
        fl_streams_fed(t->st, t, r->object, PyByteArray_GET_SIZE(buffer)) < 0) {
        done = -1;
    }
    errno = error;
    return done;
}

int
fl_streams_read(fl_stream *t, ssize_t *n)
{
    fl_reader r;
    int done, error;

    if (!fl_streams_open(t->st, t->protocol, &r)) {
        return 0;
    }
    done = receive_for(t, &r, n);
    error = errno;
    fl_reader_done(&r);
    errno = error;
    return done;
}
