//! ErrorResponse and SQLSTATE: how a refusal is told to a frontend.
//!
//! Follows "Error and Notice Message Fields" of the PostgreSQL manual. Decides nothing: a [`Refusal`] is
//! made where the reason is known, and becomes bytes here, bounded and free of control characters.

use std::fmt::{self, Write as _};

use crate::escape::is_treacherous;
use crate::message::{ERROR_RESPONSE_TAG, encode_message};

/// The longest message, detail or hint that is sent, in bytes. libpq takes an ErrorResponse of over 30,000 bytes
/// before authentication for one of protocol 2.0, so all three together stay far below.
const MAX_FIELD: usize = 2_000;

/// Why a connection is refused or ended, in the words its frontend will log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Refusal {
    /// The problem's id in `doctor`'s catalogue, like `P02`.
    pub id: &'static str,
    /// What the frontend's code looks at.
    pub sqlstate: SqlState,
    /// What was refused, for whom.
    pub message: String,
    /// Why: which rule, which field, which value.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal with a message alone.
    pub fn new(id: &'static str, sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self {
            id,
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// Adds why.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the way out.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The whole ErrorResponse, with severity FATAL.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(256);
        let mut field = |tag: u8, text: &str| {
            body.push(tag);
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        };
        field(b'S', "FATAL");
        field(b'V', "FATAL"); // the severity that is never translated, 9.6 and later
        field(b'C', self.sqlstate.as_str());
        let message = bounded(&self.message);
        field(b'M', &format!("pgtlsproxy: {message} [{}]", self.id));
        if let Some(detail) = &self.detail {
            field(b'D', &bounded(detail));
        }
        if let Some(hint) = &self.hint {
            field(b'H', &bounded(hint));
        }
        body.push(0);

        encode_message(ERROR_RESPONSE_TAG, &body)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.message, self.id)
    }
}

/// A SQLSTATE: five upper-case letters or digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// 08P01: what came is not the protocol.
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    /// 08006: the other side went away.
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    /// 0A000: the protocol's version or a request in it is not supported.
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    /// 22023: a parameter has a value that cannot be.
    pub const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    /// 28000: not allowed.
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// 53300: our own limit on sessions is reached.
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    /// 57P01: ended by an administrator; what a drain says.
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    /// 57P03: cannot be reached now. The only one on which libpq tries its next host.
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    /// 58000: an error of the system outside PostgreSQL.
    pub const SYSTEM_ERROR: Self = Self(*b"58000");
    /// XX000: a fault of our own.
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// Reads the five characters.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let state: [u8; 5] = text.try_into().ok()?;
        state
            .iter()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
            .then_some(Self(state))
    }

    /// The five characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII gets in, by `parse` or as a constant.
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Our own text, cut and with whatever could still end a field, break a line or turn a terminal escaped.
fn bounded(text: &str) -> String {
    let mut sent = String::with_capacity(text.len().min(MAX_FIELD));
    for c in text.chars() {
        if sent.len() >= MAX_FIELD {
            sent.push_str("...");
            break;
        }
        if is_treacherous(c) {
            // Writing to a String cannot fail.
            let _ = write!(sent, "{}", c.escape_unicode());
        } else {
            sent.push(c);
        }
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal() -> Refusal {
        Refusal::new("P01", SqlState::INVALID_AUTHORIZATION, "no rule for dns:a")
            .detail("None of 2 rules matches.")
            .hint("Add one.")
    }

    #[test]
    fn error_response_has_the_fields_that_a_standby_logs() {
        let fields: &[u8] = b"SFATAL\0VFATAL\0C28000\0Mpgtlsproxy: no rule for dns:a [P01]\0DNone of 2 rules matches.\0HAdd one.\0\0";
        let length = u32::try_from(fields.len() + 4).unwrap();
        assert_eq!(
            refusal().encode(),
            [b"E".as_slice(), &length.to_be_bytes(), fields].concat()
        );
    }

    #[test]
    fn a_text_with_nul_or_newline_stays_one_field_of_one_line() {
        let mut refusal = refusal();
        refusal.hint = Some("a\0b\nc\u{202e}".into());
        let sent = refusal.encode();
        assert!(sent.ends_with(b"Ha\\u{0}b\\u{a}c\\u{202e}\0\0"));
        assert_eq!(sent[5..].iter().filter(|byte| **byte == 0).count(), 7);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let sent = Refusal::new("P01", SqlState::INTERNAL_ERROR, "\u{e4}".repeat(50_000))
            .detail("d".repeat(50_000))
            .hint("\0".repeat(50_000))
            .encode();
        assert!(sent.len() < 7_000);
        assert!(std::str::from_utf8(&sent[5..]).is_ok());
    }

    #[test]
    fn sqlstate_is_five_capitals_or_digits() {
        assert_eq!(
            SqlState::parse(b"57P03"),
            Some(SqlState::CANNOT_CONNECT_NOW)
        );
        assert_eq!(SqlState::CANNOT_CONNECT_NOW.to_string(), "57P03");
        for wrong in [b"57p03".as_slice(), b"57P0", b"57P033", b"57P0\xff", b""] {
            assert_eq!(SqlState::parse(wrong), None);
        }
    }
}
