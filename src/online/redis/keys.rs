//! Under which key and fields Redis knows an entity's features, and the commands that ask for them.

use super::resp::{write_bulk, write_header};
use crate::feature::plan::ViewRead;

/// MurmurHash3, 32 bits, x86 variant, seed 0.
pub fn murmur3(bytes: &[u8]) -> u32 {
    let mix = |word: u32| word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let mut hash = 0_u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        hash ^= mix(u32::from_le_bytes(*word));
        hash = hash.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        hash ^= mix(u32::from_le_bytes(last));
    }
    hash ^= bytes.len() as u32;
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// Field of a feature: the hash of `<view>:<feature>` in little-endian order.
pub fn field(view: &str, feature: &str) -> [u8; 4] {
    murmur3(format!("{view}:{feature}").as_bytes()).to_le_bytes()
}

/// Field of a view's event time.
pub fn time_field(view: &str) -> String {
    format!("_ts:{view}")
}

/// Everything of a view's `HMGET` behind the key: the fields of its features, then that of its event time.
pub fn fields(view: &ViewRead) -> Box<[u8]> {
    let mut out = Vec::new();
    for feature in &view.features {
        write_bulk(&mut out, &field(&view.stored_name, feature));
    }
    write_bulk(&mut out, time_field(&view.stored_name).as_bytes());
    out.into()
}

/// Appends `HMGET <entity key><project> <fields>`; `features` fields besides the time's.
#[inline]
pub fn write_hmget(out: &mut Vec<u8>, key: &[u8], project: &[u8], features: usize, fields: &[u8]) {
    write_header(out, b'*', features + 3);
    out.extend_from_slice(b"$5\r\nHMGET\r\n");
    write_header(out, b'$', key.len() + project.len());
    out.extend_from_slice(key);
    out.extend_from_slice(project);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(fields);
}

/// Slot of a key in a cluster: CRC16 (XMODEM) of the key, or of what its first braces enclose.
pub fn slot(key: &[u8]) -> u16 {
    let tagged = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let length = key[open + 1..].iter().position(|&byte| byte == b'}')?;
        (length > 0).then(|| &key[open + 1..open + 1 + length])
    });
    crc16(tagged.unwrap_or(key)) % 16384
}

const CRC: [u16; 256] = {
    let mut table = [0_u16; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 0x8000 == 0 { value << 1 } else { (value << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
};

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| (crc << 8) ^ CRC[usize::from((crc >> 8) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_the_recorded_hashes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/storage/murmur3.jsonl");
        let mut seen = 0;
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            let hash = murmur3(case["input"].as_str().unwrap().as_bytes());
            assert_eq!(u64::from(hash), case["hash_u32"].as_u64().unwrap(), "{case}");
            seen += 1;
        }
        assert!(seen > 20, "{seen}");
        assert_eq!(field("store_daily", "sales"), [0x22, 0x6b, 0x4e, 0x2c]);
    }

    #[test]
    fn slots_are_those_of_the_redis_crate() {
        use redis::cluster_routing::Slot;
        for key in
            [&b"123456789"[..], b"{user1000}.following", b"foo{}{bar}", b"foo{{bar}}zap", b"", b"a{b", b"{}x"]
        {
            assert_eq!(Slot::new(slot(key)), Some(Slot::for_key(key)), "{key:?}");
        }
        assert_eq!(crc16(b"123456789"), 0x31c3);
    }
}
