//! The table of what differs between majors, each row with its source.

use super::{Major, V9_1, V9_2, V9_3, V9_4, V9_5, V9_6, V10, V12, V13, V14, V16, V17};

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
    /// libpq's `gssencmode`, which an older libpq refuses.
    GssEncMode,
    /// pg_rewind.
    Rewind,
    /// The setting that makes a standby copy failover slots.
    SlotSync,
    /// The directory that holds WAL.
    WalDirectory,
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
        Thing::GssEncMode,
        V12,
        "gssencmode",
        "12 documentation, 33.1.2",
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
        Thing::BackupSlot,
        V9_6,
        "-S",
        "9.6 release notes: pg_basebackup --slot",
    ),
];
