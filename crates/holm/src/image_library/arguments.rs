//! The command line of `holm image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use images::{Checksum, Compression, ImportFormat, Reference};

use crate::exit_code;
use crate::form::Output;
use crate::values::size;

/// What to do with images.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Builds an image from packages by a recipe, and adds it to the library
    ///
    /// `debian` is built in; docs/images.md tells how to write others. Packages come from the
    /// host's own Debian sources (/etc/apt) unless --mirror names others. No root is needed
    /// where users may make user namespaces (package uidmap).
    ///
    /// Examples:
    ///   holm image build debian
    ///   holm image build web.toml --name web
    #[command(verbatim_doc_comment, after_help = exit_code::DISK_HELP)]
    Build(Build),
    /// Adds a disk from a file or URL to the library
    ///
    /// Formats: raw, qcow2, vmdk, vhd; compressed by gz, xz or zst if the name ends so. A disk
    /// that leads to other files is refused. A download that broke goes on the next time.
    ///
    /// Examples:
    ///   holm image import disk.vmdk web
    ///   holm image import https://host/debian.qcow2 debian --checksum sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    #[command(verbatim_doc_comment, after_help = exit_code::DISK_HELP)]
    Import(Import),
    /// Lists the images of the library
    ///
    /// Example: holm image ls -o json
    #[command(after_help = exit_code::DISK_HELP)]
    Ls(List),
    /// Shows an image and its names
    ///
    /// Example: holm image show debian@2
    #[command(after_help = exit_code::DISK_HELP)]
    Show(Show),
    /// Reads images whole and compares them with their digests; all of them if none is named
    ///
    /// Every image is also checked before it is used, but read only if its file was touched.
    ///
    /// Example: holm image verify debian
    #[command(after_help = exit_code::DISK_HELP)]
    Verify(Verify),
    /// Writes an image to a file for elsewhere
    ///
    /// Without --format, the name's end says it: .qcow2, .vmdk, .vhd, else raw.
    ///
    /// Examples:
    ///   holm image export debian debian.qcow2
    ///   holm image export web@3 web.img --format raw
    #[command(verbatim_doc_comment, after_help = exit_code::DISK_HELP)]
    Export(Export),
    /// Removes a name, a version of a name, or an image without names
    ///
    /// An image that volumes or machines use stays.
    ///
    /// Examples:
    ///   holm image rm debian@1
    ///   holm image rm blake3:8b1f03
    #[command(verbatim_doc_comment, after_help = exit_code::DISK_HELP)]
    Rm(Remove),
    /// Removes the images that have no name and that nothing uses
    ///
    /// Examples:
    ///   holm image prune --dry-run
    ///   holm image prune --old-versions
    #[command(verbatim_doc_comment, after_help = exit_code::DISK_HELP)]
    Prune(Prune),
    /// Makes an image the next version of a name
    ///
    /// Example: holm image tag blake3:8b1f03 web --no-promote
    #[command(after_help = exit_code::DISK_HELP)]
    Tag(Tag),
    /// Gives an image, or the current version of a name, another name
    ///
    /// Example: holm image alias stable debian@2
    #[command(after_help = exit_code::DISK_HELP)]
    Alias(Alias),
    /// Makes a version the current one of its name
    ///
    /// Example: holm image promote web@4
    #[command(after_help = exit_code::DISK_HELP)]
    Promote(Promote),
    /// Makes the version current that was so before
    ///
    /// Example: holm image rollback web
    #[command(after_help = exit_code::DISK_HELP)]
    Rollback(Rollback),
}

/// Where the library is.
#[derive(Args, Debug)]
pub struct Place {
    /// The state directory (--state /srv/holm); $HOLM_STATE unless given, else /var/lib/holm for root
    /// and ~/.local/state/holm for others
    #[arg(long, value_name = "DIRECTORY")]
    pub state: Option<PathBuf>,
}

/// `holm image build`.
#[derive(Args, Debug)]
pub struct Build {
    /// A recipe that is built in (debian), or a recipe's file (web.toml)
    #[arg(value_name = "RECIPE")]
    pub recipe: String,

    /// Name of the image instead of the recipe's (--name web)
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Where packages come from instead of the host's sources (--mirror URL)
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,

    /// Fetches the package lists even if they are less than a week old
    #[arg(long)]
    pub refresh: bool,

    /// Leaves the current version of the name as it is
    #[arg(long)]
    pub no_promote: bool,

    /// How it is printed
    #[command(flatten)]
    pub output: Output,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

/// `holm image import`.
#[derive(Args, Debug)]
pub struct Import {
    /// A file, or a URL with http, https or file
    #[arg(value_name = "FILE|URL")]
    pub source: String,

    /// Name of the image; without one it is known by its digest only
    #[arg(value_name = "NAME")]
    pub name: Option<String>,

    /// What the file must be, as it comes (--checksum sha256:9f86d0…)
    #[arg(long, value_name = "sha256:HEX|sha512:HEX")]
    pub checksum: Option<Checksum>,

    /// Its format; found out unless given (--format vmdk)
    #[arg(long, value_name = "raw|qcow2|vmdk|vhd", value_parser = ImportFormat::parse)]
    pub format: Option<ImportFormat>,

    /// How it is compressed; the name's end says it unless given (--compression xz)
    #[arg(long, value_name = "none|gz|xz|zst", value_parser = Compression::parse)]
    pub compression: Option<Compression>,

    /// Most bytes of the download, and of the disk (--max-size 100G)
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1T")]
    pub max_size: u64,

    /// A note on the image, may be repeated (--label team=web)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,

    /// Leaves the current version of the name as it is
    #[arg(long)]
    pub no_promote: bool,

    /// How it is printed
    #[command(flatten)]
    pub output: Output,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("a label is KEY=VALUE".into()),
    }
}

/// `holm image ls`.
#[derive(Args, Debug)]
pub struct List {
    /// How it is printed
    #[command(flatten)]
    pub output: Output,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

/// `holm image show`.
#[derive(Args, Debug)]
pub struct Show {
    /// Its name, a version of it, or its digest (debian, debian@2, blake3:8b1f03)
    #[arg(value_name = "IMAGE")]
    pub image: Reference,

    /// How it is printed
    #[command(flatten)]
    pub output: Output,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

/// `holm image verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// Their names or digests
    #[arg(value_name = "IMAGE")]
    pub images: Vec<Reference>,

    /// Reads only those whose file was touched since they were last read
    #[arg(long)]
    pub quick: bool,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

/// `holm image export`.
#[derive(Args, Debug)]
pub struct Export {
    /// Its name, a version of it, or its digest
    #[arg(value_name = "IMAGE")]
    pub image: Reference,

    /// The new file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Its format (--format vmdk)
    #[arg(long, value_name = "raw|qcow2|vmdk|vhd", value_parser = ImportFormat::parse)]
    pub format: Option<ImportFormat>,

    /// Replaces another file of this name
    #[arg(long)]
    pub force: bool,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

/// `holm image rm`.
#[derive(Args, Debug)]
pub struct Remove {
    /// A name, a version of it, or a digest
    #[arg(value_name = "IMAGE")]
    pub image: Reference,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

/// `holm image prune`.
#[derive(Args, Debug)]
pub struct Prune {
    /// Also removes versions of names that are not current
    #[arg(long)]
    pub old_versions: bool,

    /// Only says what would go
    #[arg(long)]
    pub dry_run: bool,

    /// How it is printed
    #[command(flatten)]
    pub output: Output,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

/// `holm image tag`.
#[derive(Args, Debug)]
pub struct Tag {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: Reference,

    /// The name
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Leaves the current version as it is
    #[arg(long)]
    pub no_promote: bool,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

/// `holm image alias`.
#[derive(Args, Debug)]
pub struct Alias {
    /// The new name
    #[arg(value_name = "NAME")]
    pub name: String,

    /// What it means
    #[arg(value_name = "IMAGE")]
    pub image: Reference,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

/// `holm image promote`.
#[derive(Args, Debug)]
pub struct Promote {
    /// Which (web@4)
    #[arg(value_name = "NAME@VERSION")]
    pub version: Reference,

    /// Where
    #[command(flatten)]
    pub place: Place,
}

/// `holm image rollback`.
#[derive(Args, Debug)]
pub struct Rollback {
    /// Which (web)
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Where
    #[command(flatten)]
    pub place: Place,
}
