//! Campaigns with a real Kafka: the real binary between two topics, killed, stalled, cut off and doubled, and everything that
//! readers of committed messages see counted afterwards.
//!
//! See `docs/testing.md`. Skipped by name until `tests/kafka/fetch` has been run; `tests/kafka/run` skips nothing.
#![allow(clippy::disallowed_methods, reason = "campaigns live in real time")]

mod faults;
mod kill;
mod plain;
mod planted;
mod points;
mod recovery;
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

#[test]
fn without_transactions_nothing_is_missing_after_kills() {
    if !is_missing("kafka-again") {
        plain::AGAIN.run();
    }
}

#[test]
fn every_planted_defect_of_transactions_is_caught() {
    if !is_missing("kafka-planted") {
        let unnoticed = planted::unnoticed();
        assert!(unnoticed.is_empty(), "{unnoticed:?} went unnoticed");
    }
}

/// Tests that are one story each.
macro_rules! stories {
    ($($name:ident = $story:path;)*) => {$(
        #[test]
        fn $name() {
            if !is_missing(stringify!($name)) {
                $story();
            }
        }
    )*};
}

stories! {
    an_epoch_that_was_written_and_not_committed_is_done_again = recovery::undecided_epoch_is_done_again;
    an_older_copy_of_the_data_directory_is_refused = recovery::older_copy_is_refused;
    a_data_directory_that_was_emptied_is_refused = recovery::empty_folder_is_refused;
    offsets_that_somebody_has_reset_are_refused = recovery::reset_offsets_are_refused;
    the_delivery_may_be_changed_and_changed_back = recovery::delivery_may_be_changed_and_changed_back;
    brokers_that_are_away_are_waited_for_and_readyz_says_so = plain::brokers_that_are_away_are_waited_for;
    programs_find_what_a_record_is_besides_its_value = plain::what_a_record_is_besides_its_value;
    what_kafka_compresses_is_read_and_the_other_way_round = plain::compressed_topics;
    topics_and_partitions_that_appear_later_are_read_from_their_beginning =
        plain::topics_and_partitions_that_appear_later;
    reading_begins_where_it_is_told_to = plain::where_reading_begins;
    records_that_were_deleted_unread_stop_it_or_are_counted = plain::records_that_were_deleted_before_they_were_read;
    once_reads_several_topics_to_their_ends = plain::several_topics_are_read_to_their_ends;
    while_a_receiver_hangs_memory_is_bounded_and_afterwards_all_is_read = plain::a_receiver_that_hangs;
    it_comes_in_by_tls_and_password_for_reading_and_writing = plain::passwords_and_tls;
}
