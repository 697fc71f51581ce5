//! What was asked for and has not been answered: values as they come in, and who waits for them.

use std::collections::VecDeque;
use std::time::Instant;

use slab::Slab;

use super::link::{Expect, Sink};
use super::Ticket;
use crate::feature::cells::{Cells, EventTime};
use crate::registry::model::seconds_and_nanos;

/// How a ticket ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All values are there.
    Complete,
    /// They have to be asked for anew.
    Again,
    /// The text is what the client gets.
    Failed(String),
}

#[derive(Debug)]
struct Pending {
    generation: u32,
    owner: Option<usize>,
    deadline: Instant,
    views: Vec<Cells>,
    /// Views in use; the others are kept for their memory.
    used: usize,
    /// Replies that are missing.
    missing: usize,
    /// A link that is needed does not take commands.
    waits_for_link: bool,
    /// A server asked for patience.
    pauses: bool,
    /// With these words.
    refusal: String,
    /// Keys that are on their way to another link: view and key, and the link.
    elsewhere: Vec<((u16, u32), u16)>,
    /// How often servers have sent this request elsewhere.
    redirections: u32,
    outcome: Option<Outcome>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    slab: Slab<Pending>,
    generation: u32,
    by_deadline: VecDeque<(Instant, Ticket)>,
    done: Vec<Ticket>,
    waiting: Vec<Ticket>,
    paused: Vec<Ticket>,
    redirections: Vec<(Expect, String, usize)>,
    /// Link whose replies come in.
    from: usize,
    spare: Vec<Vec<Cells>>,
}

/// Redirections that are followed at once.
const MAX_REDIRECTIONS: u32 = 5;
/// Sets of values kept for their memory.
const MAX_SPARE: usize = 64;

impl Tickets {
    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn open(&mut self, deadline: Instant) -> Ticket {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let index = self.slab.insert(Pending {
            generation,
            owner: None,
            deadline,
            views: self.spare.pop().unwrap_or_default(),
            used: 0,
            missing: 0,
            waits_for_link: false,
            pauses: false,
            refusal: String::new(),
            elsewhere: Vec::new(),
            redirections: 0,
            outcome: None,
        });
        let ticket = Ticket { index: index as u32, generation };
        let place = self.by_deadline.partition_point(|(known, _)| *known <= deadline);
        self.by_deadline.insert(place, (deadline, ticket));
        ticket
    }

    fn get(&mut self, ticket: Ticket) -> Option<&mut Pending> {
        self.slab.get_mut(ticket.index as usize).filter(|pending| pending.generation == ticket.generation)
    }

    pub(super) fn outcome(&self, ticket: Ticket) -> Option<&Outcome> {
        let pending = self.slab.get(ticket.index as usize)?;
        if pending.generation == ticket.generation {
            pending.outcome.as_ref()
        } else {
            None
        }
    }

    pub(super) fn own(&mut self, ticket: Ticket, owner: usize) {
        if let Some(pending) = self.get(ticket) {
            pending.owner = Some(owner);
        }
    }

    /// Asks anew until the same deadline. Replies to the old commands still come, so the ticket is another one.
    pub(super) fn restart(&mut self, old: Ticket) -> Option<Ticket> {
        let deadline = self.get(old)?.deadline;
        let elsewhere = std::mem::take(&mut self.get(old)?.elsewhere);
        let refusal = std::mem::take(&mut self.get(old)?.refusal);
        let redirections = self.get(old)?.redirections;
        self.close(old);
        let ticket = self.open(deadline);
        let pending = self.get(ticket)?;
        pending.elsewhere = elsewhere;
        pending.refusal = refusal;
        pending.redirections = redirections;
        Some(ticket)
    }

    /// Makes room for the values of another view; returns its number.
    pub(super) fn add_view(&mut self, ticket: Ticket, keys: usize, features: usize) -> u16 {
        let Some(pending) = self.get(ticket) else { return 0 };
        if pending.used == pending.views.len() {
            pending.views.push(Cells::default());
        }
        pending.views[pending.used].reset(keys, features);
        pending.used += 1;
        pending.used as u16 - 1
    }

    /// Exchanges the values of view `number` for the memory of `cells`.
    pub(super) fn take_view(&mut self, ticket: Ticket, number: usize, cells: &mut Cells) {
        if let Some(view) = self.get(ticket).and_then(|pending| pending.views.get_mut(number)) {
            std::mem::swap(view, cells);
        }
    }

    /// One more reply is missing.
    pub(super) fn expect(&mut self, ticket: Ticket) {
        if let Some(pending) = self.get(ticket) {
            pending.missing += 1;
        }
    }

    pub(super) fn wait_for_link(&mut self, ticket: Ticket) {
        let Some(pending) = self.get(ticket) else { return };
        if !std::mem::replace(&mut pending.waits_for_link, true) {
            self.waiting.push(ticket);
        }
        // Those that have ended meanwhile are not kept for ever.
        if self.waiting.len() > 2 * self.slab.len() + 64 {
            let mut waiting = std::mem::take(&mut self.waiting);
            waiting.retain(|&ticket| self.get(ticket).is_some_and(|pending| pending.outcome.is_none()));
            self.waiting = waiting;
        }
    }

    /// Somebody waits for a link.
    pub(super) fn waits_for_links(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A link takes commands again.
    pub(super) fn wake_waiting(&mut self) {
        for ticket in std::mem::take(&mut self.waiting) {
            if self.get(ticket).is_some_and(|pending| pending.waits_for_link) {
                self.finish(ticket, Outcome::Again);
            }
        }
    }

    pub(super) fn again(&mut self, ticket: Ticket) {
        self.finish(ticket, Outcome::Again);
    }

    pub(super) fn fail(&mut self, ticket: Ticket, text: String) {
        self.finish(ticket, Outcome::Failed(text));
    }

    fn finish(&mut self, ticket: Ticket, outcome: Outcome) {
        let Some(pending) = self.get(ticket) else { return };
        if pending.outcome.is_none() {
            pending.outcome = Some(outcome);
            self.done.push(ticket);
        }
    }

    /// Some ticket waits because a server asked for patience.
    pub(super) fn must_pause(&self) -> bool {
        !self.paused.is_empty()
    }

    pub(super) fn resume_paused(&mut self) {
        for ticket in std::mem::take(&mut self.paused) {
            self.finish(ticket, Outcome::Again);
        }
    }

    pub(super) fn take_redirections(&mut self) -> Vec<(Expect, String, usize)> {
        std::mem::take(&mut self.redirections)
    }

    /// A key is on its way to another link.
    pub(super) fn ask_elsewhere(&mut self, ticket: Ticket, key: (u16, u32), link: u16) {
        if let Some(pending) = self.get(ticket) {
            pending.elsewhere.retain(|(known, _)| *known != key);
            pending.elsewhere.push((key, link));
        }
    }

    /// What was on its way has arrived, or stayed.
    pub(super) fn ask_no_more(&mut self, ticket: Ticket) {
        if let Some(pending) = self.get(ticket) {
            pending.elsewhere.clear();
        }
    }

    /// The link that a key was said to be on its way to.
    pub(super) fn asked_elsewhere(&mut self, ticket: Ticket, key: (u16, u32)) -> Option<u16> {
        let pending = self.get(ticket)?;
        pending.elsewhere.iter().find(|(known, _)| *known == key).map(|&(_, link)| link)
    }

    /// A server has sent a request elsewhere: it is run again, after a pause if the way is not known or if it has
    /// been sent around before.
    pub(super) fn redirected(&mut self, ticket: Ticket, known: bool, text: String) {
        let Some(pending) = self.get(ticket) else { return };
        pending.redirections += 1;
        if known && pending.redirections <= MAX_REDIRECTIONS {
            self.again(ticket);
        } else {
            self.pause(ticket, text);
        }
    }

    /// Runs a request again after a while; `text` is why.
    fn pause(&mut self, ticket: Ticket, text: String) {
        let Some(pending) = self.get(ticket) else { return };
        pending.refusal = text;
        if !std::mem::replace(&mut pending.pauses, true) {
            self.paused.push(ticket);
        }
    }

    /// A command was answered with an error that no other try can mend.
    pub(super) fn refused(&mut self, expect: &Expect, text: &str) {
        let number = expect.key.wrapping_add(1);
        let text = format!("Command # {number} (HMGET ...) of pipeline caused error: ('{text}',)");
        self.fail(expect.ticket, text);
    }

    pub(super) fn close(&mut self, ticket: Ticket) {
        if self.get(ticket).is_some() {
            let pending = self.slab.remove(ticket.index as usize);
            if self.spare.len() < MAX_SPARE {
                self.spare.push(pending.views);
            }
        }
        // Closed tickets at the front of the queue keep nothing from being seen.
        while let Some(&(_, front)) = self.by_deadline.front() {
            if self.get(front).is_some() {
                break;
            }
            self.by_deadline.pop_front();
        }
    }

    /// What a server said when it asked for patience.
    pub(super) fn refusal(&self, ticket: Ticket) -> Option<&str> {
        let pending = self.slab.get(ticket.index as usize)?;
        Some(pending.refusal.as_str()).filter(|text| !text.is_empty())
    }

    /// The next ticket without outcome whose time is up.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<Ticket> {
        while let Some(&(deadline, ticket)) = self.by_deadline.front() {
            if deadline > now {
                return None;
            }
            self.by_deadline.pop_front();
            if self.get(ticket).is_some_and(|pending| pending.outcome.is_none()) {
                return Some(ticket);
            }
        }
        None
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.front().map(|&(deadline, _)| deadline)
    }

    /// Somebody has to be told.
    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// The owners of tickets that have ended, each once.
    pub(super) fn drain_done(&mut self, done: &mut Vec<usize>) {
        for ticket in std::mem::take(&mut self.done) {
            let Some(pending) = self.get(ticket) else { continue };
            match pending.owner {
                Some(owner) => done.push(owner),
                // It ended before it had an owner: told in the next turn.
                None => self.done.push(ticket),
            }
        }
    }

    pub(super) fn reading_from(&mut self, link: usize) {
        self.from = link;
    }
}

impl Sink for Tickets {
    #[inline]
    fn value(&mut self, expect: &Expect, index: usize, bytes: Option<&[u8]>) {
        let Some(pending) = self.get(expect.ticket) else { return };
        let Some(cells) = pending.views[..pending.used].get_mut(usize::from(expect.view)) else { return };
        let Some(bytes) = bytes else { return };
        if index < expect.features as usize {
            cells.put(expect.key as usize, index, bytes);
            return;
        }
        match event_time(bytes) {
            Some(time) => cells.set_time(expect.key as usize, time),
            None => {
                let text =
                    "Error parsing message with type 'google.protobuf.Timestamp': Wire format was corrupt";
                self.fail(expect.ticket, text.to_owned());
            }
        }
    }

    #[inline]
    fn end(&mut self, expect: &Expect) {
        let Some(pending) = self.get(expect.ticket) else { return };
        pending.missing = pending.missing.saturating_sub(1);
        if pending.missing == 0 && pending.owner.is_some() && !pending.waits_for_link && !pending.pauses {
            self.finish(expect.ticket, Outcome::Complete);
        }
    }

    fn error(&mut self, expect: &Expect, text: &[u8]) {
        let text = String::from_utf8_lossy(text).into_owned();
        let code = text.split(' ').next().unwrap_or("");
        match code {
            "MOVED" | "ASK" => self.redirections.push((*expect, text, self.from)),
            "LOADING" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" => self.pause(expect.ticket, text),
            _ => self.refused(expect, &text),
        }
    }
}

/// The event time as the reference shows it: through a double, rounded to microseconds. `None`: not a timestamp.
fn event_time(bytes: &[u8]) -> Option<EventTime> {
    let (seconds, nanos) = seconds_and_nanos(bytes).ok()?;
    if nanos == 0 {
        return Some(EventTime { seconds, nanos: 0 });
    }
    let float = seconds as f64 + f64::from(nanos) / 1e9;
    let whole = float.floor();
    let micros = ((float - whole) * 1e6).round_ties_even() as i64;
    let (whole, micros) = (whole as i64 + micros / 1_000_000, micros % 1_000_000);
    Some(EventTime { seconds: whole, nanos: micros as u32 * 1000 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::wire;

    #[test]
    fn times_pass_through_a_double() {
        for (seconds, nanos, expected) in [
            (1_795_089_600_i64, 250_000_000_i64, (1_795_089_600, 250_000_000)),
            (1_795_089_600, 999_999_999, (1_795_089_601, 0)),
            (1_795_089_600, 123_480_431, (1_795_089_600, 123_480_000)),
            (1_795_089_600, 500, (1_795_089_600, 0)),
            (7, 0, (7, 0)),
        ] {
            let mut bytes = Vec::new();
            wire::put_int(&mut bytes, 1, seconds);
            wire::put_int(&mut bytes, 2, nanos);
            let time = event_time(&bytes).unwrap();
            assert_eq!((time.seconds, i64::from(time.nanos)), expected, "{seconds} {nanos}");
        }
        assert_eq!(event_time(b""), Some(EventTime { seconds: 0, nanos: 0 }));
        assert_eq!(event_time(b"\xff"), None);
    }
}
