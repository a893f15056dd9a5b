//! Takes allow rules out of a configuration that a person wrote. Everything else stays byte by byte, comments included;
//! and a server that would be left without a rule, where any certificate of the CA would be let in, gets one instead
//! that lets nobody new in.

use std::ops::Range;
use std::path::Path;

use protocol::identity::IdentityPattern;
use toml_edit::{Document, Item, Table, Value};

use super::CONFIG;
use super::rules::{MARK, rewrite};
use crate::problem::Problem;

/// Comments of our own above a rule, which go with it.
const OURS: [&str; 2] = [
    MARK,
    "# pg_rewind and the slot-sync worker are ordinary connections.",
];

/// Which rules go.
pub(crate) struct Going<'a> {
    /// Whom they name.
    pub(crate) identities: &'a [IdentityPattern],
    /// Only those that an invitation has written.
    pub(crate) marked_only: bool,
    /// This node itself, as rules have it: what is left where the last one goes.
    pub(crate) own: Option<String>,
}

/// Takes them out; how many they were.
pub(crate) fn dismiss(directory: &Path, going: &Going<'_>) -> Result<usize, Vec<Problem>> {
    let taken_out = rewrite(directory, |old| {
        without(old, going).map_err(|why| {
            Problem::new(
                "M05",
                format!(
                    "the rules cannot be taken out of {}",
                    directory.join(CONFIG).display()
                ),
                why,
                "take them out by hand, then run this again",
            )
        })
    });
    Ok(taken_out?.unwrap_or_default())
}

/// The text without them, and how many they were.
pub(crate) fn without(text: &str, going: &Going<'_>) -> Result<(String, usize), String> {
    let document = Document::parse(text).map_err(|error| error.to_string())?;
    let servers = document
        .get("server")
        .and_then(Item::as_array_of_tables)
        .into_iter()
        .flat_map(|servers| servers.iter());
    let (mut cuts, mut count) = (Vec::new(), 0);
    for server in servers {
        let (all, found) = match server.get("allow") {
            Some(Item::ArrayOfTables(rules)) => {
                let cuts = rules.iter().filter_map(|rule| {
                    let place = place_of_table(text, rule)?;
                    going
                        .takes(rule.get("identity")?.as_str()?, &text[place.clone()])
                        .then_some(place)
                });
                (rules.len(), cuts.collect::<Vec<_>>())
            }
            Some(Item::Value(Value::Array(rules))) => {
                let cuts = rules.iter().filter_map(|rule| {
                    let identity = rule.as_inline_table()?.get("identity")?.as_str()?;
                    going.takes(identity, "").then(|| rule.span()).flatten()
                });
                (rules.len(), cuts.collect())
            }
            _ => continue,
        };
        count += found.len();
        let inline = matches!(server.get("allow"), Some(Item::Value(_)));
        for (index, place) in found.iter().enumerate() {
            let instead = match (found.len() == all && index == 0, &going.own) {
                (false, _) => String::new(),
                (true, Some(own)) => nobody_else(own, inline),
                (true, None) => {
                    return Err("they are the last, without which any certificate of the CA would be let in".to_owned());
                }
            };
            let place = match (inline, instead.is_empty()) {
                (true, true) => with_comma(text, place.clone()),
                (false, true) => with_blank_line(text, place.clone()),
                (_, false) => place.clone(),
            };
            cuts.push((place, instead));
        }
    }
    let mut new = text.to_owned();
    for (place, instead) in cuts.into_iter().rev() {
        new.replace_range(place, &instead);
    }
    Ok((new, count))
}

impl Going<'_> {
    fn takes(&self, identity: &str, rule: &str) -> bool {
        let named = identity
            .parse()
            .is_ok_and(|pattern| self.identities.iter().any(|going| same(going, &pattern)));
        named && (!self.marked_only || rule.starts_with(MARK))
    }
}

/// Host names are the same in either case.
fn same(one: &IdentityPattern, other: &IdentityPattern) -> bool {
    match (one, other) {
        (IdentityPattern::Dns(_), IdentityPattern::Dns(_)) => {
            one.to_string().eq_ignore_ascii_case(&other.to_string())
        }
        _ => one == other,
    }
}

fn nobody_else(own: &str, inline: bool) -> String {
    let identity = toml::Value::from(own).to_string();
    if inline {
        format!("{{ identity = {identity} }}")
    } else {
        format!(
            "# This node itself: without any rule every certificate of the CA would be let in.\n\
             [[server.allow]]\nidentity = {identity}\n"
        )
    }
}

/// From its header, with our own comment above it, to the end of its last line.
fn place_of_table(text: &str, rule: &Table) -> Option<Range<usize>> {
    let keys = rule
        .iter()
        .filter_map(|(key, value)| Some((rule.key(key)?.span()?.start, value.span()?.end)));
    let (first, last) = keys.reduce(|(a, b), (c, d)| (a.min(c), b.max(d)))?;
    let mut start = line_start(text, first);
    while !text.get(start..)?.trim_start().starts_with("[[") {
        start = line_start(text, start.checked_sub(1)?);
    }
    while let Some(above) = start.checked_sub(1).map(|end| line_start(text, end)) {
        if !OURS.iter().any(|ours| text[above..].starts_with(ours)) {
            break;
        }
        start = above;
    }
    let end = text
        .get(last..)?
        .find('\n')
        .map_or(text.len(), |at| last + at + 1);
    Some(start..end)
}

fn line_start(text: &str, at: usize) -> usize {
    text.get(..at)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |at| at + 1)
}

/// Of two blank lines that would meet, one goes.
fn with_blank_line(text: &str, place: Range<usize>) -> Range<usize> {
    let (before, after) = (&text[..place.start], &text[place.end..]);
    let meet = before.ends_with("\n\n") && (after.is_empty() || after.starts_with('\n'));
    place.start - usize::from(meet)..place.end
}

/// The comma behind it, or else the one before it, goes too.
fn with_comma(text: &str, place: Range<usize>) -> Range<usize> {
    let after = &text[place.end..];
    let rest = after.trim_start();
    if let Some(behind) = rest.strip_prefix(',') {
        let kept = behind.trim_start_matches(' ').len();
        return place.start..text.len() - kept;
    }
    let before = text[..place.start].trim_end();
    match before.strip_suffix(',') {
        Some(kept) => kept.len()..place.end,
        None => place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# ours\n[[server]]\nlisten = \"0.0.0.0:5443\" # all\n\n# Bob's, ask him\n[[server.allow]] # b\nidentity = \"cn:b\"\nfrom = [\n  \"10.0.0.0/8\", # home\n]\n# after b\n\n# Written by `pgtlsproxy invite`; it goes.\n[[server.allow]]\nidentity = \"cn:c\"\n\n[log]\nlevel = \"info\"\n";

    fn going<'a>(identities: &'a [IdentityPattern], marked_only: bool) -> Going<'a> {
        Going {
            identities,
            marked_only,
            own: Some("cn:self".to_owned()),
        }
    }

    fn named(names: &[&str]) -> Vec<IdentityPattern> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn the_rule_goes_and_every_other_byte_stays() {
        let (new, count) = without(TEXT, &going(&named(&["cn:b"]), false)).unwrap();
        let rule =
            "[[server.allow]] # b\nidentity = \"cn:b\"\nfrom = [\n  \"10.0.0.0/8\", # home\n]\n";
        assert_eq!((new, count), (TEXT.replace(rule, ""), 1));
        let (new, count) = without(TEXT, &going(&named(&["cn:c"]), false)).unwrap();
        let rule =
            "\n# Written by `pgtlsproxy invite`; it goes.\n[[server.allow]]\nidentity = \"cn:c\"\n";
        assert_eq!((new, count), (TEXT.replace(rule, ""), 1));
        assert_eq!(
            without(TEXT, &going(&named(&["cn:d", "dns:c"]), false)).unwrap(),
            (TEXT.to_owned(), 0)
        );
    }

    #[test]
    fn with_an_invitation_only_its_own_rule_goes() {
        assert_eq!(without(TEXT, &going(&named(&["cn:b"]), true)).unwrap().1, 0);
        assert_eq!(without(TEXT, &going(&named(&["cn:c"]), true)).unwrap().1, 1);
    }

    #[test]
    fn without_its_last_rule_a_server_lets_nobody_new_in() {
        let (new, count) = without(TEXT, &going(&named(&["cn:b", "cn:c"]), false)).unwrap();
        assert_eq!(count, 2);
        assert!(
            new.contains("[[server.allow]]\nidentity = \"cn:self\"\n"),
            "{new}"
        );
        assert_eq!(new.matches("[[server.allow]]").count(), 1, "{new}");
        let last = Going {
            own: None,
            ..going(&[], false)
        };
        let all = named(&["cn:b", "cn:c"]);
        assert!(
            without(
                TEXT,
                &Going {
                    identities: &all,
                    ..last
                }
            )
            .is_err()
        );
    }

    #[test]
    fn of_rules_on_one_line_one_goes() {
        for (text, identity, expected) in [
            (
                "[[server]]\nallow = [{ identity = \"cn:a\" }, { identity = \"cn:b\" }] # x\n",
                "cn:a",
                "[[server]]\nallow = [{ identity = \"cn:b\" }] # x\n",
            ),
            (
                "[[server]]\nallow = [{ identity = \"cn:a\" }, { identity = \"cn:b\" }]\n",
                "cn:b",
                "[[server]]\nallow = [{ identity = \"cn:a\" }]\n",
            ),
            (
                "[[server]]\nallow = [{ identity = \"cn:a\" }]\n",
                "cn:a",
                "[[server]]\nallow = [{ identity = \"cn:self\" }]\n",
            ),
        ] {
            let (new, count) = without(text, &going(&named(&[identity]), false)).unwrap();
            assert_eq!((&*new, count), (expected, 1), "{identity}");
            Document::parse(new).unwrap();
        }
    }
}
