//! Quantiles with a bounded relative error, in bounded memory.

use vrl::value::Value;

use super::number::{Number, float};
use crate::key::{Damaged, Reader, write_number};

/// How many bits of the mantissa tell buckets apart: 64 buckets between a power of two and the next.
const MANTISSA_BITS: u32 = 6;
/// Buckets of one sign that are kept: 32 powers of two. Below the greatest 2048, values count as the least of those.
const BUCKETS: u32 = 2048;
/// As many buckets are kept as a sorted list; with more, an array is smaller and faster.
const SPARSE: usize = 16;

/// A histogram in which each bucket is as wide as 1/64 of the power of two below it: DDSketch (Masson, Rim, Lee, "DDSketch: A
/// Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees", 2019) with the linearly interpolated mapping, whose bucket
/// number is nothing but the first bits of the float. So a value costs a shift instead of a logarithm, no result depends on a
/// mathematical library, and the bucket's answer is within 0.78 % of every value in it. The sketch depends only on which values it holds, not on
/// their order: also what is collapsed is decided by the greatest value alone.
#[derive(Clone, Debug)]
pub(super) struct Sketch {
    min: f64,
    max: f64,
    zeros: u64,
    positive: Buckets,
    /// Rarely needed, so kept apart.
    negative: Option<Box<Buckets>>,
}

impl Default for Sketch {
    fn default() -> Self {
        Self { min: f64::INFINITY, max: f64::NEG_INFINITY, zeros: 0, positive: Buckets::default(), negative: None }
    }
}

impl Sketch {
    #[inline]
    pub fn add(&mut self, number: Number) -> bool {
        let value = match number {
            Number::Integer(value) => value as f64,
            Number::Float(value) => value,
            Number::Time(_) => return false,
        };
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if value > 0.0 {
            self.positive.add(bucket_of(value), 1);
        } else if value < 0.0 {
            self.negative.get_or_insert_default().add(bucket_of(-value), 1);
        } else {
            self.zeros += 1;
        }
        true
    }

    pub fn merge(&mut self, other: &Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.zeros += other.zeros;
        self.positive.merge(&other.positive);
        if let Some(negative) = &other.negative {
            self.negative.get_or_insert_default().merge(negative);
        }
    }

    /// The value of which `q` of the values are below: of `n` in order the one at `q · (n - 1)`, rounded down.
    pub fn quantile(&self, q: f64) -> Value {
        let negatives = self.negative.as_ref().map_or(0, |negative| negative.count());
        let count = negatives + self.zeros + self.positive.count();
        if count == 0 {
            return Value::Null;
        }
        let rank = (q * (count - 1) as f64) as u64;
        let estimate = if rank == 0 {
            self.min
        } else if rank >= count - 1 {
            self.max
        } else if rank < negatives {
            self.negative.as_ref().map_or(0.0, |negative| -negative.at_rank(negatives - 1 - rank))
        } else if rank < negatives + self.zeros {
            0.0
        } else {
            self.positive.at_rank(rank - negatives - self.zeros)
        };
        float(estimate.clamp(self.min, self.max))
    }

    pub fn heap(&self) -> usize {
        self.positive.heap() + self.negative.as_ref().map_or(0, |negative| negative.heap() + size_of::<Buckets>())
    }

    /// The least and the greatest value, the zeros, and the buckets of both signs.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.min.to_le_bytes());
        out.extend_from_slice(&self.max.to_le_bytes());
        write_number(self.zeros, out);
        self.positive.write(out);
        self.negative.as_deref().unwrap_or(&Buckets::default()).write(out);
    }

    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Damaged> {
        let [min, max] = [reader.array()?, reader.array()?].map(f64::from_le_bytes);
        let zeros = reader.number()?;
        let (positive, negative) = (Buckets::read(reader)?, Buckets::read(reader)?);
        if min.is_nan() || max.is_nan() || (min > max && zeros + positive.count() + negative.count() > 0) {
            return Err(Damaged);
        }
        let negative = (negative.count() > 0).then(|| Box::new(negative));
        Ok(Self { min, max, zeros, positive, negative })
    }
}

#[inline]
fn bucket_of(magnitude: f64) -> u32 {
    (magnitude.to_bits() >> (52 - MANTISSA_BITS)) as u32
}

/// The number that is relatively as far from the one end of a bucket as from the other.
fn middle_of(bucket: u32) -> f64 {
    let [from, to] = [bucket, bucket + 1].map(|bucket| f64::from_bits(u64::from(bucket) << (52 - MANTISSA_BITS)));
    // Divided first: the greatest bucket ends at infinity, and its product would overflow.
    if to.is_finite() { from * (2.0 * to / (from + to)) } else { from }
}

/// How many values fell into each bucket.
#[derive(Clone, Debug)]
enum Buckets {
    /// By rising number.
    Sparse(Vec<(u32, u64)>),
    /// `counts[n]` is that of the bucket `first + n`.
    Dense { first: u32, max: u32, counts: Vec<u64> },
}

impl Default for Buckets {
    fn default() -> Self {
        Self::Sparse(Vec::new())
    }
}

impl Buckets {
    #[inline]
    fn add(&mut self, bucket: u32, count: u64) {
        if let Self::Dense { first, max, counts } = self
            && bucket >= *first
            && bucket <= *max
        {
            // The least bucket is never below the greatest less the bound, so nothing is to be collapsed.
            counts[(bucket - *first) as usize] += count;
            return;
        }
        self.add_elsewhere(bucket, count);
    }

    fn add_elsewhere(&mut self, bucket: u32, count: u64) {
        match self {
            Self::Sparse(list) => {
                let greatest = list.last().map_or(bucket, |(greatest, _)| bucket.max(*greatest));
                let least = (greatest + 1).saturating_sub(BUCKETS);
                let bucket = bucket.max(least);
                let below = list.partition_point(|(known, _)| *known < least);
                let mut collapsed = 0;
                list.drain(..below).for_each(|(_, count)| collapsed += count);
                for (bucket, count) in [(least, collapsed), (bucket, count)] {
                    if count > 0 {
                        match list.binary_search_by_key(&bucket, |(known, _)| *known) {
                            Ok(at) => list[at].1 += count,
                            Err(at) => list.insert(at, (bucket, count)),
                        }
                    }
                }
                if list.len() > SPARSE {
                    let (first, max) = (list[0].0, list[list.len() - 1].0);
                    let mut counts = vec![0; (max - first + 1) as usize];
                    list.iter().for_each(|(bucket, count)| counts[(bucket - first) as usize] = *count);
                    *self = Self::Dense { first, max, counts };
                }
            }
            Self::Dense { first, max, counts } => {
                let greatest = bucket.max(*max);
                let least = (greatest + 1).saturating_sub(BUCKETS);
                let bucket = bucket.max(least);
                if *first < least {
                    let below = ((least - *first) as usize).min(counts.len());
                    let collapsed: u64 = counts.drain(..below).sum();
                    if counts.is_empty() {
                        counts.push(0);
                        *max = least;
                    }
                    counts[0] += collapsed;
                    *first = least;
                } else if bucket < *first {
                    counts.splice(..0, std::iter::repeat_n(0, (*first - bucket) as usize));
                    *first = bucket;
                }
                *max = greatest;
                let at = (bucket - *first) as usize;
                if counts.len() <= (greatest - *first) as usize {
                    counts.resize((greatest - *first) as usize + 1, 0);
                }
                counts[at] += count;
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        if let (Self::Dense { first, max, counts }, Self::Dense { first: from, max: to, counts: others }) =
            (&mut *self, other)
            && *from >= *first
            && *to <= *max
        {
            let start = (*from - *first) as usize;
            counts[start..].iter_mut().zip(others).for_each(|(count, other)| *count += other);
            return;
        }
        // From the greatest down, so that what must be collapsed is collapsed at once.
        match other {
            Self::Sparse(list) => list.iter().rev().for_each(|(bucket, count)| self.add(*bucket, *count)),
            Self::Dense { first, counts, .. } => {
                for (at, count) in counts.iter().enumerate().rev().filter(|(_, count)| **count > 0) {
                    self.add(first + at as u32, *count);
                }
            }
        }
    }

    fn each(&self, mut visit: impl FnMut(u32, u64)) {
        match self {
            Self::Sparse(list) => list.iter().for_each(|(bucket, count)| visit(*bucket, *count)),
            Self::Dense { first, counts, .. } => {
                (*first..)
                    .zip(counts)
                    .filter(|(_, count)| **count > 0)
                    .for_each(|(bucket, count)| visit(bucket, *count));
            }
        }
    }

    fn count(&self) -> u64 {
        let mut sum = 0;
        self.each(|_, count| sum += count);
        sum
    }

    /// The middle of the bucket in which the value at `rank` from the least lies.
    fn at_rank(&self, rank: u64) -> f64 {
        let (mut below, mut found) = (0, None);
        self.each(|bucket, count| {
            below += count;
            if below > rank && found.is_none() {
                found = Some(bucket);
            }
        });
        found.map_or(0.0, middle_of)
    }

    fn heap(&self) -> usize {
        match self {
            Self::Sparse(list) => list.capacity() * size_of::<(u32, u64)>(),
            Self::Dense { counts, .. } => counts.capacity() * size_of::<u64>(),
        }
    }

    /// How many buckets hold something, and for each how far it is from the one before, and its count.
    fn write(&self, out: &mut Vec<u8>) {
        let mut buckets = 0;
        self.each(|_, _| buckets += 1);
        write_number(buckets, out);
        let mut last = 0;
        self.each(|bucket, count| {
            write_number(u64::from(bucket - last), out);
            write_number(count, out);
            last = bucket;
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Damaged> {
        let (mut buckets, mut last) = (Self::default(), 0u32);
        for _ in 0..reader.count(2)? {
            let step = u32::try_from(reader.number()?).map_err(|_| Damaged)?;
            last = last.checked_add(step).filter(|bucket| *bucket <= bucket_of(f64::MAX)).ok_or(Damaged)?;
            buckets.add(last, reader.number()?);
        }
        Ok(buckets)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch_of(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        values.iter().for_each(|value| assert!(sketch.add(Number::Float(*value))));
        sketch
    }

    fn saved(sketch: &Sketch) -> Vec<u8> {
        let mut saved = Vec::new();
        sketch.write(&mut saved);
        saved
    }

    #[test]
    fn ends_are_exact_and_nothing_is_null() {
        assert_eq!(sketch_of(&[]).quantile(0.5), Value::Null);
        let sketch = sketch_of(&[3.25, -7.125, 0.0, 1e300]);
        assert_eq!(sketch.quantile(0.0), float(-7.125));
        assert_eq!(sketch.quantile(0.34), float(0.0));
        assert_eq!(sketch.quantile(1.0), float(1e300));
        assert_eq!(sketch_of(&[f64::MAX; 3]).quantile(0.5), float(f64::MAX));
        assert!(!Sketch::default().add(Number::Time(0)));
    }

    proptest! {
        #[test]
        fn quantiles_are_within_one_percent(
            mut values in prop::collection::vec(prop_oneof![0.001..1e6f64, -1e6..-0.001f64, Just(0.0)], 1..300),
            q in 0.0..=1.0f64,
        ) {
            let Value::Float(estimate) = sketch_of(&values).quantile(q) else { panic!() };
            values.sort_by(f64::total_cmp);
            let exact = values[(q * (values.len() - 1) as f64) as usize];
            prop_assert!((estimate.into_inner() - exact).abs() <= 0.0078 * exact.abs(), "{estimate} {exact}");
        }

        /// Over all magnitudes, so that the low ones are collapsed.
        #[test]
        fn neither_order_nor_merging_nor_saving_changes_a_sketch(
            bits in prop::collection::vec(any::<u64>(), 1..120),
            at in any::<prop::sample::Index>(),
        ) {
            let values: Vec<_> = bits.iter().map(|bits| f64::from_bits(*bits)).filter(|it| it.is_finite()).collect();
            let whole = sketch_of(&values);
            let reversed: Vec<_> = values.iter().rev().copied().collect();
            let (left, right) = values.split_at(at.index(values.len() + 1));
            let mut merged = sketch_of(left);
            merged.merge(&sketch_of(right));
            let restored = Sketch::read(&mut Reader(&saved(&merged))).unwrap();
            for other in [sketch_of(&reversed), merged, restored] {
                prop_assert_eq!(saved(&other), saved(&whole));
            }
        }
    }
}
