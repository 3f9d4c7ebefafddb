//! Reading the configuration language of SPIRE: HCL 1, or JSON, which HCL 1 takes as well.
//!
//! This is a reader for files that are to be translated, not a configuration language of ours. It gives a tree of
//! values with the place of each, and both notations of one document give the same tree: a block with labels,
//! `a "b" { }`, is an object within an object. A key may stand several times; what that means is for the reader of the
//! tree to say ([`Object::all`]).
//!
//! Why not a library: those for Rust read HCL 2, a different language (expressions, no labels on the left of `=`, no
//! commas between attributes), and refuse files that SPIRE runs with.
//!
//! Bounds: [`MAX_BYTES`] of text, [`MAX_DEPTH`] levels. Every mistake has a line and a column.

mod json;
mod scan;

use std::fmt;

use thiserror::Error;

use scan::{Scanner, Token};

/// The largest text that is read, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// How deep objects and lists may be nested.
pub const MAX_DEPTH: usize = 64;

/// Where something stands in a text; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Why a text is not a document.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {message}")]
pub struct HclError {
    /// Where reading stopped.
    pub place: Place,
    /// What was wrong there.
    pub message: String,
}

/// A value and where it begins. Two values are equal when they mean the same, wherever they stand.
#[derive(Clone, Debug)]
pub struct Value {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub kind: Kind,
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

/// The kinds of values.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A string or heredoc; JSON's `null` is the empty string, as it is for SPIRE.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// Values in brackets.
    List(Vec<Value>),
    /// Values with keys, in braces.
    Object(Object),
}

/// One key with its value.
#[derive(Clone, Debug)]
pub struct Item {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub place: Place,
    /// The value.
    pub value: Value,
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && self.value == other.value
    }
}

/// Values with keys, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object {
    /// The items; a key may occur more than once.
    pub items: Vec<Item>,
}

impl Object {
    /// All items with this key; as SPIRE reads them, upper and lower case are not told apart.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Item> {
        self.items.iter().filter(move |item| item.key.eq_ignore_ascii_case(key))
    }
}

impl Value {
    /// The objects that this value stands for: itself, or the members of a list of objects, which is how JSON writes a
    /// block that occurs several times. `None` when it is neither.
    pub fn objects(&self) -> Option<Vec<&Object>> {
        match &self.kind {
            Kind::Object(object) => Some(vec![object]),
            Kind::List(values) if !values.is_empty() => values
                .iter()
                .map(|value| match &value.kind {
                    Kind::Object(object) => Some(object),
                    _ => None,
                })
                .collect(),
            _ => None,
        }
    }
}

/// Reads a document: JSON when its first character is a brace, HCL otherwise.
///
/// # Errors
/// The first mistake, with its place.
pub fn parse(text: &str) -> Result<Object, HclError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > MAX_BYTES {
        let place = Place { line: 1, column: 1 };
        return Err(HclError { place, message: format!("the file is larger than {MAX_BYTES} bytes") });
    }
    if text.trim_start().starts_with('{') { json::parse(text) } else { hcl(text) }
}

fn hcl(text: &str) -> Result<Object, HclError> {
    let mut parser = Parser { scanner: Scanner::new(text), ahead: None };
    let items = parser.items(0)?;
    let (token, place) = parser.next()?;
    match token {
        Token::End => Ok(Object { items }),
        _ => Err(HclError { place, message: "a brace is closed that was never opened".to_owned() }),
    }
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    ahead: Option<(Token, Place)>,
}

impl Parser<'_> {
    fn next(&mut self) -> Result<(Token, Place), HclError> {
        match self.ahead.take() {
            Some(token) => Ok(token),
            None => self.scanner.token(),
        }
    }

    fn peek(&mut self) -> Result<&Token, HclError> {
        let token = match self.ahead.take() {
            Some(token) => token,
            None => self.scanner.token()?,
        };
        Ok(&self.ahead.insert(token).0)
    }

    /// Items up to a closing brace or the end, neither of which is taken.
    fn items(&mut self, depth: usize) -> Result<Vec<Item>, HclError> {
        let mut items = Vec::new();
        loop {
            if matches!(self.peek()?, Token::End | Token::CloseBrace) {
                return Ok(items);
            }
            items.push(self.item(depth)?);
            if *self.peek()? == Token::Comma {
                self.next()?;
            }
        }
    }

    /// `key = value`, `key { }`, `key "label" { }`.
    fn item(&mut self, depth: usize) -> Result<Item, HclError> {
        let mut keys = Vec::new();
        loop {
            let (token, place) = self.next()?;
            match token {
                Token::Word(key) | Token::Text(key) => {
                    keys.push((key, place));
                    deeper(depth + keys.len(), place)?;
                }
                Token::Assign if !keys.is_empty() => {
                    let labels = keys.len();
                    let value = self.value(depth + labels)?;
                    if labels > 1 && !matches!(value.kind, Kind::Object(_)) {
                        return refuse(value.place, "a key with labels takes an object in braces");
                    }
                    return nested(keys, value);
                }
                Token::OpenBrace if !keys.is_empty() => {
                    let value = self.object(place, depth + keys.len())?;
                    return nested(keys, value);
                }
                other if keys.is_empty() => {
                    return refuse(place, format!("a key was expected, not {}", other.name()));
                }
                other => {
                    return refuse(
                        place,
                        format!(
                            "after the key {:?}, \"=\" or \"{{\" was expected, not {}",
                            keys[0].0,
                            other.name()
                        ),
                    );
                }
            }
        }
    }

    fn object(&mut self, place: Place, depth: usize) -> Result<Value, HclError> {
        let items = self.items(depth)?;
        match self.next()?.0 {
            Token::CloseBrace => Ok(Value { place, kind: Kind::Object(Object { items }) }),
            _ => refuse(place, "this brace is never closed"),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, HclError> {
        let (token, place) = self.next()?;
        let kind = match token {
            Token::Text(text) => Kind::Text(text),
            Token::Integer(number) => Kind::Integer(number),
            Token::Float(number) => Kind::Float(number),
            Token::Bool(value) => Kind::Bool(value),
            Token::OpenBrace => return self.object(place, depth),
            Token::OpenBracket => Kind::List(self.list(place, depth)?),
            other => return refuse(place, format!("a value was expected, not {}", other.name())),
        };
        Ok(Value { place, kind })
    }

    fn list(&mut self, opened: Place, depth: usize) -> Result<Vec<Value>, HclError> {
        deeper(depth + 1, opened)?;
        let mut values = Vec::new();
        loop {
            match self.peek()? {
                Token::CloseBracket => {
                    self.next()?;
                    return Ok(values);
                }
                Token::End => return refuse(opened, "this bracket is never closed"),
                _ => {}
            }
            values.push(self.value(depth + 1)?);
            match self.next()? {
                (Token::Comma, _) => {}
                (Token::CloseBracket, _) => return Ok(values),
                (Token::End, _) => return refuse(opened, "this bracket is never closed"),
                (other, place) => {
                    return refuse(place, format!("a comma or \"]\" was expected, not {}", other.name()));
                }
            }
        }
    }
}

/// `a "b" "c" { }` as an object in an object in an object.
fn nested(mut keys: Vec<(String, Place)>, value: Value) -> Result<Item, HclError> {
    let mut value = value;
    while keys.len() > 1 {
        let Some((key, place)) = keys.pop() else { break };
        value = Value { place, kind: Kind::Object(Object { items: vec![Item { key, place, value }] }) };
    }
    match keys.pop() {
        Some((key, place)) => Ok(Item { key, place, value }),
        None => refuse(value.place, "a value without a key"),
    }
}

fn deeper(depth: usize, place: Place) -> Result<(), HclError> {
    if depth > MAX_DEPTH { refuse(place, format!("nested deeper than {MAX_DEPTH} levels")) } else { Ok(()) }
}

fn refuse<T>(place: Place, message: impl Into<String>) -> Result<T, HclError> {
    Err(HclError { place, message: message.into() })
}

/// Replaces `$NAME` and `${NAME}` as SPIRE does under `-expandEnv`: a name that `lookup` does not know becomes empty,
/// `$$` becomes `$`, a `$` that names nothing stays.
///
/// Returns the text and the names that were not known, or `None` when the result would be larger than [`MAX_BYTES`].
pub fn expand_environment(
    text: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Option<(String, Vec<String>)> {
    let mut expanded = String::with_capacity(text.len());
    let mut unknown: Vec<String> = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let (name, after) = if let Some(braced) = after.strip_prefix('{') {
            match braced.split_once('}') {
                Some((name, after)) if !name.is_empty() => (name, after),
                // SPIRE swallows what opens and names nothing.
                Some((_, after)) => ("", after),
                None => ("", braced),
            }
        } else {
            let special = after.starts_with(|c: char| "*#$@!?-0123456789".contains(c));
            let length = if special {
                1
            } else {
                after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len())
            };
            if length == 0 {
                expanded.push('$');
            }
            after.split_at(length)
        };
        if name == "$" {
            expanded.push('$');
        } else if !name.is_empty() {
            match lookup(name) {
                Some(value) => expanded.push_str(&value),
                None if unknown.iter().all(|known| known != name) => unknown.push(name.to_owned()),
                None => {}
            }
        }
        if expanded.len() > MAX_BYTES {
            return None;
        }
        rest = after;
    }
    expanded.push_str(rest);
    (expanded.len() <= MAX_BYTES).then_some((expanded, unknown))
}

#[cfg(test)]
mod tests;
