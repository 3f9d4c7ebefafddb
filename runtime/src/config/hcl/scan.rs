//! The tokens of HCL 1.

use super::{HclError, Place, refuse};

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    End,
    /// A bare key.
    Word(String),
    /// A quoted string or heredoc.
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Assign,
    Comma,
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
}

impl Token {
    /// What to call it in a message.
    pub(super) fn name(&self) -> String {
        match self {
            Self::End => "the end of the file".to_owned(),
            Self::Word(word) => format!("the bare word {word:?}"),
            Self::Text(_) => "a string".to_owned(),
            Self::Integer(_) | Self::Float(_) => "a number".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Assign => "\"=\"".to_owned(),
            Self::Comma => "a comma".to_owned(),
            Self::OpenBrace => "\"{\"".to_owned(),
            Self::CloseBrace => "\"}\"".to_owned(),
            Self::OpenBracket => "\"[\"".to_owned(),
            Self::CloseBracket => "\"]\"".to_owned(),
        }
    }
}

/// A position in a text.
#[derive(Clone)]
pub(super) struct Scanner<'a> {
    rest: &'a str,
    place: Place,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, place: Place { line: 1, column: 1 } }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    pub(super) fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.place = Place { line: self.place.line + 1, column: 1 };
        } else {
            self.place.column += 1;
        }
        Some(c)
    }

    /// The characters for which `wanted` holds, taken.
    pub(super) fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let length = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (taken, _) = self.rest.split_at(length);
        for _ in taken.chars() {
            self.bump();
        }
        taken
    }

    /// White space and comments.
    fn skip(&mut self) -> Result<(), HclError> {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            let place = self.place;
            if self.rest.starts_with('#') || self.rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if self.rest.starts_with("/*") {
                let Some(length) = self.rest[2..].find("*/") else {
                    return refuse(place, "this comment is never closed");
                };
                let end = self.rest.len() - (length + 4);
                while self.rest.len() > end {
                    self.bump();
                }
            } else {
                return Ok(());
            }
        }
    }

    pub(super) fn token(&mut self) -> Result<(Token, Place), HclError> {
        self.skip()?;
        let place = self.place;
        let Some(first) = self.peek() else { return Ok((Token::End, place)) };
        let punctuation = match first {
            '=' => Some(Token::Assign),
            ',' => Some(Token::Comma),
            '{' => Some(Token::OpenBrace),
            '}' => Some(Token::CloseBrace),
            '[' => Some(Token::OpenBracket),
            ']' => Some(Token::CloseBracket),
            _ => None,
        };
        if let Some(token) = punctuation {
            self.bump();
            return Ok((token, place));
        }
        let token = match first {
            '"' => Token::Text(self.quoted()?),
            '<' => Token::Text(self.heredoc()?),
            '-' | '+' | '0'..='9' => self.number()?,
            c if c == '_' || c.is_alphabetic() => {
                let word = self
                    .take_while(|c| c == '_' || c == '-' || c == '.' || c.is_alphabetic() || c.is_numeric());
                match word {
                    "true" => Token::Bool(true),
                    "false" => Token::Bool(false),
                    word => Token::Word(word.to_owned()),
                }
            }
            other => return refuse(place, format!("{other:?} begins nothing here")),
        };
        Ok((token, place))
    }

    fn number(&mut self) -> Result<Token, HclError> {
        let place = self.place;
        let text = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_'));
        number(text).ok_or_else(|| HclError { place, message: format!("{text:?} is not a number") })
    }

    /// A string in double quotes. Within `${ }` nothing is special but braces, which is what HCL does, although SPIRE
    /// replaces nothing there.
    fn quoted(&mut self) -> Result<String, HclError> {
        let opened = self.place;
        self.bump();
        let mut text = String::new();
        let mut braces = 0_usize;
        loop {
            let place = self.place;
            let Some(c) = self.bump() else { return refuse(opened, "this string is never closed") };
            match c {
                '\n' if braces == 0 => return refuse(opened, "this string is not closed on its line"),
                '"' if braces == 0 => return Ok(text),
                '\\' if braces == 0 => text.push(self.escape(place)?),
                '$' if braces == 0 && self.peek() == Some('{') => {
                    self.bump();
                    braces = 1;
                    text.push_str("${");
                }
                c => {
                    if braces > 0 && c == '{' {
                        braces += 1;
                    } else if braces > 0 && c == '}' {
                        braces -= 1;
                    }
                    text.push(c);
                }
            }
        }
    }

    fn escape(&mut self, place: Place) -> Result<char, HclError> {
        let bad = || HclError { place, message: "this escape sequence is unknown".to_owned() };
        let (base, digits) = match self.bump().ok_or_else(bad)? {
            'a' => return Ok('\u{7}'),
            'b' => return Ok('\u{8}'),
            'f' => return Ok('\u{c}'),
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'v' => return Ok('\u{b}'),
            '\\' => return Ok('\\'),
            '"' => return Ok('"'),
            'x' => (16, 2),
            'u' => (16, 4),
            'U' => (16, 8),
            first @ '0'..='7' => {
                let mut value = first.to_digit(8).ok_or_else(bad)?;
                for _ in 0..2 {
                    value = value * 8 + self.bump().and_then(|c| c.to_digit(8)).ok_or_else(bad)?;
                }
                return byte(value).ok_or_else(bad);
            }
            _ => return Err(bad()),
        };
        let mut value = 0_u32;
        for _ in 0..digits {
            let digit = self.bump().and_then(|c| c.to_digit(base)).ok_or_else(bad)?;
            value = value.checked_mul(base).and_then(|value| value.checked_add(digit)).ok_or_else(bad)?;
        }
        if digits == 2 { byte(value).ok_or_else(bad) } else { char::from_u32(value).ok_or_else(bad) }
    }

    /// `<<EOF` or `<<-EOF` up to a line with nothing but the word.
    fn heredoc(&mut self) -> Result<String, HclError> {
        let opened = self.place;
        if !self.rest.starts_with("<<") {
            return refuse(opened, "'<' begins nothing here; a heredoc begins with \"<<\"");
        }
        self.bump();
        self.bump();
        let indented = self.peek() == Some('-');
        if indented {
            self.bump();
        }
        let word = self.take_while(|c| c == '_' || c.is_alphabetic() || c.is_numeric());
        if word.is_empty() {
            return refuse(opened, "a heredoc needs a word after \"<<\"");
        }
        self.take_while(|c| c == '\r');
        if self.bump() != Some('\n') {
            return refuse(opened, "a heredoc's text begins on the next line");
        }
        let mut lines = Vec::new();
        loop {
            let line = self.take_while(|c| c != '\n');
            let ended = self.peek().is_none();
            if line.trim_end_matches('\r').trim_start() == word {
                // The line break after the word belongs to what follows.
                let margin = &line[..line.len() - line.trim_start().len()];
                return Ok(unindented(&lines, if indented { margin } else { "" }));
            }
            if ended {
                return refuse(opened, format!("this heredoc is not closed by a line with {word:?}"));
            }
            lines.push(line);
            self.bump();
        }
    }
}

/// The lines without `margin`, when all of them begin with it.
fn unindented(lines: &[&str], margin: &str) -> String {
    let strip = lines.iter().all(|line| line.starts_with(margin));
    let mut text = String::new();
    for line in lines {
        text.push_str(if strip { &line[margin.len()..] } else { line });
        text.push('\n');
    }
    text
}

/// `\x41` and `\101` mean bytes; beyond ASCII a byte alone is no character.
fn byte(value: u32) -> Option<char> {
    u8::try_from(value).ok().filter(u8::is_ascii).map(char::from)
}

/// Decimal, `0x`, octal with a leading zero, or with a fraction or exponent.
pub(super) fn number(text: &str) -> Option<Token> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let signed = |value: u64| {
        if negative { 0_i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
    };
    let of_base = |digits: &str, base: u32| {
        let plain = !digits.is_empty() && digits.chars().all(|c| c.is_digit(base));
        if plain { u64::from_str_radix(digits, base).ok().and_then(signed).map(Token::Integer) } else { None }
    };
    if let Some(digits) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return of_base(digits, 16);
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let octal = digits.len() > 1 && digits.starts_with('0');
        return of_base(digits, if octal { 8 } else { 10 });
    }
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let float: f64 = if plain && !digits.ends_with('.') { digits.parse().ok()? } else { return None };
    float.is_finite().then_some(Token::Float(if negative { -float } else { float }))
}
