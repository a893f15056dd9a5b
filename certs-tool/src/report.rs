//! Failures, faults and dates in words.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use protocol::certificate::Fault;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// Why something was not done: what happened, why, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    what: String,
    why: String,
    way_out: String,
}

impl Failure {
    /// All three parts; an empty one is left out when shown.
    pub fn new(
        what: impl Into<String>,
        why: impl Into<String>,
        way_out: impl Into<String>,
    ) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
            way_out: way_out.into(),
        }
    }

    /// A file that could not be read or written.
    pub(crate) fn file(verb: &str, path: &Path, error: &io::Error) -> Self {
        let way_out = match error.kind() {
            io::ErrorKind::NotFound => "check the path; --dir says where the CA is",
            io::ErrorKind::PermissionDenied => "run it as the user who owns the directory",
            io::ErrorKind::StorageFull => "make room on the disk; nothing was left half-written",
            _ => "",
        };
        Self::new(
            format!("cannot {verb} {}", path.display()),
            error.to_string(),
            way_out,
        )
    }

    /// What happened.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Why.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What to do.
    pub fn way_out(&self) -> &str {
        &self.way_out
    }
}

/// Three short lines at most.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for part in [&self.why, &self.way_out]
            .into_iter()
            .filter(|part| !part.is_empty())
        {
            write!(f, "\n  {part}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// A second of the calendar, in UTC: `2026-11-24T10:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Date(OffsetDateTime);

impl Date {
    /// The current second.
    pub fn now() -> Self {
        Self::from_unix(OffsetDateTime::now_utc().unix_timestamp())
    }

    /// From seconds since 1970; what no calendar can say becomes its nearest end.
    pub fn from_unix(seconds: i64) -> Self {
        // RFC 3339 and X.509 end with the year 9999, RFC 5280 begins with 1950 in practice.
        let bounded = seconds.clamp(-2_208_988_800, 253_402_300_799);
        Self(OffsetDateTime::from_unix_timestamp(bounded).unwrap_or(OffsetDateTime::UNIX_EPOCH))
    }

    /// Seconds since 1970.
    pub fn unix(self) -> i64 {
        self.0.unix_timestamp()
    }

    /// So many seconds later, or earlier.
    pub(crate) fn plus(self, seconds: i64) -> Self {
        Self::from_unix(self.unix().saturating_add(seconds))
    }

    pub(crate) fn calendar(self) -> OffsetDateTime {
        self.0
    }

    /// The day alone: `2026-11-24`.
    pub fn day(self) -> String {
        self.0.date().to_string()
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl From<Date> for String {
    fn from(date: Date) -> Self {
        date.to_string()
    }
}

impl TryFrom<String> for Date {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Date {
    type Err = String;

    /// `2026-11-24` (its first second), `2026-11-24T10:00:00Z`, or `@` and seconds since 1970.
    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = if let Some(unix) = text.strip_prefix('@') {
            unix.parse().ok()
        } else if let Ok(day) = time::Date::parse(text, format_description!("[year]-[month]-[day]"))
        {
            Some(day.midnight().assume_utc().unix_timestamp())
        } else {
            OffsetDateTime::parse(text, &Rfc3339)
                .ok()
                .map(OffsetDateTime::unix_timestamp)
        };
        let date = seconds
            .map(Self::from_unix)
            .filter(|date| Some(date.unix()) == seconds);
        date.ok_or_else(|| {
            format!("`{text}` is no date: 2026-11-24, 2026-11-24T10:00:00Z or @1796119200")
        })
    }
}

/// Something wrong with what was looked at, as it is shown and as `--json` gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The fault's name, where it has one: `T01`.
    pub id: Option<&'static str>,
    /// Whether it works all the same.
    pub warning: bool,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub way_out: String,
}

impl Problem {
    /// One that has no name of its own.
    pub(crate) fn new(message: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self {
            id: None,
            warning: false,
            message: message.into(),
            way_out: way_out.into(),
        }
    }
}

impl From<&Fault> for Problem {
    fn from(fault: &Fault) -> Self {
        Self {
            id: Some(fault.id()),
            warning: fault.is_warning(),
            message: fault.to_string(),
            way_out: fault.way_out(),
        }
    }
}

/// Two lines: `problem: what [T01]`, and the way out below it.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}",
            if self.warning { "warning" } else { "problem" },
            self.message
        )?;
        if let Some(id) = self.id {
            write!(f, " [{id}]")?;
        }
        if self.way_out.is_empty() {
            Ok(())
        } else {
            write!(f, "\n  {}", self.way_out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_three_ways_and_written_in_one() {
        for text in [
            "2026-11-24T00:00:00Z",
            "2026-11-24",
            "@1795478400",
            "2026-11-24T01:00:00+01:00",
        ] {
            assert_eq!(
                text.parse::<Date>().unwrap().to_string(),
                "2026-11-24T00:00:00Z",
                "{text}"
            );
        }
        for text in [
            "",
            "yesterday",
            "2026-13-01",
            "@",
            "@99999999999999999999",
            "@-99999999999",
            "24.11.2026",
        ] {
            assert!(text.parse::<Date>().is_err(), "{text}");
        }
        assert_eq!(
            Date::from_unix(i64::MAX).to_string(),
            "9999-12-31T23:59:59Z"
        );
    }

    #[test]
    fn a_failure_leaves_out_what_it_does_not_know() {
        assert_eq!(Failure::new("a", "", "c").to_string(), "a\n  c");
        assert_eq!(Failure::new("a", "b", "c").to_string(), "a\n  b\n  c");
    }
}
