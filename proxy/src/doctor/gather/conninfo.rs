//! Connection strings and password files as libpq reads them ("Connection Strings", "The Password File"): only what
//! is needed to do what the standby does. A URI is left to libpq.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::doctor::facts::Password;
use crate::setup;

/// Keywords and their values.
#[derive(Clone)]
pub(super) struct Conninfo {
    values: BTreeMap<String, Zeroizing<String>>,
    /// Where this libpq looks for a socket if it is told no host.
    sockets: &'static str,
}

impl Conninfo {
    /// `None` where libpq would refuse it, or for a URI.
    pub(super) fn parse(text: &str, sockets: &'static str) -> Option<Self> {
        let uri = ["postgres://", "postgresql://"];
        if uri
            .iter()
            .any(|scheme| text.trim_start().starts_with(scheme))
        {
            return None;
        }
        let pairs = setup::Conninfo::parse(text).ok()?.0;
        let values = pairs
            .into_iter()
            .map(|(keyword, value)| (keyword, Zeroizing::new(value)))
            .collect();
        Some(Self { values, sockets })
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.values
            .get(key)
            .map(|value| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// Host as written; the first of several.
    pub(super) fn host(&self) -> &str {
        let hosts = self.get("host").or_else(|| self.get("hostaddr"));
        first(hosts.unwrap_or(self.sockets))
    }

    /// The host as the passfile has it.
    fn passfile_host(&self) -> &str {
        match self.host() {
            host if host == self.sockets => "localhost",
            host => host,
        }
    }

    /// What is dialled: hostaddr where there is one.
    pub(super) fn address(&self) -> &str {
        first(self.get("hostaddr").unwrap_or_else(|| self.host()))
    }

    pub(super) fn port(&self) -> u16 {
        self.get("port")
            .and_then(|port| first(port).parse().ok())
            .unwrap_or(5432)
    }

    /// The string without its password, which must not stand in a command line.
    pub(super) fn without_password(&self) -> String {
        let others = self.values.iter().filter(|(key, _)| *key != "password");
        let plain = others.map(|(key, value)| (key.clone(), value.to_string()));
        setup::Conninfo(plain.collect()).to_string()
    }
}

fn first(list: &str) -> &str {
    list.split(',').next().unwrap_or(list)
}

/// The password that libpq would use for a server process of this OS user, or why there is none.
pub(super) fn password(
    conninfo: &Conninfo,
    user: &str,
    database: &str,
    owner: (u32, &Path),
) -> Result<Zeroizing<String>, Password> {
    if let Some(password) = conninfo.get("password") {
        return Ok(Zeroizing::new(password.to_owned()));
    }
    let (uid, home) = owner;
    let passfile = conninfo
        .get("passfile")
        .map_or_else(|| home.join(".pgpass"), PathBuf::from);
    let shown = passfile.display().to_string();
    let wanted = [
        conninfo.passfile_host(),
        &conninfo.port().to_string(),
        database,
        user,
    ]
    .map(escaped);
    let missing = || Password::Missing {
        passfile: shown.clone(),
        line: format!("{}:PASSWORD", wanted.join(":")),
    };
    let ignored = |why: String, mend: String| Password::Ignored {
        passfile: shown.clone(),
        why,
        mend,
    };
    let named = conninfo.get("passfile").is_some();
    let metadata = match fs::metadata(&passfile) {
        Ok(metadata) => metadata,
        Err(error) if named => {
            return Err(ignored(
                error.to_string(),
                format!("make {shown}, owned by PostgreSQL's OS user, mode 0600"),
            ));
        }
        Err(_) => return Err(missing()),
    };
    // libpq says the same; and a pipe would be waited for.
    if !metadata.is_file() {
        return Err(ignored(
            "it is not a plain file".to_owned(),
            format!("make {shown} a plain file, or name another with passfile="),
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(ignored(
            format!("its mode is {:04o}", metadata.mode() & 0o777),
            format!("chmod 0600 {shown}"),
        ));
    }
    if metadata.uid() != uid || metadata.mode() & 0o400 == 0 {
        return Err(ignored(
            format!(
                "PostgreSQL's OS user (uid {uid}) cannot read it: it belongs to uid {}",
                metadata.uid()
            ),
            format!("chown it to that user, or name another with passfile=: {shown}"),
        ));
    }
    let mut text = Zeroizing::new(String::new());
    let opened = fs::File::open(&passfile).map(|file| file.take(1 << 20));
    if let Err(error) = opened.and_then(|mut file| file.read_to_string(&mut text)) {
        return Err(ignored(error.to_string(), format!("look at {shown}")));
    }
    let plain = [
        conninfo.passfile_host(),
        &conninfo.port().to_string(),
        database,
        user,
    ]
    .map(str::to_owned);
    text.lines()
        .find_map(|line| matching(line.trim_end_matches('\r'), &plain))
        .ok_or_else(missing)
}

fn escaped(field: &str) -> String {
    field.replace('\\', "\\\\").replace(':', "\\:")
}

/// The fifth field, if the first four are `*` or the same.
fn matching(line: &str, wanted: &[String; 4]) -> Option<Zeroizing<String>> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![Zeroizing::new(String::new())];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => fields.last_mut()?.extend(chars.next()),
            ':' if fields.len() < 5 => fields.push(Zeroizing::new(String::new())),
            c => fields.last_mut()?.push(c),
        }
    }
    let fits = fields
        .iter()
        .zip(wanted)
        .all(|(field, wanted)| field.as_str() == "*" || field.as_str() == wanted);
    (fits && fields.len() == 5).then(|| fields.pop()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conninfo_is_read_as_libpq_reads_it() {
        let parsed = parse(r"host = '/run/x' port=5442 password='it\'s \\ x' user=a\ b").unwrap();
        for (key, value) in [
            ("host", "/run/x"),
            ("port", "5442"),
            ("password", r"it's \ x"),
            ("user", "a b"),
        ] {
            assert_eq!(parsed.get(key), Some(value));
        }
        assert!(!parsed.without_password().contains("it"));
        for wrong in [
            "host",
            "host='x",
            "a b=c",
            "postgresql://h/d",
            "postgres://h/d?sslmode=disable",
        ] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
        for (text, dialled, in_passfile) in [
            ("port=5442", "/run/default", "localhost"),
            ("host=/run/default", "/run/default", "localhost"),
            ("host=/run/x", "/run/x", "/run/x"),
            ("host=a,b hostaddr=10.0.0.1", "10.0.0.1", "a"),
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!(
                (parsed.address(), parsed.passfile_host()),
                (dialled, in_passfile)
            );
        }
    }

    fn parse(text: &str) -> Option<Conninfo> {
        Conninfo::parse(text, "/run/default")
    }

    #[test]
    fn passfile_lines_match_by_four_fields() {
        let wanted = ["h", "5442", "replication", "rep"].map(str::to_owned);
        for (line, password) in [
            ("*:*:*:*:pw", Some("pw")),
            (r"h:5442:replication:rep:a\:b:c", Some("a:b:c")),
            ("h:5442:rep:rep:pw", None),
            ("#*:*:*:*:pw", None),
            ("h:5442:replication:rep", None),
        ] {
            let found = matching(line, &wanted);
            assert_eq!(
                found.as_ref().map(|found| found.as_str()),
                password,
                "{line}"
            );
        }
    }
}
