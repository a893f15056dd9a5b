//! The invitations that wait, and how those before them ended. A waiting invitation is a place where an enrolment is
//! handed in; without one, nobody listens.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::node::{Answer, Enrol};
use tokio::sync::{mpsc, oneshot};

use super::message::{Invitation, Over};
use crate::problem::Problem;
use crate::tls::BINDING;

/// Enrolments of one invitation that may wait for their turn.
const WAITING_CASES: usize = 4;
/// Invitations at a time.
const MOST: usize = 64;
/// Ended invitations that are remembered, so that whoever comes late is told why.
const REMEMBERED: usize = 256;

/// Somebody came with an invitation.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) enrol: Enrol,
    /// What the proof is bound to: this TLS session.
    pub(crate) binding: [u8; BINDING],
    pub(crate) address: String,
    pub(crate) reply: oneshot::Sender<Decided>,
}

/// What the command decided, and where it is told that the answer was sent.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) answer: Answer,
    pub(crate) delivered: oneshot::Sender<()>,
}

/// All of this process.
#[derive(Default)]
pub(crate) struct Invitations(Mutex<Known>);

#[derive(Default)]
struct Known {
    waiting: HashMap<String, (Invitation, mpsc::Sender<Case>)>,
    /// Oldest first.
    ended: VecDeque<(String, Over)>,
}

impl Invitations {
    /// Lets an invitation wait; whoever comes is received.
    pub(super) fn wait(&self, invitation: Invitation) -> Result<mpsc::Receiver<Case>, Problem> {
        let mut known = self.known();
        if known.waiting.len() >= MOST {
            return Err(Problem::new(
                "E16",
                format!("{MOST} invitations wait already"),
                "no more are taken",
                "pgtlsproxy invite --list shows them; end those that nobody needs",
            ));
        }
        let (sender, receiver) = mpsc::channel(WAITING_CASES);
        known
            .waiting
            .insert(invitation.id.clone(), (invitation, sender));
        Ok(receiver)
    }

    pub(super) fn end(&self, id: &str, over: Over) {
        let mut known = self.known();
        known.waiting.remove(id);
        if known.ended.len() >= REMEMBERED {
            known.ended.pop_front();
        }
        known.ended.push_back((id.to_owned(), over));
    }

    /// Ends the invitations of this name; how many. Their commands are told by the end of their channel.
    pub(super) fn withdraw(&self, name: &str) -> usize {
        let mut known = self.known();
        let before = known.waiting.len();
        known
            .waiting
            .retain(|_, (invitation, _)| invitation.name != name);
        before - known.waiting.len()
    }

    /// Those that wait, the one that ends first before the others.
    pub(super) fn list(&self) -> Vec<Invitation> {
        let mut list: Vec<_> = self
            .known()
            .waiting
            .values()
            .map(|(invitation, _)| invitation.clone())
            .collect();
        list.sort_by(|a, b| (a.expires, &a.name).cmp(&(b.expires, &b.name)));
        list
    }

    /// Hands an enrolment to the command that waits for it. Who does not know an invitation's id, which only its token
    /// tells, gets one answer whether any waits or none.
    pub(crate) fn hand_in(&self, case: Case) -> Result<(), Problem> {
        let known = self.known();
        let id = case.enrol.invitation.as_str();
        let Some((invitation, sender)) = known.waiting.get(id) else {
            let ended = known.ended.iter().rfind(|(ended, _)| ended == id);
            return Err(not_waiting(ended.map(|(_, over)| *over)));
        };
        if invitation.expires < now() {
            return Err(not_waiting(Some(Over::Late)));
        }
        sender.try_send(case).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Problem::new(
                "E17",
                "others try this invitation at the same moment",
                "they have their turn first",
                "try again; if it goes on, have the invitation made anew",
            ),
            mpsc::error::TrySendError::Closed(_) => not_waiting(Some(Over::TakenBack)),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or(i64::MAX)
}

/// For the holder of a token.
fn not_waiting(over: Option<Over>) -> Problem {
    let (id, what, why) = match over {
        Some(Over::Used) => (
            "E10",
            "this token has been used",
            "a node has joined with it, and it counts once",
        ),
        Some(Over::Late) => ("E11", "this token is too old", "its time is over"),
        Some(Over::Void) => (
            "E12",
            "this token is void",
            "it was tried with a wrong secret too often",
        ),
        Some(Over::TakenBack) => (
            "E13",
            "this token was taken back",
            "it was withdrawn, or the command that made it has ended",
        ),
        None => (
            "E14",
            "no invitation with this token waits here",
            "it was used, its time is over, or it is of another node",
        ),
    };
    Problem::new(
        id,
        what,
        why,
        "ask for a new one: pgtlsproxy invite NAME, on the node that made this one",
    )
}
