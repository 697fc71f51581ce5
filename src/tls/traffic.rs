//! Protects the bytes of a connection whose handshake is over (RFC 8446 section 5.2, RFC 5246 section 6.2.3.3).
//!
//! rustls does the handshake and is done; its keys come here. Unlike a rustls connection this state is a few numbers that can
//! travel to another worker with the connection ([`Traffic::pack`]), and records are opened and sealed where they lie.

use std::ops::Range;

use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};

/// Bytes before a record's content: type, version, length.
pub(super) const HEADER: usize = 5;
/// Most content of a record.
const MOST_PLAIN: usize = 1 << 14;
/// Most bytes of a record after its header.
const MOST_SEALED: usize = MOST_PLAIN + 2048;
const TAG: usize = 16;
/// Bytes of the nonce that TLS 1.2 sends along with AES-GCM.
const EXPLICIT: usize = 8;
const IV: usize = 12;
/// Records after which a connection should end: keys wear out at 2^24 (RFC 8446 section 5.5).
const WORN: u64 = 1 << 23;
/// Bytes of a packed state.
pub(super) const PACKED: usize = 2 + 2 * (32 + IV + 8);

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Alert,
    Handshake,
    Data,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }

    fn of(byte: u8) -> Result<Self, Fault> {
        match byte {
            21 => Ok(Self::Alert),
            22 => Ok(Self::Handshake),
            23 => Ok(Self::Data),
            _ => Err(Fault::UnexpectedMessage),
        }
    }
}

/// Why a connection cannot go on; the number is that of the alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("a record that does not belong there")]
    UnexpectedMessage = 10,
    #[error("a record that was not sealed with the key of the connection")]
    BadRecordMac = 20,
    #[error("a record that is too long")]
    RecordOverflow = 22,
    #[error("bytes that are not TLS")]
    Decode = 50,
}

/// Length of the first record in `bytes` with its header; `None` when there is more to come.
pub(super) fn record_length(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        // Whatever speaks something else is noticed by its first byte.
        return if bytes.first().is_some_and(|kind| !(20..=23).contains(kind)) {
            Err(Fault::Decode)
        } else {
            Ok(None)
        };
    };
    if !(20..=23).contains(&header[0]) || header[1] != 3 {
        return Err(Fault::Decode);
    }
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length > MOST_SEALED {
        return Err(Fault::RecordOverflow);
    }
    Ok((rest.len() >= length).then_some(HEADER + length))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cipher {
    Aes128,
    Aes256,
    Chacha20,
}

impl Cipher {
    fn key(self, secret: &[u8; 32]) -> Option<LessSafeKey> {
        let key = match self {
            Self::Aes128 => UnboundKey::new(&AES_128_GCM, &secret[..16]),
            Self::Aes256 => UnboundKey::new(&AES_256_GCM, secret),
            Self::Chacha20 => UnboundKey::new(&CHACHA20_POLY1305, secret),
        };
        key.ok().map(LessSafeKey::new)
    }
}

/// One direction.
struct Direction {
    secret: [u8; 32],
    iv: [u8; IV],
    number: u64,
    key: LessSafeKey,
}

impl Direction {
    fn new((number, secrets): (u64, ConnectionTrafficSecrets)) -> Option<(Cipher, Self)> {
        let (cipher, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Cipher::Chacha20, key, iv),
            _ => return None,
        };
        let mut secret = [0; 32];
        secret.get_mut(..key.as_ref().len())?.copy_from_slice(key.as_ref());
        let iv = iv.as_ref().try_into().ok()?;
        Some((cipher, Self { secret, iv, number, key: cipher.key(&secret)? }))
    }

    /// The nonce of the next record.
    fn nonce(&self) -> [u8; IV] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[IV - 8..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    /// What TLS 1.2 binds a record to.
    fn bound(&self, kind: u8, length: usize) -> [u8; 13] {
        let mut bound = [0; 13];
        bound[..8].copy_from_slice(&self.number.to_be_bytes());
        bound[8..].copy_from_slice(&header(kind, length));
        bound
    }
}

fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [high, low] = (length as u16).to_be_bytes();
    [kind, 3, 3, high, low]
}

/// Keys and record numbers of both directions.
pub(super) struct Traffic {
    cipher: Cipher,
    /// TLS 1.3; otherwise 1.2.
    modern: bool,
    /// From the client.
    rx: Direction,
    /// To the client.
    tx: Direction,
}

impl std::fmt::Debug for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traffic")
            .field("cipher", &self.cipher)
            .field("modern", &self.modern)
            .finish_non_exhaustive()
    }
}

impl Traffic {
    /// Takes over the keys of a finished handshake; `None` for a cipher that this module does not know.
    pub(super) fn new(version: ProtocolVersion, secrets: ExtractedSecrets) -> Option<Self> {
        let (cipher, rx) = Direction::new(secrets.rx)?;
        let (same, tx) = Direction::new(secrets.tx)?;
        let modern = match version {
            ProtocolVersion::TLSv1_3 => true,
            ProtocolVersion::TLSv1_2 => false,
            _ => return None,
        };
        (cipher == same).then_some(Self { cipher, modern, rx, tx })
    }

    /// Everything as bytes, for a worker of the same server.
    pub(super) fn pack(&self) -> Vec<u8> {
        let mut packed = Vec::with_capacity(PACKED);
        packed.push(self.cipher as u8);
        packed.push(self.modern.into());
        for side in [&self.rx, &self.tx] {
            packed.extend_from_slice(&side.secret);
            packed.extend_from_slice(&side.iv);
            packed.extend_from_slice(&side.number.to_le_bytes());
        }
        packed
    }

    /// The reverse of [`pack`](Self::pack).
    pub(super) fn unpack(packed: &[u8]) -> Option<Self> {
        let packed: &[u8; PACKED] = packed.try_into().ok()?;
        let cipher = *[Cipher::Aes128, Cipher::Aes256, Cipher::Chacha20].get(usize::from(packed[0]))?;
        let side = |bytes: &[u8]| {
            let (secret, rest) = bytes.split_first_chunk::<32>()?;
            let (iv, number) = rest.split_first_chunk::<IV>()?;
            let number = u64::from_le_bytes(number.try_into().ok()?);
            Some(Direction { secret: *secret, iv: *iv, number, key: cipher.key(secret)? })
        };
        let (rx, tx) = packed[2..].split_at((PACKED - 2) / 2);
        Some(Self { cipher, modern: packed[1] != 0, rx: side(rx)?, tx: side(tx)? })
    }

    /// True when the connection should end, because its keys have protected so many records.
    pub(super) fn is_worn(&self) -> bool {
        self.rx.number.max(self.tx.number) >= WORN
    }

    /// Bytes of the nonce in each record.
    fn explicit(&self) -> usize {
        if self.modern || self.cipher == Cipher::Chacha20 {
            0
        } else {
            EXPLICIT
        }
    }

    /// Opens a whole record where it lies; returns where its content is.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(Kind, Range<usize>), Fault> {
        let explicit = self.explicit();
        let sealed = record.len().checked_sub(HEADER + explicit + TAG).ok_or(Fault::BadRecordMac)?;
        let outer = record[0];
        let mut nonce = self.rx.nonce();
        let from = HEADER + explicit;
        nonce[IV - explicit..].copy_from_slice(&record[HEADER..from]);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let (head, body) = record.split_at_mut(from);
        if self.modern {
            if outer != Kind::Data.byte() {
                return Err(Fault::UnexpectedMessage);
            }
            let bound = Aad::from(&head[..HEADER]);
            self.rx.key.open_in_place(nonce, bound, body).map_err(|_| Fault::BadRecordMac)?;
        } else {
            let bound = Aad::from(self.rx.bound(outer, sealed));
            self.rx.key.open_in_place(nonce, bound, body).map_err(|_| Fault::BadRecordMac)?;
        }
        self.rx.number += 1;
        let (kind, length) = if self.modern {
            // The type stands behind the content, and padding behind it.
            let last = body[..sealed].iter().rposition(|&byte| byte != 0).ok_or(Fault::UnexpectedMessage)?;
            (Kind::of(body[last])?, last)
        } else {
            (Kind::of(outer)?, sealed)
        };
        if length > MOST_PLAIN {
            return Err(Fault::RecordOverflow);
        }
        Ok((kind, from..from + length))
    }

    /// Seals `parts`, one after the other, and appends the records to `out`.
    pub(super) fn seal(&mut self, kind: Kind, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), Fault> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        out.reserve(total + (total / MOST_PLAIN + 1) * (HEADER + EXPLICIT + 1 + TAG));
        let mut parts = parts.iter().copied();
        let mut rest = parts.next().unwrap_or_default();
        let mut left = total;
        while left > 0 {
            let length = left.min(MOST_PLAIN);
            left -= length;
            let start = out.len();
            out.resize(start + HEADER + self.explicit(), 0);
            let from = out.len();
            while out.len() < from + length {
                let taken = rest.len().min(from + length - out.len());
                out.extend_from_slice(&rest[..taken]);
                rest = &rest[taken..];
                if rest.is_empty() {
                    rest = parts.next().unwrap_or_default();
                }
            }
            self.seal_one(kind, out, start, from)?;
        }
        Ok(())
    }

    /// Makes a record of the content that stands in `out` behind `from`; its header is to stand at `start`.
    fn seal_one(&mut self, kind: Kind, out: &mut Vec<u8>, start: usize, from: usize) -> Result<(), Fault> {
        let nonce = self.tx.nonce();
        out[start + HEADER..from].copy_from_slice(&nonce[IV - (from - start - HEADER)..]);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let failed = |_| Fault::BadRecordMac;
        let tag = if self.modern {
            out.push(kind.byte());
            let head = header(Kind::Data.byte(), out.len() - from + TAG);
            out[start..start + HEADER].copy_from_slice(&head);
            self.tx
                .key
                .seal_in_place_separate_tag(nonce, Aad::from(head), &mut out[from..])
                .map_err(failed)?
        } else {
            let bound = self.tx.bound(kind.byte(), out.len() - from);
            let head = header(kind.byte(), out.len() - start - HEADER + TAG);
            out[start..start + HEADER].copy_from_slice(&head);
            self.tx
                .key
                .seal_in_place_separate_tag(nonce, Aad::from(bound), &mut out[from..])
                .map_err(failed)?
        };
        out.extend_from_slice(tag.as_ref());
        self.tx.number += 1;
        Ok(())
    }
}
