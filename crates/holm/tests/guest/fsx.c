/* Random operations on a file of a shared folder, compared with a model in memory at every step.
 * fsx FILE MODEL SEED COUNT: MODEL is what FILE must be at the end. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
enum { MAX = 256 << 10 };
static unsigned char model[MAX], buffer[MAX], got[MAX];
static size_t size;
static uint64_t seed;
static uint32_t random_below(uint32_t n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}
static void fail(const char *what, int step) {
    fprintf(stderr, "step %d: %s: %s\n", step, what, strerror(errno));
    exit(1);
}
#define MUST(x) do { if (!(x)) fail(#x, step); } while (0)
static void put(size_t at, size_t n) {
    if (at > size) memset(model + size, 0, at - size);
    memcpy(model + at, buffer, n);
    if (at + n > size) size = at + n;
}
static void resize(size_t n) {
    if (n > size) memset(model + size, 0, n - size);
    size = n;
}
int main(int argc, char **argv) {
    int step = -1;
    if (argc != 5) return 2;
    const char *path = argv[1];
    seed = strtoull(argv[3], 0, 0);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    MUST(fd >= 0);
    for (step = 0; step < atoi(argv[4]); step++) {
        static const uint32_t lengths[] = {16, 600, 5000, 70000};
        size_t at = random_below(MAX), n = 1 + random_below(lengths[random_below(4)]);
        if (n > MAX - at) n = MAX - at;
        for (size_t i = 0; i < n; i++) buffer[i] = (unsigned char)random_below(256);
        int op = (int)random_below(14), other;
        switch (op) {
        case 0: case 1: case 2:
            MUST(pwrite(fd, buffer, n, at) == (ssize_t)n); put(at, n); break;
        case 3:
            if (size + n > MAX) break;
            MUST((other = open(path, O_WRONLY | O_APPEND)) >= 0);
            MUST(write(other, buffer, n) == (ssize_t)n); put(size, n); MUST(!close(other)); break;
        case 4: MUST(!ftruncate(fd, at)); resize(at); break;
        case 5: MUST(!truncate(path, at)); resize(at); break;
        case 6: {
            if (at >= size) break;
            if (n > size - at) n = size - at;
            unsigned char *map = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            MUST(map != MAP_FAILED);
            MUST(!memcmp(map, model, size));
            memcpy(map + at, buffer, n); put(at, n);
            if (random_below(2)) MUST(!msync(map, size, MS_SYNC));
            MUST(!munmap(map, size)); break; }
        case 7:
            MUST((other = open(path, O_WRONLY)) >= 0);
            MUST(pwrite(other, buffer, n, at) == (ssize_t)n); put(at, n); MUST(!close(other)); break;
        case 8: MUST(!posix_fallocate(fd, at, n)); if (at + n > size) resize(at + n); break;
        case 9: MUST(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, n));
            if (at < size) memset(model + at, 0, n < size - at ? n : size - at);
            break;
        case 10: MUST(!(random_below(2) ? fsync(fd) : fdatasync(fd))); break;
        case 11:
            MUST(!close(fd)); MUST((fd = open(path, O_RDWR)) >= 0);
            if (!random_below(4) && (other = open("/proc/sys/vm/drop_caches", O_WRONLY)) >= 0) {
                MUST(write(other, "3", 1) == 1); close(other);
            }
            break;
        case 12: {
            struct timespec times[2] = {{1000000000 + random_below(1000000), 5}, {1000000000 + random_below(1000000), 7}};
            struct stat stat;
            MUST(!futimens(fd, times)); MUST(!fstat(fd, &stat));
            MUST(stat.st_mtim.tv_sec == times[1].tv_sec && stat.st_mtim.tv_nsec == 7); break; }
        case 13:
            MUST((other = open(path, O_WRONLY | O_SYNC)) >= 0);
            MUST(pwrite(other, buffer, n, at) == (ssize_t)n); put(at, n); MUST(!close(other)); break;
        }
        struct stat stat;
        MUST(!fstat(fd, &stat) && (size_t)stat.st_size == size);
        ssize_t expected = at >= size ? 0 : (ssize_t)(n < size - at ? n : size - at);
        MUST(pread(fd, got, n, at) == expected);
        if (expected > 0) MUST(!memcmp(got, model + at, expected));
    }
    MUST(!close(fd));
    FILE *out = fopen(argv[2], "w");
    MUST(out && fwrite(model, 1, size, out) == size && !fclose(out));
    struct stat stat;
    MUST(!lstat(path, &stat));
    printf("%lld %lld.%09ld\n", (long long)stat.st_size, (long long)stat.st_mtim.tv_sec, stat.st_mtim.tv_nsec);
    return 0;
}
