//! A fixed VHD: the bytes of the disk, rounded up to whole sectors, and a footer behind them.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use super::plan::{self, VhdParams};
use crate::disk::raw::file_sink::RawFileSink;
use crate::disk::raw::stream_sink::RawStreamSink;
use crate::disk::{DiskSink, StreamSink};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::units::BlockIndex;

/// Writes a fixed VHD to a file in any order; what is never written is a hole. The footer is written last, after
/// everything else is durable: until then the file is no VHD.
pub struct FixedFileSink {
    disk: RawFileSink,
    file: File,
    footer: Vec<u8>,
    footer_offset: u64,
}

impl FixedFileSink {
    /// Prepares `file`, a regular one: what it held is gone.
    ///
    /// # Errors
    /// `Unsupported` for what is no regular file and for sizes a VHD cannot have, `Invalid` for a unique id of zeros, `Io`
    /// when preparing fails.
    pub fn create(file: File, params: &VhdParams) -> Result<Self> {
        let footer = plan::fixed_footer(params)?;
        if !file.metadata().context(|| "cannot examine the target")?.is_file() {
            let text = "the target is no regular file: write the VHD as a stream, or a raw disk";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let second = file.try_clone().context(|| "cannot open the target a second time")?;
        let disk = RawFileSink::create(second, params.virtual_size)?;
        Ok(Self { disk, file, footer_offset: footer.current_size(), footer: footer.encode().to_vec() })
    }
}

impl DiskSink for FixedFileSink {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.disk.write_at(offset, bytes)
    }

    fn finish(&self) -> Result<()> {
        self.disk.finish()?;
        let written = self.file.write_all_at(&self.footer, self.footer_offset);
        written.context(|| format!("cannot write the footer at byte {} of the VHD", self.footer_offset))?;
        self.file.sync_all().context(|| "cannot make the VHD durable")
    }
}

/// Writes a fixed VHD front to back.
pub struct FixedStreamSink<W> {
    disk: RawStreamSink<W>,
    /// Zeros up to a whole sector, then the footer.
    tail: Vec<u8>,
}

impl<W: Write + Send> FixedStreamSink<W> {
    /// A VHD whose length is that of the disk in whole sectors, and 512.
    ///
    /// # Errors
    /// `Unsupported` for sizes a VHD cannot have, `Invalid` for a unique id of zeros.
    pub fn create(writer: W, params: &VhdParams) -> Result<Self> {
        let footer = plan::fixed_footer(params)?;
        let padding = usize::try_from(footer.current_size() - params.virtual_size).expect("less than a sector");
        let tail = [&vec![0; padding], footer.encode()].concat();
        Ok(Self { disk: RawStreamSink::create(writer, params.virtual_size)?, tail })
    }
}

impl<W: Write + Send> StreamSink for FixedStreamSink<W> {
    fn write_block(&mut self, index: BlockIndex, content: &[u8]) -> Result<()> {
        self.disk.write_block(index, content)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.disk.write_rest()?;
        self.disk.write(&self.tail)?;
        Box::new(self.disk).finish()
    }
}
