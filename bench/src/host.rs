//! The machine that figures come from: a figure without it says nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How many processors there are for all.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What a reader must know of the machine.
pub(crate) fn describe() -> BTreeMap<String, String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let of = |text: &str, key: &str, separator: char| {
        let line = text.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once(separator));
        value.map_or_else(
            || "unknown".to_owned(),
            |(_, value)| value.trim().trim_matches('"').to_owned(),
        )
    };
    let flags = of(&cpuinfo, "flags", ':');
    let ciphers = ["aes", "avx2", "vaes", "vpclmulqdq", "avx512f", "hypervisor"];
    let ciphers: Vec<&str> = flags
        .split_whitespace()
        .filter(|flag| ciphers.contains(flag))
        .collect();
    let openssl = crate::contender::first_line(Path::new("openssl"), &["version"]);
    let entries = [
        ("processor", of(&cpuinfo, "model name", ':')),
        ("processors", processors().to_string()),
        ("processor flags", ciphers.join(" ")),
        ("memory", of(&read("/proc/meminfo"), "MemTotal", ':')),
        (
            "kernel",
            read("/proc/sys/kernel/osrelease").trim().to_owned(),
        ),
        ("system", of(&read("/etc/os-release"), "PRETTY_NAME", '=')),
        ("openssl of the peers", openssl),
        (
            "load before the run",
            read("/proc/loadavg").trim().to_owned(),
        ),
    ];
    entries
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Processor seconds that the whole machine has been busy; steps of 10 ms.
pub(crate) fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_ticks(&stat) as f64 / 100.0
}

/// user, nice, system, irq, softirq; neither idle nor iowait, and steal is nobody's work here.
fn busy_ticks(stat: &str) -> u64 {
    let fields = stat.lines().next().unwrap_or_default().split_whitespace();
    let fields: Vec<u64> = fields
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    [0, 1, 2, 5, 6]
        .iter()
        .filter_map(|&at| fields.get(at))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_iowait_and_steal_are_not_busy() {
        assert_eq!(
            busy_ticks("cpu  1 2 4 1000 2000 8 16 4000 0 0\ncpu0 9 9"),
            31
        );
        assert_eq!(busy_ticks(""), 0);
    }
}
