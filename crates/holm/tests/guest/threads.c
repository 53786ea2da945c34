/* Threads, atomics, memory order, fork and copy-on-write. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("FAIL line %d: %s\n", __LINE__, #what); exit(1); } } while (0)
enum { THREADS = 4, ROUNDS = 200000 };

static atomic_long counter;
static long guarded;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static _Alignas(16) unsigned __int128 wide;

static void *count(void *unused) {
  (void)unused;
  for (int i = 0; i < ROUNDS; i++) {
    atomic_fetch_add(&counter, 1);
    if (i % 16 == 0) {
      pthread_mutex_lock(&mutex);
      guarded++;
      pthread_mutex_unlock(&mutex);
    }
    if (i % 64 == 0) {
      unsigned __int128 old = wide;
      uint64_t low, high;
      unsigned char done;
      do {
        unsigned __int128 new = old + (((unsigned __int128)1 << 64) | 1);
        low = old; high = old >> 64;
        __asm__ volatile("lock cmpxchg16b %1; sete %0"
                         : "=q"(done), "+m"(wide), "+a"(low), "+d"(high)
                         : "b"((uint64_t)new), "c"((uint64_t)(new >> 64)) : "memory");
        old = (unsigned __int128)high << 64 | low;
      } while (!done);
    }
  }
  return 0;
}

static void run(void *(*work)(void *)) {
  pthread_t threads[THREADS];
  for (long i = 0; i < THREADS; i++) CHECK(!pthread_create(&threads[i], 0, work, (void *)i));
  for (int i = 0; i < THREADS; i++) CHECK(!pthread_join(threads[i], 0));
}

/* Message passing: under x86's order a reader that sees the flag sees the data. */
static volatile uint64_t data[64], flag;
static void *pass(void *me) {
  if (me == 0) {
    for (uint64_t i = 1; i <= 100000; i++) { data[i % 64] = i; flag = i; }
  } else {
    for (uint64_t seen = 0; seen < 100000;) {
      seen = flag;
      uint64_t value = data[seen % 64];
      CHECK(!seen || (value >= seen && (value - seen) % 64 == 0));
    }
  }
  return 0;
}

/* Code that one thread rewrites while others run it between barriers. */
static unsigned char *code;
static pthread_barrier_t barrier;
static void *rewrite(void *me) {
  for (uint32_t i = 0; i < 2000; i++) {
    if (me == 0) {
      code[0] = 0xb8; /* mov eax, i */
      memcpy(code + 1, &i, 4);
      code[5] = 0xc3;
    }
    pthread_barrier_wait(&barrier);
    CHECK(((uint32_t (*)(void))code)() == i);
    pthread_barrier_wait(&barrier);
  }
  return 0;
}

static void copy_on_write(void) {
  size_t size = 4 << 20;
  unsigned char *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED && shared != MAP_FAILED);
  for (size_t i = 0; i < size; i += 4096) memory[i] = i >> 12;
  for (int child = 0; child < 8; child++) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (!pid) {
      for (size_t i = 0; i < size; i += 4096) { CHECK(memory[i] == (unsigned char)(i >> 12)); memory[i] = ~child; }
      for (size_t i = 0; i < size; i += 4096) CHECK(memory[i] == (unsigned char)~child);
      __atomic_fetch_add(shared, 1, __ATOMIC_SEQ_CST);
      _exit(7);
    }
  }
  for (int child = 0; child < 8; child++) {
    int status;
    CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 7);
  }
  CHECK(*shared == 8);
  for (size_t i = 0; i < size; i += 4096) CHECK(memory[i] == (unsigned char)(i >> 12));
}

int main(void) {
  setvbuf(stdout, 0, _IOLBF, 0);
  run(count);
  CHECK(counter == THREADS * ROUNDS);
  CHECK(guarded == THREADS * (ROUNDS / 16));
  uint64_t added = THREADS * (ROUNDS / 64);
  CHECK((uint64_t)wide == added && (uint64_t)(wide >> 64) == added);
  puts("atomics ok");
  run(pass);
  puts("order ok");
  code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(code != MAP_FAILED);
  pthread_barrier_init(&barrier, 0, THREADS);
  run(rewrite);
  puts("rewritten code ok");
  copy_on_write();
  puts("copy on write ok");
  return 0;
}
