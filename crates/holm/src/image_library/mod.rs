//! `holm image`: the library of images of a state directory.

mod arguments;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use api::resources::images::ImageView;
use images::recipe::{BuildOptions, Recipe, RecipeError};
use images::{
    Digest, Health, ImagesError, ImportFormat, ImportOptions, Library, Location, Reference, Stage,
    Stored, Target, Volumes,
};
use serde::Serialize;

pub use arguments::Command;
use arguments::{Build, Export, Import, List, Place, Prune, Remove, Show, Verify};

use crate::console::terminal;
use crate::disk_images::{Meter, people, printable};
use crate::exit_code;
use crate::failure::Failure;
use crate::form::{self, Output};
use crate::plane::client::{Client, quoted};
use crate::state_directory;

/// Runs the command; the exit status.
pub fn run(command: &Command) -> u8 {
    let done = match command {
        Command::Build(arguments) => build(arguments),
        Command::Import(arguments) => import(arguments),
        Command::Ls(arguments) => list(arguments),
        Command::Show(arguments) => show(arguments),
        Command::Verify(arguments) => verify(arguments),
        Command::Export(arguments) => export(arguments),
        Command::Rm(arguments) => remove(arguments),
        Command::Prune(arguments) => prune(arguments),
        Command::Tag(arguments) => open(&arguments.place).and_then(|library| {
            let digest = library.resolve(&arguments.image)?;
            name(&library, digest, &arguments.name, !arguments.no_promote).map(drop)?;
            Ok(exit_code::SUCCESS)
        }),
        Command::Alias(arguments) => open(&arguments.place).and_then(|library| {
            library.alias(&arguments.name, &arguments.image)?;
            Ok(exit_code::SUCCESS)
        }),
        Command::Promote(arguments) => open(&arguments.place).and_then(|library| {
            let Reference::Name(name, Some(number)) = &arguments.version else {
                return Err(Failure::Usage("say which version: NAME@VERSION".into()));
            };
            library.promote(name, *number)?;
            Ok(exit_code::SUCCESS)
        }),
        Command::Rollback(arguments) => open(&arguments.place).and_then(|library| {
            let number = library.roll_back(&arguments.name)?;
            terminal::print(&format!("{}@{number} is current\n", arguments.name));
            Ok(exit_code::SUCCESS)
        }),
    };
    done.unwrap_or_else(|failure| {
        terminal::say(&format!("holm: {failure}"));
        failure.code()
    })
}

/// Files and servers choose parts of the texts.
impl From<ImagesError> for Failure {
    fn from(error: ImagesError) -> Self {
        let text = printable(&error.to_string());
        match error {
            ImagesError::BadName(_) => Self::Usage(text),
            _ => Self::File(text),
        }
    }
}

impl From<RecipeError> for Failure {
    fn from(error: RecipeError) -> Self {
        // What a program printed has lines.
        let text = error.to_string();
        let lines: Vec<String> = text.lines().map(printable).collect();
        match error {
            RecipeError::Missing { .. } => Self::Host(lines.join("\n")),
            _ => Self::File(lines.join("\n")),
        }
    }
}

/// The library of a state directory.
fn directory(place: &Place) -> PathBuf {
    state_directory::resolve(place.state.as_deref()).join("images")
}

fn open(place: &Place) -> Result<Library, Failure> {
    Ok(Library::open(&directory(place))?)
}

/// The disk of an image of the library, checked; `None`: there is no such
/// image, or it cannot be meant as one.
///
/// # Errors
/// [`Failure::File`]: it is damaged.
pub fn find(reference: &str) -> Result<Option<PathBuf>, Failure> {
    let Ok(reference) = reference.parse::<Reference>() else {
        return Ok(None);
    };
    let place = Place { state: None };
    let Some(library) = Library::find(&directory(&place))? else {
        return Ok(None);
    };
    match library.resolve(&reference) {
        Ok(digest) => Ok(Some(library.use_image(&digest)?)),
        Err(ImagesError::NoImage(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Names an image that was made; its name with the version.
fn name(
    library: &Library,
    digest: Digest,
    name: &str,
    promote: bool,
) -> Result<String, ImagesError> {
    let number = library.tag(digest, name, promote)?;
    Ok(format!("{name}@{number}"))
}

/// How long a daemon may take to offer an image that was added.
const OFFERED: Duration = Duration::from_secs(10);

/// Waits until the daemon of the state directory, if one runs, offers an image:
/// the next command may be one that needs it.
fn until_offered(place: &Place, name: &str) {
    let client = Client::of(place.state.as_deref());
    let query = format!("name={}", quoted(name));
    let end = Instant::now() + OFFERED;
    while client.answers() && Instant::now() < end {
        let found = client.all::<ImageView>("/v1/images", &query);
        if found.is_ok_and(|found| !found.is_empty()) {
            return;
        }
        thread::sleep(OFFERED / 100);
    }
}

/// What was built or imported.
#[derive(Serialize)]
struct Made<'a> {
    digest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    size: u64,
    allocated: u64,
    seconds: f64,
}

fn tell(
    library: &Library,
    digest: Digest,
    name: Option<&str>,
    took: Duration,
    output: Output,
) -> Result<u8, Failure> {
    let missing = || ImagesError::NoImage(digest.to_string());
    let stored = library.get(&digest)?.ok_or_else(missing)?;
    let made = Made {
        digest,
        name,
        size: stored.manifest.size,
        allocated: stored.allocated,
        seconds: took.as_secs_f64(),
    };
    if !form::for_program(output, &made) {
        let name = name.map_or(String::new(), |name| format!("{name}  "));
        terminal::print(&format!(
            "{name}{digest}\n{} on the host, in {:.1} s\n",
            people(stored.allocated),
            made.seconds
        ));
    }
    Ok(exit_code::SUCCESS)
}

fn build(arguments: &Build) -> Result<u8, Failure> {
    let recipe = Recipe::find(&arguments.recipe)?;
    let library = open(&arguments.place)?;
    let options = BuildOptions {
        mirror: arguments.mirror.clone(),
        refresh: arguments.refresh,
    };
    let start = Instant::now();
    let mut heard = |step: &str| {
        let at = start.elapsed().as_secs_f64();
        terminal::say(&format!("holm: {at:6.1} s  {step}"));
    };
    let digest = library.build(&recipe, &options, &mut heard)?;
    let goal = arguments.name.as_ref().unwrap_or(&recipe.name);
    let named = name(&library, digest, goal, !arguments.no_promote)?;
    until_offered(&arguments.place, &named);
    let output = arguments.output;
    tell(&library, digest, Some(&named), start.elapsed(), output)
}

fn import(arguments: &Import) -> Result<u8, Failure> {
    if let Some(name) = &arguments.name
        && !matches!(name.parse(), Ok(Reference::Name(_, None)))
    {
        return Err(ImagesError::BadName(name.clone()).into());
    }
    let library = open(&arguments.place)?;
    let from = Location {
        place: arguments.source.clone(),
        checksum: arguments.checksum.clone(),
        compression: arguments.compression,
        most: arguments.max_size,
    };
    let options = ImportOptions {
        format: arguments.format,
        most: Some(arguments.max_size),
        source: String::new(),
        labels: arguments.labels.iter().cloned().collect(),
    };
    let start = Instant::now();
    let mut meter: Option<(Stage, Meter)> = None;
    let mut heard = |stage, done, all| {
        if meter.as_ref().is_none_or(|(last, _)| *last != stage) {
            let text = match stage {
                Stage::Downloading => "downloading",
                Stage::Checking => "comparing its checksum",
                Stage::Unpacking => "unpacking",
                Stage::Copying => "importing",
            };
            // The last one's line goes first.
            drop(meter.take());
            meter = Some((stage, Meter::new(text)));
        }
        if let Some((_, meter)) = &mut meter {
            meter.hear()(done, all);
        }
    };
    let digest = library.bring(&from, &options, &mut heard)?;
    drop(meter);
    let named = arguments.name.as_ref();
    let named = named.map(|goal| name(&library, digest, goal, !arguments.no_promote));
    let named = named.transpose()?;
    if let Some(named) = &named {
        until_offered(&arguments.place, named);
    }
    let output = arguments.output;
    tell(&library, digest, named.as_deref(), start.elapsed(), output)
}

fn list(arguments: &List) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Listing {
        images: Vec<Stored>,
        broken: BTreeMap<String, String>,
        allocated: u64,
    }
    let library = open(&arguments.place)?;
    let (mut images, broken) = library.list()?;
    images.sort_by_key(|image| std::cmp::Reverse(image.manifest.created));
    let allocated = images.iter().map(|image| image.allocated).sum();
    let broken = broken
        .into_iter()
        .map(|(d, e)| (d.to_string(), e.to_string()));
    let listing = Listing {
        images,
        broken: broken.collect(),
        allocated,
    };
    if form::for_program(arguments.output, &listing) {
        return Ok(exit_code::SUCCESS);
    }
    let mut rows = vec![["DIGEST", "SIZE", "ON HOST", "AGE", "NAMES"].map(String::from)];
    for image in &listing.images {
        rows.push([
            image.manifest.digest.short(),
            short(image.manifest.size),
            short(image.allocated),
            age(image.manifest.created),
            image.names.join(" "),
        ]);
    }
    let widths: Vec<usize> = (0..4)
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}  "));
        terminal::print(&format!("{}{}\n", cells.collect::<String>(), row[4]));
    }
    for (digest, error) in &listing.broken {
        terminal::say(&format!("holm: {digest}: {}", printable(error)));
    }
    Ok(exit_code::SUCCESS)
}

/// A size for a table.
fn short(bytes: u64) -> String {
    people(bytes).split(" (").next().unwrap_or_default().into()
}

fn age(created: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_secs(created);
    let seconds = then.elapsed().map_or(0, |age| age.as_secs());
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

fn show(arguments: &Show) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Shown {
        #[serde(flatten)]
        image: Stored,
        current_of: Vec<String>,
    }
    let library = open(&arguments.place)?;
    let digest = library.resolve(&arguments.image)?;
    let missing = || ImagesError::NoImage(digest.to_string());
    let image = library.get(&digest)?.ok_or_else(missing)?;
    let mut current_of = Vec::new();
    for record in library.names()? {
        if let Target::Versions {
            versions, current, ..
        } = &record.target
            && versions
                .iter()
                .any(|v| v.number == *current && v.digest == digest)
        {
            current_of.push(record.name);
        }
    }
    let shown = Shown { image, current_of };
    if form::for_program(arguments.output, &shown) {
        return Ok(exit_code::SUCCESS);
    }
    let Shown { image, current_of } = shown;
    let created = UNIX_EPOCH + Duration::from_secs(image.manifest.created);
    let mut rows = vec![
        ("digest", digest.to_string()),
        ("size", people(image.manifest.size)),
        ("on the host", people(image.allocated)),
        (
            "created",
            humantime::format_rfc3339_seconds(created).to_string(),
        ),
        ("from", printable(&image.manifest.source)),
        ("file", printable(&image.file.to_string_lossy())),
        ("names", image.names.join(" ")),
        ("current of", current_of.join(" ")),
    ];
    for (key, value) in &image.manifest.labels {
        rows.push(("label", printable(&format!("{key}={value}"))));
    }
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        terminal::print(&format!("{name:<12} {value}\n"));
    }
    Ok(exit_code::SUCCESS)
}

fn verify(arguments: &Verify) -> Result<u8, Failure> {
    let library = open(&arguments.place)?;
    let digests = match arguments.images.is_empty() {
        true => library.digests()?,
        false => {
            let found = arguments.images.iter().map(|image| library.resolve(image));
            found.collect::<Result<_, _>>()?
        }
    };
    let mut code = exit_code::SUCCESS;
    for digest in digests {
        let mut meter = Meter::new("reading");
        let found = library.verify(&digest, !arguments.quick, &mut meter.hear());
        drop(meter);
        match found {
            Ok(Health::Read) => terminal::print(&format!("{digest}  good\n")),
            Ok(Health::Unchanged) => terminal::print(&format!("{digest}  unchanged\n")),
            Err(error @ ImagesError::Corrupt { .. }) => {
                terminal::say(&format!("holm: {}", printable(&error.to_string())));
                code = exit_code::FOUND;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(code)
}

fn export(arguments: &Export) -> Result<u8, Failure> {
    let library = open(&arguments.place)?;
    let digest = library.resolve(&arguments.image)?;
    let format = arguments.format.unwrap_or_else(|| by_name(&arguments.file));
    let mut meter = Meter::new("exporting");
    let (file, force) = (&arguments.file, arguments.force);
    library.export(&digest, file, format, force, &mut meter.hear())?;
    Ok(exit_code::SUCCESS)
}

/// The format that a new file's name asks for.
fn by_name(path: &Path) -> ImportFormat {
    let end = path.extension().and_then(|e| e.to_str());
    end.and_then(|end| ImportFormat::parse(end).ok())
        .unwrap_or(ImportFormat::Native(disk::Format::Raw))
}

fn remove(arguments: &Remove) -> Result<u8, Failure> {
    let library = open(&arguments.place)?;
    if let Reference::Name(name, version) = &arguments.image
        && library.name(name)?.is_some()
    {
        library.untag(name, *version)?;
    } else {
        let digest = library.resolve(&arguments.image)?;
        library.remove(&digest, &used(&arguments.place)?)?;
    }
    Ok(exit_code::SUCCESS)
}

/// The files that volumes and snapshots of the state directory build on.
fn used(place: &Place) -> Result<BTreeSet<PathBuf>, Failure> {
    let volumes = state_directory::resolve(place.state.as_deref()).join("volumes");
    match volumes.is_dir() {
        true => Ok(Volumes::open(&volumes)?.images_in_use()?),
        false => Ok(BTreeSet::new()),
    }
}

fn prune(arguments: &Prune) -> Result<u8, Failure> {
    let library = open(&arguments.place)?;
    let (old, dry) = (arguments.old_versions, arguments.dry_run);
    let used = used(&arguments.place)?;
    let pruned = library.prune(&BTreeSet::new(), &used, old, dry)?;
    #[derive(Serialize)]
    struct Answer {
        removed: Vec<images::Pruned>,
        dry_run: bool,
    }
    let (removed, dry_run) = (pruned, dry);
    let answer = Answer { removed, dry_run };
    if form::for_program(arguments.output, &answer) {
        return Ok(exit_code::SUCCESS);
    }
    let pruned = answer.removed;
    let all = pruned.iter().map(|p| p.allocated).sum();
    for image in &pruned {
        let size = short(image.allocated);
        terminal::print(&format!("{}  {size}\n", image.digest.short()));
    }
    let done = if dry { "would be free" } else { "freed" };
    terminal::print(&format!("{} {done}\n", short(all)));
    Ok(exit_code::SUCCESS)
}
