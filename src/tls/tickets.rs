//! Session tickets that every worker can read: a client resumes its session with whichever worker it meets.
//!
//! The keys lie in memory shared by master and workers. The master rotates them; a worker that was busy meanwhile reads the
//! new one when it next needs it. A ticket is `number of its key | nonce | sealed session`.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM, NONCE_LEN};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;

use crate::os::shm::Shared;
use crate::shared_words;

/// How long tickets are made with one key (as in rustls' own ticketer).
pub const ROTATION: Duration = Duration::from_hours(6);
/// Keys that open tickets: the newest and its two predecessors.
const KEPT: u64 = 3;
/// Places for keys: one more, to write the next one to.
const PLACES: u64 = KEPT + 1;
/// Words of a key.
const WORDS: usize = 4;
const NUMBER: usize = 8;

shared_words! {
    /// One word of the keys.
    #[derive(Debug)]
    #[repr(C)]
    struct Word { value: AtomicU64, }
}

/// The keys in shared memory: word 0 counts them, the others are [`PLACES`] keys, the oldest of which is replaced.
#[derive(Debug)]
struct Keys(Shared<Word>);

impl Keys {
    fn newest(&self) -> u64 {
        self.0[0].value.load(Ordering::Acquire)
    }

    fn place(number: u64) -> usize {
        1 + (number % PLACES) as usize * WORDS
    }

    /// The key with this number; `None` when it is gone.
    fn read(&self, number: u64) -> Option<LessSafeKey> {
        let newest = self.newest();
        if number == 0 || number > newest || newest - number >= KEPT {
            return None;
        }
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(&self.0[Self::place(number)..]) {
            chunk.copy_from_slice(&word.value.load(Ordering::Relaxed).to_le_bytes());
        }
        UnboundKey::new(&AES_256_GCM, &bytes).ok().map(LessSafeKey::new)
    }
}

/// The master's side: makes keys.
#[derive(Debug)]
pub struct Rotation {
    keys: Arc<Keys>,
    due: Instant,
}

impl Rotation {
    /// Shared memory with a first key.
    pub fn new(now: Instant) -> std::io::Result<Self> {
        let keys = Arc::new(Keys(Shared::new("feast-prefork-tickets", 1 + PLACES as usize * WORDS)?));
        let mut rotation = Self { keys, due: now };
        rotation.rotate_if_due(now)?;
        Ok(rotation)
    }

    /// Makes a new key when the present one has been used long enough.
    pub fn rotate_if_due(&mut self, now: Instant) -> std::io::Result<()> {
        if self.due > now {
            return Ok(());
        }
        let mut key = [0; 32];
        SystemRandom::new().fill(&mut key).map_err(|_| std::io::Error::other("no random numbers"))?;
        self.due = now + ROTATION;
        let Keys(words) = &*self.keys;
        let number = self.keys.newest() + 1;
        // Its place holds a key that nobody may read any more; the number makes it known when it is whole.
        let place = &words[Keys::place(number)..];
        for (chunk, word) in key.as_chunks::<8>().0.iter().zip(place) {
            word.value.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
        }
        words[0].value.store(number, Ordering::Release);
        Ok(())
    }

    /// A worker's side.
    pub fn tickets(&self) -> Arc<Tickets> {
        Arc::new(Tickets { keys: self.keys.clone(), known: Mutex::default(), random: SystemRandom::new() })
    }
}

/// A worker's side: makes and opens tickets. Keys are set up once, and again after a rotation.
pub struct Tickets {
    keys: Arc<Keys>,
    known: Mutex<Vec<(u64, Arc<LessSafeKey>)>>,
    random: SystemRandom,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    fn key(&self, number: u64) -> Option<Arc<LessSafeKey>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.keys.newest();
        known.retain(|(number, _)| newest - number < KEPT);
        if let Some((_, key)) = known.iter().find(|(known, _)| *known == number) {
            return Some(key.clone());
        }
        let key = Arc::new(self.keys.read(number)?);
        known.push((number, key.clone()));
        Some(key)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        (ROTATION.as_secs() * (KEPT - 1)) as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let number = self.keys.newest();
        let key = self.key(number)?;
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(NUMBER + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        ticket.extend_from_slice(&number.to_le_bytes());
        ticket.extend_from_slice(&nonce);
        let mut sealed = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, Aad::from(number.to_le_bytes()), &mut sealed).ok()?;
        ticket.append(&mut sealed);
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (number, rest) = ticket.split_first_chunk::<NUMBER>()?;
        let (nonce, sealed) = rest.split_first_chunk::<{ NONCE_LEN }>()?;
        let key = self.key(u64::from_le_bytes(*number))?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.open_in_place(nonce, Aad::from(*number), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_worker_opens_a_ticket_until_its_key_was_replaced_three_times() {
        let start = Instant::now();
        let mut rotation = Rotation::new(start).unwrap();
        let (one, other) = (rotation.tickets(), rotation.tickets());
        let old = one.encrypt(b"session").unwrap();
        for turn in 0..3 {
            assert_eq!(other.decrypt(&old).as_deref(), Some(&b"session"[..]), "after {turn} rotations");
            rotation.rotate_if_due(start + ROTATION * (turn + 1)).unwrap();
            let new = other.encrypt(b"newer").unwrap();
            assert_ne!(new[..NUMBER], old[..NUMBER]);
            assert_eq!(one.decrypt(&new).as_deref(), Some(&b"newer"[..]));
        }
        assert_eq!(other.decrypt(&old), None);
        assert_eq!(one.decrypt(&old), None);
    }

    #[test]
    fn a_ticket_that_was_touched_is_refused() {
        let tickets = Rotation::new(Instant::now()).unwrap().tickets();
        let ticket = tickets.encrypt(b"session").unwrap();
        for place in 0..ticket.len() {
            let mut touched = ticket.clone();
            touched[place] ^= 1;
            assert_eq!(tickets.decrypt(&touched), None, "byte {place}");
        }
        assert_eq!(tickets.decrypt(b""), None);
        assert_eq!(tickets.decrypt(&ticket[..NUMBER + NONCE_LEN + 3]), None);
    }

    #[test]
    fn keys_are_used_for_hours_only() {
        let start = Instant::now();
        let mut rotation = Rotation::new(start).unwrap();
        rotation.rotate_if_due(start + ROTATION / 2).unwrap();
        assert_eq!(rotation.keys.newest(), 1);
        rotation.rotate_if_due(start + ROTATION).unwrap();
        assert_eq!(rotation.keys.newest(), 2);
    }
}
