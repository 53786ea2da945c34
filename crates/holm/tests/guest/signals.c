/* Signals from faults, traps and timers: each handler checks what it is told,
   and the code that was interrupted must not notice. */
#define _GNU_SOURCE
#include <errno.h>
#include <immintrin.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("FAIL line %d: %s\n", __LINE__, #what); exit(1); } } while (0)

static sigjmp_buf back;
static volatile int number, code;
static void *volatile address;
static volatile uint64_t error_code, ip;

static void jump(int signal, siginfo_t *info, void *context) {
  ucontext_t *u = context;
  number = signal;
  code = info->si_code;
  address = info->si_addr;
  error_code = u->uc_mcontext.gregs[REG_ERR];
  ip = u->uc_mcontext.gregs[REG_RIP];
  siglongjmp(back, 1);
}

#define EXPECT(n, ...) do { number = 0; if (!sigsetjmp(back, 1)) { __VA_ARGS__; CHECK(!"no signal came"); } CHECK(number == (n)); } while (0)

static void faults(void) {
  struct sigaction a = {.sa_sigaction = jump, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  int all[] = {SIGFPE, SIGSEGV, SIGILL, SIGBUS, SIGTRAP};
  for (int i = 0; i < 5; i++) CHECK(!sigaction(all[i], &a, 0));
  for (int round = 0; round < 200; round++) {
    volatile int zero = 0, one = 1;
    EXPECT(SIGFPE, one = one / zero);
    CHECK(code == FPE_INTDIV);
    EXPECT(SIGFPE, __asm__ volatile("mov $0x80000000, %%eax; cdq; mov $-1, %%ecx; idiv %%ecx" ::: "eax", "ecx", "edx"));
    EXPECT(SIGSEGV, *(volatile int *)0x1234 = 1);
    CHECK(code == SEGV_MAPERR && address == (void *)0x1234);
    CHECK((error_code & 7) == 6);
    char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    CHECK(!mprotect(page + 4096, 4096, PROT_READ));
    /* A store across the border faults on the second page, and changes nothing. */
    memset(page, 0x55, 4096);
    EXPECT(SIGSEGV, *(volatile uint64_t *)(page + 4092) = 0);
    CHECK(code == SEGV_ACCERR && address == page + 4096);
    CHECK(*(uint32_t *)(page + 4092) == 0x55555555);
    EXPECT(SIGSEGV, ((void (*)(void))page)());
    CHECK(address == page && (error_code & 0x10));
    munmap(page, 8192);
    EXPECT(SIGILL, __asm__ volatile("ud2"));
    EXPECT(SIGSEGV, __asm__ volatile("hlt"));
    EXPECT(SIGSEGV, *(volatile int *)0x8000000000000000 = 1);
    EXPECT(SIGSEGV, __asm__ volatile("movaps %%xmm0, (%0)" ::"r"((char *)&back + 1)));
    EXPECT(SIGTRAP, __asm__ volatile("int3"));
    /* SSE division by zero, unmasked. */
    EXPECT(SIGFPE, _mm_setcsr(0x1f80 & ~0x200); volatile double d = 1.0, z = 0.0; d = d / z);
    CHECK(code == FPE_FLTDIV);
    _mm_setcsr(0x1f80);
  }
  puts("faults ok");
}

static volatile int steps;
static void step(int signal, siginfo_t *info, void *context) {
  (void)signal; (void)info;
  ucontext_t *u = context;
  steps++;
  if (steps == 20) u->uc_mcontext.gregs[REG_EFL] &= ~0x100;
}

static void single_step(void) {
  struct sigaction a = {.sa_sigaction = step, .sa_flags = SA_SIGINFO};
  CHECK(!sigaction(SIGTRAP, &a, 0));
  uint64_t count = 0;
  __asm__ volatile(
      "lea -128(%%rsp), %%rsp; pushf; orl $0x100, (%%rsp); popf\n"
      "1: inc %0; cmp $100, %0; jne 1b\n"
      "lea 128(%%rsp), %%rsp"
      : "+r"(count)::"cc", "memory");
  printf("%llu rounds, %d steps\n", (unsigned long long)count, steps);
  puts("single step ok");
}

static volatile long ticks;
static void tick(int signal) {
  (void)signal;
  /* Uses and so disturbs the vector and x87 registers. */
  volatile double d = ticks;
  volatile long double l = d * 1.5L;
  (void)l;
  __asm__ volatile("pcmpeqd %%xmm0, %%xmm0; pcmpeqd %%xmm7, %%xmm7; pcmpeqd %%xmm15, %%xmm15" ::: "xmm0", "xmm7", "xmm15");
  ticks++;
}

static void timers(void) {
  struct sigaction a = {.sa_handler = tick, .sa_flags = SA_RESTART};
  CHECK(!sigaction(SIGALRM, &a, 0));
  struct itimerval every = {{0, 1000}, {0, 1000}};
  CHECK(!setitimer(ITIMER_REAL, &every, 0));
  /* Everything live in registers, interrupted a thousand times. */
  uint64_t runs = 0;
  while (ticks < 1000) {
    uint64_t a = 1, b = 2, c = 3;
    double x = 1.0, y = 2.0;
    long double z = 3.0L;
    for (int i = 0; i < 2000; i++) {
      a = a * 6364136223846793005ull + 1442695040888963407ull;
      b ^= a >> 7;
      c += b * (a | 1);
      x = x * 1.0000001 + y * 1e-9;
      y = y * 0.9999999 + 1e-7;
      z = z * 1.0000001L - (long double)x * 1e-9L;
    }
    static uint64_t a0, b0, c0;
    static double x0, y0;
    static long double z0;
    if (!runs++) { a0 = a; b0 = b; c0 = c; x0 = x; y0 = y; z0 = z; }
    CHECK(a == a0 && b == b0 && c == c0);
    CHECK(x == x0 && y == y0 && z == z0);
  }
  every = (struct itimerval){0};
  CHECK(!setitimer(ITIMER_REAL, &every, 0));
  puts("timers ok");
}

int main(void) {
  setvbuf(stdout, 0, _IOLBF, 0);
  stack_t other = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
  CHECK(!sigaltstack(&other, 0));
  faults();
  single_step();
  timers();
  return 0;
}
