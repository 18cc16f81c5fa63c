//! Several real daemons that share the partitions of a topic of a real Kafka: started, stopped, killed and frozen while records
//! come, and everything that readers see counted afterwards.
//!
//! See `docs/testing.md`. Skipped by name until `tests/kafka/fetch` has been run; `tests/kafka/run` skips nothing.
#![allow(clippy::disallowed_methods, reason = "campaigns live in real time")]

mod feed;
mod fleet;
mod follower;
mod members;
mod s3;
mod scale;
#[path = "../support/mod.rs"]
mod support;

use support::kafka::is_missing;

#[test]
fn whoever_comes_goes_or_dies_each_record_counts_once() {
    if !is_missing("kafka-scale") {
        scale::SCALE.run();
    }
}

#[test]
fn checkpoints_in_an_object_store_move_like_those_in_a_folder() {
    if !is_missing("kafka-scale-s3") && !s3::is_missing("kafka-scale-s3") {
        scale::SCALE_S3.run();
    }
}

#[test]
fn a_daemon_that_was_frozen_writes_nothing_while_others_have_its_partitions() {
    if !is_missing("kafka-scale-zombie") {
        members::ZOMBIE.run();
    }
}

#[test]
fn what_is_written_at_least_once_is_not_lost_when_partitions_move() {
    if !is_missing("kafka-scale-at-least-once") {
        scale::AT_LEAST_ONCE.run();
    }
}

#[test]
fn a_restart_of_a_daemon_with_a_name_moves_nothing_of_others() {
    if !is_missing("a_restart_of_a_daemon_with_a_name_moves_nothing_of_others") {
        members::restart_with_a_name();
    }
}

#[test]
fn of_two_daemons_with_one_name_the_earlier_ends_and_says_why() {
    if !is_missing("of_two_daemons_with_one_name_the_earlier_ends_and_says_why") {
        members::two_with_one_name();
    }
}

#[test]
fn a_daemon_tells_of_all_its_partitions_together_and_one_without_any_stands_by() {
    if !is_missing("a_daemon_tells_of_all_its_partitions_together_and_one_without_any_stands_by") {
        members::what_is_told();
    }
}

#[test]
fn a_record_that_an_operator_panics_on_costs_that_record_alone() {
    if !is_missing("a_record_that_an_operator_panics_on_costs_that_record_alone") {
        members::poisoned();
    }
}
