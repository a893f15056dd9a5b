//! A CA in its directory: made, opened, signing, revoking.
//!
//! Whatever it signs stands in the ledger before it leaves the memory, so that everything that exists can be
//! revoked; the CRL is written anew with each step, and lasts as long as the CA, since an expired CRL would lock
//! everybody out.

mod revocation;

use std::path::{Path, PathBuf};

use protocol::certificate::{Certificate, Use, faults};
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::key::{self, Passphrase};
use crate::ledger::{Entry, Event, LockedLedger, Record};
use crate::profile::{self, AltName, CA_DAYS, KeyAlgorithm, NODE_DAYS, NodeName, Period};
use crate::report::{Date, Failure};
use crate::request::Request;
use crate::store::{self, Existing, NewFile, Readers};

/// The CA's certificate, to be copied to every node.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// The CA's key, which stays where it is.
pub const CA_KEY: &str = "ca.key";
/// The CA's revocation list, to be copied to every node.
pub const CA_CRL: &str = "ca.crl";

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

/// A certificate that was made, and where it lies.
#[derive(Debug, Clone)]
pub struct NewCertificate {
    /// What it says.
    pub certificate: Certificate,
    /// Its file.
    pub certificate_path: PathBuf,
    /// The file of its key, if the key was made here.
    pub key_path: Option<PathBuf>,
    /// Whether it had to end with its CA, earlier than asked.
    pub cut_short: bool,
}

/// A CA, with its key in memory.
pub struct Authority {
    directory: PathBuf,
    der: CertificateDer<'static>,
    certificate: Certificate,
    key: Zeroizing<KeyPair>,
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
        let now = Date::now();
        let name = match &new.name {
            Some(name) => name.clone(),
            None => unique_name()?,
        };
        let key = key::generate(new.key_algorithm)?;
        let params = profile::ca(&name, new.period.ends(now, CA_DAYS)?)?;
        let signed = params
            .self_signed(&*key)
            .map_err(|error| cannot_sign(&error))?;
        let certificate = Certificate::parse(signed.der()).map_err(|error| cannot_sign(&error))?;
        let authority = Self {
            directory: directory.to_owned(),
            der: signed.der().clone(),
            certificate,
            key,
        };
        ledger.add(vec![Entry {
            event: Event::Authority,
            at: now,
            ca: authority.id(),
            crl: 1,
            certificate: Some(record(&authority.certificate, &name)),
        }])?;
        let pem = key::to_pem(&authority.key, new.passphrase.as_ref())?;
        let (certificate_pem, crl) = (signed.pem(), authority.signed_crl(&ledger, 1, None)?);
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
        Ok(authority)
    }

    /// Opens the CA of this directory; the passphrase is asked for only if its key has one.
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
        let key = key::from_bytes(&store::read_secret(&key_path)?, &key_path, passphrase)?;
        let bundle = store::read(&certificate_path)?;
        for der in CertificateDer::pem_slice_iter(&bundle) {
            let der = der.map_err(|error| unreadable(&certificate_path, &error))?;
            let (_, x509) = X509Certificate::from_der(&der)
                .map_err(|error| unreadable(&certificate_path, &error))?;
            // During a rotation the file holds two CAs; this one signs.
            if x509.public_key().subject_public_key.data.as_ref() == key.der_bytes() {
                let certificate = Certificate::parse(&der)
                    .map_err(|error| unreadable(&certificate_path, &error))?;
                return Ok(Self {
                    directory: directory.to_owned(),
                    der,
                    certificate,
                    key,
                });
            }
        }
        Err(Failure::new(
            format!(
                "{} does not belong to {}",
                key_path.display(),
                certificate_path.display()
            ),
            "no certificate in the one holds the key of the other",
            "put a backup of both in their place",
        ))
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The CA's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a key and a certificate, `NAME.key` and `NAME.crt` in `out`.
    pub fn issue(
        &self,
        node: &NewNode,
        out: &Path,
        existing: Existing,
    ) -> Result<NewCertificate, Failure> {
        let [certificate_path, key_path] =
            ["crt", "key"].map(|end| out.join(format!("{}.{end}", node.name)));
        store::make_directory(out)?;
        store::refuse_existing([&*certificate_path, &*key_path], existing)?;
        let key = key::generate(node.key_algorithm)?;
        let pem = key::to_pem(&key, None)?;
        let key_file = NewFile {
            path: key_path.clone(),
            content: pem.as_bytes(),
            readers: Readers::Owner,
        };
        let made = self.certify(
            node,
            &*key,
            Event::Issued,
            certificate_path,
            Some(key_file),
            existing,
        )?;
        Ok(NewCertificate {
            key_path: Some(key_path),
            ..made
        })
    }

    /// Makes a certificate, `NAME.crt` in `out`, for the key of a request. Nothing but the key is taken from it.
    pub fn sign(
        &self,
        request: &Request,
        node: &NewNode,
        out: &Path,
        existing: Existing,
    ) -> Result<NewCertificate, Failure> {
        let certificate_path = out.join(format!("{}.crt", node.name));
        store::make_directory(out)?;
        store::refuse_existing([&*certificate_path], existing)?;
        self.certify(
            node,
            request.public_key(),
            Event::Signed,
            certificate_path,
            None,
            existing,
        )
    }

    fn certify(
        &self,
        node: &NewNode,
        public_key: &impl PublicKeyData,
        event: Event,
        path: PathBuf,
        key_file: Option<NewFile<'_>>,
        existing: Existing,
    ) -> Result<NewCertificate, Failure> {
        let now = Date::now();
        let (begin, wanted_end) = node.period.ends(now, NODE_DAYS)?;
        let ca_end = Date::from_unix(self.certificate.not_after());
        let end = wanted_end.min(ca_end);
        if end <= begin {
            return Err(Failure::new(
                format!("the CA ends on {ca_end}, before this certificate would begin"),
                "what it signs is worth nothing after that",
                "`certs-tool ca init` in another directory makes a new CA",
            ));
        }
        let params = profile::node(&node.name, &node.all_names(), (begin, end))?;
        let signed = params
            .signed_by(public_key, &self.issuer()?)
            .map_err(|error| cannot_sign(&error))?;
        let certificate = Certificate::parse(signed.der()).map_err(|error| cannot_sign(&error))?;
        if !certificate.is_issued_by(&self.certificate) {
            return Err(cannot_sign(
                &"the CA's name cannot be reproduced byte by byte",
            ));
        }
        // What the proxy would refuse at any time: a key too weak, say, of a request.
        let mut faults = faults(&certificate, Use::Node, begin.unix()).into_iter();
        if let Some(fault) = faults.find(|fault| !fault.is_warning()) {
            return Err(cannot_sign(&fault));
        }
        let mut ledger = LockedLedger::open(&self.directory)?;
        let crl = self.next_crl_number(&ledger);
        let record = record(&certificate, node.name.as_str());
        ledger.add(vec![Entry {
            event,
            at: now,
            ca: self.id(),
            crl,
            certificate: Some(record),
        }])?;
        let pem = signed.pem();
        let file = NewFile {
            path: path.clone(),
            content: pem.as_bytes(),
            readers: Readers::Everybody,
        };
        let files: Vec<NewFile<'_>> = key_file.into_iter().chain([file]).collect();
        store::write_all(&files, existing)?;
        self.write_crl(&ledger, crl, None)?;
        Ok(NewCertificate {
            certificate,
            certificate_path: path,
            key_path: None,
            cut_short: end < wanted_end,
        })
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, Failure> {
        Issuer::from_ca_cert_der(&self.der, &*self.key).map_err(|error| cannot_sign(&error))
    }

    /// What the ledger calls it: the identifier of its key, else its fingerprint.
    fn id(&self) -> String {
        match self.certificate.subject_key_id() {
            Some(id) => id.iter().map(|byte| format!("{byte:02x}")).collect(),
            None => self.certificate.fingerprint().to_string(),
        }
    }
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
