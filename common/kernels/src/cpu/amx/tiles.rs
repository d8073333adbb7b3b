//! Products of packed tiles: sums in tile registers. No tile lives longer than an assembly block, so that the compiler never has to know of
//! one; their configuration, which nothing else in the process uses, lives as long as [`Configured`].

use std::arch::asm;
use std::marker::PhantomData;

/// Lines (rows of A, columns of B) of a tile.
pub const LINES: usize = 16;
/// Steps of the inner dimension in a tile.
pub const DEPTH: usize = 32;
/// Pairs of bf16 values of a tile.
pub const PAIRS: usize = LINES * DEPTH / 2;
/// Rows and columns of a block of C.
pub const BLOCK: usize = 2 * LINES;

/// Eight tiles of sixteen rows of 64 bytes.
#[repr(C, align(64))]
struct Config([u8; 64]);

static CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Config(bytes)
};

/// Tiles are configured on this thread as long as this lives: configuring takes as long as a hundred products of tiles.
pub struct Configured(PhantomData<*mut ()>);

impl Configured {
    /// # Safety
    /// The machine has AMX, and the system lets this process use it ([`super::available`]).
    pub unsafe fn new() -> Self {
        // SAFETY: the configuration is 64 bytes that AMX's first palette allows; the caller vouches for the machine.
        unsafe { asm!("ldtilecfg [{}]", in(reg) CONFIG.0.as_ptr(), options(nostack, preserves_flags)) };
        Self(PhantomData)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: this thread configured them (`new`), and no tile is in use between assembly blocks.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// A block of C in scratch memory, row by row.
#[repr(C, align(64))]
pub struct Block(pub [[f32; BLOCK]; BLOCK]);

/// Lines as tiles hold them: for each step of the inner dimension one tile of each plane, [`PAIRS`] pairs each.
#[derive(Clone, Copy)]
pub struct Strip<'a> {
    pub pairs: &'a [u32],
    pub planes: usize,
}

impl Strip<'_> {
    fn steps(&self) -> usize {
        self.pairs.len() / (PAIRS * self.planes)
    }
}

/// `C = A B` for one or two strips of A and two of B. Of three planes and one all products of planes are summed; of two and two all but that of
/// the second ones. C's rows behind the first sixteen stay as they are if A is one strip.
pub fn multiply(_: &Configured, a: [Option<Strip>; 2], b: [Strip; 2], c: &mut Block) {
    let [Some(first), second] = a else { unreachable!("a strip of A") };
    let (planes, steps) = ([first.planes, b[0].planes], first.steps());
    assert!(second.is_none_or(|second| second.planes == planes[0] && second.steps() == steps));
    assert!(b.iter().all(|b| b.planes == planes[1] && b.steps() == steps) && steps > 0);
    let pointers = Pointers {
        a: [first.pairs.as_ptr(), second.unwrap_or(first).pairs.as_ptr()],
        b: b.map(|b| b.pairs.as_ptr()),
        steps,
        c: c.0.as_flattened_mut().as_mut_ptr(),
    };
    // SAFETY: the strips have `steps` steps of the planes that each function reads, by the assertions above, and C has room for four tiles
    // of sixteen rows; tiles are configured on this thread.
    unsafe {
        match (planes, second.is_some()) {
            ([3, 1], false) => exact_one_strip(pointers),
            ([3, 1], true) => exact_two_strips(pointers),
            ([2, 2], false) => rounded_one_strip(pointers),
            ([2, 2], true) => rounded_two_strips(pointers),
            _ => unreachable!("products of {planes:?} planes"),
        }
    }
}

struct Pointers {
    a: [*const u32; 2],
    b: [*const u32; 2],
    steps: usize,
    c: *mut f32,
}

/// Loads a plane of B into tiles 4 and 5.
macro_rules! b {
    ($plane:literal) => {
        concat!(
            "tileloadd tmm4, [{b0} + {s}*1 + 1024*",
            $plane,
            "]\ntileloadd tmm5, [{b1} + {s}*1 + 1024*",
            $plane,
            "]"
        )
    };
}

/// Multiplies a plane of the first strip of A with it; without number the plane that was loaded last.
macro_rules! a0 {
    () => {
        "tdpbf16ps tmm0, tmm6, tmm4\ntdpbf16ps tmm1, tmm6, tmm5"
    };
    ($plane:literal) => {
        concat!("tileloadd tmm6, [{a0} + {s}*1 + 1024*", $plane, "]\n", a0!())
    };
}

/// The same with the second strip of A.
macro_rules! a1 {
    () => {
        "tdpbf16ps tmm2, tmm7, tmm4\ntdpbf16ps tmm3, tmm7, tmm5"
    };
    ($plane:literal) => {
        concat!("tileloadd tmm7, [{a1} + {s}*1 + 1024*", $plane, "]\n", a1!())
    };
}

/// Stores the sums of the first strip of A.
macro_rules! c0 {
    () => {
        "tilestored [{c} + {s}*1], tmm0\ntilestored [{c} + {s}*1 + 64], tmm1"
    };
}

/// Those of the second.
macro_rules! c1 {
    () => {
        "tilestored [{c} + {s}*1 + 2048], tmm2\ntilestored [{c} + {s}*1 + 2112], tmm3"
    };
}

/// A function whose loop has the given lines; it reads so many planes of A and B.
macro_rules! kernel {
    ($name:ident, $a_planes:literal, $planes:literal, [$($line:expr),*], [$($store:expr),*]) => {
        /// # Safety
        /// Tiles are configured on this thread; A and B have `steps` steps at the addresses, C four tiles.
        unsafe fn $name(pointers: Pointers) {
            let Pointers { a, b, steps, c } = pointers;
            // SAFETY: the loop reads `steps` steps of `$a_planes` tiles from the addresses in A and of `$planes` from those in B, and writes
            // sixteen rows of the two or four tiles of C, 128 bytes apart: all there by the caller's word.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    $($line,)*
                    concat!("add {a0}, 1024*", $a_planes),
                    concat!("add {a1}, 1024*", $a_planes),
                    concat!("add {b0}, 1024*", $planes),
                    concat!("add {b1}, 1024*", $planes),
                    "dec {steps}",
                    "jnz 2b",
                    "lea {s}, [{s} + {s}]",
                    $($store,)*
                    a0 = inout(reg) a[0] => _,
                    a1 = inout(reg) a[1] => _,
                    b0 = inout(reg) b[0] => _,
                    b1 = inout(reg) b[1] => _,
                    s = inout(reg) 64usize => _,
                    steps = inout(reg) steps => _,
                    c = in(reg) c,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

const _: () = assert!(BLOCK * size_of::<f32>() == 128);

kernel!(exact_one_strip, 3, 1, [b!(0), a0!(0), a0!(1), a0!(2)], [c0!()]);
kernel!(exact_two_strips, 3, 1, [b!(0), a0!(0), a1!(0), a0!(1), a1!(1), a0!(2), a1!(2)], [c0!(), c1!()]);
kernel!(rounded_one_strip, 2, 2, [b!(0), a0!(1), a0!(0), b!(1), a0!()], [c0!()]);
kernel!(rounded_two_strips, 2, 2, [b!(0), a0!(1), a1!(1), a0!(0), a1!(0), b!(1), a0!(), a1!()], [c0!(), c1!()]);
