//! What this node is to one that does not know it yet: where it is reached, under which name, by which CA, and how rules
//! name it. All of it is read from its own certificate and configuration.

use protocol::certificate::Certificate;
use protocol::identity::{Fingerprint, Identity};

use crate::config::Side;
use crate::net::{ListenAddress, Target};
use crate::problem::Problem;
use crate::reload::Checked;
use crate::tls::Credentials;

/// This node as rules have it.
pub(crate) fn own(identity: &Identity) -> Option<String> {
    identity
        .common_name()
        .map(|name| format!("cn:{name}"))
        .or_else(|| identity.dns().first().map(|name| format!("dns:{name}")))
}

/// Where the new node reaches this one, and the name in our certificate if no endpoint's host is one.
pub(super) fn endpoints(
    public: &[Target],
    checked: &Checked,
) -> Result<(Vec<Target>, Option<String>), Problem> {
    let identity = checked.credentials.identity();
    let plain_name = identity
        .dns()
        .iter()
        .find(|name| !name.contains('*'))
        .cloned();
    let any_name = plain_name.or_else(|| identity.ip().first().map(ToString::to_string));
    let Some(name) = any_name else {
        return Err(Problem::new(
            "E37",
            "this node's certificate has no name that another could expect",
            "it carries neither a host name nor an address",
            "issue it again with --san",
        ));
    };
    if public.is_empty() {
        let port =
            checked
                .config
                .tunnels
                .iter()
                .find_map(|tunnel| match (&tunnel.side, &tunnel.listen) {
                    (Side::Server(_), ListenAddress::Tcp(address)) if address.port() != 0 => {
                        Some(address.port())
                    }
                    _ => None,
                });
        let Some(port) = port else {
            return Err(Problem::new(
                "E38",
                "it is not known where other nodes reach this one",
                "no [[server]] listens on a fixed port",
                "say it: --public HOST:PORT",
            ));
        };
        return Ok((vec![Target { host: name, port }], None));
    }
    let carried = |host: &str| {
        identity
            .dns()
            .iter()
            .any(|name| name.eq_ignore_ascii_case(host))
            || host
                .parse()
                .is_ok_and(|address| identity.ip().contains(&address))
    };
    let all = public.iter().all(|target| carried(&target.host));
    Ok((public.to_vec(), (!all).then_some(name)))
}

/// The CA that our own certificate leads to: the one that the new node will be shown.
pub(super) fn pin(credentials: &Credentials) -> Result<Fingerprint, Problem> {
    let chain: Vec<Certificate> = credentials
        .chain()
        .iter()
        .filter_map(|der| Certificate::parse(der).ok())
        .collect();
    credentials
        .authorities()
        .iter()
        .filter_map(|der| Certificate::parse(der).ok())
        .find(|ca| chain.iter().any(|certificate| certificate.is_issued_by(ca)))
        .map(|ca| ca.fingerprint())
        .ok_or_else(|| {
            Problem::new(
                "E27",
                "this node's CA is not found",
                "no CA in identity.ca has signed its certificate",
                "pgtlsproxy check says more",
            )
        })
}
