//! How far pg_basebackup is, by what it writes to standard error: a bar on a terminal, lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const BAR: usize = 24;
/// Between two lines where nobody looks at a terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Bytes that have come, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    done: u64,
    of: u64,
}

impl Progress {
    /// `12345/67890 kB (18%), 0/1 tablespace`, as pg_basebackup has it since 9.1.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (numbers, _) = line.trim().split_once(" kB (")?;
        let (done, of) = numbers.trim().split_once('/')?;
        let bytes = |text: &str| text.trim().parse::<u64>().ok()?.checked_mul(1024);
        Some(Self {
            done: bytes(done)?,
            of: bytes(of)?,
        })
    }

    fn percent(self) -> u64 {
        // The directory may have grown since it was measured.
        self.done
            .saturating_mul(100)
            .checked_div(self.of)
            .unwrap_or(0)
            .min(100)
    }

    /// After so long.
    fn text(self, after: Duration) -> String {
        let rate = rate(self.done, after);
        let left = self.of.saturating_sub(self.done).checked_div(rate);
        let left = left.map_or_else(String::new, |seconds| {
            format!(", {} left", clock(Duration::from_secs(seconds)))
        });
        format!(
            "{:3} %  {} of {}, {}/s{left}",
            self.percent(),
            bytes(self.done),
            bytes(self.of),
            bytes(rate)
        )
    }
}

fn rate(done: u64, after: Duration) -> u64 {
    let milliseconds = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1);
    done.saturating_mul(1000) / milliseconds
}

/// Shows progress on standard error.
pub(super) struct Shown {
    begun: Instant,
    last: Option<Instant>,
    terminal: bool,
    now: Option<Progress>,
}

impl Shown {
    pub(super) fn begin() -> Self {
        Self {
            begun: Instant::now(),
            last: None,
            terminal: std::io::stderr().is_terminal(),
            now: None,
        }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        self.now = Some(progress);
        let text = progress.text(self.begun.elapsed());
        if self.terminal {
            let full = BAR * usize::try_from(progress.percent()).unwrap_or(0) / 100;
            let bar = format!("{}{}", "#".repeat(full), ".".repeat(BAR - full));
            // The line is written over; what an earlier, longer one left is taken away.
            eprint!("\r  [{bar}] {text}\x1b[K");
            let _ = std::io::stderr().flush();
        } else if self.last.is_none_or(|last| last.elapsed() >= BETWEEN_LINES) {
            self.last = Some(Instant::now());
            eprintln!("  {text}");
        }
    }

    /// The last word.
    pub(super) fn end(self) {
        if self.terminal && self.now.is_some() {
            eprintln!();
        }
        if let Some(progress) = self.now {
            let after = self.begun.elapsed();
            eprintln!(
                "copied {} in {}, {}/s",
                bytes(progress.done),
                clock(after),
                bytes(rate(progress.done, after))
            );
        }
    }
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{:02} h", seconds % 60)
    } else {
        format!("{minutes}:{:02} min", seconds % 60)
    }
}

fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (number, 0);
    let mut rest = 0;
    while value >= 1024 && unit + 1 < UNITS.len() {
        rest = value % 1024 * 10 / 1024;
        value /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 || value >= 100 {
        format!("{value} {name}")
    } else {
        format!("{value}.{rest} {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pg_basebackups_lines_are_read() {
        for (line, expected) in [
            (
                " 3147/23110 kB (13%), 0/1 tablespace (...a/base/1)",
                Some((3147, 23110)),
            ),
            (
                "23119/23110 kB (100%), 1/1 tablespace",
                Some((23119, 23110)),
            ),
            ("    0/0 kB (0%), 0/1 tablespace", Some((0, 0))),
            ("pg_basebackup: checkpoint completed", None),
            ("waiting for checkpoint", None),
            ("-1/99999999999999999999 kB (1%)", None),
        ] {
            let expected = expected.map(|(done, of)| Progress {
                done: done * 1024,
                of: of * 1024,
            });
            assert_eq!(Progress::parse(line), expected, "{line}");
        }
    }

    #[test]
    fn bytes_rate_and_time_left_are_told() {
        let progress = Progress {
            done: 3 << 30,
            of: 12 << 30,
        };
        assert_eq!(
            progress.text(Duration::from_secs(60)),
            " 25 %  3.0 GB of 12.0 GB, 51.1 MB/s, 3:00 min left"
        );
        let none = Progress { done: 0, of: 0 };
        assert_eq!(none.text(Duration::ZERO), "  0 %  0 B of 0 B, 0 B/s");
    }
}
