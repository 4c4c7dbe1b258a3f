/* watch.h - who is interested in which file descriptor.
 *
 * A table indexed by fd. An entry has either a reader and a writer (Python
 * handles, level-triggered: add_reader / add_writer) or one C watcher
 * (a transport, or the operations that wait for a socket). Ready events are
 * appended to the ready queue in asyncio's order: reader before writer, fds as
 * the kernel reports them.
 */
#ifndef FASTLOOP_WATCH_H
#define FASTLOOP_WATCH_H

#include "handle.h"
#include "poll.h"

typedef struct fl_watch fl_watch;

/* An event beside the poller's: the owner has something to do that has nothing to do with the fd.
 * It is kept when the watch stops. */
enum { FL_WATCH_WAKE = 1 << 8 };

/* Embedded in the C object that watches an fd (a transport). */
struct fl_watch {
    PyObject *owner; /* borrowed: the object this is embedded in */
    int fd;          /* -1: not watching */
    unsigned events; /* accumulated since on_event last ran */
    bool queued;     /* in the ready queue */
    bool held;       /* the loop owns a reference to owner */
    /* Called from the ready queue with what happened; owner is kept alive by
     * the caller. Handles its own errors; -1 only for KeyboardInterrupt and
     * SystemExit (or another exception that must leave run_forever). */
    int (*on_event)(fl_watch *w, unsigned events);
    /* NULL, or for a held watcher that gives way to anybody else who wants the
     * fd: called once the fd is taken from it. With to_handles what it waits for
     * may be waited for by handles. -1 with an exception, which the other gets. */
    int (*give_way)(fl_watch *w, bool to_handles);
};

typedef struct {
    fl_handle *reader; /* owned, or NULL */
    fl_handle *writer; /* owned, or NULL */
    fl_watch *watch;   /* borrowed (its owner unregisters before it dies), or see give_way */
    PyObject *file;    /* owned: what reader or writer was added for, if not an int; or NULL */
    unsigned interest; /* what the poller was told */
    uint32_t generation; /* changes whenever the interest ends */
} fl_fd_entry;

typedef struct {
    fl_fd_entry *entries;
    int len;
    int active; /* entries with any interest */
} fl_fd_table;

/* Drop all handles and what gives way (the loop is closing); other watchers are
 * left alone. */
void fl_fd_table_close(fl_loop *loop);

/* add_reader / add_writer and their removal; `which` is FL_READ or FL_WRITE.
 * fl_fd_set_handle takes a new reference and cancels the handle it replaces. As
 * with a selector, the object with a fileno() that a handle is added for is kept
 * while there is one, and finds the fd again after it was closed.
 * Removal: 1 if there was one (now cancelled), 0 if not, -1 on error. */
int fl_fd_set_handle(fl_loop *loop, int fd, unsigned which, fl_handle *h);
int fl_fd_remove_handle(fl_loop *loop, int fd, unsigned which);

/* The handles of an fd: borrowed, NULL where there is none. */
void fl_fd_handles(fl_loop *loop, int fd, fl_handle **reader, fl_handle **writer);

/* A number that was closed leaves its watchers here; they must not touch the file that gets it
 * next. fl_fd_forget_closed() lets go of them if the kernel has forgotten the fd: 1 if so, 0 if
 * not or if it cannot tell (kqueue), -1 with an exception. fl_fd_is_new() lets go of them all:
 * the kernel has just given the number to a new file. */
int fl_fd_forget_closed(fl_loop *loop, int fd);
int fl_fd_is_new(fl_loop *loop, int fd);

/* Begin watching w->fd with `interest` (FL_READ | FL_WRITE | FL_EDGE), change
 * the interest, and stop. fl_watch_stop also forgets events not yet delivered;
 * call it before closing the fd. -1 with OSError (or MemoryError) set. */
int fl_watch_start(fl_loop *loop, fl_watch *w, unsigned interest);
int fl_watch_change(fl_loop *loop, fl_watch *w, unsigned interest);
void fl_watch_stop(fl_loop *loop, fl_watch *w);

/* Have the loop own a reference to w's owner while it watches, or not: as a
 * selector owns the handle of a reader. It ends with the loop. The caller has a
 * reference of its own. */
void fl_watch_hold(fl_loop *loop, fl_watch *w, bool hold);

/* Queue `events` for w as if the poller had reported them (for example the rest
 * of a large read, after which others must have their turn). */
int fl_watch_queue(fl_loop *loop, fl_watch *w, unsigned events);

/* Append what the poller reported to the ready queue. */
int fl_fd_dispatch(fl_loop *loop, const fl_event *events, int n);

int fl_fd_visit(fl_loop *loop, visitproc visit, void *arg);

/* Loop._add_reader() and its kin. */
extern PyMethodDef fl_watch_methods[];

#endif
