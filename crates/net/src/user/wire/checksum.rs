//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// Adds `bytes` to a sum. Only the last part added may have an odd length.
pub fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let word: [u8; 4] = word.try_into().unwrap_or_default();
        sum += u64::from(u32::from_be_bytes(word));
    }
    let mut rest = [0; 4];
    let tail = words.remainder();
    for (place, byte) in rest.iter_mut().zip(tail) {
        *place = *byte;
    }
    sum + u64::from(u32::from_be_bytes(rest))
}

/// Brings a sum down to 16 bits.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}

/// Sum of the pseudo header of a transport packet of `length` bytes.
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let mut sum = u64::from(protocol) + length as u64;
    for address in [source, destination] {
        sum = match address {
            IpAddr::V4(v4) => add(sum, &v4.octets()),
            IpAddr::V6(v6) => add(sum, &v6.octets()),
        };
    }
    sum
}

/// Whether a transport packet's own checksum is right.
pub fn holds(source: IpAddr, destination: IpAddr, protocol: u8, packet: &[u8]) -> bool {
    fold(add(
        pseudo(source, destination, protocol, packet.len()),
        packet,
    )) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(add(0, &bytes)), 0xddf2);
    }

    #[test]
    fn parts_and_odd_ends() {
        let bytes: Vec<u8> = (0..=254).collect();
        let mut slow = 0u64;
        for pair in bytes.chunks(2) {
            slow += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        assert_eq!(fold(add(0, &bytes)), fold(slow));
    }
}
