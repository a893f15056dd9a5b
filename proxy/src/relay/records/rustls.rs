//! The reference: a `rustls::Connection`, fed from our own large buffers. rustls keeps keys, sequences, limits, alerts
//! and key updates; the price is an allocation and two copies for each record.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::escape::escape;
use tokio_rustls::rustls::{AlertDescription, Connection, Error};

use super::super::pool::{Buffer, LONGEST_RECORD};
use super::{Fault, Opened};

/// A connection whose handshake is over.
pub(crate) struct Buffered(Connection);

/// Room that [`Opener::open`] needs before the ciphertext.
pub(super) const RESERVE: usize = LONGEST_RECORD;

/// Both directions need the one connection; they run in one task, so the lock is never waited for.
type Shared = Arc<Mutex<Connection>>;

pub(in super::super) struct Opener(Shared);

pub(in super::super) struct Sealer {
    connection: Shared,
    control: Vec<u8>,
}

impl Buffered {
    pub(crate) fn new(mut connection: Connection) -> Self {
        // What is sealed is written before more is read: that is the limit.
        connection.set_buffer_limit(None);
        Self(connection)
    }

    /// The two directions, and the payload that was already decrypted.
    pub(in super::super) fn split(mut self) -> (Opener, Sealer, Vec<u8>) {
        let mut early = Vec::new();
        let mut piece = [0; 4096];
        // An error here is WouldBlock: nothing more is there yet. An end is found again by `open`.
        while let Ok(n @ 1..) = self.0.reader().read(&mut piece) {
            early.extend(piece.iter().take(n));
        }
        let shared = Arc::new(Mutex::new(self.0));
        let sealer = Sealer {
            connection: Arc::clone(&shared),
            control: Vec::new(),
        };
        (Opener(shared), sealer, early)
    }
}

impl Opener {
    /// rustls takes the ciphertext in pieces; the payload is put where it lay, and before. With what rustls holds of a
    /// record that began earlier it may be longer than the ciphertext, but not by more than one record.
    pub(in super::super) fn open(&mut self, buffer: &mut Buffer, filled: usize) -> Opened {
        let mut opened = Opened {
            rest: filled..filled,
            ..Opened::default()
        };
        let mut connection = lock(&self.0);
        let (mut taken, mut given) = (RESERVE, 0);
        while let Some(mut input) = buffer.bytes.get(taken..filled) {
            let left = input.len();
            let fed = if left == 0 {
                0
            } else {
                connection.read_tls(&mut input).unwrap_or(0)
            };
            taken += fed;
            if let Err(error) = connection.process_new_packets() {
                opened.fault = Some(fault(&error));
            } else if fed == 0 && left > 0 {
                opened.fault = Some(Fault::Internal("rustls takes no more records"));
            }
            while let Some(output) = buffer.bytes.get_mut(given..taken) {
                match connection.reader().read(output) {
                    Ok(0) => {
                        opened.closed = !output.is_empty();
                        break;
                    }
                    Ok(n) => given += n,
                    Err(_) => break,
                }
            }
            if fed == 0 || opened.closed || opened.fault.is_some() {
                break;
            }
        }
        if given > 0 {
            buffer.ranges.push(0..given);
        }
        opened.answer_due = connection.wants_write();
        opened
    }
}

impl Sealer {
    pub(in super::super) fn seal(&mut self, buffer: &mut Buffer) -> Result<(), Fault> {
        let mut connection = lock(&self.connection);
        for range in buffer.ranges.drain(..) {
            let payload = buffer
                .bytes
                .get(range)
                .ok_or(Fault::Internal("a range outside its buffer"))?;
            connection
                .writer()
                .write_all(payload)
                .map_err(|_| Fault::Internal("rustls takes no more data"))?;
        }
        drain(&mut connection, &mut self.control)
    }

    pub(in super::super) fn control(&mut self) -> &mut Vec<u8> {
        &mut self.control
    }

    pub(in super::super) fn answer(&mut self) -> Result<(), Fault> {
        drain(&mut lock(&self.connection), &mut self.control)
    }

    #[cfg(any(test, feature = "trial"))]
    pub(super) fn refresh(&mut self) {
        lock(&self.connection)
            .refresh_traffic_keys()
            .expect("TLS 1.3");
    }

    pub(in super::super) fn close(&mut self) -> Result<(), Fault> {
        let mut connection = lock(&self.connection);
        connection.send_close_notify();
        drain(&mut connection, &mut self.control)
    }
}

fn drain(connection: &mut Connection, control: &mut Vec<u8>) -> Result<(), Fault> {
    while connection.wants_write() {
        connection
            .write_tls(control)
            .map_err(|_| Fault::Internal("rustls cannot write its records"))?;
    }
    Ok(())
}

fn fault(error: &Error) -> Fault {
    match error {
        Error::AlertReceived(alert) => Fault::PeerAlert(*alert),
        Error::DecryptError => Fault::Broken {
            alert: AlertDescription::BadRecordMac,
            why: "a record cannot be decrypted",
        },
        _ => Fault::Misbehaved(escape(error.to_string())),
    }
}

fn lock(connection: &Shared) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}
