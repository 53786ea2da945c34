//! SMBIOS 3 tables (DMTF DSP0134 3.2): who made the machine, and which one it is.

use memory::GuestRam;

use crate::BootError;
use crate::map::{SMBIOS, SMBIOS_END, put};

/// What the tables say of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// System UUID, as its 16 bytes are written.
    pub uuid: [u8; 16],
    /// Serial number.
    pub serial: String,
    /// Product name.
    pub product: String,
    /// Who made the machine.
    pub manufacturer: String,
    /// Asset tag of the board, which EC2's machines have their instance id in;
    /// empty: no board is described.
    pub asset_tag: String,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            uuid: [0; 16],
            serial: String::new(),
            product: "Holm machine".into(),
            manufacturer: MANUFACTURER.into(),
            asset_tag: String::new(),
        }
    }
}

/// Length of the 64-bit entry point (`_SM3_`).
const ANCHOR: usize = 24;
const TABLE: u64 = SMBIOS + 0x20;
const MANUFACTURER: &str = "Holm";

/// Writes the anchor and the structures.
///
/// # Errors
/// [`BootError::TablesTooLarge`], [`BootError::Memory`].
pub fn write(ram: &GuestRam, cpus: u32, identity: &Identity) -> Result<(), BootError> {
    let table = structures(ram.size(), cpus, identity);
    if TABLE + table.len() as u64 > SMBIOS_END {
        return Err(BootError::TablesTooLarge("SMBIOS"));
    }
    put(ram, "SMBIOS anchor", SMBIOS, &anchor(table.len() as u32))?;
    put(ram, "SMBIOS tables", TABLE, &table)
}

fn anchor(size: u32) -> Vec<u8> {
    let mut a = b"_SM3_\0".to_vec();
    a.extend([ANCHOR as u8, 3, 2, 0, 1, 0]);
    a.extend(size.to_le_bytes());
    a.extend(TABLE.to_le_bytes());
    a[5] = a.iter().fold(0u8, |s, b| s.wrapping_sub(*b));
    a
}

/// Structures under construction; handles count up.
struct Builder {
    out: Vec<u8>,
    next: u16,
}

impl Builder {
    /// One structure: formatted part (without its 4-byte header), then strings.
    fn add(&mut self, kind: u8, fields: &[u8], strings: &[&str]) -> u16 {
        let handle = self.next;
        self.next += 1;
        self.out.extend([kind, 4 + fields.len() as u8]);
        self.out.extend(handle.to_le_bytes());
        self.out.extend(fields);
        for s in strings {
            // A NUL ends a string and an empty one ends the set.
            let clean = s.bytes().filter(|b| *b != 0).take(255);
            let before = self.out.len();
            self.out.extend(clean);
            if self.out.len() == before {
                self.out.push(b' ');
            }
            self.out.push(0);
        }
        if strings.is_empty() {
            self.out.push(0);
        }
        self.out.push(0);
        handle
    }
}

fn structures(ram: u64, cpus: u32, identity: &Identity) -> Vec<u8> {
    let mut b = Builder {
        out: Vec::new(),
        next: 0,
    };
    bios(&mut b);
    system(&mut b, identity);
    if !identity.asset_tag.is_empty() {
        board(&mut b, identity);
    }
    let chassis = [1, 1, 0, 0, 0, 3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0];
    b.add(3, &chassis, &[MANUFACTURER]);
    processor(&mut b, cpus);
    memory_devices(&mut b, ram);
    b.add(32, &[0; 7], &[]);
    b.add(127, &[], &[]);
    b.out
}

fn bios(b: &mut Builder) {
    let mut f = vec![1, 2];
    f.extend(0xe800u16.to_le_bytes());
    f.extend([3, 0]);
    f.extend(8u64.to_le_bytes()); // characteristics: none that are listed
    f.extend([0, 0x1c, 0, 0, 0xff, 0xff]); // ACPI no legacy; virtual machine, UEFI no
    b.add(
        0,
        &f,
        &[MANUFACTURER, env!("CARGO_PKG_VERSION"), "01/01/2026"],
    );
}

fn system(b: &mut Builder, identity: &Identity) {
    let u = identity.uuid;
    let mut f = vec![1, 2, 3, 4];
    // The first three fields of the UUID are little-endian (7.2.1).
    f.extend([u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6]]);
    f.extend(&u[8..]);
    f.extend([6, 0, 5]); // woken by the power switch; SKU; family
    let strings = [
        identity.manufacturer.as_str(),
        &identity.product,
        env!("CARGO_PKG_VERSION"),
        &identity.serial,
        "Virtual machine",
    ];
    b.add(1, &f, &strings);
}

fn board(b: &mut Builder, identity: &Identity) {
    const NONE: u8 = 0;
    const MOTHERBOARD: u8 = 0x0a;
    // The chassis is the structure after this one.
    let chassis = b.next.wrapping_add(1).to_le_bytes();
    let mut f = vec![1, 2, NONE, NONE, 3, 1, NONE];
    f.extend(chassis);
    f.extend([MOTHERBOARD, 0]);
    let strings = [
        identity.manufacturer.as_str(),
        &identity.product,
        &identity.asset_tag,
    ];
    b.add(2, &f, &strings);
}

fn processor(b: &mut Builder, cpus: u32) {
    let cores = cpus.min(255) as u8;
    let mut f = vec![1, 3, 1, 2];
    f.extend([0; 8]);
    f.extend([3, 0, 0, 0]); // version string, voltage, external clock
    f.extend([0; 4]); // speeds unknown
    f.extend([0x41, 1]); // populated and enabled; upgrade: other
    f.extend([0xff; 6]); // no cache structures
    f.extend([0, 0, 0, cores, cores, cores]);
    f.extend(0x0cu16.to_le_bytes()); // 64-bit, multi-core
    f.extend(1u16.to_le_bytes());
    for _ in 0..3 {
        f.extend((cpus as u16).to_le_bytes());
    }
    b.add(4, &f, &["CPU 0", MANUFACTURER, "Virtual CPU"]);
}

fn memory_devices(b: &mut Builder, ram: u64) {
    const NO_HANDLE: u16 = 0xfffe;
    let mut f = vec![1, 3, 6];
    f.extend(0x8000_0000u32.to_le_bytes());
    f.extend(NO_HANDLE.to_le_bytes());
    f.extend(1u16.to_le_bytes());
    f.extend(ram.to_le_bytes());
    let array = b.add(16, &f, &[]);
    let mib = (ram >> 20) as u32;
    let mut f = array.to_le_bytes().to_vec();
    f.extend(NO_HANDLE.to_le_bytes());
    f.extend([0xff; 4]);
    let (small, extended) = if mib < 0x7fff {
        (mib as u16, 0)
    } else {
        (0x7fff, mib)
    };
    f.extend(small.to_le_bytes());
    f.extend([9, 0, 1, 0, 7, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    f.extend(extended.to_le_bytes());
    f.extend([0; 8]);
    b.add(17, &f, &["DIMM 0", MANUFACTURER]);
    let mut f = 0xffff_ffffu32.to_le_bytes().to_vec();
    f.extend([0xff; 4]);
    f.extend(array.to_le_bytes());
    f.push(1);
    f.extend(0u64.to_le_bytes());
    f.extend((ram - 1).to_le_bytes());
    b.add(19, &f, &[]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (type, formatted part, strings) of each structure.
    fn walk(mut t: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut all = Vec::new();
        while !t.is_empty() {
            let len = usize::from(t[1]);
            let (head, mut rest) = t.split_at(len);
            let mut strings = Vec::new();
            while rest[0] != 0 {
                let end = rest.iter().position(|b| *b == 0).unwrap();
                strings.push(String::from_utf8_lossy(&rest[..end]).into_owned());
                rest = &rest[end + 1..];
            }
            let skip = if strings.is_empty() { 2 } else { 1 };
            all.push((t[0], head.to_vec(), strings));
            t = &rest[skip..];
        }
        all
    }

    #[test]
    fn structures_are_well_formed_and_name_the_machine() {
        let identity = Identity {
            uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
            serial: "i-0a\0b".into(),
            product: String::new(),
            ..Identity::default()
        };
        let all = walk(&structures(8 << 30, 4, &identity));
        let kinds: Vec<u8> = all.iter().map(|s| s.0).collect();
        assert_eq!(kinds, [0, 1, 3, 4, 16, 17, 19, 32, 127]);
        let lengths: Vec<usize> = all.iter().map(|s| s.1.len()).collect();
        assert_eq!(lengths, [24, 27, 21, 48, 23, 40, 31, 11, 4]);
        let system = &all[1];
        assert_eq!(system.2[0], "Holm");
        assert_eq!(system.2[3], "i-0ab");
        assert_eq!(system.1[8..12], [0x33, 0x22, 0x11, 0]);
        let named = Identity {
            manufacturer: "Somebody".into(),
            asset_tag: "i-0ab".into(),
            ..Identity::default()
        };
        let all = walk(&structures(8 << 30, 4, &named));
        assert_eq!(all[1].2[0], "Somebody");
        assert_eq!((all[2].0, all[2].1.len()), (2, 15));
        assert_eq!(all[2].2[2], "i-0ab");
        assert_eq!((all[3].0, &all[3].1[2..4]), (3, &all[2].1[11..13]));
        let a = anchor(100);
        assert_eq!(a.len(), 24);
        assert_eq!(a.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
    }
}
