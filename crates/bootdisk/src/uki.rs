//! Unified kernel images (UAPI.5): a PE program with the kernel, its initrd
//! and its command line in sections.

/// Bytes from the start of the file that hold all headers of honest images.
pub const HEAD: u64 = 64 << 10;
/// Most sections looked at.
const MOST_SECTIONS: usize = 96;
/// Longest text section, in bytes.
pub const LONGEST_TEXT: u64 = 64 << 10;

/// Where a section's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// The sections of a unified kernel image that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sections {
    /// `.linux`.
    pub linux: Option<Section>,
    /// `.initrd`.
    pub initrd: Option<Section>,
    /// `.ucode`: goes in front of the initrd.
    pub ucode: Option<Section>,
    /// `.cmdline`.
    pub cmdline: Option<Section>,
    /// `.osrel`: an os-release file.
    pub osrel: Option<Section>,
    /// `.uname`: the kernel's release.
    pub uname: Option<Section>,
}

/// Finds the sections in the first bytes of a file; `None`: no PE program for
/// x86-64, or one without a kernel in it.
pub fn sections(head: &[u8], file_size: u64) -> Option<Sections> {
    let word = |at: usize| Some(u16::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    if !head.starts_with(b"MZ") {
        return None;
    }
    let pe = usize::try_from(long(0x3c)?).ok()?;
    if head.get(pe..pe.checked_add(4)?)? != b"PE\0\0" || word(pe + 4)? != 0x8664 {
        return None;
    }
    let count = usize::from(word(pe + 6)?).min(MOST_SECTIONS);
    let table = pe + 24 + usize::from(word(pe + 20)?);
    let mut found = Sections::default();
    for index in 0..count {
        let at = table + index * 40;
        let name = head.get(at..at + 8)?;
        let name = name.split(|b| *b == 0).next().unwrap_or_default();
        let (memory, raw) = (u64::from(long(at + 8)?), u64::from(long(at + 16)?));
        let offset = u64::from(long(at + 20)?);
        // What follows describes other profiles of the same image.
        if name == b".profile" && found.linux.is_some() {
            break;
        }
        let section = Section {
            offset,
            // The raw size is rounded up, the size in memory is not.
            size: if memory == 0 { raw } else { raw.min(memory) },
        };
        if section.offset.checked_add(section.size)? > file_size {
            return None;
        }
        let slot = match name {
            b".linux" => &mut found.linux,
            b".initrd" => &mut found.initrd,
            b".ucode" => &mut found.ucode,
            b".cmdline" => &mut found.cmdline,
            b".osrel" => &mut found.osrel,
            b".uname" => &mut found.uname,
            _ => continue,
        };
        if slot.is_none() && section.size > 0 {
            *slot = Some(section);
        }
    }
    found.linux.is_some().then_some(found)
}

/// A value of an os-release file, without its quotes.
pub fn os_release(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.trim().split_once('=')?;
        let value = value.trim();
        let bare = ['"', '\''].iter().find_map(|q| {
            let inner = value.strip_prefix(*q)?.strip_suffix(*q)?;
            Some(inner.to_owned())
        });
        (name == key).then(|| bare.unwrap_or_else(|| value.to_owned()))
    })
}

/// A text section: up to its first NUL, line feeds become spaces.
pub fn text(content: &[u8]) -> String {
    let content = content.split(|b| *b == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(content);
    text.trim().replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A PE file with these sections.
    fn image(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 0x400];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x80;
        file[0x80..0x84].copy_from_slice(b"PE\0\0");
        file[0x84..0x86].copy_from_slice(&0x8664u16.to_le_bytes());
        file[0x86] = sections.len() as u8;
        file[0x94] = 0x70;
        for (i, (name, content)) in sections.iter().enumerate() {
            let at = 0x98 + 0x70 + i * 40;
            file[at..at + name.len()].copy_from_slice(name.as_bytes());
            let offset = file.len() as u32;
            for (field, value) in [(8, content.len() as u32), (16, 512), (20, offset)] {
                file[at + field..at + field + 4].copy_from_slice(&value.to_le_bytes());
            }
            file.extend_from_slice(content);
            file.resize(offset as usize + 512, 0);
        }
        file
    }

    #[test]
    fn sections_are_found() {
        let file = image(&[
            (".osrel", b"ID=x\nPRETTY_NAME=\"X 1\"\n"),
            (".cmdline", b"root=LABEL=r\n\0"),
            (".linux", b"kernel"),
            (".initrd", b"initrd"),
            (".profile", b"ID=other"),
            (".cmdline", b"other"),
        ]);
        let found = sections(&file, file.len() as u64).unwrap();
        let content = |s: Option<Section>| {
            let s = s.unwrap();
            file[s.offset as usize..(s.offset + s.size) as usize].to_vec()
        };
        assert_eq!(content(found.linux), b"kernel");
        assert_eq!(content(found.initrd), b"initrd");
        assert_eq!(text(&content(found.cmdline)), "root=LABEL=r");
        let osrel = text(&content(found.osrel));
        assert_eq!(osrel, "ID=x PRETTY_NAME=\"X 1\"");
        assert_eq!(
            os_release("A=b\nPRETTY_NAME='X 1'", "PRETTY_NAME"),
            Some("X 1".into())
        );
        assert_eq!(sections(&file, 1000), None);
        assert_eq!(sections(b"MZ", 2), None);
        assert_eq!(sections(&image(&[(".text", b"x")]), 4096), None);
    }

    proptest! {
        #[test]
        fn damaged_images_are_refused_or_stay_in_bounds(
            at in proptest::collection::vec((0usize..0x300, any::<u8>()), 0..8)
        ) {
            let mut file = image(&[(".linux", b"kernel"), (".initrd", b"initrd")]);
            for (at, byte) in at {
                file[at] = byte;
            }
            let size = file.len() as u64;
            if let Some(found) = sections(&file, size) {
                for s in [found.linux, found.initrd].into_iter().flatten() {
                    prop_assert!(s.offset + s.size <= size);
                }
            }
        }

        #[test]
        fn any_bytes_are_no_harm(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = sections(&data, data.len() as u64);
        }
    }
}
