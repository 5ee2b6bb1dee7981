/* Load for the relay measurements: a server behind the relay, and clients before it.
 *
 *   load server ADDRESS              serve; ADDRESS is unix:PATH or tcp:PORT (loopback)
 *   load push ADDRESS BYTES          send BYTES through; prints seconds until the server has counted them
 *   load pull ADDRESS BYTES          have BYTES sent; prints seconds until the last one is here
 *   load ping ADDRESS COUNT SIZE     COUNT times SIZE bytes out, 1 byte back; prints p50 and p99 in microseconds
 *   load calls ADDRESS COUNT CALLERS connect, 1 byte each way, close; prints connections per second
 *   load hold ADDRESS COUNT          open COUNT streams, say so, wait for a line, close them
 *   load notice ADDRESS              exchange 1 byte, say so, print when the end came (CLOCK_MONOTONIC, seconds)
 *
 * The first byte of a stream tells the server what it is for.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (1 << 20)

static void die(const char *what) { perror(what); exit(1); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static socklen_t address(const char *text, struct sockaddr_storage *out) {
    memset(out, 0, sizeof *out);
    if (!strncmp(text, "unix:", 5)) {
        struct sockaddr_un *un = (void *)out;
        un->sun_family = AF_UNIX;
        strncpy(un->sun_path, text + 5, sizeof un->sun_path - 1);
        return sizeof *un;
    }
    struct sockaddr_in *in = (void *)out;
    in->sin_family = AF_INET;
    in->sin_port = htons(atoi(text + 4));
    in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return sizeof *in;
}

static int dial(const char *text) {
    struct sockaddr_storage to;
    socklen_t length = address(text, &to);
    int fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0 || connect(fd, (void *)&to, length)) die("connect");
    if (to.ss_family == AF_INET) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static int put(int fd, const void *data, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t n = send(fd, (const char *)data + done, size - done, MSG_NOSIGNAL);
        if (n <= 0) return -1;
        done += n;
    }
    return 0;
}

static int get(int fd, void *data, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t n = recv(fd, (char *)data + done, size - done, 0);
        if (n <= 0) return -1;
        done += n;
    }
    return 0;
}

static void *serve(void *arg) {
    int fd = (int)(intptr_t)arg;
    char what = 0, *buffer = malloc(CHUNK);
    uint64_t size = 0;
    if (get(fd, &what, 1)) what = 0;
    if (what == 'p' && !get(fd, &size, 8)) { /* push: count, then acknowledge */
        uint64_t left = size;
        while (left) {
            ssize_t n = recv(fd, buffer, left < CHUNK ? left : CHUNK, 0);
            if (n <= 0) break;
            left -= n;
        }
        if (!left) put(fd, "k", 1);
    } else if (what == 'g' && !get(fd, &size, 8)) { /* pull */
        memset(buffer, 'x', CHUNK);
        for (uint64_t left = size; left;) {
            size_t part = left < CHUNK ? left : CHUNK;
            if (put(fd, buffer, part)) break;
            left -= part;
        }
    } else if (what == 'e' && !get(fd, &size, 8)) { /* ping: SIZE in, 1 out */
        while (!get(fd, buffer, size) && !put(fd, "k", 1)) {}
    } else if (what == 'c') { /* call */
        put(fd, "k", 1);
    } else if (what == 'h') { /* hold */
        put(fd, "k", 1);
        get(fd, &what, 1);
    }
    free(buffer);
    close(fd);
    return 0;
}

static _Noreturn void server(const char *where) {
    struct sockaddr_storage at;
    socklen_t length = address(where, &at);
    int fd = socket(at.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (at.ss_family == AF_UNIX) unlink(where + 5);
    if (bind(fd, (void *)&at, length) || listen(fd, 4096)) die(where);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&small, 65536);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int got = accept4(fd, 0, 0, SOCK_CLOEXEC);
        if (got < 0) continue;
        if (at.ss_family == AF_INET) setsockopt(got, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        pthread_t thread;
        if (pthread_create(&thread, &small, serve, (void *)(intptr_t)got)) close(got);
    }
}

static int compare(const void *a, const void *b) {
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

static const char *target;
static long calls_each;

static void *caller(void *arg) {
    (void)arg;
    char byte = 'c';
    for (long i = 0; i < calls_each; i++) {
        int fd = dial(target);
        if (put(fd, "c", 1) || get(fd, &byte, 1)) die("call");
        /* no TIME_WAIT: the ports must last */
        struct linger none = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
        close(fd);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const char *role = argv[1];
    target = argv[2];
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(role, "server")) server(target);
    char byte = 0, *buffer = malloc(CHUNK);
    memset(buffer, 'x', CHUNK);
    uint64_t count = argc > 3 ? strtoull(argv[3], 0, 10) : 0;
    if (!strcmp(role, "push")) {
        int fd = dial(target);
        double start = now();
        if (put(fd, "p", 1) || put(fd, &count, 8)) die("push");
        for (uint64_t left = count; left;) {
            size_t part = left < CHUNK ? left : CHUNK;
            if (put(fd, buffer, part)) die("push");
            left -= part;
        }
        if (get(fd, &byte, 1)) die("push");
        printf("%.9f\n", now() - start);
    } else if (!strcmp(role, "pull")) {
        int fd = dial(target);
        double start = now();
        if (put(fd, "g", 1) || put(fd, &count, 8)) die("pull");
        for (uint64_t left = count; left;) {
            ssize_t n = recv(fd, buffer, left < CHUNK ? left : CHUNK, 0);
            if (n <= 0) die("pull");
            left -= n;
        }
        printf("%.9f\n", now() - start);
    } else if (!strcmp(role, "ping")) {
        uint64_t size = strtoull(argv[4], 0, 10), warm = count / 10;
        double *times = malloc(count * sizeof *times);
        int fd = dial(target);
        if (put(fd, "e", 1) || put(fd, &size, 8)) die("ping");
        for (uint64_t i = 0; i < warm + count; i++) {
            double start = now();
            if (put(fd, buffer, size) || get(fd, &byte, 1)) die("ping");
            if (i >= warm) times[i - warm] = now() - start;
        }
        qsort(times, count, sizeof *times, compare);
        printf("%.3f %.3f\n", times[count / 2] * 1e6, times[count * 99 / 100] * 1e6);
    } else if (!strcmp(role, "calls")) {
        long callers = atol(argv[4]);
        calls_each = count / callers;
        pthread_t threads[64];
        double start = now();
        for (long i = 0; i < callers; i++) pthread_create(&threads[i], 0, caller, 0);
        for (long i = 0; i < callers; i++) pthread_join(threads[i], 0);
        printf("%.3f\n", calls_each * callers / (now() - start));
    } else if (!strcmp(role, "hold")) {
        for (uint64_t i = 0; i < count; i++) {
            int fd = dial(target);
            if (put(fd, "h", 1) || get(fd, &byte, 1)) die("hold");
        }
        puts("ready");
        fflush(stdout);
        if (read(0, &byte, 1) < 0) return 1;
    } else if (!strcmp(role, "notice")) {
        int fd = dial(target);
        if (put(fd, "h", 1) || get(fd, &byte, 1)) die("notice");
        puts("ready");
        fflush(stdout);
        recv(fd, &byte, 1, 0); /* the end, or a reset */
        printf("%.9f\n", now());
    } else {
        return 2;
    }
    return 0;
}
