//! The console on a real terminal: keys, monitor, signals, sizes, and a
//! terminal that is always as it was before.

mod common;
#[path = "common/terminal.rs"]
mod terminal;

use common::{BOOT, SOON, image};
use rustix::termios::{LocalModes, Termios};
use terminal::Terminal;

fn at_the_shell() -> (Terminal, Termios) {
    image("tiny");
    let terminal = Terminal::start(
        env!("CARGO_BIN_EXE_holm"),
        &["run", "tiny", "--append", "quiet"],
    );
    // Before holm had time to change anything.
    let mut before = terminal.settings();
    before.local_modes |= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
    let mut terminal = terminal;
    terminal.expect("# ", BOOT);
    assert!(
        !terminal.settings().local_modes.contains(LocalModes::ICANON),
        "not in raw mode"
    );
    (terminal, before)
}

fn is_restored(terminal: &Terminal, before: &Termios) {
    let after = terminal.settings();
    assert_eq!(after.local_modes, before.local_modes);
    assert_eq!(after.output_modes, before.output_modes);
    assert_eq!(after.control_modes, before.control_modes);
}

#[test]
fn ctrl_a_x_ends_the_machine_and_restores_the_terminal() {
    let (mut terminal, before) = at_the_shell();
    terminal.send("\x01x");
    assert_eq!(terminal.finish(SOON), Some(20));
    is_restored(&terminal, &before);
}

#[test]
fn signals_end_the_machine_and_restore_the_terminal() {
    for signal in ["TERM", "HUP", "INT"] {
        let (mut terminal, before) = at_the_shell();
        terminal.signal(signal);
        assert_eq!(terminal.finish(SOON), Some(22), "SIG{signal}");
        is_restored(&terminal, &before);
    }
}

#[test]
fn a_power_off_restores_the_terminal() {
    let (mut terminal, before) = at_the_shell();
    terminal.send("poweroff -f\r");
    assert_eq!(terminal.finish(SOON), Some(0));
    is_restored(&terminal, &before);
}

#[test]
fn a_bad_file_leaves_the_terminal_alone() {
    let mut terminal = Terminal::start(
        env!("CARGO_BIN_EXE_holm"),
        &["run", "--kernel", "/no/such/kernel"],
    );
    let before = terminal.settings();
    assert_eq!(terminal.finish(SOON), Some(14));
    is_restored(&terminal, &before);
}

#[test]
fn ctrl_c_and_ctrl_a_reach_the_guest() {
    let (mut terminal, _) = at_the_shell();
    terminal.send("sleep 1000; echo status $?\r");
    terminal.expect("\n", SOON);
    std::thread::sleep(std::time::Duration::from_secs(1));
    terminal.send("\x03");
    terminal.expect("# ", SOON);
    terminal.send("head -c 1 | od -An -tx1\r");
    terminal.expect("\n", SOON);
    std::thread::sleep(std::time::Duration::from_secs(1));
    // One Ctrl-A arrives; Ctrl-D ends the line's wait.
    terminal.send("\x01\x01\x04");
    terminal.expect("01", SOON);
}

#[test]
fn text_in_any_language_passes_untouched() {
    let (mut terminal, _) = at_the_shell();
    terminal.send("echo '\u{e4}\u{df} \u{65e5}\u{672c} \u{1f600}' | od -An -tx1\r");
    let bytes = "c3 a4 c3 9f 20 e6 97 a5 e6 9c ac 20 f0 9f 98 80";
    for byte in bytes.split(' ') {
        terminal.expect(byte, SOON);
    }
}

#[test]
fn the_monitor_shows_registers_and_statistics_and_goes_back() {
    let (mut terminal, _) = at_the_shell();
    terminal.send("\x01c");
    terminal.expect("(holm) ", SOON);
    terminal.send("registers\r");
    terminal.expect("vCPU 0", SOON);
    let rip = terminal.expect("rflags", SOON);
    let rip = rip
        .split("rip ")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    // Sixteen digits of an address that Linux uses: the kernel's half, where
    // it idles, or a program's, if the shell is still busy.
    let address = u64::from_str_radix(&rip, 16).unwrap();
    let kernel = address >= 0xffff_8000_0000_0000;
    let program = (0x1000..0x8000_0000_0000).contains(&address);
    assert!(rip.len() == 16 && (kernel || program), "rip {rip}");
    terminal.expect("(holm) ", SOON);
    terminal.send("statistics\r");
    terminal.expect("vCPU 0", SOON);
    terminal.expect("(holm) ", SOON);
    terminal.send("help\r");
    terminal.expect("continue", SOON);
    terminal.send("c\r");
    terminal.send("echo ba''ck\r");
    terminal.expect("\nback", SOON);
    terminal.send("\x01cquit\r");
    assert_eq!(terminal.finish(SOON), Some(20));
}

#[test]
fn the_guest_follows_the_terminals_size() {
    let (mut terminal, _) = at_the_shell();
    let mut sees = |size: (u16, u16)| {
        // The news takes a moment through the guest.
        std::thread::sleep(std::time::Duration::from_secs(2));
        terminal.send("stty size\r");
        terminal.expect(&format!("\n{} {}\r", size.1, size.0), SOON);
        terminal.resize((133, 37));
    };
    sees((80, 24));
    sees((133, 37));
}
