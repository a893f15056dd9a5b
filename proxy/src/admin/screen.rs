//! A snapshot for a person: one screen of 80 columns. Pure: a snapshot in, text out. The snapshot came over a socket, so
//! whatever it holds is escaped once more before it meets a terminal.

use std::fmt::Write;

use crate::snapshot::{BaseBackup, Certificate, Lag, Replicating, Session, Snapshot, Tunnel};

const COLUMNS: usize = 80;
/// A certificate that ends sooner is shown in red.
const SOON_DAYS: f64 = 14.0;

/// How it shall look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) colour: bool,
    /// Lines that the terminal has, if it must fit.
    pub(crate) rows: Option<usize>,
}

#[derive(Clone, Copy)]
enum Style {
    Plain,
    Bold,
    Dim,
    Alarm,
}

/// Lines, each no longer than the screen is wide.
struct Page {
    lines: Vec<String>,
    colour: bool,
}

impl Page {
    fn line(&mut self, style: Style, text: &str) {
        let mut line: String = text.chars().map(harmless).collect();
        if line.chars().count() > COLUMNS {
            line = line.chars().take(COLUMNS - 1).collect();
            line.push('…');
        }
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Alarm => "31",
            Style::Plain => "",
        };
        self.lines.push(if self.colour && !code.is_empty() {
            format!("\x1b[{code}m{line}\x1b[0m")
        } else {
            line
        });
    }
}

/// What could steer a terminal is shown as a question mark; the text was escaped where it came in.
fn harmless(c: char) -> char {
    if protocol::escape::is_treacherous(c) {
        '?'
    } else {
        c
    }
}

/// The whole screen, ending with a line break.
pub(crate) fn screen(snapshot: &Snapshot, look: Look) -> String {
    let Snapshot { overview, sessions } = snapshot;
    let mut page = Page {
        lines: Vec::new(),
        colour: look.colour,
    };
    let head = format!(
        "pgtlsproxy {}, pid {}, up {}",
        overview.version,
        overview.pid,
        duration(overview.uptime_seconds)
    );
    page.line(Style::Bold, &parted(&head, &overview.at));
    for tunnel in &overview.tunnels {
        page.line(Style::Plain, &tunnel_line(tunnel));
    }
    for warning in &overview.warnings {
        page.line(
            Style::Alarm,
            &format!("! {} [{}]: {}", warning.what, warning.id, warning.way_out),
        );
    }
    for certificate in &overview.certificates {
        let style = if certificate.days_left < SOON_DAYS {
            Style::Alarm
        } else {
            Style::Plain
        };
        page.line(style, &certificate_line(certificate));
    }
    if let Some(reload) = &overview.last_reload {
        let (style, outcome) = if reload.ok {
            (Style::Plain, "done")
        } else {
            (Style::Alarm, "refused")
        };
        page.line(style, &format!("last reload {} {outcome}", reload.at));
        for problem in &reload.problems {
            page.line(style, &format!("  {problem}"));
        }
    }
    let room = look
        .rows
        .map(|rows| rows.saturating_sub(page.lines.len() + 2));
    let mut hidden = 0;
    let before = page.lines.len();
    for session in sessions {
        if room.is_some_and(|room| page.lines.len() - before + LINES_OF_A_SESSION > room) {
            hidden += 1;
        } else {
            show_session(&mut page, session);
        }
    }
    if sessions.is_empty() {
        page.line(Style::Dim, "no sessions");
    }
    if hidden > 0 {
        page.line(
            Style::Dim,
            &format!("and {hidden} more sessions (status --json shows all)"),
        );
    }
    page.lines.join("\n") + "\n"
}

const LINES_OF_A_SESSION: usize = 5;

fn show_session(page: &mut Page, session: &Session<'_>) {
    page.line(Style::Plain, "");
    let who = session.identity.as_deref().unwrap_or(&session.peer);
    let what = match session.activity.as_deref() {
        Some("idle") => format!("{}, idle", session.kind),
        _ => session.kind.to_string(),
    };
    page.line(
        Style::Bold,
        &parted(who, &format!("{what}, {}", duration(session.seconds))),
    );
    let mut line = format!("  {}", session.user);
    if let Some(name) = &session.application_name {
        let _ = write!(line, " as {name}");
    }
    if let Some(database) = &session.database {
        let _ = write!(line, ", database {database}");
    }
    if let Some(slot) = session.replication.as_ref().and_then(|r| r.slot.as_ref()) {
        let _ = write!(line, ", slot {slot}");
    }
    if let Some(pid) = session.backend_pid {
        let _ = write!(line, ", pid {pid}");
    }
    page.line(Style::Plain, &line);
    let mut line = format!("  {} {}", session.tunnel, session.peer);
    if let Some(upstream) = &session.upstream {
        let _ = write!(line, " -> {upstream}");
    }
    page.line(
        Style::Dim,
        &parted(&line, &format!("since {}", session.since)),
    );
    let rate = session.rate_to_downstream + session.rate_to_upstream;
    match (&session.replication, &session.basebackup) {
        (_, Some(backup)) => page.line(Style::Plain, &backup_line(backup, rate)),
        (Some(stream), None) => {
            page.line(Style::Plain, &stream_line(stream, rate));
            page.line(Style::Plain, &lag_line(stream));
        }
        (None, None) => page.line(
            Style::Plain,
            &format!(
                "  {}/s, {} to the backend, {} to the frontend",
                bytes(rate),
                bytes(session.bytes_to_upstream as f64),
                bytes(session.bytes_to_downstream as f64)
            ),
        ),
    }
}

fn tunnel_line(tunnel: &Tunnel) -> String {
    let left = format!(
        "{}  {} -> {}",
        tunnel.name,
        tunnel.listen,
        tunnel.upstream.join(", ")
    );
    let failed: u64 = tunnel.ended.iter().map(|ended| ended.failed).sum();
    let mut right = format!("{} live", tunnel.sessions);
    if failed > 0 {
        let _ = write!(right, ", {failed} failed or refused");
    }
    parted(&left, &right)
}

fn certificate_line(certificate: &Certificate) -> String {
    parted(
        &format!("certificate ({}) {}", certificate.of, certificate.name),
        &if certificate.days_left < 0.0 {
            format!("EXPIRED {}", certificate.not_after)
        } else {
            format!("{:.0} days left", certificate.days_left.floor())
        },
    )
}

fn backup_line(backup: &BaseBackup, rate: f64) -> String {
    let done = backup.done_bytes.unwrap_or(0).max(backup.bytes) as f64;
    let mut line = format!("  {}", bytes(done));
    if let Some(total) = backup.total_bytes {
        let percent = (done / (total as f64).max(1.0) * 100.0).min(100.0);
        let _ = write!(line, " of {} ({percent:.0} %)", bytes(total as f64));
    }
    let _ = write!(line, ", {}/s", bytes(rate));
    if backup.tablespaces > 0 {
        let _ = write!(line, ", {} tablespace(s)", backup.tablespaces);
    }
    line
}

fn stream_line(stream: &Replicating, rate: f64) -> String {
    let mut line = format!("  {}/s", bytes(rate));
    if let Some(sent) = &stream.sent_lsn {
        let _ = write!(line, ", sent {sent}");
    }
    if let Some(applied) = &stream.applied_lsn {
        let _ = write!(line, ", applied {applied}");
    }
    if let Some(age) = stream.reply_age_seconds {
        let _ = write!(line, ", reply {} ago", short(age));
    }
    line
}

fn lag_line(stream: &Replicating) -> String {
    let lags = [
        ("write", stream.write_lag),
        ("flush", stream.flush_lag),
        ("apply", stream.apply_lag),
    ];
    let mut line = "  lag".to_owned();
    for (
        what,
        Lag {
            bytes: behind,
            seconds,
        },
    ) in lags
    {
        let _ = write!(line, "  {what} ");
        line.push_str(&behind.map_or_else(|| "-".to_owned(), |behind| bytes(behind as f64)));
        if let Some(seconds) = seconds {
            let _ = write!(line, ", {}", short(seconds));
        }
    }
    line
}

/// Two texts at the ends of a line; the left one is cut.
fn parted(left: &str, right: &str) -> String {
    let room = COLUMNS.saturating_sub(right.chars().count() + 2);
    let count = left.chars().count();
    if count > room {
        let cut: String = left.chars().take(room.saturating_sub(1)).collect();
        return format!("{cut}…  {right}");
    }
    format!("{left}{}{right}", " ".repeat(room - count + 2))
}

fn bytes(count: f64) -> String {
    let mut count = count;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if count < 1_000.0 {
            return if unit == "B" {
                format!("{count:.0} B")
            } else {
                format!("{count:.1} {unit}")
            };
        }
        count /= 1_024.0;
    }
    format!("{count:.1} TiB")
}

fn short(seconds: f64) -> String {
    if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1_000.0)
    } else if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else {
        duration(seconds)
    }
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days} d {hours} h")
    } else if hours > 0 {
        format!("{hours} h {minutes} min")
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        serde_json::from_str(include_str!("screen.json")).unwrap()
    }

    fn plain() -> Look {
        Look {
            colour: false,
            rows: None,
        }
    }

    #[test]
    fn a_screen_is_80_columns_wide_and_tells_who_what_and_how_far() {
        let text = screen(&snapshot(), plain());
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
        for told in [
            "dns:standby1.example.com",
            "slot s1",
            "pid 4711",
            "sent 0/5000060",
            "write 0 B, 3 ms",
            "apply 16.0 MiB, 2 min 5 s",
            "1.0 GiB of 4.0 GiB (25 %)",
            "89 days left",
        ] {
            assert!(text.contains(told), "{told} is not in\n{text}");
        }
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let mut snapshot = snapshot();
        snapshot.sessions[0].user = "\x1b[2Jroot\u{202e}\n".to_owned();
        let text = screen(&snapshot, plain());
        assert!(text.contains("  ?[2Jroot??"), "{text}");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut snapshot = snapshot();
        for _ in 0..100 {
            let copy = serde_json::to_string(&snapshot.sessions[0]).unwrap();
            snapshot.sessions.push(serde_json::from_str(&copy).unwrap());
        }
        let look = Look {
            colour: false,
            rows: Some(24),
        };
        let text = screen(&snapshot, look);
        assert!(text.lines().count() <= 24, "{text}");
        assert!(text.contains("more sessions"), "{text}");
    }
}
