//! One machine of four vCPUs on KVM, and what a user does to it while it runs.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{BOOT, Console, SOON};

const HOLM: &str = "/bin/holm";
const NAME: &str = "work";
const ERRORS: &str = "/tmp/errors";
const DISK: &str = "/tmp/extra";
const DISK_SIZE: usize = 4 << 20;

/// All of it, in an order in which each finds what it needs.
pub fn all() {
    clones_go_on();
    let mut guest = Guest::start();
    assert_eq!(guest.sh("nproc"), "4");
    disks_come_grow_and_go(&mut guest);
    interrupts_follow_their_cpus(&mut guest);
    memory_and_a_folder_are_shared(&mut guest);
    a_debugger_looks_in(&mut guest);
    the_guest_fails(guest);
}

/// The machine, at a shell of its guest.
struct Guest {
    console: Console,
    commands: u32,
}

impl Guest {
    fn start() -> Self {
        let options = "run tiny --initrd /tmp/initrd --engine kvm --name work --cpus 4 --memory 256M \
             --share /test,tag=host,readonly --watchdog nothing --gdb 1234";
        let mut command = Command::new(HOLM);
        command.args(options.split_whitespace());
        command.args(["--append", "noxsave quiet nokaslr panic=1"]);
        command.stderr(File::create(ERRORS).unwrap());
        let mut console = Console::start(&mut command).unwrap();
        console.expect("leave the shell", BOOT).unwrap();
        Self {
            console,
            commands: 0,
        }
    }

    /// What a command prints.
    fn sh(&mut self, command: &str) -> String {
        self.commands += 1;
        let n = self.commands;
        println!("  {command}");
        // The terminal shows what is typed, too.
        let line = format!("echo begin-\"\"{n}; {command}; echo end-\"\"{n}\n");
        self.console.send(&line).unwrap();
        self.console
            .expect(&format!("begin-{n}\r\n"), SOON)
            .unwrap();
        let said = self.console.expect(&format!("end-{n}"), SOON).unwrap();
        said.replace("\r\n", "\n").trim().to_owned()
    }
}

/// What holm answers.
fn holm(arguments: &str) -> String {
    let output = Command::new(HOLM)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "holm {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    println!("  until {what}");
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Events of the machine's process.
fn events(guest: &Guest) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", guest.console.id())).unwrap();
    let names = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    names
        .filter(|name| name.to_string_lossy().contains("[eventfd]"))
        .count()
}

fn disks_come_grow_and_go(guest: &mut Guest) {
    let content: Vec<u8> = (0..DISK_SIZE).map(|n| ((n * n) >> 7) as u8).collect();
    fs::write(DISK, content).unwrap();
    let sum = Command::new("md5sum").arg(DISK).output().unwrap().stdout;
    let sum = String::from_utf8_lossy(&sum)[..32].to_owned();
    let before = events(guest);
    for round in 0..2 {
        let said = holm(&format!(
            "attach {NAME} --disk {DISK},name=extra --wait 60s"
        ));
        assert!(said.contains("the guest uses it"), "{said}");
        let read = "dd if=/dev/vda bs=64k iflag=direct 2> /dev/null | head -c 4194304 | md5sum";
        assert!(guest.sh(read).starts_with(&sum));
        assert!(events(guest) > before, "it interrupts by events");
        if round == 1 {
            holm(&format!("grow {NAME} extra 8M"));
            let grown =
                "until [ $(cat /sys/block/vda/size) = 16384 ]; do usleep 50000; done; echo 8M";
            assert_eq!(guest.sh(grown), "8M");
        }
        holm(&format!("detach {NAME} extra"));
        eventually("the disk is gone", || {
            !holm(&format!("show {NAME} -o json")).contains(r#""extra""#)
        });
        assert_eq!(guest.sh("ls /dev | grep -c vda"), "0");
        assert_eq!(events(guest), before, "its events are gone");
    }
}

/// A CPU that goes takes no interrupts any more, and one that comes back starts
/// by INIT and SIPI; meanwhile the guest writes new messages into MSI-X tables.
fn interrupts_follow_their_cpus(guest: &mut Guest) {
    for cpus in ["1 2 3", "2"] {
        let set = |value: u8| {
            format!(
                "for c in {cpus}; do echo {value} > /sys/devices/system/cpu/cpu$c/online; done; nproc"
            )
        };
        let left = 4 - cpus.split(' ').count();
        assert_eq!(guest.sh(&set(0)), left.to_string());
        let moves = "for n in 1 2 3 4; do for i in $(grep virtio /proc/interrupts | cut -d: -f1); \
             do echo $n > /proc/irq/$i/smp_affinity; done 2> /dev/null; \
             head -c 512 /dev/hwrng | wc -c; done | md5sum | cut -c1-8";
        let expected = guest.sh("for n in 1 2 3 4; do echo 512; done | md5sum | cut -c1-8");
        assert_eq!(guest.sh(moves), expected);
        assert_eq!(guest.sh(&set(1)), "4");
    }
}

fn memory_and_a_folder_are_shared(guest: &mut Guest) {
    guest.sh("for m in virtio_balloon fuse virtiofs; do insmod /lib/modules/$m.ko; done");
    let report = |words: &str| -> Value {
        serde_json::from_str(&holm(&format!("balloon {NAME} {words} -o json"))).unwrap()
    };
    report("192M");
    eventually("the balloon is full", || report("")["actual"] == 64 << 20);
    report("256M");
    eventually("the balloon is empty", || report("")["actual"] == 0);
    let said = guest.sh("mkdir /tmp/host; mount -t virtiofs host /tmp/host && cat /tmp/host/hello");
    assert_eq!(said, "hello from the host");
}

/// One packet of GDB's protocol, and the answer's content.
fn ask(gdb: &mut TcpStream, packet: &str) -> String {
    let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
    write!(gdb, "${packet}#{sum:02x}").unwrap();
    let mut byte = [0];
    let mut answer = Vec::new();
    while answer.last() != Some(&b'#') {
        gdb.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    gdb.read_exact(&mut [0; 2]).unwrap();
    gdb.write_all(b"+").unwrap();
    let mut text = String::new();
    let mut bytes = answer.into_iter().filter(|b| !b"+$#".contains(b));
    while let Some(byte) = bytes.next() {
        // The character before, so many times more.
        let more = if byte == b'*' { bytes.next() } else { None };
        match (more, text.chars().last()) {
            (Some(more), Some(last)) => text.extend((29..more).map(|_| last)),
            _ => text.push(byte.into()),
        }
    }
    println!("  gdb {packet}: {text:.40}");
    text
}

/// From the answer to `g`.
fn rip(registers: &str) -> u64 {
    let digits = &registers[16 * 16..17 * 16];
    u64::from_str_radix(digits, 16).unwrap().swap_bytes()
}

/// The thread that an answer says has stopped.
fn stopped(answer: &str) -> &str {
    let (_, thread) = answer.split_once("thread:").unwrap();
    thread.split(';').next().unwrap()
}

fn a_debugger_looks_in(guest: &mut Guest) {
    let symbol = guest.sh("grep -w __x64_sys_sync /proc/kallsyms | cut -d' ' -f1");
    let start = u64::from_str_radix(&symbol, 16).unwrap();
    // No vCPU is idle, which might take long to step.
    guest.sh("loops=; for c in 0 1 2 3; do (while :; do sync; done) & loops=\"$loops $!\"; done");
    let mut gdb = TcpStream::connect("127.0.0.1:1234").unwrap();
    gdb.set_read_timeout(Some(SOON)).unwrap();
    let mut stop = ask(&mut gdb, "?");
    // The code that any CPU will run, by its linear address.
    assert_eq!(ask(&mut gdb, &format!("m{start:x},4")).len(), 8);
    if std::env::var("DEBUG_REGISTERS").is_ok_and(|arms| arms == "1") {
        assert_eq!(ask(&mut gdb, &format!("Z0,{start:x},1")), "OK");
        stop = ask(&mut gdb, "vCont;c");
        assert_eq!(rip(&ask(&mut gdb, "g")), start);
        assert_eq!(ask(&mut gdb, &format!("z0,{start:x},1")), "OK");
    }
    let before = ask(&mut gdb, "g");
    let step = format!("vCont;s:{}", stopped(&stop));
    assert_eq!(stopped(&ask(&mut gdb, &step)), stopped(&stop));
    // A repeated string instruction stays where it is, but counts.
    assert_ne!(ask(&mut gdb, "g"), before);
    assert_eq!(ask(&mut gdb, "D"), "OK");
    drop(gdb);
    guest.sh("kill $loops");
}

/// Two machines at once from what the step before has left.
fn clones_go_on() {
    let mut clones = ["first", "second"].map(|name| {
        let mut command = Command::new(HOLM);
        command.args(["restore", "/tmp/s1", "--clone", "--engine", "kvm"]);
        command.args(["--name", name]);
        let mut console = Console::start(&mut command).unwrap();
        console.send("\n").unwrap();
        console.expect("#", BOOT).unwrap();
        Guest {
            console,
            commands: 0,
        }
    });
    for clone in &mut clones {
        assert_eq!(clone.sh("echo $x; nproc"), "42\n2");
        // The file is empty for a moment, again and again.
        let counts = "until read a < /tmp/count; do :; done; \
             until read b < /tmp/count && [ $b -gt $a ]; do :; done; echo on";
        assert_eq!(clone.sh(counts), "on");
        assert_eq!(clone.sh("head -c 512 /dev/hwrng | wc -c"), "512");
    }
    for mut clone in clones {
        clone.console.send("poweroff -f\n").unwrap();
        let (status, _) = clone.console.finish(SOON).unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

fn the_guest_fails(mut guest: Guest) {
    let said = |text: &str| fs::read_to_string(ERRORS).unwrap().contains(text);
    guest.sh("for m in watchdog wdat_wdt; do insmod /lib/modules/$m.ko; done; watchdog -T 2 -t 600 /dev/watchdog0");
    eventually("the watchdog has barked", || said("watchdog in time"));
    guest.sh("for m in pvpanic pvpanic-mmio; do insmod /lib/modules/$m.ko; done");
    guest
        .console
        .send("echo c > /proc/sysrq-trigger\n")
        .unwrap();
    let (status, _) = guest.console.finish(BOOT).unwrap();
    assert_eq!(status.code(), Some(26), "a panic has its own status");
    assert!(said("kernel has panicked"));
}
