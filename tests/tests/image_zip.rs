//! `images.zip` as common programs write it: names, counts, offsets, sizes, checksums, methods.

use flate2::Crc;
use flate2::write::DeflateEncoder;
use images::image_files::{ImageFileError, ImageSources};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// An entry, and what its headers say of it.
#[derive(Clone)]
struct Entry {
    name: &'static [u8],
    stored: Vec<u8>,
    method: u16,
    flags: u16,
    bytes: u32,
    crc32: u32,
    /// Empty bytes in the file before it.
    gap: u64,
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn stored(name: &'static str, bytes: &[u8]) -> Entry {
    let (bytes, len) = (bytes.to_vec(), bytes.len() as u32);
    Entry { name: name.as_bytes(), crc32: crc32(&bytes), stored: bytes, method: 0, flags: 0, bytes: len, gap: 0 }
}

fn deflated(name: &'static str, bytes: &[u8]) -> Entry {
    let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("deflated");
    Entry { stored: encoder.finish().expect("deflated"), method: 8, ..stored(name, bytes) }
}

/// Writes `images.zip` without zip64: counts and offsets keep their low 16 and 32 bits, as macOS writes them.
fn write(dir: &Path, entries: impl IntoIterator<Item = Entry>) {
    let file = File::create(dir.join("images.zip")).expect("created");
    let (mut file, mut offset) = (BufWriter::new(file), 0u64);
    let (mut directory, mut count) = (Vec::new(), 0u64);
    for entry in entries {
        offset += entry.gap;
        file.seek(SeekFrom::Start(offset)).expect("sought");
        let mut about = Vec::new();
        for value in [20, entry.flags, entry.method, 0, 33] {
            about.extend(u16::to_le_bytes(value));
        }
        for value in [entry.crc32, entry.stored.len() as u32, entry.bytes] {
            about.extend(value.to_le_bytes());
        }
        about.extend((entry.name.len() as u16).to_le_bytes());
        about.extend([0, 0]);
        directory.extend(b"PK\x01\x02\x14\x03");
        directory.extend(&about);
        directory.extend([0; 10]);
        directory.extend((offset as u32).to_le_bytes());
        directory.extend(entry.name);
        for part in [b"PK\x03\x04", &about[..], entry.name, &entry.stored] {
            file.write_all(part).expect("written");
            offset += part.len() as u64;
        }
        count += 1;
    }
    let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
    end.extend((count as u16).to_le_bytes());
    end.extend((count as u16).to_le_bytes());
    end.extend((directory.len() as u32).to_le_bytes());
    end.extend((offset as u32).to_le_bytes());
    end.extend([0, 0]);
    file.write_all(&directory).and_then(|()| file.write_all(&end)).and_then(|()| file.flush()).expect("written");
}

fn open(dir: &Path) -> ImageSources {
    ImageSources::find(dir).unwrap_or_else(|error| panic!("{error}"))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A name gives the same file from the zip file as from the folder that it was unpacked into.
#[test]
fn names_are_resolved_as_in_folders() {
    for (entries, found, missing) in [
        // The contents of images/.
        (
            &["a.jpg", "coco/b.jpg"][..],
            &[
                "a.jpg",
                "./a.jpg",
                "images/a.jpg",
                ".//images/./a.jpg",
                "coco//b.jpg",
                "coco/./b.jpg",
                "images/coco/b.jpg",
            ][..],
            &["b.jpg", "A.jpg", "coco", "a.jpg/", "../a.jpg", "/a.jpg", "coco/../a.jpg", "", "."][..],
        ),
        // The folder itself, with or without a dot before it.
        (&["images/a.jpg"], &["a.jpg", "./a.jpg", "images/a.jpg", "images//a.jpg"], &["c.jpg"]),
        (&["./images/a.jpg"], &["a.jpg", "images/a.jpg"], &["c.jpg"]),
        (&["images_dl/a.jpg"], &["a.jpg", "images_dl/a.jpg"], &["c.jpg"]),
        (&["./a.jpg", "x//c.jpg"], &["a.jpg", "x/c.jpg", "images/x/c.jpg"], &["c.jpg"]),
        // Old programs on Windows.
        (&["images\\a.jpg", "images\\x\\b.jpg"], &["a.jpg", "x/b.jpg", "images/x/b.jpg"], &["b.jpg"]),
        // Entries that lead out of the folder are nobody's.
        (&["../a.jpg", "x/../b.jpg"], &[], &["a.jpg", "b.jpg", "x/b.jpg"]),
    ] {
        let dir = folder();
        write(dir.path(), entries.iter().map(|&name| stored(name, name.as_bytes())));
        let images = open(dir.path());
        for name in found {
            let bytes = images.read(name).unwrap_or_else(|error| panic!("{entries:?}: {name:?}: {error}"));
            let end = name.rsplit('/').next().expect("a name");
            assert!(bytes.ends_with(end.as_bytes()), "{entries:?}: {name:?} gives {}", String::from_utf8_lossy(&bytes));
        }
        for name in missing {
            let error = images.read(name).expect_err(name);
            assert!(
                matches!(error, ImageFileError::Missing(_) | ImageFileError::Unreadable(_)),
                "{entries:?}: {name:?}: {error}"
            );
        }
        // The message shows how names begin there.
        let text = images.read("nowhere.jpg").expect_err("absent").to_string();
        let begin = "nowhere.jpg is in none of the data folder, images.zip (";
        assert!(text.starts_with(begin) && (found.is_empty() || text.contains("such as \"")), "{text}");
    }
}

/// A row's name for an image, and the bytes as text or parts of the error that reading it gives.
type Reading = (&'static str, Result<&'static str, &'static [&'static str]>);

#[test]
fn the_exact_name_comes_first_and_different_entries_of_one_name_are_refused() {
    let cases: [(&[Entry], &[Reading]); 7] = [
        // The exact name before the name in a folder, in either order.
        (
            &[stored("images/x/b.png", b"inner"), stored("x/b.png", b"outer")],
            &[("x/b.png", Ok("outer")), ("./x//b.png", Ok("outer")), ("images/x/b.png", Ok("inner"))],
        ),
        (
            &[stored("b.png", b"outer"), deflated("images_dl/b.png", b"downloaded"), stored("images/b.png", b"inner")],
            &[("b.png", Ok("outer")), ("images/b.png", Ok("inner")), ("images_dl/b.png", Ok("downloaded"))],
        ),
        (
            &[stored("images/images/b.png", b"deep"), stored("images/b.png", b"inner")],
            &[("images/b.png", Ok("inner")), ("b.png", Ok("inner")), ("images/images/b.png", Ok("deep"))],
        ),
        // One name, one content: as often as it is there.
        (&[stored("b.png", b"same"), deflated("./b.png", b"same")], &[("b.png", Ok("same"))]),
        // One name, other sizes or other checksums.
        (
            &[stored("x/b.png", b"one"), stored("c.png", b"c"), stored("x/./b.png", b"three")],
            &[("x/b.png", Err(&["\"x/b.png\" (3 bytes", "\"x/./b.png\" (5 bytes"])), ("c.png", Ok("c"))],
        ),
        (
            &[stored("images\\b.png", b"two"), stored("images/b.png", b"one"), stored("images/b.png", b"one")],
            &[
                ("images/b.png", Err(&["\"images\\\\b.png\" (3 bytes, CRC-32 ", " and \"images/b.png\" (3 bytes"])),
                ("b.png", Err(&["b.png in images.zip is ambiguous: found"])),
            ],
        ),
        (
            &[stored("b.png", b"old"), stored("b.png", b"new"), stored("images/b.png", b"inner")],
            &[("b.png", Err(&["\"b.png\" (3 bytes"])), ("images/b.png", Ok("inner"))],
        ),
    ];
    for (entries, reads) in cases {
        let dir = folder();
        write(dir.path(), entries.iter().cloned());
        let images = open(dir.path());
        let names: Vec<_> = entries.iter().map(|entry| String::from_utf8_lossy(entry.name)).collect();
        for (name, expected) in reads {
            match (images.read(name), expected) {
                (Ok(bytes), Ok(expected)) => assert_eq!(bytes, expected.as_bytes(), "{names:?}: {name}"),
                (Err(ImageFileError::Unreadable(text)), Err(parts)) => {
                    assert!(parts.iter().all(|part| text.contains(part)), "{names:?}: {name}: {text}");
                }
                (found, _) => panic!("{names:?}: {name}: {found:?}"),
            }
        }
    }
}

/// 65,536 entries are counted as 0, 65,537 as 1.
#[test]
fn more_entries_than_the_count_can_hold_are_all_there() {
    for fillers in [65_534usize, 65_535, 65_536, 200_000] {
        let dir = folder();
        let names: Vec<&'static str> = (0..fillers).map(|number| &*format!("i/{number:06}").leak()).collect();
        write(dir.path(), names.iter().map(|name| stored(name, b"")).chain([deflated("last.jpg", b"the last one")]));
        let images = open(dir.path());
        assert_eq!(images.read("last.jpg").expect("read"), b"the last one", "{fillers}");
        assert_eq!(images.read("i/000000").expect("read"), b"", "{fillers}");
    }
}

/// A count that is wrong otherwise is a damaged file; the message has both numbers.
#[test]
fn a_wrong_count_is_refused_with_both_numbers() {
    let dir = folder();
    write(dir.path(), [stored("a.jpg", b"a"), stored("b.jpg", b"b")]);
    let path = dir.path().join("images.zip");
    let mut bytes = std::fs::read(&path).expect("read");
    let end = bytes.len() - 22;
    bytes[end + 8..end + 12].copy_from_slice(&[3, 0, 3, 0]);
    std::fs::write(&path, bytes).expect("written");
    let error = ImageSources::find(dir.path()).err().expect("refused").to_string();
    assert!(error.contains("found 2 entries, where its end counts 3"), "{error}");
}

#[test]
fn a_part_of_a_split_zip_file_is_refused_with_the_remedy() {
    let dir = folder();
    write(dir.path(), [stored("a.jpg", b"a")]);
    let path = dir.path().join("images.zip");
    let mut bytes = std::fs::read(&path).expect("read");
    let end = bytes.len() - 22;
    bytes[end + 4] = 2;
    std::fs::write(&path, bytes).expect("written");
    let error = ImageSources::find(dir.path()).err().expect("refused").to_string();
    assert!(error.contains("part 3 of") && error.contains("zip -s 0"), "{error}");
}

/// Beyond 4 GiB an offset of 32 bits begins again; the gaps are holes, no disk is used.
#[test]
fn offsets_beyond_four_gibibytes_are_found() {
    let dir = folder();
    let entries = [
        stored("first.jpg", b"at the begin"),
        Entry { gap: 3 << 30, ..deflated("second.jpg", b"before the border") },
        Entry { gap: 3 << 30, ..stored("third.jpg", b"beyond it") },
        Entry { gap: 5 << 30, ..deflated("fourth.jpg", b"beyond twice") },
    ];
    write(dir.path(), entries);
    let images = open(dir.path());
    for (name, bytes) in [
        ("first.jpg", &b"at the begin"[..]),
        ("second.jpg", b"before the border"),
        ("third.jpg", b"beyond it"),
        ("fourth.jpg", b"beyond twice"),
    ] {
        let found = images.read(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found, bytes, "{name}");
    }
}

/// A fault of one entry does not affect the others.
#[test]
fn entries_that_are_not_as_declared_are_refused_each_by_its_fault() {
    let long = vec![7u8; 100_000];
    let cases = [
        (
            "longer, stored",
            Entry { bytes: 99, crc32: crc32(&long[..99]), ..stored("x", &long) },
            "more than the 99 bytes",
        ),
        (
            "longer, deflated",
            Entry { bytes: 99, crc32: crc32(&long[..99]), ..deflated("x", &long) },
            "more than the 99 bytes",
        ),
        ("shorter, stored", Entry { bytes: 100_001, ..stored("x", &long) }, "holds 100000 of the 100001 bytes"),
        ("shorter, deflated", Entry { bytes: 100_001, ..deflated("x", &long) }, "holds 100000 of the 100001 bytes"),
        ("empty but declared", Entry { bytes: 5, ..stored("x", b"") }, "holds 0 of the 5 bytes"),
        ("declared empty", Entry { bytes: 0, crc32: 0, ..deflated("x", b"abc") }, "more than the 0 bytes"),
        ("checksum, stored", Entry { crc32: 1, ..stored("x", &long) }, "checksum"),
        ("checksum, deflated", Entry { crc32: 1, ..deflated("x", &long) }, "expected 00000001"),
        ("no deflate at all", Entry { method: 8, ..stored("x", &[0xff; 50]) }, "x in images.zip"),
        ("encrypted", Entry { flags: 1, ..stored("x", &long) }, "encrypted, expected a zip file without password"),
        ("AES", Entry { flags: 1, method: 99, ..stored("x", &long) }, "encrypted"),
        ("Deflate64", Entry { method: 9, ..stored("x", &long) }, "DEFLATE64"),
        ("bzip2", Entry { method: 12, ..stored("x", &long) }, "BZIP2"),
        ("zstd", Entry { method: 93, ..stored("x", &long) }, "ZSTD"),
        ("unknown", Entry { method: 1234, ..stored("x", &long) }, "method 1234"),
    ];
    for (what, entry, expected) in cases {
        let dir = folder();
        write(dir.path(), [stored("before.jpg", b"1"), entry, deflated("after.jpg", b"2")]);
        let images = open(dir.path());
        match images.read("x") {
            Err(ImageFileError::Unreadable(text)) => assert!(text.contains(expected), "{what}: {text}"),
            other => panic!("{what}: {:?}", other.map(|bytes| bytes.len())),
        }
        assert_eq!(images.read("before.jpg").expect("read"), b"1", "{what}");
        assert_eq!(images.read("after.jpg").expect("read"), b"2", "{what}");
    }
    let dir = folder();
    write(dir.path(), [Entry { bytes: 300 << 20, ..stored("x", b"") }]);
    assert!(matches!(open(dir.path()).read("x"), Err(ImageFileError::TooLarge { .. })));
}
