//! A raw disk, or a fixed VHD, in a stream: which of the two shows only at the end.
//!
//! The last 512 bytes of the stream may be a footer, and the end is not known before it comes. So no byte is handed
//! out before 512 more were read behind it: those are held back and become the beginning of the next block.

use crate::disk::forward::ForwardReader;
use crate::disk::vhd::trailer;
use crate::disk::{BlockBuf, Delivery, DiskFormat, DiskSource};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BLOCK_LEN, BlockIndex, SECTOR_LEN, VIRTUAL_SIZE_MAX};

/// What the last 512 bytes of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// Content of the disk, whatever they look like.
    Content,
    /// A fixed VHD's footer if they are a sound one, content if they are no footer at all.
    ContentOrFooter,
    /// A fixed VHD's footer: without it the stream is truncated.
    Footer,
}

/// Reads a stream block by block, ascending.
pub struct RawStreamSource {
    reader: ForwardReader,
    end: StreamEnd,
    format: DiskFormat,
    /// Bytes read and not yet handed out: always 512 until the stream has ended.
    held: Vec<u8>,
    next: u64,
    /// Known once the stream has ended.
    virtual_size: Option<u64>,
}

impl RawStreamSource {
    /// A stream whose first bytes, up to 512, are `head`, and were already taken from `reader`.
    pub(in crate::disk) fn new(reader: ForwardReader, head: &[u8], end: StreamEnd) -> Self {
        let format = if end == StreamEnd::Footer { DiskFormat::VhdFixed } else { DiskFormat::Raw };
        Self { reader, end, format, held: head.to_vec(), next: 0, virtual_size: None }
    }

    /// Moves the bytes held back and as many new ones as there are into `content`, then holds the next ones back.
    /// Returns how much of `content` is filled.
    fn read_on(&mut self, content: &mut [u8]) -> Result<usize> {
        let held_len = self.held.len();
        content[..held_len].copy_from_slice(&self.held);
        let filled = held_len + self.reader.fill_some(&mut content[held_len..])?;
        self.held.resize(SECTOR_LEN, 0);
        let held_len = self.reader.fill_some(&mut self.held)?;
        self.held.truncate(held_len);
        Ok(filled)
    }

    /// Decides, `content` being the last bytes before the ones held back, how long the disk is.
    fn size_at_end(&mut self, content: &[u8]) -> Result<u64> {
        let end = self.reader.position();
        if self.end == StreamEnd::Content {
            return Ok(end);
        }
        let mut tail = [content, &self.held].concat();
        tail.drain(..tail.len().saturating_sub(SECTOR_LEN));
        match trailer::fixed_content_len(&tail, end)? {
            Some(len) => {
                self.format = DiskFormat::VhdFixed;
                Ok(len)
            }
            None if self.end == StreamEnd::Footer => Err(trailer::no_footer(end)),
            None => Ok(end),
        }
    }
}

impl DiskSource for RawStreamSource {
    fn virtual_size(&self) -> Option<u64> {
        self.virtual_size
    }

    fn format(&self) -> DiskFormat {
        self.format
    }

    fn delivery(&self) -> Delivery {
        Delivery::Ascending
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> Result<Option<BlockIndex>> {
        let index = BlockIndex(self.next);
        if let Some(size) = self.virtual_size {
            // All that can be left are the bytes that were held back behind the last full block.
            if index.offset_bytes() >= size {
                return Ok(None);
            }
            let held_len = self.held.len();
            buf.bytes_mut()[..held_len].copy_from_slice(&self.held);
        } else {
            let filled = self.read_on(buf.bytes_mut())?;
            if self.reader.position() > VIRTUAL_SIZE_MAX {
                let text = format!("the stream has more than the {VIRTUAL_SIZE_MAX} bytes a repository takes");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            if self.held.len() < SECTOR_LEN {
                let last = &buf.bytes()[filled.saturating_sub(SECTOR_LEN)..filled];
                let size = self.size_at_end(last)?;
                self.virtual_size = Some(size);
                if index.offset_bytes() >= size {
                    return Ok(None);
                }
            } else {
                debug_assert_eq!(filled, BLOCK_LEN, "nothing is held back behind a block that is not full");
            }
        }
        if let Some(size) = self.virtual_size {
            buf.clear_past_end(index, size);
        }
        self.next += 1;
        Ok(Some(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::vhd::footer::Footer;
    use crate::disk::{FormatHint, SourceOptions, open_stream};

    fn read_all(bytes: Vec<u8>, format: FormatHint) -> Result<(Vec<u8>, DiskFormat)> {
        let options = SourceOptions { format, ..SourceOptions::default() };
        let mut source = open_stream(std::io::Cursor::new(bytes), &options)?;
        let mut content = Vec::new();
        let mut buf = BlockBuf::new();
        while let Some(index) = source.next_block(&mut buf)? {
            assert_eq!(index.offset_bytes(), content.len() as u64);
            content.extend_from_slice(buf.bytes());
        }
        let size = usize::try_from(source.virtual_size().expect("known at the end")).unwrap();
        assert!(content[size..].iter().all(|byte| *byte == 0), "bytes past the end are not zero");
        content.truncate(size);
        Ok((content, source.format()))
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8 | 1).collect()
    }

    /// Every way the last 512 bytes can lie on a block boundary.
    const LENGTHS: [usize; 16] = [
        1,
        511,
        512,
        513,
        1024,
        BLOCK_LEN - 1024,
        BLOCK_LEN - 513,
        BLOCK_LEN - 512,
        BLOCK_LEN - 511,
        BLOCK_LEN - 1,
        BLOCK_LEN,
        BLOCK_LEN + 1,
        BLOCK_LEN + 511,
        BLOCK_LEN + 512,
        BLOCK_LEN + 513,
        2 * BLOCK_LEN + 100,
    ];

    #[test]
    fn raw_streams_of_every_length_come_back_whole() {
        for len in LENGTHS {
            for format in [FormatHint::Auto, FormatHint::Raw] {
                let bytes = pattern(len);
                assert_eq!(read_all(bytes.clone(), format).unwrap(), (bytes, DiskFormat::Raw), "{len} bytes");
            }
        }
    }

    #[test]
    fn a_footer_at_the_end_is_never_delivered() {
        for len in LENGTHS {
            for format in [FormatHint::Auto, FormatHint::Vhd] {
                let content = pattern(len);
                let footer = Footer::new_fixed(len as u64);
                let bytes = [&content, footer.encode()].concat();
                assert_eq!(read_all(bytes, format).unwrap(), (content.clone(), DiskFormat::VhdFixed), "{len} bytes");
                if len % SECTOR_LEN == 0 {
                    let short = [&content, &footer.encode()[..511]].concat();
                    assert_eq!(read_all(short, format).unwrap(), (content, DiskFormat::VhdFixed), "{len} bytes, 511");
                }
            }
        }
    }

    #[test]
    fn a_footer_is_content_when_the_caller_says_raw() {
        let bytes = [&pattern(1024), Footer::new_fixed(1024).encode()].concat();
        assert_eq!(read_all(bytes.clone(), FormatHint::Raw).unwrap(), (bytes, DiskFormat::Raw));
    }

    #[test]
    fn a_footer_that_does_not_fit_is_refused_rather_than_stored() {
        let bytes = [&pattern(1024), Footer::new_fixed(2048).encode()].concat();
        let error = read_all(bytes, FormatHint::Auto).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the last 512 bytes are the footer of a fixed VHD of 2048 bytes (current size at byte 1072), but 1024 \
             bytes precede it; if they are content of the disk, say that the format is raw"
        );
        let error = read_all(pattern(4096), FormatHint::Vhd).unwrap_err();
        assert!(error.to_string().contains("no VHD footer"), "{error}");
    }
}
