//! The daemon and its commands: the only place that knows every component.

mod admin;
mod alerts;
mod api;
mod audit;
mod catalog;
mod cli;
mod client;
mod commands;
mod data_dir;
mod drawing;
mod evidence;
mod explain;
mod lanes;
mod logging;
mod notify;
mod plan;
mod poison;
mod progress;
mod recover;
mod reload;
mod replay;
mod run;
mod silences;
mod starter;
mod state;
mod testing;
mod views;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    match commands::execute(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}
