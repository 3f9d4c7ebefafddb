//! The `bonafide-server` command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use bonafide_pki::{Random, SystemRandom};
use bonafide_runtime::BoxError;
use bonafide_runtime::clock::{Clock as _, SystemClock};
use bonafide_runtime::import;
use bonafide_runtime::listener::{forbid_core_dumps, raise_descriptor_limit};
use bonafide_runtime::shutdown::on_signals;
use bonafide_runtime::tasks::chain;
use bonafide_runtime::telemetry::init_logging;
use bonafide_server::backup;
use bonafide_server::config::Config;
use bonafide_server::config::lifetime::judge;
use bonafide_server::drivers;
use bonafide_server::server::{Environment, Server};
use bonafide_server::store::{self, Existing};
use clap::{Parser, Subcommand};

/// Holds a trust domain: attests nodes and signs SVIDs.
#[derive(Parser)]
#[command(name = "bonafide-server", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT. SIGUSR2 opens log and audit log anew.
    Run {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Check a configuration and everything it names, and say all that is wrong with it.
    Validate {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Translate a configuration of SPIRE's server into one of this server.
    ///
    /// Reports on standard error what was not carried over, and exits with 0 when everything was, with 3 when
    /// something was not, and with 1 when the file is wrong.
    Import {
        /// SPIRE's server.conf, in HCL or JSON; - for standard input.
        file: PathBuf,
        /// The file to write, which must not exist; standard output when absent.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replace $NAME and ${NAME} by the environment first, as SPIRE does under -expandEnv.
        #[arg(long)]
        expand_env: bool,
        /// Only report; write nothing.
        #[arg(long, conflicts_with = "output")]
        check: bool,
    },
    /// Write everything in the store to one file, whether the server is running or not.
    Backup {
        #[command(flatten)]
        config: ConfigFile,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Make the store anew from a backup. The server must not be running; a store that is there is kept beside the
    /// new one.
    Restore {
        #[command(flatten)]
        config: ConfigFile,
        /// The backup to read.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
    },
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(short, long = "config", value_name = "FILE", env = "BONAFIDE_SERVER_CONFIG")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Import { file, output, expand_env, check } => {
            let request = import::Request { input: file, output, expand_env, check };
            match import::run(&bonafide_server::config::import::TABLE, &request) {
                Ok(done) => return done.into(),
                Err(error) => Err(error),
            }
        }
        Command::Run { config } => run(&config.config),
        Command::Validate { config } => validate(&config.config),
        Command::Backup { config, to } => backup(&config.config, &to),
        Command::Restore { config, from } => restore(&config.config, &from),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bonafide-server: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path) -> Result<(), BoxError> {
    forbid_core_dumps()?;
    let config = Config::load(path)?;
    let log = init_logging(config.log.clone())?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    match raise_descriptor_limit() {
        Ok(limit) => tracing::debug!(before = limit.before, now = limit.now, "limit on file descriptors"),
        Err(error) => tracing::warn!(%error, "the limit on file descriptors stays as it is"),
    }
    runtime()?.block_on(async {
        let server = Server::start(config, Environment::system(log)).await?;
        let shutdown = server.shutdown();
        tokio::spawn(async move {
            if let Err(error) = on_signals(shutdown).await {
                tracing::error!(%error, "cannot listen for signals: stop this server with SIGKILL");
            }
        });
        server.wait().await?;
        Ok(())
    })
}

fn validate(path: &Path) -> Result<(), BoxError> {
    let config = Config::load(path)?;
    let random: Arc<dyn Random> = Arc::new(SystemRandom);
    let problems = drivers::check(&config, &random, &SystemClock::shared());
    for warning in config.warnings().into_iter().chain(judge(&config, SystemClock.now()).warnings) {
        eprintln!("warning: {warning}");
    }
    if problems.is_empty() {
        println!("{} is valid", path.display());
        return Ok(());
    }
    Err(format!("{} cannot be used:\n  {}", path.display(), problems.join("\n  ")).into())
}

fn backup(path: &Path, to: &Path) -> Result<(), BoxError> {
    let config = Config::load(path)?;
    let info = runtime()?.block_on(backup::backup(&config, to, SystemClock::shared()))?;
    println!("{} records ({} bytes) written to {}", info.records, info.bytes, to.display());
    Ok(())
}

fn restore(path: &Path, from: &Path) -> Result<(), BoxError> {
    let config = Config::load(path)?;
    let info = store::restore(
        from,
        &drivers::store_config(&config.store, &config.trust_domain),
        Existing::MoveAside,
        SystemClock.now(),
    )?;
    println!("{} records restored from {}", info.records, from.display());
    Ok(())
}

/// A thread for each core; signing has its own.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("server").build()
}
