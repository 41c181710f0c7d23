//! Figures: pairs of runs, their ratios, and tables of them.

use std::fmt;

/// Ratios of pairs of runs.
#[derive(Debug, Clone)]
pub struct Ratios(Vec<f64>);

impl Ratios {
    /// The ratio of the second run to the first one, for each pair.
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        let mut ratios: Vec<_> = pairs.iter().map(|(a, b)| b / a).collect();
        ratios.sort_by(f64::total_cmp);
        Self(ratios)
    }

    /// The median.
    pub fn median(&self) -> f64 {
        median(&self.0)
    }
}

impl fmt::Display for Ratios {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(least), Some(greatest)) = (self.0.first(), self.0.last()) else {
            return f.write_str("none");
        };
        let median = self.median();
        write!(f, "{median:.2} ({least:.2}–{greatest:.2})")
    }
}

/// The median of figures.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[middle],
        _ if sorted.is_empty() => f64::NAN,
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}
