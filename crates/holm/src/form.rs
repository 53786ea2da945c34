//! How answers are printed: tables for people, JSON and YAML for programs.
//! Every `-o` of the command line is [`Output`].

use std::io::{IsTerminal, Write};
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::console::terminal;

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people
    Text,
    /// For programs
    Json,
    /// For programs and people
    Yaml,
}

/// `-o`.
#[derive(Args, Debug, Clone, Copy)]
pub struct Output {
    /// Form of the answer (-o json)
    #[arg(short = 'o', long = "output", value_enum, value_name = "FORM", default_value_t = Form::Text)]
    pub output: Form,
}

impl Output {
    /// For people.
    pub fn is_text(self) -> bool {
        self.output == Form::Text
    }
}

/// Prints an answer: as text by `text`, else as it is.
pub fn print<T: Serialize + ?Sized>(output: Output, value: &T, text: impl FnOnce() -> String) {
    let printed = match output.output {
        Form::Text => text(),
        Form::Json => serde_json::to_string_pretty(value).unwrap_or_default() + "\n",
        Form::Yaml => serde_norway::to_string(value).unwrap_or_default(),
    };
    out(&printed);
}

/// Prints one answer of a stream of them: a line of text, a line of JSON, or a
/// YAML document.
pub fn item<T: Serialize + ?Sized>(output: Output, value: &T, text: impl FnOnce() -> String) {
    out(&item_text(output, value, text));
}

/// The first version of an answer, which says so.
#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    answer: &'a T,
}

/// Prints an answer of version 1, if it is for a program; whether it was.
pub fn for_program<T: Serialize>(output: Output, answer: &T) -> bool {
    if !output.is_text() {
        print(output, &Versioned { version: 1, answer }, String::new);
    }
    !output.is_text()
}

/// What [`item`] prints.
pub fn item_text<T: Serialize + ?Sized>(
    output: Output,
    value: &T,
    text: impl FnOnce() -> String,
) -> String {
    match output.output {
        Form::Text => text(),
        Form::Json => serde_json::to_string(value).unwrap_or_default() + "\n",
        Form::Yaml => format!(
            "---\n{}",
            serde_norway::to_string(value).unwrap_or_default()
        ),
    }
}

/// Writes to standard output; who has gone is told nothing.
pub fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(e) = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        && e.kind() != std::io::ErrorKind::BrokenPipe
    {
        terminal::say(&format!("holm: writing the answer: {e}"));
    }
}

/// Whether a person sees standard output.
pub fn on_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Draws a text on the terminal in place of what it shows.
pub fn draw(text: &str) {
    // ECMA-48: cursor home, erase to the end of the screen.
    out(&format!("\x1b[H\x1b[2J{text}"));
}

/// A line without what moves the cursor.
pub fn line(text: &str) -> String {
    let mut line: String = text.chars().filter(|c| !c.is_control()).collect();
    line.push('\n');
    line
}

/// A time span, roughly.
pub fn time(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Columns under their names.
pub fn table<const N: usize>(
    names: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let rows: Vec<[String; N]> = rows.into_iter().collect();
    let mut widths = names.map(|name| name.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: Vec<&str>| {
        let mut all = String::new();
        for (cell, width) in cells.into_iter().zip(widths) {
            // What a user wrote must not move the cursor.
            let cell: String = cell.chars().filter(|c| !c.is_control()).collect();
            all += &format!("{cell:<width$}  ");
        }
        text += all.trim_end();
        text.push('\n');
    };
    line(names.to_vec());
    for row in &rows {
        line(row.iter().map(String::as_str).collect());
    }
    text
}

/// Names and values, one on each line.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        let name = format!("{name}:");
        let value: String = value.chars().filter(|c| !c.is_control()).collect();
        text += &format!("{name:<width$} {value}\n");
    }
    text
}

/// How long ago, roughly.
pub fn age(moment: &str) -> String {
    let then = humantime::parse_rfc3339(moment).ok();
    let passed = then.and_then(|then| SystemTime::now().duration_since(then).ok());
    time(passed.unwrap_or_default().as_secs())
}

/// A number of bytes.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut rest = number;
    while rest >= 1024 && rest.is_multiple_of(1024) && unit < 4 {
        rest /= 1024;
        unit += 1;
    }
    match rest >= 10_240 && unit < 4 {
        true => {
            let mut rest = rest as f64;
            while rest >= 1024.0 && unit < 4 {
                rest /= 1024.0;
                unit += 1;
            }
            format!("{rest:.1} {}", UNITS[unit])
        }
        false => format!("{rest} {}", UNITS[unit]),
    }
}

/// What is there, or nothing.
pub fn or_none(text: Option<&String>) -> String {
    text.cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_harmless() {
        let rows = [
            ["a".to_owned(), "x\u{1b}[2Jy".to_owned()],
            ["long".to_owned(), String::new()],
        ];
        let text = table(["NAME", "B"], rows);
        assert_eq!(text, "NAME  B\na     x[2Jy\nlong\n");
        assert_eq!(
            fields(&[("a", "1".into()), ("bc", String::new())]),
            "a:  1\n"
        );
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(8 << 30), "8 GiB");
        assert_eq!(bytes(512 << 20), "512 MiB");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(123_456_789), "117.7 MiB");
    }
}
