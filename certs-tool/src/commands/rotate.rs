//! `ca rotate`: one CA follows another; says at each stage what is to be copied where, and what comes next.

use std::fmt;
use std::path::Path;

use protocol::escape::escape;
use serde::Serialize;

use crate::authority::{NodeState, Rotation, Stage};
use crate::cli::{CaRotate, RotateCommand};
use crate::commands::{open, print, print_json};
use crate::report::{Date, Failure};

/// How far it is, and what is to be done.
#[derive(Serialize)]
struct Shown {
    stage: Stage,
    ca: ShownCa,
    next_ca: Option<ShownCa>,
    nodes: Vec<NodeState>,
    todo: Vec<String>,
}

#[derive(Serialize)]
struct ShownCa {
    subject: String,
    not_after: Date,
}

pub(super) fn run(directory: &Path, arguments: &CaRotate) -> Result<(), Failure> {
    if let Some(command) = &arguments.command {
        let authority = open(directory, &arguments.given.source_or_prompt())?;
        match command {
            RotateCommand::Start(start) => authority.start_rotation(&start.new_authority())?,
            RotateCommand::Switch => authority.switch_rotation()?,
            RotateCommand::Finish => authority.finish_rotation()?,
            RotateCommand::Abort => authority.abort_rotation()?,
        };
    }
    let rotation = Rotation::read(directory)?;
    let ca = |ca: &protocol::certificate::Certificate| ShownCa {
        subject: ca.subject().to_string(),
        not_after: Date::from_unix(ca.not_after()),
    };
    let shown = Shown {
        stage: rotation.stage,
        ca: ca(&rotation.old),
        next_ca: rotation.new.as_ref().map(ca),
        todo: todo(&rotation, directory, arguments.command.as_ref()),
        nodes: rotation.nodes,
    };
    if arguments.json {
        print_json(&shown)
    } else {
        print(&shown.to_string())
    }
}

fn todo(rotation: &Rotation, directory: &Path, done: Option<&RotateCommand>) -> Vec<String> {
    let pki = directory.display();
    let both = format!(
        "copy {pki}/ca.crt and {pki}/ca.crl to every node, as `ca` and `crl` of its configuration"
    );
    let line = str::to_owned;
    match rotation.stage {
        Stage::None => match done {
            Some(RotateCommand::Finish | RotateCommand::Abort) => vec![
                format!("{both}: only then is the dropped CA refused everywhere"),
                line("make a new backup: certs-tool ca backup"),
            ],
            _ => vec![line(
                "nothing; a new CA is made by: certs-tool ca rotate start",
            )],
        },
        Stage::Trust => vec![
            format!("{both}; a running proxy takes them up by itself or by SIGHUP"),
            line("make a new backup: certs-tool ca backup"),
            line("when every node has them: certs-tool ca rotate switch"),
            line("or back: certs-tool ca rotate abort"),
        ],
        Stage::Leaves => {
            let mut todo: Vec<String> = rotation.hanging().map(next_certificate).collect();
            let given = rotation.nodes.iter().filter(|node| node.is_new);
            todo.extend(given.map(|node| {
                let name = escape(&node.name);
                format!("see that {name} uses its new certificate ({name}.crt, {name}.key)")
            }));
            todo.push(line(
                "when every node uses its new certificate: certs-tool ca rotate finish",
            ));
            todo
        }
        Stage::Finishing => vec![line("go on: certs-tool ca rotate finish")],
        Stage::Aborting => vec![line("go on: certs-tool ca rotate abort")],
    }
}

fn next_certificate(node: &NodeState) -> String {
    let name = escape(&node.name);
    if node.by_request {
        format!(
            "{name} was signed from a request: certs-tool request {name} --out new, on its host, and sign it here; \
             or certs-tool renew {name} --reuse-key; then copy {name}.crt to it"
        )
    } else {
        format!("certs-tool renew {name}, then copy {name}.crt and {name}.key to it")
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::None => "no rotation",
            Stage::Trust => {
                "1 of 3, trust: both CAs are to be trusted everywhere, the old one signs"
            }
            Stage::Leaves => "2 of 3, leaves: the new CA signs, the nodes get its certificates",
            Stage::Finishing => "3 of 3, dropping the old CA: begun and not ended",
            Stage::Aborting => "dropping the new CA: begun and not ended",
        };
        writeln!(f, "stage  {stage}")?;
        writeln!(
            f,
            "ca     {}, until {}",
            self.ca.subject,
            self.ca.not_after.day()
        )?;
        if let Some(next) = &self.next_ca {
            writeln!(f, "next   {}, until {}", next.subject, next.not_after.day())?;
        }
        if self.stage != Stage::None {
            for node in &self.nodes {
                let ca = if node.is_new { "new" } else { "old" };
                writeln!(
                    f,
                    "node   {}: {ca} CA, until {}",
                    escape(&node.name),
                    node.not_after.day()
                )?;
            }
        }
        self.todo
            .iter()
            .try_for_each(|line| writeln!(f, "to do  {line}"))
    }
}
