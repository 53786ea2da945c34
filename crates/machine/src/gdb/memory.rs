//! Guest-virtual memory as a debugger sees it: through the page tables of a
//! vCPU, whatever their permissions say.

use ::memory::GuestRam;
use arch::CpuState;

const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;
const PSE: u64 = 1 << 4;
const LA57: u64 = 1 << 12;
const EFER: u32 = 0xc000_0080;
const LMA: u64 = 1 << 10;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Bits 51:12.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Guest-physical address of a linear one, and the bytes from there to the end
/// of its 4 KiB page; `None`: not mapped (SDM vol. 3A, chapter 4).
pub(super) fn translate(state: &CpuState, ram: &GuestRam, linear: u64) -> Option<(u64, usize)> {
    let left = 4096 - (linear & 0xfff) as usize;
    if state.cr0 & PG == 0 {
        return Some((linear & 0xffff_ffff, left));
    }
    let efer = state.msrs.iter().find(|(index, _)| *index == EFER);
    let long = efer.is_some_and(|(_, value)| value & LMA != 0);
    let gpa = if long {
        let levels = if state.cr4 & LA57 != 0 { 5 } else { 4 };
        walk(ram, state.cr3 & FRAME, linear, levels, 9)
    } else if state.cr4 & PAE != 0 {
        let linear = linear & 0xffff_ffff;
        let entry = read(ram, (state.cr3 & 0xffff_ffe0) + (linear >> 30) * 8, 8)?;
        (entry & PRESENT != 0).then_some(())?;
        walk(ram, entry & FRAME, linear, 2, 9)
    } else {
        legacy(state, ram, linear & 0xffff_ffff)
    };
    Some((gpa?, left))
}

/// Tables of 512 entries of 8 bytes each.
fn walk(ram: &GuestRam, root: u64, linear: u64, levels: u32, bits: u32) -> Option<u64> {
    let mut table = root;
    for level in (0..levels).rev() {
        let shift = 12 + level * bits;
        let index = linear >> shift & ((1 << bits) - 1);
        let entry = read(ram, table + index * 8, 8)?;
        if entry & PRESENT == 0 {
            return None;
        }
        let within = (1u64 << shift) - 1;
        if level == 0 || level < 3 && entry & LARGE != 0 {
            return Some(entry & FRAME & !within | linear & within);
        }
        table = entry & FRAME;
    }
    None
}

/// Two levels of 1024 entries of 4 bytes.
fn legacy(state: &CpuState, ram: &GuestRam, linear: u64) -> Option<u64> {
    let directory = state.cr3 & 0xffff_f000;
    let entry = read(ram, directory + (linear >> 22) * 4, 4)?;
    if entry & PRESENT == 0 {
        return None;
    }
    if entry & LARGE != 0 && state.cr4 & PSE != 0 {
        let high = entry >> 13 & 0xff;
        return Some(high << 32 | entry & 0xffc0_0000 | linear & 0x3f_ffff);
    }
    let entry = read(ram, (entry & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4, 4)?;
    (entry & PRESENT != 0).then_some(entry & 0xffff_f000 | linear & 0xfff)
}

fn read(ram: &GuestRam, gpa: u64, size: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    ram.read(gpa, &mut bytes[..size]).ok()?;
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(entries: &[(u64, u64)]) -> std::sync::Arc<GuestRam> {
        let ram = GuestRam::new(16 << 20, 1 << 30).unwrap();
        for (at, value) in entries {
            ram.write(*at, &value.to_le_bytes()).unwrap();
        }
        ram
    }

    fn paging(cr3: u64, cr4: u64, efer: u64) -> CpuState {
        CpuState {
            cr0: PG | 1,
            cr3,
            cr4,
            msrs: vec![(EFER, efer)],
            ..CpuState::default()
        }
    }

    #[test]
    fn four_level_tables_with_all_page_sizes() {
        let linear = 0xffff_8080_8060_5123;
        let index = |level: u32| (linear >> (12 + 9 * level) & 511) * 8;
        let small = ram(&[
            (0x1000 + index(3), 0x2003),
            (0x2000 + index(2), 0x3003),
            (0x3000 + index(1), 0x4003),
            (0x4000 + index(0), 0x8000_0000_0055_5003),
        ]);
        let state = paging(0x1018, PAE, LMA);
        assert_eq!(translate(&state, &small, linear), Some((0x55_5123, 0xedd)));
        assert_eq!(translate(&state, &small, linear + 0x1000), None);
        let big = ram(&[
            (0x1000 + index(3), 0x2003),
            (0x2000 + index(2), 0x3003),
            (0x3000 + index(1), 0xa0_0083),
        ]);
        let within = linear & 0x1f_ffff;
        let found = translate(&state, &big, linear).map(|(gpa, _)| gpa);
        assert_eq!(found, Some(0xa0_0000 + within));
        let huge = ram(&[
            (0x1000 + index(3), 0x2003),
            (0x2000 + index(2), 0x4000_0083),
        ]);
        let found = translate(&state, &huge, linear).map(|(gpa, _)| gpa);
        assert_eq!(found, Some(0x4000_0000 + (linear & 0x3fff_ffff)));
    }

    #[test]
    fn older_paging_modes_and_none() {
        let pae = ram(&[
            (0x1000 + 8, 0x2001),
            (0x2000 + 8, 0x3003),
            (0x3000 + 16, 0x7003),
        ]);
        let found = translate(&paging(0x1000, PAE, 0), &pae, 0x4020_2010);
        assert_eq!(found.map(|(gpa, _)| gpa), Some(0x7010));
        let old = ram(&[(0x1000 + 4, 0x3003), (0x3000 + 8, 0x7003)]);
        let found = translate(&paging(0x1000, 0, 0), &old, 0x40_2010);
        assert_eq!(found.map(|(gpa, _)| gpa), Some(0x7010));
        let none = CpuState::default();
        assert_eq!(translate(&none, &old, 0x7fff), Some((0x7fff, 1)));
    }

    #[test]
    fn tables_outside_ram_map_nothing() {
        let empty = ram(&[(0x1000, 0xffff_ffff_ffff_f003)]);
        assert_eq!(translate(&paging(0x1000, PAE, LMA), &empty, 0), None);
        let state = paging(FRAME, PAE, LMA);
        assert_eq!(translate(&state, &empty, u64::MAX), None);
    }
}
