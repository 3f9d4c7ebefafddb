//! JSON, with the place of each value.

use super::scan::{Scanner, Token, number};
use super::{HclError, Item, Kind, Object, Value, deeper, refuse};

pub(super) fn parse(text: &str) -> Result<Object, HclError> {
    let mut reader = Reader { scanner: Scanner::new(text) };
    let value = reader.value(0)?;
    reader.space();
    if let Some(c) = reader.scanner.peek() {
        return refuse(reader.scanner.place(), format!("{c:?} after the end of the document"));
    }
    match value.kind {
        Kind::Object(object) => Ok(object),
        _ => refuse(value.place, "the document must be an object"),
    }
}

struct Reader<'a> {
    scanner: Scanner<'a>,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.scanner.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
    }

    /// The next character that is no space, not taken.
    fn ahead(&mut self) -> Option<char> {
        self.space();
        self.scanner.peek()
    }

    fn expect(&mut self, wanted: char, after: &str) -> Result<(), HclError> {
        let found = self.ahead();
        if found != Some(wanted) {
            return refuse(self.scanner.place(), format!("{wanted:?} was expected after {after}"));
        }
        self.scanner.bump();
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value, HclError> {
        let first = self.ahead();
        let place = self.scanner.place();
        deeper(depth, place)?;
        let kind = match first {
            Some('{') => Kind::Object(self.object(depth)?),
            Some('[') => Kind::List(self.list(depth)?),
            Some('"') => Kind::Text(self.text()?),
            Some('-' | '0'..='9') => {
                let text =
                    self.scanner.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'));
                match number(text) {
                    Some(Token::Integer(value)) => Kind::Integer(value),
                    Some(Token::Float(value)) => Kind::Float(value),
                    _ => return refuse(place, format!("{text:?} is not a number")),
                }
            }
            Some(c) if c.is_ascii_alphabetic() => {
                match self.scanner.take_while(|c| c.is_ascii_alphanumeric()) {
                    "true" => Kind::Bool(true),
                    "false" => Kind::Bool(false),
                    "null" => Kind::Text(String::new()),
                    word => return refuse(place, format!("{word:?} is not a value")),
                }
            }
            Some(c) => return refuse(place, format!("a value was expected, not {c:?}")),
            None => return refuse(place, "a value was expected, not the end of the file"),
        };
        Ok(Value { place, kind })
    }

    fn object(&mut self, depth: usize) -> Result<Object, HclError> {
        self.scanner.bump();
        let mut items = Vec::new();
        if self.ahead() == Some('}') {
            self.scanner.bump();
            return Ok(Object { items });
        }
        loop {
            let found = self.ahead();
            let place = self.scanner.place();
            if found != Some('"') {
                return refuse(place, "a key in double quotes was expected");
            }
            let key = self.text()?;
            self.expect(':', "the key")?;
            let value = self.value(depth + 1)?;
            items.push(Item { key, place, value });
            if self.ahead() == Some(',') {
                self.scanner.bump();
                continue;
            }
            self.expect('}', "the value")?;
            return Ok(Object { items });
        }
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Value>, HclError> {
        self.scanner.bump();
        let mut values = Vec::new();
        if self.ahead() == Some(']') {
            self.scanner.bump();
            return Ok(values);
        }
        loop {
            values.push(self.value(depth + 1)?);
            if self.ahead() == Some(',') {
                self.scanner.bump();
                continue;
            }
            self.expect(']', "the value")?;
            return Ok(values);
        }
    }

    fn text(&mut self) -> Result<String, HclError> {
        let opened = self.scanner.place();
        self.scanner.bump();
        let mut text = String::new();
        loop {
            let place = self.scanner.place();
            match self.scanner.bump() {
                None | Some('\n') => return refuse(opened, "this string is not closed on its line"),
                Some('"') => return Ok(text),
                Some('\\') => {
                    let Some(c) = self.escape() else {
                        return refuse(place, "this escape sequence is unknown");
                    };
                    text.push(c);
                }
                Some(c) if c < ' ' => return refuse(place, "control characters in strings must be escaped"),
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        Some(match self.scanner.bump()? {
            c @ ('"' | '\\' | '/') => c,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let first = self.four()?;
                if !(0xd800..0xdc00).contains(&first) {
                    return char::from_u32(first);
                }
                if self.scanner.bump() != Some('\\') || self.scanner.bump() != Some('u') {
                    return None;
                }
                let second = self.four()?;
                if !(0xdc00..0xe000).contains(&second) {
                    return None;
                }
                return char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00));
            }
            _ => return None,
        })
    }

    fn four(&mut self) -> Option<u32> {
        let mut value = 0;
        for _ in 0..4 {
            value = value * 16 + self.scanner.bump()?.to_digit(16)?;
        }
        Some(value)
    }
}
