//! Reads JSON (RFC 8259): strictly, and no more than is sensible of what somebody
//! else wrote. Numbers are checked and not kept; nobody here needs one.

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

/// Most bytes that are looked at.
pub(crate) const MAX_SIZE: usize = 1 << 20;
/// How deep arrays and objects may lie in each other, which bounds the recursion.
pub(crate) const MAX_DEPTH: u32 = 32;

/// A JSON value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number,
    String(String),
    Array(Vec<Json>),
    /// No name is there twice: programs differ in which of two they take.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// What an object has under a name.
    pub(crate) fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Self::Object(members) => members
                .iter()
                .find_map(|(key, value)| (key == name).then_some(value)),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

/// Why a text is no JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub(crate) struct Wrong {
    pub(crate) at: usize,
    pub(crate) what: &'static str,
}

pub(crate) type Result<T> = std::result::Result<T, Wrong>;

/// Reads a text that is one value and nothing else.
pub(crate) fn parse(text: &[u8]) -> Result<Json> {
    if text.len() > MAX_SIZE {
        let what = "more than a mebibyte";
        return Err(Wrong { at: MAX_SIZE, what });
    }
    let text = std::str::from_utf8(text).map_err(|error| Wrong {
        at: error.valid_up_to(),
        what: "bytes that are no UTF-8",
    })?;
    let mut reader = Reader {
        rest: text,
        length: text.len(),
        deep: 0,
    };
    reader.space();
    let value = reader.value()?;
    reader.space();
    match reader.rest.is_empty() {
        true => Ok(value),
        false => Err(reader.wrong("something behind the value")),
    }
}

struct Reader<'a> {
    rest: &'a str,
    length: usize,
    deep: u32,
}

impl<'a> Reader<'a> {
    fn wrong(&self, what: &'static str) -> Wrong {
        let at = self.length.saturating_sub(self.rest.len());
        Wrong { at, what }
    }

    fn next(&self) -> Option<u8> {
        self.rest.as_bytes().first().copied()
    }

    /// Passes over bytes that were looked at.
    fn pass(&mut self, bytes: usize) -> &'a str {
        let (passed, rest) = self.rest.split_at_checked(bytes).unwrap_or_default();
        self.rest = rest;
        passed
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.rest.starts_with(text);
        if found {
            self.pass(text.len());
        }
        found
    }

    /// Passes over bytes as long as they are such ones, and says how many there were.
    fn take_while(&mut self, such: impl Fn(u8) -> bool) -> usize {
        let bytes = self.rest.bytes().take_while(|byte| such(*byte)).count();
        self.pass(bytes);
        bytes
    }

    fn space(&mut self) {
        self.take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    }

    fn value(&mut self) -> Result<Json> {
        match self.next() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => self.string().map(Json::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) if self.take("null") => Ok(Json::Null),
            Some(_) if self.take("true") => Ok(Json::Bool(true)),
            Some(_) if self.take("false") => Ok(Json::Bool(false)),
            Some(_) => Err(self.wrong("no value")),
            None => Err(self.wrong("an end where a value is missing")),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Json>) -> Result<Json> {
        if self.deep == MAX_DEPTH {
            return Err(self.wrong("too deep a nesting"));
        }
        self.deep = self.deep.saturating_add(1);
        self.pass(1);
        let value = read(self)?;
        self.deep = self.deep.saturating_sub(1);
        Ok(value)
    }

    /// Passes over what stands between two elements. Whether another one follows.
    fn goes_on(&mut self, end: &str, first: bool) -> Result<bool> {
        self.space();
        if self.take(end) {
            return Ok(false);
        }
        if !first && !self.take(",") {
            return Err(self.wrong("no comma"));
        }
        self.space();
        Ok(true)
    }

    fn array(&mut self) -> Result<Json> {
        let mut values = Vec::new();
        while self.goes_on("]", values.is_empty())? {
            values.push(self.value()?);
        }
        Ok(Json::Array(values))
    }

    fn object(&mut self) -> Result<Json> {
        let mut members: Vec<(String, Json)> = Vec::new();
        let mut names = std::collections::HashSet::new();
        while self.goes_on("}", members.is_empty())? {
            if self.next() != Some(b'"') {
                return Err(self.wrong("no name in an object"));
            }
            let begin = self.wrong("a name that is there twice");
            let name = self.string()?;
            if !names.insert(name.clone()) {
                return Err(begin);
            }
            self.space();
            if !self.take(":") {
                return Err(self.wrong("no colon behind a name"));
            }
            self.space();
            members.push((name, self.value()?));
        }
        Ok(Json::Object(members))
    }

    fn number(&mut self) -> Result<Json> {
        self.take("-");
        if !self.take("0") {
            self.digits()?;
        }
        if self.take(".") {
            self.digits()?;
        }
        if self.take("e") || self.take("E") {
            let _sign = self.take("+") || self.take("-");
            self.digits()?;
        }
        Ok(Json::Number)
    }

    fn digits(&mut self) -> Result<()> {
        match self.take_while(|byte| byte.is_ascii_digit()) {
            0 => Err(self.wrong("no digit where a number needs one")),
            _ => Ok(()),
        }
    }

    fn string(&mut self) -> Result<String> {
        self.pass(1);
        let mut text = String::new();
        loop {
            let plain = self
                .rest
                .bytes()
                .take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f))
                .count();
            text.push_str(self.pass(plain));
            match self.next() {
                Some(b'"') => {
                    self.pass(1);
                    return Ok(text);
                }
                Some(b'\\') => text.push(self.escape()?),
                Some(_) => return Err(self.wrong("a control character in a string")),
                None => return Err(self.wrong("an end inside a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let begin = self.wrong("no such escape in a string");
        self.pass(1);
        let code = self.next();
        self.pass(usize::from(code.is_some_and(|code| code.is_ascii())));
        Ok(match code {
            Some(code @ (b'"' | b'\\' | b'/')) => char::from(code),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.unit()?;
                let units = match first {
                    0xd800..=0xdbff if self.take("\\u") => vec![first, self.unit()?],
                    _ => vec![first],
                };
                // Exactly one character; half of one is none.
                let mut characters = char::decode_utf16(units);
                match (characters.next(), characters.next()) {
                    (Some(Ok(character)), None) => character,
                    _ => return Err(begin),
                }
            }
            _ => return Err(begin),
        })
    }

    /// The four digits of an escape.
    fn unit(&mut self) -> Result<u16> {
        let digits = self.rest.get(..4).unwrap_or_default();
        // A sign would do for the function below.
        let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u16::from_str_radix(digits, 16) {
            Ok(unit) if hex => {
                self.pass(4);
                Ok(unit)
            }
            _ => Err(self.wrong("not four digits in an escape")),
        }
    }
}
