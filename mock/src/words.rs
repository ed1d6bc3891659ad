//! A line of a script, word by word, and what can be wrong with one.

use crate::catalog::Field;
use std::fmt;
use std::num::ParseIntError;
use std::time::Duration;

/// Why a script cannot be understood, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The first character of the word, from 1; after the last where one is missing.
    pub column: usize,
    /// The word; empty where one is missing.
    pub word: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        if !self.word.is_empty() {
            write!(f, "{:?}: ", self.word)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ParseError {}

pub(crate) type Result<T> = std::result::Result<T, ParseError>;

/// One word and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word<'a> {
    pub(crate) text: &'a str,
    line: usize,
    column: usize,
}

impl<'a> Word<'a> {
    /// An error about this word.
    pub(crate) fn error(self, reason: impl Into<String>) -> ParseError {
        let (line, column, word) = (self.line, self.column, self.text.to_owned());
        ParseError {
            line,
            column,
            word,
            reason: reason.into(),
        }
    }

    /// A number: decimal, or hexadecimal after 0x; underscores are ignored.
    pub(crate) fn number<T: TryFrom<u128>>(self) -> Result<T> {
        let value = number(self.text).map_err(|_| self.error("not a number"))?;
        value.try_into().map_err(|_| self.error("too large"))
    }

    /// A time such as `20ms`.
    pub(crate) fn duration(self) -> Result<Duration> {
        let digits = self.text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = self.text.get(digits.len()..).unwrap_or_default();
        let count: Option<u64> = digits.parse().ok();
        let time = match (count, unit) {
            (Some(count), "us") => Some(Duration::from_micros(count)),
            (Some(count), "ms") => Some(Duration::from_millis(count)),
            (Some(count), "s") => Some(Duration::from_secs(count)),
            _ => None,
        };
        time.ok_or_else(|| self.error("not a time; write 200ms, 2s or 50us"))
    }

    /// Bytes in hexadecimal.
    pub(crate) fn hex(self) -> Result<Vec<u8>> {
        let digits: Vec<char> = self.text.chars().filter(|c| *c != '_').collect();
        let pairs = digits.chunks(2).map(|pair| {
            let text: String = pair.iter().collect();
            u8::from_str_radix(&text, 16)
                .ok()
                .filter(|_| pair.len() == 2)
        });
        let bytes: Option<Vec<u8>> = pairs.collect();
        bytes.ok_or_else(|| self.error("not bytes in hexadecimal, two digits each"))
    }

    /// `key=value` in two.
    pub(crate) fn pair(self) -> Option<(&'a str, Self)> {
        let (key, value) = self.text.split_once('=')?;
        let column = self
            .column
            .saturating_add(key.chars().count())
            .saturating_add(1);
        Some((
            key,
            Word {
                text: value,
                line: self.line,
                column,
            },
        ))
    }

    /// A UUID, with or without its dashes.
    pub(crate) fn uuid(self) -> Result<u128> {
        let digits: String = self.text.chars().filter(|c| *c != '-').collect();
        let value = u128::from_str_radix(&digits, 16)
            .ok()
            .filter(|_| digits.len() == 32);
        value.ok_or_else(|| self.error("not a UUID, which has 32 hexadecimal digits"))
    }

    /// A value for this field.
    pub(crate) fn value_of(self, field: Field) -> Result<u128> {
        if field.name == "uuid" {
            self.uuid()
        } else {
            self.number()
        }
    }

    /// What is left without its last character.
    pub(crate) fn head(self) -> Self {
        let mut rest = self.text.chars();
        rest.next_back();
        Word {
            text: rest.as_str(),
            ..self
        }
    }

    /// What is left without its first character.
    pub(crate) fn tail(self) -> Self {
        let mut rest = self.text.chars();
        rest.next();
        Word {
            text: rest.as_str(),
            line: self.line,
            column: self.column.saturating_add(1),
        }
    }
}

fn number(text: &str) -> std::result::Result<u128, ParseIntError> {
    let digits: String = text.chars().filter(|c| *c != '_').collect();
    match digits.strip_prefix("0x") {
        Some(digits) => u128::from_str_radix(digits, 16),
        None => digits.parse(),
    }
}

/// What is a word of its own, also without blanks around it.
const MARKS: [&str; 4] = [":", ",", "(", ")"];

/// The words of a line that were not read yet, marks among them.
#[derive(Debug, Clone)]
pub(crate) struct Words<'a> {
    rest: std::vec::IntoIter<Word<'a>>,
    end: Word<'a>,
}

impl<'a> Words<'a> {
    /// Of this line; what follows a `#` does not count.
    pub(crate) fn of(text: &'a str, line: usize) -> Self {
        let text = text.split('#').next().unwrap_or_default();
        let mut words = Vec::new();
        let mut start = None;
        let mut column = 0_usize;
        let mut begin = 0_usize;
        // A blank at the end, so that the last word ends too.
        for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
            column = column.saturating_add(1);
            let mark = matches!(c, ':' | ',' | '(' | ')');
            if c.is_whitespace() || mark {
                if let Some(from) = start.take() {
                    let text = text.get(from..at).unwrap_or_default();
                    words.push(Word {
                        text,
                        line,
                        column: begin,
                    });
                }
                if mark {
                    let text = text.get(at..at.saturating_add(1)).unwrap_or_default();
                    words.push(Word { text, line, column });
                }
            } else if start.is_none() {
                (start, begin) = (Some(at), column);
            }
        }
        Self {
            rest: words.into_iter(),
            end: Word {
                text: "",
                line,
                column,
            },
        }
    }

    /// The next word, which stays.
    pub(crate) fn peek(&self) -> Option<Word<'a>> {
        self.rest.as_slice().first().copied()
    }

    /// The next word.
    pub(crate) fn next(&mut self) -> Option<Word<'a>> {
        self.rest.next()
    }

    /// The next word; it is an error if there is none.
    pub(crate) fn need(&mut self, what: &str) -> Result<Word<'a>> {
        match self.peek() {
            Some(word) if MARKS.contains(&word.text) => {
                Err(word.error(format!("{what} is missing before it")))
            }
            Some(_) => Ok(self.next().unwrap_or(self.end)),
            None => Err(self.end.error(format!("{what} is missing"))),
        }
    }

    /// The next word, unless the list or the line ends here.
    pub(crate) fn more(&mut self) -> Option<Word<'a>> {
        match MARKS.contains(&self.peek()?.text) {
            true => None,
            false => self.next(),
        }
    }

    /// Whether this mark comes next; it is read.
    pub(crate) fn take(&mut self, mark: &str) -> bool {
        let here = self.peek().is_some_and(|word| word.text == mark);
        if here {
            self.next();
        }
        here
    }

    /// This mark, which has to come next.
    pub(crate) fn demand(&mut self, mark: &str) -> Result<()> {
        if self.take(mark) {
            return Ok(());
        }
        let here = self.peek().unwrap_or(self.end);
        Err(here.error(format!("{mark} is missing here")))
    }

    /// The end of the line.
    pub(crate) fn done(&mut self) -> Result<()> {
        match self.next() {
            None => Ok(()),
            Some(word) => Err(word.error("nothing more was expected here")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_know_their_place() {
        let mut words = Words::of("  on GET_FEATURES: short 3,drop # why", 7);
        let mut found = Vec::new();
        while let Some(word) = words.next() {
            found.push((word.text, word.column));
        }
        let right = [
            ("on", 3),
            ("GET_FEATURES", 6),
            (":", 18),
            ("short", 20),
            ("3", 26),
            (",", 27),
            ("drop", 28),
        ];
        assert_eq!(found, right);
        let missing = words
            .need("a number")
            .map(|_| ())
            .map_err(|error| error.to_string());
        assert_eq!(
            missing,
            Err("line 7, column 33: a number is missing".to_owned())
        );
    }

    #[test]
    fn values() {
        let word = |text| Word {
            text,
            line: 1,
            column: 5,
        };
        assert_eq!(word("0xff_ff").number(), Ok(0xffff_u32));
        assert!(
            word("0x100")
                .number::<u8>()
                .is_err_and(|e| e.reason == "too large")
        );
        assert!(
            word("x")
                .number::<u8>()
                .is_err_and(|e| e.reason == "not a number")
        );
        assert_eq!(word("200ms").duration(), Ok(Duration::from_millis(200)));
        assert_eq!(word("2s").duration(), Ok(Duration::from_secs(2)));
        assert!(word("2").duration().is_err() && word("s").duration().is_err());
        assert_eq!(word("00ff_a0").hex(), Ok(vec![0, 255, 160]));
        assert!(word("00f").hex().is_err() && word("zz").hex().is_err());
        let value = word("fds=2")
            .pair()
            .map(|(key, value)| (key, value.text, value.column));
        assert_eq!(value, Some(("fds", "2", 9)));
    }
}
