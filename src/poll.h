/* poll.h - the kernel's poller behind four calls; nothing else knows which one.
 *
 * `key` is given back with each event: the loop puts the fd and a generation
 * into it, so that an event of a closed fd is never taken for its successor's.
 */
#ifndef FASTLOOP_POLL_H
#define FASTLOOP_POLL_H

#include "state.h"

/* Interests and events. */
enum {
    FL_READ = 1,
    FL_WRITE = 2,
    FL_EDGE = 4,  /* interest only: report changes, not states */
    FL_EOF = 16,  /* event only, of an FL_EDGE interest: the peer will send no more,
                     or sent urgent data; a short read does not mean that there
                     is nothing left. Comes with FL_READ */
    FL_HANGUP = 8 /* event only: error or both directions closed; comes with
                     FL_READ | FL_WRITE so that either watcher sees it. From kqueue
                     also with FL_WRITE alone: nothing more can be written */
};

typedef struct {
    uint64_t key;
    unsigned events;
} fl_event;

enum { FL_POLL_MAX_EVENTS = 256 };

typedef struct {
    int fd;         /* epoll or kqueue descriptor, -1 when closed */
    void *scratch;  /* the kernel's event array */
} fl_poller;

/* All give 0 (fl_poll_wait: the number of events), or -1 with errno set; no
 * Python exception is ever set and the GIL is not touched. */
int fl_poll_open(fl_poller *p);
void fl_poll_close(fl_poller *p);

/* Change the interest in fd from `old` to `now` (0: none). `old` is what this
 * caller last set; a descriptor that the kernel has forgotten because it was
 * closed and its number used again is added anew. Where the kernel tells of that
 * (epoll does, kqueue does not) 1 is returned: whoever asked for `old` is gone. */
int fl_poll_set(fl_poller *p, int fd, unsigned old, unsigned now, uint64_t key);

/* Wait at most timeout_ns (0: do not, negative: for ever); EINTR gives -1. */
int fl_poll_wait(fl_poller *p, int64_t timeout_ns, fl_event *events, int max);

#endif
