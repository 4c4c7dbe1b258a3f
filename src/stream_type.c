/* stream_type.c - the type SocketTransport: what Python code sees of a transport,
 * its garbage collection, and what the module holds for streams.
 */
#include "stream.h"

#include <errno.h>
#include <structmember.h>

/* ---- methods ---------------------------------------------------------- */

PyObject *
fl_only_argument(const char *function, const char *name, PyObject *const *args,
                 Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t keywords = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    PyObject *keyword = keywords > 0 ? PyTuple_GET_ITEM(kwnames, 0) : NULL;

    if (nargs + keywords == 1 &&
        (keywords == 0 || PyUnicode_CompareWithASCIIString(keyword, name) == 0)) {
        return args[0];
    }
    if (nargs + keywords == 0) {
        PyErr_Format(PyExc_TypeError, "%s() missing 1 required positional argument: '%s'",
                     function, name);
    }
    else if (keywords > 0) {
        PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", function,
                     keyword);
    }
    else {
        PyErr_Format(PyExc_TypeError, "%s() takes 2 positional arguments but %zd were given",
                     function, nargs + 1);
    }
    return NULL;
}

static PyObject *
none_unless(int status)
{
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(flush_doc,
"_flush($self, /)\n--\n\n"
"Give the kernel now what was written and waits for the end of the loop's turn.");

static PyObject *
stream_flush(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    int status;

    if (t->loop == NULL || t->loop->thread_id != PyThread_get_thread_ident()) {
        Py_RETURN_NONE; /* the turn of a loop that runs is its thread's; else nothing waits */
    }
    Py_INCREF(t);
    status = fl_stream_flush_now(t);
    Py_DECREF(t);
    return none_unless(status);
}

PyDoc_STRVAR(close_doc,
"close($self, /)\n--\n\n"
"Stop reading, send what waits, then close the socket and call\n"
"protocol.connection_lost(None).");

static PyObject *
stream_close(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    return none_unless(fl_stream_close(t));
}

PyDoc_STRVAR(abort_doc,
"abort($self, /)\n--\n\n"
"Close at once: what waits to be sent is dropped. protocol.connection_lost(None)\n"
"is called soon.");

static PyObject *
stream_abort(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    return none_unless(fl_stream_force_close(t, NULL));
}

PyDoc_STRVAR(force_close_doc,
"_force_close($self, /, exc)\n--\n\nabort() with an exception for connection_lost().");

static PyObject *
stream_force_close_method(fl_stream *t, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *kwnames)
{
    PyObject *exc = fl_only_argument("_force_close", "exc", args, nargs, kwnames);
    return exc == NULL ? NULL : none_unless(fl_stream_force_close(t, exc));
}

PyDoc_STRVAR(fatal_error_doc,
"_fatal_error($self, /, exc, message='Fatal error on transport')\n--\n\n"
"Report an exception and close with it. An OSError is only logged, in debug mode.");

static PyObject *
stream_fatal_error(fl_stream *t, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"exc", "message", NULL};
    const char *message = "Fatal error on transport";
    PyObject *exc;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|s:_fatal_error", names, &exc,
                                     &message)) {
        return NULL;
    }
    if (!PyExceptionInstance_Check(exc)) {
        PyErr_Format(PyExc_TypeError, "exc must be an exception, not %.200s", Py_TYPE(exc)->tp_name);
        return NULL;
    }
    PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    return none_unless(fl_stream_fatal(t, message));
}

PyDoc_STRVAR(call_connection_lost_doc,
"_call_connection_lost($self, /, exc)\n--\n\n"
"Call protocol.connection_lost(exc) and close the socket.");

static PyObject *
stream_call_connection_lost(fl_stream *t, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *kwnames)
{
    PyObject *exc = fl_only_argument("_call_connection_lost", "exc", args, nargs, kwnames);
    return exc == NULL ? NULL : none_unless(fl_stream_connection_lost(t, exc));
}

PyDoc_STRVAR(is_closing_doc, "is_closing($self, /)\n--\n\nTrue once close() was called.");

static PyObject *
stream_is_closing(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(t->closing);
}

PyDoc_STRVAR(is_reading_doc,
"is_reading($self, /)\n--\n\nTrue unless closing or paused by pause_reading().");

static PyObject *
stream_is_reading(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(fl_stream_is_reading(t));
}

PyDoc_STRVAR(pause_reading_doc,
"pause_reading($self, /)\n--\n\nReceive nothing until resume_reading().");

static PyObject *
stream_pause_reading(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    return none_unless(fl_stream_pause_reading(t));
}

PyDoc_STRVAR(resume_reading_doc,
"resume_reading($self, /)\n--\n\nReceive again after pause_reading().");

static PyObject *
stream_resume_reading(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    return none_unless(fl_stream_resume_reading(t));
}

PyDoc_STRVAR(set_protocol_doc,
"set_protocol($self, /, protocol)\n--\n\n"
"From now on call this Protocol or BufferedProtocol.");

static PyObject *
stream_set_protocol(fl_stream *t, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *protocol = fl_only_argument("set_protocol", "protocol", args, nargs, kwnames);
    return protocol == NULL ? NULL : none_unless(fl_stream_set_protocol(t, protocol));
}

PyDoc_STRVAR(get_protocol_doc, "get_protocol($self, /)\n--\n\nThe current protocol.");

static PyObject *
stream_get_protocol(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(t->protocol != NULL ? t->protocol : Py_None);
}

PyDoc_STRVAR(lend_fd_doc,
"_lend_fd($self, /)\n--\n\n"
"Let the loop watch the fd for somebody else (loop.sendfile) until _take_fd_back().\n\n"
"Returns a future that gets a ConnectionError if the connection is lost meanwhile.\n"
"Raises it at once if that has happened.");

static PyObject *
stream_lend_fd(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    PyObject *lost;

    if (t->loop == NULL || t->closing) {
        PyErr_SetString(PyExc_ConnectionError, "Connection is closed by peer");
        return NULL;
    }
    lost = fl_future_new(t->loop);
    if (lost == NULL) {
        return NULL;
    }
    Py_XSETREF(t->empty_waiter, Py_NewRef(lost)); /* connection_lost() fails it; no write meanwhile */
    fl_watch_hold(t->loop, &t->watch, false);
    fl_watch_stop(t->loop, &t->watch);
    t->lent = true;
    return lost;
}

int
fl_stream_end_loan(fl_stream *t)
{
    t->lent = false;
    if (fl_fd_remove_handle(t->loop, t->fd, FL_READ) < 0 ||
        fl_fd_remove_handle(t->loop, t->fd, FL_WRITE) < 0) {
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(take_fd_back_doc, "_take_fd_back($self, /)\n--\n\nThe end of _lend_fd().");

static PyObject *
stream_take_fd_back(fl_stream *t, PyObject *Py_UNUSED(ignored))
{
    if (t->loop == NULL || !t->lent) {
        Py_RETURN_NONE;
    }
    if (fl_stream_end_loan(t) < 0) {
        return NULL;
    }
    if (t->loop == NULL) { /* a handle's end ended it */
        Py_RETURN_NONE;
    }
    if (!fl_stream_fd_valid(t)) {
        PyErr_SetFromErrno(PyExc_OSError);
        return NULL;
    }
    if (fl_stream_watch(t, true) < 0) {
        return NULL;
    }
    fl_stream_update_hold(t);
    Py_RETURN_NONE;
}

static PyMethodDef stream_methods[] = {
    {"close", (PyCFunction)stream_close, METH_NOARGS, close_doc},
    {"abort", (PyCFunction)stream_abort, METH_NOARGS, abort_doc},
    {"_force_close", (PyCFunction)(void (*)(void))stream_force_close_method,
     METH_FASTCALL | METH_KEYWORDS, force_close_doc},
    {"_flush", (PyCFunction)stream_flush, METH_NOARGS, flush_doc},
    {"_fatal_error", (PyCFunction)(void (*)(void))stream_fatal_error,
     METH_VARARGS | METH_KEYWORDS, fatal_error_doc},
    {"_call_connection_lost", (PyCFunction)(void (*)(void))stream_call_connection_lost,
     METH_FASTCALL | METH_KEYWORDS, call_connection_lost_doc},
    {"is_closing", (PyCFunction)stream_is_closing, METH_NOARGS, is_closing_doc},
    {"is_reading", (PyCFunction)stream_is_reading, METH_NOARGS, is_reading_doc},
    {"pause_reading", (PyCFunction)stream_pause_reading, METH_NOARGS, pause_reading_doc},
    {"resume_reading", (PyCFunction)stream_resume_reading, METH_NOARGS,
     resume_reading_doc},
    {"set_protocol", (PyCFunction)(void (*)(void))stream_set_protocol,
     METH_FASTCALL | METH_KEYWORDS, set_protocol_doc},
    {"get_protocol", (PyCFunction)stream_get_protocol, METH_NOARGS, get_protocol_doc},
    {"_lend_fd", (PyCFunction)stream_lend_fd, METH_NOARGS, lend_fd_doc},
    {"_take_fd_back", (PyCFunction)stream_take_fd_back, METH_NOARGS, take_fd_back_doc},
    {NULL, NULL, 0, NULL},
};

/* ---- attributes that Python code reads -------------------------------- */

/* The chunks that wait, as asyncio's deque of memoryviews (a copy). */
static PyObject *
stream_get_buffer(fl_stream *t, void *Py_UNUSED(closure))
{
    PyObject *list = PyList_New(0);

    for (size_t i = t->out.head; list != NULL && i < t->out.count; i++) {
        fl_chunk *chunk = &t->out.items[i];
        PyObject *bytes = PyBytes_FromStringAndSize(chunk->data, (Py_ssize_t)chunk->len);
        if (bytes == NULL || PyList_Append(list, bytes) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(bytes);
    }
    return list;
}

static PyObject *
stream_get_high_water(fl_stream *t, void *Py_UNUSED(closure))
{
    return t->high_object != NULL ? Py_NewRef(t->high_object)
                                  : PyLong_FromSsize_t(t->high_water);
}

static PyObject *
stream_get_low_water(fl_stream *t, void *Py_UNUSED(closure))
{
    return t->low_object != NULL ? Py_NewRef(t->low_object)
                                 : PyLong_FromSsize_t(t->low_water);
}

static PyGetSetDef stream_getset[] = {
    {"_buffer", (getter)stream_get_buffer, NULL, "What waits to be sent: a new list.", NULL},
    {"_high_water", (getter)stream_get_high_water, NULL, "High water mark, bytes.", NULL},
    {"_low_water", (getter)stream_get_low_water, NULL, "Low water mark, bytes.", NULL},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef stream_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(fl_stream, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(fl_stream, weakrefs), READONLY, NULL},
    {"_loop", T_OBJECT, offsetof(fl_stream, loop), READONLY, NULL},
    {"_sock", T_OBJECT, offsetof(fl_stream, sock), READONLY, NULL},
    {"_sock_fd", T_INT, offsetof(fl_stream, fd), READONLY, NULL},
    {"_protocol", T_OBJECT, offsetof(fl_stream, protocol), READONLY, NULL},
    {"_protocol_connected", T_BOOL, offsetof(fl_stream, connected), 0, NULL},
    {"_protocol_paused", T_BOOL, offsetof(fl_stream, protocol_paused), READONLY, NULL},
    {"_extra", T_OBJECT, offsetof(fl_stream, extra), READONLY, NULL},
    {"_server", T_OBJECT, offsetof(fl_stream, server), READONLY, NULL},
    {"_empty_waiter", T_OBJECT, offsetof(fl_stream, empty_waiter), READONLY, NULL},
    {"_context", T_OBJECT, offsetof(fl_stream, loop_context), READONLY, NULL},
    {"_conn_lost", T_INT, offsetof(fl_stream, conn_lost), READONLY, NULL},
    {"_closing", T_BOOL, offsetof(fl_stream, closing), READONLY, NULL},
    {"_paused", T_BOOL, offsetof(fl_stream, paused), READONLY, NULL},
    {"_eof", T_BOOL, offsetof(fl_stream, eof), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *
stream_repr(fl_stream *t)
{
    PyObject *name = PyType_GetName(Py_TYPE(t)), *repr;
    const char *state = t->sock == NULL ? " closed" : t->closing ? " closing" : "";
    bool reading = t->started && fl_stream_is_reading(t) && !t->no_more_reads;

    if (name == NULL) {
        return NULL;
    }
    if (t->loop == NULL || t->loop->closed) {
        repr = PyUnicode_FromFormat("<%U%s fd=%d>", name, state, t->fd);
    }
    else {
        repr = PyUnicode_FromFormat("<%U%s fd=%d read=%s write=<%s, bufsize=%zu>>", name,
                                    state, t->fd, reading ? "polling" : "idle",
                                    t->out.bytes > 0 ? "polling" : "idle", t->out.bytes);
    }
    Py_DECREF(name);
    return repr;
}

/* ---- death ------------------------------------------------------------ */

static int
stream_traverse(fl_stream *t, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(t));
    Py_VISIT(t->dict);
    Py_VISIT(t->loop);
    Py_VISIT(t->sock);
    Py_VISIT(t->protocol);
    Py_VISIT(t->extra);
    Py_VISIT(t->server);
    Py_VISIT(t->waiter);
    Py_VISIT(t->context);
    Py_VISIT(t->loop_context);
    Py_VISIT(t->empty_waiter);
    Py_VISIT(t->reader);
    Py_VISIT(t->reader_ref);
    Py_VISIT(t->read_waiter);
    Py_VISIT(t->high_object);
    Py_VISIT(t->low_object);
    return 0;
}

static int
stream_clear(fl_stream *t)
{
    if (t->loop != NULL) {
        fl_watch_hold(t->loop, &t->watch, false);
        fl_watch_stop(t->loop, &t->watch);
    }
    fl_chunks_clear(&t->out);
    t->sock_fd = NULL;
    t->conn_lost += t->loop != NULL; /* every method now takes it for lost */
    t->closing = true;
    Py_CLEAR(t->dict);
    Py_CLEAR(t->loop);
    Py_CLEAR(t->sock);
    Py_CLEAR(t->protocol);
    Py_CLEAR(t->server);
    Py_CLEAR(t->waiter);
    Py_CLEAR(t->context);
    Py_CLEAR(t->loop_context);
    Py_CLEAR(t->empty_waiter);
    Py_CLEAR(t->reader);
    Py_CLEAR(t->reader_ref);
    Py_CLEAR(t->read_waiter);
    Py_CLEAR(t->high_object);
    Py_CLEAR(t->low_object);
    Py_CLEAR(t->extra);
    return 0;
}

/* asyncio's __del__ */
static void
stream_finalize(fl_stream *t)
{
    PyObject *raised;

    if (t->sock == NULL) {
        return;
    }
    raised = fl_take_exception();
    if (PyErr_ResourceWarning((PyObject *)t, 1, "unclosed transport %R", t) < 0) {
        PyErr_WriteUnraisable((PyObject *)t);
    }
    if (t->sock != NULL && t->loop != NULL) {
        fl_stream_release_socket(t);
    }
    fl_restore_exception(raised);
}

static void
stream_dealloc(fl_stream *t)
{
    PyTypeObject *type = Py_TYPE(t);

    if (PyObject_CallFinalizerFromDealloc((PyObject *)t) < 0) {
        return; /* it lives on */
    }
    PyObject_GC_UnTrack(t);
    if (t->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)t);
    }
    stream_clear(t);
    type->tp_free(t);
    Py_DECREF(type);
}

/* ---- the type --------------------------------------------------------- */

PyDoc_STRVAR(stream_doc,
"A connection over a stream socket; made by the loop, not by hand.\n\n"
"An asyncio.Transport that behaves as asyncio's own.");

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, (void *)stream_doc},
    {Py_tp_methods, stream_methods},
    {Py_tp_getset, stream_getset},
    {Py_tp_members, stream_members},
    {Py_tp_repr, stream_repr},
    {Py_tp_traverse, stream_traverse},
    {Py_tp_clear, stream_clear},
    {Py_tp_finalize, stream_finalize},
    {Py_tp_dealloc, stream_dealloc},
    {0, NULL},
};

static PyType_Spec stream_spec = {
    .name = "fastloop._core.SocketTransport",
    .basicsize = sizeof(fl_stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = stream_slots,
};

/* Add methods to a heap type that exists already. */
static int
add_methods(PyTypeObject *type, PyMethodDef *methods)
{
    for (PyMethodDef *def = methods; def->ml_name != NULL; def++) {
        PyObject *descr = PyDescr_NewMethod(type, def);
        if (descr == NULL ||
            PyObject_SetAttrString((PyObject *)type, def->ml_name, descr) < 0) {
            Py_XDECREF(descr);
            return -1;
        }
        Py_DECREF(descr);
    }
    return 0;
}

/* *field = module.name */
static int
import_object(const char *module_name, const char *name, PyObject **field)
{
    PyObject *module = PyImport_ImportModule(module_name);

    *field = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    Py_XDECREF(module);
    return *field == NULL ? -1 : 0;
}

static int
import_type(const char *module_name, const char *name, PyTypeObject **field)
{
    PyObject *object;

    if (import_object(module_name, name, &object) < 0) {
        return -1;
    }
    if (!PyType_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s.%s is not a type", module_name, name);
        Py_DECREF(object);
        return -1;
    }
    *field = (PyTypeObject *)object;
    return 0;
}

static int
import_asyncio(fl_stream_state *ss)
{
    if (import_type("socket", "socket", &ss->SocketType) < 0 ||
        import_type("_socket", "socket", &ss->RawSocketType) < 0 ||
        import_object("asyncio.trsock", "TransportSocket", &ss->TransportSocket) < 0 ||
        import_object("asyncio.protocols", "BufferedProtocol", &ss->BufferedProtocol) < 0 ||
        import_object("asyncio.selector_events", "BaseSelectorEventLoop",
                      &ss->SelectorLoop) < 0 ||
        import_type("asyncio.streams", "StreamReaderProtocol",
                    &ss->StreamReaderProtocol) < 0 ||
        import_type("asyncio.streams", "StreamReader", &ss->StreamReader) < 0 ||
        import_object("asyncio.constants", "ACCEPT_RETRY_DELAY",
                      &ss->accept_retry_delay) < 0) {
        return -1;
    }
    return fl_streams_import(ss);
}

static int
make_type(PyObject *module, fl_stream_state *ss)
{
    PyTypeObject *base;
    PyObject *mode = NULL;
    int status = -1;

    if (import_type("asyncio.transports", "_FlowControlMixin", &base) < 0) {
        return -1;
    }
    ss->StreamType = fl_add_type(module, &stream_spec, base, FL_TRANSPORT_BASE_SIZE);
    if (ss->StreamType == NULL || add_methods(ss->StreamType, fl_stream_write_methods) < 0) {
        goto done;
    }
    if (import_object("asyncio.constants", "_SendfileMode", &mode) < 0) {
        goto done;
    }
    Py_SETREF(mode, PyObject_GetAttrString(mode, "TRY_NATIVE"));
    PyObject *type = (PyObject *)ss->StreamType;
    if (mode != NULL && PyObject_SetAttrString(type, "_sendfile_compatible", mode) == 0 &&
        PyObject_SetAttrString(type, "_start_tls_compatible", Py_True) == 0) {
        status = 0;
    }
done:
    Py_XDECREF(mode);
    Py_DECREF(base);
    return status;
}

int
fl_stream_init(PyObject *module, fl_state *st)
{
    fl_stream_state *ss = PyMem_Calloc(1, sizeof(*ss));

    if (ss == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    st->stream = ss;
#define FL_STREAM_INTERN(name)                                                   \
    ss->str_##name = PyUnicode_InternFromString(#name);                          \
    if (ss->str_##name == NULL) {                                                \
        return -1;                                                               \
    }
    FL_STREAM_NAMES(FL_STREAM_INTERN)
#undef FL_STREAM_INTERN
    if (import_asyncio(ss) < 0 || make_type(module, ss) < 0 ||
        add_methods(st->LoopType, fl_stream_loop_methods) < 0 ||
        add_methods(st->LoopType, fl_server_loop_methods) < 0 ||
        PyModule_AddFunctions(module, fl_streams_module_methods) < 0) {
        return -1;
    }
    return 0;
}

/* The fields of fl_stream_state that are objects. */
enum { STATE_OBJECTS = offsetof(fl_stream_state, protocol_version) / sizeof(PyObject *) };

int
fl_stream_state_traverse(fl_state *st, visitproc visit, void *arg)
{
    PyObject **objects = (PyObject **)st->stream;

    for (int i = 0; objects != NULL && i < STATE_OBJECTS; i++) {
        Py_VISIT(objects[i]);
    }
    return 0;
}

void
fl_stream_state_clear(fl_state *st)
{
    PyObject **objects = (PyObject **)st->stream;

    for (int i = 0; objects != NULL && i < STATE_OBJECTS; i++) {
        Py_CLEAR(objects[i]);
    }
}
