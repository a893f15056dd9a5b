//! Writes an allow rule into a configuration that a person wrote: comments, order and form stay. The new file is judged
//! by the daemon's own loader before it takes the old one's place.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use tempfile::Builder;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, TableLike, Value, value};

use super::{CONFIG, LOCK};
use crate::config::Source;
use crate::problem::Problem;
use crate::reload::load;
use crate::turn;

/// Whom to admit, and for what. What is None is left as an earlier rule has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// As `cn:standby1`.
    pub(super) identity: String,
    pub(super) from: Option<Vec<String>>,
    pub(super) replication: Option<Vec<String>>,
    pub(super) ordinary: Option<bool>,
}

impl Rule {
    pub(super) fn of(identity: String) -> Self {
        Self {
            identity,
            from: None,
            replication: None,
            ordinary: None,
        }
    }
}

/// What became of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It had no such rule before.
    Added,
    /// A rule that was there says something else now.
    Changed,
    AsItWas,
}

/// Above a rule that goes with the invitation for which it was written, unless the node joins.
pub(super) const MARK: &str = "# Written by `pgtlsproxy invite`";

/// Puts the rules into the first `[[server]]` of this directory's configuration. `others` are written only where there
/// has been no rule: with the first one, whoever has none is shut out.
pub(super) fn admit(
    directory: &Path,
    rule: &Rule,
    others: &[Rule],
) -> Result<Written, Vec<Problem>> {
    rewrite(directory, |old| {
        let (new, added) = edit(old, rule, others).map_err(|why| {
            Problem::new(
                "E24",
                format!(
                    "no rule can be added to {}",
                    directory.join(CONFIG).display()
                ),
                why,
                format!(
                    "write it there by hand ([[server.allow]] identity = \"{}\"), then run this again",
                    rule.identity
                ),
            )
        })?;
        let written = if added {
            Written::Added
        } else {
            Written::Changed
        };
        Ok((new, written))
    })
    .map(|written| written.unwrap_or(Written::AsItWas))
}

/// Changes this directory's configuration as `edit` says, in one step; None if there was nothing to change.
pub(super) fn rewrite<T>(
    directory: &Path,
    edit: impl FnOnce(&str) -> Result<(String, T), Problem>,
) -> Result<Option<T>, Vec<Problem>> {
    let path = directory.join(CONFIG);
    let failed = |error: io::Error| {
        vec![Problem::new(
            "E23",
            format!("{} cannot be changed", path.display()),
            error.to_string(),
            "run this command as the owner of that file, usually root, with room on that disk",
        )]
    };
    // Two at once would each lose the other's rule. The lock is a file of its own, since the other is replaced.
    let _turn = turn::wait(&directory.join(LOCK)).map_err(failed)?;
    let target = fs::canonicalize(&path).map_err(failed)?;
    let old = fs::read_to_string(&target).map_err(failed)?;
    let (new, done) = edit(&old).map_err(|problem| vec![problem])?;
    if new == old {
        return Ok(None);
    }
    let beside = target.parent().unwrap_or(directory);
    let mut file = Builder::new()
        .prefix(".pgtlsproxy.")
        .suffix(".toml")
        .tempfile_in(beside)
        .map_err(failed)?;
    file.write_all(new.as_bytes()).map_err(failed)?;
    let metadata = fs::metadata(&target).map_err(failed)?;
    file.as_file()
        .set_permissions(metadata.permissions())
        .map_err(failed)?;
    // Without the right to it, the file is ours and stays so.
    let _ = fchown(file.as_file(), Some(metadata.uid()), Some(metadata.gid()));
    file.as_file().sync_all().map_err(failed)?;
    load(&Source::File(file.path().to_owned()))?;
    file.persist(&target).map_err(|error| failed(error.error))?;
    File::open(beside)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)?;
    Ok(Some(done))
}

/// The text with the rule in it, unchanged if it has been there; and whether it is a new one.
fn edit(text: &str, rule: &Rule, others: &[Rule]) -> Result<(String, bool), String> {
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| error.to_string())?;
    let server = document
        .get_mut("server")
        .and_then(Item::as_array_of_tables_mut)
        .and_then(|servers| servers.get_mut(0))
        .ok_or("it has no [[server]] table, through which another node could come")?;
    let allow = server
        .entry("allow")
        .or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let added = match allow {
        Item::ArrayOfTables(tables) => {
            if tables.is_empty() {
                for other in others {
                    tables.push(table(other));
                }
            }
            let known = tables.iter_mut().map(|table| table as &mut dyn TableLike);
            let known = change(known, rule, false)?;
            if !known {
                let mut new = table(rule);
                new.decor_mut().set_prefix(format!(
                    "\n{MARK}; it goes with the invitation unless the node joins.\n"
                ));
                tables.push(new);
            }
            !known
        }
        Item::Value(Value::Array(rules)) => {
            let known = rules.iter_mut().filter_map(|known| {
                known
                    .as_inline_table_mut()
                    .map(|table| table as &mut dyn TableLike)
            });
            let known = change(known, rule, true)?;
            if !known {
                let others = if rules.is_empty() { others } else { &[] };
                for rule in others.iter().chain([rule]) {
                    rules.push(table(rule).into_inline_table());
                }
            }
            !known
        }
        _ => return Err("`server.allow` is no list of rules".to_owned()),
    };
    Ok((document.to_string(), added))
}

/// Has the rules of this identity say what is wanted; whether there are any. One node may have several, for sessions of
/// different kinds; where it comes from holds for all of them.
fn change<'a>(
    rules: impl Iterator<Item = &'a mut dyn TableLike>,
    wanted: &Rule,
    on_one_line: bool,
) -> Result<bool, String> {
    let mut known: Vec<_> = rules
        .filter(|rule| {
            rule.get("identity").and_then(Item::as_str) == Some(wanted.identity.as_str())
        })
        .collect();
    if known.len() > 1 && (wanted.replication.is_some() || wanted.ordinary.is_some()) {
        return Err(format!(
            "{} has {} rules there, and --allow does not say which is meant: leave it out",
            wanted.identity,
            known.len()
        ));
    }
    for rule in &mut known {
        if set(*rule, wanted) && on_one_line {
            rule.fmt(); // no comment can stand in it
        }
    }
    Ok(!known.is_empty())
}

fn table(rule: &Rule) -> Table {
    let mut table = Table::new();
    table.insert("identity", value(&rule.identity));
    set(&mut table, rule);
    table
}

/// Whether that changed anything.
fn set(table: &mut dyn TableLike, rule: &Rule) -> bool {
    let list = |list: &[String]| value(list.iter().collect::<Array>());
    let mut changed = false;
    let mut put = |key: &str, item: Item| {
        // What says the same already keeps its form.
        let same = table
            .get(key)
            .is_some_and(|old| old.to_string().trim() == item.to_string().trim());
        if !same {
            table.insert(key, item);
        }
        changed |= !same;
    };
    if let Some(from) = &rule.from {
        put("from", list(from));
    }
    if let Some(replication) = &rule.replication {
        put("replication", list(replication));
    }
    if let Some(ordinary) = rule.ordinary {
        put("ordinary", value(ordinary));
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# ours\n[identity]\ncert = 'c' # leaf\n\n[[server]]\nlisten   = \"0.0.0.0:5443\"\n\n[[server.allow]] # the first\nidentity = \"cn:a\"\n\n[log]\nlevel = \"info\"\n";

    #[test]
    fn a_rule_is_added_behind_the_others_and_nothing_else_changes() {
        let rule = Rule {
            from: Some(vec!["10.0.0.0/8".to_owned()]),
            ..Rule::of("cn:b".to_owned())
        };
        let (new, added) = edit(TEXT, &rule, &[]).unwrap();
        assert!(added);
        let expected = TEXT.replace(
            "\n[log]",
            "\n# Written by `pgtlsproxy invite`; it goes with the invitation unless the node joins.\n[[server.allow]]\nidentity = \"cn:b\"\nfrom = [\"10.0.0.0/8\"]\n\n[log]",
        );
        assert_eq!(new.replace("\n\n", "\n"), expected.replace("\n\n", "\n"));
        assert_eq!(
            edit(&new, &rule, &[]).unwrap(),
            (new.clone(), false),
            "a second time there is nothing to do"
        );
    }

    #[test]
    fn what_was_asked_changes_a_known_rule_and_the_rest_of_it_stays() {
        let rule = Rule {
            ordinary: Some(true),
            ..Rule::of("cn:a".to_owned())
        };
        let (new, _) = edit(TEXT, &rule, &[]).unwrap();
        assert!(
            new.contains("[[server.allow]] # the first\nidentity = \"cn:a\"\nordinary = true\n"),
            "{new}"
        );
        assert_eq!(new.matches("identity = ").count(), 1);
    }

    #[test]
    fn with_the_first_rule_nobody_is_shut_out() {
        let text = "[[server]]\nlisten = \"0.0.0.0:5443\"\n";
        let others = [Rule::of("cn:old".to_owned())];
        let (new, _) = edit(text, &Rule::of("cn:new".to_owned()), &others).unwrap();
        assert!(new.contains("cn:old") && new.contains("cn:new"), "{new}");
        let (new, _) = edit(TEXT, &Rule::of("cn:new".to_owned()), &others).unwrap();
        assert!(!new.contains("cn:old"), "{new}");
    }

    #[test]
    fn rules_on_one_line_stay_there() {
        let text = "[[server]]\nallow = [{ identity = \"cn:a\" }]\n";
        let (new, _) = edit(text, &Rule::of("cn:b".to_owned()), &[]).unwrap();
        assert!(
            new.contains("cn:a") && new.contains("cn:b") && !new.contains("[[server.allow]]"),
            "{new}"
        );
        assert!(edit("[[client]]\n", &Rule::of("cn:b".to_owned()), &[]).is_err());
        let rule = Rule {
            from: Some(vec!["10.0.0.0/8".to_owned()]),
            ..Rule::of("cn:a".to_owned())
        };
        let expected = "[[server]]\nallow = [{ identity = \"cn:a\", from = [\"10.0.0.0/8\"] }]\n";
        assert_eq!(edit(text, &rule, &[]).unwrap().0, expected);
    }

    #[test]
    fn every_rule_of_the_node_is_bounded() {
        let second = "\n[[server.allow]]\nidentity = \"cn:a\"\nreplication = []\nordinary = true\n";
        let text = format!("{TEXT}{second}");
        let mut rule = Rule {
            from: Some(vec!["10.0.0.0/8".to_owned()]),
            ..Rule::of("cn:a".to_owned())
        };
        let (new, added) = edit(&text, &rule, &[]).unwrap();
        assert!(!added);
        assert_eq!(new.matches("from = [\"10.0.0.0/8\"]").count(), 2, "{new}");
        rule.ordinary = Some(false);
        let why = edit(&text, &rule, &[]).unwrap_err();
        assert!(why.contains("2 rules"), "{why}");
    }
}
