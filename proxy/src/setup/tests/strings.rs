//! Names and passwords of every kind, through connection string, configuration file and password file, to connections of
//! real libpqs: psql's, and that of a walreceiver.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use testbed::postgres::psql;
use testbed::{Node, programs};

use super::write;
use crate::setup::conf;
use crate::setup::conninfo::Conninfo;
use crate::setup::passfile::{Entry, line};
use crate::setup::version::{Major, Thing, V12, V13, wants};

const TEXTS: [&str; 11] = [
    "plain",
    "it's",
    "back\\slash\\",
    " blanks \t around ",
    "100%41 %% %",
    "new\nline\r\n",
    "Пароль 世界 é ñ",
    "a:b=c#d,e;f",
    "\"double\" ''",
    "$HOME ~ `id` ${x}",
    "' host=10.9.9.9 user=evil '\\'",
];

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Settings of a standby, where its version wants them; takes effect at once, or at the restart that it makes.
fn follow(standby: &mut Node, major: Major, conninfo: &str) {
    let settings = conf::render(&[("primary_conninfo", conninfo.as_bytes())]);
    if major < V12 {
        let text = [b"standby_mode = 'on'\n".as_slice(), &settings].concat();
        write(&standby.data().join("recovery.conf"), text);
    } else {
        write(&standby.data().join("own.conf"), settings);
    }
    if major >= V13 {
        standby.reload();
    } else {
        standby.restart();
    }
}

#[test]
fn names_and_passwords_of_every_kind_reach_a_real_connection() {
    for number in programs::majors() {
        let major: Major = number.to_string().parse().unwrap();
        let primary = Node::builder("primary").version(number).init();
        let method = wants(major, Thing::PasswordMethod).unwrap();
        primary.prepend_hba(&format!("host all,replication all 127.0.0.1/32 {method}"));
        primary.append_conf(&format!("password_encryption = '{method}'"));
        let primary = primary.started();
        let mut standby = Node::builder("standby")
            .version(number)
            .init_from_backup(&primary.conninfo());
        standby.set_standby(&primary.conninfo(), None);
        if major >= V12 {
            standby.append_conf("include 'own.conf'");
            write(&standby.data().join("own.conf"), "");
        }
        standby.start();
        let passfile = standby.socket_dir().join("pass file's");

        for (index, text) in TEXTS.iter().enumerate() {
            let role = format!("{text}{index}");
            let create = format!(
                "create role {} login replication password {}",
                name(&role),
                literal(text)
            );
            primary.query(&create);
            let application = format!("standby{index}");
            let reach = Conninfo::default()
                .with("host", "127.0.0.1")
                .with("port", primary.address().port().to_string())
                .with("user", &*role)
                .with("application_name", &*application);
            let with_password = reach.clone().with("password", *text).to_string();
            follow(&mut standby, major, &with_password);
            primary.wait_for_standby(&application);
            let streaming = format!(
                "select usename from pg_stat_replication where application_name = '{application}'"
            );
            assert_eq!(
                primary.query(&streaming),
                role,
                "{number}: the walreceiver's own login"
            );
            if major >= V12 {
                let shown = standby.query("select current_setting('primary_conninfo') || '|'");
                assert_eq!(shown, format!("{with_password}|"), "{number}");
                let shown = shown.strip_suffix('|').unwrap();
                assert_eq!(Conninfo::parse(shown).unwrap().get("password"), Some(*text));
            }
            let query = format!("{with_password} dbname=postgres");
            assert_eq!(
                psql(&query, "select session_user || '|'").unwrap(),
                format!("{role}|")
            );

            let entry = Entry {
                host: "127.0.0.1",
                port: primary.address().port(),
                user: &role,
                password: text,
            };
            let Ok(entry) = line(entry) else {
                assert!(text.contains('\n'), "only a line break is refused: {text}");
                continue;
            };
            write(&passfile, entry);
            std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
            let by_file = reach
                .with("passfile", passfile.to_str().unwrap())
                .to_string();
            let query = format!("{by_file} dbname=postgres");
            assert_eq!(
                psql(&query, "select session_user || '|'").unwrap(),
                format!("{role}|")
            );
            // The server's user must own the file.
            let owner = std::fs::metadata(standby.data()).unwrap();
            chown(&passfile, Some(owner.uid()), Some(owner.gid())).unwrap();
            let application = format!("by_file{index}");
            let by_file = by_file.replace(&format!("standby{index}"), &application);
            follow(&mut standby, major, &by_file);
            primary.wait_for_standby(&application);
        }
    }
}
