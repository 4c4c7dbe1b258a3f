/* wakeup.c - see wakeup.h */
#define _GNU_SOURCE /* sched_getaffinity */
#include "wakeup.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

#include "loop.h"

bool
fl_spin_possible(void)
{
#ifdef __linux__
    cpu_set_t cores;
    /* it fails with more than 1024 cores */
    return sched_getaffinity(0, sizeof(cores), &cores) < 0 || CPU_COUNT(&cores) > 1;
#else
    return sysconf(_SC_NPROCESSORS_ONLN) > 1;
#endif
}

static int
open_fds(fl_waker *w)
{
#ifdef __linux__
    w->read_fd = w->write_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return w->read_fd < 0 ? -1 : 0;
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
    w->read_fd = fds[0];
    w->write_fd = fds[1];
    return 0;
#endif
}

int
fl_waker_open(fl_waker *w, fl_poller *p)
{
    atomic_store(&w->state, FL_AWAKE);
    w->pid = getpid();
#ifdef __linux__
    /* Edge-triggered, each write is reported once and need not be read: a counter
     * of 64 bits takes as many as there will ever be. */
    unsigned interest = FL_READ | FL_EDGE;
#else
    unsigned interest = FL_READ;
#endif
    if (open_fds(w) < 0 ||
        fl_poll_set(p, w->read_fd, 0, interest, (uint64_t)w->read_fd) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        fl_waker_close(w);
        return -1;
    }
    return 0;
}

void
fl_waker_close(fl_waker *w)
{
    while (atomic_load(&w->borrowers) > 0 && w->pid == getpid()) {
        /* for microseconds, unless the borrower's thread gets no core */
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    if (w->write_fd >= 0 && w->write_fd != w->read_fd) {
        close(w->write_fd);
    }
    if (w->read_fd >= 0) {
        close(w->read_fd);
    }
    w->read_fd = w->write_fd = -1;
    atomic_store(&w->state, FL_AWAKE);
}

void
fl_waker_wake(fl_waker *w)
{
    int state = atomic_load(&w->state);
    do {
        if (state == FL_AWAKE || state == FL_WOKEN) {
            return;
        }
    } while (!atomic_compare_exchange_weak(&w->state, &state, FL_WOKEN));
    if (state != FL_SLEEPS) {
        return;
    }
    /* An eventfd takes 8 bytes that are not zero; a pipe takes anything. The
     * only failure that can be is EAGAIN, when a wakeup is pending anyway. */
    const uint64_t one = 1;
    ssize_t n;
    do {
        n = write(w->write_fd, &one, sizeof(one));
    } while (n < 0 && errno == EINTR);
}

void
fl_waker_drain(fl_waker *w)
{
#ifdef __linux__
    (void)w;
#else
    char bytes[128];
    ssize_t n;
    do {
        n = read(w->read_fd, bytes, sizeof(bytes));
    } while (n == (ssize_t)sizeof(bytes) || (n < 0 && errno == EINTR));
#endif
}

int
fl_waker_wait(fl_waker *w, fl_poller *p, int64_t timeout, fl_event *events, int max)
{
    int state = FL_LEAVES;
    if (!atomic_compare_exchange_strong(&w->state, &state, FL_SLEEPS)) {
        timeout = 0; /* woken already */
    }
    int n = fl_poll_wait(p, timeout, events, max);
    atomic_store(&w->state, FL_AWAKE); /* what is queued from now on is seen */
    return n;
}

int
fl_waker_spin(fl_waker *w, fl_poller *p, fl_event *events, int max, bool *paid)
{
    int state = FL_LEAVES, n;
    atomic_compare_exchange_strong(&w->state, &state, FL_SPINS);
    int64_t end = fl_clock_ns() + FL_SPIN_NS;
    do {
        n = fl_poll_wait(p, 0, events, max);
        for (int i = 0; i < FL_SPIN_LOOKS && n == 0; i++) {
            if (atomic_load_explicit(&w->state, memory_order_relaxed) == FL_WOKEN) {
                goto done;
            }
            fl_spin_pause();
        }
    } while (n == 0 && fl_clock_ns() < end);
done:
    *paid = atomic_exchange(&w->state, FL_AWAKE) == FL_WOKEN;
    return n;
}

/* Spin until the state is between `first` and `last`, but no longer than `ns`. */
static void
await_state(const fl_waker *w, int first, int last, int64_t ns)
{
    int64_t end = fl_clock_ns() + ns;
    do {
        for (int i = 0; i < FL_SPIN_LOOKS; i++) {
            int state = atomic_load(&w->state);
            if (state >= first && state <= last) {
                return;
            }
            fl_spin_pause();
        }
    } while (fl_clock_ns() < end);
}

void
fl_waker_await_gil(const fl_waker *w)
{
    await_state(w, FL_SPINS, FL_WOKEN, FL_SPIN_NS);
}

void
fl_waker_await_wait(const fl_waker *w)
{
    /* twice as long: the loop may have to be woken first */
    await_state(w, FL_SPINS, FL_SLEEPS, 2 * FL_SPIN_NS);
}
