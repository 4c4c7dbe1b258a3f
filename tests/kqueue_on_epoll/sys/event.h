/* sys/event.h - the part of kqueue(2)'s interface that src/poll_kqueue.c uses, for
 * tests on Linux; the values are FreeBSD's. */
#ifndef TESTS_KQUEUE_SYS_EVENT_H
#define TESTS_KQUEUE_SYS_EVENT_H

#include <stdint.h>
#include <time.h>

#define EVFILT_READ (-1)
#define EVFILT_WRITE (-2)

#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_CLEAR 0x0020
#define EV_ERROR 0x4000
#define EV_EOF 0x8000

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned int fflags;
    int64_t data;
    void *udata;
};

int kqueue(void);
int kevent(int kq, const struct kevent *changes, int n_changes, struct kevent *events,
           int n_events, const struct timespec *timeout);

#endif
