//! New inputs from old ones.

/// Numbers by xorshift (Marsaglia 2003): the same seed gives the same.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % (end.max(1) as u64)) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }
}

/// Bytes at the edges of numbers.
const EDGES: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];

pub(crate) fn mutate(
    random: &mut Random,
    pool: &[Vec<u8>],
    words: &[&[u8]],
    longest: usize,
) -> Vec<u8> {
    // New inputs are at the end: what was found last is tried more often.
    let from = match random.below(2) {
        0 => 0,
        _ => pool.len().saturating_sub(32),
    };
    let mut data = random.pick(&pool[from..]).cloned().unwrap_or_default();
    for _ in 0..=random.below(8) {
        let at = random.below(data.len() + 1);
        let byte = random.number() as u8;
        match random.below(9) {
            0 | 1 if at < data.len() => data[at] = byte,
            2 if at < data.len() => data[at] = EDGES[random.below(EDGES.len())],
            3 if at < data.len() => data[at] ^= 1 << (byte & 7),
            4 if at < data.len() => data[at] = data[at].wrapping_add(byte % 9).wrapping_sub(4),
            5 if !words.is_empty() => {
                let word = random.pick(words).copied().unwrap_or_default();
                data.splice(at..at, word.iter().copied());
            }
            6 => {
                let end = (at + random.below(32)).min(data.len());
                data.drain(at..end);
            }
            7 => {
                let other = random.pick(pool).cloned().unwrap_or_default();
                let start = random.below(other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[start..]);
            }
            8 => {
                let end = (at + random.below(64)).min(data.len());
                let part = data[at..end].to_vec();
                data.splice(at..at, part);
            }
            _ => {
                let fresh = (0..=random.below(24)).map(|_| random.number() as u8);
                let fresh: Vec<u8> = fresh.collect();
                data.splice(at..at, fresh);
            }
        }
        data.truncate(longest);
    }
    data
}
