//! The command line of `holm disk`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use disk::{Format, manage};

use crate::exit_code;
use crate::form::Output;
use crate::values::size;

/// What to do with a disk image.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Makes a disk image, or an overlay that keeps what changes on another disk
    ///
    /// Without --format, a name that ends in .qcow2 makes a qcow2 image, another a raw one.
    ///
    /// Examples:
    ///   holm disk create data.img 20G
    ///   holm disk create --backing debian.img web1.qcow2
    #[command(verbatim_doc_comment, after_help = exit_code::DISK_HELP)]
    Create(Create),
    /// Says what an image is and what it builds on; it may be in use
    ///
    /// Example: holm disk info web1.qcow2 -o json
    #[command(after_help = exit_code::DISK_HELP)]
    Info(InfoOf),
    /// Copies a disk into a new image that builds on nothing; zeroes take no space in it
    ///
    /// Examples:
    ///   holm disk convert web1.qcow2 web1.img
    ///   holm disk convert --to qcow2 disk.raw disk.qcow2
    #[command(verbatim_doc_comment, after_help = exit_code::DISK_HELP)]
    Convert(Convert),
    /// Checks the tables of a qcow2 image, and mends them with --repair
    ///
    /// Example: holm disk check web1.qcow2
    #[command(after_help = exit_code::DISK_HELP)]
    Check(Check),
    /// Moves what an overlay holds into the file it builds on, and empties the overlay
    ///
    /// Other overlays on that file become worthless. Interrupted, it can be done again.
    ///
    /// Example: holm disk commit web1.qcow2
    #[command(after_help = exit_code::DISK_HELP)]
    Commit(Commit),
    /// Lets an image build on another file, or on none; what it shows stays the same
    ///
    /// Examples:
    ///   holm disk rebase --backing debian-2.img web1.qcow2
    ///   holm disk rebase web1.qcow2
    ///   holm disk rebase --unsafe --backing /new/place/debian.img --backing-format raw web1.qcow2
    #[command(verbatim_doc_comment, after_help = exit_code::DISK_HELP)]
    Rebase(Rebase),
    /// Changes the size of a disk
    ///
    /// Examples:
    ///   holm disk resize data.img 40G
    ///   holm disk resize web1.qcow2 +5G
    #[command(verbatim_doc_comment, after_help = exit_code::DISK_HELP)]
    Resize(Resize),
    /// Compares what two images show, whatever their formats
    ///
    /// Example: holm disk compare web1.qcow2 web1.img
    #[command(after_help = exit_code::DISK_HELP)]
    Compare(Compare),
}

/// `--preallocate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preallocate {
    /// Nothing
    Off,
    /// The tables of a qcow2 image
    Metadata,
    /// The space of all data
    Full,
}

impl From<Preallocate> for manage::Preallocate {
    fn from(mode: Preallocate) -> Self {
        match mode {
            Preallocate::Off => Self::Off,
            Preallocate::Metadata => Self::Metadata,
            Preallocate::Full => Self::Full,
        }
    }
}

/// `holm disk create`.
#[derive(Args, Debug)]
pub struct Create {
    /// The new file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Size of the disk (20G); that of the file below if missing
    #[arg(value_name = "SIZE", value_parser = size, required_unless_present = "backing")]
    pub size: Option<u64>,

    /// Format of the image (--format qcow2)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub format: Option<Format>,

    /// Disk that the image builds on; it must not change any more (--backing debian.img)
    #[arg(long, value_name = "FILE")]
    pub backing: Option<PathBuf>,

    /// Format of that disk (--backing-format raw)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse, requires = "backing")]
    pub backing_format: Option<Format>,

    /// Unit in which a qcow2 image takes space: 512 to 2M, 64K by default (--cluster-size 128K)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub cluster_size: Option<u64>,

    /// What is reserved at once (--preallocate full)
    #[arg(long, value_enum, default_value_t = Preallocate::Off)]
    pub preallocate: Preallocate,

    /// Replaces a file of this name
    #[arg(long)]
    pub force: bool,
}

/// `holm disk info`.
#[derive(Args, Debug)]
pub struct InfoOf {
    /// The image
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Its format (--format qcow2)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub format: Option<Format>,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// `holm disk convert`.
#[derive(Args, Debug)]
pub struct Convert {
    /// The image to be copied
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,

    /// The new file
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,

    /// Format of the source (--format raw)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub format: Option<Format>,

    /// Format of the new file; else by its name, as for `holm disk create` (--to qcow2)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub to: Option<Format>,

    /// Unit in which a qcow2 image takes space (--cluster-size 128K)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub cluster_size: Option<u64>,

    /// What is reserved at once (--preallocate full)
    #[arg(long, value_enum, default_value_t = Preallocate::Off)]
    pub preallocate: Preallocate,

    /// Replaces a file of this name
    #[arg(long)]
    pub force: bool,
}

/// `holm disk check`.
#[derive(Args, Debug)]
pub struct Check {
    /// The image
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Its format (--format qcow2)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub format: Option<Format>,

    /// Mends what can be mended
    #[arg(long)]
    pub repair: bool,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// `holm disk commit`.
#[derive(Args, Debug)]
pub struct Commit {
    /// The overlay
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Its format (--format qcow2)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub format: Option<Format>,
}

/// `holm disk rebase`.
#[derive(Args, Debug)]
pub struct Rebase {
    /// The image
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Its format (--format qcow2)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub format: Option<Format>,

    /// What it is to build on; nothing if missing (--backing debian-2.img)
    #[arg(long, value_name = "FILE")]
    pub backing: Option<PathBuf>,

    /// Format of that disk (--backing-format raw)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse, requires = "backing")]
    pub backing_format: Option<Format>,

    /// Changes the name only: the file below was moved, and has the same contents
    #[arg(long = "unsafe")]
    pub trust: bool,
}

/// A new size, or more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeChange {
    /// In bytes.
    To(u64),
    /// By so many bytes.
    By(u64),
}

fn size_change(text: &str) -> Result<SizeChange, String> {
    match text.strip_prefix('+') {
        Some(more) => size(more).map(SizeChange::By),
        None => size(text).map(SizeChange::To),
    }
}

/// `holm disk resize`.
#[derive(Args, Debug)]
pub struct Resize {
    /// The image
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// The new size, or how much more (40G, +5G)
    #[arg(value_name = "[+]SIZE", value_parser = size_change)]
    pub size: SizeChange,

    /// Its format (--format qcow2)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub format: Option<Format>,

    /// Lets the disk become smaller: what lies behind is lost
    #[arg(long)]
    pub shrink: bool,
}

/// `holm disk compare`.
#[derive(Args, Debug)]
pub struct Compare {
    /// An image
    #[arg(value_name = "FILE")]
    pub first: PathBuf,

    /// Another
    #[arg(value_name = "FILE")]
    pub second: PathBuf,

    /// Format of the first (--first-format raw)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub first_format: Option<Format>,

    /// Format of the second (--second-format qcow2)
    #[arg(long, value_name = "raw|qcow2", value_parser = Format::parse)]
    pub second_format: Option<Format>,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}
