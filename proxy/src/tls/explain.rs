//! What rustls says, in the words of the person who must mend it: whose certificate, which date, which name was
//! wanted, and what to do.

use std::fmt;
use std::io;

use protocol::certificate::{Certificate, Use, faults};
use protocol::error_response::{Refusal, SqlState};
use protocol::escape::escape;
use protocol::identity::Identity;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::relay::Fault;

/// Explains a handshake that failed. `shown` is the peer's certificate if it showed one, `wanted` the name that it
/// should carry (on the TLS client's side only).
pub(super) fn explain_handshake(
    error: &io::Error,
    shown: Option<&[u8]>,
    wanted: Option<&str>,
) -> Refusal {
    let peer = if wanted.is_some() { "server" } else { "client" };
    match rustls_error(error) {
        Some(Error::InvalidCertificate(fault)) => explain_certificate(fault, shown, wanted, peer),
        Some(Error::InvalidCertRevocationList(fault)) => refusal(
            "T26",
            format!("our CRL cannot be used: {fault:?}"),
            "replace the file that identity.crl names (certs-tool crl), then reload",
        ),
        Some(Error::NoCertificatesPresented) => refusal(
            "T25",
            format!("the {peer} showed no certificate"),
            "give it a certificate of our CA (certs-tool issue; libpq: sslcert and sslkey)",
        ),
        Some(Error::AlertReceived(alert)) => explain_alert(*alert, peer),
        Some(Error::PeerIncompatible(reason)) => refusal(
            "T30",
            format!("the {peer} and we have no TLS in common: {reason:?}"),
            "both sides need TLS 1.3 (towards an old PostgreSQL: client.min_tls = \"1.2\")",
        ),
        Some(Error::NoApplicationProtocol) => refusal(
            "T31",
            format!("the {peer} does not speak the ALPN protocol postgresql"),
            "is it a pgtlsproxy, or PostgreSQL 17 or later? Else set sslnegotiation = \"postgres\"",
        ),
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => refusal(
            "T32",
            format!("the {peer} does not speak TLS"),
            "look at the address and port; towards PostgreSQL before 17 set sslnegotiation = \"postgres\"",
        ),
        Some(other) => refusal(
            "T33",
            format!("the TLS handshake with the {peer} failed: {other}"),
            "look at the log of the other side at the same time",
        ),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => refusal(
                "T34",
                format!("the {peer} closed the connection during the TLS handshake"),
                "look at its log: it says whom it refused and why",
            ),
            _ => refusal(
                "T35",
                format!("the connection failed during the TLS handshake: {error}"),
                "look at the network between the two hosts",
            ),
        },
    }
}

/// Explains why the first read after a handshake failed: with TLS 1.3 the server judges our certificate only then.
/// None if TLS has nothing to do with it.
pub(crate) fn explain_read(error: &io::Error) -> Option<Refusal> {
    if let Some(alert) = alert_from_peer(error) {
        return Some(explain_alert(alert, "server"));
    }
    let other: &dyn fmt::Display = match (rustls_error(error), records_fault(error)) {
        (Some(other), _) => other,
        (None, Some(fault)) => fault,
        (None, None) => return None,
    };
    Some(refusal(
        "T33",
        format!("the TLS connection to the server failed: {other}"),
        "look at the log of the other side at the same time",
    ))
}

/// The alert by which the peer ended a connection.
pub(crate) fn alert_from_peer(error: &io::Error) -> Option<AlertDescription> {
    match (rustls_error(error), records_fault(error)) {
        (Some(Error::AlertReceived(alert)), _) => Some(*alert),
        (_, Some(Fault::PeerAlert(alert))) => Some(*alert),
        _ => None,
    }
}

/// What was wrong with records that are opened in place, which rustls does not see.
fn records_fault(error: &io::Error) -> Option<&Fault> {
    error.get_ref()?.downcast_ref()
}

fn rustls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn refusal(id: &'static str, message: String, hint: &str) -> Refusal {
    Refusal::new(id, SqlState::CANNOT_CONNECT_NOW, message).hint(hint)
}

fn explain_certificate(
    fault: &CertificateError,
    shown: Option<&[u8]>,
    wanted: Option<&str>,
    peer: &str,
) -> Refusal {
    let whose = shown.and_then(|der| Identity::parse(der).ok()).map_or_else(
        || format!("the {peer}'s certificate"),
        |identity| format!("the {peer}'s certificate ({identity})"),
    );
    use CertificateError as Fault;
    match fault {
        Fault::ExpiredContext { not_after, .. } => refusal(
            "T01",
            format!("{whose} expired on {}", date(*not_after)),
            &format!(
                "renew it (certs-tool renew NAME on the CA's host) and put it in place on the {peer}'s host"
            ),
        ),
        Fault::NotValidYetContext { not_before, time } => refusal(
            "T02",
            format!("{whose} is valid only from {}", date(*not_before)),
            &format!("compare the clocks: here it is {}", date(*time)),
        ),
        Fault::Revoked => refusal(
            "T23",
            format!("{whose} has been revoked"),
            "issue a new one under this CA if the host is to come back",
        ),
        Fault::NotValidForNameContext { presented, .. } => refusal(
            "T24",
            format!(
                "{whose} is not for {}; it carries {}",
                escape(wanted.unwrap_or("the name wanted").as_bytes()),
                escape(presented.join(", ").as_bytes())
            ),
            "set client.server_name to a name that it carries, or issue it again with --san",
        ),
        Fault::UnknownIssuer | Fault::BadSignature => refusal(
            "T17",
            format!("{whose} does not lead to a CA in identity.ca"),
            "both hosts need certificates of the same CA, and its ca.crt in identity.ca",
        ),
        Fault::InvalidPurposeContext { .. } | Fault::InvalidPurpose => refusal(
            if wanted.is_some() { "T07" } else { "T08" },
            format!("{whose} may not be used by a {peer} (extended key usage)"),
            "issue it again with certs-tool, which sets serverAuth and clientAuth",
        ),
        Fault::UnknownRevocationStatus => refusal(
            "T21",
            format!("no CRL in identity.crl covers the CA of {whose}"),
            "add that CA's CRL to the file (certs-tool crl), then reload",
        ),
        Fault::ExpiredRevocationListContext { next_update, .. } => refusal(
            "T18",
            format!(
                "the CRL that covers {whose} expired on {}",
                date(*next_update)
            ),
            "make a new one (certs-tool crl), copy it here and reload; or set identity.crl_expiry = \"warn\"",
        ),
        other => {
            let fault =
                shown
                    .and_then(|der| Certificate::parse(der).ok())
                    .and_then(|certificate| {
                        faults(&certificate, Use::Node, now())
                            .into_iter()
                            .find(|fault| !fault.is_warning())
                    });
            match fault {
                Some(fault) => refusal(
                    fault.id(),
                    format!("{whose} cannot be used: {fault}"),
                    &fault.way_out(),
                ),
                None => refusal(
                    "T29",
                    format!("{whose} cannot be used: {other}"),
                    "issue it again with certs-tool",
                ),
            }
        }
    }
}

/// What the peer told us about our own certificate or offer (RFC 8446, 6.2).
fn explain_alert(alert: AlertDescription, peer: &str) -> Refusal {
    use AlertDescription as Alert;
    let (id, why, hint) = match alert {
        Alert::CertificateExpired => (
            "T41",
            "our certificate has expired, or its clock is ahead",
            "renew our certificate; compare the clocks of both hosts",
        ),
        Alert::CertificateRevoked => (
            "T43",
            "our certificate has been revoked",
            "get a new certificate from the CA's host",
        ),
        Alert::UnknownCA => (
            "T45",
            "our certificate does not lead to a CA that it trusts, or its CRL does not cover it",
            "both hosts need certificates of the same CA",
        ),
        Alert::BadCertificate | Alert::UnsupportedCertificate | Alert::CertificateUnknown => (
            "T46",
            "it cannot accept our certificate",
            "its log names what is wrong; pgtlsproxy check looks at our files",
        ),
        Alert::CertificateRequired => (
            "T48",
            "it wants a certificate and got none",
            "set identity.cert and identity.key",
        ),
        Alert::DecryptError => (
            "T49",
            "it could not verify our signature",
            "pgtlsproxy check tells whether key and certificate belong together",
        ),
        Alert::NoApplicationProtocol => (
            "T31",
            "it does not speak the ALPN protocol postgresql",
            "is it a pgtlsproxy, or PostgreSQL 17 or later? Else set sslnegotiation = \"postgres\"",
        ),
        Alert::ProtocolVersion | Alert::HandshakeFailure => (
            "T30",
            "it has no TLS version or suite in common with us",
            "both sides need TLS 1.3 (towards an old PostgreSQL: client.min_tls = \"1.2\")",
        ),
        _ => (
            "T47",
            "it sent a TLS alert",
            "its log at the same time says why",
        ),
    };
    refusal(
        id,
        format!("the {peer} refused the TLS connection: {why}"),
        hint,
    )
    .detail(format!("TLS alert {alert:?}"))
}

/// Seconds since 1970, for what needs the time as an argument.
pub(super) fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

fn date(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|date| {
            let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
            date.format(&format).ok()
        })
        .unwrap_or_else(|| format!("{} s after 1970", time.as_secs()))
}
