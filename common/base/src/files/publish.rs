//! Atomic publication of files and folders: contents are synced to disk before the rename, so that a crash leaves no partial file.

use super::AtomicFile;
use crate::{Error, Result, names, pulse};
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// fsyncs a folder, so that renames in it survive a power cut.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(Error::io(dir))
}

/// Puts a finished file, or a folder with everything in it, on disk, and then under its name.
pub fn publish(temporary: &Path, path: &Path) -> Result<()> {
    sync_all(temporary)?;
    rename(temporary, path)
}

/// fsyncs a file, or a folder and everything below it. Costs little for data that is already on disk.
fn sync_all(path: &Path) -> Result<()> {
    let about = path.symlink_metadata().map_err(Error::io(path))?;
    if about.is_dir() {
        for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
            sync_all(&entry.map_err(Error::io(path))?.path())?;
        }
    }
    if about.is_dir() || about.is_file() {
        File::open(path).and_then(|file| file.sync_all()).map_err(Error::io(path))?;
        pulse::mark();
    }
    Ok(())
}

/// Renames a file or folder that is on disk, so that the new name survives a power cut.
///
/// # Errors
/// What the system refuses; a device, pipe or socket of the new name, which root would replace.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    require_no_device(to)?;
    std::fs::rename(from, to).map_err(Error::io(to))?;
    sync_dir(parent(to))?;
    if parent(from) == parent(to) { Ok(()) } else { sync_dir(parent(from)) }
}

/// Whether it is the name of a device, pipe or socket.
pub fn is_device(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|about| !(about.is_file() || about.is_dir() || about.is_symlink()))
}

/// Refuses the name of a device, pipe or socket (`/dev/null`): a file would take its place, for every program of the machine.
///
/// # Errors
/// Such a name.
pub fn require_no_device(path: &Path) -> Result<()> {
    if !is_device(path) {
        return Ok(());
    }
    Err(Error::invalid(path.display(), "a device, pipe or socket", "a file, or no file yet", "give another path"))
}

/// Copies a file atomically: `to` has its old content or the whole copy, on disk.
pub fn copy_atomically(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(Error::io(from))?;
    let mut copy = AtomicFile::create(to)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = source.read(&mut buffer).map_err(Error::io(from))?;
        if read == 0 {
            return copy.commit();
        }
        copy.write_all(&buffer[..read]).map_err(Error::io(to))?;
    }
}

/// Makes a file that several writers may make at once: one of them does, whole, and the others find it. Says whether it was
/// this one.
///
/// Writers have files of their own until then, so that this needs no locks. Where the file system can neither rename without
/// replacing nor link, the last one wins, also whole.
pub fn create_once(path: &Path, fill: impl FnOnce(&File) -> std::io::Result<()>) -> Result<bool> {
    let folder = parent(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // As `File::create` would: the umask takes away what others must not have.
    let open = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(".tmp")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder);
    let temporary = open.map_err(Error::io(path))?;
    fill(temporary.as_file()).map_err(Error::io(path))?;
    temporary.as_file().sync_all().map_err(Error::io(path))?;
    let made = match temporary.persist_noclobber(path) {
        Ok(_) => true,
        Err(refused) if refused.error.kind() == ErrorKind::AlreadyExists => false,
        // Another writer was first, and removed this one's file as a leftover.
        Err(refused) if refused.error.kind() == ErrorKind::NotFound && path.exists() => false,
        Err(refused) => {
            refused.file.persist(path).map_err(|refused| Error::io(path)(refused.error))?;
            true
        }
    };
    sync_dir(folder)?;
    Ok(made)
}

/// Removes what killed writers of [`create_once`] left beside a file that is there.
pub fn remove_leftovers(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let folder = parent(path);
    let beginning = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&beginning) && name.ends_with(".tmp") {
            // Another writer may have removed it just now.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// `dir/name`, for a name that `source` (an index, a manifest, a server) has made up: it is a name in `dir` and nothing else.
///
/// # Errors
/// A name that leads elsewhere.
pub fn in_folder(dir: &Path, name: &str, source: impl std::fmt::Display) -> Result<PathBuf> {
    if names::is_plain(name) {
        return Ok(dir.join(name));
    }
    let found = format!("the file name {name:?}");
    let expected = format!("the name of a file in {} itself", dir.display());
    Err(Error::invalid(source, found, expected, "do not use these files: they are damaged, or made to do harm"))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).expect("listed").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_published_with_everything_in_it_and_a_copy_replaces_a_file() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (temporary, place) = (dir.path().join(".run.tmp"), dir.path().join("run"));
        std::fs::create_dir_all(temporary.join("below")).expect("created");
        std::fs::write(temporary.join("below/a"), "1").expect("written");
        std::os::unix::fs::symlink("nowhere", temporary.join("link")).expect("linked");
        publish(&temporary, &place).expect("published");
        copy_atomically(&place.join("below/a"), &dir.path().join("b")).expect("copied");
        copy_atomically(&place.join("below/a"), &place.join("link")).expect("copied over a link that leads nowhere");
        assert_eq!(
            (listed(dir.path()), listed(&place)),
            (vec!["b".into(), "run".into()], vec!["below".into(), "link".into()])
        );
        assert!(copy_atomically(&dir.path().join("missing"), &dir.path().join("c")).is_err());
        assert_eq!(listed(dir.path()), ["b", "run"], "nothing half");
    }

    /// Sixteen writers at once, as rank threads of a first start or parts on a file system without locks: one file, whole.
    #[test]
    fn of_many_writers_one_makes_the_file() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for round in 0..20 {
            let path = dir.path().join(format!("{round}.bin"));
            let write = |number: u8| {
                create_once(&path, |mut file| {
                    file.write_all(&[number; 5000])?;
                    file.write_all(&[number; 5000])
                })
            };
            let made: Vec<bool> = std::thread::scope(|scope| {
                let write = &write;
                let writers: Vec<_> = (0..16).map(|number| scope.spawn(move || write(number))).collect();
                writers.into_iter().map(|writer| writer.join().expect("no panic").expect("no error")).collect()
            });
            assert_eq!(made.iter().filter(|&&made| made).count(), 1);
            let winner = made.iter().position(|&made| made).expect("one") as u8;
            assert_eq!(std::fs::read(&path).expect("read"), [winner; 10_000]);
        }
        assert_eq!(listed(dir.path()).len(), 20, "{:?}", listed(dir.path()));
    }

    #[test]
    fn names_that_lead_out_of_a_folder_are_refused() {
        let dir = Path::new("model");
        assert_eq!(in_folder(dir, "model-1.safetensors", "i").expect("plain"), Path::new("model/model-1.safetensors"));
        for name in
            ["", ".", "..", "../x", "a/b", "/etc/passwd", "a/../../x", "a\\..\\b", "a\0b", "model-/../../x.safetensors"]
        {
            let error = in_folder(dir, name, "index.json").expect_err("refused").to_string();
            assert!(error.contains("index.json") && error.contains("in model itself"), "{error}");
        }
    }
}
