//! Building an image's refcounts anew, behind the end of the file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::check::{Used, set_refcount};
use super::header::{Header, length_of, refuse};

/// Position of the refcount table's place in the header.
const PLACE_AT: u64 = 48;
/// Largest refcount table in bytes, as in QEMU.
const MAX_REFTABLE: u64 = 8 << 20;

/// Writes refcounts for the `used` clusters, without the present refcount
/// structure, to the end of the file; then the header takes them.
///
/// # Errors
/// The host's error.
pub(super) fn rebuild(file: &File, header: &mut Header, used: &Used) -> io::Result<()> {
    let cluster = header.cluster_size();
    let entries = header.block_entries();
    let first = length_of(file)?.div_ceil(cluster);
    let used = used.clusters();
    let mut indices: BTreeSet<u64> = BTreeSet::new();
    let mut counts: Vec<(u64, u64)> = Vec::new();
    for (at, references) in used {
        indices.insert(at / entries);
        counts.push((at, references));
    }
    // The new blocks and table need refcounts themselves.
    let table_clusters = loop {
        let last = indices.last().copied().unwrap_or(0);
        let table = ((last + 1) * 8).div_ceil(cluster);
        let end = first + indices.len() as u64 + table;
        let before = indices.len();
        indices.extend(first / entries..=(end - 1) / entries);
        if indices.len() == before {
            break table;
        }
    };
    if table_clusters * cluster > MAX_REFTABLE {
        return Err(refuse("its refcount table would become too large"));
    }
    let blocks = indices.len() as u64;
    counts.extend((first..first + blocks + table_clusters).map(|at| (at, 1)));
    let mut counts = counts.into_iter().peekable();
    let mut table = vec![0u8; (table_clusters * cluster) as usize];
    for (n, index) in (0..).zip(&indices) {
        let place: u64 = (first + n) * cluster;
        let mut block = vec![0; cluster as usize];
        while let Some((at, references)) = counts.next_if(|(at, _)| at / entries == *index) {
            set_refcount(&mut block, header.refcount_order, at % entries, references);
        }
        file.write_all_at(&block, place)?;
        let slot = (*index * 8) as usize;
        if let Some(entry) = table.get_mut(slot..slot + 8) {
            entry.copy_from_slice(&place.to_be_bytes());
        }
    }
    let place = (first + blocks) * cluster;
    file.write_all_at(&table, place)?;
    file.sync_data()?;
    let mut pointer = [0; 12];
    pointer[..8].copy_from_slice(&place.to_be_bytes());
    pointer[8..].copy_from_slice(&(table_clusters as u32).to_be_bytes());
    file.write_all_at(&pointer, PLACE_AT)?;
    header.reftable_offset = place;
    header.reftable_clusters = table_clusters as u32;
    Ok(())
}
