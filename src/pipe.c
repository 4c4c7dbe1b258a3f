/* pipe.c - reading from a pipe, for the transports in fastloop/_pipes.py. */
#include "sockops.h"

#include <errno.h>
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

static PyMethodDef pipe_methods[] = {
    {"_read_pipe", (PyCFunction)(void (*)(void))loop_read_pipe, METH_FASTCALL, read_pipe_doc},
    {NULL, NULL, 0, NULL},
};

int
fl_pipe_init(fl_state *st)
{
    return fl_add_methods(st->LoopType, pipe_methods);
}
