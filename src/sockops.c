/* sockops.c - the awaitable object of a socket operation, and the loop's methods
 * that make one. */
#include "sockops.h"

static inline fl_sockop *
as_op(PyObject *self)
{
    return (fl_sockop *)self;
}

/* The operation is over: let go of everything. Keeps an exception that is set. */
static void
finish(fl_sockop *op)
{
    op->state = FL_SOCKOP_DONE;
    if (op->waiter != NULL || op->wait != NULL || op->handle != NULL) {
        fl_sockwait_end(op);
    }
    if (op->view.obj != NULL) {
        PyBuffer_Release(&op->view);
    }
    Py_CLEAR(op->inner);
    Py_CLEAR(op->args[0]);
    Py_CLEAR(op->args[1]);
    Py_CLEAR(op->sock);
    Py_CLEAR(op->loop);
}

/* --- the first step: asyncio's checks --- */

static int
check_debug(fl_sockop *op)
{
    PyObject *timeout = PyObject_CallMethodNoArgs(op->sock, op->st->sock->str_gettimeout);
    if (timeout == NULL) {
        return -1;
    }
    PyObject *zero = PyLong_FromLong(0);
    int differs = zero == NULL ? -1 : PyObject_RichCompareBool(timeout, zero, Py_NE);
    Py_DECREF(timeout);
    Py_XDECREF(zero);
    if (differs > 0) {
        PyErr_SetString(PyExc_ValueError, "the socket must be non-blocking");
    }
    return differs == 0 ? 0 : -1;
}

bool
fl_socket_class_is_stock(fl_sock_state *ss)
{
    PyTypeObject *type = ss->SocketType;
    PyObject *name, *method, *found;
    Py_ssize_t pos = 0;

    while (PyDict_Next(ss->socket_methods, &pos, &name, &method)) {
        found = PyObject_GetAttr((PyObject *)type, name);
        Py_XDECREF(found);
        if (found != method) {
            PyErr_Clear();
            return false;
        }
    }
    ss->socket_version = type->tp_version_tag;
    return true;
}

static int
check_socket(fl_sockop *op)
{
    fl_sock_state *ss = op->st->sock;
    op->native = fl_socket_is_stock(op->st, op->sock);
    if (!op->native) {
        PyObject *none = PyObject_CallOneArg(ss->check_ssl_socket, op->sock);
        if (none == NULL) {
            return -1;
        }
        Py_DECREF(none);
    }
    return op->loop->debug ? check_debug(op) : 0;
}

/* sock_connect: whether asyncio resolves addresses of this family. */
static int
resolves(fl_sockop *op, int family)
{
    return family == AF_INET ||
           (family == AF_INET6 && PyObject_IsTrue(op->st->sock->has_ipv6) > 0);
}

/* ... and whether that would give this one back as it is: a literal. */
static bool
is_resolved(fl_sockop *op, int family)
{
    fl_addr ignored;
    return op->native && fl_addr_from_python(family, op->args[0], &ignored) &&
           PyTuple_GET_SIZE(op->args[0]) == (family == AF_INET ? 2 : 4);
}

/* loop._ensure_resolved(address, family=, type=, proto=, loop=) to op->inner. */
static int
begin_resolving(fl_sockop *op)
{
    fl_sock_state *ss = op->st->sock;
    PyObject *family = PyObject_GetAttr(op->sock, ss->str_family);
    if (family == NULL) {
        return -1;
    }
    int number = PyLong_Check(family) ? (int)PyLong_AsLong(family) : -1;
    if (!resolves(op, number) || is_resolved(op, number)) {
        Py_DECREF(family);
        return 0;
    }
    PyObject *method = PyObject_GetAttr((PyObject *)op->loop, ss->str__ensure_resolved);
    PyObject *type = method == NULL ? NULL : PyObject_GetAttr(op->sock, ss->str_type);
    PyObject *proto = type == NULL ? NULL : PyObject_GetAttr(op->sock, ss->str_proto);
    PyObject *args = proto == NULL ? NULL : PyTuple_Pack(1, op->args[0]);
    PyObject *kwargs = args == NULL ? NULL
                                    : Py_BuildValue("{sOsOsOsO}", "family", family, "type", type,
                                                    "proto", proto, "loop", op->loop);
    if (kwargs != NULL) {
        op->inner = PyObject_Call(method, args, kwargs);
    }
    Py_XDECREF(method);
    Py_DECREF(family);
    Py_XDECREF(type);
    Py_XDECREF(proto);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    return op->inner == NULL ? -1 : 0;
}

/* What op->inner returned (taken over): the address of the first is ours. */
static int
take_resolved(fl_sockop *op, PyObject *infos)
{
    PyObject *first = PySequence_GetItem(infos, 0);
    PyObject *address = first == NULL ? NULL : PySequence_GetItem(first, 4);
    Py_DECREF(infos);
    Py_XDECREF(first);
    if (address == NULL) {
        return -1;
    }
    Py_SETREF(op->args[0], address);
    Py_CLEAR(op->inner);
    return 0;
}

/* --- steps --- */

/* Try, and suspend if it would block. */
static PySendResult
attempt(fl_sockop *op, PyObject **result)
{
    int rc;
    if (fl_sockop_fileno(op) < 0) {
        return PYGEN_ERROR;
    }
    bool empty = !op->kind->connects && fl_sockwait_known_empty(op);
    do {
        rc = empty ? 0 : op->kind->call(op, result);
    } while (rc == FL_SOCK_AGAIN);
    if (rc != 0) {
        return rc < 0 ? PYGEN_ERROR : PYGEN_RETURN;
    }
    if (fl_sockwait_begin(op) < 0) {
        return PYGEN_ERROR;
    }
    op->waiter->blocking = true;
    *result = Py_NewRef(op->waiter);
    return PYGEN_NEXT;
}

/* The future it was suspended on is done: with what? */
static int
end_wait(fl_sockop *op)
{
    if (op->waiter->state == FL_PENDING) {
        PyErr_SetString(PyExc_RuntimeError, "await wasn't used with future");
        return -1;
    }
    PyObject *none = fl_future_get_result(op->waiter);
    fl_sockwait_end(op);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

/* Go on with what op->inner gave; then with the operation itself. */
static PySendResult
after_inner(fl_sockop *op, PySendResult status, PyObject **result)
{
    if (status != PYGEN_RETURN) {
        return status;
    }
    return take_resolved(op, *result) < 0 ? PYGEN_ERROR : attempt(op, result);
}

static PySendResult
step(fl_sockop *op, PyObject *value, PyObject **result)
{
    if (op->inner != NULL) {
        return after_inner(op, PyIter_Send(op->inner, value, result), result);
    }
    if (op->waiter != NULL && end_wait(op) < 0) {
        return PYGEN_ERROR;
    }
    return attempt(op, result);
}

static PySendResult
first_step(fl_sockop *op, PyObject **result)
{
    if (check_socket(op) < 0) {
        return PYGEN_ERROR;
    }
    if (op->kind->connects && begin_resolving(op) < 0) {
        return PYGEN_ERROR;
    }
    return step(op, Py_None, result);
}

static PySendResult
leave_step(fl_sockop *op, PySendResult status)
{
    if (status == PYGEN_NEXT) {
        op->state = FL_SOCKOP_SUSPENDED;
    }
    else {
        finish(op);
    }
    return status;
}

/* A coroutine's own complaints; 0 if it may be resumed. */
static int
check_resumable(fl_sockop *op)
{
    if (op->state == FL_SOCKOP_RUNNING) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return -1;
    }
    if (op->state == FL_SOCKOP_DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return -1;
    }
    return 0;
}

static PySendResult
sockop_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    fl_sockop *op = as_op(self);
    PySendResult status;

    *result = NULL;
    if (check_resumable(op) < 0) {
        return PYGEN_ERROR;
    }
    bool first = op->state == FL_SOCKOP_CREATED;
    if (first && value != Py_None) {
        PyErr_SetString(PyExc_TypeError,
                        "can't send non-None value to a just-started coroutine");
        return PYGEN_ERROR;
    }
    op->state = FL_SOCKOP_RUNNING;
    status = first ? first_step(op, result) : step(op, value, result);
    return leave_step(op, status);
}

/* PySendResult as a Python function gives it; result is taken over. */
static PyObject *
as_yield(PySendResult status, PyObject *result)
{
    if (status != PYGEN_RETURN) {
        return status == PYGEN_NEXT ? result : NULL;
    }
    /* called, so that a tuple is one argument and not several */
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
    Py_DECREF(result);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

static PyObject *
sockop_iternext(PyObject *self)
{
    PyObject *result;
    PySendResult status = sockop_am_send(self, Py_None, &result);
    return as_yield(status, result);
}

PyDoc_STRVAR(send_doc, "send($self, value, /)\n--\n\nResume it, as coroutine.send().");

static PyObject *
sockop_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = sockop_am_send(self, value, &result);
    return as_yield(status, result);
}

/* Raise what throw() was given: (exception) or (type, value, traceback). */
static void
raise_thrown(PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *type = args[0];
    PyObject *value = nargs > 1 && args[1] != Py_None ? args[1] : NULL;
    PyObject *tb = nargs > 2 && args[2] != Py_None ? args[2] : NULL;

    if (tb != NULL && !PyTraceBack_Check(tb)) {
        PyErr_SetString(PyExc_TypeError, "throw() third argument must be a traceback object");
        return;
    }
    if (PyExceptionInstance_Check(type)) {
        if (value != NULL) {
            PyErr_SetString(PyExc_TypeError, "instance exception may not have a separate value");
            return;
        }
        value = type;
        type = (PyObject *)Py_TYPE(value);
        tb = tb != NULL ? Py_NewRef(tb) : PyException_GetTraceback(value);
    }
    else if (PyExceptionClass_Check(type)) {
        Py_XINCREF(tb);
    }
    else {
        PyErr_Format(PyExc_TypeError,
                     "exceptions must be classes or instances deriving from BaseException, not %s",
                     Py_TYPE(type)->tp_name);
        return;
    }
    PyErr_Restore(Py_NewRef(type), Py_XNewRef(value), tb);
}

/* Hand the exception to the coroutine that resolves the address. */
static PySendResult
throw_to_inner(fl_sockop *op, PyObject *const *args, Py_ssize_t nargs, PyObject **result)
{
    PyObject *method = PyObject_GetAttr(op->inner, op->st->sock->str_throw);
    *result = method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)nargs, NULL);
    Py_XDECREF(method);
    if (*result != NULL) {
        return PYGEN_NEXT;
    }
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        return PYGEN_ERROR;
    }
    PyObject *type, *stop, *tb;
    PyErr_Fetch(&type, &stop, &tb);
    PyErr_NormalizeException(&type, &stop, &tb);
    *result = PyObject_GetAttrString(stop, "value");
    Py_XDECREF(type);
    Py_XDECREF(stop);
    Py_XDECREF(tb);
    return *result == NULL ? PYGEN_ERROR : after_inner(op, PYGEN_RETURN, result);
}

PyDoc_STRVAR(throw_doc, "throw($self, typ, val=None, tb=None, /)\n--\n\n"
                        "Raise an exception in it, as coroutine.throw(): it stops waiting.");

static PyObject *
sockop_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fl_sockop *op = as_op(self);
    PyObject *result = NULL;
    PySendResult status = PYGEN_ERROR;

    if (nargs < 1 || nargs > 3) {
        PyErr_Format(PyExc_TypeError, "throw expected 1 to 3 arguments, got %zd", nargs);
        return NULL;
    }
    if (check_resumable(op) < 0) {
        return NULL;
    }
    op->state = FL_SOCKOP_RUNNING;
    if (op->inner != NULL) {
        status = throw_to_inner(op, args, nargs, &result);
    }
    else {
        raise_thrown(args, nargs);
    }
    leave_step(op, status);
    return as_yield(status, result);
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\nStop waiting, as coroutine.close().");

static PyObject *
sockop_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    fl_sockop *op = as_op(self);
    PyObject *none = NULL;
    if (op->state == FL_SOCKOP_RUNNING) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return NULL;
    }
    if (op->inner != NULL) {
        none = PyObject_CallMethodNoArgs(op->inner, op->st->sock->str_close);
        if (none == NULL) {
            finish(op);
            return NULL;
        }
        Py_DECREF(none);
    }
    finish(op);
    Py_RETURN_NONE;
}

/* --- the type --- */

static PyObject *
sockop_await(PyObject *self)
{
    /* as a coroutine: a second await is an error at once */
    if (as_op(self)->state != FL_SOCKOP_CREATED) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return NULL;
    }
    return Py_NewRef(self);
}

PyDoc_STRVAR(await_doc, "__await__($self, /)\n--\n\nIts iterator: itself.");

static PyObject *
sockop_await_method(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return sockop_await(self);
}

static PyObject *
sockop_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<coroutine object Loop.%s at %p>", as_op(self)->kind->name, self);
}

static PyObject *
get_name(PyObject *self, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(as_op(self)->kind->name);
}

static PyObject *
get_qualname(PyObject *self, void *Py_UNUSED(closure))
{
    return PyUnicode_FromFormat("Loop.%s", as_op(self)->kind->name);
}

static PyObject *
get_running(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(as_op(self)->state == FL_SOCKOP_RUNNING);
}

static PyObject *
get_suspended(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(as_op(self)->state == FL_SOCKOP_SUSPENDED);
}

static PyObject *
get_none(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    Py_RETURN_NONE;
}

static PyMethodDef sockop_methods[] = {
    {"send", sockop_send, METH_O, send_doc},
    {"throw", (PyCFunction)(void (*)(void))sockop_throw, METH_FASTCALL, throw_doc},
    {"close", sockop_close, METH_NOARGS, close_doc},
    {"__await__", sockop_await_method, METH_NOARGS, await_doc},
    {NULL, NULL, 0, NULL},
};

/* No cr_await: asyncio's call graph of 3.14.0 takes whoever has it for something
 * with a frame. */
static PyGetSetDef sockop_getset[] = {
    {"__name__", get_name, NULL, NULL, NULL},
    {"__qualname__", get_qualname, NULL, NULL, NULL},
    {"cr_running", get_running, NULL, "Whether it is being resumed just now.", NULL},
    {"cr_suspended", get_suspended, NULL, "Whether it waits for its socket.", NULL},
    {"cr_frame", get_none, NULL, "None: it is not Python code.", NULL},
    {"cr_code", get_none, NULL, "None: it is not Python code.", NULL},
    {"cr_origin", get_none, NULL, "None: it is not tracked.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static int
sockop_traverse(PyObject *self, visitproc visit, void *arg)
{
    fl_sockop *op = as_op(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(op->loop);
    Py_VISIT(op->sock);
    Py_VISIT(op->args[0]);
    Py_VISIT(op->args[1]);
    Py_VISIT(op->waiter);
    Py_VISIT(op->inner);
    Py_VISIT(op->handle);
    return 0;
}

static int
sockop_clear(PyObject *self)
{
    finish(as_op(self));
    return 0;
}

/* Python's own warning for a coroutine that nobody awaited. */
static void
sockop_finalize(PyObject *self)
{
    fl_sockop *op = as_op(self);
    if (op->state != FL_SOCKOP_CREATED) {
        return;
    }
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine 'Loop.%s' was never awaited",
                         op->kind->name) < 0) {
        PyErr_WriteUnraisable(self);
    }
    PyErr_Restore(type, value, tb);
}

static void
sockop_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0) {
        return; /* resurrected */
    }
    PyObject_GC_UnTrack(self);
    finish(as_op(self));
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(sockop_doc, "The coroutine that sock_recv() and the other sock_*() methods give.");

static PyType_Slot sockop_slots[] = {
    {Py_tp_doc, (void *)sockop_doc},
    {Py_tp_dealloc, sockop_dealloc},
    {Py_tp_traverse, sockop_traverse},
    {Py_tp_clear, sockop_clear},
    {Py_tp_finalize, sockop_finalize},
    {Py_tp_repr, sockop_repr},
    {Py_tp_iternext, sockop_iternext},
    {Py_tp_methods, sockop_methods},
    {Py_tp_getset, sockop_getset},
    {Py_am_await, sockop_await},
    {Py_am_send, sockop_am_send},
    {0, NULL},
};

static PyType_Spec sockop_spec = {
    .name = "fastloop._core.SocketOperation",
    .basicsize = sizeof(fl_sockop),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = sockop_slots,
};

/* --- the loop's methods --- */

/* Arguments by position and keyword to kind's names; borrowed, NULL if absent. */
static int
parse_arguments(const fl_sockop_kind *kind, PyObject *const *args, Py_ssize_t nargs,
                PyObject *kwnames, PyObject *out[3])
{
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    if (nargs > kind->most) {
        PyErr_Format(PyExc_TypeError, "%s() takes %d positional arguments but %zd were given",
                     kind->name, kind->most + 1, nargs + 1);
        return -1;
    }
    for (int i = 0; i < 3; i++) {
        out[i] = i < nargs ? args[i] : NULL;
    }
    for (Py_ssize_t k = 0; k < nkw; k++) {
        PyObject *key = PyTuple_GET_ITEM(kwnames, k);
        int i = 0;
        while (i < kind->most && PyUnicode_CompareWithASCIIString(key, kind->arguments[i]) != 0) {
            i++;
        }
        if (i == kind->most || out[i] != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got %s argument '%U'", kind->name,
                         i == kind->most ? "an unexpected keyword" : "multiple values for", key);
            return -1;
        }
        out[i] = args[nargs + k];
    }
    for (int i = 0; i < kind->required; i++) {
        if (out[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument: '%s'", kind->name,
                         kind->arguments[i]);
            return -1;
        }
    }
    return 0;
}

static PyObject *
sockop_new(PyObject *self, int which_kind, PyObject *const *args, Py_ssize_t nargs,
           PyObject *kwnames)
{
    fl_loop *loop = (fl_loop *)self;
    const fl_sockop_kind *kind = &fl_sock_kinds[which_kind];
    PyTypeObject *type = loop->st->sock->SockOpType;
    PyObject *given[3];

    if (parse_arguments(kind, args, nargs, kwnames, given) < 0) {
        return NULL;
    }
    fl_sockop *op = (fl_sockop *)type->tp_alloc(type, 0);
    if (op == NULL) {
        return NULL;
    }
    op->st = loop->st;
    op->kind = kind;
    op->loop = (fl_loop *)Py_NewRef(loop);
    op->sock = Py_NewRef(given[0]);
    op->args[0] = Py_XNewRef(given[1]);
    op->args[1] = Py_XNewRef(given[2]);
    op->size = op->fd = -1;
    return (PyObject *)op;
}

/* A METH_FASTCALL function has no room for the kind: one function a method. */
#define FL_SOCK_METHOD(name, kind)                                                       \
    static PyObject *name(PyObject *self, PyObject *const *args, Py_ssize_t nargs,       \
                          PyObject *kwnames)                                             \
    {                                                                                    \
        return sockop_new(self, kind, args, nargs, kwnames);                             \
    }
FL_SOCK_METHOD(loop_sock_recv, FL_SOCK_RECV)
FL_SOCK_METHOD(loop_sock_recv_into, FL_SOCK_RECV_INTO)
FL_SOCK_METHOD(loop_sock_recvfrom, FL_SOCK_RECVFROM)
FL_SOCK_METHOD(loop_sock_recvfrom_into, FL_SOCK_RECVFROM_INTO)
FL_SOCK_METHOD(loop_sock_sendall, FL_SOCK_SENDALL)
FL_SOCK_METHOD(loop_sock_sendto, FL_SOCK_SENDTO)
FL_SOCK_METHOD(loop_sock_connect, FL_SOCK_CONNECT)
FL_SOCK_METHOD(loop_sock_accept, FL_SOCK_ACCEPT)
#undef FL_SOCK_METHOD

PyDoc_STRVAR(sock_recv_doc,
             "sock_recv($self, sock, n)\n--\n\n"
             "Receive up to n bytes from the socket. Awaitable; gives bytes, empty at the\n"
             "end. OSError as socket.recv() raises it.");
PyDoc_STRVAR(sock_recv_into_doc,
             "sock_recv_into($self, sock, buf)\n--\n\n"
             "Receive into the writable buffer. Awaitable; gives the number of bytes.");
PyDoc_STRVAR(sock_recvfrom_doc,
             "sock_recvfrom($self, sock, bufsize)\n--\n\n"
             "Receive a datagram of up to bufsize bytes. Awaitable; gives (bytes, address).");
PyDoc_STRVAR(sock_recvfrom_into_doc,
             "sock_recvfrom_into($self, sock, buf, nbytes=0)\n--\n\n"
             "Receive a datagram of up to nbytes (0: as the buffer has) into the writable\n"
             "buffer. Awaitable; gives (number of bytes, address).");
PyDoc_STRVAR(sock_sendall_doc,
             "sock_sendall($self, sock, data)\n--\n\n"
             "Send all of the data. Awaitable; gives None. After an error or a cancellation\n"
             "there is no telling how much was sent.");
PyDoc_STRVAR(sock_sendto_doc,
             "sock_sendto($self, sock, data, address)\n--\n\n"
             "Send a datagram to the address. Awaitable; gives the number of bytes sent.");
PyDoc_STRVAR(sock_connect_doc,
             "sock_connect($self, sock, address)\n--\n\n"
             "Connect the socket; names are resolved without blocking. Awaitable; gives\n"
             "None. OSError if the connection fails.");
PyDoc_STRVAR(sock_accept_doc,
             "sock_accept($self, sock)\n--\n\n"
             "Accept a connection. Awaitable; gives (new non-blocking socket, address).");

static PyMethodDef loop_methods[] = {
    {"sock_recv", (PyCFunction)(void (*)(void))loop_sock_recv, METH_FASTCALL | METH_KEYWORDS,
     sock_recv_doc},
    {"sock_recv_into", (PyCFunction)(void (*)(void))loop_sock_recv_into,
     METH_FASTCALL | METH_KEYWORDS, sock_recv_into_doc},
    {"sock_recvfrom", (PyCFunction)(void (*)(void))loop_sock_recvfrom,
     METH_FASTCALL | METH_KEYWORDS, sock_recvfrom_doc},
    {"sock_recvfrom_into", (PyCFunction)(void (*)(void))loop_sock_recvfrom_into,
     METH_FASTCALL | METH_KEYWORDS, sock_recvfrom_into_doc},
    {"sock_sendall", (PyCFunction)(void (*)(void))loop_sock_sendall,
     METH_FASTCALL | METH_KEYWORDS, sock_sendall_doc},
    {"sock_sendto", (PyCFunction)(void (*)(void))loop_sock_sendto,
     METH_FASTCALL | METH_KEYWORDS, sock_sendto_doc},
    {"sock_connect", (PyCFunction)(void (*)(void))loop_sock_connect,
     METH_FASTCALL | METH_KEYWORDS, sock_connect_doc},
    {"sock_accept", (PyCFunction)(void (*)(void))loop_sock_accept,
     METH_FASTCALL | METH_KEYWORDS, sock_accept_doc},
    {NULL, NULL, 0, NULL},
};

/* --- the module --- */

int
fl_add_methods(PyTypeObject *type, PyMethodDef *methods)
{
    for (; methods->ml_name != NULL; methods++) {
        PyObject *descriptor = PyDescr_NewMethod(type, methods);
        int rc = descriptor == NULL ? -1
                                    : PyObject_SetAttrString((PyObject *)type, methods->ml_name,
                                                             descriptor);
        Py_XDECREF(descriptor);
        if (rc < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
import_from(const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *object = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    Py_XDECREF(module);
    return object;
}

/* _socket.socket's, which socket.socket inherits; and its own accept(). */
static int
import_methods(fl_sock_state *ss, PyObject *raw)
{
    static const char *const names[] = {"accept", "connect", "recv", "recv_into", "recvfrom",
                                        "recvfrom_into", "send", "sendmsg", "sendto"};

    ss->socket_methods = PyDict_New();
    for (size_t i = 0; ss->socket_methods != NULL && i < sizeof(names) / sizeof(*names); i++) {
        PyObject *type = i == 0 ? (PyObject *)ss->SocketType : raw;
        PyObject *method = PyObject_GetAttrString(type, names[i]);
        if (method == NULL || PyDict_SetItemString(ss->socket_methods, names[i], method) < 0) {
            Py_CLEAR(ss->socket_methods);
        }
        Py_XDECREF(method);
    }
    return ss->socket_methods == NULL ? -1 : 0;
}

static int
import_all(fl_sock_state *ss)
{
    PyObject *raw = import_from("_socket", "socket");
    ss->SocketType = raw == NULL ? NULL : (PyTypeObject *)import_from("socket", "socket");
    if (ss->SocketType == NULL || import_methods(ss, raw) < 0) {
        Py_XDECREF(raw);
        return -1;
    }
    ss->raw_family = PyObject_GetAttrString(raw, "family");
    ss->raw_type = ss->raw_family == NULL ? NULL : PyObject_GetAttrString(raw, "type");
    ss->raw_proto = ss->raw_type == NULL ? NULL : PyObject_GetAttrString(raw, "proto");
    Py_DECREF(raw);
    if (ss->raw_proto == NULL ||
        (ss->check_ssl_socket = import_from("asyncio.base_events", "_check_ssl_socket")) == NULL ||
        (ss->has_ipv6 = import_from("asyncio.base_events", "_HAS_IPv6")) == NULL) {
        return -1;
    }
#define FL_SOCK_INTERN(name)                                                             \
    if ((ss->str_##name = PyUnicode_InternFromString(#name)) == NULL) {                  \
        return -1;                                                                       \
    }
    FL_SOCK_NAMES(FL_SOCK_INTERN)
#undef FL_SOCK_INTERN
    return 0;
}

/* collections.abc.Coroutine.register(SocketOperation): asyncio.iscoroutine() */
static int
register_as_coroutine(fl_sock_state *ss)
{
    PyObject *coroutine = import_from("collections.abc", "Coroutine");
    PyObject *type = coroutine == NULL ? NULL
                                       : PyObject_CallMethod(coroutine, "register", "O",
                                                             ss->SockOpType);
    Py_XDECREF(coroutine);
    Py_XDECREF(type);
    return type == NULL ? -1 : 0;
}

int
fl_sock_init(PyObject *module, fl_state *st)
{
    fl_sock_state *ss = PyMem_Calloc(1, sizeof(*ss));
    if (ss == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    st->sock = ss;
    if (import_all(ss) < 0 || fl_sockwait_init(module, st) < 0) {
        return -1;
    }
    ss->SockOpType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &sockop_spec, NULL);
    if (ss->SockOpType == NULL || register_as_coroutine(ss) < 0) {
        return -1;
    }
    if (fl_udp_init(module, st) < 0 || fl_pipe_init(st) < 0) {
        return -1;
    }
    return fl_add_methods(st->LoopType, loop_methods);
}

int
fl_sock_state_traverse(fl_state *st, visitproc visit, void *arg)
{
    fl_sock_state *ss = st->sock;
    if (ss == NULL) {
        return 0;
    }
    Py_VISIT(ss->SockOpType);
    Py_VISIT(ss->SockWaitType);
    Py_VISIT(ss->SocketType);
    Py_VISIT(ss->check_ssl_socket);
    Py_VISIT(ss->raw_family);
    Py_VISIT(ss->raw_type);
    Py_VISIT(ss->raw_proto);
    Py_VISIT(ss->socket_methods);
    return 0;
}

void
fl_sock_state_clear(fl_state *st)
{
    fl_sock_state *ss = st->sock;
    if (ss == NULL) {
        return;
    }
    Py_CLEAR(ss->SockOpType);
    Py_CLEAR(ss->SockWaitType);
    Py_CLEAR(ss->SocketType);
    Py_CLEAR(ss->check_ssl_socket);
    Py_CLEAR(ss->has_ipv6);
    Py_CLEAR(ss->raw_family);
    Py_CLEAR(ss->raw_type);
    Py_CLEAR(ss->raw_proto);
    Py_CLEAR(ss->socket_methods);
#define FL_SOCK_CLEAR(name) Py_CLEAR(ss->str_##name);
    FL_SOCK_NAMES(FL_SOCK_CLEAR)
#undef FL_SOCK_CLEAR
}

void
fl_sock_state_free(fl_state *st)
{
    fl_sock_state_clear(st);
    PyMem_Free(st->sock);
    st->sock = NULL;
}
