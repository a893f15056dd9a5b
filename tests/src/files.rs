//! Directories and ports that belong to one test alone.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Uid, User};
use tempfile::TempDir;

use crate::process::run;

/// A directory with a short path (a socket's name has 107 bytes at most), enterable by all and owned by the
/// user that PostgreSQL runs as. `PGTLSPROXY_TESTS_KEEP=1` keeps it.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// Makes one; `name` is for the reader of a directory listing.
    pub fn new(name: &str) -> Self {
        let mut dir = tempfile::Builder::new()
            .prefix(&format!("pgt-{name}-"))
            .tempdir()
            .unwrap();
        dir.disable_cleanup(std::env::var_os("PGTLSPROXY_TESTS_KEEP").is_some());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        give_to_postgres(dir.path());
        Self(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A small file system of its own, gone on drop.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    _place: Option<Scratch>,
}

impl Disk {
    /// Makes one of this size; only root can.
    pub fn mount(kib: u32) -> Option<Self> {
        let place = Scratch::new("disk");
        let path = place.path().to_owned();
        mounted(&path, kib).then_some(Self {
            path,
            _place: Some(place),
        })
    }

    /// The same in the place of this directory, with what it holds.
    pub fn over(directory: &Path, kib: u32) -> Option<Self> {
        let held = Scratch::new("held");
        let copy = |from: &Path, to: &Path| {
            run(Command::new("cp").arg("-a").arg(from.join(".")).arg(to)).unwrap();
        };
        copy(directory, held.path());
        if !mounted(directory, kib) {
            return None;
        }
        let disk = Self {
            path: directory.to_owned(),
            _place: None,
        };
        copy(held.path(), directory);
        Some(disk)
    }

    /// Takes all of its room but so many pages, with a file of this name.
    pub fn fill(&self, filler: &Path, free_pages: u64) {
        let _ = fs::write(filler, vec![0; 4096 * 1024]);
        let taken = fs::metadata(filler).unwrap().len() / 4096;
        let file = fs::File::options().write(true).open(filler).unwrap();
        file.set_len(4096 * taken.saturating_sub(free_pages))
            .unwrap();
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn mounted(path: &Path, kib: u32) -> bool {
    let size = format!("size={kib}k");
    let mut mount = Command::new("mount");
    run(mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(path)).is_ok()
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Puts a file in place as a deployment does: whole, by a rename.
pub fn put(contents: impl AsRef<[u8]>, to: &Path) {
    let new = to.with_extension("tmp");
    fs::write(&new, contents).unwrap();
    fs::rename(new, to).unwrap();
}

/// Hands a file to the user that PostgreSQL runs as, where that is another one.
pub fn give_to_postgres(path: &Path) {
    if let Some(user) = postgres_user() {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

/// The user that PostgreSQL runs as when we are root, whom it refuses.
pub fn postgres_user() -> Option<User> {
    Uid::effective().is_root().then(|| {
        User::from_name("postgres")
            .unwrap()
            .expect("there is a user `postgres`")
    })
}

/// A port that nobody listens on, kept for this process until it ends. It lies below the range from which the
/// kernel takes ports by itself, so that no passing connection can have it.
pub fn reserve_port() -> u16 {
    static RESERVED: Mutex<Vec<Flock<fs::File>>> = Mutex::new(Vec::new());
    let dir = std::env::temp_dir().join(format!("pgtlsproxy-test-ports-{}", Uid::effective()));
    fs::create_dir_all(&dir).unwrap();
    let start = (std::process::id() % 2_000) as u16 * 10;
    for step in 0..20_000 {
        let port = 12_000 + (start + step) % 20_000;
        let file = fs::File::create(dir.join(port.to_string())).unwrap();
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            continue;
        };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            RESERVED.lock().unwrap().push(lock);
            return port;
        }
    }
    panic!("no free port");
}
