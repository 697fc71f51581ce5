//! The few numbers that people look at first, out of the merged metrics.

use super::aggregate::Family;

/// Totals and latencies at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Requests parsed.
    pub requests: f64,
    /// Requests that handlers refused.
    pub errors: f64,
    /// Workers recycled.
    pub recycled: f64,
    /// Time in the handler.
    pub handler: Times,
    /// Time of reads in the online store.
    pub store: Times,
}

/// How long something has taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Times {
    /// Seconds together.
    sum: f64,
    /// Upper bounds in seconds, with the number of times up to them.
    buckets: Vec<(f64, f64)>,
}

impl Times {
    fn of(families: &[Family], name: &str) -> Self {
        let sums = samples(families, name).filter(|sample| sample.name.ends_with("_sum"));
        Self { sum: sums.map(|sample| sample.value).sum(), buckets: buckets(samples(families, name)) }
    }

    fn since(&self, earlier: &Self) -> Self {
        let then = |bound: f64| {
            earlier.buckets.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count)
        };
        Self {
            sum: self.sum - earlier.sum,
            buckets: self.buckets.iter().map(|&(bound, count)| (bound, count - then(bound))).collect(),
        }
    }

    /// The mean, for people.
    pub fn mean(&self) -> String {
        let count = self.buckets.last().map_or(0.0, |(_, count)| *count);
        shown((count > 0.0).then(|| self.sum / count))
    }

    /// A quantile, for people. Inside the first bucket nothing is known but its bound.
    pub fn quantile(&self, wanted: f64) -> String {
        match (quantile(&self.buckets, wanted), self.buckets.first()) {
            (Some(found), Some((bound, _))) if found <= *bound => format!("<{}", shown(Some(*bound))),
            (found, _) => shown(found),
        }
    }
}

impl Figures {
    /// Picks them out of `families`.
    pub fn of(families: &[Family]) -> Self {
        let total = |family: &str, label: Option<(&str, &str)>| -> f64 {
            samples(families, family)
                .filter(|sample| sample.name.ends_with("_total"))
                .filter(|sample| {
                    label.is_none_or(|(name, value)| {
                        sample.labels.iter().any(|(known, found)| known == name && found == value)
                    })
                })
                .map(|sample| sample.value)
                .sum()
        };
        Self {
            requests: total("feast_prefork_http_requests", None),
            errors: total("feast_feature_server_request", Some(("status", "error"))),
            recycled: total("feast_prefork_worker_exits", Some(("reason", "recycled"))),
            handler: Times::of(families, "feast_feature_server_request_latency_seconds"),
            store: Times::of(families, "feast_feature_server_online_store_read_duration_seconds"),
        }
    }

    /// What has come since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests - earlier.requests,
            errors: self.errors - earlier.errors,
            recycled: self.recycled - earlier.recycled,
            handler: self.handler.since(&earlier.handler),
            store: self.store.since(&earlier.store),
        }
    }
}

fn samples<'f>(families: &'f [Family], name: &'f str) -> impl Iterator<Item = &'f super::aggregate::Sample> {
    families.iter().filter(move |known| known.name == name).flat_map(|known| &known.samples)
}

/// The buckets of all series of a histogram together, ascending and cumulative.
fn buckets<'s>(samples: impl Iterator<Item = &'s super::aggregate::Sample>) -> Vec<(f64, f64)> {
    let mut found: Vec<(f64, f64)> = Vec::new();
    for sample in samples.filter(|sample| sample.name.ends_with("_bucket")) {
        let Some((_, bound)) = sample.labels.iter().find(|(name, _)| name == "le") else { continue };
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap_or(f64::NAN) };
        match found.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, count)) => *count += sample.value,
            None => found.push((bound, sample.value)),
        }
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found
}

/// The quantile of cumulative buckets in seconds, as Prometheus estimates it: evenly spread inside a bucket. `None`
/// without requests.
fn quantile(buckets: &[(f64, f64)], quantile: f64) -> Option<f64> {
    let (_, all) = buckets.last()?;
    if *all <= 0.0 {
        return None;
    }
    let rank = all * quantile;
    let (mut below, mut counted) = (0.0, 0.0);
    for &(bound, count) in buckets {
        if count >= rank {
            if bound.is_infinite() {
                return Some(below);
            }
            let inside = if count > counted { (rank - counted) / (count - counted) } else { 1.0 };
            return Some(below + (bound - below) * inside);
        }
        below = bound;
        counted = count;
    }
    Some(below)
}

/// A time for people: three digits or fewer.
fn shown(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(s) if s < 0.001 => format!("{:.2} ms", s * 1e3),
        Some(s) if s < 0.01 => format!("{:.1} ms", s * 1e3),
        Some(s) if s < 1.0 => format!("{:.0} ms", s * 1e3),
        Some(s) => format!("{s:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_prometheus() {
        let buckets = [(0.005, 50.0), (0.01, 90.0), (0.1, 100.0), (f64::INFINITY, 100.0)];
        assert_eq!(quantile(&buckets, 0.5), Some(0.005));
        assert_eq!(quantile(&buckets, 0.7), Some(0.0075));
        assert!((quantile(&buckets, 0.99).unwrap() - 0.091).abs() < 1e-9);
        assert_eq!(quantile(&[(f64::INFINITY, 0.0)], 0.5), None);
        let times = Times { sum: 0.04, buckets: buckets.to_vec() };
        assert_eq!(times.quantile(0.5), "<5.0 ms");
        assert_eq!(times.quantile(0.99), "91 ms");
        assert_eq!(times.mean(), "0.40 ms");
        assert_eq!(times.since(&times).mean(), "-");
        assert_eq!(
            (shown(Some(0.0075)), shown(Some(0.25)), shown(None)),
            ("7.5 ms".into(), "250 ms".into(), "-".into())
        );
    }
}
