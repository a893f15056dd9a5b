//! The TLS client's side: dialled targets become verified connections that show our certificate.

use std::io;
use std::sync::Arc;

use protocol::error_response::Refusal;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::{Resumption, UnbufferedClientConnection};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ClientConfig};

use super::connection::{Buffered, Tls, parameters};
use super::explain::explain_handshake;
use super::handshake::{Shaken, shake};
use super::hello::{SessionId, Watched};
use super::provider::provider;
use super::witness::{Shown, Witness};
use super::{ALPN_POSTGRESQL, Credentials, Established};
use crate::config::Records;
use crate::net::Stream;
use crate::relay::{InPlace, Kernel, RecordStream};

/// A connected socket on which nothing but SSLRequest and its answer has passed, and whom we expect there.
#[derive(Debug)]
pub(crate) struct Dialled<'a> {
    pub(crate) stream: Stream,
    pub(crate) server_name: &'a str,
    pub(crate) tls12: bool,
    pub(crate) records: Records,
}

/// Shakes hands as the client; the server must be who `server_name` says. The last flight may still be unsent: it goes out
/// with what is written next, or by a flush.
pub(crate) async fn connect(
    dialled: Dialled<'_>,
    credentials: &Credentials,
) -> Result<Established, Box<Refusal>> {
    let shown = Shown::default();
    let failed = |error: io::Error| {
        Box::new(explain_handshake(
            &error,
            shown.certificate().as_deref(),
            Some(dialled.server_name),
        ))
    };
    // TLS 1.2 has other records; rustls keeps those.
    let records = if dialled.tls12 {
        Records::Rustls
    } else {
        dialled.records
    };
    let config = session_config(credentials, &shown, dialled.tls12, records)
        .map_err(|error| failed(io::Error::other(error)))?;
    let name = ServerName::try_from(dialled.server_name.to_owned())
        .map_err(|error| failed(io::Error::other(error)))?;
    let (tls, id, parameters) = match records {
        Records::Rustls => {
            let stream = Watched::new(dialled.stream, None);
            let tls = TlsConnector::from(config)
                .connect(name, stream)
                .await
                .map_err(failed)?;
            let (stream, connection) = tls.get_ref();
            let (id, parameters) = (stream.id(), parameters(connection));
            (Tls::Buffered(Box::new(Buffered::new(tls))), id, parameters)
        }
        Records::InPlace => shake_in_place(dialled.stream, config, name)
            .await
            .map_err(failed)?,
    };
    let peer = shown.verified(credentials.met()).map_err(failed)?;
    Ok(Established {
        tls: Box::new(tls),
        peer,
        id,
        parameters,
    })
}

async fn shake_in_place(
    mut stream: Stream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<(Tls, SessionId, String)> {
    let mut connection = UnbufferedClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut id = None;
    let watch = |flight: &[u8]| id = id.or_else(|| SessionId::of(flight));
    let Shaken { behind, unsent } = shake(&mut connection, &mut stream, Vec::new(), watch).await?;
    let parameters = parameters(&connection);
    let (secrets, kernel) = connection
        .dangerous_into_kernel_connection()
        .map_err(io::Error::other)?;
    let records = InPlace::new(secrets, Kernel::Client(kernel));
    let stream = RecordStream::new(stream, records, behind, unsent)
        .map_err(|(fault, _)| io::Error::other(fault))?;
    Ok((Tls::InPlace(stream), id.unwrap_or_default(), parameters))
}

fn session_config(
    credentials: &Credentials,
    shown: &Shown,
    tls12: bool,
    records: Records,
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
    config.enable_secret_extraction = records == Records::InPlace;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
