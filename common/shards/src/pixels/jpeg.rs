//! The source files' bytes, in whatever format they are: the reader decodes and resizes them.

use super::Spec;
use parquet::basic::Compression;

pub(super) const SPEC: Spec = Spec {
    name: "jpeg",
    about: "the source files, 14 KB, decoded again whenever a row is read",
    bytes_at_336: 14_000,
    rounding: 0.0,
    stores_source: true,
    compression: || Compression::UNCOMPRESSED,
    encode: |file, _, _, stored| stored.extend_from_slice(file),
    decode: |_, _, _, _, _| None,
};
