//! What `[[server]]` and `[[client]]` mean.

use std::collections::HashMap;
use std::path::Path;

use ipnet::IpNet;
use nix::unistd::{Uid, User};
use protocol::identity::IdentityPattern;
use protocol::policy::{Names, Policy, Rule};

use super::super::network::Network;
use super::super::{Client, Server, Side, SslNegotiation, Tunnel, file};
use super::Findings;
use crate::net::{ListenAddress, PostgresAddress, Target};
use crate::problem::Problem;

impl Findings {
    pub(super) fn server(
        &mut self,
        name: String,
        server: &file::Server,
        base: &Path,
    ) -> Option<Tunnel> {
        let listen: ListenAddress = self.parse(&name, "listen", &server.listen)?;
        if let ListenAddress::Unix(path) = &listen {
            self.error(
                format!("{name}: `listen` is {}", path.display()),
                "a server tunnel speaks TLS to other hosts",
                "give IP:PORT, for example 0.0.0.0:5443",
            );
            return None;
        }
        let postgres: PostgresAddress = self.parse(&name, "postgres", &server.postgres)?;
        if !postgres.is_loopback() && !server.plaintext_off_host {
            self.error(
                format!("{name}: `postgres` is {postgres}, which is not on this host"),
                "the stream would cross the network in plaintext",
                "run pgtlsproxy beside PostgreSQL, or set plaintext_off_host = true if that path is safe otherwise",
            );
        }
        let rules: Vec<Rule> = server
            .allow
            .iter()
            .enumerate()
            .filter_map(|(index, allow)| {
                self.rule(&format!("{name}: allow rule {}", index + 1), allow)
            })
            .collect();
        if rules.len() != server.allow.len() {
            return None;
        }
        let policy = if rules.is_empty() {
            self.warnings.push(
                Problem::new(
                    "P20",
                    format!("{name} has no [[server.allow]] rule"),
                    "any certificate of the CA may replicate",
                    "add a rule for each standby: identity = \"dns:NAME\"",
                )
                .warning(),
            );
            Policy::any_certificate()
        } else {
            Policy::new(rules)
        };
        for (index, why) in policy.dead_rules() {
            self.warnings.push(
                Problem::new(
                    "P21",
                    format!("{name}: allow rule {} can never match", index + 1),
                    why,
                    "mend it or take it out",
                )
                .warning(),
            );
        }
        Some(Tunnel {
            name,
            listen,
            side: Side::Server(Server {
                postgres: postgres.based_on(base),
                policy,
                plain_cancel: server.plain_cancel,
            }),
        })
    }

    fn rule(&mut self, place: &str, allow: &file::Allow) -> Option<Rule> {
        let identity: IdentityPattern = self.parse(place, "identity", &allow.identity)?;
        let from: Option<Vec<IpNet>> = match &allow.from {
            None => None,
            Some(networks) => {
                let parsed: Vec<_> = networks
                    .iter()
                    .filter_map(|network| self.parse::<Network>(place, "from", network))
                    .map(|network| network.0)
                    .collect();
                if parsed.len() != networks.len() {
                    return None;
                }
                Some(parsed)
            }
        };
        let (mut physical, mut logical) =
            (allow.replication.is_none(), allow.replication.is_none());
        for kind in allow.replication.iter().flatten() {
            match kind.as_str() {
                "physical" => physical = true,
                "logical" => logical = true,
                other => {
                    self.error(
                        format!("{place}: `replication` names `{other}`"),
                        "PostgreSQL has two kinds",
                        "use \"physical\", \"logical\" or both",
                    );
                    return None;
                }
            }
        }
        Some(Rule {
            identity,
            from,
            physical,
            logical,
            ordinary: allow.ordinary,
            users: Names::new(allow.users.clone()),
            databases: Names::new(allow.databases.clone()),
            application_names: Names::new(allow.application_names.clone()),
        })
    }

    pub(super) fn client(
        &mut self,
        name: String,
        client: &file::Client,
        base: &Path,
    ) -> Option<Tunnel> {
        let listen: ListenAddress = self.parse(&name, "listen", &client.listen)?;
        if !listen.is_loopback() && !client.plaintext_off_host {
            self.error(
                format!("{name}: `listen` is {listen}, which other hosts can reach"),
                "whoever can speak to this plaintext listener uses this node's certificate",
                "listen on a Unix socket or 127.0.0.1, or set plaintext_off_host = true if the network is safe otherwise",
            );
        }
        if client.connect.is_empty() {
            self.error(
                format!("{name}: `connect` is empty"),
                "there is nowhere to forward to",
                "name the far proxy: connect = [\"db1.example.com:5443\"]",
            );
        }
        if client.connect.len() > 1 {
            self.warnings.push(
                Problem::new(
                    "P23",
                    format!("{name} has {} targets", client.connect.len()),
                    "the first that answers is taken, be it the primary or a standby",
                    "name one target, and another after a failover",
                )
                .warning(),
            );
        }
        let targets: Vec<_> = client
            .connect
            .iter()
            .filter_map(|target| self.parse(&name, "connect", target))
            .collect();
        if let Some(wanted) = &client.server_name {
            self.server_name(&name, "server_name", wanted);
        } else {
            for target in &targets {
                let target: &Target = target;
                self.server_name(&name, "connect", &target.host);
            }
        }
        let os_users = match &listen {
            ListenAddress::Tcp(_) => {
                if client.allow_os_users.is_some() {
                    self.error(
                        format!("{name}: `allow_os_users` is set on a TCP listener"),
                        "only a Unix socket shows who connects",
                        "listen on a directory, or take allow_os_users out",
                    );
                }
                self.warnings.push(
                    Problem::new(
                        "P22",
                        format!("{name} listens on {listen}"),
                        "every local process may use this node's certificate through it",
                        "listen on a directory (a Unix socket), where allow_os_users decides",
                    )
                    .warning(),
                );
                None
            }
            ListenAddress::Unix(_) => Some(self.os_users(&name, client.allow_os_users.as_deref())),
        };
        let negotiation = self.one_of(
            &format!("{name}: sslnegotiation"),
            client.sslnegotiation.as_deref(),
            SslNegotiation::Direct,
            &[
                ("direct", SslNegotiation::Direct),
                ("postgres", SslNegotiation::Postgres),
            ],
        );
        let tls12 = self.one_of(
            &format!("{name}: min_tls"),
            client.min_tls.as_deref(),
            false,
            &[("1.3", false), ("1.2", true)],
        );
        Some(Tunnel {
            name,
            listen: listen.based_on(base),
            side: Side::Client(Client {
                targets,
                os_users,
                server_name: client.server_name.clone(),
                negotiation,
                tls12,
            }),
        })
    }

    /// The OS users that may connect; by default root and the owner of the socket, which is who runs this process.
    fn os_users(&mut self, place: &str, names: Option<&[String]>) -> Vec<(u32, String)> {
        let Some(names) = names else {
            let own = Uid::effective();
            let own_name = User::from_uid(own)
                .ok()
                .flatten()
                .map_or_else(|| own.to_string(), |user| user.name);
            let mut users = vec![(0, "root".to_owned())];
            if !own.is_root() {
                users.push((own.as_raw(), own_name));
            }
            return users;
        };
        let mut users = Vec::new();
        for name in names {
            match User::from_name(name) {
                Ok(Some(user)) => users.push((user.uid.as_raw(), name.clone())),
                Ok(None) => self.error(
                    format!("{place}: `allow_os_users` names `{name}`"),
                    "this host has no such OS user",
                    "mend the name, or make the user first",
                ),
                Err(error) => self.error(
                    format!("{place}: `allow_os_users` names `{name}`"),
                    format!("the user cannot be looked up: {error}"),
                    "look at the host's user database (getent passwd)",
                ),
            }
        }
        users
    }

    pub(super) fn shared_addresses(&mut self, tunnels: &[Tunnel]) {
        let mut seen = HashMap::new();
        for tunnel in tunnels {
            if matches!(&tunnel.listen, ListenAddress::Tcp(address) if address.port() == 0) {
                continue;
            }
            if let Some(first) = seen.insert(tunnel.listen.to_string(), &tunnel.name) {
                self.error(
                    format!(
                        "{first} and {} both listen on {}",
                        tunnel.name, tunnel.listen
                    ),
                    "an address belongs to one tunnel",
                    "give one of them another `listen` address",
                );
            }
        }
    }
}
