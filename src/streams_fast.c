/* streams_fast.c - the short way into asyncio.StreamReader.
 *
 * For a protocol that is exactly asyncio.StreamReaderProtocol, with a reader that
 * is exactly asyncio.StreamReader, and neither's methods replaced (on the class or
 * on the object), received bytes are appended to the reader's bytearray and its
 * waiter is woken: what StreamReaderProtocol.data_received() and
 * StreamReader.feed_data() do, without a bytes object or a Python frame. The
 * attributes of the reader stay the truth, so all its other methods are asyncio's;
 * they are looked up in its __dict__, as no class attribute can be in their place
 * while the classes are what they were when asyncio was imported.
 */
#include "stream.h"

#include <errno.h>

/* ---- are these the stock classes? ----------------------------------------- */

/* type.<name> is `value`, whatever else has changed since *version. */
static bool
class_is_stock(PyTypeObject *type, PyObject *name, PyObject *value, unsigned *version)
{
    PyObject *found;

    if (type == NULL || (type->tp_version_tag != 0 && type->tp_version_tag == *version)) {
        return true;
    }
    found = PyObject_GetAttr((PyObject *)type, name);
    if (found != value) {
        PyErr_Clear();
        Py_XDECREF(found);
        return false;
    }
    Py_DECREF(found);
    *version = type->tp_version_tag;
    return true;
}

static bool
classes_are_stock(fl_stream_state *ss)
{
    return class_is_stock(ss->StreamReaderProtocol, ss->str_data_received, ss->data_received,
                          &ss->protocol_version) &&
           class_is_stock(ss->StreamReader, ss->str_feed_data, ss->feed_data,
                          &ss->reader_version) &&
           class_is_stock(ss->OurStreamReader, ss->str_feed_data, ss->feed_data,
                          &ss->our_reader_version);
}

/* A borrowed reference out of an object's __dict__, or NULL. */
static PyObject *
attribute(PyObject *attributes, PyObject *name)
{
    PyObject *value = PyDict_GetItemWithError(attributes, name);

    if (value == NULL) {
        PyErr_Clear(); /* names are str: there is none */
    }
    return value;
}

static int
missing(PyObject *name)
{
    PyErr_SetObject(PyExc_AttributeError, name);
    return -1;
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

/* The reader of a stock protocol, owned; NULL if there is none, or the protocol has a
 * data_received() of its own. */
static PyObject *
reader_of(fl_stream_state *ss, PyObject *protocol)
{
    PyObject *attributes = PyObject_GenericGetDict(protocol, NULL);
    PyObject *weakref, *reader = NULL;

    if (attributes == NULL) {
        PyErr_Clear();
        return NULL;
    }
    weakref = attribute(attributes, ss->str__stream_reader_wr);
    if (weakref != NULL && PyWeakref_CheckRefExact(weakref) &&
        attribute(attributes, ss->str_data_received) == NULL) {
        reader = dereference(weakref);
    }
    Py_DECREF(attributes);
    return reader;
}

static bool
is_stock_reader(fl_stream_state *ss, PyObject *reader)
{
    return Py_IS_TYPE(reader, ss->StreamReader) || Py_IS_TYPE(reader, ss->OurStreamReader);
}

PyObject *
fl_streams_buffer(fl_stream_state *ss, PyObject *reader, PyObject *attributes)
{
    PyObject *buffer = NULL;

    if (is_stock_reader(ss, reader) && attribute(attributes, ss->str_feed_data) == NULL &&
        attribute(attributes, ss->str__eof) == Py_False) {
        buffer = attribute(attributes, ss->str__buffer);
    }
    return buffer != NULL && PyByteArray_CheckExact(buffer) ? buffer : NULL;
}

bool
fl_streams_feeds(fl_state *st, PyObject *protocol, PyObject *reader)
{
    PyObject *fed = NULL;

    if (classes_are_stock(st->stream)) {
        fed = reader_of(st->stream, protocol);
    }
    Py_XDECREF(fed);
    return fed != NULL && fed == reader;
}

bool
fl_streams_open(fl_state *st, PyObject *protocol, PyObject **reader, PyObject **buffer)
{
    PyObject *attributes = NULL;

    *buffer = *reader = NULL;
    if (classes_are_stock(st->stream)) {
        *reader = reader_of(st->stream, protocol);
    }
    if (*reader != NULL && is_stock_reader(st->stream, *reader)) {
        attributes = PyObject_GenericGetDict(*reader, NULL);
        PyErr_Clear();
    }
    if (attributes != NULL) {
        *buffer = Py_XNewRef(fl_streams_buffer(st->stream, *reader, attributes));
        Py_DECREF(attributes);
    }
    if (*buffer == NULL) {
        Py_CLEAR(*reader);
    }
    return *buffer != NULL;
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
    PyObject *name = st->stream->str__waiter, *waiter = attribute(attributes, name);
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
    PyObject *limit = attribute(attributes, ss->str__limit);
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

int
fl_streams_read(fl_stream *t, ssize_t *n)
{
    PyObject *reader, *buffer;
    size_t room;
    int done = 0, error;

    if (!fl_streams_open(t->st, t->protocol, &reader, &buffer)) {
        return 0;
    }
    if (t->read_waiter != NULL) {
        done = fl_streams_offer(t, reader, buffer);
    }
    if (done == 0) {
        room = fl_stream_expected(t);
        done = room > 0 ? receive_in_place(t, buffer, room, n)
                        : receive_and_append(t, buffer, n);
    }
    error = errno;
    if (done == 1 && *n > 0 &&
        fl_streams_fed(t->st, t, reader, PyByteArray_GET_SIZE(buffer)) < 0) {
        done = -1;
    }
    Py_DECREF(buffer);
    Py_DECREF(reader);
    errno = error;
    return done;
}
