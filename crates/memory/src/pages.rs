//! Sets of RAM pages.

use std::ops::Range;

/// A set of RAM pages, by number (byte offset into RAM / 4096).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u64,
}

impl PageSet {
    /// None of this many pages.
    pub fn none(pages: u64) -> Self {
        let words = pages.div_ceil(64);
        Self {
            words: vec![0; usize::try_from(words).unwrap_or(0)],
            pages,
        }
    }

    /// All of this many pages.
    pub fn all(pages: u64) -> Self {
        let mut set = Self::none(pages);
        set.insert(0..pages);
        set
    }

    /// The set that a bitmap of [`crate::GuestRam::take_dirty`] says.
    pub fn from_bitmap(words: Vec<u64>, pages: u64) -> Self {
        let mut set = Self { words, pages };
        set.words.resize(pages.div_ceil(64) as usize, 0);
        let last = pages % 64;
        if let Some(word) = set.words.last_mut().filter(|_| last != 0) {
            *word &= (1 << last) - 1;
        }
        set
    }

    /// Adds a run; what lies beyond the last page is ignored.
    pub fn insert(&mut self, run: Range<u64>) {
        let mut page = run.start;
        let end = run.end.min(self.pages);
        while page < end {
            let (at, bit) = ((page / 64) as usize, page % 64);
            let n = (64 - bit).min(end - page);
            let mask = (!0u64 >> (64 - n)) << bit;
            if let Some(word) = self.words.get_mut(at) {
                *word |= mask;
            }
            page += n;
        }
    }

    /// Adds all of another set.
    pub fn union(&mut self, other: &Self) {
        for (to, from) in self.words.iter_mut().zip(&other.words) {
            *to |= from;
        }
    }

    /// Removes all of another set.
    pub fn subtract(&mut self, other: &Self) {
        for (to, from) in self.words.iter_mut().zip(&other.words) {
            *to &= !from;
        }
    }

    /// Whether any page of a run is in it.
    pub fn meets(&self, run: &Range<u64>) -> bool {
        self.find(run.start, true)
            .is_some_and(|page| page < run.end)
    }

    /// Its runs, with the gaps between them closed that are at most `gap`
    /// pages long and of which no page is in `not`.
    pub fn joined<'a>(&'a self, gap: u64, not: &'a Self) -> impl Iterator<Item = Range<u64>> + 'a {
        let mut runs = self.runs().peekable();
        std::iter::from_fn(move || {
            let mut run = runs.next()?;
            let near = |run: &Range<u64>, next: &Range<u64>| {
                next.start - run.end <= gap && !not.meets(&(run.end..next.start))
            };
            while let Some(next) = runs.next_if(|next| near(&run, next)) {
                run.end = next.end;
            }
            Some(run)
        })
    }

    /// Whether a page is in it.
    pub fn contains(&self, page: u64) -> bool {
        let word = self.words.get((page / 64) as usize);
        word.is_some_and(|w| w >> (page % 64) & 1 != 0)
    }

    /// Number of pages in it.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// The parts of 512 pages (a huge page) of which at least half are in it,
    /// by the number of the first page.
    pub fn dense_parts(&self) -> impl Iterator<Item = u64> + '_ {
        let parts = self.words.chunks_exact(8).zip((0..).step_by(512));
        parts.filter_map(|(words, first)| {
            let count: u32 = words.iter().map(|w| w.count_ones()).sum();
            (count >= 256 && first + 512 <= self.pages).then_some(first)
        })
    }

    /// Number of pages that could be in it.
    pub fn capacity(&self) -> u64 {
        self.pages
    }

    /// Its runs of consecutive pages, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = self.find(next, true)?;
            next = self.find(start, false).unwrap_or(self.pages);
            Some(start..next)
        })
    }

    /// The first page from `from` on that is in the set, or is not.
    fn find(&self, from: u64, member: bool) -> Option<u64> {
        let mut page = from;
        while page < self.pages {
            let word = *self.words.get((page / 64) as usize)?;
            let word = if member { word } else { !word } >> (page % 64);
            if word != 0 {
                let found = page + u64::from(word.trailing_zeros());
                return (found < self.pages).then_some(found);
            }
            page = (page / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_was_inserted() {
        let mut set = PageSet::none(300);
        for run in [0..1, 63..66, 100..229, 298..400] {
            set.insert(run);
        }
        let runs: Vec<_> = set.runs().collect();
        assert_eq!(runs, [0..1, 63..66, 100..229, 298..300]);
        assert_eq!(set.count(), 1 + 3 + 129 + 2);
        assert!(set.contains(65) && !set.contains(66) && !set.contains(4000));
        let mut more = PageSet::none(300);
        more.insert(66..100);
        more.union(&set);
        assert_eq!(more.runs().nth(1), Some(63..229));
        let mut not = PageSet::none(300);
        not.insert(80..81);
        let joined = |gap, not: &PageSet| set.joined(gap, not).collect::<Vec<_>>();
        assert_eq!(joined(62, &PageSet::none(300)), [0..229, 298..300]);
        assert_eq!(joined(62, &not), [0..66, 100..229, 298..300]);
        assert!(set.meets(&(50..64)) && !set.meets(&(66..100)) && !set.meets(&(5..5)));
        let mut less = set.clone();
        less.subtract(&more);
        assert_eq!(less.count(), 0);
        assert_eq!(PageSet::all(129).runs().next(), Some(0..129));
        assert_eq!(PageSet::none(129).runs().next(), None);
        let mut dense = PageSet::none(2000);
        [0..255, 600..900, 1024..1536, 1700..2000]
            .into_iter()
            .for_each(|run| dense.insert(run));
        assert_eq!(dense.dense_parts().collect::<Vec<_>>(), [512, 1024]);
        let beyond = PageSet::from_bitmap(vec![!0, !0, !0], 130);
        assert_eq!(beyond.count(), 130);
    }
}
