//! `pgtlsproxy setup primary --external-tls`: PostgreSQL's own TLS, whose rules demand a certificate of the CA that setup
//! made, used by a real standby; and what `--json` says of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testbed::postgres::psql_of;
use testbed::programs::{certs_tool, majors, psql_with_tls};
use testbed::setup::{Prepared, Said, configuration, said};
use testbed::{Node, Scratch, run};

fn setup(primary: &Prepared, standbys: &[&str]) -> Said {
    let mut command = primary.command(&["--external-tls", "--json"]);
    for standby in standbys {
        command.args(["--standby", standby]);
    }
    said(&mut command, "")
}

/// What stands on standard output, which comes first.
fn report(said: &str) -> Value {
    let mut values = serde_json::Deserializer::from_str(said).into_iter();
    values.next().unwrap().unwrap()
}

/// The certificate of a node, for the server's user.
fn carry(primary: &Prepared, name: &str, to: &Path) {
    primary.issue(name, to);
    let owner = fs::metadata(primary.node.data()).unwrap().uid();
    for file in ["ca.crt", "ca.crl"] {
        fs::copy(primary.dir().join("pki").join(file), to.join(file)).unwrap();
    }
    chown(to.join(format!("{name}.key")), Some(owner), None).unwrap();
}

#[test]
fn a_standby_streams_over_postgresqls_own_tls() {
    for major in majors() {
        println!("PostgreSQL {major}");
        let mut primary = Prepared::careful(major, "");
        // For the copy alone: no pg_basebackup of 18 with TLS can be had.
        primary
            .node
            .prepend_hba("local replication postgres peer map=tests");
        primary.node.start();
        let before = configuration(&primary.node);
        let reported = report(&setup(&primary, &["standby1"]).well());
        assert_eq!(reported["format"], 1);
        assert_eq!(reported["changed"], true);
        assert_eq!(reported["version"], major.to_string());
        assert_eq!(
            reported["restart_needed"],
            json!([]),
            "TLS comes with a reload"
        );
        let files = reported["files"].as_array().unwrap();
        assert!(
            files
                .iter()
                .any(|file| file["diff"].as_str().unwrap().contains("+ssl = 'on'"))
        );
        let data = primary.node.data();
        let hba = fs::read_to_string(data.join("pg_hba.conf")).unwrap();
        // `verify-full` is of 12; before, method cert compares the name all the same.
        let (verified, dn) = match major >= 12 {
            true => ("verify-full", "client_dn"),
            false => ("1", "clientdn"),
        };
        let rule = format!(
            "hostssl replication replicator all cert clientcert={verified} map=pgtlsproxy_tls"
        );
        assert!(hba.contains(&rule), "{hba}");
        let key = fs::metadata(primary.dir().join("db1-postgresql.key")).unwrap();
        assert_eq!(key.mode() & 0o777, 0o600);
        assert_eq!(key.uid(), fs::metadata(&data).unwrap().uid());
        let again = report(&setup(&primary, &["standby1"]).well());
        assert_eq!(
            (&again["changed"], &again["files"]),
            (&json!(false), &json!([]))
        );

        let place = Scratch::new("standby-files");
        carry(&primary, "standby1", place.path());
        let port = primary.node.address().port();
        // As it is told, but for the name server and the place of the files.
        let conninfo = reported["standbys"][0]["conninfo"].as_str().unwrap();
        let conninfo = conninfo
            .replace("/etc/pgtlsproxy", &place.path().display().to_string())
            .replace("port=5443", &format!("port={port} hostaddr=127.0.0.1"));
        let standby = Node::builder("standby1")
            .version(major)
            .init_from_backup(&primary.node.conninfo());
        // Before 13 nothing bounds what a slot keeps, so there is none.
        standby.set_standby(&conninfo, (major >= 13).then_some("standby1"));
        let standby = standby.started();
        primary.node.wait_for_standby("standby1");
        let over = format!(
            "select s.ssl, s.{dn} from pg_stat_replication r join pg_stat_ssl s using (pid)"
        );
        assert_eq!(primary.node.query(&over), "t|/CN=standby1");

        // Nobody else comes in.
        let attempt = |more: &str| {
            let conninfo = format!(
                "host=db1.example.com hostaddr=127.0.0.1 port={port} user=replicator replication=true {more}"
            );
            psql_of(&psql_with_tls(), &conninfo, "IDENTIFY_SYSTEM")
        };
        let refused = attempt("sslmode=require").unwrap_err();
        assert!(
            refused.contains("requires a valid client certificate"),
            "{refused}"
        );
        let refused = attempt("sslmode=disable").unwrap_err();
        assert!(refused.contains("no pg_hba.conf entry"), "{refused}");
        carry(&primary, "standby2", place.path());
        let with = |name: &str| {
            format!(
                "sslmode=verify-full sslrootcert={0}/ca.crt sslcert={0}/{name}.crt sslkey={0}/{name}.key",
                place.path().display()
            )
        };
        let refused = attempt(&with("standby2")).unwrap_err();
        assert!(
            refused.contains("certificate authentication failed"),
            "{refused}"
        );
        // The second is let in beside the first, and the proxy beside both.
        setup(&primary, &["standby2"]).well();
        primary.setup(&[]).well();
        attempt(&with("standby2")).unwrap();
        attempt(&with("standby1")).unwrap();
        let hba = fs::read_to_string(data.join("pg_hba.conf")).unwrap();
        assert!(
            hba.contains(&rule) && hba.contains("peer map=pgtlsproxy\n"),
            "{hba}"
        );

        let mut revoke = Command::new(certs_tool());
        revoke.arg("--dir").arg(primary.dir().join("pki"));
        run(revoke.args(["revoke", "standby2"])).unwrap();
        primary.node.reload();
        testbed::wait_until("the revocation to count", || {
            attempt(&with("standby2")).is_err()
        });
        attempt(&with("standby1")).unwrap();

        primary.undo_without(standby, &before);
        primary.node.poll_query_until("show ssl", "off");
    }
}

#[test]
fn what_others_trust_is_not_taken_from_them() {
    let site = Scratch::new("site");
    let mut make = Command::new(certs_tool());
    run(make.arg("--dir").arg(site.path()).args(["ca", "init"])).unwrap();
    let others = site.path().join("ca.crt");
    let setting = |path: &Path| format!("ssl_ca_file = '{}'", path.display());
    let mut primary = Prepared::careful(15, &setting(&others));
    let before = configuration(&primary.node);
    let refused = setup(&primary, &["standby1"]).failed();
    assert!(
        refused.contains("[G21]") && refused.contains(others.to_str().unwrap()),
        "{refused}"
    );
    // What is said there would be overwritten by the next run.
    assert!(!refused.contains("pgtlsproxy.conf"), "{refused}");
    assert_eq!(configuration(&primary.node), before);
    primary.node.start();
    let undone = primary.undo_with(&["--json"]);
    assert_eq!(report(&undone.well())["changed"], false);

    // The way out that it names: our CA is made, and both stand in one file.
    let pki = primary.dir().join("pki");
    let mut make = Command::new(certs_tool());
    run(make.arg("--dir").arg(&pki).args(["ca", "init"])).unwrap();
    let both = site.path().join("both.crt");
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    fs::write(&both, read(&others) + &read(&pki.join("ca.crt"))).unwrap();
    primary.node.append_conf(&setting(&both));
    let said = setup(&primary, &["standby1"]).well();
    assert!(
        said.contains("[G30]") && said.contains("ssl_crl_file"),
        "{said}"
    );
    let shown = "show ssl_ca_file";
    primary.node.poll_query_until(shown, both.to_str().unwrap());
    assert!(
        setup(&primary, &["standby1"])
            .well()
            .contains("nothing to do")
    );
}

#[test]
fn the_proxy_beside_it_keeps_its_own_directories() {
    let primary = Prepared::careful(15, "");
    primary.setup(&[]).well();
    setup(&primary, &["standby1"]).well();
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    let dir = primary.dir();
    for name in ["run", "state"] {
        // `--os-user` is root here.
        assert_eq!(owner(&dir.join(name)), owner(&dir), "{name}");
    }
    let key = dir.join("db1-postgresql.key");
    assert_eq!(owner(&key), owner(&primary.node.data()));
}

#[test]
fn undo_says_in_json_what_it_did() {
    let primary = Prepared::careful(15, "");
    primary.setup(&[]).well();
    let hba = primary.node.data().join("pg_hba.conf");
    let theirs = fs::read_to_string(&hba).unwrap() + "local all all peer\n";
    fs::write(&hba, theirs).unwrap();
    let undone = primary.undo_with(&["--json"]);
    let undone = report(&undone.well());
    assert_eq!(
        (&undone["format"], &undone["changed"]),
        (&json!(1), &json!(true))
    );
    let of = |name: &str| {
        let files = undone["files"].as_array().unwrap();
        let file = files
            .iter()
            .find(|file| file["path"].as_str().unwrap().ends_with(name));
        file.unwrap()["result"].clone()
    };
    assert_eq!(of("pg_hba.conf"), "block_taken");
    assert_eq!(of("pg_ident.conf"), "restored");
    assert_eq!(of("data/pgtlsproxy.conf"), "removed");
}
