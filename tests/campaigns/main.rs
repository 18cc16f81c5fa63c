//! Campaigns: the real binary killed, starved and lied to, and everything it should have written counted afterwards.
//!
//! See `docs/testing.md` for what each does, its sizes and how to repeat a run.
#![allow(clippy::disallowed_methods, reason = "campaigns live in real time")]

use std::collections::BTreeMap;

mod disk_full;
mod kill;
mod memory;
mod planted;
mod points;
mod receivers;
mod rotation;
mod scene;
mod sigterm;
#[path = "../support/mod.rs"]
mod support;
mod syscalls;

#[test]
fn output_after_any_number_of_kills_is_that_of_an_undisturbed_run() {
    kill::KILL.run();
}

#[test]
fn a_daemon_with_much_state_reads_again_after_it_was_killed() {
    kill::RECOVERY.run();
}

#[test]
fn killed_at_every_point_it_loses_and_repeats_nothing() {
    points::POINTS_CAMPAIGN.run();
}

#[test]
fn a_log_is_read_exactly_once_however_it_is_rotated() {
    rotation::ROTATION.run();
}

#[test]
fn receivers_that_fail_are_told_everything_in_the_end() {
    receivers::RECEIVERS.run();
}

#[test]
fn it_stops_in_time_and_goes_on_without_loss_or_repetition() {
    sigterm::SIGTERM.run();
}

#[test]
fn a_full_disk_is_waited_for_while_alerts_are_told() {
    if !is_missing("disk_full", disk_full::obstacle()) {
        disk_full::DISK_FULL.run();
    }
}

#[test]
fn what_the_system_refuses_or_ends_in_loses_nothing() {
    if !is_missing("syscalls", syscalls::obstacle()) {
        syscalls::SYSCALLS.run();
    }
}

#[test]
fn keys_lines_and_receivers_without_end_take_no_memory_without_end() {
    if !is_missing("memory", memory::obstacle()) {
        memory::MEMORY.run();
    }
}

/// Whether a campaign cannot be run here; where it must be, that is an error.
fn is_missing(campaign: &str, obstacle: Option<String>) -> bool {
    let Some(why) = obstacle else { return false };
    assert!(std::env::var_os("TOCSIN_NO_SKIP").is_none(), "{campaign}: {why}");
    println!("skipped: {campaign}: {why}");
    true
}

#[test]
fn every_planted_defect_that_the_binary_can_show_is_caught() {
    let unnoticed = planted::unnoticed();
    assert!(unnoticed.is_empty(), "{unnoticed:?} went unnoticed");
}

/// The last result of each campaign, for people.
#[test]
fn the_results_are_a_table() {
    let latest: BTreeMap<String, serde_json::Value> = support::campaign::results()
        .into_iter()
        .map(|line| (line["campaign"].as_str().unwrap_or_default().to_owned(), line))
        .collect();
    println!("{:<12} {:>8} {:>6} {:>11} {:>8} {:>12}  ", "campaign", "runs", "lost", "duplicated", "seconds", "seed");
    for (campaign, line) in latest {
        let [runs, lost, duplicated, seconds, seed] =
            ["runs", "lost", "duplicated", "seconds", "seed"].map(|name| line[name].to_string());
        println!("{campaign:<12} {runs:>8} {lost:>6} {duplicated:>11} {seconds:>8} {seed:>12}");
    }
}
