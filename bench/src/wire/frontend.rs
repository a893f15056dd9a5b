//! The built-in frontend: one replication session, from StartupMessage to the end.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use protocol::replication::{Lsn, XLogData};
use protocol::startup::StartupMessage;

use super::wal::{Checker, Pattern, Progress};
use super::{Message, PATIENCE, Wish, broken, prepare, send, status_update};

/// A session that is past its startup.
#[derive(Debug)]
pub(crate) struct Frontend {
    stream: TcpStream,
}

/// What a stream of WAL brought, all of it checked.
#[derive(Debug)]
pub(crate) struct Streamed {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
    /// The SHA-256 of both ends, which are equal.
    pub(crate) hash: Option<String>,
}

impl Frontend {
    /// Connects as a walreceiver and waits until the backend is ready for a command.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        prepare(&stream, Some(PATIENCE))?;
        let parameters: [(&[u8], &[u8]); 4] = [
            (b"user", b"postgres"),
            (b"database", b"replication"),
            (b"replication", b"true"),
            (b"application_name", b"pgtlsproxy-bench"),
        ];
        let startup =
            StartupMessage::new((3, 0), &parameters).map_err(|error| broken(error.to_string()))?;
        stream.write_all(startup.packet())?;
        // The answer comes in one piece: one read, not two for every message in it.
        let mut answer = [0; 2048];
        let mut filled = 0;
        while !answer[..filled].ends_with(&[b'Z', 0, 0, 0, 5, b'I']) {
            match stream.read(&mut answer[filled..])? {
                0 => return Err(refused(&answer[..filled])),
                read => filled += read,
            }
            if answer[0] != b'R' {
                return Err(refused(&answer[..filled]));
            }
        }
        Ok(Self { stream })
    }

    /// Asks who is there and begins replication.
    pub(crate) fn replicate(&mut self, wish: Wish) -> io::Result<()> {
        let stream = &mut self.stream;
        send(stream, b'Q', b"IDENTIFY_SYSTEM\0")?;
        for tag in *b"TDCZ" {
            Message::expect(stream, tag)?;
        }
        let command = format!("START_REPLICATION SLOT \"{wish}\" PHYSICAL 0/0 TIMELINE 1\0");
        send(stream, b'Q', command.as_bytes())?;
        Message::expect(stream, b'W').map(drop)
    }

    /// Streams WAL, sends a status update after each burst, and checks every byte and both ends' account of it.
    pub(crate) fn stream_wal(
        mut self,
        bytes: u64,
        limit: Duration,
        hashed: bool,
    ) -> io::Result<Streamed> {
        static PATTERN: OnceLock<Pattern> = OnceLock::new();
        let pattern = PATTERN.get_or_init(Pattern::new);
        self.replicate(Wish::Wal {
            bytes,
            limit,
            hashed,
        })?;
        let mut checker = Checker::new(pattern, hashed);
        let mut statuses = 0;
        let begun = Instant::now();
        loop {
            match checker.read(&mut self.stream)? {
                Progress::More => continue,
                Progress::Burst => {}
                Progress::Done => break,
            }
            self.stream
                .write_all(&status_update(checker.position(), false))?;
            statuses += 1;
        }
        let time = begun.elapsed();
        let position = checker.position();
        let hash = checker.hash();
        self.stream.write_all(&status_update(position, false))?;
        send(&mut self.stream, b'c', &[])?;
        statuses += 1;
        let ending = Message::expect(&mut self.stream, b'C')?;
        let shown = hash.as_deref().unwrap_or_default();
        let expected = format!("STREAMED {position} {statuses} {shown}\0");
        if ending.body != expected.as_bytes() {
            let said = String::from_utf8_lossy(&ending.body).into_owned();
            return Err(broken(format!(
                "the ends differ: {said} against {expected}"
            )));
        }
        self.terminate()?;
        Ok(Streamed {
            bytes: position.0,
            time,
            hash,
        })
    }

    /// One synchronous round trip, after [`Wish::Echo`]: a status update of 39 bytes, 64 bytes of XLogData back.
    pub(crate) fn round_trip(&mut self, number: u64) -> io::Result<()> {
        self.stream.write_all(&status_update(Lsn(number), true))?;
        let mut answer = [0; 64];
        self.stream.read_exact(&mut answer)?;
        match XLogData::parse(&answer[5..]) {
            Some(head) if head.start == Lsn(number) && answer[30..] == [0x5a; 34] => Ok(()),
            _ => Err(broken("not the answer to this round trip")),
        }
    }

    /// Ends the session as libpq does.
    pub(crate) fn terminate(mut self) -> io::Result<()> {
        send(&mut self.stream, b'X', &[])
    }
}

fn refused(answer: &[u8]) -> io::Error {
    broken(match answer {
        [] => "the connection was closed without an answer".to_owned(),
        _ => protocol::escape::escape(answer),
    })
}
