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
    pub(crate) which: Which,
    /// This node itself, as rules have it: what is left where the last one goes.
    pub(crate) own: Option<String>,
}

/// Which of the rules that name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    /// Those with an invitation's mark.
    Marked,
    /// What an invitation has added where there was none: to the first `[[server]]`, with its mark, or in a list, where
    /// none can stand.
    Added,
}

/// A rule where it stands.
struct Found {
    place: Range<usize>,
    goes: bool,
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
    for (index, server) in servers.enumerate() {
        let allow = server.get("allow");
        let found: Vec<Found> = match allow {
            Some(Item::ArrayOfTables(rules)) => rules
                .iter()
                .filter_map(|rule| {
                    let place = place_of_table(text, rule)?;
                    let identity = rule.get("identity")?.as_str()?;
                    let goes = going.takes(identity, index, Some(&text[place.clone()]));
                    Some(Found { place, goes })
                })
                .collect(),
            Some(Item::Value(Value::Array(rules))) => rules
                .iter()
                .filter_map(|rule| {
                    let identity = rule.as_inline_table()?.get("identity")?.as_str()?;
                    let goes = going.takes(identity, index, None);
                    Some(Found {
                        place: rule.span()?,
                        goes,
                    })
                })
                .collect(),
            _ => continue,
        };
        let listed = matches!(allow, Some(Item::Value(_)));
        let mut places = if listed {
            with_commas(text, &found)
        } else {
            with_blank_lines(text, &found)
        };
        count += places.len();
        if places.len() == found.len()
            && let Some(first) = found.first()
        {
            let own = going.own.as_ref().ok_or(
                "they are the last, without which any certificate of the CA would be let in",
            )?;
            cuts.push((first.place.clone(), nobody_else(own, listed)));
            places.remove(0);
        }
        cuts.extend(places.into_iter().map(|place| (place, String::new())));
    }
    let mut new = text.to_owned();
    for (place, instead) in cuts.into_iter().rev() {
        new.replace_range(place, &instead);
    }
    Document::parse(&*new).map_err(|error| format!("what would be left is not TOML: {error}"))?;
    Ok((new, count))
}

impl Going<'_> {
    /// `server` counts from 0; `text` is that of a rule with a table of its own.
    fn takes(&self, identity: &str, server: usize, text: Option<&str>) -> bool {
        let named = identity
            .parse()
            .is_ok_and(|pattern| self.identities.iter().any(|going| same(going, &pattern)));
        let marked = text.map(|text| text.starts_with(MARK));
        named
            && match self.which {
                Which::All => true,
                Which::Marked => marked.unwrap_or(false),
                Which::Added => server == 0 && marked.unwrap_or(true),
            }
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

/// The places of those that go; of two blank lines that would meet, one goes too.
fn with_blank_lines(text: &str, found: &[Found]) -> Vec<Range<usize>> {
    let going = found.iter().filter(|rule| rule.goes);
    going
        .map(|Found { place, .. }| {
            let (before, after) = (&text[..place.start], &text[place.end..]);
            let meet = before.ends_with("\n\n") && (after.is_empty() || after.starts_with('\n'));
            place.start - usize::from(meet)..place.end
        })
        .collect()
}

/// The places of those that go from a list, each with one comma: the one behind it, or the one before it where nothing
/// stays up to the end of the list, and that has none behind its last.
fn with_commas(text: &str, found: &[Found]) -> Vec<Range<usize>> {
    let behind = |place: &Range<usize>| {
        let rest = text[place.end..].trim_start().strip_prefix(',')?;
        Some(text.len() - rest.trim_start_matches(' ').len())
    };
    let mut at_the_end = found
        .last()
        .is_some_and(|last| behind(&last.place).is_none());
    let mut places = Vec::new();
    for Found { place, goes } in found.iter().rev() {
        at_the_end &= goes;
        if !goes {
            continue;
        }
        let before = || text[..place.start].trim_end().strip_suffix(',');
        places.push(if at_the_end {
            before().map_or(place.start, str::len)..place.end
        } else {
            place.start..behind(place).unwrap_or(place.end)
        });
    }
    places.reverse();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# ours\n[[server]]\nlisten = \"0.0.0.0:5443\" # all\n\n# Bob's, ask him\n[[server.allow]] # b\nidentity = \"cn:b\"\nfrom = [\n  \"10.0.0.0/8\", # home\n]\n# after b\n\n# Written by `pgtlsproxy invite`; it goes.\n[[server.allow]]\nidentity = \"cn:c\"\n\n[log]\nlevel = \"info\"\n";

    fn going<'a>(identities: &'a [IdentityPattern], which: Which) -> Going<'a> {
        Going {
            identities,
            which,
            own: Some("cn:self".to_owned()),
        }
    }

    fn named(names: &[&str]) -> Vec<IdentityPattern> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn the_rule_goes_and_every_other_byte_stays() {
        let (new, count) = without(TEXT, &going(&named(&["cn:b"]), Which::All)).unwrap();
        let rule =
            "[[server.allow]] # b\nidentity = \"cn:b\"\nfrom = [\n  \"10.0.0.0/8\", # home\n]\n";
        assert_eq!((new, count), (TEXT.replace(rule, ""), 1));
        let (new, count) = without(TEXT, &going(&named(&["cn:c"]), Which::All)).unwrap();
        let rule =
            "\n# Written by `pgtlsproxy invite`; it goes.\n[[server.allow]]\nidentity = \"cn:c\"\n";
        assert_eq!((new, count), (TEXT.replace(rule, ""), 1));
        assert_eq!(
            without(TEXT, &going(&named(&["cn:d", "dns:c"]), Which::All)).unwrap(),
            (TEXT.to_owned(), 0)
        );
    }

    #[test]
    fn with_an_invitation_only_its_own_rule_goes() {
        assert_eq!(
            without(TEXT, &going(&named(&["cn:b"]), Which::Marked))
                .unwrap()
                .1,
            0
        );
        assert_eq!(
            without(TEXT, &going(&named(&["cn:c"]), Which::Marked))
                .unwrap()
                .1,
            1
        );
    }

    #[test]
    fn without_its_last_rule_a_server_lets_nobody_new_in() {
        let (new, count) = without(TEXT, &going(&named(&["cn:b", "cn:c"]), Which::All)).unwrap();
        assert_eq!(count, 2);
        assert!(
            new.contains("[[server.allow]]\nidentity = \"cn:self\"\n"),
            "{new}"
        );
        assert_eq!(new.matches("[[server.allow]]").count(), 1, "{new}");
        let last = Going {
            own: None,
            ..going(&[], Which::All)
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
    fn of_rules_on_one_line_some_go() {
        let list = |rules: &str| {
            let rules: Vec<_> = rules
                .chars()
                .map(|name| format!("{{ identity = \"cn:{name}\" }}"))
                .collect();
            format!("[{}]", rules.join(", "))
        };
        for (before, identity, after) in [
            ("ab", "cn:a", "b"),
            ("ab", "cn:b", "a"),
            ("bab", "cn:b", "a"),
            ("abb", "cn:b", "a"),
            ("bba", "cn:b", "a"),
            ("abba", "cn:b", "aa"),
            ("babb", "cn:b", "a"),
            ("b", "cn:b", "s"),
            ("bbb", "cn:b", "s"),
        ] {
            for comma in ["", ",", ", "] {
                let text = |rules: &str| {
                    let list = list(rules);
                    format!(
                        "[[server]]\nallow = {}{comma}]",
                        list.strip_suffix(']').unwrap()
                    )
                };
                let named = named(&[identity]);
                let going = Going {
                    own: Some("cn:s".to_owned()),
                    ..going(&named, Which::All)
                };
                let (new, count) = without(&text(before), &going).unwrap();
                let bare = |text: &str| text.replace(' ', "");
                assert_eq!(bare(&new), bare(&text(after)), "{before}{comma}");
                assert_eq!(count, before.matches(&identity[3..]).count());
            }
        }
    }

    #[test]
    fn an_interrupted_invitation_takes_only_what_it_added() {
        let marked = format!("{MARK}; it goes.\n[[server.allow]]\nidentity = \"cn:b\"\n");
        let by_hand = "[[server.allow]]\nidentity = \"cn:b\"\n";
        let other = "[[server]]\n";
        for (text, gone) in [
            (format!("{other}{marked}{other}{by_hand}"), Some(&*marked)),
            (format!("{other}{by_hand}"), None),
        ] {
            let named = named(&["cn:b"]);
            let going = going(&named, Which::Added);
            let (new, count) = without(&text, &going).unwrap();
            assert_eq!(count, usize::from(gone.is_some()), "{new}");
            assert!(new.ends_with(&format!("{other}{by_hand}")), "{new}");
        }
        let text = "[[server]]\nallow = [{ identity = \"cn:a\" }, { identity = \"cn:b\" }]\n";
        assert_eq!(
            without(text, &going(&named(&["cn:b"]), Which::Added))
                .unwrap()
                .1,
            1
        );
        assert_eq!(
            without(text, &going(&named(&["cn:b"]), Which::Marked))
                .unwrap()
                .1,
            0
        );
    }
}
