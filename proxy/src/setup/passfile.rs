//! libpq's password file (documentation, 34.16): `host:port:database:user:password`, one a line. `setup` writes one of its
//! own, mode 0600, owned by the server's OS user: libpq passes over any other in silence.

use std::num::NonZeroU32;

use aws_lc_rs::pbkdf2;
use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::problem::Problem;

/// The name of our own, in the node's directory.
pub(super) const NAME: &str = "pgpass";

/// So that whoever reads the journal cannot try passwords fast; some 20 ms each.
const ROUNDS: NonZeroU32 = match NonZeroU32::new(100_000) {
    Some(rounds) => rounds,
    None => NonZeroU32::MIN,
};

/// Whose password it is, and where it is given. `*` fits everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// As it stands in the connection string: the directory of a Unix socket, or a host.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) user: &'a str,
    pub(crate) password: &'a str,
}

/// One line, for every database: a walreceiver asks for `replication`, slot sync for a real one.
pub(crate) fn line(entry: Entry<'_>) -> Result<Zeroizing<String>, Problem> {
    let fields = [entry.host, entry.user, entry.password];
    if fields
        .iter()
        .any(|field| field.contains(['\n', '\r', '\0']))
        || entry.host.starts_with('#')
    {
        return Err(Problem::new(
            "G02",
            "this role, password or host cannot stand in a password file",
            "libpq reads that file line by line, and knows no escape for the end of a line",
            "choose one without line breaks",
        ));
    }
    let [host, user, password] = fields.map(escaped);
    let password = Zeroizing::new(password);
    Ok(Zeroizing::new(format!(
        "{host}:{}:*:{user}:{}\n",
        entry.port, *password
    )))
}

fn escaped(field: &str) -> String {
    field.replace('\\', "\\\\").replace(':', "\\:")
}

/// A line of ours as the journal remembers it: whose password it is, and a digest by which the very line is known again.
/// The password itself is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// `host:port:database:user`, as in the file.
    login: String,
    salt: String,
    /// PBKDF2 with HMAC-SHA-256.
    digest: String,
}

impl Mark {
    /// # Errors
    /// A machine without random numbers.
    pub(crate) fn of(line: &str) -> std::io::Result<Self> {
        let (login, password) = parted(line.as_bytes()).unwrap_or_default();
        let (mut salt, mut digest) = ([0; 16], [0; 32]);
        aws_lc_rs::rand::fill(&mut salt)
            .map_err(|_| std::io::Error::other("no random numbers can be had"))?;
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            ROUNDS,
            &salt,
            password,
            &mut digest,
        );
        Ok(Self {
            login: String::from_utf8_lossy(login).into_owned(),
            salt: Base64::encode_string(&salt),
            digest: Base64::encode_string(&digest),
        })
    }

    /// Whether it is a line for the same login, with whatever password.
    pub(crate) fn is_for(&self, line: &[u8]) -> bool {
        parted(line).is_some_and(|(login, _)| login == self.login.as_bytes())
    }

    /// Whether it is this very line.
    pub(crate) fn is(&self, line: &[u8]) -> bool {
        let (Ok(salt), Ok(digest)) = (
            Base64::decode_vec(&self.salt),
            Base64::decode_vec(&self.digest),
        ) else {
            return false;
        };
        let is_it = |password: &[u8]| {
            pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, password, &digest).is_ok()
        };
        parted(line)
            .is_some_and(|(login, password)| login == self.login.as_bytes() && is_it(password))
    }
}

/// What a line is for, and its password; none if it is no line of that form.
fn parted(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let (mut colons, mut escaped) = (0, false);
    for (index, byte) in line.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b':' => {
                colons += 1;
                if colons == 4 {
                    return Some((line.get(..index)?, line.get(index + 1..)?));
                }
            }
            _ => {}
        }
    }
    None
}

/// A file with this line before all others, since the first that fits counts, and without earlier ones of ours. None if it
/// is so already.
pub(crate) fn with_line(old: &[u8], line: &str, ours: &[Mark]) -> Option<Zeroizing<Vec<u8>>> {
    if old.split_inclusive(|byte| *byte == b'\n').next() == Some(line.as_bytes()) {
        return None;
    }
    let mut new = Zeroizing::new(Vec::with_capacity(old.len() + line.len()));
    new.extend_from_slice(line.as_bytes());
    new.extend_from_slice(&without(old, ours));
    Some(new)
}

/// A file without these lines of ours.
pub(crate) fn without(text: &[u8], ours: &[Mark]) -> Zeroizing<Vec<u8>> {
    let mut left = Zeroizing::new(Vec::with_capacity(text.len()));
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if !ours.iter().any(|mark| mark.is(line)) {
            left.extend_from_slice(line);
        }
    }
    left
}

/// The file for other eyes: passwords are taken out.
pub(crate) fn shown(text: &[u8]) -> Vec<u8> {
    let mut shown = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if let Some((login, _)) = parted(line) {
            shown.extend_from_slice(login);
            shown.push(b':');
        }
        shown.extend_from_slice(b"(not shown)");
        if line.ends_with(b"\n") {
            shown.push(b'\n');
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_and_backslashes_are_escaped_and_line_breaks_refused() {
        let entry = |password| Entry {
            host: "/run/pgtlsproxy",
            port: 5442,
            user: "re:p",
            password,
        };
        let text = line(entry("it's \\ a:b %")).unwrap();
        assert_eq!(*text, "/run/pgtlsproxy:5442:*:re\\:p:it's \\\\ a\\:b %\n");
        assert!(line(entry("a\nb")).is_err() && line(entry("a\r")).is_err());
    }

    #[test]
    fn a_line_of_ours_is_known_again_and_its_password_is_not() {
        let ours = "/run:5442:*:re\\:p:pass\\:word\n";
        let mark = Mark::of(ours).unwrap();
        assert_eq!(mark.login, "/run:5442:*:re\\:p");
        assert!(!format!("{mark:?}").contains("word"));
        assert!(mark.is(ours.as_bytes()));
        let changed = b"/run:5442:*:re\\:p:other\n";
        assert!(!mark.is(changed) && mark.is_for(changed));
        let other = b"/run:5442:*:re:pass\\:word\n";
        assert!(!mark.is(other) && !mark.is_for(other));

        let theirs = "# mine\r\nhost:1:*:user:secret";
        let marks = [mark];
        let with = with_line(theirs.as_bytes(), ours, &[]).unwrap();
        assert_eq!(*with, format!("{ours}{theirs}").into_bytes());
        assert!(with_line(&with, ours, &marks).is_none());
        assert_eq!(*without(&with, &marks), theirs.as_bytes());
        let next = "/run:5442:*:re\\:p:next\n";
        let with = with_line(&with, next, &marks).unwrap();
        assert_eq!(*with, format!("{next}{theirs}").into_bytes());
        let shown = String::from_utf8(shown(&with)).unwrap();
        let expected = "/run:5442:*:re\\:p:(not shown)\n(not shown)\nhost:1:*:user:(not shown)";
        assert_eq!(shown, expected);
    }
}
