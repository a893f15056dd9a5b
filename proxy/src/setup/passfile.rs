//! libpq's password file (documentation, 34.16): `host:port:database:user:password`, one a line. `setup` writes one of its
//! own, mode 0600, owned by the server's OS user: libpq passes over any other in silence.

use crate::problem::Problem;

/// Whose password it is, and where it is given. `*` fits everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// As it stands in the connection string: the directory of a Unix socket, or a host.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) user: &'a str,
    pub(crate) password: &'a str,
}

/// One line, for every database: a walreceiver asks for `replication`, slot sync for a real one.
pub(crate) fn line(entry: Entry<'_>) -> Result<String, Problem> {
    let fields = [entry.host, entry.user, entry.password];
    if fields
        .iter()
        .any(|field| field.contains(['\n', '\r', '\0']))
        || entry.host.starts_with('#')
    {
        return Err(Problem::new(
            "G02",
            "this role, password or host cannot stand in a password file",
            "libpq reads that file line by line, and knows no escape for the end of a line",
            "choose one without line breaks",
        ));
    }
    let [host, user, password] = fields.map(escaped);
    Ok(format!("{host}:{}:*:{user}:{password}\n", entry.port))
}

fn escaped(field: &str) -> String {
    field.replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_and_backslashes_are_escaped_and_line_breaks_refused() {
        let entry = |password| Entry {
            host: "/run/pgtlsproxy",
            port: 5442,
            user: "re:p",
            password,
        };
        assert_eq!(
            line(entry("it's \\ a:b %")).unwrap(),
            "/run/pgtlsproxy:5442:*:re\\:p:it's \\\\ a\\:b %\n"
        );
        assert!(line(entry("a\nb")).is_err() && line(entry("a\r")).is_err());
    }
}
