/* poll_epoll.c - the poller on Linux: epoll(7). */
#include "poll.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <unistd.h>

int
fl_poll_open(fl_poller *p)
{
    p->scratch = NULL;
    p->fd = epoll_create1(EPOLL_CLOEXEC);
    if (p->fd < 0) {
        return -1;
    }
    p->scratch = PyMem_RawMalloc(FL_POLL_MAX_EVENTS * sizeof(struct epoll_event));
    if (p->scratch == NULL) {
        fl_poll_close(p);
        errno = ENOMEM;
        return -1;
    }
    return 0;
}

void
fl_poll_close(fl_poller *p)
{
    if (p->fd >= 0) {
        close(p->fd);
        p->fd = -1;
    }
    PyMem_RawFree(p->scratch);
    p->scratch = NULL;
}

static uint32_t
to_epoll(unsigned interest)
{
    uint32_t events = 0;
    if (interest & FL_READ) {
        events |= EPOLLIN;
    }
    if (interest & FL_WRITE) {
        events |= EPOLLOUT;
    }
    if (interest & FL_EDGE) {
        events |= EPOLLET | EPOLLRDHUP | EPOLLPRI;
    }
    return events;
}

int
fl_poll_set(fl_poller *p, int fd, unsigned old, unsigned now, uint64_t key)
{
    struct epoll_event event = {.events = to_epoll(now), .data.u64 = key};

    if (now == 0) {
        /* The kernel forgets a closed fd by itself: ENOENT and EBADF are fine. */
        if (epoll_ctl(p->fd, EPOLL_CTL_DEL, fd, &event) < 0 && errno != ENOENT &&
            errno != EBADF && errno != EPERM) {
            return -1;
        }
        return 0;
    }
    int first = old == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    int second = old == 0 ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(p->fd, first, fd, &event) == 0) {
        return 0;
    }
    /* ENOENT: the fd was closed and its number used again. EEXIST: it was closed
     * here but a duplicate of it is still open, so the kernel kept it. */
    if (errno != ENOENT && errno != EEXIST) {
        return -1;
    }
    bool forgotten = errno == ENOENT;
    return epoll_ctl(p->fd, second, fd, &event) < 0 ? -1 : forgotten;
}

int
fl_poll_wait(fl_poller *p, int64_t timeout_ns, fl_event *events, int max)
{
    struct epoll_event *ready = p->scratch;
    int timeout_ms = -1;
    int n;

    if (max > FL_POLL_MAX_EVENTS) {
        max = FL_POLL_MAX_EVENTS;
    }
    if (timeout_ns >= 0) {
        /* Up to the next millisecond, as asyncio does: waking early would only
         * turn the loop once more for nothing. */
        int64_t ms = timeout_ns / 1000000 + (timeout_ns % 1000000 != 0);
        timeout_ms = ms > INT_MAX ? INT_MAX : (int)ms;
    }
    n = epoll_wait(p->fd, ready, max, timeout_ms);
    for (int i = 0; i < n; i++) {
        uint32_t e = ready[i].events;
        unsigned out = 0;
        if (e & (EPOLLIN | EPOLLRDHUP)) {
            out |= FL_READ;
        }
        if (e & (EPOLLRDHUP | EPOLLPRI)) {
            out |= FL_EOF; /* a read also ends, short, at TCP's urgent byte */
        }
        if (e & EPOLLOUT) {
            out |= FL_WRITE;
        }
        if (e & (EPOLLERR | EPOLLHUP)) {
            out |= FL_READ | FL_WRITE | FL_HANGUP;
        }
        events[i] = (fl_event){.key = ready[i].data.u64, .events = out};
    }
    return n;
}
