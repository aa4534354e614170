//! The agent's log: one JSON object a line, in the shape that hosts parse (`time`, `level`,
//! `msg`, then fields), or text for people. Nothing else may ever be written where it goes: a host
//! takes anything else for the agent's last words. `sink` sees to it that nobody waits for a
//! reader.

mod sink;

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyperv_socket::Peer;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use self::sink::{Obstacle, Sink};

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object.
    Json,
    /// `name=value`, for people.
    Text,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            other => Err(format!("-log-format {other:?} is not json or text")),
        }
    }
}

/// Whereto the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard error.
    Stderr,
    /// A file, which is emptied first.
    File(PathBuf),
    /// A port of the host, dialled by `deliver` again and again.
    Port(u32),
}

/// A process has one log. It is a global because `tracing` has one.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    format: Format,
    sink: Sink,
}

/// Writes events of at most this level's severity.
struct Lines {
    level: Level,
}

/// Sends this process's events to `target` from now on.
///
/// # Errors
/// When a log file cannot be opened.
pub fn start(level: Level, format: Format, target: &Target) -> io::Result<()> {
    let sink = match target {
        Target::Stderr => Sink::stderr(),
        Target::Port(_) => Sink::unconnected(),
        Target::File(path) => {
            let mut options = File::options();
            Sink::file(options.write(true).create(true).truncate(true).mode(0o600).open(path)?)
        }
    };
    // A second call, as tests make it, changes nothing.
    let _ = LOG.set(Log { format, sink });
    let _ = tracing::subscriber::set_global_default(Lines { level });
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "defect")));
    Ok(())
}

/// Ends the log of a process that was forked from one that has a log.
pub(crate) fn silence() {
    if let Some(log) = LOG.get() {
        log.sink.close();
    }
}

/// How long a host may take to listen on the log's port before it is tried again, at most.
const PAUSE: Duration = Duration::from_secs(2);

/// Delivers what a slow or absent reader has kept waiting, for as long as the agent lives.
pub(crate) async fn deliver(host: Peer, target: Target) {
    let Some(log) = LOG.get() else { return };
    let mut pause = Duration::from_millis(20);
    loop {
        match log.sink.flush(|count| lost(log.format, count)) {
            Obstacle::None => log.sink.stuck.notified().await,
            Obstacle::Absent => {
                let Target::Port(port) = target else {
                    log.sink.close();
                    return;
                };
                match hyperv_socket::connect(&host, port).await {
                    Ok(stream) => {
                        log.sink.connect(stream.into_fd());
                        pause = Duration::from_millis(20);
                    }
                    Err(_) => {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(PAUSE);
                    }
                }
            }
            Obstacle::Slow(fd) => match linkspan_guest_sys::register(fd) {
                Ok(fd) => drop(fd.writable().await),
                // Not to be watched: what is next written finds out.
                Err(_) => log.sink.stuck.notified().await,
            },
        }
    }
}

fn lost(format: Format, count: u64) -> Vec<u8> {
    let mut fields = Fields { message: "log lines were lost".into(), others: Map::new() };
    fields.others.insert("count".into(), count.into());
    fields.line(format, &Level::WARN)
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Only our own: the runtime's library tells far more than anybody reads.
        *metadata.level() <= self.level && metadata.target().starts_with("linkspan")
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn event(&self, event: &Event<'_>) {
        let Some(log) = LOG.get() else { return };
        let mut fields = Fields { message: String::new(), others: Map::new() };
        event.record(&mut fields);
        log.sink.write(fields.line(log.format, event.metadata().level()));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().unwrap_or_default().to_owned(),
            // For fields that hosts know by a name with a meaning of its own here.
            name => {
                let name = name.strip_prefix("field.").unwrap_or(name);
                self.others.insert(name.to_owned(), value);
            }
        }
    }

    fn line(self, format: Format, level: &Level) -> Vec<u8> {
        let level = match *level {
            Level::TRACE => "trace",
            Level::DEBUG => "debug",
            Level::INFO => "info",
            Level::WARN => "warning",
            Level::ERROR => "error",
        };
        let time = rfc3339(SystemTime::now());
        let mut line = match format {
            Format::Json => self.json(&time, level),
            Format::Text => {
                let mut text = format!("time=\"{time}\" level={level} msg={:?}", self.message);
                for (name, value) in self.others {
                    let _ = write!(text, " {name}={value}");
                }
                text.into_bytes()
            }
        };
        line.push(b'\n');
        line
    }

    fn json(self, time: &str, level: &str) -> Vec<u8> {
        let mut line = Map::new();
        line.insert("time".into(), time.into());
        line.insert("level".into(), level.into());
        line.insert("msg".into(), self.message.into());
        for (name, value) in self.others {
            let taken = line.contains_key(&name);
            line.insert(if taken { format!("fields.{name}") } else { name }, value);
        }
        serde_json::to_vec(&line).unwrap_or_default()
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.put(field, text.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days as i64);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

/// The Gregorian date of a day since 1970-01-01. Years are counted from March, so that the leap
/// day comes last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_keys_that_hosts_parse_and_none_twice() {
        let mut fields = Fields { message: "said \"so\"\n".into(), others: Map::new() };
        fields.others.insert("level".into(), 7.into());
        fields.others.insert("container".into(), "c".into());
        let line = fields.line(Format::Json, &Level::WARN);
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let line: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(line["level"], "warning");
        assert_eq!((&line["msg"], &line["fields.level"]), (&"said \"so\"\n".into(), &7.into()));
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn times_are_rfc_3339_with_nanoseconds() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000007Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, 7)), text);
        }
    }
}
