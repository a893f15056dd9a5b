//! PostgreSQL's own programs, run as the OS user who owns the data directory, and as he would run them himself: with all his
//! groups and his home. One of the three files with unsafe code: one call, pre_exec.
#![expect(
    unsafe_code,
    reason = "what the standard library has for this drops the user's other groups"
)]

use std::ffi::CString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::unistd::{Uid, User, getgrouplist, setgid, setgroups, setuid};

/// A command that runs as the server's OS user, if we may become him.
pub(crate) fn as_owner(owner: &User, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir("/")
        // Where we were, not where it is.
        .env_remove("PWD")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    if Uid::effective().is_root() && !owner.uid.is_root() {
        turn_into(&mut command, owner);
    }
    command
}

/// A server may read the key of its TLS by a group of his alone (Debian's ssl-cert), and libpq in it looks for files in HOME.
fn turn_into(command: &mut Command, owner: &User) {
    command
        .env("HOME", &owner.dir)
        .env("USER", &owner.name)
        .env("LOGNAME", &owner.name);
    let (uid, gid) = (owner.uid, owner.gid);
    let groups = CString::new(owner.name.as_bytes())
        .ok()
        .and_then(|name| getgrouplist(&name, gid).ok())
        .unwrap_or_else(|| vec![gid]);
    let become_him = move || {
        setgroups(&groups)?;
        setgid(gid)?;
        setuid(uid)?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes three system calls, and neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(become_him);
    }
}

/// Runs it to its end; the error is what it said.
pub(crate) fn output_of(command: &mut Command) -> Result<String, String> {
    finished(command.output())
}

/// As [`output_of`], with this on its standard input.
pub(super) fn output_with(command: &mut Command, input: &str) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(said)?;
    // Statements are short: they fit into the pipe, and nothing waits here for psql to read.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(said)?;
    }
    finished(child.wait_with_output())
}

fn finished(output: std::io::Result<Output>) -> Result<String, String> {
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end_matches('\n')
            .to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
