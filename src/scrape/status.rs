//! The status page: the figures of `feast-prefork top` for a browser. One static text, no scripts, nothing fetched.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::ipc::scoreboard::{Scoreboard, Slot, SlotState};
use crate::metrics::aggregate::Family;
use crate::metrics::figures::{Figures, Times};
use crate::os::process;
use crate::text::time::duration;

/// Seconds after which a browser asks again.
const REFRESH: u32 = 2;
/// Figures are those of the time since a look at least so old.
const LOOK: Duration = Duration::from_secs(2);
/// The most that a look may be old: behind it lies what nobody has watched.
const OLDEST: Duration = Duration::from_mins(1);
/// Most rows of the table.
const ROWS: usize = 100;

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--soft:#888}\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}\
h1{font-size:1.3rem;margin:0}p{color:var(--soft);margin:.2rem 0 1.2rem}\
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.7rem;margin:0 0 1.5rem}\
dl div{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .8rem}\
dt{color:var(--soft);font-size:.85rem}dd{margin:0;font-size:1.35rem;font-variant-numeric:tabular-nums}\
small{font-size:.85rem;color:var(--soft);white-space:nowrap}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:right;padding:.25rem .6rem;border-bottom:1px solid var(--line)}\
th{color:var(--soft);font-weight:normal;font-size:.85rem}th:nth-child(2),td:nth-child(2){text-align:left}\
.serving{color:#2a8f4a}.late{color:#c33}footer{color:var(--soft);margin-top:1.5rem;font-size:.85rem}";

/// What was known at one moment.
struct Look {
    at: Instant,
    figures: Figures,
    /// Process and requests of each worker.
    workers: Vec<(i32, u64)>,
}

/// Makes the page, and remembers what the last ones showed: rates need two looks.
pub(super) struct StatusPage<'b> {
    board: &'b Scoreboard,
    looks: Vec<Look>,
}

impl<'b> StatusPage<'b> {
    pub(super) fn new(board: &'b Scoreboard) -> Self {
        Self { board, looks: Vec::new() }
    }

    /// The page, from the scoreboard and the merged metrics.
    pub(super) fn render(&mut self, families: &[Family]) -> String {
        let mut slots: Vec<&Slot> = self.board.taken().collect();
        slots.sort_by_key(|slot| std::cmp::Reverse(slot.age()));
        let now = Look {
            at: Instant::now(),
            figures: Figures::of(families),
            workers: slots.iter().map(|slot| (slot.pid(), slot.requests())).collect(),
        };
        // The youngest look that is old enough; what is older is forgotten.
        self.looks.retain(|look| now.at.duration_since(look.at) < OLDEST);
        if let Some(last) = self.looks.iter().rposition(|look| now.at.duration_since(look.at) >= LOOK) {
            self.looks.drain(..last);
        }
        let page = self.page(&slots, &now, self.looks.first());
        // A reader who is in a hurry does not push out the look that others need.
        if self.looks.len() < ROWS {
            self.looks.push(now);
        }
        page
    }

    fn page(&self, slots: &[&Slot], now: &Look, before: Option<&Look>) -> String {
        let (phase, wanted, uptime) = self.board.tree();
        let none = Look { at: now.at, figures: Figures::default(), workers: Vec::new() };
        let (before, seconds) = match before {
            Some(before) => (before, now.at.duration_since(before.at)),
            None => (&none, uptime),
        };
        let seconds = seconds.as_secs_f64().max(0.001);
        let recent = now.figures.since(&before.figures);
        let serving = slots.iter().filter(|slot| slot.state() == SlotState::Serving).count();
        let memory: Vec<u64> = slots.iter().map(|slot| process::resident_kib(slot.pid())).collect();
        let connections: u32 = slots.iter().map(|slot| slot.connections()).sum();
        let mut page = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>feast-prefork</title>\
             <meta http-equiv=\"refresh\" content=\"{REFRESH}\">\
             <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\
             <h1>feast-prefork {}</h1><p>master {}, {}, up {}, {serving} of {wanted} workers serve</p><dl>",
            env!("CARGO_PKG_VERSION"),
            std::os::unix::process::parent_id(),
            phase.name(),
            duration(uptime.as_secs()),
        );
        let spread = |times: &Times| {
            format!("{} <small>p99 {}</small>", times.mean(), times.quantile(0.99).replace('<', "&lt;"))
        };
        for (name, value) in [
            ("requests/s", format!("{:.0}", recent.requests / seconds)),
            ("errors/s", format!("{:.0}", (recent.errors / seconds).abs())),
            ("handler, mean", spread(&recent.handler)),
            ("store, mean", spread(&recent.store)),
            ("connections", connections.to_string()),
            ("memory", format!("{} MiB", memory.iter().sum::<u64>() / 1024)),
            ("recycled", format!("{:.0}", now.figures.recycled)),
            ("requests", format!("{:.0}", now.figures.requests)),
        ] {
            let _ = write!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>");
        }
        page.push_str("</dl><table><thead><tr><th>pid<th>state<th>age<th>requests<th>requests/s<th>connections<th>memory<th>silent</tr></thead><tbody>");
        for (slot, memory) in slots.iter().zip(&memory).take(ROWS) {
            let (pid, requests) = (slot.pid(), slot.requests());
            let then = before.workers.iter().find(|(known, _)| *known == pid).map_or(0, |(_, count)| *count);
            let since = if then == 0 { slot.age().as_secs_f64().clamp(0.001, seconds) } else { seconds };
            let silent = slot.silence().as_secs();
            let _ = write!(
                page,
                "<tr><td>{pid}<td class=\"{0}\">{0}<td>{1}<td>{requests}<td>{2:.0}<td>{3}<td>{4} MiB<td class=\"{5}\">{6}</tr>",
                slot.state().name(),
                duration(slot.age().as_secs()),
                requests.saturating_sub(then) as f64 / since,
                slot.connections(),
                memory / 1024,
                if silent > 5 { "late" } else { "" },
                duration(silent),
            );
        }
        page.push_str("</tbody></table>");
        if slots.len() > ROWS {
            let _ = write!(page, "<p>{} more workers</p>", slots.len() - ROWS);
        }
        page.push_str(
            "<footer>Figures of the last seconds, from the scoreboard and the metric files; no worker is asked. \
             Memory counts shared pages in each worker. Metrics: <a href=\"/metrics\">/metrics</a></footer></body></html>\n",
        );
        page
    }
}
