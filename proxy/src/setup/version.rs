//! What each PostgreSQL major from 9.1 to 18 wants: names of settings and files, and what its programs know.
//! One table of names and values, each row with its source; what only does something otherwise in another version compares
//! majors where it does it. Majors 10 to 18 are run by the tests; of 9.1 to 9.6 no servers can be had, so their rows stand
//! on the documentation alone.

mod table; // the rows

use std::fmt;
use std::str::FromStr;

pub(crate) use table::{TABLE, Thing};

/// A major version: 9.1 is 901, 18 is 1800, so that they compare as they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Major(u16);

pub(crate) const V9_1: Major = Major(901);
pub(crate) const V9_2: Major = Major(902);
pub(crate) const V9_3: Major = Major(903);
pub(crate) const V9_4: Major = Major(904);
pub(crate) const V9_5: Major = Major(905);
pub(crate) const V9_6: Major = Major(906);
pub(crate) const V10: Major = Major(1000);
pub(crate) const V11: Major = Major(1100);
pub(crate) const V12: Major = Major(1200);
pub(crate) const V13: Major = Major(1300);
pub(crate) const V14: Major = Major(1400);
pub(crate) const V15: Major = Major(1500);
pub(crate) const V16: Major = Major(1600);
pub(crate) const V17: Major = Major(1700);
pub(crate) const V18: Major = Major(1800);

/// Every major that `setup` knows.
pub(crate) const ALL: [Major; 15] = [
    V9_1, V9_2, V9_3, V9_4, V9_5, V9_6, V10, V11, V12, V13, V14, V15, V16, V17, V18,
];

impl Major {
    /// From `server_version_num`: 90603 is 9.6, 150004 is 15.
    pub(crate) fn of_number(number: u32) -> Option<Self> {
        let major = match number {
            90_000..100_000 => 900 + (number / 100) % 100,
            _ => number / 10_000 * 100,
        };
        u16::try_from(major).ok().map(Self)
    }

    /// Whether `setup` knows it. Any other is refused.
    pub(crate) fn is_known(self) -> bool {
        ALL.contains(&self)
    }
}

/// As `PG_VERSION` and Debian's directories spell it (`9.6`, `15`); what follows the major is left out
/// (`15.18`, `9.6.24`, `18beta1`).
impl FromStr for Major {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no version of PostgreSQL");
        let mut parts = text.trim().split('.');
        let mut number = || -> Option<u16> {
            let part = parts.next()?;
            let end = part.find(|c: char| !c.is_ascii_digit());
            part.get(..end.unwrap_or(part.len()))?.parse().ok()
        };
        let first = number().ok_or_else(wrong)?;
        let major = match first {
            9 => 900 + number().filter(|minor| *minor < 100).ok_or_else(wrong)?,
            10..=99 => first * 100,
            _ => return Err(wrong()),
        };
        Ok(Self(major))
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            901..1000 => write!(f, "9.{}", self.0 % 100),
            _ => write!(f, "{}", self.0 / 100),
        }
    }
}

/// What this major wants of a thing; none where it has no such thing.
pub(crate) fn wants(major: Major, thing: Thing) -> Option<&'static str> {
    TABLE
        .iter()
        .rfind(|row| row.thing == thing && row.since <= major)
        .and_then(|row| row.value)
}

/// The first major that has it.
pub(crate) fn since(thing: Thing) -> Option<Major> {
    let first = TABLE.iter().find(|row| row.thing == thing);
    first.map(|row| row.since)
}

/// Whether this major has such a thing at all.
pub(crate) fn has(major: Major, thing: Thing) -> bool {
    wants(major, thing).is_some()
}

/// Where a base backup comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackupSource<'a> {
    /// The directory of a Unix socket, or a host.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) user: &'a str,
    pub(crate) slot: Option<&'a str>,
}

/// The arguments of this major's pg_basebackup. Options that it does not know are left out, and it never writes the
/// standby's configuration (`-R`): what it writes differs with every libpq, and holds the caller's own passfile.
pub(crate) fn basebackup_arguments(
    program: Major,
    server: Major,
    source: BackupSource<'_>,
    target: &str,
) -> Vec<String> {
    let mut arguments: Vec<String> = ["-D", target, "-c", "fast", "-P", "-v", "-w"]
        .map(str::to_owned)
        .to_vec();
    let port = source.port.to_string();
    arguments.extend(["-h", source.host, "-p", &port, "-U", source.user].map(str::to_owned));
    // pg_basebackup of 9.3 and later, Notes: streaming WAL beside the backup works with servers of 9.3 and later.
    let streams = program >= V9_2 && (server >= V9_3 || program == server);
    if program < V9_2 {
        arguments.push("-x".to_owned());
    } else {
        let method = if streams { "stream" } else { "fetch" };
        arguments.extend(["-X", method].map(str::to_owned));
    }
    if let Some(slot) = source.slot
        && streams
        && has(program, Thing::BackupSlot)
        && has(server, Thing::Slots)
    {
        arguments.extend(["-S", slot].map(str::to_owned));
    }
    arguments
}

#[cfg(test)]
mod tests;
