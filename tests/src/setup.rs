//! `pgtlsproxy setup` on a node, as a person runs it, and what is then needed to use what it made: the proxy that it
//! configured, and a standby's end with a certificate of its CA.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::files::Scratch;
use crate::postgres::Node;
use crate::process::run;
use crate::programs::{certs_tool, client_tool, pgtlsproxy, postgres_programs};
use crate::sidecar::Sidecar;

/// What a command said, and whether it succeeded.
#[derive(Debug)]
pub struct Said {
    /// Whether its exit status was 0.
    pub done: bool,
    /// Its standard output, then its standard error.
    pub text: String,
}

impl Said {
    /// It succeeded.
    #[track_caller]
    pub fn well(self) -> String {
        assert!(self.done, "{}", self.text);
        self.text
    }

    /// It failed.
    #[track_caller]
    pub fn failed(self) -> String {
        assert!(!self.done, "{}", self.text);
        self.text
    }
}

/// A primary that is set up, or to be set up.
#[derive(Debug)]
pub struct Prepared {
    /// The server.
    pub node: Node,
    etc: Scratch,
}

impl Prepared {
    /// A node that does not run yet, which lets the tests in and nobody by `trust`, with these settings.
    pub fn careful(major: u32, conf: &str) -> Self {
        let node = Node::builder("primary").version(major).init();
        careful(&node);
        node.append_conf(conf);
        Self::of(node)
    }

    /// This node.
    pub fn of(node: Node) -> Self {
        let etc = Scratch::new("etc");
        Self { node, etc }
    }

    /// `--dir`.
    pub fn dir(&self) -> PathBuf {
        self.etc.path().join("pgtlsproxy")
    }

    /// `setup primary` for one standby with these options.
    pub fn setup(&self, options: &[&str]) -> Said {
        self.setup_with(options, "")
    }

    /// As [`Prepared::setup`], with this on its standard input.
    pub fn setup_with(&self, options: &[&str], input: &str) -> Said {
        said(self.command(options).args(["--standby", "standby1"]), input)
    }

    /// `setup primary` for no standby yet.
    pub fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(pgtlsproxy());
        command.args(["setup", "primary", "--os-user", "root", "--pgdata"]);
        command.arg(self.node.data());
        command.args(["--public", "db1.example.com:5443", "--dir"]);
        command.arg(self.dir()).args(options);
        command
    }

    /// `setup undo`.
    pub fn undo(&self) -> Said {
        self.undo_with(&[])
    }

    /// `setup undo` with these options.
    pub fn undo_with(&self, options: &[&str]) -> Said {
        let mut command = Command::new(pgtlsproxy());
        command.args(["setup", "undo", "--dir"]).arg(self.dir());
        said(command.args(options), "")
    }

    /// The standby ends, and undo brings every byte of `before` back, which [`configuration`] gave.
    #[track_caller]
    pub fn undo_without(&self, standby: Node, before: &Configuration) {
        drop(standby);
        self.node
            .poll_query_until("select count(*) from pg_stat_replication", "0");
        self.undo().well();
        assert_eq!(configuration(&self.node), *before);
    }

    /// The proxy with the certificate and configuration that setup made, on a free port.
    pub fn serve(&self) -> Sidecar {
        let dir = self.dir();
        let config = fs::read_to_string(dir.join("pgtlsproxy.toml")).unwrap();
        let absolute = |text: String, name: &str| {
            text.replace(
                &format!("\"{name}\""),
                &format!("\"{}\"", dir.join(name).display()),
            )
        };
        let config = ["db1.crt", "db1.key", "pki/ca.crt", "pki/ca.crl"]
            .iter()
            .fold(
                config.replace("0.0.0.0:5443", "127.0.0.1:0"),
                |text, name| absolute(text, name),
            );
        Sidecar::run("server", &config)
    }

    /// The far end of [`Prepared::serve`]: a Unix socket for this node's user, with a certificate for `standby1`.
    pub fn follow(&self, server: &Sidecar) -> Door {
        let (dir, place) = (self.dir(), Scratch::new("door"));
        self.issue("standby1", place.path());
        let config = format!(
            "[identity]\ncert = '{0}/standby1.crt'\nkey = '{0}/standby1.key'\nca = '{1}/pki/ca.crt'\ncrl = '{1}/pki/ca.crl'\n\
             [[client]]\nlisten = '{0}'\nconnect = ['{2}']\nserver_name = 'db1.example.com'\nallow_os_users = ['root', 'postgres']\n",
            place.path().display(),
            dir.display(),
            server.address()
        );
        let client = Sidecar::run("client", &config);
        Door {
            _client: client,
            place,
        }
    }

    /// A certificate of the CA that setup made.
    pub fn issue(&self, name: &str, out: &Path) {
        let mut issue = Command::new(certs_tool());
        issue.arg("--dir").arg(self.dir().join("pki"));
        run(issue.args(["issue", name, "--out"]).arg(out)).unwrap();
    }
}

/// Where a standby of a [`Prepared`] primary connects.
#[derive(Debug)]
pub struct Door {
    _client: Sidecar,
    place: Scratch,
}

impl Door {
    /// The directory of its socket.
    pub fn directory(&self) -> &Path {
        self.place.path()
    }

    /// How a standby gets to the primary.
    pub fn conninfo(&self) -> String {
        format!(
            "host={} port=5442 user=replicator",
            self.place.path().display()
        )
    }
}

/// Runs a command with this on its standard input.
pub fn said(command: &mut Command, input: &str) -> Said {
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Said {
        done: output.status.success(),
        text: String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
    }
}

/// Lets the tests in, and nobody by `trust`.
pub fn careful(node: &Node) {
    let data = node.data();
    fs::write(
        data.join("pg_hba.conf"),
        "local all postgres peer map=tests # keep\r\nlocal replication all reject\r\n",
    )
    .unwrap();
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .unwrap();
    fs::write(
        data.join("pg_ident.conf"),
        format!("tests {} postgres\ntests postgres postgres", user.name),
    )
    .unwrap();
}

/// Files with their content, mode and owner.
pub type Configuration = BTreeMap<PathBuf, (Vec<u8>, u32, u32)>;

/// Every file of the data directory that a person or setup may have written.
pub fn configuration(node: &Node) -> Configuration {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(node.data()).unwrap();
    let files = entries.map(|entry| entry.unwrap().path()).filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        path.is_file() && (name.contains(".conf") || name.starts_with('.'))
    });
    let read = |path: PathBuf| {
        let metadata = fs::metadata(&path).unwrap();
        let content = fs::read(&path).unwrap();
        (path, (content, metadata.mode(), metadata.uid()))
    };
    files.map(read).collect()
}

/// A file, link or directory as `ls -l` and a look inside would tell it.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// What is in a file; where a link leads.
    pub content: Option<u64>,
    /// Type and mode.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// When a file's content was changed: seconds and nanoseconds.
    pub modified: Option<(i64, i64)>,
}

/// All that is in a directory, itself included, by its path below it.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    look(root, Path::new(""), &mut seen);
    seen
}

fn look(root: &Path, below: &Path, seen: &mut BTreeMap<PathBuf, Seen>) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::os::unix::fs::MetadataExt;
    let path = root.join(below);
    let metadata = fs::symlink_metadata(&path).unwrap();
    let hash = |bytes: &[u8]| {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        hasher.finish()
    };
    let kind = metadata.file_type();
    let content = match () {
        () if kind.is_file() => Some(hash(&fs::read(&path).unwrap())),
        () if kind.is_symlink() => Some(hash(
            fs::read_link(&path).unwrap().as_os_str().as_encoded_bytes(),
        )),
        () => None,
    };
    let modified = kind
        .is_file()
        .then(|| (metadata.mtime(), metadata.mtime_nsec()));
    let one = Seen {
        content,
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        modified,
    };
    seen.insert(below.to_owned(), one);
    if kind.is_dir() {
        for entry in fs::read_dir(&path).unwrap() {
            look(root, &below.join(entry.unwrap().file_name()), seen);
        }
    }
}

/// Asserts that two trees are the same, and names what differs.
#[track_caller]
pub fn same_tree(now: &BTreeMap<PathBuf, Seen>, before: &BTreeMap<PathBuf, Seen>) {
    let paths = now.keys().chain(before.keys());
    let differing: Vec<_> = paths
        .filter(|path| now.get(*path) != before.get(*path))
        .map(|path| (path, before.get(path), now.get(path)))
        .collect();
    assert!(differing.is_empty(), "{differing:#?}");
}

/// The pg_rewind of a major, where one can be had.
pub fn pg_rewind(node: &Node) -> Option<Command> {
    let program = match node.major() {
        15 => postgres_programs("15").join("pg_rewind"),
        17 => postgres_programs("ssl17").join("pg_rewind"),
        18 => client_tool("pg_rewind"),
        _ => return None,
    };
    // An absolute path stays what it is.
    program
        .is_file()
        .then(|| node.program(&program.display().to_string()))
}
