//! Reads from Redis: commands of all requests of a turn leave in one write, and replies are matched in order.
//!
//! The reads of one request make a *ticket*. The request is parked until all of its replies have come, and is
//! then run again, finding the values there. A ticket whose connection was lost, or which was sent to the wrong
//! server, is simply run again until its deadline: reads change nothing.

pub mod keys;
pub mod link;
pub mod resp;
mod tickets;
pub mod topology;
pub mod write;

use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Registry, Token, Waker};
use rustls::ClientConfig;

use self::link::{Address, Change, Expect, Link, SKIP};
use self::tickets::{Outcome, Tickets};
use self::topology::{Found, NOBODY};
use super::{OnlineStore, Progress, ReadError, Ticket};
use crate::config::redis::{RedisConfig, RedisTls, Topology};
use crate::feature::cells::{Cells, Keys};
use crate::feature::plan::ViewRead;
use crate::tls;

/// How soon the servers are looked for again when that failed, or when the map of the cluster was wrong.
const DISCOVERY_PAUSE: Duration = Duration::from_millis(100);
/// How soon a request is run again that a server could not answer yet.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// What a worker asks Redis for, and how long it waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first try of a request to its error.
    pub deadline: Duration,
    /// Requests that may wait at one time.
    pub in_flight: usize,
}

/// How servers are trusted, and who we are. The error names the file that cannot be used.
pub fn client_config(config: &RedisTls) -> Result<Arc<ClientConfig>, String> {
    let certificate = config.cert.as_deref().map(|cert| (cert, config.key.as_deref().unwrap_or(cert)));
    tls::client::client_config(config.ca.as_deref(), certificate, config.accept_any)
}

/// Which part of a request's reads is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    /// Nothing was asked for.
    Fresh,
    /// Asking: values will come under this ticket.
    Asking(Ticket),
    /// Values have come; the number of the next view.
    Reading(Ticket, usize),
    /// They never will.
    Failed(Ticket),
}

/// See the module. Made after the fork; connects on first use.
pub struct Redis {
    config: Arc<RedisConfig>,
    tls: Option<Arc<ClientConfig>>,
    project: Box<[u8]>,
    limits: Limits,
    registry: Registry,
    waker: Arc<Waker>,
    first_token: usize,
    links: Vec<Link>,
    /// The servers are not fixed: the next search may find others.
    may_move: bool,
    /// For each slot of a cluster its link; empty without a cluster.
    slots: Vec<u16>,
    discovery: Option<Receiver<Result<Found, String>>>,
    next_discovery: Option<Instant>,
    discovery_error: String,
    tickets: Tickets,
    current: Current,
    /// Run again then.
    retry_at: Option<Instant>,
    now: Instant,
}

impl Redis {
    /// A store of `project`, encrypted with `tls` if there is one. Its connections are registered from
    /// `first_token` on.
    pub fn new(
        config: &RedisConfig,
        tls: Option<Arc<ClientConfig>>,
        project: &str,
        limits: Limits,
        registry: Registry,
        first_token: usize,
        waker: Arc<Waker>,
    ) -> Self {
        let mut store = Self {
            tls,
            config: Arc::new(config.clone()),
            project: project.as_bytes().into(),
            limits,
            registry,
            waker,
            first_token,
            links: Vec::new(),
            may_move: true,
            slots: Vec::new(),
            discovery: None,
            next_discovery: None,
            discovery_error: String::new(),
            tickets: Tickets::default(),
            current: Current::Fresh,
            retry_at: None,
            now: Instant::now(),
        };
        if let Some(found) = topology::known(&store.config) {
            store.may_move = false;
            store.adopt(found);
        }
        store
    }

    /// Takes over what was found; links to servers that stay are kept.
    fn adopt(&mut self, found: Found) {
        self.links.iter_mut().for_each(|link| link.wanted = false);
        let places: Vec<u16> = found.nodes.into_iter().map(|address| self.link_to(address)).collect();
        self.slots = found
            .slots
            .iter()
            .map(|&node| places.get(usize::from(node)).copied().unwrap_or(NOBODY))
            .collect();
        // Without a cluster there is one server; with sentinels it may have become another one.
        if self.slots.is_empty() {
            if let Some(&place) = places.first() {
                self.links.swap(0, usize::from(place));
            }
        }
        self.tickets.wake_waiting();
    }

    /// The link to a server, made when there is none.
    fn link_to(&mut self, address: Address) -> u16 {
        let known = self.links.iter().position(|link| *link.address() == address);
        let place = known.unwrap_or_else(|| {
            let token = Token(self.first_token + self.links.len());
            let (greeting, tls) = (self.greeting(), self.tls.clone());
            self.links.push(Link::new(address, greeting, tls, token, self.limits.deadline));
            self.links.len() - 1
        });
        self.links[place].wanted = true;
        place as u16
    }

    /// What begins every connection.
    fn greeting(&self) -> Vec<Vec<u8>> {
        let mut commands: Vec<Vec<&[u8]>> = Vec::new();
        let config = &*self.config;
        match (&config.username, &config.password) {
            (Some(user), Some(password)) => {
                commands.push(vec![b"AUTH", user.as_bytes(), password.as_bytes()]);
            }
            (Some(user), None) => commands.push(vec![b"AUTH", user.as_bytes(), b""]),
            (None, Some(password)) => commands.push(vec![b"AUTH", password.as_bytes()]),
            (None, None) => {}
        }
        if let Some(name) = &config.client_name {
            commands.push(vec![b"CLIENT", b"SETNAME", name.as_bytes()]);
        }
        if config.topology == Topology::Cluster && config.read_from_replicas {
            commands.push(vec![b"READONLY"]);
        }
        let db = config.db.to_string();
        if config.db != 0 {
            commands.push(vec![b"SELECT", db.as_bytes()]);
        }
        let encode = |parts: &Vec<&[u8]>| {
            let mut out = Vec::new();
            resp::write_command(&mut out, parts);
            out
        };
        commands.iter().map(encode).collect()
    }

    /// Looks for the servers in a thread, unless that is going on or was done just now.
    fn discover(&mut self) {
        if self.discovery.is_some() || self.next_discovery.is_some_and(|at| at > self.now) {
            return;
        }
        self.next_discovery = Some(self.now + DISCOVERY_PAUSE);
        let (sender, receiver) = mpsc::channel();
        let (config, waker) = (self.config.clone(), self.waker.clone());
        let looked = std::thread::Builder::new().name("redis".to_owned()).spawn(move || {
            let _ = sender.send(topology::discover(&config));
            let _ = waker.wake();
        });
        match looked {
            Ok(_) => self.discovery = Some(receiver),
            Err(error) => self.discovery_error = format!("cannot start a thread: {error}"),
        }
    }

    /// The link for key `place.1` of view `place.0`, if it takes commands now, and whether it has to be told that we
    /// know of a move; what is missing is started.
    fn route(&mut self, ticket: Ticket, place: (u16, u32), key: &[u8]) -> Option<(usize, bool)> {
        if self.links.is_empty() {
            self.discover();
            return None;
        }
        let (place, asking) = if self.slots.is_empty() {
            (0, false)
        } else if let Some(link) = self.tickets.asked_elsewhere(ticket, place) {
            (usize::from(link), true)
        } else {
            let whole = [key, &self.project].concat();
            (usize::from(self.slots[usize::from(keys::slot(&whole))]), false)
        };
        let Some(link) = self.links.get_mut(place) else {
            self.discover();
            return None;
        };
        if link.is_up() {
            return Some((place, asking));
        }
        if link.connect(&self.registry, self.now) == Change::Lost {
            self.lost(place);
        }
        None
    }

    /// Queues the commands of one view.
    fn ask(&mut self, ticket: Ticket, view: &ViewRead, keys: &Keys) {
        let fields = view.prepared.get_or_init(|| keys::fields(view));
        let features = view.features.len();
        let number = self.tickets.add_view(ticket, keys.len(), features);
        for index in 0..keys.len() {
            let key = keys.key(index);
            let Some((place, asking)) = self.route(ticket, (number, index as u32), key) else {
                self.tickets.wait_for_link(ticket);
                continue;
            };
            let expect = Expect { ticket, view: number, features: features as u32, key: index as u32 };
            let link = &mut self.links[place];
            if asking {
                let skip = Expect { key: SKIP, ..expect };
                resp::write_command(link.expect(skip, self.now), &[b"ASKING"]);
            }
            keys::write_hmget(link.expect(expect, self.now), key, &self.project, features, fields);
            self.tickets.expect(ticket);
        }
    }

    /// The replies that a link owed will not come: their requests are run again.
    fn lost(&mut self, place: usize) {
        for expect in self.links[place].take_lost() {
            self.tickets.again(expect.ticket);
        }
        // Perhaps there is another master by now, or another address behind the name.
        if self.may_move && self.links[place].wanted {
            self.discover();
        }
    }

    fn noted(&mut self, place: usize, change: Change) {
        match change {
            Change::None => {}
            Change::Up => self.tickets.wake_waiting(),
            Change::Lost => self.lost(place),
        }
    }

    /// Acts on what servers have said instead of values.
    fn follow(&mut self) {
        for (expect, text, from) in self.tickets.take_redirections() {
            let ticket = expect.ticket;
            if self.slots.is_empty() {
                self.tickets.refused(&expect, &text);
                continue;
            }
            let Some(address) = self.links.get(from).map(|link| link.address().clone()) else { continue };
            let moved = text.starts_with("MOVED");
            if moved {
                self.tickets.ask_no_more(ticket);
                self.discover();
            }
            let known = self.links.iter().position(|link| topology::names(&text, link.address()));
            let target = match (known, topology::redirection(&text, &address)) {
                (Some(place), _) => Some(place as u16),
                (None, Some((_, to))) => Some(self.link_to(to)),
                (None, None) => None,
            };
            match (target, topology::slot_of(&text)) {
                (Some(link), Some(slot)) if moved => self.slots[usize::from(slot)] = link,
                (Some(link), _) if !moved => {
                    self.tickets.ask_elsewhere(ticket, (expect.view, expect.key), link);
                }
                _ => {}
            }
            self.tickets.redirected(ticket, target.is_some(), text);
        }
        if self.tickets.must_pause() && self.retry_at.is_none() {
            self.retry_at = Some(self.now + RETRY_PAUSE);
            if self.may_move {
                self.discover();
            }
        }
    }

    /// Ends requests whose time is up, and connections that owe them a reply.
    fn expire(&mut self) {
        while let Some(ticket) = self.tickets.overdue(self.now) {
            let text = self.why_late(ticket);
            self.tickets.fail(ticket, text);
        }
        for place in 0..self.links.len() {
            if self.links[place].is_late(self.now) {
                let text = format!("Timeout reading from {}", self.links[place].address());
                let change = self.links[place].fail(text, self.now);
                self.noted(place, change);
            }
        }
    }

    /// What kept a request waiting until its deadline.
    fn why_late(&self, ticket: Ticket) -> String {
        let owing = self.links.iter().find(|link| link.expected().any(|expect| expect.ticket == ticket));
        if let Some(link) = owing.filter(|link| link.error().is_empty()) {
            return format!("Timeout reading from {}", link.address());
        }
        if let Some(refusal) = self.tickets.refusal(ticket) {
            return refusal.to_owned();
        }
        let errors = self
            .links
            .iter()
            .filter(|link| link.wanted)
            .map(Link::error)
            .chain([self.discovery_error.as_str()]);
        let mut errors = errors.filter(|error| !error.is_empty());
        errors.next().unwrap_or("Timeout connecting to server").to_owned()
    }

    /// Somebody waits for a server, and perhaps another one has taken its place.
    fn must_search(&self) -> bool {
        (self.may_move || self.links.is_empty()) && self.discovery.is_none() && self.tickets.waits_for_links()
    }

    fn discovered(&mut self) {
        let Some(receiver) = &self.discovery else { return };
        let found = match receiver.try_recv() {
            Err(TryRecvError::Empty) => return,
            Ok(found) => found,
            Err(TryRecvError::Disconnected) => Err("the search for the servers broke down".to_owned()),
        };
        self.discovery = None;
        match found {
            Ok(found) => {
                self.discovery_error.clear();
                self.adopt(found);
            }
            Err(error) => {
                if self.discovery_error != error {
                    log::warn!("online store: {error}");
                }
                self.discovery_error = error;
            }
        }
    }
}

impl OnlineStore for Redis {
    fn begin(&mut self, resumed: Option<Ticket>, now: Instant) {
        self.now = now;
        self.current = match resumed {
            None => Current::Fresh,
            Some(ticket) => match self.tickets.outcome(ticket) {
                Some(Outcome::Complete) => Current::Reading(ticket, 0),
                Some(Outcome::Again) => self.tickets.restart(ticket).map_or(Current::Fresh, Current::Asking),
                Some(Outcome::Failed(_)) | None => Current::Failed(ticket),
            },
        };
    }

    fn read(&mut self, view: &ViewRead, keys: &Keys, cells: &mut Cells) -> Result<Progress, ReadError> {
        match self.current {
            Current::Reading(ticket, next) => {
                self.current = Current::Reading(ticket, next + 1);
                self.tickets.take_view(ticket, next, cells);
                Ok(Progress::Done)
            }
            Current::Failed(ticket) => {
                let text = match self.tickets.outcome(ticket) {
                    Some(Outcome::Failed(text)) => text.clone(),
                    _ => "the request was given up".to_owned(),
                };
                Err(ReadError::Failed(text))
            }
            Current::Asking(ticket) => {
                self.ask(ticket, view, keys);
                Ok(Progress::Pending)
            }
            Current::Fresh => {
                if self.tickets.len() >= self.limits.in_flight || self.links.iter().any(Link::is_full) {
                    return Err(ReadError::Overloaded);
                }
                let ticket = self.tickets.open(self.now + self.limits.deadline);
                self.current = Current::Asking(ticket);
                self.ask(ticket, view, keys);
                Ok(Progress::Pending)
            }
        }
    }

    fn take_ticket(&mut self) -> Option<Ticket> {
        match std::mem::replace(&mut self.current, Current::Fresh) {
            Current::Asking(ticket) => Some(ticket),
            _ => None,
        }
    }

    fn own(&mut self, ticket: Ticket, owner: usize) {
        self.tickets.own(ticket, owner);
    }

    fn end(&mut self) {
        match std::mem::replace(&mut self.current, Current::Fresh) {
            Current::Fresh => {}
            Current::Asking(ticket) | Current::Reading(ticket, _) | Current::Failed(ticket) => {
                self.tickets.close(ticket);
            }
        }
    }

    fn forget(&mut self, ticket: Ticket) {
        self.tickets.close(ticket);
    }

    fn ready(&mut self, token: Token, closed: bool, now: Instant) {
        self.now = now;
        let place = self.links.iter().position(|link| link.token() == token);
        let Some(place) = place else { return };
        self.tickets.reading_from(place);
        let change = self.links[place].ready(&mut self.tickets, closed, now);
        self.noted(place, change);
        self.follow();
    }

    fn turn(&mut self, now: Instant, done: &mut Vec<usize>) {
        self.now = now;
        self.discovered();
        for place in 0..self.links.len() {
            let due = self.links[place].deadline().is_some_and(|at| at <= now);
            if due && self.links[place].wanted && self.tickets.len() > 0 {
                let change = self.links[place].connect(&self.registry, now);
                self.noted(place, change);
            }
        }
        if self.must_search() {
            self.discover();
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.tickets.resume_paused();
        }
        self.expire();
        self.tickets.drain_done(done);
    }

    fn end_tick(&mut self) {
        for place in 0..self.links.len() {
            let change = self.links[place].flush(self.now);
            self.noted(place, change);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        if self.tickets.has_done() {
            return Some(self.now);
        }
        if self.tickets.len() == 0 {
            return None;
        }
        let links = self.links.iter().filter(|link| link.wanted).filter_map(Link::deadline);
        let searching = if self.must_search() { self.next_discovery } else { None };
        links.chain(self.tickets.next_deadline()).chain(self.retry_at).chain(searching).min()
    }

    fn missing_is_present(&self) -> bool {
        true
    }
}
