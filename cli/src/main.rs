//! The `bonafide` command: people and scripts manage a trust domain with it, and workloads without an SDK get
//! their SVIDs through it.
//!
//! Every command speaks to one socket: the server's local one (`--server-socket`) or the agent's Workload API
//! (`--agent-socket`). What is printed is a table for people, or with `-o json` one JSON document for scripts.
//! Failures go to standard error with the next thing to try; exit status 1 is a failure of the command, 2 is a
//! mistake in how it was called.

mod admin;
mod args;
mod connect;
mod failure;
mod gpu;
mod output;
mod reference;
mod workload;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Arguments, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            if let Some(hint) = failure.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let to = connect::Sockets { server: arguments.server_socket, agent: arguments.agent_socket };
    let out = output::Output::new(arguments.output);
    match arguments.command {
        Command::Entry(command) => admin::entry::run(command, &to, &out).await?,
        Command::Agent(command) => admin::agent::run(command, &to, &out).await?,
        Command::Token(command) => admin::token::run(command, &to, &out).await?,
        Command::Bundle(command) => admin::bundle::run(command, &to, &out).await?,
        Command::Federation(command) => admin::federation::run(command, &to, &out).await?,
        Command::Authority(command) => admin::authority::run(command, &to, &out).await?,
        Command::Mint(command) => admin::mint::run(command, &to, &out).await?,
        Command::Server(command) => admin::server::run(command, &to, &out).await?,
        Command::Policy(command) => return admin::policy::run(command, &to, &out).await,
        Command::Health(command) => return admin::server::health(command, &to, &out).await,
        Command::Fetch(command) => workload::fetch::run(command, &to, &out).await?,
        Command::Watch(command) => workload::fetch::watch(command, &to, &out).await?,
        Command::Write(command) => workload::files::run(command, &to, &out).await?,
        Command::Validate(command) => workload::validate::run(command, &to, &out).await?,
        Command::Gpu(command) => gpu::run(command)?,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "bonafide", &mut std::io::stdout());
        }
        Command::Man { directory } => reference::write_man_pages(&directory)?,
    }
    Ok(ExitCode::SUCCESS)
}
