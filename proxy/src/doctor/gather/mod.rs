//! Reads, dials and asks: everything the judge needs, and no opinion. First this host's files and server, then the
//! network, all probes at once; each has a deadline, so that the whole takes less than five seconds.
//! Changes nothing: reads files, runs read-only SQL, and opens connections that it closes again.

mod cluster;
mod conninfo;
mod far;
mod path;
mod programs;
mod server;
mod walsender;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::cluster::Place;
use self::conninfo::Conninfo;
use self::walsender::{Ask, Stream};
use super::facts::{Answer, Backend, Cluster, Door, Facts, Reach, Replay, Route, Side, Upstream};
use crate::cli::DoctorFlags;
use crate::config::{self, Config, Source, Tunnel};
use crate::net::{ListenAddress, PostgresAddress, Target};
use crate::problem::Problem;
use crate::tls::Credentials;

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
        let cluster = place.as_ref().map(|place| {
            let mut cluster = place.look(&mut unseen);
            if cluster.running {
                server::ask(place, &mut cluster, &mut unseen);
            }
            cluster
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
    facts.backend = Some(Backend {
        reach: backend,
        unix: matches!(server.postgres, PostgresAddress::Unix(_)),
    });
}

/// A client tunnel and what belongs to it.
struct Here<'a> {
    tunnel: &'a Tunnel,
    client: &'a config::Client,
    credentials: Option<Arc<Credentials>>,
    place: Option<Arc<Place>>,
}

impl Here<'_> {
    async fn look(&self, facts: &mut Facts, deadline: Instant) {
        facts.door_conninfo = door_conninfo(&self.tunnel.listen);
        let conninfo = self.upstream(facts);
        let door = conninfo.as_ref().map_or_else(
            || listen_address(&self.tunnel.listen),
            |conninfo| path::address(conninfo.address(), conninfo.port()),
        );
        let question = conninfo
            .as_ref()
            .and_then(|conninfo| self.question(conninfo, facts));
        let question = question.as_ref();
        let ours = leads_here(&door, &self.tunnel.listen);
        let routes = async {
            match &self.credentials {
                Some(credentials) => self.routes(credentials, question, deadline).await,
                None => self.without_key(&door, question, deadline).await,
            }
        };
        let (reach, routes, libpq) = tokio::join!(
            self.try_door(&door, deadline),
            routes,
            self.libpq(facts, conninfo.as_ref())
        );
        facts.routes = routes;
        if facts.routes.iter().any(may_have_come_in) {
            self.ask_again(facts).await;
        }
        let uid = self.place.as_ref().map(|place| place.owner.uid.as_raw());
        let admits = self
            .client
            .os_users
            .as_ref()
            .zip(uid)
            .filter(|_| ours)
            .map(|(users, uid)| users.iter().any(|(admitted, _)| *admitted == uid));
        facts.door = reach.map(|reach| Door {
            reach,
            ours,
            admits,
            libpq,
        });
    }

    /// Every target at once.
    async fn routes(
        &self,
        credentials: &Arc<Credentials>,
        question: Option<&Ask>,
        deadline: Instant,
    ) -> Vec<Route> {
        let mut going = JoinSet::new();
        for (place, target) in self.client.targets.iter().cloned().enumerate() {
            let (client, credentials) = (self.client.clone(), Arc::clone(credentials));
            let question = question.cloned();
            going.spawn(async move {
                let (mut route, far) = tokio::join!(
                    path::route(&client, &target, &credentials, question.as_ref(), deadline),
                    far::ask(&client, &target, &credentials)
                );
                route.far = far;
                (place, route)
            });
        }
        let mut routes = going.join_all().await;
        routes.sort_by_key(|(place, _)| *place);
        routes.into_iter().map(|(_, route)| route).collect()
    }

    /// A listener on a port that only the log tells cannot be tried.
    async fn try_door(&self, door: &PostgresAddress, deadline: Instant) -> Option<Reach> {
        match door {
            PostgresAddress::Tcp(target) if target.port == 0 => None,
            door => Some(path::plain(door, deadline).await),
        }
    }

    /// A standby may have come in by itself while we asked, or just before: then it, and not another, has the slot.
    async fn ask_again(&self, facts: &mut Facts) {
        let (Some(place), Some(mut cluster)) = (self.place.clone(), facts.cluster.take()) else {
            return;
        };
        let before = replay_of(&mut cluster)
            .map(|replay| (replay.received.clone(), replay.replayed.clone()));
        let asked = tokio::task::spawn_blocking(move || {
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(200));
                server::ask(&place, &mut cluster, &mut Vec::new());
                if cluster.flows() {
                    break;
                }
            }
            // The primary told its position before this: what came since must not look like WAL that it never had.
            if let Some(before) = before
                && let Some(replay) = replay_of(&mut cluster)
            {
                replay.received = before.0;
                replay.replayed = before.1;
            }
            cluster
        });
        facts.cluster = asked.await.ok();
        if facts.cluster.as_ref().is_some_and(Cluster::flows) {
            for route in &mut facts.routes {
                if let Some(Answer::Welcome(login)) = &mut route.answer {
                    login.stream = None;
                }
            }
        }
    }

    /// What the cluster connects with, through this tunnel or elsewhere.
    fn upstream(&self, facts: &mut Facts) -> Option<Conninfo> {
        let cluster = facts.cluster.as_mut()?;
        let physical = cluster.setting("primary_conninfo").to_owned();
        let subscribed = || {
            let server = cluster.server.as_ref()?;
            server
                .subscriptions
                .iter()
                .filter(|one| one.enabled)
                .find_map(|one| {
                    let conninfo = Conninfo::parse(one.conninfo.as_deref()?)?;
                    let address = path::address(conninfo.address(), conninfo.port());
                    leads_here(&address, &self.tunnel.listen).then_some(conninfo)
                })
        };
        let logical = if cluster.in_recovery() == Some(false) && !cluster.standby_signal {
            subscribed()
        } else {
            None
        };
        let conninfo = match &logical {
            Some(conninfo) => conninfo.clone(),
            None if physical.is_empty() => return None,
            None => match Conninfo::parse(&physical) {
                Some(conninfo) => conninfo,
                None => {
                    facts.unseen.push(
                        "the way of primary_conninfo, which is a URI or not understood: what the primary answers".to_owned(),
                    );
                    return None;
                }
            },
        };
        let user = conninfo.get("user").unwrap_or(&cluster.owner).to_owned();
        let slot = cluster.setting("primary_slot_name").to_owned();
        cluster.upstream = Some(Upstream {
            database: logical
                .is_some()
                .then(|| conninfo.get("dbname").unwrap_or(&user).to_owned()),
            has_dbname: conninfo.get("dbname").is_some(),
            slot: Some(slot).filter(|slot| !slot.is_empty() && logical.is_none()),
            user,
        });
        Some(conninfo)
    }

    /// What the standby would ask of its primary.
    fn question(&self, conninfo: &Conninfo, facts: &Facts) -> Option<Ask> {
        let cluster = facts.cluster.as_ref()?;
        let upstream = cluster.upstream.as_ref()?;
        let place = self.place.as_ref()?;
        let database = upstream.database.as_deref().unwrap_or("replication");
        let password = conninfo::password(
            conninfo,
            &upstream.user,
            database,
            (place.owner.uid.as_raw(), &place.owner.home),
        );
        let default_name = match cluster.setting("cluster_name") {
            "" => "walreceiver",
            name if cluster.major >= 12 => name,
            _ => "walreceiver",
        };
        let waits =
            cluster.in_recovery() == Some(true) && !cluster.flows() && upstream.database.is_none();
        let stream = cluster
            .wal_end()
            .zip(cluster.timeline())
            .filter(|_| waits)
            .map(|(from, timeline)| Stream {
                slot: upstream.slot.clone(),
                from,
                timeline,
            });
        Some(Ask {
            user: upstream.user.clone(),
            database: upstream.database.clone(),
            application_name: conninfo
                .get("application_name")
                .unwrap_or(default_name)
                .to_owned(),
            password,
            timeline: cluster.timeline(),
            stream,
        })
    }

    /// Through the local proxy: it tells what it and the other side say, in the same words.
    async fn without_key(
        &self,
        door: &PostgresAddress,
        question: Option<&Ask>,
        deadline: Instant,
    ) -> Vec<Route> {
        let Some(question) = question else {
            return Vec::new();
        };
        let answer = path::through(door, question, deadline).await;
        vec![Route {
            target: format!("through {door}"),
            answer,
            ..Route::default()
        }]
    }

    /// What libpq itself says, where the standby does not stream: it may refuse the string, or its passfile.
    async fn libpq(&self, facts: &Facts, conninfo: Option<&Conninfo>) -> Option<String> {
        let cluster = facts.cluster.as_ref()?;
        if cluster.in_recovery() != Some(true) || cluster.flows() {
            return None;
        }
        let conninfo = conninfo?;
        let place = self.place.as_ref()?;
        let psql = programs::find("psql", place.postgres.as_deref()?.parent())?;
        let mut command = programs::command(&psql, &place.owner);
        command
            .args(["-X", "-A", "-t", "-c", "IDENTIFY_SYSTEM", "-d"])
            .arg(format!(
                "{} dbname=replication replication=true",
                conninfo.without_password()
            ))
            .env("PGCONNECT_TIMEOUT", "2");
        if let Some(password) = conninfo.get("password") {
            command.env("PGPASSWORD", password);
        }
        let run = move || programs::run(command, "", Duration::from_millis(2200));
        let said = tokio::task::spawn_blocking(run).await.ok()?.ok()?;
        (!said.ok).then(|| cluster::first_lines(&said.stderr, 2))
    }
}

fn replay_of(cluster: &mut Cluster) -> Option<&mut Replay> {
    cluster.server.as_mut()?.replay.as_mut()
}

fn may_have_come_in(route: &Route) -> bool {
    match &route.answer {
        // It may hold the last walsender itself.
        Some(Answer::Refused(error)) => error.sqlstate == "53300",
        Some(Answer::Welcome(login)) => match &login.stream {
            Some(Ok(())) => true,
            Some(Err(error)) => error.sqlstate == "55006",
            None => false,
        },
        _ => false,
    }
}

fn listen_address(listen: &ListenAddress) -> PostgresAddress {
    match listen {
        ListenAddress::Unix(path) => PostgresAddress::Unix(path.clone()),
        ListenAddress::Tcp(address) => PostgresAddress::Tcp(Target {
            host: address.ip().to_string(),
            port: address.port(),
        }),
    }
}

/// What a standby of this host should be told.
fn door_conninfo(listen: &ListenAddress) -> String {
    match listen {
        ListenAddress::Unix(path) => {
            let directory = path.parent().map(PathBuf::from).unwrap_or_default();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let port = name.rsplit('.').next().unwrap_or_default();
            format!("host={} port={port} ...", directory.display())
        }
        ListenAddress::Tcp(address) => format!("host={} port={} ...", address.ip(), address.port()),
    }
}

fn leads_here(address: &PostgresAddress, listen: &ListenAddress) -> bool {
    match (address, listen) {
        (PostgresAddress::Unix(path), ListenAddress::Unix(own)) => {
            path == own
                || path
                    .canonicalize()
                    .ok()
                    .is_some_and(|path| own.canonicalize().ok() == Some(path))
        }
        (PostgresAddress::Tcp(target), ListenAddress::Tcp(own)) => {
            let same_host = target.host == own.ip().to_string()
                || PostgresAddress::Tcp(target.clone()).is_loopback();
            // Port 0 is a free one, which only the log tells.
            (target.port == own.port() || own.port() == 0) && same_host
        }
        _ => false,
    }
}
