//! Where the log goes and how it looks: stderr, text or JSON, with a level that a reload may change. Where stderr is the
//! journal, each line begins with its priority (sd-daemon(3)), and the time and colour are left to the journal.

use std::fmt::{self, Write as _};
use std::io::{IsTerminal, stderr};

use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level as Severity, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt as subscriber, reload};

use crate::config::{Log, LogFormat};

/// Changes the level of the running log.
pub(crate) struct Level(reload::Handle<LevelFilter, Registry>);

/// Starts logging; once per process.
pub(crate) fn start(log: Log) -> Level {
    let (filter, handle) = reload::Layer::new(log.level);
    let journal = stderr_is_the_journal();
    let format = subscriber::format().with_target(false);
    let layer = match log.format {
        LogFormat::Json => subscriber::layer()
            .json()
            .event_format(Prioritised {
                journal,
                format: format.json().flatten_event(true),
            })
            .with_writer(stderr)
            .boxed(),
        LogFormat::Text if journal => subscriber::layer()
            .fmt_fields(Text)
            .event_format(Prioritised {
                journal,
                format: format.without_time().with_level(false),
            })
            .with_ansi(false)
            .with_writer(stderr)
            .boxed(),
        LogFormat::Text => subscriber::layer()
            .fmt_fields(Text)
            .event_format(format)
            .with_ansi(stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_writer(stderr)
            .boxed(),
    };
    // A second start in one process keeps the first log, which is as good.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .try_init();
    Level(handle)
}

impl Level {
    pub(crate) fn set(&self, level: LevelFilter) {
        // It fails only when the log is gone, and then there is nothing to set.
        let _ = self.0.reload(level);
    }
}

/// Says something to who called a command: on stderr, and with its priority where that is the journal.
pub(crate) fn say(level: Severity, text: &str) {
    if stderr_is_the_journal() {
        for line in text.lines() {
            eprintln!("<{}>{line}", priority(level));
        }
    } else {
        eprintln!("{text}");
    }
}

/// systemd names the file that it gave a service as stderr: "device:inode" (systemd.exec(5), JOURNAL_STREAM). A child
/// whose stderr goes elsewhere still has the variable.
fn stderr_is_the_journal() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    fstat(stderr())
        .is_ok_and(|stat| named.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino)))
}

/// Puts the priority that the journal understands before each line.
struct Prioritised<F> {
    journal: bool,
    format: F,
}

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.journal {
            write!(writer, "<{}>", priority(*event.metadata().level()))?;
        }
        self.format.format_event(context, writer, event)
    }
}

/// As syslog(3) numbers them.
fn priority(level: Severity) -> u8 {
    match level {
        Severity::ERROR => 3,
        Severity::WARN => 4,
        Severity::INFO => 6,
        Severity::DEBUG | Severity::TRACE => 7,
    }
}

/// Fields as text: names of peers were escaped where they came in, so they are quoted here and not escaped again.
struct Text;

impl<'writer> FormatFields<'writer> for Text {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = TextVisitor {
            writer,
            first: true,
            written: Ok(()),
        };
        fields.record(&mut visitor);
        visitor.written
    }
}

struct TextVisitor<'writer> {
    writer: Writer<'writer>,
    first: bool,
    written: fmt::Result,
}

impl TextVisitor<'_> {
    fn field(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if self.written.is_err() {
            return;
        }
        let space = if std::mem::take(&mut self.first) {
            ""
        } else {
            " "
        };
        self.written = if field.name() == "message" {
            write!(self.writer, "{space}{value}")
        } else {
            write!(self.writer, "{space}{}={value}", field.name())
        };
    }
}

impl Visit for TextVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.field(field, format_args!("{value}"));
        } else {
            self.field(field, format_args!("\"{}\"", Quoted(value)));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, format_args!("{value:?}"));
    }
}

/// Text between quotes: what is escaped stays as it is, and a bare quote or control character cannot end it.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut escaped = false;
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
                escaped = false;
                continue;
            }
            if c == '"' && !escaped {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
            escaped = c == '\\' && !escaped;
        }
        // A lone backslash at the end would take the closing quote along.
        if escaped { f.write_char('\\') } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use protocol::escape::escape;

    use super::*;

    #[test]
    fn text_is_escaped_once_and_cannot_leave_its_quotes() {
        for (text, shown) in [
            (escape("standby1"), "standby1"),
            (escape("a\" end=\"finished"), "a\\\" end=\\\"finished"),
            (escape("\u{1b}[2J\\"), "\\u{1b}[2J\\\\"),
            ("not escaped: \" \n".to_owned(), "not escaped: \\\" \\n"),
            ("ends with \\".to_owned(), "ends with \\\\"),
            ("C:\\\\\"".to_owned(), "C:\\\\\\\""),
        ] {
            assert_eq!(Quoted(&text).to_string(), shown);
        }
    }
}
