//! `verify`: would the proxy take it?

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use protocol::certificate::Use;
use rustls_pki_types::ServerName;
use serde::Serialize;

use crate::cli::Verify;
use crate::commands::{print, print_json};
use crate::contents::{self, Item};
use crate::key;
use crate::report::{Date, Failure, Problem};
use crate::store;
use crate::verify::{Case, Encoded, belongs_to};

#[derive(Serialize)]
struct Verdict {
    file: String,
    identity: String,
    not_after: Date,
    verified: bool,
    problems: Vec<Problem>,
}

pub(super) fn run(arguments: &Verify) -> Result<ExitCode, Failure> {
    let mut chain = certificates(&arguments.certificate)?;
    let leaf = chain.remove(0);
    let case = Case {
        purpose: Use::Node,
        leaf,
        intermediates: chain,
        cas: certificates(&arguments.ca)?,
        crls: arguments.crl.as_deref().map(crls).transpose()?,
        peer_name: arguments.peer_name.as_deref().map(peer_name).transpose()?,
    };
    let mut problems = case.problems(Date::now());
    if let Some(path) = &arguments.key {
        problems.extend(key_problem(path, &case.leaf)?);
    }
    let verdict = Verdict {
        file: arguments.certificate.display().to_string(),
        identity: case.leaf.0.identity().to_string(),
        not_after: Date::from_unix(case.leaf.0.not_after()),
        verified: problems.iter().all(|problem| problem.warning),
        problems,
    };
    if arguments.json {
        print_json(&verdict)?;
    } else {
        print(&verdict.to_string())?;
    }
    Ok(if verdict.verified {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = if self.verified {
            "verifies"
        } else {
            "does not verify"
        };
        writeln!(
            f,
            "{} {outcome}: {}, until {}",
            self.file, self.identity, self.not_after
        )?;
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(f, "{problem}"))
    }
}

pub(super) fn certificates(path: &Path) -> Result<Vec<Encoded>, Failure> {
    let found: Vec<Encoded> = contents::load(path)?
        .into_iter()
        .filter_map(|item| match item {
            Item::Certificate(read, der) => Some((*read, der)),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(Failure::new(
            format!("there is no certificate in {}", path.display()),
            "",
            "give the right file",
        ));
    }
    Ok(found)
}

pub(super) fn crls(
    path: &Path,
) -> Result<
    Vec<(
        protocol::certificate::Crl,
        rustls_pki_types::CertificateRevocationListDer<'static>,
    )>,
    Failure,
> {
    let found: Vec<_> = contents::load(path)?
        .into_iter()
        .filter_map(|item| match item {
            Item::Crl(read, der) => Some((read, der)),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(Failure::new(
            format!("there is no CRL in {}", path.display()),
            "",
            "give the right file",
        ));
    }
    Ok(found)
}

pub(super) fn peer_name(text: &str) -> Result<ServerName<'static>, Failure> {
    ServerName::try_from(text.to_owned()).map_err(|_| {
        Failure::new(
            format!(
                "`{}` is neither a host name nor an address",
                protocol::escape::escape(text)
            ),
            "",
            "",
        )
    })
}

fn key_problem(path: &Path, leaf: &Encoded) -> Result<Option<Problem>, Failure> {
    let bytes = store::read_secret(path)?;
    let key = key::from_bytes(&bytes, path, || {
        Err(Failure::new(
            format!("{} has a passphrase", path.display()),
            "the proxy starts without a person and reads no such key",
            format!("`openssl pkey -in {}` takes it off", path.display()),
        ))
    })?;
    Ok((!belongs_to(&key, &leaf.1)).then(|| {
        Problem::new(
            format!(
                "the key {} does not belong to the certificate",
                path.display()
            ),
            "put the key that was made with it there, or issue both again",
        )
    }))
}
