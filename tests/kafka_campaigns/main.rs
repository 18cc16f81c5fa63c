//! Campaigns with a real Kafka: the real binary between two topics, killed, stalled, cut off and doubled, and everything that
//! readers of committed messages see counted afterwards.
//!
//! See `docs/testing.md`. Skipped by name until `tests/kafka/fetch` has been run; `tests/kafka/run` skips nothing.
#![allow(clippy::disallowed_methods, reason = "campaigns live in real time")]

mod faults;
mod kill;
mod points;
#[allow(dead_code, reason = "a part of it is for logs")]
#[path = "../campaigns/scene.rs"]
mod scene;
mod stage;
mod stall;
#[path = "../support/mod.rs"]
mod support;

use support::kafka::is_missing;

#[test]
fn from_kafka_to_kafka_each_record_counts_once_after_any_number_of_kills() {
    if !is_missing("kafka-kill") {
        kill::KILL.run();
    }
}

#[test]
fn killed_at_every_point_of_a_transaction_it_loses_and_repeats_nothing() {
    if !is_missing("kafka-points") {
        points::POINTS_CAMPAIGN.run();
    }
}

#[test]
fn a_transaction_that_was_open_for_too_long_is_done_again() {
    if !is_missing("kafka-expiry") {
        stall::EXPIRY.run();
    }
}

#[test]
fn a_daemon_whose_place_was_taken_writes_nothing_more_and_ends() {
    if !is_missing("kafka-zombie") {
        stall::ZOMBIE.run();
    }
}

#[test]
fn connections_that_end_before_and_after_any_request_lose_and_repeat_nothing() {
    if !is_missing("kafka-faults") {
        faults::FAULTS.run();
    }
}

#[test]
fn brokers_that_are_killed_and_come_back_lose_and_repeat_nothing() {
    if !is_missing("kafka-brokers") {
        faults::BROKERS.run();
    }
}
