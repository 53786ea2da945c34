//! Dates in the form of the clock's registers.

/// A date and time of day in UTC, Gregorian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub year: u64,
    /// 1 to 12.
    pub month: u64,
    /// 1 to 31.
    pub day: u64,
    /// 1 (Sunday) to 7.
    pub weekday: u64,
    pub hour: u64,
    pub minute: u64,
    pub second: u64,
}

const DAY: u64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: u64 = 719_468;
/// Days of 400 years.
const ERA: u64 = 146_097;

impl Date {
    /// The date of a Unix time in seconds.
    pub fn from_unix(seconds: u64) -> Self {
        let (days, time) = (seconds / DAY, seconds % DAY);
        // Years are counted from March, so that leap days come last.
        let since = days + EPOCH;
        let (era, in_era) = (since / ERA, since % ERA);
        let year = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
        let in_year = in_era - (365 * year + year / 4 - year / 100);
        let from_march = (5 * in_year + 2) / 153;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        Self {
            year: era * 400 + year + u64::from(month <= 2),
            month,
            day: in_year - (153 * from_march + 2) / 5 + 1,
            weekday: (days + 4) % 7 + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    /// The Unix time in seconds; before 1970 it is 0. Fields out of range
    /// count on into the next larger one.
    pub fn to_unix(self) -> u64 {
        let month = self.month.clamp(1, 12);
        let year = self.year - u64::from(month <= 2 && self.year > 0);
        let (era, in_era) = (year / 400, year % 400);
        let from_march = (month + 9) % 12;
        let in_year = (153 * from_march + 2) / 5 + self.day.max(1) - 1;
        let days = era * ERA + in_era * 365 + in_era / 4 - in_era / 100 + in_year;
        let time = self.hour * 3600 + self.minute * 60 + self.second;
        (days * DAY + time).saturating_sub(EPOCH * DAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let date = Date::from_unix(951_782_399);
        assert_eq!(
            (date.year, date.month, date.day, date.weekday),
            (2000, 2, 28, 2)
        );
        assert_eq!((date.hour, date.minute, date.second), (23, 59, 59));
        let leap = Date::from_unix(951_782_400);
        assert_eq!((leap.month, leap.day, leap.weekday), (2, 29, 3));
        let first = Date::from_unix(0);
        assert_eq!(
            (first.year, first.month, first.day, first.weekday),
            (1970, 1, 1, 5)
        );
    }

    proptest! {
        #[test]
        fn dates_survive(seconds in 0_u64..253_402_300_800) {
            prop_assert_eq!(Date::from_unix(seconds).to_unix(), seconds);
        }
    }
}
