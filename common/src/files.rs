//! Nothing is written in place: temporary name, fsync, rename, fsync of the folder.

use crate::Result;
use std::path::Path;

/// Writes `bytes` so that `path` holds either what it held before or all of them, whatever happens.
pub fn write_atomically(_path: &Path, _bytes: &[u8]) -> Result<()> {
    todo!()
}

/// fsyncs a folder, so that renames in it survive a power cut.
pub fn sync_dir(_dir: &Path) -> Result<()> {
    todo!()
}

/// Renames a finished folder or file into place and fsyncs the parent.
pub fn publish(_temporary: &Path, _path: &Path) -> Result<()> {
    todo!()
}

/// Lower-case hex SHA-256 of a file, read in chunks.
pub fn sha256_of_file(_path: &Path) -> Result<String> {
    todo!()
}

/// Lower-case hex SHA-256 of bytes.
pub fn sha256_hex(_bytes: &[u8]) -> String {
    todo!()
}
