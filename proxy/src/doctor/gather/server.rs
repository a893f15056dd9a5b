//! What a running server says of itself, asked by one read-only psql as the cluster's OS user. Each part stands alone:
//! what this user may not see is missing, and said to be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cluster::{Place, first_lines};
use super::programs;
use crate::doctor::facts::{Cluster, ConfigError, Server};

/// Settings that the judge looks at.
const SETTINGS: &str = "'primary_conninfo', 'primary_slot_name', 'cluster_name', 'wal_level', 'max_connections', \
    'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction', \
    'synchronous_standby_names', 'synchronous_commit', 'sync_replication_slots', 'hot_standby_feedback', \
    'recovery_min_apply_delay', 'wal_receiver_timeout', 'restore_command', 'listen_addresses', 'port', \
    'unix_socket_directories', 'ssl'";

/// A walreceiver that is refused again and again calls itself streaming each time it has connected. Until its first
/// message both times are that of its start. A stream at a segment's end may be idle: then it waits in its main loop, and
/// not for an answer. Whoever may not see what it waits for goes by its age.
const RECEIVER: &str = r"select 'receiver', jsonb_build_object('pid', a.pid, 'status', case when w.status = 'streaming'
        and w.last_msg_send_time = w.last_msg_receipt_time
        and case when a.wait_event is null then clock_timestamp() - a.backend_start < '2s'
            else a.wait_event <> 'WalReceiverMain' end then 'starting' else w.status end,
    'silent_for', extract(epoch from clock_timestamp() - w.last_msg_receipt_time),
    'clock_ahead', extract(epoch from w.last_msg_send_time - w.last_msg_receipt_time),
    'connecting_for', case when a.wait_event ilike '%walreceiverconnect'
        then extract(epoch from clock_timestamp() - a.backend_start) end)
    from pg_stat_activity a left join pg_stat_wal_receiver w on w.pid = a.pid where a.backend_type = 'walreceiver';
";

/// Asks until then, and adds what was told to `cluster`.
pub(super) fn ask(place: &Place, cluster: &mut Cluster, unseen: &mut Vec<String>, until: Instant) {
    let Some(socket) = &cluster.socket else {
        unseen.push("what PostgreSQL says: it has no Unix socket to ask it through".to_owned());
        return;
    };
    let beside = place.postgres.as_deref().and_then(Path::parent);
    let Some(psql) = programs::find("psql", beside) else {
        unseen.push("what PostgreSQL says: psql is not installed".to_owned());
        return;
    };
    let Some((directory, port)) = socket.parent().zip(port_of(socket)) else {
        return;
    };
    let script = script(cluster.major);
    let mut told = None;
    let mut refused = String::new();
    // The superuser is usually called as the OS user, or `postgres`.
    let mut users = vec![place.owner.name.as_str(), "postgres"];
    users.dedup();
    for user in users {
        let mut command = programs::command(&psql, &place.owner);
        command
            // At a terminal it would wait for a password.
            .args(["-X", "-w", "-A", "-t", "-q", "-d", "postgres", "-U", user])
            .arg("-h")
            .arg(directory)
            .args(["-p", &port, "-f", "-"])
            // Of a file that is there, and no plain one, libpq warns.
            .env("PGPASSFILE", "/dev/null/none")
            .env("PGAPPNAME", "pgtlsproxy doctor")
            .env("PGCLIENTENCODING", "UTF8");
        match programs::run(command, &script, until) {
            Ok(said) if said.stdout.contains('|') => {
                told = Some(said.stdout);
                break;
            }
            Ok(said) => refused = first_lines(&said.stderr, 1),
            Err(error) => {
                cluster.silent = error.kind() == io::ErrorKind::TimedOut;
                refused = error.to_string();
                // It would let nobody else in, either.
                break;
            }
        }
    }
    let Some(told) = told else {
        unseen.push(format!("what PostgreSQL says: {refused}"));
        return;
    };
    let parts: BTreeMap<&str, Value> = told
        .lines()
        .filter_map(|line| {
            let (part, json) = line.split_once('|')?;
            Some((part, serde_json::from_str(json).ok()?))
        })
        .collect();
    fill(cluster, &parts, unseen);
}

fn port_of(socket: &Path) -> Option<String> {
    Some(
        socket
            .file_name()?
            .to_str()?
            .strip_prefix(".s.PGSQL.")?
            .to_owned(),
    )
}

fn fill(cluster: &mut Cluster, parts: &BTreeMap<&str, Value>, unseen: &mut Vec<String>) {
    let server = Server {
        about: part(parts, "about").unwrap_or_default(),
        pending_restart: part(parts, "pending").unwrap_or_default(),
        conninfo_places: part(parts, "places").unwrap_or_default(),
        hba: part(parts, "hba"),
        ident: part(parts, "ident"),
        roles: part(parts, "roles").unwrap_or_default(),
        slots: part(parts, "slots").unwrap_or_default(),
        senders: part(parts, "senders").unwrap_or_default(),
        receiver: part(parts, "receiver"),
        replay: part(parts, "replay"),
        newest_wal: part(parts, "newest_wal"),
        replayed_later: part(parts, "later"),
        waiting_commits: part(parts, "waiting").unwrap_or_default(),
        subscriptions: part(parts, "subscriptions").unwrap_or_default(),
        config_errors: Vec::new(),
    };
    let settings: BTreeMap<String, String> = part(parts, "settings").unwrap_or_default();
    cluster.settings.extend(settings);
    // A changed setting that needs a restart is listed as an error, too.
    let errors: Vec<ConfigError> = part(parts, "config_errors").unwrap_or_default();
    let config_errors = errors
        .into_iter()
        .filter(|error| {
            let name = error
                .name
                .as_deref()
                .unwrap_or_default()
                .to_ascii_lowercase();
            !server.pending_restart.contains(&name)
        })
        .collect();
    let files = ["files", "included"].map(|name| part::<BTreeSet<PathBuf>>(parts, name));
    let files: BTreeSet<PathBuf> = files.into_iter().flatten().flatten().collect();
    let changed = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some(metadata.mtime() as f64 + metadata.mtime_nsec() as f64 / 1e9)
    };
    cluster.edited = files
        .iter()
        .filter(|path| changed(path).is_some_and(|at| at > server.about.loaded))
        .map(|path| path.display().to_string())
        .collect();
    if server.hba.is_none() || !server.about.superuser {
        unseen.push(
            "pg_hba.conf and configuration errors as PostgreSQL reads them: only a superuser may ask \
             (run doctor as root, or as PostgreSQL's OS user)"
                .to_owned(),
        );
    }
    cluster.server = Some(Server {
        config_errors,
        ..server
    });
}

fn part<T: DeserializeOwned>(parts: &BTreeMap<&str, Value>, name: &str) -> Option<T> {
    T::deserialize(parts.get(name)?).ok()
}

/// One SELECT for each part: its name, and its value as JSON on one line. PostgreSQL 10 to 18; what a version does not
/// have is left out.
fn script(major: u32) -> String {
    let hba_place = if major >= 16 {
        "coalesce(file_name, current_setting('hba_file'))"
    } else {
        "current_setting('hba_file')"
    };
    let hba_files = if major >= 16 {
        "union select file_name from pg_hba_file_rules"
    } else {
        ""
    };
    let ident = if major >= 15 {
        "select 'ident', coalesce(jsonb_agg(jsonb_build_object('map', map_name, 'os_user', sys_name, 'role', pg_username,
            'error', error)), '[]') from pg_ident_file_mappings;\n"
    } else {
        ""
    };
    let wal_status = if major >= 13 { "wal_status" } else { "null" };
    let reason = if major >= 17 {
        "invalidation_reason"
    } else {
        "null"
    };
    let not_synced = if major >= 17 { "where not synced" } else { "" };
    format!(
        r"set client_min_messages = error;
set statement_timeout = '1500ms';
set default_transaction_read_only = on;
select 'config_errors', coalesce(jsonb_agg(jsonb_build_object('place', sourcefile || ':' || sourceline,
    'name', name, 'error', error)), '[]') from pg_file_settings where error is not null;
select 'places', coalesce(jsonb_agg(sourcefile || ':' || sourceline order by seqno), '[]') from pg_file_settings
    where lower(name) = 'primary_conninfo';
select 'about', jsonb_build_object('superuser', current_setting('is_superuser') = 'on',
    'in_recovery', pg_is_in_recovery(), 'loaded', extract(epoch from pg_conf_load_time()),
    'system_identifier', (select system_identifier::text from pg_control_system()),
    'timeline', case when pg_is_in_recovery() then greatest((select timeline_id from pg_control_checkpoint()),
        (select min_recovery_end_timeline from pg_control_recovery()),
        (select received_tli from pg_stat_wal_receiver))
      else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end);
select 'settings', jsonb_object_agg(name, setting) from pg_settings where name in ({SETTINGS});
select 'pending', coalesce(jsonb_agg(name), '[]') from pg_settings where pending_restart;
select 'files', jsonb_build_array(current_setting('config_file'), current_setting('hba_file'),
    current_setting('ident_file'), current_setting('data_directory') || '/postgresql.auto.conf');
select 'included', coalesce(jsonb_agg(file), '[]')
    from (select sourcefile as file from pg_file_settings {hba_files}) f where file is not null;
select 'hba', coalesce(jsonb_agg(jsonb_build_object('place', {hba_place} || ':' || line_number, 'type', type,
    'database', database, 'user_name', user_name, 'address', address, 'netmask', netmask,
    'auth_method', auth_method, 'options', options, 'error', error)), '[]') from pg_hba_file_rules;
{ident}select 'roles', coalesce(jsonb_agg(jsonb_build_object('name', rolname, 'superuser', rolsuper,
    'replication', rolreplication, 'login', rolcanlogin, 'expired', coalesce(rolvaliduntil < now(), false),
    'password', null, 'member_of', array(select g.rolname from pg_roles g where g.oid <> r.oid
        and not r.rolsuper and pg_has_role(r.oid, g.oid, 'member')))), '[]')
    from pg_roles r where rolreplication or rolsuper;
select 'roles', coalesce(jsonb_agg(jsonb_build_object('name', rolname, 'superuser', rolsuper,
    'replication', rolreplication, 'login', rolcanlogin, 'expired', coalesce(rolvaliduntil < now(), false),
    'password', case when rolpassword like 'md5%' then 'md5' when rolpassword is null then ''
        else split_part(rolpassword, '$', 1) end,
    'member_of', array(select g.rolname from pg_roles g where g.oid <> r.oid
        and not r.rolsuper and pg_has_role(r.oid, g.oid, 'member')))), '[]')
    from pg_authid r where rolreplication or rolsuper;
select 'slots', coalesce(jsonb_agg(jsonb_build_object('name', slot_name, 'active', active,
    'physical', slot_type = 'physical', 'wal_status', {wal_status}, 'reason', {reason},
    'held', pg_wal_lsn_diff(case when pg_is_in_recovery()
        then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, restart_lsn))), '[]')
    from pg_replication_slots {not_synced};
select 'senders', coalesce(jsonb_agg(jsonb_build_object('application_name', application_name, 'state', state,
    'sync_state', sync_state, 'logical', exists(select from pg_replication_slots s
        where s.active_pid = r.pid and s.slot_type = 'logical'), 'behind', pg_wal_lsn_diff(case when pg_is_in_recovery()
        then pg_last_wal_receive_lsn() else pg_current_wal_lsn() end, replay_lsn))), '[]')
    from pg_stat_replication r;
{RECEIVER}select 'waiting', count(*) from pg_stat_activity where wait_event = 'SyncRep';
select 'subscriptions', coalesce(jsonb_agg(jsonb_build_object('name', subname, 'enabled', subenabled,
    'conninfo', subconninfo, 'slot', subslotname, 'running', exists(select from pg_stat_subscription s
        where s.subid = u.oid and s.received_lsn is not null))), '[]') from pg_subscription u;
select 'replay', jsonb_build_object('received', pg_last_wal_receive_lsn(), 'replayed', pg_last_wal_replay_lsn(),
    'paused', case when pg_is_in_recovery() then pg_is_wal_replay_paused() end) where pg_is_in_recovery();
select pg_is_in_recovery() as standby,
    coalesce(pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn(), false) as behind \gset
-- after the positions: a standby that goes over to another timeline meanwhile has its files by now
\if :standby
select 'newest_wal', to_jsonb(max(('x' || substr(name, 1, 8))::bit(32)::int)) from pg_ls_waldir()
    where name ~ '^[0-9A-F]{{24}}$';
\endif
\if :behind
select pg_sleep(0.8) \gset
select 'later', to_jsonb(pg_last_wal_replay_lsn()::text);
\endif
"
    )
}
