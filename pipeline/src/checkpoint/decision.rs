//! What to do with the epochs that are found at start: facts in, a decision out. It touches nothing.

use crate::store::term::Term;

/// An epoch found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub epoch: u64,
    /// Why it cannot be used; `None` if it is whole.
    pub damage: Option<String>,
}

/// What to do at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing has been kept yet.
    StartFresh,
    /// Go on from `epoch`; later ones had to be passed over.
    Resume { epoch: u64, passed_over: Vec<Found> },
    /// Going on would lose or invent something: a person must decide.
    Refuse(String),
}

/// Decides from what was found, newest first or not.
pub fn decide(mut found: Vec<Found>) -> Recovery {
    found.sort_by_key(|found| std::cmp::Reverse(found.epoch));
    let whole = found.iter().position(|found| found.damage.is_none());
    match whole {
        Some(at) => {
            let epoch = found[at].epoch;
            found.truncate(at);
            Recovery::Resume { epoch, passed_over: found }
        }
        None if found.is_empty() => Recovery::StartFresh,
        None => {
            let reasons: Vec<_> = found.iter().filter_map(|found| found.damage.clone()).collect();
            Recovery::Refuse(format!(
                "no checkpoint can be read ({}); restore the folder from a backup, or see what `tocsin recover` can do",
                reasons.join("; ")
            ))
        }
    }
}

/// What is known of who decides about epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// Nobody beside the checkpoints: an epoch that could be written is the truth.
    ByItself,
    /// A decider, which decided this one last.
    Epoch(u64),
    /// A decider that has not decided any.
    Nothing,
}

/// Decides once more, for epochs that were only prepared for somebody else to decide: each with whether it was. An owner
/// prepares one only when the one before is decided, so of each term only the last may not have been.
pub fn settle(mut found: Vec<(u64, bool)>, decided: Decided) -> Recovery {
    found.sort_by_key(|(epoch, _)| std::cmp::Reverse(*epoch));
    let resume = |at: Option<usize>| match at {
        Some(at) => Recovery::Resume { epoch: found[at].0, passed_over: Vec::new() },
        None => Recovery::StartFresh,
    };
    // The newest that was certainly decided, by whomever.
    let sure = (0..found.len()).find(|at| {
        let (epoch, is_prepared) = found[*at];
        !is_prepared || found[..*at].iter().any(|(later, _)| Term::of(*later) == Term::of(epoch))
    });
    match decided {
        // Whether a later one was cannot be known any more, so it is done again.
        Decided::ByItself => resume(sure),
        Decided::Nothing if sure.is_none_or(|at| !found[at].1) => resume(sure),
        Decided::Nothing => Recovery::Refuse(
            "its checkpoints were decided by transactions, and no transaction is known of: the offsets of its group have \
             expired or were reset, or the cluster is another"
                .to_owned(),
        ),
        // What was written since without anybody else to decide is newer than the transaction.
        Decided::Epoch(epoch) if found.first().is_some_and(|(newest, is_prepared)| !is_prepared && *newest > epoch) => {
            resume(Some(0))
        }
        Decided::Epoch(epoch) => match found.iter().position(|(known, _)| *known == epoch) {
            Some(at) => resume(Some(at)),
            None => {
                let known: Vec<_> = found.iter().map(|(epoch, _)| epoch.to_string()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Recovery::Refuse(format!(
                    "the last transaction belongs to epoch {epoch}, and the epochs here are: {known}; this is an older copy of the \
                     data directory, or another's"
                ))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(epoch: u64, damage: Option<&str>) -> Found {
        Found { epoch, damage: damage.map(str::to_owned) }
    }

    #[test]
    fn the_newest_whole_epoch_is_the_one_to_go_on_from() {
        assert_eq!(decide(vec![]), Recovery::StartFresh);
        assert_eq!(
            decide(vec![found(3, None), found(5, None), found(4, None)]),
            Recovery::Resume { epoch: 5, passed_over: vec![] }
        );
        assert_eq!(
            decide(vec![found(3, None), found(4, Some("torn"))]),
            Recovery::Resume { epoch: 3, passed_over: vec![found(4, Some("torn"))] }
        );
        assert!(matches!(decide(vec![found(4, Some("torn"))]), Recovery::Refuse(reason) if reason.contains("torn")));
    }

    #[test]
    fn of_prepared_epochs_the_decided_one_is_the_one_to_go_on_from() {
        let resume = |epoch| Recovery::Resume { epoch, passed_over: vec![] };
        let prepared = |epochs: &[u64]| epochs.iter().map(|epoch| (*epoch, true)).collect::<Vec<_>>();
        assert_eq!(settle(prepared(&[3, 4, 5]), Decided::Epoch(5)), resume(5));
        assert_eq!(settle(prepared(&[3, 4, 5]), Decided::Epoch(4)), resume(4), "it died before the commit");
        assert!(
            matches!(settle(prepared(&[3, 4, 5]), Decided::Epoch(6)), Recovery::Refuse(why) if why.contains("5, 4, 3"))
        );
        assert!(matches!(settle(prepared(&[3, 4, 5]), Decided::Epoch(2)), Recovery::Refuse(_)));
        assert!(matches!(settle(vec![], Decided::Epoch(2)), Recovery::Refuse(why) if why.contains("none")));
        let undecided_since = vec![(2, true), (3, false), (4, false)];
        assert_eq!(
            settle(undecided_since.clone(), Decided::Epoch(2)),
            resume(4),
            "there were no transactions meanwhile"
        );
        assert_eq!(settle(undecided_since[1..].to_vec(), Decided::Epoch(2)), resume(4));
        assert!(matches!(settle(undecided_since, Decided::Epoch(5)), Recovery::Refuse(_)));
        assert_eq!(settle(vec![], Decided::Nothing), Recovery::StartFresh);
        assert_eq!(settle(prepared(&[1]), Decided::Nothing), Recovery::StartFresh, "the first was never decided");
        assert!(matches!(settle(prepared(&[1, 2]), Decided::Nothing), Recovery::Refuse(_)), "the marker is lost");
        assert_eq!(settle(vec![(1, false), (2, true)], Decided::Nothing), resume(1), "transactions are new");
        assert_eq!(settle(vec![(1, false), (2, false)], Decided::Nothing), resume(2));
    }

    #[test]
    fn each_owner_may_have_prepared_one_epoch_that_was_not_decided() {
        let resume = |epoch| Recovery::Resume { epoch, passed_over: vec![] };
        let of = |term: u64, epoch: u64| (term * 1_000_000_000_000 + epoch, true);
        let first_died = vec![of(1, 1), of(2, 1)];
        assert_eq!(settle(first_died.clone(), Decided::Nothing), Recovery::StartFresh);
        assert_eq!(settle(first_died, Decided::ByItself), Recovery::StartFresh);
        let later = vec![of(1, 1), of(1, 2), of(2, 1), of(3, 1)];
        assert_eq!(settle(later.clone(), Decided::ByItself), resume(of(1, 1).0));
        assert_eq!(settle(later.clone(), Decided::Epoch(of(1, 2).0)), resume(of(1, 2).0));
        assert!(matches!(settle(later, Decided::Nothing), Recovery::Refuse(_)));
    }

    #[test]
    fn where_nobody_decides_any_more_the_last_prepared_epoch_is_done_again() {
        let resume = |epoch| Recovery::Resume { epoch, passed_over: vec![] };
        assert_eq!(settle(vec![(1, true), (2, true)], Decided::ByItself), resume(1));
        assert_eq!(settle(vec![(1, true), (2, false)], Decided::ByItself), resume(2));
        assert_eq!(settle(vec![(1, true)], Decided::ByItself), Recovery::StartFresh);
        assert_eq!(settle(vec![], Decided::ByItself), Recovery::StartFresh);
    }
}
