//! Numbers that look random and are functions of others.

/// SplitMix64's finalizer: inputs that differ in one bit give unrelated outputs. 0 stays 0.
#[inline(always)]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// SplitMix64's output function over its increment: neighbouring inputs give unrelated outputs.
#[inline(always)]
pub fn splitmix(value: u64) -> u64 {
    mix(value.wrapping_add(0x9E37_79B9_7F4A_7C15))
}
