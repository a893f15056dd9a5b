//! A tunnel that is looked on: both ends tell metrics and status.

use std::net::SocketAddr;

use serde_json::Value;

use crate::postgres::Node;
use crate::scrape::{free_address, get};
use crate::tunnel::Tunnel;

/// A tunnel to a primary, both ends of which tell metrics and status.
#[derive(Debug)]
pub struct Watched {
    /// Its ends.
    pub tunnel: Tunnel,
    /// Where the server answers over HTTP.
    pub server: SocketAddr,
    /// Where the client does.
    pub client: SocketAddr,
}

impl Watched {
    /// A tunnel that lets every connection of the standby through.
    pub fn to(primary: &Node) -> Self {
        let rule = "[[server.allow]]\nidentity = \"cn:standby\"\nordinary = true\n";
        let (server, client) = (free_address(), free_address());
        let admin = |at: SocketAddr| {
            format!("[admin]\nsocket = \"status.sock\"\nlisten = \"{at}\"\nstatus = true\n")
        };
        let tunnel = Tunnel::with(
            primary.socket().display(),
            &(rule.to_owned() + &admin(server)),
            &admin(client),
        );
        Self {
            tunnel,
            server,
            client,
        }
    }

    /// Both, by name.
    pub fn ends(&self) -> [(&'static str, SocketAddr); 2] {
        [("server", self.server), ("client", self.client)]
    }
}

/// A standby that replies every second.
pub fn standby(primary: &Node, conninfo: &str) -> Node {
    let standby = Node::builder("standby").init_from_backup(conninfo);
    standby.set_standby(conninfo, None);
    standby.append_conf("wal_receiver_status_interval = 1s");
    let standby = standby.started();
    primary.wait_for_standby("standby");
    standby
}

/// The snapshot.
#[track_caller]
pub fn status(at: SocketAddr) -> Value {
    serde_json::from_str(&get(at, "/status.json")).unwrap()
}
