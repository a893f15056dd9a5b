//! What every process tells of itself under Prometheus' names for it, read from /proc (proc(5)), which costs no disk.
//! What cannot be read is left out.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

/// Figures of this process; None where /proc does not tell.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// In user and system mode.
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
    /// In Unix time.
    pub(super) start_seconds: Option<f64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
}

impl Process {
    /// `started`: of this process. /proc tells it as time since the boot, which a service may not see (`ProcSubset=pid`),
    /// and the wall clock may have been set since.
    pub(super) fn read(started: SystemTime) -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let ticks = system(SysconfVar::CLK_TCK);
        let page = system(SysconfVar::PAGE_SIZE);
        let fields = Fields::of(&stat);
        let seconds =
            |number| Some(fields.number(number)? as f64 / ticks.filter(|ticks| *ticks > 0)? as f64);
        Self {
            cpu_seconds: seconds(14)
                .zip(seconds(15))
                .map(|(user, system)| user + system),
            threads: fields.number(20),
            start_seconds: since_1970(started),
            virtual_bytes: fields.number(23),
            resident_bytes: fields
                .number(24)
                .zip(page)
                .map(|(pages, page)| pages.saturating_mul(page)),
            open_fds: open_fds(),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE)
                .ok()
                .map(|(soft, _)| soft),
        }
    }
}

fn open_fds() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    // Since Linux 6.2 it tells how many there are; before, it tells 0, and making an entry for each takes a
    // microsecond or more.
    if let Some(told) = fs::metadata(DIRECTORY).ok().map(|about| about.len())
        && told > 0
    {
        return Some(told);
    }
    // The directory that is being read is one of them.
    let counted = fs::read_dir(DIRECTORY).ok()?.count().saturating_sub(1);
    u64::try_from(counted).ok()
}

/// The fields of /proc/self/stat behind the program's name, which may hold spaces and parentheses itself.
struct Fields<'a>(Vec<&'a str>);

impl<'a> Fields<'a> {
    fn of(stat: &'a str) -> Self {
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        Self(behind.split_whitespace().collect())
    }

    /// By its number in proc(5); the first one behind the name is 3.
    fn number(&self, field: usize) -> Option<u64> {
        self.0.get(field.checked_sub(3)?)?.parse().ok()
    }
}

fn since_1970(at: SystemTime) -> Option<f64> {
    let since = at.duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64())
}

fn system(variable: SysconfVar) -> Option<u64> {
    let value = sysconf(variable).ok().flatten()?;
    u64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_moves_no_field() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 4711 8192 3 1";
        let fields = Fields::of(stat);
        let told = [14, 15, 20, 22, 23, 24].map(|field| fields.number(field));
        assert_eq!(told, [250, 50, 9, 4711, 8192, 3].map(Some));
        assert_eq!(fields.number(99), None);
    }

    #[test]
    fn this_process_tells_all_of_it() {
        let process = Process::read(SystemTime::now());
        let (open, most) = (process.open_fds.unwrap(), process.max_fds.unwrap());
        assert!(open > 2 && open < most, "{process:?}");
        assert!(process.resident_bytes > Some(100_000), "{process:?}");
        assert!(process.threads > Some(0), "{process:?}");
        assert!(process.start_seconds > Some(1.7e9), "{process:?}");
    }
}
