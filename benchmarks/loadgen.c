/* Load generator for echo servers: each connection sends a message, waits until it is back, checks every byte, sends the next.
 *
 *     loadgen ADDRESS [-c connections] [-m bytes] [-l bytes-a-line] [-t seconds] [-i idle-connections] [-n messages] [-r]
 *
 * ADDRESS is tcp:HOST:PORT, udp:HOST:PORT or unix:PATH. -l makes the message of lines; -n ends after so many messages, for
 * profilers; -r opens a new connection for every message. Built with -DWITH_TLS it speaks TLS over tcp. One line of JSON is
 * printed. Linux only (epoll). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
static SSL_CTX *tls_context;
#endif

enum { VARIANTS = 26 };     /* distinct messages, so that bytes of another message or connection are noticed */

struct connection {
    int fd;
#ifdef WITH_TLS
    SSL *ssl;
#endif
    const char *message;
    size_t sent, received;
    unsigned turn;
    int answered;       /* has had a message back */
    int64_t started;
};

static struct {
    struct sockaddr_storage address;
    socklen_t address_size;
    int family, type;
    int connections, idle, reconnect;
    size_t size, line;
    size_t messages;            /* 0: as many as there is time for */
    double seconds;
} config = {.connections = 10, .size = 1024, .seconds = 1.0};

static char *pattern, *scratch;
static int epoll_fd;
static int measuring;
static uint32_t *latencies;
static size_t latency_count, latency_room;
static size_t done;     /* messages back, also those of the warm-up */
static int answered;    /* connections that have had one */
static size_t lost;

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "loadgen: %s: %s\n", what, errno ? strerror(errno) : "failed");
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void parse_address(char *text)
{
    if (strncmp(text, "unix:", 5) == 0) {
        struct sockaddr_un *un = (struct sockaddr_un *)&config.address;
        un->sun_family = AF_UNIX;
        snprintf(un->sun_path, sizeof(un->sun_path), "%s", text + 5);
        config.address_size = sizeof(*un);
        config.family = AF_UNIX;
        config.type = SOCK_STREAM;
        return;
    }
    struct sockaddr_in *in = (struct sockaddr_in *)&config.address;
    char *port = strrchr(text, ':');
    if (strlen(text) < 5 || port == NULL || port == text + 3) {
        fail("the address is tcp:HOST:PORT, udp:HOST:PORT or unix:PATH");
    }
    *port = '\0';
    in->sin_family = AF_INET;
    in->sin_port = htons((uint16_t)atoi(port + 1));
    if (inet_pton(AF_INET, text + 4, &in->sin_addr) != 1) {
        fail("not an IPv4 address");
    }
    config.address_size = sizeof(*in);
    config.family = AF_INET;
    config.type = text[0] == 'u' ? SOCK_DGRAM : SOCK_STREAM;
}

static void parse_arguments(int argc, char **argv)
{
    for (int option; (option = getopt(argc, argv, "c:m:l:t:i:n:r")) != -1;) {
        switch (option) {
        case 'c': config.connections = atoi(optarg); break;
        case 'm': config.size = (size_t)atol(optarg); break;
        case 'l': config.line = (size_t)atol(optarg); break;
        case 't': config.seconds = atof(optarg); break;
        case 'i': config.idle = atoi(optarg); break;
        case 'n': config.messages = (size_t)atol(optarg); break;
        case 'r': config.reconnect = 1; break;
        default: exit(2);
        }
    }
    if (optind != argc - 1) {
        fail("one address is needed");
    }
    parse_address(argv[optind]);
}

/* A message is a window into the pattern; windows begin at VARIANTS different places, whole lines apart where there are lines. */
static size_t stride(void)
{
    return config.line ? config.line : 1;
}

static void make_pattern(void)
{
    size_t total = config.size + VARIANTS * stride();
    pattern = malloc(total);
    scratch = malloc(config.size);
    if (pattern == NULL || scratch == NULL) {
        fail("malloc");
    }
    uint32_t state = 12345;
    for (size_t i = 0; i < total; i++) {
        state = state * 1664525 + 1013904223;
        pattern[i] = (char)('a' + (state >> 24) % 26);
        if (config.line && i % config.line == config.line - 1) {
            pattern[i] = '\n';
        }
    }
}

static void open_connection(struct connection *c)
{
    int on = 1;
    c->fd = socket(config.family, config.type | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&config.address, config.address_size) < 0) {
        fail("connect");
    }
    if (config.family == AF_INET && config.type == SOCK_STREAM) {
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
#ifdef WITH_TLS
    c->ssl = SSL_new(tls_context);
    SSL_set_fd(c->ssl, c->fd);
    SSL_set_connect_state(c->ssl);
#endif
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) {
        fail("epoll_ctl");
    }
}

static void close_connection(struct connection *c)
{
#ifdef WITH_TLS
    SSL_shutdown(c->ssl);
    SSL_free(c->ssl);
#endif
    close(c->fd);
}

#ifdef WITH_TLS
static ssize_t tls_result(struct connection *c, int n)
{
    if (n > 0) {
        return n;
    }
    int error = SSL_get_error(c->ssl, n);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
        errno = EAGAIN;
        return -1;
    }
    ERR_print_errors_fp(stderr);
    return 0;
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

static ssize_t receive(struct connection *c, char *data, size_t size)
{
#ifdef WITH_TLS
    return tls_result(c, SSL_read(c->ssl, data, (int)size));
#else
    return recv(c->fd, data, size, 0);
#endif
}

static void note_latency(int64_t ns)
{
    if (!measuring) {
        return;
    }
    if (latency_count == latency_room) {
        latency_room = latency_room ? latency_room * 2 : 1 << 16;
        latencies = realloc(latencies, latency_room * sizeof(*latencies));
        if (latencies == NULL) {
            fail("realloc");
        }
    }
    latencies[latency_count++] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static void next_message(struct connection *c)
{
    c->message = pattern + c->turn++ % VARIANTS * stride();
    c->sent = c->received = 0;
    c->started = now_ns();
}

/* Send what is left of the message; 0 when the socket takes no more. */
static int push(struct connection *c)
{
    while (c->sent < config.size) {
        ssize_t n = transmit(c, c->message + c->sent, config.size - c->sent);
        if (n < 0 && errno == EAGAIN) {
            return 0;
        }
        if (n <= 0) {
            fail("send");
        }
        c->sent += (size_t)n;
    }
    return 1;
}

/* Receive and compare what has come; 1 once the whole message is back. Never asks for more than the message. */
static int pull(struct connection *c)
{
    while (c->received < config.size) {
        ssize_t n = receive(c, scratch, config.size - c->received);
        if (n < 0 && errno == EAGAIN) {
            return 0;
        }
        if (n <= 0) {
            errno = n ? errno : ECONNRESET;
            fail("the server closed a connection");
        }
        if (memcmp(scratch, c->message + c->received, (size_t)n) != 0) {
            errno = EBADMSG;
            fail("echoed bytes differ");
        }
        c->received += (size_t)n;
    }
    return 1;
}

/* The latency of the next message counts from here: connecting belongs to it. */
static void reconnect(struct connection *c)
{
    int64_t started = now_ns();
    close_connection(c);
    open_connection(c);
    next_message(c);
    c->started = started;
}

static void advance(struct connection *c)
{
    push(c);
    while (pull(c)) {
        done++;
        answered += !c->answered;
        c->answered = 1;
        note_latency(now_ns() - c->started);
        if (config.reconnect) {
            reconnect(c);
        } else {
            next_message(c);
        }
        push(c);
        if (!config.reconnect) {
            return;     /* nothing can be back yet: save the read that would say so */
        }
    }
}

/* A datagram in flight may be lost: after a silence every connection sends its message again. */
static void resend(struct connection *all)
{
    if (config.type != SOCK_DGRAM) {
        return;
    }
    for (int i = 0; i < config.connections; i++) {
        lost++;
        all[i].sent = 0;
        push(&all[i]);
    }
}

/* Connections that echo one message and then only exist. */
static void open_idle(void)
{
    struct connection c = {0};
    for (int i = 0; i < config.idle; i++) {
        open_connection(&c);
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c.fd, NULL);
        fcntl(c.fd, F_SETFL, 0);
        next_message(&c);
        push(&c);
        pull(&c);
    }
}

/* Measures once every connection has been answered and a fifth of the time is over, and then until one message was measured: a
 * short run may be held up by its handshakes, or by a busy machine. */
static double run(struct connection *all)
{
    struct epoll_event events[512];
    int64_t length = (int64_t)(config.seconds * 1e9);
    int64_t begin = now_ns() + (config.messages ? 0 : length / 5), end = begin + length, patience = end + INT64_C(10000000000);
    int wanted = config.type == SOCK_DGRAM || config.messages ? 0 : config.connections;     /* datagrams may be lost */
    for (int64_t now = 0; now < end || (latency_count == 0 && now < patience); now = now_ns()) {
        if (!measuring && now >= begin && answered >= wanted) {
            measuring = 1;
            begin = now;
            end = begin + length;
        }
        int n = epoll_wait(epoll_fd, events, 512, 100);
        for (int i = 0; i < n; i++) {
            advance(events[i].data.ptr);
        }
        if (n == 0) {
            resend(all);
        }
        if (config.messages && latency_count >= config.messages) {
            break;
        }
    }
    return (double)(now_ns() - begin) / 1e9;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double percentile_us(double fraction)
{
    return latencies[(size_t)((double)(latency_count - 1) * fraction)] / 1e3;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);   /* OpenSSL writes without MSG_NOSIGNAL */
    parse_arguments(argc, argv);
    make_pattern();
#ifdef WITH_TLS
    tls_context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(tls_context, 1);     /* one recv() for many records: the load must not be what is measured */
    SSL_CTX_set_default_read_buffer_len(tls_context, 256 * 1024);
#endif
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    open_idle();
    struct connection *all = calloc((size_t)config.connections, sizeof(*all));
    if (epoll_fd < 0 || all == NULL) {
        fail("epoll_create1");
    }
    for (int i = 0; i < config.connections; i++) {
        all[i].turn = (unsigned)i * 7;
        open_connection(&all[i]);
        next_message(&all[i]);      /* sent when the poller first says that the socket is writable */
    }
    double seconds = run(all);
    if (latency_count == 0) {
        errno = ETIMEDOUT;
        fail("no message came back");
    }
    qsort(latencies, latency_count, sizeof(*latencies), by_value);
    printf("{\"messages_per_second\": %.1f, \"messages\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"lost\": %zu}\n",
           (double)latency_count / seconds, done, percentile_us(0.5), percentile_us(0.99), lost);
    return 0;
}
