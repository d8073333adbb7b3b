//! CLIP's and SigLIP's image processors, equal to transformers' PIL one bit for bit where the decoder gives the same pixels.

mod decode;
mod fields;
mod geometry;
mod orientation;
mod resize;
mod settings;

use base::Result;
pub use decode::{Layout, MAX_PIXELS, Raster, declared_size, decode, decoder_build};
use geometry::{center_window, resized_size};
pub use orientation::jpeg_orientation;
pub use resize::Resample;
use resize::{Resizer, Source};
use std::cell::RefCell;
use std::path::Path;

/// Buffers larger than this are given back after the image that needed them, bytes.
const KEPT_BYTES: usize = 64 << 20;

/// Resize → centre crop, or none → 1/255 → normalise.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    /// Shortest edge after resizing, pixels (CLIP). `None`: height and width become [`Self::crop_size`] whatever the aspect ratio,
    /// and nothing is cropped (SigLIP).
    pub shortest_edge: Option<usize>,
    /// Side of the square that the model gets, pixels (S).
    pub crop_size: usize,
    /// Filter of the resizing.
    pub resample: Resample,
    /// Per-channel mean.
    pub image_mean: [f64; 3],
    /// Per-channel standard deviation.
    pub image_std: [f64; 3],
    /// SHA-256 of the settings above in canonical form.
    pub sha256: String,
}

/// One image as the crop's codes before rescaling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessedImage {
    /// u8 planes `[3, S, S]`.
    pub codes: Vec<u8>,
    /// Width of the source, pixels.
    pub width: u32,
    /// Height of the source, pixels.
    pub height: u32,
}

/// Why an image file gives no pixels.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    /// Not an image by its first bytes.
    #[error("found {0}, expected a JPEG, PNG, GIF, WebP, BMP or TIFF picture")]
    Unidentified(String),
    /// Declares more pixels than allowed; refused before memory is taken.
    #[error("{width}×{height} pixels, more than the {limit} allowed")]
    TooLarge {
        /// Declared width.
        width: u64,
        /// Declared height.
        height: u64,
        /// Limit, pixels.
        limit: u64,
    },
    /// The data ends early or is damaged.
    #[error("damaged: {0}")]
    Damaged(String),
}

#[derive(Default)]
struct Scratch {
    samples: Vec<u8>,
    resizer: Resizer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl ImageProcessor {
    /// A processor with these settings; `shortest_edge` and `crop_size` in pixels.
    pub fn new(
        shortest_edge: Option<usize>,
        crop_size: usize,
        resample: Resample,
        image_mean: [f64; 3],
        image_std: [f64; 3],
    ) -> Self {
        let mut processor = Self { shortest_edge, crop_size, resample, image_mean, image_std, sha256: String::new() };
        processor.sha256 = settings::fingerprint(&processor);
        processor
    }

    /// Reads `image_processor` of `dir/processor_config.json`, or `dir/preprocessor_config.json`, in old (integer sizes) and new
    /// spelling.
    ///
    /// # Errors
    /// `Invalid` names the first setting that is not one of CLIP's or SigLIP's processing.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        settings::from_dir(dir)
    }

    /// The same settings as they stand in the file, for a `preprocessor_config.json` of another directory.
    ///
    /// # Errors
    /// No settings, and fields that are no processor's.
    pub fn settings_of_dir(dir: &Path) -> Result<serde_json::Map<String, serde_json::Value>> {
        Ok(settings::settings_of(dir)?.1)
    }

    /// Decodes (by content, not by name), resizes and crops one image file.
    ///
    /// # Errors
    /// See [`ImageError`].
    /// # Source
    /// transformers `CLIPImageProcessorPil` and `SiglipImageProcessorPil`, whose pixels these are before `rescale`.
    pub fn process(&self, bytes: &[u8]) -> Result<ProcessedImage, ImageError> {
        SCRATCH.with_borrow_mut(|Scratch { samples, resizer }| {
            let raster = decode(bytes, samples)?;
            let codes = self.resize_and_crop(samples, raster, resizer);
            if samples.capacity() > KEPT_BYTES {
                *samples = Vec::new();
            }
            resizer.shrink(KEPT_BYTES);
            Ok(ProcessedImage { codes, width: raster.width as u32, height: raster.height as u32 })
        })
    }

    /// Width and height of an image file that can be processed: it is decoded, and no more.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn check(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
        SCRATCH.with_borrow_mut(|Scratch { samples, .. }| {
            let raster = decode(bytes, samples)?;
            if samples.capacity() > KEPT_BYTES {
                *samples = Vec::new();
            }
            Ok((raster.width as u32, raster.height as u32))
        })
    }

    fn resize_and_crop(&self, samples: &[u8], raster: Raster, resizer: &mut Resizer) -> Vec<u8> {
        let Raster { width, height, layout } = raster;
        let (resized_width, resized_height) = match self.shortest_edge {
            Some(shortest_edge) => resized_size(width, height, shortest_edge),
            None => (self.crop_size, self.crop_size),
        };
        let columns = center_window(resized_width, self.crop_size);
        let rows = center_window(resized_height, self.crop_size);
        let plane = self.crop_size * self.crop_size;
        let mut codes = vec![0; 3 * plane];
        let source = Source { samples, width, height, channels: layout.channels() };
        resizer.resize(source, self.resample, columns, rows, self.crop_size, &mut codes);
        if layout == Layout::Gray {
            codes.copy_within(..plane, plane);
            codes.copy_within(..plane, 2 * plane);
        }
        codes
    }

    /// The normalised f32 of every code: `table[channel][code]`.
    ///
    /// # Source
    /// transformers `image_transforms.py`: `rescale` multiplies in f64 and rounds to f32, `normalize` computes in f32.
    pub fn table(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            let (mean, std) = (self.image_mean[channel] as f32, self.image_std[channel] as f32);
            std::array::from_fn(|code| ((code as f64 * settings::RESCALE_FACTOR) as f32 - mean) / std)
        })
    }

    /// `pixel_values` `[3, S, S]` of codes `[3, S, S]`.
    ///
    /// # Shapes
    /// Both may also hold several images, `[images, 3, S, S]`; they have the same length.
    pub fn normalize_into(&self, codes: &[u8], pixel_values: &mut [f32]) {
        let table = self.table();
        let plane = self.crop_size * self.crop_size;
        for (index, (codes, values)) in codes.chunks(plane).zip(pixel_values.chunks_mut(plane)).enumerate() {
            let table = &table[index % 3];
            for (value, &code) in values.iter_mut().zip(codes) {
                *value = table[usize::from(code)];
            }
        }
    }
}
