/* tls_read.c - the way in: received bytes, the records in them, the application's
 * protocol.
 *
 * What is received goes into the incoming MemoryBIO, and SSLObject.read() gives back
 * what was in the records. asyncio reads until SSLWantReadError says that there is
 * no whole record left; to raise that costs more than to decrypt a small record. So
 * the lengths in the records' headers are followed as the bytes go in, and ssl is
 * only asked where it has something to give.
 */
#include "tls.h"

#include <errno.h>

enum {
    RECORD_SIZE = 16 * 1024, /* the most that one record brings; RFC 8446, 5.1 */
    CIPHERTEXT_SIZE = RECORD_SIZE + 2048, /* RFC 5246, 6.2.3 */
    LARGE = 32 * 1024        /* so much is read where it will stay */
};

/* ---- where records end -------------------------------------------------- */

static bool
is_record_header(const uint8_t *header, size_t length)
{
    return header[0] >= 20 && header[0] <= 24 && header[1] == 3 &&
           length <= CIPHERTEXT_SIZE;
}

static void
frames_follow(fl_tls_frames *f, const char *data, size_t len)
{
    uint64_t position = f->fed;

    f->fed += len;
    while (len > 0 && !f->lost) {
        size_t wanted = f->left > 0 ? f->left : sizeof(f->header) - f->have;
        size_t n = wanted < len ? wanted : len;
        position += n;
        len -= n;
        if (f->left > 0) {
            f->left -= n;
        }
        else {
            memcpy(f->header + f->have, data, n);
            f->have += (uint8_t)n;
            if (f->have < sizeof(f->header)) {
                return;
            }
            f->have = 0;
            f->left = (size_t)f->header[3] << 8 | f->header[4];
            f->lost = !is_record_header(f->header, f->left);
        }
        data += n;
        if (f->left == 0) {
            f->boundary = position;
            f->complete++;
        }
    }
}

/* ssl has records to give, as far as we know. */
static bool
has_more(const fl_tls *p)
{
    return p->must_ask || p->frames.lost || p->frames.complete > 0;
}

/* No more bytes than this wait in the incoming BIO. Where the records' ends are not known
 * the BIO is asked. */
static size_t
most_waiting(fl_tls *p)
{
    if (p->frames.lost) {
        Py_ssize_t pending = fl_tls_pending(p, p->incoming);
        if (pending >= 0) {
            return (size_t)pending;
        }
        PyErr_Clear(); /* no memory for a number: an upper bound does as well */
    }
    return (size_t)(p->frames.fed - p->frames.taken);
}

/* ssl gave data: that is one record less, if not a part of one. It may have met other
 * records before that one, which are still counted; so there are never more records
 * than we think, and the next read() at the latest says so. */
static void
frames_took_one(fl_tls_frames *f)
{
    if (f->complete > 0) {
        f->complete--;
    }
    if (f->complete == 0) {
        f->taken = f->boundary;
    }
}

/* ssl wants more bytes before it gives anything. */
static void
frames_took_all(fl_tls_frames *f)
{
    f->complete = 0;
    f->taken = f->boundary;
}

/* ---- scratch memory ----------------------------------------------------- */

/* The loop's receive buffer, taken away from it meanwhile: ssl lets go of the GIL
 * and can call Python code (SSLContext.sni_callback and others). */
typedef struct {
    char *data; /* FL_RECV_BUFFER_SIZE bytes */
    fl_loop *loop;
} scratch;

static int
scratch_take(scratch *s, fl_state *st, PyObject *loop)
{
    if (loop != NULL && fl_is_loop(st, loop)) {
        s->loop = (fl_loop *)Py_NewRef(loop);
        s->data = fl_loop_recv_buffer(s->loop);
        s->loop->recv_buffer = NULL;
    }
    else {
        s->loop = NULL;
        s->data = PyMem_Malloc(FL_RECV_BUFFER_SIZE);
        if (s->data == NULL) {
            PyErr_NoMemory();
        }
    }
    if (s->data == NULL) {
        Py_CLEAR(s->loop);
        return -1;
    }
    return 0;
}

static void
scratch_give_back(scratch *s)
{
    if (s->loop != NULL && s->loop->recv_buffer == NULL) {
        s->loop->recv_buffer = s->data;
    }
    else {
        PyMem_Free(s->data);
    }
    Py_XDECREF(s->loop);
}

/* ---- reading from ssl --------------------------------------------------- */

/* A place for what is read. */
typedef struct {
    char *data;
    size_t len, room; /* bytes that are in, that fit in */
} sink;

/* How reading ended. */
enum { FAILED = -1, DRY = 0, FULL = 1, CLOSED = 2 };

/* What read() gave, as a number of bytes at `to`: 0 at the end, -1 if ssl wants
 * more from the peer first, -2 with an exception. Takes over the reference. */
static Py_ssize_t
read_result(fl_tls *p, PyObject *result, char *to, size_t room)
{
    Py_ssize_t n;

    if (result == NULL) {
        if (!PyErr_ExceptionMatches(p->st->tls->again_errors)) {
            return -2;
        }
        PyErr_Clear();
        return -1;
    }
    if (p->native) {
        n = PyLong_AsSsize_t(result);
        n = n < 0 ? -2 : n;
    }
    else {
        char *data;
        n = PyBytes_AsStringAndSize(result, &data, &n) < 0 ? -2 : n;
        if (n > 0) {
            n = (size_t)n <= room ? n : (Py_ssize_t)room;
            memcpy(to, data, (size_t)n);
        }
    }
    Py_DECREF(result);
    return n;
}

static Py_ssize_t
read_from_ssl(fl_tls *p, char *to, size_t room)
{
    PyObject *read = Py_NewRef(p->read), *result;

    if (p->native) {
        (void)fl_tls_open_window(p->st, to, (Py_ssize_t)room);
        result = PyObject_Call(read, p->st->tls->read_args, NULL);
        fl_tls_close_window(p->st);
    }
    else {
        result = PyObject_CallFunction(read, "n", (Py_ssize_t)room);
    }
    Py_DECREF(read);
    return read_result(p, result, to, room);
}

/* Read while there is something to read and `s` has the room. */
static int
read_into_sink(fl_tls *p, sink *s)
{
    do {
        if (!has_more(p)) {
            return DRY;
        }
        size_t room = s->room - s->len;
        Py_ssize_t n = read_from_ssl(p, s->data + s->len, room);
        if (n == -1) {
            p->must_ask = false;
            p->answered = true; /* there were records that brought no data */
            frames_took_all(&p->frames);
            return DRY;
        }
        if (n <= 0) {
            p->answered = true;
            return n == 0 ? CLOSED : FAILED;
        }
        s->len += (size_t)n;
        p->must_ask = (size_t)n == room; /* it may be the first part of a record */
        if (!p->must_ask) {
            frames_took_one(&p->frames);
        }
    } while (s->len < s->room);
    return FULL;
}

/* How much room is enough for all that can be read now. */
static size_t
room_for(size_t waiting)
{
    return waiting + CIPHERTEXT_SIZE; /* ssl may have a part of a record already */
}

/* ---- giving it to the application --------------------------------------- */

/* loop.call_soon(self._do_read) */
static int
read_again_soon(fl_tls *p)
{
    fl_tls_state *ts = p->st->tls;
    PyObject *method = PyObject_GetAttr((PyObject *)p, ts->str__do_read), *handle = NULL;
    PyObject *loop = fl_none_or(p->loop);

    if (method != NULL) {
        handle = PyObject_CallMethodOneArg(loop, ts->str_call_soon, method);
        Py_DECREF(method);
    }
    Py_DECREF(loop);
    Py_XDECREF(handle);
    return handle == NULL ? -1 : 0;
}

/* What is read becomes an exact bytes object; NULL if it is nothing. */
static int
read_bytes(fl_tls *p, size_t waiting, PyObject **bytes)
{
    int ended;

    *bytes = NULL;
    if (waiting < LARGE) {
        scratch memory;
        if (scratch_take(&memory, p->st, p->loop) < 0) {
            return FAILED;
        }
        sink s = {memory.data, 0, FL_RECV_BUFFER_SIZE};
        ended = read_into_sink(p, &s);
        if (ended != FAILED && s.len > 0) {
            *bytes = PyBytes_FromStringAndSize(s.data, (Py_ssize_t)s.len);
            ended = *bytes == NULL ? FAILED : ended;
        }
        scratch_give_back(&memory);
        return ended;
    }
    *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room_for(waiting));
    if (*bytes == NULL) {
        return FAILED;
    }
    sink s = {PyBytes_AS_STRING(*bytes), 0, room_for(waiting)};
    ended = read_into_sink(p, &s);
    if (ended == FAILED || s.len == 0) {
        Py_CLEAR(*bytes);
        return ended;
    }
    return _PyBytes_Resize(bytes, (Py_ssize_t)s.len) < 0 ? FAILED : ended;
}

/* Protocol: one data_received() for all that is there. */
static int
read_to_protocol(fl_tls *p, size_t waiting)
{
    PyObject *bytes, *protocol, *result;
    int ended = read_bytes(p, waiting, &bytes);

    if (bytes == NULL) {
        return ended;
    }
    protocol = fl_none_or(p->app_protocol);
    result = PyObject_CallMethodOneArg(protocol, p->st->tls->str_data_received, bytes);
    Py_DECREF(protocol);
    Py_DECREF(bytes);
    Py_XDECREF(result);
    return result == NULL ? FAILED : ended;
}

/* Append to a StreamReader's bytearray; -1 with BufferError if somebody has a view of it. */
static int
append(PyObject *buffer, const char *data, size_t len)
{
    Py_ssize_t old = PyByteArray_GET_SIZE(buffer);

    if (PyByteArray_Resize(buffer, old + (Py_ssize_t)len) < 0) {
        return -1;
    }
    memcpy(PyByteArray_AS_STRING(buffer) + old, data, len);
    return 0;
}

static int
read_to_bytearray(fl_tls *p, size_t waiting, PyObject *buffer, size_t *len)
{
    int ended;

    if (waiting < LARGE) {
        scratch memory;
        if (scratch_take(&memory, p->st, p->loop) < 0) {
            return FAILED;
        }
        sink s = {memory.data, 0, FL_RECV_BUFFER_SIZE};
        ended = read_into_sink(p, &s);
        if (ended != FAILED && s.len > 0 && append(buffer, s.data, s.len) < 0) {
            ended = FAILED;
        }
        scratch_give_back(&memory);
        *len = s.len;
        return ended;
    }
    Py_ssize_t old = PyByteArray_GET_SIZE(buffer);
    Py_buffer view; /* so that nobody can resize it meanwhile */
    if (PyByteArray_Resize(buffer, old + (Py_ssize_t)room_for(waiting)) < 0 ||
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE) < 0) {
        return FAILED;
    }
    sink s = {(char *)view.buf + old, 0, room_for(waiting)};
    ended = read_into_sink(p, &s);
    PyObject *raised = ended == FAILED ? fl_take_exception() : NULL;
    PyBuffer_Release(&view);
    *len = ended == FAILED ? 0 : s.len;
    if (PyByteArray_Resize(buffer, old + (Py_ssize_t)*len) < 0) {
        ended = FAILED;
    }
    if (raised != NULL) {
        fl_restore_exception(raised);
    }
    return ended;
}

/* A stock StreamReaderProtocol: straight into its reader, where that is possible. */
static int
read_to_reader(fl_tls *p, size_t waiting)
{
    fl_reader reader;
    PyObject *buffer;
    size_t len = 0;
    int ended;

    if (!fl_streams_open(p->st, p->app_protocol, &reader)) {
        return read_to_protocol(p, waiting);
    }
    buffer = Py_NewRef(reader.buffer);
    ended = read_to_bytearray(p, waiting, buffer, &len);
    if (ended != FAILED && len > 0 &&
        fl_streams_fed(p->st, NULL, reader.object, PyByteArray_GET_SIZE(buffer)) < 0) {
        ended = FAILED;
    }
    fl_reader_done(&reader);
    Py_DECREF(buffer);
    return ended;
}

/* BufferedProtocol: into its buffer, as far as that reaches. */
static int
read_to_buffer(fl_tls *p)
{
    fl_tls_state *ts = p->st->tls;
    Py_ssize_t pending = fl_tls_pending(p, p->incoming);
    PyObject *hint = pending < 0 ? NULL : PyLong_FromSsize_t(pending), *buffer, *protocol, *number;
    PyObject *result = Py_None;
    Py_buffer view;
    int ended;

    if (hint == NULL) {
        return FAILED;
    }
    protocol = fl_none_or(p->app_protocol);
    buffer = PyObject_CallMethodOneArg(protocol, ts->str_get_buffer, hint);
    Py_DECREF(hint);
    if (buffer == NULL || PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE) < 0) {
        Py_XDECREF(buffer);
        Py_DECREF(protocol);
        return FAILED;
    }
    sink s = {view.buf, 0, (size_t)view.len};
    ended = read_into_sink(p, &s);
    PyBuffer_Release(&view);
    Py_DECREF(buffer);
    if (ended == FULL && read_again_soon(p) < 0) {
        ended = FAILED;
    }
    if (ended != FAILED && s.len > 0) {
        number = PyLong_FromSize_t(s.len);
        result = number == NULL ? NULL
                                : PyObject_CallMethodOneArg(protocol, ts->str_buffer_updated,
                                                            number);
        Py_XDECREF(number);
        Py_XDECREF(result);
    }
    Py_DECREF(protocol);
    return result == NULL ? FAILED : ended;
}

/* ---- SSLProtocol._do_read ----------------------------------------------- */

static int
read_all(fl_tls *p)
{
    size_t waiting;
    int ended;

    if (!has_more(p)) {
        return 0;
    }
    waiting = most_waiting(p);
    if (p->buffered) {
        ended = read_to_buffer(p);
    }
    else {
        ended = p->stock ? read_to_reader(p, waiting) : read_to_protocol(p, waiting);
        if (ended == FULL && read_again_soon(p) < 0) {
            return -1;
        }
    }
    if (ended == CLOSED) { /* close_notify */
        if (fl_tls_call(p, p->st->tls->str__call_eof_received) < 0) {
            return -1;
        }
        return fl_tls_call(p, p->st->tls->str__start_shutdown);
    }
    return ended == FAILED ? -1 : 0;
}

/* self._transport.pause_reading() or resume_reading() */
static int
switch_transport(fl_tls *p, bool pause)
{
    fl_tls_state *ts = p->st->tls;
    PyObject *transport, *result;

    p->ssl_reading_paused = pause;
    if (p->transport != NULL && Py_IS_TYPE(p->transport, p->st->stream->StreamType)) {
        fl_stream *t = (fl_stream *)p->transport;
        return pause ? fl_stream_pause_reading(t) : fl_stream_resume_reading(t);
    }
    transport = fl_none_or(p->transport);
    result = PyObject_CallMethodNoArgs(transport, pause ? ts->str_pause_reading
                                                        : ts->str_resume_reading);
    Py_DECREF(transport);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Stop reading from the socket while the application does not read. */
static int
control_reading(fl_tls *p)
{
    Py_ssize_t size;
    int reaches, is_down;

    if (!p->ssl_reading_paused && p->mark_bytes[FL_TLS_IN_HIGH] > CIPHERTEXT_SIZE &&
        most_waiting(p) < CIPHERTEXT_SIZE) {
        return 0; /* as always, while the application reads */
    }
    size = (Py_ssize_t)fl_tls_pending(p, p->incoming);
    reaches = fl_tls_reaches(p, size, FL_TLS_IN_HIGH);
    if (reaches < 0) {
        return -1;
    }
    if (reaches && !p->ssl_reading_paused) {
        return switch_transport(p, true);
    }
    if (!p->ssl_reading_paused) {
        return 0;
    }
    is_down = fl_tls_is_down_to(p, size, FL_TLS_IN_LOW);
    return is_down > 0 ? switch_transport(p, false) : is_down;
}

static int
read_and_write(fl_tls *p)
{
    if (!p->app_reading_paused) {
        p->answered = p->must_ask; /* the end of the handshake waits to be sent, too */
        if (read_all(p) < 0) {
            return -1;
        }
        Py_ssize_t backlog = PyObject_Size(p->write_backlog);
        if (backlog < 0 || (backlog > 0 && fl_tls_do_write(p) < 0)) {
            return -1;
        }
        if (backlog == 0 && p->answered && fl_tls_process_outgoing(p) < 0) {
            return -1;
        }
    }
    return control_reading(p);
}

static int
do_read(fl_tls *p)
{
    if (p->state != FL_TLS_WRAPPED && p->state != FL_TLS_FLUSHING) {
        return 0;
    }
    return read_and_write(p) < 0 ? fl_tls_failed(p, "Fatal error on SSL protocol") : 0;
}

/* ---- received bytes ----------------------------------------------------- */

/* incoming.write() */
static int
feed(fl_tls *p, const char *data, size_t len)
{
    PyObject *result;

    if (p->feed == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "TLSProtocol.__init__ has not run");
        return -1;
    }
    result = PyObject_CallOneArg(p->feed,
                                 fl_tls_open_window(p->st, data, (Py_ssize_t)len));
    fl_tls_close_window(p->st);
    if (result == NULL) {
        return -1;
    }
    Py_DECREF(result);
    frames_follow(&p->frames, data, len);
    return 0;
}

/* What comes of bytes that were fed. */
static int
on_fed(fl_tls *p)
{
    fl_tls_state *ts = p->st->tls;

    switch (p->state) {
    case FL_TLS_DO_HANDSHAKE:
        return fl_tls_call(p, ts->str__do_handshake);
    case FL_TLS_WRAPPED:
        return do_read(p);
    case FL_TLS_FLUSHING:
        return fl_tls_call(p, ts->str__do_flush);
    case FL_TLS_SHUTDOWN:
        return fl_tls_call(p, ts->str__do_shutdown);
    default:
        return 0;
    }
}

int
fl_tls_receive(fl_stream *t, ssize_t *n)
{
    fl_tls *p = (fl_tls *)Py_NewRef(t->protocol);
    scratch memory;
    int status, error;

    *n = -1;
    errno = 0;
    if (scratch_take(&memory, t->st, (PyObject *)t->loop) < 0) {
        Py_DECREF(p);
        return -1;
    }
    *n = fl_stream_receive(t, memory.data, FL_RECV_BUFFER_SIZE);
    error = errno;
    status = *n > 0 ? feed(p, memory.data, (size_t)*n) : 0;
    scratch_give_back(&memory);
    if (*n > 0 && status == 0) {
        status = on_fed(p);
    }
    Py_DECREF(p);
    errno = error;
    return status;
}

/* ---- what Python code calls --------------------------------------------- */

PyDoc_STRVAR(get_buffer_doc,
"get_buffer($self, sizehint, /)\n--\n\n"
"A memoryview of at least sizehint bytes (at most 256 KiB) for a transport other\n"
"than SocketTransport to receive into.");

static PyObject *
tls_get_buffer(fl_tls *p, PyObject *hint)
{
    Py_ssize_t size = PyNumber_AsSsize_t(hint, NULL);

    if (size == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (size <= 0 || size > FL_RECV_BUFFER_SIZE) {
        size = FL_RECV_BUFFER_SIZE;
    }
    if (p->receive_buffer == NULL || PyByteArray_GET_SIZE(p->receive_buffer) < size) {
        PyObject *buffer = PyByteArray_FromStringAndSize(NULL, size);
        if (buffer == NULL) {
            return NULL;
        }
        Py_XSETREF(p->receive_buffer, buffer);
    }
    return PyMemoryView_FromObject(p->receive_buffer);
}

PyDoc_STRVAR(buffer_updated_doc,
"buffer_updated($self, nbytes, /)\n--\n\n"
"So many bytes were received into what get_buffer() gave.");

static PyObject *
tls_buffer_updated(fl_tls *p, PyObject *nbytes)
{
    Py_ssize_t n = PyNumber_AsSsize_t(nbytes, NULL);
    PyObject *buffer;
    int status;

    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (p->receive_buffer == NULL || n < 0) {
        PyErr_SetString(PyExc_RuntimeError, "buffer_updated() without get_buffer()");
        return NULL;
    }
    buffer = Py_NewRef(p->receive_buffer);
    if (n > PyByteArray_GET_SIZE(buffer)) {
        n = PyByteArray_GET_SIZE(buffer);
    }
    status = feed(p, PyByteArray_AS_STRING(buffer), (size_t)n);
    Py_DECREF(buffer);
    return status < 0 || on_fed(p) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(feed_doc,
"_feed($self, data, /)\n--\n\n"
"Bytes that were received before connection_made().");

static PyObject *
tls_feed(fl_tls *p, PyObject *data)
{
    char *bytes;
    Py_ssize_t len;

    if (PyBytes_AsStringAndSize(data, &bytes, &len) < 0) {
        return NULL;
    }
    return feed(p, bytes, (size_t)len) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(do_read_doc,
"_do_read($self, /)\n--\n\nGive the application what ssl can decrypt.");

static PyObject *
tls_do_read(fl_tls *p, PyObject *Py_UNUSED(ignored))
{
    return do_read(p) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(control_ssl_reading_doc,
"_control_ssl_reading($self, /)\n--\n\n"
"Pause or resume the transport underneath as the water marks ask for.");

static PyObject *
tls_control_ssl_reading(fl_tls *p, PyObject *Py_UNUSED(ignored))
{
    if (p->incoming == NULL) {
        Py_RETURN_NONE;
    }
    return control_reading(p) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(get_read_buffer_size_doc,
"_get_read_buffer_size($self, /)\n--\n\nThe number of received bytes that wait.");

static PyObject *
tls_get_read_buffer_size(fl_tls *p, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(p->incoming == NULL ? 0 : fl_tls_pending(p, p->incoming));
}

PyMethodDef fl_tls_read_methods[] = {
    {"get_buffer", (PyCFunction)tls_get_buffer, METH_O, get_buffer_doc},
    {"buffer_updated", (PyCFunction)tls_buffer_updated, METH_O, buffer_updated_doc},
    {"_feed", (PyCFunction)tls_feed, METH_O, feed_doc},
    {"_do_read", (PyCFunction)tls_do_read, METH_NOARGS, do_read_doc},
    {"_control_ssl_reading", (PyCFunction)tls_control_ssl_reading, METH_NOARGS,
     control_ssl_reading_doc},
    {"_get_read_buffer_size", (PyCFunction)tls_get_read_buffer_size, METH_NOARGS,
     get_read_buffer_size_doc},
    {NULL, NULL, 0, NULL},
};
