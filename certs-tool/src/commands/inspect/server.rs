//! `inspect HOST:PORT`: what a live server presents, and whether it would be trusted.

use std::fmt;
use std::path::Path;

use protocol::certificate::{Certificate, Use};
use protocol::escape::escape;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde::Serialize;

use super::{Shown, judge};
use crate::cli::{Inspect, Purpose};
use crate::commands::verify::{certificates, crls, peer_name};
use crate::contents::Item;
use crate::key;
use crate::live::{Presented, Question, look};
use crate::report::{Date, Failure, Problem};
use crate::store;
use crate::verify::{Case, Encoded, name_problem};

#[derive(Serialize)]
pub(super) struct ShownServer {
    server: String,
    negotiation: String,
    tls: Vec<String>,
    alpn: Option<String>,
    /// The CAs of which it wants a certificate.
    asks: Option<Vec<String>>,
    refusal: Option<String>,
    /// Whether its certificate leads to the CA file that was given.
    trusted: Option<bool>,
    problems: Vec<Problem>,
}

/// `HOST:PORT`, `[ADDRESS]:PORT`; `None` for what is none.
pub(super) fn parse(argument: &Path) -> Option<(String, u16)> {
    let (host, port) = argument.to_str()?.rsplit_once(':')?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let is_host = !bare.is_empty() && !bare.contains('/') && (bare != host || !bare.contains(':'));
    is_host.then_some((bare.to_owned(), port.parse().ok()?))
}

/// The server, then each certificate that it shows.
pub(super) fn inspect(
    (host, port): (String, u16),
    arguments: &Inspect,
) -> Result<Vec<Shown>, Failure> {
    let shown_name = format!("{}:{port}", escape(&host));
    let name = arguments.server_name.as_deref().unwrap_or(&host);
    let question = Question {
        server_name: peer_name(name)?,
        negotiation: arguments.sslnegotiation,
        identity: identity(arguments)?,
        host,
        port,
    };
    let presented = look(&question)?;
    let path = Path::new(&shown_name);
    let mut chain = Vec::new();
    for der in &presented.chain {
        let read = Certificate::parse(der);
        let read = read.map_err(|error| {
            Failure::new(
                format!("the certificate of {shown_name} cannot be read"),
                error.to_string(),
                "",
            )
        })?;
        chain.push((read, der.clone()));
    }
    let mut shown: Vec<Shown> = Vec::new();
    for (read, der) in &chain {
        // Whether a server is a client too is its own business.
        let purpose = arguments
            .purpose
            .or_else(|| (!read.is_ca()).then_some(Purpose::Postgres));
        let item = Item::Certificate(Box::new(read.clone()), der.clone());
        shown.push(judge(item, path, purpose));
    }
    let (trusted, problems) = judge_chain(chain, &question.server_name, arguments)?;
    shown.insert(
        0,
        Shown::Server(of(shown_name, presented, trusted, problems)),
    );
    Ok(shown)
}

fn of(
    server: String,
    presented: Presented,
    trusted: Option<bool>,
    problems: Vec<Problem>,
) -> ShownServer {
    ShownServer {
        server,
        negotiation: presented.negotiation.to_string(),
        tls: presented.parameters,
        alpn: presented.alpn,
        asks: presented.asks,
        refusal: presented.refusal,
        trusted,
        problems,
    }
}

/// What speaks against the chain beyond what each certificate says of itself.
fn judge_chain(
    mut chain: Vec<Encoded>,
    name: &ServerName<'static>,
    arguments: &Inspect,
) -> Result<(Option<bool>, Vec<Problem>), Failure> {
    let leaf = chain.remove(0);
    let Some(ca) = &arguments.ca else {
        return Ok((None, name_problem(&leaf, name).into_iter().collect()));
    };
    let case = Case {
        purpose: match arguments.purpose {
            Some(Purpose::Node) => Use::Node,
            _ => Use::PostgresItself,
        },
        leaf,
        intermediates: chain,
        cas: certificates(ca)?,
        crls: arguments.crl.as_deref().map(crls).transpose()?,
        peer_name: Some(name.clone()),
    };
    let problems = case.problems(Date::now());
    let trusted = problems.iter().all(|problem| problem.warning);
    Ok((Some(trusted), problems))
}

fn identity(
    arguments: &Inspect,
) -> Result<
    Option<(
        Vec<rustls_pki_types::CertificateDer<'static>>,
        PrivateKeyDer<'static>,
    )>,
    Failure,
> {
    let (Some(certificate), Some(key_path)) = (&arguments.cert, &arguments.key) else {
        return Ok(None);
    };
    let chain = certificates(certificate)?.into_iter().map(|(_, der)| der);
    let key = key::from_bytes(&store::read_secret(key_path)?, key_path, || {
        Err(Failure::new(
            format!("{} has a passphrase", key_path.display()),
            "the proxy reads no such key either",
            format!("`openssl pkey -in {}` takes it off", key_path.display()),
        ))
    })?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok(Some((chain.collect(), key.into())))
}

impl fmt::Display for ShownServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: server, by {}", self.server, self.negotiation)?;
        if !self.tls.is_empty() {
            writeln!(f, "  tls      {}", self.tls.join(", "))?;
        }
        writeln!(f, "  alpn     {}", self.alpn.as_deref().unwrap_or("none"))?;
        match &self.asks {
            None => writeln!(f, "  asks     for no certificate")?,
            Some(cas) if cas.is_empty() => writeln!(f, "  asks     for a certificate")?,
            Some(cas) => writeln!(f, "  asks     for a certificate of {}", cas.join("; "))?,
        }
        if let Some(refusal) = &self.refusal {
            writeln!(f, "  refuses  {refusal}")?;
        }
        match self.trusted {
            Some(true) => writeln!(f, "  trusted  yes")?,
            Some(false) => writeln!(f, "  trusted  no")?,
            None => {}
        }
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(f, "{problem}"))
    }
}
