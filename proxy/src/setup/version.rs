//! What each PostgreSQL major from 9.1 to 18 wants: names of settings and files, and what its programs know.
//! One table, each row with its source; nobody else compares versions. Majors 10 to 18 are run by the tests; of 9.1 to
//! 9.6 no servers can be had, so their rows stand on the documentation alone.

use std::fmt;
use std::str::FromStr;

/// A major version: 9.1 is 901, 18 is 1800, so that they compare as they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Major(u16);

pub(crate) const V9_1: Major = Major(901);
pub(crate) const V9_2: Major = Major(902);
pub(crate) const V9_3: Major = Major(903);
pub(crate) const V9_4: Major = Major(904);
pub(crate) const V9_5: Major = Major(905);
pub(crate) const V9_6: Major = Major(906);
pub(crate) const V10: Major = Major(1000);
pub(crate) const V11: Major = Major(1100);
pub(crate) const V12: Major = Major(1200);
pub(crate) const V13: Major = Major(1300);
pub(crate) const V14: Major = Major(1400);
pub(crate) const V15: Major = Major(1500);
pub(crate) const V16: Major = Major(1600);
pub(crate) const V17: Major = Major(1700);
pub(crate) const V18: Major = Major(1800);

/// Every major that `setup` knows.
pub(crate) const ALL: [Major; 15] = [
    V9_1, V9_2, V9_3, V9_4, V9_5, V9_6, V10, V11, V12, V13, V14, V15, V16, V17, V18,
];

impl Major {
    /// From `server_version_num`: 90603 is 9.6, 150004 is 15.
    pub(crate) fn of_number(number: u32) -> Option<Self> {
        let major = match number {
            90_000..100_000 => 900 + (number / 100) % 100,
            _ => number / 10_000 * 100,
        };
        u16::try_from(major).ok().map(Self)
    }

    /// Whether `setup` knows it. A newer one is taken for the newest known, with a warning by who asks.
    pub(crate) fn is_known(self) -> bool {
        ALL.contains(&self)
    }
}

/// As `PG_VERSION` and Debian's directories spell it (`9.6`, `15`); what follows the major is left out
/// (`15.18`, `9.6.24`, `18beta1`).
impl FromStr for Major {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no version of PostgreSQL");
        let mut parts = text.trim().split('.');
        let mut number = || -> Option<u16> {
            let part = parts.next()?;
            let end = part.find(|c: char| !c.is_ascii_digit());
            part.get(..end.unwrap_or(part.len()))?.parse().ok()
        };
        let first = number().ok_or_else(wrong)?;
        let major = match first {
            9 => 900 + number().filter(|minor| *minor < 100).ok_or_else(wrong)?,
            10..=99 => first * 100,
            _ => return Err(wrong()),
        };
        Ok(Self(major))
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            901..1000 => write!(f, "9.{}", self.0 % 100),
            _ => write!(f, "{}", self.0 / 100),
        }
    }
}

/// What differs between majors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thing {
    /// The value of `wal_level` that a standby needs.
    WalLevel,
    /// The value of `wal_level` that logical replication needs.
    WalLevelLogical,
    /// The setting that keeps WAL without a slot.
    KeepWal,
    /// The setting that bounds what a slot keeps.
    SlotBound,
    /// Replication slots, and the setting that counts them.
    Slots,
    /// What makes a server a standby: a file in its data directory.
    StandbyMarker,
    /// The setting that names a file which promotes.
    TriggerFile,
    /// The setting that lets a standby follow a new timeline by itself.
    FollowTimeline,
    /// The value to which a standby's `hot_standby` is to be set; absent where it is the default.
    HotStandby,
    /// The setting that ends a dead walsender.
    SenderTimeout,
    /// The setting for the directory of Unix sockets.
    SocketDirectory,
    /// `postgresql.auto.conf` and ALTER SYSTEM.
    AutoConf,
    /// The `include_if_exists` directive of postgresql.conf.
    IncludeIfExists,
    /// The `include_dir` directive of postgresql.conf.
    IncludeDir,
    /// `\` at the end of a line of pg_hba.conf joins the next to it.
    HbaContinuation,
    /// `/regex` for databases and users, and include directives in pg_hba.conf.
    HbaRegexAndInclude,
    /// `hostgssenc` and `hostnogssenc`.
    HbaGssEncryption,
    /// `replication=database` connections.
    LogicalDecoding,
    /// The best way to check a password.
    PasswordMethod,
    /// The `clientcert=` value of a hostssl line that demands a certificate of the role's name.
    ClientCertificate,
    /// The view that tells how the server reads pg_hba.conf.
    HbaView,
    /// The view that tells how the server reads postgresql.conf.
    FileView,
    /// libpq's `gssencmode`, which an older libpq refuses.
    GssEncMode,
    /// How a change of `primary_conninfo` takes effect.
    ConninfoChange,
    /// pg_rewind.
    Rewind,
    /// The setting that makes a standby copy failover slots.
    SlotSync,
    /// The directory that holds WAL.
    WalDirectory,
    /// libpq's `passfile`, which an older libpq refuses.
    PassFile,
    /// pg_basebackup: `-d CONNINFO`, else `-h`, `-p` and `-U`.
    BackupConninfo,
    /// pg_basebackup: how WAL comes with the backup.
    BackupWal,
    /// pg_basebackup: `-S SLOT`.
    BackupSlot,
}

/// From `since` on, until a later row of the same thing.
pub(crate) struct Row {
    pub(crate) thing: Thing,
    pub(crate) since: Major,
    /// A name, a value or a syntax; none: it does not exist.
    pub(crate) value: Option<&'static str>,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for people: docs/setup.md is checked against it")
    )]
    /// Where PostgreSQL says so: its release notes, or a section of its documentation.
    pub(crate) source: &'static str,
}

const fn row(thing: Thing, since: Major, value: &'static str, source: &'static str) -> Row {
    Row {
        thing,
        since,
        value: Some(value),
        source,
    }
}

const fn gone(thing: Thing, since: Major, source: &'static str) -> Row {
    Row {
        thing,
        since,
        value: None,
        source,
    }
}

/// In the order of time within each thing.
pub(crate) const TABLE: &[Row] = &[
    row(
        Thing::WalLevel,
        V9_1,
        "hot_standby",
        "9.1 documentation, 18.5.1 (wal_level)",
    ),
    row(
        Thing::WalLevel,
        V9_6,
        "replica",
        "9.6 release notes: archive and hot_standby become replica",
    ),
    row(
        Thing::WalLevelLogical,
        V9_4,
        "logical",
        "9.4 release notes: logical decoding",
    ),
    row(
        Thing::KeepWal,
        V9_1,
        "wal_keep_segments",
        "9.1 documentation, 18.6.1",
    ),
    row(
        Thing::KeepWal,
        V13,
        "wal_keep_size",
        "13 release notes: wal_keep_segments renamed",
    ),
    row(
        Thing::SlotBound,
        V13,
        "max_slot_wal_keep_size",
        "13 release notes",
    ),
    row(
        Thing::Slots,
        V9_4,
        "max_replication_slots",
        "9.4 release notes: replication slots",
    ),
    row(
        Thing::StandbyMarker,
        V9_1,
        "recovery.conf",
        "9.1 documentation, 26 (Recovery Configuration)",
    ),
    row(
        Thing::StandbyMarker,
        V12,
        "standby.signal",
        "12 release notes: recovery.conf moved into postgresql.conf",
    ),
    row(
        Thing::TriggerFile,
        V9_1,
        "trigger_file",
        "9.1 documentation, 26.3",
    ),
    row(
        Thing::TriggerFile,
        V12,
        "promote_trigger_file",
        "12 release notes: trigger_file renamed",
    ),
    gone(
        Thing::TriggerFile,
        V16,
        "16 release notes: promote_trigger_file removed",
    ),
    row(
        Thing::FollowTimeline,
        V9_1,
        "recovery_target_timeline",
        "9.1 documentation, 26.2: the default is the current timeline",
    ),
    gone(
        Thing::FollowTimeline,
        V12,
        "12 release notes: recovery_target_timeline defaults to latest",
    ),
    row(
        Thing::HotStandby,
        V9_1,
        "on",
        "9.1 documentation, 18.6.2: off by default",
    ),
    gone(
        Thing::HotStandby,
        V10,
        "10 release notes: hot_standby is on by default",
    ),
    row(
        Thing::SenderTimeout,
        V9_1,
        "replication_timeout",
        "9.1 documentation, 18.6.1",
    ),
    row(
        Thing::SenderTimeout,
        V9_3,
        "wal_sender_timeout",
        "9.3 release notes: replication_timeout renamed",
    ),
    row(
        Thing::SocketDirectory,
        V9_1,
        "unix_socket_directory",
        "9.1 documentation, 18.3.1",
    ),
    row(
        Thing::SocketDirectory,
        V9_3,
        "unix_socket_directories",
        "9.3 release notes: several Unix sockets",
    ),
    row(
        Thing::AutoConf,
        V9_4,
        "postgresql.auto.conf",
        "9.4 release notes: ALTER SYSTEM",
    ),
    row(
        Thing::IncludeIfExists,
        V9_2,
        "include_if_exists",
        "9.2 release notes",
    ),
    row(Thing::IncludeDir, V9_3, "include_dir", "9.3 release notes"),
    row(
        Thing::HbaContinuation,
        V14,
        "\\",
        "14 release notes: pg_hba.conf records may span lines",
    ),
    row(
        Thing::HbaRegexAndInclude,
        V16,
        "/regex, include",
        "16 release notes: regular expressions and inclusion in pg_hba.conf",
    ),
    row(
        Thing::HbaGssEncryption,
        V12,
        "hostgssenc",
        "12 release notes: GSSAPI encryption",
    ),
    row(
        Thing::LogicalDecoding,
        V9_4,
        "replication=database",
        "9.4 documentation, 49.3",
    ),
    row(
        Thing::PasswordMethod,
        V9_1,
        "md5",
        "9.1 documentation, 19.3.2",
    ),
    row(
        Thing::PasswordMethod,
        V10,
        "scram-sha-256",
        "10 release notes: SCRAM",
    ),
    row(
        Thing::ClientCertificate,
        V9_1,
        "clientcert=1",
        "9.1 documentation, 19.1: clientcert; 19.3.10: the method checks the name",
    ),
    row(
        Thing::ClientCertificate,
        V12,
        "clientcert=verify-full",
        "12 release notes: clientcert=verify-full",
    ),
    row(Thing::HbaView, V10, "pg_hba_file_rules", "10 release notes"),
    row(
        Thing::FileView,
        V9_5,
        "pg_file_settings",
        "9.5 release notes",
    ),
    row(
        Thing::GssEncMode,
        V12,
        "gssencmode",
        "12 documentation, 33.1.2",
    ),
    row(
        Thing::ConninfoChange,
        V9_1,
        "restart",
        "9.1 documentation, 26: read at the start",
    ),
    row(
        Thing::ConninfoChange,
        V13,
        "reload",
        "13 release notes: primary_conninfo changes by reloading",
    ),
    row(Thing::Rewind, V9_5, "pg_rewind", "9.5 release notes"),
    row(
        Thing::SlotSync,
        V17,
        "sync_replication_slots",
        "17 release notes: failover slots",
    ),
    row(
        Thing::WalDirectory,
        V9_1,
        "pg_xlog",
        "9.1 documentation, 54.1",
    ),
    row(
        Thing::WalDirectory,
        V10,
        "pg_wal",
        "10 release notes: pg_xlog renamed",
    ),
    row(
        Thing::PassFile,
        V10,
        "passfile",
        "10 release notes: libpq parameter passfile",
    ),
    row(
        Thing::BackupConninfo,
        V9_3,
        "-d",
        "9.3 release notes: pg_basebackup --dbname",
    ),
    row(
        Thing::BackupWal,
        V9_1,
        "-x",
        "9.1 documentation, pg_basebackup: --xlog",
    ),
    row(
        Thing::BackupWal,
        V9_2,
        "-X stream",
        "9.2 release notes: pg_basebackup --xlog-method",
    ),
    row(
        Thing::BackupSlot,
        V9_6,
        "-S",
        "9.6 release notes: pg_basebackup --slot",
    ),
];

/// What this major wants of a thing; none where it has no such thing.
pub(crate) fn wants(major: Major, thing: Thing) -> Option<&'static str> {
    TABLE
        .iter()
        .rfind(|row| row.thing == thing && row.since <= major)
        .and_then(|row| row.value)
}

/// The first major that has it.
pub(crate) fn since(thing: Thing) -> Option<Major> {
    let first = TABLE.iter().find(|row| row.thing == thing);
    first.map(|row| row.since)
}

/// Whether this major has such a thing at all.
pub(crate) fn has(major: Major, thing: Thing) -> bool {
    wants(major, thing).is_some()
}

/// Where a base backup comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackupSource<'a> {
    /// The directory of a Unix socket, or a host.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) user: &'a str,
    pub(crate) slot: Option<&'a str>,
}

/// The arguments of this major's pg_basebackup. Options that it does not know are left out, and it never writes the
/// standby's configuration (`-R`): what it writes differs with every libpq, and holds the caller's own passfile.
pub(crate) fn basebackup_arguments(
    program: Major,
    server: Major,
    source: BackupSource<'_>,
    target: &str,
) -> Vec<String> {
    let mut arguments: Vec<String> = ["-D", target, "-c", "fast", "-P", "-v", "-w"]
        .map(str::to_owned)
        .to_vec();
    let port = source.port.to_string();
    arguments.extend(["-h", source.host, "-p", &port, "-U", source.user].map(str::to_owned));
    // pg_basebackup of 9.3 and later, Notes: streaming WAL beside the backup works with servers of 9.3 and later.
    let streams = program >= V9_2 && (server >= V9_3 || program == server);
    if program < V9_2 {
        arguments.push("-x".to_owned());
    } else {
        let method = if streams { "stream" } else { "fetch" };
        arguments.extend(["-X", method].map(str::to_owned));
    }
    if let Some(slot) = source.slot
        && streams
        && has(program, Thing::BackupSlot)
        && has(server, Thing::Slots)
    {
        arguments.extend(["-S", slot].map(str::to_owned));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_however_they_are_spelled() {
        for (text, expected) in [
            ("9.6", Some(V9_6)),
            ("9.6.24", Some(V9_6)),
            ("15", Some(V15)),
            ("15\n", Some(V15)),
            ("15.18 (Debian 15.18-0+deb12u1)", Some(V15)),
            ("18beta1", Some(V18)),
            ("8.4", None),
            ("9", None),
            ("", None),
            ("fifteen", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
        assert_eq!(Major::of_number(90_603), Some(V9_6));
        assert_eq!(Major::of_number(100_023), Some(V10));
        assert_eq!(Major::of_number(180_004), Some(V18));
        for major in ALL {
            assert_eq!(major.to_string().parse(), Ok(major));
        }
    }

    /// The table as docs/setup.md shows it.
    fn shown() -> String {
        let row = |row: &Row| {
            let value = row
                .value
                .map_or_else(|| "gone".to_owned(), |value| format!("`{value}`"));
            format!(
                "| {:?} | {} | {value} | {} |\n",
                row.thing, row.since, row.source
            )
        };
        TABLE.iter().map(row).collect()
    }

    #[test]
    fn the_manual_shows_the_table() {
        let manual = include_str!("../../../docs/setup.md");
        assert!(
            manual.contains(&shown()),
            "docs/setup.md must hold:\n{}",
            shown()
        );
    }

    #[test]
    fn the_table_answers_for_each_major() {
        type Answers = [(Major, Option<&'static str>)];
        let cases: &[(Thing, &Answers)] = &[
            (
                Thing::KeepWal,
                &[
                    (V9_1, Some("wal_keep_segments")),
                    (V12, Some("wal_keep_segments")),
                    (V13, Some("wal_keep_size")),
                    (V18, Some("wal_keep_size")),
                ],
            ),
            (
                Thing::TriggerFile,
                &[
                    (V11, Some("trigger_file")),
                    (V12, Some("promote_trigger_file")),
                    (V15, Some("promote_trigger_file")),
                    (V16, None),
                ],
            ),
            (
                Thing::Slots,
                &[(V9_3, None), (V9_4, Some("max_replication_slots"))],
            ),
            (
                Thing::WalLevel,
                &[(V9_5, Some("hot_standby")), (V9_6, Some("replica"))],
            ),
            (
                Thing::StandbyMarker,
                &[(V11, Some("recovery.conf")), (V12, Some("standby.signal"))],
            ),
        ];
        for (thing, answers) in cases {
            for (major, expected) in *answers {
                assert_eq!(wants(*major, *thing), *expected, "{thing:?} of {major}");
            }
        }
        for pair in TABLE.windows(2) {
            let in_order = pair[0].thing != pair[1].thing || pair[0].since < pair[1].since;
            assert!(in_order, "{:?} since {}", pair[1].thing, pair[1].since);
        }
    }

    #[test]
    fn pg_basebackup_is_called_with_what_it_knows() {
        let source = BackupSource {
            host: "/run/pgtlsproxy",
            port: 5442,
            user: "replicator",
            slot: Some("standby1"),
        };
        let end = |program, server| {
            let arguments = basebackup_arguments(program, server, source, "/d");
            assert!(
                !arguments
                    .iter()
                    .any(|argument| argument == "-R" || argument == "-d")
            );
            arguments.get(13..).unwrap_or_default().join(" ")
        };
        for (program, server, expected) in [
            (V9_1, V9_1, "-x"),
            (V9_2, V9_2, "-X stream"),
            (V9_3, V9_2, "-X fetch"),
            (V9_5, V9_5, "-X stream"),
            (V9_6, V9_6, "-X stream -S standby1"),
            (V18, V10, "-X stream -S standby1"),
        ] {
            assert_eq!(end(program, server), expected, "{program} of {server}");
        }
    }
}
