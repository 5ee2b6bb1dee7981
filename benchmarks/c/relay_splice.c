/* A relay with splice(2) through a pipe of 1 MiB each way:  relay_splice PORT PATH */
#define SIZE (1 << 20)
#define FLOW int pipe[2]; size_t filled;
#include "relay.h"

static int flow_open(struct end *e) {
    if (pipe2(e->pipe, O_NONBLOCK | O_CLOEXEC)) return e->pipe[0] = e->pipe[1] = -1;
    fcntl(e->pipe[1], F_SETPIPE_SZ, SIZE);
    return 0;
}

static void flow_close(struct end *e) {
    close(e->pipe[0]);
    close(e->pipe[1]);
}

static int waiting(struct end *e) { return e->filled > 0; }

static int move(struct end *from) {
    for (int round = 0; round < 16; round++) {
        if (!waiting(from)) {
            if (from->eof) return 0;
            ssize_t n = splice(from->fd, 0, from->pipe[1], 0, SIZE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
            if (n < 0) return errno == EAGAIN ? 0 : -1;
            if (n == 0) return from->eof = 1, 0;
            from->filled = n;
        }
        ssize_t n = splice(from->pipe[0], 0, from->peer->fd, 0, from->filled, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (n < 0) return errno == EAGAIN ? 0 : -1;
        from->filled -= n;
        if (waiting(from)) return 0;
    }
    return 0;
}
