//! The control socket: commands of root (or of the daemon's own user) ask the running daemon. It is told no secret and
//! reads no CA key; what needs them is done by the command at the other end.

mod client;
mod invitations;
mod message;
mod renewals;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use protocol::hex::Hex;
use protocol::identity::Fingerprint;
use protocol::node::Refused;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::net::{Listener, Peer, Stream};
use crate::node;
use crate::problem::Problem;
use crate::reload::ReloadHandle;
use crate::session::{Live, Registry};
use crate::tls::{Credentials, PeerCertificate};

pub(crate) use client::Daemon;
pub(crate) use invitations::{Case, Decided, Invitations};
pub(crate) use message::{Ask, Invitation, Over, Renewal, Reply, Ruling, Spread, Verdict};
use message::{Asked, LONGEST_LINE, VERSION};
pub(crate) use renewals::{Renewals, Standing};

/// Commands at a time.
const MOST: usize = 80;
/// How long a line may take that must come at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a command may take to judge and sign.
const VERDICT_TAKES: Duration = Duration::from_secs(25);
/// The mode of the socket; who connects is looked at all the same.
const MODE: u32 = 0o600;

/// Opens the socket.
pub(crate) fn listen(path: &Path) -> Result<Listener, Problem> {
    Listener::bind_socket(path, MODE).map_err(|error| {
        Problem::new(
            "E30",
            format!("the control socket {} cannot be opened", path.display()),
            error.source.to_string(),
            error.way_out,
        )
    })
}

/// What commands may ask for.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) invitations: Arc<Invitations>,
    pub(crate) renewals: Arc<Renewals>,
    pub(crate) reload: ReloadHandle,
    pub(crate) node: Arc<node::Service>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) credentials: watch::Receiver<Arc<Credentials>>,
}

impl Desk {
    /// Takes CRLs that a command brings, and loads them.
    async fn take(&self, crls: &[String]) -> Result<(), Vec<Problem>> {
        let offered =
            node::from_pem(crls).map_err(|why| vec![not_understood(&io::Error::other(why))])?;
        let credentials = Arc::clone(&self.credentials.borrow());
        let keeper = &self.node.keeper;
        keeper.take(&credentials, offered, "a command").await;
        self.reload.ask().await
    }

    fn spread(&self, name: &str) -> Spread {
        let credentials = Arc::clone(&self.credentials.borrow());
        let crls = credentials.crls();
        let is_of = |live: &&Arc<Live>| {
            let of = |peer: &PeerCertificate| peer.identity.common_name() == Some(name);
            live.certificates().any(of)
        };
        Spread {
            sessions: self.registry.all().iter().filter(is_of).count(),
            crls: crls
                .iter()
                .map(|der| Fingerprint::of(der).to_string())
                .collect(),
            nodes: self.node.heard.of(crls),
        }
    }
}

/// Serves commands until `closing`.
pub(crate) async fn serve(listener: Listener, desk: Desk, mut closing: watch::Receiver<bool>) {
    let seats = Arc::new(Semaphore::new(MOST));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => return,
        };
        let Ok((stream, peer)) = accepted else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let uid = match peer {
            Peer::Unix { uid, .. } => uid,
            Peer::Tcp(_) => continue,
        };
        if uid != 0 && uid != Uid::effective().as_raw() {
            warn!(
                uid,
                "an OS user that may not use the control socket was turned away [E31]"
            );
            continue;
        }
        let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
            warn!("more commands at once than the control socket serves [E32]");
            continue;
        };
        let desk = desk.clone();
        tokio::spawn(async move {
            // A command that is gone has nobody to tell.
            let _ = Conversation(BufReader::new(stream)).serve(&desk).await;
            drop(seat);
        });
    }
}

struct Conversation(BufReader<Stream>);

impl Conversation {
    async fn serve(&mut self, desk: &Desk) -> io::Result<()> {
        let asked: Asked = match timeout(PATIENCE, self.read(&mut Vec::new())).await {
            Ok(Ok(Some(asked))) => asked,
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return self.refuse(vec![not_understood(&error)]).await,
            Err(_) => return Ok(()),
        };
        if asked.version != VERSION {
            let error = io::Error::other(format!("version {}, not {VERSION}", asked.version));
            return self.refuse(vec![not_understood(&error)]).await;
        }
        match asked.ask {
            Ask::Reload => match desk.reload.ask().await {
                Ok(()) => self.write(&Reply::Done).await,
                Err(problems) => self.refuse(problems).await,
            },
            Ask::Invitations => {
                let invitations = desk.invitations.list();
                self.write(&Reply::Invitations { invitations }).await
            }
            Ask::Renewals => self.renew(&desk.renewals).await,
            Ask::News(news) => {
                desk.renewals.tell(*news);
                self.write(&Reply::Done).await
            }
            Ask::Withdraw { name } => {
                let invitations = desk.invitations.withdraw(&name);
                self.write(&Reply::WithdrawnMany { invitations }).await
            }
            Ask::Crl { crls } => match desk.take(&crls).await {
                Ok(()) => self.write(&Reply::Done).await,
                Err(problems) => self.refuse(problems).await,
            },
            Ask::Spread { name } => self.write(&Reply::Spread(desk.spread(&name))).await,
            Ask::Invite(invitation) => match desk.invitations.wait(invitation.clone()) {
                Ok(cases) => {
                    info!(name = invitation.name, "an invitation waits");
                    let over = self.invite(&invitation, cases).await;
                    let over = over.unwrap_or(Over::TakenBack);
                    desk.invitations.end(&invitation.id, over);
                    info!(name = invitation.name, ended = ?over, "an invitation has ended");
                    Ok(())
                }
                Err(problem) => self.refuse(vec![problem]).await,
            },
        }
    }

    /// Carries enrolments to the command and its verdicts back, one after the other.
    async fn invite(
        &mut self,
        invitation: &Invitation,
        mut cases: mpsc::Receiver<Case>,
    ) -> io::Result<Over> {
        self.write(&Reply::Waiting).await?;
        let late = sleep(until(invitation.expires));
        tokio::pin!(late);
        let mut unasked = Vec::new();
        loop {
            let case = tokio::select! {
                case = cases.recv() => case,
                () = &mut late => {
                    self.write(&Reply::Late).await?;
                    return Ok(Over::Late);
                }
                // Nothing is awaited from the command now, so this is its end.
                _ = self.read::<Verdict>(&mut unasked) => return Ok(Over::TakenBack),
            };
            let Some(Case {
                enrol,
                binding,
                address,
                reply,
            }) = case
            else {
                self.write(&Reply::Withdrawn).await?;
                return Ok(Over::TakenBack);
            };
            let binding = Hex(&binding).to_string();
            self.write(&Reply::Enrol {
                enrol,
                binding,
                address,
            })
            .await?;
            let verdict = timeout(VERDICT_TAKES, self.read::<Verdict>(&mut Vec::new())).await??;
            let Some(Verdict { answer, over }) = verdict else {
                return Ok(Over::TakenBack);
            };
            let (delivered, sent) = oneshot::channel();
            // Whoever asked may have left.
            let _ = reply.send(Decided { answer, delivered });
            let sent = matches!(timeout(PATIENCE, sent).await, Ok(Ok(())));
            self.write(&Reply::Sent { sent }).await?;
            if let Some(over) = over {
                return Ok(over);
            }
        }
    }

    /// Carries requests for renewal to the command and its rulings back, until none waits that this command has not
    /// seen; those that come meanwhile have their turn the next time.
    async fn renew(&mut self, renewals: &Renewals) -> io::Result<()> {
        for renewal in renewals.waiting() {
            self.write(&Reply::Renewal(renewal.clone())).await?;
            let ruling = timeout(VERDICT_TAKES, self.read::<Ruling>(&mut Vec::new())).await??;
            let Some(ruling) = ruling else {
                return Ok(());
            };
            renewals.rule(&renewal, ruling);
        }
        self.write(&Reply::Done).await
    }

    /// One line; None at the end. What has come of an unfinished line stays in `line`.
    async fn read<T: DeserializeOwned>(&mut self, line: &mut Vec<u8>) -> io::Result<Option<T>> {
        let most = u64::try_from(LONGEST_LINE).unwrap_or(u64::MAX);
        (&mut self.0).take(most).read_until(b'\n', line).await?;
        match line.last() {
            None => Ok(None),
            Some(b'\n') => serde_json::from_slice(line)
                .map(Some)
                .map_err(io::Error::other),
            Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    async fn write(&mut self, reply: &Reply) -> io::Result<()> {
        let stream = self.0.get_mut();
        match timeout(PATIENCE, stream.write_all(&line(reply)?)).await {
            Ok(written) => written,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    async fn refuse(&mut self, problems: Vec<Problem>) -> io::Result<()> {
        let problems = problems.iter().map(Refused::from).collect();
        self.write(&Reply::Refused { problems }).await
    }
}

fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    if line.len() > LONGEST_LINE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the line is too long",
        ));
    }
    Ok(line)
}

/// How long it is until this second (Unix time) is over.
fn until(expires: i64) -> Duration {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    Duration::from_secs(u64::try_from(expires.saturating_sub(now)).unwrap_or(0))
}

fn not_understood(error: &io::Error) -> Problem {
    Problem::new(
        "E33",
        "the daemon does not understand the command",
        error.to_string(),
        "they are of two versions: restart the daemon (systemctl restart pgtlsproxy)",
    )
}
