/* x87, SSE, AVX2 and FMA: prints results bit by bit, to compare with the host's. */
#include <cpuid.h>
#include <fenv.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static uint64_t state = 88172645463325252ull;
static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}
static uint64_t sum;
static void add(const void *data, size_t length) {
  const unsigned char *bytes = data;
  for (size_t i = 0; i < length; i++) sum = (sum ^ bytes[i]) * 1099511628211ull;
}
static void show(const char *name) {
  printf("%s %016llx\n", name, (unsigned long long)sum);
  sum = 14695981039346656037ull;
}
static double number(void) {
  /* All kinds: normal, subnormal, huge, tiny, infinite, not a number. */
  uint64_t bits = next();
  if (bits % 16 == 0) bits &= 0x800fffffffffffffull;
  if (bits % 16 == 1) bits |= 0x7ff0000000000000ull;
  double d;
  memcpy(&d, &bits, 8);
  return d;
}

static void x87(void) {
  static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
  for (int mode = 0; mode < 4; mode++) {
    fesetround(modes[mode]);
    for (int i = 0; i < 20000; i++) {
      volatile long double a = number(), b = number(), r;
      r = a + b; add((void *)&r, 10);
      r = a * b; add((void *)&r, 10);
      r = a / b; add((void *)&r, 10);
      r = sqrtl(fabsl(a)); add((void *)&r, 10);
      r = fmodl(i * 1.75L, 0.3L); add((void *)&r, 10);
      volatile double d = a * 0.5L; add((void *)&d, 8);
    }
    int raised = fetestexcept(FE_ALL_EXCEPT);
    add(&raised, sizeof raised);
    feclearexcept(FE_ALL_EXCEPT);
  }
  fesetround(FE_TONEAREST);
  /* The transcendental instructions on the host's own CPU. */
  for (int i = 1; i < 2000; i++) {
    long double x = i * 0.001L, s, c, y;
    __asm__("fsincos" : "=t"(c), "=u"(s) : "0"(x));
    add(&s, 10); add(&c, 10);
    __asm__("fyl2x" : "=t"(y) : "0"(x), "u"(1.0L) : "st(1)");
    add(&y, 10);
  }
  show("x87");
}

static void sse(void) {
  for (int i = 0; i < 50000; i++) {
    __m128d a = _mm_set_pd(number(), number()), b = _mm_set_pd(number(), number());
    __m128d r[6] = {_mm_add_pd(a, b), _mm_mul_pd(a, b), _mm_div_pd(a, b),
                    _mm_sqrt_pd(a), _mm_min_pd(a, b), _mm_cmplt_pd(a, b)};
    add(r, sizeof r);
    __m128 s[3] = {_mm_cvtpd_ps(a), _mm_add_ps(_mm_castpd_ps(a), _mm_castpd_ps(b)),
                   _mm_mul_ps(_mm_castpd_ps(a), _mm_castpd_ps(b))};
    add(s, sizeof s);
    __m128i n = _mm_cvttpd_epi32(b);
    add(&n, sizeof n);
    long long whole = _mm_cvtsd_si64(a);
    add(&whole, sizeof whole);
    unsigned compared = _mm_comieq_sd(a, b) | _mm_comilt_sd(a, b) << 1;
    add(&compared, sizeof compared);
  }
  unsigned csr = _mm_getcsr();
  add(&csr, sizeof csr);
  _mm_setcsr(0x9fc0); /* flush to zero, denormals are zero */
  for (int i = 0; i < 20000; i++) {
    __m128d r = _mm_mul_pd(_mm_set_pd(number(), number()), _mm_set1_pd(1e-200));
    add(&r, sizeof r);
  }
  _mm_setcsr(0x1f80);
  show("sse");
}

__attribute__((target("sse4.2"))) static void sse42(void) {
  for (int i = 0; i < 50000; i++) {
    __m128i a = _mm_set_epi64x(next(), next()), b = _mm_set_epi64x(next(), next());
    __m128i r[6] = {_mm_shuffle_epi8(a, b), _mm_mullo_epi32(a, b), _mm_mpsadbw_epu8(a, b, 5),
                    _mm_blendv_epi8(a, b, a), _mm_cmpgt_epi64(a, b), _mm_cmpestrm(a, 13, b, 11, 0x44)};
    add(r, sizeof r);
    unsigned c = _mm_crc32_u32(i, (unsigned)next());
    add(&c, sizeof c);
    __m128d f = _mm_round_pd(_mm_set_pd(number(), number()), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    add(&f, sizeof f);
  }
  show("sse4.2");
}

__attribute__((target("avx2,fma,bmi,bmi2"))) static void avx2(void) {
  static int table[256];
  for (int i = 0; i < 256; i++) table[i] = (int)next();
  for (int i = 0; i < 50000; i++) {
    __m256i a = _mm256_set_epi64x(next(), next(), next(), next());
    __m256i b = _mm256_set_epi64x(next(), next(), next(), next());
    __m256i r[5] = {_mm256_shuffle_epi8(a, b), _mm256_mul_epi32(a, b), _mm256_permute4x64_epi64(a, 0x1b),
                    _mm256_sllv_epi32(a, _mm256_and_si256(b, _mm256_set1_epi32(31))),
                    _mm256_i32gather_epi32(table, _mm256_and_si256(a, _mm256_set1_epi32(255)), 4)};
    add(r, sizeof r);
    __m256d x = _mm256_set_pd(number(), number(), number(), number());
    __m256d y = _mm256_set_pd(number(), number(), number(), number());
    __m256d f[3] = {_mm256_fmadd_pd(x, y, x), _mm256_div_pd(x, y), _mm256_sqrt_pd(x)};
    add(f, sizeof f);
    uint64_t n[4] = {_pext_u64(next(), state), _pdep_u64(next(), state), _andn_u64(next(), state),
                     _blsr_u64(next())};
    add(n, sizeof n);
  }
  show("avx2");
}

int main(void) {
  sum = 14695981039346656037ull;
  x87();
  sse();
  if (__builtin_cpu_supports("sse4.2")) sse42();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) avx2();
  else puts("avx2 missing");
  return 0;
}
