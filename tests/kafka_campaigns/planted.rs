//! Planted defects: each is caught by a campaign between two topics, or those are too weak.

use tocsin_pipeline::fault::Defect;

use crate::kill::KILL;
use crate::points::POINTS_CAMPAIGN;
use crate::support::campaign::{Campaign, Order, seed};

/// Which went unnoticed.
pub fn unnoticed() -> Vec<&'static str> {
    let seed = seed();
    println!("planted: TOCSIN_SEED={seed}");
    let planted: [(Defect, &Campaign, u64); 3] = [
        (Defect::NewestCheckpoint, &POINTS_CAMPAIGN, 1),
        (Defect::OffsetsAhead, &KILL, 6),
        (Defect::NoMarker, &KILL, 6),
    ];
    let mut unnoticed = Vec::new();
    for (defect, campaign, size) in planted {
        let outcome = campaign.once(&Order { size, seed, planted: Some(defect) });
        let violation = outcome.violations.first().map_or("", |text| text.lines().next().unwrap_or_default());
        println!(
            "{:<22} {}: {} lost, {} duplicated; {}",
            defect.as_str(),
            campaign.name,
            outcome.lost,
            outcome.duplicated,
            violation.chars().take(150).collect::<String>()
        );
        if outcome.is_clean() {
            unnoticed.push(defect.as_str());
        }
    }
    unnoticed
}
