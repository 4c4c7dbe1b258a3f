/* addr.h - socket addresses between the kernel's form and Python's, for the
 * families that programs send packets to. */
#ifndef FASTLOOP_ADDR_H
#define FASTLOOP_ADDR_H

#include "state.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

typedef struct {
    union {
        struct sockaddr sa;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
        struct sockaddr_storage storage;
    };
    socklen_t len;
} fl_addr;

/* What socket.recvfrom() gives for it, new reference. *known is false, and the
 * result NULL without an exception, for a family that is not handled here. */
PyObject *fl_addr_to_python(const fl_addr *a, bool *known);

/* A literal AF_INET / AF_INET6 address. False for anything else, right or wrong:
 * the socket's own methods are to be asked then. Runs no Python code, raises
 * nothing. */
bool fl_addr_from_python(int family, PyObject *address, fl_addr *a);

/* The same peer? */
bool fl_addr_equal(const fl_addr *a, const fl_addr *b);

#endif
