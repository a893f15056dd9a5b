//! The private key: read, judged and decoded (RFC 7468) so that no copy of it is left in memory that is given back. The
//! vectors in here never grow, and are wiped; what TLS signs with is aws-lc-rs' own.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64ct::{Base64, Encoding};
use tokio_rustls::rustls::pki_types::{
    PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};
use zeroize::Zeroizing;

use super::findings::Findings;
use crate::watch::LARGEST_FILE;

/// Wiped when it is dropped.
pub(super) type Key = Zeroizing<PrivateKeyDer<'static>>;

/// Room for a key where the file does not tell its length.
const ROOM: u64 = 64 * 1024;

/// What keeps a file from being read as a key.
#[derive(Debug, PartialEq, Eq)]
enum NoKey {
    NotThere,
    Encrypted,
    Damaged(&'static str),
}

impl Findings {
    pub(super) fn key(&mut self, path: &Path) -> Option<Key> {
        let pem = self.readable(path, "key", read(path))?;
        if let Some((why, way_out)) = readable_by_others(path) {
            self.error(
                "F05",
                format!("the key {} is readable by others", path.display()),
                why,
                &way_out,
            );
        }
        let (why, way_out) = match decode(&pem) {
            Ok(key) => return Some(key),
            Err(NoKey::Damaged(why)) => {
                self.damaged(path, &why);
                return None;
            }
            Err(NoKey::Encrypted) => (
                "it is encrypted, and a daemon has nobody to ask for the passphrase",
                "decrypt it (openssl pkey -in KEY -out NEW) into a file of mode 0600",
            ),
            Err(NoKey::NotThere) => (
                "no -----BEGIN PRIVATE KEY----- was found",
                "put a PEM key there",
            ),
        };
        let what = format!("{} holds no usable key", path.display());
        self.error("F06", what, why, way_out);
        None
    }

    /// The key of a renewal under way. Nothing of what may be wrong with it matters before it is needed.
    pub(super) fn next_key(&mut self, path: &Path) -> Option<Key> {
        let known = self.errors.len();
        let next = path.exists().then(|| self.key(path)).flatten();
        let sound = self.errors.len() == known;
        self.errors.truncate(known);
        next.filter(|_| sound)
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len().clamp(ROOM, LARGEST_FILE);
    let room = usize::try_from(length).map_err(io::Error::other)?;
    // One byte more, so that a file which fills it is known to be longer.
    let mut bytes = Zeroizing::new(vec![0; room.saturating_add(1)]);
    let mut have = 0;
    while let Some(free) = bytes.get_mut(have..).filter(|free| !free.is_empty()) {
        match file.read(free) {
            Ok(0) => {
                bytes.truncate(have);
                return Ok(bytes);
            }
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "it is larger than 16 MiB, or grew while it was read",
    ))
}

/// The first key among what else may stand there.
fn decode(pem: &[u8]) -> Result<Key, NoKey> {
    let encrypted = || {
        let mut windows = pem.windows(b"ENCRYPTED".len());
        windows.any(|window| window == b"ENCRYPTED")
    };
    let mut text = Zeroizing::new(Vec::with_capacity(pem.len()));
    let mut section: Option<&[u8]> = None;
    for line in pem.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if let Some(label) = labelled(line, b"-----BEGIN ") {
            section = Some(label);
            text.clear();
        } else if let Some(label) = labelled(line, b"-----END ") {
            if section == Some(label)
                && let Some(kind) = Kind::of(label)
            {
                return match kind.decode(&text) {
                    Err(NoKey::Damaged(_)) if encrypted() => Err(NoKey::Encrypted),
                    decoded => decoded,
                };
            }
            section = None;
        } else if section.is_some() {
            // No more than there is in `pem`: it never grows.
            text.extend_from_slice(line);
        }
    }
    match section.and_then(Kind::of) {
        Some(_) => Err(NoKey::Damaged("its -----END line is missing")),
        None if encrypted() => Err(NoKey::Encrypted),
        None => Err(NoKey::NotThere),
    }
}

/// What stands in such a line between `mark` and the dashes.
fn labelled<'a>(line: &'a [u8], mark: &[u8]) -> Option<&'a [u8]> {
    line.strip_prefix(mark)?.strip_suffix(b"-----")
}

/// The forms of a private key.
#[derive(Clone, Copy)]
enum Kind {
    Pkcs1,
    Sec1,
    Pkcs8,
}

impl Kind {
    fn of(label: &[u8]) -> Option<Self> {
        match label {
            b"PRIVATE KEY" => Some(Self::Pkcs8),
            b"EC PRIVATE KEY" => Some(Self::Sec1),
            b"RSA PRIVATE KEY" => Some(Self::Pkcs1),
            _ => None,
        }
    }

    fn decode(self, text: &[u8]) -> Result<Key, NoKey> {
        let mut der = Zeroizing::new(vec![0; text.len()]);
        let length = Base64::decode(text, &mut der)
            .map_err(|_| NoKey::Damaged("what stands between its lines is not base64"))?
            .len();
        der.truncate(length);
        let der = std::mem::take(&mut *der);
        Ok(Zeroizing::new(match self {
            Self::Pkcs1 => PrivatePkcs1KeyDer::from(der).into(),
            Self::Sec1 => PrivateSec1KeyDer::from(der).into(),
            Self::Pkcs8 => PrivatePkcs8KeyDer::from(der).into(),
        }))
    }
}

/// PostgreSQL's own rule for its server key: 0600, or 0640 if root owns it (runtime manual, "Creating Certificates").
fn readable_by_others(path: &Path) -> Option<(String, String)> {
    let metadata = fs::metadata(path).ok()?;
    let mode = metadata.mode() & 0o777;
    let allowed = if metadata.uid() == 0 { 0o640 } else { 0o600 };
    (mode & !allowed != 0).then(|| {
        (
            format!("its mode is {mode:04o}"),
            format!("chmod {allowed:04o} {}", path.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_is_found_whatever_stands_around_it() {
        let rsa = "-----BEGIN RSA PRIVATE KEY-----\nAQ==\n-----END RSA PRIVATE KEY-----\n";
        let certificate = "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n";
        let pkcs8 = "  -----BEGIN PRIVATE KEY-----\r\nAQID\r\nBAU=\r\n-----END PRIVATE KEY-----";
        for (pem, wanted) in [
            (rsa.to_owned(), vec![1]),
            (
                format!("# made today\n{certificate}{pkcs8}"),
                vec![1, 2, 3, 4, 5],
            ),
            (format!("{rsa}{pkcs8}"), vec![1]),
            (rsa.replace("RSA", "EC"), vec![1]),
        ] {
            let key = decode(pem.as_bytes()).unwrap();
            assert_eq!(key.secret_der(), wanted, "{pem}");
        }
        for (pem, wanted) in [
            ("", NoKey::NotThere),
            (certificate, NoKey::NotThere),
            (&rsa.replace("RSA", "ENCRYPTED"), NoKey::Encrypted),
            (
                &rsa.replace("AQ", "Proc-Type: 4,ENCRYPTED\nAQ"),
                NoKey::Encrypted,
            ),
            (
                &rsa.replace("==", ""),
                NoKey::Damaged("what stands between its lines is not base64"),
            ),
            (&rsa[..40], NoKey::Damaged("its -----END line is missing")),
        ] {
            assert_eq!(decode(pem.as_bytes()).map(|_| ()), Err(wanted), "{pem}");
        }
    }
}
