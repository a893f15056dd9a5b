//! The TLS client's side: dialled targets become verified connections that show our certificate.

use std::io;
use std::sync::Arc;

use protocol::error_response::Refusal;
use protocol::identity::Identity;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ClientConfig};
use tokio_rustls::{TlsConnector, TlsStream};

use super::explain::explain_handshake;
use super::hello::{Hello, Watched};
use super::provider::provider;
use super::witness::{Shown, Witness};
use super::{ALPN_POSTGRESQL, Credentials, Established};
use crate::net::Stream;

/// A connected socket on which nothing but SSLRequest and its answer has passed, and whom we expect there.
#[derive(Debug)]
pub(crate) struct Dialled<'a> {
    pub(crate) stream: Stream,
    pub(crate) server_name: &'a str,
    pub(crate) tls12: bool,
}

/// Shakes hands as the client; the server must be who `server_name` says.
pub(crate) async fn connect(
    dialled: Dialled<'_>,
    credentials: &Credentials,
) -> Result<Established, Box<Refusal>> {
    let shown = Shown::default();
    let failed = |error: io::Error| {
        Box::new(explain_handshake(
            &error,
            shown.certificate(),
            Some(dialled.server_name),
        ))
    };
    let config = session_config(credentials, &shown, dialled.tls12)
        .map_err(|error| failed(io::Error::other(error)))?;
    let name = ServerName::try_from(dialled.server_name.to_owned())
        .map_err(|error| failed(io::Error::other(error)))?;
    let stream = Watched::new(dialled.stream, Hello::Written, &[]);
    let tls = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(failed)?;
    let id = tls.get_ref().0.id();
    let identity = shown
        .certificate()
        .ok_or_else(|| failed(io::Error::other("the server showed no certificate")))
        .and_then(|der| {
            Identity::parse(der).map_err(|error| failed(io::Error::other(error.to_string())))
        })?;
    Ok(Established {
        tls: Box::new(TlsStream::from(tls)),
        identity,
        id,
    })
}

fn session_config(
    credentials: &Credentials,
    shown: &Shown,
    tls12: bool,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let versions: &[_] = if tls12 { &[&TLS13, &TLS12] } else { &[&TLS13] };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Witness {
            shown: shown.clone(),
            inner: credentials.server_verifier(),
        }))
        .with_client_cert_resolver(credentials.client_resolver());
    config.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
