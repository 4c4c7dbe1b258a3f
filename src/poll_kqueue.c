/* poll_kqueue.c - the poller on macOS and the BSDs: kqueue(2).
 *
 * What epoll keeps in one registration a fd is two here, one a filter, and an
 * event comes for each: they are put together again, so that a fd's reader runs
 * before its writer. A knote dies with its fd: there are no stale ones.
 *
 * With libkqueue on Linux, for tests, two things differ from a kernel's kqueue:
 * it does not notice that a fd was closed (its BUGS.md), so fds must be removed
 * before that, and timeouts are of whole milliseconds.
 */
#include "poll.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/types.h>

#include <sys/event.h>
#include <sys/time.h>
#include <unistd.h>

_Static_assert(sizeof(((struct kevent *)0)->udata) >= sizeof(uint64_t),
               "fl_event.key must fit into kevent's udata: a 64-bit platform is needed");

enum { NO_PLACE = 0, PLACES = 2 * FL_POLL_MAX_EVENTS };

/* p->scratch */
typedef struct {
    pid_t owner; /* a kqueue is not inherited by fork(): its number may be another's */
    struct kevent ready[FL_POLL_MAX_EVENTS];
    uint16_t places[PLACES]; /* hash table: key -> index into events + 1 */
} kqueue_scratch;

int
fl_poll_open(fl_poller *p)
{
    kqueue_scratch *s = PyMem_RawMalloc(sizeof(*s));
    p->scratch = s;
    p->fd = -1;
    if (s == NULL) {
        errno = ENOMEM;
        return -1;
    }
    s->owner = getpid();
    p->fd = kqueue();
    if (p->fd < 0 || fcntl(p->fd, F_SETFD, FD_CLOEXEC) < 0) {
        int saved = errno;
        fl_poll_close(p);
        errno = saved;
        return -1;
    }
    return 0;
}

void
fl_poll_close(fl_poller *p)
{
    kqueue_scratch *s = p->scratch;
    if (p->fd >= 0 && s->owner == getpid()) {
        close(p->fd);
    }
    p->fd = -1;
    PyMem_RawFree(s);
    p->scratch = NULL;
}

static int
change(fl_poller *p, int fd, int filter, unsigned flags, uint64_t key)
{
    struct kevent ev;
    int rc;
    memset(&ev, 0, sizeof(ev));
    ev.ident = (uintptr_t)fd;
    ev.filter = (__typeof__(ev.filter))filter;
    ev.flags = (__typeof__(ev.flags))flags;
    ev.udata = (__typeof__(ev.udata))(uintptr_t)key; /* void *; on NetBSD < 10 intptr_t */
    do {
        rc = kevent(p->fd, &ev, 1, NULL, 0, NULL);
    } while (rc < 0 && errno == EINTR);
    return rc;
}

static int
drop(fl_poller *p, int fd, int filter)
{
    /* The kernel forgets a closed fd by itself: ENOENT and EBADF are fine. */
    if (change(p, fd, filter, EV_DELETE, 0) < 0 && errno != ENOENT && errno != EBADF) {
        return -1;
    }
    return 0;
}

int
fl_poll_set(fl_poller *p, int fd, unsigned old, unsigned now, uint64_t key)
{
    static const struct {
        unsigned interest;
        int filter;
    } filters[2] = {{FL_READ, EVFILT_READ}, {FL_WRITE, EVFILT_WRITE}};
    unsigned flags = now & FL_EDGE ? EV_ADD | EV_CLEAR : EV_ADD;
    /* Adding anew does not change EV_CLEAR of a knote (FreeBSD, kqueue_register). */
    unsigned kept = (old ^ now) & FL_EDGE ? 0 : now;

    for (int i = 0; i < 2; i++) {
        if (old & filters[i].interest && !(kept & filters[i].interest) &&
            drop(p, fd, filters[i].filter) < 0) {
            return -1;
        }
    }
    for (int i = 0; i < 2; i++) {
        if (now & filters[i].interest && change(p, fd, filters[i].filter, flags, key) < 0) {
            int saved = errno;
            if (i == 1 && now & ~old & FL_READ) {
                (void)drop(p, fd, EVFILT_READ);
            }
            errno = saved;
            return -1;
        }
    }
    return 0;
}

/* EV_EOF tells of the filter's own direction; with an error in fflags (a
 * socket's SO_ERROR) it is the end of both, as EV_ERROR is. */
static unsigned
to_events(const struct kevent *ev)
{
    bool reading = ev->filter == EVFILT_READ;
    unsigned events = reading ? FL_READ : FL_WRITE;
    if (ev->flags & EV_EOF) {
        events |= reading ? FL_EOF : FL_HANGUP;
    }
    if (ev->flags & EV_ERROR || (ev->flags & EV_EOF && ev->fflags != 0)) {
        events |= FL_READ | FL_WRITE | FL_HANGUP;
    }
    return events;
}

/* The event of `key` among events[0..*n), made if there is none. */
static fl_event *
event_of(kqueue_scratch *s, fl_event *events, int *n, uint64_t key)
{
    /* Fibonacci hashing: Knuth, The Art of Computer Programming, 6.4 */
    size_t at = (size_t)((key * 0x9e3779b97f4a7c15u) >> 32) % PLACES;
    while (s->places[at] != NO_PLACE) {
        fl_event *event = &events[s->places[at] - 1];
        if (event->key == key) {
            return event;
        }
        at = (at + 1) % PLACES;
    }
    events[*n] = (fl_event){.key = key};
    s->places[at] = (uint16_t)++*n;
    return &events[*n - 1];
}

int
fl_poll_wait(fl_poller *p, int64_t timeout_ns, fl_event *events, int max)
{
    kqueue_scratch *s = p->scratch;
    struct timespec timeout;
    int n = 0;

    if (max > FL_POLL_MAX_EVENTS) {
        max = FL_POLL_MAX_EVENTS;
    }
    if (timeout_ns >= 0) {
        timeout.tv_sec = (time_t)(timeout_ns / 1000000000);
        timeout.tv_nsec = (long)(timeout_ns % 1000000000);
    }
    int got = kevent(p->fd, NULL, 0, s->ready, max, timeout_ns < 0 ? NULL : &timeout);
    if (got <= 0) {
        return got;
    }
    memset(s->places, 0, sizeof(s->places));
    for (int i = 0; i < got; i++) {
        uint64_t key = (uint64_t)(uintptr_t)s->ready[i].udata;
        event_of(s, events, &n, key)->events |= to_events(&s->ready[i]);
    }
    return n;
}
