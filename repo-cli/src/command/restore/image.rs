//! What is written: a format, and the writer that goes with it and an output.

use std::fs::File;
use std::io::BufWriter;

use clap::ValueEnum;
use repo_core::disk::image::file_sink::ImageFileSink;
use repo_core::disk::image::stream_sink::ImageStreamSink;
use repo_core::disk::qcow2::layout::Qcow2Layout;
use repo_core::disk::raw::file_sink::RawFileSink;
use repo_core::disk::raw::stream_sink::RawStreamSink;
use repo_core::disk::vhd::file_sink::VhdFileSink;
use repo_core::disk::vhd::fixed_sink::{FixedFileSink, FixedStreamSink};
use repo_core::disk::vhd::plan::VhdParams;
use repo_core::disk::vhd::profile::Profile;
use repo_core::disk::vhd::stream_sink::VhdStreamSink;
use repo_core::disk::vhdx::layout::{VhdxLayout, VhdxParams};
use repo_core::entropy::Entropy;
use repo_core::error::{Error, ErrorKind, Result};
use repo_core::ops::restore::{RestorePlan, Target};

/// A format of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A VHD with blocks: dynamic, or differencing with --delta-from
    Vhd,
    /// A VHD with all of the disk's bytes
    VhdFixed,
    /// A qcow2, as QEMU and newer versions of XCP-ng use it
    Qcow2,
    /// A dynamic VHDX, as Hyper-V uses it
    Vhdx,
    /// The bytes of the disk
    Raw,
}

impl Format {
    /// The name in JSON, messages and on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Vhd => "vhd",
            Self::VhdFixed => "vhd-fixed",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
            Self::Raw => "raw",
        }
    }
}

/// An image to be written.
pub(super) struct Image<'a> {
    pub(super) format: Format,
    pub(super) plan: &'a RestorePlan,
    pub(super) params: VhdParams,
    /// The shape of a VHD with blocks.
    pub(super) profile: Profile,
}

impl Image<'_> {
    /// A writer into what can only be written front to back.
    ///
    /// # Errors
    /// Those of the writers.
    pub(super) fn stream(&self, file: File) -> Result<Target> {
        let writer = BufWriter::with_capacity(STREAM_BUFFER_LEN, file);
        Ok(Target::Stream(match self.format {
            Format::Raw => Box::new(RawStreamSink::create(writer, self.params.virtual_size)?),
            Format::Vhd => Box::new(VhdStreamSink::create(writer, &self.params, &self.profile, self.plan.present())?),
            Format::VhdFixed => Box::new(FixedStreamSink::create(writer, &self.params)?),
            Format::Qcow2 => Box::new(ImageStreamSink::create(writer, self.qcow2()?)?),
            Format::Vhdx => Box::new(ImageStreamSink::create(writer, self.vhdx()?)?),
        }))
    }

    /// A writer onto a block device.
    ///
    /// # Errors
    /// `Unsupported` for anything but a raw disk; those of the writers.
    pub(super) fn device(&self, file: File) -> Result<Target> {
        if self.format != Format::Raw {
            let text = format!("a block device takes a raw disk, not a {}: give --format raw", self.format.name());
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        self.file(file)
    }

    /// A writer into a new file.
    ///
    /// # Errors
    /// Those of the writers.
    pub(super) fn file(&self, file: File) -> Result<Target> {
        Ok(Target::File(match self.format {
            Format::Raw => Box::new(RawFileSink::create(file, self.params.virtual_size)?),
            Format::Vhd => Box::new(VhdFileSink::create(file, &self.params, &self.profile, self.plan.present())?),
            Format::VhdFixed => Box::new(FixedFileSink::create(file, &self.params)?),
            Format::Qcow2 => Box::new(ImageFileSink::create(file, self.qcow2()?)?),
            Format::Vhdx => Box::new(ImageFileSink::create(file, self.vhdx()?)?),
        }))
    }

    fn qcow2(&self) -> Result<Qcow2Layout> {
        Qcow2Layout::new(self.params.virtual_size, self.plan.present())
    }

    fn vhdx(&self) -> Result<VhdxLayout> {
        let entropy = Entropy::system();
        let params = VhdxParams {
            virtual_size: self.params.virtual_size,
            disk_id: entropy.bytes()?,
            file_write_guid: entropy.bytes()?,
            data_write_guid: entropy.bytes()?,
        };
        VhdxLayout::new(&params, self.plan.present())
    }
}

/// Small writes to a pipe are collected up to this many bytes; a block goes through at once.
const STREAM_BUFFER_LEN: usize = 64 * 1024;
