//! Requests for renewal that wait for the command which signs, and its rulings until the nodes fetch them. Neither waits
//! for the other: a node asks, is told to ask again, and finds the ruling there the next time, hours later perhaps. All
//! of it is in memory; after a restart the nodes ask anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use protocol::certificate::Moment;
use protocol::escape::escape;
use protocol::hex::from_hex;
use protocol::identity::Identity;
use protocol::node::{Certificates, Refused};
use tracing::info;

use super::message::{Renewal, Ruling};
use crate::health::unix;
use crate::problem::Problem;

/// How long one is held that nobody asks for any more.
const FORGOTTEN: Duration = Duration::from_secs(8 * 24 * 60 * 60);

/// A request for which nobody has come for so long deserves a look; a certificate of a short life has a tenth of it.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// Of those that wait for too long, so many are named.
const NAMED: usize = 3;

/// All of this process.
#[derive(Default)]
pub(crate) struct Renewals(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// By the node's name: each has one.
    cases: HashMap<String, Held>,
    /// What every node should know of the CAs.
    news: Option<Certificates>,
    /// When somebody last came to sign.
    signed: Option<SystemTime>,
}

struct Held {
    renewal: Renewal,
    ruling: Option<Ruling>,
    asked: SystemTime,
    /// Since when the node waits for a ruling.
    since: SystemTime,
}

impl Held {
    /// A signature of ECDSA is another one each time it is made.
    fn is_of(&self, renewal: &Renewal) -> bool {
        let Renewal {
            certificate,
            request,
            signature: _,
        } = &self.renewal;
        (certificate, request) == (&renewal.certificate, &renewal.request)
    }

    /// Whether nobody has come for it for too long.
    fn is_overdue(&self, now: SystemTime) -> bool {
        let waited = now.duration_since(self.since).unwrap_or_default();
        self.ruling.is_none() && waited > patience(&self.renewal)
    }
}

fn patience(renewal: &Renewal) -> Duration {
    let der = from_hex(&renewal.certificate).unwrap_or_default();
    let life = Identity::parse(&der)
        .ok()
        .and_then(|asker| u64::try_from(asker.not_after() - asker.not_before()).ok());
    life.map_or(PATIENCE, |life| {
        PATIENCE.min(Duration::from_secs(life / 10))
    })
}

/// How a request stands.
pub(crate) enum Standing {
    Signed(Certificates),
    Refused(Refused),
    /// Nobody has ruled on it; when somebody last came to sign (Unix time), 0 if never.
    Waits {
        signed: i64,
    },
}

impl Renewals {
    /// Nodes whose request or ruling is held at a time. With 25 KB each at the most, it is small.
    pub(crate) const MOST: usize = 256;

    /// Takes a request, or says how it stands. The very same one finds what became of it, as often as it comes; another
    /// of that node takes its place. A refusal is told once: after that the request waits again, since its cause may be
    /// mended.
    pub(crate) fn hand_in(&self, name: String, renewal: Renewal) -> Result<Standing, Problem> {
        let mut known = self.known();
        let now = SystemTime::now();
        let waits = Standing::Waits {
            signed: known.signed.map_or(0, unix),
        };
        let news = known.news.clone();
        known
            .cases
            .retain(|_, held| now.duration_since(held.asked).unwrap_or_default() < FORGOTTEN);
        if let Some(held) = known.cases.get_mut(&name)
            && held.is_of(&renewal)
        {
            held.asked = now;
            held.renewal = renewal;
            return Ok(match (held.ruling.clone(), news) {
                (Some(Ruling::Refused { refused }), _) => {
                    held.ruling = None;
                    held.since = now;
                    Standing::Refused(refused)
                }
                (Some(Ruling::Signed { certificate }), Some(news)) => {
                    Standing::Signed(Certificates {
                        certificate,
                        ..news
                    })
                }
                _ => waits,
            });
        }
        if known.cases.len() >= Self::MOST && !known.cases.contains_key(&name) {
            return Err(Problem::new(
                "K16",
                format!("{} nodes wait for their renewal already", Self::MOST),
                "no more are taken until somebody signs",
                "on the CA's host: pgtlsproxy renew, and see that its timer runs",
            ));
        }
        info!(name = escape(&name), "a node asks for its next certificate");
        let since = match known.cases.get(&name) {
            Some(held) if held.ruling.is_none() => held.since,
            _ => now,
        };
        known.cases.insert(
            name,
            Held {
                renewal,
                ruling: None,
                asked: now,
                since,
            },
        );
        Ok(waits)
    }

    /// Those that nobody has ruled on, the longest waiting first; whoever asks for them comes to sign.
    pub(super) fn waiting(&self) -> Vec<Renewal> {
        let mut known = self.known();
        known.signed = Some(SystemTime::now());
        let mut waiting: Vec<&Held> = known
            .cases
            .values()
            .filter(|held| held.ruling.is_none())
            .collect();
        waiting.sort_by_key(|held| held.asked);
        waiting.iter().map(|held| held.renewal.clone()).collect()
    }

    /// A warning if nodes wait and nobody has come to sign for too long.
    pub(crate) fn overdue(&self, now: SystemTime) -> Option<Problem> {
        let known = self.known();
        let mut late: Vec<(SystemTime, &String)> = known
            .cases
            .iter()
            .filter(|(_, held)| held.is_overdue(now))
            .map(|(name, held)| (held.since, name))
            .collect();
        late.sort();
        let (first, _) = late.first()?;
        let moment = |at| Moment::new(unix(at), unix(now));
        let named: Vec<String> = late
            .iter()
            .take(NAMED)
            .map(|(_, name)| escape(name))
            .collect();
        let more = match late.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let signed = match known.signed {
            Some(signed) => format!("somebody came to sign last at {}", moment(signed)),
            None => "nobody has come to sign since this daemon was started".to_owned(),
        };
        let since = moment(*first);
        Some(
            Problem::new(
                "K27",
                format!(
                    "unsigned requests for renewal wait since {since}: {}{more}",
                    named.join(", ")
                ),
                signed,
                "on this host, as root: pgtlsproxy renew; systemctl status pgtlsproxy-renew.timer",
            )
            .warning(),
        )
    }

    /// Keeps the ruling for the node; one that has asked for something else since gets none.
    pub(super) fn rule(&self, renewal: &Renewal, ruling: Ruling) {
        let mut known = self.known();
        let held = known.cases.values_mut().find(|held| held.is_of(renewal));
        if let Some(held) = held {
            held.ruling = Some(ruling);
        }
    }

    /// What every node should know of the CAs, from now on.
    pub(super) fn tell(&self, news: Certificates) {
        let mut known = self.known();
        known.signed = Some(SystemTime::now());
        known.news = Some(news);
    }

    /// What the command that signs has told last; nothing since the start of this process is none.
    pub(crate) fn news(&self) -> Option<Certificates> {
        self.known().news.clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewal(certificate: &str, request: &str) -> Renewal {
        Renewal {
            certificate: certificate.to_owned(),
            request: request.to_owned(),
            signature: String::new(),
        }
    }

    fn signed() -> Ruling {
        Ruling::Signed {
            certificate: "new".to_owned(),
        }
    }

    #[test]
    fn the_same_request_finds_its_ruling_and_another_takes_its_place() {
        let renewals = Renewals::default();
        let hand_in = |renewal| renewals.hand_in("a".to_owned(), renewal).unwrap();
        let first = renewal("1", "x");
        assert!(matches!(
            hand_in(first.clone()),
            Standing::Waits { signed: 0 }
        ));
        assert_eq!(renewals.waiting(), std::slice::from_ref(&first));
        renewals.rule(&first, signed());
        assert!(renewals.waiting().is_empty());
        // Not before it is known what comes with it.
        assert!(matches!(
            hand_in(first.clone()),
            Standing::Waits { signed: 1.. }
        ));
        renewals.tell(Certificates {
            ca: "ca".to_owned(),
            ..Certificates::default()
        });
        for _ in 0..2 {
            let Standing::Signed(got) = hand_in(first.clone()) else {
                panic!("no certificate");
            };
            assert_eq!((&*got.certificate, &*got.ca), ("new", "ca"));
        }
        let signed_again = Renewal {
            signature: "again".to_owned(),
            ..first.clone()
        };
        assert!(matches!(hand_in(signed_again), Standing::Signed(_)));
        let other = renewal("1", "y");
        assert!(matches!(hand_in(other.clone()), Standing::Waits { .. }));
        renewals.rule(&first, signed());
        assert!(
            matches!(hand_in(other.clone()), Standing::Waits { .. }),
            "that of another"
        );
        assert_eq!(renewals.waiting(), [other]);
    }

    #[test]
    fn a_refusal_is_told_once_and_then_the_request_waits_again() {
        let renewals = Renewals::default();
        let asked = renewal("1", "x");
        let hand_in = || renewals.hand_in("a".to_owned(), asked.clone()).unwrap();
        hand_in();
        let refused = Refused::default();
        renewals.rule(&asked, Ruling::Refused { refused });
        assert!(matches!(hand_in(), Standing::Refused(_)));
        assert!(matches!(hand_in(), Standing::Waits { .. }));
        assert_eq!(renewals.waiting().len(), 1);
    }

    #[test]
    fn who_waits_for_long_is_told_of_until_somebody_signs() {
        let renewals = Renewals::default();
        let overdue = |after| renewals.overdue(SystemTime::now() + after);
        let minute = Duration::from_secs(60);
        for n in 0..5 {
            let asked = renewal("1", &n.to_string());
            renewals.hand_in(n.to_string(), asked).unwrap();
        }
        assert!(overdue(PATIENCE - minute).is_none());
        let told = overdue(PATIENCE + minute).unwrap();
        assert!(!told.is_error() && told.id == "K27");
        assert!(told.what.contains("and 2 more"), "{}", told.what);
        assert!(told.why.contains("nobody has come"), "{}", told.why);
        // Another request of the same node does not begin anew.
        let since = renewals.known().cases["0"].since;
        renewals
            .hand_in("0".to_owned(), renewal("1", "new"))
            .unwrap();
        assert_eq!(renewals.known().cases["0"].since, since);
        for waiting in renewals.waiting() {
            renewals.rule(&waiting, signed());
        }
        assert!(overdue(PATIENCE + minute).is_none());
    }

    #[test]
    fn nodes_are_bounded() {
        let renewals = Renewals::default();
        let hand_in = |n: usize| renewals.hand_in(n.to_string(), renewal(&n.to_string(), ""));
        for n in 0..Renewals::MOST {
            assert!(hand_in(n).is_ok());
        }
        assert!(hand_in(Renewals::MOST).is_err_and(|problem| problem.id == "K16"));
        assert!(hand_in(0).is_ok());
    }
}
