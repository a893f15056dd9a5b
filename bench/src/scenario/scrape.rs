//! Monitoring beside many sessions: what a scrape costs, how long it takes, how large it is, and whether round trips
//! beside it notice. Windows with and without scrapes alternate within a cell, so that all see the same sessions; those
//! of one kind have none either, and tell how far windows differ by themselves.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{ScopedJoinHandle, scope, sleep};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::unistd::gettid;

use super::idle::raise_limit_of_files;
use super::latency::Pace;
use super::{Account, Ground, Outcome, Scenario, per_unit};
use crate::contender::{Contender, OURS, Running};
use crate::measure::{Measure, Measures, Summary, histogram, micros};
use crate::problem::{Doing, Problem};
use crate::wire::frontend::Frontend;
use crate::wire::{PATIENCE, Wish};

const PATHS: [&str; 2] = ["/metrics", "/status.json"];
/// As often as the eager ones among scrapers ask.
const EVERY: Duration = Duration::from_secs(1);
/// As PostgreSQL's wal_receiver_status_interval.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// How long each path is asked without pause for its processor time, and nothing is asked before that.
const WITHOUT_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Scrape {
    sessions: u32,
    interval: Duration,
    window: Duration,
    /// Each cell begins with another kind of window.
    cell: usize,
}

/// What is asked of both sidecars during a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Nothing, and the other windows are compared with this one.
    Quiet,
    Nothing,
    Path(&'static str),
}

impl Scrape {
    /// In this order, and back again, so that what drifts hits all alike.
    const WINDOWS: [Asked; 4] = [
        Asked::Quiet,
        Asked::Path(PATHS[0]),
        Asked::Path(PATHS[1]),
        Asked::Nothing,
    ];

    pub(super) fn new(sessions: u32, rate: u32, seconds: f64) -> Self {
        Self {
            sessions,
            interval: Duration::from_secs(1) / rate,
            window: Duration::from_secs_f64(seconds.clamp(0.1, 3600.0)),
            cell: 0,
        }
    }

    /// Round trips while each kind of window is asked for, compared with those of quiet ones.
    fn round_trips(
        &mut self,
        pace: &mut Pace,
        admin: [SocketAddr; 2],
    ) -> Result<Vec<Outcome>, Problem> {
        let mut order = Self::WINDOWS;
        order.rotate_left(self.cell % Self::WINDOWS.len());
        self.cell += 1;
        let mut took = Self::WINDOWS.map(|asked| (asked, histogram()));
        for asked in order.into_iter().chain(order.into_iter().rev()) {
            if let Some((_, into)) = took.iter_mut().find(|(kind, _)| *kind == asked) {
                self.window(pace, admin, asked, into)?;
            }
        }
        let [(_, quiet), others @ ..] = &took;
        let outcomes = others.iter().map(|(asked, scraped)| {
            let what = match asked {
                Asked::Path(path) => path,
                Asked::Quiet | Asked::Nothing => "nothing",
            };
            let sessions = self.sessions;
            let name = format!("round trips beside {sessions} sessions, {what} each second");
            (name, compared(quiet, scraped))
        });
        Ok(outcomes.collect())
    }

    fn window(
        &self,
        pace: &mut Pace,
        admin: [SocketAddr; 2],
        asked: Asked,
        into: &mut Histogram<u64>,
    ) -> Result<(), Problem> {
        let path = match asked {
            Asked::Quiet | Asked::Nothing => None,
            Asked::Path(path) => Some(path),
        };
        let (over, begun) = (AtomicBool::new(false), Barrier::new(2));
        scope(|threads| {
            let scraper = path.map(|path| {
                let begun = &begun;
                let over = &over;
                threads.spawn(move || scrape_until(over, begun, admin, path))
            });
            // What it takes to begin is no scrape.
            if scraper.is_some() {
                begun.wait();
            }
            let kept = pace.keep(self.window, into, &mut histogram());
            over.store(true, Ordering::Relaxed);
            kept.doing(|| "round trips fail".to_owned())?;
            scraper.map_or(Ok(()), joined)
        })
    }
}

/// Percentiles of windows with scrapes and of quiet ones, and the ratios.
fn compared(quiet: &Histogram<u64>, scraped: &Histogram<u64>) -> Measures {
    let mut measures = Measures::new();
    for (percentile, of_quiet, of_scraped, ratio) in [
        (
            50.0,
            Measure::P50,
            Measure::ScrapedP50,
            Measure::ScrapedToQuietP50,
        ),
        (
            99.0,
            Measure::P99,
            Measure::ScrapedP99,
            Measure::ScrapedToQuietP99,
        ),
    ] {
        let of = |histogram: &Histogram<u64>| micros(histogram, percentile);
        measures.insert(of_quiet, of(quiet));
        measures.insert(of_scraped, of(scraped));
        measures.insert(ratio, of(scraped) / of(quiet));
    }
    measures
}

impl Scenario for Scrape {
    fn name(&self) -> &'static str {
        "scrape"
    }

    fn is_monitored(&self) -> bool {
        true
    }

    fn method(&self) -> String {
        format!(
            "{} replication sessions stay open, each with a status update every {} s. One more does round trips of 64 \
             bytes, one due every {} µs, timed from when it was due. Eight windows of {} s, two of each kind: one path \
             of both sidecars is asked every {} s, or the other, or none (twice; `nothing` is compared with the rest of \
             these, and tells how far windows differ by themselves). Answers are read at idle priority (SCHED_IDLE), so \
             that what is noticed is the sidecars'. Then, without round trips and status updates, each path is asked at \
             both sides without pause for {} s: the sidecars' processor time, less what they took in a time as long in which \
             nobody asked, divided by the scrapes.",
            self.sessions,
            STATUS_EVERY.as_secs(),
            self.interval.as_micros(),
            self.window.as_secs_f64(),
            EVERY.as_secs(),
            WITHOUT_PAUSE.as_secs(),
        )
    }

    fn excludes(&self, contender: Contender) -> Option<&'static str> {
        (!contender.name().starts_with(OURS))
            .then_some("only our own sidecars are asked for metrics")
    }

    fn measure(&mut self, ground: &Ground, contender: Contender) -> Result<Vec<Outcome>, Problem> {
        raise_limit_of_files(u64::from(self.sessions))?;
        let running = contender.start(&ground.workshop, ground.backend.address())?;
        let admin = running
            .admin
            .ok_or_else(|| Problem::new("there is nobody to ask for metrics"))?;
        let what = || format!("{} does not open the sessions", contender.name());
        let open = || {
            let mut frontend = Frontend::connect(running.entry)?;
            frontend.replicate(Wish::Echo)?;
            Ok(frontend)
        };
        let mut sessions: Vec<Frontend> = (0..self.sessions)
            .map(|_| open())
            .collect::<io::Result<_>>()
            .doing(what)?;
        let mut pace = open()
            .and_then(|frontend| Pace::new(frontend, self.interval))
            .doing(what)?;
        // Their positions are known from now on.
        report(&mut sessions, Duration::ZERO, &AtomicBool::new(false))
            .and_then(|()| pace.warm_up())
            .doing(what)?;

        let over = AtomicBool::new(false);
        let round_trips = scope(|threads| {
            let reporter = threads.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    report(&mut sessions, STATUS_EVERY, &over)?;
                }
                Ok(())
            });
            let measured = self.round_trips(&mut pace, admin);
            over.store(true, Ordering::Relaxed);
            let measured = measured?;
            joined(reporter).map(|()| measured)
        })?;

        let mut outcomes = round_trips;
        let idle = idle(&running);
        for path in PATHS {
            let measures = without_pause(&running, admin, path, idle)?;
            outcomes.push((format!("{path} of {} sessions", self.sessions), measures));
        }
        Ok(outcomes)
    }
}

/// A status update of each session and its answer, spread over this time, unless it is over before.
fn report(sessions: &mut [Frontend], time: Duration, over: &AtomicBool) -> io::Result<()> {
    let step = time / sessions.len().max(1) as u32;
    for session in sessions {
        if over.load(Ordering::Relaxed) {
            break;
        }
        session.round_trip(1)?;
        sleep(step.min(EVERY));
    }
    Ok(())
}

/// A path of both sides, soon after the start and then once a second.
fn scrape_until(
    over: &AtomicBool,
    begun: &Barrier,
    admin: [SocketAddr; 2],
    path: &str,
) -> io::Result<()> {
    let lowered = idle_priority();
    begun.wait();
    lowered?;
    let mut due = Instant::now() + Duration::from_millis(50);
    while !over.load(Ordering::Relaxed) {
        if Instant::now() < due {
            sleep(Duration::from_millis(5));
            continue;
        }
        for side in admin {
            get(side, path)?;
        }
        due += EVERY;
    }
    Ok(())
}

/// This thread has a processor from now on when nobody else wants it: a scraper is seldom on this host.
fn idle_priority() -> io::Result<()> {
    let thread = gettid().to_string();
    let mut command = Command::new("chrt");
    command.args(["--idle", "--pid", "0", &thread]);
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = protocol::escape::escape(output.stderr.trim_ascii());
    Err(io::Error::other(format!(
        "chrt cannot lower a priority: {said}"
    )))
}

fn joined(thread: ScopedJoinHandle<'_, io::Result<()>>) -> Result<(), Problem> {
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("a thread of the bench failed")))
        .doing(|| "what goes on beside the round trips fails".to_owned())
}

/// CPU seconds that each side takes in a second for the sessions alone.
fn idle(running: &Running) -> [Option<f64>; 2] {
    let (account, begun) = (Account::open(running), Instant::now());
    sleep(WITHOUT_PAUSE);
    let lasted = begun.elapsed().as_secs_f64();
    account.spent().map(|spent| Some(spent? / lasted))
}

/// What one path costs.
fn without_pause(
    running: &Running,
    admin: [SocketAddr; 2],
    path: &str,
    idle: [Option<f64>; 2],
) -> Result<Measures, Problem> {
    let what = || format!("{path} is not answered");
    let (mut took, mut sizes) = (Vec::new(), Vec::new());
    let account = Account::open(running);
    let begun = Instant::now();
    while begun.elapsed() < WITHOUT_PAUSE {
        for side in admin {
            let asked = Instant::now();
            sizes.push(get(side, path).doing(what)? as f64 / 1024.0);
            took.push(asked.elapsed().as_secs_f64() * 1e3);
        }
    }
    let (spent, lasted) = (account.spent(), begun.elapsed().as_secs_f64());
    let mut measures = per_unit(
        [0, 1].map(|side| Some(spent[side]? - idle[side]? * lasted)),
        2e3 / took.len() as f64,
        [
            Measure::CpuPerScrape,
            Measure::CpuPerScrapeServer,
            Measure::CpuPerScrapeClient,
        ],
    );
    if let (Some(took), Some(size)) = (Summary::of(took), Summary::of(sizes)) {
        measures.insert(Measure::ScrapeTakes, took.median);
        measures.insert(Measure::ScrapeTakesAtMost, took.max);
        measures.insert(Measure::ScrapeSize, size.median);
    }
    Ok(measures)
}

/// Asks as a scraper does; how many bytes came, head and all.
fn get(address: SocketAddr, path: &str) -> io::Result<usize> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    // What is read is thrown away: to keep it would cost more than to read it.
    let mut piece = vec![0; 64 * 1024];
    let mut filled = 0;
    while !piece[..filled].contains(&b'\r') {
        match stream.read(&mut piece[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    if !piece.starts_with(b"HTTP/1.1 200 ") {
        let line = piece[..filled].split(|&byte| byte == b'\r').next();
        let said = protocol::escape::escape(line.unwrap_or_default());
        return Err(io::Error::other(format!("{path}: {said}")));
    }
    let mut length = filled;
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(length),
            read => length += read,
        }
    }
}
