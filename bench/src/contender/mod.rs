//! Who is measured: two processes between frontend and backend, or none. Each is started anew for a cell, on free
//! ports of loopback, with the configuration beside its file, and ends with the value that holds it.
//!
//! All peers are set up for the same job as ours: TLS 1.3, certificates verified on both sides, no resumption,
//! TLS_AES_256_GCM_SHA384, TCP_NODELAY, 64 KiB buffers where they can be set, as many threads as processors.

mod direct;
mod haproxy;
mod nginx;
mod ours;
mod pki;
pub(crate) mod plain;
mod process;
mod stunnel;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) use nginx::EXPECTED_CPU_PER_GIB as NGINX_CPU_PER_GIB;
pub(crate) use pki::Pki;
pub(crate) use process::{Process, Usage, first_line, own_cpu_seconds};

use crate::cli::{Peer, Records};
use crate::problem::{Doing, Problem};
use crate::wire::frontend::Frontend;

/// What the names of all our own begin with.
pub(crate) const OURS: &str = "pgtlsproxy";

/// Who can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Ours(Records),
    Peer(Peer),
    /// A tunnel that the user runs.
    Target(SocketAddr),
}

/// The two sides of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Beside the backend; it seals what a bulk stream carries.
    Server,
    /// Beside the frontend; it opens.
    Client,
}

/// Where programs, certificates and files are.
#[derive(Debug)]
pub(crate) struct Workshop {
    pub(crate) pki: Pki,
    pub(crate) pgtlsproxy: PathBuf,
    /// Whether ours are to answer monitoring.
    is_monitored: bool,
    dir: tempfile::TempDir,
}

/// A tunnel that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) entry: SocketAddr,
    /// Where server and client answer monitoring over HTTP; ours alone do.
    pub(crate) admin: Option<[SocketAddr; 2]>,
    server: Option<Process>,
    client: Option<Process>,
}

impl Workshop {
    /// Finds our programs and makes certificates with them.
    pub(crate) fn open(bin: Option<&Path>, is_monitored: bool) -> Result<Self, Problem> {
        let bin = match bin {
            Some(bin) => bin.to_path_buf(),
            None => std::env::current_exe()
                .doing(|| "cannot tell where this program is".to_owned())?
                .parent()
                .map(Path::to_path_buf)
                .unwrap_or_default(),
        };
        let program = |name: &str| {
            let path = bin.join(name);
            path.is_file().then_some(path).ok_or_else(|| {
                Problem::new(format!("there is no {name} in {}", bin.display()))
                    .way_out("build it (cargo build --release) or name its directory with --bin")
            })
        };
        let pgtlsproxy = program("pgtlsproxy")?;
        let certs_tool = program("certs-tool")?;
        let dir = tempfile::Builder::new()
            .prefix("pgtlsproxy-bench-")
            .tempdir()
            .doing(|| "cannot make a directory for configurations".to_owned())?;
        let pki = Pki::make(&certs_tool, dir.path())?;
        Ok(Self {
            pki,
            pgtlsproxy,
            is_monitored,
            dir,
        })
    }

    /// Starts both sides of a peer, each by its configuration: the server's, then the client's file and template.
    fn launch(
        &self,
        backend: SocketAddr,
        [server, client]: [(&str, &str); 2],
        command: impl Fn(&Path) -> Command,
    ) -> Result<Running, Problem> {
        let (tls, entry) = (free_address(), free_address());
        let run = |(file, template), values: [(&str, &dyn fmt::Display); 2]| {
            let config = self.configure(file, template, &values)?;
            Process::start(&command(&config), config.with_extension("log"))
        };
        Ok(Running {
            entry,
            admin: None,
            server: Some(run(server, [("LISTEN", &tls), ("BACKEND", &backend)])?),
            client: Some(run(client, [("LISTEN", &entry), ("CONNECT", &tls)])?),
        })
    }

    /// Writes a configuration from its template: `@NAME@` stands for a value.
    pub(crate) fn configure(
        &self,
        file: &str,
        template: &str,
        values: &[(&str, &dyn fmt::Display)],
    ) -> Result<PathBuf, Problem> {
        let pki = &self.pki;
        let dir = self.dir.path().display();
        let processors = crate::host::processors();
        let common: [(&str, &dyn fmt::Display); 5] = [
            ("CA", &pki.ca.display()),
            ("SERVER", &pki.server.display()),
            ("CLIENT", &pki.client.display()),
            ("DIR", &dir),
            ("PROCESSORS", &processors),
        ];
        let mut text = template.to_owned();
        for (name, value) in common.iter().chain(values) {
            text = text.replace(&format!("@{name}@"), &value.to_string());
        }
        let path = self.dir.path().join(file);
        std::fs::write(&path, text).doing(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Contender {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours(Records::Default) => OURS,
            Self::Ours(Records::Rustls) => "pgtlsproxy/rustls",
            Self::Ours(Records::InPlace) => "pgtlsproxy/in_place",
            Self::Target(_) => "target",
            Self::Peer(peer) => match peer {
                Peer::Direct => "direct",
                Peer::Plain => "plain",
                Peer::Native => "native",
                Peer::Stunnel => "stunnel",
                Peer::Haproxy => "haproxy",
                Peer::Nginx => "nginx",
            },
        }
    }

    /// What it says of its version, on one line.
    pub(crate) fn version(self, workshop: &Workshop) -> String {
        match self {
            Self::Ours(_) => first_line(&workshop.pgtlsproxy, &["--version"]),
            Self::Peer(Peer::Nginx) => first_line(Path::new(nginx::PROGRAM), &["-v"]),
            Self::Peer(Peer::Haproxy) => first_line(Path::new(haproxy::PROGRAM), &["-v"]),
            Self::Peer(Peer::Stunnel) => stunnel::version(),
            Self::Peer(Peer::Plain) => "two relays of 256 KiB reads, no TLS".to_owned(),
            Self::Peer(Peer::Direct) => "no proxy".to_owned(),
            Self::Peer(Peer::Native) => "PostgreSQL's own TLS".to_owned(),
            Self::Target(address) => format!("the tunnel at {address}"),
        }
    }

    /// Starts it before this backend, without waiting until it works.
    pub(crate) fn launch(
        self,
        workshop: &Workshop,
        backend: SocketAddr,
    ) -> Result<Running, Problem> {
        match self {
            Self::Ours(records) => ours::launch(workshop, backend, records),
            Self::Target(entry) => Ok(direct::none_before(entry)),
            Self::Peer(Peer::Direct | Peer::Native) => Ok(direct::none_before(backend)),
            Self::Peer(Peer::Plain) => plain::launch(workshop, backend),
            Self::Peer(Peer::Nginx) => nginx::launch(workshop, backend),
            Self::Peer(Peer::Haproxy) => haproxy::launch(workshop, backend),
            Self::Peer(Peer::Stunnel) => stunnel::launch(workshop, backend),
        }
    }

    /// Starts it and waits until a session goes through to the built-in backend.
    pub(crate) fn start(
        self,
        workshop: &Workshop,
        backend: SocketAddr,
    ) -> Result<Running, Problem> {
        let mut running = self.launch(workshop, backend)?;
        running.wait_until(self.name(), |entry| Frontend::connect(entry)?.terminate())?;
        Ok(running)
    }
}

impl Running {
    /// Tries until it works; says what the processes said if it does not.
    pub(crate) fn wait_until(
        &mut self,
        name: &str,
        mut works: impl FnMut(SocketAddr) -> std::io::Result<()>,
    ) -> Result<(), Problem> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let Err(error) = works(self.entry) else {
                return Ok(());
            };
            let ended = self.processes().find_map(Process::ended);
            if ended.is_some() || Instant::now() > deadline {
                let logs: Vec<String> =
                    self.processes().map(|process| process.log_tail()).collect();
                return Err(Problem::new(format!("{name} does not work: {error}"))
                    .because(logs.join("\n  "))
                    .way_out("the peers are Debian's packages nginx-light, libnginx-mod-stream, haproxy, stunnel4"));
            }
            sleep(Duration::from_millis(20));
        }
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.server.iter_mut().chain(self.client.iter_mut())
    }

    /// What a side has used so far; `None` where there is no such process.
    pub(crate) fn usage(&self, side: Side) -> Option<Usage> {
        let process = match side {
            Side::Server => &self.server,
            Side::Client => &self.client,
        };
        process.as_ref().map(Process::usage)
    }
}

/// A free port of loopback, below those that the kernel hands out.
fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], testbed::reserve_port()))
}
