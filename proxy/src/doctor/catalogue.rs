//! What doctor can find, as a table: a stable id, the layer, how bad it is, what it is called, and the way out.
//! docs/doctor.md lists the same rows; a test holds the two together. `{}` stands for what only the facts know.

use serde::Serialize;

/// What is looked at, from the wire up. Nothing above the first failure is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Layer {
    Config,
    Network,
    Clocks,
    Tls,
    Policy,
    Postgres,
    Standby,
}

impl Layer {
    pub(crate) const ALL: [Self; 7] = [
        Self::Config,
        Self::Network,
        Self::Clocks,
        Self::Tls,
        Self::Policy,
        Self::Postgres,
        Self::Standby,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Network => "network",
            Self::Clocks => "clocks",
            Self::Tls => "tls",
            Self::Policy => "policy",
            Self::Postgres => "postgres",
            Self::Standby => "standby",
        }
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Worth knowing, and as somebody wants it.
    Note,
    /// It flows, and somebody should look at it.
    Warning,
    /// Replication does not flow, or will not after the next restart.
    Error,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: &'static str,
    pub(crate) layer: Layer,
    pub(crate) severity: Severity,
    pub(crate) title: &'static str,
    pub(crate) way_out: &'static str,
}

macro_rules! catalogue {
    ($($name:ident = $id:literal $layer:ident $severity:ident $title:literal, $way_out:literal;)*) => {
        $(pub(crate) const $name: Entry = Entry {
            id: $id,
            layer: Layer::$layer,
            severity: Severity::$severity,
            title: $title,
            way_out: $way_out,
        };)*
        #[cfg(test)]
        pub(crate) const ALL: &[Entry] = &[$($name),*];
    };
}

catalogue! {
    DOOR_CLOSED = "N21" Network Error "nothing listens where the standby connects to",
        "start the proxy (systemctl start pgtlsproxy), or set primary_conninfo to '{}'";
    DOOR_SILENT = "N22" Network Error "the local proxy takes connections and says nothing",
        "restart it: systemctl restart pgtlsproxy{}";
    DOOR_NAME = "N23" Network Error "the host in primary_conninfo cannot be resolved",
        "name the local proxy without a resolver: primary_conninfo = '{}'";
    DOOR_ELSEWHERE = "N24" Network Warning "the standby does not use this tunnel",
        "set primary_conninfo to '{}', or look at the right tunnel with --tunnel";
    NOT_LISTENING = "N25" Network Error "nothing listens on the server tunnel's address",
        "start the proxy: systemctl start pgtlsproxy{}";

    CLOCKS_DIFFER = "Q01" Clocks Warning "the clocks of the two hosts differ",
        "synchronise both (timedatectl set-ntp true): certificates are judged by them{}";

    OS_USER = "P08" Policy Error "the local proxy does not admit PostgreSQL's OS user",
        "allow_os_users = [\"{}\"] in the [[client]] table, then reload the proxy";
    FAR_NO_RULE = "P09" Policy Error "no rule of the far proxy admits this node for replication",
        "on the other host add a [[server.allow]] rule for {}, or mend its \"from\" and \"replication\", then reload the proxy there";

    HBA_NO_LINE = "H01" Postgres Error "no line of the primary's pg_hba.conf admits the connection",
        "add it before the first line that matches, then SELECT pg_reload_conf(): {}";
    HBA_REJECTS = "H02" Postgres Error "a line of the primary's pg_hba.conf rejects the connection",
        "put a line before it, then SELECT pg_reload_conf(): {}";
    HBA_TLS_ONLY = "H03" Postgres Error "pg_hba.conf admits it over TLS only, and the last hop from the proxy is plaintext",
        "add it before the first line that matches, then SELECT pg_reload_conf(): {}";
    HBA_BROKEN = "H04" Postgres Error "pg_hba.conf has an error: the old rules are in force, and the next start fails",
        "mend the line, then SELECT pg_reload_conf(){}";
    NOT_RELOADED = "H05" Postgres Warning "a configuration file was changed and not reloaded",
        "SELECT pg_reload_conf(){}";
    HBA_DATABASE = "H06" Postgres Error "logical replication needs a pg_hba.conf line with the database's name",
        "`replication` there means physical replication only; add, then reload: {}";
    CONF_BROKEN = "H07" Postgres Error "the configuration has an error: a reload applies nothing, and the next start may fail",
        "mend the line, then SELECT pg_reload_conf(){}";
    HBA_TRUST = "H08" Postgres Warning "a pg_hba.conf line lets every local user in without a question",
        "replace `trust` by `peer` (local) or `scram-sha-256` (host), then SELECT pg_reload_conf(){}";
    PENDING_RESTART = "H09" Postgres Note "a changed setting waits for a restart of PostgreSQL",
        "restart it when it suits{}";

    PASSWORD_WRONG = "A01" Postgres Error "the primary refuses the password, or has no such role",
        "on the primary: \\password {}; on the standby: the same in the passfile";
    ROLE_MISSING = "A02" Postgres Error "the primary has no such role",
        "on the primary: CREATE ROLE {} LOGIN REPLICATION";
    PASSWORD_NONE = "A03" Postgres Error "the primary asks for a password, and the standby has none",
        "add to the passfile (owner: PostgreSQL's OS user, mode 0600): {}";
    ROLE_CANNOT_REPLICATE = "A04" Postgres Error "the role may not replicate",
        "on the primary: ALTER ROLE {} REPLICATION";
    ROLE_CANNOT_LOG_IN = "A05" Postgres Error "the role may not log in",
        "on the primary: ALTER ROLE {} LOGIN VALID UNTIL 'infinity' CONNECTION LIMIT -1";
    PASSWORD_FORM = "A06" Postgres Error "the role's password is stored as md5, and pg_hba.conf asks for scram-sha-256",
        "set it anew with password_encryption = 'scram-sha-256': \\password {}";
    PEER_REFUSED = "A07" Postgres Error "PostgreSQL compares the proxy's OS user with the role, and they differ (peer, ident)",
        "peer map=pgtlsproxy in that line, and in pg_ident.conf: pgtlsproxy OSUSER {}; then reload";
    PASSFILE = "A08" Postgres Error "libpq ignores the passfile",
        "{}";
    DATABASE_MISSING = "A09" Postgres Error "the primary has no such database",
        "mend dbname in the subscription's connection{}";
    NO_CONNECT = "A10" Postgres Error "the role may not connect to the database",
        "on the publisher: GRANT CONNECT ON DATABASE {}";

    SLOT_MISSING = "U01" Postgres Error "the replication slot does not exist",
        "on the primary: SELECT pg_create_physical_replication_slot('{}', true)";
    SLOT_IN_USE = "U02" Postgres Error "the replication slot is in use by another standby",
        "give each standby a slot of its own (primary_slot_name); who has it: SELECT * FROM pg_stat_replication{}";
    SLOT_LOST = "U03" Postgres Error "the replication slot is lost: the WAL it stood for was removed",
        "make the standby anew (pg_basebackup), or give it a restore_command; drop the slot and make it again: {}";
    WAL_REMOVED = "U04" Postgres Error "the primary has removed WAL that the standby still needs",
        "make the standby anew (pg_basebackup), or give it a restore_command; then use a slot{}";
    SLOT_HOLDS_WAL = "U05" Postgres Warning "an inactive slot holds WAL back",
        "connect its standby, or drop it: SELECT pg_drop_replication_slot('{}'); bound it with max_slot_wal_keep_size";
    SENDERS_USED_UP = "U06" Postgres Error "all walsenders of the primary are in use",
        "on the primary raise max_wal_senders and restart, or end what holds them: SELECT * FROM pg_stat_replication{}";
    WAL_LEVEL_MINIMAL = "U07" Postgres Error "wal_level is minimal: nothing can be replicated",
        "ALTER SYSTEM SET wal_level = 'replica', max_wal_senders above 0, and restart{}";
    WAL_LEVEL_NOT_LOGICAL = "U08" Postgres Error "logical replication needs wal_level = logical on the publisher",
        "on the publisher: ALTER SYSTEM SET wal_level = 'logical', and restart{}";
    POSTGRES_ELSEWHERE = "U09" Postgres Error "PostgreSQL runs, but not where the tunnel looks for it",
        "set `postgres` of the [[server]] table to {}, or mend listen_addresses and port, and restart";
    POSTGRES_DOWN = "U10" Postgres Error "PostgreSQL does not run",
        "start it and look at its log{}";
    POSTGRES_SILENT = "U11" Postgres Error "PostgreSQL takes connections and says nothing",
        "it hangs or is overloaded: look at its processes and its log{}";
    POSTGRES_NOT_READY = "U12" Postgres Error "PostgreSQL cannot be connected to now",
        "it starts, stops or recovers: wait, and look at its log{}";
    FILES_UNREADABLE = "U13" Postgres Warning "files in the data directory that PostgreSQL cannot read: every base backup fails",
        "{}";
    CONNECTIONS_USED_UP = "U14" Postgres Error "all connections of the primary are in use",
        "raise max_connections there and restart, or end what holds them: SELECT * FROM pg_stat_activity{}";
    REFUSED = "U15" Postgres Error "PostgreSQL refuses the connection",
        "its log says more{}";
    NO_ANSWER = "U16" Postgres Error "the far side does not answer the startup",
        "look at the proxy and PostgreSQL there{}";
    FAR_POSTGRES_DOWN = "U17" Postgres Error "the far proxy does not reach its PostgreSQL",
        "start PostgreSQL there, or mend `postgres` of the [[server]] table there{}";
    SLOT_IDLE = "U18" Postgres Error "the replication slot was given up: its standby stayed away for longer than idle_replication_slot_timeout",
        "raise that setting on the primary; drop the slot and make it again, and if WAL is gone by then, the standby, too: {}";
    DATABASE_FULL = "U19" Postgres Error "all connections that the database may have are in use",
        "on the publisher: ALTER DATABASE {} CONNECTION LIMIT -1, or end what holds them: SELECT * FROM pg_stat_activity";
    SUBSCRIPTION_SLOT = "U20" Postgres Error "the publisher does not have the subscription's replication slot, or has lost it",
        "changes since then do not reach the subscriber: on the publisher {}; then compare the tables, and copy again what differs";

    OTHER_SYSTEM = "Y01" Standby Error "the standby is a copy of another cluster",
        "point the tunnel at its own primary, or make the standby anew from this one (pg_basebackup){}";
    TIMELINE_AHEAD = "Y02" Standby Error "the standby is on a later timeline than the server it follows",
        "it follows an old primary: point the tunnel at the new one, or bring the old one back with pg_rewind{}";
    DIVERGED = "Y03" Standby Error "the standby has WAL that its primary never had",
        "stop it, then pg_rewind it from the primary, or make it anew (pg_basebackup){}";
    SECOND_PRIMARY = "Y04" Standby Error "this server is not a standby: it takes writes as a second primary, on the primary's own timeline",
        "stop it at once; make it anew (pg_basebackup), or pg_rewind it; {} must exist before it starts";
    TWO_PRIMARIES = "Y05" Standby Error "there are two primaries",
        "stop the one on the older timeline, and bring it back with pg_rewind or pg_basebackup{}";
    RECOVERY_CONF = "Y06" Standby Error "recovery.conf stands in the data directory, and PostgreSQL 12 and later do not start with it",
        "move its settings to postgresql.conf, make standby.signal, and remove it: {}";
    SETTINGS_LOWER = "Y07" Standby Error "settings are lower than the primary's, which a hot standby does not allow",
        "raise them on the standby and restart it: {}";
    CONF_DOES_NOT_LOAD = "Y08" Standby Error "PostgreSQL cannot start with its configuration",
        "mend the setting that the message names{}";
    CONNINFO_REFUSED = "Y09" Standby Error "the standby's libpq does not accept primary_conninfo",
        "take out the option that the message names{}";
    CONNINFO_TWICE = "Y10" Standby Warning "primary_conninfo is set more than once, and the last one wins",
        "keep one: ALTER SYSTEM RESET primary_conninfo, or take the other line out{}";
    REPLAY_PAUSED = "Y11" Standby Note "replay is paused",
        "to go on: SELECT pg_wal_replay_resume(){}";
    REPLAY_STANDS = "Y12" Standby Warning "WAL arrives and is not replayed",
        "look for a query or a lock that holds replay up (pg_stat_activity, wait_event of the startup process){}";
    RECEIVER_HUNG = "Y13" Standby Error "the walreceiver has heard nothing for longer than it should wait",
        "SELECT pg_terminate_backend({}); it comes back by itself";
    STANDBY_DOWN = "Y14" Standby Error "the standby's PostgreSQL does not run",
        "start it and look at its log{}";
    NO_CONNINFO = "Y15" Standby Error "the standby has no primary_conninfo",
        "set it, then reload (before 13: restart): primary_conninfo = '{}'";
    SLOT_SYNC = "Y16" Standby Warning "slot synchronisation is on, and something it needs is missing",
        "{}";
    NO_RECEIVER = "Y17" Standby Error "the standby does not stream, although the primary lets it in",
        "look at the standby's log{}";
    SYNC_STANDBY_ABSENT = "Y18" Standby Error "commits wait for a synchronous standby that is not there",
        "connect it under that application_name, or ALTER SYSTEM RESET synchronous_standby_names and reload{}";
    SETTINGS_RAISED = "Y19" Standby Error "replay is paused because settings are lower than the primary's",
        "raise them and restart; do not resume, or it shuts down: {}";
    WOULD_START_AS_PRIMARY = "Y20" Standby Error "the standby would start as a second primary: the signal file is missing",
        "before it starts: {}";
    SUBSCRIPTION_STANDS = "Y21" Standby Error "an enabled subscription has no running worker",
        "look at the subscriber's log{}";
    STANDBY_SILENT = "Y22" Standby Error "the standby's PostgreSQL takes connections and says nothing",
        "it hangs or is overloaded: look at its processes and its log{}";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_are_unique_and_documented_in_one_table() {
        let ids: HashSet<_> = ALL.iter().map(|entry| entry.id).collect();
        assert_eq!(ids.len(), ALL.len());
        let manual = include_str!("../../../docs/doctor.md");
        // The other table of that page has two columns.
        let rows: Vec<Vec<_>> = manual
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
            .filter(|row: &Vec<_>| row.len() > 2)
            .collect();
        let severity = |severity| match severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "problem",
        };
        let listed: Vec<_> = rows.iter().map(|row| row[..4].join(" | ")).collect();
        let meant: Vec<_> = ALL
            .iter()
            .map(|entry| {
                format!(
                    "`{}` | {} | {} | {}",
                    entry.id,
                    entry.layer.name(),
                    severity(entry.severity),
                    entry.title
                )
            })
            .collect();
        assert_eq!(listed, meant);
    }
}
