//! PostgreSQL's own TLS instead of the proxy (documentation, 19.9 and 21.12): its settings, the lines that demand a
//! certificate of our CA, the map from certificates to the role, and what a standby connects with.

use std::path::PathBuf;

use serde::Serialize;

use super::conninfo::Conninfo;
use super::facts::Facts;
use super::files::Files;
use super::plan::{MAP, Wishes};
use super::version::{Major, Thing, V9_2, V10, V12, V13, wants};
use crate::problem::Problem;

/// The map of pg_ident.conf by which a certificate's common name becomes the role. It is not that of the OS user: no
/// certificate may be taken for one.
pub(crate) const TLS_MAP: &str = "pgtlsproxy_tls";

/// The settings that it needs, all of 9.2 and later.
pub(crate) const SETTINGS: [&str; 7] = [
    "listen_addresses",
    "ssl",
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_min_protocol_version",
];

/// The files that PostgreSQL is to use, with absolute paths, and who may come.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
    pub(crate) crl: PathBuf,
    /// What is in those two, if they are made yet.
    pub(crate) known_ca: Vec<u8>,
    pub(crate) known_crl: Vec<u8>,
    /// Networks as pg_hba.conf spells them.
    pub(crate) from: Vec<String>,
}

/// Whether a change of this setting waits for a restart: of TLS up to 9.6 (10 release notes).
pub(crate) fn at_restart(name: &str, major: Major) -> bool {
    name == "listen_addresses" || SETTINGS.contains(&name) && major < V10
}

/// What is to be set, with what others say (`set`) where that is well enough.
pub(crate) fn settings(
    tls: &Tls,
    facts: &Facts,
    set: impl Fn(&str) -> Option<String>,
) -> Vec<(&'static str, String)> {
    let file = |path: &PathBuf| path.to_string_lossy().into_owned();
    let mut own = vec![
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", file(&tls.certificate)),
        ("ssl_key_file", file(&tls.key)),
        ("ssl_ca_file", file(&tls.ca)),
        ("ssl_crl_file", file(&tls.crl)),
    ];
    let loopback = |list: &str| {
        let mut addresses = list.split(',').map(str::trim);
        addresses.all(|address| matches!(address, "" | "localhost" | "127.0.0.1" | "::1"))
    };
    // What the command line says wins over every file, and is not changed here.
    let on_command_line = facts
        .running
        .as_ref()
        .is_some_and(|running| running.fixed.contains_key("listen_addresses"));
    if set("listen_addresses").is_none_or(|list| loopback(&list)) && !on_command_line {
        own.push(("listen_addresses", "*".to_owned()));
    }
    // 12's own default is TLSv1; before, it had no such setting (12 and 13 release notes).
    if facts.major >= V12 && facts.major < V13 && set("ssl_min_protocol_version").is_none() {
        own.push(("ssl_min_protocol_version", "TLSv1.2".to_owned()));
    }
    own
}

/// Settings of others that serve this as they are, since they hold our CA besides theirs; and the warning that they hold not
/// all that it has revoked.
pub(crate) struct Shared {
    pub(crate) settings: &'static [&'static str],
    warning: Option<Problem>,
}

/// Whether others' file of CAs holds ours, too. A list of what is revoked belongs to it: with ours alone PostgreSQL would
/// refuse all certificates of the other CA.
pub(crate) fn shared(
    files: &dyn Files,
    tls: &Tls,
    facts: &Facts,
    set: impl Fn(&str) -> Option<String>,
) -> Shared {
    let holds = |name: &str, known: &[u8]| {
        let other = set(name).filter(|other| !other.is_empty())?;
        let text = files.read(&facts.data.join(&other)).unwrap_or_default();
        let (theirs, ours) = (blocks(&text), blocks(known));
        let all = !ours.is_empty() && ours.iter().all(|block| theirs.contains(block));
        Some((other, all))
    };
    let ours = tls.ca.to_string_lossy();
    match holds("ssl_ca_file", &tls.known_ca) {
        Some((other, true)) if other != ours => {}
        _ => {
            return Shared {
                settings: &[],
                warning: None,
            };
        }
    }
    let why = match holds("ssl_crl_file", &tls.known_crl) {
        Some((_, true)) => None,
        Some((other, false)) => Some(format!(
            "{other} does not hold {} as it is now",
            tls.crl.display()
        )),
        None => Some("ssl_crl_file is not set".to_owned()),
    };
    let warning = why.map(|why| {
        Problem::new(
            "G30",
            "PostgreSQL does not know all that this CA has revoked",
            why,
            format!(
                "put the CRLs of both CAs into one file ({} is ours), and set ssl_crl_file to it in postgresql.conf",
                tls.crl.display()
            ),
        )
        .warning()
    });
    Shared {
        settings: &["ssl_ca_file", "ssl_crl_file"],
        warning,
    }
}

/// The blocks of a PEM file, without what is around them and between their lines.
fn blocks(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with("-----BEGIN ") {
            open = Some(String::new());
        } else if line.starts_with("-----END ") {
            found.extend(open.take());
        } else if let Some(block) = &mut open {
            block.push_str(line);
        }
    }
    found
}

/// Whether it can be done at all, and what it would take from others.
pub(crate) fn objections(
    tls: &Tls,
    shared: &Shared,
    facts: &Facts,
    set: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Problem>, Problem> {
    if facts.major < V9_2 {
        return Err(Problem::new(
            "G20",
            format!(
                "PostgreSQL {} cannot be told where its certificate is",
                facts.major
            ),
            "it takes server.crt, server.key, root.crt and root.crl of its data directory (9.1 documentation, 17.8)",
            "put them there by hand, or leave --external-tls away",
        ));
    }
    let differs = |name: &str, ours: &PathBuf| {
        set(name).filter(|now| !now.is_empty() && ours.as_os_str() != now.as_str())
    };
    if let Some(other) = differs("ssl_ca_file", &tls.ca).filter(|_| shared.settings.is_empty()) {
        return Err(Problem::new(
            "G21",
            format!("PostgreSQL trusts the CA in {other} already"),
            "it takes one file, so certificates of that CA would no longer be accepted",
            format!(
                "put both CAs into one file ({} is ours{}), set ssl_ca_file to it where it is set now, then run this again; or leave --external-tls away",
                tls.ca.display(),
                match (&*tls.known_ca, tls.ca.parent()) {
                    ([], Some(pki)) =>
                        format!(", made by `certs-tool --dir {} ca init`", pki.display()),
                    _ => String::new(),
                }
            ),
        ));
    }
    let certificate = differs("ssl_cert_file", &tls.certificate)
        .filter(|other| !other.contains("ssl-cert-snakeoil"));
    Ok(certificate
        .map(|other| {
            Problem::new(
                "G22",
                format!("PostgreSQL shows {} from now on", tls.certificate.display()),
                format!("it has shown {other}; programs that verify that one fail"),
                "give them this CA, or `pgtlsproxy setup undo`",
            )
            .warning()
        })
        .into_iter()
        .chain(shared.warning.clone())
        .collect())
}

/// The end of a hostssl line: the method `cert` looks the common name up in the map. `clientcert` says the same once more,
/// so that the line stays safe when somebody changes its method (documentation, 20.12).
pub(crate) fn method(major: Major) -> String {
    let demand = wants(major, Thing::ClientCertificate).unwrap_or("clientcert=1");
    format!("cert {demand} map={TLS_MAP}")
}

/// Where a standby's files lie, in its data directory's parent or wherever its user can read them.
const STANDBY_FILES: &str = "/etc/pgtlsproxy";

/// What one standby needs.
#[derive(Debug, Serialize)]
pub(crate) struct Needs {
    name: String,
    /// Its `primary_conninfo`.
    conninfo: String,
    /// The files that it names.
    files: Vec<String>,
    /// The command that makes them, beside the CA.
    issue: String,
}

/// What these standbys connect with (libpq, 34.1.2), their files being in /etc/pgtlsproxy.
pub(crate) fn needs(wishes: &Wishes, tls: &Tls, host: &str, port: u16) -> Vec<Needs> {
    let pki = tls.ca.parent().map(|path| path.display().to_string());
    let need = |name: &String| {
        let at = |file: &str| format!("{STANDBY_FILES}/{file}");
        let (cert, key) = (format!("{name}.crt"), format!("{name}.key"));
        let port = port.to_string();
        let conninfo = Conninfo::default()
            .with("host", host)
            .with("port", port)
            .with("user", &wishes.role)
            .with("application_name", name)
            .with("sslmode", "verify-full")
            .with("sslrootcert", at("ca.crt"))
            .with("sslcrl", at("ca.crl"))
            .with("sslcert", at(&cert))
            .with("sslkey", at(&key));
        Needs {
            name: name.clone(),
            conninfo: conninfo.to_string(),
            files: ["ca.crt", "ca.crl", &cert, &key].map(at).to_vec(),
            issue: format!(
                "certs-tool --dir {} issue {name}",
                pki.clone().unwrap_or_default()
            ),
        }
    };
    wishes.standbys.iter().map(need).collect()
}

impl Needs {
    /// For a person.
    pub(crate) fn text(&self) -> String {
        format!(
            "{} connects with\n  primary_conninfo = {}\n  its certificate: {}\n  on its host, its key with mode 0600 and owned by its PostgreSQL's user: {}\n",
            self.name,
            String::from_utf8_lossy(&super::conf::quote(self.conninfo.as_bytes())),
            self.issue,
            self.files.join(", ")
        )
    }
}

/// The lines of pg_ident.conf that stay: those of the other way to log in, of standbys of earlier runs, and of other roles.
/// Of this role's, the OS user's is written anew.
pub(crate) fn kept_maps<'a>(
    old: &'a str,
    map: &'a str,
    role: &str,
    new: &'a [String],
) -> impl Iterator<Item = String> + 'a {
    let for_role = format!(" {role}");
    let lines = old.lines().map(str::trim_end);
    lines
        .filter(move |line| match line.split_whitespace().next() {
            Some(TLS_MAP) => true,
            Some(MAP) => map != MAP || !line.ends_with(&for_role),
            _ => false,
        })
        .filter(|line| !new.iter().any(|new| new == line))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_way_for_the_same_role_replaces_a_line() {
        let old = "pgtlsproxy proxy replicator\npgtlsproxy proxy \"my role\"\npgtlsproxy_tls s1 replicator\n";
        let kept = |map, role: &str, new: &str| {
            let new = [new.to_owned()];
            kept_maps(old, map, role, &new).collect::<Vec<_>>()
        };
        let tls = "pgtlsproxy_tls s1 replicator";
        let of_others = ["pgtlsproxy proxy \"my role\"", tls];
        let new = "pgtlsproxy other replicator";
        assert_eq!(kept(MAP, "replicator", new), of_others);
        let new = "pgtlsproxy other \"my role\"";
        let of_others = ["pgtlsproxy proxy replicator", tls];
        assert_eq!(kept(MAP, "\"my role\"", new), of_others);
        let both = old.lines().take(2).collect::<Vec<_>>();
        assert_eq!(kept(TLS_MAP, "replicator", tls), both);
    }

    #[test]
    fn a_file_of_several_certificates_is_taken_apart() {
        let text = "Subject: a\r\n-----BEGIN CERTIFICATE-----\r\nAB\r\nCD\r\n-----END CERTIFICATE-----\r\n\n-----BEGIN CERTIFICATE-----\nEF\n-----END CERTIFICATE-----";
        assert_eq!(blocks(text.as_bytes()), ["ABCD", "EF"]);
        assert_eq!(blocks(b"-----BEGIN X-----\nAB\n"), [""; 0]);
    }
}
