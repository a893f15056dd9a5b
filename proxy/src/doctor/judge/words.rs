//! Names as they must stand in a way out, so that it can be copied: into psql, pg_hba.conf, a shell.

use std::net::IpAddr;

use crate::setup::hba::quote;
use crate::setup::{V16, sql_identifier};

/// A role or a database for psql; only what needs quotes has them.
pub(super) fn name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(plain) {
        name.to_owned()
    } else {
        sql_identifier(name)
    }
}

/// The line that lets a proxy's OS user in on the Unix socket.
pub(super) fn local_line(database: &str, role: &str) -> String {
    let (database, role) = (word(database), word(role));
    format!("local {database} {role} peer map=pgtlsproxy")
}

/// The same over TCP from an address of this host, by password.
pub(super) fn host_line(database: &str, role: &str, ip: IpAddr) -> String {
    let (database, role) = (word(database), word(role));
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    format!("host {database} {role} {ip}/{bits} scram-sha-256")
}

/// `replication` stays the keyword that it is meant as.
fn word(name: &str) -> String {
    if name == "replication" {
        return name.to_owned();
    }
    // What no version can write is shown as it is.
    quote(name, V16).unwrap_or_else(|| name.to_owned())
}

/// A path for a shell.
pub(super) fn shell(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if path.chars().all(plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_means_what_was_meant() {
        for (name, sql, line) in [
            ("rep_1", "rep_1", "rep_1"),
            ("Rep", "\"Rep\"", "Rep"),
            ("it's a \"role\"", "\"it's a \"\"role\"\"\"", ""),
            ("all", "all", "\"all\""),
        ] {
            assert_eq!(super::name(name), sql);
            if !line.is_empty() {
                assert_eq!(word(name), line);
            }
        }
        assert_eq!(shell("/srv/pg data/it's"), r"'/srv/pg data/it'\''s'");
        assert_eq!(
            shell("/var/lib/postgresql/15/main"),
            "/var/lib/postgresql/15/main"
        );
        assert_eq!(
            local_line("replication", "a b"),
            "local replication \"a b\" peer map=pgtlsproxy"
        );
    }
}
