//! GGUF files, version 3, read back: the values of each tensor.

use super::blocks::TensorType;
use super::gguf::{ALIGNMENT, MAGIC, VERSION};
use base::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file's tensors.
pub struct GgufFile {
    path: PathBuf,
    file: File,
    /// Where the data begin, bytes.
    data: u64,
    tensors: HashMap<String, Info>,
}

struct Info {
    kind: TensorType,
    values: usize,
    offset: u64,
}

impl GgufFile {
    /// Reads the description of the tensors.
    ///
    /// # Errors
    /// A file that cannot be read, or is not one of this program's.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let mut head = Head { from: BufReader::new(&file), read: 0, path };
        let tensors = head.tensors()?;
        let data = head.read.next_multiple_of(ALIGNMENT as u64);
        Ok(Self { path: path.to_path_buf(), file, data, tensors })
    }

    /// The values of a tensor in f32; `None` if there is none of this name.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn values(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let mut bytes = vec![0; info.kind.bytes_of(info.values)];
        self.file.read_exact_at(&mut bytes, self.data + info.offset).map_err(Error::io(&self.path))?;
        Ok(Some(info.kind.decode(&bytes)))
    }

    /// Bytes of the tensors of each type, by ggml's names.
    pub fn bytes_by_type(&self) -> Vec<(&'static str, usize)> {
        let mut kinds: Vec<TensorType> = self.tensors.values().map(|info| info.kind).collect();
        kinds.sort();
        kinds.dedup();
        let bytes = |kind| -> usize {
            let of_kind = self.tensors.values().filter(|info| info.kind == kind);
            of_kind.map(|info| kind.bytes_of(info.values)).sum()
        };
        kinds.into_iter().map(|kind| (kind.name(), bytes(kind))).collect()
    }
}

/// What precedes the data.
struct Head<'a> {
    from: BufReader<&'a File>,
    read: u64,
    path: &'a Path,
}

impl Head<'_> {
    fn tensors(&mut self) -> Result<HashMap<String, Info>> {
        if self.take::<4>()? != *MAGIC || self.u32()? != VERSION {
            return Err(self.wrong("another kind of file"));
        }
        let (tensors, entries) = (self.u64()?, self.u64()?);
        for _ in 0..entries {
            self.text()?;
            let kind = self.u32()?;
            self.skip_value(kind)?;
        }
        (0..tensors).map(|_| self.tensor()).collect()
    }

    fn tensor(&mut self) -> Result<(String, Info)> {
        let (name, dims) = (self.text()?, self.u32()?);
        let mut values = 1usize;
        for _ in 0..dims {
            values = values.saturating_mul(self.u64()? as usize);
        }
        let number = self.u32()?;
        let kind = TensorType::of_number(number)
            .ok_or_else(|| self.wrong(&format!("tensor {name} of a type that is not written here ({number})")))?;
        Ok((name, Info { kind, values, offset: self.u64()? }))
    }

    fn skip_value(&mut self, kind: u32) -> Result<()> {
        match kind {
            0 | 1 | 7 => self.take::<1>().map(drop),
            2 | 3 => self.take::<2>().map(drop),
            4..=6 => self.take::<4>().map(drop),
            10..=12 => self.take::<8>().map(drop),
            8 => self.text().map(drop),
            9 => {
                let (of, len) = (self.u32()?, self.u64()?);
                (0..len).try_for_each(|_| self.skip_value(of))
            }
            _ => Err(self.wrong(&format!("metadata of type {kind}"))),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(Error::io(self.path))?;
        self.read += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn text(&mut self) -> Result<String> {
        let len = self.u64()?;
        let mut bytes = Vec::new();
        let read = self.from.by_ref().take(len).read_to_end(&mut bytes).map_err(Error::io(self.path))?;
        self.read += read as u64;
        if read as u64 != len {
            return Err(self.wrong("a text that ends early"));
        }
        String::from_utf8(bytes).map_err(|_| self.wrong("a text that is not UTF-8"))
    }

    fn wrong(&self, found: &str) -> Error {
        Error::invalid(self.path.display(), found, "a GGUF file of version 3 that this program wrote", "export again")
    }
}
