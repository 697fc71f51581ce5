//! The `date` header, rendered once a second.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The text of one second.
#[derive(Debug, Default)]
pub struct DateCache {
    second: u64,
    text: String,
}

impl DateCache {
    /// `now` (time since the epoch) as an HTTP date.
    pub fn at(&mut self, now: Duration) -> &str {
        if self.text.is_empty() || self.second != now.as_secs() {
            self.second = now.as_secs();
            let shown: SystemTime = UNIX_EPOCH + Duration::from_secs(self.second);
            self.text = httpdate::fmt_http_date(shown);
        }
        &self.text
    }
}
