//! Menus in the manner of the distributions' generators. The texts are our
//! own; their structure is that of real ones.

use super::*;
use crate::fake::Files;

const ROOT: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const BOOT: &str = "bbbbbbbb-0000-4000-8000-000000000002";

/// Devices by name.
struct Disk(Vec<(&'static str, Files)>);

impl World for Disk {
    fn devices(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    fn volume(&self, device: &str) -> Option<&dyn FileSystem> {
        let found = self.0.iter().find(|(name, _)| *name == device);
        found.map(|(_, files)| files as &dyn FileSystem)
    }

    fn partition_uuid(&self, device: &str) -> String {
        format!("part-of-{device}")
    }
}

fn disk(files: &[(&str, &str)]) -> Disk {
    let own = |(path, text): &(&str, &str)| ((*path).to_owned(), text.as_bytes().to_vec());
    Disk(vec![(
        "hd0,gpt1",
        Files {
            files: files.iter().map(own).collect(),
            uuid: ROOT.into(),
        },
    )])
}

fn menu(disk: &Disk, device: &str, path: &str) -> Menu {
    let place = Place {
        device: device.into(),
        path: path.into(),
    };
    evaluate(disk, &place).unwrap()
}

/// The menu of a `/boot/grub/grub.cfg` that is alone on its disk.
fn simple(text: &str) -> Menu {
    menu(
        &disk(&[("/boot/grub/grub.cfg", text)]),
        "hd0,gpt1",
        "/boot/grub/grub.cfg",
    )
}

fn default(menu: &Menu) -> (String, Start) {
    let flat = menu.flat();
    let chosen = &flat[menu.default_index().unwrap()];
    (chosen.title.clone(), chosen.start.clone().unwrap())
}

fn environment(variables: &str) -> String {
    format!(
        "{:#<1024}",
        format!("# GRUB Environment Block\n{variables}\n")
    )
}

const DEBIAN: &str = r#"
#
# made by hand in the manner of grub-mkconfig
#
### BEGIN /etc/grub.d/00_header ###
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi

if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option

if [ "${prev_saved_entry}" ]; then
  set saved_entry="${prev_saved_entry}"
  save_env saved_entry
  set prev_saved_entry=
  save_env prev_saved_entry
  set boot_once=true
fi

function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
    insmod vga
  fi
}
if [ x$feature_default_font_path = xy ] ; then
   font=unicode
else
   insmod part_gpt
   font="/usr/share/grub/unicode.pf2"
fi
if loadfont $font ; then
  set gfxmode=auto
  load_video
  insmod gfxterm
fi
terminal_output gfxterm
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  if [ x$feature_timeout_style = xy ] ; then
    set timeout_style=menu
    set timeout=5
  else
    set timeout=5
  fi
fi
### END /etc/grub.d/00_header ###

### BEGIN /etc/grub.d/10_linux ###
function gfxmode {
	set gfxpayload="${1}"
}
set linux_gfx_mode=
export linux_gfx_mode
menuentry 'Hand GNU/Linux' --class debian --class gnu-linux --class gnu --class os $menuentry_id_option 'gnulinux-simple-ROOT' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	insmod ext2
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1  ROOT
	else
	  search --no-floppy --fs-uuid --set=root ROOT
	fi
	echo	'Loading Linux 6.1.0-2-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-2-amd64 root=UUID=ROOT ro  quiet
	echo	'Loading initial ramdisk ...'
	initrd	/boot/ucode.img /boot/initrd.img-6.1.0-2-amd64
}
submenu 'Advanced options for Hand GNU/Linux' $menuentry_id_option 'gnulinux-advanced-ROOT' {
	menuentry 'Hand GNU/Linux, with Linux 6.1.0-2-amd64' --class debian $menuentry_id_option 'gnulinux-6.1.0-2-amd64-advanced-ROOT' {
		search --no-floppy --fs-uuid --set=root ROOT
		linux	/boot/vmlinuz-6.1.0-2-amd64 root=UUID=ROOT ro  quiet
		initrd	/boot/initrd.img-6.1.0-2-amd64
	}
	menuentry 'Hand GNU/Linux, with Linux 6.1.0-1-amd64 (recovery mode)' --class debian $menuentry_id_option 'gnulinux-6.1.0-1-amd64-recovery-ROOT' {
		search --no-floppy --fs-uuid --set=root ROOT
		linux	/boot/vmlinuz-6.1.0-1-amd64 root=UUID=ROOT ro single
		initrd	/boot/initrd.img-6.1.0-1-amd64
	}
}
### END /etc/grub.d/10_linux ###

### BEGIN /etc/grub.d/30_uefi-firmware ###
if [ "$grub_platform" = "efi" ]; then
	fwsetup --is-supported
	if [ "$?" = 0 ]; then
		menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' { fwsetup }
	fi
fi
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"#;

#[test]
fn debian() {
    let text = DEBIAN.replace("ROOT", ROOT);
    let menu = simple(&text);
    let titles: Vec<String> = menu.flat().into_iter().map(|f| f.title).collect();
    assert_eq!(
        titles,
        [
            "Hand GNU/Linux",
            "Advanced options for Hand GNU/Linux>Hand GNU/Linux, with Linux 6.1.0-2-amd64",
            "Advanced options for Hand GNU/Linux>Hand GNU/Linux, with Linux 6.1.0-1-amd64 \
             (recovery mode)",
        ]
    );
    let (title, start) = default(&menu);
    assert_eq!(title, "Hand GNU/Linux");
    assert_eq!(
        start.cmdline,
        format!("BOOT_IMAGE=/boot/vmlinuz-6.1.0-2-amd64 root=UUID={ROOT} ro quiet")
    );
    assert_eq!(start.kernel.device, "hd0,gpt1");
    let initrds: Vec<&str> = start.initrds.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        initrds,
        ["/boot/ucode.img", "/boot/initrd.img-6.1.0-2-amd64"]
    );
}

#[test]
fn debian_with_a_saved_entry_and_a_custom_menu() {
    let text = DEBIAN.replace("ROOT", ROOT);
    let custom = "menuentry mine --id my { linux /k a='b c' \"d\\\"e\" }\n";
    let with = |variables: &str| {
        let disk = disk(&[
            ("/boot/grub/grub.cfg", &text),
            ("/boot/grub/grubenv", &environment(variables)),
            ("/boot/grub/custom.cfg", custom),
        ]);
        default(&menu(&disk, "hd0,gpt1", "/boot/grub/grub.cfg"))
    };
    let saved =
        format!("saved_entry=gnulinux-advanced-{ROOT}>gnulinux-6.1.0-1-amd64-recovery-{ROOT}");
    assert!(with(&saved).1.cmdline.ends_with("ro single"));
    assert!(with("saved_entry=1>1").1.cmdline.ends_with("ro single"));
    // A menu below without a choice starts its first.
    assert!(with("saved_entry=1").0.contains("6.1.0-2-amd64"));
    assert_eq!(with("saved_entry=gone").0, "Hand GNU/Linux");
    assert_eq!(with("saved_entry=0\nnext_entry=my").0, "mine");
    let quoted = with("saved_entry=mine").1.cmdline;
    assert_eq!(quoted, r#"BOOT_IMAGE=/k "a=b c" d\"e"#);
}

#[test]
fn ubuntu_cloud() {
    let text = r#"
set default="0"
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
function initrdfail {
    if [ -n "${have_grubenv}" ]; then if [ -n "${partuuid}" ]; then
      if [ -z "${initrdfail}" ]; then
        set initrdfail=1
        if [ -n "${boot_once}" ]; then
          set prev_entry="${default}"
          save_env prev_entry
        fi
      fi
      save_env initrdfail
    fi; fi
}
if [ "${recordfail}" != 1 ]; then
  if [ -e ${prefix}/gfxblacklist.txt ]; then
    if [ ${grub_platform} != pc ]; then set linux_gfx_mode=keep
    elif hwmatch ${prefix}/gfxblacklist.txt 3; then
      if [ ${match} = 0 ]; then set linux_gfx_mode=keep; else set linux_gfx_mode=text; fi
    else set linux_gfx_mode=text
    fi
  else set linux_gfx_mode=keep
  fi
else set linux_gfx_mode=text
fi
set partuuid=PART
menuentry 'Hand Ubuntu' --class ubuntu --id='simple' {
	recordfail
	gfxmode $linux_gfx_mode
	search --no-floppy --label --set=root fake
	if [ "${initrdfail}" = 1 ]; then
	  echo 'GRUB_FORCE_PARTUUID set, initrdless boot failed. Attempting with initrd.'
	  linux	/boot/vmlinuz-6.8 root=LABEL=fake ro  console=tty1 console=ttyS0
	  initrd	/boot/initrd.img-6.8
	else
	  linux	/boot/vmlinuz-6.8 root=PARTUUID=PART ro  console=tty1 console=ttyS0 panic=-1
	fi
	initrdfail
}
if [ "$grub_platform" = "pc" ]; then
	menuentry 'Memory test' { linux16 /boot/memtest }
	menuentry 'Other system' { chainloader +1 }
fi
"#;
    let menu = simple(text);
    let (_, start) = default(&menu);
    assert!(start.cmdline.contains("root=PARTUUID=PART") && start.initrds.is_empty());
    let flat = menu.flat();
    assert_eq!(flat.len(), 3);
    assert!(flat[2].start.as_ref().unwrap_err().contains("chainloader"));
    let disk = disk(&[
        (
            "/boot/grub/grub.cfg",
            &text.replacen("set default", "load_env\nset default", 1),
        ),
        ("/boot/grub/grubenv", &environment("initrdfail=1")),
    ]);
    let (_, start) = default(
        &super::evaluate(
            &disk,
            &Place {
                device: "hd0,gpt1".into(),
                path: "/boot/grub/grub.cfg".into(),
            },
        )
        .unwrap(),
    );
    assert_eq!(start.initrds.len(), 1);
}

/// A separate /boot, entries of the Boot Loader Specification, and the
/// configuration on the EFI system partition that leads there.
#[test]
fn fedora() {
    let esp = r#"search --no-floppy --root-dev-only --fs-uuid --set=dev BOOT
set prefix=($dev)/grub2
export $prefix
configfile $prefix/grub.cfg
"#;
    let config = r#"
set pager=1
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="${saved_entry}"
fi
search --no-floppy --fs-uuid --set=root --hint='hd0,gpt2' BOOT
insmod part_gpt
insmod blscfg
blscfg
if [ -z "${kernelopts}" ]; then
  set kernelopts="root=UUID=ROOT ro fallback "
fi
set timeout=1
if [ "$grub_platform" = "efi" ]; then
  menuentry 'UEFI Firmware Settings' { fwsetup }
fi
"#;
    let entry = |version: &str, options: &str| {
        format!(
            "title Hand Linux ({version})\nversion {version}\nlinux /vmlinuz-{version}\n\
             initrd /initramfs-{version}.img $tuned_initrd\noptions {options}\ngrub_users $x\n"
        )
    };
    let files = |device: &[(&str, String)], uuid: &str| Files {
        files: device
            .iter()
            .map(|(path, text)| ((*path).to_owned(), text.clone().into_bytes()))
            .collect(),
        uuid: uuid.into(),
    };
    let with = |saved: &str| {
        let disk = Disk(vec![
            (
                "hd0,gpt1",
                files(
                    &[("/EFI/fedora/grub.cfg", esp.replace("BOOT", BOOT))],
                    "1234-ABCD",
                ),
            ),
            (
                "hd0,gpt2",
                files(
                    &[
                        (
                            "/grub2/grub.cfg",
                            config.replace("ROOT", ROOT).replace("BOOT", BOOT),
                        ),
                        (
                            "/grub2/grubenv",
                            environment(&format!("{saved}\nkernelopts=root=UUID={ROOT} ro rhgb")),
                        ),
                        (
                            "/loader/entries/m-6.9.1-1.fc.conf",
                            entry("6.9.1", "$kernelopts"),
                        ),
                        (
                            "/loader/entries/m-6.10.2-1.fc.conf",
                            entry("6.10.2", "$kernelopts ${tuned}x"),
                        ),
                        (
                            "/loader/entries/m-0-rescue.conf",
                            entry("0-rescue", "single"),
                        ),
                    ],
                    BOOT,
                ),
            ),
        ]);
        let menu = menu(&disk, "hd0,gpt1", "/EFI/fedora/grub.cfg");
        let flat: Vec<String> = menu.flat().into_iter().map(|f| f.id).collect();
        assert_eq!(flat, ["m-6.10.2-1.fc", "m-6.9.1-1.fc", "m-0-rescue"]);
        assert_eq!(menu.scripts.len(), 2);
        default(&menu).1
    };
    let newest = with("");
    assert_eq!(
        newest.cmdline,
        format!("BOOT_IMAGE=(hd0,gpt2)/vmlinuz-6.10.2 root=UUID={ROOT} ro rhgb x")
    );
    assert_eq!(newest.kernel.device, "hd0,gpt2");
    assert_eq!(newest.initrds.len(), 1);
    assert!(with("saved_entry=m-6.9.1-1.fc").cmdline.contains("6.9.1"));
    assert!(with("saved_entry=2").cmdline.contains("single"));
}

#[test]
fn alpine() {
    let menu = simple(
        "set timeout=1\nmenuentry \"Hand Alpine, with Linux virt\" {\n\
         \tsearch.fs_uuid aaaaaaaa-0000-4000-8000-000000000001 root hd0,gpt1\n\
         \tlinux\t/boot/vmlinuz-virt modules=sd-mod,ext4 \\\n  quiet\n\tinitrd\t/boot/initramfs-virt\n}\n",
    );
    let (_, start) = default(&menu);
    assert_eq!(
        start.cmdline,
        "BOOT_IMAGE=/boot/vmlinuz-virt modules=sd-mod,ext4 quiet"
    );
}

/// Written in the manner of Arch's grub-mkconfig: microcode before the initial
/// RAM disk, both kernels with a fallback below.
#[test]
fn arch() {
    let menu = simple(&format!(
        r#"
insmod part_gpt
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
else
   set default="0"
fi
if [ x"${{feature_menuentry_id}}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
menuentry 'Arch Linux' --class arch --class gnu-linux $menuentry_id_option 'gnulinux-simple-{ROOT}' {{
	load_video
	set gfxpayload=keep
	insmod ext2
	search --no-floppy --fs-uuid --set=root {ROOT}
	echo	'Loading Linux linux ...'
	linux	/boot/vmlinuz-linux root=UUID={ROOT} rw  loglevel=3 quiet
	echo	'Loading initial ramdisk ...'
	initrd	/boot/intel-ucode.img /boot/amd-ucode.img /boot/initramfs-linux.img
}}
submenu 'Advanced options for Arch Linux' $menuentry_id_option 'gnulinux-advanced-{ROOT}' {{
	menuentry 'Arch Linux, with Linux linux-lts (fallback initramfs)' --class arch $menuentry_id_option 'lts' {{
		search --no-floppy --fs-uuid --set=root {ROOT}
		linux	/boot/vmlinuz-linux-lts root=UUID={ROOT} rw  loglevel=3 quiet
		initrd	/boot/intel-ucode.img /boot/initramfs-linux-lts-fallback.img
	}}
}}
if [ "$grub_platform" = "efi" ]; then
	menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {{ fwsetup }}
fi
"#
    ));
    let (title, start) = default(&menu);
    assert_eq!(title, "Arch Linux");
    assert_eq!(
        start.cmdline,
        format!("BOOT_IMAGE=/boot/vmlinuz-linux root=UUID={ROOT} rw loglevel=3 quiet")
    );
    let initrds: Vec<&str> = start.initrds.iter().map(|p| p.path.as_str()).collect();
    let expected =
        ["intel-ucode", "amd-ucode", "initramfs-linux"].map(|n| format!("/boot/{n}.img"));
    assert_eq!(initrds, expected);
    let flat = menu.flat();
    assert_eq!(flat.len(), 2, "no firmware settings: {flat:?}");
    assert_eq!(flat[1].id, format!("gnulinux-advanced-{ROOT}>lts"));
}

/// Written in the manner of openSUSE, with /boot on a file system that is read:
/// options that are added at the boot, and snapshots below only where there is
/// btrfs.
#[test]
fn opensuse() {
    let text = format!(
        r#"
set btrfs_relative_path="yes"
export btrfs_relative_path
if [ -f ${{config_directory}}/grubenv ]; then
  load_env -f ${{config_directory}}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${{saved_entry}}"
fi
if [ -z "${{extra_cmdline}}" ]; then set extra_cmdline=""; fi
regexp --set 1:disk --set=2:part '^(hd[0-9]+),[a-z]*([[:digit:]]+)$' "$root"
menuentry 'openSUSE Leap 15.6'  --class opensuse --class os --id opensuse-simple {{
	set root='hd1,gpt2'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint='hd1,gpt2'  {ROOT}
	else
	  search --no-floppy --fs-uuid --set=root {ROOT}
	fi
	linux	/boot/vmlinuz-6.4.0-default root=UUID={ROOT}  ${{extra_cmdline}} splash=silent mitigations=auto on=$disk/$part
	initrd	/boot/initrd-6.4.0-default
}}
if [ -f "/.snapshots/grub-snapshot.cfg" ]; then
  source "/.snapshots/grub-snapshot.cfg"
fi
"#
    );
    let grubenv = environment("saved_entry=opensuse-simple\nextra_cmdline=console=ttyS0,115200");
    let disk = disk(&[
        ("/boot/grub2/grub.cfg", &text),
        ("/boot/grub2/grubenv", &grubenv),
    ]);
    let menu = menu(&disk, "hd0,gpt1", "/boot/grub2/grub.cfg");
    let (title, start) = default(&menu);
    assert_eq!(title, "openSUSE Leap 15.6");
    assert_eq!(start.kernel.device, "hd0,gpt1");
    assert_eq!(
        start.cmdline,
        format!(
            "BOOT_IMAGE=/boot/vmlinuz-6.4.0-default root=UUID={ROOT} console=ttyS0,115200 \
             splash=silent mitigations=auto on=hd0/1"
        )
    );
}

#[test]
fn regular_expressions() {
    let kernel = |script: &str| default(&simple(script)).1.kernel.path;
    let found = "if regexp --set v 'vmlinuz-([^-]*)' /boot/vmlinuz-6.1-a; then linux /k$v; else linux /no; fi";
    assert_eq!(kernel(found), "/k6.1");
    for script in [
        "if regexp ^b abc; then linux /yes; else linux /no; fi",
        "if regexp '(' '('; then linux /yes; else linux /no; fi",
        "if regexp --set=9:v a; then linux /yes; else linux /no; fi",
    ] {
        assert_eq!(kernel(script), "/no", "{script}");
    }
    assert_eq!(
        kernel("regexp --set=7:v --set=0:w b. abc\nlinux /x$v$w"),
        "/xbc"
    );
}

#[test]
fn the_language() {
    let menu = simple(
        r#"
set list="a b"
set out=
for x in $list "c d"; do
  if [ "$x" = b ]; then continue; fi
  out="$out<$x>"
done
i=3
while [ $i -gt 0 ]; do decrement i; if test $i = 1; then break; fi; done
until true; do out=never; done
function f { out="$out$1-$#-$@"; return 1; out=never; }
f one two || true
if ! f x; then out="$out!"; elif true; then out=wrong; fi
eval "set late=\"\$out\""
unset list
probe --set=u --fs-uuid (hd0,gpt1)
probe --set p --part-uuid $root
if nosuchcommand; then out=wrong; fi
menuentry "$u $p" { linux ($root)/k "$late" i=$i $list ${list}z; }
linux /never
"#,
    );
    let (title, start) = default(&menu);
    assert_eq!(title, format!("{ROOT} part-of-hd0,gpt1"));
    assert_eq!(
        start.cmdline,
        "BOOT_IMAGE=(hd0,gpt1)/k \"<a><c d>one-4-one two || truex-1-x!\" i=1 z"
    );
}

#[test]
fn a_configuration_without_a_menu() {
    let (title, start) = default(&simple("linux /k a\ninitrd /i\nboot\nlinux /other\n"));
    assert_eq!(
        (title.as_str(), start.kernel.path.as_str()),
        ("grub.cfg", "/k")
    );
}

#[test]
fn no_configuration_goes_on_for_ever_or_grows_without_bound() {
    let fails = |text: &str, word: &str| {
        let disk = disk(&[("/g.cfg", text)]);
        let place = Place {
            device: "hd0,gpt1".into(),
            path: "/g.cfg".into(),
        };
        let error = evaluate(&disk, &place).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    };
    fails("while true; do true; done", "end");
    fails("until false; do x=y; done", "end");
    fails("function f { f; }\nf", "nested");
    fails("x=y; while true; do x=\"$x$x\"; done", "words");
    fails(
        "i=0; while true; do increment i; set v$i=0123456789; done",
        "variables",
    );
    fails("while true; do menuentry x { true }; done", "entries");
    fails("source /g.cfg", "scripts");
    fails("configfile /g.cfg; configfile /g.cfg", "scripts");
    fails("submenu x { source /g.cfg }", "menus");
    fails("function s { submenu x { s } }\ns", "menus");
    fails("eval \"while true; do true; done\"", "end");
    fails("if", "line 1");
}
