//! Image files of every format.
#![no_main]

use images::image_processor::{ImageProcessor, Resample};
use std::sync::LazyLock;

static PROCESSOR: LazyLock<ImageProcessor> = LazyLock::new(|| ImageProcessor::new(Some(28), 28, Resample::Bicubic, [0.5; 3], [0.25; 3]));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = PROCESSOR.process(bytes) {
        assert_eq!(image.codes.len(), 3 * 28 * 28);
        assert!(image.width > 0 && image.height > 0);
    }
});
