//! Sequence numbers, which wrap (RFC 9293, 3.4).

/// Whether `a` comes before `b`.
pub const fn before(a: u32, b: u32) -> bool {
    distance(a, b) > 0
}

/// How far `to` is after `from`; negative if it is before.
pub const fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from).cast_signed()
}

/// How many bytes `to` is after `from`; 0 if it is before.
pub const fn room(from: u32, to: u32) -> u32 {
    let d = distance(from, to);
    if d < 0 { 0 } else { d.cast_unsigned() }
}

/// The number `bytes` after `from`.
pub fn after(from: u32, bytes: usize) -> u32 {
    // Lengths of segments and windows are far below 2^32.
    from.wrapping_add(u32::try_from(bytes).unwrap_or(0))
}
