//! An image with the backing files below it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use imago::FormatAccess;
use imago::qcow2::Qcow2;
use imago::raw::Raw;

use super::header::{BackingName, Header};
use super::image_file::ImageFile;
use crate::disk::quoted::quoted;
use crate::error::{Error, ErrorKind, Result, ResultExt};

/// The most backing files below an image. A loop ends here too.
pub(super) const BACKING_FILES_MAX: usize = 32;

/// An image that can be read, and what its own header says.
pub(super) fn open(file: File, end: u64, backing: Option<&Path>) -> Result<(FormatAccess<ImageFile>, Header)> {
    open_layer(file, end, backing, "the image".to_owned(), 0)
}

/// The error that reading through imago ended with: the system's, or the image's.
pub(super) fn failed(what: impl Into<String>, error: io::Error) -> Error {
    let kind = if error.raw_os_error().is_some() { ErrorKind::Io } else { ErrorKind::Invalid };
    Error::with_source(kind, what, error)
}

fn open_layer(
    file: File,
    end: u64,
    folder: Option<&Path>,
    name: String,
    depth: usize,
) -> Result<(FormatAccess<ImageFile>, Header)> {
    let header = Header::read(&file, end)?;
    let backing = header.backing().map(|backing| open_backing(backing, folder, depth)).transpose()?;
    let storage = ImageFile::new(file, end, header.minimal(), name);
    let mut image = Qcow2::<ImageFile>::open_image(storage, false).map_err(|error| failed("cannot open it", error))?;
    image.set_data_file(None);
    image.set_backing(backing);
    Ok((FormatAccess::new(image), header))
}

fn open_backing(backing: &BackingName, folder: Option<&Path>, depth: usize) -> Result<FormatAccess<ImageFile>> {
    let unsupported = |text: String| Err(Error::new(ErrorKind::Unsupported, text));
    let shown = backing.shown();
    let Some(folder) = folder else {
        return unsupported(format!(
            "the image has a backing file, \"{shown}\", which is read only when that is allowed: an image can name any \
             file of this machine; allow it for an image of your own, or convert it with qemu-img convert"
        ));
    };
    if depth == BACKING_FILES_MAX {
        return unsupported(format!(
            "more than {BACKING_FILES_MAX} backing files below each other, or a loop of them; the next is \"{shown}\""
        ));
    }
    let is_file_name = backing.name.iter().find(|byte| matches!(byte, b':' | b'/')) != Some(&b':');
    if !is_file_name {
        return unsupported(format!("the backing file \"{shown}\" is no file name: only local files are read"));
    }
    let path = folder.join(OsStr::from_bytes(&backing.name));
    let cannot = || format!("backing file \"{shown}\"");
    // A FIFO would block when it is opened.
    let file_type = fs::metadata(&path).context(cannot)?.file_type();
    if !file_type.is_file() && !file_type.is_block_device() {
        return unsupported(format!("the backing file \"{shown}\" is neither a regular file nor a block device"));
    }
    let mut file = File::open(&path).context(cannot)?;
    let end = file.seek(SeekFrom::End(0)).context(cannot)?;
    let name = format!("the backing file \"{shown}\"");
    match backing.format.as_deref() {
        Some(b"qcow2") => {
            let folder = path.parent().unwrap_or(folder);
            open_layer(file, end, Some(folder), name, depth + 1).map(|(image, _)| image).context(cannot)
        }
        Some(b"raw") => {
            let storage = ImageFile::new(file, end, Vec::new(), name);
            let image = Raw::open_image(storage, false).map_err(|error| failed(cannot(), error))?;
            Ok(FormatAccess::new(image))
        }
        Some(other) => unsupported(format!(
            "the backing file \"{shown}\" has the format \"{}\"; qcow2 and raw are read",
            quoted(other)
        )),
        // Content of a raw disk can look like an image that names further files.
        None => unsupported(format!(
            "the image does not say which format its backing file \"{shown}\" has, and a guess can be led astray by \
             its content; tell it: qemu-img rebase -u -b FILE -F FORMAT IMAGE"
        )),
    }
}
