//! What was measured.

use std::collections::BTreeMap;

use super::sides::Side;

/// All measurements, by name and side.
#[derive(Default)]
pub struct Figures {
    values: BTreeMap<(String, Side), Vec<f64>>,
    checks: BTreeMap<(String, Side), String>,
    /// Names in the order in which they first came, with their workload.
    order: Vec<(String, String)>,
}

impl Figures {
    /// Takes one measurement: seconds, or MiB for memory.
    pub fn add(&mut self, workload: &str, name: &str, side: Side, value: f64) {
        if !self.order.iter().any(|(known, _)| known == name) {
            self.order.push((name.to_owned(), workload.to_owned()));
        }
        self.values
            .entry((name.to_owned(), side))
            .or_default()
            .push(value);
    }

    /// Takes the `BENCH name seconds check=value` lines of a workload's output;
    /// returns how many there were.
    pub fn add_lines(&mut self, workload: &str, side: Side, output: &str) -> usize {
        let mut count = 0;
        for line in output.lines() {
            let Some(fields) = line.trim().strip_prefix("BENCH ") else {
                continue;
            };
            let words: Vec<&str> = fields.split_whitespace().collect();
            let [name, seconds, check] = words[..] else {
                continue;
            };
            let (Ok(seconds), Some(check)) = (seconds.parse(), check.strip_prefix("check=")) else {
                continue;
            };
            self.add(workload, name, side, seconds);
            self.checks
                .insert((name.to_owned(), side), check.to_owned());
            count += 1;
        }
        count
    }

    /// Names of the rows of some workloads, in order.
    pub fn names(&self, workloads: &[&str]) -> Vec<&str> {
        self.order
            .iter()
            .filter(|(_, workload)| workloads.contains(&workload.as_str()))
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Median of one name on one side.
    pub fn median(&self, name: &str, side: Side) -> Option<f64> {
        let mut values = self.values.get(&(name.to_owned(), side))?.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        Some(if values.len().is_multiple_of(2) {
            (values[middle - 1] + values[middle]) / 2.0
        } else {
            values[middle]
        })
    }

    /// Median of one side over median of another.
    pub fn ratio(&self, name: &str, over: Side, under: Side) -> Option<f64> {
        Some(self.median(name, over)? / self.median(name, under)?)
    }

    /// Geometric mean of the ratios of some workloads; `None` without any.
    pub fn mean_ratio(&self, workloads: &[&str], over: Side, under: Side) -> Option<f64> {
        let ratios: Vec<f64> = self
            .names(workloads)
            .iter()
            .filter_map(|name| self.ratio(name, over, under))
            .collect();
        if ratios.is_empty() {
            return None;
        }
        let sum: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
        Some((sum / ratios.len() as f64).exp())
    }

    /// All single values.
    pub fn all(&self) -> impl Iterator<Item = (&str, Side, &[f64])> {
        self.values
            .iter()
            .map(|((name, side), values)| (name.as_str(), *side, values.as_slice()))
    }

    /// Guests' results that differ from the native ones.
    pub fn wrong(&self) -> Vec<String> {
        self.checks
            .iter()
            .filter(|((_, side), _)| *side != Side::Native)
            .filter_map(|((name, side), check)| {
                let native = self.checks.get(&(name.clone(), Side::Native))?;
                (native != check)
                    .then(|| format!("{name} under {side}: {check}, natively {native}"))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ratios_and_means() {
        let mut figures = Figures::default();
        for seconds in [1.0, 9.0, 2.0] {
            figures.add("a", "a1", Side::Holm, seconds);
        }
        figures.add("a", "a1", Side::Native, 1.0);
        figures.add("b", "b1", Side::Holm, 8.0);
        figures.add("b", "b1", Side::Native, 1.0);
        assert_eq!(figures.median("a1", Side::Holm), Some(2.0));
        assert_eq!(figures.ratio("a1", Side::Tcg, Side::Holm), None);
        let mean = figures
            .mean_ratio(&["a", "b"], Side::Holm, Side::Native)
            .unwrap();
        assert!((mean - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_wrong_result_is_found() {
        let mut figures = Figures::default();
        let lines = "noise\r\nBENCH x 1.5 check=00\r\nBENCH y 2 check=01\r\n";
        assert_eq!(figures.add_lines("w", Side::Native, lines), 2);
        figures.add_lines(
            "w",
            Side::Holm,
            "BENCH x 3.0 check=00\nBENCH y 2 check=02\n",
        );
        let wrong = figures.wrong();
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].contains('y'), "{wrong:?}");
    }
}
