//! The upstream's first answer: until it is there, every failure can still become an ErrorResponse. Towards a
//! PostgreSQL that speaks TLS itself, SCRAM-SHA-256-PLUS is taken out of AuthenticationSASL here, since it binds to the
//! TLS session, which ends at this proxy, and a plaintext frontend must refuse it (RFC 5802, section 6).

use std::io;

use protocol::error_response::{Refusal, SqlState};
use protocol::message::{Header, SaslEdit, sqlstate_of_error, without_scram_plus};
use tokio::io::{AsyncRead, AsyncReadExt};

/// An authentication or error message is read whole up to this size; a longer one is passed on as it is.
const LARGEST: u32 = 16 * 1024;
/// Answers that may come before authentication: NegotiateProtocolVersion, once.
const MOST_MESSAGES: usize = 4;

/// What came first, to be passed on before the relay.
pub(super) enum FirstAnswer {
    Bytes(Vec<u8>),
    /// "The database system is starting up" and the like (57P03): another target may serve.
    CannotConnectNow(Vec<u8>),
    /// Only channel binding is offered: no plaintext frontend can log in.
    OnlyChannelBinding,
}

/// The upstream closed or failed before its first answer was there.
#[derive(Debug)]
pub(super) struct NoAnswer(pub(super) io::Error);

/// Reads from a PostgreSQL on this host: the first bytes, whatever they are.
pub(super) async fn first_bytes(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<FirstAnswer, NoAnswer> {
    let mut bytes = vec![0; 8 * 1024];
    match stream.read(&mut bytes).await {
        Ok(0) => Err(NoAnswer(io::ErrorKind::UnexpectedEof.into())),
        Ok(n) => {
            bytes.truncate(n);
            Ok(FirstAnswer::Bytes(bytes))
        }
        Err(error) => Err(NoAnswer(error)),
    }
}

/// Reads whole messages up to the first that asks for authentication, and edits that one.
pub(super) async fn first_answer(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<FirstAnswer, NoAnswer> {
    let mut answer = Vec::new();
    for _ in 0..MOST_MESSAGES {
        let mut head = [0; 5];
        stream.read_exact(&mut head).await.map_err(NoAnswer)?;
        let (tag, body_length) = match Header::parse(head) {
            Some(header) if header.length <= LARGEST => {
                (header.tag, header.length.saturating_sub(4))
            }
            // Too long to hold, or the E of a server that speaks protocol 2.0: it is for the frontend to read.
            _ => {
                answer.extend_from_slice(&head);
                return Ok(FirstAnswer::Bytes(answer));
            }
        };
        let mut message = head.to_vec();
        stream
            .take(body_length.into())
            .read_to_end(&mut message)
            .await
            .map_err(NoAnswer)?;
        match tag {
            b'v' => answer.extend_from_slice(&message),
            b'E' if sqlstate_of_error(&message) == Some(SqlState::CANNOT_CONNECT_NOW) => {
                answer.extend_from_slice(&message);
                return Ok(FirstAnswer::CannotConnectNow(answer));
            }
            b'R' => {
                match without_scram_plus(&message) {
                    Ok(SaslEdit::Edited(edited)) => answer.extend_from_slice(&edited),
                    Ok(SaslEdit::OnlyChannelBinding) => return Ok(FirstAnswer::OnlyChannelBinding),
                    // What cannot be read is the frontend's to judge.
                    Ok(SaslEdit::Unchanged) | Err(_) => answer.extend_from_slice(&message),
                }
                return Ok(FirstAnswer::Bytes(answer));
            }
            _ => {
                answer.extend_from_slice(&message);
                return Ok(FirstAnswer::Bytes(answer));
            }
        }
    }
    Ok(FirstAnswer::Bytes(answer))
}

/// Why a frontend behind this proxy cannot log in there.
pub(super) fn only_channel_binding() -> Refusal {
    Refusal::new(
        "B03",
        SqlState::INVALID_AUTHORIZATION,
        "the server offers only authentication bound to TLS, which ends at this proxy",
    )
    .hint("run pgtlsproxy server beside that PostgreSQL")
}
