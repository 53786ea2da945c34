//! Debian at work: a database that loses nothing when the power goes, a
//! container, kernel modules and tracers, disks that are written and verified.

mod common;
#[path = "common/debian.rs"]
mod debian;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{BOOT, Console, SOON, holm, image};
use debian::{apt_options, log_in, power_off, sh};

const LONG: Duration = Duration::from_secs(900);
/// Least transactions before the power goes.
const TRANSACTIONS: u32 = 500;

#[test]
fn debian_works_and_its_database_survives_a_power_cut() {
    let cache = image("debian-disk").canonicalize().unwrap();
    let directory = tempfile::tempdir_in(cache.parent().unwrap()).unwrap();
    let keep = directory.path().join("kept");
    let scratch = directory.path().join("scratch.img");
    std::fs::File::create(&scratch)
        .unwrap()
        .set_len(256 << 20)
        .unwrap();
    let scratch = format!("{},serial=scratch", scratch.display());
    let options = [
        "run",
        "debian-disk",
        "--name",
        "work",
        "--cpus",
        "2",
        "--memory",
        "1G",
        "--keep",
        keep.to_str().unwrap(),
        "--disk",
        &scratch,
    ];
    let mut console = log_in(&mut at(directory.path(), &options));
    modules_and_tracers(&mut console);
    disks_keep_what_is_written(&mut console);
    install(&mut console, "postgresql runc busybox-static");
    a_container_runs(&mut console);
    transactions(&mut console);
    let snapshot = directory.path().join("snapshot");
    let snapshot = snapshot.to_str().unwrap();
    let captured = at(directory.path(), &["snapshot", "create", "work", snapshot])
        .output()
        .unwrap();
    assert!(captured.status.success(), "{captured:?}");
    console
        .expect(&format!("ACK-{TRANSACTIONS}."), LONG)
        .unwrap();
    // The power goes.
    drop(console);

    let mut console = log_in(&mut at(directory.path(), &options));
    nothing_is_lost(&mut console, TRANSACTIONS);
    power_off(console);
    the_snapshot_goes_on(directory.path(), snapshot);
}

fn at(runtime: &Path, arguments: &[&str]) -> Command {
    let mut command = holm();
    command.args(arguments).env("XDG_RUNTIME_DIR", runtime);
    command
}

/// From where it was captured, the database and its clients go on as if
/// nothing had been.
fn the_snapshot_goes_on(runtime: &Path, snapshot: &str) {
    let mut console = Console::start(&mut at(runtime, &["restore", snapshot])).unwrap();
    let said = console.expect("ACK-", BOOT).unwrap();
    assert!(!said.contains("ERROR"), "{said}");
    let next = console.expect(".", SOON).unwrap();
    let next: u32 = next.parse().unwrap();
    console
        .expect(&format!("ACK-{}.", next + 200), LONG)
        .unwrap();
    console.send("\x03").unwrap();
    console.expect("root@debian", SOON).unwrap();
    sh(&mut console, "pkill pgbench", SOON);
    nothing_is_lost(&mut console, next + 200);
    power_off(console);
}

fn install(console: &mut Console, packages: &str) {
    let options = apt_options();
    let (output, status) = sh(
        console,
        &format!(
            "export DEBIAN_FRONTEND=noninteractive\n\
             (apt-get{options} -q update && \
             apt-get{options} -q -y install --no-install-recommends {packages}) > log 2>&1 \
             || {{ cat log; exit 1; }}"
        ),
        LONG,
    );
    assert_eq!((output.as_str(), status), ("", 0));
}

/// Code that the kernel loads, and code that it patches while both vCPUs run.
fn modules_and_tracers(console: &mut Console) {
    let (output, status) = sh(
        console,
        "set -e\n\
         modprobe dummy; ip link add d0 type dummy; ip -br link show d0 | cut -d' ' -f1\n\
         ip link delete d0; modprobe -r dummy; ! grep -q '^dummy ' /proc/modules\n\
         cd /sys/kernel/tracing\n\
         yes > /dev/null & busy=$!\n\
         for i in 1 2 3; do\n\
           echo 'vfs_*' > set_ftrace_filter; echo function > current_tracer\n\
           ls -lR /etc > /dev/null; grep -qm 1 'vfs_.* <-' trace; echo nop > current_tracer\n\
         done\n\
         echo > set_ftrace_filter\n\
         echo 'p:opened do_sys_openat2 name=+0($arg2):ustring' > kprobe_events\n\
         echo 1 > events/kprobes/opened/enable; cat /etc/debian_version > /dev/null\n\
         echo 0 > events/kprobes/opened/enable\n\
         grep -o 'opened: .*name=\"/etc/debian_version\"' trace | grep -o '\"/etc.*' | head -n 1\n\
         echo > kprobe_events; kill $busy",
        BOOT,
    );
    assert_eq!(
        (output.as_str(), status),
        ("d0\n\"/etc/debian_version\"\n", 0)
    );
}

fn disks_keep_what_is_written(console: &mut Console) {
    let (output, status) = sh(
        console,
        "disk=/dev/disk/by-id/virtio-scratch\n\
         fio --name=verify --filename=$disk --direct=1 --rw=randwrite --bsrange=4k-128k --size=200m \
         --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --norandommap \
         --randseed=7 > log 2>&1 || { cat log; exit 1; }\n\
         blkdiscard $disk; cmp -n 1000000 $disk /dev/zero && echo empty",
        LONG,
    );
    assert_eq!((output.as_str(), status), ("empty\n", 0));
}

fn a_container_runs(console: &mut Console) {
    let (output, status) = sh(
        console,
        "set -e\n\
         mkdir -p /run/box/rootfs/bin; cd /run/box; cp /bin/busybox rootfs/bin/; ln -s busybox rootfs/bin/sh\n\
         runc spec\n\
         python3 - << 'END'\n\
         import json\n\
         spec = json.load(open('config.json'))\n\
         spec['process']['terminal'] = False\n\
         spec['process']['args'] = ['/bin/sh', '-c', 'echo contained; busybox hostname; busybox id -u;'\n\
         \x20   ' set -- /proc/[0-9]*; [ $# -le 2 ] && echo alone; busybox mount -t tmpfs none / 2> /dev/null || echo refused']\n\
         spec['hostname'] = 'box'\n\
         json.dump(spec, open('config.json', 'w'))\n\
         END\n\
         runc run box; runc list -q",
        SOON,
    );
    assert_eq!(
        (output.as_str(), status),
        ("contained\nbox\n0\nalone\nrefused\n", 0)
    );
}

/// Lets clients write while another says what was acknowledged to it: they are
/// still at it.
fn transactions(console: &mut Console) {
    let (output, status) = sh(
        console,
        "pg_lsclusters -h | awk '{print $4}'\n\
         cd /var/lib/postgresql\n\
         su postgres -c 'pgbench -q -i -s 4' > log 2>&1 || cat log\n\
         su postgres -c \"psql -qc 'create table t (n int primary key)'\"\n\
         su postgres -c 'pgbench -c 4 -T 5 -n' | grep -o '^number of failed.*'",
        LONG,
    );
    let expected = "online\nnumber of failed transactions: 0 (0.000%)\n";
    assert_eq!((output.as_str(), status), (expected, 0));
    console
        .send(
            "cd /var/lib/postgresql; (su postgres -c 'pgbench -c 4 -T 600 -n' > /dev/null 2>&1 &); \
             for n in $(seq 1 100000); do echo \"insert into t values ($n);\"; \
             echo \"\\echo ACK-$n.\"; done | su postgres -c 'psql -qAt'\n",
        )
        .unwrap();
    console.expect("\nACK-1.", SOON).unwrap();
    console.expect("ACK-100.", LONG).unwrap();
}

fn nothing_is_lost(console: &mut Console, acknowledged: u32) {
    let (output, status) = sh(
        console,
        &format!(
            "cd /var/lib/postgresql\n\
             for i in $(seq 100); do su postgres -c 'psql -qAtc \"\"' 2> log && break; sleep 1; done\n\
             su postgres -c 'psql -qAt' << 'END'\n\
             select max(n) >= {acknowledged}, count(*) = max(n) from t;\n\
             select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),\n\
             \x20 (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history),\n\
             \x20 (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history);\n\
             END\n\
             su postgres -c '/usr/lib/postgresql/15/bin/pg_amcheck --install-missing --heapallindexed postgres' && echo sound"
        ),
        LONG,
    );
    assert_eq!((output.as_str(), status), ("t|t\nt|t|t\nsound\n", 0));
}
