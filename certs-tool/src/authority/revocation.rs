//! What a CA takes back: revocation and its list (RFC 5280, section 5).

use protocol::certificate::{Crl, Serial};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;

use super::{Authority, CA_CRL, cannot_sign};
use crate::ledger::{Entry, Event, Issued, Ledger, LockedLedger};
use crate::profile;
use crate::report::{Date, Failure};
use crate::store::{self, Existing, NewFile, Readers};

impl Authority {
    /// Revokes what this CA has issued under this name, or the one certificate with this serial number, and writes
    /// the CRL. What is revoked already is left alone; the certificates returned are those revoked now.
    pub fn revoke(&self, name_or_serial: &str) -> Result<Vec<Issued>, Failure> {
        let mut ledger = LockedLedger::open(&self.directory)?;
        let mut found = self.issued_as(&ledger, name_or_serial)?;
        found.retain(|issued| issued.revoked.is_none());
        let (at, crl) = (Date::now(), self.next_crl_number(&ledger));
        if found.is_empty() {
            // Even so the CRL may be missing: somebody came between the ledger and it.
            self.refresh(&mut ledger, crl, None)?;
            return Ok(found);
        }
        let entries = found.iter_mut().map(|issued| {
            issued.revoked = Some(at);
            Entry {
                event: Event::Revoked,
                at,
                ca: self.id(),
                crl,
                certificate: Some(issued.record.clone()),
            }
        });
        let entries = entries.collect();
        ledger.add(entries)?;
        self.write_crl(&ledger, crl, None)?;
        Ok(found)
    }

    fn issued_as(&self, ledger: &Ledger, name_or_serial: &str) -> Result<Vec<Issued>, Failure> {
        let mut own = ledger.issued();
        own.retain(|issued| issued.ca == self.id());
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
                    "the ledger in {} knows no such name or serial number",
                    self.directory.display()
                ),
                "`certs-tool list` shows what there is",
            ));
        }
        Ok(own)
    }

    /// Signs the CRL anew, to last as long as the CA unless said otherwise; gives its number.
    pub fn renew_crl(&self, end: Option<Date>) -> Result<u64, Failure> {
        let mut ledger = LockedLedger::open(&self.directory)?;
        let number = self.next_crl_number(&ledger);
        self.refresh(&mut ledger, number, end)?;
        Ok(number)
    }

    fn refresh(
        &self,
        ledger: &mut LockedLedger,
        number: u64,
        end: Option<Date>,
    ) -> Result<(), Failure> {
        ledger.add(vec![Entry {
            event: Event::Crl,
            at: Date::now(),
            ca: self.id(),
            crl: number,
            certificate: None,
        }])?;
        self.write_crl(ledger, number, end)
    }

    pub(super) fn next_crl_number(&self, ledger: &Ledger) -> u64 {
        // The file may know more than a ledger that was put back from a backup.
        let published = store::read(&self.directory.join(CA_CRL))
            .ok()
            .and_then(|pem| {
                let crls = CertificateRevocationListDer::pem_slice_iter(&pem).flatten();
                let own = crls
                    .filter_map(|der| Crl::parse(&der).ok())
                    .filter(|crl| crl.is_issued_by(&self.certificate));
                own.filter_map(|crl| number_of(crl.number()?)).max()
            });
        ledger
            .crl_number(&self.id())
            .max(published.unwrap_or(0))
            .saturating_add(1)
    }

    pub(super) fn write_crl(
        &self,
        ledger: &Ledger,
        number: u64,
        end: Option<Date>,
    ) -> Result<(), Failure> {
        let pem = self.signed_crl(ledger, number, end)?;
        let path = self.directory.join(CA_CRL);
        let file = NewFile {
            path,
            content: pem.as_bytes(),
            readers: Readers::Everybody,
        };
        store::write_all(&[file], Existing::Replace)
    }

    pub(super) fn signed_crl(
        &self,
        ledger: &Ledger,
        number: u64,
        end: Option<Date>,
    ) -> Result<String, Failure> {
        let [ca_begin, ca_end] =
            [self.certificate.not_before(), self.certificate.not_after()].map(Date::from_unix);
        let end = end.unwrap_or(ca_end);
        let revoked = ledger
            .issued()
            .into_iter()
            .filter(|issued| issued.ca == self.id())
            .filter_map(|issued| {
                Some(RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&bytes_of_hex(&issued.record.serial)?),
                    revocation_time: issued.revoked?.calendar(),
                    reason_code: None,
                    invalidity_date: None,
                })
            });
        let params = CertificateRevocationListParams {
            this_update: profile::crl_begin(Date::now(), ca_begin, end).calendar(),
            next_update: end.calendar(),
            crl_number: SerialNumber::from(number),
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

fn number_of(serial: &Serial) -> Option<u64> {
    serial.as_bytes().iter().try_fold(0_u64, |number, &byte| {
        number.checked_mul(256)?.checked_add(byte.into())
    })
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}
