//! Each side alone with stock PostgreSQL TLS: the client against a server with `ssl = on`, the server for libpq
//! with a client certificate. So a site can adopt the proxy one host at a time.

use testbed::postgres::psql_of;
use testbed::programs::psql_with_tls;
use testbed::tunnel::{client_config, server_config};
use testbed::{Node, Pki, Sidecar};

/// A primary with `ssl = on` that lets in nothing without TLS.
fn primary_with_tls(pki: &Pki, programs: &str, hba: &str) -> Node {
    let primary = Node::builder("primary").programs(programs).init();
    let identity = primary.own_identity(&pki.issue("primary"));
    primary.append_conf(&format!(
        "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\nssl_ca_file = '{}'",
        identity.cert.display(),
        identity.key.display(),
        identity.ca.display()
    ));
    primary.prepend_hba(&format!(
        "{hba}\nhost all all all reject\nhost replication all all reject"
    ));
    primary.started()
}

const CERTIFICATE: &str = "\
hostssl all all 127.0.0.1/32 trust clientcert=verify-ca
hostssl replication all 127.0.0.1/32 trust clientcert=verify-ca";

const PASSWORD: &str = "\
hostssl all all 127.0.0.1/32 scram-sha-256
hostssl replication all 127.0.0.1/32 scram-sha-256";

fn client(pki: &Pki, primary: &Node, negotiation: &str) -> Sidecar {
    let negotiation = format!("sslnegotiation = \"{negotiation}\"");
    Sidecar::run(
        "client",
        &client_config(&pki.issue("standby"), primary.address(), &negotiation),
    )
}

#[test]
fn client_streams_from_a_stock_server_by_sslrequest() {
    let pki = Pki::new();
    let primary = primary_with_tls(&pki, "15", CERTIFICATE);
    let client = client(&pki, &primary, "postgres");
    let standby = Node::standby("standby", &client.conninfo());
    primary.wait_for_standby("standby");
    assert_eq!(
        primary.query("select count(*) from pg_stat_ssl where ssl and version = 'TLSv1.3'"),
        "1"
    );
    standby.catch_up_with(&primary);
}

#[test]
fn tls_1_2_is_spoken_to_an_old_server_only_if_asked_for() {
    let pki = Pki::new();
    let primary = primary_with_tls(&pki, "15", CERTIFICATE);
    primary.append_conf("ssl_max_protocol_version = 'TLSv1.2'");
    primary.query("select pg_reload_conf()");
    primary.poll_query_until("show ssl_max_protocol_version", "TLSv1.2");
    let connect = |extra: &str| {
        let more = format!("sslnegotiation = \"postgres\"\n{extra}");
        let identity = pki.issue(if extra.is_empty() { "strict" } else { "old" });
        let client = Sidecar::run(
            "client",
            &client_config(&identity, primary.address(), &more),
        );
        let version = "select version from pg_stat_ssl where pid = pg_backend_pid()";
        psql_of(&psql_with_tls(), &client.conninfo(), version)
    };
    let said = connect("").unwrap_err();
    assert!(
        said.contains("TLS 1.3") && said.contains("min_tls"),
        "{said}"
    );
    assert_eq!(connect("min_tls = \"1.2\"").unwrap(), "TLSv1.2");
}

#[test]
fn client_streams_from_a_stock_server_by_direct_tls() {
    let pki = Pki::new();
    let primary = primary_with_tls(&pki, "18", CERTIFICATE);
    for negotiation in ["direct", "postgres"] {
        let client = client(&pki, &primary, negotiation);
        let standby = Node::builder("standby")
            .version(18)
            .init_from_backup(&client.conninfo());
        standby.set_standby(&client.conninfo(), None);
        let _standby = standby.started();
        primary.wait_for_standby("standby");
    }
}

#[test]
fn scram_login_works_though_the_stock_server_offers_channel_binding() {
    let pki = Pki::new();
    for (programs, negotiation) in [("15", "postgres"), ("18", "direct")] {
        let primary = primary_with_tls(&pki, programs, PASSWORD);
        primary.query("set password_encryption = 'scram-sha-256'; create role rep login replication password 'secret'");
        let client = client(&pki, &primary, negotiation);
        let login = |password| {
            let conninfo = format!(
                "{} user=rep dbname=postgres password={password}",
                client.conninfo()
            );
            psql_of(&psql_with_tls(), &conninfo, "select current_user")
        };
        assert_eq!(login("secret").unwrap(), "rep");
        let said = login("wrong").unwrap_err();
        assert!(said.contains("password authentication failed"), "{said}");
    }
}

#[test]
fn server_without_tls_is_told_to_the_user() {
    let (pki, primary) = (Pki::new(), Node::primary());
    let client = client(&pki, &primary, "postgres");
    let said = psql_of(&psql_with_tls(), &client.conninfo(), "select 1").unwrap_err();
    assert!(
        said.contains("pgtlsproxy: ") && said.contains("ssl = on"),
        "{said}"
    );
}

#[test]
fn server_serves_a_stock_walreceiver_with_verify_full() {
    let (pki, primary) = (Pki::new(), Node::primary());
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), primary.socket().display(), ""),
    );
    let standby = Node::builder("standby").init_from_backup(&primary.conninfo());
    let own = standby.own_identity(&pki.issue("standby")).conninfo();
    standby.set_standby(
        &format!("{} sslmode=verify-full {own}", server.conninfo()),
        None,
    );
    let standby = standby.started();
    primary.wait_for_standby("standby");
    standby.catch_up_with(&primary);
}

#[test]
fn server_serves_a_stock_walreceiver_with_direct_tls() {
    let pki = Pki::new();
    let primary = Node::builder("primary").programs("ssl17").init().started();
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), primary.socket().display(), ""),
    );
    let standby = Node::builder("standby")
        .programs("ssl17")
        .init_from_backup(&primary.conninfo());
    let own = standby.own_identity(&pki.issue("standby")).conninfo();
    let conninfo = format!(
        "{} sslmode=verify-full sslnegotiation=direct {own}",
        server.conninfo()
    );
    standby.set_standby(&conninfo, None);
    let standby = standby.started();
    primary.wait_for_standby("standby");
    standby.catch_up_with(&primary);
}

#[test]
fn stock_libpq_without_a_certificate_is_refused() {
    let (pki, primary) = (Pki::new(), Node::primary());
    let server = Sidecar::run(
        "server",
        &server_config(&pki.issue("primary"), primary.socket().display(), ""),
    );
    let conninfo = format!(
        "{} sslmode=require sslcert=/nonexistent replication=true",
        server.conninfo()
    );
    let said = psql_of(&psql_with_tls(), &conninfo, "IDENTIFY_SYSTEM").unwrap_err();
    assert!(said.contains("certificate required"), "{said}");
    server.wait_for_log("no certificate");
}
