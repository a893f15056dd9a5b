//! `pgtlsproxy join`: from a token to the files of a node.

use std::io::{BufRead, Read};

use zeroize::Zeroizing;

use crate::cli::JoinFlags;
use crate::enrol::{Join, Member};
use crate::problem::Problem;
use crate::renew::TIMER_UNIT;

/// Longer than any token; what is, is none.
const LONGEST_LINE: u64 = 4096;

pub(super) fn run(flags: JoinFlags) -> Result<(), Vec<Problem>> {
    let token = Zeroizing::new(flags.token);
    let token = if *token == "-" { read_line()? } else { token };
    let join = Join {
        directory: flags.dir,
        listen: flags.listen,
        postgres: flags.postgres,
        socket_directory: flags.socket_dir,
        force: flags.force,
    };
    show(&join.run(&token)?);
    Ok(())
}

fn read_line() -> Result<Zeroizing<String>, Vec<Problem>> {
    let mut line = Zeroizing::new(String::new());
    std::io::stdin()
        .lock()
        .take(LONGEST_LINE)
        .read_line(&mut line)
        .map_err(|error| {
            vec![Problem::new(
                "E01",
                "no token can be read",
                error.to_string(),
                "give the line on standard input",
            )]
        })?;
    Ok(line)
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
                    member.inviter, probed.postgres.why
                );
            }
        }
        Err(why) => eprintln!(
            "warning: {} was not reached with the new certificate: {why}",
            member.inviter
        ),
    }
    if member.timer_written {
        eprintln!("Its certificate renews itself by: systemctl enable --now {TIMER_UNIT}");
    }
    eprintln!(
        "Next: pgtlsproxy run --config {}\n      then, as PostgreSQL's OS user, with the role that the primary has for it:\n      \
         pg_basebackup -d 'host={} port=5442 user=replicator application_name={}' -R -D DATA_DIRECTORY",
        member.config.display(),
        member.socket_directory.display(),
        member.name
    );
}
