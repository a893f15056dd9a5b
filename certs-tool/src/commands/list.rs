//! `list`: what was issued, and what became of it.

use std::path::Path;

use protocol::escape::escape;
use serde::Serialize;

use crate::authority::CA_CERTIFICATE;
use crate::cli::List;
use crate::commands::{print, print_json};
use crate::ledger::{Issued, LEDGER, Ledger};
use crate::report::{Date, Failure};

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    issued: Issued,
    state: &'static str,
}

pub(super) fn run(directory: &Path, arguments: &List) -> Result<(), Failure> {
    if !directory.join(LEDGER).exists() && !directory.join(CA_CERTIFICATE).exists() {
        return Err(Failure::new(
            format!("there is no CA in {}", directory.display()),
            "",
            "`certs-tool ca init` makes one; --dir says where it is",
        ));
    }
    let now = Date::now();
    let ledger = Ledger::read(directory)?;
    let issued = match arguments.expiring {
        None => ledger.issued(),
        Some(within) => {
            let end = now.plus(i64::try_from(within.as_secs()).unwrap_or(i64::MAX));
            // What has a successor may end in peace.
            let mut newest = ledger.newest();
            newest.retain(|issued| {
                let given_up = issued.revoked.is_some() || issued.dropped.is_some();
                !given_up && issued.record.not_after <= end
            });
            newest
        }
    };
    let rows: Vec<Row> = issued
        .into_iter()
        .map(|issued| Row {
            state: state(&issued, now),
            issued,
        })
        .collect();
    if arguments.json {
        return print_json(&rows);
    }
    if rows.is_empty() {
        eprintln!(
            "{}",
            match arguments.expiring {
                None => "Nothing was issued yet.",
                Some(_) => "Nothing ends within this time.",
            }
        );
        return Ok(());
    }
    let width = rows
        .iter()
        .map(|row| escape(&row.issued.record.name).chars().count())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut table = format!(
        "{:width$}  {:10}  {:13}  {:32}  NAMES\n",
        "NAME", "EXPIRES", "STATE", "SERIAL"
    );
    for Row { issued, state } in &rows {
        let record = &issued.record;
        let names: Vec<String> = record.names.iter().map(escape).collect();
        let (name, serial, day) = (
            escape(&record.name),
            escape(&record.serial),
            record.not_after.day(),
        );
        table.push_str(&format!(
            "{name:width$}  {day:10}  {state:13}  {serial:32}  {}\n",
            names.join(" ")
        ));
    }
    print(&table)
}

fn state(issued: &Issued, now: Date) -> &'static str {
    if issued.revoked.is_some() {
        "revoked"
    } else if issued.dropped.is_some() {
        "ca dropped"
    } else if now > issued.record.not_after {
        "expired"
    } else if now < issued.record.not_before {
        "not yet valid"
    } else {
        "valid"
    }
}
