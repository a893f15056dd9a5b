//! Which nodes the CA's host tells the others of: itself, and who joined by an invitation and may replicate from here
//! now. A certificate that was made by hand may be for anything, for monitoring or a backup, and whom it is to be let in
//! by is for a person to say.

use certs_tool::ledger::Issued;
use certs_tool::profile::NodeName;
use protocol::identity::{Identity, IdentityPattern};
use protocol::node::Node;
use protocol::policy::Policy;

use crate::config::{Config, Side};
use crate::reload::Checked;

/// The nodes of this CA's host, each with what the rules here let it do.
pub(crate) fn nodes(joined: &[Issued], checked: &Checked) -> Vec<Node> {
    let own = own(checked.credentials.identity());
    let own_name = own.as_ref().map(|own| own.name.clone());
    let others = joined
        .iter()
        .filter(|issued| own_name.as_deref() != Some(&*issued.record.name))
        .filter_map(|issued| allowed(issued, checked));
    let mut nodes: Vec<Node> = others.chain(own).collect();
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    nodes
}

/// How rules may name this node.
pub(super) fn patterns(node: &Node) -> Vec<IdentityPattern> {
    let common = format!("cn:{}", node.name);
    let texts = [&common].into_iter().chain(&node.identities);
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// The policies of all its server tunnels.
pub(super) fn policies(config: &Config) -> impl Iterator<Item = &Policy> {
    let tunnels = config.tunnels.iter();
    tunnels.filter_map(|tunnel| match &tunnel.side {
        Side::Server(server) => Some(&server.policy),
        Side::Client(_) => None,
    })
}

/// What the rules here let it do; None if not even physical replication.
fn allowed(issued: &Issued, checked: &Checked) -> Option<Node> {
    let record = &issued.record;
    let print = format!("sha256:{}", record.sha256);
    let mut node = Node {
        name: record.name.clone(),
        identities: record.names.iter().cloned().chain([print]).collect(),
        ..Node::default()
    };
    let names = patterns(&node);
    let mut physical = false;
    for policy in policies(&checked.config) {
        physical |= policy.admits_any_certificate();
        node.logical |= policy.admits_any_certificate();
        let own = policy
            .rules()
            .iter()
            .filter(|rule| names.iter().any(|name| rule.identity.covers(name)));
        for rule in own {
            physical |= rule.physical;
            node.logical |= rule.logical;
            node.ordinary |= rule.ordinary;
        }
    }
    physical.then_some(node)
}

/// This node, with which each of the others takes turns.
fn own(identity: &Identity) -> Option<Node> {
    let name = identity.common_name()?;
    name.parse::<NodeName>().ok()?;
    let dns = identity.dns().iter().map(|name| format!("dns:{name}"));
    let ip = identity.ip().iter().map(|address| format!("ip:{address}"));
    Some(Node {
        name: name.to_owned(),
        identities: dns.chain(ip).collect(),
        logical: true,
        ordinary: true,
    })
}
