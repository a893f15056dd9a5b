//! What a CA signs: certificates for keys made here and for keys of requests.

use std::path::{Path, PathBuf};

use protocol::certificate::{Certificate, Use, faults};
use rcgen::PublicKeyData;

use super::{Authority, NewNode, cannot_sign, record};
use crate::contents;
use crate::key;
use crate::ledger::{Event, LockedLedger};
use crate::profile::{self, NODE_DAYS};
use crate::report::{Date, Failure};
use crate::request::Request;
use crate::store::{self, Existing, NewFile, Readers};

/// A certificate that was made.
#[derive(Debug, Clone)]
pub struct Signed {
    /// What it says.
    pub certificate: Certificate,
    /// Its PEM, followed by that of its CA where this is not a root.
    pub pem: String,
    /// Whether it had to end with its CA, earlier than asked.
    pub cut_short: bool,
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

impl Authority {
    /// Makes a key and a certificate, `NAME.key` and `NAME.crt` in `out`.
    pub fn issue(
        &self,
        node: &NewNode,
        out: &Path,
        existing: Existing,
    ) -> Result<NewCertificate, Failure> {
        let [certificate_path, key_path] = files_of(node.name.as_str(), out);
        store::make_directory(out)?;
        let mut ledger = self.lock()?;
        store::refuse_existing([&*certificate_path, &*key_path], existing)?;
        let key = key::generate(node.key_algorithm)?;
        let signed = self.make(node, &*key)?;
        let pem = key::to_pem(&key, None)?;
        let key_file = NewFile {
            path: key_path,
            content: pem.as_bytes(),
            readers: Readers::Owner,
        };
        let place = Place {
            certificate_path,
            key_file: Some(key_file),
            existing,
        };
        self.publish(&mut ledger, Event::Issued, node, signed, place)
    }

    /// Makes a certificate, `NAME.crt` in `out`, for the key of a request. Nothing but the key is taken from it.
    pub fn sign(
        &self,
        request: &Request,
        node: &NewNode,
        out: &Path,
        existing: Existing,
    ) -> Result<NewCertificate, Failure> {
        self.sign_as(Event::Signed, request, node, out, existing)
    }

    /// As [`Authority::sign`], for a node that was invited: the other nodes will hear of it ([`Authority::joined`]).
    pub fn admit(
        &self,
        request: &Request,
        node: &NewNode,
        out: &Path,
        existing: Existing,
    ) -> Result<NewCertificate, Failure> {
        self.sign_as(Event::Joined, request, node, out, existing)
    }

    fn sign_as(
        &self,
        event: Event,
        request: &Request,
        node: &NewNode,
        out: &Path,
        existing: Existing,
    ) -> Result<NewCertificate, Failure> {
        let [certificate_path, _] = files_of(node.name.as_str(), out);
        store::make_directory(out)?;
        let mut ledger = self.lock()?;
        store::refuse_existing([&*certificate_path], existing)?;
        let signed = self.make(node, request.public_key())?;
        let place = Place {
            certificate_path,
            key_file: None,
            existing,
        };
        self.publish(&mut ledger, event, node, signed, place)
    }

    /// As [`Authority::sign`], for a certificate that goes elsewhere than into a file.
    pub fn sign_unwritten(&self, request: &Request, node: &NewNode) -> Result<Signed, Failure> {
        let mut ledger = self.lock()?;
        let signed = self.make(node, request.public_key())?;
        self.enter_certificate(&mut ledger, Event::Signed, node, &signed)?;
        self.write_crls(&ledger, None)?;
        Ok(signed)
    }

    /// Signs, and does nothing else.
    pub(super) fn make(
        &self,
        node: &NewNode,
        public_key: &impl PublicKeyData,
    ) -> Result<Signed, Failure> {
        let (begin, wanted_end) = node.period.ends(Date::now(), NODE_DAYS)?;
        let ca_end = Date::from_unix(self.certificate().not_after());
        let end = wanted_end.min(ca_end);
        if end <= begin {
            return Err(Failure::new(
                format!("the CA ends on {ca_end}, before this certificate would begin"),
                "what it signs is worth nothing after that",
                "`certs-tool ca rotate start` makes a new CA while this one counts; later, `ca init` in another directory",
            ));
        }
        let params = profile::node(&node.name, &node.all_names(), (begin, end))?;
        let signed = params
            .signed_by(public_key, &self.signing.issuer()?)
            .map_err(|error| cannot_sign(&error))?;
        let certificate = Certificate::parse(signed.der()).map_err(|error| cannot_sign(&error))?;
        if !certificate.is_issued_by(self.certificate()) {
            return Err(cannot_sign(
                &"the CA's name cannot be reproduced byte by byte",
            ));
        }
        // What the proxy would refuse at any time: a key too weak, say, of a request.
        let mut faults = faults(&certificate, Use::Node, begin.unix()).into_iter();
        if let Some(fault) = faults.find(|fault| !fault.is_warning()) {
            return Err(cannot_sign(&fault));
        }
        let mut pem = signed.pem();
        // Peers that trust only the root above it are shown the way there.
        if !self.certificate().is_self_issued() {
            pem.push_str(&contents::to_pem("CERTIFICATE", &self.signing.der)?);
        }
        Ok(Signed {
            certificate,
            pem,
            cut_short: end < wanted_end,
        })
    }

    fn enter_certificate(
        &self,
        ledger: &mut LockedLedger,
        event: Event,
        node: &NewNode,
        signed: &Signed,
    ) -> Result<(), Failure> {
        let record = record(&signed.certificate, node.name.as_str());
        self.enter(ledger, vec![(event, self.signing.id(), Some(record))])
    }

    /// Into the ledger, then into the files, then the CRL.
    pub(super) fn publish(
        &self,
        ledger: &mut LockedLedger,
        event: Event,
        node: &NewNode,
        signed: Signed,
        place: Place<'_>,
    ) -> Result<NewCertificate, Failure> {
        self.enter_certificate(ledger, event, node, &signed)?;
        let key_path = place.key_file.as_ref().map(|file| file.path.clone());
        let file = NewFile {
            path: place.certificate_path.clone(),
            content: signed.pem.as_bytes(),
            readers: Readers::Everybody,
        };
        let files: Vec<NewFile<'_>> = place.key_file.into_iter().chain([file]).collect();
        store::write_all(&files, place.existing)?;
        self.write_crls(ledger, None)?;
        Ok(NewCertificate {
            certificate: signed.certificate,
            certificate_path: place.certificate_path,
            key_path,
            cut_short: signed.cut_short,
        })
    }
}

/// Where a certificate goes, and the key that goes before it.
pub(super) struct Place<'a> {
    pub(super) certificate_path: PathBuf,
    pub(super) key_file: Option<NewFile<'a>>,
    pub(super) existing: Existing,
}

/// `NAME.crt` and `NAME.key`.
pub(super) fn files_of(name: &str, out: &Path) -> [PathBuf; 2] {
    ["crt", "key"].map(|end| out.join(format!("{name}.{end}")))
}
