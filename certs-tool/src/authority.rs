//! A CA in its directory: made, opened, signing, revoking.
//!
//! Whatever it signs stands in the ledger before it leaves the memory, so that everything that exists can be
//! revoked; the CRL is written anew with each step, and lasts as long as the CA, since an expired CRL would lock
//! everybody out. During a rotation there are two CAs, of which one signs, and a CRL of each.

mod certify;
mod renewal;
mod revocation;
mod rotation;
mod successor;

use std::path::{Path, PathBuf};

use protocol::certificate::Certificate;
use protocol::hex::Hex;
use rcgen::{Issuer, KeyPair, PublicKeyData, SigningKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::key::{self, Passphrase};
use crate::ledger::{Entry, Event, LockedLedger, Record};
use crate::profile::{self, AltName, CA_DAYS, KeyAlgorithm, NodeName, Period};
use crate::report::{Date, Failure};
use crate::store::{self, Existing, NewFile, Readers};
use crate::verify::Encoded;

pub use certify::{NewCertificate, Signed};
pub use renewal::{Elsewhere, KeyChoice, Renewal, Renewed};
pub use rotation::{NodeState, Rotation, Stage};
pub use successor::Asked;

/// The CA's certificate, to be copied to every node.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// The CA's key, which stays where it is.
pub const CA_KEY: &str = "ca.key";
/// The CA's revocation list, to be copied to every node.
pub const CA_CRL: &str = "ca.crl";
/// During a rotation, the key of the new CA until it signs.
pub(crate) const NEXT_KEY: &str = "ca-next.key";
/// During a rotation, the key of the old CA once the new one signs; it still signs its CRL.
pub(crate) const OLD_KEY: &str = "ca-old.key";

/// What a new CA is to be like.
#[derive(Default)]
pub struct NewAuthority {
    /// Its common name; else one that no other CA has.
    pub name: Option<String>,
    /// Its kind of key.
    pub key_algorithm: KeyAlgorithm,
    /// How long it lives: ten years unless said otherwise.
    pub period: Period,
    /// The passphrase to lie on its key.
    pub passphrase: Option<Passphrase>,
}

/// What a new certificate is to be like.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// Common name and file name.
    pub name: NodeName,
    /// Subject alternative names; if there are none, the node's name as a DNS name.
    pub names: Vec<AltName>,
    /// Its kind of key, where one is made.
    pub key_algorithm: KeyAlgorithm,
    /// How long it lives: 397 days unless said otherwise, and never longer than the CA.
    pub period: Period,
}

impl NewNode {
    /// A node of this name with these subject alternative names, the rest as usual.
    pub fn new(name: &str, names: &[&str]) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::new(why, "", "");
        Ok(Self {
            name: name.parse().map_err(wrong)?,
            names: names
                .iter()
                .map(|name| name.parse())
                .collect::<Result<_, _>>()
                .map_err(wrong)?,
            key_algorithm: KeyAlgorithm::default(),
            period: Period::default(),
        })
    }

    /// The names that the certificate will have.
    pub fn all_names(&self) -> Vec<AltName> {
        profile::all_names(&self.name, &self.names)
    }
}

/// The CA of a directory, with its key in memory; during a rotation, both.
pub struct Authority {
    directory: PathBuf,
    /// The one that signs certificates.
    signing: Ca,
    /// The other one of a rotation: the next, or the old.
    other: Option<Ca>,
    /// Every certificate of ca.crt, those of a rotation and any that somebody put there.
    bundle: Vec<Encoded>,
    passphrase: Option<Passphrase>,
    seen: Seen,
}

/// One CA and its key.
pub(crate) struct Ca {
    der: CertificateDer<'static>,
    certificate: Certificate,
    key: Zeroizing<KeyPair>,
}

/// The files that say which CA signs, as they were when it was opened.
struct Seen {
    key: Zeroizing<Vec<u8>>,
    bundle: Zeroizing<Vec<u8>>,
}

impl Authority {
    /// Makes a CA with its first, empty CRL in this directory, which is made if need be.
    pub fn create(
        directory: &Path,
        new: &NewAuthority,
        existing: Existing,
    ) -> Result<Self, Failure> {
        store::make_directory(directory)?;
        let mut ledger = LockedLedger::open(directory)?;
        let [certificate_path, key_path, crl_path] =
            [CA_CERTIFICATE, CA_KEY, CA_CRL].map(|name| directory.join(name));
        store::refuse_existing([&*key_path, &*certificate_path, &*crl_path], existing)?;
        let (ca, certificate_pem) = Ca::create(new)?;
        let pem = key::to_pem(&ca.key, new.passphrase.as_ref())?;
        ledger.add(vec![Entry {
            event: Event::Authority,
            at: Date::now(),
            ca: ca.id(),
            crl: 1,
            certificate: Some(ca.record()),
        }])?;
        let authority = Self {
            directory: directory.to_owned(),
            bundle: vec![(ca.certificate.clone(), ca.der.clone())],
            signing: ca,
            other: None,
            passphrase: new.passphrase.clone(),
            seen: Seen {
                key: Zeroizing::new(pem.as_bytes().to_vec()),
                bundle: Zeroizing::new(certificate_pem.clone().into_bytes()),
            },
        };
        let crl = authority.signed_crls(&ledger, None)?;
        let files = [
            NewFile {
                path: key_path,
                content: pem.as_bytes(),
                readers: Readers::Owner,
            },
            NewFile {
                path: certificate_path,
                content: certificate_pem.as_bytes(),
                readers: Readers::Everybody,
            },
            NewFile {
                path: crl_path,
                content: crl.as_bytes(),
                readers: Readers::Everybody,
            },
        ];
        store::write_all(&files, existing)?;
        // Not before the files are there: a CA that could not be replaced goes on.
        authority.drop_replaced(&mut ledger)?;
        Ok(authority)
    }

    /// Opens the CA of this directory; the passphrase is asked for only if its key has one, and once: during a
    /// rotation both keys have the same.
    pub fn open(
        directory: &Path,
        passphrase: impl FnOnce() -> Result<Passphrase, Failure>,
    ) -> Result<Self, Failure> {
        let (certificate_path, key_path) = (directory.join(CA_CERTIFICATE), directory.join(CA_KEY));
        if !key_path.exists() {
            return Err(Failure::new(
                format!("there is no CA in {}", directory.display()),
                format!("{} does not exist", key_path.display()),
                "`certs-tool ca init` makes one; --dir says where it is",
            ));
        }
        let (mut ask, mut given) = (Some(passphrase), None);
        let mut ask_once = || -> Result<Passphrase, Failure> {
            if let Some(ask) = ask.take() {
                given = Some(ask()?);
            }
            let none = || Failure::new("no passphrase was given", "", "run the command again");
            given.clone().ok_or_else(none)
        };
        let seen = Seen {
            key: store::read_secret(&key_path)?,
            bundle: store::read(&certificate_path)?,
        };
        let bundle = read_bundle(&seen.bundle, &certificate_path)?;
        let key = key::from_bytes(&seen.key, &key_path, &mut ask_once)?;
        let Some(signing) = Ca::of(&bundle, key) else {
            return Err(Failure::new(
                format!(
                    "{} does not belong to {}",
                    key_path.display(),
                    certificate_path.display()
                ),
                "no certificate in the one holds the key of the other",
                "put a backup of both in their place",
            ));
        };
        let mut other = None;
        for path in [NEXT_KEY, OLD_KEY].map(|name| directory.join(name)) {
            // With one CA in the bundle, what lies there is left of a rotation that is over.
            if bundle.len() > 1 && path.exists() {
                let key = key::from_bytes(&store::read_secret(&path)?, &path, &mut ask_once)?;
                let found = Ca::of(&bundle, key).filter(|ca| ca.der != signing.der);
                other = other.or(found);
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            signing,
            other,
            bundle,
            passphrase: given,
            seen,
        })
    }

    /// The certificate of the CA that signs.
    pub fn certificate(&self) -> &Certificate {
        &self.signing.certificate
    }

    /// The CA's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The passphrase that opened it, if there is one on its key.
    pub(crate) fn passphrase(&self) -> Option<&Passphrase> {
        self.passphrase.as_ref()
    }

    /// The signature of these bytes with its key.
    pub(crate) fn sign_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        let signature = self.signing.key.sign(bytes);
        signature.map_err(|error| cannot_sign(&error))
    }

    /// Waits until nobody else changes this directory; fails if somebody has changed the CA since it was opened, for
    /// instance has gone on with a rotation, so that an old key never signs by mistake.
    fn lock(&self) -> Result<LockedLedger, Failure> {
        let ledger = LockedLedger::open(&self.directory)?;
        let key = store::read_secret(&self.directory.join(CA_KEY))?;
        let bundle = store::read(&self.directory.join(CA_CERTIFICATE))?;
        if key != self.seen.key || bundle != self.seen.bundle {
            return Err(Failure::new(
                format!(
                    "the CA in {} has just been changed",
                    self.directory.display()
                ),
                "another run has replaced it or gone on with its rotation",
                "run the command again",
            ));
        }
        Ok(ledger)
    }

    fn cas(&self) -> impl Iterator<Item = &Ca> {
        [&self.signing].into_iter().chain(&self.other)
    }

    /// Enters these events, and with them a new CRL number for each CA.
    fn enter(
        &self,
        ledger: &mut LockedLedger,
        events: Vec<(Event, String, Option<Record>)>,
    ) -> Result<(), Failure> {
        let at = Date::now();
        let mut entries = Vec::new();
        for ca in self.cas() {
            let (id, crl) = (ca.id(), self.next_crl_number(ledger, ca));
            if events.iter().all(|(_, of, _)| *of != id) {
                let (event, ca, certificate) = (Event::Crl, id.clone(), None);
                entries.push(Entry {
                    event,
                    at,
                    ca,
                    crl,
                    certificate,
                });
            }
            for (event, _, certificate) in events.iter().filter(|(_, of, _)| *of == id) {
                entries.push(Entry {
                    event: *event,
                    at,
                    ca: id.clone(),
                    crl,
                    certificate: certificate.clone(),
                });
            }
        }
        ledger.add(entries)
    }
}

impl Ca {
    /// Makes one, and its certificate as PEM.
    fn create(new: &NewAuthority) -> Result<(Self, String), Failure> {
        let name = match &new.name {
            Some(name) => name.clone(),
            None => unique_name()?,
        };
        let key = key::generate(new.key_algorithm)?;
        let params = profile::ca(&name, new.period.ends(Date::now(), CA_DAYS)?)?;
        let signed = params
            .self_signed(&*key)
            .map_err(|error| cannot_sign(&error))?;
        let certificate = Certificate::parse(signed.der()).map_err(|error| cannot_sign(&error))?;
        let ca = Self {
            der: signed.der().clone(),
            certificate,
            key,
        };
        Ok((ca, signed.pem()))
    }

    /// The CA of the bundle that holds this key.
    pub(crate) fn of(bundle: &[Encoded], key: Zeroizing<KeyPair>) -> Option<Self> {
        let (certificate, der) = bundle.iter().find(|(_, der)| {
            X509Certificate::from_der(der).is_ok_and(|(_, x509)| {
                x509.public_key().subject_public_key.data.as_ref() == key.der_bytes()
            })
        })?;
        Some(Self {
            der: der.clone(),
            certificate: certificate.clone(),
            key,
        })
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, Failure> {
        Issuer::from_ca_cert_der(&self.der, &*self.key).map_err(|error| cannot_sign(&error))
    }

    pub(crate) fn id(&self) -> String {
        id(&self.certificate)
    }

    pub(crate) fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its key as PEM, without a passphrase.
    pub(crate) fn key_pem(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let pem = key::to_pem(&self.key, None)?;
        Ok(Zeroizing::new(pem.as_bytes().to_vec()))
    }

    fn record(&self) -> Record {
        let name = self.certificate.identity().common_name();
        record(&self.certificate, name.unwrap_or_default())
    }
}

/// What the ledger calls a CA: the identifier of its key, else its fingerprint.
pub(crate) fn id(certificate: &Certificate) -> String {
    match certificate.subject_key_id() {
        Some(id) => Hex(id).to_string(),
        None => certificate.fingerprint().to_string(),
    }
}

/// Every certificate of a CA file; `path` is for the words only.
pub(crate) fn read_bundle(pem: &[u8], path: &Path) -> Result<Vec<Encoded>, Failure> {
    let certificates = CertificateDer::pem_slice_iter(pem).map(|der| {
        let der = der.map_err(|error| unreadable(path, &error))?;
        let certificate = Certificate::parse(&der).map_err(|error| unreadable(path, &error))?;
        Ok((certificate, der))
    });
    certificates.collect()
}

fn record(certificate: &Certificate, name: &str) -> Record {
    let identity = certificate.identity();
    let dns = identity
        .dns()
        .iter()
        .map(|name| AltName::Dns(name.clone()).to_string());
    let ip = identity
        .ip()
        .iter()
        .map(|address| AltName::Ip(*address).to_string());
    let uri = identity
        .uri()
        .iter()
        .map(|uri| AltName::Uri(uri.clone()).to_string());
    Record {
        name: name.to_owned(),
        serial: certificate.serial().to_string(),
        names: dns.chain(ip).chain(uri).collect(),
        not_before: Date::from_unix(certificate.not_before()),
        not_after: Date::from_unix(certificate.not_after()),
        sha256: certificate.fingerprint().to_string(),
    }
}

fn unique_name() -> Result<String, Failure> {
    let suffix: [u8; 4] = key::random()
        .map_err(|error| Failure::new("cannot get random bytes", error.to_string(), ""))?;
    Ok(format!("pgtlsproxy CA {:08x}", u32::from_be_bytes(suffix)))
}

fn cannot_sign(why: &dyn std::fmt::Display) -> Failure {
    Failure::new("cannot sign", why.to_string(), "")
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        format!("{} is not readable", path.display()),
        why.to_string(),
        "put a backup of it in its place",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_passphrase() -> Result<Passphrase, Failure> {
        panic!("nobody was to be asked")
    }

    #[test]
    fn a_program_makes_a_ca_and_nodes_in_process() {
        let place = tempfile::tempdir().unwrap();
        let (pki, out) = (place.path().join("pki"), place.path().join("node"));
        Authority::create(&pki, &NewAuthority::default(), Existing::Keep).unwrap();
        let authority = Authority::open(&pki, no_passphrase).unwrap();
        let node = NewNode::new("db1", &["localhost", "127.0.0.1"]).unwrap();
        let made = authority.issue(&node, &out, Existing::Keep).unwrap();
        assert!(made.certificate.is_issued_by(authority.certificate()));
        assert_eq!(made.certificate.identity().to_string(), "dns:localhost");
        assert_eq!(made.key_path.as_deref(), Some(&*out.join("db1.key")));
        assert!(made.certificate_path.exists() && !made.cut_short);
        let revoked = authority.revoke("db1").unwrap();
        assert_eq!(
            revoked[0].record.serial,
            made.certificate.serial().to_string()
        );
        assert!(
            authority.revoke("db1").unwrap().is_empty(),
            "once is enough"
        );
    }

    #[test]
    fn of_two_cas_in_one_file_the_one_with_the_key_signs() {
        let place = tempfile::tempdir().unwrap();
        let (old, new) = (place.path().join("old"), place.path().join("new"));
        let first = Authority::create(&old, &NewAuthority::default(), Existing::Keep).unwrap();
        let second = Authority::create(&new, &NewAuthority::default(), Existing::Keep).unwrap();
        let bundle = [&old, &new]
            .map(|pki| std::fs::read_to_string(pki.join(CA_CERTIFICATE)).unwrap())
            .concat();
        std::fs::write(new.join(CA_CERTIFICATE), bundle).unwrap();
        let opened = Authority::open(&new, no_passphrase).unwrap();
        assert_eq!(opened.certificate(), second.certificate());
        std::fs::copy(old.join(CA_CERTIFICATE), new.join(CA_CERTIFICATE)).unwrap();
        let failure = Authority::open(&new, no_passphrase).err().unwrap();
        assert!(failure.what().contains("does not belong"), "{failure}");
        assert_ne!(
            first.certificate().subject(),
            second.certificate().subject()
        );
    }
}
