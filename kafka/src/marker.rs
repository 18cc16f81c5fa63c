//! What a committed offset says beside the offset: which epoch of which pipeline it belongs to.
//!
//! Kafka commits it in one transaction with the output, so it is what decides which checkpoint is the truth.

/// The epoch that a transaction completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    pub epoch: u64,
    /// The transactional id of whoever committed it.
    pub by: String,
}

impl Marker {
    /// As the metadata of an offset; brokers keep up to 4096 bytes.
    pub fn write(&self) -> String {
        format!("tocsin;epoch={};by={}", self.epoch, self.by)
    }

    /// `None`: somebody else committed the offset, or nobody.
    pub fn read(metadata: &str) -> Option<Self> {
        let (epoch, by) = metadata.strip_prefix("tocsin;epoch=")?.split_once(";by=")?;
        Some(Self { epoch: epoch.parse().ok()?, by: by.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_as_it_was_written_and_nothing_else_is() {
        let marker = Marker { epoch: 42, by: "tocsin.orders;out".to_owned() };
        assert_eq!(Marker::read(&marker.write()), Some(marker));
        for other in ["", "tocsin", "tocsin;epoch=;by=x", "tocsin;epoch=-1;by=x", "epoch=3"] {
            assert_eq!(Marker::read(other), None, "{other}");
        }
    }
}
