//! Which of several CRLs counts: of each of our CAs the one with the highest number (RFC 5280, 5.2.3), and only if that
//! CA signed it. Lists come from files and from other nodes; neither is believed without its signature.

use std::sync::Arc;

use protocol::certificate::{Certificate, Crl};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::provider::provider;

/// Lists of this many CAs are looked at; no node has more CAs, even in a rotation.
const MOST: usize = 16;

/// What came of offered lists.
#[derive(Default)]
pub(crate) struct Merged {
    /// Of each CA the newest.
    pub(crate) crls: Vec<CertificateRevocationListDer<'static>>,
    /// Those that took the place of an older one or of none: whose and which number.
    pub(crate) taken: Vec<String>,
    /// Those that are not believed, and why.
    pub(crate) refused: Vec<String>,
    /// Those that no CA of ours issued: of strangers, or of a CA that is trusted no more.
    pub(crate) foreign: Vec<String>,
}

/// Joins `offered` to what we `have`, which has been judged already.
pub(crate) fn merge(
    cas: &[CertificateDer<'_>],
    have: &[CertificateRevocationListDer<'static>],
    offered: Vec<CertificateRevocationListDer<'static>>,
) -> Merged {
    let mut merged = Merged {
        crls: have.to_vec(),
        ..Merged::default()
    };
    for der in offered.into_iter().take(MOST) {
        if merged.crls.contains(&der) {
            continue;
        }
        match place(cas, &merged.crls, &der) {
            Ok(Some((place, named))) => {
                match place.and_then(|place| merged.crls.get_mut(place)) {
                    Some(older) => *older = der,
                    None => merged.crls.push(der),
                }
                merged.taken.push(named);
            }
            Ok(None) => {}
            Err(Refused::Foreign(why)) => merged.foreign.push(why),
            Err(Refused::Unbelieved(why)) => merged.refused.push(why),
        }
    }
    merged
}

enum Refused {
    Foreign(String),
    Unbelieved(String),
}

/// Where a newer list belongs (None: it is the first of its CA), and its name; nothing if it is not newer.
fn place(
    cas: &[CertificateDer<'_>],
    have: &[CertificateRevocationListDer<'static>],
    der: &CertificateRevocationListDer<'static>,
) -> Result<Option<(Option<usize>, String)>, Refused> {
    let unbelieved = |why| Err(Refused::Unbelieved(why));
    let crl = match Crl::parse(der) {
        Ok(crl) => crl,
        Err(error) => return unbelieved(format!("a CRL is damaged: {error}")),
    };
    let issuer = crl.issuer();
    let Some(number) = crl.number() else {
        return unbelieved(format!("the CRL of {issuer} has no number"));
    };
    let (ca_der, ca) = cas
        .iter()
        .filter_map(|der| Some((der, Certificate::parse(der).ok()?)))
        .find(|(_, ca)| crl.is_issued_by(ca))
        .ok_or_else(|| Refused::Foreign(format!("the CRL of {issuer} is of no CA of ours")))?;
    let own = have
        .iter()
        .position(|der| Crl::parse(der).is_ok_and(|own| own.is_issued_by(&ca)));
    let own_number = own
        .and_then(|place| Crl::parse(have.get(place)?).ok())
        .and_then(|own| own.number().cloned());
    if own_number.is_some_and(|own| own >= *number) {
        return Ok(None);
    }
    let usable = is_signed_by(der, ca_der) && is_usable(der, ca_der);
    if !usable {
        return unbelieved(format!(
            "the CRL {number} of {issuer} is not signed by that CA"
        ));
    }
    Ok(Some((own, format!("CRL {number} of {issuer}"))))
}

fn is_signed_by(crl: &[u8], ca: &[u8]) -> bool {
    let Ok((_, crl)) = CertificateRevocationList::from_der(crl) else {
        return false;
    };
    let Ok((_, ca)) = X509Certificate::from_der(ca) else {
        return false;
    };
    let may_sign = ca
        .key_usage()
        .is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()));
    may_sign && crl.verify_signature(ca.public_key()).is_ok()
}

/// Whether handshakes could go by it: a list that only some parser reads must not stop the next start.
fn is_usable(crl: &CertificateRevocationListDer<'static>, ca: &CertificateDer<'_>) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned()).is_ok()
        && WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .with_crls([crl.clone()])
            .build()
            .is_ok()
}
