//! What a node leaves behind in a running server: its slot, and settings that still wait for it (documentation, 20.6.2:
//! synchronous_standby_names, synchronized_standby_slots).

use super::plan::slot_name;
use super::server::{Server, literal};
use super::version::{Major, Thing, has};
use crate::problem::Problem;

/// A physical slot of some name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotState {
    Absent,
    Idle,
    /// Held by this backend.
    Active(u32),
    /// A logical one has the name.
    OfAnotherKind,
}

impl Server {
    /// The slot of this name.
    pub(crate) fn slot(&self, major: Major, name: &str) -> Result<SlotState, Problem> {
        if !has(major, Thing::Slots) {
            return Ok(SlotState::Absent);
        }
        // active_pid is of 9.5; before, it is not known who holds one.
        let pid = if major >= super::version::V9_5 {
            "active_pid"
        } else {
            "0"
        };
        let found = self.query(&format!(
            "SELECT slot_type, active, coalesce({pid}, 0) FROM pg_replication_slots WHERE slot_name = {}",
            literal(name)
        ))?;
        let mut fields = found.split('\t');
        Ok(match (fields.next(), fields.next(), fields.next()) {
            (Some("physical"), Some("t"), pid) => {
                SlotState::Active(pid.and_then(|pid| pid.parse().ok()).unwrap_or(0))
            }
            (Some("physical"), Some(_), _) => SlotState::Idle,
            (Some(kind), Some(_), _) if !kind.is_empty() => SlotState::OfAnotherKind,
            _ => SlotState::Absent,
        })
    }

    /// Drops the slot unless it is in use; whether it did.
    pub(crate) fn drop_slot(&self, name: &str) -> Result<bool, Problem> {
        let slot = literal(name);
        let dropped = self.query(&format!(
            "\\set VERBOSITY verbose\nSELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = {slot} AND slot_type = 'physical' AND NOT active"
        ));
        let left = self.query(&format!(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = {slot}"
        ))?;
        match dropped {
            Ok(_) => Ok(left == "0"),
            // Taken in between: whoever asks looks again.
            Err(problem) if is_in_use(&problem.why) => Ok(false),
            Err(problem) => Err(problem),
        }
    }
}

/// Whether psql, told to be verbose, says object_in_use: in whatever language the server speaks.
fn is_in_use(said: &str) -> bool {
    said.contains("  55006: ")
}

/// A warning for each setting that names the node or its slot, and one if commits hang.
pub(crate) fn who_waits(
    server: &Server,
    major: Major,
    node: &str,
) -> Result<Vec<Problem>, Problem> {
    let settings = server.query(
        "SELECT name, setting, coalesce(sourcefile || ' line ' || sourceline, source) FROM pg_settings \
         WHERE name IN ('synchronous_standby_names', 'synchronized_standby_slots', 'synchronous_commit')",
    )?;
    let mut found = Vec::new();
    let (mut required, mut waits) = (0, true);
    for line in settings.lines() {
        let mut fields = line.split('\t');
        let (Some(name), Some(value), Some(place)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        match name {
            "synchronous_commit" => waits = !matches!(value, "off" | "local"),
            "synchronous_standby_names" => {
                let list = Synchronous::parse(value);
                required = list.required;
                if list.names.iter().any(|name| is_called(name, node)) {
                    found.push(still_waits(
                        name,
                        value,
                        place,
                        "commits wait for it, or for one that takes its place",
                    ));
                }
            }
            "synchronized_standby_slots" => {
                let names = Synchronous::parse(value).names;
                if names.iter().any(|slot| *slot == slot_name(node)) {
                    found.push(still_waits(
                        name,
                        value,
                        place,
                        "logical replication waits for that slot, which is gone",
                    ));
                }
            }
            _ => {}
        }
    }
    let primary = server.query("SELECT pg_is_in_recovery()")? == "f";
    if primary && waits && required > 0 {
        // `quorum` is of 10; before, and with FIRST, the next ones are `potential`.
        let present: usize = number(
            server,
            "SELECT count(*) FROM pg_stat_replication \
             WHERE state = 'streaming' AND sync_state IN ('sync', 'potential', 'quorum')",
        )?;
        if present < required {
            let event = if major >= super::version::V10 {
                "wait_event = 'SyncRep'"
            } else {
                "false"
            };
            let waiting: usize = number(
                server,
                &format!("SELECT count(*) FROM pg_stat_activity WHERE {event}"),
            )?;
            found.push(
                Problem::new(
                    "M18",
                    "commits hang now",
                    format!("synchronous_standby_names wants {required} standby(s), and {present} stream(s); {waiting} commit(s) wait"),
                    "take it out of synchronous_standby_names and reload: SELECT pg_reload_conf()",
                )
                .warning(),
            );
        }
    }
    Ok(found)
}

fn number(server: &Server, sql: &str) -> Result<usize, Problem> {
    Ok(server.query(sql)?.parse().unwrap_or(0))
}

fn still_waits(setting: &str, value: &str, place: &str, why: &str) -> Problem {
    Problem::new(
        "M17",
        format!("{setting} = '{value}' still names it"),
        format!("{why} ({place})"),
        format!(
            "take it out there (or ALTER SYSTEM SET {setting} = ...), then: SELECT pg_reload_conf()"
        ),
    )
    .warning()
}

/// Names of standbys are compared without regard to case (pg_strcasecmp in syncrep.c); a standby of ours is called as its
/// node or as its slot.
fn is_called(name: &str, node: &str) -> bool {
    name.eq_ignore_ascii_case(node) || name.eq_ignore_ascii_case(&slot_name(node))
}

/// What synchronous_standby_names says.
#[derive(Debug, PartialEq, Eq)]
struct Synchronous {
    /// How many must confirm.
    required: usize,
    names: Vec<String>,
}

impl Synchronous {
    /// `a, b`, `2 (a, b)`, `FIRST 2 (a, b)`, `ANY 2 (a, b)`; a name may stand in double quotes.
    fn parse(text: &str) -> Self {
        let text = text.trim();
        let (head, list) = match (first_outside_quotes(text, '('), text.strip_suffix(')')) {
            (Some(at), Some(inner)) => (&text[..at], inner.get(at + 1..).unwrap_or_default()),
            _ => ("", text),
        };
        let required = head.split_whitespace().last().and_then(|n| n.parse().ok());
        let mut names = Vec::new();
        let mut rest = list;
        while !rest.trim().is_empty() {
            let at = first_outside_quotes(rest, ',').unwrap_or(rest.len());
            let name = rest[..at].trim();
            let bare = name
                .strip_prefix('"')
                .and_then(|name| name.strip_suffix('"'));
            names.push(bare.map_or_else(|| name.to_owned(), |name| name.replace("\"\"", "\"")));
            rest = rest.get(at + 1..).unwrap_or_default();
        }
        Self {
            required: required.unwrap_or_else(|| usize::from(!names.is_empty())),
            names,
        }
    }
}

fn first_outside_quotes(text: &str, wanted: char) -> Option<usize> {
    let mut quoted = false;
    text.char_indices().find_map(|(at, c)| {
        quoted ^= c == '"';
        (c == wanted && !quoted).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_in_use_is_told_in_every_language() {
        let said = "psql:<stdin>:2: FEHLER:  55006: Replikations-Slot »s1« ist aktiv für PID 42\nORT:  slot.c:601";
        assert!(is_in_use(said));
        assert!(!is_in_use(
            "psql:<stdin>:2: ERROR:  42704: replication slot \"55006\" does not exist"
        ));
    }

    #[test]
    fn every_form_of_the_list_is_read() {
        for (text, required, names) in [
            ("", 0, &[][..]),
            ("db2", 1, &["db2"]),
            ("db2, \"db 3\"", 1, &["db2", "db 3"]),
            ("2 (a,b , c)", 2, &["a", "b", "c"]),
            ("FIRST 1 (a, \"x(,\"\"y\")", 1, &["a", "x(,\"y"]),
            ("any 3 (*)", 3, &["*"]),
        ] {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(
                Synchronous::parse(text),
                Synchronous { required, names },
                "{text}"
            );
        }
    }

    #[test]
    fn a_standby_is_called_as_its_node_or_its_slot() {
        for (name, node, called) in [
            ("DB-2", "db-2", true),
            ("db_2", "db-2", true),
            ("db3", "db2", false),
            ("*", "db2", false),
        ] {
            assert_eq!(is_called(name, node), called, "{name}");
        }
    }
}
