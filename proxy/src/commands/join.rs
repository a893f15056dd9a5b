//! `pgtlsproxy join`: from a token to the files of a node.

use std::process::ExitCode;

use protocol::escape::visible;
use zeroize::Zeroizing;

use super::{secret, standby};
use crate::cli::JoinFlags;
use crate::enrol::{Join, Member};
use crate::problem::Problem;
use crate::renew::TIMER_UNIT;
use crate::setup::{self, Way};

/// Bytes that are shown of what another node says.
const TEXT: usize = 512;

pub(super) fn run(flags: JoinFlags) -> Result<ExitCode, Vec<Problem>> {
    let token = Zeroizing::new(flags.token);
    let token = if *token == "-" { read_line()? } else { token };
    let wishes = standby::wishes(&flags.standby, &flags.dir, false)?;
    setup::ensure_user(&flags.dir, &flags.standby.os_user).map_err(|problem| vec![problem])?;
    let directory = flags.dir.clone();
    let join = Join {
        directory: flags.dir,
        listen: flags.listen,
        postgres: flags.postgres,
        socket_directory: flags.socket_dir,
        os_user: flags.standby.os_user.clone(),
        force: flags.force,
    };
    let member = join.run(&token)?;
    show(&member);
    // The certificate is here already: that it will not renew itself is no reason to end.
    let timer_written = setup::write_timer(&directory).unwrap_or_else(|problem| {
        eprintln!("warning: {problem}; until then call `pgtlsproxy renew` from cron");
        false
    });
    let place = setup::standby_place(wishes.cluster.as_deref(), wishes.pgdata.as_deref());
    let next = match place {
        _ if flags.no_setup => "pgtlsproxy setup standby",
        None => "pgtlsproxy setup standby --pgdata DIR (no PostgreSQL is found by itself)",
        Some(true) if wishes.way != Way::Replace => {
            "pgtlsproxy setup standby --replace (PostgreSQL here holds data already: they are moved aside, never deleted)"
        }
        Some(_) => return standby::make(&wishes, false),
    };
    if timer_written {
        eprintln!("Its certificate renews itself by: systemctl enable --now {TIMER_UNIT}");
    }
    eprintln!(
        "Next: pgtlsproxy run --config {}\n      {next}\n      (PostgreSQL here goes out by host={} port=5442)",
        member.config.display(),
        member.socket_directory.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn read_line() -> Result<Zeroizing<String>, Vec<Problem>> {
    secret::line().map_err(|error| {
        vec![Problem::new(
            "E01",
            "no token can be read",
            error.to_string(),
            "give the line on standard input",
        )]
    })
}

fn show(member: &Member) {
    eprintln!(
        "{} is a node: {}, certificate until {}.",
        member.name,
        member.config.display(),
        member.not_after.day()
    );
    for warning in &member.warnings {
        eprintln!("warning: {warning}");
    }
    match &member.probed {
        Ok(probed) => {
            if !probed.admitted {
                eprintln!(
                    "warning: {} does not admit it for replication yet; its rules decide",
                    member.inviter
                );
            }
            if !probed.postgres.reached {
                eprintln!(
                    "warning: the PostgreSQL behind {} does not answer: {}",
                    member.inviter,
                    visible(&probed.postgres.why, TEXT)
                );
            }
        }
        Err(why) => eprintln!(
            "warning: {} was not reached with the new certificate: {why}",
            member.inviter
        ),
    }
}
