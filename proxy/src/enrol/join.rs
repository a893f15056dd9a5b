//! The joining end: a key that stays here, a request for it bound to the token's secret and to the TLS session, and the
//! files of a node that can serve and follow.

use std::path::{Path, PathBuf};
use std::time::Duration;

use certs_tool::profile::NodeName;
use certs_tool::report::Date;
use certs_tool::request;
use nix::unistd::User;
use protocol::error_response::Refusal;
use protocol::escape::escape;
use protocol::node::{Answer, Enrol, Enrolled, Grant, Probe, Probed, Request};
use tokio::time::Instant;

use super::install::{self, Files, install};
use super::proof::{Prover, invitation_id, is_proof, prove};
use super::token::Token;
use super::{ANOTHER, of_failure};
use crate::directories;
use crate::net::Target;
use crate::node::{ask, for_a_command, open};
use crate::problem::Problem;
use crate::tls::{BINDING, Credentials, Trust};

/// From dial to finished handshake, for each endpoint.
const OPEN_TAKES: Duration = Duration::from_secs(10);
/// The inviting side judges and signs; it has half a minute for it.
const ANSWER_TAKES: Duration = Duration::from_secs(40);

/// What is wanted.
pub(crate) struct Join {
    pub(crate) directory: PathBuf,
    /// Where other nodes' proxies will connect.
    pub(crate) listen: String,
    pub(crate) postgres: String,
    /// The directory of the client tunnel's socket; None: the usual one.
    pub(crate) socket_directory: Option<PathBuf>,
    /// Whom the daemon runs as.
    pub(crate) os_user: String,
    pub(crate) force: bool,
}

/// A node that has joined.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) config: PathBuf,
    /// Where its PostgreSQL goes out.
    pub(crate) socket_directory: PathBuf,
    pub(crate) inviter: Target,
    pub(crate) not_after: Date,
    pub(crate) warnings: Vec<Problem>,
    /// What the inviting node says of it now, asked with its new certificate.
    pub(crate) probed: Result<Box<Probed>, String>,
}

impl Join {
    /// Everything, or nothing and why.
    pub(crate) fn run(&self, line: &str) -> Result<Member, Vec<Problem>> {
        let one = |problem: Problem| vec![problem];
        let token = Token::parse(line).map_err(|error| one(error.into()))?;
        let name: NodeName = token.name.parse().map_err(|why: String| {
            one(Problem::new("E04", "the token names no node", why, ANOTHER))
        })?;
        if token.expires < Date::now().unix() {
            return Err(one(Problem::new(
                "E05",
                "this token is too old",
                format!(
                    "it ended at {}; here it is {}",
                    Date::from_unix(token.expires),
                    Date::now()
                ),
                format!("set this host's clock if it is wrong, or {ANOTHER}"),
            )));
        }
        if !self.force {
            install::refuse_existing(&self.directory).map_err(one)?;
        }
        let (run, state) = (self.run_directory(), directories::state(&self.directory));
        // What is wrong with the arguments or the directory shall not cost the token.
        install::rehearse(
            &self.directory,
            &self.config(&Grant::default(), &token, &run, &state),
        )?;
        let (key, csr) = request::make(&name).map_err(|failure| one(of_failure(&failure)))?;
        let runtime = for_a_command().map_err(one)?;
        let (grant, inviter) = runtime.block_on(enrol(&token, &csr)).map_err(one)?;
        let config = self.config(&grant, &token, &run, &state);
        let files = Files {
            key: &key,
            certificate: &grant.certificates.certificate,
            ca: &grant.certificates.ca,
            crl: &grant.certificates.crl,
            config: &config,
            // PostgreSQL's OS user must get at the socket; who may speak is asked there.
            directories: [(&run, 0o775), (&state, 0o770)],
            os_user: &self.os_user,
        };
        let checked = install(&self.directory, &files)?;
        let server_name = token.server_name.as_deref().unwrap_or(&inviter.host);
        let probed = runtime
            .block_on(probe(&inviter, server_name, &checked.credentials))
            .map_err(|refusal| refusal.message);
        Ok(Member {
            name: token.name.clone(),
            config: self.directory.join(super::CONFIG),
            socket_directory: run,
            not_after: Date::from_unix(checked.credentials.identity().not_after()),
            inviter,
            warnings: checked.warnings,
            probed,
        })
    }

    fn run_directory(&self) -> PathBuf {
        self.socket_directory
            .clone()
            .unwrap_or_else(|| directories::run(&self.directory))
    }

    /// Both tunnels, so that roles can swap.
    fn config(&self, grant: &Grant, token: &Token, run: &Path, state: &Path) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let mut config = format!(
            "# Written by `pgtlsproxy join`, to be changed as you like; docs/configuration.md lists every key.\n\
             [identity]\ncert = \"{}\"\nkey = \"{}\"\nca = \"{}\"\ncrl = \"{}\"\n\n\
             # Other nodes come in here when this one is the primary.\n\
             [[server]]\nlisten = {}\npostgres = {}\n",
            install::CERTIFICATE,
            install::KEY,
            install::CA,
            install::CRL,
            quoted(&self.listen),
            quoted(&self.postgres),
        );
        for member in &grant.members {
            let users = grant
                .role
                .as_ref()
                .map(|role| format!("users = [{}]\n", quoted(role)));
            let users = users.unwrap_or_default();
            config.push_str(&format!(
                "\n[[server.allow]]\nidentity = {}\n{users}",
                quoted(member)
            ));
            if let Some(database) = &grant.ordinary {
                config.push_str(&format!(
                    "\n# pg_rewind and the slot-sync worker are ordinary connections.\n[[server.allow]]\nidentity = {}\n\
                     replication = []\nordinary = true\n{users}databases = [{}]\n",
                    quoted(member),
                    quoted(database)
                ));
            }
        }
        let targets: Vec<String> = token
            .endpoints
            .iter()
            .map(|target| quoted(&target.to_string()))
            .collect();
        config.push_str(&format!(
            "\n# This node's PostgreSQL goes out here: host={} port=5442\n[[client]]\nlisten = {}\nconnect = [{}]\n",
            run.display(),
            path(run),
            targets.join(", "),
        ));
        if let Some(name) = &token.server_name {
            config.push_str(&format!("server_name = {}\n", quoted(name)));
        }
        if matches!(User::from_name("postgres"), Ok(Some(_))) {
            config.push_str("allow_os_users = [\"postgres\"]\n");
        }
        config.push_str(&format!(
            "\n[admin]\nsocket = {}\n\n[control]\nsocket = {}\n\n[node]\nstate = {}\n\
             # The CA's host, from which `pgtlsproxy renew` gets the next certificate, whichever node is the primary.\n\
             renew_from = [{}]\n",
            path(&run.join("status.sock")),
            path(&run.join("control.sock")),
            path(state),
            targets.join(", "),
        ));
        if let Some(name) = &token.server_name {
            config.push_str(&format!("renew_name = {}\n", quoted(name)));
        }
        config
    }
}

/// Asks the first endpoint that can be reached.
async fn enrol(token: &Token, csr: &str) -> Result<(Grant, Target), Problem> {
    let mut failures = Vec::new();
    for target in &token.endpoints {
        let name = token.server_name.as_deref().unwrap_or(&target.host);
        let deadline = Instant::now() + OPEN_TAKES;
        let tls = match open(target, name, Trust::Pinned(token.pin), deadline).await {
            Ok(tls) => tls,
            Err(refusal) => {
                failures.push(unopened(target, &refusal));
                continue;
            }
        };
        let binding = tls.binding().map_err(|error| {
            Problem::new(
                "E27",
                "this TLS session cannot be bound to a proof",
                error.to_string(),
                "try again",
            )
        })?;
        let request = Request::Enrol(Enrol {
            invitation: invitation_id(&token.secret),
            proof: prove(&token.secret, Prover::Joiner, &binding, csr.as_bytes()),
            request: csr.to_owned(),
        });
        let answer = ask(tls, target, &request, Instant::now() + ANSWER_TAKES)
            .await
            .map_err(|refusal| unopened(target, &refusal))?;
        let grant = granted(answer, token, &binding, target)?;
        return Ok((grant, target.clone()));
    }
    Err(failures
        .into_iter()
        .next()
        .unwrap_or_else(|| Problem::new("E04", "the token names no endpoint", "", ANOTHER)))
}

/// What the answer grants, once it has proven to come from who made the token.
fn granted(
    answer: Answer,
    token: &Token,
    binding: &[u8; BINDING],
    target: &Target,
) -> Result<Grant, Problem> {
    match answer {
        Answer::Enrolled(Enrolled { grant, proof }) => {
            if !is_proof(
                &token.secret,
                Prover::Inviter,
                binding,
                grant.as_bytes(),
                &proof,
            ) {
                return Err(Problem::new(
                    "E39",
                    format!("{target} does not know this token's secret"),
                    "who answers there is not who made the token; nothing was written",
                    format!("find out who it is, and {ANOTHER}"),
                ));
            }
            serde_json::from_str(&grant).map_err(|error| {
                Problem::new(
                    "E27",
                    "the answer is not understood",
                    error.to_string(),
                    "use a pgtlsproxy of the same version on both hosts",
                )
            })
        }
        Answer::Refused(refused) => Err(Problem::new(
            id_of(&refused.id),
            escape(&refused.what),
            escape(&refused.why),
            escape(&refused.way_out),
        )),
        _ => Err(Problem::new(
            "E27",
            format!("{target} gave another answer than was asked for"),
            "",
            "use a pgtlsproxy of the same version on both hosts",
        )),
    }
}

/// In the words of one who holds a token, and has neither certificate nor configuration yet.
fn unopened(target: &Target, refusal: &Refusal) -> Problem {
    let way_out = refusal.hint.clone().unwrap_or_default();
    match refusal.id {
        "T17" => Problem::new(
            "E39",
            format!("{target} is not the node that made this token"),
            "its certificate does not lead to the token's CA; it was told nothing of the token, and nothing was written",
            format!("look at that address: another host, or somebody between; else {ANOTHER}"),
        ),
        "T24" => Problem::new(
            "E39",
            refusal.message.clone(),
            "nothing was told or written",
            "have it made anew with --public HOST:PORT, where HOST is a name in that certificate",
        ),
        "T31" => Problem::new(
            "E39",
            format!("{target} has no node channel"),
            "it is not a pgtlsproxy, or one of an older version",
            "use a pgtlsproxy of the same version on both hosts",
        ),
        "T34" | "K13" => Problem::new(
            "E39",
            format!("{target} closed the connection without an answer"),
            "its rules may not admit this host's address (from)",
            "have it made anew with --from and this host's address, and look at that node's log",
        ),
        _ => Problem::new(
            "E39",
            refusal.message.clone(),
            refusal.detail.clone().unwrap_or_default(),
            way_out,
        ),
    }
}

/// The id of a refusal that this program knows; what comes from elsewhere is not shown as one of ours.
fn id_of(id: &str) -> &'static str {
    const KNOWN: [&str; 12] = [
        "E10", "E11", "E12", "E13", "E14", "E15", "E17", "E18", "E20", "K01", "K02", "K03",
    ];
    KNOWN
        .into_iter()
        .find(|known| *known == id)
        .unwrap_or("E39")
}

/// The first use of the new certificate.
async fn probe(
    target: &Target,
    server_name: &str,
    credentials: &Credentials,
) -> Result<Box<Probed>, Box<Refusal>> {
    let deadline = Instant::now() + OPEN_TAKES;
    let tls = open(target, server_name, Trust::Ours(credentials), deadline).await?;
    let request = Request::Probe(Probe {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    });
    match ask(tls, target, &request, deadline).await? {
        Answer::Probed(probed) => Ok(probed),
        Answer::Refused(refused) => Err(Box::new(Refusal::new(
            "E39",
            protocol::error_response::SqlState::CANNOT_CONNECT_NOW,
            escape(&refused.what),
        ))),
        _ => Ok(Box::default()),
    }
}
