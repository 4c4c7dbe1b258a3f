/* wakeup.c - ends a blocking poll from another thread: eventfd(2) on Linux, a
 * pipe elsewhere.
 *
 * The ready queue itself is only touched with the GIL held, so a foreign thread
 * appends to it directly; all that is left to do here is to wake the poller,
 * and only if it sleeps. `polling` is set and cleared with the GIL held. */
#include "loop.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

static int
open_fds(fl_loop *loop)
{
#ifdef __linux__
    loop->wake_read_fd = loop->wake_write_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return loop->wake_read_fd < 0 ? -1 : 0;
#else
    int fds[2];
    if (pipe(fds) < 0) {
        return -1;
    }
    for (int i = 0; i < 2; i++) {
        if (fcntl(fds[i], F_SETFD, FD_CLOEXEC) < 0 ||
            fcntl(fds[i], F_SETFL, O_NONBLOCK) < 0) {
            int saved = errno;
            close(fds[0]);
            close(fds[1]);
            errno = saved;
            return -1;
        }
    }
    loop->wake_read_fd = fds[0];
    loop->wake_write_fd = fds[1];
    return 0;
#endif
}

int
fl_wakeup_open(fl_loop *loop)
{
    loop->polling = loop->wake_written = false;
#ifdef __linux__
    /* Edge-triggered, each write is reported once and need not be read: a counter
     * of 64 bits takes as many as there will ever be. */
    unsigned interest = FL_READ | FL_EDGE;
#else
    unsigned interest = FL_READ;
#endif
    if (open_fds(loop) < 0 || fl_poll_set(&loop->poller, loop->wake_read_fd, 0, interest,
                                          (uint64_t)loop->wake_read_fd) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        fl_wakeup_close(loop);
        return -1;
    }
    return 0;
}

void
fl_wakeup_close(fl_loop *loop)
{
    if (loop->wake_write_fd >= 0 && loop->wake_write_fd != loop->wake_read_fd) {
        close(loop->wake_write_fd);
    }
    if (loop->wake_read_fd >= 0) {
        close(loop->wake_read_fd);
    }
    loop->wake_read_fd = loop->wake_write_fd = -1;
}

void
fl_loop_wake(fl_loop *loop)
{
    if (!loop->polling || loop->wake_written || loop->wake_write_fd < 0) {
        return;
    }
    /* An eventfd takes 8 bytes that are not zero; a pipe takes anything. The
     * only failure that can be is EAGAIN, when a wakeup is pending anyway. */
    const uint64_t one = 1;
    ssize_t n;
    do {
        n = write(loop->wake_write_fd, &one, sizeof(one));
    } while (n < 0 && errno == EINTR);
    loop->wake_written = true;
}

void
fl_wakeup_drain(fl_loop *loop)
{
    loop->wake_written = false;
#ifndef __linux__
    char bytes[128];
    ssize_t n;
    do {
        n = read(loop->wake_read_fd, bytes, sizeof(bytes));
    } while (n == (ssize_t)sizeof(bytes) || (n < 0 && errno == EINTR));
#endif
}
