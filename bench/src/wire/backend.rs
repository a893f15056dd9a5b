//! The built-in backend: answers as a walsender, one thread per session. It takes any number of sessions and ends
//! with the value that holds it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use protocol::message::{Header, encode_message};
use protocol::replication::{Lsn, StandbyStatusUpdate, XLogData};
use protocol::startup::{FirstPacket, parse_packet, parse_packet_length};

use super::wal::{Pattern, Sender};
use super::{Message, PATIENCE, Wish, broken, now, prepare, send};
use crate::problem::{Doing, Problem};

/// Thousands of silent sessions have a thread each: small ones.
const STACK: usize = 128 * 1024;

/// A backend on a free port of loopback, for as long as the program runs.
#[derive(Debug)]
pub(crate) struct Backend {
    address: SocketAddr,
}

impl Backend {
    pub(crate) fn start() -> Result<Self, Problem> {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = listener
            .local_addr()
            .doing(|| "the backend has no address".to_owned())?;
        thread::spawn(move || accept_for_ever(&listener));
        Ok(Self { address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// `pgtlsproxy-bench backend`: the far end of a tunnel that is loaded from elsewhere.
pub(crate) fn serve_for_ever(address: SocketAddr) -> Result<(), Problem> {
    let listener = listen(address)?;
    let address = listener
        .local_addr()
        .doing(|| "the backend has no address".to_owned())?;
    eprintln!("listening on {address}; Ctrl-C ends it");
    accept_for_ever(&listener);
    Ok(())
}

fn listen(address: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(address).doing(|| format!("cannot listen on {address}"))
}

fn accept_for_ever(listener: &TcpListener) {
    let pattern = Arc::new(Pattern::new());
    for stream in listener.incoming() {
        // Out of descriptors: the frontend's side of the session fails and says so.
        let Ok(stream) = stream else { continue };
        let pattern = Arc::clone(&pattern);
        let session = move || {
            // How a session fails is seen, and told, at the frontend.
            let _ = serve(stream, &pattern);
        };
        let _ = thread::Builder::new().stack_size(STACK).spawn(session);
    }
}

fn serve(mut stream: TcpStream, pattern: &Pattern) -> io::Result<()> {
    prepare(&stream, Some(PATIENCE))?;
    authenticate(&mut stream)?;
    loop {
        let query = Message::read(&mut stream)?;
        if query.tag != b'Q' {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&query.body);
        let mut words = text.trim_end_matches('\0').split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("IDENTIFY_SYSTEM"), ..) => identify_system(&mut stream)?,
            (Some("START_REPLICATION"), Some("SLOT"), Some(slot)) => {
                let wish: Wish = slot.trim_matches('"').parse()?;
                replicate(&mut stream, wish, pattern)?;
            }
            _ => return Err(broken(format!("no such command: {text}"))),
        }
    }
}

/// As with `trust`: what a walsender says before the first command.
fn authenticate(stream: &mut TcpStream) -> io::Result<()> {
    loop {
        let mut packet = vec![0; 4];
        stream.read_exact(&mut packet)?;
        let head = [packet[0], packet[1], packet[2], packet[3]];
        let length = parse_packet_length(head).map_err(|error| broken(error.to_string()))?;
        packet.resize(length, 0);
        stream.read_exact(&mut packet[4..])?;
        match parse_packet(&packet).map_err(|error| broken(error.to_string()))? {
            FirstPacket::SslRequest | FirstPacket::GssEncRequest => stream.write_all(b"N")?,
            FirstPacket::Cancel(_) => return Err(broken("nothing to cancel")),
            FirstPacket::Startup(_) => break,
        }
    }
    let mut answer = encode_message(b'R', &0_u32.to_be_bytes());
    for parameter in [
        "server_version\x0015.18\0",
        "server_encoding\0UTF8\0",
        "client_encoding\0UTF8\0",
        "integer_datetimes\0on\0",
        "TimeZone\0Etc/UTC\0",
        "standard_conforming_strings\0on\0",
    ] {
        answer.extend(encode_message(b'S', parameter.as_bytes()));
    }
    answer.extend(encode_message(b'K', &[0, 0, 0x12, 0x34, 1, 2, 3, 4]));
    answer.extend(encode_message(b'Z', b"I"));
    stream.write_all(&answer)
}

fn identify_system(stream: &mut TcpStream) -> io::Result<()> {
    let columns: [(&str, u32, u16); 4] = [
        ("systemid", 25, u16::MAX),
        ("timeline", 23, 4),
        ("xlogpos", 25, u16::MAX),
        ("dbname", 25, u16::MAX),
    ];
    let mut description = 4_u16.to_be_bytes().to_vec();
    for (name, oid, size) in columns {
        description.extend(name.as_bytes());
        description.extend([0; 7]);
        description.extend(oid.to_be_bytes());
        description.extend(size.to_be_bytes());
        description.extend(u32::MAX.to_be_bytes());
        description.extend([0; 2]);
    }
    let mut row = 4_u16.to_be_bytes().to_vec();
    for value in ["7300000000000000001", "1", "0/0"] {
        row.extend((value.len() as u32).to_be_bytes());
        row.extend(value.as_bytes());
    }
    row.extend(u32::MAX.to_be_bytes());
    let mut answer = encode_message(b'T', &description);
    answer.extend(encode_message(b'D', &row));
    answer.extend(encode_message(b'C', b"IDENTIFY_SYSTEM\0"));
    answer.extend(encode_message(b'Z', b"I"));
    stream.write_all(&answer)
}

fn replicate(stream: &mut TcpStream, wish: Wish, pattern: &Pattern) -> io::Result<()> {
    send(stream, b'W', &[0; 3])?;
    let tag = match wish {
        Wish::Wal {
            bytes,
            limit,
            hashed,
        } => {
            let mut sender = Sender::new(pattern, hashed);
            let begun = Instant::now();
            let mut upstream = stream.try_clone()?;
            // The status updates must flow while WAL does, or both ends wait for ever.
            let statuses = thread::spawn(move || read_statuses(&mut upstream));
            while sender.position().0 < bytes && begun.elapsed() < limit {
                sender.send(stream)?;
            }
            send(stream, b'c', &[])?;
            let (flushed, statuses) = statuses
                .join()
                .map_err(|_| broken("the reader of status updates failed"))??;
            if flushed != sender.position() {
                return Err(broken(format!("the last status update says {flushed}")));
            }
            let sent = sender.position();
            let hash = sender.hash().unwrap_or_default();
            format!("STREAMED {sent} {statuses} {hash}\0")
        }
        Wish::Echo => {
            echo(stream)?;
            send(stream, b'c', &[])?;
            "ECHOED\0".to_owned()
        }
        Wish::Idle => {
            stream.set_read_timeout(None)?;
            Message::expect(stream, b'c')?;
            send(stream, b'c', &[])?;
            "IDLED\0".to_owned()
        }
    };
    send(stream, b'C', tag.as_bytes())?;
    send(stream, b'Z', b"I")
}

/// Reads status updates up to CopyDone; they must not go back.
fn read_statuses(stream: &mut impl Read) -> io::Result<(Lsn, u64)> {
    let (mut flushed, mut count) = (Lsn(0), 0);
    loop {
        let message = Message::read(stream)?;
        if message.tag == b'c' {
            return Ok((flushed, count));
        }
        let status = StandbyStatusUpdate::parse(&message.body)
            .filter(|status| message.tag == b'd' && status.flushed >= flushed)
            .ok_or_else(|| broken("no status update, or one that goes back"))?;
        flushed = status.flushed;
        count += 1;
    }
}

/// Answers each 39-byte status update with XLogData of 64 bytes that begins where the status said.
fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut request = [0; 39];
    loop {
        stream.read_exact(&mut request[..5])?;
        if request[0] == b'c' {
            return Ok(());
        }
        stream.read_exact(&mut request[5..])?;
        let status =
            StandbyStatusUpdate::parse(&request[5..]).ok_or_else(|| broken("no status update"))?;
        let head = XLogData {
            start: status.written,
            end: status.written,
            clock: now(),
        };
        let mut answer = Vec::with_capacity(64);
        let header = Header {
            tag: b'd',
            length: 63,
        };
        answer.extend(header.encode());
        answer.extend(head.encode());
        answer.resize(64, 0x5a);
        stream.write_all(&answer)?;
    }
}
