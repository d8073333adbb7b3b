//! The GGUF file format, version 3: metadata, tensor infos, aligned data.
//!
//! # Source
//! ggml `docs/gguf.md`.

use super::blocks::TensorType;
use base::files::AtomicFile;
use base::{Error, Result};
use std::io::Write;
use std::path::Path;

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
pub(super) const VERSION: u32 = 3;
/// Tensor data starts at multiples of this, bytes.
pub(super) const ALIGNMENT: usize = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// uint32
    U32(u32),
    /// float32
    F32(f32),
    /// bool
    Bool(bool),
    /// UTF-8
    Text(String),
    /// int32 list
    I32s(Vec<i32>),
    /// float32 list
    F32s(Vec<f32>),
    /// UTF-8 list
    Texts(Vec<String>),
}

/// A tensor to write.
pub struct GgufTensor<'a> {
    /// llama.cpp's name.
    pub name: String,
    /// Shape, slowest dimension first (as in safetensors; the file has it reversed).
    pub shape: Vec<usize>,
    /// Format of the data.
    pub kind: TensorType,
    /// Gives the little-endian data when its turn has come.
    pub bytes: Box<dyn FnOnce() -> Result<Vec<u8>> + 'a>,
}

impl GgufTensor<'_> {
    fn len(&self) -> usize {
        self.kind.bytes_of(self.shape.iter().product())
    }
}

/// Writes a file, tensor by tensor, atomically.
///
/// # Errors
/// What the operating system refuses, and what a tensor's source says.
pub fn write(path: &Path, metadata: &[(String, Value)], tensors: Vec<GgufTensor<'_>>) -> Result<()> {
    let mut head = Buffer(Vec::new());
    head.0.extend(MAGIC);
    head.u32(VERSION);
    head.u64(tensors.len());
    head.u64(metadata.len());
    for (key, value) in metadata {
        head.text(key);
        head.value(value);
    }
    let mut offset = 0usize;
    for tensor in &tensors {
        head.text(&tensor.name);
        head.u32(tensor.shape.len() as u32);
        tensor.shape.iter().rev().for_each(|&size| head.u64(size));
        head.u32(tensor.kind.number());
        head.u64(offset);
        offset = (offset + tensor.len()).next_multiple_of(ALIGNMENT);
    }
    head.0.resize(head.0.len().next_multiple_of(ALIGNMENT), 0);
    let mut out = AtomicFile::create(path)?;
    out.write_all(&head.0).map_err(Error::io(path))?;
    for tensor in tensors {
        let (name, len) = (tensor.name.clone(), tensor.len());
        let mut bytes = (tensor.bytes)()?;
        if bytes.len() != len {
            let found = format!("{} bytes", bytes.len());
            return Err(Error::invalid(format!("tensor {name}"), found, len, "report this: a mistake of the program"));
        }
        bytes.resize(len.next_multiple_of(ALIGNMENT), 0);
        out.write_all(&bytes).map_err(Error::io(path))?;
    }
    out.commit()
}

struct Buffer(Vec<u8>);

impl Buffer {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: usize) {
        self.0.extend((value as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u64(text.len());
        self.0.extend(text.as_bytes());
    }

    /// The type's number, then the value.
    fn value(&mut self, value: &Value) {
        let [u32_type, i32_type, f32_type, bool_type, text_type, list_type] = [4, 5, 6, 7, 8, 9];
        match value {
            Value::U32(number) => {
                self.u32(u32_type);
                self.u32(*number);
            }
            Value::F32(number) => {
                self.u32(f32_type);
                self.0.extend(number.to_le_bytes());
            }
            Value::Bool(flag) => {
                self.u32(bool_type);
                self.0.push(u8::from(*flag));
            }
            Value::Text(text) => {
                self.u32(text_type);
                self.text(text);
            }
            Value::I32s(numbers) => {
                self.list(list_type, i32_type, numbers.len());
                numbers.iter().for_each(|number| self.0.extend(number.to_le_bytes()));
            }
            Value::F32s(numbers) => {
                self.list(list_type, f32_type, numbers.len());
                numbers.iter().for_each(|number| self.0.extend(number.to_le_bytes()));
            }
            Value::Texts(texts) => {
                self.list(list_type, text_type, texts.len());
                texts.iter().for_each(|text| self.text(text));
            }
        }
    }

    fn list(&mut self, list: u32, of: u32, len: usize) {
        self.u32(list);
        self.u32(of);
        self.u64(len);
    }
}
