/* A daemon as Android has them: it looks its socket up, listens, and serves one client after the other.
   "die" ends it with status 5; "fork" leaves a child in its group; "stray" leaves one in a session of its own,
   "deaf" one in its group that ignores SIGTERM. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int control_socket(const char *name) {
    char key[64];
    snprintf(key, sizeof key, "ANDROID_SOCKET_%s", name);
    const char *value = getenv(key);
    if (value == NULL) return -1;
    errno = 0;
    int fd = strtol(value, NULL, 10);
    return errno ? -1 : fd;
}

int main(int argc, char **argv) {
    int server = control_socket(argc > 1 ? argv[1] : "echo");
    if (server < 0 || listen(server, 4) < 0) return 3;
    for (;;) {
        char buffer[256];
        ssize_t size;
        int client = accept(server, NULL, NULL);
        if (client < 0) return 4;
        size = snprintf(buffer, sizeof buffer, "%d\n", (int)getpid());
        if (write(client, buffer, size) < 0) return 4;
        while ((size = read(client, buffer, sizeof buffer)) > 0) {
            if (size >= 3 && memcmp(buffer, "die", 3) == 0) return 5;
            if (size >= 4 && (memcmp(buffer, "fork", 4) == 0 || memcmp(buffer, "stra", 4) == 0 ||
                              memcmp(buffer, "deaf", 4) == 0)) {
                int stray = buffer[0] == 's', deaf = buffer[0] == 'd';
                if (deaf) signal(SIGTERM, SIG_IGN);
                pid_t child = fork();
                if (deaf && child != 0) signal(SIGTERM, SIG_DFL);
                if (child == 0) {
                    if (stray) setsid();
                    close(client);
                    pause();
                    _exit(0);
                }
                size = snprintf(buffer, sizeof buffer, "%d\n", (int)child);
            }
            if (write(client, buffer, size) < 0) break;
        }
        close(client);
    }
}
