//! Copies of blocks are, byte for byte, what a translation gives.

use crate::cpu::View;
use crate::translate::block::{Place, Source, Translator};
use crate::translate::cache::{BlockKey, CodeCache, Fpu, Index};
use crate::translate::relocate::{copy, normal};

/// Three RAM pages of code, mapped side by side at some linear page.
struct Code {
    bytes: Vec<u8>,
    linear: u64,
}

impl Source for Code {
    fn fetch(&mut self, rip: u64, out: &mut [u8]) -> usize {
        let Some(page) = self.ram_page(rip) else {
            return 0;
        };
        let at = (page as usize - 1) << 12 | (rip & 0xfff) as usize;
        let n = out.len().min(4096 - (rip & 0xfff) as usize);
        out[..n].copy_from_slice(&self.bytes[at..at + n]);
        n
    }

    fn ram_page(&mut self, rip: u64) -> Option<u64> {
        let page = (rip >> 12).wrapping_sub(self.linear >> 12);
        (page < 3).then_some(page + 1)
    }

    fn is_watched(&self, _: u64) -> bool {
        true
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Code in which much depends on where it is, between bytes of chance.
fn code(random: &mut Random, code32: bool) -> Vec<u8> {
    const FORMS_32: [&[u8]; 14] = [
        &[0x8b, 0x05], // mov eax, [d]
        &[0x89, 0x0d], // mov [d], ecx
        &[0x8d, 0x3d], // lea edi, [d]
        &[0xa1],       // mov eax, [d]
        &[0xa2],       // mov [d], al
        &[0x65, 0x8b, 0x05],
        &[0x64, 0xa1],
        &[0x68],             // push imm
        &[0xe8],             // call
        &[0xe9],             // jmp
        &[0x0f, 0x84],       // je
        &[0xff, 0x15],       // call [d]
        &[0xff, 0x24, 0x85], // jmp [eax * 4 + d]
        &[0x0f, 0x10, 0x05], // movups xmm0, [d]
    ];
    const FORMS: [&[u8]; 14] = [
        &[0x48, 0x8b, 0x05], // mov rax, [rip + d]
        &[0x89, 0x0d],       // mov [rip + d], ecx
        &[0x48, 0x8d, 0x3d], // lea rdi, [rip + d]
        &[0x4c, 0x8d, 0x35], // lea r14, [rip + d]
        &[0x8d, 0x35],       // lea esi, [rip + d]
        &[0x67, 0x48, 0x8b, 0x05],
        &[0x67, 0x48, 0x8d, 0x05],
        &[0x64, 0x48, 0x8b, 0x05],
        &[0xe8],             // call
        &[0xe9],             // jmp
        &[0x0f, 0x84],       // je
        &[0xff, 0x15],       // call [rip + d]
        &[0x48, 0x39, 0x1d], // cmp [rip + d], rbx
        &[0x0f, 0x10, 0x05], // movups xmm0, [rip + d]
    ];
    let mut out = Vec::with_capacity(3 << 12);
    while out.len() < 3 << 12 {
        match random.next() % 4 {
            0 => {
                let forms = if code32 { FORMS_32 } else { FORMS };
                out.extend(forms[(random.next() % 14) as usize]);
                out.extend(((random.next() % 8192) as i32 - 4096).to_le_bytes());
            }
            1 => out.extend([0xff, 0xd0, 0xc3, 0x50, 0x01, 0xd8, 0x75, 0xf0]),
            _ => out.extend(random.next().to_le_bytes().iter().take(3)),
        }
    }
    out.truncate(3 << 12);
    out
}

/// Linear pages whose addresses are encoded in each way, some near the edges.
const LINEAR: [u64; 9] = [
    0x40_0000,
    0x7fff_e000,
    0x8000_0000,
    0xffff_d000,
    0x5555_5555_4000,
    0x7f12_3456_7000,
    0x7fff_ffff_c000,
    0xffff_8000_0000_0000,
    0xffff_ffff_8100_0000,
];

#[test]
fn copies_are_what_a_translation_gives() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut copied, mut refused) = (0, 0);
    for round in 0..600 {
        let code32 = round % 3 == 2;
        let cache = CodeCache::new().unwrap();
        let mut index = cache.index.lock();
        let mut translator = Translator::default();
        let bytes = code(&mut random, code32);
        let places = if code32 { 4 } else { 9 };
        let mut any = || LINEAR[(random.next() % places) as usize];
        let (first, then) = (any(), any());
        let offset = random.next() % 8192;
        let mut blocks = |linear: u64, index: &mut Index| {
            let mut source = Code {
                bytes: bytes.clone(),
                linear,
            };
            let rip = linear + offset;
            let ram_page = source.ram_page(rip).unwrap();
            let view = match round / 3 % 3 {
                0 => View::User,
                1 => View::Kernel,
                _ => View::KernelAc,
            };
            let user = view == View::User;
            let key = BlockKey {
                map: index.map_id(rip & !0xfff, ram_page, user),
                offset: (rip & 0xfff) as u16,
                view: view as u8,
                ungrouped: round % 5 == 0,
                fpu: Fpu {
                    legacy: round % 7 != 0,
                    vex: round % 7 != 0,
                },
                code32,
            };
            let place = Place { rip, key, ram_page };
            let made = translator.translate(&cache, index, &mut source, place);
            (made.ok(), place, source)
        };
        let (Some(a), _, _) = blocks(first, &mut index) else {
            continue;
        };
        // Padding goes by where in a cache line code lies.
        let start = index.blocks[a as usize].entries.cross_page as usize;
        index.hot += start.wrapping_sub(index.hot) % 64;
        let (Some(b), place, mut source) = blocks(then, &mut index) else {
            continue;
        };
        match copy(&cache, &mut index, &mut source, a, place) {
            Ok(Some(c)) => {
                assert_eq!(
                    normal(&cache, &index, c),
                    normal(&cache, &index, b),
                    "{first:x} {then:x} {offset:x}"
                );
                copied += 1;
            }
            Ok(None) => refused += 1,
            Err(e) => panic!("{e:?}"),
        }
    }
    println!("{copied} copied, {refused} refused");
    assert!(copied > 100 && refused > 0, "{copied} {refused}");
}
