//! Certificates meet other makers: PostgreSQL's own TLS and libpq take what `certs-tool` made, also under a CA that
//! openssl made, and `certs-tool` sees what they present.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use testbed::postgres::psql_of;
use testbed::programs::{certs_tool, psql_with_tls};
use testbed::tunnel::server_config;
use testbed::{Node, Pki, Scratch, Sidecar, run};

/// A CA's directory, made by whomever.
struct Site(Scratch);

impl Site {
    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn tool(&self, arguments: &str) -> Result<String, String> {
        let mut tool = Command::new(certs_tool());
        run(tool
            .current_dir(self.0.path())
            .args(["--dir", "."])
            .args(arguments.split_whitespace()))
    }

    fn sh(&self, script: &str) {
        run(Command::new("sh")
            .current_dir(self.0.path())
            .args(["-ec", script]))
        .unwrap();
    }

    /// PostgreSQL 15 with `ssl = on` that demands a certificate made out to the role.
    fn primary(&self) -> Node {
        let primary = Node::builder("primary").init();
        for file in ["server.crt", "server.key", "ca.crt", "ca.crl"] {
            self.give(file, &primary.data());
        }
        primary.append_conf(
            "ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = 'ca.crt'\nssl_crl_file = 'ca.crl'",
        );
        primary.prepend_hba(
            "hostssl all all 127.0.0.1/32 cert clientcert=verify-full\nhost all all all reject",
        );
        let primary = primary.started();
        primary.query("create role app login");
        primary.query("create role other login");
        primary
    }

    /// As a copy to the node, for the server's user.
    fn give(&self, file: &str, to: &Path) {
        let new = to.join(format!("{file}.new"));
        fs::copy(self.path(file), &new).unwrap();
        run(Command::new("chown").arg("--reference").arg(to).arg(&new)).unwrap();
        fs::rename(new, to.join(file)).unwrap();
    }

    /// Who psql is, with this node's certificate and sslmode=verify-full.
    fn login(&self, primary: &Node, name: &str, role: &str) -> Result<String, String> {
        let [cert, key, ca, crl] = [
            &*format!("{name}.crt"),
            &*format!("{name}.key"),
            "ca.crt",
            "ca.crl",
        ]
        .map(|file| self.path(file).display().to_string());
        let conninfo = format!(
            "host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user={role} sslmode=verify-full \
             sslcert={cert} sslkey={key} sslrootcert={ca} sslcrl={crl}",
            primary.address().port()
        );
        psql_of(&psql_with_tls(), &conninfo, "select current_user")
    }
}

/// Certificates of both ways, revocation in both, and a rotation on the way.
fn serves_postgres_and_libpq(site: &Site) {
    site.tool("issue server --san localhost --san 127.0.0.1")
        .unwrap();
    site.tool("issue app").unwrap();
    site.tool("issue stolen").unwrap();
    // openssl's request, signed here.
    site.sh("openssl req -new -newkey rsa:2048 -nodes -keyout asked.key -out asked.csr -subj /CN=whatever 2>&1; chmod 600 asked.key");
    site.tool("sign asked.csr --name asked").unwrap();
    let primary = site.primary();
    assert_eq!(site.login(&primary, "app", "app").unwrap(), "app");
    let said = site.login(&primary, "app", "other").unwrap_err();
    assert!(said.contains("certificate authentication failed"), "{said}");
    primary.query("create role asked login");
    primary.query("create role stolen login");
    assert_eq!(site.login(&primary, "asked", "asked").unwrap(), "asked");
    assert_eq!(site.login(&primary, "stolen", "stolen").unwrap(), "stolen");

    site.tool("revoke stolen.crt").unwrap();
    site.give("ca.crl", &primary.data());
    primary.reload();
    let refused = || site.login(&primary, "stolen", "stolen").is_err();
    testbed::wait_until("PostgreSQL to refuse what is revoked", refused);
    assert_eq!(site.login(&primary, "app", "app").unwrap(), "app");

    for step in ["start", "switch"] {
        site.tool(&format!("ca rotate {step}")).unwrap();
        for file in ["ca.crt", "ca.crl"] {
            site.give(file, &primary.data());
        }
        primary.reload();
        if step == "switch" {
            site.tool("renew app").unwrap();
        }
        let taken = || site.login(&primary, "app", "app").is_ok();
        testbed::wait_until("both CAs to be trusted", taken);
        assert_eq!(
            site.login(&primary, "asked", "asked").unwrap(),
            "asked",
            "{step}"
        );
        assert!(site.login(&primary, "stolen", "stolen").is_err(), "{step}");
    }
    let address = primary.address();
    let shown = site
        .tool(&format!(
            "inspect {address} --ca ca.crt --crl ca.crl --cert app.crt --key app.key"
        ))
        .unwrap();
    for part in [
        "by SSLRequest",
        "TLSv1_3",
        "asks     for a certificate of",
        "trusted  yes",
        "dns:localhost",
    ] {
        assert!(shown.contains(part), "{part} is missing: {shown}");
    }
    assert!(!shown.contains("refuses"), "{shown}");
    let shown = site
        .tool(&format!(
            "inspect {address} --cert stolen.crt --key stolen.key"
        ))
        .unwrap();
    assert!(
        shown.contains("refuses") && shown.contains("dns:localhost"),
        "{shown}"
    );
}

#[test]
fn postgres_and_libpq_take_what_certs_tool_made() {
    let site = Site(Scratch::new("own"));
    site.tool("ca init").unwrap();
    serves_postgres_and_libpq(&site);
}

#[test]
fn certs_tool_signs_under_a_ca_that_openssl_made() {
    let site = Site(Scratch::new("openssl"));
    site.sh("openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 3650 -subj '/O=Site/CN=Site CA' 2>&1; chmod 600 ca.key");
    site.tool("crl").unwrap();
    serves_postgres_and_libpq(&site);
}

#[test]
fn certs_tool_signs_with_an_encrypted_key_of_openssl_under_an_offline_root() {
    let site = Site(Scratch::new("root"));
    site.sh(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout root.key -out root.crt -days 3650 -subj '/CN=Root' 2>&1
         echo secret > pass; chmod 600 pass
         openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes-256-cbc -pass file:pass -out ca.key; chmod 600 ca.key
         openssl req -new -key ca.key -passin file:pass -subj '/CN=Issuing' -out ca.csr
         printf 'basicConstraints=critical,CA:TRUE,pathlen:0\\nkeyUsage=critical,keyCertSign,cRLSign\\nsubjectKeyIdentifier=hash\\nauthorityKeyIdentifier=keyid\\n' > ext
         openssl x509 -req -in ca.csr -CA root.crt -CAkey root.key -CAcreateserial -days 1000 -extfile ext -out ca.crt 2>&1",
    );
    site.tool("issue server --san localhost --san 127.0.0.1 --passphrase-file pass")
        .unwrap();
    site.sh(
        "cat root.crt >> ca.crt; openssl verify -CAfile root.crt -untrusted server.crt server.crt",
    );
    let verdict =
        site.tool("verify server.crt --key server.key --ca root.crt --peer-name localhost");
    assert!(verdict.unwrap().contains("verifies"));
}

#[test]
fn inspect_sees_what_a_proxy_presents_though_it_refuses() {
    let (pki, primary) = (Pki::new(), Node::primary());
    let identity = pki.issue("primary");
    let server = Sidecar::run(
        "server",
        &server_config(&identity, primary.socket().display(), ""),
    );
    let address = server.address().to_string();
    let shown = pki.certs_tool(&["inspect", &address]).unwrap();
    for part in [
        "by direct TLS",
        "alpn     postgresql",
        "refuses",
        "dns:primary.test",
    ] {
        assert!(shown.contains(part), "{part} is missing: {shown}");
    }
    let [ca, crl] = [pki.ca(), pki.crl()].map(|path| path.display().to_string());
    let json = pki.certs_tool(&[
        "inspect",
        &address,
        "--ca",
        &ca,
        "--crl",
        &crl,
        "--server-name",
        "db9.test",
        "--json",
    ]);
    let json: serde_json::Value = serde_json::from_str(&json.unwrap()).unwrap();
    assert_eq!(json[0]["kind"], "server");
    assert_eq!(json[0]["trusted"], false);
    assert!(
        json[0]["problems"][0]["message"]
            .as_str()
            .unwrap()
            .contains("not for db9.test"),
        "{json}"
    );
    let standby = pki.issue("standby");
    let [cert, key] = [&standby.cert, &standby.key].map(|path| path.display().to_string());
    let shown = pki
        .certs_tool(&[
            "inspect", &address, "--ca", &ca, "--cert", &cert, "--key", &key,
        ])
        .unwrap();
    assert!(
        shown.contains("trusted  yes") && !shown.contains("refuses"),
        "{shown}"
    );
    let other = pki
        .certs_tool(&["inspect", &format!("{}", primary.address())])
        .unwrap_err();
    assert!(other.contains("ssl = on is missing"), "{other}");
}
