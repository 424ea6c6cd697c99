//! Medians, spreads, paired ratios, and the lines of the table.

use anyhow::Result;

/// The value below which a `part` (0 to 1) of the sample lies, between neighbours linear;
/// NaN for an empty sample.
pub fn quantile(sample: &[f64], part: f64) -> f64 {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = part * last as f64;
    let below = sorted[place.floor() as usize];
    let above = sorted[place.ceil() as usize];
    below + (above - below) * place.fract()
}

pub fn median(sample: &[f64]) -> f64 {
    quantile(sample, 0.5)
}

/// A sample's middle and its middle half: `0.991 (0.985–0.996)`.
pub fn spread(sample: &[f64], decimals: usize) -> String {
    let [low, middle, high] = [0.25, 0.5, 0.75].map(|part| quantile(sample, part));
    format!("{middle:.decimals$} ({low:.decimals$}–{high:.decimals$})")
}

/// Two ways of doing one thing, measured next to each other. Costs: less is better.
#[derive(Default)]
pub struct Pairs {
    pub native: Vec<f64>,
    pub vosrun: Vec<f64>,
}

impl Pairs {
    /// Measures both ways `repeats` times, in the order A B B A A B …, after one unmeasured
    /// run of each.
    ///
    /// # Errors
    /// The first one of a measurement.
    pub fn measure(
        repeats: usize,
        mut native: impl FnMut() -> Result<f64>,
        mut vosrun: impl FnMut() -> Result<f64>,
    ) -> Result<Self> {
        native()?;
        vosrun()?;
        let mut pairs = Self::default();
        for round in 0..repeats {
            if round % 2 == 0 {
                pairs.native.push(native()?);
                pairs.vosrun.push(vosrun()?);
            } else {
                pairs.vosrun.push(vosrun()?);
                pairs.native.push(native()?);
            }
        }
        Ok(pairs)
    }

    /// Native cost over vosrun's, pair by pair: 1 is as fast as without, 0.5 half as fast.
    pub fn speed(&self) -> Vec<f64> {
        self.native.iter().zip(&self.vosrun).map(|(native, vosrun)| native / vosrun).collect()
    }

    /// Native cost over the next native cost: what chance alone does to a ratio.
    pub fn noise(&self) -> Vec<f64> {
        self.native.windows(2).map(|pair| pair[0] / pair[1]).collect()
    }
}

/// What a median should be.
#[derive(Clone, Copy)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    /// Shown for comparison, not judged.
    Nothing,
}

impl Wanted {
    /// The last two columns: the goal, and whether `value` reaches it.
    pub fn verdict(self, value: f64) -> String {
        let (goal, reached) = match self {
            Self::AtLeast(limit) => (format!("≥ {limit}"), value >= limit),
            Self::AtMost(limit) => (format!("≤ {limit}"), value <= limit),
            Self::Nothing => return "–".into(),
        };
        format!("{goal:<8}{}", if reached { "reached" } else { "missed" })
    }
}

/// Runs a bench, which adds the rows that it could not measure; see [`conclude`].
pub fn run_bench(
    bench: impl FnOnce(&mut Vec<(String, anyhow::Error)>) -> anyhow::Result<()>,
) -> std::process::ExitCode {
    let mut failures = Vec::new();
    if let Err(e) = bench(&mut failures) {
        failures.push(("every row".into(), e));
    }
    conclude(&failures)
}

/// Prints the outcome of a bench's rows and gives its exit code: a row that could not be
/// measured is named with its reason and makes the code 1; a missed goal does not.
pub fn conclude(failures: &[(String, anyhow::Error)]) -> std::process::ExitCode {
    for (row, reason) in failures {
        eprintln!("not measured: {row}: {reason:#}");
    }
    std::process::ExitCode::from(u8::from(!failures.is_empty()))
}
