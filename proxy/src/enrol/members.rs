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
use protocol::node::Nodes;
use tempfile::Builder;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::CONFIG;
use super::host::own;
use super::rules::rewrite;
use crate::control::{Ask, Daemon};
use crate::problem::Problem;
use crate::reload::Checked;

/// The names of the last list that was taken up: a rule that a person has taken out since does not come again.
const SEEN: &str = "nodes.seen";
/// More nodes than that have no group.
const MOST: usize = 256;

/// Adds a rule for every node of the list that was not in the last one and has none, like the rules of a node that is let
/// in already, and has the daemon take it. Gives their names.
pub(crate) fn admit_nodes(
    directory: &Path,
    checked: &Checked,
    nodes: &Nodes,
) -> Result<Vec<String>, Vec<Problem>> {
    let cas = checked.credentials.authorities();
    let now = Date::now();
    let is_name = |name: &String| name.parse::<NodeName>().is_ok();
    if nodes.names.len() > MOST
        || !nodes.names.iter().all(is_name)
        || !cas.iter().any(|ca| lists(nodes, ca, now))
    {
        return Err(vec![Problem::new(
            "K29",
            "a list of nodes came that does not count; no rule was changed",
            "no CA that is trusted here has signed it, or its time is over",
            "on the CA's host: pgtlsproxy renew; and compare the clocks of both hosts",
        )]);
    }
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
    let own = own(checked.credentials.identity());
    let identity = |name: &str| format!("cn:{name}");
    let known: Vec<String> = nodes.names.iter().map(|name| identity(name)).collect();
    let new: Vec<String> = nodes
        .names
        .iter()
        .filter(|name| !seen.contains(name.as_str()))
        .map(|name| identity(name))
        .filter(|identity| own.as_ref() != Some(identity))
        .collect();
    let admitted = if new.is_empty() {
        Vec::new()
    } else {
        rewrite(directory, |old| {
            edit(old, &known, &new).map_err(|why| by_hand(directory, &new, why))
        })?
        .unwrap_or_default()
    };
    if !admitted.is_empty()
        && let Some(socket) = checked.config.control.as_ref().filter(|path| path.exists())
    {
        Daemon::ask(socket, Ask::Reload)?.reply()?;
    }
    let text: String = nodes.names.iter().map(|name| format!("{name}\n")).collect();
    if text != before {
        remember(directory, &seen_path, &text).map_err(|error| unusable("written", error))?;
    }
    Ok(admitted)
}

fn remember(directory: &Path, path: &Path, text: &str) -> io::Result<()> {
    let file = Builder::new()
        .prefix(".pgtlsproxy.")
        .tempfile_in(directory)?;
    fs::write(file.path(), text)?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

fn by_hand(directory: &Path, new: &[String], why: String) -> Problem {
    let names = new.join(", ");
    Problem::new(
        "K28",
        format!("{names} joined, and no rule could be added for it"),
        why,
        format!(
            "add [[server.allow]] identity = \"...\" to {} by hand, if it may follow this node",
            directory.join(CONFIG).display()
        ),
    )
}

/// The text with rules for each of `new` that has none, like those of the first of `known` that has one; and their names.
fn edit(text: &str, known: &[String], new: &[String]) -> Result<(String, Vec<String>), String> {
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
    let missing: Vec<&String> = new
        .iter()
        .filter(|identity| !rules.iter().any(|rule| identity_of(rule) == Some(identity)))
        .collect();
    if missing.is_empty() {
        return Ok((text.to_owned(), Vec::new()));
    }
    let like = like(rules, known)?;
    let mut names = Vec::new();
    for identity in missing {
        for rule in &like {
            let mut rule = rule.clone();
            rule.insert("identity", value(identity));
            rule.decor_mut().set_prefix(
                "\n# Written by `pgtlsproxy renew`: this node joined later, by the CA's word.\n",
            );
            // Behind the last one, wherever the table that it is like stood.
            rule.set_position(None);
            rules.push(rule);
        }
        names.push(identity.trim_start_matches("cn:").to_owned());
    }
    Ok((document.to_string(), names))
}

/// The rules of the first node that is let in. One for certain addresses is like no other.
fn like(rules: &ArrayOfTables, known: &[String]) -> Result<Vec<Table>, String> {
    let first = rules
        .iter()
        .filter_map(identity_of)
        .find(|identity| known.iter().any(|one| one == identity))
        .ok_or("no other node of this CA is let in here")?;
    let like: Vec<Table> = rules
        .iter()
        .filter(|rule| identity_of(rule) == Some(first))
        .cloned()
        .collect();
    if like.iter().any(|rule| rule.contains_key("from")) {
        return Err(format!("the rule of {first} is for certain addresses"));
    }
    Ok(like)
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

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("cn:{name}")).collect()
    }

    #[test]
    fn a_node_that_joined_later_may_what_the_others_may() {
        let known = list(&["db1", "standby1", "standby2"]);
        let (new, names) = edit(TEXT, &known, &list(&["db1", "standby2"])).unwrap();
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
        let (again, names) = edit(&new, &known, &list(&["standby2"])).unwrap();
        assert_eq!((again, names.len()), (new, 0));
    }

    #[test]
    fn nothing_is_made_wider_than_what_is_there() {
        let known = list(&["db1", "standby2"]);
        let bound = TEXT.replacen("users = ", "from = [\"10.0.0.0/8\"]\nusers = ", 1);
        assert!(edit(&bound, &known, &list(&["standby2"])).is_err());
        let stranger = TEXT.replace("cn:db1", "cn:somebody");
        assert!(edit(&stranger, &known, &list(&["standby2"])).is_err());
        let none = "[[client]]\nlisten = \"/run\"\n";
        let (same, names) = edit(none, &known, &list(&["standby2"])).unwrap();
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
            names: ["db1", "standby1", "evil"].map(str::to_owned).to_vec(),
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
