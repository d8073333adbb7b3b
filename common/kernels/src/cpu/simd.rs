//! One body, several instruction sets: functions are compiled for AVX-512, for AVX2 with FMA and for the target's base, and
//! the machine's best is chosen when the program runs.
//!
//! Products and sums are separate operations here (only the matrix product fuses them) and sums have sixteen lanes
//! whatever the instruction set, so these functions give the same bits on every machine.

use std::fmt;
use std::sync::OnceLock;

/// Instruction sets that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the target guarantees: NEON on aarch64, SSE2 on x86-64.
    Base,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base if cfg!(target_arch = "x86_64") => "SSE2",
            Self::Base if cfg!(target_arch = "aarch64") => "NEON",
            Self::Base => "no SIMD",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
        })
    }
}

/// The best instruction set of this machine.
pub fn isa() -> Isa {
    static FOUND: OnceLock<Isa> = OnceLock::new();
    *FOUND.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx512 && avx2 {
                return Isa::Avx512;
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        Isa::Base
    })
}

/// Compiles a function once for each instruction set and calls the machine's version.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($lifetime:lifetime),* $(,)? $($generic:ident: $bound:ident),*>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$($lifetime,)* $($generic: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($lifetime,)* $($generic: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512 $(<$($lifetime,)* $($generic: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($lifetime,)* $($generic: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::cpu::simd::isa() {
                    // SAFETY: isa() names only what this machine has.
                    $crate::cpu::simd::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::simd::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::cpu::simd::Isa::Base => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(super) use multiversion;

/// f32 values in a line of the cache (64 bytes).
pub const LINE: usize = 16;

/// Asks for the line of the cache at an address, which need not be valid; on x86-64, elsewhere nothing happens.
#[inline(always)]
pub fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every machine of the target has SSE, and a prefetch never fails.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Lanes of a sum.
pub const LANES: usize = 16;

/// eˣ to about 2 units in the last place, with NaN, overflow to infinity and gradual underflow kept.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Comparisons, not min and max: those would turn NaN into a number.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    // Adding 1.5·2²³ leaves the rounded integer in the low bits.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_65;
    p = p * r + 0.5;
    let mantissa = p * (r * r) + r + 1.0;
    // 2ⁿ in two halves, since n reaches beyond the exponents of normal numbers at both ends.
    let n = (shifted.to_bits() as i32).wrapping_sub(0x4B40_0000);
    let half = n >> 1;
    mantissa * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function to about 1e-7.
///
/// # Source
/// Eigen's `generic_fast_erf_float`.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = if x < -4.0 { -4.0 } else { x };
    let x = if x > 4.0 { 4.0 } else { x };
    let y = x * x;
    let mut p = -2.726_142_3e-10;
    p = p * y + 2.770_681_4e-8;
    p = p * y + -2.101_024e-6;
    p = p * y + -5.692_506_5e-5;
    p = p * y + -7.349_906_3e-4;
    p = p * y + -2.954_6e-3;
    p = p * y + -1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * y + -2.133_740_6e-4;
    q = q * y + -1.682_827e-3;
    q = q * y + -7.373_329_3e-3;
    q = q * y + -1.426_473_9e-2;
    x * p / q
}

/// Σ f(i) for i in 0..len, in sixteen lanes and a rest.
#[inline(always)]
pub fn sum(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = len / LANES * LANES;
    let mut start = 0;
    while start < whole {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(start + lane);
        }
        start += LANES;
    }
    let mut total = fold(lanes);
    for i in whole..len {
        total += f(i);
    }
    total
}

/// The largest value; NaN if there is one. −∞ of nothing.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    let larger = |old: f32, new: f32| if old >= new || old.is_nan() { old } else { new };
    for chunk in chunks {
        for (old, &new) in lanes.iter_mut().zip(chunk) {
            *old = larger(*old, new);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |old, &new| larger(old, new))
}

/// The lanes' total, added pairwise.
#[inline(always)]
pub fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exp() {
        let mut largest = 0f64;
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let expected = f64::from(x).exp();
            largest = largest.max(((f64::from(exp(x)) - expected) / expected).abs());
        }
        println!("exp: largest relative difference {largest:e} (tolerance 2.5e-7)");
        assert!(largest < 2.5e-7);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_and_largest() {
        let values: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(sum(37, |i| values[i]), 666.0);
        assert_eq!(max(&values), 36.0);
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert!(max(&[1.0, f32::NAN, 2.0]).is_nan());
        assert!(max(&[[1.0; 16], [f32::NAN; 16], [3.0; 16]].concat()).is_nan());
    }
}
