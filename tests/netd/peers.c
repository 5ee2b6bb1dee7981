/* netd's peers in C, with the calls that Android's make: ndc, bionic's two lookups, and libnetd_client.
 *
 * peers ndc SOCKET WORD...             AOSP's ndc: one write, one buffer of 4096 bytes, ends after a final reply
 * peers getaddrinfo SOCKET HOST NETID  bionic of Android 6 and 7, by stdio on the socket
 * peers gethostbyname SOCKET NAME NETID
 * peers mark SOCKET COMMAND NETID      a socket goes to fwmarkd; its mark is printed
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        perror(path);
        exit(4);
    }
    return fd;
}

static int ndc(int fd, int count, char **words) {
    char command[4096] = "", buffer[4096];
    int monitor = count == 1 && !strcmp(words[0], "monitor");
    if (!monitor) {
        if (strspn(words[0], "0123456789") == 0)
            strcat(command, "0 ");
        for (int n = 0; n < count; n++) {
            int quoted = strchr(words[n], ' ') != NULL;
            if (quoted)
                strcat(command, "\"");
            strcat(command, words[n]);
            if (quoted)
                strcat(command, "\"");
            if (n + 1 < count)
                strcat(command, " ");
        }
        if (write(fd, command, strlen(command) + 1) < 0)
            return 5;
    }
    for (;;) {
        fd_set readable;
        struct timeval limit = {.tv_sec = 30};
        FD_ZERO(&readable);
        FD_SET(fd, &readable);
        if (select(fd + 1, &readable, NULL, NULL, &limit) <= 0)
            return 6;
        memset(buffer, 0, sizeof buffer);
        ssize_t size = read(fd, buffer, sizeof buffer);
        if (size <= 0)
            return 7;
        for (ssize_t start = 0, at = 0; at < size; at++) {
            if (buffer[at] != '\0')
                continue;
            printf("%s\n", buffer + start);
            fflush(stdout);
            int code = atoi(buffer + start);
            if (!monitor && code >= 200 && code < 600)
                return 0;
            start = at + 1;
        }
    }
}

static uint32_t number(FILE *proxy) {
    uint32_t raw;
    if (fread(&raw, sizeof raw, 1, proxy) != 1)
        exit(8);
    return ntohl(raw);
}

static char *bytes(FILE *proxy, uint32_t size) {
    char *data = calloc(1, size + 1);
    if (size && fread(data, size, 1, proxy) != 1)
        exit(8);
    return data;
}

static void begin(FILE *proxy) {
    char code[4];
    fputc('\0', proxy);
    fflush(proxy);
    if (fread(code, 1, sizeof code, proxy) != sizeof code)
        exit(8);
    if (memcmp(code, "222", 4)) {
        uint32_t size = number(proxy);
        int error = 0;
        if (size == sizeof error)
            memcpy(&error, bytes(proxy, size), size);
        printf("%.3s %d\n", code, error);
        exit(0);
    }
}

static int lookup(FILE *proxy, const char *host, const char *net) {
    fprintf(proxy, "getaddrinfo %s %s %d %d %d %d %s", host, "80", 0, AF_UNSPEC, SOCK_STREAM, 0, net);
    begin(proxy);
    while (number(proxy)) {
        struct addrinfo info = {0};
        info.ai_flags = number(proxy);
        info.ai_family = number(proxy);
        info.ai_socktype = number(proxy);
        info.ai_protocol = number(proxy);
        info.ai_addrlen = number(proxy);
        info.ai_addr = (struct sockaddr *)bytes(proxy, info.ai_addrlen);
        info.ai_canonname = bytes(proxy, number(proxy));
        char text[64], port[16];
        if (info.ai_addr->sa_family != info.ai_family ||
            getnameinfo(info.ai_addr, info.ai_addrlen, text, sizeof text, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV))
            return 9;
        printf("%s %s %d %d\n", text, port, info.ai_socktype, info.ai_protocol);
    }
    /* nothing comes after it; the daemon closes when we do */
    shutdown(fileno(proxy), SHUT_WR);
    return fgetc(proxy) == EOF ? 0 : 10;
}

static int by_name(FILE *proxy, const char *name, const char *net) {
    uint32_t size;
    fprintf(proxy, "gethostbyname %s %s %d", net, name, AF_INET);
    begin(proxy);
    printf("name %s\n", bytes(proxy, number(proxy)));
    while ((size = number(proxy)))
        printf("alias %s\n", bytes(proxy, size));
    printf("family %d\n", number(proxy) == AF_INET);
    printf("length %u\n", number(proxy));
    while ((size = number(proxy))) {
        char text[64];
        printf("%u %s\n", size, inet_ntop(AF_INET, bytes(proxy, size), text, sizeof text));
    }
    /* nothing comes after it; the daemon closes when we do */
    shutdown(fileno(proxy), SHUT_WR);
    return fgetc(proxy) == EOF ? 0 : 10;
}

static int mark(int fd, int command, unsigned net) {
    struct {
        int command;
        unsigned net;
        uid_t uid;
    } request = {command, net, -1};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec data = {&request, sizeof request};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int given = socket(AF_INET, SOCK_STREAM, 0), answer = 0;
    unsigned found = 0;
    socklen_t size = sizeof found;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof given);
    memcpy(CMSG_DATA(header), &given, sizeof given);
    if (sendmsg(fd, &message, 0) != sizeof request || recv(fd, &answer, sizeof answer, 0) != sizeof answer)
        return 8;
    getsockopt(given, SOL_SOCKET, SO_MARK, &found, &size);
    printf("%d %#x\n", answer, found);
    return 0;
}

int main(int count, char **words) {
    if (count < 4)
        return 2;
    int fd = connect_to(words[2]);
    if (!strcmp(words[1], "ndc"))
        return ndc(fd, count - 3, words + 3);
    if (count < 5)
        return 2;
    if (!strcmp(words[1], "mark"))
        return mark(fd, atoi(words[3]), atoi(words[4]));
    FILE *proxy = fdopen(fd, "r+");
    if (!strcmp(words[1], "getaddrinfo"))
        return lookup(proxy, words[3], words[4]);
    return by_name(proxy, words[3], words[4]);
}
