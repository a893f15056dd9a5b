//! The next certificate of a node: the same names, in good time.
//!
//! What lies in the files decides, not the ledger alone: a run that was killed between its two renames leaves a new key
//! with an old certificate, and the next one mends that.

use std::path::Path;

use protocol::certificate::KeyAlgorithm as FoundKey;
use rcgen::{KeyPair, SubjectPublicKeyInfo};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::certify::{Place, files_of};
use super::{Authority, NewCertificate, NewNode, cannot_sign};
use crate::key;
use crate::ledger::{Event, Issued, Ledger};
use crate::profile::{self, KeyAlgorithm, NodeName, Period};
use crate::report::{Date, Failure};
use crate::store::{self, Existing, NewFile, Readers};
use crate::verify::{Encoded, belongs_to};

/// How to renew.
#[derive(Debug, Clone, Copy, Default)]
pub struct Renewal {
    /// Which key the new certificate is for.
    pub key: KeyChoice,
    /// Whether to do it though it is not due.
    pub force: bool,
    /// How long it shall live; what is not said is as with the certificate before.
    pub period: Period,
}

/// Which key a renewed certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyChoice {
    /// A new one.
    #[default]
    New,
    /// The one it had, of which only the public half is needed.
    Same,
}

/// What became of it.
#[derive(Debug)]
pub enum Renewed {
    /// There is a new certificate.
    Made(Box<NewCertificate>),
    /// More than a third of its life is left.
    NotDue {
        /// When it ends.
        until: Date,
        /// From when on it is due.
        due: Date,
    },
    /// It is due and could not live longer: its CA ends with it.
    EndsWithCa {
        /// When both end.
        until: Date,
    },
}

/// A certificate that was signed from a request, and whose key is not here: another renews it.
#[derive(Debug)]
pub struct Elsewhere {
    /// When it ends.
    pub until: Date,
    /// From when on it is due.
    pub due: Date,
    /// How it gets its next one where nobody does so by himself.
    pub way_out: String,
}

/// What lies in a node's files.
#[derive(Default)]
struct Pair {
    certificate: Option<Encoded>,
    key: Option<Zeroizing<KeyPair>>,
}

impl Authority {
    /// Makes the next certificate of this node, `NAME.crt` in `out`, and its new key `NAME.key`, if it is due: less than
    /// a third of its life left, another CA signs now, or key and certificate do not belong together.
    pub fn renew(&self, name: &NodeName, how: &Renewal, out: &Path) -> Result<Renewed, Failure> {
        let mut ledger = self.lock()?;
        let newest = ledger.newest().into_iter();
        let mut newest = newest.filter(|issued| issued.record.name == name.as_str());
        let last = newest.next().ok_or_else(|| nothing_issued(name))?;
        if last.revoked.is_some() {
            return Err(revoked(name));
        }
        let mut pair = match Pair::read(name, out) {
            Err(_) if how.force => Pair::default(),
            read => read?,
        };
        let elsewhere = pair.is_elsewhere(&last, &ledger);
        if elsewhere {
            // What may lie here is the key of an earlier one.
            pair.key = None;
        }
        let (until, due) = self.due(&last, &pair);
        if !how.force && Date::now() < due {
            return Ok(Renewed::NotDue { until, due });
        }
        if elsewhere && how.key == KeyChoice::New {
            return Err(key_is_elsewhere(name, &last));
        }
        let node = NewNode {
            name: name.clone(),
            names: names_of(&last)?,
            key_algorithm: pair.key_algorithm(),
            period: self.next_period(&last, how.period),
        };
        let [certificate_path, key_path] = files_of(name.as_str(), out);
        store::make_directory(out)?;
        let place = |key_file| Place {
            certificate_path,
            key_file,
            existing: Existing::Replace,
        };
        if how.key == KeyChoice::Same {
            let signed = self.make(&node, &pair.public_key(name, out)?)?;
            if !how.force && self.gains_nothing(&signed.certificate, &pair) {
                return Ok(Renewed::EndsWithCa { until });
            }
            let made = self.publish(&mut ledger, last.event, &node, signed, place(None))?;
            return Ok(Renewed::Made(Box::new(made)));
        }
        let key = key::generate(node.key_algorithm)?;
        let signed = self.make(&node, &*key)?;
        if !how.force && self.gains_nothing(&signed.certificate, &pair) {
            return Ok(Renewed::EndsWithCa { until });
        }
        let pem = key::to_pem(&key, None)?;
        let key_file = NewFile {
            path: key_path,
            content: pem.as_bytes(),
            readers: Readers::Owner,
        };
        let place = place(Some(key_file));
        let made = self.publish(&mut ledger, Event::Issued, &node, signed, place)?;
        Ok(Renewed::Made(Box::new(made)))
    }

    /// Whether this node's key is elsewhere, so that [`Self::renew`] with a new key is not for us to do. What counts is
    /// what was signed last, wherever its certificate is.
    pub fn key_elsewhere(&self, name: &NodeName, out: &Path) -> Result<Option<Elsewhere>, Failure> {
        let ledger = Ledger::read(&self.directory)?;
        let newest = ledger.newest().into_iter();
        let mut newest = newest.filter(|issued| issued.record.name == name.as_str());
        let last = newest.next().ok_or_else(|| nothing_issued(name))?;
        // What cannot be read is a failure of the renewal itself.
        let is_elsewhere = |pair: Pair| pair.is_elsewhere(&last, &ledger);
        if !Pair::read(name, out).is_ok_and(is_elsewhere) {
            return Ok(None);
        }
        let (until, due) = self.due(&last, &Pair::default());
        Ok(Some(Elsewhere {
            until,
            due,
            way_out: by_request(name, &last),
        }))
    }

    /// When the certificate ends, and from when on it is due.
    fn due(&self, last: &Issued, pair: &Pair) -> (Date, Date) {
        let (begin, end, same_ca) = match &pair.certificate {
            Some((certificate, _)) => (
                Date::from_unix(certificate.not_before()),
                Date::from_unix(certificate.not_after()),
                certificate.is_issued_by(self.certificate()),
            ),
            None => {
                let same_ca = last.ca == self.signing.id();
                (last.record.not_before, last.record.not_after, same_ca)
            }
        };
        let third = (end.unix() - begin.unix()) / 3;
        let due = if same_ca && pair.belongs_together() {
            end.plus(-third)
        } else {
            Date::from_unix(i64::MIN)
        };
        (end, due)
    }

    /// A sound pair of files whose certificate would only get a twin: it ends with its CA, as the new one would.
    fn gains_nothing(&self, new: &protocol::certificate::Certificate, pair: &Pair) -> bool {
        pair.belongs_together()
            && pair.certificate.as_ref().is_some_and(|(old, _)| {
                old.is_issued_by(self.certificate())
                    && new.not_after() == self.certificate().not_after()
                    && old.not_after() >= new.not_after()
            })
    }

    /// As long as the one before, unless that one was cut short by its CA, or something else is asked for.
    pub(super) fn next_period(&self, last: &Issued, asked: Period) -> Period {
        let life = profile::life(last.record.not_before, last.record.not_after);
        let ca = self.bundle.iter().find(|(ca, _)| super::id(ca) == last.ca);
        let cut_short = ca.is_none_or(|(ca, _)| last.record.not_after.unix() >= ca.not_after());
        if asked != Period::default() || cut_short {
            return asked;
        }
        Period {
            not_after: Some(Date::now().plus(life)),
            ..asked
        }
    }
}

impl Pair {
    fn read(name: &NodeName, out: &Path) -> Result<Self, Failure> {
        let [certificate_path, key_path] = files_of(name.as_str(), out);
        let mut pair = Self::default();
        if certificate_path.exists() {
            let bytes = store::read(&certificate_path)?;
            pair.certificate = super::read_bundle(&bytes, &certificate_path)?
                .into_iter()
                .next();
        }
        if key_path.exists() {
            let bytes = store::read_secret(&key_path)?;
            let key = key::from_bytes(&bytes, &key_path, || {
                Err(Failure::new(
                    format!("{} has a passphrase", key_path.display()),
                    "the proxy starts without a person and reads no such key",
                    "--force makes a new key without",
                ))
            });
            pair.key = Some(key?);
        }
        Ok(pair)
    }

    /// Whether the key of the newest certificate was never here: that was made for a request, and what lies here is no
    /// key at all, or one that does not belong to what was made so.
    fn is_elsewhere(&self, last: &Issued, ledger: &Ledger) -> bool {
        let is_by_request = |certificate: &Encoded| {
            let print = certificate.0.fingerprint().to_string();
            let issued = ledger.issued().into_iter();
            let mut of_this = issued.filter(|issued| issued.record.sha256 == print);
            of_this
                .next()
                .is_none_or(|issued| issued.event.is_by_request())
        };
        let is_here = self.key.is_some()
            && self.belongs_together()
            && self.certificate.as_ref().is_some_and(is_by_request);
        last.event.is_by_request() && !is_here
    }

    /// Whether nothing speaks against it: half a pair is what lies on a CA's host when the rest was moved to the node.
    fn belongs_together(&self) -> bool {
        match (&self.certificate, &self.key) {
            (Some((_, der)), Some(key)) => belongs_to(key, der),
            (None, Some(_)) => false,
            (_, None) => true,
        }
    }

    /// The kind of the next key: that of the last one.
    fn key_algorithm(&self) -> KeyAlgorithm {
        match self.certificate.as_ref().map(|(read, _)| read.key()) {
            Some(FoundKey::Ec("P-384")) => KeyAlgorithm::P384,
            Some(FoundKey::Rsa(_)) => KeyAlgorithm::Rsa3072,
            _ => KeyAlgorithm::P256,
        }
    }

    /// The public half of the key that is to stay.
    fn public_key(&self, name: &NodeName, out: &Path) -> Result<SubjectPublicKeyInfo, Failure> {
        let [certificate_path, key_path] = files_of(name.as_str(), out);
        let Some((_, der)) = &self.certificate else {
            return Err(Failure::new(
                format!("the key of {name} is not known here"),
                format!("{} does not exist", certificate_path.display()),
                "copy the certificate there, say where it is with --out, or leave out --reuse-key",
            ));
        };
        if !self.belongs_together() {
            return Err(Failure::new(
                format!(
                    "{} does not belong to {}",
                    key_path.display(),
                    certificate_path.display()
                ),
                "there is no telling which of the two keys is to stay",
                "leave out --reuse-key",
            ));
        }
        let (_, x509) = X509Certificate::from_der(der).map_err(|error| cannot_sign(&error))?;
        SubjectPublicKeyInfo::from_der(x509.public_key().raw).map_err(|error| cannot_sign(&error))
    }
}

pub(super) fn names_of(last: &Issued) -> Result<Vec<profile::AltName>, Failure> {
    let names = last.record.names.iter().map(|name| name.parse());
    names
        .collect::<Result<_, _>>()
        .map_err(|why: String| Failure::new("the ledger holds a name that is none", why, ""))
}

fn nothing_issued(name: &NodeName) -> Failure {
    Failure::new(
        format!("nothing was issued for {name}"),
        "the ledger knows no such name",
        format!(
            "`certs-tool issue {name}` makes its first certificate; `certs-tool list` shows what there is"
        ),
    )
}

fn revoked(name: &NodeName) -> Failure {
    Failure::new(
        format!("the certificate of {name} is revoked"),
        "what was taken back is not renewed",
        format!("if the node is to come back: certs-tool issue {name} --san ... --force"),
    )
}

fn key_is_elsewhere(name: &NodeName, last: &Issued) -> Failure {
    Failure::new(
        format!(
            "{name} has to ask for its next certificate: its key is not here, it was signed from a request"
        ),
        by_request(name, last),
        format!("or keep its key: certs-tool renew {name} --reuse-key, with its {name}.crt here"),
    )
}

fn by_request(name: &NodeName, last: &Issued) -> String {
    let names: Vec<String> = last
        .record
        .names
        .iter()
        .map(|san| format!(" --san {san}"))
        .collect();
    format!(
        "on its host: certs-tool request {name} --out new; then here: certs-tool sign {name}.csr --name {name}{} --force",
        names.concat()
    )
}
