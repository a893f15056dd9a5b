//! The node channel: one bounded request and one answer between proxies, on a tunnel's own port (design, section 4).
//!
//! What comes in on it is a [`NodeTls`], from which no session, no permit and no relay can be made: nothing here leads
//! a byte to PostgreSQL. Who speaks is known by its certificate, but for `enrol`, where a secret stands for one.
//! One question may wait for its answer: who asks for CRLs learns of a newer one in the moment in which it comes.

mod ask;
mod crls;
mod exchange;
mod heard;
mod hold;
mod probe;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use protocol::escape::escape;
use protocol::hex::Hex;
use protocol::node::{
    Answer, Crls, Enrol, HEAD, MAX_FROM_NODE, MAX_FROM_STRANGER, NodeError, Refused, Renew,
    Request, Waiting, parse_head,
};
use rustls_pki_types::CertificateRevocationListDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Level;

use crate::control::{Case, Invitations, Renewal, Renewals, Standing};
use crate::health::Health;
use crate::net::{Peer, linger};
use crate::problem::Problem;
use crate::session::Settings;
use crate::tls::NodeTls;

pub(crate) use ask::{ask, for_a_command, open};
pub(crate) use crls::{Keeper, certificate_to_pem, from_pem, to_pem};
pub(crate) use exchange::exchange;
pub(crate) use heard::Heard;
pub(crate) use hold::{Holding, Seats};

/// How long the person's command at the other end of an enrolment may take: it signs, and asks nobody.
const ENROL_TAKES: Duration = Duration::from_secs(30);
/// The longest request for a certificate, in bytes: one of RSA with 16 names has a third of it.
const LONGEST_REQUEST: usize = 8 * 1024;
/// How long an answer may take to be sent and read.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the node channel of all tunnels has in common.
pub(crate) struct Service {
    pub(crate) keeper: Keeper,
    pub(crate) invitations: Arc<Invitations>,
    /// None without a control socket, through which alone somebody could come and sign.
    pub(crate) renewals: Option<Arc<Renewals>>,
    /// What deserves a look here, for `probe`.
    pub(crate) health: Arc<Health>,
    /// Which node has shown which CRLs.
    pub(crate) heard: Heard,
    /// For questions that wait for their answer.
    pub(crate) seats: Seats,
}

/// How a connection of the node channel ended, for the log.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) level: Level,
    /// Told apart in a flood: an id of ours, or the verb that somebody else refused.
    pub(crate) cause: &'static str,
    pub(crate) text: String,
}

impl Outcome {
    fn refused(verb: &str, problem: &Problem) -> Self {
        Self {
            level: Level::WARN,
            cause: problem.id,
            text: format!(
                "node channel, {verb} refused: {} [{}]; {}",
                problem.what, problem.id, problem.why
            ),
        }
    }
}

impl Outcome {
    /// The same, and whether the answer got out.
    fn when_said(self, said: Result<io::Result<()>, Elapsed>) -> Self {
        let text = match said {
            Ok(Ok(())) => return self,
            Ok(Err(error)) => format!("{}; the answer could not be sent: {error}", self.text),
            Err(_) => format!("{}; the answer was not read", self.text),
        };
        Self { text, ..self }
    }
}

/// Whose request it is and what it is judged by.
pub(crate) struct Context<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) service: &'a Service,
    pub(crate) peer: Peer,
    /// The request must be there by then, as a session's startup must.
    pub(crate) deadline: Instant,
}

/// What became of a connection.
pub(crate) enum Served {
    Answered(Outcome),
    /// It waits for its answer, for longer than a handshake may take.
    Held(Box<Holding>),
}

/// Reads the request, answers it, and closes; or gives back what waits for its answer.
pub(crate) async fn serve(mut tls: NodeTls, context: &Context<'_>) -> Served {
    let most = match tls.identity() {
        Some(_) => MAX_FROM_NODE,
        None => MAX_FROM_STRANGER,
    };
    let (verb, answered) = match timeout_at(context.deadline, read_body(&mut tls, most)).await {
        Err(_) => ("request", Err(too_slow())),
        Ok(Err(Unread::Left(error))) => {
            return Served::Answered(Outcome {
                level: Level::INFO,
                cause: "K04",
                text: format!(
                    "node channel: the peer left before its request was whole: {error} [K04]"
                ),
            });
        }
        Ok(Err(Unread::Refused(error))) => ("request", Err(not_understood(&error))),
        Ok(Ok(body)) => match Request::parse(&body) {
            Ok(request) => (request.verb(), answer(request, &tls, context).await),
            Err(error) => ("request", Err(not_understood(&error))),
        },
    };
    let (reply, delivered, outcome) = match answered {
        Ok(Answered::Later(later)) => return Served::Held(Box::new(later.hold(tls))),
        Ok(Answered::Now { reply, delivered }) => {
            let outcome = of_answer(verb, &reply);
            (reply, delivered, outcome)
        }
        Err(problem) => {
            let outcome = Outcome::refused(verb, &problem);
            (Answer::Refused(Refused::from(&problem)), None, outcome)
        }
    };
    let said = timeout(LAST_WORDS, say(&mut tls, &reply)).await;
    if let (Ok(Ok(())), Some(delivered)) = (&said, delivered) {
        // The command may have been ended in this very moment.
        let _ = delivered.send(());
    }
    Served::Answered(outcome.when_said(said))
}

enum Answered {
    Now {
        reply: Answer,
        /// Told when the reply has been sent.
        delivered: Option<oneshot::Sender<()>>,
    },
    Later(hold::Later),
}

impl From<Answer> for Answered {
    fn from(reply: Answer) -> Self {
        Self::Now {
            reply,
            delivered: None,
        }
    }
}

async fn answer(
    request: Request,
    tls: &NodeTls,
    context: &Context<'_>,
) -> Result<Answered, Problem> {
    let request = match request {
        Request::Enrol(asked) => return enrol(asked, tls, context).await,
        other => other,
    };
    let Some(identity) = tls.identity() else {
        return Err(Problem::new(
            "K01",
            "the node channel needs a certificate for this",
            "the peer showed none, and only an enrolment may come without",
            "connect with this node's certificate (pgtlsproxy join gets one)",
        ));
    };
    let Some((credentials, policy)) = context.settings.near() else {
        return Err(not_understood(&NodeError::NotUnderstood(
            "a plain listener".to_owned(),
        )));
    };
    match request {
        Request::Crl(Crls { crls, wait }) => {
            let offered = from_pem(&crls).map_err(|why| {
                Problem::new(
                    "K06",
                    "the CRLs offered cannot be read",
                    why,
                    "look at the peer's identity.crl",
                )
            })?;
            let service = context.service;
            service.heard.note(identity, &offered);
            let from = identity.to_string();
            let crls = service
                .keeper
                .take(credentials, offered.clone(), &from)
                .await;
            let has_all = crls.iter().all(|crl| offered.contains(crl));
            let of = identity.fingerprint();
            if has_all
                && let Some(later) =
                    hold::Later::new(&service.seats, of, wait, credentials, crls.clone())
            {
                return Ok(Answered::Later(later));
            }
            Ok(crls_answer(&crls).into())
        }
        Request::Probe(_) => {
            let probed = probe::probe(identity, credentials, policy, context).await;
            Ok(Answer::Probed(Box::new(probed)).into())
        }
        Request::Renew(asked) => renew(asked, tls, context).map(Answered::from),
        // Answered above, before a certificate is asked for.
        Request::Enrol(_) => Err(not_understood(&NodeError::NotUnderstood(
            "enrol".to_owned(),
        ))),
    }
}

/// Takes the request, unread, to the command that waits for it; the secret is there.
async fn enrol(asked: Enrol, tls: &NodeTls, context: &Context<'_>) -> Result<Answered, Problem> {
    let binding = tls.binding().map_err(|error| {
        Problem::new(
            "K07",
            "this TLS session cannot be bound to a proof",
            error.to_string(),
            "try again",
        )
    })?;
    let (reply, verdict) = oneshot::channel();
    let address = match context.peer {
        Peer::Tcp(address) => address.ip().to_canonical().to_string(),
        Peer::Unix { .. } => "a Unix socket".to_owned(),
    };
    context.service.invitations.hand_in(Case {
        enrol: asked,
        binding,
        address,
        reply,
    })?;
    match timeout(ENROL_TAKES, verdict).await {
        Ok(Ok(verdict)) => Ok(Answered::Now {
            reply: verdict.answer,
            delivered: Some(verdict.delivered),
        }),
        Ok(Err(_)) | Err(_) => Err(Problem::new(
            "E15",
            "the invitation was taken back",
            "the command `pgtlsproxy invite` ended while it was asked",
            "have it run again there, and join with the new token",
        )),
    }
}

/// Holds the request until somebody comes who signs, and gives what came of it when the node asks again. It is held for
/// the certificate that the node shows now; whether its signature is right, whoever signs looks at.
fn renew(asked: Renew, tls: &NodeTls, context: &Context<'_>) -> Result<Answer, Problem> {
    let (Some(renewals), Some(shown)) = (&context.service.renewals, tls.certificate()) else {
        return Err(Problem::new(
            "K08",
            "no certificate can be renewed here",
            "this node opens no control socket, through which the CA's host signs",
            "ask the CA's host: set node.renew_from",
        ));
    };
    if asked.request.is_empty() {
        return Ok(match renewals.news() {
            Some(news) => Answer::Renewed(news),
            None => Answer::Waiting(Waiting::default()),
        });
    }
    if asked.request.len() > LONGEST_REQUEST || asked.signature.len() > LONGEST_REQUEST {
        return Err(Problem::new(
            "K15",
            "the request for a certificate is too long",
            format!("it has more than {LONGEST_REQUEST} bytes"),
            "use a pgtlsproxy of the same version on both hosts",
        ));
    }
    let identity = &shown.identity;
    let name = identity
        .common_name()
        .map_or_else(|| identity.to_string(), str::to_owned);
    let leaf = shown
        .chain
        .first()
        .map(|leaf| Hex(leaf).to_string())
        .unwrap_or_default();
    let renewal = Renewal {
        certificate: leaf,
        request: asked.request,
        signature: asked.signature,
    };
    Ok(match renewals.hand_in(name, renewal)? {
        Standing::Signed(certificates) => Answer::Renewed(certificates),
        Standing::Refused(refused) => Answer::Refused(refused),
        Standing::Waits { signed } => Answer::Waiting(Waiting { signed }),
    })
}

fn crls_answer(crls: &[CertificateRevocationListDer<'_>]) -> Answer {
    Answer::Crl(Crls {
        crls: crls.iter().map(|crl| to_pem(crl)).collect(),
        wait: 0,
    })
}

fn of_answer(verb: &'static str, answer: &Answer) -> Outcome {
    match answer {
        Answer::Refused(refused) => Outcome {
            level: Level::WARN,
            cause: verb,
            text: format!(
                "node channel, {verb} refused: {} [{}]; {}",
                escape(&refused.what),
                escape(&refused.id),
                escape(&refused.why)
            ),
        },
        _ => Outcome {
            level: if verb == "enrol" {
                Level::INFO
            } else {
                Level::DEBUG
            },
            cause: "answered",
            text: format!("node channel, {verb} answered"),
        },
    }
}

enum Unread {
    Left(io::Error),
    Refused(NodeError),
}

async fn read_body(tls: &mut NodeTls, most: usize) -> Result<Vec<u8>, Unread> {
    let mut head = [0; HEAD];
    tls.read_exact(&mut head).await.map_err(Unread::Left)?;
    let length = parse_head(head, most).map_err(Unread::Refused)?;
    // Room for what comes, not for what is promised.
    let mut body = Vec::new();
    let limit = u64::try_from(length).unwrap_or(u64::MAX);
    tls.take(limit)
        .read_to_end(&mut body)
        .await
        .map_err(Unread::Left)?;
    if body.len() < length {
        return Err(Unread::Left(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(body)
}

async fn say(tls: &mut NodeTls, answer: &Answer) -> io::Result<()> {
    let bytes = answer.encode().map_err(io::Error::other)?;
    tls.write_all(&bytes).await?;
    tls.flush().await?;
    linger(tls).await;
    Ok(())
}

fn too_slow() -> Problem {
    Problem::new(
        "K03",
        "the request did not come in time",
        "it must be whole within timeouts.handshake",
        "look at the network between the two hosts",
    )
}

fn not_understood(error: &NodeError) -> Problem {
    Problem::new(
        "K02",
        "the request is not understood",
        error.to_string(),
        "use a pgtlsproxy of the same version on both hosts",
    )
}

impl From<&Problem> for Refused {
    fn from(problem: &Problem) -> Self {
        Self {
            id: problem.id.to_owned(),
            what: problem.what.clone(),
            why: problem.why.clone(),
            way_out: problem.way_out.clone(),
        }
    }
}
