//! The real GDB on a running guest: stops, reads, steps and lets it go.

mod common;
#[path = "common/terminal.rs"]
mod terminal;

use std::process::Command;

use common::{BOOT, SOON, image};
use terminal::Terminal;

fn gdb(address: &str, commands: &[&str]) -> String {
    let mut gdb = Command::new("timeout");
    gdb.args(["-k", "5", "200", "gdb", "-q", "-nx", "-batch"]);
    let connect = format!("target remote {address}");
    for command in ["set architecture i386:x86-64", &connect]
        .iter()
        .chain(commands)
    {
        gdb.args(["-ex", command]);
    }
    let output = gdb.output().expect("gdb is needed (package gdb)");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    text.into_owned()
}

#[test]
fn gdb_stops_at_breakpoints_and_watchpoints_steps_and_detaches() {
    image("tiny");
    let mut terminal = Terminal::start(
        env!("CARGO_BIN_EXE_holm"),
        &[
            "run",
            "tiny",
            "--cpus",
            "2",
            "--gdb",
            "0",
            "--append",
            "quiet nokaslr",
        ],
    );
    terminal.expect("GDB is served at ", BOOT);
    let address = terminal.expect("\r", SOON);
    terminal.expect("# ", BOOT);
    terminal.send("grep -w __x64_sys_sync /proc/kallsyms; echo 'e'nd\r");
    let symbols = terminal.expect("end", SOON);
    let symbol = symbols.split(" T ").next().unwrap();
    let symbol = &symbol[symbol.len() - 16..];
    // The system call comes again and again, so that GDB cannot be too late.
    terminal.send("while :; do sync; usleep 20000; done &\r");
    terminal.expect("# ", SOON);

    let hit = format!("break *0x{symbol}");
    let text = gdb(
        &address,
        &[
            "info threads",
            &hit,
            "continue",
            "info registers rip",
            "stepi",
            "info registers rip",
            "delete",
            "set $top = $rsp",
            "watch *(long*)($top-8)",
            "continue",
            "monitor registers",
            "delete",
            "detach",
        ],
    );
    assert!(text.contains("vCPU 1"), "both vCPUs are threads: {text}");
    assert!(text.contains("Breakpoint 1,"), "{text}");
    let rips: Vec<u64> = text
        .lines()
        .filter(|line| line.starts_with("rip "))
        .map(|line| {
            let value = line.split_whitespace().nth(1).unwrap();
            u64::from_str_radix(value.trim_start_matches("0x"), 16).unwrap()
        })
        .collect();
    let start = u64::from_str_radix(symbol, 16).unwrap();
    assert_eq!(rips[0], start, "{text}");
    assert!(rips[1] > start && rips[1] < start + 16, "one step: {text}");
    assert!(
        text.contains("Hardware watchpoint") || text.contains("hit Watchpoint"),
        "{text}"
    );
    assert!(text.contains("cr3 "), "{text}");

    // The guest goes on as if nothing had been.
    terminal.send("echo still 'a'live\r");
    terminal.expect("still alive", SOON);

    // Memory by guest-virtual address, both ways: the system call's own code.
    let text = gdb(&address, &[&format!("x/2i 0x{symbol}"), "detach"]);
    assert!(text.contains(&format!("0x{symbol}:")), "{text}");
    gdb(&address, &["kill"]);
    assert_eq!(terminal.finish(SOON), Some(0), "as if its power were cut");
}
