//! XML, as much as signed reference values need: a strict reader and Canonical XML 1.1 (inclusive, without comments).
//!
//! Documents with a DTD, comments, processing instructions, CDATA sections or attributes of the `xml` namespace are refused: signed
//! reference values have none, and each is a way to make a reader and a canonicaliser disagree.

use std::collections::BTreeMap;

/// Not XML, or XML that is refused; the text says what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct XmlError(pub(super) &'static str);

#[derive(Debug)]
pub(super) enum Node {
    Element(Element),
    Text(String),
}

#[derive(Debug)]
pub(super) struct Element {
    /// As it is written, with its prefix.
    name: String,
    /// The namespace; empty for none.
    pub(super) namespace: String,
    /// Prefix (empty for the default) and namespace, as declared here.
    declared: BTreeMap<String, String>,
    attributes: Vec<Attribute>,
    pub(super) children: Vec<Node>,
}

#[derive(Debug)]
struct Attribute {
    name: String,
    namespace: String,
    value: String,
}

impl Element {
    /// The name without its prefix.
    pub(super) fn local(&self) -> &str {
        local(&self.name)
    }

    /// The value of an attribute with this namespace (empty for none) and name.
    pub(super) fn attribute(&self, namespace: &str, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|one| one.namespace == namespace && local(&one.name) == name);
        found.map(|attribute| attribute.value.as_str())
    }

    /// The elements directly in this one.
    pub(super) fn elements(&self) -> impl Iterator<Item = &Self> {
        self.children.iter().filter_map(|child| match child {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    /// The elements directly in this one, of this namespace and name.
    pub(super) fn named<'a>(&'a self, namespace: &'a str, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.elements().filter(move |element| element.namespace == namespace && element.local() == name)
    }

    /// The only one of them.
    pub(super) fn only<'a>(&'a self, namespace: &'a str, name: &'a str) -> Option<&'a Self> {
        let mut found = self.named(namespace, name);
        found.next().filter(|_| found.next().is_none())
    }

    /// The text directly in this element.
    pub(super) fn text(&self) -> String {
        let text = |child: &Node| match child {
            Node::Text(text) => Some(text.clone()),
            Node::Element(_) => None,
        };
        self.children.iter().filter_map(text).collect()
    }

    /// Canonical XML of this element; `inherited` are the namespaces declared above it, `left_out` is not written.
    pub(super) fn canonical(&self, inherited: &[&Self], left_out: Option<&Self>) -> Vec<u8> {
        let mut declared = BTreeMap::new();
        for above in inherited {
            declared.extend(above.declared.clone());
        }
        declared.extend(self.declared.clone());
        let mut out = String::new();
        self.write(&declared, &BTreeMap::new(), left_out, &mut out);
        out.into_bytes()
    }

    fn write(
        &self,
        declared: &BTreeMap<String, String>,
        rendered: &BTreeMap<String, String>,
        left_out: Option<&Self>,
        out: &mut String,
    ) {
        out.push('<');
        out.push_str(&self.name);
        let mut now = rendered.clone();
        // Sorted by prefix, the default namespace first. What the output already says is not said again.
        for (prefix, uri) in declared {
            let said = rendered.get(prefix).map_or("", String::as_str);
            if said == uri {
                continue;
            }
            out.push_str(if prefix.is_empty() { " xmlns" } else { " xmlns:" });
            out.push_str(prefix);
            out.push_str("=\"");
            escape(uri, true, out);
            out.push('"');
            now.insert(prefix.clone(), uri.clone());
        }
        let mut attributes: Vec<&Attribute> = self.attributes.iter().collect();
        attributes.sort_by_key(|attribute| (&attribute.namespace, local(&attribute.name)));
        for attribute in attributes {
            out.push(' ');
            out.push_str(&attribute.name);
            out.push_str("=\"");
            escape(&attribute.value, true, out);
            out.push('"');
        }
        out.push('>');
        for child in &self.children {
            match child {
                Node::Text(text) => escape(text, false, out),
                Node::Element(element) if left_out.is_some_and(|left| std::ptr::eq(left, element)) => {}
                Node::Element(element) => element.write(&element.declared, &now, left_out, out),
            }
        }
        out.push_str("</");
        out.push_str(&self.name);
        out.push('>');
    }
}

fn escape(text: &str, attribute: bool, out: &mut String) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' if !attribute => out.push_str("&gt;"),
            '"' if attribute => out.push_str("&quot;"),
            '\t' if attribute => out.push_str("&#x9;"),
            '\n' if attribute => out.push_str("&#xA;"),
            '\r' => out.push_str("&#xD;"),
            other => out.push(other),
        }
    }
}

fn local(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}

/// Reads a document.
///
/// # Errors
/// [`XmlError`].
pub(super) fn read(bytes: &[u8]) -> Result<Element, XmlError> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(XmlError("the document is larger than 1 MiB"));
    }
    let text = str::from_utf8(bytes).map_err(|_| XmlError("the document is not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let mut reader = Reader { rest: &text, elements: 0 };
    if let Some(rest) = reader.rest.strip_prefix("<?xml ") {
        let (_, rest) = rest.split_once("?>").ok_or(XmlError("the XML declaration has no end"))?;
        reader.rest = rest;
    }
    reader.blank();
    let root = reader.element(&mut Vec::new())?;
    reader.blank();
    if reader.rest.is_empty() { Ok(root) } else { Err(XmlError("something follows the document")) }
}

struct Reader<'a> {
    rest: &'a str,
    elements: usize,
}

impl<'a> Reader<'a> {
    fn blank(&mut self) -> bool {
        let before = self.rest.len();
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
        self.rest.len() < before
    }

    fn expect(&mut self, text: &str, what: &'static str) -> Result<(), XmlError> {
        self.rest = self.rest.strip_prefix(text).ok_or(XmlError(what))?;
        Ok(())
    }

    fn name(&mut self) -> Result<&'a str, XmlError> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
        let end = self.rest.find(|c| !good(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        let parts: Vec<&str> = name.split(':').collect();
        let starts = |part: &&str| part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if parts.len() > 2 || !parts.iter().all(starts) {
            return Err(XmlError("a name is missing or has other characters than ASCII letters and digits"));
        }
        self.rest = rest;
        Ok(name)
    }

    /// An element; `scope` is what is declared above it.
    fn element(&mut self, scope: &mut Vec<BTreeMap<String, String>>) -> Result<Element, XmlError> {
        self.elements += 1;
        if self.elements > MAX_ELEMENTS || scope.len() >= MAX_DEPTH {
            return Err(XmlError("the document has too many elements"));
        }
        self.expect("<", "an element does not begin with <")?;
        let name = self.name()?.to_owned();
        let mut declared = BTreeMap::new();
        let mut raw: Vec<(String, String)> = Vec::new();
        let empty = loop {
            let separated = self.blank();
            if self.rest.starts_with("/>") {
                self.rest = &self.rest[2..];
                break true;
            }
            if self.rest.starts_with('>') {
                self.rest = &self.rest[1..];
                break false;
            }
            if !separated || raw.len() + declared.len() >= MAX_ATTRIBUTES {
                return Err(XmlError("an element has a broken head, or too many attributes"));
            }
            let name = self.name()?;
            let value = self.value()?;
            let prefix = if name == "xmlns" { Some("") } else { name.strip_prefix("xmlns:") };
            match prefix {
                Some("xml" | "xmlns") => return Err(XmlError("a reserved prefix is declared")),
                Some(prefix) if !prefix.is_empty() && value.is_empty() => {
                    return Err(XmlError("a prefix is declared without a namespace"));
                }
                Some(prefix) => {
                    if declared.insert(prefix.to_owned(), value).is_some() {
                        return Err(XmlError("a prefix is declared twice"));
                    }
                }
                None => raw.push((name.to_owned(), value)),
            }
        };
        scope.push(declared.clone());
        let namespace = namespace(&name, scope, true)?;
        let mut attributes: Vec<Attribute> = Vec::with_capacity(raw.len());
        for (name, value) in raw {
            let namespace = self::namespace(&name, scope, false)?;
            if attributes.iter().any(|one| one.namespace == namespace && local(&one.name) == local(&name)) {
                return Err(XmlError("an attribute stands twice"));
            }
            attributes.push(Attribute { name, namespace, value });
        }
        let children = if empty { Vec::new() } else { self.children(scope, &name)? };
        scope.pop();
        Ok(Element { name, namespace, declared, attributes, children })
    }

    fn children(
        &mut self,
        scope: &mut Vec<BTreeMap<String, String>>,
        name: &str,
    ) -> Result<Vec<Node>, XmlError> {
        let mut children = Vec::new();
        loop {
            let end = self.rest.find('<').ok_or(XmlError("an element has no end"))?;
            let (text, rest) = self.rest.split_at(end);
            self.rest = rest;
            if text.contains("]]>") {
                return Err(XmlError("text holds ]]>"));
            }
            if !text.is_empty() {
                children.push(Node::Text(unescaped(text)?));
            }
            if self.rest.starts_with("</") {
                self.rest = &self.rest[2..];
                self.expect(name, "an element ends under another name")?;
                self.blank();
                self.expect(">", "an element ends under another name")?;
                return Ok(children);
            }
            if self.rest.starts_with("<!") || self.rest.starts_with("<?") {
                return Err(XmlError("comments, sections and instructions are refused"));
            }
            children.push(Node::Element(self.element(scope)?));
        }
    }

    fn value(&mut self) -> Result<String, XmlError> {
        const BROKEN: &str = "an attribute has no quoted value";
        self.blank();
        self.expect("=", BROKEN)?;
        self.blank();
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\'')).ok_or(XmlError(BROKEN))?;
        let (value, rest) = self.rest[1..].split_once(quote).ok_or(XmlError(BROKEN))?;
        if value.contains('<') {
            return Err(XmlError("an attribute's value holds <"));
        }
        self.rest = rest;
        // Blanks that are written as themselves become spaces; those written as references stay.
        unescaped(&value.replace(['\t', '\n'], " "))
    }
}

fn namespace(name: &str, scope: &[BTreeMap<String, String>], default: bool) -> Result<String, XmlError> {
    let prefix = name.split_once(':').map_or("", |(prefix, _)| prefix);
    if prefix.is_empty() && !default {
        return Ok(String::new());
    }
    match scope.iter().rev().find_map(|declared| declared.get(prefix)) {
        Some(uri) => Ok(uri.clone()),
        None if prefix.is_empty() => Ok(String::new()),
        None => Err(XmlError("a prefix is not declared")),
    }
}

fn unescaped(text: &str) -> Result<String, XmlError> {
    const UNKNOWN: XmlError = XmlError("a reference is not one of the five of XML or a character");
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let (name, after) = after.split_once(';').ok_or(UNKNOWN)?;
        let number = |digits: &str, radix| {
            let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            let number = plain.then_some(u32::from_str_radix(digits, radix).ok()?)?;
            char::from_u32(number)
        };
        out.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => match (name.strip_prefix("#x"), name.strip_prefix('#')) {
                (Some(digits), _) => number(digits, 16).ok_or(UNKNOWN)?,
                (None, Some(digits)) => number(digits, 10).ok_or(UNKNOWN)?,
                (None, None) => return Err(UNKNOWN),
            },
        });
        rest = after;
    }
    out.push_str(rest);
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    if out.chars().all(allowed) { Ok(out) } else { Err(XmlError("a character that XML does not know")) }
}

const MAX_DOCUMENT: usize = 1 << 20;
const MAX_ELEMENTS: usize = 10_000;
const MAX_DEPTH: usize = 32;
const MAX_ATTRIBUTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        String::from_utf8(read(text.as_bytes()).unwrap().canonical(&[], None)).unwrap()
    }

    /// After the examples of Canonical XML 1.1, sections 3.2 to 3.4.
    #[test]
    fn canonical_form_is_that_of_the_recommendation() {
        assert_eq!(
            canonical(
                "<?xml version='1.0'?>\r\n<doc>\n <e1   />\n <e5 a:attr=\"out\" b:attr='sorted' attr2=\"all\" attr=\"I'm\" xmlns:b=\"http://b\" xmlns:a=\"http://a\" xmlns=\"http://x\"/>\n</doc>\n"
            ),
            "<doc>\n <e1></e1>\n <e5 xmlns=\"http://x\" xmlns:a=\"http://a\" xmlns:b=\"http://b\" attr=\"I'm\" attr2=\"all\" a:attr=\"out\" b:attr=\"sorted\"></e5>\n</doc>"
        );
        assert_eq!(
            canonical("<e xmlns='u' xmlns:p='v'><f xmlns='' xmlns:p='v'><g xmlns=''/></f></e>"),
            "<e xmlns=\"u\" xmlns:p=\"v\"><f xmlns=\"\"><g></g></f></e>"
        );
        assert_eq!(
            canonical("<t a='&lt;\"&#x9;&#xD;\n>'>&#13;&gt;&lt;&amp;\"'&#x41;</t>"),
            "<t a=\"&lt;&quot;&#x9;&#xD; >\">&#xD;&gt;&lt;&amp;\"'A</t>"
        );
    }

    #[test]
    fn a_part_is_written_with_what_is_declared_above_it() {
        let root = read(b"<a xmlns='u' xmlns:p='v'><p:b xmlns:q='w' k='1'><c/></p:b><d/></a>").unwrap();
        let part = root.elements().next().unwrap();
        assert_eq!(
            part.canonical(&[&root], None),
            b"<p:b xmlns=\"u\" xmlns:p=\"v\" xmlns:q=\"w\" k=\"1\"><c></c></p:b>"
        );
        assert_eq!(root.canonical(&[], Some(part)), b"<a xmlns=\"u\" xmlns:p=\"v\"><d></d></a>");
    }

    #[test]
    fn what_is_not_needed_is_refused() {
        for bad in [
            "",
            "x",
            "<a",
            "<a>",
            "<a></b>",
            "<a/><b/>",
            "<a b/>",
            "<a b=c/>",
            "<a b='1' b='2'/>",
            "<a b='1'c='2'/>",
            "<!DOCTYPE a><a/>",
            "<a><!-- x --></a>",
            "<a><?x y?></a>",
            "<a><![CDATA[x]]></a>",
            "<a>&x;</a>",
            "<a>&#0;</a>",
            "<a>&#xZ;</a>",
            "<a>&#+1;</a>",
            "<p:a/>",
            "<a xml:lang='x'/>",
            "<a xmlns:xml='x'/>",
            "<a xmlns:p=''/>",
            "<a b='<'/>",
            "<a xmlns:p='u' xmlns:q='u' p:b='1' q:b='2'/>",
            "<a>]]></a>",
            "<a:b:c/>",
            "<1/>",
            "<a>\u{1}</a>",
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = "<a>".repeat(100) + &"</a>".repeat(100);
        assert!(read(deep.as_bytes()).is_err());
    }
}
