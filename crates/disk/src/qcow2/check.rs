//! Checking a qcow2 image's tables, and repairing its refcounts.
//!
//! All clusters that the tables refer to are noted in a list of runs, sorted,
//! and compared with the refcounts. What has refcounts too high is lost space
//! (leaks, as a killed process leaves them); too low, or used twice, is damage.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::Header;
use super::rebuild;
use super::tables::{COPIED, Mapping, Tables};

/// Faults that are kept as texts; all are counted.
const MAX_TEXTS: usize = 20;
/// Most runs of clusters: 512 MiB of list.
const MAX_RUNS: usize = 64 << 20;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Clusters that nothing refers to and that count as used.
    pub leaked_clusters: u64,
    /// Faults that a repair mends: refcounts too low, wrong marks.
    pub errors: u64,
    /// Faults that no repair mends: places outside of the file, clusters used
    /// twice.
    pub damage: u64,
    /// The first faults, for people.
    pub texts: Vec<String>,
    /// Clusters of the disk that have data of their own.
    pub data_clusters: u64,
    /// Of these, compressed ones.
    pub compressed_clusters: u64,
    /// Clusters of the disk in all.
    pub disk_clusters: u64,
    /// Host offset behind the last used cluster, in bytes.
    pub end: u64,
    /// The image was not closed.
    pub dirty: bool,
}

impl Report {
    /// Nothing is wrong at all.
    pub fn is_clean(&self) -> bool {
        self.leaked_clusters == 0 && self.errors == 0 && self.damage == 0
    }

    fn text(&mut self, text: impl FnOnce() -> String) {
        if self.texts.len() < MAX_TEXTS {
            self.texts.push(text());
        }
    }

    fn damaged(&mut self, text: impl FnOnce() -> String) {
        self.damage += 1;
        self.text(text);
    }

    fn wrong(&mut self, text: impl FnOnce() -> String) {
        self.errors += 1;
        self.text(text);
    }
}

/// Runs of used clusters: first cluster, length, and whether they may be
/// shared (compressed data), packed to sort by the first cluster.
#[derive(Default)]
pub(super) struct Used {
    runs: Vec<u64>,
}

const SHARED: u64 = 1;
const COUNT_SHIFT: u32 = 1;
const START_SHIFT: u32 = 16;
const MAX_COUNT: u64 = 1 << (START_SHIFT - COUNT_SHIFT);

fn start_of(run: u64) -> u64 {
    run >> START_SHIFT
}

fn count_of(run: u64) -> u64 {
    ((run >> COUNT_SHIFT) & (MAX_COUNT - 1)) + 1
}

impl Used {
    fn push(&mut self, start: u64, shared: bool) -> io::Result<()> {
        if let Some(last) = self.runs.last_mut()
            && !shared
            && *last & SHARED == 0
            && start_of(*last) + count_of(*last) == start
            && count_of(*last) < MAX_COUNT
        {
            *last += 1 << COUNT_SHIFT;
            return Ok(());
        }
        if self.runs.len() >= MAX_RUNS {
            return Err(super::header::refuse("it has too many clusters to check"));
        }
        self.runs.push(start << START_SHIFT | u64::from(shared));
        Ok(())
    }

    fn push_range(&mut self, start: u64, count: u64) -> io::Result<()> {
        (start..start + count).try_for_each(|cluster| self.push(cluster, false))
    }

    /// Used clusters, ascending, each with its refcount.
    pub(super) fn clusters(&self) -> Clusters<'_> {
        Clusters {
            runs: &self.runs,
            within: 0,
        }
    }
}

/// See [`Used::clusters`]; the list is sorted.
pub(super) struct Clusters<'a> {
    runs: &'a [u64],
    within: u64,
}

impl Clusters<'_> {
    fn peek(&self) -> Option<u64> {
        self.runs.first().map(|run| start_of(*run) + self.within)
    }
}

impl Iterator for Clusters<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let (&run, rest) = self.runs.split_first()?;
        let cluster = start_of(run) + self.within;
        self.within += 1;
        if self.within < count_of(run) {
            return Some((cluster, 1));
        }
        (self.runs, self.within) = (rest, 0);
        let mut references = 1;
        while self.peek() == Some(cluster) {
            references += 1;
            self.runs = self.runs.get(1..).unwrap_or_default();
        }
        Some((cluster, references))
    }
}

/// A survey of an image's tables.
pub(crate) struct Survey {
    pub report: Report,
    /// Host offsets of the L2 tables.
    pub l2: HashSet<u64>,
    /// Used clusters but those of the refcount structure.
    used: Used,
    /// Clusters of the refcount structure itself.
    own: Used,
    /// Both.
    all: Used,
    /// Entries to give the mark of a cluster that is used once: position of
    /// the entry and its right value.
    marks: Vec<(u64, u64)>,
    /// The refcount structure cannot be mended where it is.
    rebuild: bool,
}

/// Surveys an image, compares its refcounts and repairs them if asked to.
///
/// # Errors
/// The host's error, or `InvalidData` for what cannot be checked.
pub(crate) fn check(file: &File, header: &mut Header, repair: bool) -> io::Result<Survey> {
    if header.snapshots > 0 {
        return Err(super::header::refuse(
            "it has internal snapshots, which Holm does not check; use qemu-img check",
        ));
    }
    let mut survey = survey(file, header)?;
    let tables = Tables::new(file, header)?;
    // What bitmaps use is not known here: no space is taken from them.
    let free = repair && !header.has_bitmaps();
    let mend = repair && survey.report.damage == 0;
    compare(&tables, &mut survey, mend && free)?;
    if !mend {
        return Ok(survey);
    }
    for (at, entry) in &survey.marks {
        file.write_all_at(&entry.to_be_bytes(), *at)?;
    }
    if survey.rebuild {
        rebuild::rebuild(file, header, &survey.used)?;
    }
    if survey.rebuild || !survey.marks.is_empty() || !survey.report.is_clean() {
        file.sync_data()?;
    }
    Ok(survey)
}

/// Walks all tables but the refcounts.
fn survey(file: &File, header: &Header) -> io::Result<Survey> {
    let tables = Tables::new(file, header)?;
    let mut survey = Survey {
        report: Report {
            disk_clusters: header.size.div_ceil(header.cluster_size()),
            dirty: header.is_dirty(),
            ..Report::default()
        },
        l2: HashSet::new(),
        used: Used::default(),
        own: Used::default(),
        all: Used::default(),
        marks: Vec::new(),
        rebuild: false,
    };
    let bits = header.cluster_bits;
    survey.used.push(0, false)?;
    let l1_clusters = (u64::from(header.l1_entries) * 8).div_ceil(header.cluster_size());
    survey
        .used
        .push_range(header.l1_offset >> bits, l1_clusters)?;
    for (index, entry) in (0..).zip(tables.l1()?) {
        let at = header.l1_offset + index * 8;
        match tables.l2_of(entry) {
            Ok(None) => {}
            Ok(Some(l2)) => {
                survey.walk_l2(&tables, l2)?;
                if entry & COPIED == 0 {
                    survey.mark(at, entry);
                }
            }
            Err(text) => survey.report.damaged(|| text),
        }
    }
    survey.refcount_structure(&tables)?;
    survey.overlaps(bits);
    survey.too_many_uses(header.refcount_order);
    Ok(survey)
}

impl Survey {
    fn mark(&mut self, at: u64, entry: u64) {
        self.report
            .wrong(|| format!("the entry at {at:#x} lacks the mark of a cluster used once"));
        if self.marks.len() < MAX_RUNS {
            self.marks.push((at, entry | COPIED));
        }
    }

    fn walk_l2(&mut self, tables: &Tables<'_>, l2: u64) -> io::Result<()> {
        let bits = tables.header.cluster_bits;
        self.used.push(l2 >> bits, false)?;
        if !self.l2.insert(l2) {
            // The overlap is found later; its clusters are counted once.
            return Ok(());
        }
        for (index, entry) in (0..).zip(tables.table(l2)?.unwrap_or_default()) {
            let mapping = match tables.mapping(entry) {
                Ok(mapping) => mapping,
                Err(text) => {
                    self.report.damaged(|| text);
                    continue;
                }
            };
            match mapping {
                Mapping::None | Mapping::Zero(None) => {}
                Mapping::Data(offset) | Mapping::Zero(Some(offset)) => {
                    self.used.push(offset >> bits, false)?;
                    self.report.data_clusters += u64::from(matches!(mapping, Mapping::Data(_)));
                    if entry & COPIED == 0 {
                        self.mark(l2 + index * 8, entry);
                    }
                }
                Mapping::Compressed(offset, length) => {
                    for cluster in offset >> bits..=(offset + length - 1) >> bits {
                        self.used.push(cluster, true)?;
                    }
                    self.report.data_clusters += 1;
                    self.report.compressed_clusters += 1;
                }
            }
        }
        Ok(())
    }

    fn refcount_structure(&mut self, tables: &Tables<'_>) -> io::Result<()> {
        let header = tables.header;
        let bits = header.cluster_bits;
        let clusters = u64::from(header.reftable_clusters);
        self.own
            .push_range(header.reftable_offset >> bits, clusters)?;
        for block in tables.reftable()? {
            match block {
                0 => {}
                block if tables.valid(block) => self.own.push(block >> bits, false)?,
                block => {
                    self.rebuild = true;
                    self.report
                        .wrong(|| format!("a refcount block at {block:#x} is not within the file"));
                }
            }
        }
        Ok(())
    }

    /// Compressed data of many clusters may share one, if its refcount can
    /// count them.
    fn too_many_uses(&mut self, refcount_order: u32) {
        if self.report.compressed_clusters == 0 || refcount_order == 6 {
            return;
        }
        let most = (1u64 << (1 << refcount_order)) - 1;
        let mut clusters = self.used.clusters();
        if let Some((cluster, uses)) = clusters.find(|(_, uses)| *uses > most) {
            self.report
                .damaged(|| format!("cluster {cluster} has {uses} uses; {most} can be counted"));
        }
    }

    /// Sorts the runs and looks for clusters that are used twice.
    fn overlaps(&mut self, bits: u32) {
        self.used.runs.sort_unstable();
        self.own.runs.sort_unstable();
        let twice = first_overlap(&self.used.runs);
        if let Some(cluster) = twice {
            let offset = cluster << bits;
            self.report
                .damaged(|| format!("the cluster at {offset:#x} is used twice"));
        }
        let mut all: Vec<u64> = self.used.runs.clone();
        all.extend_from_slice(&self.own.runs);
        all.sort_unstable();
        if let Some(cluster) = first_overlap(&all).filter(|_| twice.is_none()) {
            let offset = cluster << bits;
            self.rebuild = true;
            self.report
                .wrong(|| format!("the refcounts lie at {offset:#x}, where something else is too"));
        }
        self.all.runs = all;
        let last = self.all.runs.last();
        self.report.end = last.map_or(0, |run| (start_of(*run) + count_of(*run)) << bits);
    }
}

/// The first cluster in sorted runs that two uses may not share.
fn first_overlap(runs: &[u64]) -> Option<u64> {
    let (mut exclusive_end, mut last_shared) = (0, None);
    for &run in runs {
        let start = start_of(run);
        if start < exclusive_end {
            return Some(start);
        }
        if run & SHARED != 0 {
            last_shared = Some(start);
        } else if last_shared == Some(start) {
            return Some(start);
        } else {
            exclusive_end = start + count_of(run);
        }
    }
    None
}

/// Compares refcounts with what is used; corrects them where they are if
/// `mend`, or sees that they must be built anew.
fn compare(tables: &Tables<'_>, survey: &mut Survey, mend: bool) -> io::Result<()> {
    if survey.rebuild {
        return Ok(());
    }
    let header = tables.header;
    let entries = header.block_entries();
    let mut expected = survey.all.clusters().peekable();
    let mut report = std::mem::take(&mut survey.report);
    let mut missing = false;
    for (index, offset) in (0u64..).zip(tables.reftable()?) {
        let first = index * entries;
        if offset == 0 {
            while let Some((cluster, _)) = expected.next_if(|(c, _)| *c < first + entries) {
                missing = true;
                report.wrong(|| format!("cluster {cluster} is used and has no refcount"));
            }
            continue;
        }
        let mut here = Vec::new();
        while let Some(next) = expected.next_if(|(c, _)| *c < first + entries) {
            here.push((next.0 - first, next.1));
        }
        let block = tables.cluster(offset)?;
        if block.is_none() && here.is_empty() {
            continue;
        }
        let mut block = block.unwrap_or_else(|| vec![0; header.cluster_size() as usize]);
        let right = fix_block(&mut block, header.refcount_order, first, &here, &mut report);
        if !right && mend {
            tables.file.write_all_at(&block, offset)?;
        }
    }
    for (cluster, _) in expected {
        missing = true;
        report.wrong(|| format!("cluster {cluster} is used and has no refcount"));
    }
    survey.report = report;
    survey.rebuild = missing;
    Ok(())
}

/// Corrects the refcounts of one block in memory; whether they were right.
fn fix_block(
    block: &mut [u8],
    order: u32,
    first: u64,
    expected: &[(u64, u64)],
    report: &mut Report,
) -> bool {
    let mut right = true;
    let mut next = expected.iter().peekable();
    let entries = (block.len() as u64 * 8) >> order;
    for index in 0..entries {
        let want = next
            .next_if(|(at, _)| *at == index)
            .map_or(0, |(_, references)| *references);
        let have = refcount(block, order, index);
        if have == want {
            continue;
        }
        right = false;
        let cluster = first + index;
        if have > want {
            report.leaked_clusters += 1;
            report.text(|| format!("cluster {cluster} has the refcount {have} for {want} uses"));
        } else {
            report.wrong(|| format!("cluster {cluster} has the refcount {have} for {want} uses"));
        }
        set_refcount(block, order, index, want);
    }
    right
}

/// A refcount of `1 << order` bits.
pub(super) fn refcount(block: &[u8], order: u32, index: u64) -> u64 {
    let index = index as usize;
    if order < 3 {
        let byte = block.get(index >> (3 - order)).copied().unwrap_or(0);
        let shift = (index << order) & 7;
        return u64::from(byte >> shift) & ((1 << (1 << order)) - 1);
    }
    let bytes = 1usize << (order - 3);
    let parts = block.get(index * bytes..(index + 1) * bytes);
    parts
        .unwrap_or_default()
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Sets a refcount; one that does not fit becomes the largest.
pub(super) fn set_refcount(block: &mut [u8], order: u32, index: u64, value: u64) {
    let index = index as usize;
    if order < 3 {
        let mask = (1u8 << (1 << order)) - 1;
        let shift = (index << order) & 7;
        if let Some(byte) = block.get_mut(index >> (3 - order)) {
            let value = value.min(u64::from(mask)) as u8;
            *byte = *byte & !(mask << shift) | value << shift;
        }
        return;
    }
    let bytes = 1usize << (order - 3);
    let value = match order {
        6 => value,
        _ => value.min((1 << (8 * bytes)) - 1),
    };
    if let Some(parts) = block.get_mut(index * bytes..(index + 1) * bytes) {
        for (byte, from) in parts.iter_mut().rev().zip(value.to_le_bytes()) {
            *byte = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width() {
        for order in 0..=6 {
            let mut block = vec![0; 64];
            let most = if order == 6 {
                u64::MAX
            } else {
                (1 << (1 << order)) - 1
            };
            set_refcount(&mut block, order, 3, most);
            set_refcount(&mut block, order, 4, 1);
            let all: Vec<u64> = (0..8).map(|i| refcount(&block, order, i)).collect();
            assert_eq!(all, [0, 0, 0, most, 1, 0, 0, 0], "{order}");
        }
        // Big-endian, as qcow2 has it.
        let mut block = vec![0; 8];
        set_refcount(&mut block, 4, 1, 0x0102);
        assert_eq!(block, [0, 0, 1, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn runs_are_joined_counted_and_compared() {
        let mut used = Used::default();
        for cluster in [7, 8, 9, 2] {
            used.push(cluster, false).unwrap();
        }
        for cluster in [4, 4, 5] {
            used.push(cluster, true).unwrap();
        }
        assert_eq!(used.runs.len(), 5);
        used.runs.sort_unstable();
        assert_eq!(first_overlap(&used.runs), None);
        let all: Vec<_> = used.clusters().collect();
        assert_eq!(all, [(2, 1), (4, 2), (5, 1), (7, 1), (8, 1), (9, 1)]);
        used.push(8, true).unwrap();
        used.runs.sort_unstable();
        assert_eq!(first_overlap(&used.runs), Some(8));
        let mut used = Used::default();
        used.push(3, true).unwrap();
        used.push(3, false).unwrap();
        used.runs.sort_unstable();
        assert_eq!(first_overlap(&used.runs), Some(3));
    }
}
