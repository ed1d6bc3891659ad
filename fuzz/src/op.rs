//! What a byte of a script tells the peer to do: its low four bits. The high four
//! bits are `n`. The peer acts on each message that it gets until [`END`].

/// The answer is complete.
pub const END: u8 = 0;
/// A good answer, if the message wants one.
pub const GOOD: u8 = 1;
/// A header as it should be, and a payload of the right size from the script.
pub const PAYLOAD: u8 = 2;
/// An acknowledgement of the value in the next byte.
pub const VALUE: u8 = 3;
/// `n` bytes from the script.
pub const FEW: u8 = 4;
/// As many bytes from the script as the next byte says.
pub const BYTES: u8 = 5;
/// `n` bytes from the script, with as many descriptors as the next byte says.
pub const GIFTS: u8 = 6;
/// A header: the code of the message plus the next byte, the flags that the
/// next byte says, and a size of two bytes.
pub const HEADER: u8 = 7;
/// A header as it should be for a payload of `n` bytes from the script.
pub const SHORT: u8 = 8;
/// The same for as many bytes as two bytes say, all alike (the next byte).
pub const LONG: u8 = 9;
/// A good answer with one byte (two bytes say which) changed by the next.
pub const SPOILT: u8 = 10;
/// A good answer in pieces of `n` + 1 bytes, with pauses; descriptors come
/// with the first piece, or with the last if `n` is odd.
pub const PIECES: u8 = 11;
/// A good answer with `n` descriptors.
pub const WITH: u8 = 12;
/// A moment of rest.
pub const PAUSE: u8 = 13;
/// Both ways end, or (1) only its own, or (2) the socket is closed.
pub const HANG_UP: u8 = 14;
/// A good answer to the request whose code the next byte is.
pub const OTHER: u8 = 15;
