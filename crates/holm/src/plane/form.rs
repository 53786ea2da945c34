//! How answers are printed: tables for people, JSON and YAML for programs.

use std::io::Write;
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
    /// Form of the answer
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Form::Text)]
    pub output: Form,
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
    let seconds = passed.unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
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
