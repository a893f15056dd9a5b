//! Two hosts with a router between them, as network namespaces. The router can stop forwarding: packets then
//! vanish without a word, as when a cable, a firewall or a host dies.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use crate::process::run;

/// The two hosts; removed on drop.
#[derive(Debug)]
pub struct Namespaces {
    name: String,
}

impl Namespaces {
    /// The address of the left host.
    pub const LEFT: &str = "10.98.1.2";
    /// The address of the right host.
    pub const RIGHT: &str = "10.98.2.2";

    /// Makes them, or says that this machine does not permit it and gives nothing: the test is then skipped.
    pub fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pgt{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        let namespaces = Self { name };
        match namespaces.set_up() {
            Ok(()) => Some(namespaces),
            Err(error) => {
                println!("skipped: network namespaces are not permitted here: {error}");
                None
            }
        }
    }

    fn set_up(&self) -> Result<(), String> {
        let (left, router, right) = (self.left(), self.router(), self.right());
        for namespace in [&left, &router, &right] {
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        for (host, subnet, at_router) in [(&left, 1, "left"), (&right, 2, "right")] {
            let (address, gateway) = (format!("10.98.{subnet}.2/24"), format!("10.98.{subnet}.1"));
            ip(&[
                "-n", host, "link", "add", "wan", "type", "veth", "peer", "name", at_router,
                "netns", &router,
            ])?;
            ip(&["-n", host, "addr", "add", &address, "dev", "wan"])?;
            ip(&["-n", host, "link", "set", "wan", "up"])?;
            ip(&[
                "-n",
                &router,
                "addr",
                "add",
                &format!("{gateway}/24"),
                "dev",
                at_router,
            ])?;
            ip(&["-n", &router, "link", "set", at_router, "up"])?;
            ip(&["-n", host, "route", "add", "default", "via", &gateway])?;
        }
        self.forward(true)
    }

    /// The left host, as `ip netns` names it.
    pub fn left(&self) -> String {
        format!("{}l", self.name)
    }

    /// The right host, as `ip netns` names it.
    pub fn right(&self) -> String {
        format!("{}r", self.name)
    }

    fn router(&self) -> String {
        format!("{}m", self.name)
    }

    /// From now on no packet reaches the other side, and nobody is told.
    pub fn cut(&self) {
        self.forward(false).unwrap();
    }

    /// Packets go through again.
    pub fn mend(&self) {
        self.forward(true).unwrap();
    }

    fn forward(&self, on: bool) -> Result<(), String> {
        let set = format!("echo {} > /proc/sys/net/ipv4/ip_forward", u8::from(on));
        ip(&["netns", "exec", &self.router(), "sh", "-c", &set])
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in [self.left(), self.router(), self.right()] {
            let _ = ip(&["netns", "del", &namespace]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run(Command::new("ip").args(arguments)).map(drop)
}
