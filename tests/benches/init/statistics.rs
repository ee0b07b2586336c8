//! Median and 99th percentile. Nearest rank: every figure told was measured, none is interpolated.

/// The value below which `percent` of `samples` lie, or `None` without samples.
pub(crate) fn percentile(samples: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The middle value.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    percentile(samples, 50)
}
