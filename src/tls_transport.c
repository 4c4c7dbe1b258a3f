/* tls_transport.c - the type TLSTransport: what the application writes to. All but the
 * methods that run for every write is asyncio's _SSLProtocolTransport.
 */
#include "tls.h"

#include <structmember.h>

/* The TLSProtocol, borrowed; NULL if it is something else, such as None after a
 * second close(). */
static fl_tls *
protocol_of(fl_tls_transport *t)
{
    PyObject *protocol = t->ssl_protocol;
    return protocol != NULL && fl_tls_check(t->st, protocol) ? (fl_tls *)protocol : NULL;
}

/* self._ssl_protocol._write_appdata(lines) */
static PyObject *
write_appdata(fl_tls_transport *t, PyObject *lines)
{
    PyObject *protocol = fl_none_or(t->ssl_protocol), *result;

    result = PyObject_CallMethodOneArg(protocol, t->st->tls->str__write_appdata, lines);
    Py_DECREF(protocol);
    Py_XDECREF(result);
    return result == NULL ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(write_doc,
"write($self, data, /)\n--\n\n"
"Write bytes, a bytearray or a memoryview; never blocks.\n\n"
"Raises TypeError for other types. As asyncio.WriteTransport.write.");

static PyObject *
transport_write(fl_tls_transport *t, PyObject *data)
{
    fl_tls *p = protocol_of(t);
    PyObject *lines, *result;
    int truth, status;

    if (!PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
        PyObject *name = PyType_GetName(Py_TYPE(data));
        if (name != NULL) {
            PyErr_Format(PyExc_TypeError, "data: expecting a bytes-like instance, got %U",
                         name);
            Py_DECREF(name);
        }
        return NULL;
    }
    truth = PyObject_IsTrue(data);
    if (truth <= 0) {
        return truth < 0 ? NULL : Py_NewRef(Py_None);
    }
    if (p != NULL) {
        Py_INCREF(p);
        status = fl_tls_write(p, data);
        Py_DECREF(p);
        return status < 0 ? NULL : Py_NewRef(Py_None);
    }
    lines = PyTuple_Pack(1, data);
    result = lines == NULL ? NULL : write_appdata(t, lines);
    Py_XDECREF(lines);
    return result;
}

PyDoc_STRVAR(writelines_doc,
"writelines($self, list_of_data, /)\n--\n\nWrite an iterable of bytes-like objects.");

static PyObject *
transport_writelines(fl_tls_transport *t, PyObject *lines)
{
    return write_appdata(t, lines);
}

/* self._ssl_protocol._transport.is_closing() */
static int
transport_underneath_is_closing(fl_tls_transport *t)
{
    fl_tls *p = protocol_of(t);
    PyObject *result;
    int closing;

    if (p == NULL || p->transport == NULL || p->transport == Py_None) {
        return 0;
    }
    if (Py_IS_TYPE(p->transport, t->st->stream->StreamType)) {
        return ((fl_stream *)p->transport)->closing;
    }
    result = PyObject_CallMethodNoArgs(p->transport, t->st->tls->str_is_closing);
    closing = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    return closing;
}

PyDoc_STRVAR(is_closing_doc,
"is_closing($self, /)\n--\n\n"
"True once close() or abort() was called or the connection broke.");

static PyObject *
transport_is_closing(fl_tls_transport *t, PyObject *Py_UNUSED(ignored))
{
    int closing = t->closed;

    if (!closing && t->st->tls->asks_transport == Py_True) {
        closing = transport_underneath_is_closing(t);
    }
    return closing < 0 ? NULL : PyBool_FromLong(closing);
}

PyDoc_STRVAR(bind_methods_doc,
"_bind_methods($type, /)\n--\n\n"
"Give a subclass the methods that it inherits from here as its own.");

static PyMethodDef transport_methods[];

/* The interpreter's specialised calls want the object's type to be the very type
 * that a method was made for; see Loop._bind_methods. */
static PyObject *
transport_bind_methods(PyObject *type, PyObject *Py_UNUSED(ignored))
{
    for (PyMethodDef *def = transport_methods; def->ml_name != NULL; def++) {
        if (def->ml_flags & METH_CLASS) {
            continue;
        }
        PyObject *method = PyDescr_NewMethod((PyTypeObject *)type, def);
        int status = method == NULL ? -1
                                    : PyObject_SetAttrString(type, def->ml_name, method);
        Py_XDECREF(method);
        if (status < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyMethodDef transport_methods[] = {
    {"write", (PyCFunction)transport_write, METH_O, write_doc},
    {"writelines", (PyCFunction)transport_writelines, METH_O, writelines_doc},
    {"is_closing", (PyCFunction)transport_is_closing, METH_NOARGS, is_closing_doc},
    {"_bind_methods", transport_bind_methods, METH_NOARGS | METH_CLASS, bind_methods_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef transport_members[] = {
    {"_loop", T_OBJECT, offsetof(fl_tls_transport, loop), 0, NULL},
    {"_ssl_protocol", T_OBJECT, offsetof(fl_tls_transport, ssl_protocol), 0, NULL},
    {"_closed", T_BOOL, offsetof(fl_tls_transport, closed), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *
transport_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    fl_state *st = fl_state_of_type(type);
    fl_tls_transport *t =
        st == NULL ? NULL : (fl_tls_transport *)type->tp_alloc(type, 0);

    if (t != NULL) {
        t->st = st;
    }
    return (PyObject *)t;
}

static int
transport_traverse(fl_tls_transport *t, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(t));
    Py_VISIT(t->loop);
    Py_VISIT(t->ssl_protocol);
    return 0;
}

static int
transport_clear(fl_tls_transport *t)
{
    Py_CLEAR(t->loop);
    Py_CLEAR(t->ssl_protocol);
    return 0;
}

static void
transport_dealloc(fl_tls_transport *t)
{
    PyTypeObject *type = Py_TYPE(t);

    PyObject_GC_UnTrack(t);
    transport_clear(t);
    type->tp_free(t);
    Py_DECREF(type);
}

PyDoc_STRVAR(transport_doc,
"The part of asyncio.sslproto._SSLProtocolTransport that runs for every write; a\n"
"base of the class that the loop makes.");

static PyType_Slot transport_slots[] = {
    {Py_tp_doc, (void *)transport_doc},
    {Py_tp_new, transport_new},
    {Py_tp_methods, transport_methods},
    {Py_tp_members, transport_members},
    {Py_tp_traverse, transport_traverse},
    {Py_tp_clear, transport_clear},
    {Py_tp_dealloc, transport_dealloc},
    {0, NULL},
};

static PyType_Spec transport_spec = {
    .name = "fastloop._core.TLSTransport",
    .basicsize = sizeof(fl_tls_transport),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = transport_slots,
};

int
fl_tls_transport_init(PyObject *module, fl_state *st)
{
    PyObject *transports = PyImport_ImportModule("asyncio.transports");
    PyObject *base = transports == NULL
                         ? NULL
                         : PyObject_GetAttrString(transports, "_FlowControlMixin");

    Py_XDECREF(transports);
    if (base == NULL || !PyType_Check(base)) {
        Py_XDECREF(base);
        return -1;
    }
    st->tls->TransportType = fl_add_type(module, &transport_spec, (PyTypeObject *)base,
                                         FL_TRANSPORT_BASE_SIZE);
    Py_DECREF(base);
    return st->tls->TransportType == NULL ? -1 : 0;
}
