//! Drives rustls' unbuffered connection through a handshake: the only way to its kernel interface, and with it to
//! records in place. rustls sees one record more only when it asks for it, so that it never opens what came behind the
//! handshake: the answer that it would owe to a key update there would be lost with it. That is handed on.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::rustls::Error;
use tokio_rustls::rustls::client::UnbufferedClientConnection;
use tokio_rustls::rustls::server::UnbufferedServerConnection;
use tokio_rustls::rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus,
};

use crate::net::Stream;

/// What one read takes at most.
const PIECE: usize = 4096;
/// A handshake message has at most 64 KiB (rustls' own limit), and its records some more.
const LARGEST_FLIGHT: usize = 128 * 1024;
/// Rounds in which rustls may give out the alert of a failed handshake.
const ALERT_ROUNDS: usize = 4;

/// What was read from the peer.
struct Received {
    bytes: Vec<u8>,
    /// How much of it rustls may see.
    shown: usize,
    /// Where the first record begins that rustls has not seen whole.
    next: usize,
}

/// Both sides' unbuffered connections, which have the same method on different types.
pub(super) trait Unbuffered {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = tokio_rustls::rustls::client::ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = tokio_rustls::rustls::server::ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

enum Step {
    Again,
    Read,
    Done,
    Failed(io::Error),
}

/// What a handshake leaves to whoever goes on.
pub(super) struct Shaken {
    /// The records that came behind it.
    pub(super) behind: Vec<u8>,
    /// Our last flight, which is to be written before anything else: a client's goes out together with what it says next,
    /// so that its peer is woken once.
    pub(super) unsent: Vec<u8>,
}

/// Shakes hands over `stream`; `received` is what was read before. `wrote` is shown the first flight. A flight is written
/// whole, when the peer is waited for, and not record by record: each write would wake the peer. A failure has sent its
/// alert.
pub(super) async fn shake<C: Unbuffered>(
    connection: &mut C,
    stream: &mut Stream,
    received: Vec<u8>,
    mut wrote: impl FnMut(&[u8]),
) -> io::Result<Shaken> {
    let mut received = Received {
        bytes: received,
        shown: 0,
        next: 0,
    };
    let mut out = Vec::new();
    loop {
        let UnbufferedStatus { discard, state } = connection.process(received.shown());
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut out),
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                transmit.done();
                Step::Again
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
            Ok(_) => Step::Failed(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Step::Failed(tls_error(error)),
        };
        received.discard(discard);
        match step {
            Step::Again => {}
            Step::Read => {
                if !out.is_empty() {
                    wrote(&out);
                    stream.write_all(&out).await?;
                    out.clear();
                }
                while !received.show_more() {
                    read_piece(stream, &mut received.bytes).await?;
                }
            }
            Step::Done => {
                return Ok(Shaken {
                    behind: received.bytes,
                    unsent: out,
                });
            }
            Step::Failed(error) => {
                send_alert(connection, stream, received.bytes, out).await;
                return Err(error);
            }
        }
    }
}

impl Received {
    fn shown(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.shown).unwrap_or_default()
    }

    /// Drops what rustls is done with.
    fn discard(&mut self, length: usize) {
        self.bytes.drain(..length.min(self.bytes.len()));
        self.shown = self.shown.saturating_sub(length);
        self.next = self.next.saturating_sub(length);
    }

    /// Shows the next record, or what is there of it: rustls may refuse its header. False: nothing more is there.
    fn show_more(&mut self) -> bool {
        let before = self.shown;
        let header = self.bytes.get(self.next..).and_then(<[u8]>::first_chunk);
        let end = header.map(|&[_, _, _, high, low]| {
            self.next + 5 + usize::from(u16::from_be_bytes([high, low]))
        });
        match end {
            Some(end) if end <= self.bytes.len() => {
                self.next = end;
                self.shown = end;
            }
            _ => self.shown = self.bytes.len(),
        }
        self.shown > before
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> Step {
    let at = out.len();
    let mut room = 0;
    // The first try asks how much room is needed, the second has it.
    for _ in 0..2 {
        out.resize(at + room, 0);
        match data.encode(out.get_mut(at..).unwrap_or_default()) {
            Ok(n) => {
                out.truncate(at + n);
                return Step::Again;
            }
            Err(EncodeError::InsufficientSize(size)) => room = size.required_size,
            Err(error) => return Step::Failed(io::Error::other(error)),
        }
    }
    Step::Failed(io::Error::other("a handshake record has no room"))
}

async fn read_piece(stream: &mut Stream, received: &mut Vec<u8>) -> io::Result<()> {
    let have = received.len();
    if have > LARGEST_FLIGHT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the handshake is longer than any",
        ));
    }
    received.resize(have + PIECE, 0);
    let read = stream
        .read(received.get_mut(have..).unwrap_or_default())
        .await;
    received.truncate(have + *read.as_ref().unwrap_or(&0));
    match read? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Sends the alert that rustls has ready for a handshake that it refused. It must see again what it has not discarded.
async fn send_alert<C: Unbuffered>(
    connection: &mut C,
    stream: &mut Stream,
    mut received: Vec<u8>,
    mut out: Vec<u8>,
) {
    for _ in 0..ALERT_ROUNDS {
        match connection.process(&mut received).state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, &mut out);
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
            _ => break,
        }
    }
    // Whoever broke the handshake may be gone already.
    let _ = stream.write_all(&out).await;
}

/// As tokio-rustls wraps them, so that both are explained by the same words.
fn tls_error(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{
        ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
    };

    use super::*;
    use crate::relay::{InPlace, Kernel, RecordStream};

    fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let certified = rcgen::generate_simple_self_signed(vec!["peer".to_owned()]).unwrap();
        let certificate = CertificateDer::from(certified.cert.der().to_vec());
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let mut server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        server.send_tls13_tickets = 0;
        server.enable_secret_extraction = true;
        let mut client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_secret_extraction = true;
        (Arc::new(server), Arc::new(client))
    }

    /// Whatever the peer has to say, with a key update and data right behind its last flight, in pieces of `piece`.
    async fn peer_talks(mut peer: Connection, mut socket: tokio::net::UnixStream, piece: usize) {
        let mut said = false;
        loop {
            if !peer.is_handshaking() && !said {
                said = true;
                peer.refresh_traffic_keys().unwrap();
                peer.writer().write_all(b"early bird").unwrap();
            }
            let mut out = Vec::new();
            while peer.wants_write() {
                peer.write_tls(&mut out).unwrap();
            }
            for part in out.chunks(piece) {
                socket.write_all(part).await.unwrap();
            }
            let mut bytes = [0; 4096];
            let n = socket.read(&mut bytes).await.unwrap();
            let mut rest = bytes.get(..n).unwrap();
            while !rest.is_empty() {
                peer.read_tls(&mut rest).unwrap();
                peer.process_new_packets().unwrap();
            }
            let mut answer = [0; 100];
            if let Ok(n @ 1..) = peer.reader().read(&mut answer) {
                assert_eq!(answer.get(..n), Some(&b"the worm"[..]));
                return;
            }
        }
    }

    async fn a_key_update_behind_the_handshake_is_answered(we_serve: bool, piece: usize) {
        let (server, client) = configs();
        let name = ServerName::try_from("peer").unwrap();
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let mut stream = Stream::Unix(ours);
        let peer = if we_serve {
            Connection::from(ClientConnection::new(Arc::clone(&client), name.clone()).unwrap())
        } else {
            Connection::from(ServerConnection::new(Arc::clone(&server)).unwrap())
        };
        let peer = tokio::spawn(peer_talks(peer, theirs, piece));
        let (secrets, kernel, shaken) = if we_serve {
            let mut ours = UnbufferedServerConnection::new(server).unwrap();
            let shaken = shake(&mut ours, &mut stream, Vec::new(), |_| {}).await;
            let (secrets, kernel) = ours.dangerous_into_kernel_connection().unwrap();
            (secrets, Kernel::Server(kernel), shaken.unwrap())
        } else {
            let mut ours = UnbufferedClientConnection::new(client, name).unwrap();
            let shaken = shake(&mut ours, &mut stream, Vec::new(), |_| {}).await;
            let (secrets, kernel) = ours.dangerous_into_kernel_connection().unwrap();
            (secrets, Kernel::Client(kernel), shaken.unwrap())
        };
        let records = InPlace::new(secrets, kernel);
        let mut tls = RecordStream::new(stream, records, shaken.behind, shaken.unsent)
            .map_err(|(fault, _)| fault)
            .unwrap();
        let mut heard = [0; 10];
        tls.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"early bird");
        tls.write_all(b"the worm").await.unwrap();
        peer.await.unwrap();
    }

    #[tokio::test]
    async fn what_comes_behind_the_handshake_is_left_to_the_records() {
        for we_serve in [true, false] {
            for piece in [1, 100, usize::MAX] {
                a_key_update_behind_the_handshake_is_answered(we_serve, piece).await;
            }
        }
    }
}
