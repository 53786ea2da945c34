//! The commands of scripts that matter for what is started.

use super::evaluate::{Context, Flow, Interpreter};
use super::{GrubError, Place, condition};
use crate::filesystem::FileSystem;

/// Most initial RAM disks of one entry.
const MOST_INITRDS: usize = 64;
/// Longest pattern of `regexp`, and longest text it is looked for in, in bytes.
const LONGEST_PATTERN: usize = 1024;
const LONGEST_TEXT: usize = 16 << 10;

/// Commands that succeed and change nothing that matters here: modules,
/// terminals, graphics, sound, messages.
const HARMLESS: &[&str] = &[
    ":",
    "true",
    "insmod",
    "echo",
    "printf",
    "clear",
    "loadfont",
    "terminal_input",
    "terminal_output",
    "serial",
    "background_image",
    "background_color",
    "gfxmode",
    "play",
    "sleep",
    "save_env",
    "cpuid",
    "rmmod",
    "videoinfo",
    "password",
    "password_pbkdf2",
    "devicetree",
    "badram",
    "cutmem",
    "hiddenentry",
    "videomode",
    "loopback",
    "cryptomount",
    "efi-watchdog",
    "setkey",
    "authenticate",
    "nativedisk",
    "color_normal",
    "theme",
    "module_license",
    "cat",
    "ls",
    "date",
    "set_lang",
    "trust",
    "verify_detached",
    "smbios",
    "bli",
];
/// Commands that start something else than a kernel.
const OTHERS: &[&str] = &[
    "chainloader",
    "multiboot",
    "multiboot2",
    "xen_hypervisor",
    "xnu_kernel",
    "knetbsd",
    "kopenbsd",
    "kfreebsd",
    "ntldr",
    "freedos",
    "truecrypt",
    "plan9",
    "appleloader",
    "pxechainloader",
];

impl Interpreter<'_> {
    /// Runs a command, or the script's function of that name.
    pub(super) fn command(
        &mut self,
        context: &mut Context,
        words: &[String],
    ) -> Result<Flow, GrubError> {
        let Some((name, arguments)) = words.split_first() else {
            return Ok(Flow::Next);
        };
        if let Some(flow) = self.call(context, words)? {
            return Ok(flow);
        }
        let count = || arguments.first().and_then(|n| n.parse().ok()).unwrap_or(1);
        match name.as_str() {
            "break" => return Ok(Flow::Break(count())),
            "continue" => return Ok(Flow::Continue(count())),
            "return" => {
                if let Some(status) = arguments.first() {
                    context.status = status == "0";
                }
                return Ok(Flow::Return);
            }
            "shift" => {
                let by = count().min(context.arguments.len().saturating_sub(1));
                context.arguments.drain(1..=by);
            }
            "setparams" => {
                context.arguments.truncate(1);
                context.arguments.extend(arguments.iter().cloned());
            }
            "eval" => return self.text(context, &arguments.join(" ")),
            "boot" => return Ok(Flow::Stop),
            "halt" | "reboot" | "exit" | "fwsetup" => {
                context.loading.other = Some(name.clone());
                return Ok(Flow::Stop);
            }
            "source" | "." => return self.source(context, arguments),
            "configfile" | "normal" | "extract_entries_configfile" => {
                return self.configfile(context, arguments);
            }
            other => self.plain(context, other, words, arguments)?,
        }
        Ok(Flow::Next)
    }

    /// Commands that always go on with the next.
    fn plain(
        &mut self,
        context: &mut Context,
        name: &str,
        words: &[String],
        arguments: &[String],
    ) -> Result<(), GrubError> {
        context.status = true;
        match name {
            "set" => self.set(context, arguments)?,
            "unset" => arguments.iter().for_each(|n| context.environment.unset(n)),
            "export" => arguments.iter().for_each(|n| context.environment.export(n)),
            "increment" | "decrement" => {
                let by = if name == "increment" { 1 } else { -1 };
                for variable in arguments {
                    let old: i64 = context.environment.get(variable).parse().unwrap_or(0);
                    let new = old.saturating_add(by).to_string();
                    context.environment.set(variable, new)?;
                }
            }
            "test" => self.test(context, arguments),
            "[" => match arguments.split_last() {
                Some((last, expression)) if last == "]" => self.test(context, expression),
                _ => context.status = false,
            },
            "search" => self.search(context, arguments)?,
            "search.fs_uuid" | "search.fs_label" | "search.file" => {
                let by = name.trim_start_matches("search.");
                let into = arguments.get(1).map_or("root", String::as_str);
                self.find(context, by, arguments.first(), into)?;
            }
            "probe" => self.probe(context, arguments)?,
            "load_env" => self.load_env(context, arguments)?,
            "regexp" => regexp(context, arguments)?,
            "blscfg" => {
                let device = match context.environment.get("boot") {
                    "" => context.environment.get("root").to_owned(),
                    boot => boot.to_owned(),
                };
                self.add_bls(context, &device)?;
            }
            "linux" | "linux16" | "linuxefi" => self.linux(context, arguments),
            "initrd" | "initrd16" | "initrdefi" => {
                for path in arguments.iter().take(MOST_INITRDS) {
                    // `newc:NAME:FILE` puts a file into an archive of its own.
                    if !path.starts_with("newc:") && !path.starts_with("--") {
                        let place = locate(context, path);
                        context.loading.initrds.push(place);
                    }
                }
                context.loading.initrds.truncate(MOST_INITRDS);
            }
            name if OTHERS.contains(&name) => context.loading.other = Some(name.to_owned()),
            name if HARMLESS.contains(&name) => {}
            _ if words.len() == 1 && name.contains('=') => {
                self.set(context, words)?;
            }
            // Keys that nobody presses, comparisons of hardware, unknown ones.
            _ => context.status = false,
        }
        Ok(())
    }

    fn set(&mut self, context: &mut Context, arguments: &[String]) -> Result<(), GrubError> {
        for argument in arguments {
            match argument.split_once('=') {
                Some((name, value)) => context.environment.set(name, value.to_owned())?,
                None => context.status = false,
            }
        }
        Ok(())
    }

    fn test(&mut self, context: &mut Context, expression: &[String]) {
        let world = self.world;
        context.status = condition::test(expression, &mut |path| {
            let place = locate(context, path);
            world.volume(&place.device)?.stat(&place.path).ok()
        });
    }

    fn search(&mut self, context: &mut Context, arguments: &[String]) -> Result<(), GrubError> {
        let (mut by, mut into, mut what) = ("fs_uuid", None, None);
        let mut rest = arguments.iter().peekable();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--fs-uuid" | "-u" => by = "fs_uuid",
                "--label" | "--fs-label" | "-l" => by = "fs_label",
                "--file" | "-f" => by = "file",
                "--set" => into = Some("root"),
                "-s" | "--hint" | "-h" => {
                    // The value of these is a word of its own.
                    let value = rest.next();
                    if word == "-s" {
                        into = value.map(String::as_str);
                    }
                }
                other => match other.strip_prefix("--set=") {
                    Some(variable) => into = Some(variable),
                    None if other.starts_with('-') => {}
                    // `--set root UUID`: the variable stands alone.
                    None if what.is_none() && into == Some("root") && other == "root" => {}
                    None => what = Some(word),
                },
            }
        }
        self.find(context, by, what, into.unwrap_or(""))
    }

    /// Puts the first device with this identity, label or file into a variable.
    fn find(
        &mut self,
        context: &mut Context,
        by: &str,
        what: Option<&String>,
        into: &str,
    ) -> Result<(), GrubError> {
        let fits = |volume: &dyn FileSystem| {
            what.is_some_and(|what| match by {
                "fs_uuid" => volume.uuid().eq_ignore_ascii_case(what),
                "fs_label" => volume.label() == *what,
                _ => volume.stat(what).is_ok(),
            })
        };
        let world = self.world;
        let found = world
            .devices()
            .into_iter()
            .find(|device| world.volume(device).is_some_and(fits));
        context.status = found.is_some();
        match found {
            Some(device) if !into.is_empty() => context.environment.set(into, device),
            _ => Ok(()),
        }
    }

    fn probe(&mut self, context: &mut Context, arguments: &[String]) -> Result<(), GrubError> {
        let (mut into, mut what, mut device) = (None, "", None);
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--set" | "-s" => into = rest.next().map(String::as_str),
                "--fs-uuid" | "-u" => what = "fs_uuid",
                "--label" | "-l" => what = "label",
                "--fs" | "-f" => what = "fs",
                "--part-uuid" => what = "part_uuid",
                other => match other.strip_prefix("--set=") {
                    Some(variable) => into = Some(variable),
                    None => device = Some(other.trim_matches(['(', ')'])),
                },
            }
        }
        let answer = device.and_then(|device| {
            let volume = self.world.volume(device)?;
            Some(match what {
                "fs_uuid" => volume.uuid(),
                "label" => volume.label(),
                "fs" => volume.kind().to_owned(),
                "part_uuid" => self.world.partition_uuid(device),
                _ => return None,
            })
        });
        context.status = answer.is_some();
        match (answer, into) {
            (Some(answer), Some(variable)) => context.environment.set(variable, answer),
            _ => Ok(()),
        }
    }

    fn load_env(&mut self, context: &mut Context, arguments: &[String]) -> Result<(), GrubError> {
        let mut file = None;
        let mut only = Vec::new();
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "-f" | "--file" => file = rest.next().cloned(),
                other => match other.strip_prefix("--file=") {
                    Some(path) => file = Some(path.to_owned()),
                    None if other.starts_with('-') => {}
                    None => only.push(word.clone()),
                },
            }
        }
        let file = file.unwrap_or_else(|| format!("{}/grubenv", context.environment.get("prefix")));
        let place = locate(context, &file);
        context.status = self.load_environment(context, &place, &only)?;
        Ok(())
    }

    fn linux(&mut self, context: &mut Context, arguments: &[String]) {
        let Some((kernel, words)) = arguments.split_first() else {
            context.status = false;
            return;
        };
        let words = words.iter().map(|word| quoted(word));
        let first = format!("BOOT_IMAGE={}", quoted(kernel));
        let line: Vec<String> = std::iter::once(first).chain(words).collect();
        context.loading.kernel = Some(locate(context, kernel));
        context.loading.initrds.clear();
        context.loading.cmdline = line.join(" ");
    }

    fn source(&mut self, context: &mut Context, arguments: &[String]) -> Result<Flow, GrubError> {
        let place = arguments.first().map(|path| locate(context, path));
        let Some(place) = place.filter(|p| self.is_file(p)) else {
            context.status = false;
            return Ok(Flow::Next);
        };
        self.script(context, &place)
    }

    /// Another configuration in place of this one.
    fn configfile(
        &mut self,
        context: &mut Context,
        arguments: &[String],
    ) -> Result<Flow, GrubError> {
        let path = match arguments.first() {
            Some(path) => path.clone(),
            None => format!("{}/grub.cfg", context.environment.get("prefix")),
        };
        let place = locate(context, &path);
        if !self.is_file(&place) {
            context.status = false;
            return Ok(Flow::Next);
        }
        self.script(context, &place)?;
        // Whoever is asked to choose from a menu does not come back.
        Ok(match context.menu.is_empty() {
            true => Flow::Next,
            false => Flow::Stop,
        })
    }

    fn is_file(&self, place: &Place) -> bool {
        use crate::filesystem::Kind;
        let volume = self.world.volume(&place.device);
        let kind = volume.and_then(|v| v.stat(&place.path).ok());
        matches!(kind, Some(Kind::File(_)))
    }
}

/// `regexp [--set [NUMBER:]VARIABLE]... PATTERN TEXT`: whether the pattern (a
/// POSIX extended one) is found in the text, and what its parts have met, the
/// first one unless a number is given.
fn regexp(context: &mut Context, arguments: &[String]) -> Result<(), GrubError> {
    let (mut into, mut plain) = (Vec::new(), Vec::new());
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        match (word.as_str(), word.strip_prefix("--set=")) {
            ("--set" | "-s", _) => into.extend(rest.next().map(String::as_str)),
            (_, Some(target)) => into.push(target),
            _ => plain.push(word.as_str()),
        }
    }
    context.status = false;
    let [pattern, text] = plain.as_slice() else {
        return Ok(());
    };
    if pattern.len() > LONGEST_PATTERN || text.len() > LONGEST_TEXT {
        return Err(GrubError::TooMuch("words of regexp"));
    }
    let Ok(pattern) = regex_lite::Regex::new(pattern) else {
        return Ok(());
    };
    let Some(found) = pattern.captures(text) else {
        return Ok(());
    };
    for target in into {
        let (number, variable) = match target.split_once(':') {
            Some((number, variable)) => (number.parse().unwrap_or(1), variable),
            None => (1, target),
        };
        let part = found.get(number).map_or("", |part| part.as_str());
        context.environment.set(variable, part.to_owned())?;
    }
    context.status = true;
    Ok(())
}

/// A word as GRUB puts it on a kernel's command line.
fn quoted(word: &str) -> String {
    let mut out = String::new();
    for c in word.chars() {
        if matches!(c, '\\' | '\'' | '"') {
            out.push('\\');
        }
        out.push(c);
    }
    match word.contains(' ') {
        true => format!("\"{out}\""),
        false => out,
    }
}

/// The device and path of `(hd0,gpt1)/path`, or of a path on `$root`.
fn locate(context: &Context, path: &str) -> Place {
    let braced = path
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .filter(|(device, _)| !device.is_empty());
    let (device, path) = match braced {
        Some((device, path)) => (device, path),
        None => (context.environment.get("root"), path),
    };
    Place {
        device: device.trim_matches(['(', ')']).to_owned(),
        path: match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        },
    }
}
