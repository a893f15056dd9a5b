//! Drives rustls' unbuffered connection through a handshake: the only way to its kernel interface, and with it to
//! records in place. Reads no more than comes, and hands on what came behind the handshake.

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

/// What came along behind the handshake.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// Ciphertext that was not opened.
    pub(super) received: Vec<u8>,
    /// Payload that rustls opened already.
    pub(super) payload: Vec<u8>,
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
    Write,
    Read,
    Done,
    Failed(io::Error),
}

/// Shakes hands over `stream`; `received` is what was read before. `wrote` is shown the first flight.
/// A failure has sent its alert.
pub(super) async fn shake<C: Unbuffered>(
    connection: &mut C,
    stream: &mut Stream,
    received: Vec<u8>,
    mut wrote: impl FnMut(&[u8]),
) -> io::Result<Behind> {
    let mut behind = Behind {
        received,
        payload: Vec::new(),
    };
    let mut out = Vec::new();
    loop {
        let UnbufferedStatus { discard, state } = connection.process(&mut behind.received);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut out),
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                transmit.done();
                Step::Write
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                let mut step = Step::Again;
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => behind.payload.extend_from_slice(record.payload),
                        Err(error) => step = Step::Failed(tls_error(error)),
                    }
                }
                step
            }
            Ok(_) => Step::Failed(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Step::Failed(tls_error(error)),
        };
        behind.received.drain(..discard.min(behind.received.len()));
        match step {
            Step::Again => {}
            Step::Write => {
                wrote(&out);
                stream.write_all(&out).await?;
                out.clear();
            }
            Step::Read => read_piece(stream, &mut behind.received).await?,
            Step::Done => {
                stream.write_all(&out).await?;
                return Ok(behind);
            }
            Step::Failed(error) => {
                send_alert(connection, stream, behind.received, out).await;
                return Err(error);
            }
        }
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
