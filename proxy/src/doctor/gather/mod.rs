//! Reads, dials and asks: everything the judge needs, and no opinion. First this host's files and server, then the
//! network, all probes at once; each part has a deadline, and the whole has one, so that it takes less than five seconds.
//! Changes nothing: reads files, runs read-only SQL, and opens connections that it closes again.

mod cluster;
mod conninfo;
mod far;
mod here;
mod path;
mod programs;
mod server;
mod walsender;

use std::fs::File;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Uid, User};
use tokio::time::Instant;

use self::cluster::Place;
use self::here::Here;
use super::facts::{Backend, Cluster, Facts, Side};
use crate::cli::DoctorFlags;
use crate::config::{self, Config, Source, Tunnel};
use crate::net::{ListenAddress, PostgresAddress, Target};
use crate::problem::Problem;
use crate::tls::Credentials;

/// This host's files and server, and everything: the rest of five seconds is for a loaded machine.
const LOCALLY: Duration = Duration::from_millis(2200);
const ALTOGETHER: Duration = Duration::from_millis(4500);

/// Why nothing could be looked at.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The flags name something that is not there.
    Usage(Problem),
    /// The configuration does not load.
    Config(Vec<Problem>),
}

/// What is looked at, in words for the head of the report.
#[derive(Debug, Default)]
pub(crate) struct Subject {
    pub(crate) tunnel: String,
    pub(crate) listen: String,
    pub(crate) leads_to: String,
    pub(crate) cluster: Option<String>,
}

/// Everything known about the tunnel that `flags` mean.
pub(crate) async fn gather(flags: &DoctorFlags) -> Result<(Subject, Facts), Failure> {
    let began = Instant::now();
    let config =
        Config::load(&Source::File(flags.config.config.clone())).map_err(Failure::Config)?;
    let mut unseen = Vec::new();
    let place = find_cluster(flags, &config, &mut unseen)?;
    let named = match &flags.tunnel {
        Some(name) => Some(named(&config, name)?),
        None => None,
    };
    let known = tokio::task::spawn_blocking(move || {
        let mut unseen = Vec::new();
        let until = std::time::Instant::now() + LOCALLY;
        let cluster = place.as_ref().map(|place| {
            std::thread::scope(|scope| {
                let unreadable = scope.spawn(|| place.unreadable());
                let mut cluster = place.look(&mut unseen, until);
                if cluster.running {
                    server::ask(place, &mut cluster, &mut unseen, until);
                }
                cluster.unreadable = unreadable.join().unwrap_or_default();
                cluster
            })
        });
        (place, cluster, unseen)
    });
    let (place, cluster, more_unseen) = known.await.unwrap_or_default();
    unseen.extend(more_unseen);
    let tunnel = named.unwrap_or_else(|| by_role(&config, cluster.as_ref()));
    let deadline = Instant::now() + path::WITHIN;
    let mut facts = Facts {
        cluster,
        unseen,
        ..Facts::default()
    };
    let credentials = load_credentials(&config, &mut facts);
    match &tunnel.side {
        config::Side::Server(server) => {
            facts.side = Side::Server;
            server_side(tunnel, server, &mut facts, deadline).await;
        }
        config::Side::Client(client) => {
            let here = Here {
                tunnel,
                client,
                credentials,
                place: place.map(Arc::new),
                until: (began + ALTOGETHER).into_std(),
            };
            here.look(&mut facts, deadline).await;
        }
    }
    Ok((subject(tunnel, &facts), facts))
}

fn subject(tunnel: &Tunnel, facts: &Facts) -> Subject {
    let leads_to = match &tunnel.side {
        config::Side::Server(server) => server.postgres.to_string(),
        config::Side::Client(client) => {
            let targets: Vec<_> = client.targets.iter().map(Target::to_string).collect();
            targets.join(", ")
        }
    };
    Subject {
        tunnel: tunnel.name.clone(),
        listen: tunnel.listen.to_string(),
        leads_to,
        cluster: facts.cluster.as_ref().map(|cluster| {
            let role = match (cluster.in_recovery(), cluster.running) {
                (Some(true), _) => "standby",
                (Some(false), _) => "primary",
                (None, true) => "not asked",
                (None, false) => "not running",
            };
            format!(
                "{} (PostgreSQL {}, {role})",
                cluster.data.display(),
                cluster.major
            )
        }),
    }
}

fn usage(id: &'static str, what: String, why: &str, way_out: &str) -> Failure {
    Failure::Usage(Problem::new(id, what, why, way_out))
}

fn named<'a>(config: &'a Config, name: &str) -> Result<&'a Tunnel, Failure> {
    config.tunnels.iter().find(|tunnel| tunnel.name == name).ok_or_else(|| {
        let names: Vec<_> = config.tunnels.iter().map(|tunnel| tunnel.name.as_str()).collect();
        usage(
            "C27",
            format!("there is no tunnel {name}"),
            "tunnels are called server and client, or server-1, server-2 where there are several",
            &format!("name one of {}", names.join(", ")),
        )
    })
}

/// The tunnel that the cluster's replication uses: a standby follows through a client, a primary serves through a
/// server. The configuration has at least one tunnel.
fn by_role<'a>(config: &'a Config, cluster: Option<&Cluster>) -> &'a Tunnel {
    let is_client = |tunnel: &&Tunnel| matches!(tunnel.side, config::Side::Client(_));
    let follows = cluster.is_some_and(|cluster| {
        // A copy of the first timeline that follows nobody has lost its signal file.
        let never_promoted =
            cluster.timeline() == Some(1) && !cluster.setting("primary_conninfo").is_empty();
        cluster.in_recovery().unwrap_or(cluster.standby_signal) || never_promoted
    });
    let wanted = config
        .tunnels
        .iter()
        .find(|tunnel| is_client(tunnel) == follows);
    wanted.unwrap_or(&config.tunnels[0])
}

/// The cluster that the flags name, or the one that this node's tunnels serve, or the only one of this host.
fn find_cluster(
    flags: &DoctorFlags,
    config: &Config,
    unseen: &mut Vec<String>,
) -> Result<Option<Place>, Failure> {
    let asked = match (&flags.pgdata, &flags.cluster) {
        (Some(data), _) => Some(data.clone()),
        (None, Some(name)) => Some(cluster::debian(name).ok_or_else(|| {
            usage(
                "C28",
                format!("there is no cluster {name}"),
                "neither /etc/postgresql nor /var/lib/postgresql has it",
                "see pg_lsclusters, or name its data directory with --pgdata",
            )
        })?),
        (None, None) => None,
    };
    if let Some(data) = asked {
        return cluster::place(&data).map(Some).map_err(|why| {
            usage(
                "C28",
                format!("{} cannot be looked at", data.display()),
                &why,
                "name the cluster's data directory, and run doctor as root or as its owner",
            )
        });
    }
    let served = config.tunnels.iter().find_map(|tunnel| match &tunnel.side {
        config::Side::Server(config::Server {
            postgres: PostgresAddress::Unix(socket),
            ..
        }) => cluster::behind(socket),
        _ => None,
    });
    let known = served.map_or_else(cluster::known, |data| vec![data]);
    let found = match known.as_slice() {
        [data] => cluster::place(data),
        [] => Err("no cluster is found".to_owned()),
        several => Err(format!("this host has {} clusters", several.len())),
    };
    Ok(found
        .map_err(|why| {
            unseen.push(format!(
                "PostgreSQL on this host: {why} (name it with --cluster 15/main or --pgdata DIR, and run doctor as \
                 root or as its OS user)"
            ));
        })
        .ok())
}

/// Certificate and key, if whoever runs doctor may read them.
fn load_credentials(config: &Config, facts: &mut Facts) -> Option<Arc<Credentials>> {
    let denied = File::open(&config.identity.key)
        .err()
        .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    if denied && !Uid::effective().is_root() {
        facts.unseen.push(format!(
            "certificate and key of this node: {} may be read by root only",
            config.identity.key.display()
        ));
        return None;
    }
    match Credentials::load(&config.identity, None) {
        Ok(loaded) => {
            facts.files = [loaded.aging, loaded.warnings].concat();
            Some(Arc::new(loaded.credentials))
        }
        Err(problems) => {
            facts.files = problems;
            None
        }
    }
}

async fn server_side(
    tunnel: &Tunnel,
    server: &config::Server,
    facts: &mut Facts,
    deadline: Instant,
) {
    let listener = match &tunnel.listen {
        ListenAddress::Tcp(address) => {
            let ip = match address.ip() {
                ip if ip.is_unspecified() && ip.is_ipv4() => "127.0.0.1".to_owned(),
                ip if ip.is_unspecified() => "::1".to_owned(),
                ip => ip.to_string(),
            };
            let target = Target {
                host: ip,
                port: address.port(),
            };
            // Port 0 is a free one, which only the log tells.
            (address.port() != 0).then_some(target)
        }
        ListenAddress::Unix(_) => None,
    };
    let owner = listener.as_ref().and_then(|target| owner_of(target.port));
    let (listener, backend) = tokio::join!(
        async {
            match &listener {
                Some(target) => Some(path::open(target, deadline).await),
                None => None,
            }
        },
        path::plain(&server.postgres, deadline)
    );
    facts.listener = listener;
    let rules = server.policy.rules();
    facts.backend = Some(Backend {
        reach: backend,
        ip: match &server.postgres {
            PostgresAddress::Unix(_) => None,
            // `localhost` is tried over IPv4 as well.
            PostgresAddress::Tcp(target) => {
                let ip = target.host.parse();
                Some(ip.unwrap_or_else(|_| Ipv4Addr::LOCALHOST.into()))
            }
        },
        proxy_user: owner,
        physical: rules.is_empty() || rules.iter().any(|rule| rule.physical),
    });
}

/// The OS user that listens on a port of this host, if there is only one; the listening sockets stand first in these
/// files (proc(5)).
fn owner_of(port: u16) -> Option<String> {
    const FIRST: u64 = 256 * 1024;
    let mut text = String::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A character that is cut at the end cannot be: the files are ASCII.
        let _ = File::open(file).and_then(|open| open.take(FIRST).read_to_string(&mut text));
    }
    let uid = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let listens = *fields.get(3)? == "0A" && u16::from_str_radix(local, 16) == Ok(port);
        listens
            .then(|| fields.get(7)?.parse::<u32>().ok())
            .flatten()
    };
    let mut owners: Vec<_> = text.lines().filter_map(uid).collect();
    owners.dedup();
    match owners.as_slice() {
        [one] => User::from_uid(Uid::from_raw(*one))
            .ok()?
            .map(|user| user.name),
        _ => None,
    }
}
