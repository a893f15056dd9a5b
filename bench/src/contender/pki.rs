//! Certificates for all contenders, made by `certs-tool` as a user makes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::problem::{Doing, Problem};

/// A CA and the two sides' files. `PATH.crt` and `PATH.key` belong together; `PATH.pem` is both, for haproxy.
#[derive(Debug)]
pub(crate) struct Pki {
    pub(crate) ca: PathBuf,
    /// Without ending.
    pub(crate) server: PathBuf,
    /// Without ending.
    pub(crate) client: PathBuf,
}

impl Pki {
    pub(crate) fn make(certs_tool: &Path, dir: &Path) -> Result<Self, Problem> {
        let run = |arguments: &[&str]| {
            let mut command = Command::new(certs_tool);
            command.arg("--dir").arg(dir).args(arguments);
            testbed::run(&mut command).doing(|| "certs-tool failed".to_owned())
        };
        run(&["ca", "init"])?;
        let out = dir.display().to_string();
        for name in ["server", "client"] {
            run(&[
                "issue",
                name,
                "--san",
                "localhost",
                "--san",
                "127.0.0.1",
                "--out",
                &out,
            ])?;
            let read = |ending: &str| {
                let path = dir.join(format!("{name}.{ending}"));
                fs::read_to_string(&path).doing(|| format!("cannot read {}", path.display()))
            };
            let both = read("crt")? + &read("key")?;
            let pem = dir.join(format!("{name}.pem"));
            fs::write(&pem, both).doing(|| format!("cannot write {}", pem.display()))?;
        }
        Ok(Self {
            ca: dir.join("ca.crt"),
            server: dir.join("server"),
            client: dir.join("client"),
        })
    }
}
