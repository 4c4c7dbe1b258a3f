/* tls.h - TLS over any stream transport, by the interpreter's own ssl module.
 *
 * Two types, each the base of a Python class in fastloop/_tls.py whose other base
 * is the class of asyncio.sslproto that it stands for. Here is what runs for every
 * record; handshake, shutdown, timeouts and error reports are asyncio's methods,
 * inherited. They and we share one state: the attributes that asyncio's methods
 * read and set are fields of our structs.
 *
 *   TLSProtocol   SSLProtocol: bytes to and from the ssl module
 *   TLSTransport  _SSLProtocolTransport: what the application writes to
 *
 *   tls.c            the types' attributes, life and registration
 *   tls_read.c       received bytes -> records -> the application's protocol
 *   tls_write.c      written bytes -> records -> the transport underneath
 *   tls_transport.c  TLSTransport
 */
#ifndef FASTLOOP_TLS_H
#define FASTLOOP_TLS_H

#include "stream.h"

/* asyncio.sslproto.SSLProtocolState, in its order. */
typedef enum {
    FL_TLS_UNWRAPPED,
    FL_TLS_DO_HANDSHAKE,
    FL_TLS_WRAPPED,
    FL_TLS_FLUSHING,
    FL_TLS_SHUTDOWN,
    FL_TLS_STATES
} fl_tls_step;

/* The water marks of flow control. */
typedef enum {
    FL_TLS_OUT_HIGH,
    FL_TLS_OUT_LOW,
    FL_TLS_IN_HIGH,
    FL_TLS_IN_LOW,
    FL_TLS_MARKS
} fl_tls_mark;

/* Where records begin and end in the bytes that were given to ssl. */
typedef struct {
    uint64_t fed;      /* bytes given to ssl, ever */
    uint64_t boundary; /* the value of `fed` at the end of the last complete record */
    uint64_t taken;    /* ssl has taken all before this out of the BIO, perhaps more */
    size_t complete;   /* records that ssl may not have given the data of: the number is
                          never too small */
    size_t left;       /* bytes that the record at the end still lacks */
    uint8_t header[5]; /* of a record whose header is not complete */
    uint8_t have;      /* bytes of it */
    bool lost;         /* these are no TLS records: ssl must be asked every time */
} fl_tls_frames;

typedef struct {
    PyObject_HEAD
    fl_state *st;              /* borrowed from the type's module */
    PyObject *loop;            /* owned, or NULL */
    PyObject *app_protocol;    /* owned, or NULL */
    PyObject *transport;       /* owned: the transport underneath, or NULL, None */
    PyObject *incoming;        /* owned ssl.MemoryBIO: from the peer */
    PyObject *outgoing;        /* owned ssl.MemoryBIO: to the peer */
    PyObject *sslobj;          /* owned ssl.SSLObject */
    PyObject *feed;            /* owned: incoming.write */
    PyObject *drain;           /* owned: outgoing.read */
    PyObject *read, *write;    /* owned: sslobj's */
    PyObject *write_backlog;   /* owned deque: what ssl did not take yet */
    PyObject *receive_buffer;  /* owned bytearray of get_buffer(), or NULL */
    PyObject *marks[FL_TLS_MARKS];      /* owned numbers, or NULL */
    Py_ssize_t mark_bytes[FL_TLS_MARKS]; /* the same if they are ints, else -1 */
    Py_ssize_t write_buffer_size; /* bytes in write_backlog */
    fl_tls_frames frames;
    fl_tls_step state;
    int conn_lost;
    bool native;       /* read takes a buffer: it is _ssl's own */
    bool must_ask;     /* ssl may hold data of a record that it has taken already */
    bool answered;     /* reading met what ssl may have an answer to for the peer */
    bool buffered;     /* app_protocol is an asyncio.BufferedProtocol */
    bool stock;        /* ... or exactly an asyncio.StreamReaderProtocol */
    bool ssl_writing_paused, app_reading_paused;
    bool ssl_reading_paused, app_writing_paused;
} fl_tls;

typedef struct {
    union {
        PyObject ob_base;
        char base[FL_TRANSPORT_BASE_SIZE];
    };
    fl_state *st;           /* borrowed from the type's module */
    PyObject *loop;         /* owned, or NULL */
    PyObject *ssl_protocol; /* owned TLSProtocol; None after a second close() */
    bool closed;
} fl_tls_transport;

/* What the module needs for TLS; fl_state.tls. All of it owned. */
typedef struct fl_tls_state {
    PyTypeObject *ProtocolType;
    PyTypeObject *TransportType;
    PyTypeObject *WindowType;
    PyObject *window;       /* tls.c: the memory that ssl reads or writes next */
    PyObject *read_args;    /* (a size larger than any buffer, window) */
    PyObject *states[FL_TLS_STATES]; /* members of SSLProtocolState */
    PyObject *again_errors; /* sslproto.SSLAgainErrors; NULL without the ssl module */
    PyObject *SSLObject;    /* ssl.SSLObject, or NULL */
    PyTypeObject *MemoryBIO; /* ssl.MemoryBIO, or NULL */
    PyObject *pending;      /* its descriptor `pending`, or NULL */
    PyObject *asks_transport; /* True if is_closing() asks the transport underneath */

#define FL_TLS_NAMES(X)                                                              \
    X(read) X(write) X(_sslobj) X(popleft) X(append) X(call_soon) X(is_closing)      \
    X(pause_reading) X(resume_reading) X(pause_writing) X(resume_writing)            \
    X(data_received) X(get_buffer) X(buffer_updated) X(warning) X(_app_transport)    \
    X(_fatal_error) X(_do_handshake) X(_do_flush) X(_do_shutdown) X(_do_read)        \
    X(_call_eof_received) X(_start_shutdown) X(_write_appdata)
#define FL_TLS_NAME_FIELD(name) PyObject *str_##name;
    FL_TLS_NAMES(FL_TLS_NAME_FIELD)
#undef FL_TLS_NAME_FIELD
} fl_tls_state;

/* tls.c. Register the types; and the module's part in garbage collection. */
int fl_tls_init(PyObject *module, fl_state *st);
int fl_tls_state_traverse(fl_state *st, visitproc visit, void *arg);
void fl_tls_state_clear(fl_state *st);

/* Whether `protocol` is a TLSProtocol. */
static inline bool
fl_tls_check(fl_state *st, PyObject *protocol)
{
    return PyObject_TypeCheck(protocol, st->tls->ProtocolType);
}

/* The object that shows `size` bytes at `data` to a C function of the ssl module,
 * which must not keep it. Close the window after the call. */
PyObject *fl_tls_open_window(fl_state *st, const void *data, Py_ssize_t size);
void fl_tls_close_window(fl_state *st);

/* bio.pending, bytes. */
Py_ssize_t fl_tls_pending(fl_tls *p, PyObject *bio);

/* size >= mark, size <= mark; -1 with an exception. */
int fl_tls_reaches(fl_tls *p, Py_ssize_t size, fl_tls_mark mark);
int fl_tls_is_down_to(fl_tls *p, Py_ssize_t size, fl_tls_mark mark);

/* protocol._fatal_error() with the exception that is set, if it is an Exception:
 * 0; another one stays set: -1. */
int fl_tls_failed(fl_tls *p, const char *message);

/* self.<name>(), its result dropped. */
int fl_tls_call(fl_tls *p, PyObject *name);

/* tls_read.c */
extern PyMethodDef fl_tls_read_methods[];

/* recv() from the socket of `t`, whose protocol is a TLSProtocol, and all that
 * comes of it; *n (and errno) is what recv() gave. -1 with the exception that
 * buffer_updated() would have raised. */
int fl_tls_receive(fl_stream *t, ssize_t *n);

/* tls_write.c */
extern PyMethodDef fl_tls_write_methods[];

/* SSLProtocol._write_appdata((data,)), _do_write() and _process_outgoing(). */
int fl_tls_write(fl_tls *p, PyObject *data);
int fl_tls_do_write(fl_tls *p);
int fl_tls_process_outgoing(fl_tls *p);

/* tls_transport.c */
int fl_tls_transport_init(PyObject *module, fl_state *st);

#endif
