//! The packs a replica knows, in memory.

use std::collections::HashMap;

use super::{KnownPack, PackNumber, PackState};
use crate::id::PackId;

/// Packs by number and by name. Numbers are given once: a pack that comes back after it was gone gets a new one.
#[derive(Default)]
pub(super) struct PackTable {
    by_number: Vec<KnownPack>,
    by_id: HashMap<PackId, PackNumber>,
}

impl PackTable {
    /// The number that the next pack gets.
    pub(super) fn next(&self) -> PackNumber {
        PackNumber(u32::try_from(self.by_number.len()).expect("there are far fewer than 2^32 packs"))
    }

    pub(super) fn push(&mut self, pack: KnownPack) {
        self.by_id.insert(pack.id, self.next());
        self.by_number.push(pack);
    }

    pub(super) fn get(&self, number: PackNumber) -> &KnownPack {
        &self.by_number[number.0 as usize]
    }

    /// The number of a pack that is not gone.
    pub(super) fn number_of(&self, id: PackId) -> Option<PackNumber> {
        let number = self.by_id.get(&id).copied()?;
        (self.get(number).state != PackState::Gone).then_some(number)
    }

    /// Whether a pack is there, or was once.
    pub(super) fn was_known(&self, id: PackId) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KnownPack> {
        self.by_number.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (PackNumber, &mut KnownPack)> {
        (0..).map(PackNumber).zip(&mut self.by_number)
    }
}
