//! Templates for agent IDs: the part of Go's `text/template` with the functions of Sprig that such templates use.
//!
//! A template is read and checked as a whole when the configuration is: each name, each function, the number and type of
//! its arguments. What is not known is refused by name there, so that no node finds out first. Left out are the parts that
//! make a program of a template (`if`, `range`, variables), and functions whose result differs from call to call.
//!
//! What a node says of itself must not reach beyond its place in a path, where the names of other nodes are. So values hold no
//! slash unless they are paths that were verified as such, and no placeholder may come out empty. Attestors whose values
//! may be any text have them escaped instead.

use std::fmt::Write as _;

use bonafide_pki::digest::Sha256;
use bonafide_pki::sha1_fingerprint;
use data_encoding::HEXLOWER;

/// What a template can name.
#[derive(Debug)]
pub struct Field {
    /// With the leading dot: `.Subject.CommonName`.
    pub name: &'static str,
    /// What it is.
    pub kind: FieldKind,
    /// Whether it tells nodes apart. A template without any such field would make one agent of all.
    pub distinguishes: bool,
    /// Whether it is a path, so that slashes in it are right.
    pub path: bool,
}

impl Field {
    /// A field that tells nodes apart.
    pub const fn of_node(name: &'static str, kind: FieldKind) -> Self {
        Self { name, kind, distinguishes: true, path: false }
    }

    /// A field that is the same for all nodes.
    pub const fn constant(name: &'static str) -> Self {
        Self { name, kind: FieldKind::Text, distinguishes: false, path: false }
    }
}

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// A text.
    Text,
    /// A list of texts.
    List,
    /// Texts by key: `.Name.key` or `index .Name "key"`.
    Map,
}

/// A value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A list of texts.
    List(Vec<String>),
}

/// Where values come from. The second argument is the key, for maps. `None` when there is no such value.
pub type Values<'a> = dyn Fn(&'static str, Option<&str>) -> Option<Value> + 'a;

/// What is done with what comes out of a placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// As it is; values with a slash are refused.
    Checked,
    /// Every byte that a path segment cannot hold, and `_`, as `_` and two hexadecimal digits; so that different texts
    /// stay different, and none is more than a part of a segment.
    Escaped,
}

/// Why a template is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{{` without `}}`.
    #[error("there is a {{{{ without }}}}")]
    Unclosed,
    /// Not one of the known names.
    #[error("{name:?} is not one of {known}")]
    UnknownName {
        /// What was written.
        name: String,
        /// What could be.
        known: String,
    },
    /// Not one of the known functions.
    #[error("function {0:?} is not supported; supported are {FUNCTION_NAMES}")]
    UnknownFunction(String),
    /// A part of the template language that is left out.
    #[error("{0:?} is not supported: a template consists of text, names and functions")]
    Unsupported(String),
    /// Arguments that do not fit.
    #[error("{function} takes {takes}")]
    Arguments {
        /// The function.
        function: &'static str,
        /// What it takes.
        takes: &'static str,
    },
    /// A list or a map where a text is needed.
    #[error("{0:?} is not a text: use index, first, last or join")]
    NotText(String),
    /// A name that says something only in the spiffe mode.
    #[error(".SVIDPathTrimmed exists in the spiffe mode only")]
    SpiffeOnly,
    /// Two different nodes would get the same agent ID.
    #[error("must name something of the node, or all nodes would be one agent")]
    Constant,
    /// Paths start with a slash.
    #[error("must start with a slash")]
    NoSlash,
    /// What was written cannot be read.
    #[error("cannot be read at {0:?}")]
    Syntax(String),
}

/// Why a template gives no path for a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The node has no such value.
    #[error("the node has no {0}")]
    Missing(String),
    /// A value that would be more than a part of a path segment.
    #[error("the value {1:?} of {0} cannot be a part of an agent path")]
    Slash(String, String),
    /// A placeholder came out empty.
    #[error("a placeholder of the agent path template is empty")]
    Empty,
    /// More than any ID can hold.
    #[error("the agent path is too long")]
    TooLong,
}

/// A template that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Action(Expression),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    Text(String),
    Number(i64),
    Field { name: &'static str, path: bool, list: bool },
    Member { name: &'static str, key: String },
    Call(Function, Vec<Expression>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Text,
    Number,
    List,
}

macro_rules! functions {
    ($($variant:ident $name:literal ($($argument:ident),*) -> $result:ident, $takes:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Function { $($variant),* }

        impl Function {
            const ALL: &[(Self, &'static str, &'static [Type], Type, &'static str)] =
                &[$((Self::$variant, $name, &[$(Type::$argument),*], Type::$result, $takes)),*];
        }

        const FUNCTION_NAMES: &str = concat!($($name, " "),*, "printf print");
    };
}

functions! {
    Lower "lower" (Text) -> Text, "a text";
    Upper "upper" (Text) -> Text, "a text";
    Trim "trim" (Text) -> Text, "a text";
    NoSpace "nospace" (Text) -> Text, "a text";
    ToString "toString" (Text) -> Text, "a text";
    TrimAll "trimAll" (Text, Text) -> Text, "the characters and a text";
    TrimPrefix "trimPrefix" (Text, Text) -> Text, "a prefix and a text";
    TrimSuffix "trimSuffix" (Text, Text) -> Text, "a suffix and a text";
    Replace "replace" (Text, Text, Text) -> Text, "what to replace, by what, and a text";
    Truncate "trunc" (Number, Text) -> Text, "a number and a text";
    Substring "substr" (Number, Number, Text) -> Text, "start, end and a text";
    Default "default" (Text, Text) -> Text, "a default and a text";
    Sha1 "sha1sum" (Text) -> Text, "a text";
    Sha256 "sha256sum" (Text) -> Text, "a text";
    Split "splitList" (Text, Text) -> List, "a separator and a text";
    Join "join" (Text, List) -> Text, "a separator and a list";
    First "first" (List) -> Text, "a list";
    Last "last" (List) -> Text, "a list";
    Index "index" (List, Number) -> Text, "a list and a number, or a map and a key";
}

impl Template {
    /// Reads a template over these fields.
    ///
    /// # Errors
    /// Why it would not give each node an ID of its own.
    pub fn parse(text: &str, fields: &[Field]) -> Result<Self, TemplateError> {
        if !text.starts_with('/') {
            return Err(TemplateError::NoSlash);
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        let mut distinguishes = false;
        let push = |pieces: &mut Vec<Piece>, text: &str| {
            if !text.is_empty() {
                pieces.push(Piece::Text(text.to_owned()));
            }
        };
        while let Some((before, after)) = rest.split_once("{{") {
            let (body, after) = action_end(after)?;
            let (trim_left, body) = match body.strip_prefix("- ") {
                Some(body) => (true, body),
                None => (false, body),
            };
            let (trim_right, body) = match body.strip_suffix(" -") {
                Some(body) => (true, body),
                None => (false, body),
            };
            push(&mut pieces, if trim_left { before.trim_end() } else { before });
            rest = if trim_right { after.trim_start() } else { after };
            let body = body.trim();
            if body.starts_with("/*") && body.ends_with("*/") {
                continue;
            }
            let mut parser =
                Parser { tokens: tokens(body)?, at: 0, fields, distinguishes: false, whole: body };
            let expression = parser.pipeline()?;
            if parser.at != parser.tokens.len() {
                return Err(TemplateError::Syntax(body.to_owned()));
            }
            if kind(&expression) != Type::Text {
                return Err(TemplateError::NotText(body.to_owned()));
            }
            distinguishes |= parser.distinguishes;
            pieces.push(Piece::Action(expression));
        }
        push(&mut pieces, rest);
        if distinguishes { Ok(Self { pieces }) } else { Err(TemplateError::Constant) }
    }

    /// The path for one node.
    ///
    /// # Errors
    /// [`RenderError`].
    pub fn render(&self, output: Output, values: &Values<'_>) -> Result<String, RenderError> {
        let mut path = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Action(expression) => {
                    let Value::Text(text) = evaluate(expression, output, values)? else {
                        return Err(RenderError::Empty);
                    };
                    if text.is_empty() {
                        return Err(RenderError::Empty);
                    }
                    match output {
                        Output::Checked => path.push_str(&text),
                        Output::Escaped => path.push_str(&escape(&text)),
                    }
                }
            }
            if path.len() > MAX_PATH {
                return Err(RenderError::TooLong);
            }
        }
        Ok(path)
    }

    /// The text before the first placeholder.
    pub fn start(&self) -> &str {
        match self.pieces.first() {
            Some(Piece::Text(text)) => text,
            _ => "",
        }
    }

    /// What all IDs start with, given the values of some fields: up to the first placeholder that is anything else.
    pub fn common_start(&self, constant: impl Fn(&'static str) -> Option<String>) -> String {
        let mut start = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => start.push_str(text),
                Piece::Action(Expression::Field { name, .. }) => match constant(name) {
                    Some(value) => start.push_str(&value),
                    None => break,
                },
                Piece::Action(_) => break,
            }
        }
        start
    }
}

/// A text as a part of a path segment: letters, digits, `-` and `.` stay, every other byte and a dot at the start become
/// `_` and two hexadecimal digits.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' => out.push(char::from(byte)),
            b'.' if at > 0 => out.push('.'),
            byte => {
                let _ = write!(out, "_{byte:02X}");
            }
        }
    }
    out
}

/// The action up to its end, which may not be one in a string.
fn action_end(text: &str) -> Result<(&str, &str), TemplateError> {
    let mut quote = None;
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if character == '\\' => escaped = true,
            Some(open) if character == open => quote = None,
            Some(_) => {}
            None if character == '"' || character == '`' => quote = Some(character),
            None if text[at..].starts_with("}}") => return Ok((&text[..at], &text[at + 2..])),
            None => {}
        }
    }
    Err(TemplateError::Unclosed)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Field(String),
    Word(String),
    Text(String),
    Number(i64),
    Open,
    Close,
    Pipe,
}

fn tokens(body: &str) -> Result<Vec<Token>, TemplateError> {
    let mut found = Vec::new();
    let mut rest = body;
    let syntax = |rest: &str| TemplateError::Syntax(rest.to_owned());
    while let Some(first) = rest.chars().next() {
        let word = |text: &str| {
            let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'));
            end.unwrap_or(text.len())
        };
        let (token, length) = match first {
            c if c.is_whitespace() => {
                rest = &rest[c.len_utf8()..];
                continue;
            }
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '|' => (Token::Pipe, 1),
            '.' => {
                let end = word(rest);
                (Token::Field(rest[..end].to_owned()), end)
            }
            '`' => {
                let end = rest[1..].find('`').ok_or_else(|| syntax(rest))?;
                (Token::Text(rest[1..=end].to_owned()), end + 2)
            }
            '"' => {
                let mut text = String::new();
                let mut characters = rest[1..].char_indices();
                let end = loop {
                    match characters.next().ok_or_else(|| syntax(rest))? {
                        (at, '"') => break at,
                        (_, '\\') => match characters.next() {
                            Some((_, c @ ('"' | '\\'))) => text.push(c),
                            _ => return Err(syntax(rest)),
                        },
                        (_, c) => text.push(c),
                    }
                };
                (Token::Text(text), end + 2)
            }
            c if c.is_ascii_digit() || c == '-' => {
                let digits = rest[1..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |end| end + 1);
                (Token::Number(rest[..digits].parse().map_err(|_| syntax(rest))?), digits)
            }
            c if c.is_alphabetic() || c == '_' => {
                let end = word(rest);
                (Token::Word(rest[..end].to_owned()), end)
            }
            c => return Err(TemplateError::Unsupported(c.to_string())),
        };
        found.push(token);
        rest = &rest[length..];
    }
    Ok(found)
}

struct Parser<'a> {
    tokens: Vec<Token>,
    at: usize,
    fields: &'a [Field],
    distinguishes: bool,
    whole: &'a str,
}

/// An operand: a map is one only as the argument of `index`.
enum Operand {
    Value(Expression),
    Map(&'static str),
}

impl Parser<'_> {
    fn syntax(&self) -> TemplateError {
        TemplateError::Syntax(self.whole.to_owned())
    }

    /// Commands with `|` between: each gets the result of the former as its last argument.
    fn pipeline(&mut self) -> Result<Expression, TemplateError> {
        let mut value = self.command(None)?;
        while self.tokens.get(self.at) == Some(&Token::Pipe) {
            self.at += 1;
            if !matches!(self.tokens.get(self.at), Some(Token::Word(_))) {
                return Err(self.syntax());
            }
            value = self.command(Some(value))?;
        }
        Ok(value)
    }

    fn command(&mut self, piped: Option<Expression>) -> Result<Expression, TemplateError> {
        let Some(Token::Word(word)) = self.tokens.get(self.at).cloned() else {
            return match (self.operand()?, piped) {
                (Operand::Value(value), None) => Ok(value),
                (Operand::Map(name), _) => Err(TemplateError::NotText(name.to_owned())),
                _ => Err(self.syntax()),
            };
        };
        self.at += 1;
        if KEYWORDS.contains(&word.as_str()) {
            return Err(TemplateError::Unsupported(word));
        }
        let mut arguments = Vec::new();
        while !matches!(self.tokens.get(self.at), None | Some(Token::Pipe | Token::Close)) {
            arguments.push(self.operand()?);
        }
        arguments.extend(piped.map(Operand::Value));
        call(&word, arguments)
    }

    fn operand(&mut self) -> Result<Operand, TemplateError> {
        let token = self.tokens.get(self.at).cloned().ok_or_else(|| self.syntax())?;
        self.at += 1;
        Ok(Operand::Value(match token {
            Token::Text(text) => Expression::Text(text),
            Token::Number(number) => Expression::Number(number),
            Token::Open => {
                let value = self.pipeline()?;
                if self.tokens.get(self.at) != Some(&Token::Close) {
                    return Err(self.syntax());
                }
                self.at += 1;
                value
            }
            Token::Field(name) => return self.field(&name),
            // A function without arguments as an argument.
            Token::Word(word) => return Err(TemplateError::UnknownFunction(word)),
            Token::Close | Token::Pipe => return Err(self.syntax()),
        }))
    }

    fn field(&mut self, written: &str) -> Result<Operand, TemplateError> {
        let found = self.fields.iter().find(|field| {
            field.name == written
                || field.kind == FieldKind::Map
                    && written.strip_prefix(field.name).is_some_and(|rest| rest.starts_with('.'))
        });
        let Some(field) = found else {
            let known: Vec<&str> = self.fields.iter().map(|field| field.name).collect();
            return Err(TemplateError::UnknownName { name: written.to_owned(), known: known.join(", ") });
        };
        self.distinguishes |= field.distinguishes;
        let key = written[field.name.len()..].trim_start_matches('.');
        Ok(match field.kind {
            FieldKind::Map if key.is_empty() => Operand::Map(field.name),
            FieldKind::Map if key.contains('.') => return Err(self.syntax()),
            FieldKind::Map => Operand::Value(Expression::Member { name: field.name, key: key.to_owned() }),
            kind => {
                let list = kind == FieldKind::List;
                Operand::Value(Expression::Field { name: field.name, path: field.path, list })
            }
        })
    }
}

fn call(word: &str, arguments: Vec<Operand>) -> Result<Expression, TemplateError> {
    if let ("index", [Operand::Map(name), Operand::Value(Expression::Text(key))]) = (word, &arguments[..]) {
        return Ok(Expression::Member { name, key: key.clone() });
    }
    let mut values = Vec::new();
    for argument in arguments {
        match argument {
            Operand::Value(value) => values.push(value),
            Operand::Map(name) => return Err(TemplateError::NotText(name.to_owned())),
        }
    }
    if word == "print" || word == "printf" {
        return print(word, values);
    }
    let known = Function::ALL.iter().find(|(_, name, ..)| *name == word);
    let (function, name, types, _, takes) =
        known.ok_or_else(|| TemplateError::UnknownFunction(word.to_owned()))?;
    let fits = values.len() == types.len()
        && values.iter().zip(*types).all(|(value, expected)| kind(value) == *expected);
    if fits {
        Ok(Expression::Call(*function, values))
    } else {
        Err(TemplateError::Arguments { function: name, takes })
    }
}

/// `print` and `printf` become one text in one piece: the separator of `join` is empty.
fn print(word: &str, values: Vec<Expression>) -> Result<Expression, TemplateError> {
    let arguments = TemplateError::Arguments {
        function: if word == "print" { "print" } else { "printf" },
        takes: if word == "print" {
            "texts"
        } else {
            "a format with %s and %% only, and one text for each %s"
        },
    };
    let mut values = values.into_iter();
    let mut parts = Vec::new();
    if word == "printf" {
        let Some(Expression::Text(format)) = values.next() else { return Err(arguments) };
        let mut text = String::new();
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            match (character, if character == '%' { characters.next() } else { None }) {
                ('%', Some('%')) => text.push('%'),
                ('%', Some('s')) => {
                    parts.push(Expression::Text(std::mem::take(&mut text)));
                    parts.push(values.next().ok_or_else(|| arguments.clone())?);
                }
                ('%', _) => return Err(arguments),
                (character, _) => text.push(character),
            }
        }
        parts.push(Expression::Text(text));
    } else {
        parts.extend(values.by_ref());
    }
    if values.next().is_some() || parts.is_empty() || parts.iter().any(|part| kind(part) != Type::Text) {
        return Err(arguments);
    }
    // A join over the parts; `Join` evaluates its arguments after the first as the list.
    parts.insert(0, Expression::Text(String::new()));
    Ok(Expression::Call(Function::Join, parts))
}

fn kind(expression: &Expression) -> Type {
    match expression {
        Expression::Text(_) | Expression::Member { .. } | Expression::Field { list: false, .. } => Type::Text,
        Expression::Field { list: true, .. } => Type::List,
        Expression::Number(_) => Type::Number,
        Expression::Call(function, _) => Function::ALL
            .iter()
            .find(|(known, ..)| known == function)
            .map_or(Type::Text, |(.., result, _)| *result),
    }
}

fn evaluate(expression: &Expression, output: Output, values: &Values<'_>) -> Result<Value, RenderError> {
    let given = |name: &'static str, key: Option<&str>, path: bool| {
        let full = || key.map_or_else(|| name.to_owned(), |key| format!("{name} {key:?}"));
        let value = values(name, key).ok_or_else(|| RenderError::Missing(full()))?;
        let parts = match &value {
            Value::Text(text) => std::slice::from_ref(text),
            Value::List(list) => list,
        };
        match parts.iter().find(|part| part.contains('/')) {
            Some(part) if output == Output::Checked && !path => Err(RenderError::Slash(full(), part.clone())),
            _ => Ok(value),
        }
    };
    match expression {
        Expression::Text(text) => Ok(Value::Text(text.clone())),
        Expression::Number(number) => Ok(Value::Text(number.to_string())),
        Expression::Field { name, path, .. } => given(name, None, *path),
        Expression::Member { name, key } => given(name, Some(key), false),
        Expression::Call(function, arguments) => {
            let evaluated: Vec<Value> = arguments
                .iter()
                .map(|argument| evaluate(argument, output, values))
                .collect::<Result<_, _>>()?;
            apply(*function, &evaluated)
        }
    }
}

/// Types were checked when the template was read.
fn apply(function: Function, arguments: &[Value]) -> Result<Value, RenderError> {
    let text = |at: usize| match arguments.get(at) {
        Some(Value::Text(text)) => text.as_str(),
        _ => "",
    };
    let list = |at: usize| match arguments.get(at) {
        Some(Value::List(list)) => list.as_slice(),
        _ => &[],
    };
    let number = |at: usize| text(at).parse::<i64>().unwrap_or(0);
    let whole = |index: i64| usize::try_from(index).ok();
    let item = |item: Option<&String>| {
        item.cloned().ok_or_else(|| RenderError::Missing("item of a list that the template names".to_owned()))
    };
    let characters = |range: std::ops::Range<usize>, of: &str| -> String {
        of.chars().skip(range.start).take(range.end.saturating_sub(range.start)).collect()
    };
    Ok(Value::Text(match function {
        Function::Lower => text(0).to_lowercase(),
        Function::Upper => text(0).to_uppercase(),
        Function::Trim => text(0).trim().to_owned(),
        Function::NoSpace => text(0).split_whitespace().collect(),
        Function::ToString => text(0).to_owned(),
        Function::TrimAll => text(1).trim_matches(|c| text(0).contains(c)).to_owned(),
        Function::TrimPrefix => text(1).strip_prefix(text(0)).unwrap_or(text(1)).to_owned(),
        Function::TrimSuffix => text(1).strip_suffix(text(0)).unwrap_or(text(1)).to_owned(),
        Function::Replace => text(2).replace(text(0), text(1)),
        Function::Truncate => {
            let length = text(1).chars().count();
            match whole(number(0)) {
                Some(kept) => characters(0..kept, text(1)),
                // Negative: what is at the end.
                None => {
                    let kept = usize::try_from(number(0).unsigned_abs()).unwrap_or(length);
                    characters(length.saturating_sub(kept)..length, text(1))
                }
            }
        }
        Function::Substring => {
            let length = text(2).chars().count();
            let end = whole(number(1)).filter(|end| *end <= length).unwrap_or(length);
            characters(whole(number(0)).unwrap_or(0)..end, text(2))
        }
        Function::Default => (if text(1).is_empty() { text(0) } else { text(1) }).to_owned(),
        Function::Sha1 => HEXLOWER.encode(&sha1_fingerprint(text(0).as_bytes())),
        Function::Sha256 => {
            let mut digest = Sha256::new();
            digest.update(text(0).as_bytes());
            HEXLOWER.encode(&digest.finish())
        }
        Function::Split => {
            let parts: Vec<String> = text(1).split(text(0)).map(str::to_owned).collect();
            return Ok(Value::List(parts));
        }
        Function::Join if matches!(arguments.get(1), Some(Value::List(_))) => list(1).join(text(0)),
        Function::Join => (1..arguments.len()).map(text).collect(),
        Function::First => item(list(0).first())?,
        Function::Last => item(list(0).last())?,
        Function::Index => item(whole(number(1)).and_then(|at| list(0).get(at)))?,
    }))
}

const KEYWORDS: [&str; 10] =
    ["if", "range", "with", "define", "template", "block", "else", "end", "break", "continue"];

/// No SPIFFE ID is longer.
const MAX_PATH: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[Field] = &[
        Field::constant(".PluginName"),
        Field::of_node(".Name", FieldKind::Text),
        Field::of_node(".Names", FieldKind::List),
        Field::of_node(".Claims", FieldKind::Map),
        Field { name: ".Path", kind: FieldKind::Text, distinguishes: true, path: true },
    ];

    fn values(name: &'static str, key: Option<&str>) -> Option<Value> {
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        match (name, key) {
            (".PluginName", _) => text("test"),
            (".Name", _) => text("Node-1.Example.ORG"),
            (".Names", _) => Some(Value::List(vec!["a.x".to_owned(), "b.x".to_owned()])),
            (".Path", _) => text("rack/1"),
            (".Claims", Some("sub")) => text("repo:org/name:ref"),
            (".Claims", Some("/a/b")) => text(".."),
            (".Claims", Some("empty")) => text(""),
            _ => None,
        }
    }

    fn rendered(template: &str, output: Output) -> Result<String, RenderError> {
        Template::parse(template, FIELDS).unwrap().render(output, &values)
    }

    #[test]
    fn names_and_functions_say_what_they_say_in_go() {
        for (template, expected) in [
            ("/{{ .PluginName }}/{{.Name}}", "/test/Node-1.Example.ORG"),
            ("/{{ .Name | lower }}", "/node-1.example.org"),
            ("/{{ lower .Name | trimSuffix \".example.org\" }}", "/node-1"),
            ("/{{ trimSuffix `.example.org` (lower .Name) | upper }}", "/NODE-1"),
            ("/{{ index .Names 0 }}-{{ last .Names }}", "/a.x-b.x"),
            ("/{{ first (splitList \".\" (index .Names 1)) }}", "/b"),
            ("/{{ join \"-\" .Names | replace \".\" \"_\" }}", "/a_x-b_x"),
            ("/{{ printf \"%s-%s%%\" .PluginName .Name | trunc 8 }}", "/test-Nod"),
            ("/{{ trunc -3 .Name }}", "/ORG"),
            ("/{{ substr 0 4 .Name }}{{ substr 4 -1 .Name | lower }}", "/Node-1.example.org"),
            ("/{{ print .PluginName \"-\" .Name | nospace | trim }}", "/test-Node-1.Example.ORG"),
            (
                "/{{ sha1sum .PluginName }}{{- /* a comment */ -}} /{{ .Path }}",
                "/a94a8fe5ccb19ba61c4c0873d391e987982fbbd3/rack/1",
            ),
            ("/{{ index .Claims \"empty\" | default \"none\" }}", "/none"),
            ("/a   {{- .Name | lower | trimAll \"gro\" -}}   /b", "/anode-1.example./b"),
        ] {
            assert_eq!(rendered(template, Output::Checked).as_deref(), Ok(expected), "{template}");
        }
        let sha256 = rendered("/{{ .Name | sha256sum | toString }}", Output::Checked).unwrap();
        assert_eq!(sha256.len(), 65);
    }

    #[test]
    fn what_all_ids_start_with_ends_at_the_first_other_placeholder() {
        let start = |template: &str| {
            let constant = |name| (name == ".PluginName").then(|| "test".to_owned());
            Template::parse(template, FIELDS).unwrap().common_start(constant)
        };
        assert_eq!(start("/a/{{ .PluginName }}/b/{{ .Name }}/c"), "/a/test/b/");
        assert_eq!(start("/a/{{ .PluginName | lower }}/{{ .Name }}"), "/a/");
        assert_eq!(start("/{{ .Claims.sub }}/{{ .PluginName }}"), "/");
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let refused = |template: &str| Template::parse(template, FIELDS).unwrap_err().to_string();
        for (template, text) in [
            ("{{ .Name }}", "must start with a slash"),
            ("/x/{{ .PluginName }}", "must name something of the node, or all nodes would be one agent"),
            ("/{{ .Name ", "there is a {{ without }}"),
            ("/{{ \"}}\" }", "there is a {{ without }}"),
            ("/{{ .Nam }}", "\".Nam\" is not one of .PluginName, .Name, .Names, .Claims, .Path"),
            (
                "/{{ if .Name }}x{{ end }}",
                "\"if\" is not supported: a template consists of text, names and functions",
            ),
            (
                "/{{ $x := .Name }}",
                "\"$\" is not supported: a template consists of text, names and functions",
            ),
            ("/{{ .Names }}", "\".Names\" is not a text: use index, first, last or join"),
            ("/{{ .Claims }}", "\".Claims\" is not a text: use index, first, last or join"),
            ("/{{ lower }}", "lower takes a text"),
            ("/{{ .Name | trunc }}", "trunc takes a number and a text"),
            ("/{{ index .Names \"a\" }}", "index takes a list and a number, or a map and a key"),
            (
                "/{{ printf \"%d\" .Name }}",
                "printf takes a format with %s and %% only, and one text for each %s",
            ),
            ("/{{ }}", "cannot be read at \"\""),
            ("/{{ .Name .Name }}", "cannot be read at \".Name .Name\""),
            ("/{{ \"x }}", "there is a {{ without }}"),
            ("/{{ .Claims.a.b }}", "cannot be read at \".Claims.a.b\""),
        ] {
            assert_eq!(refused(template), text, "{template}");
        }
        assert!(
            refused("/{{ uuidv4 }}")
                .starts_with("function \"uuidv4\" is not supported; supported are lower upper")
        );
        assert!(refused("/{{ env \"HOME\" }}").contains("\"env\""));
    }

    #[test]
    fn values_stay_in_their_place() {
        assert!(matches!(rendered("/{{ .Claims.sub }}", Output::Checked), Err(RenderError::Slash(..))));
        assert!(matches!(rendered("/{{ .Claims.none }}", Output::Checked), Err(RenderError::Missing(_))));
        assert!(matches!(rendered("/{{ .Claims.empty }}", Output::Escaped), Err(RenderError::Empty)));
        assert!(matches!(rendered("/{{ index .Names 2 }}", Output::Checked), Err(RenderError::Missing(_))));
        assert!(matches!(rendered("/{{ trunc 0 .Name }}", Output::Checked), Err(RenderError::Empty)));
        let long = format!("/{}{{{{ .Name }}}}", "x".repeat(MAX_PATH));
        assert_eq!(rendered(&long, Output::Checked), Err(RenderError::TooLong));
        assert_eq!(
            rendered("/{{ .Claims.sub }}/{{ index .Claims \"/a/b\" }}", Output::Escaped).as_deref(),
            Ok("/repo_3Aorg_2Fname_3Aref/_2E.")
        );
    }

    #[test]
    fn different_texts_escape_to_different_parts() {
        let texts = ["a_b", "a_5Fb", "a/b", "a:b", "a b", "ä", "..", ".", "_", "a", "A", "a.b"];
        let escaped: std::collections::BTreeSet<String> = texts.iter().map(|text| escape(text)).collect();
        assert_eq!(escaped.len(), texts.len());
        for part in escaped {
            let id = format!("spiffe://td/x/{part}");
            bonafide_identity::SpiffeId::parse(&id).unwrap_or_else(|error| panic!("{id}: {error}"));
        }
    }
}
