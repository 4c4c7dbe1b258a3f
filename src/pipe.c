/* pipe.c - reading from a pipe, for the transports in fastloop/_pipes.py. */
#include "sockops.h"

#include <errno.h>
#include <stdint.h>
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

/* Reads of less go by way of the receive buffer. */
enum { LARGE_READ = 32 * 1024 };

/* Copying is up to fifteen times as slow where the target lies less than 32 bytes
 * behind the source, modulo the page: `rep movsb` of AMD's Zen 3 and 4, which the
 * kernel copies with, too (glibc bug 30994). What a pipe holds begins with a page,
 * and what malloc() gives is often 16 bytes into one. */
static inline size_t
padding_for(const char *target)
{
    enum { PAGE = 4096, SLOW = 32, PADDING = 64 };
    size_t offset = (uintptr_t)target % PAGE;
    return 0 < offset && offset < SLOW ? PADDING : 0;
}

/* Make room for `size` bytes behind the `old` ones, and for padding before them. NULL
 * with an exception: somebody has a view of the bytearray, or there is no memory. */
static char *
make_room(PyObject *array, Py_ssize_t old, size_t size, size_t *padding)
{
    *padding = 0;
    if (PyByteArray_Resize(array, old + (Py_ssize_t)size) < 0) {
        return NULL;
    }
    if (old == 0) {
        *padding = padding_for(PyByteArray_AS_STRING(array));
        if (*padding > 0 && PyByteArray_Resize(array, (Py_ssize_t)(size + *padding)) < 0) {
            (void)PyByteArray_Resize(array, old);
            return NULL;
        }
    }
    return PyByteArray_AS_STRING(array) + old + *padding;
}

/* read() straight to the end of the bytearray; as read_behind(). */
static int
read_in_place(int fd, PyObject *array, Py_ssize_t old, size_t size, ssize_t *n)
{
    size_t padding;
    char *room = make_room(array, old, size, &padding);
    if (room == NULL) {
        PyErr_Clear();
        return 0;
    }
    *n = read(fd, room, size);
    int error = errno;
    /* what was read is lost if this fails, as when asyncio's feed_data() does */
    if (PyByteArray_Resize(array, old + (Py_ssize_t)padding + (*n > 0 ? *n : 0)) < 0 ||
        (padding > 0 && PySequence_DelSlice(array, 0, (Py_ssize_t)padding) < 0)) {
        return -1;
    }
    errno = error;
    return 1;
}

/* Append what read() gives to a bytearray: straight, where it is much. 1 with *n (and
 * errno) what read() gave; 0 if the bytearray cannot grow; -1 with an exception. */
static int
read_behind(fl_loop *loop, int fd, PyObject *array, size_t size, ssize_t *n)
{
    Py_ssize_t old = PyByteArray_GET_SIZE(array);
    int waiting = 0;

    if (ioctl(fd, FIONREAD, &waiting) == 0 && waiting >= LARGE_READ) {
        size = size < (size_t)waiting ? size : (size_t)waiting;
        return read_in_place(fd, array, old, size, n);
    }
    char *data = fl_loop_recv_buffer(loop);
    if (data == NULL) {
        return -1;
    }
    *n = read(fd, data, size < FL_RECV_BUFFER_SIZE ? size : FL_RECV_BUFFER_SIZE);
    if (*n > 0) {
        if (PyByteArray_Resize(array, old + *n) < 0) {
            return -1; /* lost, as above */
        }
        memcpy(PyByteArray_AS_STRING(array) + old, data, (size_t)*n);
    }
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
