//! pg_hba.conf and pg_ident.conf: who gets in by which line, and the one block that `setup` puts in (documentation,
//! chapter 20). Texts and values in, texts and values out; files only through [`Files`].

mod decide;
mod rule;
mod token;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

pub(crate) use decide::{Decision, Kind, Login, Via, first_match};
pub(crate) use rule::{Address, Rule, Transport, Word, read};
pub(crate) use token::quote;

use super::block;
use super::files::{Files, NotUnderstood, Overlay};
use super::version::Major;

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// The file with a block of `rules` before the first line that would decide one of `logins`. Of a block of an earlier run
/// those lines stay that are for other logins, and the block does not move down.
pub(crate) fn with_block(
    files: &dyn Files,
    path: &Path,
    major: Major,
    rules: &[String],
    logins: &[Login<'_>],
) -> Result<Vec<u8>, NotUnderstood> {
    let text = files
        .read(path)
        .map_err(|error| NotUnderstood::new(path, 0, error.to_string()))?;
    let bare = without_block(files, path)?;
    let known = block::find(&text);
    let view = Overlay {
        below: files,
        new: BTreeMap::from([(path.to_owned(), bare.clone())]),
    };
    let existing = read(&view, path, major)?;
    let before = logins
        .iter()
        .filter_map(|login| match first_match(&existing, login) {
            Decision::Line(rule) | Decision::CannotTell(rule, _) => Some(rule.top_line),
            Decision::Nothing => None,
        })
        .min();
    let lines = token::lines(path, &bare, major)?;
    let at = before
        .and_then(|number| lines.iter().find(|line| line.number == number))
        .map_or(bare.len(), |line| line.span.start);
    let mut rules: Vec<Vec<u8>> = rules.iter().map(|rule| rule.clone().into_bytes()).collect();
    let Some((before, inside)) = known else {
        return Ok(block::insert(&bare, at, &rules));
    };
    let decided: Vec<_> = rules
        .iter()
        .map(|rule| {
            Ok(subjects(path, rule, major)?
                .pop()
                .map(|(subject, _)| subject))
        })
        .collect::<Result<_, NotUnderstood>>()?;
    for (subject, line) in subjects(path, inside, major)? {
        if !decided.contains(&Some(subject)) {
            rules.push(line);
        }
    }
    Ok(block::insert(&bare, at.min(before), &rules))
}

/// What a line is for: its type, databases and users.
type Subject = Vec<Vec<Vec<u8>>>;

fn subjects(
    path: &Path,
    text: &[u8],
    major: Major,
) -> Result<Vec<(Subject, Vec<u8>)>, NotUnderstood> {
    let lines = token::lines(path, text, major)?.into_iter();
    let records = lines.filter(|line| !line.fields.is_empty());
    let subject = |line: &token::Line| {
        let fields = line.fields.iter().take(3);
        fields
            .map(|words| words.iter().map(|word| word.text.clone()).collect())
            .collect()
    };
    Ok(records
        .map(|line| {
            let written = text.get(line.span.clone()).unwrap_or_default();
            (subject(&line), written.trim_ascii_end().to_vec())
        })
        .collect())
}

/// pg_ident.conf with a block of `lines` at its end: its order does not matter.
pub(crate) fn ident_with_block(
    files: &dyn Files,
    path: &Path,
    major: Major,
    lines: &[String],
) -> Result<Vec<u8>, NotUnderstood> {
    let bare = without_block(files, path)?;
    // It ends in no continuation, which would swallow the block.
    token::lines(path, &bare, major)?;
    let lines: Vec<Vec<u8>> = lines.iter().map(|line| line.clone().into_bytes()).collect();
    Ok(block::insert(&bare, bare.len(), &lines))
}

fn without_block(files: &dyn Files, path: &Path) -> Result<Vec<u8>, NotUnderstood> {
    let text = files
        .read(path)
        .map_err(|error| NotUnderstood::new(path, 0, error.to_string()))?;
    block::without(&text).map_err(|unpaired| {
        let why =
            "a mark of pgtlsproxy without its other; remove both marks and what is between them";
        NotUnderstood::new(path, unpaired.line, why)
    })
}

/// The lines that let somebody on this host in without asking anything.
pub(crate) fn loopback_trust(rules: &[Rule]) -> Vec<&Rule> {
    let admits_loopback = |rule: &Rule| match &rule.address {
        None => true,
        Some(Address::Net { address, .. }) if address.is_loopback() => true,
        Some(address) => LOOPBACK
            .iter()
            .any(|peer| address.admits(*peer) != Some(false)),
    };
    let trusting = rules.iter().filter(|rule| rule.method == "trust");
    trusting.filter(|rule| admits_loopback(rule)).collect()
}

/// The file with other methods on these of its lines; all else stays.
pub(crate) fn with_methods(text: &[u8], changes: &[(&Rule, &str)]) -> Vec<u8> {
    let mut changes = changes.to_vec();
    changes.sort_by_key(|(rule, _)| rule.method_span.start);
    let mut new = Vec::with_capacity(text.len());
    let mut done = 0;
    for (rule, method) in changes {
        new.extend(text.get(done..rule.method_span.start).unwrap_or_default());
        new.extend(method.as_bytes());
        done = rule.method_span.end;
    }
    new.extend(text.get(done..).unwrap_or_default());
    new
}

#[cfg(test)]
mod tests {
    use super::super::files::memory::Memory;
    use super::super::version::{V13, V15, V18};
    use super::*;

    const DEBIAN: &str = "# PostgreSQL Client Authentication\n\n# Database administrative login\nlocal   all             postgres                                peer\n\n# TYPE  DATABASE\nlocal   all             all                                     peer\nhost    all             all             127.0.0.1/32            scram-sha-256\nlocal   replication     all                                     peer\nhost    replication     all             127.0.0.1/32            scram-sha-256\n";

    fn physical(role: &str) -> Login<'_> {
        Login::new(Kind::Physical, role, Via::Socket)
    }

    fn put(text: &str, logins: &[Login<'_>]) -> String {
        let files = Memory::of(&[("/h", text)]);
        let rules = ["local replication rep peer map=pgtlsproxy".to_owned()];
        let new = with_block(&files, Path::new("/h"), V18, &rules, logins).unwrap();
        String::from_utf8(new).unwrap()
    }

    #[test]
    fn the_block_stands_before_the_first_line_that_would_decide() {
        let new = put(DEBIAN, &[physical("rep")]);
        let block =
            "# pgtlsproxy begin\nlocal replication rep peer map=pgtlsproxy\n# pgtlsproxy end\n";
        let (before, after) = new.split_once(block).unwrap();
        assert!(after.starts_with("local   replication     all"), "{new}");
        assert_eq!([before, after].concat(), DEBIAN, "all else stays");
        assert_eq!(put(&new, &[physical("rep")]), new, "twice changes nothing");

        let ordinary = Login::new(Kind::Ordinary { database: "app" }, "rep", Via::Socket);
        let new = put(DEBIAN, &[physical("rep"), ordinary]);
        let (_, after) = new.split_once(block).unwrap();
        assert!(after.starts_with("local   all             all"), "{new}");
    }

    #[test]
    fn a_rule_that_only_a_name_server_knows_might_decide() {
        let text = "host replication all db.example.com trust\nhost replication all all trust\n";
        let login = Login::new(Kind::Physical, "rep", Via::Tcp(LOOPBACK[0]));
        assert!(put(text, &[login]).starts_with("# pgtlsproxy begin"));
    }

    #[test]
    fn a_block_before_an_included_line_stands_before_the_include() {
        let files = Memory::of(&[
            ("/h", "local all all peer\ninclude more\n"),
            ("/more", "\n\nlocal replication all reject\n"),
        ]);
        let new = with_block(&files, Path::new("/h"), V18, &[], &[physical("rep")]).unwrap();
        let expected = "local all all peer\n# pgtlsproxy begin\n# pgtlsproxy end\ninclude more\n";
        assert_eq!(String::from_utf8(new).unwrap(), expected);
    }

    #[test]
    fn trust_on_loopback_is_found_and_replaced_in_its_place() {
        let text = "local all all \"trust\"\nhost all all 127.0.0.1/8 trust # keep\nhost all all 10.0.0.0/8 trust\nhost all all \\\n ::1/128 trust\nhost all all 0.0.0.0/0 reject\nhost all all samehost trust\nhost all all 127.0.0.9/32 trust\n";
        let files = Memory::of(&[("/h", text)]);
        let rules = read(&files, Path::new("/h"), V15).unwrap();
        let found = loopback_trust(&rules);
        let lines: Vec<usize> = found.iter().map(|rule| rule.place.line).collect();
        assert_eq!(lines, [1, 2, 4, 7, 8]);
        let changes: Vec<_> = found
            .into_iter()
            .map(|rule| (rule, "scram-sha-256"))
            .collect();
        let new = with_methods(text.as_bytes(), &changes);
        let expected = text
            .replace("\"trust\"", "trust")
            .replace("trust", "scram-sha-256");
        let expected = expected.replace("10.0.0.0/8 scram-sha-256", "10.0.0.0/8 trust");
        assert_eq!(String::from_utf8(new).unwrap(), expected);
    }

    #[test]
    fn what_postgres_would_refuse_is_named_with_its_line() {
        for (line, major) in [
            ("locale all all trust", V18),
            ("LOCAL all all trust", V18),
            ("local all", V18),
            ("local all all", V18),
            ("local,host all all trust", V18),
            ("host all all 127.0.0.1 trust", V18),
            ("host all all 127.0.0.1/33 trust", V18),
            ("host all all 127.0.0.1/ trust", V18),
            ("host all all ::1 255.255.255.255 trust", V18),
            ("host all all db.example.com/24 trust", V18),
            ("host all all 127.1/8 trust", V18),
            ("host all all ::1/128 peer", V18),
            ("local all all magic", V18),
            ("local all all peer map", V18),
            ("local all @nowhere peer", V18),
            ("include nowhere", V18),
            ("include nowhere", V15),
            ("local all all \\\n peer", V13),
        ] {
            let text = format!("# a comment\n{line}\n");
            let files = Memory::of(&[("/h", &text)]);
            let fault = read(&files, Path::new("/h"), major).unwrap_err();
            assert_eq!(
                fault.place.line,
                if line == "include nowhere" && major == V18 {
                    0
                } else {
                    2
                },
                "{line}"
            );
        }
    }
}
