//! Guests of three releases of Debian at once, each with its own kernel (Linux
//! 5.10, 6.1 and 6.12), C library and programs: `proofs/kernels` does the same
//! with whole Debians.

mod common;

use std::fs::{self, File};
use std::path::Path;

use common::{BOOT, Console, SOON, holm, image};

const GUESTS: [(&str, &str, &str); 3] = [
    ("tiny-bullseye", "5.10.", "5.32."),
    ("tiny", "6.1.", ""),
    ("tiny-trixie", "6.12.", "5.40."),
];
/// Bytes that each sends to the next.
const SENT: usize = 8 << 20;

/// A guest with a shell on its console.
struct Guest(Console);

impl Guest {
    fn start(runtime: &Path, name: &str) -> Self {
        image(name);
        let disk = runtime.join(format!("{name}.img"));
        File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        let mut command = holm();
        command
            .args([
                "run", name, "--name", name, "--cpus", "2", "--append", "quiet",
            ])
            .args(["--engine", "soft", "--net", "switch=releases"])
            .args(["--disk", disk.to_str().unwrap()])
            .env("XDG_RUNTIME_DIR", runtime);
        Self(Console::start(&mut command).unwrap())
    }

    fn begin(&mut self, command: &str) {
        // The shell echoes what is typed, and breaks long lines. Bullseye's has no base64.
        let quoted = common::base64(command.as_bytes());
        self.0
            .send(&format!(
                "printf 'begin-base64 644 -\\n%s\\n====\\n' {quoted} | uudecode -o /tmp/c; \
                 echo BE''GIN; sh -e /tmp/c; echo EN''D $?.\n"
            ))
            .unwrap();
        self.0.expect("BEGIN\r\n", SOON).unwrap();
    }

    /// What the command that was begun printed; it must succeed.
    fn end(&mut self) -> String {
        let output = self.0.expect("END ", BOOT).unwrap();
        let status = self.0.expect(".", SOON).unwrap();
        assert_eq!(status, "0", "{output}");
        output.replace("\r\n", "\n")
    }

    fn run(&mut self, command: &str) -> String {
        self.begin(command);
        self.end()
    }
}

#[test]
fn three_kernels_and_userlands_work_beside_each_other() {
    let runtime = tempfile::tempdir().unwrap();
    let mut guests = GUESTS.map(|(name, ..)| Guest::start(runtime.path(), name));
    for (n, guest) in guests.iter_mut().enumerate() {
        guest.0.expect("# ", BOOT).unwrap();
        let up = format!(
            "ip link set eth0 up; ip addr add 10.3.0.{}/24 dev eth0",
            n + 1
        );
        guest.run(&up);
    }
    each_is_of_its_release(&mut guests);
    all_compute_and_write(&mut guests);
    what_each_sends_arrives(&mut guests);
    disks_come_and_go(&mut guests, runtime.path());
    for mut guest in guests {
        // Nothing that a kernel says when something is wrong with its machine.
        let log = guest.run("dmesg");
        let bad = [
            "BUG",
            "WARNING:",
            "Call Trace",
            "Oops",
            "stall",
            "lockup",
            "unstable",
        ];
        for line in log.lines() {
            assert!(
                !bad.iter().any(|bad| line.contains(bad)),
                "{line}\nin {log}"
            );
        }
        guest.0.send("poweroff -f\n").unwrap();
        let (status, rest) = guest.0.finish(SOON).unwrap();
        assert_eq!(status.code(), Some(0), "{rest}");
    }
}

fn each_is_of_its_release(guests: &mut [Guest]) {
    for (guest, (_, kernel, perl)) in guests.iter_mut().zip(GUESTS) {
        let release = guest.run("uname -r");
        assert!(release.starts_with(kernel), "{release}");
        if !perl.is_empty() {
            assert!(
                guest
                    .run("perl -e 'printf \"%vd\\n\", $^V'")
                    .starts_with(perl)
            );
        }
        let cpus = guest.run("grep -c ^processor /proc/cpuinfo");
        assert_eq!(cpus, "2\n");
    }
}

/// The same work in each, at the same time, with the same result.
fn all_compute_and_write(guests: &mut [Guest]) {
    let sums = "head -c 20000000 /dev/zero | sha256sum\n\
                seq 1 50000 | sort -r | gzip | zcat | md5sum\n\
                seq 1 700000 | head -c 4194304 > /tmp/x; dd if=/tmp/x of=/dev/vda bs=1M 2> /tmp/e\n\
                sync; echo 3 > /proc/sys/vm/drop_caches; head -c 4194304 /dev/vda | md5sum\n";
    // Numbers, text and processes by each release's perl and C library.
    let perl = "perl -MPOSIX -e 'my ($s, %h) = (0); $s += sqrt($_) * sin($_) for 1 .. 100000; \
                $h{$_ % 997} .= chr(65 + $_ % 26) for 1 .. 100000; my $n = grep { /^.*(AJS|BKT)$/ } values %h; \
                for (1 .. 20) { my $p = fork // die; exit 7 if !$p; waitpid $p, 0; $? >> 8 == 7 or die } \
                printf \"%.6f %d %s\\n\", $s, $n, strftime(\"%F\", gmtime 1e9)'";
    for (guest, (.., version)) in guests.iter_mut().zip(GUESTS) {
        let more = if version.is_empty() { "" } else { perl };
        guest.begin(&format!("{sums}{more}"));
    }
    let said: Vec<String> = guests.iter_mut().map(Guest::end).collect();
    assert!(
        said[1]
            .starts_with("9e21c61969cd3e077a1b2b58ddb583b175e13c6479d2d83912eaddc23c0cdd52  -\n")
    );
    assert_eq!(said[1].lines().count(), 3, "{said:?}");
    assert!(
        said[0].starts_with(&said[1]) && said[0].ends_with(" 2001-09-09\n"),
        "{said:?}"
    );
    assert_eq!(said[0], said[2]);
}

/// Each to the next, all at once.
fn what_each_sends_arrives(guests: &mut [Guest]) {
    let last = guests.len();
    let sums: Vec<String> = guests
        .iter_mut()
        .map(|guest| {
            guest.run(&format!(
                "head -c {SENT} /dev/urandom > /tmp/x; md5sum < /tmp/x"
            ))
        })
        .collect();
    for (n, guest) in guests.iter_mut().enumerate() {
        // nc half closes, and the other side ends, when its input does.
        let next = (n + 1) % last + 1;
        guest.begin(&format!(
            "mkfifo /tmp/f; nc -l -p 5000 <> /tmp/f > /tmp/y & until nc -w 60 10.3.0.{next} 5000 < /tmp/x 2> /dev/null\n\
             do usleep 100000; done; wait; md5sum < /tmp/y"
        ));
    }
    for (n, guest) in guests.iter_mut().enumerate() {
        assert_eq!(guest.end(), sums[(n + last - 1) % last]);
        guest.run("rm /tmp/x /tmp/y /tmp/f");
    }
}

/// Each kernel's own driver of hot-plug slots.
fn disks_come_and_go(guests: &mut [Guest], runtime: &Path) {
    let ask = |arguments: &[&str]| {
        let output = holm()
            .args(arguments)
            .env("XDG_RUNTIME_DIR", runtime)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    for (guest, (name, ..)) in guests.iter_mut().zip(GUESTS) {
        let disk = runtime.join(format!("{name}-more.img"));
        fs::write(&disk, vec![b'H'; 1 << 20]).unwrap();
        ask(&[
            "attach",
            name,
            "--disk",
            &format!("{},name=more", disk.display()),
        ]);
        assert_eq!(guest.run("tr -d H < /dev/vdb | wc -c"), "0\n");
        ask(&["detach", "--force", name, "more"]);
        guest.run("n=0; while [ -e /sys/block/vdb ] && [ $n -lt 300 ]; do usleep 100000; n=$((n+1)); done; [ ! -e /sys/block/vdb ]");
    }
}
