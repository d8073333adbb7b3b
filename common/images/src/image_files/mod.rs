//! Where a dataset's image files are: folders and a zip file, read in place.

mod folder;
mod zip;

use base::{Attachment, Content, Error, Result};
use folder::Folder;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use zip::ZipFile;

/// Largest image file, bytes; a larger one is refused before it is read.
pub const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// Endings of image files.
const ENDINGS: [&str; 8] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff"];

/// Why an image file gives no bytes.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageFileError {
    /// In none of the places.
    #[error("{0}")]
    Missing(String),
    /// There, and not readable.
    #[error("{0}")]
    Unreadable(String),
    /// More than [`MAX_IMAGE_BYTES`].
    #[error("{name} has {bytes} bytes, more than the {MAX_IMAGE_BYTES} allowed")]
    TooLarge {
        /// The file.
        name: String,
        /// Its size, bytes.
        bytes: u64,
    },
}

/// The places of a data folder that hold images, asked in order. Threads read at once.
pub struct ImageSources {
    folders: Vec<Folder>,
    zip: Option<ZipFile>,
}

impl ImageSources {
    /// Finds `images/`, `images_dl/`, the folder itself and `images.zip`.
    ///
    /// # Errors
    /// `data` is no folder; a damaged zip file.
    pub fn find(data: &Path) -> Result<Self> {
        Self::find_in(data, &["images", "images_dl", ""])
    }

    /// The same in these folders of `data`, in this order.
    ///
    /// # Errors
    /// As above.
    pub fn find_in(data: &Path, folders: &[&str]) -> Result<Self> {
        if !data.is_dir() {
            let expected = "the folder of a dataset";
            return Err(Error::invalid(data.display(), "no such folder", expected, "give the dataset's folder"));
        }
        let folders = folders.iter().map(|name| Folder::new(name, data.join(name))).filter(Folder::exists).collect();
        let zip = data.join("images.zip");
        let zip = if zip.is_file() { Some(ZipFile::open(&zip)?) } else { None };
        Ok(Self { folders, zip })
    }

    /// The places, for the plan: a zip file with its identity.
    pub fn describe(&self) -> Vec<String> {
        self.folder_names().chain(self.zip.iter().map(ZipFile::describe)).collect()
    }

    fn folder_names(&self) -> impl Iterator<Item = String> {
        self.folders.iter().map(|folder| match folder.name.as_str() {
            "" => "the data folder".to_owned(),
            name => format!("{name}/"),
        })
    }

    /// Size of an image's file in a folder, bytes; `None` if it is not in one.
    pub fn file_size(&self, name: &str) -> Option<u64> {
        let of = |name: &str| {
            let mut folders = self.folders.iter().filter(|_| is_inside(name));
            folders.find_map(|folder| folder.file_size(name))
        };
        of(name).or_else(|| of(&of_windows(name)?))
    }

    /// Whether there is a file of this name; nothing is read.
    pub fn has(&self, name: &str) -> bool {
        let in_zip = |name: &str| is_inside(name) && self.zip.as_ref().is_some_and(|zip| zip.has(name));
        self.file_size(name).is_some() || in_zip(name) || of_windows(name).is_some_and(|name| in_zip(&name))
    }

    /// Bytes of an image that comes with its row, or else of a file.
    ///
    /// # Errors
    /// See [`ImageFileError`].
    pub fn read_with(&self, attachments: &[Attachment], name: &str) -> Result<Vec<u8>, ImageFileError> {
        match attachments.iter().find(|attachment| attachment.name == name) {
            Some(attachment) => read_attached(attachment),
            None => self.read(name),
        }
    }

    /// Bytes of an image file.
    ///
    /// # Errors
    /// See [`ImageFileError`]; also for a name that leads out of the data folder.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, ImageFileError> {
        if !is_inside(name) {
            let remedy = match Path::new(name).is_absolute() {
                true => "; write it without the folder, or give --data a folder that holds it or a link to it",
                false => "",
            };
            return Err(ImageFileError::Missing(format!("{name:?} is not a file name inside the data folder{remedy}")));
        }
        if let Some(bytes) = self.read_exactly(name)? {
            return Ok(bytes);
        }
        if let Some(bytes) = of_windows(name).map(|name| self.read_exactly(&name)).transpose()?.flatten() {
            return Ok(bytes);
        }
        let places: Vec<String> = self.folder_names().chain(self.zip.iter().map(ZipFile::contents)).collect();
        let missing = match &places[..] {
            [place] => format!("{name} is not in {place}"),
            _ => format!("{name} is in none of {}", places.join(", ")),
        };
        let hint = match name.contains("://") {
            true => "; pictures are not downloaded: save it there and write its name".to_owned(),
            false => self.similar(name).map(|other| format!("; there is {other}")).unwrap_or_default(),
        };
        Err(ImageFileError::Missing(missing + &hint))
    }

    fn read_exactly(&self, name: &str) -> Result<Option<Vec<u8>>, ImageFileError> {
        if !is_inside(name) {
            return Ok(None);
        }
        for folder in &self.folders {
            if let Some(bytes) = folder.read(name)? {
                return Ok(Some(bytes));
            }
        }
        Ok(self.zip.as_ref().map(|zip| zip.read(name)).transpose()?.flatten())
    }

    /// A file that differs in capital letters, or in its ending only. Folders are listed once, because all names of a dataset may be so.
    fn similar(&self, name: &str) -> Option<String> {
        let name = of_windows(name).unwrap_or_else(|| name.to_owned());
        let path = Path::new(&name);
        let folder = path.parent().unwrap_or(Path::new(""));
        let file = path.file_name()?.to_str()?;
        let in_folders =
            self.folders.iter().find_map(|places| places.similar(folder, file)).map(|file| folder.join(file));
        let in_folders = in_folders.map(|path| path.to_string_lossy().into_owned());
        // A zip file's names are kept as hashes: they can be asked for, not listed.
        let endings = ENDINGS.into_iter().flat_map(|ending| [ending.to_owned(), ending.to_uppercase()]);
        let others = endings.map(|ending| path.with_extension(ending).to_string_lossy().into_owned());
        let small = std::iter::once(name.to_lowercase());
        in_folders.or_else(|| small.chain(others).filter(|other| *other != name).find(|other| self.has(other)))
    }
}

fn read_attached(attachment: &Attachment) -> Result<Vec<u8>, ImageFileError> {
    let Attachment { name, content } = attachment;
    if content.bytes() > MAX_IMAGE_BYTES {
        return Err(too_many_bytes(name, content.bytes()));
    }
    match content {
        Content::Bytes(bytes) => Ok(bytes.clone()),
        Content::Range { file, offset, bytes } => {
            let mut read = vec![0; *bytes as usize];
            let unreadable = |error| ImageFileError::Unreadable(format!("{name}: {error}"));
            file.read_exact_at(&mut read, *offset).map_err(unreadable)?;
            Ok(read)
        }
    }
}

/// A path with Windows' separators with those of this system, for names that are not found as they are.
fn of_windows(name: &str) -> Option<String> {
    name.contains('\\').then(|| name.replace('\\', "/"))
}

/// A file name that cannot lead out of the data folder.
fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.is_empty()
        && !name.ends_with('/')
        && !name.contains('\0')
        && parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn too_many_bytes(name: &str, bytes: u64) -> ImageFileError {
    ImageFileError::TooLarge { name: name.to_owned(), bytes }
}
