//! A directory in which the program is run as a user runs it. Its answers are judged by openssl, where openssl is there.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file takes what it needs, and a test that cannot go on fails"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) const TOOL: &str = env!("CARGO_BIN_EXE_certs-tool");

/// A directory with a CA in `pki`.
pub(crate) struct Place(pub(crate) TempDir);

impl Place {
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn with_ca() -> Self {
        let place = Self::empty();
        place.ok("ca init");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn pki(&self, name: &str) -> String {
        self.path("pki").join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(TOOL);
        command
            .current_dir(self.0.path())
            .args(["--dir", "pki"])
            .args(arguments.split_whitespace());
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it, demands success, gives what it said to people.
    pub(crate) fn ok(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments}: {}",
            text(&output.stderr)
        );
        text(&output.stderr)
    }

    /// Runs it, demands exit status 1, gives what it said to people.
    pub(crate) fn fails(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {said}");
        let error = &said[said.find("certs-tool: ").unwrap()..];
        assert!(
            error.trim_end().lines().count() <= 3,
            "an error has three lines at most: {error}"
        );
        said
    }

    pub(crate) fn json(&self, arguments: &str) -> Value {
        serde_json::from_slice(&self.run(arguments).stdout).unwrap()
    }

    /// Runs openssl in the directory; `None` where there is no openssl.
    pub(crate) fn openssl(&self, arguments: &str) -> Option<Output> {
        let mut command = Command::new("openssl");
        command
            .current_dir(self.0.path())
            .args(arguments.split_whitespace());
        match command.output() {
            Ok(output) => Some(output),
            Err(_) => {
                eprintln!("skipped: no openssl here");
                None
            }
        }
    }

    /// What openssl prints, which must succeed.
    pub(crate) fn openssl_says(&self, arguments: &str) -> Option<String> {
        let output = self.openssl(arguments)?;
        assert!(
            output.status.success(),
            "openssl {arguments}: {}",
            text(&output.stderr)
        );
        Some(text(&output.stdout))
    }

    /// A file that only its owner reads.
    pub(crate) fn secret(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn ledger(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.pki("ledger.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
