//! Families of the `prometheus` crate in the same text: for programs that embed this library and keep numbers of
//! their own in that crate's registry. (Its own encoder prints other numbers and another order.)

use std::io::{Error, Write};

use prometheus::proto::{Metric, MetricFamily, MetricType};
use prometheus::Encoder;

use super::aggregate::{Family, Kind, Labels, Sample};
use super::expose::{go_float, render, Format};

impl Encoder for Format {
    fn encode<W: Write>(&self, families: &[MetricFamily], writer: &mut W) -> prometheus::Result<()> {
        let families: Vec<Family> = families.iter().map(convert).collect();
        writer.write_all(render(&families, *self).as_bytes()).map_err(Error::into)
    }

    fn format_type(&self) -> &str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

fn convert(family: &MetricFamily) -> Family {
    let full = family.name();
    let (kind, name) = match family.get_field_type() {
        // The crate's counters are called what they are called; Python's all end with `_total`.
        MetricType::COUNTER => (Kind::Counter, full.strip_suffix("_total").unwrap_or(full)),
        MetricType::GAUGE => (Kind::Gauge, full),
        MetricType::HISTOGRAM => (Kind::Histogram, full),
        MetricType::SUMMARY => (Kind::Summary, full),
        MetricType::UNTYPED => (Kind::Unknown, full),
    };
    let samples = family.get_metric().iter().flat_map(|metric| samples(kind, name, metric)).collect();
    Family { name: name.to_owned(), kind, help: family.help().to_owned(), samples }
}

fn samples(kind: Kind, name: &str, metric: &Metric) -> Vec<Sample> {
    let labels: Labels =
        metric.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned())).collect();
    let sample =
        |suffix: &str, value: f64| Sample { name: format!("{name}{suffix}"), labels: labels.clone(), value };
    match kind {
        Kind::Counter => vec![sample("_total", metric.get_counter().get_value())],
        Kind::Histogram => {
            let histogram = metric.get_histogram();
            let count = histogram.get_sample_count();
            let mut out = vec![sample("_sum", histogram.get_sample_sum())];
            let infinite = (f64::INFINITY, count);
            let finite = histogram.get_bucket().iter().map(|b| (b.upper_bound(), b.cumulative_count()));
            for (bound, counted) in finite.filter(|(bound, _)| bound.is_finite()).chain([infinite]) {
                let mut bucket = sample("_bucket", counted as f64);
                bucket.labels.push(("le".to_owned(), go_float(bound)));
                out.push(bucket);
            }
            out.push(sample("_count", count as f64));
            out
        }
        _ => vec![sample("", metric.get_gauge().get_value())],
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};

    use super::*;

    #[test]
    fn a_registry_prints_as_python_prints_it() {
        let registry = Registry::new();
        let seen = IntCounterVec::new(Opts::new("seen_total", "Requests \\ seen"), &["path"]).unwrap();
        let took = Histogram::with_opts(HistogramOpts::new("took", "Time").buckets(vec![1.0, 1e6])).unwrap();
        registry.register(Box::new(seen.clone())).unwrap();
        registry.register(Box::new(took.clone())).unwrap();
        seen.with_label_values(&["/\"a\""]).inc_by(3);
        took.observe(2.5);
        let mut out = Vec::new();
        Format::Text.encode(&registry.gather(), &mut out).unwrap();
        let expected = "# HELP seen_total Requests \\\\ seen\n# TYPE seen_total counter\n\
                        seen_total{path=\"/\\\"a\\\"\"} 3.0\n\
                        # HELP took Time\n# TYPE took histogram\ntook_sum 2.5\n\
                        took_bucket{le=\"1.0\"} 0.0\ntook_bucket{le=\"1e+06\"} 1.0\ntook_bucket{le=\"+Inf\"} 1.0\n\
                        took_count 1.0\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
