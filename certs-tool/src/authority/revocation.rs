//! What a CA takes back: revocation and its list (RFC 5280, section 5).

use protocol::certificate::{Certificate, Crl, Serial};
use protocol::hex::from_hex;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authority, CA_CRL, Ca, cannot_sign, record};
use crate::contents;
use crate::ledger::{Event, Issued, Ledger, LockedLedger};
use crate::profile;
use crate::report::{Date, Failure};
use crate::store::{self, Existing, NewFile, Readers};
use crate::verify::Encoded;

impl Authority {
    /// Revokes what was issued under this name, or the one certificate with this serial number, and writes the CRL.
    /// What is revoked already is left alone; the certificates returned are those revoked now.
    pub fn revoke(&self, name_or_serial: &str) -> Result<Vec<Issued>, Failure> {
        let mut ledger = self.lock()?;
        let found = self.issued_as(&ledger, name_or_serial)?;
        self.revoke_these(&mut ledger, found)
    }

    /// Revokes this very certificate. It need not stand in the ledger, as long as this CA has signed it.
    pub(crate) fn revoke_certificate(
        &self,
        (certificate, der): &Encoded,
    ) -> Result<Vec<Issued>, Failure> {
        let mut ledger = self.lock()?;
        let signed_it = |ca: &&Ca| {
            let key = X509Certificate::from_der(&ca.der);
            let leaf = X509Certificate::from_der(der);
            certificate.is_issued_by(&ca.certificate)
                && matches!((leaf, key), (Ok((_, leaf)), Ok((_, ca)))
                    if leaf.verify_signature(Some(ca.public_key())).is_ok())
        };
        let Some(ca) = self.cas().find(signed_it) else {
            return Err(Failure::new(
                format!("{} is not a certificate of this CA", certificate.subject()),
                format!("it was issued by {}", certificate.issuer()),
                "--dir says where its CA is",
            ));
        };
        let (id, serial) = (ca.id(), certificate.serial().to_string());
        let known = ledger.issued().into_iter();
        let mut known = known.filter(|issued| issued.ca == id && issued.record.serial == serial);
        let found = known.next().unwrap_or_else(|| Issued {
            record: record(certificate, name_of(certificate)),
            revoked: ledger
                .revoked_by(&id)
                .iter()
                .find_map(|(revoked, at)| (*revoked == serial).then_some(*at)),
            ca: id,
            event: Event::Signed,
            dropped: None,
        });
        self.revoke_these(&mut ledger, vec![found])
    }

    fn revoke_these(
        &self,
        ledger: &mut LockedLedger,
        mut found: Vec<Issued>,
    ) -> Result<Vec<Issued>, Failure> {
        found.retain(|issued| issued.revoked.is_none());
        let at = Date::now();
        let events = found.iter_mut().map(|issued| {
            issued.revoked = Some(at);
            (
                Event::Revoked,
                issued.ca.clone(),
                Some(issued.record.clone()),
            )
        });
        // Even with nothing to revoke the CRL may be missing: somebody came between the ledger and it.
        let events = events.collect();
        self.enter(ledger, events)?;
        self.write_crls(ledger, None)?;
        Ok(found)
    }

    fn issued_as(&self, ledger: &Ledger, name_or_serial: &str) -> Result<Vec<Issued>, Failure> {
        let ids: Vec<String> = self.cas().map(Ca::id).collect();
        let mut own = ledger.issued();
        own.retain(|issued| ids.contains(&issued.ca));
        let plain = name_or_serial.replace(':', "").to_ascii_lowercase();
        let by_name = own
            .iter()
            .any(|issued| issued.record.name == name_or_serial);
        own.retain(|issued| {
            if by_name {
                issued.record.name == name_or_serial
            } else {
                issued.record.serial == plain
            }
        });
        if own.is_empty() {
            return Err(Failure::new(
                format!(
                    "this CA has issued nothing called {}",
                    protocol::escape::escape(name_or_serial)
                ),
                format!(
                    "the ledger in {} knows no such name or serial number, and no such file exists",
                    self.directory.display()
                ),
                "`certs-tool list` shows what there is",
            ));
        }
        Ok(own)
    }

    /// Signs the CRL anew, to last as long as the CA unless said otherwise; gives its number. During a rotation the
    /// CRL of the other CA is signed anew as well.
    pub fn renew_crl(&self, end: Option<Date>) -> Result<u64, Failure> {
        let ledger = self.renewed_crls(end)?;
        Ok(ledger.crl_number(&self.signing.id()))
    }

    /// As [`Authority::renew_crl`]; nobody changes the directory until the ledger is let go.
    pub(crate) fn renewed_crls(&self, end: Option<Date>) -> Result<LockedLedger, Failure> {
        let mut ledger = self.lock()?;
        self.enter(&mut ledger, Vec::new())?;
        self.write_crls(&ledger, end)?;
        Ok(ledger)
    }

    /// Signs the CRLs anew if one of them is missing or was signed more than so many seconds ago; whether it did.
    pub fn refresh_crl(&self, seconds: i64) -> Result<bool, Failure> {
        let oldest = Date::now().plus(-seconds).unix();
        let published = self.published_crls();
        let is_fresh = |ca: &Ca| {
            published
                .iter()
                .any(|(crl, _)| crl.is_issued_by(&ca.certificate) && crl.this_update() >= oldest)
        };
        if self.cas().all(is_fresh) {
            return Ok(false);
        }
        self.renew_crl(None).map(|_| true)
    }

    pub(super) fn next_crl_number(&self, ledger: &Ledger, ca: &Ca) -> u64 {
        // The file may know more than a ledger that was put back from a backup.
        let published = self.published_crls().into_iter();
        let own = published.filter(|(crl, _)| crl.is_issued_by(&ca.certificate));
        let published = own.filter_map(|(crl, _)| number_of(crl.number()?)).max();
        ledger
            .crl_number(&ca.id())
            .max(published.unwrap_or(0))
            .saturating_add(1)
    }

    /// What can be read of the CRL file.
    fn published_crls(&self) -> Vec<(Crl, CertificateRevocationListDer<'static>)> {
        let Ok(pem) = store::read(&self.directory.join(CA_CRL)) else {
            return Vec::new();
        };
        CertificateRevocationListDer::pem_slice_iter(&pem)
            .flatten()
            .filter_map(|der| Some((Crl::parse(&der).ok()?, der)))
            .collect()
    }

    /// Writes the CRL file: one for each CA, with the number that the ledger has for it.
    pub(super) fn write_crls(&self, ledger: &Ledger, end: Option<Date>) -> Result<(), Failure> {
        let pem = self.signed_crls(ledger, end)?;
        let path = self.directory.join(CA_CRL);
        let file = NewFile {
            path,
            content: pem.as_bytes(),
            readers: Readers::Everybody,
        };
        store::write_all(&[file], Existing::Replace)
    }

    pub(super) fn signed_crls(
        &self,
        ledger: &Ledger,
        end: Option<Date>,
    ) -> Result<String, Failure> {
        let mut pem = String::new();
        for ca in self.cas() {
            pem.push_str(&ca.signed_crl(ledger, end)?);
        }
        // A CA that somebody else put into the bundle has its CRL here too.
        for (crl, der) in self.published_crls() {
            let signed_it = |ca: &Certificate| crl.is_issued_by(ca);
            let own = self.cas().any(|ca| signed_it(&ca.certificate));
            if !own && self.bundle.iter().any(|(ca, _)| signed_it(ca)) {
                pem.push_str(&contents::to_pem("X509 CRL", &der)?);
            }
        }
        Ok(pem)
    }
}

impl Ca {
    fn signed_crl(&self, ledger: &Ledger, end: Option<Date>) -> Result<String, Failure> {
        let [ca_begin, ca_end] =
            [self.certificate.not_before(), self.certificate.not_after()].map(Date::from_unix);
        let (id, end) = (self.id(), end.unwrap_or(ca_end));
        let revoked = ledger.revoked_by(&id).into_iter();
        let revoked = revoked.filter_map(|(serial, at)| {
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&from_hex(serial)?),
                revocation_time: at.calendar(),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let params = CertificateRevocationListParams {
            this_update: profile::crl_begin(Date::now(), ca_begin, end).calendar(),
            next_update: end.calendar(),
            crl_number: SerialNumber::from(ledger.crl_number(&id)),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: match self.certificate.subject_key_id() {
                Some(id) => KeyIdMethod::PreSpecified(id.to_vec()),
                None => KeyIdMethod::Sha256,
            },
        };
        let crl = params
            .signed_by(&self.issuer()?)
            .map_err(|error| cannot_sign(&error))?;
        crl.pem().map_err(|error| cannot_sign(&error))
    }
}

/// What to call a certificate that the ledger does not know.
fn name_of(certificate: &Certificate) -> &str {
    certificate.identity().common_name().unwrap_or("unknown")
}

fn number_of(serial: &Serial) -> Option<u64> {
    serial.as_bytes().iter().try_fold(0_u64, |number, &byte| {
        number.checked_mul(256)?.checked_add(byte.into())
    })
}
