//! Image files to pixels: folders and images.zip, decoding, resizing, image processors.

pub mod image_files;
pub mod image_processor;
