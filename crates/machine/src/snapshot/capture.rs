//! Making a snapshot of a running machine.
//!
//! Memory is copied while the guest runs, and again what it wrote meanwhile,
//! until little is left. Then the guest stands: that little is copied, or, if
//! it is much, frozen by a fork; the state is saved, and the guest goes on.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use memory::{CopiedPages, FrozenRam, ImageWriter, PAGE_SIZE, PageSet};

use super::SnapshotError;
use super::disks::Prepared;
use super::files::{self, NewDirectory, PageList};
use super::ledger::{Last, Ledger};
use super::manifest::{self, MANIFEST, Manifest, MemoryFile, Parent, StateFile};
use crate::machine::Inner;
use crate::nic::Nic;

/// Fewer pages are not worth a round of copying while the guest runs.
const FEW: u64 = 2048;
/// Time to copy pages while the guest stands; more pages are frozen.
const COPYING: Duration = Duration::from_millis(8);
/// Rounds of copying while the guest runs.
const ROUNDS: usize = 5;
/// Most snapshots that build on each other.
pub(super) const DEPTH: usize = 64;

/// A snapshot that was made.
#[derive(Clone, Debug)]
pub struct SnapshotMade {
    /// Its id.
    pub id: String,
    /// How long the guest stood.
    pub stopped: Duration,
    /// How long all of it took.
    pub took: Duration,
    /// Bytes of memory written.
    pub memory: u64,
}

/// What was taken while the guest stood.
struct Standing {
    memory: Taken,
    state: crate::MachineState,
    disks: Vec<super::disks::Taken>,
    /// Network cards that were attached.
    nics: Vec<Nic>,
    /// What the ledger knew before.
    since: PageSet,
    stopped: Duration,
    created: u64,
}

/// What could not be copied while the guest runs.
struct Left {
    pages: PageSet,
    /// For their copies, if they are few.
    room: CopiedPages,
}

enum Taken {
    /// To the room that was left for it.
    Copied,
    Frozen(FrozenRam),
    /// Written already.
    Written,
}

/// Makes a snapshot. The machine runs on, or stays paused if it was.
pub(crate) fn create(
    machine: &Inner,
    goal: &Path,
    incremental: bool,
) -> Result<SnapshotMade, SnapshotError> {
    let start = Instant::now();
    let Some(mut ledger) = machine.ledger().try_lock() else {
        return Err(SnapshotError::Refused(
            "another one of this machine is being made; ask again when it is done".into(),
        ));
    };
    let parent = parent(&ledger, incremental)?;
    let directory = NewDirectory::make(goal)?;
    let file = directory.create(files::MEMORY)?;
    let path = directory.path().join(files::MEMORY);
    let io = |e| SnapshotError::file("writing", &path)(e);
    let ram = machine.ram();
    let mut image = ImageWriter::new(file, ram).map_err(io)?;

    let disks = super::disks::prepare(machine, &directory)?;
    let mut left =
        copy_running(machine, &mut ledger, &mut image, parent.is_some()).map_err(&io)??;
    let standing = stand(
        machine,
        &mut ledger,
        &mut image,
        &mut left,
        disks,
        &directory,
    )?;
    let kept = standing.since.clone();
    let made = store(
        machine,
        image,
        (standing, &left),
        &directory,
        parent.clone(),
    );
    let made = made.and_then(|made| directory.finish().map(|()| made));
    match made {
        Ok(mut made) => {
            made.took = start.elapsed();
            ledger.last = Some(Last {
                id: made.id.clone(),
                directory: goal.to_owned(),
                depth: parent.map_or(0, |p| p.depth) + 1,
            });
            tracing::info!(?made, "snapshot");
            Ok(made)
        }
        Err(error) => {
            // The next one must hold this one's pages too.
            ledger.since.union(&kept);
            Err(error)
        }
    }
}

fn parent(ledger: &Ledger, incremental: bool) -> Result<Option<Last>, SnapshotError> {
    if !incremental {
        return Ok(None);
    }
    match &ledger.last {
        Some(last) if last.depth < DEPTH => match Manifest::read(&last.directory) {
            Ok(found) if found.id == last.id => Ok(Some(last.clone())),
            _ => Err(SnapshotError::Refused(format!(
                "the last one, at {}, is gone; make a full one",
                last.directory.display()
            ))),
        },
        Some(_) => Err(SnapshotError::Refused(format!(
            "{DEPTH} snapshots build on each other already; make a full one"
        ))),
        None => Err(SnapshotError::Refused(
            "an incremental one builds on another, and this machine has none; make a full one"
                .into(),
        )),
    }
}

/// Copies while the guest runs; the pages that are left, and room for them.
fn copy_running(
    machine: &Inner,
    ledger: &mut Ledger,
    image: &mut ImageWriter,
    incremental: bool,
) -> std::io::Result<Result<Left, SnapshotError>> {
    let ram = machine.ram();
    match ledger.collect(machine) {
        // Any page may have changed; from now on the engine may know.
        Ok(None) if incremental => {
            return Ok(Err(SnapshotError::Refused(
                "this engine does not tell yet which pages have changed; make a full one".into(),
            )));
        }
        Ok(_) => {}
        Err(e) => return Ok(Err(e)),
    }
    let mut left = match incremental {
        true => ledger.since.clone(),
        false => ledger.written.clone(),
    };
    for _ in 0..ROUNDS {
        let before = left.count();
        if before <= FEW || machine.control().has_ended() {
            break;
        }
        image.write(ram, &left)?;
        left = match ledger.collect(machine) {
            Ok(pages) => pages.unwrap_or_else(|| PageSet::all(ram.pages())),
            Err(e) => return Ok(Err(e)),
        };
        // The guest writes faster than this: more rounds would not help.
        if left.count() > before / 2 {
            break;
        }
    }
    let room = CopiedPages::with_room(ram, &left, COPYING);
    if left.count() > room.room() {
        ram.collapse(&left);
    }
    Ok(Ok(Left { pages: left, room }))
}

/// Stops the guest, takes what belongs to that instant, and lets it go on.
fn stand(
    machine: &Inner,
    ledger: &mut Ledger,
    image: &mut ImageWriter,
    left: &mut Left,
    disks: Vec<Prepared>,
    directory: &NewDirectory,
) -> Result<Standing, SnapshotError> {
    let _one = machine.operation();
    let refused = |e: crate::MachineError| SnapshotError::Refused(e.to_string());
    if machine.control().has_ended() {
        return Err(refused(crate::MachineError::Ended));
    }
    let (taken, stopped) = machine
        .standing(|| take(machine, ledger, image, left, disks, directory))
        .map_err(refused)?;
    let mut standing = taken?;
    standing.stopped = stopped;
    Ok(standing)
}

fn take(
    machine: &Inner,
    ledger: &mut Ledger,
    image: &mut ImageWriter,
    left: &mut Left,
    disks: Vec<Prepared>,
    directory: &NewDirectory,
) -> Result<Standing, SnapshotError> {
    let (ram, start) = (machine.ram(), Instant::now());
    let Left { pages, room } = left;
    pages.union(
        &ledger
            .collect(machine)?
            .unwrap_or_else(|| PageSet::all(ram.pages())),
    );
    let collected = start.elapsed();
    let written = |e| SnapshotError::file("writing", &directory.path().join(files::MEMORY))(e);
    let memory = if pages.count() <= room.room() {
        room.copy(ram, pages).map_err(written)?;
        Taken::Copied
    } else {
        match FrozenRam::write(ram, pages, image) {
            Ok(frozen) => Taken::Frozen(frozen),
            Err(error) => {
                tracing::warn!(%error, "memory cannot be frozen; the guest stands until it is written");
                image.write(ram, pages).map_err(written)?;
                Taken::Written
            }
        }
    };
    let memory_taken = start.elapsed();
    let state = machine
        .save_locked()
        .map_err(|e| SnapshotError::Refused(e.to_string()))?;
    let saved = start.elapsed();
    let disks = super::disks::take(machine, disks)?;
    let all = start.elapsed();
    let (pages, room) = (pages.count(), room.room());
    tracing::info!(
        pages,
        room,
        ?collected,
        ?memory_taken,
        ?saved,
        ?all,
        "taken"
    );
    let none = PageSet::none(ram.pages());
    let nics = machine.board().attached_nics();
    Ok(Standing {
        memory,
        state,
        disks,
        nics: nics.into_iter().map(|attached| attached.nic).collect(),
        since: std::mem::replace(&mut ledger.since, none),
        stopped: Duration::ZERO,
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs()),
    })
}

/// Writes what was taken, and the manifest last.
fn store(
    machine: &Inner,
    mut image: ImageWriter,
    (standing, left): (Standing, &Left),
    directory: &NewDirectory,
    parent: Option<Last>,
) -> Result<SnapshotMade, SnapshotError> {
    let path = directory.path().join(files::MEMORY);
    let io = |e| SnapshotError::file("writing", &path)(e);
    match standing.memory {
        Taken::Copied => left.room.write(&mut image),
        Taken::Frozen(frozen) => frozen.wait(&mut image),
        Taken::Written => Ok(()),
    }
    .map_err(io)?;
    let mut image = image.finish().map_err(io)?;
    if parent.is_none() {
        // What a full snapshot does not hold is zero.
        image.zero = PageSet::none(image.pages.capacity());
    }
    let (file, held) = (image.file, image.pages.clone());
    let list = PageList {
        pages: image.pages,
        zero: image.zero,
    };
    let list = list.to_bytes();
    directory.put(files::PAGES, &list)?;
    let state = serde_json::to_vec(&standing.state)
        .map_err(|e| SnapshotError::Refused(format!("its state cannot be written: {e}")))?;
    directory.put(files::STATE, &state)?;
    let mut described = machine.description().clone();
    described.nics.retain(|nic| nic.port.is_none());
    described.nics.extend(standing.nics);
    described.disks = standing.disks.iter().map(|d| d.described.clone()).collect();
    let disks = super::disks::finish(standing.disks, directory)?;
    let manifest = Manifest {
        id: new_id()?,
        created: standing.created,
        holm: env!("CARGO_PKG_VERSION").into(),
        engine: machine.engine_name().into(),
        cpu: machine.engine().cpu(),
        machine: described,
        parent: parent.map(|last| Parent {
            id: last.id,
            directory: last.directory,
        }),
        memory: MemoryFile {
            size: machine.ram().size(),
            pages: held.count(),
            digest: files::pages_digest(&file, &held)
                .map_err(SnapshotError::file("reading", &path))?,
            list_digest: manifest::digest(&list),
        },
        state: StateFile {
            size: state.len() as u64,
            digest: manifest::digest(&state),
        },
        disks,
        stopped_us: u64::try_from(standing.stopped.as_micros()).unwrap_or(u64::MAX),
    };
    let text = manifest
        .to_text()
        .map_err(|e| SnapshotError::Refused(format!("its manifest cannot be written: {e}")))?;
    directory.put(MANIFEST, text.as_bytes())?;
    Ok(SnapshotMade {
        id: manifest.id,
        stopped: standing.stopped,
        took: Duration::ZERO,
        memory: held.count() * PAGE_SIZE,
    })
}

fn new_id() -> Result<String, SnapshotError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|e| SnapshotError::Refused(format!("the host gives no random numbers: {e}")))?;
    Ok(id.iter().map(|b| format!("{b:02x}")).collect())
}
