/* sockops.h - loop.sock_recv() and its kin: awaitable operations on sockets.
 *
 * An operation tries its system call when it is first awaited. Only if the
 * kernel would block does it suspend, on a Future that the loop finishes when
 * the fd is ready; then the call is tried again, in the waiting task's own step,
 * so that what was received is never lost to a cancellation.
 *   sockops.c    the awaitable object and the loop's methods
 *   sockcalls.c  the system calls
 *   sockwait.c   who waits for which fd
 */
#ifndef FASTLOOP_SOCKOPS_H
#define FASTLOOP_SOCKOPS_H

#include "addr.h"
#include "future.h"

typedef struct fl_sockop fl_sockop;
typedef struct fl_sockwait fl_sockwait;

/* Try the operation: 1 and a new reference in *result when it is done, 0 if it
 * would block, -1 with an exception, FL_SOCK_AGAIN if it is to be called again. */
enum { FL_SOCK_AGAIN = 2 };
typedef int (*fl_sock_call)(fl_sockop *op, PyObject **result);

typedef struct {
    const char *name;
    const char *arguments[3]; /* their names, for keywords */
    int required, most;       /* how many there must and may be */
    bool connects;            /* resolve the address first; always try first */
    unsigned which;           /* FL_READ or FL_WRITE: what to wait for */
    fl_sock_call call;
} fl_sockop_kind;

enum { FL_SOCKOP_CREATED, FL_SOCKOP_RUNNING, FL_SOCKOP_SUSPENDED, FL_SOCKOP_DONE };

struct fl_sockop {
    PyObject_HEAD
    fl_state *st;     /* borrowed from the type's module */
    fl_loop *loop;    /* owned; as all objects below: NULL once done */
    PyObject *sock;   /* owned */
    PyObject *args[2]; /* owned, or NULL: the arguments after the socket */
    const fl_sockop_kind *kind;
    fl_future *waiter; /* owned: what it is suspended on, or NULL */
    PyObject *inner;   /* owned: the coroutine that resolves the address, or NULL */
    fl_sockwait *wait; /* borrowed: it has us among its ops; cleared when it lets go */
    fl_handle *handle; /* owned: where a plain add_reader/add_writer is used instead */
    Py_buffer view;    /* sock_sendall's data; .obj NULL: none */
    Py_ssize_t size;   /* bytes wanted or to be sent; -1: not looked at yet */
    Py_ssize_t sent;
    int fd;
    uint8_t state;
    bool native;  /* fl_socket_is_stock(): system calls instead of its methods */
    bool started; /* connect() has been called */
};

/* What these files need of Python; fl_state.sock. */
typedef struct fl_sock_state {
    PyTypeObject *SockOpType;
    PyTypeObject *SockWaitType;
    PyTypeObject *SocketType;   /* socket.socket */
    PyObject *check_ssl_socket; /* asyncio.base_events._check_ssl_socket */
    PyObject *has_ipv6;         /* asyncio.base_events._HAS_IPv6 */
    PyObject *raw_family, *raw_type, *raw_proto; /* _socket.socket's descriptors */
    PyObject *socket_methods;   /* dict: those that C code does without, by name */
    unsigned socket_version;    /* tp_version_tag of socket.socket when it last had them */

#define FL_SOCK_NAMES(X)                                                                 \
    X(recv) X(recv_into) X(recvfrom) X(recvfrom_into) X(send) X(sendto) X(connect)       \
    X(accept) X(fileno) X(gettimeout) X(setblocking) X(getsockopt) X(family) X(type)     \
    X(proto) X(close) X(throw) X(_ensure_fd_no_transport) X(_ensure_resolved)            \
    X(datagram_received) X(error_received) X(_protocol) X(_conn_lost) X(max_size)        \
    X(_sendto_slowly)
#define FL_SOCK_NAME_FIELD(name) PyObject *str_##name;
    FL_SOCK_NAMES(FL_SOCK_NAME_FIELD)
#undef FL_SOCK_NAME_FIELD
} fl_sock_state;

int fl_sock_init(PyObject *module, fl_state *st);
int fl_sock_state_traverse(fl_state *st, visitproc visit, void *arg);
void fl_sock_state_clear(fl_state *st);
void fl_sock_state_free(fl_state *st);

/* Whether the methods of socket.socket are those it had when it was imported. */
bool fl_socket_class_is_stock(fl_sock_state *ss);

/* Exactly a socket.socket, and nobody has replaced a method of that class, as those do
 * who keep tests off the network. */
static inline bool
fl_socket_is_stock(fl_state *st, PyObject *sock)
{
    fl_sock_state *ss = st->sock;
    unsigned version = ss->SocketType->tp_version_tag; /* changes with any attribute */

    return Py_IS_TYPE(sock, ss->SocketType) &&
           ((version != 0 && version == ss->socket_version) || fl_socket_class_is_stock(ss));
}

/* Add methods to a heap type that another file made. */
int fl_add_methods(PyTypeObject *type, PyMethodDef *methods);

/* sockcalls.c */

enum {
    FL_SOCK_RECV, FL_SOCK_RECV_INTO, FL_SOCK_RECVFROM, FL_SOCK_RECVFROM_INTO,
    FL_SOCK_SENDALL, FL_SOCK_SENDTO, FL_SOCK_CONNECT, FL_SOCK_ACCEPT, FL_SOCK_KINDS
};
extern const fl_sockop_kind fl_sock_kinds[FL_SOCK_KINDS];

/* op->sock.fileno() into op->fd; -1 there if it is closed. The result is -1 with
 * an exception, or 0. */
int fl_sockop_fileno(fl_sockop *op);

/* socket.socket.family, type and proto as plain ints, of an exact socket.socket;
 * -1 with an exception. */
int fl_sock_int(fl_state *st, PyObject *sock, PyObject *descriptor);

/* sockwait.c */

/* Whether the kernel is known to have nothing for op, so that it need not be
 * asked before waiting. */
bool fl_sockwait_known_empty(fl_sockop *op);

/* The kernel said it would block, or (for a stream) gave less than asked for. */
void fl_sockwait_note_empty(fl_sockop *op);
void fl_sockwait_note_short(fl_sockop *op);

/* Make a Future in op->waiter that is done when the fd is ready. It replaces
 * another that waits for the same, as asyncio's does: that one is never woken. */
int fl_sockwait_begin(fl_sockop *op);

/* Stop waiting; keeps an exception that is set. */
void fl_sockwait_end(fl_sockop *op);

int fl_sockwait_init(PyObject *module, fl_state *st);

/* udp.c */

int fl_udp_init(PyObject *module, fl_state *st);

/* pipe.c */

int fl_pipe_init(fl_state *st);

#endif
