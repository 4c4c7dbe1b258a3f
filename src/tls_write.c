/* tls_write.c - the way out: written bytes, records, the transport underneath.
 *
 * A write is encrypted at once and its records go to the transport underneath, whose
 * own rules decide when they are sent. What ssl does not take, for it wants to hear
 * from the peer first, waits in SSLProtocol._write_backlog.
 */
#include "tls.h"

#include "report.h"

enum {
    JOIN_MOST = 64 * 1024, /* bytes of writelines() that become one piece */
    LOG_THRESHOLD = 5      /* asyncio.constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES */
};

/* ---- flow control ------------------------------------------------------- */

/* -1 with an exception. */
static Py_ssize_t
write_buffer_size(fl_tls *p)
{
    Py_ssize_t records = p->outgoing == NULL ? 0 : fl_tls_pending(p, p->outgoing);

    return records < 0 ? -1 : records + p->write_buffer_size;
}

/* app_protocol.<name>(); its errors go to the exception handler. */
static int
call_flow(fl_tls *p, PyObject *name, const char *failure)
{
    PyObject *protocol = fl_none_or(p->app_protocol), *transport;
    PyObject *loop = fl_none_or(p->loop);
    PyObject *result = PyObject_CallMethodNoArgs(protocol, name);
    int status = 0;

    if (result == NULL) {
        PyObject *exc = fl_take_exception();
        transport = PyObject_GetAttr((PyObject *)p, p->st->tls->str__app_transport);
        if (transport == NULL) {
            PyErr_Clear();
        }
        fl_restore_exception(exc);
        status = fl_report_raised(loop, failure, "transport", transport, "protocol", p,
                                  (char *)NULL);
        Py_XDECREF(transport);
    }
    Py_XDECREF(result);
    Py_DECREF(protocol);
    Py_DECREF(loop);
    return status;
}

/* SSLProtocol._control_app_writing: tell the application, which has written `size`
 * bytes that wait, to pause or resume. asyncio pauses it for nothing at all if its high water
 * mark is 0: then drain() may wait for a byte that nobody has to send. */
static int
control_writing(fl_tls *p, Py_ssize_t size)
{
    fl_tls_state *ts = p->st->tls;
    int reaches = size <= 0 ? (int)size : fl_tls_reaches(p, size, FL_TLS_OUT_HIGH), is_down;

    if (reaches < 0) {
        return -1;
    }
    if (reaches && !p->app_writing_paused) {
        p->app_writing_paused = true;
        return call_flow(p, ts->str_pause_writing, "protocol.pause_writing() failed");
    }
    if (!p->app_writing_paused) {
        return 0;
    }
    is_down = fl_tls_is_down_to(p, size, FL_TLS_OUT_LOW);
    if (is_down > 0) {
        p->app_writing_paused = false;
        return call_flow(p, ts->str_resume_writing, "protocol.resume_writing() failed");
    }
    return is_down;
}

/* ---- records to the transport underneath -------------------------------- */

/* self._transport.write(records) */
static int
send_records(fl_tls *p, PyObject *records)
{
    PyObject *transport = fl_none_or(p->transport), *result;

    if (Py_IS_TYPE(transport, p->st->stream->StreamType)) {
        result = fl_stream_write((fl_stream *)transport, records);
    }
    else {
        result = PyObject_CallMethodOneArg(transport, p->st->tls->str_write, records);
    }
    Py_DECREF(transport);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Send what is in the outgoing BIO. */
static int
drain(fl_tls *p)
{
    PyObject *records = PyObject_CallNoArgs(p->drain);
    int status = records == NULL ? -1 : send_records(p, records);

    Py_XDECREF(records);
    return status;
}

int
fl_tls_process_outgoing(fl_tls *p)
{
    if (p->drain == NULL) {
        return 0;
    }
    if (!p->ssl_writing_paused) {
        Py_ssize_t records = fl_tls_pending(p, p->outgoing);
        if (records < 0 || (records > 0 && drain(p) < 0)) {
            return -1;
        }
    }
    return control_writing(p, write_buffer_size(p));
}

/* ---- writing to ssl ----------------------------------------------------- */

/* SSLObject.write(): the number of bytes taken, -1 if ssl wants to hear from the
 * peer first, -2 with an exception. */
static Py_ssize_t
write_to_ssl(fl_tls *p, PyObject *data)
{
    PyObject *write = Py_NewRef(p->write);
    PyObject *result = PyObject_CallOneArg(write, data);
    Py_ssize_t n;

    Py_DECREF(write);
    if (result == NULL) {
        if (!PyErr_ExceptionMatches(p->st->tls->again_errors)) {
            return -2;
        }
        PyErr_Clear();
        return -1;
    }
    n = PyLong_AsSsize_t(result);
    Py_DECREF(result);
    return n < 0 ? -2 : n;
}

/* backlog.append(data). What its owner could still change is copied. */
static int
put_off(fl_tls *p, PyObject *data)
{
    PyObject *piece, *result;
    Py_ssize_t len;

    piece = PyByteArray_Check(data) || PyMemoryView_Check(data) ? PyBytes_FromObject(data)
                                                                : Py_NewRef(data);
    if (piece == NULL) {
        return -1;
    }
    result = PyObject_CallMethodOneArg(p->write_backlog, p->st->tls->str_append, piece);
    len = result == NULL ? -1 : PyObject_Size(piece);
    Py_XDECREF(result);
    Py_DECREF(piece);
    if (len < 0) {
        return -1;
    }
    p->write_buffer_size += len;
    return 0;
}

/* Write the first piece of the backlog: 1, or 0 if ssl does not take it now. */
static int
write_piece(fl_tls *p)
{
    PyObject *data = PySequence_GetItem(p->write_backlog, 0), *rest;
    Py_ssize_t len = data == NULL ? -1 : PyObject_Size(data), n = -2;
    int status = -1;

    if (len >= 0) {
        n = write_to_ssl(p, data);
    }
    if (n == -1) {
        status = 0;
    }
    else if (n >= 0 && n < len) {
        rest = PySequence_GetSlice(data, n, len);
        status = rest == NULL ? -1 : PySequence_SetItem(p->write_backlog, 0, rest);
        Py_XDECREF(rest);
        p->write_buffer_size -= n;
        status = status < 0 ? -1 : n > 0; /* nothing taken: not now, whatever it says */
    }
    else if (n >= 0) {
        rest = PyObject_CallMethodNoArgs(p->write_backlog, p->st->tls->str_popleft);
        p->write_buffer_size -= len;
        status = rest == NULL ? -1 : 1;
        Py_XDECREF(rest);
    }
    Py_XDECREF(data);
    return status;
}

int
fl_tls_do_write(fl_tls *p)
{
    Py_ssize_t waiting;
    int status;

    while ((waiting = PyObject_Size(p->write_backlog)) != 0) {
        status = waiting < 0 ? -1 : write_piece(p);
        if (status < 0) {
            return -1;
        }
        if (status == 0) {
            break;
        }
    }
    return fl_tls_process_outgoing(p);
}

/* ---- writing for the application ---------------------------------------- */

/* 1 if what is written now is lost, 0 if not. */
static int
is_lost_write(fl_tls *p)
{
    PyObject *result;

    if (p->state == FL_TLS_DO_HANDSHAKE || p->state == FL_TLS_WRAPPED) {
        return 0;
    }
    if (p->conn_lost >= LOG_THRESHOLD) {
        result = PyObject_CallMethod(p->st->logger, "warning", "s",
                                     "SSL connection is closed");
        if (result == NULL) {
            return -1;
        }
        Py_DECREF(result);
    }
    p->conn_lost++;
    return 1;
}

/* Nothing was put off, so that a write can go straight to ssl. */
static bool
may_write_now(fl_tls *p)
{
    return p->state == FL_TLS_WRAPPED && p->write_buffer_size == 0 &&
           PyObject_Size(p->write_backlog) == 0;
}

/* A piece past the empty backlog. */
static int
write_now(fl_tls *p, PyObject *data)
{
    Py_ssize_t len = PyObject_Size(data);
    Py_ssize_t n = len < 0 ? -2 : write_to_ssl(p, data);
    int status = n == -2 ? -1 : 0;

    if (n == -1) {
        status = put_off(p, data);
    }
    else if (n >= 0 && n < len) {
        PyObject *rest = PySequence_GetSlice(data, n, len);
        status = rest == NULL ? -1 : put_off(p, rest);
        Py_XDECREF(rest);
        if (status == 0 && n > 0) {
            return fl_tls_do_write(p); /* it took a part: it may take the rest, too */
        }
    }
    if (status < 0 || n <= 0 || p->ssl_writing_paused) {
        return status < 0 ? -1 : fl_tls_process_outgoing(p);
    }
    /* the same without asking the BIO for what is known: something, then nothing */
    return drain(p) < 0 ? -1 : control_writing(p, p->write_buffer_size);
}

static int
write_backlogged(fl_tls *p)
{
    return p->state == FL_TLS_WRAPPED ? fl_tls_do_write(p) : 0;
}

int
fl_tls_write(fl_tls *p, PyObject *data)
{
    int status = is_lost_write(p);

    if (status != 0) {
        return status < 0 ? -1 : 0;
    }
    if (may_write_now(p)) {
        status = write_now(p, data);
    }
    else {
        if (put_off(p, data) < 0) {
            return -1;
        }
        status = write_backlogged(p);
    }
    return status < 0 ? fl_tls_failed(p, "Fatal error on SSL protocol") : 0;
}

/* The items of a sequence as one bytes object, if they are bytes and not many: one
 * record costs less than several. NULL, without an exception, if not. */
static PyObject *
joined(PyObject *items)
{
    Py_ssize_t n = PySequence_Fast_GET_SIZE(items), total = 0;
    PyObject *bytes;
    char *end;

    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(items, i);
        if (!PyBytes_CheckExact(item) || PyBytes_GET_SIZE(item) > JOIN_MOST - total) {
            return NULL;
        }
        total += PyBytes_GET_SIZE(item);
    }
    bytes = total == 0 ? NULL : PyBytes_FromStringAndSize(NULL, total);
    if (bytes == NULL) {
        PyErr_Clear();
        return NULL;
    }
    end = PyBytes_AS_STRING(bytes);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(items, i);
        memcpy(end, PyBytes_AS_STRING(item), (size_t)PyBytes_GET_SIZE(item));
        end += PyBytes_GET_SIZE(item);
    }
    return bytes;
}

/* SSLProtocol._write_appdata */
static int
write_lines(fl_tls *p, PyObject *lines)
{
    PyObject *items, *whole = NULL;
    int status = is_lost_write(p);

    if (status != 0) {
        return status < 0 ? -1 : 0;
    }
    items = PySequence_Fast(lines, "writelines() argument must be iterable");
    if (items == NULL) {
        return -1;
    }
    if (may_write_now(p)) {
        whole = joined(items);
    }
    if (whole != NULL) {
        status = write_now(p, whole);
        Py_DECREF(whole);
    }
    else {
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); i++) {
            PyObject *item = Py_NewRef(PySequence_Fast_GET_ITEM(items, i));
            status = put_off(p, item);
            Py_DECREF(item);
            if (status < 0) {
                Py_DECREF(items);
                return -1;
            }
        }
        status = write_backlogged(p);
    }
    Py_DECREF(items);
    return status < 0 ? fl_tls_failed(p, "Fatal error on SSL protocol") : 0;
}

/* ---- what Python code calls --------------------------------------------- */

PyDoc_STRVAR(write_appdata_doc,
"_write_appdata($self, list_of_data, /)\n--\n\nWrite an iterable of bytes-like objects.");

static PyObject *
tls_write_appdata(fl_tls *p, PyObject *lines)
{
    return write_lines(p, lines) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(do_write_doc,
"_do_write($self, /)\n--\n\nEncrypt and send what was put off.");

static PyObject *
tls_do_write(fl_tls *p, PyObject *Py_UNUSED(ignored))
{
    if (p->sslobj == NULL) {
        Py_RETURN_NONE;
    }
    return fl_tls_do_write(p) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(process_outgoing_doc,
"_process_outgoing($self, /)\n--\n\n"
"Send the records that ssl has made, unless the transport underneath asked to pause.");

static PyObject *
tls_process_outgoing(fl_tls *p, PyObject *Py_UNUSED(ignored))
{
    return fl_tls_process_outgoing(p) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(control_app_writing_doc,
"_control_app_writing($self, /)\n--\n\n"
"Call pause_writing() or resume_writing() as the water marks ask for.");

static PyObject *
tls_control_app_writing(fl_tls *p, PyObject *Py_UNUSED(ignored))
{
    return control_writing(p, write_buffer_size(p)) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(get_write_buffer_size_doc,
"_get_write_buffer_size($self, /)\n--\n\n"
"The number of bytes that were written and wait here.");

static PyObject *
tls_get_write_buffer_size(fl_tls *p, PyObject *Py_UNUSED(ignored))
{
    Py_ssize_t size = write_buffer_size(p);

    return size < 0 ? NULL : PyLong_FromSsize_t(size);
}

PyMethodDef fl_tls_write_methods[] = {
    {"_write_appdata", (PyCFunction)tls_write_appdata, METH_O, write_appdata_doc},
    {"_do_write", (PyCFunction)tls_do_write, METH_NOARGS, do_write_doc},
    {"_process_outgoing", (PyCFunction)tls_process_outgoing, METH_NOARGS,
     process_outgoing_doc},
    {"_control_app_writing", (PyCFunction)tls_control_app_writing, METH_NOARGS,
     control_app_writing_doc},
    {"_get_write_buffer_size", (PyCFunction)tls_get_write_buffer_size, METH_NOARGS,
     get_write_buffer_size_doc},
    {NULL, NULL, 0, NULL},
};
