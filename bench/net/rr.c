// Round trips of one byte over TCP.
//   rr serve PORT          answers one connection after the other
//   rr ask ADDRESS PORT N  prints the median and the mean of N round trips in microseconds
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int die(const char *what) {
    perror(what);
    return 1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int ascending(const void *a, const void *b) {
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

int main(int argc, char **argv) {
    int serve = argc == 3 && !strcmp(argv[1], "serve");
    if (!serve && (argc != 5 || strcmp(argv[1], "ask"))) {
        fprintf(stderr, "rr serve PORT | rr ask ADDRESS PORT N\n");
        return 2;
    }
    int one = 1, s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = INADDR_ANY};
    char byte = 0;
    if (serve) {
        to.sin_port = htons(atoi(argv[2]));
        setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(s, (void *)&to, sizeof to) || listen(s, 8)) return die("listen");
        for (;;) {
            int c = accept(s, 0, 0);
            if (c < 0) return die("accept");
            setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            while (read(c, &byte, 1) == 1 && write(c, &byte, 1) == 1) {}
            close(c);
        }
    }
    to.sin_port = htons(atoi(argv[3]));
    if (inet_pton(AF_INET, argv[2], &to.sin_addr) != 1) return 2;
    if (connect(s, (void *)&to, sizeof to)) return die("connect");
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int count = atoi(argv[4]);
    double *times = calloc(count > 0 ? count : 1, sizeof *times), sum = 0;
    for (int i = 0; i < count; i++) {
        double start = now();
        if (write(s, &byte, 1) != 1 || read(s, &byte, 1) != 1) return die("round trip");
        sum += times[i] = now() - start;
    }
    qsort(times, count, sizeof *times, ascending);
    printf("RR %.1f %.1f\n", times[count / 2], sum / count);
    return 0;
}
