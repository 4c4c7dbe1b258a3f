/* The limit for echo servers: an epoll loop in C that does nothing but echo.
 *
 *     echo_limit FD [CERTIFICATE KEY]
 *
 * FD is an inherited listening stream socket or a bound datagram socket. Built with -DWITH_TLS it takes a certificate and a key. Linux only. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/ssl.h>
static SSL_CTX *tls_context;
#endif

struct connection {
    int fd;
#ifdef WITH_TLS
    SSL *ssl;
#endif
    char *pending;              /* what the socket has not taken yet; while there is some, nothing is read */
    size_t start, end;
};

static char buffer[256 * 1024];
static int epoll_fd;

static _Noreturn void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int operation, int fd, unsigned events, void *data)
{
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0) {
        fail("epoll_ctl");
    }
}

static void drop(struct connection *c)
{
#ifdef WITH_TLS
    SSL_free(c->ssl);
#endif
    close(c->fd);
    free(c->pending);
    free(c);
}

static void accept_all(int listener)
{
    int on = 1;
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct connection *c = calloc(1, sizeof(*c));
        if (c == NULL) {
            fail("calloc");
        }
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));      /* fails harmlessly on Unix sockets */
#ifdef WITH_TLS
        c->ssl = SSL_new(tls_context);
        SSL_set_fd(c->ssl, fd);
        SSL_set_accept_state(c->ssl);
#endif
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
}

#ifdef WITH_TLS
static ssize_t tls_result(struct connection *c, int n)
{
    int error = n > 0 ? 0 : SSL_get_error(c->ssl, n);
    errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : ECONNRESET;
    return n > 0 ? n : -1;
}
#endif

static ssize_t transmit(struct connection *c, const char *data, size_t size)
{
#ifdef WITH_TLS
    return tls_result(c, SSL_write(c->ssl, data, (int)size));
#else
    return send(c->fd, data, size, MSG_NOSIGNAL);
#endif
}

/* Everything the socket has, up to the buffer: TLS gives a record at a time, so it is asked until it has no more. */
static ssize_t receive(struct connection *c)
{
#ifdef WITH_TLS
    ssize_t total = 0, n;
    while ((size_t)total < sizeof(buffer) && (n = tls_result(c, SSL_read(c->ssl, buffer + total, (int)(sizeof(buffer) - (size_t)total)))) > 0) {
        total += n;
    }
    return total ? total : -1;
#else
    return recv(c->fd, buffer, sizeof(buffer), 0);
#endif
}

/* Send all of `data`, as far as the socket takes it; the number of bytes taken, or -1 when the connection is gone. */
static ssize_t send_some(struct connection *c, const char *data, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = transmit(c, data + done, size - done);
        if (n < 0) {
            return errno == EAGAIN ? (ssize_t)done : -1;
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

static int flush(struct connection *c)
{
    ssize_t n = send_some(c, c->pending + c->start, c->end - c->start);
    if (n < 0) {
        return -1;
    }
    c->start += (size_t)n;
    if (c->start == c->end) {
        free(c->pending);
        c->pending = NULL;
        watch(EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    }
    return 0;
}

static int echo(struct connection *c)
{
    ssize_t size = receive(c);
    if (size <= 0) {
        return size < 0 && errno == EAGAIN ? 0 : -1;
    }
    ssize_t done = send_some(c, buffer, (size_t)size);
    if (done < 0 || done == size) {
        return done < 0 ? -1 : 0;
    }
    c->start = 0;
    c->end = (size_t)(size - done);
    c->pending = malloc(c->end);
    if (c->pending == NULL) {
        return -1;
    }
    memcpy(c->pending, buffer + done, c->end);
    watch(EPOLL_CTL_MOD, c->fd, EPOLLOUT, c);
    return 0;
}

static void serve_stream(int listener)
{
    struct epoll_event events[512];
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 512, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == NULL) {
                accept_all(listener);
            } else if ((c->pending ? flush(c) : echo(c)) < 0) {
                drop(c);
            }
        }
    }
}

static void serve_datagrams(int fd)
{
    struct epoll_event event;
    struct sockaddr_storage from;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN, NULL);
    for (;;) {
        epoll_wait(epoll_fd, &event, 1, -1);
        for (;;) {
            socklen_t size = sizeof(from);
            ssize_t n = recvfrom(fd, buffer, sizeof(buffer), MSG_DONTWAIT, (struct sockaddr *)&from, &size);
            if (n < 0) {
                break;
            }
            sendto(fd, buffer, (size_t)n, 0, (struct sockaddr *)&from, size);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: echo_limit FD [CERTIFICATE KEY]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);   /* OpenSSL writes without MSG_NOSIGNAL */
    int fd = atoi(argv[1]), type = 0;
    socklen_t size = sizeof(type);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0) {
        fail("socket");
    }
#ifdef WITH_TLS
    tls_context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(tls_context, 1);     /* one recv() for many records */
    SSL_CTX_set_default_read_buffer_len(tls_context, sizeof(buffer));
    if (argc != 4 || SSL_CTX_use_certificate_file(tls_context, argv[2], SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls_context, argv[3], SSL_FILETYPE_PEM) != 1) {
        fprintf(stderr, "echo_limit: certificate or key cannot be used\n");
        return 1;
    }
#endif
    if (type == SOCK_DGRAM) {
        serve_datagrams(fd);
    } else {
        serve_stream(fd);
    }
}
