//! A contender's process and its children: started, accounted for by /proc, ended.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::problem::{Doing, Problem};

/// Of the times in /proc, on every architecture of Debian.
const USER_HZ: f64 = 100.0;

/// A program that runs beside the bench, with all its children and threads.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

/// What processes have used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Processor seconds, user and system.
    pub(crate) cpu: f64,
    /// Proportional share of memory, KiB.
    pub(crate) pss_kib: u64,
    /// Open files.
    pub(crate) descriptors: usize,
}

impl Process {
    /// Starts it; it gets SIGTERM when the bench ends, even by SIGKILL.
    pub(crate) fn start(command: &Command, log: PathBuf) -> Result<Self, Problem> {
        let program = command.get_program();
        let what = || format!("cannot start {}", program.display());
        let out = File::create(&log).doing(what)?;
        let err = out.try_clone().doing(what)?;
        let mut mortal = Command::new("setpriv");
        mortal.args(["--pdeathsig", "TERM"]).arg(program);
        mortal.args(command.get_args());
        let child = mortal
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .doing(what)?;
        Ok(Self { child, log })
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The last that it said.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n  ")
    }

    /// What it and its children have used since they began.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for pid in self.tree() {
            usage.cpu += cpu_seconds(pid).unwrap_or(0.0);
            usage.pss_kib += pss_kib(pid).unwrap_or(0);
            usage.descriptors += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        }
        usage
    }

    fn tree(&self) -> Vec<u32> {
        descendants(self.child.id(), &parents())
    }
}

impl Drop for Process {
    /// SIGTERM lets a master end its workers; what is left after a moment is killed.
    fn drop(&mut self) {
        let tree = self.tree();
        let signal = |pid: u32, signal| {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        };
        // Draining would wait for sessions that nobody needs any more.
        let single = tree.len() == 1;
        let first = if single {
            Signal::SIGKILL
        } else {
            Signal::SIGTERM
        };
        signal(self.child.id(), first);
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.ended().is_none() && Instant::now() < deadline {
            sleep(Duration::from_millis(5));
        }
        if self.ended().is_none() {
            for pid in tree {
                signal(pid, Signal::SIGKILL);
            }
            let _ = self.child.wait();
        }
    }
}

/// Processor seconds of this program and of all that it started, also what has ended.
pub(crate) fn own_cpu_seconds() -> f64 {
    let tree = descendants(std::process::id(), &parents());
    let ticks: u64 = tree
        .into_iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .filter_map(|stat| times(&stat).map(|times| times.iter().sum::<u64>()))
        .sum();
    ticks as f64 / USER_HZ
}

/// User and system time of a process with all its threads, also those that have ended: by its clock, which is finer than
/// the ticks of 10 ms in /proc.
pub(crate) fn cpu_seconds(pid: u32) -> Option<f64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed())).ok()?;
    Some(Duration::from(clock.now().ok()?).as_secs_f64())
}

/// utime, stime, cutime, cstime (the latter two of children waited for), from the 14th field on. The name before them
/// may hold anything, also blanks and `)`.
fn times(stat: &str) -> Option<[u64; 4]> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields = fields.split_whitespace().skip(11);
    let times: Vec<u64> = fields
        .take(4)
        .map_while(|field| field.parse().ok())
        .collect();
    times.try_into().ok()
}

fn pss_kib(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Every process and its parent.
fn parents() -> BTreeMap<u32, u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let parent = fields.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    })
    .collect()
}

/// A process and all that descend from it.
fn descendants(root: u32, parents: &BTreeMap<u32, u32>) -> Vec<u32> {
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&of) = tree.get(next) {
        let children = parents.iter().filter(|&(_, &parent)| parent == of);
        tree.extend(children.map(|(&pid, _)| pid));
        next += 1;
    }
    tree
}

/// The first line that a program says, on whichever output.
pub(crate) fn first_line(program: &Path, arguments: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        return format!("{} cannot be run", program.display());
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 100 0 0 0 77 23 5 6 20 0 3 0 99 0 0";
        assert_eq!(times(stat), Some([77, 23, 5, 6]));
        assert_eq!(times("12 (a"), None);
    }

    #[test]
    fn children_of_children_belong_to_the_tree() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (6, 9)]);
        assert_eq!(descendants(2, &parents), [2, 3, 4]);
    }

    #[test]
    fn a_process_accounts_for_itself() {
        let usage = (cpu_seconds(std::process::id()), pss_kib(std::process::id()));
        assert!(matches!(usage, (Some(_), Some(1..))), "{usage:?}");
    }
}
