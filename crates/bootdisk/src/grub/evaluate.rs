//! Runs scripts: variables, control flow, functions, menus.

use std::collections::BTreeMap;

use super::environment::{self, Environment};
use super::script::{self, Block, Piece, Statement, Word};
use super::{GrubError, Item, LeadsTo, Menu, Place, Start, World};
use crate::bls;

/// Most commands of a whole configuration, all its entries included.
const MOST_STEPS: u64 = 200_000;
/// Deepest calls of functions, scripts and blocks.
const DEEPEST: usize = 64;
/// Most items of all menus.
const MOST_ITEMS: usize = 1000;
/// Deepest menus.
const DEEPEST_MENU: usize = 8;
/// Longest word, in bytes.
const LONGEST_WORD: usize = 64 << 10;
/// Most words of a command.
const MOST_WORDS: usize = 4096;
/// Most scripts.
const MOST_SCRIPTS: usize = 64;

/// The menu of the configuration at a place.
///
/// # Errors
/// [`GrubError`]: it cannot be read or understood, or does not end.
pub fn evaluate(world: &dyn World, config: &Place) -> Result<Menu, GrubError> {
    let mut interpreter = Interpreter {
        world,
        functions: BTreeMap::new(),
        steps: 0,
        depth: 0,
        items: 0,
        scripts: Vec::new(),
    };
    let mut context = Context::default();
    interpreter.begin(&mut context, config)?;
    interpreter.script(&mut context, config)?;
    let default = context.environment.get("default").to_owned();
    let loaded = context.loading.kernel.is_some();
    let mut items = interpreter.items(context.menu, 0)?;
    if items.is_empty() && loaded {
        // A configuration without a menu, that starts a kernel at once.
        items.push(Item {
            id: "grub.cfg".into(),
            title: "grub.cfg".into(),
            leads_to: LeadsTo::Start(context.loading.finish()),
        });
    }
    Ok(Menu {
        items,
        default,
        scripts: interpreter.scripts,
    })
}

/// How a statement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// Go on.
    Next,
    /// Leave so many loops.
    Break(usize),
    /// Leave so many loops but one, and go on with the next round of that.
    Continue(usize),
    /// Leave the function or script.
    Return,
    /// The menu is complete, or the kernel starts.
    Stop,
}

/// What the commands of an entry have loaded so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Loading {
    pub kernel: Option<Place>,
    pub initrds: Vec<Place>,
    pub cmdline: String,
    /// A command that starts something else.
    pub other: Option<String>,
}

impl Loading {
    fn finish(self) -> Result<Start, String> {
        match (self.kernel, self.other) {
            (Some(kernel), _) => Ok(Start {
                kernel,
                initrds: self.initrds,
                cmdline: self.cmdline,
            }),
            (None, Some(command)) => Err(format!(
                "it starts no Linux kernel but something else ({command})"
            )),
            (None, None) => Err("it starts no Linux kernel".into()),
        }
    }
}

/// A menu item before it is looked into.
pub(super) struct Pending {
    id: String,
    title: String,
    what: PendingKind,
}

enum PendingKind {
    Entry(Block, Vec<String>, Environment),
    Submenu(Block, Vec<String>, Environment),
    /// Of a `blscfg`: already complete.
    Complete(Start),
}

/// Variables and menu of a script and all that it includes.
#[derive(Default)]
pub(super) struct Context {
    pub environment: Environment,
    pub arguments: Vec<String>,
    pub menu: Vec<Pending>,
    pub loading: Loading,
    /// What the last command answered.
    pub status: bool,
}

pub(super) struct Interpreter<'w> {
    pub world: &'w dyn World,
    functions: BTreeMap<String, Block>,
    steps: u64,
    depth: usize,
    items: usize,
    scripts: Vec<Place>,
}

impl Interpreter<'_> {
    /// The variables that GRUB itself sets before it reads a configuration.
    fn begin(&mut self, context: &mut Context, config: &Place) -> Result<(), GrubError> {
        let directory = config.path.rsplit_once('/').map_or("", |(d, _)| d);
        let prefix = format!("({}){directory}", config.device);
        let mut set = |name: &str, value: &str| {
            context.environment.export(name);
            context.environment.set(name, value.to_owned())
        };
        for (name, value) in [
            ("root", config.device.as_str()),
            ("prefix", &prefix),
            ("cmdpath", "(hd0)"),
            ("config_directory", &prefix),
            ("grub_cpu", "i386"),
            ("grub_platform", "pc"),
            ("pager", ""),
            ("lang", ""),
            ("locale_dir", ""),
            ("feature_200_final", "y"),
            ("feature_all_video_module", "y"),
            ("feature_chainloader_bpb", "y"),
            ("feature_default_font_path", "y"),
            ("feature_menuentry_id", "y"),
            ("feature_menuentry_options", "y"),
            ("feature_nativedisk_cmd", "y"),
            ("feature_ntldr", "y"),
            ("feature_platform_search_hint", "y"),
            ("feature_timeout_style", "y"),
        ] {
            set(name, value)?;
        }
        Ok(())
    }

    /// Runs a script of the disk in this context.
    pub fn script(&mut self, context: &mut Context, place: &Place) -> Result<Flow, GrubError> {
        if self.scripts.len() >= MOST_SCRIPTS {
            return Err(GrubError::TooMuch("scripts"));
        }
        self.scripts.push(place.clone());
        let path = format!("({}){}", place.device, place.path);
        let unreadable = |reason: String| GrubError::Unreadable {
            path: path.clone(),
            reason,
        };
        let volume = self
            .world
            .volume(&place.device)
            .ok_or_else(|| unreadable("there is no such device".into()))?;
        let content = volume
            .read(&place.path, script::LONGEST as u64)
            .map_err(|e| unreadable(e.to_string()))?;
        let text = String::from_utf8_lossy(&content);
        let block = script::parse(&text).map_err(|error| GrubError::Script { path, error })?;
        match self.block(context, &block)? {
            Flow::Stop => Ok(Flow::Stop),
            _ => Ok(Flow::Next),
        }
    }

    /// Runs text as a script, for `eval`.
    pub fn text(&mut self, context: &mut Context, text: &str) -> Result<Flow, GrubError> {
        match script::parse(text) {
            Ok(block) => self.block(context, &block),
            Err(_) => {
                context.status = false;
                Ok(Flow::Next)
            }
        }
    }

    fn block(&mut self, context: &mut Context, block: &Block) -> Result<Flow, GrubError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(GrubError::TooMuch("nested calls"));
        }
        let mut flow = Flow::Next;
        for statement in block.iter() {
            flow = self.statement(context, statement)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.depth -= 1;
        Ok(flow)
    }

    fn step(&mut self, cost: u64) -> Result<(), GrubError> {
        self.steps += cost;
        if self.steps > MOST_STEPS {
            return Err(GrubError::Endless);
        }
        Ok(())
    }

    fn statement(
        &mut self,
        context: &mut Context,
        statement: &Statement,
    ) -> Result<Flow, GrubError> {
        self.step(1)?;
        match statement {
            Statement::Command(words) => {
                let words = self.expand(context, words)?;
                self.command(context, &words)
            }
            Statement::Not(statement) => {
                let flow = self.statement(context, statement)?;
                context.status = !context.status;
                Ok(flow)
            }
            Statement::If(arms, otherwise) => self.choice(context, arms, otherwise.as_ref()),
            Statement::While {
                condition,
                until,
                body,
            } => self.rounds(context, condition, *until, body),
            Statement::For {
                variable,
                words,
                body,
            } => {
                for value in self.expand(context, words)? {
                    self.step(1)?;
                    context.environment.set(variable, value)?;
                    if let Some(flow) = after_round(self.block(context, body)?) {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next)
            }
            Statement::Function(name, body) => {
                if self.functions.len() >= MOST_WORDS {
                    return Err(GrubError::TooMuch("functions"));
                }
                self.functions.insert(name.clone(), body.clone());
                context.status = true;
                Ok(Flow::Next)
            }
            Statement::Menu(words, body) => {
                let words = self.expand(context, words)?;
                self.add(context, &words, body)?;
                Ok(Flow::Next)
            }
        }
    }

    /// `if`.
    fn choice(
        &mut self,
        context: &mut Context,
        arms: &[(Block, Block)],
        otherwise: Option<&Block>,
    ) -> Result<Flow, GrubError> {
        for (condition, body) in arms {
            let flow = self.block(context, condition)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
            if context.status {
                return self.block(context, body);
            }
        }
        context.status = true;
        match otherwise {
            Some(body) => self.block(context, body),
            None => Ok(Flow::Next),
        }
    }

    /// `while` and `until`.
    fn rounds(
        &mut self,
        context: &mut Context,
        condition: &Block,
        until: bool,
        body: &Block,
    ) -> Result<Flow, GrubError> {
        loop {
            self.step(1)?;
            let flow = self.block(context, condition)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
            if context.status == until {
                break;
            }
            if let Some(flow) = after_round(self.block(context, body)?) {
                return Ok(flow);
            }
        }
        context.status = true;
        Ok(Flow::Next)
    }

    /// Calls a function of the script; `None` if there is none of this name.
    pub fn call(
        &mut self,
        context: &mut Context,
        words: &[String],
    ) -> Result<Option<Flow>, GrubError> {
        let Some(body) = words.first().and_then(|name| self.functions.get(name)) else {
            return Ok(None);
        };
        let body = body.clone();
        let outer = std::mem::replace(&mut context.arguments, words.to_vec());
        context.status = true;
        let flow = self.block(context, &body)?;
        context.arguments = outer;
        Ok(Some(match flow {
            Flow::Stop => Flow::Stop,
            _ => Flow::Next,
        }))
    }

    /// Variables replaced, words split.
    fn expand(&mut self, context: &Context, words: &[Word]) -> Result<Vec<String>, GrubError> {
        let mut all = Vec::new();
        let mut length = 0;
        for word in words {
            let mut current: Option<String> = None;
            for piece in &word.0 {
                let (text, splits) = match piece {
                    Piece::Text(text) => (text.clone(), false),
                    Piece::Variable(name, quoted) => (value(context, name), !quoted),
                };
                length += text.len();
                if length > LONGEST_WORD {
                    return Err(GrubError::TooMuch("words"));
                }
                if !splits {
                    current.get_or_insert_default().push_str(&text);
                    continue;
                }
                let mut parts = text.split(char::is_whitespace);
                if let Some(first) = parts.next().filter(|first| !first.is_empty()) {
                    current.get_or_insert_default().push_str(first);
                }
                for part in parts {
                    all.extend(current.take());
                    current = (!part.is_empty()).then(|| part.to_owned());
                }
            }
            all.extend(current);
        }
        self.step(length as u64 / 256)?;
        if all.len() > MOST_WORDS {
            return Err(GrubError::TooMuch("words"));
        }
        Ok(all)
    }

    /// `menuentry` or `submenu`.
    fn add(
        &mut self,
        context: &mut Context,
        words: &[String],
        body: &Block,
    ) -> Result<(), GrubError> {
        let Some((command, words)) = words.split_first() else {
            return Ok(());
        };
        let (mut id, mut arguments) = (None, Vec::new());
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--id" => id = rest.next().cloned(),
                "--class" | "--users" | "--hotkey" | "--source" => {
                    rest.next();
                }
                "--unrestricted" | "--" => {}
                other => match other.strip_prefix("--id=") {
                    Some(own) => id = Some(own.to_owned()),
                    None if other.starts_with("--") => {}
                    None => arguments.push(word.clone()),
                },
            }
        }
        let title = arguments.first().cloned().unwrap_or_default();
        // Every item keeps a copy of the variables.
        self.step(context.environment.size() as u64 / 128)?;
        let environment = context.environment.clone();
        let what = match command.as_str() {
            "menuentry" => PendingKind::Entry(body.clone(), arguments, environment),
            "submenu" => PendingKind::Submenu(body.clone(), arguments, environment),
            // Other commands with a block are extensions we do not know.
            _ => return Ok(()),
        };
        let id = id.unwrap_or_else(|| title.clone());
        self.push(context, Pending { id, title, what })
    }

    fn push(&mut self, context: &mut Context, item: Pending) -> Result<(), GrubError> {
        self.items += 1;
        if self.items > MOST_ITEMS {
            return Err(GrubError::TooMuch("menu entries"));
        }
        context.menu.push(item);
        context.status = true;
        Ok(())
    }

    /// `blscfg`: an item for each Boot Loader Specification entry, newest
    /// first, with GRUB's variables replaced in it.
    pub fn add_bls(&mut self, context: &mut Context, device: &str) -> Result<(), GrubError> {
        let Some(volume) = self.world.volume(device) else {
            context.status = false;
            return Ok(());
        };
        let own = context.environment.get("blsdir").to_owned();
        let usual = ["/loader/entries", "/boot/loader/entries"];
        let directories = match own.as_str() {
            "" => usual.to_vec(),
            own => vec![own],
        };
        let mut entries = Vec::new();
        for directory in directories {
            entries = bls::read(volume, directory);
            if !entries.is_empty() {
                break;
            }
        }
        entries.sort_by(|a, b| crate::version::compare(&b.name, &a.name));
        for entry in entries {
            let options = match entry.options.as_str() {
                "" => context.environment.get("default_kernelopts").to_owned(),
                options => options.to_owned(),
            };
            self.step(1 + options.len() as u64 / 256)?;
            let Some(kernel) = entry.linux.clone() else {
                continue;
            };
            let place = |path: String| Place {
                device: device.to_owned(),
                path,
            };
            let initrds = entry.initrds.iter().map(|i| fill_in(context, i));
            let initrds: Vec<Place> = initrds
                .flat_map(|i| i.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
                .map(place)
                .collect();
            let options = fill_in(context, &options);
            if options.len() > LONGEST_WORD {
                return Err(GrubError::TooMuch("words"));
            }
            let item = Pending {
                id: entry.name.clone(),
                title: entry.title().to_owned(),
                what: PendingKind::Complete(Start {
                    cmdline: format!("BOOT_IMAGE=({device}){kernel} {options}"),
                    kernel: place(kernel),
                    initrds,
                }),
            };
            self.push(context, item)?;
        }
        Ok(())
    }

    /// Looks into the items of a menu.
    fn items(&mut self, pending: Vec<Pending>, depth: usize) -> Result<Vec<Item>, GrubError> {
        let mut items = Vec::new();
        for Pending { id, title, what } in pending {
            let leads_to = match what {
                PendingKind::Complete(start) => LeadsTo::Start(Ok(start)),
                PendingKind::Entry(body, arguments, environment) => {
                    let mut context = Context {
                        environment,
                        arguments,
                        ..Context::default()
                    };
                    context.environment.set("chosen", id.clone())?;
                    self.block(&mut context, &body)?;
                    LeadsTo::Start(context.loading.finish())
                }
                PendingKind::Submenu(body, arguments, environment) => {
                    if depth >= DEEPEST_MENU {
                        return Err(GrubError::TooMuch("nested menus"));
                    }
                    let mut context = Context {
                        environment: environment.inherited(),
                        arguments,
                        ..Context::default()
                    };
                    self.block(&mut context, &body)?;
                    LeadsTo::Menu(self.items(context.menu, depth + 1)?)
                }
            };
            items.push(Item {
                id,
                title,
                leads_to,
            });
        }
        Ok(items)
    }

    /// Sets the variables of an environment block; those in `only`, if any.
    pub fn load_environment(
        &mut self,
        context: &mut Context,
        place: &Place,
        only: &[String],
    ) -> Result<bool, GrubError> {
        const LARGEST: u64 = 64 << 10;
        let volume = self.world.volume(&place.device);
        let content = volume.and_then(|v| v.read(&place.path, LARGEST).ok());
        let Some(variables) = content.and_then(|c| environment::block(&c)) else {
            return Ok(false);
        };
        for (name, value) in variables {
            self.step(1)?;
            if only.is_empty() || only.contains(&name) {
                context.environment.set(&name, value)?;
            }
        }
        Ok(true)
    }
}

/// What ends a loop; `None`: the next round.
fn after_round(flow: Flow) -> Option<Flow> {
    match flow {
        Flow::Next | Flow::Continue(0 | 1) => None,
        Flow::Break(0 | 1) => Some(Flow::Next),
        Flow::Break(n) => Some(Flow::Break(n - 1)),
        Flow::Continue(n) => Some(Flow::Continue(n - 1)),
        Flow::Return | Flow::Stop => Some(flow),
    }
}

fn value(context: &Context, name: &str) -> String {
    match name {
        "?" => if context.status { "0" } else { "1" }.into(),
        "#" => context.arguments.len().saturating_sub(1).to_string(),
        "@" | "*" => context.arguments.get(1..).unwrap_or_default().join(" "),
        name => match name.parse::<usize>() {
            Ok(index) => context.arguments.get(index).cloned().unwrap_or_default(),
            Err(_) => context.environment.get(name).to_owned(),
        },
    }
}

/// Replaces `$name` and `${name}` in a value of a Boot Loader Specification
/// entry.
fn fill_in(context: &Context, text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let (name, tail) = match after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            Some(braced) => braced,
            None => {
                let part = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
                after.split_at(after.find(part).unwrap_or(after.len()))
            }
        };
        if name.is_empty() {
            out.push('$');
        }
        out.push_str(context.environment.get(name));
        rest = tail;
        if out.len() > LONGEST_WORD {
            break;
        }
    }
    out.push_str(rest);
    out
}
