//! Facts about and settings of the process itself.

use std::io;
use std::time::Duration;

use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::stat::{umask, Mode};
use nix::time::{clock_gettime, ClockId};
use nix::unistd::{getegid, geteuid, initgroups, setgid, setgroups, setuid, Gid, Group, Uid, User};

/// Time since an arbitrary fixed point, the same for all processes of the machine and never set back.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Time since the Unix epoch; zero when the clock stands before it.
pub fn wall_clock() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// Processor time this process has used, in user and kernel mode together.
pub fn cpu_time() -> Duration {
    use nix::sys::resource::{getrusage, UsageWho};
    use nix::sys::time::TimeVal;
    let seconds = |time: TimeVal| {
        Duration::from_secs(time.tv_sec().cast_unsigned())
            + Duration::from_micros(time.tv_usec().cast_unsigned())
    };
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(Duration::ZERO, |usage| seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Resident memory of this process as percent of the memory of the machine; 0 when `/proc` cannot be read.
pub fn memory_percent() -> f64 {
    let total = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
    if total == 0 {
        return 0.0;
    }
    (resident_kib(std::process::id().cast_signed()) * 1024) as f64 / total as f64 * 100.0
}

/// Resident memory of a process in KiB; 0 when it cannot be looked at.
pub fn resident_kib(pid: i32) -> u64 {
    let read = || -> Option<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
        Some(pages * page.cast_unsigned() / 1024)
    };
    read().unwrap_or(0)
}

/// User this process acts as.
pub fn effective_uid() -> u32 {
    geteuid().as_raw()
}

/// User on the other side of a Unix socket.
pub fn peer_uid(stream: &std::os::unix::net::UnixStream) -> Option<u32> {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    getsockopt(stream, PeerCredentials).ok().map(|peer| peer.uid())
}

/// True when a process with this number exists.
pub fn exists(pid: i32) -> bool {
    pid > 0 && std::path::Path::new("/proc").join(pid.to_string()).exists()
}

/// Raises the soft limit of open files to the hard limit; returns the limit now in force.
pub fn raise_open_file_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Who the workers run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User to switch to; `None` keeps the current one.
    pub uid: Option<Uid>,
    /// Name belonging to `uid`, for the supplementary groups.
    pub user: Option<String>,
    /// Group to switch to; `None` keeps the current one.
    pub gid: Option<Gid>,
}

impl Identity {
    /// Looks up `user` and `group`, each a name or a number. A user without a group brings its own group.
    pub fn find(user: Option<&str>, group: Option<&str>) -> Result<Self, String> {
        let mut found = Self { uid: None, user: None, gid: None };
        if let Some(text) = user {
            let entry = match text.parse() {
                Ok(number) => User::from_uid(Uid::from_raw(number)),
                Err(_) => User::from_name(text),
            };
            match (entry.ok().flatten(), text.parse()) {
                (Some(entry), _) => {
                    found.uid = Some(entry.uid);
                    found.gid = Some(entry.gid);
                    found.user = Some(entry.name);
                }
                (None, Ok(number)) => found.uid = Some(Uid::from_raw(number)),
                (None, Err(_)) => return Err(format!("No such user: '{text}'")),
            }
        }
        if let Some(text) = group {
            found.gid = Some(match text.parse() {
                Ok(number) => Gid::from_raw(number),
                Err(_) => match Group::from_name(text).ok().flatten() {
                    Some(entry) => entry.gid,
                    None => return Err(format!("No such group: '{text}'")),
                },
            });
        }
        Ok(found)
    }

    /// Switches this process over: supplementary groups, then group, then user, then a check that it held.
    pub fn assume(&self) -> io::Result<()> {
        if let (Some(user), Some(gid)) = (&self.user, self.gid) {
            if geteuid().is_root() {
                let name = std::ffi::CString::new(user.as_str()).map_err(io::Error::other)?;
                initgroups(&name, gid)?;
            }
        }
        // Whoever has no name to look groups up by keeps none of the master's.
        if self.user.is_none() && (self.uid.is_some() || self.gid.is_some()) && geteuid().is_root() {
            setgroups(self.gid.as_slice())?;
        }
        if let Some(gid) = self.gid.filter(|&gid| gid != getegid()) {
            setgid(gid)?;
        }
        if let Some(uid) = self.uid.filter(|&uid| uid != geteuid()) {
            setuid(uid)?;
        }
        let held = self.uid.is_none_or(|uid| uid == geteuid()) && self.gid.is_none_or(|gid| gid == getegid());
        if held {
            Ok(())
        } else {
            Err(io::Error::other("the kernel kept another user or group"))
        }
    }
}

/// Runs `action` under another file creation mask and puts the old one back.
pub fn with_umask<T>(mask: u32, action: impl FnOnce() -> T) -> T {
    let before = umask(Mode::from_bits_truncate(mask));
    let done = action();
    umask(before);
    done
}

/// Names this process for `ps -o comm`, `top` and `/proc/<pid>/comm` (15 bytes are kept).
pub fn set_name(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
}
