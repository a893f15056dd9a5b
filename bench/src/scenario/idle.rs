//! Sessions that are open and silent: what each costs in memory, and whether it is given back.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Ground, Outcome, Scenario};
use crate::contender::{Contender, Running, Side};
use crate::measure::{Measure, Measures};
use crate::problem::{Doing, Problem};
use crate::wire::Wish;
use crate::wire::frontend::Frontend;

/// Nobody gives memory back with each session; this long a contender has to find the time.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(6);

#[derive(Debug)]
pub(super) struct Idle {
    sessions: u32,
}

impl Idle {
    pub(super) fn new(sessions: u32) -> Self {
        Self { sessions }
    }
}

impl Scenario for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn method(&self) -> String {
        format!(
            "{} sessions are opened up to replication and stay silent. Memory is PSS from smaps_rollup of all processes \
             of a side, less what they had after a first session, divided by the sessions; once more 6 s after all \
             were closed.",
            self.sessions
        )
    }

    fn excludes(&self, contender: Contender) -> Option<&'static str> {
        match contender.name() {
            "direct" => Some("direct has no processes whose memory could be measured"),
            "plain" => Some("plain keeps its buffers: its memory is no floor for anybody's"),
            "target" => Some("the memory of a tunnel that is not ours to start is not seen"),
            "native" => Some("native is PostgreSQL's own TLS; the built-in backend has none"),
            _ => None,
        }
    }

    fn measure(&mut self, ground: &Ground, contender: Contender) -> Result<Vec<Outcome>, Problem> {
        raise_limit_of_files(u64::from(self.sessions))?;
        let running = contender.start(&ground.workshop, ground.backend.address())?;
        let open = |_| {
            let mut frontend = Frontend::connect(running.entry)?;
            frontend.replicate(Wish::Idle)?;
            Ok(frontend)
        };
        let before = settled_pss(&running);
        let open_before = descriptors(&running);
        let sessions: Vec<Frontend> = (0..self.sessions)
            .map(open)
            .collect::<std::io::Result<_>>()
            .doing(|| format!("{} does not open that many sessions", contender.name()))?;
        let during = settled_pss(&running);
        drop(sessions);
        wait_until_closed(&running, open_before + 50);
        std::thread::sleep(GIVEN_BACK_WITHIN);
        let after = settled_pss(&running);

        let per_session = |now: [u64; 2], side: usize| {
            (now[side] as f64 - before[side] as f64) / f64::from(self.sessions)
        };
        let [server, client] = [0, 1].map(|side| per_session(during, side));
        let measures = Measures::from([
            (Measure::PssPerSession, server + client),
            (Measure::PssPerSessionServer, server),
            (Measure::PssPerSessionClient, client),
            (
                Measure::PssAfter,
                per_session(after, 0) + per_session(after, 1),
            ),
        ]);
        Ok(vec![(format!("{} idle sessions", self.sessions), measures)])
    }
}

/// Sessions end a moment after their frontend; a contender that keeps them is shown by the memory that it keeps.
fn wait_until_closed(running: &Running, descriptors_left: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while descriptors(running) > descriptors_left && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn descriptors(running: &Running) -> usize {
    let sides = [Side::Server, Side::Client].map(|side| running.usage(side).unwrap_or_default());
    sides.iter().map(|usage| usage.descriptors).sum()
}

/// Memory of server and client, KiB, once it no longer changes, or after 5 s.
fn settled_pss(running: &Running) -> [u64; 2] {
    let now =
        || [Side::Server, Side::Client].map(|side| running.usage(side).unwrap_or_default().pss_kib);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut last = now();
    loop {
        std::thread::sleep(Duration::from_millis(400));
        let next = now();
        let same = last
            .iter()
            .zip(next)
            .all(|(last, next)| last.abs_diff(next) <= 64);
        if same || Instant::now() > deadline {
            return next;
        }
        last = next;
    }
}

/// Both ends of every session are in this process, and the contenders inherit the limit. Ours admits a session for
/// every four descriptors; root may be able to raise the hard limit for that.
pub(super) fn raise_limit_of_files(sessions: u64) -> Result<(), Problem> {
    let what = || "cannot raise the limit of open files".to_owned();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).doing(what)?;
    let (needed, best) = (2 * sessions + 200, hard.max(8 * sessions + 1_000));
    if setrlimit(Resource::RLIMIT_NOFILE, best, best).is_ok() {
        return Ok(());
    }
    if hard < needed {
        return Err(Problem::new(what())
            .because(format!(
                "{sessions} sessions need {needed}, the hard limit is {hard}"
            ))
            .way_out("take fewer --sessions, or raise it (ulimit -n, LimitNOFILE)"));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).doing(what)
}
