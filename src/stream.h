/* stream.h - SocketTransport: bytes over a connected stream socket.
 *
 * The twin of asyncio.selector_events._SelectorSocketTransport, and a subtype
 * of asyncio.Transport. Its files:
 *   stream.c         birth and end
 *   stream_type.c    what Python code sees of the object
 *   stream_read.c    events of the socket, reading, pausing
 *   stream_write.c   writing, what waits to be sent, flow control
 *   streams_stock.c  is it a stock asyncio.StreamReader, and what does it hold?
 *   streams_fast.c   received bytes straight into an asyncio.StreamReader
 *   streams_read.c   StreamReader.read() straight from the socket
 *   server.c         accepting
 */
#ifndef FASTLOOP_STREAM_H
#define FASTLOOP_STREAM_H

#include "future.h"

/* asyncio.transports._FlowControlMixin: its slots come first in our objects
 * and are never used. stream.c refuses to load where this is not enough. */
enum { FL_TRANSPORT_BASE_SIZE = 56 };

/* The states of writing. `out` is what waits, `blocked` that the kernel took less than it was given.
 *
 *   state      out    blocked  who sends next
 *   idle       empty  no       the next write
 *   gathering  some   no       the end of the turn (fl_stream_on_flush); or at once: a write past
 *                              FLUSH_EARLY or the high water mark, write_eof(), close(), sendfile(),
 *                              new limits, drain(), and whoever is given the socket
 *   blocked    some   yes      the poller's FL_WRITE (fl_stream_write_ready)
 *   lent       empty  no       sendfile(): empty_waiter refuses writes
 *   closing    some   yes      as blocked; then connection_lost()
 *   lost       empty  no       nobody: conn_lost counts what is written
 *
 *   idle -> gathering     a write that waits        gathering -> idle     all was sent
 *   idle -> blocked       a write, in part          gathering -> blocked  sent in part
 *   blocked -> idle       FL_WRITE, all was sent; then resume_writing(), the empty waiter,
 *                         shutdown() after write_eof()
 *   idle -> lent -> idle  _lend_fd(), _take_fd_back()
 *   gathering -> closing  close(), sent in part     blocked -> closing    close()
 *   any -> lost           abort(), an error, close() with nothing left
 *
 * The protocol is paused only in `blocked` and `closing`, so that FL_WRITE resumes it. */

/* Bytes that wait to be sent: a slice of a bytes object. */
typedef struct {
    PyObject *owner; /* owned, exactly bytes: to let go of it runs no Python code */
    const char *data;
    size_t len;
} fl_chunk;

typedef struct {
    fl_chunk *items; /* items[head..count) wait */
    size_t head, count, capacity;
    size_t bytes; /* sum of their lengths */
} fl_chunks;

typedef struct {
    union {
        PyObject ob_base;
        char base[FL_TRANSPORT_BASE_SIZE];
    };
    PyObject *dict;     /* owned: attributes that user code adds, or NULL */
    PyObject *weakrefs; /* list of weak references */
    fl_state *st;       /* borrowed from the type's module */
    fl_loop *loop;      /* owned; NULL once the connection is lost */
    PyObject *sock;     /* owned socket.socket; NULL once the connection is lost */
    const int *sock_fd; /* the fd inside sock, or NULL: ask sock.fileno() */
    int fd;             /* asyncio's _sock_fd: what sock had at first */
    PyObject *protocol; /* owned; NULL once the connection is lost */
    PyObject *extra;    /* owned dict of get_extra_info() */
    PyObject *server;   /* owned asyncio.Server, or NULL */
    PyObject *waiter;   /* owned future to finish when reading starts, or NULL */
    PyObject *context;  /* owned contextvars.Context that the protocol is called in */
    PyObject *loop_context; /* owned: 3.15's context= argument, or NULL */
    PyObject *empty_waiter; /* owned future of _make_empty_waiter(), or NULL */
    PyObject *reader;       /* owned: whose read() waits to be woken; or NULL */
    PyObject *reader_ref;   /* owned: the weakref by which a stock protocol knows its reader; or NULL */
    fl_future *read_waiter; /* owned: the future of its last read(), or NULL */
    PyObject *high_object, *low_object; /* owned: water marks that are not ints, or NULL */
    Py_ssize_t high_water, low_water;   /* bytes */
    fl_watch watch;
    fl_flush flush;
    fl_chunks out;
    uint64_t write_turn; /* loop->turns at the last write */
    unsigned usual_read; /* bytes that a recv() gives: the last one's, or slowly sinking to it */
    int conn_lost;       /* asyncio's: connection_lost is scheduled, then failed writes */
    uint8_t pieces;      /* > 0: writes wait for the end of the turn */
    bool writes_again;   /* a second write came in this turn */
    bool buffered;       /* the protocol is an asyncio.BufferedProtocol */
    bool stock;          /* ... or exactly an asyncio.StreamReaderProtocol */
    bool tls;            /* ... or a TLSProtocol of ours */
    uint8_t kind;        /* fl_stream_kind: what a short read means */
    bool start_due;      /* connection_made() is scheduled: reading starts behind it */
    bool connected;      /* asyncio's _protocol_connected */
    bool started;        /* reading may happen: connection_made has been called */
    bool closing;
    bool paused;
    bool no_more_reads;  /* eof_received() kept the connection open */
    bool eof;            /* write_eof() */
    bool protocol_paused;
    bool awaits_write;   /* the poller was asked for FL_WRITE */
    bool blocked;        /* the kernel took less than it was given: await FL_WRITE */
    bool readable;       /* there may be more to read than events told */
    bool hung_up;        /* the peer ended: read until the kernel says so */
    bool failed;         /* an error ends it: what recv() says from now on is not the peer's end */
    bool offered;        /* a StreamReader.read() was woken to receive for itself */
    bool lent;           /* the fd is watched by somebody else (sendfile) */
} fl_stream;

/* A read that gives less than it could has emptied a TCP socket. A Unix socket also stops behind a
 * message with descriptors or credentials, and says so (MSG_CTRUNC). Of others nothing is known. */
typedef enum { FL_STREAM_OTHER, FL_STREAM_TCP, FL_STREAM_UNIX } fl_stream_kind;

/* What a stock StreamReader holds, in the order of its __init__(). */
typedef enum {
    FL_READER_LIMIT, FL_READER_LOOP, FL_READER_BUFFER, FL_READER_EOF, FL_READER_WAITER,
    FL_READER_EXCEPTION, FL_READER_TRANSPORT, FL_READER_PAUSED, FL_READER_FIELDS
} fl_reader_field;

typedef struct {
    PyObject *object;       /* owned: the reader */
    PyObject *attributes;   /* owned: its __dict__ */
    PyObject *const *names; /* those of the fields */
    PyObject *buffer;       /* borrowed: its bytearray if it takes more, else NULL */
} fl_reader;

/* What the module needs of asyncio for streams; fl_state.stream. */
typedef struct fl_stream_state {
    PyTypeObject *StreamType;
    PyTypeObject *SocketType;     /* socket.socket */
    PyTypeObject *RawSocketType;  /* _socket.socket */
    PyObject *TransportSocket;    /* asyncio.trsock.TransportSocket */
    PyObject *BufferedProtocol;   /* asyncio.protocols.BufferedProtocol */
    PyObject *SelectorLoop;       /* asyncio.selector_events.BaseSelectorEventLoop */
    PyTypeObject *StreamReaderProtocol;
    PyTypeObject *StreamReader;
    PyTypeObject *OurStreamReader; /* fastloop._streams.StreamReader, or NULL: not imported yet */
    PyObject *OurSocket;           /* fastloop._streams.TransportSocket, the same */
    /* The methods of these classes as imported, by name; None: replaced even before. */
    PyObject *protocol_methods, *reader_methods, *our_reader_methods;
    PyObject *reader_fields[FL_READER_FIELDS]; /* names of a StreamReader's attributes */
    PyObject *accept_retry_delay; /* asyncio.constants.ACCEPT_RETRY_DELAY */

#define FL_STREAM_NAMES(X)                                                       \
    X(data_received) X(eof_received) X(get_buffer) X(buffer_updated)             \
    X(connection_made) X(connection_lost) X(pause_writing) X(resume_writing)     \
    X(pause_reading) X(close) X(fileno) X(getsockname) X(getpeername)            \
    X(_attach) X(_detach) X(socket) X(sockname) X(peername) X(cancelled)         \
    X(set_result) X(set_exception) X(done) X(_stream_reader_wr)                  \
    X(_waiter) X(_transport) X(_paused) X(_limit)             \
    X(_transports) X(is_closing) X(_call_connection_lost)                        \
    X(_make_socket_transport) X(_accept_connection) X(_accept_connection2)       \
    X(_start_serving) X(call_later) X(create_task) X(debug) X(family) X(type)    \
    X(proto) X(data) X(__class__)
#define FL_STREAM_NAME_FIELD(name) PyObject *str_##name;
    FL_STREAM_NAMES(FL_STREAM_NAME_FIELD)
#undef FL_STREAM_NAME_FIELD

    /* Not objects. tp_version_tag of asyncio's stream classes when their methods were
     * last seen to be those imported: it changes with any attribute of a class. */
    unsigned protocol_version, reader_version, our_reader_version;
} fl_stream_state;

/* stream_type.c. Register the type and the Loop methods of these files; and the
 * module's part in garbage collection. */
int fl_stream_init(PyObject *module, fl_state *st);
int fl_stream_state_traverse(fl_state *st, visitproc visit, void *arg);
void fl_stream_state_clear(fl_state *st);

/* stream.c */
extern PyMethodDef fl_stream_loop_methods[];

/* A transport for the connected non-blocking `sock`. protocol.connection_made()
 * is scheduled, then reading starts and `waiter` is finished. `waiter`, `extra`,
 * `server` and `context` may be NULL or None. Another transport that uses the
 * same fd is a RuntimeError. */
PyObject *fl_stream_new(fl_loop *loop, PyObject *sock, PyObject *protocol,
                        PyObject *waiter, PyObject *extra, PyObject *server,
                        PyObject *context);

/* asyncio's _ensure_fd_no_transport: RuntimeError and -1 if an open transport
 * uses `fd`. `object` is what the caller was given, for the message. */
int fl_ensure_fd_no_transport(fl_loop *loop, int fd, PyObject *object);

/* The methods of the same name. -1 with an exception set. */
int fl_stream_close(fl_stream *t);
int fl_stream_force_close(fl_stream *t, PyObject *exc);
int fl_stream_set_protocol(fl_stream *t, PyObject *protocol);

/* asyncio's _fatal_error with the exception that is set: report it, close the
 * transport with it and give 0; KeyboardInterrupt and SystemExit stay set: -1. */
int fl_stream_fatal(fl_stream *t, const char *message);

/* Call protocol.connection_lost(exc) and let go of everything. -1 with what
 * connection_lost() raised. */
int fl_stream_connection_lost(fl_stream *t, PyObject *exc);

/* Begin to watch the fd; what can be read or written now is reported. -1 with an
 * exception. */
int fl_stream_watch(fl_stream *t, bool for_writing);

/* Stop watching, close the socket and tell the server; errors are printed. */
void fl_stream_release_socket(fl_stream *t);

/* Where a socket.socket keeps its fd: behind its head, which is checked by the value
 * found there. It tells us when somebody closed the object. NULL: not there. */
const int *fl_find_sock_fd(fl_state *st, PyObject *sock, int fd);

/* The fd is still the one the transport was made with: false with errno EBADF
 * once somebody closed the socket object. */
bool fl_stream_fd_valid(fl_stream *t);

/* Keep the transport alive while the loop has a use for it. */
void fl_stream_update_hold(fl_stream *t);

/* logger.debug(format, self) when the loop is in debug mode. */
int fl_stream_log_debug(fl_stream *t, const char *format);

/* `loop`'s exception handler gets the exception that is set, raised in serving the
 * transport. As fl_report_raised. */
int fl_stream_report(fl_stream *t, PyObject *loop, const char *message);

/* stream_type.c */

/* The fd is nobody else's any more: whoever waits for it (loop.sendfile) is dropped. -1 with an
 * exception. */
int fl_stream_end_loan(fl_stream *t);

/* The argument of a method that takes just one, by position or by `name`: borrowed;
 * NULL with TypeError. */
PyObject *fl_only_argument(const char *function, const char *name, PyObject *const *args,
                           Py_ssize_t nargs, PyObject *kwnames);

/* stream_read.c */

int fl_stream_on_event(fl_watch *w, unsigned events);
/* recv(): -1 with errno. EINTR is tried again. */
ssize_t fl_stream_receive(fl_stream *t, void *buffer, size_t size);

/* What is large: worth to be received where it will stay, bytes. */
enum { FL_STREAM_LARGE = 32 * 1024 };

/* How much room the next read needs, bytes; 0 if it may be small. */
size_t fl_stream_expected(fl_stream *t);

/* recv() into an exact bytes object of `room` bytes, cut to size: NULL when there
 * is none, with *n the result of recv() and errno, or with an exception. */
PyObject *fl_stream_receive_bytes(fl_stream *t, size_t room, ssize_t *n);

/* What was offered to a read() is received now: before anything that would keep it
 * from being received later. Can call the protocol, and close the transport. */
void fl_stream_settle(fl_stream *t);

int fl_stream_pause_reading(fl_stream *t);
int fl_stream_resume_reading(fl_stream *t);

/* There may be something to read, and somebody to read it. */
bool fl_stream_may_read(const fl_stream *t);

/* recv() gave -1: 0 if there was nothing, else the transport's end. */
int fl_stream_receive_failed(fl_stream *t);

static inline bool
fl_stream_is_reading(const fl_stream *t)
{
    return !t->closing && !t->paused;
}

/* stream_write.c */
extern PyMethodDef fl_stream_write_methods[];

/* The method write(), of bytes: None, or NULL with an exception. */
PyObject *fl_stream_write(fl_stream *t, PyObject *data);

/* Send what waits, as the event loop does: protocol and waiters are told. */
int fl_stream_write_ready(fl_stream *t);
int fl_stream_on_flush(fl_flush *f);

/* Give the kernel what waits only for the end of the turn. As write(): an error of the socket is
 * the transport's end, and pause_writing() may be called. -1 with an exception. */
int fl_stream_flush_now(fl_stream *t);

/* Give the kernel what waits, telling nobody. 0, or -1 with errno. */
int fl_stream_send_waiting(fl_stream *t);

/* Finish the future of _make_empty_waiter() unless it is done: with the
 * exception exc, or with None. */
int fl_stream_finish_empty_waiter(fl_stream *t, PyObject *exc);

void fl_chunks_clear(fl_chunks *c);

/* streams_stock.c */

/* Remember what asyncio's stream classes are; and ours. -1 if that cannot be. */
int fl_streams_import(fl_stream_state *ss);
int fl_streams_import_ours(fl_stream_state *ss);

/* Look at a reader, without running Python code. False: it is not a stock one; else
 * fl_reader_done() is due. */
bool fl_reader_look(fl_stream_state *ss, PyObject *reader, fl_reader *r);

static inline void
fl_reader_done(fl_reader *r)
{
    Py_DECREF(r->attributes);
    Py_DECREF(r->object);
}

/* A field of a reader, borrowed, only good until something else runs, which this does not
 * do; NULL: it is gone. */
PyObject *fl_reader_get(const fl_reader *r, fl_reader_field field);

/* An object's <name>, borrowed out of its __dict__; NULL if there is none. */
PyObject *fl_reader_attribute(PyObject *attributes, PyObject *name);

/* A stock protocol's weak reference to its reader, owned; NULL without an exception: it has none. */
PyObject *fl_streams_reader_ref(fl_stream_state *ss, PyObject *protocol);

/* The transport's protocol is a stock one that gives what comes to this very reader. */
static inline bool
fl_streams_serves(const fl_stream *t, PyObject *reader)
{
    return t->reader_ref != NULL && ((PyWeakReference *)t->reader_ref)->wr_object == reader;
}

/* Where bytes for `protocol`, exactly an asyncio.StreamReaderProtocol, can be put
 * directly: its reader, which has a buffer. False: nowhere. */
bool fl_streams_open(fl_state *st, PyObject *protocol, fl_reader *r);

/* Nobody has replaced data_received(), on the class or on this protocol. */
bool fl_streams_protocol_is_stock(fl_stream_state *ss, PyObject *protocol);

/* streams_fast.c */

/* recv() into the StreamReader of a stock protocol. 1: done, with *n (and errno)
 * what recv() gave; 0: nothing was done, the ordinary way must be taken; -1: the
 * exception that data_received() would have raised is set. */
int fl_streams_read(fl_stream *t, ssize_t *n);

/* The rest of feed_data(), after bytes have been appended: wake the reader's waiter
 * and, if it holds too much (`total` bytes), pause its transport. `t` is that
 * transport if it is one of ours, or NULL. -1 with an exception. */
int fl_streams_fed(fl_state *st, fl_stream *t, PyObject *reader, Py_ssize_t total);

/* streams_read.c */

/* connection_made() has been called: a stock reader gets our read(). */
void fl_streams_adopt(fl_stream *t);

/* There is something to read: wake the read() that waits for it, t->reader's, and set
 * t->offered: 1, or 0 if it does not wait any more; -1 with an exception. */
int fl_streams_offer(fl_stream *t);

extern PyMethodDef fl_streams_module_methods[];

/* The exception that is set, cleared, with its traceback; and the reverse, which
 * takes over the reference. */
static inline PyObject *
fl_take_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (type == NULL) {
        return NULL;
    }
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL) {
        PyException_SetTraceback(value, traceback);
        Py_DECREF(traceback);
    }
    Py_DECREF(type);
    return value;
#endif
}

static inline void
fl_restore_exception(PyObject *exc)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(exc);
#else
    if (exc == NULL) {
        PyErr_Clear();
        return;
    }
    PyErr_Restore(Py_NewRef(Py_TYPE(exc)), exc, PyException_GetTraceback(exc));
#endif
}

/* server.c */
extern PyMethodDef fl_server_loop_methods[];

#endif
