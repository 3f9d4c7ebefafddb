//! The log: its level, its form, where it goes.
//!
//! The levels are those of the Logger API. Rust's `tracing` knows nothing above ERROR, so FATAL and PANIC are events at ERROR with the
//! target [`FATAL`] or [`PANIC`]: the last words of a process. At level FATAL only such events are written.
//!
//! The level asked for holds for this project's own crates. Libraries are held to WARN unless the level is TRACE:
//! an operator who asks for DEBUG wants to see decisions, not HTTP/2 frames.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use crate::shutdown::Shutdown;

/// The target of events that end the process.
pub const FATAL: &str = "fatal";
/// The target of the event that reports a panic.
pub const PANIC: &str = "panic";

/// How much is written, as in the Logger API: each level writes its own events and those of the levels before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LogLevel {
    /// Panics alone.
    Panic = 1,
    /// And what ends the process.
    Fatal = 2,
    /// And failures that somebody must look at.
    Error = 3,
    /// And what went wrong and was dealt with.
    Warn = 4,
    /// And what an operator wants to know on a quiet day.
    #[default]
    Info = 5,
    /// And each decision.
    Debug = 6,
    /// And everything that the libraries say.
    Trace = 7,
}

impl LogLevel {
    /// Every level, from the quietest.
    pub const ALL: [Self; 7] =
        [Self::Panic, Self::Fatal, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    fn from_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|level| *level as u8 == code).unwrap_or_default()
    }

    /// The name, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Fatal => "fatal",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    fn own(self) -> LevelFilter {
        match self {
            Self::Panic | Self::Fatal | Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }

    fn allows(self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        match self {
            Self::Panic => target == PANIC,
            Self::Fatal => target == PANIC || target == FATAL,
            Self::Trace => true,
            _ if is_own(target) => *metadata.level() <= self.own(),
            _ => *metadata.level() <= self.own().min(LevelFilter::WARN),
        }
    }
}

fn is_own(target: &str) -> bool {
    target.starts_with("bonafide") || target == FATAL || target == PANIC
}

impl std::fmt::Display for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LogLevel {
    type Err = LoggingError;

    fn from_str(text: &str) -> Result<Self, LoggingError> {
        Self::ALL
            .into_iter()
            .find(|level| level.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| LoggingError::UnknownLevel(text.to_owned()))
    }
}

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What the log is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// The level at start, to which a reset returns.
    pub level: LogLevel,
    /// The form of each line.
    pub format: LogFormat,
    /// The file to append to; standard error without one.
    pub file: Option<PathBuf>,
    /// Whether each line says where in the source it comes from: module, file and line.
    pub source_location: bool,
}

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// The file cannot be opened.
    #[error("cannot open the log file {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Logging was set up before in this process.
    #[error("logging is set up already")]
    AlreadySet,
    /// No such level.
    #[error("unknown log level {0:?}: use panic, fatal, error, warn, info, debug or trace")]
    UnknownLevel(String),
}

/// Changes the log of the running process. Clones share it.
#[derive(Clone, Debug)]
pub struct LogHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    level: AtomicU8,
    launch: LogLevel,
    sink: Sink,
}

impl LogHandle {
    /// A handle that changes no log: for code that needs one where no logging has been set up, such as tests.
    pub fn detached(launch: LogLevel) -> Self {
        let level = AtomicU8::new(launch as u8);
        Self { shared: Arc::new(Shared { level, launch, sink: Sink::Stderr }) }
    }

    /// The level in force.
    pub fn current(&self) -> LogLevel {
        self.shared.current()
    }

    /// The level at start.
    pub fn launch(&self) -> LogLevel {
        self.shared.launch
    }

    /// Changes the level from the next event on.
    pub fn set(&self, level: LogLevel) {
        self.shared.level.store(level as u8, Ordering::Relaxed);
        // Each place that logs caches whether anyone is interested.
        tracing::callsite::rebuild_interest_cache();
    }

    /// Back to the level at start.
    pub fn reset(&self) {
        self.set(self.shared.launch);
    }

    /// Opens the log file anew, after something else has moved it away. Without a file this does nothing.
    ///
    /// # Errors
    /// When it cannot be opened; writing goes on into the old one.
    pub fn reopen(&self) -> Result<(), LoggingError> {
        match &self.shared.sink {
            Sink::Stderr => Ok(()),
            Sink::File { path, file } => {
                let fresh = open(path)?;
                *file.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                Ok(())
            }
        }
    }
}

impl Shared {
    fn current(&self) -> LogLevel {
        LogLevel::from_code(self.level.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
enum Sink {
    Stderr,
    File { path: PathBuf, file: Mutex<File> },
}

fn open(path: &Path) -> Result<File, LoggingError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| LoggingError::Open { path: path.to_owned(), source })
}

/// Sets the log of the process up. Panics are logged from then on, too.
///
/// # Errors
/// When the file cannot be opened or logging has been set up before.
pub fn init_logging(config: LogConfig) -> Result<LogHandle, LoggingError> {
    let (subscriber, handle) = build(config)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::AlreadySet)?;
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tracing::error!(target: PANIC, "{info}");
        previous(info);
    }));
    Ok(handle)
}

/// The subscriber that [`init_logging`] installs.
fn build(config: LogConfig) -> Result<(Box<dyn Subscriber + Send + Sync>, LogHandle), LoggingError> {
    let sink = match config.file {
        None => Sink::Stderr,
        Some(path) => Sink::File { file: Mutex::new(open(&path)?), path },
    };
    let shared = Arc::new(Shared { level: AtomicU8::new(config.level as u8), launch: config.level, sink });
    let filter = LevelRule(Arc::clone(&shared));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(Writer(Arc::clone(&shared)))
        .with_ansi(false)
        .with_file(config.source_location)
        .with_line_number(config.source_location);
    let subscriber: Box<dyn Subscriber + Send + Sync> = match config.format {
        LogFormat::Text => Box::new(Registry::default().with(layer.with_filter(filter))),
        LogFormat::Json => {
            Box::new(Registry::default().with(layer.json().flatten_event(true).with_filter(filter)))
        }
    };
    Ok((subscriber, LogHandle { shared }))
}

/// Opens the log file anew at each SIGUSR2, as log rotation expects, until the shutdown.
///
/// # Errors
/// When the signal handler cannot be installed.
pub async fn reopen_on_signal(handle: LogHandle, shutdown: Shutdown) -> io::Result<()> {
    let mut user2 = signal(SignalKind::user_defined2())?;
    loop {
        tokio::select! {
            () = shutdown.triggered() => return Ok(()),
            _ = user2.recv() => match handle.reopen() {
                Ok(()) => tracing::info!("log file opened anew"),
                Err(error) => tracing::error!(%error, "still writing to the old log file"),
            },
        }
    }
}

/// The filter: reads the level anew for each event that is not ruled out already.
struct LevelRule(Arc<Shared>);

impl<S: Subscriber> Filter<S> for LevelRule {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.0.current().allows(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.0.current().allows(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0.current().own())
    }
}

#[derive(Clone)]
struct Writer(Arc<Shared>);

impl<'a> MakeWriter<'a> for Writer {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter(&self.0.sink)
    }
}

/// Writes one event; the whole line arrives in one call, so that lines of several threads do not mix.
struct LineWriter<'a>(&'a Sink);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0 {
            Sink::Stderr => io::stderr().lock().write_all(line)?,
            Sink::File { file, .. } => {
                file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line)?;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(config: LogConfig, act: impl FnOnce(&LogHandle)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (subscriber, handle) = build(LogConfig { file: Some(path.clone()), ..config }).unwrap();
        tracing::subscriber::with_default(subscriber, || act(&handle));
        std::fs::read_to_string(path).unwrap()
    }

    fn one_of_each() {
        tracing::error!(target: PANIC, "a-panic");
        tracing::error!(target: FATAL, "a-fatal");
        tracing::error!("an-error");
        tracing::warn!("a-warn");
        tracing::info!("an-info");
        tracing::debug!("a-debug");
        tracing::trace!("a-trace");
    }

    #[test]
    fn each_level_writes_itself_and_what_is_graver() {
        let words = ["a-panic", "a-fatal", "an-error", "a-warn", "an-info", "a-debug", "a-trace"];
        for (index, level) in LogLevel::ALL.into_iter().enumerate() {
            let text = logged(LogConfig { level, ..LogConfig::default() }, |_| one_of_each());
            for (position, word) in words.into_iter().enumerate() {
                assert_eq!(text.contains(word), position <= index, "{level} and {word}: {text}");
            }
        }
    }

    #[test]
    fn the_level_changes_and_returns_at_run_time() {
        let text = logged(LogConfig::default(), |handle| {
            assert_eq!((handle.current(), handle.launch()), (LogLevel::Info, LogLevel::Info));
            let say = |word: &str| tracing::debug!("{word}");
            say("first");
            handle.set(LogLevel::Debug);
            assert_eq!((handle.current(), handle.launch()), (LogLevel::Debug, LogLevel::Info));
            say("second");
            handle.reset();
            say("third");
        });
        assert!(!text.contains("first") && text.contains("second") && !text.contains("third"), "{text}");
    }

    #[test]
    fn libraries_are_quieter_than_we_are() {
        let speak = |_: &LogHandle| {
            tracing::info!(target: "h2::codec", "library-info");
            tracing::warn!(target: "h2::codec", "library-warn");
        };
        let text = logged(LogConfig { level: LogLevel::Debug, ..LogConfig::default() }, speak);
        assert!(!text.contains("library-info") && text.contains("library-warn"), "{text}");
        let text = logged(LogConfig { level: LogLevel::Trace, ..LogConfig::default() }, speak);
        assert!(text.contains("library-info"), "{text}");
    }

    #[test]
    fn json_lines_are_objects() {
        let text = logged(LogConfig { format: LogFormat::Json, ..LogConfig::default() }, |_| {
            tracing::info!(entry = "e1", "created \"one\"");
        });
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((line["message"].as_str(), line["entry"].as_str()), (Some("created \"one\""), Some("e1")));
    }

    #[test]
    fn a_line_says_where_it_comes_from_when_asked_to() {
        for (source_location, format) in [
            (true, LogFormat::Text),
            (true, LogFormat::Json),
            (false, LogFormat::Text),
            (false, LogFormat::Json),
        ] {
            let text = logged(LogConfig { source_location, format, ..LogConfig::default() }, |_| {
                tracing::info!("here");
            });
            assert_eq!(text.contains("logging.rs"), source_location, "{text}");
        }
    }

    #[test]
    fn a_moved_file_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let (subscriber, handle) =
            build(LogConfig { file: Some(path.clone()), ..LogConfig::default() }).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("before");
            std::fs::rename(&path, &moved).unwrap();
            tracing::info!("between");
            handle.reopen().unwrap();
            tracing::info!("after");
        });
        let (old, new) = (std::fs::read_to_string(moved).unwrap(), std::fs::read_to_string(path).unwrap());
        assert!(old.contains("before") && old.contains("between") && !old.contains("after"), "{old}");
        assert!(new.contains("after") && !new.contains("between"), "{new}");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let config = LogConfig { file: Some("/nonexistent/folder/log".into()), ..LogConfig::default() };
        let error = build(config).err().expect("refused").to_string();
        assert!(error.contains("/nonexistent/folder/log"), "{error}");
    }

    #[test]
    fn levels_are_read_and_shown() {
        for level in LogLevel::ALL {
            assert_eq!(level.to_string().parse::<LogLevel>().unwrap(), level);
        }
        assert!("verbose".parse::<LogLevel>().is_err());
    }
}
