//! A message as it came and a message as it will go, and either as one line of
//! text.

use crate::catalog::{self, Answer, Field, Kind, Number, id};
use crate::wire::HEADER_SIZE;
use std::fmt::Write;
use std::os::fd::OwnedFd;

/// Bits of the header's flags.
pub(crate) mod flags {
    pub(crate) const VERSION: u32 = 0x1;
    pub(crate) const VERSION_MASK: u32 = 0x3;
    pub(crate) const REPLY: u32 = 0x4;
    pub(crate) const NEED_REPLY: u32 = 0x8;
}

/// The header of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) code: u32,
    pub(crate) flags: u32,
    pub(crate) size: u32,
}

impl Header {
    /// Bytes that are missing count as zero.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 4];
            let have = bytes.get(at..).unwrap_or_default();
            word.iter_mut().zip(have).for_each(|(to, from)| *to = *from);
            u32::from_ne_bytes(word)
        };
        Self {
            code: word(0),
            flags: word(4),
            size: word(8),
        }
    }

    fn bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let words = [self.code, self.flags, self.size]
            .into_iter()
            .flat_map(u32::to_ne_bytes);
        bytes
            .iter_mut()
            .zip(words)
            .for_each(|(to, from)| *to = from);
        bytes
    }
}

/// A request of the front-end, or its answer on the back-end's channel.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Message {
    pub(crate) fn kind(&self) -> Option<&'static Kind> {
        catalog::request(self.header.code)
    }

    pub(crate) fn need_reply(&self) -> bool {
        self.header.flags & flags::NEED_REPLY != 0
    }

    /// The value of a field; 0 where the payload is too short for it.
    pub(crate) fn get(&self, field: Field) -> u128 {
        field.read(&self.payload).unwrap_or(0)
    }

    /// The same for fields of at most 64 bits.
    pub(crate) fn get64(&self, field: Field) -> u64 {
        self.get(field).try_into().unwrap_or(u64::MAX)
    }

    /// The same for fields of at most 32 bits.
    pub(crate) fn get32(&self, field: Field) -> u32 {
        self.get(field).try_into().unwrap_or(u32::MAX)
    }

    /// The field of this name; 0 where there is none.
    pub(crate) fn named(&self, name: &str) -> u64 {
        let fields = self.kind().map_or(&[][..], |kind| kind.fields);
        let field = fields.iter().find(|field| field.name == name);
        field.map_or(0, |field| self.get64(*field))
    }

    /// The u64 that is the whole payload.
    pub(crate) fn value(&self) -> u64 {
        self.get64(catalog::VALUE)
    }

    /// The ring that it is about.
    pub(crate) fn ring(&self) -> Option<u32> {
        let fields = self.kind()?.fields;
        let index = fields.iter().find(|field| field.name == "index")?;
        Some(self.get32(*index))
    }

    /// The message in words.
    pub(crate) fn text(&self) -> String {
        let mut text = asking(
            catalog::REQUESTS,
            self.header,
            &self.payload,
            self.fds.len(),
        );
        match self.header.code {
            id::SET_MEM_TABLE => text.push_str(&regions(&self.payload)),
            id::SET_PROTOCOL_FEATURES => text.push_str(&features(self.value())),
            _ => {}
        }
        text
    }

    /// The same for an answer on the back-end's channel.
    pub(crate) fn channel_text(&self) -> String {
        let mut text = name_among(catalog::BACKEND_REQUESTS, self.header.code);
        if self.header.flags != flags::VERSION | flags::REPLY {
            _ = write!(text, " flags={:#x}", self.header.flags);
        }
        _ = write!(text, "{}", Fields(&[catalog::VALUE], &self.payload));
        push_fds(&mut text, self.fds.len());
        text
    }
}

/// A request in words, as far as all have the same form.
fn asking(kinds: &[Kind], header: Header, payload: &[u8], fds: usize) -> String {
    let kind = kinds.iter().find(|kind| kind.id == header.code);
    let mut text = name_among(kinds, header.code);
    if header.flags & flags::NEED_REPLY != 0 {
        text.push_str(" need-reply");
    }
    if header.flags & !flags::NEED_REPLY != flags::VERSION {
        _ = write!(text, " flags={:#x}", header.flags);
    }
    let fields = kind.map_or(&[][..], |kind| kind.fields);
    _ = write!(text, "{}", Fields(fields, payload));
    if kind.is_none_or(|kind| !kind.size.allows(payload.len())) {
        _ = write!(text, " size={}", payload.len());
    }
    push_fds(&mut text, fds);
    text
}

fn push_fds(text: &mut String, fds: usize) {
    if fds > 0 {
        _ = write!(text, " fds={fds}");
    }
}

/// A message of the back-end, before it is spoilt and sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Outgoing {
    /// A well-made reply.
    pub(crate) fn reply(code: u32, payload: Vec<u8>) -> Self {
        Self::new(code, flags::VERSION | flags::REPLY, payload)
    }

    /// A reply that is a number.
    pub(crate) fn number(code: u32, value: u64) -> Self {
        Self::reply(code, value.to_ne_bytes().to_vec())
    }

    pub(crate) fn new(code: u32, flags: u32, payload: Vec<u8>) -> Self {
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        Self {
            header: Header { code, flags, size },
            payload,
            fds: Vec::new(),
        }
    }

    /// With these descriptors.
    pub(crate) fn with(mut self, fds: Vec<OwnedFd>) -> Self {
        self.fds = fds;
        self
    }

    /// Another payload, and a header that fits it.
    pub(crate) fn set_payload(&mut self, payload: Vec<u8>) {
        self.header.size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.payload = payload;
    }

    /// What goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.header.bytes()[..], &self.payload].concat()
    }

    /// The same for a request on the back-end's channel.
    pub(crate) fn channel_text(&self) -> String {
        let fds = self.fds.len();
        asking(catalog::BACKEND_REQUESTS, self.header, &self.payload, fds)
    }

    /// The reply in words. Its fields are those of the request `code`, or one
    /// number where it is an acknowledgement.
    pub(crate) fn text(&self, code: u32) -> String {
        let mut text = name(self.header.code);
        if self.header.flags != flags::VERSION | flags::REPLY {
            _ = write!(text, " flags={:#x}", self.header.flags);
        }
        let fields = match catalog::request(code).map(|kind| kind.answer) {
            Some(Answer::Always(fields)) => fields,
            Some(Answer::Sometimes(fields)) if self.payload.len() != 8 => fields,
            _ => &[catalog::VALUE],
        };
        _ = write!(text, "{}", Fields(fields, &self.payload));
        if usize::try_from(self.header.size) != Ok(self.payload.len()) {
            _ = write!(
                text,
                " size={} payload={}",
                Number(self.header.size.into()),
                self.payload.len()
            );
        }
        push_fds(&mut text, self.fds.len());
        if code == id::GET_PROTOCOL_FEATURES {
            let value = catalog::VALUE.read(&self.payload).unwrap_or(0);
            text.push_str(&features(value.try_into().unwrap_or(0)));
        }
        text
    }
}

/// The name of a front-end request, or its number.
pub(crate) fn name(code: u32) -> String {
    name_among(catalog::REQUESTS, code)
}

fn name_among(kinds: &[Kind], code: u32) -> String {
    let kind = kinds.iter().find(|kind| kind.id == code);
    kind.map_or_else(|| format!("request-{code}"), |kind| kind.name.to_owned())
}

/// ` name=value` for each that the payload is long enough for.
pub(crate) struct Fields<'a>(pub(crate) &'a [Field], pub(crate) &'a [u8]);

impl std::fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for field in self.0 {
            if let Some(value) = field.read(self.1) {
                write!(f, " {}={}", field.name, Number(value))?;
            }
        }
        Ok(())
    }
}

/// A memory region of SET_MEM_TABLE, ADD_MEM_REG or REM_MEM_REG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) guest: u64,
    pub(crate) size: u64,
    pub(crate) user: u64,
    pub(crate) offset: u64,
}

impl Region {
    /// Bytes on the wire.
    pub(crate) const SIZE: usize = 32;

    /// The regions that follow the first 8 bytes, in both layouts.
    pub(crate) fn list(payload: &[u8]) -> Vec<Self> {
        let regions = payload.get(8..).unwrap_or_default();
        regions
            .chunks_exact(Self::SIZE)
            .filter_map(Self::parse)
            .collect()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| word.try_into().map(u64::from_ne_bytes));
        let mut next = || words.next()?.ok();
        Some(Self {
            guest: next()?,
            size: next()?,
            user: next()?,
            offset: next()?,
        })
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(self) -> Vec<u8> {
        [self.guest, self.size, self.user, self.offset]
            .map(u64::to_ne_bytes)
            .concat()
    }

    /// What identifies it to REM_MEM_REG: the offset does not count.
    pub(crate) fn same(self, other: Self) -> bool {
        (self.guest, self.size, self.user) == (other.guest, other.size, other.user)
    }

    /// Whether a user address falls into it.
    pub(crate) fn contains(self, user: u64) -> bool {
        user.checked_sub(self.user)
            .is_some_and(|distance| distance < self.size)
    }
}

fn regions(payload: &[u8]) -> String {
    let mut text = String::new();
    for region in Region::list(payload) {
        _ = write!(
            text,
            " [{:#x}+{:#x}@{:#x}]",
            region.guest, region.size, region.user
        );
    }
    text
}

fn features(value: u64) -> String {
    let names: Vec<_> = catalog::FEATURE_NAMES
        .iter()
        .zip(0..)
        .filter(|(_, bit)| catalog::has(value, *bit))
        .map(|(name, _)| *name)
        .collect();
    format!(" ({})", names.join(" "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A request as it would arrive.
    pub(crate) fn request(code: u32, flags: u32, payload: &[u8]) -> Message {
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        Message {
            header: Header { code, flags, size },
            payload: payload.to_vec(),
            fds: Vec::new(),
        }
    }

    #[test]
    fn messages_in_words() {
        let state = [3_u32, 256].map(u32::to_ne_bytes).concat();
        assert_eq!(
            request(8, 9, &state).text(),
            "SET_VRING_NUM need-reply index=3 num=256"
        );
        assert_eq!(request(77, 1, &[]).text(), "request-77 size=0");
        assert_eq!(
            request(2, 5, &[1; 4]).text(),
            "SET_FEATURES flags=0x5 size=4"
        );
        let kick = 0x105_u64.to_ne_bytes();
        assert_eq!(
            request(12, 1, &kick).text(),
            "SET_VRING_KICK index=5 no-fd=1"
        );
        let table = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &region().bytes()].concat();
        let text = "SET_MEM_TABLE regions=1 [0x1000+0x2000@0x7f0000000000]";
        assert_eq!(request(5, 1, &table).text(), text);
        let reply = Outgoing::number(15, 0x209);
        let text = "GET_PROTOCOL_FEATURES value=521 (MQ REPLY_ACK CONFIG)";
        assert_eq!(reply.text(15), text);
    }

    /// Some memory.
    pub(crate) fn region() -> Region {
        Region {
            guest: 0x1000,
            size: 0x2000,
            user: 0x7f00_0000_0000,
            offset: 0x1000,
        }
    }

    #[test]
    fn regions_in_and_out() {
        let payload = [&[0; 8][..], &region().bytes(), &[0; 31]].concat();
        assert_eq!(
            Region::list(&payload),
            [region()],
            "an incomplete one does not count"
        );
        assert!(region().contains(0x7f00_0000_1fff) && !region().contains(0x7f00_0000_2000));
        assert!(region().same(Region {
            offset: 0,
            ..region()
        }));
    }

    #[test]
    fn a_header_with_bytes_missing() {
        let bytes = Outgoing::number(3, 7).bytes();
        assert_eq!(
            Header::parse(&bytes),
            Header {
                code: 3,
                flags: 5,
                size: 8
            }
        );
        assert_eq!(
            Header::parse(bytes.get(..5).unwrap_or_default()),
            Header {
                code: 3,
                flags: 5,
                size: 0
            }
        );
        assert_eq!(
            Header::parse(&[]),
            Header {
                code: 0,
                flags: 0,
                size: 0
            }
        );
    }
}
