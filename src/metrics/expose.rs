//! The text that is scraped: Prometheus' text format and OpenMetrics, as the Python client prints them.

use std::fmt::Write;

use super::aggregate::{Family, Kind, Sample};
use crate::text::pyfmt;

/// Which text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4` (and 1.0.0, whose bodies are the same for our names).
    Text,
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
}

/// Samples that are a family of their own in the text format.
const OWN_FAMILY: [&str; 3] = ["_created", "_gsum", "_gcount"];

/// Prints all families.
pub fn render(families: &[Family], format: Format) -> String {
    let mut out = String::new();
    for family in families {
        render_family(&mut out, family, format);
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn render_family(out: &mut String, family: &Family, format: Format) {
    let (name, kind) = match (format, family.kind) {
        (Format::Text, Kind::Counter) => (format!("{}_total", family.name), "counter"),
        (Format::Text, Kind::Info) => (format!("{}_info", family.name), "gauge"),
        (Format::Text, Kind::StateSet) => (family.name.clone(), "gauge"),
        (Format::Text, Kind::GaugeHistogram) => (family.name.clone(), "histogram"),
        (Format::Text, Kind::Unknown) => (family.name.clone(), "untyped"),
        (Format::OpenMetrics, Kind::Info) => (family.name.clone(), "info"),
        (Format::OpenMetrics, Kind::StateSet) => (family.name.clone(), "stateset"),
        (Format::OpenMetrics, Kind::GaugeHistogram) => (family.name.clone(), "gaugehistogram"),
        (Format::OpenMetrics, Kind::Unknown) => (family.name.clone(), "unknown"),
        (_, Kind::Counter) => (family.name.clone(), "counter"),
        (_, Kind::Gauge) => (family.name.clone(), "gauge"),
        (_, Kind::Summary) => (family.name.clone(), "summary"),
        (_, Kind::Histogram) => (family.name.clone(), "histogram"),
    };
    head(out, &name, kind, &family.help, format);
    let own = |sample: &Sample| {
        OWN_FAMILY.iter().position(|suffix| {
            format == Format::Text && sample.name.strip_suffix(suffix) == Some(family.name.as_str())
        })
    };
    for sample in family.samples.iter().filter(|sample| own(sample).is_none()) {
        line(out, sample);
    }
    let mut suffixes: Vec<usize> = family.samples.iter().filter_map(own).collect();
    suffixes.sort_unstable();
    suffixes.dedup();
    for suffix in suffixes {
        let name = format!("{}{}", family.name, OWN_FAMILY[suffix]);
        head(out, &name, "gauge", &family.help, format);
        family.samples.iter().filter(|sample| own(sample) == Some(suffix)).for_each(|s| line(out, s));
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str, format: Format) {
    let mut help = help.replace('\\', "\\\\").replace('\n', "\\n");
    if format == Format::OpenMetrics {
        help = help.replace('"', "\\\"");
    }
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, sample: &Sample) {
    out.push_str(&sample.name);
    if !sample.labels.is_empty() {
        let mut labels: Vec<&(String, String)> = sample.labels.iter().collect();
        labels.sort_unstable();
        out.push('{');
        for (index, (name, value)) in labels.into_iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
            let _ = write!(out, "{}{name}=\"{value}\"", if index > 0 { "," } else { "" });
        }
        out.push('}');
    }
    let _ = writeln!(out, " {}", go_float(sample.value));
}

/// A number as the Python client prints it: Python's `repr`, but positive numbers from a million up get an
/// exponent of `e+0` and the decimal places before the point.
pub fn go_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let mut text = Vec::new();
    pyfmt::write_f64(&mut text, value);
    let text = String::from_utf8_lossy(&text).into_owned();
    match text.find('.') {
        Some(dot) if value > 0.0 && dot > 6 && !text.contains('e') => {
            let digits = format!("{}.{}{}", &text[..1], &text[1..dot], &text[dot + 1..]);
            let mantissa = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{mantissa}e+0{}", dot - 1)
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_like_go_made_them_in_python() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.5, "1.5"),
            (999_999.5, "999999.5"),
            (1e6, "1e+06"),
            (1_234_567.0, "1.234567e+06"),
            (1_000_000.5, "1.0000005e+06"),
            (1e10, "1e+010"),
            (1e15, "1e+015"),
            (1e16, "1e+16"),
            (1e-5, "1e-05"),
            (-1e6, "-1000000.0"),
            (f64::INFINITY, "+Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(go_float(value), expected);
        }
    }
}
