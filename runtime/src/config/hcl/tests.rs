use proptest::prelude::*;

use super::*;

fn refused(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

fn same(hcl: &str, json: &str) {
    assert_eq!(parse(hcl).unwrap_or_else(|e| panic!("{hcl}: {e}")), parse(json).unwrap(), "{hcl}");
}

#[test]
fn both_notations_give_the_same_tree() {
    same("", "{}");
    same("# a\n// b\n/* c\n d */ x = 1", r#"{"x":1}"#);
    same("a { b = \"c\" d = true }", r#"{"a":{"b":"c","d":true}}"#);
    same("a = { b = \"c\", d = false, }", r#"{"a":{"b":"c","d":false}}"#);
    same("NodeAttestor \"x\" { plugin_data { } }", r#"{"NodeAttestor":{"x":{"plugin_data":{}}}}"#);
    same("x \"l\" = { y = 1 }", r#"{"x":{"l":{"y":1}}}"#);
    same("\"quoted key\" = 1\nbare-key.with_2 = -5", r#"{"quoted key":1,"bare-key.with_2":-5}"#);
    same("l = [1, \"a\", [true], { b = 2 },\n# last\n]", r#"{"l":[1,"a",[true],{"b":2}]}"#);
    same("a = 0x1F b = 017 c = 1.5 d = 1e3", r#"{"a":31,"b":15,"c":1.5,"d":1e3}"#);
    same(
        r#"a = "\a\b\f\n\r\t\v\\\"\x41\101\u00e9\U0001F600""#,
        r#"{"a":"\u0007\b\f\n\r\t\u000b\\\"AA\u00e9\ud83d\ude00"}"#,
    );
    same("a = <<EOF\n one\n  two\nEOF\nb = 1", r#"{"a":" one\n  two\n","b":1}"#);
    same("a = <<-EOF\n    one\n      two\n    EOF\n", r#"{"a":"one\n  two\n"}"#);
    same("a = <<-EOF\n  one\n    EOF\n", r#"{"a":"  one\n"}"#);
    same("a = <<EOF\r\none\r\nEOF\r\nb=1", r#"{"a":"one\r\n","b":1}"#);
    same("a = \"${ \"quoted\" {} }\\\"\"", r#"{"a":"${ \"quoted\" {} }\""}"#);
    same("\u{feff}a = 1", r#"{"a":1}"#);
}

#[test]
fn a_key_may_stand_several_times() {
    let document = parse("server { a = 1 }\nserver { b = 2 }\nSERVER { c = 3 }").unwrap();
    assert_eq!(document.all("server").count(), 3);
    let list = parse(r#"{"server":[{"a":1},{"b":2}]}"#).unwrap();
    assert_eq!(list.items[0].value.objects().unwrap().len(), 2);
    assert!(parse("a = [1]").unwrap().items[0].value.objects().is_none());
}

#[test]
fn mistakes_have_their_place() {
    for (text, message) in [
        ("a = ", "1:5: a value was expected, not the end of the file"),
        ("a = b", "1:5: a value was expected, not the bare word \"b\""),
        ("a = 1\n}", "2:1: a brace is closed that was never opened"),
        ("a {\n b = 1\n", "1:3: this brace is never closed"),
        ("a = [1", "1:5: this bracket is never closed"),
        ("a = [1 2]", "1:8: a comma or \"]\" was expected, not a number"),
        ("a = [1,,2]", "1:8: a value was expected, not a comma"),
        ("= 1", "1:1: a key was expected, not \"=\""),
        ("a b = 1", "1:7: a key with labels takes an object in braces"),
        ("a 1", "1:3: after the key \"a\", \"=\" or \"{\" was expected, not a number"),
        ("é = \"x", "1:5: this string is never closed"),
        ("a = \"x\ny\"", "1:5: this string is not closed on its line"),
        ("a = \"\\q\"", "1:6: this escape sequence is unknown"),
        ("a = \"\\xff\"", "1:6: this escape sequence is unknown"),
        ("a = <<EOF\nx\n", "1:5: this heredoc is not closed by a line with \"EOF\""),
        ("a = << EOF\n", "1:5: a heredoc needs a word after \"<<\""),
        ("a = 08", "1:5: \"08\" is not a number"),
        ("a = 99999999999999999999", "1:5: \"99999999999999999999\" is not a number"),
        ("/* a", "1:1: this comment is never closed"),
        ("a = 'x'", "1:5: '\\'' begins nothing here"),
        ("{\"a\":1,}", "1:8: a key in double quotes was expected"),
        ("{\"a\" 1}", "1:6: ':' was expected after the key"),
        ("{} x", "1:4: 'x' after the end of the document"),
        ("{\"a\": nul}", "1:7: \"nul\" is not a value"),
        ("{\"a\": \"\\ud800\"}", "1:8: this escape sequence is unknown"),
    ] {
        assert_eq!(refused(text), message, "{text:?}");
    }
}

#[test]
fn depth_and_size_are_bounded() {
    let deep = |n: usize| format!("a {}{}", "{ a ".repeat(n), "= 1 ".to_owned() + &"}".repeat(n));
    assert!(parse(&deep(MAX_DEPTH - 1)).is_ok());
    assert!(refused(&deep(MAX_DEPTH)).contains("nested deeper"));
    assert!(refused(&format!("a = {}", "[".repeat(100_000))).contains("nested deeper"));
    assert!(refused(&format!("{} {{}}", "a ".repeat(100_000))).contains("nested deeper"));
    assert!(refused(&format!("{{\"a\":{}", "[".repeat(100_000))).contains("nested deeper"));
    assert!(refused(&" ".repeat(MAX_BYTES + 1)).contains("larger than"));
}

#[test]
fn the_environment_is_expanded_as_spire_does() {
    let lookup = |name: &str| (name == "A").then(|| "one".to_owned());
    let expand = |text: &str| expand_environment(text, lookup).unwrap();
    assert_eq!(expand("x = \"$A\" y = \"${A}b\" $$ $").0, "x = \"one\" y = \"oneb\" $ $");
    assert_eq!(expand("$B${C}$B."), (".".to_owned(), vec!["B".to_owned(), "C".to_owned()]));
    assert_eq!(expand("${} ${A").0, " A");
    let large = expand_environment(&"$A".repeat(100), |_| Some("x".repeat(MAX_BYTES / 10)));
    assert!(large.is_none());
}

/// A document as both notations write it.
fn documents() -> impl Strategy<Value = Value> {
    let place = Place { line: 1, column: 1 };
    let leaf = prop_oneof![
        any::<String>().prop_map(Kind::Text),
        any::<i64>().prop_map(Kind::Integer),
        any::<bool>().prop_map(Kind::Bool),
        (-1.0e6..1.0e6_f64).prop_map(Kind::Float),
    ]
    .prop_map(move |kind| Value { place, kind });
    let tree = leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Kind::List),
            prop::collection::vec(("[a-z_ \"\\\\]{0,8}", inner), 0..4)
                .prop_map(move |items| object(items, place)),
        ]
        .prop_map(move |kind| Value { place, kind })
    });
    prop::collection::vec(("[a-z]{1,8}", tree), 0..5)
        .prop_map(move |items| Value { place, kind: object(items, place) })
}

fn object(items: Vec<(String, Value)>, place: Place) -> Kind {
    Kind::Object(Object { items: items.into_iter().map(|(key, value)| Item { key, place, value }).collect() })
}

fn json(value: &Value) -> String {
    match &value.kind {
        Kind::Text(text) => serde_json::to_string(text).unwrap(),
        Kind::Integer(number) => number.to_string(),
        Kind::Float(number) => format!("{number:?}"),
        Kind::Bool(value) => value.to_string(),
        Kind::List(values) => format!("[{}]", values.iter().map(json).collect::<Vec<_>>().join(",")),
        Kind::Object(object) => {
            let items = object.items.iter();
            let items =
                items.map(|i| format!("{}:{}", serde_json::to_string(&i.key).unwrap(), json(&i.value)));
            format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
        }
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            // So that no "${" begins.
            '$' => quoted.push_str("\\x24"),
            c if c < ' ' => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

fn written(value: &Value) -> String {
    match &value.kind {
        Kind::Text(text) => quoted(text),
        Kind::List(values) => {
            values.iter().fold("[ # a list\n".to_owned(), |text, value| text + &written(value) + ",\n") + "]"
        }
        Kind::Object(object) => format!("{{\n{}}}", items(object)),
        _ => json(value),
    }
}

fn items(object: &Object) -> String {
    object
        .items
        .iter()
        .map(|item| match item.value.kind {
            Kind::Object(_) => format!("{} {} // a block\n", quoted(&item.key), written(&item.value)),
            _ => format!("{} = {}\n", quoted(&item.key), written(&item.value)),
        })
        .collect()
}

proptest! {
    #[test]
    fn hcl_and_json_of_a_document_are_equal(document in documents()) {
        let Kind::Object(wanted) = &document.kind else { unreachable!() };
        prop_assert_eq!(&parse(&json(&document)).unwrap(), wanted);
        prop_assert_eq!(&parse(&items(wanted)).unwrap(), wanted);
    }

    #[test]
    fn no_text_makes_it_panic(text in "[ -~\n\u{e9}]{0,200}", soup in "[a\"{}\\[\\]=,\n<E$\\\\0-9#/*]{0,60}") {
        for text in [text, soup] {
            if let Err(error) = parse(&text) {
                prop_assert!(error.place.line <= text.lines().count() + 1);
            }
            let _ = expand_environment(&text, |_| None);
        }
    }
}
