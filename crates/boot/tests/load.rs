//! Kernels of every format, made here byte by byte, and every way to spoil them.

use std::io::Write;
use std::sync::Arc;

use boot::{BootError, Entry, Identity, ImageFile, Loaded, Request, Role, map};
use memory::GuestRam;
use proptest::prelude::*;

const RAM: u64 = 64 << 20;

fn file(role: Role, bytes: &[u8]) -> ImageFile {
    let mut f = tempfile::NamedTempFile::new().unwrap();
    f.write_all(bytes).unwrap();
    ImageFile::open(role, f.path()).unwrap()
}

fn try_load(
    kernel: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
) -> Result<(Arc<GuestRam>, Loaded), BootError> {
    let ram = GuestRam::new(RAM, RAM).unwrap();
    let kernel = file(Role::Kernel, kernel);
    let initrd = initrd.map(|i| file(Role::Initrd, i));
    let loaded = boot::load(
        &ram,
        &Request {
            kernel: &kernel,
            initrd: initrd.as_ref(),
            cmdline,
            cpus: 2,
            identity: &Identity::default(),
            watchdog: false,
            unpack: true,
        },
    )?;
    Ok((ram, loaded))
}

fn bytes(ram: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut b = vec![0; len];
    ram.read(at, &mut b).unwrap();
    b
}

fn long(ram: &GuestRam, at: u64) -> u64 {
    u64::from(u32::from_le_bytes(bytes(ram, at, 4).try_into().unwrap()))
}

fn quad(ram: &GuestRam, at: u64) -> u64 {
    u64::from_le_bytes(bytes(ram, at, 8).try_into().unwrap())
}

fn string(ram: &GuestRam, at: u64) -> String {
    let b = bytes(ram, at, 256);
    let end = b.iter().position(|c| *c == 0).unwrap();
    String::from_utf8(b[..end].to_vec()).unwrap()
}

fn set(b: &mut [u8], at: usize, v: &[u8]) {
    b[at..at + v.len()].copy_from_slice(v);
}

const CODE: [u8; 16] = *b"kernel code here";

/// An ELF64 with one segment linked high and loaded at 2 MiB, and a note.
fn elf64(pvh: Option<u32>) -> Vec<u8> {
    let mut f = vec![0u8; 0x1000];
    set(&mut f, 0, b"\x7fELF\x02\x01\x01");
    set(&mut f, 16, &2u16.to_le_bytes());
    set(&mut f, 18, &62u16.to_le_bytes());
    set(&mut f, 24, &0x20_0004_u64.to_le_bytes());
    set(&mut f, 32, &64u64.to_le_bytes());
    set(&mut f, 54, &56u16.to_le_bytes());
    set(&mut f, 56, &2u16.to_le_bytes());
    let mut ph = |i: usize, kind: u32, fields: [u64; 5]| {
        let at = 64 + i * 56;
        set(&mut f, at, &kind.to_le_bytes());
        for (n, v) in fields.iter().enumerate() {
            set(&mut f, at + 8 + n * 8, &v.to_le_bytes());
        }
    };
    ph(0, 1, [0x1000, 0xffff_ffff_8020_0000, 0x20_0000, 16, 0x3000]);
    ph(1, 4, [0x200, 0, 0, 36, 36]);
    let mut note = Vec::new();
    for v in [4u32, 1, 17] {
        note.extend(v.to_le_bytes());
    }
    note.extend(b"Xen\0\x09\0\0\0");
    if let Some(entry) = pvh {
        for v in [4u32, 4, 18] {
            note.extend(v.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(entry.to_le_bytes());
    }
    note.resize(36.max(note.len()), 0);
    if pvh.is_some() {
        set(&mut f, 64 + 56 + 32, &(note.len() as u64).to_le_bytes());
    }
    set(&mut f, 0x200, &note);
    f.extend(CODE);
    f
}

/// A bzImage around an LZ4-compressed kernel.
fn bzimage(inner: &[u8]) -> Vec<u8> {
    let packed = lz4_flex::block::compress(inner);
    let mut payload = b"\x02\x21\x4c\x18".to_vec();
    payload.extend((packed.len() as u32).to_le_bytes());
    payload.extend(&packed);
    payload.extend((inner.len() as u32).to_le_bytes());
    let mut code = vec![0xf4u8; 0x400];
    code.extend(&payload);
    code.resize(code.len().next_multiple_of(16), 0);
    let mut f = vec![0u8; 0x600];
    f[0x1f1] = 2;
    set(&mut f, 0x1f4, &((code.len() / 16) as u32).to_le_bytes());
    set(&mut f, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    set(&mut f, 0x202, b"HdrS\x0f\x02");
    f[0x211] = 1;
    set(&mut f, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    set(&mut f, 0x230, &0x20_0000_u32.to_le_bytes());
    f[0x234] = 1;
    f[0x236] = 1;
    set(&mut f, 0x238, &300u32.to_le_bytes());
    set(&mut f, 0x248, &0x400u32.to_le_bytes());
    set(&mut f, 0x24c, &(payload.len() as u32).to_le_bytes());
    set(&mut f, 0x258, &0x100_0000_u64.to_le_bytes());
    set(&mut f, 0x260, &0x40_0000_u32.to_le_bytes());
    f.extend(code);
    f
}

fn multiboot(flat: bool) -> Vec<u8> {
    let flags: u32 = if flat { 0x1_0003 } else { 3 };
    let mut header = Vec::new();
    let sum = 0u32.wrapping_sub(0x1bad_b002 + flags);
    for v in [
        0x1bad_b002,
        flags,
        sum,
        0x10_0004,
        0x10_0000,
        0,
        0x10_2000,
        0x10_0020,
    ] {
        header.extend(v.to_le_bytes());
    }
    let mut f = vec![0x90; 4];
    f.extend(&header);
    f.extend(CODE);
    f
}

fn cpio() -> Vec<u8> {
    let mut f = b"070701".to_vec();
    for i in 0..13 {
        f.extend(if i == 11 { b"0000000B" } else { b"00000000" });
    }
    f.extend(b"TRAILER!!!\0");
    f.resize(512, 0);
    f
}

#[test]
fn a_bzimage_is_unpacked_and_entered_at_its_elf_entry() {
    let (ram, l) = try_load(&bzimage(&elf64(None)), Some(&cpio()), "console=ttyS0").unwrap();
    assert_eq!(
        l.entry,
        Entry::Long {
            rip: 0x20_0004,
            rsi: map::BOOT_PARAMS
        }
    );
    assert_eq!(bytes(&ram, 0x20_0000, 16), CODE);
    let p = map::BOOT_PARAMS;
    assert_eq!(string(&ram, long(&ram, p + 0x228)), "console=ttyS0");
    let initrd = long(&ram, p + 0x218);
    assert_eq!(long(&ram, p + 0x21c), 512);
    assert_eq!(initrd, RAM - 4096);
    assert_eq!(bytes(&ram, initrd, 6), b"070701");
    assert_eq!(bytes(&ram, p + 0x210, 1), [0xff]);
    let rsdp = quad(&ram, p + 0x70);
    assert_eq!(bytes(&ram, rsdp, 8), b"RSD PTR ");
    // The memory map has RAM at 1 MiB up to the end, and ECAM reserved.
    let entries = usize::from(bytes(&ram, p + 0x1e8, 1)[0]);
    let map: Vec<(u64, u64, u64)> = (0..entries as u64)
        .map(|i| p + 0x2d0 + i * 20)
        .map(|at| (quad(&ram, at), quad(&ram, at + 8), long(&ram, at + 16)))
        .collect();
    assert!(map.contains(&(0x10_0000, RAM - 0x10_0000, 1)));
    assert!(map.contains(&(0xe000_0000, 0x1000_0000, 2)));
}

#[test]
fn a_bzimage_with_a_damaged_payload_unpacks_itself() {
    let mut f = bzimage(&elf64(None));
    for b in &mut f[0xa10..0xa40] {
        *b ^= 0xa5;
    }
    let (ram, l) = try_load(&f, None, "").unwrap();
    assert_eq!(
        l.entry,
        Entry::Long {
            rip: 0x100_0200,
            rsi: map::BOOT_PARAMS
        }
    );
    assert_eq!(bytes(&ram, 0x100_0000, 4), [0xf4; 4]);
    f[0x236] = 0;
    let (_, l) = try_load(&f, None, "").unwrap();
    assert!(matches!(
        l.entry,
        Entry::Protected {
            eip: 0x100_0000,
            esi: 0x7000,
            ..
        }
    ));
}

#[test]
fn pvh_gets_its_start_info() {
    let (ram, l) = try_load(&elf64(Some(0x20_0008)), Some(b"anything"), "a b").unwrap();
    let Entry::Protected { eip, ebx, .. } = l.entry else {
        panic!("{l:?}");
    };
    assert_eq!(eip, 0x20_0008);
    let info = u64::from(ebx);
    assert_eq!(long(&ram, info), 0x336e_c578);
    assert_eq!(long(&ram, info + 12), 1);
    let module = quad(&ram, info + 16);
    assert_eq!(bytes(&ram, quad(&ram, module), 8), b"anything");
    assert_eq!(quad(&ram, module + 8), 8);
    assert_eq!(string(&ram, quad(&ram, info + 24)), "a b");
    assert_eq!(bytes(&ram, quad(&ram, info + 32), 8), b"RSD PTR ");
    assert_eq!(quad(&ram, quad(&ram, info + 40)), 0);
}

#[test]
fn an_elf64_without_note_is_entered_as_linux() {
    let (ram, l) = try_load(&elf64(None), None, "x").unwrap();
    assert!(matches!(l.entry, Entry::Long { rip: 0x20_0004, .. }));
    assert_eq!(bytes(&ram, map::BOOT_PARAMS + 0x202, 4), b"HdrS");
    // Identity page tables: 2 MiB page 1 maps to itself.
    assert_eq!(quad(&ram, map::PAGE_TABLES + 0x2008), 0x20_0083);
}

#[test]
fn flat_multiboot_gets_map_command_line_and_module() {
    let (ram, l) = try_load(&multiboot(true), Some(b"module!"), "hobby").unwrap();
    let Entry::Protected { eip, eax, ebx, .. } = l.entry else {
        panic!("{l:?}");
    };
    assert_eq!((eip, eax), (0x10_0020, 0x2bad_b002));
    let info = u64::from(ebx);
    assert_eq!(bytes(&ram, 0x10_0024, 16), CODE);
    assert_eq!(string(&ram, long(&ram, info + 16)), "hobby");
    let module = long(&ram, info + 24);
    assert_eq!(bytes(&ram, long(&ram, module), 7), b"module!");
    assert_eq!(long(&ram, info + 8), (RAM - 0x10_0000) / 1024);
    assert_eq!(long(&ram, long(&ram, info + 48)), 20);
}

#[test]
fn start_states_are_what_the_protocols_demand() {
    let mut s = arch::CpuState::reset(true);
    s.lapic.regs = vec![0; 64];
    Entry::Long { rip: 1, rsi: 2 }.apply(&mut s);
    assert_eq!((s.rip, s.gpr[6], s.cr0 & 0x8000_0001), (1, 2, 0x8000_0001));
    assert_eq!(s.msrs, [(0xc000_0080, 0x500)]);
    assert_eq!(s.segments[1].rights, 0xa09b);
    assert_eq!(s.lapic.regs[0x35], 0x700);
}

#[test]
fn every_bad_file_has_its_own_error() {
    let e = |k: &[u8], i: Option<&[u8]>, c: &str| try_load(k, i, c).map(|_| ()).unwrap_err();
    let good = bzimage(&elf64(None));
    assert!(matches!(
        e(b"#!/bin/sh\necho\n", None, ""),
        BootError::UnknownKernel(_)
    ));
    let cut = &good[..good.len() - 64];
    assert!(e(cut, None, "").to_string().contains("truncated"));
    assert!(matches!(
        e(&good, None, &"x".repeat(301)),
        BootError::CmdlineTooLong { len: 301, max: 300 }
    ));
    assert!(matches!(e(&good, None, "a\0b"), BootError::CmdlineNul));
    assert!(matches!(
        e(&good, Some(b"garbage"), ""),
        BootError::BadInitrd { .. }
    ));
    let early_end = &cpio()[..100];
    assert!(matches!(
        e(&good, Some(early_end), ""),
        BootError::BadInitrd { .. }
    ));
    let mut large = b"\x1f\x8b".to_vec();
    large.resize(RAM as usize + 1, 0);
    assert!(matches!(
        e(&good, Some(&large), ""),
        BootError::Oversized { .. }
    ));
    large.truncate(RAM as usize - (3 << 20));
    assert!(matches!(
        e(&good, Some(&large), ""),
        BootError::NoRoom { .. }
    ));
    let mut zeros = vec![0; RAM as usize + 4096];
    zeros[..good.len()].copy_from_slice(&good);
    assert!(matches!(e(&zeros, None, ""), BootError::Oversized { .. }));
    let mut elf = elf64(None);
    elf.truncate(0x1008);
    assert!(
        e(&elf, None, "")
            .to_string()
            .contains("ends inside its segments")
    );
    let mut elf = elf64(None);
    set(&mut elf, 64 + 24, &0x8000u64.to_le_bytes());
    assert!(e(&elf, None, "").to_string().contains("below 1 MiB"));
    let mut elf = elf64(None);
    set(&mut elf, 64 + 40, &(1u64 << 30).to_le_bytes());
    assert!(matches!(e(&elf, None, ""), BootError::NoRoom { .. }));
    let open = |p: &str| ImageFile::open(Role::Kernel, std::path::Path::new(p)).unwrap_err();
    assert!(matches!(
        open("/nonexistent/vmlinuz"),
        BootError::Read { .. }
    ));
    assert!(matches!(open("/tmp"), BootError::NotAFile { .. }));
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(
        open(empty.path().to_str().unwrap()),
        BootError::Empty { .. }
    ));
}

fn mutated(base: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = base.len();
    let edits = prop::collection::vec((0..len.min(0x800), any::<u8>()), 1..12);
    let words = prop::collection::vec((0..len.min(0x300) / 4, any::<u32>()), 0..3);
    (edits, words, 0..len + 1, any::<bool>()).prop_map(move |(edits, words, cut, whole)| {
        let mut f = base.clone();
        edits.iter().for_each(|(at, v)| f[*at] = *v);
        words
            .iter()
            .for_each(|(at, v)| set(&mut f, at * 4, &v.to_le_bytes()));
        if !whole {
            f.truncate(cut.max(1));
        }
        f
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 1..9000)) {
        let _ = try_load(&data, None, "");
    }

    #[test]
    fn mutated_kernels_never_panic(
        data in prop_oneof![
            mutated(bzimage(&elf64(None))),
            mutated(elf64(Some(0x20_0008))),
            mutated(elf64(None)),
            mutated(multiboot(true)),
        ],
        initrd in prop::option::of(mutated(cpio())),
    ) {
        let _ = try_load(&data, initrd.as_deref(), "root=/dev/vda");
    }
}
