//! Reading numbers from a file at places that the file chose.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// An error that names what is wrong with a file.
pub(super) fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Reads exactly; a file that ends before is named as such.
pub(super) fn exact(file: &File, out: &mut [u8], at: u64, what: &str) -> io::Result<()> {
    file.read_exact_at(out, at).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => bad(format!("the file ends before its {what}")),
        _ => e,
    })
}

/// Bytes of a header at a place in it.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .unwrap_or([0; N])
}
