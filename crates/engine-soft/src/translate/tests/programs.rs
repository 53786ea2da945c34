//! Whole programs, compiled by the host's C compiler, run by the interpreter
//! and by the translator: same registers and memory, and the host's result.

use std::process::Command;
use std::sync::Arc;

use engine::Bus;
use memory::GuestRam;

use crate::core::Core;
use crate::cpu::{Seg, cr, seg};
use crate::translate::dispatch::Next;

struct NoBus;

impl Bus for NoBus {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn acknowledge_extint(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

const TEXT: u64 = 0x20_0000;
const STACK: u64 = 0x18_0000;

/// Compiles a freestanding program whose first function is the entry, and
/// which ends with `hlt`.
fn compile(source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (c, o) = (dir.path().join("p.c"), dir.path().join("p.bin"));
    std::fs::write(&c, source).unwrap();
    let status = Command::new("cc")
        .args([
            "-O2",
            "-mpopcnt",
            "-ffreestanding",
            "-nostdlib",
            "-static",
            "-fno-pie",
            "-no-pie",
        ])
        .args([
            "-fno-stack-protector",
            "-fcf-protection=none",
            "-mno-red-zone",
        ])
        .args(["-Wl,-Ttext=0x200000,--oformat=binary,--build-id=none,-e,_start"])
        .arg("-o")
        .arg(&o)
        .arg(&c)
        .status()
        .expect("cc, the C compiler that Rust links with");
    assert!(status.success());
    std::fs::read(&o).unwrap()
}

/// A core in 64-bit mode, ring 0, first 8 MiB mapped to themselves, but for
/// the 2 MiB from `TEXT` on, whose neighbouring pages are exchanged.
fn core64(program: &[u8]) -> Core {
    let ram = GuestRam::new(8 << 20, 8 << 20).unwrap();
    for (page, bytes) in (TEXT >> 12..).zip(program.chunks(4096)) {
        ram.write((page ^ 1) << 12, bytes).unwrap();
    }
    let table = |at: u64, value: u64| ram.write(at, &value.to_le_bytes()).unwrap();
    table(0x1000, 0x2003);
    table(0x2000, 0x3003);
    for i in 0..4 {
        table(0x3000 + i * 8, i << 21 | 0x83);
    }
    table(0x3000 + (TEXT >> 21) * 8, 0x4003);
    for i in 0..512 {
        table(0x4000 + i * 8, (TEXT + ((i ^ 1) << 12)) | 3);
    }
    core64_on(ram)
}

fn core64_on(ram: Arc<GuestRam>) -> Core {
    let mut core = Core::bare(ram, Arc::new(NoBus)).unwrap();
    let c = &mut *core.cpu;
    c.cr3 = 0x1000;
    c.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
    c.cr0 = cr::CR0_PE | cr::CR0_PG | cr::CR0_NE | cr::CR0_WP;
    c.efer = cr::EFER_LME | cr::EFER_LMA;
    c.xcr0 = 7;
    c.seg[seg::CS] = Seg::new(8, 0, u32::MAX, 0xa09b);
    for s in [seg::DS, seg::ES, seg::SS] {
        c.seg[s] = Seg::new(16, 0, u32::MAX, 0xc093);
    }
    c.rip = TEXT;
    c.gpr = [0; 16];
    c.gpr[4] = STACK;
    core.update_mode();
    core.tlb_flush_all();
    core
}

/// Whether the program has reached its final `hlt`.
fn ended(core: &Core) -> bool {
    let mut byte = [0];
    let exchanged = u64::from(core.cpu.rip >> 21 == TEXT >> 21) << 12;
    core.ram.read(core.cpu.rip ^ exchanged, &mut byte).unwrap();
    byte[0] == 0xf4
}

fn interpret(core: &mut Core) -> u64 {
    while !ended(core) {
        core.step_one()
            .unwrap_or_else(|e| panic!("{e:?} at {:#x}", core.cpu.rip));
    }
    core.cpu.gpr[0]
}

fn translate(core: &mut Core) -> u64 {
    let mut stack = vec![0u8; 64 << 10];
    crate::translate::fault::use_signal_stack(&mut stack).unwrap();
    crate::translate::enter::point_gs(core.cpu.as_ptr()).unwrap();
    crate::native::enter_thread(core);
    while !ended(core) {
        match core.run_translated() {
            Ok(Next::Check) => {}
            Ok(Next::Interpret) if ended(core) => {}
            Ok(Next::Interpret) => core
                .step_one()
                .unwrap_or_else(|e| panic!("{e:?} at {:#x}", core.cpu.rip)),
            Err(e) => panic!("{e:?} at {:#x}", core.cpu.rip),
        }
    }
    crate::native::leave_thread(core);
    crate::translate::fault::drop_signal_stack();
    core.cpu.gpr[0]
}

fn both(source: &str) -> u64 {
    let program = compile(source);
    let (mut a, mut b) = (core64(&program), core64(&program));
    let (x, y) = (interpret(&mut a), translate(&mut b));
    assert_eq!(x, y, "results: interpreter, translator");
    assert_eq!(a.cpu.gpr, b.cpu.gpr);
    let (mut ma, mut mb) = (vec![0; 4 << 20], vec![0; 4 << 20]);
    a.ram.read(0x10_0000, &mut ma).unwrap();
    b.ram.read(0x10_0000, &mut mb).unwrap();
    let differs = ma.iter().zip(&mb).position(|(p, q)| p != q);
    assert_eq!(differs.map(|d| d + 0x10_0000), None, "memory differs");
    assert!(
        b.shared
            .code
            .translated_blocks
            .load(std::sync::atomic::Ordering::Relaxed)
            > 0
    );
    x
}

const START: &str = r#"
void *memset(void *p, int c, unsigned long n) { volatile char *q = p; while (n--) *q++ = c; return p; }
void *memcpy(void *d, const void *s, unsigned long n) { volatile char *q = d; const char *r = s; while (n--) *q++ = *r++; return d; }
typedef unsigned long u64; typedef unsigned int u32; typedef unsigned char u8;
static u64 run(void);
__attribute__((naked, section(".text.unlikely"))) void _start(void) {
  __asm__("call run_; hlt");
}
static char heap[1 << 20];
__attribute__((used)) u64 run_(void) __asm__("run_");
u64 run_(void) { return run(); }
"#;

#[test]
fn fibonacci() {
    let _alone = super::ONE_AT_A_TIME.lock();
    let x = both(&format!(
        "{START} static u64 __attribute__((noinline)) fib(u64 n) {{ return n < 2 ? n : fib(n-1) + fib(n-2); }}
         static u64 run(void) {{ return fib(20); }}"
    ));
    assert_eq!(x, 6765);
}

#[test]
fn sorting_and_indirect_calls() {
    let _alone = super::ONE_AT_A_TIME.lock();
    let x = both(&format!(
        r#"{START}
        static u32 seed = 12345;
        static u32 rnd(void) {{ seed = seed * 1103515245 + 12345; return seed >> 8; }}
        static int up(u32 a, u32 b) {{ return a < b; }}
        static int down(u32 a, u32 b) {{ return a > b; }}
        typedef int (*cmp)(u32, u32);
        static void __attribute__((noinline)) sort(u32 *v, long lo, long hi, cmp f) {{
          if (lo >= hi) return;
          u32 p = v[(lo + hi) / 2]; long i = lo, j = hi;
          while (i <= j) {{
            while (f(v[i], p)) i++;
            while (f(p, v[j])) j--;
            if (i <= j) {{ u32 t = v[i]; v[i] = v[j]; v[j] = t; i++; j--; }}
          }}
          sort(v, lo, j, f); sort(v, i, hi, f);
        }}
        static u64 run(void) {{
          u32 *v = (u32 *)heap; u64 h = 1469598103934665603ul;
          for (int k = 0; k < 5000; k++) v[k] = rnd();
          volatile cmp fs[2] = {{ up, down }};
          for (int k = 0; k < 2; k++) {{
            sort(v, 0, 4999, fs[k]);
            for (int i = 0; i < 5000; i++) h = (h ^ v[i]) * 1099511628211ul;
          }}
          return h;
        }}"#
    ));
    assert_ne!(x, 0);
}

#[test]
fn bytes_floats_and_vectors() {
    let _alone = super::ONE_AT_A_TIME.lock();
    both(&format!(
        r#"{START}
        static u64 run(void) {{
          u8 *p = (u8 *)heap; double s = 0; float f[64]; u64 h = 0;
          for (int i = 0; i < 70000; i++) p[i] = (u8)(i * 7 + (i >> 5));
          for (int i = 0; i < 64; i++) f[i] = p[i * 3] * 0.5f;
          for (int k = 0; k < 100; k++)
            for (int i = 0; i < 64; i++) f[i] = f[i] * 1.01f + (float)p[k + i];
          for (int i = 0; i < 64; i++) s += f[i];
          for (int i = 1; i < 70000 - 8; i += 3) {{
            u64 w = *(volatile u64 *)(p + i);
            h = h * 31 + (w >> (i & 63) | w << (-i & 63)) + __builtin_popcountl(w);
            h ^= (h / (w | 1)) + ((long)h % (long)(w | 3));
          }}
          return h ^ (u64)s;
        }}"#
    ));
}

/// Flags that are set before loads, stores, calls, returns and indirect jumps,
/// and read behind them: no compiler does that, but a CPU must not care.
#[test]
fn flags_survive_memory_and_every_kind_of_jump() {
    let _alone = super::ONE_AT_A_TIME.lock();
    let source = r#"
        unsigned long cells[64], sum;
        __attribute__((naked)) void by_return(void) {
            __asm__("add %rsi, %rdi; mov cells(,%rcx,8), %rax; mov %rax, cells+8(,%rcx,8); ret");
        }
        __attribute__((naked)) void by_thunk(void) {
            __asm__("cmp %rsi, %rdi; jmp 1f; nop; 1: jmp *table(%rip)");
        }
        __attribute__((naked)) void pass(void) { __asm__("push %rdx; pop %rdx; ret"); }
        void *table = pass;
        __attribute__((naked)) void partly(void) {
            __asm__("sub %rsi, %rdi; inc %rdi; mov cells(,%rcx,8), %rax; mov $1f, %rax;"
                    "test %rcx, %rcx; cmp %rsi, %rdi; inc %rsi; jmp *%rax; nop; 1: push %rax;"
                    "pop %rax; ret");
        }
        static unsigned long flags_after(void (*f)(void), unsigned long a, unsigned long b,
                                         unsigned long i) {
            unsigned long seen, carried = 0;
            __asm__ volatile(
                "call *%[f]\n"
                "mov cells(,%%rcx,8), %%r9\n"       /* a check before the first reader */
                "mov %%r9, cells+16(,%%rcx,8)\n"
                "adc $0, %[carried]\n"
                "call *%[f]\n"
                "pushfq; pop %[seen]\n"
                : [seen] "=&r"(seen), [carried] "+r"(carried), "+D"(a), "+S"(b)
                : [f] "r"(f), "c"(i)
                : "rax", "r9", "memory", "cc");
            return (seen & 0x8d5) + carried;
        }
        static u64 run(void) {
            unsigned long x = 0x9e3779b97f4a7c15;
            for (unsigned long n = 0; n < 3000; n++) {
                unsigned long a = x, b;
                x ^= x << 13; x ^= x >> 7; x ^= x << 17;
                b = n & 3 ? x : a;
                unsigned long i = n & 31;
                sum = sum * 31 + flags_after(by_return, a, b, i);
                sum = sum * 31 + flags_after(by_thunk, a, b, i);
                sum = sum * 31 + flags_after(partly, a, b, i);
            }
            return sum;
        }
    "#;
    let sum = both(&format!("{START} {source}"));
    assert_ne!(sum, 0);
}

/// Loops that run without checks for a page at a time: strides of all kinds,
/// over page boundaries, with side exits, and stores that later loads see.
#[test]
fn loops_over_pages() {
    let _alone = super::ONE_AT_A_TIME.lock();
    let source = r#"
        static u64 loop(const char *name_unused, u64 kind, char *p, char *q, u64 n) {
            u64 a = 1, b = 0;
            (void)name_unused;
            switch (kind) {
            case 0: __asm__ volatile("1: movzbl (%[p]), %%eax; add %%rax, %[a]; inc %[p]; dec %[n]; jnz 1b"
                : [a] "+r"(a), [p] "+r"(p), [n] "+r"(n) : : "rax", "memory", "cc"); break;
            case 1: __asm__ volatile("1: mov -8(%[p]), %%rax; xor %%rax, %[a]; sub $8, %[p]; rol $3, %[a]; sub $8, %[n]; ja 1b"
                : [a] "+r"(a), [p] "+r"(p), [n] "+r"(n) : : "rax", "memory", "cc"); break;
            case 2: __asm__ volatile("1: mov (%[p],%[b],4), %%eax; add %%eax, 4(%[q],%[b],4); add $3, %[b]; cmp %[n], %[b]; jb 1b"
                : [b] "+r"(b) : [p] "r"(p), [q] "r"(q), [n] "r"(n / 4) : "rax", "memory", "cc"); break;
            case 3: __asm__ volatile("1: mov (%[p],%[b]), %%al; cmp $0x5c, %%al; je 2f; mov %%al, 1(%[q],%[b]);"
                " add $1, %[b]; cmp %[n], %[b]; jne 1b; 2:"
                : [b] "+r"(b) : [p] "r"(p), [q] "r"(q), [n] "r"(n) : "rax", "memory", "cc"); break;
            case 4: __asm__ volatile("1: movups (%[p]), %%xmm0; movups 16(%[p]), %%xmm1; paddd %%xmm1, %%xmm0;"
                " movups %%xmm0, 24(%[p]); movups %%xmm1, (%[q],%[b],8); add $7, %[p]; add $2, %[b]; cmp %[n], %[b]; jb 1b"
                : [b] "+r"(b), [p] "+r"(p) : [q] "r"(q), [n] "r"(n / 8) : "xmm0", "xmm1", "memory", "cc"); break;
            case 5: __asm__ volatile("1: addq $1, (%[p]); mov 64(%[p]), %%rax; lea 120(%[p]), %[p]; mov %%rax, (%[q]);"
                " adc %%rax, 8(%[q]); add %%rax, %[a]; sub $120, %[n]; jg 1b"
                : [a] "+r"(a), [p] "+r"(p), [n] "+r"(n) : [q] "r"(q) : "rax", "memory", "cc"); break;
            case 6: __asm__ volatile("1: mov (%[p]), %%rax; lock xadd %%rax, (%[q]); mov (%[q]), %%rdx; mov %%rdx, 8(%[p]);"
                " mov -40(%%rsp), %%rdx; add %%rdx, %[a]; add $16, %[p]; add $8, %[q]; sub $16, %[n]; jnz 1b"
                : [a] "+r"(a), [p] "+r"(p), [q] "+r"(q), [n] "+r"(n) : : "rax", "rdx", "memory", "cc"); break;
            }
            return a + b;
        }
        static u64 run(void) {
            u64 sum = 0, x = 1;
            for (u64 i = 0; i < sizeof heap; i += 8) {
                x ^= x << 13; x ^= x >> 7; x ^= x << 17;
                *(u64 *)(heap + i) = x;
            }
            for (u64 round = 0; round < 40; round++)
                for (u64 kind = 0; kind < 7; kind++) {
                    u64 from = (x * (round + 3) >> 20) % 40000, to = (x * (kind + 7) >> 24) % 50000;
                    u64 n = ((x >> round) % 2000 + 2) * 16;
                    from = (from & ~15ul) + (round & 1) * (round % 13);
                    if (kind == 1) from += n;
                    sum = sum * 31 + loop("", kind, heap + 4096 + from, heap + 400000 + to, n);
                }
            for (u64 i = 0; i < sizeof heap; i += 8) sum = sum * 33 + *(u64 *)(heap + i);
            return sum;
        }
    "#;
    let sum = both(&format!("{START} {source}"));
    assert_ne!(sum, 0);
}

/// A loop that runs off the end of what is mapped stops at the very access.
#[test]
fn a_fault_in_a_loop_is_precise() {
    let _alone = super::ONE_AT_A_TIME.lock();
    for step in [8, 24, 56] {
        let program = compile(&format!(
            r#"__attribute__((naked)) void _start(void) {{ __asm__(
                "mov $0x7f0000, %ebx; mov $0x300000, %ecx; xor %eax, %eax;"
                "1: inc %rax; mov %rax, (%rcx); add (%rbx), %rax; mov %rax, 8(%rbx);"
                "add ${step}, %rbx; add $16, %rcx; cmp $-1, %rax; jne 1b; hlt"); }}"#
        ));
        let (mut a, mut b) = (core64(&program), core64(&program));
        let stop = loop {
            if let Err(e) = a.step_one() {
                break e;
            }
        };
        let mut stack = vec![0u8; 64 << 10];
        crate::translate::fault::use_signal_stack(&mut stack).unwrap();
        crate::translate::enter::point_gs(b.cpu.as_ptr()).unwrap();
        crate::native::enter_thread(&mut b);
        let other = loop {
            let ran = match b.run_translated() {
                Ok(Next::Check) => Ok(()),
                Ok(Next::Interpret) => b.step_one(),
                Err(e) => Err(e),
            };
            if let Err(e) = ran {
                break e;
            }
        };
        crate::native::leave_thread(&mut b);
        crate::translate::fault::drop_signal_stack();
        assert_eq!(stop, other);
        assert_eq!(
            (a.cpu.rip, a.cpu.gpr),
            (b.cpu.rip, b.cpu.gpr),
            "step {step}"
        );
        let (mut ma, mut mb) = (vec![0; 6 << 20], vec![0; 6 << 20]);
        a.ram.read(0x20_0000, &mut ma).unwrap();
        b.ram.read(0x20_0000, &mut mb).unwrap();
        assert!(ma == mb, "memory differs, step {step}");
    }
}
