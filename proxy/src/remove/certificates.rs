//! Who the node is by the CA's ledger, and the revocation of all that it has.

use std::path::Path;

use certs_tool::authority::{Authority, CA_CRL, CA_KEY};
use certs_tool::ledger::{Issued, Ledger};
use certs_tool::report::Date;
use protocol::certificate::Crl;
use protocol::identity::{Fingerprint, Identity, IdentityPattern};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;

use super::{Remove, Step, of_failure, unreadable};
use crate::node::to_pem;
use crate::problem::Problem;

/// What the CA knows.
pub(super) struct Certificates {
    name: String,
    /// All that the node ever got and whose time is not over.
    issued: Vec<Issued>,
    /// Whether it ever got one.
    known: bool,
    /// Every other node that has a certificate which counts.
    pub(super) others: Vec<String>,
    /// How rules may name this node and no other one.
    pub(super) patterns: Vec<IdentityPattern>,
    crls: Vec<CertificateRevocationListDer<'static>>,
}

impl Certificates {
    pub(super) fn read(wanted: &Remove) -> Result<Self, Problem> {
        let name = wanted.name.to_string();
        let key = wanted.pki.join(CA_KEY);
        if let Err(error) = key.symlink_metadata() {
            return Err(unreadable(&key, &error));
        }
        let ledger = Ledger::read(&wanted.pki).map_err(|failure| of_failure(&failure))?;
        let now = Date::now();
        let (own, others): (Vec<_>, Vec<_>) = ledger
            .issued()
            .into_iter()
            .partition(|issued| issued.record.name == name);
        let others: Vec<_> = others
            .into_iter()
            .filter(|issued| issued.counts(now))
            .collect();
        let mut names: Vec<String> = Vec::new();
        for issued in &others {
            if !names.contains(&issued.record.name) {
                names.push(issued.record.name.clone());
            }
        }
        let known = !own.is_empty();
        let patterns = patterns(&name, &own, &others);
        let issued = own
            .into_iter()
            .filter(|issued| issued.dropped.is_none() && issued.record.not_after >= now)
            .collect();
        Ok(Self {
            crls: read_crls(&wanted.pki.join(CA_CRL))?,
            name,
            issued,
            known,
            others: names,
            patterns,
        })
    }

    /// Whether the ledger has the name.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// Whether this certificate is one of them.
    pub(super) fn are_of(&self, identity: &Identity) -> bool {
        let fingerprint = identity.fingerprint().to_string();
        identity.common_name() == Some(&self.name)
            || self
                .issued
                .iter()
                .any(|issued| issued.record.sha256 == fingerprint)
    }

    /// The nodes that could be removed, for a person.
    pub(super) fn known_nodes(&self, own: &Identity) -> String {
        let names: Vec<_> = self
            .others
            .iter()
            .map(String::as_str)
            .filter(|name| Some(*name) != own.common_name())
            .collect();
        if names.is_empty() {
            "there is no other node".to_owned()
        } else {
            names.join(", ")
        }
    }

    /// What is left to do here.
    pub(super) fn due(&self) -> Option<String> {
        let valid = self
            .issued
            .iter()
            .filter(|issued| issued.revoked.is_none())
            .count();
        match valid {
            0 if self.all_on_the_list() => None,
            0 => Some("write the CRL anew".to_owned()),
            valid => Some(format!("revoke {valid} certificate(s) and write the CRL")),
        }
    }

    /// Revokes them and writes the CRL; the passphrase is asked for only if there is something to do.
    pub(super) fn revoke(&mut self, wanted: &Remove) -> Result<Step, Problem> {
        if self.due().is_none() {
            return Ok(Step::WasSo("no certificate of it counts".to_owned()));
        }
        let failure = |failure| of_failure(&failure);
        let path = wanted.pki.join(CA_KEY);
        let authority =
            Authority::open(&wanted.pki, || wanted.passphrase.ask(&path)).map_err(failure)?;
        let revoked = authority.revoke(&self.name).map_err(failure)?;
        *self = Self::read(wanted)?;
        let numbers: Vec<_> = self
            .crls
            .iter()
            .filter_map(|der| Some(Crl::parse(der).ok()?.number()?.to_string()))
            .collect();
        Ok(Step::Done(format!(
            "{} certificate(s) revoked; the CRL is written (number {}, hexadecimal)",
            revoked.len(),
            numbers.join(" and ")
        )))
    }

    /// The CRLs as they lie beside the CA.
    pub(super) fn crls(&self) -> Vec<String> {
        self.crls.iter().map(|der| to_pem(der)).collect()
    }

    /// What tells one of them from all others.
    pub(super) fn crl_fingerprints(&self) -> Vec<String> {
        let of = |der: &CertificateRevocationListDer<'_>| Fingerprint::of(der).to_string();
        self.crls.iter().map(of).collect()
    }

    /// A run that was killed between ledger and CRL leaves a list without them.
    fn all_on_the_list(&self) -> bool {
        let lists: Vec<_> = self
            .crls
            .iter()
            .filter_map(|der| Crl::parse(der).ok())
            .collect();
        self.issued.iter().all(|issued| {
            lists.iter().any(|list| {
                let serials = list.revoked().iter();
                serials
                    .map(ToString::to_string)
                    .any(|serial| serial == issued.record.serial)
            })
        })
    }
}

/// Common name, names and fingerprints, but for names that another node has, too, or that stand for several.
fn patterns(name: &str, own: &[Issued], others: &[Issued]) -> Vec<IdentityPattern> {
    let common = format!("cn:{name}");
    let names = own
        .iter()
        .flat_map(|issued| &issued.record.names)
        .filter(|name| !name.contains('*'))
        .filter(|name| !others.iter().any(|other| other.record.names.contains(name)));
    let fingerprints = own
        .iter()
        .map(|issued| format!("sha256:{}", issued.record.sha256));
    let all = names.cloned().chain(fingerprints).chain([common]);
    let mut patterns: Vec<IdentityPattern> = Vec::new();
    for pattern in all.filter_map(|text| text.parse().ok()) {
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    patterns
}

fn read_crls(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Problem> {
    match std::fs::read(path) {
        // One that is damaged or missing is written anew.
        Ok(pem) => Ok(CertificateRevocationListDer::pem_slice_iter(&pem)
            .flatten()
            .collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(unreadable(path, &error)),
    }
}
