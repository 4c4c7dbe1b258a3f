/* addr.c - see addr.h. */
#include "addr.h"

#include <arpa/inet.h>
#include <string.h>

/* Modules/socketmodule.c makesockaddr() is what this has to agree with. */
static PyObject *
unix_to_python(const fl_addr *a)
{
    size_t offset = offsetof(struct sockaddr_un, sun_path);
    if (a->len <= offset) {
        return PyUnicode_FromString(""); /* unnamed */
    }
    size_t len = a->len - offset;
#ifdef __linux__
    if (a->un.sun_path[0] == '\0') { /* abstract: all bytes are the name */
        return PyBytes_FromStringAndSize(a->un.sun_path, (Py_ssize_t)len);
    }
#endif
    len = strnlen(a->un.sun_path, len); /* the kernel may leave out the NUL */
    return PyUnicode_DecodeFSDefaultAndSize(a->un.sun_path, (Py_ssize_t)len);
}

PyObject *
fl_addr_to_python(const fl_addr *a, bool *known)
{
    char host[INET6_ADDRSTRLEN];

    *known = true;
    if (a->len == 0) {
        Py_RETURN_NONE; /* a connected or unnamed peer */
    }
    switch (a->sa.sa_family) {
    case AF_INET:
        inet_ntop(AF_INET, &a->in.sin_addr, host, sizeof(host));
        return Py_BuildValue("si", host, (int)ntohs(a->in.sin_port));
    case AF_INET6:
        inet_ntop(AF_INET6, &a->in6.sin6_addr, host, sizeof(host));
        return Py_BuildValue("siII", host, (int)ntohs(a->in6.sin6_port),
                             (unsigned)ntohl(a->in6.sin6_flowinfo),
                             (unsigned)a->in6.sin6_scope_id);
    case AF_UNIX:
        return unix_to_python(a);
    default:
        *known = false;
        return NULL;
    }
}

/* address[i] as an int of 0..max, or -1 if it is not just that. */
static long
exact_int(PyObject *address, Py_ssize_t i, long max)
{
    int overflow;
    PyObject *item = PyTuple_GET_ITEM(address, i);
    if (!PyLong_CheckExact(item)) {
        return -1;
    }
    long value = PyLong_AsLongAndOverflow(item, &overflow);
    return overflow || value < 0 || value > max ? -1 : value;
}

bool
fl_addr_from_python(int family, PyObject *address, fl_addr *a)
{
    if (!PyTuple_CheckExact(address)) {
        return false;
    }
    Py_ssize_t size = PyTuple_GET_SIZE(address);
    Py_ssize_t most = family == AF_INET ? 2 : family == AF_INET6 ? 4 : 0;
    if (size < 2 || size > most) {
        return false;
    }
    PyObject *host = PyTuple_GET_ITEM(address, 0);
    long port = exact_int(address, 1, 65535);
    if (!PyUnicode_CheckExact(host) || !PyUnicode_IS_COMPACT_ASCII(host) || port < 0) {
        return false;
    }
    const char *text = (const char *)PyUnicode_1BYTE_DATA(host);
    if (strlen(text) != (size_t)PyUnicode_GET_LENGTH(host)) {
        return false; /* embedded NUL */
    }
    memset(a, 0, sizeof(*a));
    if (family == AF_INET) {
        a->in.sin_family = AF_INET;
        a->in.sin_port = htons((uint16_t)port);
        a->len = sizeof(a->in);
        return inet_pton(AF_INET, text, &a->in.sin_addr) == 1;
    }
    long flow = size > 2 ? exact_int(address, 2, 0xfffff) : 0;
    long scope = size > 3 ? exact_int(address, 3, INT32_MAX) : 0;
    if (flow < 0 || scope < 0) {
        return false;
    }
    a->in6.sin6_family = AF_INET6;
    a->in6.sin6_port = htons((uint16_t)port);
    a->in6.sin6_flowinfo = htonl((uint32_t)flow);
    a->in6.sin6_scope_id = (uint32_t)scope;
    a->len = sizeof(a->in6);
    return inet_pton(AF_INET6, text, &a->in6.sin6_addr) == 1;
}

bool
fl_addr_equal(const fl_addr *a, const fl_addr *b)
{
    return a->len == b->len && memcmp(&a->storage, &b->storage, a->len) == 0;
}
