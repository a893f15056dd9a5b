//! Nodes that joined later are let in by those that joined earlier, so that each can follow each when roles swap. Only the
//! CA's own signature over the list counts, and only a root command writes: the daemon that carries the list can neither
//! add to it nor change a rule. Whoever has the CA's key could also make a certificate of a name that is let in already.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use certs_tool::profile::NodeName;
use certs_tool::report::Date;
use certs_tool::succession::lists;
use protocol::identity::IdentityPattern;
use protocol::node::{Node, Nodes};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use super::CONFIG;
use super::listed::{patterns, policies};
use super::rules::rewrite;
use crate::control::{Ask, Daemon};
use crate::problem::Problem;
use crate::reload::Checked;
use crate::replace::replace;

/// The names of the last list that was taken up: a rule that a person has taken out since does not come again.
const SEEN: &str = "nodes.seen";
/// More nodes than that have no group.
const MOST: usize = 256;
/// What cannot be added, for a person to add.
const BY_HAND: &str = "K28";

/// Adds a rule for every node of the list that was not in the last one and that no rule admits, like the rules of a node
/// that is let in already and for no more than the CA's host lets it do, and has the daemon take it. Gives their names.
pub(crate) fn admit_nodes(
    directory: &Path,
    checked: &Checked,
    listed: &Nodes,
) -> Result<Vec<String>, Vec<Problem>> {
    believe(checked, listed).map_err(|problem| vec![problem])?;
    let seen_path = directory.join(SEEN);
    let unusable = |verb: &str, error: io::Error| {
        vec![Problem::new(
            "K18",
            format!("{} cannot be {verb}", seen_path.display()),
            error.to_string(),
            "run this as root, and make room",
        )]
    };
    let before = match fs::read_to_string(&seen_path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        // Without it, a rule that a person has taken out would come again.
        Err(error) => return Err(unusable("read", error)),
    };
    let seen: BTreeSet<&str> = before.lines().collect();
    let own = checked.credentials.identity().common_name();
    let new: Vec<&Node> = listed
        .nodes
        .iter()
        .filter(|node| !seen.contains(&*node.name) && own != Some(&*node.name))
        .filter(|node| !is_admitted(node, checked))
        .collect();
    let admitted = if new.is_empty() {
        Ok(Vec::new())
    } else {
        let edit =
            |old: &str| edit(old, &listed.nodes, &new).map_err(|why| by_hand(directory, &new, why));
        rewrite(directory, edit).map(Option::unwrap_or_default)
    };
    // What is to be done by hand is told once. All else is tried again.
    if let Err(problems) = &admitted
        && problems.iter().any(|problem| problem.id != BY_HAND)
    {
        return admitted;
    }
    if admitted.as_ref().is_ok_and(|admitted| !admitted.is_empty())
        && let Some(socket) = checked.config.control.as_ref().filter(|path| path.exists())
    {
        Daemon::ask(socket, Ask::Reload)?.reply()?;
    }
    let names = listed.nodes.iter().map(|node| format!("{}\n", node.name));
    let text: String = names.collect();
    if text != before {
        let like = directory.join(CONFIG);
        replace(&seen_path, text.as_bytes(), &like).map_err(|error| unusable("written", error))?;
    }
    admitted
}

/// Whether the list counts.
fn believe(checked: &Checked, listed: &Nodes) -> Result<(), Problem> {
    let useless = |why: String, way_out: &str| {
        Problem::new(
            "K29",
            "a list of nodes came that does not count; no rule was changed",
            why,
            way_out,
        )
    };
    if listed.nodes.len() > MOST {
        return Err(useless(
            format!("it has {} names, of {MOST} at the most", listed.nodes.len()),
            "write rules with a wildcard by hand",
        ));
    }
    let (cas, now) = (checked.credentials.authorities(), Date::now());
    let is_name = |node: &Node| node.name.parse::<NodeName>().is_ok();
    if !listed.nodes.iter().all(is_name) || !cas.iter().any(|ca| lists(listed, ca, now)) {
        return Err(useless(
            "no CA that is trusted here has signed it, or its time is over".to_owned(),
            "on the CA's host: pgtlsproxy renew; and compare the clocks of both hosts",
        ));
    }
    Ok(())
}

/// Whether any rule here is for it, by whichever of its names and for whatever: then somebody has seen to it.
fn is_admitted(node: &Node, checked: &Checked) -> bool {
    let names = patterns(node);
    policies(&checked.config).any(|policy| {
        policy.admits_any_certificate()
            || policy
                .rules()
                .iter()
                .any(|rule| names.iter().any(|name| rule.identity.covers(name)))
    })
}

fn by_hand(directory: &Path, new: &[&Node], why: String) -> Problem {
    let names: Vec<String> = new.iter().map(|node| format!("cn:{}", node.name)).collect();
    Problem::new(
        BY_HAND,
        format!(
            "{} joined, and no rule could be added for it",
            names.join(", ")
        ),
        why,
        format!(
            "add [[server.allow]] identity = \"...\" to {} by hand, if it may follow this node; this is not told again",
            directory.join(CONFIG).display()
        ),
    )
}

/// The text with rules for each of `new`, like those of the first of `listed` that has one; and their names.
fn edit(text: &str, listed: &[Node], new: &[&Node]) -> Result<(String, Vec<String>), String> {
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| error.to_string())?;
    let server = document
        .get_mut("server")
        .and_then(Item::as_array_of_tables_mut)
        .and_then(|servers| servers.get_mut(0));
    // Nobody comes in here, and so nobody is to be let in.
    let Some(server) = server else {
        return Ok((text.to_owned(), Vec::new()));
    };
    let rules = server
        .get_mut("allow")
        .and_then(Item::as_array_of_tables_mut)
        .ok_or("its first [[server]] has no [[server.allow]] to go by")?;
    let identity = |node: &Node| format!("cn:{}", node.name);
    // Somebody else may have been here since the rules were read.
    let missing = new.iter().filter(|node| {
        let identity = identity(node);
        !rules
            .iter()
            .any(|rule| identity_of(rule) == Some(&identity))
    });
    let missing: Vec<&Node> = missing.copied().collect();
    if missing.is_empty() {
        return Ok((text.to_owned(), Vec::new()));
    }
    let like = like(rules, listed)?;
    let mut names = Vec::new();
    for node in missing {
        let own: Vec<Table> = like.iter().filter_map(|rule| bounded(rule, node)).collect();
        if own.is_empty() {
            return Err(format!(
                "{} may do nothing of what the others may",
                node.name
            ));
        }
        for mut rule in own {
            rule.insert("identity", value(identity(node)));
            rule.decor_mut().set_prefix(
                "\n# Written by `pgtlsproxy renew`: this node joined later, by the CA's word.\n",
            );
            // Behind the last one, wherever the table that it is like stood.
            rule.set_position(None);
            rules.push(rule);
        }
        names.push(node.name.clone());
    }
    Ok((document.to_string(), names))
}

/// The rules of the first node that is let in. One for certain addresses, or for an application_name, is like no other.
fn like(rules: &ArrayOfTables, listed: &[Node]) -> Result<Vec<Table>, String> {
    let is_of_a_node = |identity: &&str| {
        let Ok(pattern) = identity.parse::<IdentityPattern>() else {
            return false;
        };
        let is_meant = |node: &&Node| patterns(node).iter().any(|name| pattern.covers(name));
        !pattern.is_wild() && listed.iter().filter(is_meant).count() == 1
    };
    let first = rules
        .iter()
        .filter_map(identity_of)
        .find(is_of_a_node)
        .ok_or("no other node of this CA is let in here by a rule of its own")?;
    let like: Vec<Table> = rules
        .iter()
        .filter(|rule| identity_of(rule) == Some(first))
        .cloned()
        .collect();
    for (key, bound) in [
        ("from", "for certain addresses"),
        ("application_names", "for certain application_names"),
    ] {
        if like.iter().any(|rule| rule.contains_key(key)) {
            return Err(format!("the rule of {first} is {bound}"));
        }
    }
    Ok(like)
}

/// This rule for no more than the CA's host lets the node do; None if nothing is left of it.
fn bounded(rule: &Table, node: &Node) -> Option<Table> {
    let mut rule = rule.clone();
    let list = rule.get("replication").and_then(Item::as_array);
    let mut kinds: Vec<String> = match list {
        Some(kinds) => kinds
            .iter()
            .filter_map(|kind| kind.as_str().map(str::to_owned))
            .collect(),
        None => ["physical", "logical"].map(str::to_owned).to_vec(),
    };
    if !node.logical && kinds.iter().any(|kind| kind != "physical") {
        kinds.retain(|kind| kind == "physical");
        rule.insert("replication", value(kinds.iter().collect::<Array>()));
    }
    let is_ordinary = |rule: &Table| rule.get("ordinary").and_then(Item::as_bool) == Some(true);
    if !node.ordinary && is_ordinary(&rule) {
        rule.remove("ordinary");
    }
    (!kinds.is_empty() || is_ordinary(&rule)).then_some(rule)
}

fn identity_of(rule: &Table) -> Option<&str> {
    rule.get("identity").and_then(Item::as_str)
}

#[cfg(test)]
mod tests {
    use certs_tool::authority::{Authority, NewAuthority, NewNode};
    use certs_tool::store::Existing;
    use protocol::identity::Fingerprint;

    use super::*;
    use crate::config::Source;
    use crate::reload;

    const TEXT: &str = "# ours\n[[server]]\nlisten = \"0.0.0.0:5443\"\npostgres = \"/run/postgresql/.s.PGSQL.5432\"\n\n[[server.allow]]\nidentity = \"cn:db1\"\nusers = [\"r\"]\n\n\
        [[server.allow]]\nidentity = \"cn:db1\"\nreplication = []\nordinary = true\nusers = [\"r\"]\ndatabases = [\"postgres\"]\n\n[log]\nlevel = \"info\"\n";

    fn node(name: &str) -> Node {
        Node {
            name: name.to_owned(),
            identities: vec![format!("dns:{name}.test")],
            logical: true,
            ordinary: true,
        }
    }

    fn list(names: &[&str]) -> Vec<Node> {
        names.iter().map(|name| node(name)).collect()
    }

    fn edited(text: &str, known: &[Node], new: &Node) -> Result<(String, Vec<String>), String> {
        edit(text, known, &[new])
    }

    #[test]
    fn a_node_that_joined_later_may_what_the_others_may() {
        let known = list(&["db1", "standby1", "standby2"]);
        let (new, names) = edited(TEXT, &known, &known[2]).unwrap();
        assert_eq!(names, ["standby2"]);
        assert_eq!(
            new.matches("identity = \"cn:standby2\"").count(),
            2,
            "{new}"
        );
        assert_eq!(new.matches("users = [\"r\"]").count(), 4, "{new}");
        assert_eq!(
            new.matches("databases = [\"postgres\"]").count(),
            2,
            "{new}"
        );
        assert!(
            new.starts_with("# ours\n") && new.ends_with("[log]\nlevel = \"info\"\n"),
            "{new}"
        );
        let (again, names) = edited(&new, &known, &known[2]).unwrap();
        assert_eq!((again, names.len()), (new, 0));
        let by_dns = TEXT.replace("cn:db1", "dns:db1.test");
        let (new, _) = edited(&by_dns, &known, &known[2]).unwrap();
        assert_eq!(new.matches("cn:standby2").count(), 2, "{new}");
    }

    #[test]
    fn nobody_may_more_than_where_the_ca_is() {
        let known = list(&["db1", "standby2"]);
        let physical = Node {
            logical: false,
            ordinary: false,
            ..node("standby2")
        };
        let (new, _) = edited(TEXT, &known, &physical).unwrap();
        assert_eq!(new.matches("cn:standby2").count(), 1, "{new}");
        assert!(new.contains("replication = [\"physical\"]"), "{new}");
        assert_eq!(new.matches("ordinary = true").count(), 1, "{new}");
        let mixed = TEXT.replacen("users = ", "ordinary = true\nusers = ", 1);
        let (new, _) = edited(&mixed, &known, &physical).unwrap();
        assert_eq!(new.matches("ordinary = true").count(), 2, "{new}");
        let only = TEXT.replacen("users = ", "replication = [\"logical\"]\nusers = ", 1);
        assert!(edited(&only, &known, &physical).is_err());
    }

    #[test]
    fn nothing_is_made_wider_than_what_is_there() {
        let known = list(&["db1", "standby2"]);
        let new = node("standby2");
        for bound in ["from = [\"10.0.0.0/8\"]", "application_names = [\"db1\"]"] {
            let bound = TEXT.replacen("users = ", &format!("{bound}\nusers = "), 1);
            assert!(edited(&bound, &known, &new).is_err());
        }
        for stranger in ["cn:somebody", "dns:*.test"] {
            let stranger = TEXT.replace("cn:db1", stranger);
            assert!(edited(&stranger, &known, &new).is_err());
        }
        let none = "[[client]]\nlisten = \"/run\"\n";
        let (same, names) = edited(none, &known, &new).unwrap();
        assert_eq!((same.as_str(), names.len()), (none, 0));
    }

    #[test]
    fn a_list_that_the_ca_has_not_signed_changes_nothing() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        let authority = Authority::create(dir, &NewAuthority::default(), Existing::Keep).unwrap();
        let node = NewNode::new("db1", &[]).unwrap();
        authority.issue(&node, dir, Existing::Keep).unwrap();
        let text = format!(
            "[identity]\ncert = \"db1.crt\"\nkey = \"db1.key\"\nca = \"ca.crt\"\ncrl = \"ca.crl\"\n\n{}",
            TEXT.replace("cn:db1", "cn:standby1")
        );
        let path = dir.join(CONFIG);
        fs::write(&path, &text).unwrap();
        let checked = reload::load(&Source::File(path.clone())).unwrap();
        let nodes = Nodes {
            nodes: list(&["db1", "standby1", "evil"]),
            by: Fingerprint::of(authority.signing_der()).to_string(),
            until: i64::MAX,
            signature: "00".repeat(64),
        };
        let problems = admit_nodes(dir, &checked, &nodes).unwrap_err();
        assert_eq!(problems[0].id, "K29");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert!(!dir.join(SEEN).exists());
    }
}
