//! The numbers of one row, whatever the row is of.

/// Figures of a group of disks of snapshots. All sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Snapshots in the group.
    pub snapshot_count: u64,
    /// Virtual sizes of the newest snapshot of each VDI in the group.
    pub newest_virtual_bytes: u64,
    /// Non-zero pages of the newest snapshot of each VDI in the group.
    pub newest_allocated_bytes: u64,
    /// Virtual sizes, of every snapshot.
    pub virtual_bytes: u64,
    /// Non-zero pages, of every snapshot.
    pub allocated_bytes: u64,
    /// What VHD exports of the delivered blocks weigh; none when it is not known of any disk.
    pub exported_bytes: Option<u64>,
    /// Blocks that differ from the snapshot each disk was compared with; none when it is not known of any disk.
    pub changed_bytes: Option<u64>,
    /// Disks of which exported and changed are not known: they are in neither sum.
    pub unknown_count: u64,
    /// Plaintext of chunks that were stored anew.
    pub new_bytes: u64,
    /// What was added to the repository at import: packs and snapshot records.
    pub stored_bytes: u64,
    /// What nobody else refers to, and what forgetting all of the group would free; none when it was not measured.
    pub unique_bytes: Option<u64>,
}

impl Figures {
    /// The ratios of what was imported.
    pub fn ratios(&self) -> Ratios {
        Ratios::new(self.allocated_bytes, self.new_bytes, self.stored_bytes)
    }
}

/// Ratios (docs/operations.md, "Ratios"). `total` is the product of the other two.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ratios {
    /// Allocated bytes to distinct content.
    pub deduplication: Option<f64>,
    /// Distinct content to stored bytes.
    pub compression: Option<f64>,
    /// Allocated bytes to stored bytes.
    pub total: Option<f64>,
}

impl Ratios {
    /// The ratios of so much allocated, distinct, stored. None where there is nothing to divide by.
    pub fn new(allocated: u64, distinct: u64, stored: u64) -> Self {
        let ratio = |whole: u64, part: u64| (part > 0).then(|| whole as f64 / part as f64);
        Self {
            deduplication: ratio(allocated, distinct),
            compression: ratio(distinct, stored),
            total: ratio(allocated, stored),
        }
    }
}

/// Splits `total` over fewer than 2^16 parts in proportion to `weights`, equally when all are zero. The parts add up to `total`.
pub(super) fn split(total: u64, weights: &[u64]) -> Vec<u64> {
    let ones = vec![1; weights.len()];
    let weights = if weights.iter().all(|weight| *weight == 0) { &ones[..] } else { weights };
    // Records may claim any number: shortened, weights of 64 bits do not overflow when they are multiplied.
    let short =
        |weight: &u64| u128::from(*weight) >> if weights.iter().any(|weight| *weight >> 48 > 0) { 16 } else { 0 };
    let sum: u128 = weights.iter().map(short).sum();
    let mut before = 0_u128;
    let up_to = |weight: u128| u64::try_from(u128::from(total) * weight / sum).expect("a part is at most the total");
    weights
        .iter()
        .map(|weight| {
            let start = up_to(before);
            before += short(weight);
            up_to(before) - start
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_add_up(total: u64, weights in prop::collection::vec(any::<u64>(), 1..9)) {
            let parts = split(total, &weights);
            prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), u128::from(total));
            prop_assert_eq!(parts.len(), weights.len());
        }
    }

    #[test]
    fn the_total_ratio_is_the_product_and_nothing_is_divided_by_zero() {
        let ratios = Ratios::new(1000, 200, 100);
        assert_eq!((ratios.deduplication, ratios.compression, ratios.total), (Some(5.0), Some(2.0), Some(10.0)));
        assert_eq!(Ratios::new(0, 0, 0), Ratios::default());
        assert_eq!(split(7, &[0, 0]), [3, 4]);
    }
}
