//! Planted defects: each is caught by a campaign at the size that every change is tested with, or the campaigns are too weak.

use serde_json::json;
use tocsin_pipeline::fault::Defect;

use crate::kill::KILL;
use crate::receivers::RECEIVERS;
use crate::rotation::ROTATION;
use crate::support::campaign::{Campaign, Order, append, seed};

/// Who catches a defect.
enum Catcher {
    /// This campaign, at this size.
    Campaign(&'static Campaign, u64),
    /// Another test, named here: it takes a power cut, which the real binary does not see.
    Elsewhere(&'static str),
}

fn catcher(defect: Defect) -> Catcher {
    match defect {
        // On a busy machine many are killed before they have written anything.
        Defect::NoCut | Defect::UncountedDrop => Catcher::Campaign(&KILL, 40),
        Defect::UnstableIdentity | Defect::NoRollForward => Catcher::Campaign(&RECEIVERS, RECEIVERS.sizes.0),
        Defect::InodeAlone | Defect::SizeAlone | Defect::PartialLine => Catcher::Campaign(&ROTATION, ROTATION.sizes.0),
        Defect::NoFolderSync
        | Defect::NoFileSync
        | Defect::RetriedSync
        | Defect::IgnoredError
        | Defect::EarlyGarbage => Catcher::Elsewhere("tests/power.rs"),
        Defect::EarlyAcknowledgement => Catcher::Elsewhere("pipeline/src/runtime/journal"),
        Defect::PositionsAhead => Catcher::Elsewhere("tests/audit.rs"),
        Defect::UnalignedBarrier => Catcher::Elsewhere("pipeline/src/runtime/edge.rs"),
        Defect::ForgottenSpill => Catcher::Elsewhere("pipeline/src/runtime/spill"),
        Defect::NewestCheckpoint | Defect::OffsetsAhead | Defect::NoMarker => {
            Catcher::Elsewhere("tests/kafka_campaigns")
        }
    }
}

/// Plants each defect that the real binary can show, and says which went unnoticed.
pub fn unnoticed() -> Vec<&'static str> {
    let seed = seed();
    println!("planted: TOCSIN_SEED={seed}");
    let mut unnoticed = Vec::new();
    let mut caught = 0;
    for defect in Defect::ALL {
        let name = defect.as_str();
        match catcher(defect) {
            Catcher::Elsewhere(place) => println!("{name:<22} is caught by {place}"),
            Catcher::Campaign(campaign, size) => {
                let outcome = campaign.once(&Order { size, seed, planted: Some(defect) });
                let violation = outcome.violations.first().map_or("", |text| text.lines().next().unwrap_or_default());
                println!(
                    "{name:<22} {}: {} lost, {} duplicated; {}",
                    campaign.name,
                    outcome.lost,
                    outcome.duplicated,
                    violation.chars().take(150).collect::<String>()
                );
                match outcome.is_clean() {
                    true => unnoticed.push(name),
                    false => caught += 1,
                }
            }
        }
    }
    append(&json!({
        "campaign": "planted", "size": caught + unnoticed.len(), "runs": caught + unnoticed.len(), "lost": 0,
        "duplicated": 0, "violations": unnoticed.len(), "seed": seed, "seconds": null, "caught": caught,
    }));
    unnoticed
}
