//! Certificates for nodes that renew themselves, and the CA's word for the one that follows it. Who asks is known by
//! the certificate that it shows and by the signature of that certificate's key; the ledger says what is granted.

use std::path::Path;

use protocol::escape::escape;
use protocol::identity::Fingerprint;
use protocol::node::{Node, Nodes, Word};
use rustls_pki_types::CertificateDer;

use super::certify::{Place, files_of};
use super::renewal::names_of;
use super::{Authority, Ca, NewCertificate, NewNode, Rotation, Stage};
use crate::ledger::{Event, Issued, Ledger};
use crate::profile::{self, KeyAlgorithm, NodeName, Period};
use crate::report::{Date, Failure};
use crate::request::Request;
use crate::store::Existing;
use crate::succession::{drop_word, is_signed_over, sign_list, vouch};

/// A certificate is renewed as long as no more than so many of its name are younger: an answer may be lost on its way,
/// and an old key must not have new certificates for ever.
const YOUNGER: usize = 3;
/// How long a CA's word for the next one counts.
const VOUCHED_FOR: i64 = 7 * 86_400;
/// So many CAs that were dropped last are told of: a node that was away for longer is set up anew.
const DROPPED_TOLD: usize = 16;

/// What a node that renews itself says.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The certificate that it showed.
    pub certificate: &'a CertificateDer<'a>,
    /// The request for its new key, as PEM.
    pub request: &'a str,
    /// The request's signature by the old key, in hexadecimal.
    pub signature: &'a str,
}

impl Authority {
    /// Makes the next certificate of a node, `NAME.crt` in the CA's directory, for the key of its request and with the
    /// names of the certificate that it has. Refused where the signature is wrong, or the certificate is unknown,
    /// revoked, not due, or with more than three younger ones of its name.
    pub fn succeed(&self, asked: &Asked<'_>) -> Result<NewCertificate, Failure> {
        if !is_signed_over(asked.request, asked.certificate, asked.signature) {
            return Err(Failure::new(
                "the request is not signed with the key of the certificate that was shown",
                "whoever passed it on has changed it, or made it up",
                "look at the daemon on the CA's host",
            ));
        }
        let request = Request::parse(asked.request.as_bytes(), Path::new("the request"))?;
        let mut ledger = self.lock()?;
        let last = self.may_succeed(&ledger, asked.certificate)?;
        let name: NodeName =
            last.record.name.parse().map_err(|why: String| {
                Failure::new("the ledger holds a name that is none", why, "")
            })?;
        let node = NewNode {
            names: names_of(&last)?,
            key_algorithm: KeyAlgorithm::default(),
            period: self.next_period(&last, Period::default()),
            name,
        };
        let signed = self.make(&node, request.public_key())?;
        let [certificate_path, _] = files_of(node.name.as_str(), &self.directory);
        let place = Place {
            certificate_path,
            key_file: None,
            existing: Existing::Replace,
        };
        // Who was invited stays so.
        let event = match last.event {
            Event::Joined => Event::Joined,
            _ => Event::Signed,
        };
        self.publish(&mut ledger, event, &node, signed, place)
    }

    /// The ledger's entry of this very certificate, if it may have a successor now.
    fn may_succeed(
        &self,
        ledger: &Ledger,
        certificate: &CertificateDer<'_>,
    ) -> Result<Issued, Failure> {
        let print = Fingerprint::of(certificate).to_string();
        let mut issued = ledger.issued();
        let Some(place) = issued.iter().position(|one| one.record.sha256 == print) else {
            return Err(Failure::new(
                "the ledger does not know this certificate",
                format!("its SHA-256 is {print}"),
                "`certs-tool sign` or `pgtlsproxy invite` makes one that it knows",
            ));
        };
        let later = issued.split_off(place + 1);
        let last = issued.swap_remove(place);
        let name = escape(&last.record.name);
        let younger = later
            .iter()
            .filter(|one| one.record.name == last.record.name);
        if last.revoked.is_some() {
            return Err(Failure::new(
                format!("the certificate of {name} is revoked"),
                "what was taken back is not renewed",
                format!("if the node is to come back: pgtlsproxy invite --replace {name}"),
            ));
        }
        if last.dropped.is_some() {
            return Err(Failure::new(
                format!("the certificate of {name} is of a CA that was dropped"),
                "no node trusts it any more",
                format!("pgtlsproxy invite --replace {name}"),
            ));
        }
        if younger.count() > YOUNGER {
            return Err(Failure::new(
                format!("the certificate of {name} has been succeeded more than {YOUNGER} times"),
                "an old key is at work, or a host that was put back from a backup",
                format!("find out which; then pgtlsproxy invite --replace {name}"),
            ));
        }
        let record = &last.record;
        // A little earlier than the node asks: its clock may be ahead of ours.
        let quarter = profile::life(record.not_before, record.not_after) / 12;
        let due = profile::asks_from(record.not_before, record.not_after).plus(-quarter);
        if last.ca == self.signing.id() && Date::now() < due {
            return Err(Failure::new(
                format!("the certificate of {name} is not due"),
                format!("it is renewed from {due} on"),
                "compare the clocks of both hosts",
            ));
        }
        Ok(last)
    }

    /// Why whoever trusts the old CA of a rotation may trust the new one. Without a rotation there is nothing to say.
    pub fn vouchers(&self) -> Result<Vec<Word>, Failure> {
        let (old, new): (&Ca, &Ca) = match (Rotation::read(&self.directory)?.stage, &self.other) {
            (Stage::Trust, Some(next)) => (&self.signing, next),
            (Stage::Leaves, Some(old)) => (old, &self.signing),
            _ => return Ok(Vec::new()),
        };
        let until = Date::now().plus(VOUCHED_FOR);
        Ok(vec![vouch(old.der(), &old.key, new.der(), until)?])
    }

    /// The signing CA's word which CAs of its ledger are to be trusted no longer.
    pub fn dropped(&self) -> Result<Vec<Word>, Failure> {
        let (by, until) = (&self.signing, Date::now().plus(VOUCHED_FOR));
        let ledger = Ledger::read(&self.directory)?;
        let prints = ledger.dropped_authorities();
        let last = prints.into_iter().rev().take(DROPPED_TOLD);
        last.filter(|ca| *ca != Fingerprint::of(by.der()))
            .map(|ca| drop_word(by.der(), &by.key, ca, until))
            .collect()
    }

    /// Every node that was invited and has a certificate that counts now: its newest one.
    pub fn joined(&self) -> Result<Vec<Issued>, Failure> {
        let mut counting = Ledger::read(&self.directory)?.counting(Date::now());
        counting.retain(|issued| issued.event == Event::Joined);
        Ok(counting)
    }

    /// The signing CA's word that these are its nodes.
    pub fn list(&self, nodes: Vec<Node>) -> Result<Nodes, Failure> {
        let (by, until) = (&self.signing, Date::now().plus(VOUCHED_FOR));
        sign_list(by.der(), &by.key, nodes, until)
    }

    /// The encoding of the certificate of the CA that signs.
    pub fn signing_der(&self) -> &CertificateDer<'static> {
        &self.signing.der
    }
}
