/* kqueue.c - a kqueue for tests on Linux: EVFILT_READ and EVFILT_WRITE on epoll.
 *
 * A kqueue is an epoll that watches two others, one a filter, so that the filters
 * of a fd are separate and the kernel forgets what is closed, as a BSD's does.
 * Only what src/poll_kqueue.c needs: one change a call, or a wait; ident and data
 * of events are left out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/event.h>
#include <unistd.h>

enum { READ, WRITE, MAX_EVENTS = 256, MAX_FDS = 65536 };

/* The two inner epolls, by number of the outer one. Nothing tells that a kqueue is
 * closed, so they stay open then: a few fds in a test's process. */
static struct {
    int filters[2];
} kqueues[MAX_FDS];

static int
add_filter(int kq, int which)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)which};
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    if (epoll_ctl(kq, EPOLL_CTL_ADD, fd, &event) < 0) {
        close(fd);
        return -1;
    }
    kqueues[kq].filters[which] = fd;
    return 0;
}

int
kqueue(void)
{
    int kq = epoll_create1(EPOLL_CLOEXEC);
    if (kq < 0) {
        return -1;
    }
    if (kq >= MAX_FDS) {
        close(kq);
        errno = EMFILE;
        return -1;
    }
    if (add_filter(kq, READ) < 0 || add_filter(kq, WRITE) < 0) {
        int saved = errno;
        close(kq);
        errno = saved;
        return -1;
    }
    return kq;
}

static int
apply(int kq, const struct kevent *change)
{
    int which = change->filter == EVFILT_READ ? READ : WRITE;
    int filter = kqueues[kq].filters[which];
    struct epoll_event event = {
        .events = which == READ ? EPOLLIN | EPOLLRDHUP : EPOLLOUT,
        .data.ptr = change->udata,
    };
    if (change->flags & EV_DELETE) {
        return epoll_ctl(filter, EPOLL_CTL_DEL, (int)change->ident, &event);
    }
    if (change->flags & EV_CLEAR) {
        event.events |= EPOLLET;
    }
    if (epoll_ctl(filter, EPOLL_CTL_ADD, (int)change->ident, &event) == 0) {
        return 0;
    }
    return errno == EEXIST ? epoll_ctl(filter, EPOLL_CTL_MOD, (int)change->ident, &event) : -1;
}

static int
collect(int kq, int which, struct kevent *events, int max)
{
    struct epoll_event ready[MAX_EVENTS];
    uint32_t end = which == READ ? EPOLLRDHUP | EPOLLHUP | EPOLLERR : EPOLLHUP | EPOLLERR;
    int n = max == 0 ? 0 : epoll_wait(kqueues[kq].filters[which], ready, max, 0);
    for (int i = 0; i < n; i++) {
        events[i] = (struct kevent){
            .filter = which == READ ? EVFILT_READ : EVFILT_WRITE,
            .flags = ready[i].events & end ? EV_EOF : 0,
            .fflags = ready[i].events & EPOLLERR ? EIO : 0,
            .udata = ready[i].data.ptr,
        };
    }
    return n < 0 ? 0 : n;
}

int
kevent(int kq, const struct kevent *changes, int n_changes, struct kevent *events,
       int n_events, const struct timespec *timeout)
{
    struct epoll_event ready[2];
    if (n_changes > 1 || n_events > MAX_EVENTS) {
        errno = EINVAL;
        return -1;
    }
    if (n_changes == 1 && apply(kq, changes) < 0) {
        return -1;
    }
    if (n_events == 0) {
        return 0;
    }
    if (epoll_pwait2(kq, ready, 2, timeout, NULL) < 0) {
        return -1;
    }
    /* writers first, and no more than half for them: the worse order to get right */
    int n = collect(kq, WRITE, events, n_events - n_events / 2);
    return n + collect(kq, READ, events + n, n_events - n);
}
