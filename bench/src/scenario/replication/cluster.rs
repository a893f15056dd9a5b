//! Servers of the test bed, set up for the bench, and programs with a time limit.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use testbed::{Node, run};

use crate::contender::Pki;
use crate::problem::{Doing, Problem};

/// No client of a healthy cell takes as long.
const LIMIT: &str = "600";

const SETTINGS: &str = "
shared_buffers = 256MB
max_wal_size = 16GB
checkpoint_timeout = 1h
wal_keep_size = 256MB
autovacuum = off
log_replication_commands = off
ssl = on
ssl_min_protocol_version = 'TLSv1.3'
";

/// A primary that takes plaintext and its own TLS, the latter only with a certificate.
pub(super) fn primary(name: &str, pki: &Pki) -> Result<Node, Problem> {
    let node = Node::builder(name).init();
    let own = Files::copy(&node, &pki.server, pki)?;
    node.append_conf(SETTINGS);
    node.append_conf(&format!(
        "ssl_cert_file = '{}'\nssl_key_file = '{}'\nssl_ca_file = '{}'",
        own.cert.display(),
        own.key.display(),
        own.ca.display()
    ));
    node.prepend_hba(
        "hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n\
         hostssl replication all 127.0.0.1/32 trust clientcert=verify-ca\n\
         hostssl all all all reject\nhostssl replication all all reject",
    );
    Ok(node.started())
}

/// Certificate and key of one side where the server's user can read them, in libpq's words.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) ca: PathBuf,
}

impl Files {
    pub(super) fn copy(node: &Node, side: &Path, pki: &Pki) -> Result<Self, Problem> {
        let dir = node.socket_dir();
        let copy = |from: PathBuf| -> io::Result<PathBuf> {
            let to = dir.join(from.file_name().unwrap_or_default());
            fs::copy(&from, &to)?;
            let owner = fs::metadata(dir)?;
            chown(&to, Some(owner.uid()), Some(owner.gid()))?;
            Ok(to)
        };
        let all = || -> io::Result<Self> {
            Ok(Self {
                cert: copy(side.with_extension("crt"))?,
                key: copy(side.with_extension("key"))?,
                ca: copy(pki.ca.clone())?,
            })
        };
        all().doing(|| "certificates cannot be copied".to_owned())
    }

    pub(super) fn conninfo(&self) -> String {
        let [cert, key, ca] = [&self.cert, &self.key, &self.ca].map(|path| path.display());
        format!(
            "sslmode=verify-ca ssl_min_protocol_version=TLSv1.3 sslcert={cert} sslkey={key} sslrootcert={ca}"
        )
    }
}

/// One of PostgreSQL's clients, with the TLS of this system.
pub(super) fn client(name: &str) -> PathBuf {
    testbed::programs::postgres_programs("15").join(name)
}

/// A program that is ended when it takes too long.
pub(super) fn limited(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after", "5", LIMIT]).arg(program);
    command
}

/// Runs it to its end and gives what it said on stdout.
pub(super) fn finish(command: &mut Command, what: &str) -> Result<String, Problem> {
    run(command).doing(|| format!("{what} failed"))
}
