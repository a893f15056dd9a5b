//! What is wrong before any connection exists: in the configuration, a file, a certificate, an address.
//! Three parts for the person who reads it: what happened, why, what to do.

use std::fmt::{self, Write};

use protocol::escape::is_treacherous;
use serde::Serialize;

/// One finding of `check`, and the error of every command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// Stable id for scripts and the manual.
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) way_out: String,
}

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Replication does not or will not flow, or is not safe.
    Error,
    /// It works, and somebody should look at it.
    Warning,
}

impl Problem {
    pub(crate) fn new(
        id: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        way_out: impl Into<String>,
    ) -> Self {
        Self {
            id,
            severity: Severity::Error,
            what: what.into(),
            why: why.into(),
            way_out: way_out.into(),
        }
    }

    pub(crate) fn warning(self) -> Self {
        Self {
            severity: Severity::Warning,
            ..self
        }
    }

    pub(crate) fn into_error(self) -> Self {
        Self {
            severity: Severity::Error,
            ..self
        }
    }

    /// For the log, where one event is one line.
    pub(crate) fn one_line(&self) -> String {
        self.to_string().replace('\n', ";").replace("  ", " ")
    }

    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", Quoted(&self.what), self.id)?;
        if !self.why.is_empty() {
            write!(f, "\n  why: {}", Quoted(&self.why))?;
        }
        write!(f, "\n  do:  {}", Quoted(&self.way_out))
    }
}

/// Text that may hold words of others: what a program of PostgreSQL said, and through it the far server. It may have
/// lines, and plays no tricks on a terminal.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\n' | '\t' => f.write_char(c),
            c if is_treacherous(c) => write!(f, "{}", c.escape_unicode()),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_said_is_shown_and_does_nothing() {
        let said = "ERROR:  \u{1b}]0;x\u{7}\"ü\"\nHINT:\ttry \u{202e}it";
        let shown = Problem::new("V03", "it failed", said, "see there").to_string();
        assert_eq!(
            shown,
            "it failed [V03]\n  why: ERROR:  \\u{1b}]0;x\\u{7}\"ü\"\nHINT:\ttry \\u{202e}it\n  do:  see there"
        );
    }
}
