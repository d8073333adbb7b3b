//! The frames of predicted planes beside zstd and lz4: size, and speed on one thread.
//!
//! `cargo run --release --manifest-path tests/bench/entropy/Cargo.toml [FOLDER]` takes the image files of a folder; without one,
//! pictures are made here: shapes on a gradient with a camera's noise.

use images::image_processor::ImageProcessor;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shards::{entropy, predict};
use std::path::Path;
use std::time::{Duration, Instant};
use zstd::zstd_safe::{CCtx, CParameter, DCtx, ParamSwitch, compress_bound};

/// Side of the planes, pixels.
const SIDE: usize = 336;
/// Pictures that are taken or made.
const PICTURES: usize = 100;
/// Of so many rounds each image's fastest counts: a time below a millisecond, which other programs rarely fall into.
const ROUNDS: usize = 100;

/// Appends the compressed form of an image's planes.
type Compress<'a> = Box<dyn FnMut(&[u8], &mut Vec<u8>) + 'a>;
type Decompress<'a> = Box<dyn FnMut(&[u8], &mut [u8]) + 'a>;

struct Format<'a> {
    name: &'static str,
    compress: Compress<'a>,
    decompress: Decompress<'a>,
}

fn main() {
    let folder = std::env::args().nth(1);
    let (source, pictures) = match &folder {
        Some(folder) => ("photos", photos(Path::new(folder))),
        None => ("made pictures", (0..PICTURES as u64).map(made).collect()),
    };
    let planes: Vec<Vec<u8>> = pictures
        .iter()
        .map(|codes| {
            let mut residuals = Vec::new();
            predict(codes, SIDE, &mut residuals);
            residuals
        })
        .collect();
    let bytes: usize = planes.iter().map(Vec::len).sum();
    println!(
        "{} {source} of {SIDE} pixels, {:.1} MB of residuals, one thread, best of {ROUNDS}\n",
        planes.len(),
        mb(bytes)
    );
    println!("| form | bytes an image | of the residuals | write, MB/s | read, MB/s |\n|---|---:|---:|---:|---:|");
    for format in formats() {
        measure(format, &planes, bytes);
    }
}

fn formats<'a>() -> Vec<Format<'a>> {
    let own = Format {
        name: "own Huffman frames",
        compress: Box::new(|planes, out| entropy::compress(planes, SIDE * SIDE, out)),
        decompress: Box::new(|frames, planes| entropy::decompress(frames, planes).expect("its own frames")),
    };
    let lz4 = Format {
        name: "lz4",
        compress: Box::new(|planes, out| out.extend(lz4_flex::block::compress(planes))),
        decompress: Box::new(|block, planes| {
            lz4_flex::block::decompress_into(block, planes).expect("its own block");
        }),
    };
    // No match is searched for beyond every 128 KiB: what is left is zstd's own Huffman coder.
    let literals = [
        CParameter::CompressionLevel(-131_072),
        CParameter::LiteralCompressionMode(ParamSwitch::Enable),
        CParameter::MinMatch(7),
    ];
    vec![
        own,
        zstd("zstd, literals only", &literals),
        zstd("zstd −1, literals coded", &[CParameter::CompressionLevel(-1), literals[1]]),
        zstd("zstd 1", &[CParameter::CompressionLevel(1)]),
        zstd("zstd 3", &[CParameter::CompressionLevel(3)]),
        lz4,
    ]
}

fn zstd<'a>(name: &'static str, parameters: &[CParameter]) -> Format<'a> {
    let (mut compressor, mut decompressor) = (CCtx::create(), DCtx::create());
    for &parameter in parameters {
        compressor.set_parameter(parameter).expect("zstd knows it");
    }
    let mut frame = vec![0; compress_bound(3 * SIDE * SIDE)];
    Format {
        name,
        compress: Box::new(move |planes, out| {
            let written = compressor.compress2(&mut frame[..], planes).expect("compressed");
            out.extend_from_slice(&frame[..written]);
        }),
        decompress: Box::new(move |frame, planes| {
            decompressor.decompress(planes, frame).expect("decompressed");
        }),
    }
}

fn measure(mut format: Format, planes: &[Vec<u8>], bytes: usize) {
    let (mut write, mut read, mut size) = (Duration::ZERO, Duration::ZERO, 0);
    let (mut frames, mut found) = (Vec::new(), vec![0; 3 * SIDE * SIDE]);
    for planes in planes {
        write += fastest(|| {
            frames.clear();
            (format.compress)(planes, &mut frames);
        });
        read += fastest(|| (format.decompress)(&frames, &mut found));
        assert!(found == *planes, "{}", format.name);
        size += frames.len();
    }
    println!(
        "| {} | {} | {:.1} % | {:.0} | {:.0} |",
        format.name,
        size / planes.len(),
        100.0 * size as f64 / bytes as f64,
        mb(bytes) / write.as_secs_f64(),
        mb(bytes) / read.as_secs_f64()
    );
}

fn fastest(mut work: impl FnMut()) -> Duration {
    let times = (0..ROUNDS).map(|_| {
        let begin = Instant::now();
        work();
        begin.elapsed()
    });
    times.min().unwrap_or_default()
}

fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Codes u8 `[3, S, S]` of a folder's first images, as CLIP's processor makes them.
fn photos(folder: &Path) -> Vec<Vec<u8>> {
    let processor = ImageProcessor {
        shortest_edge: SIDE,
        crop_size: SIDE,
        image_mean: [0.5; 3],
        image_std: [0.5; 3],
        sha256: String::new(),
    };
    let entries = std::fs::read_dir(folder).expect("a folder of images");
    let mut paths: Vec<_> =
        entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.truncate(PICTURES);
    let read = |path: &std::path::PathBuf| std::fs::read(path).expect("a readable file");
    paths.iter().map(|path| processor.process(&read(path)).expect("an image").codes).collect()
}

/// Ellipses on a gradient, with noise of about two steps.
fn made(seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut any = |low: f32, high: f32| random.random_range(low..high);
    let slopes: Vec<f32> = (0..6).map(|_| any(-80.0, 80.0)).collect();
    let shapes: Vec<([f32; 4], [f32; 3])> = (0..12)
        .map(|_| {
            let place = [any(0.0, 1.0), any(0.0, 1.0), any(0.05, 0.4), any(0.05, 0.4)];
            (place, [any(20.0, 235.0), any(20.0, 235.0), any(20.0, 235.0)])
        })
        .collect();
    let mut codes = vec![0; 3 * SIDE * SIDE];
    for (index, code) in codes.iter_mut().enumerate() {
        let (plane, x, y) = (index / (SIDE * SIDE), index % SIDE, index / SIDE % SIDE);
        let (x, y) = (x as f32 / SIDE as f32, y as f32 / SIDE as f32);
        let ground = 128.0 + slopes[plane] * (x - 0.5) + slopes[3 + plane] * (y - 0.5);
        let inside = |place: &[f32; 4]| ((x - place[0]) / place[2]).powi(2) + ((y - place[1]) / place[3]).powi(2) < 1.0;
        let shape = shapes.iter().rev().find(|(place, _)| inside(place));
        let noise: f32 = (0..4).map(|_| random.random_range(-1.7f32..1.7)).sum();
        *code = (shape.map_or(ground, |(_, colour)| colour[plane] + 20.0 * (x - y)) + noise).clamp(0.0, 255.0) as u8;
    }
    codes
}
