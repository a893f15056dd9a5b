//! 9.1 to 9.6, of which no server can be had: what setup writes for them, and how pg_basebackup is called, must be known
//! to each version's own documentation. The names stand here as the sources of that documentation have them
//! (doc/src/sgml of PostgreSQL's branch REL9_N_STABLE at the commit named: config.sgml, the sections
//! runtime-config-connection, -wal and -replication; recovery-config.sgml; ref/pg_basebackup.sgml; client-auth.sgml).
//! The same pages are https://www.postgresql.org/docs/9.N/ runtime-config-wal.html and so on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::setup::conf::{self, Settings};
use crate::setup::facts::Facts;
use crate::setup::files::memory::Memory;
use crate::setup::hba;
use crate::setup::plan::{LoginBy, Wishes, primary};
use crate::setup::tls::Tls;
use crate::setup::version::{
    BackupSource, Major, Thing, V9_1, V9_2, V9_3, V9_4, V9_5, V9_6, basebackup_arguments, wants,
};

struct Documented {
    major: Major,
    /// Of the branch's documentation.
    commit: &'static str,
    settings: &'static str,
    wal_levels: &'static str,
    /// Of recovery.conf.
    recovery: &'static str,
    /// Short options of pg_basebackup.
    backup: &'static str,
    /// Of pg_hba.conf.
    methods: &'static str,
}

const DOCUMENTED: [Documented; 6] = [
    Documented {
        major: V9_1,
        commit: "e85493559c",
        settings: "archive_command archive_mode archive_timeout authentication_timeout bonjour bonjour_name \
                checkpoint_completion_target checkpoint_segments checkpoint_timeout checkpoint_warning commit_delay \
                commit_siblings db_user_namespace fsync full_page_writes hot_standby hot_standby_feedback \
                krb_caseins_users krb_server_keyfile krb_srvname listen_addresses max_connections \
                max_standby_archive_delay max_standby_streaming_delay max_wal_senders password_encryption port \
                replication_timeout ssl ssl_ciphers ssl_renegotiation_limit superuser_reserved_connections \
                synchronous_commit synchronous_standby_names tcp_keepalives_count tcp_keepalives_idle \
                tcp_keepalives_interval unix_socket_directory unix_socket_group unix_socket_permissions \
                vacuum_defer_cleanup_age wal_buffers wal_keep_segments wal_level wal_receiver_status_interval \
                wal_sender_delay wal_sync_method wal_writer_delay",
        wal_levels: "archive hot_standby minimal",
        recovery: "archive_cleanup_command pause_at_recovery_target primary_conninfo recovery_end_command \
                recovery_target_inclusive recovery_target_name recovery_target_time recovery_target_timeline \
                recovery_target_xid restore_command standby_mode trigger_file",
        backup: "-D -F -P -U -V -W -Z -c -h -l -p -v -w -x -z",
        methods: "trust reject md5 password gss sspi krb5 ident peer ldap radius cert pam",
    },
    Documented {
        major: V9_2,
        commit: "60314e28eb",
        settings: "archive_command archive_mode archive_timeout authentication_timeout bonjour bonjour_name \
                checkpoint_completion_target checkpoint_segments checkpoint_timeout checkpoint_warning commit_delay \
                commit_siblings db_user_namespace fsync full_page_writes hot_standby hot_standby_feedback \
                krb_caseins_users krb_server_keyfile krb_srvname listen_addresses max_connections \
                max_standby_archive_delay max_standby_streaming_delay max_wal_senders password_encryption port \
                replication_timeout ssl ssl_ca_file ssl_cert_file ssl_ciphers ssl_crl_file ssl_key_file \
                ssl_renegotiation_limit superuser_reserved_connections synchronous_commit synchronous_standby_names \
                tcp_keepalives_count tcp_keepalives_idle tcp_keepalives_interval unix_socket_directory unix_socket_group \
                unix_socket_permissions vacuum_defer_cleanup_age wal_buffers wal_keep_segments wal_level \
                wal_receiver_status_interval wal_sync_method wal_writer_delay",
        wal_levels: "archive hot_standby minimal",
        recovery: "archive_cleanup_command pause_at_recovery_target primary_conninfo recovery_end_command \
                recovery_target_inclusive recovery_target_name recovery_target_time recovery_target_timeline \
                recovery_target_xid restore_command standby_mode trigger_file",
        backup: "-D -F -P -U -V -W -X -Z -c -h -l -p -s -v -w -x -z",
        methods: "trust reject md5 password gss sspi krb5 ident peer ldap radius cert pam",
    },
    Documented {
        major: V9_3,
        commit: "5d80171ada",
        settings: "archive_command archive_mode archive_timeout authentication_timeout bonjour bonjour_name \
                checkpoint_completion_target checkpoint_segments checkpoint_timeout checkpoint_warning commit_delay \
                commit_siblings db_user_namespace fsync full_page_writes hot_standby hot_standby_feedback \
                krb_caseins_users krb_server_keyfile krb_srvname listen_addresses max_connections \
                max_standby_archive_delay max_standby_streaming_delay max_wal_senders password_encryption port ssl \
                ssl_ca_file ssl_cert_file ssl_ciphers ssl_crl_file ssl_key_file ssl_renegotiation_limit \
                superuser_reserved_connections synchronous_commit synchronous_standby_names tcp_keepalives_count \
                tcp_keepalives_idle tcp_keepalives_interval unix_socket_directories unix_socket_group \
                unix_socket_permissions vacuum_defer_cleanup_age wal_buffers wal_keep_segments wal_level \
                wal_receiver_status_interval wal_receiver_timeout wal_sender_timeout wal_sync_method wal_writer_delay",
        wal_levels: "archive hot_standby minimal",
        recovery: "archive_cleanup_command pause_at_recovery_target primary_conninfo recovery_end_command \
                recovery_target_inclusive recovery_target_name recovery_target_time recovery_target_timeline \
                recovery_target_xid restore_command standby_mode trigger_file",
        backup: "-D -F -P -R -U -V -W -X -Z -c -d -h -l -p -s -v -w -x -z",
        methods: "trust reject md5 password gss sspi krb5 ident peer ldap radius cert pam",
    },
    Documented {
        major: V9_4,
        commit: "4b9d466c14",
        settings: "archive_command archive_mode archive_timeout authentication_timeout bonjour bonjour_name \
                checkpoint_completion_target checkpoint_segments checkpoint_timeout checkpoint_warning commit_delay \
                commit_siblings db_user_namespace fsync full_page_writes hot_standby hot_standby_feedback \
                krb_caseins_users krb_server_keyfile listen_addresses max_connections max_replication_slots \
                max_standby_archive_delay max_standby_streaming_delay max_wal_senders password_encryption port ssl \
                ssl_ca_file ssl_cert_file ssl_ciphers ssl_crl_file ssl_ecdh_curve ssl_key_file ssl_prefer_server_ciphers \
                ssl_renegotiation_limit superuser_reserved_connections synchronous_commit synchronous_standby_names \
                tcp_keepalives_count tcp_keepalives_idle tcp_keepalives_interval unix_socket_directories \
                unix_socket_group unix_socket_permissions vacuum_defer_cleanup_age wal_buffers wal_keep_segments \
                wal_level wal_log_hints wal_receiver_status_interval wal_receiver_timeout wal_sender_timeout \
                wal_sync_method wal_writer_delay",
        wal_levels: "archive hot_standby logical minimal",
        recovery: "archive_cleanup_command pause_at_recovery_target primary_conninfo primary_slot_name recovery_end_command \
                recovery_min_apply_delay recovery_target recovery_target_inclusive recovery_target_name \
                recovery_target_time recovery_target_timeline recovery_target_xid restore_command standby_mode \
                trigger_file",
        backup: "-D -F -P -R -T -U -V -W -X -Z -c -d -h -l -p -r -s -v -w -x -z",
        methods: "trust reject md5 password gss sspi ident peer ldap radius cert pam",
    },
    Documented {
        major: V9_5,
        commit: "bed2a0b06b",
        settings: "archive_command archive_mode archive_timeout authentication_timeout bonjour bonjour_name \
                checkpoint_completion_target checkpoint_timeout checkpoint_warning commit_delay commit_siblings \
                db_user_namespace fsync full_page_writes hot_standby hot_standby_feedback krb_caseins_users \
                krb_server_keyfile listen_addresses max_connections max_replication_slots max_standby_archive_delay \
                max_standby_streaming_delay max_wal_senders max_wal_size min_wal_size password_encryption port ssl \
                ssl_ca_file ssl_cert_file ssl_ciphers ssl_crl_file ssl_ecdh_curve ssl_key_file ssl_prefer_server_ciphers \
                superuser_reserved_connections synchronous_commit synchronous_standby_names tcp_keepalives_count \
                tcp_keepalives_idle tcp_keepalives_interval track_commit_timestamp unix_socket_directories \
                unix_socket_group unix_socket_permissions vacuum_defer_cleanup_age wal_buffers wal_compression \
                wal_keep_segments wal_level wal_log_hints wal_receiver_status_interval wal_receiver_timeout \
                wal_retrieve_retry_interval wal_sender_timeout wal_sync_method wal_writer_delay",
        wal_levels: "archive hot_standby logical minimal",
        recovery: "archive_cleanup_command primary_conninfo primary_slot_name recovery_end_command recovery_min_apply_delay \
                recovery_target recovery_target_action recovery_target_inclusive recovery_target_name \
                recovery_target_time recovery_target_timeline recovery_target_xid restore_command standby_mode \
                trigger_file",
        backup: "-D -F -P -R -T -U -V -W -X -Z -c -d -h -l -p -r -s -v -w -x -z",
        methods: "trust reject md5 password gss sspi ident peer ldap radius cert pam",
    },
    Documented {
        major: V9_6,
        commit: "997a2994ee",
        settings: "archive_command archive_mode archive_timeout authentication_timeout bonjour bonjour_name \
                checkpoint_completion_target checkpoint_flush_after checkpoint_timeout checkpoint_warning commit_delay \
                commit_siblings db_user_namespace fsync full_page_writes hot_standby hot_standby_feedback \
                krb_caseins_users krb_server_keyfile listen_addresses max_connections max_replication_slots \
                max_standby_archive_delay max_standby_streaming_delay max_wal_senders max_wal_size min_wal_size \
                password_encryption port ssl ssl_ca_file ssl_cert_file ssl_ciphers ssl_crl_file ssl_ecdh_curve \
                ssl_key_file ssl_prefer_server_ciphers superuser_reserved_connections synchronous_commit \
                synchronous_standby_names tcp_keepalives_count tcp_keepalives_idle tcp_keepalives_interval \
                track_commit_timestamp unix_socket_directories unix_socket_group unix_socket_permissions \
                vacuum_defer_cleanup_age wal_buffers wal_compression wal_keep_segments wal_level wal_log_hints \
                wal_receiver_status_interval wal_receiver_timeout wal_retrieve_retry_interval wal_sender_timeout \
                wal_sync_method wal_writer_delay wal_writer_flush_after",
        wal_levels: "logical minimal replica",
        recovery: "archive_cleanup_command primary_conninfo primary_slot_name recovery_end_command recovery_min_apply_delay \
                recovery_target recovery_target_action recovery_target_inclusive recovery_target_name \
                recovery_target_time recovery_target_timeline recovery_target_xid restore_command standby_mode \
                trigger_file",
        backup: "-D -F -P -R -S -T -U -V -W -X -Z -c -d -h -l -p -r -s -v -w -x -z",
        methods: "trust reject md5 password gss sspi ident peer ldap radius cert pam bsd",
    },
];

/// What recovery.conf of this version may say, for the room that writes it; none of a version that is run.
pub(in crate::setup) fn recovery_settings(major: Major) -> Option<BTreeSet<&'static str>> {
    let known = DOCUMENTED.iter().find(|known| known.major == major)?;
    Some(words(known.recovery))
}

fn words(list: &str) -> BTreeSet<&str> {
    list.split_whitespace().collect()
}

fn facts(major: Major) -> Facts {
    Facts {
        major,
        config_file: "/c/postgresql.conf".into(),
        data: "/d".into(),
        hba_file: "/c/pg_hba.conf".into(),
        ident_file: "/c/pg_ident.conf".into(),
        own_file: "/c/pgtlsproxy.conf".into(),
        taken_in: false,
        settings: Settings::default(),
        own: Settings::default(),
        socket: "/tmp/.s.PGSQL.5432".into(),
        free: 100 << 30,
        running: None,
    }
}

fn wishes(login: LoginBy, all: bool, major: Major) -> Wishes {
    Wishes {
        role: "replicator".to_owned(),
        os_user: "pgtlsproxy".to_owned(),
        standbys: vec!["standby1".to_owned()],
        logical: (all && major >= V9_4)
            .then(|| "app".to_owned())
            .into_iter()
            .collect(),
        rewind: all && major >= V9_5,
        slot_sync: false,
        fix_trust: true,
        slot: all && major >= V9_4,
        login,
    }
}

fn tls() -> Tls {
    let file = |name: &str| PathBuf::from("/etc/pgtlsproxy").join(name);
    Tls {
        certificate: file("a.crt"),
        key: file("a.key"),
        ca: file("ca.crt"),
        crl: file("ca.crl"),
        known_ca: Vec::new(),
        known_crl: Vec::new(),
        from: vec!["all".to_owned()],
    }
}

#[test]
fn what_is_written_for_9_1_to_9_6_is_known_to_their_documentation() {
    for known in &DOCUMENTED {
        let major = known.major;
        let at = format!("PostgreSQL {major}, documentation at {}", known.commit);
        let logins = [
            Some(LoginBy::OsUser),
            Some(LoginBy::Password(None)),
            // Where the files can be named.
            (major >= V9_2).then(|| LoginBy::Certificate(tls())),
        ];
        for (login, all) in logins.into_iter().flatten().zip([true, false, true]) {
            let files = Memory::of(&[
                ("/c/postgresql.conf", "max_connections = 100\n"),
                ("/c/pg_hba.conf", "host all all 127.0.0.1/32 trust\n"),
                ("/c/pg_ident.conf", ""),
            ]);
            let plan = primary(&files, &facts(major), &wishes(login, all, major)).unwrap();
            let new = |name: &str| {
                let change = plan.files.iter().find(|change| change.path.ends_with(name));
                let text = change.map_or(Vec::new(), |change| change.new.clone());
                String::from_utf8(text).unwrap()
            };
            let own = new("pgtlsproxy.conf");
            let written = Memory::of(&[("/own", &own)]);
            let settings =
                conf::read(&written, Path::new("/own"), Path::new("/none"), major).unwrap();
            for line in own.lines().filter(|line| !line.starts_with('#')) {
                let name = line.split(' ').next().unwrap();
                assert!(words(known.settings).contains(name), "{at}: {name}");
            }
            let level = settings.effective("wal_level").unwrap().value.clone();
            let level = String::from_utf8(level).unwrap();
            assert!(words(known.wal_levels).contains(&*level), "{at}: {level}");
            // `include` is of every one of them (config.sgml, config-includes).
            assert!(new("postgresql.conf").contains("include 'pgtlsproxy.conf'"));

            let hba = new("pg_hba.conf");
            let written = Memory::of(&[("/hba", &hba)]);
            for rule in hba::read(&written, Path::new("/hba"), major).unwrap() {
                assert!(
                    words(known.methods).contains(&*rule.method),
                    "{at}: {}",
                    rule.method
                );
                let options = rule
                    .options
                    .iter()
                    .map(|option| option.split('=').next().unwrap());
                let allowed = ["map", "clientcert"];
                assert!(
                    options.into_iter().all(|option| allowed.contains(&option)),
                    "{at}"
                );
                assert!(
                    !rule
                        .options
                        .iter()
                        .any(|option| option == "clientcert=verify-full"),
                    "{at}"
                );
            }
        }
    }
}

#[test]
fn what_a_standby_of_9_1_to_9_6_is_given_is_known_to_their_documentation() {
    for known in &DOCUMENTED {
        let major = known.major;
        let at = format!("PostgreSQL {major}, documentation at {}", known.commit);
        for thing in [Thing::TriggerFile, Thing::FollowTimeline] {
            let name = wants(major, thing).unwrap();
            assert!(words(known.recovery).contains(name), "{at}: {name}");
        }
        assert_eq!(wants(major, Thing::StandbyMarker), Some("recovery.conf"));
        let slots = words(known.recovery).contains("primary_slot_name");
        assert_eq!(wants(major, Thing::Slots).is_some(), slots, "{at}: slots");
        for thing in [Thing::SocketDirectory, Thing::KeepWal] {
            let name = wants(major, thing).unwrap();
            assert!(words(known.settings).contains(name), "{at}: {name}");
        }

        let source = BackupSource {
            host: "/run/pgtlsproxy",
            port: 5442,
            user: "replicator",
            slot: Some("standby1"),
        };
        let arguments = basebackup_arguments(major, major, source, "/d");
        let options = arguments
            .iter()
            .filter(|argument| argument.starts_with('-'));
        for option in options {
            assert!(
                words(known.backup).contains(&**option),
                "{at}: pg_basebackup {option}"
            );
        }
        let knows = |option: &str| words(known.backup).contains(option);
        let uses = |option: &str| arguments.iter().any(|argument| argument == option);
        assert_eq!(uses("-S"), knows("-S"), "{at}");
        assert_eq!(uses("-X"), knows("-X"), "{at}");
    }
}
