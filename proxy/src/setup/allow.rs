//! The allow rules that a standby needs in the proxy's configuration: what it may do is what this run of setup prepares
//! PostgreSQL for, and no more. Texts in, texts out; rules that a person or `invite` wrote stay as they are.

use toml::{Table, Value};

use super::plan::{MAINTENANCE_DATABASE, Wishes};

/// One kind of session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Physical,
    Logical,
    Ordinary,
}

/// One rule; certificates carry the node's name as their common name.
struct Rule<'a> {
    identity: String,
    kind: Kind,
    role: &'a str,
    /// Not consulted for physical replication.
    databases: Vec<&'a str>,
}

/// The rules that these standbys need and the configuration has not, as text to be put at its end.
///
/// # Errors
/// Why no rule can be put there.
pub(super) fn missing(configuration: &str, wishes: &Wishes) -> Result<String, String> {
    let document: Table = configuration
        .parse()
        .map_err(|error: toml::de::Error| error.message().to_owned())?;
    let servers = tables(document.get("server"));
    let rules: Vec<&Table> = servers
        .iter()
        .flat_map(|server| tables(server.get("allow")))
        .collect();
    let needed = wishes
        .standbys
        .iter()
        .flat_map(|standby| rules_for(standby, wishes));
    let missing: Vec<Rule<'_>> = needed
        .filter(|needed| !rules.iter().any(|rule| needed.is_given_by(rule)))
        .collect();
    // A rule at the end belongs to the last server; only where there is one, that is the right one.
    if !missing.is_empty() && (servers.len() != 1 || !configuration.contains("[[server]]")) {
        return Err("it does not hold exactly one [[server]]".to_owned());
    }
    Ok(missing.iter().map(Rule::text).collect())
}

fn tables(value: Option<&Value>) -> Vec<&Table> {
    let list = value.and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_table)
        .collect()
}

fn rules_for<'a>(standby: &str, wishes: &'a Wishes) -> Vec<Rule<'a>> {
    let rule = |kind, databases| Rule {
        identity: format!("cn:{standby}"),
        kind,
        role: &wishes.role,
        databases,
    };
    let mut rules = vec![rule(Kind::Physical, Vec::new())];
    if !wishes.logical.is_empty() {
        let databases = wishes.logical.iter().map(String::as_str).collect();
        rules.push(rule(Kind::Logical, databases));
    }
    if wishes.rewind || wishes.slot_sync {
        rules.push(rule(Kind::Ordinary, vec![MAINTENANCE_DATABASE]));
    }
    rules
}

impl Rule<'_> {
    fn is_given_by(&self, rule: &Table) -> bool {
        let lists = |key: &str, wanted: &str| {
            rule.get(key).is_none_or(|list| {
                let words = list.as_array().into_iter().flatten();
                words
                    .filter_map(Value::as_str)
                    .any(|word| word == wanted || word == "*" && key != "replication")
            })
        };
        let kind = match self.kind {
            Kind::Physical => lists("replication", "physical"),
            Kind::Logical => lists("replication", "logical"),
            Kind::Ordinary => rule.get("ordinary").and_then(Value::as_bool) == Some(true),
        };
        rule.get("identity").and_then(Value::as_str) == Some(&self.identity)
            && kind
            && lists("users", self.role)
            && self
                .databases
                .iter()
                .all(|database| lists("databases", database))
    }

    fn text(&self) -> String {
        let kind = match self.kind {
            Kind::Physical => "replication = [\"physical\"]\n",
            Kind::Logical => "replication = [\"logical\"]\n",
            Kind::Ordinary => {
                "replication = []\nordinary = true # pg_rewind, the slot-sync worker\n"
            }
        };
        let mut text = format!(
            "\n[[server.allow]]\nidentity = {}\n{kind}users = {}\n",
            string(&self.identity),
            strings(&[self.role])
        );
        if !self.databases.is_empty() {
            text.push_str(&format!("databases = {}\n", strings(&self.databases)));
        }
        text
    }
}

fn strings(list: &[&str]) -> Value {
    list.iter()
        .map(|text| Value::from(*text))
        .collect::<Vec<_>>()
        .into()
}

/// A string of TOML's.
pub(super) fn string(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::plan::LoginBy;
    use super::*;

    fn wishes(standbys: &[&str], rewind: bool, logical: &[&str]) -> Wishes {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Wishes {
            role: "replicator".to_owned(),
            os_user: "pgtlsproxy".to_owned(),
            standbys: owned(standbys),
            logical: owned(logical),
            rewind,
            slot_sync: false,
            fix_trust: false,
            slot: false,
            login: LoginBy::OsUser,
        }
    }

    const HEAD: &str = "[[server]]\nlisten = \"0.0.0.0:5443\"\n";

    #[test]
    fn each_run_adds_what_it_needs_and_nothing_twice() {
        let mut text = HEAD.to_owned();
        for (wished, expected) in [
            (wishes(&["a"], false, &[]), 1),
            (wishes(&["a", "b"], false, &[]), 1),
            (wishes(&["a"], true, &[]), 1),
            (wishes(&["a"], true, &["app", "it's \"x\""]), 1),
            (wishes(&["b"], true, &["app"]), 2),
        ] {
            let new = missing(&text, &wished).unwrap();
            assert_eq!(new.matches("[[server.allow]]").count(), expected, "{new}");
            text.push_str(&new);
            assert_eq!(missing(&text, &wished).unwrap(), "");
        }
    }

    #[test]
    fn what_invite_or_a_person_wrote_counts() {
        let wished = wishes(&["a"], true, &["app"]);
        let whole = "[[server.allow]]\nidentity = \"cn:a\"\nordinary = true\n";
        assert_eq!(missing(&format!("{HEAD}{whole}"), &wished).unwrap(), "");
        let inline = "allow = [{ identity = \"cn:a\", ordinary = true, databases = [\"*\"] }]\n";
        assert_eq!(missing(&format!("{HEAD}{inline}"), &wished).unwrap(), "");
        let other_role = format!("{HEAD}{whole}users = [\"other\"]\n");
        let new = missing(&other_role, &wished).unwrap();
        assert_eq!(new.matches("[[server.allow]]").count(), 3, "{new}");
    }

    #[test]
    fn a_place_that_is_not_clear_is_left_alone() {
        let two = format!("{HEAD}{HEAD}");
        for text in [
            "",
            &*two,
            "server = [{ listen = \"0.0.0.0:1\" }]\n",
            "not toml",
        ] {
            assert!(
                missing(text, &wishes(&["a"], false, &[])).is_err(),
                "{text}"
            );
        }
    }
}
