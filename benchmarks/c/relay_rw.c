/* A relay with read and write, 64 KiB at a time:  relay_rw PORT PATH */
#define SIZE 65536
#define FLOW char *data; size_t at, filled;
#include "relay.h"

static int flow_open(struct end *e) { return 0 * (e->at = 0); }
static void flow_close(struct end *e) { free(e->data); }
static int waiting(struct end *e) { return e->at < e->filled; }

static int move(struct end *from) {
    if (!from->data && !(from->data = malloc(SIZE))) return -1;
    for (int round = 0; round < 16; round++) {
        if (!waiting(from)) {
            if (from->eof) return 0;
            ssize_t n = recv(from->fd, from->data, SIZE, 0);
            if (n < 0) return errno == EAGAIN ? 0 : -1;
            if (n == 0) return from->eof = 1, 0;
            from->at = 0;
            from->filled = n;
        }
        ssize_t n = send(from->peer->fd, from->data + from->at, from->filled - from->at, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN ? 0 : -1;
        from->at += n;
        if (waiting(from)) return 0;
        if (from->filled < SIZE) return 0;
    }
    return 0;
}
