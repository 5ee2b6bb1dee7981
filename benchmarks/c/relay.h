/* What the two C relays share: TCP port in, UNIX socket out, one thread, epoll. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct pair;
struct end { /* one socket, and what flows from it to the other */
    int fd, eof, done, armed;
    struct pair *pair;
    struct end *peer;
    FLOW
};
struct pair {
    struct end ends[2];
    int dead;
    struct pair *next;
};

static int epfd, listener;
static struct pair *graves;
static struct sockaddr_un target = {.sun_family = AF_UNIX};

/* Moves what it can from this end to its peer; -1 when the connection is broken. */
static int move(struct end *from);
static int waiting(struct end *from); /* bytes taken and not yet delivered? */
static int flow_open(struct end *from);
static void flow_close(struct end *from);

static void arm(struct end *e) {
    int want = (!e->eof && !waiting(e) ? EPOLLIN : 0) | (waiting(e->peer) ? EPOLLOUT : 0);
    if (want == e->armed) return;
    struct epoll_event event = {.events = want, .data.ptr = e};
    epoll_ctl(epfd, e->armed < 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, e->fd, &event);
    e->armed = want;
}

static void finish(struct pair *p) {
    if (p->dead) return;
    p->dead = 1;
    for (int i = 0; i < 2; i++) {
        close(p->ends[i].fd);
        flow_close(&p->ends[i]);
    }
    p->next = graves;
    graves = p;
}

static void work(struct end *e) {
    if (e->pair->dead) return;
    if (move(e) < 0) return finish(e->pair);
    if (e->eof && !waiting(e) && !e->done) {
        e->done = 1;
        shutdown(e->peer->fd, SHUT_WR);
        if (e->peer->done) return finish(e->pair);
    }
    arm(e);
    arm(e->peer);
}

static void welcome(void) {
    for (int fd; (fd = accept4(listener, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        int one = 1, out = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (out < 0 || connect(out, (void *)&target, sizeof target)) {
            close(fd);
            close(out);
            continue;
        }
        fcntl(out, F_SETFL, O_NONBLOCK);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct pair *p = calloc(1, sizeof *p);
        p->ends[0] = (struct end){.fd = fd, .pair = p, .peer = &p->ends[1], .armed = -1};
        p->ends[1] = (struct end){.fd = out, .pair = p, .peer = &p->ends[0], .armed = -1};
        if (flow_open(&p->ends[0]) || flow_open(&p->ends[1])) {
            finish(p);
            continue;
        }
        arm(&p->ends[0]);
        arm(&p->ends[1]);
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    signal(SIGPIPE, SIG_IGN);
    strncpy(target.sun_path, argv[2], sizeof target.sun_path - 1);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 4096)) return perror("listen"), 1;
    epfd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = 0}, events[256];
    epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(epfd, events, 256, -1);
        for (int i = 0; i < count; i++) {
            struct end *e = events[i].data.ptr;
            if (!e) {
                welcome();
                continue;
            }
            if (events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) work(e->peer);
            if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) work(e);
        }
        while (graves) { /* not before: a later event of this batch may point to it */
            struct pair *p = graves;
            graves = p->next;
            free(p);
        }
    }
}
