//! The standby's end of a tunnel: where it connects, with what, what each target answers on that, and what the proxies
//! over there say.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cluster::{self, Place};
use super::conninfo::{self, Conninfo};
use super::walsender::{Ask, Stream};
use super::{far, path, programs, server};
use crate::config::{self, Tunnel};
use crate::doctor::facts::{Answer, Cluster, Door, Facts, Reach, Replay, Route, Upstream};
use crate::net::{ListenAddress, PostgresAddress, Target};
use crate::tls::Credentials;

/// A client tunnel and what belongs to it.
pub(super) struct Here<'a> {
    pub(super) tunnel: &'a Tunnel,
    pub(super) client: &'a config::Client,
    pub(super) credentials: Option<Arc<Credentials>>,
    pub(super) place: Option<Arc<Place>>,
    /// When the whole must be done.
    pub(super) until: std::time::Instant,
}

impl Here<'_> {
    pub(super) async fn look(&self, facts: &mut Facts, deadline: Instant) {
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
        facts.slot_sync = self
            .slot_sync(conninfo.as_ref(), question, facts, deadline)
            .await;
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

    /// What the slot sync worker meets, where slots are synchronised and a walreceiver is let in.
    async fn slot_sync(
        &self,
        conninfo: Option<&Conninfo>,
        question: Option<&Ask>,
        facts: &Facts,
        deadline: Instant,
    ) -> Option<Answer> {
        let cluster = facts.cluster.as_ref()?;
        let (conninfo, question) = (conninfo?, question?);
        let database = conninfo.get("dbname")?.to_owned();
        let place = facts
            .routes
            .iter()
            .position(|route| matches!(route.answer, Some(Answer::Welcome(_))))?;
        if cluster.setting("sync_replication_slots") != "on" {
            return None;
        }
        let owner = &self.place.as_ref()?.owner;
        let password = conninfo::password(
            conninfo,
            &question.user,
            &database,
            (owner.uid.as_raw(), &owner.home),
        );
        let ask = Ask {
            database: Some(database),
            ordinary: true,
            password,
            timeline: None,
            stream: None,
            ..question.clone()
        };
        let credentials = self.credentials.as_ref()?;
        let target = self.client.targets.get(place)?;
        path::route(self.client, target, credentials, Some(&ask), deadline)
            .await
            .answer
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
        let until = self.until;
        let (listen, sockets) = (self.tunnel.listen.clone(), self.sockets());
        let asked = tokio::task::spawn_blocking(move || {
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(200));
                server::ask(&place, &mut cluster, &mut Vec::new(), until);
                only_ours(&mut cluster, &listen, sockets);
                if cluster.flows() || std::time::Instant::now() > until {
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

    /// Where the server's libpq looks for sockets by default.
    fn sockets(&self) -> &'static str {
        let place = self.place.as_deref();
        place.map_or("/tmp", Place::default_sockets)
    }

    /// What the cluster connects with, through this tunnel or elsewhere.
    fn upstream(&self, facts: &mut Facts) -> Option<Conninfo> {
        let cluster = facts.cluster.as_mut()?;
        let physical = cluster.setting("primary_conninfo").to_owned();
        let sockets = self.sockets();
        only_ours(cluster, &self.tunnel.listen, sockets);
        let subscribed = || {
            let enabled = cluster.server.as_ref()?.subscriptions.iter();
            // One that stands, before those that run.
            let one = enabled
                .filter(|one| one.enabled)
                .min_by_key(|one| one.running)?;
            let conninfo = Conninfo::parse(one.conninfo.as_deref()?, sockets)?;
            Some((conninfo, one.slot.clone()))
        };
        let logical = if cluster.in_recovery() == Some(false) && !cluster.standby_signal {
            subscribed()
        } else {
            None
        };
        let conninfo = match &logical {
            Some((conninfo, _)) => conninfo.clone(),
            None if physical.is_empty() => return None,
            None => match Conninfo::parse(&physical, sockets) {
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
        let physical_slot = || Some(cluster.setting("primary_slot_name").to_owned());
        let slot = logical
            .as_ref()
            .map_or_else(physical_slot, |(_, slot)| slot.clone());
        cluster.upstream = Some(Upstream {
            database: logical
                .is_some()
                .then(|| conninfo.get("dbname").unwrap_or(&user).to_owned()),
            has_dbname: conninfo.get("dbname").is_some(),
            slot: slot.filter(|slot| !slot.is_empty()),
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
        let timeline = cluster.wal_timeline().or_else(|| cluster.timeline());
        let stream = cluster
            .wal_end()
            .zip(timeline)
            .filter(|_| waits)
            .map(|(from, timeline)| Stream {
                slot: upstream.slot.clone(),
                from,
                timeline,
            });
        Some(Ask {
            user: upstream.user.clone(),
            database: upstream.database.clone(),
            ordinary: false,
            application_name: conninfo
                .get("application_name")
                .unwrap_or(default_name)
                .to_owned(),
            password,
            timeline,
            stream,
            slot: upstream
                .slot
                .clone()
                .filter(|_| upstream.database.is_some()),
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
            .args(["-X", "-w", "-A", "-t", "-c", "IDENTIFY_SYSTEM", "-d"])
            .arg(format!(
                "{} dbname=replication replication=true",
                conninfo.without_password()
            ))
            .env("PGCONNECT_TIMEOUT", "2");
        if let Some(password) = conninfo.get("password") {
            command.env("PGPASSWORD", password);
        }
        let until = std::time::Instant::now() + path::WITHIN;
        let run = move || programs::run(command, "", until);
        let said = tokio::task::spawn_blocking(run).await.ok()?.ok()?;
        (!said.ok).then(|| cluster::first_lines(&said.stderr, 2))
    }
}

/// Subscriptions that come through other ways are no matter of this tunnel.
fn only_ours(cluster: &mut Cluster, listen: &ListenAddress, sockets: &'static str) {
    let ours = |conninfo: &str| {
        let conninfo = Conninfo::parse(conninfo, sockets)?;
        let address = path::address(conninfo.address(), conninfo.port());
        Some(leads_here(&address, listen))
    };
    if let Some(server) = &mut cluster.server {
        server
            .subscriptions
            .retain(|one| one.conninfo.as_deref().and_then(ours) == Some(true));
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
