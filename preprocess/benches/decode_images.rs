//! Images decoded in a CPU-second of one thread, without resizing, as JSON:
//!
//!     cargo bench -p preprocess --bench decode_images -- FOLDER [REPEAT]

use images::image_processor::decode;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1).filter(|arg| arg != "--bench");
    let folder = args.next().ok_or_else(|| anyhow::anyhow!("usage: decode_images FOLDER [REPEAT]"))?;
    let repeat: usize = args.next().map_or(Ok(1), |repeat| repeat.to_string_lossy().parse())?;
    let files = std::fs::read_dir(folder)?.map(|entry| std::fs::read(entry?.path())).collect::<Result<Vec<_>, _>>()?;
    let mut samples = Vec::new();
    let mut pixels = 0;
    decode(&files[0], &mut samples)?;
    let started = cpu_seconds()?;
    for file in files.iter().cycle().take(repeat * files.len()) {
        let raster = decode(file, &mut samples)?;
        pixels += raster.width * raster.height;
    }
    let seconds = cpu_seconds()? - started;
    let rows = repeat * files.len();
    println!(
        "{}",
        serde_json::json!({"rows": rows, "rows_per_cpu_s": rows as f64 / seconds, "pixels_per_row": pixels / rows})
    );
    Ok(())
}

/// CPU time of this thread: other processes on the machine do not count.
fn cpu_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = text.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(nanoseconds / 1e9)
}
