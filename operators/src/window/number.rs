//! Numbers, and their sums without rounding on the way.

use std::cmp::Ordering;

use tocsin_pipeline::event::Field;
use tocsin_pipeline::time::Timestamp;
use vrl::prelude::NotNan;
use vrl::value::Value;

use crate::key::{Damaged, Reader, write_number};

/// What can be compared: a finite number, or a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Integer(i64),
    Float(f64),
    Time(i64),
}

impl Number {
    #[inline]
    pub fn of(field: Field<'_>) -> Option<Self> {
        match field {
            Field::Integer(value) => Some(Self::Integer(value)),
            // The sum removes the sign of a zero, so that the result does not depend on which zero came first.
            Field::Float(value) if value.is_finite() => Some(Self::Float(value + 0.0)),
            Field::Time(time) => Some(Self::Time(time.0)),
            _ => None,
        }
    }

    pub fn to_value(self) -> Value {
        match self {
            Self::Integer(value) => Value::Integer(value),
            Self::Float(value) => float(value),
            Self::Time(nanos) => Value::Timestamp(Timestamp(nanos).to_datetime()),
        }
    }

    /// A total order: by value, an integer before the float of the same value, times after numbers.
    #[inline]
    pub fn order(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Integer(left), Self::Integer(right)) | (Self::Time(left), Self::Time(right)) => left.cmp(&right),
            (Self::Float(left), Self::Float(right)) => left.total_cmp(&right),
            (Self::Integer(left), Self::Float(right)) => compare(left, right),
            (Self::Float(left), Self::Integer(right)) => compare(right, left).reverse(),
            (Self::Time(_), _) => Ordering::Greater,
            (_, Self::Time(_)) => Ordering::Less,
        }
    }

    pub fn write(self, out: &mut Vec<u8>) {
        let (tag, bits) = match self {
            Self::Integer(value) => (0, value.cast_unsigned()),
            Self::Float(value) => (1, value.to_bits()),
            Self::Time(nanos) => (2, nanos.cast_unsigned()),
        };
        out.push(tag);
        out.extend_from_slice(&bits.to_le_bytes());
    }

    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Damaged> {
        let (tag, bits) = (reader.byte()?, u64::from_le_bytes(reader.array()?));
        match tag {
            0 => Ok(Self::Integer(bits.cast_signed())),
            1 if f64::from_bits(bits).is_finite() => Ok(Self::Float(f64::from_bits(bits))),
            2 => Ok(Self::Time(bits.cast_signed())),
            _ => Err(Damaged),
        }
    }
}

/// A float as a value; what is no finite number is null, as in JSON.
pub(super) fn float(value: f64) -> Value {
    NotNan::new(value).ok().filter(|value| value.is_finite()).map_or(Value::Null, Value::Float)
}

/// Compares without rounding the integer to a float; never equal.
fn compare(integer: i64, float: f64) -> Ordering {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if float >= LIMIT {
        return Ordering::Less;
    }
    if float < -LIMIT {
        return Ordering::Greater;
    }
    // In this range the whole part of the float is an i64.
    integer.cmp(&(float.trunc() as i64)).then(if float.fract() < 0.0 { Ordering::Greater } else { Ordering::Less })
}

/// A sum of integers and floats that does not depend on their order: it is kept exactly, as a long number in fixed point,
/// and rounded once, when it is asked for.
///
/// A finite float is an integer of 53 bits times 2^e with e from -1074 to 971. The long number is cut into bins of 64 bits, and a
/// summand is added to the bin its lowest bit falls into, which has bits to spare for what sticks out and for carries. Most
/// data touch one bin (the cuts are at 2^-18 and 2^46 as the weight of the lowest bit, so for floats between about 1e10 and 1e-9, and for all integers
/// with them), so this is no slower than keeping an expansion of floats (Shewchuk, "Adaptive Precision Floating-Point Arithmetic",
/// 1997), which may overflow on the way. The idea is that of R. M. Neal, "Fast Exact Summation Using Small and Large
/// Superaccumulators", 2015.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum {
    count: u64,
    /// Whether a float was among the summands; the sum then is one.
    has_float: bool,
    /// The bin that was touched first, and its content.
    first: (u8, i128),
    /// Further bins; rarely any.
    more: Vec<(u8, i128)>,
}

/// How many places the lowest bit of all floats, 2^-1074, lies above the lowest bit of the first bin.
const SHIFT: u32 = 32;
/// The place of 2^0.
const UNIT: u32 = 1074 + SHIFT;
/// Enough for the greatest float (its lowest bit is in the bin of 971 + UNIT) with room for carries.
const LIMBS: usize = 36;

impl Sum {
    #[inline]
    pub fn add(&mut self, number: Number) -> bool {
        let (mantissa, place) = match number {
            Number::Integer(value) => (i128::from(value), UNIT),
            Number::Float(value) => {
                self.has_float = true;
                let bits = value.to_bits();
                let exponent = (bits >> 52 & 0x7ff) as u32;
                let fraction = (bits & ((1 << 52) - 1)) as i64;
                let mantissa = if exponent == 0 { fraction } else { fraction | 1 << 52 };
                let place = exponent.max(1) - 1 + SHIFT;
                (i128::from(if value < 0.0 { -mantissa } else { mantissa }), place)
            }
            Number::Time(_) => return false,
        };
        self.count += 1;
        self.add_to_bin((place / 64) as u8, mantissa << (place % 64));
        true
    }

    #[inline]
    fn add_to_bin(&mut self, bin: u8, amount: i128) {
        if self.first.0 == bin {
            self.first.1 += amount;
            // An amount is below 2^127 - 2^126, so the check after each addition comes in time.
            if self.first.1.unsigned_abs() >= 1 << 126 {
                let carry = self.first.1 >> 64;
                self.first.1 -= carry << 64;
                self.add_to_bin(bin + 1, carry);
            }
        } else if self.first.1 == 0 {
            self.first = (bin, amount);
        } else {
            self.add_to_more(bin, amount);
        }
    }

    #[cold]
    fn add_to_more(&mut self, bin: u8, amount: i128) {
        let at = self.more.iter().position(|more| more.0 == bin).unwrap_or_else(|| {
            self.more.push((bin, 0));
            self.more.len() - 1
        });
        let content = &mut self.more[at].1;
        *content += amount;
        if content.unsigned_abs() >= 1 << 126 {
            let carry = *content >> 64;
            *content -= carry << 64;
            self.add_to_bin(bin + 1, carry);
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.has_float |= other.has_float;
        for (bin, amount) in other.bins() {
            // Both are below 2^126, so their sum fits.
            self.add_to_bin(bin, amount);
        }
    }

    fn bins(&self) -> impl Iterator<Item = (u8, i128)> + '_ {
        std::iter::once(self.first).chain(self.more.iter().copied()).filter(|(_, amount)| *amount != 0)
    }

    /// The exact sum as a number in two's complement, the lowest limb first; the place of 2^0 is [`UNIT`].
    fn limbs(&self) -> [u64; LIMBS] {
        let mut limbs = [0u64; LIMBS];
        for (bin, amount) in self.bins() {
            let mut carry = false;
            for (at, limb) in limbs.iter_mut().enumerate().skip(usize::from(bin)) {
                let part = (amount >> (64 * (at - usize::from(bin))).min(127)) as u64;
                let (sum, first) = limb.overflowing_add(part);
                let (sum, second) = sum.overflowing_add(u64::from(carry));
                *limb = sum;
                carry = first || second;
            }
        }
        limbs
    }

    /// The sum as the nearest float, ties to even; infinite where there is none.
    fn to_f64(&self) -> f64 {
        let mut limbs = self.limbs();
        let is_negative = limbs[LIMBS - 1] >> 63 == 1;
        if is_negative {
            let mut carry = true;
            for limb in &mut limbs {
                (*limb, carry) = (!*limb).overflowing_add(u64::from(carry));
            }
        }
        let Some(top) = limbs.iter().rposition(|limb| *limb != 0) else { return 0.0 };
        let highest = top as u32 * 64 + 63 - limbs[top].leading_zeros();
        // The place of the mantissa's lowest bit; that of subnormal floats does not go below 2^-1074.
        let lowest = highest.saturating_sub(52).max(SHIFT);
        let bit = |place: u32| limbs[(place / 64) as usize] >> (place % 64) & 1;
        let mut mantissa = 0u64;
        for place in (lowest..=highest).rev() {
            mantissa = mantissa << 1 | bit(place);
        }
        let is_half = lowest > SHIFT && bit(lowest - 1) == 1;
        let is_more = is_half && (SHIFT..lowest - 1).any(|place| bit(place) == 1);
        if is_half && (is_more || mantissa & 1 == 1) {
            mantissa += 1;
        }
        // The mantissa's own bit 52 makes the exponent one greater, and so does what rounding carries into it.
        let bits = (u64::from(lowest - SHIFT) << 52) + mantissa;
        let magnitude = if bits >= f64::INFINITY.to_bits() { f64::INFINITY } else { f64::from_bits(bits) };
        if is_negative { -magnitude } else { magnitude }
    }

    /// The sum as an integer, if no float was in it and it fits.
    fn to_i64(&self) -> Option<i64> {
        if self.has_float {
            return None;
        }
        // Only multiples of 2^0 were added, so nothing stands below it.
        let limbs = self.limbs();
        let (limb, bit) = ((UNIT / 64) as usize, UNIT % 64);
        let low = u128::from(limbs[limb]) | u128::from(limbs[limb + 1]) << 64;
        let value = (low.cast_signed() >> bit) as i64;
        let sign = if value < 0 { u64::MAX } else { 0 };
        let is_whole =
            (low.cast_signed() >> bit) == i128::from(value) && limbs[limb + 2..].iter().all(|limb| *limb == sign);
        is_whole.then_some(value)
    }

    pub fn sum(&self) -> Value {
        self.to_i64().map_or_else(|| float(self.to_f64()), Value::Integer)
    }

    pub fn mean(&self) -> Value {
        if self.count == 0 { Value::Null } else { float(self.to_f64() / self.count as f64) }
    }

    pub fn heap(&self) -> usize {
        self.more.capacity() * size_of::<(u8, i128)>()
    }

    /// The count, times two and one more if a float was in it; then the bins: how many, and each as its number and 16 bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_number(self.count, out);
        out.push(u8::from(self.has_float));
        out.push(self.bins().count() as u8);
        for (bin, amount) in self.bins() {
            out.push(bin);
            out.extend_from_slice(&amount.to_le_bytes());
        }
    }

    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Damaged> {
        let mut sum = Self { count: reader.number()?, has_float: reader.byte()? == 1, ..Self::default() };
        for _ in 0..reader.byte()? {
            let (bin, amount) = (reader.byte()?, i128::from_le_bytes(reader.array()?));
            if usize::from(bin) >= LIMBS || amount.unsigned_abs() >= 1 << 126 {
                return Err(Damaged);
            }
            sum.add_to_bin(bin, amount);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum_of(numbers: &[f64]) -> Sum {
        let mut sum = Sum::default();
        numbers.iter().for_each(|number| assert!(sum.add(Number::Float(*number))));
        sum
    }

    #[test]
    fn nothing_is_lost_on_the_way() {
        assert_eq!(sum_of(&[1e308, 1e308, -1e308]).to_f64(), 1e308);
        assert_eq!(sum_of(&[1e16, 1.0, -1e16]).to_f64(), 1.0);
        assert_eq!(sum_of(&[0.1; 10]).to_f64(), 1.0);
        assert_eq!(sum_of(&[1e308, 5e-324, -1e308]).to_f64(), 5e-324);
        assert_eq!(sum_of(&[f64::MAX, f64::MAX]).to_f64(), f64::INFINITY);
        assert_eq!(sum_of(&[-f64::MAX, -f64::MAX]).sum(), Value::Null);
        assert_eq!(sum_of(&[]).to_f64(), 0.0);
        assert_eq!(sum_of(&[f64::MIN_POSITIVE, -5e-324]).to_f64(), f64::from_bits((1 << 52) - 1));
    }

    #[test]
    fn halves_are_rounded_to_even() {
        let ulp = 2f64.powi(-52);
        assert_eq!(sum_of(&[1.0, ulp / 2.0]).to_f64(), 1.0);
        assert_eq!(sum_of(&[1.0 + ulp, ulp / 2.0]).to_f64(), 1.0 + 2.0 * ulp);
        assert_eq!(sum_of(&[1.0, ulp / 2.0, 1e-300]).to_f64(), 1.0 + ulp);
        assert_eq!(sum_of(&[-1.0, -ulp / 2.0, -1e-300]).to_f64(), -1.0 - ulp);
    }

    #[test]
    fn integers_stay_integers_while_they_fit() {
        let mut sum = Sum::default();
        assert_eq!(sum.sum(), Value::Integer(0));
        sum.add(Number::Integer(i64::MAX));
        assert_eq!(sum.sum(), Value::Integer(i64::MAX));
        sum.add(Number::Integer(1));
        assert_eq!(sum.sum(), float(9_223_372_036_854_775_808.0));
        sum.add(Number::Integer(-2));
        assert_eq!(sum.sum(), Value::Integer(i64::MAX - 1));
        sum.add(Number::Integer(i64::MIN));
        assert_eq!(sum.sum(), Value::Integer(-2));
        sum.add(Number::Float(0.0));
        assert_eq!(sum.sum(), float(-2.0));
    }

    #[test]
    fn integers_and_floats_compare_exactly() {
        let sorted = [
            Number::Float(-1e300),
            Number::Integer(i64::MIN),
            Number::Float(-9_223_372_036_854_775_808.0),
            Number::Float(-1.5),
            Number::Integer(-1),
            Number::Float(-1.0),
            Number::Integer(9_007_199_254_740_993),
            Number::Integer(i64::MAX),
            Number::Float(9_223_372_036_854_775_808.0),
            Number::Time(0),
        ];
        for (at, left) in sorted.iter().enumerate() {
            for (other, right) in sorted.iter().enumerate() {
                assert_eq!(left.order(*right), at.cmp(&other), "{left:?} {right:?}");
            }
        }
    }

    proptest! {
        /// Against sums that 128 bits hold: floats that are multiples of 2^-20 below 2^40.
        #[test]
        fn the_sum_is_the_exact_one_rounded(units in prop::collection::vec(-(1i64 << 53)..1i64 << 53, 0..200)) {
            let unit = 2f64.powi(-20);
            let exact: i128 = units.iter().map(|units| i128::from(*units)).sum();
            let numbers: Vec<_> = units.iter().map(|units| *units as f64 * unit).collect();
            // `as` rounds to the nearest, ties to even, and the power of two changes no digit.
            prop_assert_eq!(sum_of(&numbers).to_f64(), exact as f64 * unit);
        }

        #[test]
        fn neither_order_nor_merging_nor_saving_changes_a_sum(
            bits in prop::collection::vec(any::<u64>(), 1..60),
            at in any::<prop::sample::Index>(),
        ) {
            let numbers: Vec<_> = bits.iter().map(|bits| f64::from_bits(*bits)).filter(|it| it.is_finite()).collect();
            let whole = sum_of(&numbers);
            let reversed: Vec<_> = numbers.iter().rev().copied().collect();
            let (left, right) = numbers.split_at(at.index(numbers.len() + 1));
            let mut merged = sum_of(right);
            merged.merge(&sum_of(left));
            let mut saved = Vec::new();
            merged.write(&mut saved);
            let restored = Sum::read(&mut Reader(&saved)).unwrap();
            for other in [sum_of(&reversed), merged, restored] {
                prop_assert_eq!(other.limbs(), whole.limbs());
                prop_assert_eq!(other.to_f64().to_bits(), whole.to_f64().to_bits());
            }
        }
    }
}
