//! How many different values there are.

use crate::key::{Damaged, Reader, write_number};

/// Up to this many values are counted exactly.
const EXACT: usize = 256;
/// 2^12 registers: a standard error of 1.04 / √4096 = 1.6 %.
const INDEX_BITS: u32 = 12;
const REGISTERS: usize = 1 << INDEX_BITS;
/// The greatest rank that the rest of a hash can have.
const RANKS: usize = (64 - INDEX_BITS) as usize;

/// Counts different hashes: exactly while they are few, then by HyperLogLog (Flajolet, Fusy, Gandouet, Meunier, 2007) with
/// the estimator of O. Ertl, "New cardinality estimation algorithms for HyperLogLog sketches" (2017, algorithm 6), which needs neither tables of
/// corrections nor a change of method between few and many. Which values came is all it depends on.
#[derive(Clone, Debug)]
pub(super) enum Distinct {
    /// Hashes in rising order.
    Exact(Vec<u64>),
    Registers(Box<[u8; REGISTERS]>),
}

impl Default for Distinct {
    fn default() -> Self {
        Self::Exact(Vec::new())
    }
}

/// The hash of an encoded value. XXH3 is specified, so that a checkpoint of today can be read tomorrow. It has no secret seed for
/// the same reason: who chooses the values can make the count wrong, but not slow.
pub(super) fn hash(value: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(value)
}

impl Distinct {
    pub fn add(&mut self, hash: u64) {
        match self {
            Self::Exact(hashes) => {
                if let Err(at) = hashes.binary_search(&hash) {
                    hashes.insert(at, hash);
                    if hashes.len() > EXACT {
                        let mut registers = Box::new([0; REGISTERS]);
                        hashes.iter().for_each(|hash| register(&mut registers, *hash));
                        *self = Self::Registers(registers);
                    }
                }
            }
            Self::Registers(registers) => register(registers, hash),
        }
    }

    pub fn merge(&mut self, other: &Self) {
        match other {
            Self::Exact(hashes) => hashes.iter().for_each(|hash| self.add(*hash)),
            Self::Registers(others) => {
                let mut registers = match std::mem::take(self) {
                    Self::Registers(registers) => registers,
                    Self::Exact(hashes) => {
                        let mut registers = Box::new([0; REGISTERS]);
                        hashes.iter().for_each(|hash| register(&mut registers, *hash));
                        registers
                    }
                };
                registers.iter_mut().zip(others.iter()).for_each(|(rank, other)| *rank = (*rank).max(*other));
                *self = Self::Registers(registers);
            }
        }
    }

    pub fn count(&self) -> u64 {
        match self {
            Self::Exact(hashes) => hashes.len() as u64,
            Self::Registers(registers) => estimate(registers),
        }
    }

    pub fn heap(&self) -> usize {
        match self {
            Self::Exact(hashes) => hashes.capacity() * size_of::<u64>(),
            Self::Registers(_) => REGISTERS,
        }
    }

    /// One more than the number of hashes, and the hashes; or 0 and the registers.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Exact(hashes) => {
                write_number(hashes.len() as u64 + 1, out);
                hashes.iter().for_each(|hash| out.extend_from_slice(&hash.to_le_bytes()));
            }
            Self::Registers(registers) => {
                out.push(0);
                out.extend_from_slice(&registers[..]);
            }
        }
    }

    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Damaged> {
        match reader.number()? {
            0 => {
                let registers: [u8; REGISTERS] = reader.array()?;
                match registers.iter().all(|rank| usize::from(*rank) <= RANKS + 1) {
                    true => Ok(Self::Registers(Box::new(registers))),
                    false => Err(Damaged),
                }
            }
            count => {
                let mut distinct = Self::default();
                for _ in 1..count {
                    distinct.add(u64::from_le_bytes(reader.array()?));
                }
                Ok(distinct)
            }
        }
    }
}

fn register(registers: &mut [u8; REGISTERS], hash: u64) {
    let index = (hash >> (64 - INDEX_BITS)) as usize;
    // The bit behind the hash ends the run of zeros where all of the rest is zero.
    let rank = (hash << INDEX_BITS | 1 << (INDEX_BITS - 1)).leading_zeros() as u8 + 1;
    registers[index] = registers[index].max(rank);
}

fn estimate(registers: &[u8; REGISTERS]) -> u64 {
    let mut histogram = [0u32; RANKS + 2];
    registers.iter().for_each(|rank| histogram[usize::from(*rank)] += 1);
    let size = REGISTERS as f64;
    let mut sum = size * tau(1.0 - f64::from(histogram[RANKS + 1]) / size);
    for count in histogram[1..=RANKS].iter().rev() {
        sum = 0.5 * (sum + f64::from(*count));
    }
    sum += size * sigma(f64::from(histogram[0]) / size);
    (size * size / (2.0 * std::f64::consts::LN_2 * sum)).round() as u64
}

/// σ(x) = x + Σ x^(2^k) · 2^(k-1), as far as it changes anything.
fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut sum, mut power) = (x, 1.0);
    loop {
        x *= x;
        let next = sum + x * power;
        power += power;
        if next == sum {
            return sum;
        }
        sum = next;
    }
}

/// τ(x) = (1 - x - Σ (1 - x^(2^-k))² · 2^-k) / 3, as far as it changes anything.
fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut sum, mut power) = (1.0 - x, 1.0);
    loop {
        x = x.sqrt();
        power *= 0.5;
        let next = sum - (1.0 - x) * (1.0 - x) * power;
        if next == sum {
            return sum / 3.0;
        }
        sum = next;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(numbers: impl Iterator<Item = u64>) -> Distinct {
        let mut distinct = Distinct::default();
        numbers.for_each(|number| distinct.add(hash(&number.to_le_bytes())));
        distinct
    }

    fn saved(distinct: &Distinct) -> Vec<u8> {
        let mut saved = Vec::new();
        distinct.write(&mut saved);
        saved
    }

    #[test]
    fn few_are_counted_exactly_and_many_within_five_percent() {
        assert_eq!(of(0..0).count(), 0);
        assert_eq!(of((0..256).chain(0..256)).count(), 256);
        for count in [257u64, 1_000, 5_000, 10_000, 20_000, 100_000, 300_000] {
            let estimate = of((0..count).chain(0..10)).count();
            assert!(estimate.abs_diff(count) * 20 <= count, "{estimate} for {count}");
        }
    }

    #[test]
    fn the_hash_is_that_of_the_specification() {
        // XXH3 of nothing, as its authors give it.
        assert_eq!(hash(b""), 0x2d06_8005_38d3_94c2);
    }

    proptest! {
        #[test]
        fn neither_order_nor_merging_nor_saving_changes_a_count(left in 0u64..600, right in 0u64..600) {
            let whole = of(0..left.max(right));
            let mut merged = of(0..left);
            merged.merge(&of((0..right).rev()));
            prop_assert_eq!(saved(&merged), saved(&whole));
            let restored = Distinct::read(&mut Reader(&saved(&whole))).unwrap();
            prop_assert_eq!(saved(&restored), saved(&whole));
        }
    }
}
