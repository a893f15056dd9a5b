//! What a CA has issued and revoked: `ledger.jsonl`, one event a line, only ever added to.
//!
//! It is rewritten whole and renamed, so that it is never half a line, and it is locked by a file of its own
//! (`.lock`) whose inode stays the same; who only reads needs no lock.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use protocol::escape::escape;
use protocol::identity::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::report::{Date, Failure};
use crate::store::{self, Existing, NewFile, Readers};

/// The ledger's name in the CA's directory.
pub const LEDGER: &str = "ledger.jsonl";

const LOCK: &str = ".lock";

/// One thing that a CA did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it was.
    pub event: Event,
    /// When.
    pub at: Date,
    /// The CA: the identifier of its key, in hexadecimal.
    pub ca: String,
    /// The number of the CRL that was written with it.
    pub crl: u64,
    /// The certificate, where it is about one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Record>,
}

/// What a CA does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// The CA itself was made.
    Authority,
    /// A certificate was issued, with a key made here.
    Issued,
    /// A certificate was issued for a request.
    Signed,
    /// As [`Event::Signed`], for a node that was invited, or that renews what it got so.
    Joined,
    /// A certificate was revoked.
    Revoked,
    /// The CRL was written anew.
    Crl,
    /// The CA was dropped: from now on no node shall trust it.
    Dropped,
}

impl Event {
    /// Whether a certificate was made for a request, so that its key is elsewhere.
    pub(crate) fn is_by_request(self) -> bool {
        matches!(self, Self::Signed | Self::Joined)
    }
}

/// What the ledger keeps of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The node's name.
    pub name: String,
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// Its names, as `dns:`, `ip:` and `uri:`.
    pub names: Vec<String>,
    /// The first second at which it is valid.
    pub not_before: Date,
    /// The last one.
    pub not_after: Date,
    /// SHA-256 of the certificate.
    pub sha256: String,
}

/// A certificate of the ledger and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Issued {
    /// The certificate.
    #[serde(flatten)]
    pub record: Record,
    /// The CA that signed it.
    pub ca: String,
    /// How: with a key made here, or for a request.
    #[serde(skip)]
    pub event: Event,
    /// When it was revoked.
    pub revoked: Option<Date>,
    /// When its CA was dropped.
    pub dropped: Option<Date>,
}

impl Issued {
    /// Whether a peer could take it: its time is not over, it is not revoked, its CA not dropped.
    pub fn counts(&self, now: Date) -> bool {
        self.revoked.is_none() && self.dropped.is_none() && now <= self.record.not_after
    }
}

/// The ledger, as it was when it was read.
#[derive(Debug, Default)]
pub struct Ledger {
    text: String,
    entries: Vec<Entry>,
}

impl Ledger {
    /// Reads the ledger of this directory; one that does not exist yet is empty.
    pub fn read(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(LEDGER);
        let damaged = |line: usize, why: String| {
            Failure::new(
                format!("{} is damaged in line {line}", path.display()),
                escape(&why),
                "put a backup of it in its place; without it nothing is issued or revoked",
            )
        };
        let bytes = match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            _ => store::read(&path)?,
        };
        Self::parse(&bytes, damaged)
    }

    /// Reads a ledger from bytes; `damaged` words what is wrong with a line.
    pub(crate) fn parse(
        bytes: &[u8],
        damaged: impl Fn(usize, String) -> Failure,
    ) -> Result<Self, Failure> {
        let text =
            String::from_utf8(bytes.to_vec()).map_err(|error| damaged(0, error.to_string()))?;
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            entries.push(
                serde_json::from_str(line)
                    .map_err(|error| damaged(index + 1, error.to_string()))?,
            );
        }
        Ok(Self { text, entries })
    }

    /// Everything in it, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Every certificate that was issued, oldest first.
    pub fn issued(&self) -> Vec<Issued> {
        let issued = self
            .entries
            .iter()
            .filter(|entry| entry.event == Event::Issued || entry.event.is_by_request());
        let with_state = issued.filter_map(|entry| {
            let record = entry.certificate.clone()?;
            let revoked = self.revocation(&entry.ca, &record.serial);
            Some(Issued {
                record,
                ca: entry.ca.clone(),
                event: entry.event,
                revoked,
                dropped: self.dropped(&entry.ca),
            })
        });
        with_state.collect()
    }

    /// The last certificate of each name of those that count now: who has one of this CA.
    pub fn counting(&self, now: Date) -> Vec<Issued> {
        newest_of(
            self.issued()
                .into_iter()
                .filter(|issued| issued.counts(now)),
        )
    }

    /// The last certificate of each node, in the order of the nodes' first ones.
    pub fn newest(&self) -> Vec<Issued> {
        newest_of(self.issued())
    }

    /// When this CA was dropped, if it was.
    pub(crate) fn dropped(&self, ca: &str) -> Option<Date> {
        let dropped = self
            .entries
            .iter()
            .find(|entry| entry.event == Event::Dropped && entry.ca == ca);
        dropped.map(|entry| entry.at)
    }

    /// The certificates of the CAs that were dropped, in the order in which they were made.
    pub(crate) fn dropped_authorities(&self) -> Vec<Fingerprint> {
        let made = self
            .entries
            .iter()
            .filter(|entry| entry.event == Event::Authority && self.dropped(&entry.ca).is_some());
        made.filter_map(|entry| entry.certificate.as_ref()?.sha256.parse().ok())
            .collect()
    }

    /// How many CAs were made before this one; `None` for one that is not in it.
    pub(crate) fn age_of_authority(&self, ca: &str) -> Option<usize> {
        self.entries
            .iter()
            .filter(|entry| entry.event == Event::Authority)
            .position(|entry| entry.ca == ca)
    }

    /// The serial numbers that this CA has revoked, each with its moment.
    pub(crate) fn revoked_by(&self, ca: &str) -> Vec<(&str, Date)> {
        let mut revoked: Vec<(&str, Date)> = Vec::new();
        for entry in &self.entries {
            if let (Event::Revoked, Some(record)) = (entry.event, &entry.certificate)
                && entry.ca == ca
                && !revoked.iter().any(|(serial, _)| *serial == record.serial)
            {
                revoked.push((&record.serial, entry.at));
            }
        }
        revoked
    }

    fn revocation(&self, ca: &str, serial: &str) -> Option<Date> {
        let revoked = self.entries.iter().find(|entry| {
            let same = entry
                .certificate
                .as_ref()
                .is_some_and(|record| record.serial == serial);
            entry.event == Event::Revoked && entry.ca == ca && same
        });
        revoked.map(|entry| entry.at)
    }

    /// The highest CRL number that this CA has given out; 0 if none.
    pub(crate) fn crl_number(&self, ca: &str) -> u64 {
        self.entries
            .iter()
            .filter(|entry| entry.ca == ca)
            .map(|entry| entry.crl)
            .max()
            .unwrap_or(0)
    }
}

/// The last of each name, in the order of the names' first ones.
fn newest_of(issued: impl IntoIterator<Item = Issued>) -> Vec<Issued> {
    let mut newest: Vec<Issued> = Vec::new();
    for issued in issued {
        let same = newest
            .iter_mut()
            .find(|known| known.record.name == issued.record.name);
        match same {
            Some(known) => *known = issued,
            None => newest.push(issued),
        }
    }
    newest
}

/// The ledger while nobody else can change it.
pub(crate) struct LockedLedger {
    ledger: Ledger,
    path: PathBuf,
    _lock: Flock<File>,
}

impl LockedLedger {
    /// Waits until no other process changes this directory, then reads.
    pub(crate) fn open(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(|error| Failure::file("open", &path, &error))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| Failure::file("lock", &path, &errno.into()))?;
        Ok(Self {
            ledger: Ledger::read(directory)?,
            path: directory.join(LEDGER),
            _lock: lock,
        })
    }

    /// Adds these events, all or none of them.
    pub(crate) fn add(&mut self, entries: Vec<Entry>) -> Result<(), Failure> {
        let mut text = self.ledger.text.clone();
        for entry in &entries {
            let line = serde_json::to_string(entry)
                .map_err(|error| Failure::new("cannot write the ledger", error.to_string(), ""))?;
            text.push_str(&line);
            text.push('\n');
        }
        let file = NewFile {
            path: self.path.clone(),
            content: text.as_bytes(),
            readers: Readers::Everybody,
        };
        store::write_all(&[file], Existing::Replace)?;
        self.ledger.text = text;
        self.ledger.entries.extend(entries);
        Ok(())
    }
}

impl std::ops::Deref for LockedLedger {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.ledger
    }
}
