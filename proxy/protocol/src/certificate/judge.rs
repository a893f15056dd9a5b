//! The judgement: which faults a certificate, a CA file or a set of CRLs has for our use. What TLS libraries refuse
//! without saying why is found here first (RFC 5280; webpki's rules).

use super::fault::{Fault, Moment, Which};
use super::{Certificate, Crl, KeyAlgorithm, Signature};

/// What a certificate is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A node: TLS server and TLS client, since roles swap at failover.
    Node,
    /// An entry of the CA bundle.
    Ca,
    /// PostgreSQL's own `ssl_cert_file`, dialled by a `client` tunnel or by libpq.
    PostgresItself,
}

/// What is wrong with this certificate for this use, the worst first.
pub fn faults(certificate: &Certificate, for_use: Use, now: i64) -> Vec<Fault> {
    let which = || Which::of(certificate);
    let mut found: Vec<Fault> = date_fault(certificate, now).into_iter().collect();
    if !certificate.key().is_usable() {
        found.push(Fault::UnusableKey(which(), certificate.key().clone()));
    }
    let trusted_as_it_is = for_use == Use::Ca && certificate.is_self_issued();
    if matches!(
        certificate.signature(),
        Signature::Broken(_) | Signature::Unknown
    ) && !trusted_as_it_is
    {
        found.push(Fault::UnusableSignature(which(), certificate.signature()));
    }
    match for_use {
        Use::Ca => ca_faults(certificate, &mut found),
        Use::Node | Use::PostgresItself => node_faults(certificate, for_use, &mut found),
    }
    found.sort_by_key(Fault::is_warning);
    found
}

/// Whether the time of a certificate is over or not yet come, or less than a third of it is left.
pub fn date_fault(certificate: &Certificate, now: i64) -> Option<Fault> {
    let (begin, end) = (certificate.not_before(), certificate.not_after());
    let which = Which::of(certificate);
    if now > end {
        Some(Fault::Expired(which, Moment { at: end, now }))
    } else if now < begin {
        Some(Fault::NotYetValid(which, Moment { at: begin, now }))
    } else if is_last_third(begin, end, now) {
        Some(Fault::ExpiresSoon(which, Moment { at: end, now }))
    } else {
        None
    }
}

/// Whether less than a third is left of a life from `begin` to `end`: time to renew.
pub fn is_last_third(begin: i64, end: i64, now: i64) -> bool {
    end.saturating_sub(now) < end.saturating_sub(begin) / 3
}

fn ca_faults(certificate: &Certificate, found: &mut Vec<Fault>) {
    let which = || Which::of(certificate);
    // A root of version 1 cannot say that it is a CA; whoever put it there says so, and webpki takes it.
    if !certificate.is_ca() && certificate.version() >= 3 {
        found.push(Fault::NotACa(which()));
    } else if !certificate.may_sign_certificates() {
        found.push(Fault::CaMayNotSign(which()));
    }
    if *certificate.key() == KeyAlgorithm::Ed25519 {
        found.push(Fault::Ed25519(which()));
    }
}

fn node_faults(certificate: &Certificate, for_use: Use, found: &mut Vec<Fault>) {
    let which = || Which::of(certificate);
    if certificate.is_self_issued() && (certificate.may_sign_handshakes() || !certificate.is_ca()) {
        // `openssl req -x509` makes it a CA too, but that is not what its owner got wrong.
        found.push(Fault::SelfSigned(which()));
    } else if certificate.is_ca() {
        found.push(Fault::CaAsNode(which()));
        return;
    }
    if certificate.version() < 3 {
        // The other faults follow from this one.
        found.push(Fault::OldVersion(which(), certificate.version()));
        return;
    }
    if let Some(purposes) = certificate.purposes() {
        if !purposes.server {
            found.push(Fault::NotForServers(which()));
        }
        if !purposes.client && for_use == Use::Node {
            found.push(Fault::NotForClients(which()));
        }
    }
    if !certificate.may_sign_handshakes() {
        found.push(Fault::NotForHandshakes(which()));
    }
    let identity = certificate.identity();
    if identity.dns().is_empty() && identity.ip().is_empty() && identity.uri().is_empty() {
        found.push(Fault::NoNames(which()));
    }
    if for_use == Use::PostgresItself && certificate.signature() == Signature::Ed25519 {
        found.push(Fault::Ed25519(which()));
    }
}

/// What is wrong with the CA file.
pub fn bundle_faults(cas: &[Certificate], now: i64) -> Vec<Fault> {
    if cas.is_empty() {
        return vec![Fault::NoCa];
    }
    let mut found: Vec<Fault> = cas.iter().flat_map(|ca| faults(ca, Use::Ca, now)).collect();
    if cas.iter().all(|ca| !ca.is_ca() && ca.version() >= 3) {
        found.push(Fault::NoCa);
    }
    found.sort_by_key(Fault::is_warning);
    found
}

/// What is wrong with these CRLs for these CAs. Without any CRL nothing is: then none is configured.
pub fn crl_faults(crls: &[Crl], cas: &[Certificate], now: i64) -> Vec<Fault> {
    if crls.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for ca in cas.iter().filter(|ca| ca.is_ca()) {
        let mut own = crls.iter().filter(|crl| crl.is_issued_by(ca)).peekable();
        if own.peek().is_none() {
            found.push(Fault::NoCrl(Which::of(ca)));
        } else if !ca.may_sign_crls() {
            found.push(Fault::CaMayNotSignCrls(Which::of(ca)));
        }
    }
    // One that was signed anew for its old key is judged by the same list.
    let is_double = |(place, ca): &(usize, &Certificate)| {
        let before = cas.iter().take(*place);
        let of_that_name = |other: &&Certificate| other.subject() == ca.subject();
        before
            .filter(of_that_name)
            .any(|other| other.subject_key_id() != ca.subject_key_id())
    };
    let doubles = cas.iter().enumerate().filter(is_double);
    found.extend(doubles.map(|(_, ca)| Fault::SameName(Which::of(ca))));
    for crl in crls {
        let issuer = crl.issuer().to_string();
        if cas.iter().any(|ca| crl.is_issued_by(ca)) {
            found.extend(crl_date_fault(crl, now));
        } else {
            let namesake = cas.iter().any(|ca| ca.subject() == crl.issuer());
            found.push(Fault::ForeignCrl { issuer, namesake });
        }
    }
    found.sort_by_key(Fault::is_warning);
    found
}

/// Whether the time of a CRL is over, or nearly so.
pub fn crl_date_fault(crl: &Crl, now: i64) -> Option<Fault> {
    let (issuer, end) = (crl.issuer().to_string(), crl.next_update()?);
    let next_update = Moment { at: end, now };
    if now > end {
        Some(Fault::CrlExpired {
            issuer,
            next_update,
        })
    } else if is_last_third(crl.this_update(), end, now) {
        Some(Fault::CrlExpiresSoon {
            issuer,
            next_update,
        })
    } else {
        None
    }
}

/// Whether the certificate leads to one of the CAs, directly or through the intermediates, as far as names and key
/// identifiers tell; gives what is wrong if it does not. Whether the signatures are right is not judged here.
pub fn leads_to(
    leaf: &Certificate,
    intermediates: &[Certificate],
    cas: &[Certificate],
) -> Option<Fault> {
    let mut reached = vec![leaf];
    let mut next = 0;
    while let Some(&last) = reached.get(next) {
        if cas.iter().any(|ca| last.is_issued_by(ca)) {
            return None;
        }
        for intermediate in intermediates
            .iter()
            .filter(|intermediate| last.is_issued_by(intermediate))
        {
            // Each is visited once, so that a circle ends as well.
            if !reached.contains(&intermediate) {
                reached.push(intermediate);
            }
        }
        next = next.saturating_add(1);
    }
    if leaf.is_self_issued() {
        return Some(Fault::SelfSigned(Which::of(leaf)));
    }
    let missing = reached.last().unwrap_or(&leaf).issuer();
    Some(Fault::NoPath {
        leaf: Which::of(leaf),
        missing: missing.to_string(),
        namesake: cas.iter().any(|ca| ca.subject() == missing),
    })
}

#[cfg(test)]
mod tests;
