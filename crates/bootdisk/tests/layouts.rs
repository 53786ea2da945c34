//! Disks of every layout, made with the real tools.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;

use bootdisk::Loader;
use support::*;

const GRUB: &str = "set default=0\nmenuentry Hand --id hand {\n search --fs-uuid --set=root UUID\n \
                    linux /boot/vmlinuz root=UUID=UUID ro\n initrd /boot/initrd\n}\n";

fn grub() -> Vec<u8> {
    GRUB.replace("UUID", UUID)
        .replace(&format!("root={UUID}="), "root=UUID=")
        .replace(&format!("--fs-{UUID}"), "--fs-uuid")
        .into_bytes()
}

/// A root file system as Debian has it, kernel and initrd behind links.
fn root(kernel: &[u8], initrd: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("/boot/grub/grub.cfg", grub()),
        ("/boot/vmlinuz-6.1", kernel.to_vec()),
        ("/boot/vmlinuz", b"-> vmlinuz-6.1".to_vec()),
        ("/boot/real/initrd-6.1", initrd.to_vec()),
        ("/boot/initrd", b"-> /boot/real/../real/initrd-6.1".to_vec()),
        ("/etc/hostname", b"x".to_vec()),
    ]
}

fn files<'a>(owned: &'a [(&'static str, Vec<u8>)]) -> Vec<(&'static str, &'a [u8])> {
    owned.iter().map(|(p, c)| (*p, c.as_slice())).collect()
}

#[test]
fn gpt_with_ext4_and_its_backup() {
    let dir = scratch();
    let (kernel, initrd) = (content(1, 3_000_001), content(2, 5_000_000));
    let owned = root(&kernel, &initrd);
    let part = ext(dir.path(), "root", "ext4", 32 * MIB, &files(&owned));
    let table = "label: gpt\nstart=1MiB, size=2MiB, type=U\nstart=4MiB, size=32MiB, type=L\n";
    let image = disk(dir.path(), 40 * MIB, table, &[(4, &part)]);
    let check = |notes: usize| {
        let survey = survey(&image);
        let all = survey.found();
        assert_eq!(all.notes.len(), notes, "{:?}", all.notes);
        assert_eq!(all.entries.len(), 1, "{all:?}");
        let entry = &all.entries[0];
        assert_eq!((entry.id.as_str(), entry.default), ("hand", true));
        assert_eq!(entry.loader, Loader::Grub);
        assert_eq!(entry.found, "/boot/grub/grub.cfg of partition 2 (ext4)");
        let line = format!("BOOT_IMAGE=/boot/vmlinuz root=UUID={UUID} ro");
        assert_eq!(entry.cmdline, line);
        assert!(load(&survey, None).unwrap() == (kernel.clone(), initrd.clone()));
    };
    check(0);
    // Without its head the disk still has the table's backup, and says so.
    let disk = File::options().write(true).open(&image).unwrap();
    disk.write_all_at(&[0xff; 8], 512 + 60).unwrap();
    check(2);
    disk.write_all_at(&[0; 512], 512).unwrap();
    check(1);
    // Damaged entries are not believed either.
    disk.write_all_at(&[0xff; 8], 40 * MIB - 512 + 60).unwrap();
    assert!(found(&image).entries.is_empty());
}

/// Where the script was written the disk was another than the first.
#[test]
fn a_disk_that_had_another_number() {
    let dir = scratch();
    let config = "set root='hd1,gpt2'\nlinux (hd2,2)/boot/vmlinuz\ninitrd /boot/initrd\n";
    let files = [
        ("/boot/grub/grub.cfg", config.as_bytes()),
        ("/boot/vmlinuz", b"kernel"),
        ("/boot/initrd", b"initrd"),
    ];
    let part = ext(dir.path(), "root", "ext4", 8 * MIB, &files);
    let table = "label: gpt\nstart=1MiB, size=2MiB, type=U\nstart=4MiB, size=8MiB, type=L\n";
    let image = disk(dir.path(), 16 * MIB, table, &[(4, &part)]);
    let loaded = load(&survey(&image), None).unwrap();
    assert_eq!(loaded, (b"kernel".to_vec(), b"initrd".to_vec()));
}

#[test]
fn gpt_with_sectors_of_4096_bytes() {
    let dir = scratch();
    let owned = root(b"kernel", b"initrd");
    let part = ext(dir.path(), "root", "ext4", 16 * MIB, &files(&owned));
    let image = gpt_4096(dir.path(), 24 * MIB, &part);
    let survey = survey(&image);
    assert_eq!(load(&survey, Some("0")).unwrap().0, b"kernel");
    assert!(survey.found().notes[0].contains("4096"));
}

#[test]
fn mbr_with_logical_partitions_and_a_boot_partition() {
    let dir = scratch();
    let config = format!(
        "search --no-floppy --fs-uuid --set=root {UUID}\nset kernelopts=\"root=/dev/vda6 ro\"\nblscfg\n"
    );
    let entry =
        |v: &str| format!("title Hand {v}\nlinux /vm-{v}\ninitrd /in-{v}\noptions $kernelopts\n");
    let (old, new) = (entry("6.9"), entry("6.10"));
    let boot = [
        ("/grub2/grub.cfg", config.as_bytes()),
        ("/loader/entries/x-6.9.conf", old.as_bytes()),
        ("/loader/entries/x-6.10.conf", new.as_bytes()),
        ("/vm-6.9", b"old"),
        ("/vm-6.10", b"new"),
        ("/in-6.9", b"old initrd"),
        ("/in-6.10", b"new initrd"),
    ];
    let boot = ext(dir.path(), "boot", "ext2", 8 * MIB, &boot);
    let table = "label: dos\nstart=1MiB, size=2MiB, type=83\nstart=3MiB, type=5\n\
                 start=4MiB, size=2MiB, type=82\nstart=8MiB, size=8MiB, type=83\n";
    let image = disk(dir.path(), 20 * MIB, table, &[(8, &boot)]);
    let survey = survey(&image);
    let all = survey.found();
    assert_eq!(all.entries.len(), 2, "{all:?}");
    assert_eq!(all.entries[0].title, "Hand 6.10");
    assert!(all.entries[0].found.contains("partition 6"), "{all:?}");
    assert!(all.entries[0].cmdline.ends_with(" root=/dev/vda6 ro"));
    assert_eq!(
        load(&survey, None).unwrap(),
        (b"new".to_vec(), b"new initrd".to_vec())
    );
    let chosen = load(&survey, Some("x-6.9")).unwrap();
    assert_eq!(chosen, (b"old".to_vec(), b"old initrd".to_vec()));
    assert_eq!(load(&survey, Some("Hand 6.9")).unwrap(), chosen);
    assert_eq!(load(&survey, Some("1")).unwrap(), chosen);
    assert!(load(&survey, Some("2")).is_err());
}

#[test]
fn one_file_system_without_a_table() {
    let dir = scratch();
    let owned = root(b"kernel", b"initrd");
    for kind in ["ext2", "ext3", "ext4"] {
        let image = ext(dir.path(), kind, kind, 16 * MIB, &files(&owned));
        let survey = survey(&image);
        assert!(survey.found().entries[0].found.contains("the disk (ext4)"));
        assert_eq!(load(&survey, None).unwrap().1, b"initrd");
    }
}

#[test]
fn kernels_without_any_configuration() {
    let dir = scratch();
    let image = ext(
        dir.path(),
        "plain",
        "ext4",
        16 * MIB,
        &[
            ("/boot/vmlinuz-6.9", b"old"),
            ("/boot/vmlinuz-6.10", b"new"),
            ("/boot/initrd.img-6.10", b"initrd"),
            ("/etc/x", b"x"),
            ("/usr/x", b"x"),
        ],
    );
    let survey = survey(&image);
    let all = survey.found();
    assert_eq!(all.entries[0].cmdline, format!("root=UUID={UUID} ro"));
    assert_eq!(all.entries[1].cmdline, "root=/dev/vda ro");
    assert_eq!(
        load(&survey, None).unwrap(),
        (b"new".to_vec(), b"initrd".to_vec())
    );
}

#[test]
fn fat_of_every_width_with_extlinux() {
    let kernel = content(3, 1_000_000);
    let config = b"DEFAULT b\nLABEL a\n LINUX vmlinuz-very-long-name\nLABEL b\n \
                   MENU LABEL Second\n KERNEL ../VMLINUZ\n APPEND initrd=one.img,two.img root=/dev/vda2\n";
    let odd = content(4, 1001);
    let files: [(&str, &[u8]); 5] = [
        ("/syslinux/syslinux.cfg", config),
        ("/syslinux/vmlinuz-very-long-name", b"first"),
        ("/vmlinuz", &kernel),
        ("/syslinux/one.img", &odd),
        ("/syslinux/two.img", b"070701"),
    ];
    for (bits, size) in [("12", 4), ("16", 32), ("32", 40), ("32", 124)] {
        let dir = scratch();
        let image = fat(dir.path(), "fat", bits, size * MIB, &files);
        let survey = survey(&image);
        let all = survey.found();
        assert_eq!(all.notes, Vec::<String>::new());
        assert_eq!(all.entries.len(), 2, "FAT{bits}: {all:?}");
        assert_eq!(all.entries[1].title, "Second");
        assert_eq!(all.entries[1].cmdline, "root=/dev/vda2");
        let (loaded, initrd) = load(&survey, None).unwrap();
        assert!(loaded == kernel, "FAT{bits}");
        // The second archive begins at a multiple of four.
        assert_eq!(initrd.len(), 1004 + 6);
        assert!(initrd[..1001] == odd[..] && initrd[1001..] == *b"\x00\x00\x00070701");
        assert_eq!(load(&survey, Some("a")).unwrap().0, b"first");
    }
}

#[test]
fn systemd_boot_with_unified_kernel_images() {
    let dir = scratch();
    let image = |version: &str| {
        let release = format!("ID=hand\nPRETTY_NAME=\"Hand OS\"\nVERSION_ID={version}\n");
        unified(&[
            (".osrel", release.as_bytes()),
            (".uname", version.as_bytes()),
            (".cmdline", b"root=LABEL=root quiet\n"),
            (".ucode", b"12345"),
            (".initrd", b"initrd"),
            (".linux", format!("kernel {version}").as_bytes()),
        ])
    };
    let (old, new, bad) = (image("6.9"), image("6.10"), image("6.11"));
    let entry = b"title By hand\nsort-key zzz\nlinux /k\ninitrd /i\noptions a=b\n";
    let files: [(&str, &[u8]); 8] = [
        ("/EFI/systemd/systemd-bootx64.efi", b"MZ"),
        ("/loader/loader.conf", b"timeout 3\ndefault hand-*\n"),
        ("/loader/entries/by-hand.conf", entry),
        ("/EFI/Linux/hand-6.9.efi", &old),
        ("/EFI/Linux/hand-6.10+2.efi", &new),
        ("/EFI/Linux/hand-6.11+0-3.efi", &bad),
        ("/k", b"k"),
        ("/i", b"i"),
    ];
    let esp = fat(dir.path(), "esp", "32", 40 * MIB, &files);
    // Another system's GRUB on the same disk has not the first say.
    let owned = root(b"kernel", b"initrd");
    let part = ext(dir.path(), "root", "ext4", 16 * MIB, &self::files(&owned));
    let table = "label: gpt\nstart=1MiB, size=40MiB, type=U\nstart=41MiB, size=16MiB, type=L\n";
    let image = disk(dir.path(), 60 * MIB, table, &[(1, &esp), (41, &part)]);
    let survey = survey(&image);
    let all = survey.found();
    let ids: Vec<&str> = all.entries.iter().map(|e| e.id.as_str()).collect();
    // Newest first; without tries left last.
    assert_eq!(
        ids,
        ["hand-6.10", "hand-6.9", "by-hand", "hand-6.11", "hand"]
    );
    assert_eq!(all.entries[0].title, "Hand OS (6.10)");
    assert_eq!(all.entries[0].cmdline, "root=LABEL=root quiet");
    assert!(all.entries[0].default && !all.entries[4].default);
    let (kernel, initrd) = load(&survey, None).unwrap();
    assert_eq!(kernel, b"kernel 6.10");
    assert_eq!(initrd, b"12345\0\0\0initrd");
    assert_eq!(
        load(&survey, Some("by-hand")).unwrap(),
        (b"k".to_vec(), b"i".to_vec())
    );
}

#[test]
fn a_stub_on_the_efi_system_partition_leads_to_the_menu() {
    let dir = scratch();
    let stub = format!(
        "search.fs_uuid {UUID} root hd0,gpt2\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    );
    let esp = fat(
        dir.path(),
        "esp",
        "16",
        16 * MIB,
        &[("/EFI/debian/grub.cfg", stub.as_bytes())],
    );
    let owned = root(b"kernel", b"initrd");
    let part = ext(dir.path(), "root", "ext4", 16 * MIB, &files(&owned));
    let table = "label: gpt\nstart=1MiB, size=16MiB, type=U\nstart=17MiB, size=16MiB, type=L\n";
    let image = disk(dir.path(), 40 * MIB, table, &[(1, &esp), (17, &part)]);
    let all = found(&image);
    assert_eq!(all.entries.len(), 1, "{all:?}");
    assert_eq!(
        all.entries[0].found,
        "/boot/grub/grub.cfg of partition 2 (ext4)"
    );
}

#[test]
fn xfs_as_a_boot_partition() {
    let dir = scratch();
    let (kernel, initrd) = (content(5, 9_000_000), content(6, 12_345_678));
    let owned = root(&kernel, &initrd);
    let image = xfs(dir.path(), "xfs", &files(&owned));
    let survey = survey(&image);
    let all = survey.found();
    assert_eq!(all.entries.len(), 1, "{all:?}");
    assert!(all.entries[0].found.contains("(xfs)"));
    assert!(load(&survey, None).unwrap() == (kernel, initrd));
}

#[test]
fn what_cannot_be_started_says_why() {
    let dir = scratch();
    let config = b"menuentry gone { linux /boot/none }\nmenuentry other { chainloader +1 }\n\
                   menuentry else { search --set=root --label nowhere; set root=hd9,gpt1; linux /k }\n\
                   menuentry dir { linux /boot }\nmenuentry empty { linux /boot/empty }\n";
    let image = ext(
        dir.path(),
        "bad",
        "ext4",
        8 * MIB,
        &[("/boot/grub/grub.cfg", config), ("/boot/empty", b"")],
    );
    let survey = survey(&image);
    let all = survey.found();
    for (entry, word) in
        all.entries
            .iter()
            .zip(["no /boot/none", "chainloader", "hd9", "no file", "empty"])
    {
        let problem = entry.problem.as_deref().unwrap_or_default();
        assert!(problem.contains(word), "{entry:?}");
    }
    assert_eq!(all.entries.len(), 5, "{all:?}");
    assert!(load(&survey, None).unwrap_err().contains("/boot/none"));
}

#[test]
fn a_file_larger_than_the_machine_is_refused() {
    let dir = scratch();
    let owned = root(b"kernel", &vec![7; 3 << 20]);
    let image = ext(dir.path(), "big", "ext4", 16 * MIB, &files(&owned));
    let survey = survey(&image);
    let error = survey.load(0, 2 << 20, &mut |_, _| Ok(())).unwrap_err();
    assert!(error.contains("--memory"), "{error}");
}

#[test]
fn disks_without_anything() {
    let dir = scratch();
    for (name, content) in [
        ("empty", vec![0; 1 << 20]),
        ("tiny", vec![0xff; 512]),
        ("noise", content(9, 1 << 20)),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        assert!(found(&path).entries.is_empty(), "{name}");
    }
    let path = dir.path().join("luks");
    let mut luks = vec![0; 1 << 20];
    luks[..6].copy_from_slice(b"LUKS\xba\xbe");
    std::fs::write(&path, luks).unwrap();
    assert!(found(&path).notes[0].contains("LUKS"));
}
