//! The one line that an invitation is: where to go, which CA to expect, a name, a secret, an end. It is complete in
//! itself, and damage is told apart from a wrong secret before anything is sent.
//!
//! `pgtlsproxy1-` and, in URL-safe Base64 (RFC 4648, 5): the length of all, the end (Unix time), the secret, the CA
//! certificate's SHA-256, the name, the server's name, the endpoints, and four bytes of SHA-256 over it all.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64ct::{Base64UrlUnpadded, Encoding};
use protocol::escape::escape;
use protocol::identity::Fingerprint;
use zeroize::Zeroizing;

use super::ANOTHER;
use crate::net::Target;
use crate::problem::Problem;

const PREFIX: &str = "pgtlsproxy1-";
/// What every version begins with.
const FAMILY: &str = "pgtlsproxy";
const SECRET: usize = 32;
const CHECKSUM: usize = 4;
/// The longest token, in bytes of text.
pub(super) const LONGEST: usize = 2048;

/// An invitation in the hands of the one who is invited.
#[derive(PartialEq, Eq)]
pub(super) struct Token {
    /// The new node's name.
    pub(super) name: String,
    /// Where the inviting node is reached; the first that answers is taken.
    pub(super) endpoints: Vec<Target>,
    /// The name in its certificate; None: each endpoint's host.
    pub(super) server_name: Option<String>,
    /// The certificate of its CA.
    pub(super) pin: Fingerprint,
    /// The last second (Unix time).
    pub(super) expires: i64,
    pub(super) secret: Secret,
}

/// 256 random bits that prove an invitation. Wiped when dropped, and never shown but in the token.
#[derive(PartialEq, Eq)]
pub(super) struct Secret(Zeroizing<[u8; SECRET]>);

impl Secret {
    pub(super) fn random() -> Result<Self, Problem> {
        let mut bytes = Zeroizing::new([0; SECRET]);
        rand::fill(&mut *bytes).map_err(|_| {
            Problem::new(
                "E21",
                "no secret can be made",
                "the system gives no random bytes",
                "try again",
            )
        })?;
        Ok(Self(bytes))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &*self.0
    }
}

/// Why a line is no token that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenError {
    NotAToken,
    OtherVersion,
    CutShort,
    Changed,
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::NotAToken => Self::new(
                "E01",
                "this is no token",
                format!("a token is one line that begins with {PREFIX}"),
                format!("copy the line that `pgtlsproxy invite` printed, or {ANOTHER}"),
            ),
            TokenError::OtherVersion => Self::new(
                "E02",
                "this token is of another version",
                format!("this program knows those that begin with {PREFIX}"),
                "use a pgtlsproxy of the same version on both hosts",
            ),
            TokenError::CutShort => Self::new(
                "E03",
                "this token is damaged: a part is missing",
                "it is shorter than it says of itself; nothing has been sent",
                format!("copy the whole line, or {ANOTHER}"),
            ),
            TokenError::Changed => Self::new(
                "E04",
                "this token is damaged: it was changed on its way",
                "its checksum does not fit; nothing has been sent",
                format!("copy it again, or {ANOTHER}"),
            ),
        }
    }
}

impl Token {
    /// The line.
    pub(super) fn encode(&self) -> Result<Zeroizing<String>, Problem> {
        let mut body = Zeroizing::new(Vec::with_capacity(LONGEST));
        // The length comes last, into its place.
        body.extend([0; 2]);
        body.extend(self.expires.to_be_bytes());
        body.extend(self.secret.as_bytes());
        body.extend(self.pin.as_bytes());
        let endpoints: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
        let server_name = self.server_name.as_deref().unwrap_or_default();
        let texts = [self.name.as_str(), server_name];
        for text in texts
            .into_iter()
            .chain(endpoints.iter().map(String::as_str))
        {
            let length = u8::try_from(text.len()).map_err(|_| too_long(text))?;
            body.push(length);
            body.extend(text.as_bytes());
        }
        let length = body.len() + CHECKSUM;
        let head = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
        if let Some(place) = body.first_chunk_mut() {
            *place = head;
        }
        let sum = digest(&SHA256, &body);
        body.extend(sum.as_ref().iter().take(CHECKSUM));
        let mut line = Zeroizing::new(PREFIX.to_owned());
        line.push_str(&Zeroizing::new(Base64UrlUnpadded::encode_string(&body)));
        if line.len() > LONGEST {
            return Err(too_long("the list of endpoints"));
        }
        Ok(line)
    }

    /// Reads the line. Whether its time is over is for the caller, who has a clock.
    pub(super) fn parse(line: &str) -> Result<Self, TokenError> {
        let line = line.trim();
        let text = match line.strip_prefix(PREFIX) {
            Some(text) => text,
            None if PREFIX.starts_with(line) && !line.is_empty() => {
                return Err(TokenError::CutShort);
            }
            None => {
                return Err(
                    match line
                        .strip_prefix(FAMILY)
                        .and_then(|rest| rest.split_once('-'))
                    {
                        Some((version, _)) if version.bytes().all(|byte| byte.is_ascii_digit()) => {
                            TokenError::OtherVersion
                        }
                        _ => TokenError::NotAToken,
                    },
                );
            }
        };
        let body = decode(text)?;
        let (head, _) = body.split_first_chunk().ok_or(TokenError::CutShort)?;
        let length = usize::from(u16::from_be_bytes(*head));
        let Some((content, sum)) = body.split_last_chunk::<CHECKSUM>() else {
            return Err(TokenError::CutShort);
        };
        let fits = digest(&SHA256, content).as_ref().starts_with(sum);
        match (fits, body.len() < length) {
            (true, _) => {}
            (false, true) => return Err(TokenError::CutShort),
            (false, false) => return Err(TokenError::Changed),
        }
        parse_content(content).ok_or(TokenError::Changed)
    }
}

/// A cut may leave a lone last character, or bits that belong to the next; what else is no Base64 was changed.
fn decode(text: &str) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if text.len() > LONGEST || !text.bytes().all(known) {
        return Err(TokenError::Changed);
    }
    let whole = |text: &str| Base64UrlUnpadded::decode_vec(text).map(Zeroizing::new);
    if let Ok(body) = whole(text) {
        return Ok(body);
    }
    // As far as whole groups go, to see whether the beginning promises more.
    let groups = text.get(..text.len() / 4 * 4).unwrap_or_default();
    let body = whole(groups).map_err(|_| TokenError::Changed)?;
    let promised = body
        .first_chunk()
        .map(|head| usize::from(u16::from_be_bytes(*head)));
    let room = text.len() * 3 / 4;
    Err(match promised {
        Some(length) if length <= room => TokenError::Changed,
        _ => TokenError::CutShort,
    })
}

fn parse_content(content: &[u8]) -> Option<Token> {
    let (_, rest) = content.split_first_chunk::<2>()?;
    let (expires, rest) = rest.split_first_chunk::<8>()?;
    let (secret, rest) = rest.split_first_chunk::<SECRET>()?;
    let (pin, mut rest) = rest.split_first_chunk::<32>()?;
    let mut texts = Vec::new();
    while let Some((length, after)) = rest.split_first() {
        let (text, after) = after.split_at_checked(usize::from(*length))?;
        texts.push(std::str::from_utf8(text).ok()?.to_owned());
        rest = after;
    }
    let mut texts = texts.into_iter();
    let (name, server_name) = (texts.next()?, texts.next()?);
    let endpoints: Vec<Target> = texts.map(|text| text.parse().ok()).collect::<Option<_>>()?;
    (!endpoints.is_empty()).then_some(())?;
    Some(Token {
        name,
        endpoints,
        server_name: (!server_name.is_empty()).then_some(server_name),
        pin: Fingerprint::from(*pin),
        expires: i64::from_be_bytes(*expires),
        secret: Secret(Zeroizing::new(*secret)),
    })
}

fn too_long(text: &str) -> Problem {
    Problem::new(
        "E22",
        "the token would be too long",
        format!("{} does not fit into it", escape(text)),
        "give fewer or shorter names with --public",
    )
}

/// Without the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            name: "standby1".to_owned(),
            endpoints: vec![
                "db1.example.com:5443".parse().unwrap(),
                "[::1]:5443".parse().unwrap(),
            ],
            server_name: Some("db1.example.com".to_owned()),
            pin: "ab".repeat(32).parse().unwrap(),
            expires: 1_800_000_000,
            secret: Secret::random().unwrap(),
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let token = token();
        let line = token.encode().unwrap();
        assert!(line.len() < 300, "{}", line.len());
        assert_eq!(Token::parse(&line).unwrap(), token);
        assert_eq!(Token::parse(&format!(" {}\n", *line)).unwrap(), token);
    }

    #[test]
    fn a_token_cut_short_anywhere_says_so() {
        let line = token().encode().unwrap();
        for length in 1..line.len() {
            assert_eq!(
                Token::parse(&line[..length]),
                Err(TokenError::CutShort),
                "{length}"
            );
        }
    }

    #[test]
    fn a_token_with_any_character_changed_is_damaged() {
        let line = token().encode().unwrap();
        for at in PREFIX.len()..line.len() {
            for other in ['A', 'b', '7', '-', '_', '=', 'ü', ' '] {
                let mut changed: Vec<char> = line.chars().collect();
                if changed[at] == other {
                    continue;
                }
                changed[at] = other;
                let changed: String = changed.into_iter().collect();
                let error = Token::parse(&changed).unwrap_err();
                // A changed length may promise more than there is.
                assert!(
                    matches!(error, TokenError::Changed | TokenError::CutShort),
                    "{at} {other}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_token_is_told_apart() {
        for (line, error) in [
            ("", TokenError::NotAToken),
            ("standby1", TokenError::NotAToken),
            ("pgtlsproxy2-AAAA", TokenError::OtherVersion),
            ("pgtlsproxy-AAAA", TokenError::OtherVersion),
        ] {
            assert_eq!(Token::parse(line), Err(error), "{line}");
        }
    }
}
