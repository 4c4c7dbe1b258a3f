/* pipe.c - reading from a pipe, for the transports in fastloop/_pipes.py. */
#include "sockops.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

PyDoc_STRVAR(read_pipe_doc,
             "_read_pipe($self, fd, size, /)\n--\n\n"
             "os.read() of a non-blocking fd, by way of the loop's receive buffer: a result\n"
             "that is smaller than `size` costs no large allocation.");

static PyObject *
loop_read_pipe(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "_read_pipe() takes an fd and a size");
        return NULL;
    }
    int fd = PyObject_AsFileDescriptor(args[0]);
    size_t size = fd < 0 ? 0 : PyLong_AsSize_t(args[1]);
    if (fd < 0 || (size == (size_t)-1 && PyErr_Occurred())) {
        return NULL;
    }
    char *buffer = fl_loop_recv_buffer((fl_loop *)self);
    if (buffer == NULL) {
        return NULL;
    }
    ssize_t n = read(fd, buffer, size < FL_RECV_BUFFER_SIZE ? size : FL_RECV_BUFFER_SIZE);
    return n < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyBytes_FromStringAndSize(buffer, n);
}

/* Append what read() gives to a bytearray: straight, where it is much. 1 with *n (and
 * errno) what read() gave; 0 if the bytearray cannot grow; -1 with an exception. */
static int
read_behind(fl_loop *loop, int fd, PyObject *array, size_t size, ssize_t *n)
{
    enum { LARGE = 32 * 1024 };
    Py_ssize_t old = PyByteArray_GET_SIZE(array);
    int waiting = 0, error;
    char *data = NULL;

    if (ioctl(fd, FIONREAD, &waiting) < 0 || waiting < LARGE) {
        data = fl_loop_recv_buffer(loop);
        if (data == NULL) {
            return -1;
        }
        waiting = FL_RECV_BUFFER_SIZE;
    }
    size = size < (size_t)waiting ? size : (size_t)waiting;
    if (data == NULL && PyByteArray_Resize(array, old + (Py_ssize_t)size) < 0) {
        PyErr_Clear(); /* somebody has a view of it */
        return 0;
    }
    *n = read(fd, data == NULL ? PyByteArray_AS_STRING(array) + old : data, size);
    error = errno;
    if ((data == NULL || *n > 0) &&
        PyByteArray_Resize(array, old + (*n > 0 ? *n : 0)) < 0) {
        return -1; /* what was read is lost, as when asyncio's feed_data() fails */
    }
    if (data != NULL && *n > 0) {
        memcpy(PyByteArray_AS_STRING(array) + old, data, (size_t)*n);
    }
    errno = error;
    return 1;
}

PyDoc_STRVAR(read_pipe_into_doc,
             "_read_pipe_into($self, fd, size, array, /)\n--\n\n"
             "Append what os.read() gives to a bytearray, but for the last byte, which is\n"
             "returned; b'' at the end, None if the bytearray cannot grow now.");

static PyObject *
loop_read_pipe_into(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3 || !PyByteArray_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError, "_read_pipe_into() takes an fd, a size and a bytearray");
        return NULL;
    }
    int fd = PyObject_AsFileDescriptor(args[0]);
    size_t size = fd < 0 ? 0 : PyLong_AsSize_t(args[1]);
    if (fd < 0 || (size == (size_t)-1 && PyErr_Occurred())) {
        return NULL;
    }
    PyObject *array = args[2];
    ssize_t n = -1;
    int done = read_behind((fl_loop *)self, fd, array, size, &n);
    if (done <= 0) {
        return done < 0 ? NULL : Py_NewRef(Py_None);
    }
    if (n < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (n == 0) {
        return PyBytes_FromStringAndSize(NULL, 0);
    }
    Py_ssize_t rest = PyByteArray_GET_SIZE(array) - 1;
    PyObject *last = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(array) + rest, 1);
    if (last != NULL && PyByteArray_Resize(array, rest) < 0) {
        Py_CLEAR(last);
    }
    return last;
}

static PyMethodDef pipe_methods[] = {
    {"_read_pipe_into", (PyCFunction)(void (*)(void))loop_read_pipe_into, METH_FASTCALL,
     read_pipe_into_doc},
    {"_read_pipe", (PyCFunction)(void (*)(void))loop_read_pipe, METH_FASTCALL, read_pipe_doc},
    {NULL, NULL, 0, NULL},
};

int
fl_pipe_init(fl_state *st)
{
    return fl_add_methods(st->LoopType, pipe_methods);
}
