//! CPU milliseconds a row of each stage of `preprocess shards`, on one thread, as JSON:
//!
//!     cargo bench -p preprocess --bench stages -- MODEL DATA [REPEAT]

use anyhow::Context;
use base::files;
use chat::ChatProcessor;
use chat::dataset::{Questions, Source, read_all};
use images::image_processor::{ImageProcessor, decode};
use shards::{PixelFormat, RowGroupEncoder, Sample, SampleImage, ShardMetadata};
use std::collections::BTreeMap;
use std::path::Path;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [model, data, rest @ ..] = &args[..] else { anyhow::bail!("usage: stages MODEL DATA [REPEAT]") };
    let repeat: usize = rest.first().map_or(Ok(5), |repeat| repeat.parse())?;
    let (chat, processor) = (ChatProcessor::from_dir(model.as_ref())?, ImageProcessor::from_dir(model.as_ref())?);
    let metadata = ShardMetadata::new(&chat, &processor, PixelFormat::Predicted);
    let records = read_all(&Source::find(data.as_ref(), None)?, &Questions::default())?;
    let rows: Vec<_> = records
        .into_iter()
        .map(|(record, _)| Ok(record.map_err(|(_, error)| error)?))
        .collect::<anyhow::Result<_>>()?;
    let mut stages = BTreeMap::new();
    let mut samples = Vec::new();
    for _ in 0..repeat {
        let mut encoder = RowGroupEncoder::new(&metadata)?;
        for row in &rows {
            let conversation = row.clone().conversation()?;
            let name = conversation.images.first().context("a row with an image")?;
            let mut timed = Stages { stages: &mut stages, last: cpu_seconds()? };
            let bytes = std::fs::read(Path::new(data).join("images").join(name))?;
            timed.ends("1 read file")?;
            decode(&bytes, &mut samples).context("an image")?;
            timed.ends("2 decode")?;
            let image = processor.process(&bytes).context("an image")?;
            timed.ends("3 decode again, resize")?;
            let tokens = chat.encode_sample(chat::SYSTEM_PROMPT, &conversation.turns)?;
            timed.ends("4 tokens")?;
            let sha256 = files::sha256_hex(&bytes);
            timed.ends("5 hash of the file")?;
            let (width, height) = (image.width, image.height);
            let image = SampleImage { name: name.clone(), sha256, width, height, payload: image.codes };
            encoder.push(&Sample { id: row.id.clone(), tokens, images: vec![image] })?;
            timed.ends("6 predict, compress")?;
        }
        let mut timed = Stages { stages: &mut stages, last: cpu_seconds()? };
        drop(encoder.finish()?);
        timed.ends("7 texts")?;
    }
    let rows = (repeat * rows.len()) as f64;
    stages.values_mut().for_each(|seconds| *seconds *= 1000.0 / rows);
    println!("{}", serde_json::json!(stages));
    Ok(())
}

struct Stages<'a> {
    stages: &'a mut BTreeMap<&'static str, f64>,
    last: f64,
}

impl Stages<'_> {
    fn ends(&mut self, stage: &'static str) -> anyhow::Result<()> {
        let now = cpu_seconds()?;
        *self.stages.entry(stage).or_default() += now - self.last;
        self.last = now;
        Ok(())
    }
}

/// CPU time of this thread: other processes on the machine do not count.
fn cpu_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = text.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(nanoseconds / 1e9)
}
