//! gemm-bench THREADS ROUNDS PYTHON: see `../../gemm.sh`.
//! gemm-bench THREADS: the rate of the fastest library with a square product at this moment, GFLOP/s.

use libloading::Library;
use kernels::cpu::gemm::{Start, gemm};
use kernels::cpu::matrix::{Matrix, MatrixMut};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Seconds of one measurement.
const SECONDS: f64 = 0.1;
/// `x Wᵀ`, `d W` and `dᵀ x`: forward, gradient of the input, gradient of the weight. m, k, n.
const PRODUCTS: [(&str, [usize; 3], Form); 14] = [
    ("square", [2048, 2048, 2048], Form::Forward),
    ("SmolLM2 gate, up", [1240, 576, 1536], Form::Forward),
    ("SmolLM2 down", [1240, 1536, 576], Form::Forward),
    ("SmolLM2 q, o", [1240, 576, 576], Form::Forward),
    ("SmolLM2 k, v", [1240, 576, 192], Form::Forward),
    ("SmolLM2 gate, up", [1240, 1536, 576], Form::OfInput),
    ("SmolLM2 down", [1240, 576, 1536], Form::OfInput),
    ("SmolLM2 gate, up", [1536, 1240, 576], Form::OfWeight),
    ("SmolLM2 q, o", [576, 1240, 576], Form::OfWeight),
    ("DINOv2-S fc1", [1154, 384, 1536], Form::Forward),
    ("DINOv2-S fc2", [1154, 1536, 384], Form::Forward),
    ("mini gate, up", [1240, 256, 688], Form::Forward),
    ("mini down", [1240, 688, 256], Form::Forward),
    ("mini q, o", [1240, 256, 256], Form::Forward),
];

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Forward,
    OfInput,
    OfWeight,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "x Wᵀ",
            Self::OfInput => "d W",
            Self::OfWeight => "dᵀ x",
        }
    }
}

/// A product to be measured: a `[m, k]` and b `[k, n]`, each stored so or transposed.
struct Problem {
    sizes: [usize; 3],
    a: Vec<f32>,
    a_transposed: bool,
    b: Vec<f32>,
    b_transposed: bool,
    c: Vec<f32>,
}

/// `cblas_sgemm`.
type Sgemm =
    unsafe extern "C" fn(i32, i32, i32, i32, i32, i32, f32, *const f32, i32, *const f32, i32, f32, *mut f32, i32);

impl Problem {
    fn new(sizes: [usize; 3], form: Form) -> Self {
        let [m, k, n] = sizes;
        let values = |len: usize, modulus: usize| (0..len).map(|i| (i % modulus) as f32 / 7.0 - 1.0).collect();
        let (a_transposed, b_transposed) = (form == Form::OfWeight, form == Form::Forward);
        Self { sizes, a: values(m * k, 13), a_transposed, b: values(k * n, 11), b_transposed, c: vec![0.0; m * n] }
    }

    fn giga_flop(&self) -> f64 {
        2e-9 * self.sizes.iter().product::<usize>() as f64
    }

    /// Strides of rows and columns of a and b.
    fn strides(&self) -> [[isize; 2]; 2] {
        let [m, k, n] = self.sizes.map(|size| size as isize);
        [if self.a_transposed { [1, m] } else { [k, 1] }, if self.b_transposed { [1, k] } else { [n, 1] }]
    }

    fn ours(&mut self) {
        let [m, k, n] = self.sizes;
        let matrix = |values, transposed, rows, columns| match transposed {
            true => Matrix::new(values, columns, rows).transposed(),
            false => Matrix::new(values, rows, columns),
        };
        let (a, b) = (matrix(&self.a, self.a_transposed, m, k), matrix(&self.b, self.b_transposed, k, n));
        gemm(a, b, MatrixMut::new(&mut self.c, m, n), Start::Zero);
    }

    fn gemm_crate(&mut self, threads: usize) {
        let ([m, k, n], [a, b], c) = (self.sizes, self.strides(), self.c.as_mut_ptr());
        let parallel = gemm::Parallelism::Rayon(threads);
        // SAFETY: sizes and strides are those of the three matrices.
        unsafe {
            let (a_values, b_values) = (self.a.as_ptr(), self.b.as_ptr());
            gemm::gemm(
                m, n, k, c, 1, n as isize, false, a_values, a[1], a[0], b_values, b[1], b[0], 0.0, 1.0, false, false,
                false, parallel,
            );
        }
    }

    fn faer(&mut self, threads: usize) {
        use faer::{Accum, MatMut, MatRef, Par};
        let ([m, k, n], [a, b]) = (self.sizes, self.strides());
        // SAFETY: as above.
        let (a, b, c) = unsafe {
            (
                MatRef::from_raw_parts(self.a.as_ptr(), m, k, a[0], a[1]),
                MatRef::from_raw_parts(self.b.as_ptr(), k, n, b[0], b[1]),
                MatMut::from_raw_parts_mut(self.c.as_mut_ptr(), m, n, n as isize, 1),
            )
        };
        faer::linalg::matmul::matmul(c, Accum::Replace, a, b, 1.0f32, Par::rayon(threads));
    }

    fn blas(&mut self, sgemm: Sgemm) {
        const ROWS_IN_ORDER: i32 = 101;
        let transposed = |yes| if yes { 112 } else { 111 };
        let ([m, k, n], [a, b]) = (self.sizes.map(|size| size as i32), self.strides());
        let leading = |strides: [isize; 2]| strides[0].max(strides[1]) as i32;
        // SAFETY: as above.
        unsafe {
            let (a_form, b_form) = (transposed(self.a_transposed), transposed(self.b_transposed));
            let (a_values, b_values, c) = (self.a.as_ptr(), self.b.as_ptr(), self.c.as_mut_ptr());
            sgemm(ROWS_IN_ORDER, a_form, b_form, m, n, k, 1.0, a_values, leading(a), b_values, leading(b), 0.0, c, n);
        }
    }
}

/// GFLOP/s of repeated calls.
fn measured(problem: &mut Problem, mut multiply: impl FnMut(&mut Problem)) -> f64 {
    multiply(problem);
    let (mut runs, begin) = (0, Instant::now());
    while begin.elapsed().as_secs_f64() < SECONDS {
        multiply(problem);
        runs += 1;
    }
    problem.giga_flop() * f64::from(runs) / begin.elapsed().as_secs_f64()
}

/// GFLOP/s of nothing but fused multiply-adds, on all threads.
#[cfg(target_arch = "x86_64")]
fn multiply_adds(threads: usize) -> f64 {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    use std::hint::black_box;
    const TURNS: usize = 50_000_000;
    const SUMS: usize = 12;
    #[target_feature(enable = "avx2,fma")]
    fn run() -> [f32; SUMS] {
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [_mm256_set1_ps(1.0); SUMS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        let mut first = [0.0; SUMS];
        for (first, sum) in first.iter_mut().zip(sums) {
            *first = _mm256_cvtss_f32(sum);
        }
        first
    }
    assert!(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"), "this loop needs AVX2 and FMA");
    let begin = Instant::now();
    std::thread::scope(|scope| {
        // SAFETY: just asserted.
        (0..threads).for_each(|_| drop(scope.spawn(|| black_box(unsafe { run() }))));
    });
    1e-9 * (threads * TURNS * SUMS * 16) as f64 / begin.elapsed().as_secs_f64()
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_adds(_: usize) -> f64 {
    f64::NAN
}

/// torch in a process of its own.
struct Torch {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Torch {
    fn start(python: &str, threads: usize) -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../peers/peer_gemm.py");
        let mut command = Command::new(python);
        command.args([script, &threads.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().ok()?;
        let answers = BufReader::new(child.stdout.take()?);
        let mut torch = Self { child, answers };
        torch.measured(&Problem::new([64; 3], Form::Forward)).map(|_| torch)
    }

    fn measured(&mut self, problem: &Problem) -> Option<f64> {
        let ([m, k, n], a, b) = (problem.sizes, problem.a_transposed, problem.b_transposed);
        let (a, b) = (u8::from(a), u8::from(b));
        writeln!(self.child.stdin.as_mut()?, "{m} {k} {n} {a} {b} {SECONDS}").ok()?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).ok()?;
        answer.trim().parse().ok()
    }
}

fn blas(library: &str) -> Option<(Library, Sgemm)> {
    // SAFETY: a BLAS has no side effects on loading but its threads, and `cblas_sgemm` has this type.
    unsafe {
        let library = Library::new(library).ok()?;
        let sgemm = *library.get::<Sgemm>(b"cblas_sgemm").ok()?;
        Some((library, sgemm))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Rates of every library, medians of rounds in which each has its turn.
fn rates(problem: &mut Problem, threads: usize, rounds: usize, others: &mut Others) -> [f64; 6] {
    let mut found: [Vec<f64>; 6] = Default::default();
    for _ in 0..rounds {
        found[0].push(measured(problem, Problem::ours));
        found[1].push(measured(problem, |problem| problem.gemm_crate(threads)));
        found[2].push(measured(problem, |problem| problem.faer(threads)));
        for (found, blas) in found[3..5].iter_mut().zip(&others.blases) {
            found.extend(blas.iter().map(|(_, sgemm)| measured(problem, |problem| problem.blas(*sgemm))));
        }
        found[5].extend(others.torch.as_mut().and_then(|torch| torch.measured(problem)));
    }
    found.map(median)
}

/// What may be missing.
struct Others {
    blases: [Option<(Library, Sgemm)>; 2],
    torch: Option<Torch>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| -> usize {
        let argument = arguments.get(index).and_then(|argument| argument.parse().ok());
        argument
            .expect("gemm-bench THREADS [ROUNDS PYTHON], where THREADS and ROUNDS are numbers; see tests/bench/gemm.sh")
    };
    let threads = number(0);
    let mut others = Others { blases: ["libopenblas.so.0", "libblis.so.4"].map(blas), torch: None };
    if arguments.len() == 1 {
        let mut square = Problem::new(PRODUCTS[0].1, PRODUCTS[0].2);
        let rates = rates(&mut square, threads, 3, &mut others);
        return println!("{:.1}", rates.into_iter().fold(0.0, f64::max));
    }
    let rounds = number(1);
    others.torch = arguments.get(2).and_then(|python| Torch::start(python, threads));
    println!("{threads} threads, medians of {rounds} rounds, GFLOP/s; multiply-adds alone: {:.0}\n", {
        median((0..rounds).map(|_| multiply_adds(threads)).collect())
    });
    println!(
        "| product | form | m, k, n | ours | gemm crate | faer | OpenBLAS | BLIS | torch |\n|---|---|---|---|---|---|---|---|---|"
    );
    for (name, sizes, form) in PRODUCTS {
        let cells =
            rates(&mut Problem::new(sizes, form), threads, rounds, &mut others).map(|rate| format!("{rate:.0}"));
        let [m, k, n] = sizes;
        println!("| {name} | {} | {m}, {k}, {n} | {} |", form.name(), cells.join(" | "));
    }
}
