//! `inspect`: what is in a file, of whatever origin, or what a server presents, and what is wrong with it for our use.

mod server;

use std::fmt;
use std::path::Path;

use protocol::certificate::{Certificate, Crl, Use, crl_date_fault, faults};
use protocol::escape::escape;
use serde::Serialize;

use crate::cli::{Inspect, Purpose};
use crate::commands::{print, print_json};
use crate::contents::{self, Item};
use crate::report::{Date, Failure, Problem};
use crate::request::Request;
use crate::store;

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Shown {
    Server(server::ShownServer),
    Certificate(Box<ShownCertificate>),
    Crl(ShownCrl),
    Request(ShownRequest),
    Key(ShownKey),
}

#[derive(Serialize)]
struct ShownCertificate {
    file: String,
    subject: String,
    names: Vec<String>,
    issuer: String,
    serial: String,
    not_before: Date,
    not_after: Date,
    days_left: i64,
    version: u32,
    ca: bool,
    path_length: Option<u32>,
    key: String,
    signature: String,
    uses: Vec<&'static str>,
    sha256: String,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct ShownCrl {
    file: String,
    issuer: String,
    number: Option<String>,
    this_update: Date,
    next_update: Option<Date>,
    revoked: Vec<String>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct ShownRequest {
    file: String,
    subject: String,
    names: Vec<String>,
    ignored: Vec<String>,
}

#[derive(Serialize)]
struct ShownKey {
    file: String,
    encrypted: bool,
}

pub(super) fn run(arguments: &Inspect) -> Result<(), Failure> {
    let mut shown = Vec::new();
    for path in &arguments.what {
        let is_file = path == Path::new("-") || path.exists();
        if let Some(address) = server::parse(path).filter(|_| !is_file) {
            shown.extend(server::inspect(address, arguments)?);
            continue;
        }
        for item in contents::parse(&store::read_argument(path)?, path)? {
            shown.push(judge(item, path, arguments.purpose));
        }
    }
    if arguments.json {
        return print_json(&shown);
    }
    let texts: Vec<String> = shown.iter().map(ToString::to_string).collect();
    print(&texts.join("\n"))
}

fn judge(item: Item, path: &Path, purpose: Option<Purpose>) -> Shown {
    let file = path.display().to_string();
    let now = Date::now();
    match item {
        Item::Certificate(certificate, _) => {
            Shown::Certificate(Box::new(of_certificate(file, &certificate, purpose, now)))
        }
        Item::Crl(crl, _) => Shown::Crl(of_crl(file, &crl, now)),
        Item::Request(request) => Shown::Request(of_request(file, &request)),
        Item::Key { encrypted } => Shown::Key(ShownKey { file, encrypted }),
    }
}

fn of_certificate(
    file: String,
    certificate: &Certificate,
    purpose: Option<Purpose>,
    now: Date,
) -> ShownCertificate {
    let identity = certificate.identity();
    let dns = identity
        .dns()
        .iter()
        .map(|name| format!("dns:{}", escape(name)));
    let ip = identity.ip().iter().map(|address| format!("ip:{address}"));
    let uri = identity
        .uri()
        .iter()
        .map(|uri| format!("uri:{}", escape(uri)));
    ShownCertificate {
        file,
        subject: certificate.subject().to_string(),
        names: dns.chain(ip).chain(uri).collect(),
        issuer: certificate.issuer().to_string(),
        serial: certificate.serial().to_string(),
        not_before: Date::from_unix(certificate.not_before()),
        not_after: Date::from_unix(certificate.not_after()),
        days_left: certificate
            .not_after()
            .saturating_sub(now.unix())
            .div_euclid(86_400),
        version: certificate.version(),
        ca: certificate.is_ca(),
        path_length: certificate.path_length(),
        key: escape(certificate.key().to_string()),
        signature: certificate.signature().to_string(),
        uses: uses(certificate),
        sha256: certificate.fingerprint().to_string(),
        problems: problems(certificate, purpose, now),
    }
}

fn problems(certificate: &Certificate, purpose: Option<Purpose>, now: Date) -> Vec<Problem> {
    let identity = certificate.identity();
    // `openssl req -x509` makes a CA of everything; one with names for hosts was meant for a host.
    let nameless =
        identity.dns().is_empty() && identity.ip().is_empty() && identity.uri().is_empty();
    let is_ca = certificate.is_ca() && (nameless || !certificate.may_sign_handshakes());
    let uses: &[Use] = match purpose {
        Some(Purpose::Node) => &[Use::Node],
        Some(Purpose::Ca) => &[Use::Ca],
        Some(Purpose::Postgres) => &[Use::PostgresItself],
        None if is_ca => &[Use::Ca],
        None => &[Use::Node, Use::PostgresItself],
    };
    let mut found = Vec::new();
    for fault in uses
        .iter()
        .flat_map(|for_use| faults(certificate, *for_use, now.unix()))
    {
        if !found.contains(&fault) {
            found.push(fault);
        }
    }
    found.iter().map(Problem::from).collect()
}

fn uses(certificate: &Certificate) -> Vec<&'static str> {
    let purposes = certificate.purposes();
    let plain = !certificate.is_ca() && certificate.may_sign_handshakes();
    [
        (
            "TLS server",
            plain && purposes.is_none_or(|purposes| purposes.server),
        ),
        (
            "TLS client",
            plain && purposes.is_none_or(|purposes| purposes.client),
        ),
        (
            "signs certificates",
            certificate.is_ca() && certificate.may_sign_certificates(),
        ),
        (
            "signs CRLs",
            certificate.is_ca() && certificate.may_sign_crls(),
        ),
    ]
    .into_iter()
    .filter_map(|(name, allowed)| allowed.then_some(name))
    .collect()
}

fn of_crl(file: String, crl: &Crl, now: Date) -> ShownCrl {
    ShownCrl {
        file,
        issuer: crl.issuer().to_string(),
        number: crl.number().map(ToString::to_string),
        this_update: Date::from_unix(crl.this_update()),
        next_update: crl.next_update().map(Date::from_unix),
        revoked: crl.revoked().iter().map(ToString::to_string).collect(),
        problems: crl_date_fault(crl, now.unix())
            .iter()
            .map(Problem::from)
            .collect(),
    }
}

fn of_request(file: String, request: &Request) -> ShownRequest {
    ShownRequest {
        file,
        subject: request.subject().to_owned(),
        names: request.names().to_vec(),
        ignored: request.ignored().to_vec(),
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(shown) => shown.fmt(f),
            Self::Certificate(shown) => shown.fmt(f),
            Self::Crl(shown) => shown.fmt(f),
            Self::Request(shown) => {
                writeln!(
                    f,
                    "{}: certificate request of {}",
                    shown.file, shown.subject
                )?;
                writeln!(f, "  names    {}", listed(&shown.names))?;
                writeln!(f, "  ignored  {}", listed(&shown.ignored))
            }
            Self::Key(ShownKey {
                file,
                encrypted: true,
            }) => writeln!(f, "{file}: private key under a passphrase"),
            Self::Key(ShownKey {
                file,
                encrypted: false,
            }) => writeln!(f, "{file}: private key"),
        }
    }
}

impl fmt::Display for ShownCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: certificate of {}", self.file, self.subject)?;
        writeln!(f, "  names    {}", listed(&self.names))?;
        writeln!(f, "  issuer   {}", self.issuer)?;
        writeln!(f, "  serial   {}", self.serial)?;
        writeln!(
            f,
            "  valid    {} to {} ({} days left)",
            self.not_before, self.not_after, self.days_left
        )?;
        writeln!(f, "  key      {}, signed with {}", self.key, self.signature)?;
        writeln!(
            f,
            "  for      {}",
            if self.uses.is_empty() {
                "nothing".to_owned()
            } else {
                self.uses.join(", ")
            }
        )?;
        writeln!(f, "  sha256   {}", self.sha256)?;
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(f, "{problem}"))
    }
}

impl fmt::Display for ShownCrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: revocation list of {}", self.file, self.issuer)?;
        writeln!(f, "  number   {}", self.number.as_deref().unwrap_or("none"))?;
        let end = self
            .next_update
            .map_or_else(|| "no end".to_owned(), |date| date.to_string());
        writeln!(f, "  valid    {} to {end}", self.this_update)?;
        writeln!(f, "  revoked  {}", listed(&self.revoked))?;
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(f, "{problem}"))
    }
}

fn listed(words: &[String]) -> String {
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(" ")
    }
}
