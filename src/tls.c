/* tls.c - the type TLSProtocol: the attributes it shares with asyncio's SSLProtocol,
 * its garbage collection, and what the module holds for TLS.
 */
#include "tls.h"

#include <limits.h>
#include <structmember.h>

/* ---- the window --------------------------------------------------------- */

/* An object whose buffer is what fl_tls_open_window() was given last: the methods
 * of the ssl module take objects, and this one need not be made for every call.
 * They take its Py_buffer before they let go of the GIL. */
typedef struct {
    PyObject_HEAD
    void *data;
    Py_ssize_t size;
} window_object;

static int
window_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    window_object *window = (window_object *)self;
    return PyBuffer_FillInfo(view, self, window->data, window->size, 0, flags);
}

static void
window_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot window_slots[] = {
    {Py_bf_getbuffer, window_getbuffer},
    {Py_tp_dealloc, window_dealloc},
    {0, NULL},
};

static PyType_Spec window_spec = {
    .name = "fastloop._core.TLSWindow",
    .basicsize = sizeof(window_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = window_slots,
};

PyObject *
fl_tls_open_window(fl_state *st, const void *data, Py_ssize_t size)
{
    window_object *window = (window_object *)st->tls->window;
    window->data = (void *)data;
    window->size = size;
    return (PyObject *)window;
}

void
fl_tls_close_window(fl_state *st)
{
    (void)fl_tls_open_window(st, NULL, 0);
}

/* ---- small services of the other files ---------------------------------- */

Py_ssize_t
fl_tls_pending(fl_tls *p, PyObject *bio)
{
    fl_tls_state *ts = p->st->tls;
    PyObject *number;
    Py_ssize_t pending;

    if (ts->pending != NULL && Py_IS_TYPE(bio, ts->MemoryBIO)) {
        PyGetSetDef *def = ((PyGetSetDescrObject *)ts->pending)->d_getset;
        number = def->get(bio, def->closure);
    }
    else {
        number = PyObject_GetAttrString(bio, "pending");
    }
    pending = number == NULL ? -1 : PyLong_AsSsize_t(number);
    Py_XDECREF(number);
    return pending < 0 ? -1 : pending;
}

/* Compare a number of bytes with a mark that is not an int. */
static int
compare_mark(fl_tls *p, Py_ssize_t size, fl_tls_mark mark, int op)
{
    PyObject *number = PyLong_FromSsize_t(size);
    int result = -1;

    if (number != NULL) {
        PyObject *limit = fl_none_or(p->marks[mark]);
        result = PyObject_RichCompareBool(number, limit, op);
        Py_DECREF(limit);
        Py_DECREF(number);
    }
    return result;
}

int
fl_tls_reaches(fl_tls *p, Py_ssize_t size, fl_tls_mark mark)
{
    return p->mark_bytes[mark] >= 0 ? size >= p->mark_bytes[mark]
                                    : compare_mark(p, size, mark, Py_GE);
}

int
fl_tls_is_down_to(fl_tls *p, Py_ssize_t size, fl_tls_mark mark)
{
    return p->mark_bytes[mark] >= 0 ? size <= p->mark_bytes[mark]
                                    : compare_mark(p, size, mark, Py_LE);
}

int
fl_tls_failed(fl_tls *p, const char *message)
{
    PyObject *exc, *handled, *text, *result;

    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    exc = fl_take_exception();
    handled = PyErr_GetHandledException();
    PyErr_SetHandledException(exc); /* a debug message shows its traceback */
    text = PyUnicode_FromString(message);
    result = text == NULL ? NULL
                          : PyObject_CallMethodObjArgs((PyObject *)p,
                                                       p->st->tls->str__fatal_error, exc,
                                                       text, NULL);
    PyErr_SetHandledException(handled);
    Py_XDECREF(handled);
    Py_XDECREF(text);
    Py_XDECREF(result);
    Py_DECREF(exc);
    return result == NULL ? -1 : 0;
}

int
fl_tls_call(fl_tls *p, PyObject *name)
{
    PyObject *result = PyObject_CallMethodNoArgs((PyObject *)p, name);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* ---- attributes --------------------------------------------------------- */

static int
no_delete(PyObject *value)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete attribute");
        return -1;
    }
    return 0;
}

static PyObject *
tls_get_state(fl_tls *p, void *Py_UNUSED(closure))
{
    return Py_NewRef(p->st->tls->states[p->state]);
}

static int
tls_set_state(fl_tls *p, PyObject *value, void *Py_UNUSED(closure))
{
    for (int i = 0; i < FL_TLS_STATES; i++) {
        if (value == p->st->tls->states[i]) {
            if (i != FL_TLS_UNWRAPPED && (p->feed == NULL || p->drain == NULL ||
                                          p->sslobj == NULL || p->write_backlog == NULL)) {
                break;
            }
            p->state = (fl_tls_step)i;
            p->must_ask |= i == FL_TLS_WRAPPED; /* what came behind the handshake */
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "not an SSLProtocolState for now: %R", value);
    return -1;
}

static PyObject *
tls_get_app_protocol(fl_tls *p, void *Py_UNUSED(closure))
{
    return fl_none_or(p->app_protocol);
}

static int
tls_set_app_protocol(fl_tls *p, PyObject *value, void *Py_UNUSED(closure))
{
    fl_stream_state *ss = p->st->stream;
    int buffered;

    if (no_delete(value) < 0) {
        return -1;
    }
    buffered = PyObject_IsInstance(value, ss->BufferedProtocol);
    if (buffered < 0) {
        return -1;
    }
    p->buffered = buffered;
    p->stock = Py_IS_TYPE(value, ss->StreamReaderProtocol);
    Py_XSETREF(p->app_protocol, Py_NewRef(value));
    return 0;
}

/* The two MemoryBIOs, each with the method we call: `closure` is not NULL for
 * _incoming. */
static PyObject *
tls_get_bio(fl_tls *p, void *closure)
{
    return fl_none_or(closure != NULL ? p->incoming : p->outgoing);
}

static int
tls_set_bio(fl_tls *p, PyObject *value, void *closure)
{
    fl_tls_state *ts = p->st->tls;
    PyObject *method;

    if (no_delete(value) < 0) {
        return -1;
    }
    method = PyObject_GetAttr(value, closure != NULL ? ts->str_write : ts->str_read);
    if (method == NULL) {
        return -1;
    }
    Py_XSETREF(*(closure != NULL ? &p->feed : &p->drain), method);
    Py_XSETREF(*(closure != NULL ? &p->incoming : &p->outgoing), Py_NewRef(value));
    return 0;
}

static PyObject *
tls_get_sslobj(fl_tls *p, void *Py_UNUSED(closure))
{
    return fl_none_or(p->sslobj);
}

/* An exact ssl.SSLObject only passes read() and write() on to its _ssl._SSLSocket. */
static int
tls_set_sslobj(fl_tls *p, PyObject *value, void *Py_UNUSED(closure))
{
    fl_tls_state *ts = p->st->tls;
    PyObject *inner, *read, *write;
    bool plain;

    if (no_delete(value) < 0) {
        return -1;
    }
    plain = ts->SSLObject != NULL && Py_IS_TYPE(value, (PyTypeObject *)ts->SSLObject);
    inner = plain ? PyObject_GetAttr(value, ts->str__sslobj) : Py_NewRef(value);
    if (inner == NULL) {
        return -1;
    }
    read = PyObject_GetAttr(inner, ts->str_read);
    write = read == NULL ? NULL : PyObject_GetAttr(inner, ts->str_write);
    Py_DECREF(inner);
    if (read == NULL || write == NULL) {
        Py_XDECREF(read);
        Py_XDECREF(write);
        return -1;
    }
    p->native = plain && PyCFunction_Check(read);
    Py_XSETREF(p->read, read);
    Py_XSETREF(p->write, write);
    Py_XSETREF(p->sslobj, Py_NewRef(value));
    return 0;
}

static PyObject *
tls_get_mark(fl_tls *p, void *closure)
{
    return fl_none_or(p->marks[(intptr_t)closure]);
}

static int
tls_set_mark(fl_tls *p, PyObject *value, void *closure)
{
    Py_ssize_t bytes = -1;

    if (no_delete(value) < 0) {
        return -1;
    }
    if (PyLong_Check(value)) {
        bytes = PyLong_AsSsize_t(value);
        if (bytes == -1 && PyErr_Occurred()) {
            PyErr_Clear(); /* larger than any buffer */
            bytes = PY_SSIZE_T_MAX;
        }
    }
    p->mark_bytes[(intptr_t)closure] = bytes;
    Py_XSETREF(p->marks[(intptr_t)closure], Py_NewRef(value));
    return 0;
}

#define MARK(name, which)                                                            \
    {name, (getter)tls_get_mark, (setter)tls_set_mark, "Water mark, bytes.",         \
     (void *)(intptr_t)(which)}

static PyGetSetDef tls_getset[] = {
    {"_state", (getter)tls_get_state, (setter)tls_set_state, "The SSLProtocolState.", NULL},
    {"_app_protocol", (getter)tls_get_app_protocol, (setter)tls_set_app_protocol,
     "The application's protocol.", NULL},
    {"_incoming", (getter)tls_get_bio, (setter)tls_set_bio, "MemoryBIO from the peer.",
     "incoming"},
    {"_outgoing", (getter)tls_get_bio, (setter)tls_set_bio, "MemoryBIO to the peer.", NULL},
    {"_sslobj", (getter)tls_get_sslobj, (setter)tls_set_sslobj, "The ssl.SSLObject.", NULL},
    MARK("_outgoing_high_water", FL_TLS_OUT_HIGH),
    MARK("_outgoing_low_water", FL_TLS_OUT_LOW),
    MARK("_incoming_high_water", FL_TLS_IN_HIGH),
    MARK("_incoming_low_water", FL_TLS_IN_LOW),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef tls_members[] = {
    {"_loop", T_OBJECT, offsetof(fl_tls, loop), 0, NULL},
    {"_transport", T_OBJECT, offsetof(fl_tls, transport), 0, NULL},
    {"_write_backlog", T_OBJECT, offsetof(fl_tls, write_backlog), 0, NULL},
    {"_write_buffer_size", T_PYSSIZET, offsetof(fl_tls, write_buffer_size), 0, NULL},
    {"_conn_lost", T_INT, offsetof(fl_tls, conn_lost), 0, NULL},
    {"_ssl_writing_paused", T_BOOL, offsetof(fl_tls, ssl_writing_paused), 0, NULL},
    {"_ssl_reading_paused", T_BOOL, offsetof(fl_tls, ssl_reading_paused), 0, NULL},
    {"_app_reading_paused", T_BOOL, offsetof(fl_tls, app_reading_paused), 0, NULL},
    {"_app_writing_paused", T_BOOL, offsetof(fl_tls, app_writing_paused), 0, NULL},
    {"_app_protocol_is_buffer", T_BOOL, offsetof(fl_tls, buffered), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(set_app_protocol_doc,
"_set_app_protocol($self, app_protocol, /)\n--\n\n"
"From now on give what is received to this Protocol or BufferedProtocol.");

static PyObject *
tls_set_app_protocol_method(fl_tls *p, PyObject *protocol)
{
    return tls_set_app_protocol(p, protocol, NULL) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef tls_methods[] = {
    {"_set_app_protocol", (PyCFunction)tls_set_app_protocol_method, METH_O,
     set_app_protocol_doc},
    {NULL, NULL, 0, NULL},
};

/* ---- life --------------------------------------------------------------- */

static PyObject *
tls_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    fl_state *st = fl_state_of_type(type);
    fl_tls *p = st == NULL ? NULL : (fl_tls *)type->tp_alloc(type, 0);

    if (p != NULL) {
        p->st = st;
    }
    return (PyObject *)p;
}

static int
tls_traverse(fl_tls *p, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(p));
    Py_VISIT(p->loop);
    Py_VISIT(p->app_protocol);
    Py_VISIT(p->transport);
    Py_VISIT(p->incoming);
    Py_VISIT(p->outgoing);
    Py_VISIT(p->sslobj);
    Py_VISIT(p->feed);
    Py_VISIT(p->drain);
    Py_VISIT(p->read);
    Py_VISIT(p->write);
    Py_VISIT(p->write_backlog);
    Py_VISIT(p->receive_buffer);
    for (int i = 0; i < FL_TLS_MARKS; i++) {
        Py_VISIT(p->marks[i]);
    }
    return 0;
}

static int
tls_clear(fl_tls *p)
{
    p->state = FL_TLS_UNWRAPPED; /* every method now takes it for closed */
    Py_CLEAR(p->loop);
    Py_CLEAR(p->app_protocol);
    Py_CLEAR(p->transport);
    Py_CLEAR(p->incoming);
    Py_CLEAR(p->outgoing);
    Py_CLEAR(p->sslobj);
    Py_CLEAR(p->feed);
    Py_CLEAR(p->drain);
    Py_CLEAR(p->read);
    Py_CLEAR(p->write);
    Py_CLEAR(p->write_backlog);
    Py_CLEAR(p->receive_buffer);
    for (int i = 0; i < FL_TLS_MARKS; i++) {
        Py_CLEAR(p->marks[i]);
    }
    return 0;
}

static void
tls_dealloc(fl_tls *p)
{
    PyTypeObject *type = Py_TYPE(p);

    PyObject_GC_UnTrack(p);
    tls_clear(p);
    type->tp_free(p);
    Py_DECREF(type);
}

PyDoc_STRVAR(tls_doc,
"The part of asyncio.sslproto.SSLProtocol that runs for every record; a base of\n"
"the class that the loop makes.");

static PyType_Slot tls_slots[] = {
    {Py_tp_doc, (void *)tls_doc},
    {Py_tp_new, tls_new},
    {Py_tp_methods, tls_methods},
    {Py_tp_getset, tls_getset},
    {Py_tp_members, tls_members},
    {Py_tp_traverse, tls_traverse},
    {Py_tp_clear, tls_clear},
    {Py_tp_dealloc, tls_dealloc},
    {0, NULL},
};

static PyType_Spec tls_spec = {
    .name = "fastloop._core.TLSProtocol",
    .basicsize = sizeof(fl_tls),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = tls_slots,
};

/* ---- registration ------------------------------------------------------- */

static int
import_states(fl_tls_state *ts, PyObject *sslproto)
{
    static const char *names[] = {"UNWRAPPED", "DO_HANDSHAKE", "WRAPPED", "FLUSHING",
                                  "SHUTDOWN"};
    PyObject *states = PyObject_GetAttrString(sslproto, "SSLProtocolState");
    int status = states == NULL ? -1 : 0;

    for (int i = 0; i < FL_TLS_STATES && status == 0; i++) {
        ts->states[i] = PyObject_GetAttrString(states, names[i]);
        status = ts->states[i] == NULL ? -1 : 0;
    }
    Py_XDECREF(states);
    return status;
}

/* What we need of the ssl module, which an interpreter may be without. */
static int
import_ssl(fl_tls_state *ts, PyObject *sslproto)
{
    PyObject *ssl = PyObject_GetAttrString(sslproto, "ssl");
    int status = -1;

    if (ssl == NULL || ssl == Py_None) {
        status = ssl == NULL ? -1 : 0;
        goto done;
    }
    ts->again_errors = PyObject_GetAttrString(sslproto, "SSLAgainErrors");
    ts->SSLObject = PyObject_GetAttrString(ssl, "SSLObject");
    ts->MemoryBIO = (PyTypeObject *)PyObject_GetAttrString(ssl, "MemoryBIO");
    if (ts->again_errors == NULL || ts->SSLObject == NULL || ts->MemoryBIO == NULL) {
        goto done;
    }
    ts->pending = PyObject_GetAttrString((PyObject *)ts->MemoryBIO, "pending");
    if (ts->pending == NULL) {
        goto done;
    }
    if (!Py_IS_TYPE(ts->pending, &PyGetSetDescr_Type)) {
        Py_CLEAR(ts->pending); /* then it is asked for by name */
    }
    status = 0;
done:
    Py_XDECREF(ssl);
    return status;
}

static int
import_sslproto(fl_tls_state *ts)
{
    PyObject *sslproto = PyImport_ImportModule("asyncio.sslproto");
    PyObject *protocol;
    int status = -1;

    if (sslproto == NULL) {
        return -1;
    }
    protocol = PyObject_GetAttrString(sslproto, "SSLProtocol");
    if (protocol != NULL) {
        ts->asks_transport =
            PyBool_FromLong(PyObject_HasAttrString(protocol, "_is_transport_closing"));
        Py_DECREF(protocol);
        status = import_states(ts, sslproto) < 0 ? -1 : import_ssl(ts, sslproto);
    }
    Py_DECREF(sslproto);
    return status;
}

static int
make_window(PyObject *module, fl_tls_state *ts)
{
    ts->WindowType = fl_add_type(module, &window_spec, NULL, 0);
    if (ts->WindowType == NULL) {
        return -1;
    }
    ts->window = ts->WindowType->tp_alloc(ts->WindowType, 0);
    if (ts->window == NULL) {
        return -1;
    }
    ts->read_args = Py_BuildValue("(iO)", INT_MAX, ts->window);
    return ts->read_args == NULL ? -1 : 0;
}

static int
make_type(PyObject *module, fl_state *st)
{
    fl_tls_state *ts = st->tls;
    PyMethodDef *methods[] = {fl_tls_read_methods, fl_tls_write_methods};
    PyObject *type;

    ts->ProtocolType =
        fl_add_type(module, &tls_spec, (PyTypeObject *)st->stream->BufferedProtocol,
                    sizeof(PyObject));
    type = (PyObject *)ts->ProtocolType;
    for (int i = 0; i < 2 && type != NULL; i++) {
        for (PyMethodDef *def = methods[i]; def->ml_name != NULL; def++) {
            PyObject *descr = PyDescr_NewMethod(ts->ProtocolType, def);
            if (descr == NULL || PyObject_SetAttrString(type, def->ml_name, descr) < 0) {
                Py_XDECREF(descr);
                return -1;
            }
            Py_DECREF(descr);
        }
    }
    return type == NULL ? -1 : 0;
}

int
fl_tls_init(PyObject *module, fl_state *st)
{
    fl_tls_state *ts = PyMem_Calloc(1, sizeof(*ts));

    if (ts == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    st->tls = ts;
#define FL_TLS_INTERN(name)                                                          \
    ts->str_##name = PyUnicode_InternFromString(#name);                              \
    if (ts->str_##name == NULL) {                                                    \
        return -1;                                                                   \
    }
    FL_TLS_NAMES(FL_TLS_INTERN)
#undef FL_TLS_INTERN
    if (import_sslproto(ts) < 0 || make_window(module, ts) < 0 ||
        make_type(module, st) < 0) {
        return -1;
    }
    return fl_tls_transport_init(module, st);
}

/* Every field of fl_tls_state is an object. */
enum { STATE_OBJECTS = sizeof(fl_tls_state) / sizeof(PyObject *) };

int
fl_tls_state_traverse(fl_state *st, visitproc visit, void *arg)
{
    PyObject **objects = (PyObject **)st->tls;

    for (int i = 0; objects != NULL && i < STATE_OBJECTS; i++) {
        Py_VISIT(objects[i]);
    }
    return 0;
}

void
fl_tls_state_clear(fl_state *st)
{
    PyObject **objects = (PyObject **)st->tls;

    for (int i = 0; objects != NULL && i < STATE_OBJECTS; i++) {
        Py_CLEAR(objects[i]);
    }
}
