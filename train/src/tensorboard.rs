//! TensorBoard event files: records of protobuf messages with masked CRC-32C, as TensorFlow writes them.
//!
//! # Source
//! tensorflow `core/util/event.proto`, `core/framework/summary.proto`, `core/lib/io/record_writer.cc`.

use crate::log_file::LogFile;
use anyhow::Result;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file being written. Every event has been given to the system when the call returns; one that cannot be written is
/// kept for the next call, so that no half record hides those behind it.
pub struct EventFile(LogFile);

impl EventFile {
    /// A new file in `dir`. What earlier files there say of steps after `step` is void from now on: the run that wrote
    /// them got further than the checkpoint that this one goes on from.
    pub fn new(dir: &Path, step: u64) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "localhost".into());
        let seconds = wall_time() as u64;
        let name = format!("events.out.tfevents.{seconds:010}.{}.{}", host.trim(), std::process::id());
        let mut beginning = event(0, |event| event.text(FILE_VERSION, "brain.Event:2"));
        if step > 0 {
            let start = |event: &mut Message| event.message(SESSION_LOG, |log| log.integer(STATUS, SESSION_START));
            beginning.extend(event(step + 1, start));
        }
        Self(LogFile::new(dir.join(name), beginning))
    }

    /// Writes what could not be written before.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }

    /// Adds numbers of a step.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.write(step, |event| {
            event.message(SUMMARY, |summary| {
                for (tag, value) in values {
                    summary.message(VALUE, |message| {
                        message.text(TAG, tag);
                        message.float(SIMPLE_VALUE, *value as f32);
                    });
                }
            });
        })
    }

    /// Adds a text (Markdown) of a step.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn text(&mut self, step: u64, tag: &str, markdown: &str) -> Result<()> {
        self.write(step, |event| {
            event.message(SUMMARY, |summary| {
                summary.message(VALUE, |value| {
                    value.text(TAG, tag);
                    value.message(METADATA, |metadata| {
                        metadata.message(PLUGIN_DATA, |plugin| plugin.text(PLUGIN_NAME, "text"));
                    });
                    value.message(TENSOR, |tensor| {
                        tensor.integer(TENSOR_DTYPE, DT_STRING);
                        tensor.message(TENSOR_SHAPE, |shape| shape.message(DIM, |dim| dim.integer(DIM_SIZE, 1)));
                        tensor.text(STRING_VAL, markdown);
                    });
                });
            });
        })
    }

    fn write(&mut self, step: u64, fill: impl FnOnce(&mut Message)) -> Result<()> {
        self.0.append(&event(step, fill))
    }
}

/// The record of an event.
fn event(step: u64, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut event = Message::default();
    event.double(WALL_TIME, wall_time());
    event.integer(STEP, step);
    fill(&mut event);
    record(&event.0)
}

/// Field numbers of `Event`.
const WALL_TIME: u64 = 1;
const STEP: u64 = 2;
const FILE_VERSION: u64 = 3;
const SUMMARY: u64 = 5;
const SESSION_LOG: u64 = 7;
/// `SessionLog.status`, and its value `START`.
const STATUS: u64 = 1;
const SESSION_START: u64 = 1;
/// `Summary.value`, and fields of `Summary.Value`.
const VALUE: u64 = 1;
const TAG: u64 = 1;
const SIMPLE_VALUE: u64 = 2;
const TENSOR: u64 = 8;
const METADATA: u64 = 9;
/// `SummaryMetadata.plugin_data`, and its `plugin_name`.
const PLUGIN_DATA: u64 = 1;
const PLUGIN_NAME: u64 = 1;
/// Fields of `TensorProto` and `TensorShapeProto`, and the type of strings.
const TENSOR_DTYPE: u64 = 1;
const TENSOR_SHAPE: u64 = 2;
const STRING_VAL: u64 = 8;
const DIM: u64 = 2;
const DIM_SIZE: u64 = 1;
const DT_STRING: u64 = 7;

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// A protobuf message being built.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

/// Length, its checksum, the bytes, their checksum.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [&length[..], &masked_crc32c(&length).to_le_bytes(), bytes, &masked_crc32c(bytes).to_le_bytes()].concat()
}

fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// CRC-32 with Castagnoli's polynomial; a few kilobytes a step need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C, and RFC 3720's example of 32 zeros.
    #[test]
    fn the_checksum_is_the_standards() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    }

    #[test]
    fn messages_are_protobuf() {
        let mut message = Message::default();
        message.integer(2, 300);
        message.message(5, |inner| inner.text(1, "a"));
        assert_eq!(message.0, [0x10, 0xAC, 0x02, 0x2A, 0x03, 0x0A, 0x01, b'a']);
    }

    #[test]
    fn a_file_begins_with_its_version() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut events = EventFile::new(folder.path(), 0);
        events.scalars(1, &[("train/loss", 2.5)]).expect("written");
        let bytes = std::fs::read(events.0.path()).expect("read");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        assert!(bytes[12..12 + length].ends_with(b"brain.Event:2"));
        assert!(bytes.windows(10).any(|window| window == b"train/loss"));
    }
}
