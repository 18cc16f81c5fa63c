//! The daemon and its commands: the only place that knows every component.

mod admin;
mod catalog;
mod cli;
mod commands;
mod drawing;
mod logging;
mod progress;
mod run;
mod starter;
mod testing;

use std::process::ExitCode;

use clap::Parser;

/// Many threads hand blocks to each other; measured faster than the system's allocator there, and it gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
