//! Rows of shards read at random in a CPU-second of one thread, as JSON:
//!
//!     cargo bench -p preprocess --bench read_rows -- DIR [ROWS]

use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};
use shards::{ShardSet, Split};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1).filter(|arg| arg != "--bench");
    let dir = args.next().ok_or_else(|| anyhow::anyhow!("usage: read_rows DIR [ROWS]"))?;
    let rows: Option<usize> = args.next().map(|rows| rows.to_string_lossy().parse()).transpose()?;
    let set = ShardSet::open(dir.as_ref(), Split::Train)?;
    let rows = rows.unwrap_or(set.len());
    let mut order: Vec<usize> = (0..set.len()).collect();
    order.shuffle(&mut StdRng::seed_from_u64(0));
    set.read_row(0)?;
    let started = cpu_seconds()?;
    let mut values = 0;
    for index in order.iter().cycle().take(rows) {
        values += set.read_row(*index)?.pixel_values.len();
    }
    let seconds = cpu_seconds()? - started;
    let bytes: u64 = set.files().map(|file| file.bytes).sum();
    let result = serde_json::json!({
        "pixels": set.metadata().pixels,
        "rows": rows,
        "rows_per_cpu_s": rows as f64 / seconds,
        "values_per_row": values / rows.max(1),
        "bytes_per_row": bytes / set.len().max(1) as u64,
    });
    println!("{result}");
    Ok(())
}

/// CPU time of this thread: other processes on the machine do not count.
fn cpu_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = text.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(nanoseconds / 1e9)
}
