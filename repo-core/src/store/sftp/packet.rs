//! Packets of SFTP version 3 (docs/sources.md, SFTP): what is asked and what is answered, in bytes.
//!
//! What comes from the server is untrusted: every length is checked against what is there before anything is made of it.

use bytes::{Buf, BufMut, Bytes};

/// The longest packet that is taken, in bytes: OpenSSH sends no longer one.
pub(super) const PACKET_LEN_MAX: usize = 256 * 1024 + 1024;
/// The longest handle that a server may give, in bytes.
const HANDLE_LEN_MAX: usize = 256;
/// The version that is spoken.
pub(super) const VERSION: u32 = 3;

/// What a file is opened for.
pub(super) const READ: u32 = 1;
/// To be made and written; refused when it is there.
pub(super) const WRITE_NEW: u32 = 2 | 8 | 32;

/// What is asked for.
pub(super) enum Request<'a> {
    Open {
        path: &'a str,
        flags: u32,
    },
    Close {
        handle: &'a [u8],
    },
    Read {
        handle: &'a [u8],
        offset: u64,
        len: u32,
    },
    Write {
        handle: &'a [u8],
        offset: u64,
        bytes: &'a [u8],
    },
    StatHandle {
        handle: &'a [u8],
    },
    Stat {
        path: &'a str,
    },
    OpenFolder {
        path: &'a str,
    },
    ReadFolder {
        handle: &'a [u8],
    },
    Remove {
        path: &'a str,
    },
    MakeFolder {
        path: &'a str,
    },
    /// Does not replace.
    Rename {
        from: &'a str,
        to: &'a str,
    },
    /// Replaces; an extension.
    Replace {
        from: &'a str,
        to: &'a str,
    },
    /// Makes durable what was written; an extension.
    Sync {
        handle: &'a [u8],
    },
}

/// Names of extensions that are used (OpenSSH's PROTOCOL file, section 4).
pub(super) const REPLACE: &str = "posix-rename@openssh.com";
pub(super) const SYNC: &str = "fsync@openssh.com";

impl Request<'_> {
    /// The packet, with its length before it.
    pub(super) fn encode(&self, id: u32) -> Bytes {
        let mut packet = Vec::with_capacity(64 + self.data_len());
        packet.put_u32(0);
        packet.put_u8(self.kind());
        packet.put_u32(id);
        match self {
            Self::Open { path, flags } => {
                put_string(&mut packet, path.as_bytes());
                packet.put_u32(*flags);
                put_mode(&mut packet, (*flags == WRITE_NEW).then_some(0o600));
            }
            Self::Close { handle } | Self::StatHandle { handle } | Self::ReadFolder { handle } => {
                put_string(&mut packet, handle);
            }
            Self::Read { handle, offset, len } => {
                put_string(&mut packet, handle);
                packet.put_u64(*offset);
                packet.put_u32(*len);
            }
            Self::Write { handle, offset, bytes } => {
                put_string(&mut packet, handle);
                packet.put_u64(*offset);
                put_string(&mut packet, bytes);
            }
            Self::Stat { path } | Self::OpenFolder { path } | Self::Remove { path } => {
                put_string(&mut packet, path.as_bytes());
            }
            Self::MakeFolder { path } => {
                put_string(&mut packet, path.as_bytes());
                put_mode(&mut packet, Some(0o700));
            }
            Self::Rename { from, to } => {
                put_string(&mut packet, from.as_bytes());
                put_string(&mut packet, to.as_bytes());
            }
            Self::Replace { from, to } => {
                put_string(&mut packet, REPLACE.as_bytes());
                put_string(&mut packet, from.as_bytes());
                put_string(&mut packet, to.as_bytes());
            }
            Self::Sync { handle } => {
                put_string(&mut packet, SYNC.as_bytes());
                put_string(&mut packet, handle);
            }
        }
        finish(packet)
    }

    fn data_len(&self) -> usize {
        match self {
            Self::Write { bytes, .. } => bytes.len() + HANDLE_LEN_MAX,
            _ => 0,
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Open { .. } => 3,
            Self::Close { .. } => 4,
            Self::Read { .. } => 5,
            Self::Write { .. } => 6,
            Self::StatHandle { .. } => 8,
            Self::OpenFolder { .. } => 11,
            Self::ReadFolder { .. } => 12,
            Self::Remove { .. } => 13,
            Self::MakeFolder { .. } => 14,
            Self::Stat { .. } => 17,
            Self::Rename { .. } => 18,
            Self::Replace { .. } | Self::Sync { .. } => 200,
        }
    }
}

/// The first packet of a client.
pub(super) fn init() -> Bytes {
    let mut packet = vec![0; 4];
    packet.put_u8(1);
    packet.put_u32(VERSION);
    finish(packet)
}

fn finish(mut packet: Vec<u8>) -> Bytes {
    let len = packet.len() - 4;
    packet[..4].copy_from_slice(&u32::try_from(len).expect("what is sent is short").to_be_bytes());
    packet.into()
}

/// Attributes of what is made: its permissions, if anything.
fn put_mode(packet: &mut Vec<u8>, mode: Option<u32>) {
    packet.put_u32(if mode.is_some() { 4 } else { 0 });
    mode.into_iter().for_each(|mode| packet.put_u32(mode));
}

fn put_string(packet: &mut Vec<u8>, bytes: &[u8]) {
    packet.put_u32(u32::try_from(bytes.len()).expect("what is sent is short"));
    packet.put_slice(bytes);
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Status { code: Code, message: String },
    Handle(Bytes),
    Data(Bytes),
    Names(Vec<Name>),
    Attributes(Attributes),
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Ok,
    End,
    Missing,
    Forbidden,
    Unsupported,
    /// Anything else; servers seldom say what.
    Failed,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// None when it is no UTF-8.
    pub(super) name: Option<String>,
    pub(super) attributes: Attributes,
}

/// What is known of a file, as far as the server says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Length in bytes.
    pub(super) len: Option<u64>,
    /// Kind and permissions, as of stat(2).
    pub(super) mode: Option<u32>,
    /// When it was written last, in seconds since the Unix epoch.
    pub(super) modified: Option<u32>,
}

impl Attributes {
    pub(super) fn is_folder(&self) -> Option<bool> {
        self.mode.map(|mode| mode & 0o170_000 == 0o040_000)
    }

    pub(super) fn is_file(&self) -> Option<bool> {
        self.mode.map(|mode| mode & 0o170_000 == 0o100_000)
    }
}

/// A packet that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads an answer: the packet without its length.
pub(super) fn decode(mut packet: Bytes) -> Result<(u32, Reply), Malformed> {
    let kind = u8_of(&mut packet)?;
    let id = u32_of(&mut packet)?;
    let reply = match kind {
        101 => {
            let code = match u32_of(&mut packet)? {
                0 => Code::Ok,
                1 => Code::End,
                2 => Code::Missing,
                3 => Code::Forbidden,
                8 => Code::Unsupported,
                _ => Code::Failed,
            };
            // Older servers say no more than the code.
            let message = string_of(&mut packet).unwrap_or_default();
            Reply::Status { code, message: String::from_utf8_lossy(&message).into_owned() }
        }
        102 => {
            let handle = string_of(&mut packet)?;
            if handle.is_empty() || handle.len() > HANDLE_LEN_MAX {
                return Err(Malformed);
            }
            Reply::Handle(handle)
        }
        103 => Reply::Data(string_of(&mut packet)?),
        104 => {
            let count = u32_of(&mut packet)? as usize;
            // A name takes 12 bytes at least.
            if count > packet.len() / 12 {
                return Err(Malformed);
            }
            let mut names = Vec::with_capacity(count);
            for _ in 0..count {
                let name = string_of(&mut packet)?;
                string_of(&mut packet)?;
                let name = String::from_utf8(name.into()).ok();
                names.push(Name { name, attributes: attributes_of(&mut packet)? });
            }
            Reply::Names(names)
        }
        105 => Reply::Attributes(attributes_of(&mut packet)?),
        _ => return Err(Malformed),
    };
    Ok((id, reply))
}

/// Reads the first packet of a server, without its length: which of the extensions that are used it has.
pub(super) fn decode_version(mut packet: Bytes) -> Result<Extensions, Malformed> {
    if u8_of(&mut packet)? != 2 || u32_of(&mut packet)? < VERSION {
        return Err(Malformed);
    }
    let mut extensions = Extensions::default();
    while packet.has_remaining() {
        let name = string_of(&mut packet)?;
        string_of(&mut packet)?;
        extensions.replace |= name == REPLACE.as_bytes();
        extensions.sync |= name == SYNC.as_bytes();
    }
    Ok(extensions)
}

/// What a server can do besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    pub(super) replace: bool,
    pub(super) sync: bool,
}

fn u8_of(packet: &mut Bytes) -> Result<u8, Malformed> {
    packet.try_get_u8().map_err(|_| Malformed)
}

fn u32_of(packet: &mut Bytes) -> Result<u32, Malformed> {
    packet.try_get_u32().map_err(|_| Malformed)
}

fn string_of(packet: &mut Bytes) -> Result<Bytes, Malformed> {
    let len = u32_of(packet)? as usize;
    if len > packet.len() { Err(Malformed) } else { Ok(packet.split_to(len)) }
}

fn attributes_of(packet: &mut Bytes) -> Result<Attributes, Malformed> {
    let flags = u32_of(packet)?;
    let mut attributes = Attributes::default();
    if flags & 1 != 0 {
        attributes.len = Some(packet.try_get_u64().map_err(|_| Malformed)?);
    }
    if flags & 2 != 0 {
        // Owner and group.
        u32_of(packet)?;
        u32_of(packet)?;
    }
    if flags & 4 != 0 {
        attributes.mode = Some(u32_of(packet)?);
    }
    if flags & 8 != 0 {
        // When it was read last.
        u32_of(packet)?;
        attributes.modified = Some(u32_of(packet)?);
    }
    if flags & 0x8000_0000 != 0 {
        for _ in 0..u32_of(packet)? {
            string_of(packet)?;
            string_of(packet)?;
        }
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_the_bytes_of_the_protocol() {
        let packet = Request::Open { path: "a/b", flags: WRITE_NEW }.encode(7);
        assert_eq!(&packet[..], b"\0\0\0\x18\x03\0\0\0\x07\0\0\0\x03a/b\0\0\0\x2a\0\0\0\x04\0\0\x01\x80");
        let packet = Request::Open { path: "a", flags: READ }.encode(7);
        assert_eq!(&packet[..], b"\0\0\0\x12\x03\0\0\0\x07\0\0\0\x01a\0\0\0\x01\0\0\0\0");
        let packet = Request::Replace { from: "a", to: "b" }.encode(1);
        assert_eq!(&packet[..], b"\0\0\0\x2b\xc8\0\0\0\x01\0\0\0\x18posix-rename@openssh.com\0\0\0\x01a\0\0\0\x01b");
        assert_eq!(&init()[..], b"\0\0\0\x05\x01\0\0\0\x03");
    }

    #[test]
    fn answers_are_read_and_what_is_cut_short_is_refused() {
        let names = b"\x68\0\0\0\x05\0\0\0\x01\0\0\0\x02ab\0\0\0\x03-rw\0\0\0\x0d\0\0\0\0\0\0\0\x09\0\0\x81\xa4\0\0\0\x01\0\0\0\x02";
        let (id, reply) = decode(Bytes::from_static(names)).unwrap();
        let attributes = Attributes { len: Some(9), mode: Some(0o100_644), modified: Some(2) };
        assert_eq!((id, reply), (5, Reply::Names(vec![Name { name: Some("ab".to_owned()), attributes }])));
        assert_eq!((attributes.is_file(), attributes.is_folder()), (Some(true), Some(false)));
        for len in 0..names.len() {
            assert_eq!(decode(Bytes::from_static(&names[..len])), Err(Malformed), "{len}");
        }
        let version = b"\x02\0\0\0\x03\0\0\0\x11fsync@openssh.com\0\0\0\x011";
        assert_eq!(decode_version(Bytes::from_static(version)), Ok(Extensions { replace: false, sync: true }));
        assert_eq!(decode_version(Bytes::from_static(b"\x02\0\0\0\x02")), Err(Malformed));
        let short = decode(Bytes::from_static(b"\x65\0\0\0\x01\0\0\0\x02")).unwrap().1;
        assert_eq!(short, Reply::Status { code: Code::Missing, message: String::new() });
    }

    proptest! {
        #[test]
        fn whatever_a_server_sends_is_read_or_refused(kind in 100_u8..107, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let packet = Bytes::from([&[kind][..], &bytes].concat());
            let _ = decode(packet.clone());
            let _ = decode_version(packet);
        }
    }
}
