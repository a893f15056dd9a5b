//! The commands of a replication connection, as far as they tell what it is going to do: "Streaming Replication
//! Protocol" in the PostgreSQL manual. Its scanner (repl_scanner.l) knows words, quoted names, numbers and LSNs.
//! Anything else is not read: it is PostgreSQL's own business whether it is legal.

use crate::replication::Lsn;

/// A command that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// IDENTIFY_SYSTEM
    IdentifySystem,
    /// START_REPLICATION
    StartReplication {
        /// The slot, if one is named.
        slot: Option<String>,
        /// Whether changes are decoded (LOGICAL).
        logical: bool,
        /// Where to begin.
        start: Lsn,
        /// The timeline asked for; logical replication names none.
        timeline: Option<u32>,
    },
    /// BASE_BACKUP
    BaseBackup,
    /// TIMELINE_HISTORY
    TimelineHistory(u32),
    /// CREATE_REPLICATION_SLOT, with the slot's name.
    CreateReplicationSlot(String),
    /// Anything else, SQL included.
    Other,
}

/// NAMEDATALEN - 1: no slot's name is longer.
const MAX_NAME: usize = 63;

impl Command {
    /// Reads the beginning of a Query's body. Names are as they are meant: without quotes.
    #[must_use]
    pub fn parse(query: &[u8]) -> Self {
        let mut words = Words(query);
        Self::known(&mut words).unwrap_or(Self::Other)
    }

    fn known(words: &mut Words<'_>) -> Option<Self> {
        let first = words.next()?;
        Some(if first.is(b"START_REPLICATION") {
            let mut word = words.next()?;
            let mut slot = None;
            if word.is(b"SLOT") {
                slot = Some(words.next()?.name()?);
                word = words.next()?;
            }
            let logical = word.is(b"LOGICAL");
            if logical || word.is(b"PHYSICAL") {
                word = words.next()?;
            }
            let start = word.text()?.parse().ok()?;
            let timeline = match words.next() {
                Some(word) if word.is(b"TIMELINE") => words.next()?.text()?.parse().ok(),
                _ => None,
            };
            Self::StartReplication {
                slot,
                logical,
                start,
                timeline,
            }
        } else if first.is(b"BASE_BACKUP") {
            Self::BaseBackup
        } else if first.is(b"IDENTIFY_SYSTEM") {
            Self::IdentifySystem
        } else if first.is(b"TIMELINE_HISTORY") {
            Self::TimelineHistory(words.next()?.text()?.parse().ok()?)
        } else if first.is(b"CREATE_REPLICATION_SLOT") {
            Self::CreateReplicationSlot(words.next()?.name()?)
        } else {
            return None;
        })
    }
}

enum Word<'a> {
    Plain(&'a [u8]),
    Quoted(&'a [u8]),
}

impl Word<'_> {
    fn is(&self, keyword: &[u8]) -> bool {
        matches!(self, Self::Plain(word) if word.eq_ignore_ascii_case(keyword))
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Plain(word) => std::str::from_utf8(word).ok(),
            Self::Quoted(_) => None,
        }
    }

    /// Slots are named with lower-case letters, digits and underscores alone (ReplicationSlotValidateName).
    fn name(&self) -> Option<String> {
        let (Self::Plain(name) | Self::Quoted(name)) = self;
        let legal = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
        ((1..=MAX_NAME).contains(&name.len()) && name.iter().all(legal))
            .then(|| String::from_utf8_lossy(name).into_owned())
    }
}

/// Words and quoted names, one after the other.
struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<Word<'a>> {
        let text = self.0.trim_ascii_start();
        if let Some(quoted) = text.strip_prefix(b"\"") {
            let end = quoted.iter().position(|byte| *byte == b'"')?;
            let (name, rest) = quoted.split_at_checked(end)?;
            self.0 = rest.get(1..)?;
            return Some(Word::Quoted(name));
        }
        let ends = |byte: &u8| byte.is_ascii_whitespace() || b"\0;(),\"".contains(byte);
        let end = text.iter().position(ends).unwrap_or(text.len());
        let (word, rest) = text.split_at_checked(end)?;
        self.0 = rest;
        (!word.is_empty()).then_some(Word::Plain(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(slot: Option<&str>, logical: bool, start: u64, timeline: Option<u32>) -> Command {
        Command::StartReplication {
            slot: slot.map(str::to_owned),
            logical,
            start: Lsn(start),
            timeline,
        }
    }

    #[test]
    fn what_clients_really_send_is_read() {
        for (query, command) in [
            // A standby, with and without a slot; pg_receivewal; a subscription; pg_recvlogical.
            (
                "START_REPLICATION 0/3000000 TIMELINE 1\0",
                start(None, false, 0x300_0000, Some(1)),
            ),
            (
                "START_REPLICATION SLOT \"s1\" 16/B374D848 TIMELINE 7\0",
                start(Some("s1"), false, 0x16_b374_d848, Some(7)),
            ),
            (
                "START_REPLICATION SLOT s_1 PHYSICAL 0/1\0",
                start(Some("s_1"), false, 1, None),
            ),
            (
                "START_REPLICATION SLOT \"sub\" LOGICAL 0/0 (proto_version '4', publication_names '\"p\"')\0",
                start(Some("sub"), true, 0, None),
            ),
            (
                "start_replication slot \"sub\" logical 0/15(\"a\" 'b')",
                start(Some("sub"), true, 0x15, None),
            ),
            (
                "BASE_BACKUP ( LABEL 'pg_basebackup base backup',  PROGRESS,  WAIT 0)\0",
                Command::BaseBackup,
            ),
            (
                "BASE_BACKUP LABEL 'x' PROGRESS NOWAIT\0",
                Command::BaseBackup,
            ),
            ("IDENTIFY_SYSTEM\0", Command::IdentifySystem),
            (" IDENTIFY_SYSTEM;", Command::IdentifySystem),
            ("TIMELINE_HISTORY 2\0", Command::TimelineHistory(2)),
            (
                "CREATE_REPLICATION_SLOT \"pg_basebackup_42\" TEMPORARY PHYSICAL ( RESERVE_WAL)\0",
                Command::CreateReplicationSlot("pg_basebackup_42".to_owned()),
            ),
        ] {
            assert_eq!(Command::parse(query.as_bytes()), command, "{query}");
        }
    }

    #[test]
    fn anything_else_is_left_alone() {
        for query in [
            "",
            "\0",
            "SELECT 1",
            "START_REPLICATION",
            "START_REPLICATION SLOT",
            "START_REPLICATION SLOT \"s",
            "START_REPLICATION SLOT \"S; drop\" 0/1",
            "START_REPLICATION 0/G",
            "TIMELINE_HISTORY x",
            "\"IDENTIFY_SYSTEM\"",
            "((((",
        ] {
            assert_eq!(Command::parse(query.as_bytes()), Command::Other, "{query}");
        }
    }
}
