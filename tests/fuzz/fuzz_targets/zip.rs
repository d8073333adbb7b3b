//! images.zip: its directory and its entries.
#![no_main]

use images::image_files::{ImageSources, MAX_IMAGE_BYTES};
use std::path::PathBuf;
use std::sync::LazyLock;

/// A folder in memory.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from(format!("/dev/shm/llava-fuzz-zip-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("created");
    folder
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    std::fs::write(FOLDER.join("images.zip"), bytes).expect("written");
    if let Ok(images) = ImageSources::find(&FOLDER) {
        let _ = images.describe();
        for name in ["a", "b.jpg", "c.png", "d/e.jpg"] {
            if let Ok(bytes) = images.read(name) {
                assert!(bytes.len() as u64 <= MAX_IMAGE_BYTES);
            }
        }
    }
});
