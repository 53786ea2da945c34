//! The small monitor behind Ctrl-A c: a line editor and its commands.

use arch::CpuState;
use engine::VcpuStats;
use virtio::net::NetHandle;

/// What the monitor shows when it opens, and for `help`.
pub const HELP: &str = "commands: registers, statistics, power (button), continue (also a paused machine), quit; \
                        the first letter is enough";
/// Before each command.
pub const PROMPT: &str = "(holm) ";

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Show the registers of all vCPUs.
    Registers,
    /// Show the engine's counters.
    Statistics,
    /// Press the machine's power button.
    Power,
    /// Back to the console.
    Continue,
    /// End the machine.
    Quit,
    /// Not understood, or asked for.
    Help,
    /// An empty line.
    Nothing,
}

/// A line being typed.
#[derive(Debug, Default)]
pub struct Line(String);

impl Line {
    /// Takes typed bytes up to the end of a command; returns what to echo, the
    /// command, and how many bytes were taken.
    pub fn feed(&mut self, bytes: &[u8]) -> (String, Option<Command>, usize) {
        let mut echo = String::new();
        for (index, &byte) in bytes.iter().enumerate() {
            match byte {
                b'\r' | b'\n' => {
                    echo.push_str("\r\n");
                    let command = parse(&std::mem::take(&mut self.0));
                    return (echo, Some(command), index + 1);
                }
                // Ctrl-D and Escape: back to the guest.
                4 | 27 => {
                    echo.push_str("\r\n");
                    return (echo, Some(Command::Continue), index + 1);
                }
                8 | 127 if self.0.pop().is_some() => echo.push_str("\x08 \x08"),
                0x20..0x7f if self.0.len() < 64 => {
                    self.0.push(char::from(byte));
                    echo.push(char::from(byte));
                }
                _ => {}
            }
        }
        (echo, None, bytes.len())
    }
}

fn parse(line: &str) -> Command {
    let word = line.trim();
    let all = [
        ("registers", Command::Registers),
        ("statistics", Command::Statistics),
        ("power", Command::Power),
        ("continue", Command::Continue),
        ("quit", Command::Quit),
    ];
    if word.is_empty() {
        return Command::Nothing;
    }
    let found = all.iter().find(|(name, _)| name.starts_with(word));
    found.map_or(Command::Help, |(_, command)| *command)
}

/// The registers of one vCPU, for people.
pub fn registers(index: u32, state: &CpuState) -> String {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let mut text = format!("vCPU {index}: {:?}\n", state.mp_state);
    let mut row = |cells: &[(&str, u64)]| {
        for (name, value) in cells {
            text.push_str(&format!("  {name:>6} {value:016x}"));
        }
        text.push('\n');
    };
    let general: Vec<_> = NAMES.into_iter().zip(state.gpr).collect();
    row(&[("rip", state.rip), ("rflags", state.rflags)]);
    general.chunks(4).for_each(&mut row);
    row(&[
        ("cr0", state.cr0),
        ("cr2", state.cr2),
        ("cr3", state.cr3),
        ("cr4", state.cr4),
    ]);
    let [_, cs, ss, _, fs, gs] = state.segments;
    row(&[
        ("cs", cs.selector.into()),
        ("ss", ss.selector.into()),
        ("fsbase", fs.base),
        ("gsbase", gs.base),
    ]);
    text
}

/// The counters of one vCPU, for people.
pub fn statistics(index: u32, stats: &VcpuStats) -> String {
    let mut text = format!("vCPU {index}:\n");
    for (name, value) in &stats.counters {
        text.push_str(&format!("  {name:<32} {value:>20}\n"));
    }
    text
}

/// The counters of one network card, for people.
pub fn network_card(index: usize, card: &NetHandle) -> String {
    let stats = card.stats();
    let carrier = if card.link_up() { "up" } else { "down" };
    let mut text = format!(
        "network card {index}: {} on {}, {carrier}\n",
        card.mac(),
        card.network()
    );
    for (name, way) in [("received", stats.received), ("sent", stats.sent)] {
        text.push_str(&format!(
            "  {name:<9} {:>12} packets {:>16} bytes {:>8} errors {:>8} drops\n",
            way.packets, way.bytes, way.errors, way.drops
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_edited_and_become_commands() {
        let mut line = Line::default();
        assert_eq!(line.feed(b"reh\x7f"), ("reh\x08 \x08".into(), None, 4));
        assert_eq!(
            line.feed(b"\r"),
            ("\r\n".into(), Some(Command::Registers), 1)
        );
        assert_eq!(
            line.feed(b"c\rls\r"),
            ("c\r\n".into(), Some(Command::Continue), 2)
        );
        assert_eq!(line.feed(b"nonsense\r").1, Some(Command::Help));
        assert_eq!(line.feed(b"\r").1, Some(Command::Nothing));
        assert_eq!(
            line.feed(b"\x04x"),
            ("\r\n".into(), Some(Command::Continue), 1)
        );
    }

    #[test]
    fn registers_show_what_the_state_has() {
        let mut state = CpuState::reset(true);
        state.gpr[15] = 0x1234_5678_9abc_def0;
        let text = registers(1, &state);
        assert!(text.starts_with("vCPU 1: Running"));
        assert!(text.contains("r15 123456789abcdef0"));
        assert!(text.contains("cs 000000000000f000"));
    }
}
