//! The postmaster of a data directory: by its postmaster.pid (documentation, 66.1), and by what /proc knows of the process
//! that this names. A crash leaves the file, and its number may be another process's by now.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Postmaster {
    pid: u32,
    /// Empty where it has not got so far yet.
    pub(super) port: String,
    /// Where a client on this host gets in; none where nobody does, or not yet.
    pub(super) host: Option<Host>,
}

/// What psql is told by `-h`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// The directory of a Unix socket.
    Socket(PathBuf),
    /// An address of this host.
    Address(String),
}

impl Postmaster {
    /// That of this data directory, whether it can be asked or not.
    pub(super) fn of(data: &Path) -> Option<Self> {
        let state = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let postmaster = Self::parse(&state)?;
        works_in(&postmaster.proc_file(""), data).then_some(postmaster)
    }

    /// Pid, data directory, time of the start, port, directory of the first socket, first address that it listens on.
    fn parse(state: &str) -> Option<Self> {
        let mut lines = state.lines().map(str::trim);
        // In single-user mode there is a minus before it.
        let pid = lines.next()?.parse::<i32>().ok()?.unsigned_abs();
        let port = lines.nth(2).unwrap_or_default().to_owned();
        let socket = lines.next().filter(|directory| !directory.is_empty());
        let address = lines.next().and_then(reached_at).map(Host::Address);
        let host = socket.map(|directory| Host::Socket(directory.into()));
        Some(Self {
            pid,
            port,
            host: host.or(address),
        })
    }

    /// A file of the process's in /proc.
    pub(super) fn proc_file(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(name)
    }
}

/// Where a client on this host finds who listens on this address. What a name leads to may be another host by now.
fn reached_at(address: &str) -> Option<String> {
    if address == "*" {
        return Some(Ipv4Addr::LOCALHOST.to_string());
    }
    if address == "localhost" {
        return Some(address.to_owned());
    }
    let address: IpAddr = address.parse().ok()?;
    let reached = match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    Some(reached.to_string())
}

/// Whether a process is of the user whose directory this is and works in it, as every server does (ChangeToDataDir in
/// miscinit.c).
fn works_in(process: &Path, data: &Path) -> bool {
    let Ok(directory) = fs::metadata(data) else {
        return false;
    };
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    if effective_uid(&status) != Some(directory.uid()) {
        return false;
    }
    match fs::metadata(process.join("cwd")) {
        Ok(there) => (there.dev(), there.ino()) == (directory.dev(), directory.ino()),
        // Not ours to see. One that has ended has none.
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}

fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_can_be_asked_is_read_from_its_file() {
        let socket = Host::Socket("/run/postgresql".into());
        let address = |address: &str| Some(Host::Address(address.to_owned()));
        for (lines, host) in [
            ("/run/postgresql\nlocalhost", Some(socket)),
            ("\nlocalhost", address("localhost")),
            ("\n*", address("127.0.0.1")),
            ("\n0.0.0.0", address("127.0.0.1")),
            ("\n::", address("::1")),
            ("\n192.0.2.7", address("192.0.2.7")),
            ("\ndb1.example.com", None),
            ("\n", None),
        ] {
            let state = format!("42\n/data\n1700000000\n5432\n{lines}\n 5432001 7\nready   \n");
            let found = Postmaster::parse(&state).unwrap();
            assert_eq!((found.pid, &*found.port), (42, "5432"));
            assert_eq!(found.host, host, "{lines}");
        }
        let single = Postmaster::parse("-42\n/data\n1700000000\n").unwrap();
        assert_eq!((single.pid, single.host), (42, None));
        assert_eq!(Postmaster::parse(""), None);
    }

    #[test]
    fn a_number_that_is_another_process_is_no_postmaster() {
        let place = tempfile::tempdir().unwrap();
        let note = |pid: u32| fs::write(place.path().join("postmaster.pid"), format!("{pid}\n"));
        // This process is of the same user, and works elsewhere.
        note(std::process::id()).unwrap();
        assert_eq!(Postmaster::of(place.path()), None);
        let mut child = std::process::Command::new("sleep");
        let mut child = child.arg("60").current_dir(place.path()).spawn().unwrap();
        note(child.id()).unwrap();
        assert!(Postmaster::of(place.path()).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Postmaster::of(place.path()), None);
    }
}
