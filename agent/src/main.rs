//! The `bonafide-agent` daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use bonafide_agent::agent::{Agent, Overrides};
use bonafide_agent::config::Config;
use bonafide_runtime::BoxError;
use bonafide_runtime::import;
use bonafide_runtime::listener::{forbid_core_dumps, raise_descriptor_limit};
use bonafide_runtime::shutdown::{Shutdown, on_signals};
use bonafide_runtime::tasks::chain;
use bonafide_runtime::telemetry::{FATAL, init_logging, metrics, reopen_on_signal};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Attests the node and its workloads and serves them SPIFFE identities.
#[derive(Parser)]
#[command(name = "bonafide-agent", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent until it is told to stop (SIGTERM or SIGINT).
    Run(ConfigFile),
    /// Check a configuration file and say everything that is wrong with it.
    Validate(ConfigFile),
    /// Translate a configuration of SPIRE's agent into one of this agent.
    ///
    /// Reports on standard error what was not carried over, and exits with 0 when everything was, with 3 when
    /// something was not, and with 1 when the file is wrong.
    Import {
        /// SPIRE's agent.conf, in HCL or JSON; - for standard input.
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
    /// Print a reference document.
    Reference {
        /// Which one.
        document: Document,
    },
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/bonafide/agent.toml")]
    config: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Document {
    /// Every key of the configuration file.
    Configuration,
    /// Every metric.
    Metrics,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(file) => run(file),
        Command::Validate(file) => validate(file),
        Command::Import { file, output, expand_env, check } => {
            let request = import::Request { input: file, output, expand_env, check };
            match import::run(&bonafide_agent::config::import::TABLE, &request) {
                Ok(done) => return done.into(),
                Err(error) => Err(error),
            }
        }
        Command::Reference { document } => {
            match document {
                Document::Configuration => print!("{}", bonafide_agent::config::reference()),
                Document::Metrics => print!("{}", bonafide_agent::metrics::reference()),
            }
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bonafide-agent: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn validate(file: ConfigFile) -> Result<(), BoxError> {
    Config::load(&file.config)?;
    println!("{} is a valid configuration.", file.config.display());
    Ok(())
}

fn run(file: ConfigFile) -> Result<(), BoxError> {
    forbid_core_dumps()?;
    let config = Config::load(&file.config)?;
    let log = init_logging(config.log.clone())?;
    // Most of the agent waits; two threads are plenty and keep it small.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::new();
        let limit = raise_descriptor_limit()?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), descriptors = limit.now, "starting");
        let signals = tokio::spawn(on_signals(shutdown.clone()));
        tokio::spawn(reopen_on_signal(log.clone(), shutdown.clone()));
        tokio::spawn(metrics().upkeep(shutdown.clone()));
        let overrides = Overrides { log: Some(log), shutdown: shutdown.clone(), ..Overrides::default() };
        let outcome: Result<(), BoxError> = async {
            let agent = Agent::start(config, overrides).await?;
            Ok(agent.join().await?)
        }
        .await;
        shutdown.trigger();
        signals.await??;
        outcome
    });
    if let Err(error) = &result {
        tracing::error!(target: FATAL, error = chain(&**error), "the agent stops");
    }
    result
}
