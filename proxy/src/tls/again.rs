//! The verdict on a certificate that a live session showed at its handshake, by the verifiers of today: CAs, CRLs and
//! names may have changed since.

use std::io;
use std::time::Duration;

use protocol::error_response::Refusal;
use protocol::escape::escape;
use protocol::identity::Identity;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{CertificateError, Error};
use tracing::warn;

use super::explain::{explain_handshake, now};
use super::{Credentials, PeerCertificate};
use crate::config::Running;

impl Credentials {
    /// Whether a handshake with this client would succeed now; why not.
    pub(crate) fn judge_client(&self, peer: &PeerCertificate) -> Result<(), Box<Refusal>> {
        let verifier = self.client_verifier();
        self.judge(peer, |leaf, intermediates, time| {
            let verified = verifier.verify_client_cert(leaf, intermediates, time);
            verified.map(|_| ())
        })
        .or_else(|error| self.without_its_ca(peer, error))
        .map_err(|error| explained(error, leaf(peer), None))
    }

    /// Whether a handshake with this server, which must bear `name`, would succeed now; why not.
    pub(crate) fn judge_server(
        &self,
        peer: &PeerCertificate,
        name: &str,
    ) -> Result<(), Box<Refusal>> {
        let verifier = self.server_verifier();
        ServerName::try_from(name)
            .map_err(|error| Error::General(error.to_string()))
            .and_then(|name| {
                self.judge(peer, |leaf, intermediates, time| {
                    let verified =
                        verifier.verify_server_cert(leaf, intermediates, &name, &[], time);
                    verified.map(|_| ())
                })
                .or_else(|error| {
                    self.without_its_ca(peer, error)?;
                    verify_server_name(&ParsedCertificate::try_from(leaf(peer))?, &name)
                })
            })
            .map_err(|error| explained(error, leaf(peer), Some(name)))
    }

    /// A live session was admitted by a CA that was trusted then. At the end of a rotation that CA goes, and takes no
    /// stream with it: its leaves are refused to whoever connects anew, and were not revoked.
    fn without_its_ca(&self, peer: &PeerCertificate, error: Error) -> Result<(), Error> {
        let is_gone = matches!(
            error,
            Error::InvalidCertificate(CertificateError::UnknownIssuer)
        );
        if !is_gone || self.on_ca_removal() == Running::Close {
            return Err(error);
        }
        warn!(
            identity = escape(peer.identity.to_string()),
            "a session goes on whose certificate is of a CA that is trusted no more; a restart ends it [R20]"
        );
        Ok(())
    }

    /// By its dates, too, or by everything else.
    fn judge(
        &self,
        peer: &PeerCertificate,
        verify: impl Fn(&CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match (self.on_expiry(), &*peer.chain) {
            (Running::Close, [leaf, intermediates @ ..]) => {
                verify(leaf, intermediates, UnixTime::now())
            }
            (Running::Keep, chain) => but_for_dates(chain, now(), verify),
            (Running::Close, []) => Err(NOTHING_SHOWN),
        }
    }
}

const NOTHING_SHOWN: Error = Error::NoCertificatesPresented;

fn leaf(peer: &PeerCertificate) -> &CertificateDer<'static> {
    const NONE: &CertificateDer<'static> = &CertificateDer::from_slice(&[]);
    peer.chain.first().unwrap_or(NONE)
}

fn explained(error: Error, leaf: &CertificateDer<'_>, name: Option<&str>) -> Box<Refusal> {
    Box::new(explain_handshake(
        &io::Error::other(error),
        Some(leaf),
        name,
    ))
}

/// The verdict on a chain at `now`, or where something that it needs has expired or is not valid yet, at the moment
/// nearest to it at which all of that is valid. The verifier is shown nothing that is not valid then: it looks at dates
/// before revocation, so that an expired certificate could not be told from one that was revoked as well. What a chain
/// holds and does not need, such as an intermediate from before a renewal, may have any dates.
pub(super) fn but_for_dates(
    chain: &[CertificateDer<'_>],
    now: i64,
    verify: impl Fn(&CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), Error>,
) -> Result<(), Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(NOTHING_SHOWN)?;
    let (begin, end) = dates(leaf).unwrap_or((i64::MIN, i64::MAX));
    let nearest = now.max(begin).min(end);
    let dated: Vec<_> = intermediates.iter().map(|der| (der, dates(der))).collect();
    let edges = dated.iter().filter_map(|(_, dates)| *dates);
    let edges = edges.flat_map(|(begin, end)| [begin, end]);
    let mut moments: Vec<i64> = edges
        .filter(|moment| (begin..=end).contains(moment))
        .collect();
    moments.sort_unstable_by_key(|moment| moment.abs_diff(now));
    let mut verdict = Err(CertificateError::UnknownIssuer.into());
    for moment in std::iter::once(nearest).chain(moments) {
        let counts = |dates: &Option<(i64, i64)>| {
            dates.is_none_or(|(begin, end)| (begin..=end).contains(&moment))
        };
        let valid = dated.iter().filter(|(_, dates)| counts(dates));
        let valid: Vec<_> = valid
            .map(|(der, _)| CertificateDer::from_slice(der))
            .collect();
        let time = Duration::from_secs(u64::try_from(moment).unwrap_or_default());
        verdict = verify(leaf, &valid, UnixTime::since_unix_epoch(time));
        // Without one that was not valid then, the chain may lead nowhere.
        if !leads_nowhere(&verdict) {
            break;
        }
    }
    verdict
}

fn leads_nowhere(verdict: &Result<(), Error>) -> bool {
    matches!(
        verdict,
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    )
}

/// The first second and the last one.
fn dates(der: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let identity = Identity::parse(der).ok()?;
    Some((identity.not_before(), identity.not_after()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// Valid for these whole years.
    fn certificate(from: i32, until: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["name".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn year(year: i32) -> i64 {
        date_time_ymd(year, 1, 1).unix_timestamp()
    }

    /// At which moments a chain is judged whose leaf needs the first certificate behind it, and the verdict.
    fn judged(chain: &[CertificateDer<'static>], now: i64) -> (Vec<i64>, bool) {
        let moments = std::cell::RefCell::new(Vec::new());
        let verdict = but_for_dates(chain, now, |_, intermediates, time| {
            moments.borrow_mut().push(time.as_secs().cast_signed());
            if intermediates.contains(&chain[1]) {
                Ok(())
            } else {
                Err(CertificateError::UnknownIssuer.into())
            }
        });
        (moments.into_inner(), verdict.is_ok())
    }

    #[test]
    fn only_what_a_chain_needs_decides_when_it_is_judged() {
        let (leaf, needed, old) = (
            certificate(2020, 2030),
            certificate(2015, 2026),
            certificate(2010, 2018),
        );
        let chain = [leaf, needed, old];
        assert_eq!(judged(&chain, year(2025)), (vec![year(2025)], true));
        let after = vec![year(2027), year(2026)];
        assert_eq!(judged(&chain, year(2027)), (after, true));
        let long_after = vec![year(2030), year(2026)];
        assert_eq!(judged(&chain, year(2040)), (long_after, true));
        assert_eq!(judged(&chain, year(2000)), (vec![year(2020)], true));
        let without = [chain[0].clone(), certificate(1990, 1991)];
        assert_eq!(judged(&without, year(2025)), (vec![year(2025)], false));
    }
}
