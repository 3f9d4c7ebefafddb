//! Translating a configuration of SPIRE into one of ours.
//!
//! What becomes of each setting is a table ([`Row`]), one in each daemon: carried under a key of ours, without a counterpart because
//! nothing depends on it here, or not carried, with the reason and what to do instead. A setting that is not in the
//! table is a mistake, as it is for SPIRE. Settings that only together make one of ours, and SPIRE's defaults where ours
//! differ, are the business of the daemon's `compose` function, which runs afterwards.
//!
//! The result must pass the daemon's own validation, and [`translate`] runs it: a value that SPIRE takes and we do not is
//! reported at its place in SPIRE's file. Nothing is left out silently: what is not carried stands in the written file
//! as a comment and in the report. Values that look like secrets are not repeated in comments, and the report, which may
//! end up in a terminal's history, has no values at all.

mod go_duration;
mod output;
mod run;
pub mod shared;

use std::fmt;
use std::path::Path;

use toml::Value as Toml;

use crate::config::hcl::{self, Item, Kind, Object, Place, Value};
use crate::config::{ConfigError, HumanDuration};

pub use run::{Done, Request, run};

/// What becomes of one setting.
#[derive(Clone, Copy, Debug)]
pub enum Carry {
    /// Its value is written under this key of ours.
    To(Form, &'static str),
    /// It has no counterpart, and nothing is lost: the text says why.
    Moot(&'static str),
    /// It is not carried: the text says why, and what to do instead. `compose` can ask whether it is there.
    Left(&'static str),
    /// `compose` reads it.
    Used,
    /// A block that says something by being there: `compose` asks for it, and rows of their own speak of what is in it.
    Block,
}

/// How a value is read and written.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// Any text.
    Text,
    /// Text in lower case: names that SPIRE takes in any case.
    Lower,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Bool,
    /// A list of texts.
    Texts,
    /// A duration; zero means the default, and is not written.
    Duration,
    /// Blocks, as a list of tables with these keys, which are called the same here.
    Tables(&'static [(&'static str, Form)]),
}

/// One setting of SPIRE and what becomes of it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The path, joined with dots; `*` stands for any one key. A plugin is `plugins.<type>.<name>`, and what stands in its
    /// `plugin_data` lies directly below that.
    pub setting: &'static str,
    /// What becomes of it.
    pub carry: Carry,
}

/// What one daemon knows of SPIRE's settings.
#[derive(Clone, Copy)]
pub struct Table {
    /// The daemon's name.
    pub program: &'static str,
    /// The rows; the first that fits counts.
    pub rows: &'static [Row],
    /// Our keys in the order in which they shall be written.
    pub order: fn() -> Vec<&'static str>,
    /// Settings that make ours only together, and defaults that differ.
    pub compose: fn(&mut Import<'_>),
    /// Our own validation of the result.
    pub validate: fn(&str) -> Result<(), ConfigError>,
}

/// Something wrong with SPIRE's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: String,
    /// Where; `None` when something is missing.
    pub place: Option<Place>,
    /// What, with the setting's path.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(place) = self.place {
            write!(f, ":{place}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A setting of SPIRE's file with what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The file.
    pub file: String,
    /// Where, unless the remark is about what is not in the file.
    pub place: Option<Place>,
    /// The setting's path.
    pub setting: String,
    /// Its value for the comment, secrets left out.
    value: Option<String>,
    /// Why, and what to do instead.
    pub why: String,
}

/// A translated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Our configuration, in TOML.
    pub text: String,
    /// Settings that were carried.
    pub carried: usize,
    /// What is lost unless somebody acts.
    pub left: Vec<Remark>,
    /// Settings without counterpart of which nothing is lost.
    pub moot: Vec<Remark>,
    /// What is carried and yet a little different.
    pub notes: Vec<Remark>,
}

/// A translation under way.
pub struct Import<'a> {
    table: &'a Table,
    read: &'a dyn Fn(&Path) -> std::io::Result<String>,
    found: Vec<Found>,
    settings: Vec<Setting>,
    translation: Translation,
    mistakes: Vec<Mistake>,
}

struct Found {
    path: String,
    keys: Vec<String>,
    file: String,
    place: Place,
    value: Value,
}

/// A key of ours with its value.
struct Setting {
    key: String,
    value: Toml,
    comment: Option<String>,
    from: Option<(String, Place, String)>,
}

/// Translates the text of a configuration file of SPIRE that is called `file`. `read` gives the files that
/// `plugin_data_file` names.
///
/// # Errors
/// Everything that is wrong with the file.
pub fn translate(
    table: &Table,
    file: &str,
    text: &str,
    read: &dyn Fn(&Path) -> std::io::Result<String>,
) -> Result<Translation, Vec<Mistake>> {
    let document = hcl::parse(text).map_err(|error| {
        vec![Mistake { file: file.to_owned(), place: Some(error.place), message: error.message }]
    })?;
    let translation = Translation {
        text: String::new(),
        carried: 0,
        left: Vec::new(),
        moot: Vec::new(),
        notes: Vec::new(),
    };
    let mut import =
        Import { table, read, found: Vec::new(), settings: Vec::new(), translation, mistakes: Vec::new() };
    let (plugins, rest): (Vec<_>, Vec<_>) =
        document.items.into_iter().partition(|item| item.key.eq_ignore_ascii_case("plugins"));
    import.walk(file, &mut Vec::new(), &[&Object { items: rest }], false);
    import.plugins(file, &plugins);
    (table.compose)(&mut import);
    import.finish(file)
}

impl Import<'_> {
    fn row(&self, path: &[String]) -> Option<&'static Row> {
        self.table.rows.iter().find(|row| fits(row.setting, path, false))
    }

    fn leads_to_rows(&self, path: &[String]) -> bool {
        self.table.rows.iter().any(|row| fits(row.setting, path, true))
    }

    /// Everything below `path`. Where SPIRE ignores unknown keys, `lenient`, they are noted and no mistake.
    fn walk(&mut self, file: &str, path: &mut Vec<String>, objects: &[&Object], lenient: bool) {
        let mut done: Vec<&str> = Vec::new();
        for item in objects.iter().flat_map(|object| &object.items) {
            if done.iter().any(|key| key.eq_ignore_ascii_case(&item.key)) {
                continue;
            }
            done.push(&item.key);
            let items: Vec<&Item> = objects.iter().flat_map(|object| object.all(&item.key)).collect();
            path.push(item.key.clone());
            let below = self.leads_to_rows(path);
            // Rows below this very key say more than one that fits any key.
            let row = self.row(path);
            let block = row.is_some_and(|row| matches!(row.carry, Carry::Block));
            if let Some(row) = row.filter(|row| !(block || below && row.setting.ends_with('*'))) {
                self.apply(file, row.carry, path, &items);
            } else if below || block {
                if let Some(item) = items.iter().find(|item| item.value.objects().is_some()).filter(|_| block)
                {
                    self.found(file, path, item.place, Kind::Bool(true), item.place);
                }
                self.below(file, path, &items, lenient);
            } else if lenient {
                let why = "SPIRE ignores this key, and so do we";
                self.remark(file, Some(item.place), path, Some(&item.value), why, Kept::Moot);
            } else {
                self.mistake(file, Some(item.place), path, "SPIRE has no such setting");
            }
            path.pop();
        }
    }

    fn found(&mut self, file: &str, path: &[String], place: Place, kind: Kind, value: Place) {
        let value = Value { place: value, kind };
        self.found.push(Found {
            path: path.join("."),
            keys: path.to_vec(),
            file: file.to_owned(),
            place,
            value,
        });
    }

    fn below(&mut self, file: &str, path: &mut Vec<String>, items: &[&Item], lenient: bool) {
        let mut objects = Vec::new();
        for item in items {
            match item.value.objects() {
                Some(more) => objects.extend(more),
                // An empty list is no block at all.
                None if item.value.kind == Kind::List(Vec::new()) => {}
                None => self.mistake(file, Some(item.value.place), path, "must be a block in braces"),
            }
        }
        self.walk(file, path, &objects, lenient);
    }

    fn apply(&mut self, file: &str, carry: Carry, path: &[String], items: &[&Item]) {
        let Some(last) = items.last() else { return };
        let value = together(items);
        let place = last.place;
        if items.len() > 1
            && matches!(value.kind, Kind::Text(_) | Kind::Integer(_) | Kind::Float(_) | Kind::Bool(_))
        {
            let why = format!("stands {} times in the file; the last one counts, as for SPIRE", items.len());
            self.remark(file, Some(place), path, None, &why, Kept::Note);
        }
        match carry {
            Carry::Left(_) if is_off(&value.kind) => {
                let why = "it is switched off in SPIRE's file";
                self.remark(file, Some(place), path, Some(&value), why, Kept::Moot);
            }
            Carry::Left(why) => {
                self.remark(file, Some(place), path, Some(&value), why, Kept::Left);
                self.found(file, path, place, value.kind, value.place);
            }
            Carry::Moot(why) => self.remark(file, Some(place), path, Some(&value), why, Kept::Moot),
            Carry::Used | Carry::Block => {
                self.translation.carried += 1;
                self.found(file, path, place, value.kind, value.place);
            }
            Carry::To(form, key) => match form.write(&value) {
                Ok(Some(written)) => {
                    self.translation.carried += 1;
                    let from = Some((file.to_owned(), value.place, path.join(".")));
                    self.settings.push(Setting { key: key.to_owned(), value: written, comment: None, from });
                }
                Ok(None) => {
                    let why = "it means the default, which is the same";
                    self.remark(file, Some(place), path, Some(&value), why, Kept::Moot);
                }
                Err(message) => self.mistake(file, Some(value.place), path, &message),
            },
        }
    }

    /// `plugins { <type> "<name>" { plugin_cmd, plugin_args, plugin_checksum, plugin_data, plugin_data_file, enabled } }`
    fn plugins(&mut self, file: &str, items: &[Item]) {
        let mut seen: Vec<(String, String)> = Vec::new();
        for kinds in items {
            let path = ["plugins".to_owned()];
            let Some(objects) = kinds.value.objects() else {
                self.mistake(file, Some(kinds.value.place), &path, "must be a block in braces");
                continue;
            };
            for kind in objects.into_iter().flat_map(|object| &object.items) {
                let path = ["plugins".to_owned(), kind.key.clone()];
                if !self.leads_to_rows(&path) {
                    self.mistake(file, Some(kind.place), &path, "SPIRE has no such kind of plugins");
                    continue;
                }
                let Some(named) = kind.value.objects() else {
                    self.mistake(
                        file,
                        Some(kind.value.place),
                        &path,
                        "must be a block with the plugin's name",
                    );
                    continue;
                };
                for plugin in named.into_iter().flat_map(|object| &object.items) {
                    let path = ["plugins".to_owned(), kind.key.clone(), plugin.key.clone()];
                    let pair = (kind.key.clone(), plugin.key.clone());
                    if seen.contains(&pair) {
                        self.mistake(file, Some(plugin.place), &path, "this plugin is declared twice");
                        continue;
                    }
                    seen.push(pair);
                    self.plugin(file, &path, plugin);
                }
            }
        }
    }

    fn plugin(&mut self, file: &str, path: &[String], plugin: &Item) {
        let Some(objects) = plugin.value.objects() else {
            return self.mistake(file, Some(plugin.value.place), path, "must be a block in braces");
        };
        let (mut data, mut data_file, mut external, mut enabled) = (Vec::new(), None, false, true);
        for item in objects.iter().flat_map(|object| &object.items) {
            match item.key.to_ascii_lowercase().as_str() {
                "plugin_data" => data.push(item),
                "plugin_data_file" => data_file = Some(item),
                "plugin_cmd" => external = !is_off(&item.value.kind),
                "plugin_checksum" | "plugin_args" => {}
                "enabled" => match truth(&item.value) {
                    Ok(value) => enabled = value,
                    Err(message) => self.mistake(file, Some(item.value.place), path, &message),
                },
                // SPIRE ignores other keys here.
                _ => {
                    let mut path = path.to_vec();
                    path.push(item.key.clone());
                    let why = "SPIRE ignores this key, and so do we";
                    self.remark(file, Some(item.place), &path, Some(&item.value), why, Kept::Moot);
                }
            }
        }
        let place = Some(plugin.place);
        if !enabled {
            return self.remark(file, place, path, None, "it is switched off in SPIRE's file", Kept::Moot);
        }
        if external {
            let why = "it is a program of its own, and plugins of that kind are not loaded: see whether a built-in one does \
                       the same";
            return self.remark(file, place, path, None, why, Kept::Left);
        }
        if let (Some(item), false) = (data_file, data.is_empty()) {
            return self.mistake(file, Some(item.place), path, "has both plugin_data and plugin_data_file");
        }
        match self.row(path).map(|row| row.carry) {
            Some(Carry::Left(why)) => {
                self.remark(file, place, path, Some(&plugin.value), why, Kept::Left);
            }
            Some(Carry::Moot(why)) => self.remark(file, place, path, None, why, Kept::Moot),
            Some(Carry::To(..) | Carry::Used | Carry::Block) => {
                self.translation.carried += 1;
                self.found(file, path, plugin.place, Kind::Bool(true), plugin.place);
                let mut path = path.to_vec();
                match data_file {
                    None => self.below(file, &mut path, &data, true),
                    Some(item) => self.plugin_data_file(file, &mut path, item),
                }
            }
            None => self.mistake(file, place, path, "there is no row for this plugin"),
        }
    }

    fn plugin_data_file(&mut self, file: &str, path: &mut Vec<String>, item: &Item) {
        let Kind::Text(name) = &item.value.kind else {
            return self.mistake(file, Some(item.value.place), path, "plugin_data_file must be a path");
        };
        let text = match (self.read)(Path::new(name)) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("plugin_data_file {name:?} cannot be read: {error}");
                return self.mistake(file, Some(item.value.place), path, &message);
            }
        };
        match hcl::parse(&text) {
            Ok(object) => self.walk(name, path, &[&object], true),
            Err(error) => self.mistakes.push(Mistake {
                file: name.clone(),
                place: Some(error.place),
                message: error.message,
            }),
        }
    }

    fn mistake(&mut self, file: &str, place: Option<Place>, path: &[String], message: &str) {
        let message = format!("{}: {message}", path.join("."));
        self.mistakes.push(Mistake { file: file.to_owned(), place, message });
    }

    fn remark(
        &mut self,
        file: &str,
        place: Option<Place>,
        path: &[String],
        value: Option<&Value>,
        why: &str,
        kept: Kept,
    ) {
        let secret = path.last().is_some_and(|key| output::is_secret(key));
        let remark = Remark {
            file: file.to_owned(),
            place,
            setting: path.join("."),
            value: value.map(|value| output::shown(value, secret)),
            why: why.to_owned(),
        };
        match kept {
            Kept::Left => self.translation.left.push(remark),
            Kept::Moot => self.translation.moot.push(remark),
            Kept::Note => self.translation.notes.push(remark),
        }
    }

    fn find(&self, setting: &str) -> Option<&Found> {
        self.found.iter().find(|found| found.path.eq_ignore_ascii_case(setting))
    }

    /// Whether the file has this setting, or this plugin.
    pub fn has(&self, setting: &str) -> bool {
        self.find(setting).is_some()
    }

    /// Whether a setting is written as a block where a value may stand as well.
    pub fn is_block(&self, setting: &str) -> bool {
        self.find(setting).is_some_and(|found| found.value.objects().is_some())
    }

    /// What stands in the file where the pattern ends: of `a.*`, the keys of the blocks in `a` that compose can ask for.
    pub fn names(&self, pattern: &str) -> Vec<String> {
        let fitting = self.found.iter().filter(|found| fits(pattern, &found.keys, false));
        fitting.filter_map(|found| found.keys.last().cloned()).collect()
    }

    /// The value of a [`Carry::Used`] setting; a value of the wrong kind is noted as a mistake and gives `None`, as an
    /// empty text does, which for SPIRE is no value.
    pub fn value(&mut self, setting: &str, form: Form) -> Option<Toml> {
        let found = self.find(setting)?;
        match form.write(&found.value) {
            Ok(value) => value.filter(|value| value.as_str() != Some("")),
            Err(message) => {
                let (file, place) = (found.file.clone(), found.value.place);
                self.mistake(&file, Some(place), &[setting.to_owned()], &message);
                None
            }
        }
    }

    /// A text; see [`Self::value`].
    pub fn text(&mut self, setting: &str) -> Option<String> {
        self.value(setting, Form::Text).and_then(|value| value.as_str().map(str::to_owned))
    }

    /// A truth value; see [`Self::value`].
    pub fn bool(&mut self, setting: &str) -> Option<bool> {
        self.value(setting, Form::Bool).and_then(|value| value.as_bool())
    }

    /// A whole number; see [`Self::value`].
    pub fn integer(&mut self, setting: &str) -> Option<i64> {
        self.value(setting, Form::Integer).and_then(|value| value.as_integer())
    }

    /// Whether a key of ours has been given a value.
    pub fn is_set(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.key == key)
    }

    /// The value that a key of ours has been given.
    pub fn set_value(&self, key: &str) -> Option<&Toml> {
        self.settings.iter().find(|setting| setting.key == key).map(|setting| &setting.value)
    }

    /// Writes a key of ours; `from` is the setting of SPIRE that a refusal of the value is reported at.
    pub fn set(&mut self, key: &str, value: impl Into<Toml>, from: &str, comment: Option<&str>) {
        let from = self.find(from).map(|found| (found.file.clone(), found.value.place, found.path.clone()));
        self.settings.push(Setting {
            key: key.to_owned(),
            value: value.into(),
            comment: comment.map(str::to_owned),
            from,
        });
    }

    /// Writes a table that is meant to be there although nothing stands in it.
    pub fn set_table(&mut self, key: &str, from: &str, comment: Option<&str>) {
        self.set(key, toml::Table::new(), from, comment);
    }

    /// Writes a key of ours unless it has a value: a default of SPIRE's.
    pub fn default(&mut self, key: &str, value: impl Into<Toml>) {
        if !self.is_set(key) {
            self.set(key, value, "", None);
        }
    }

    /// Says that a [`Carry::Used`] setting could not be carried after all.
    pub fn left(&mut self, setting: &str, why: &str) {
        self.say(setting, why, Kept::Left);
    }

    /// Says what is a little different from SPIRE.
    pub fn note(&mut self, setting: &str, why: &str) {
        self.say(setting, why, Kept::Note);
    }

    /// Says that nothing is lost with a [`Carry::Used`] setting.
    pub fn moot(&mut self, setting: &str, why: &str) {
        self.say(setting, why, Kept::Moot);
    }

    fn say(&mut self, setting: &str, why: &str, kept: Kept) {
        let found = self.find(setting).map(|found| (found.file.clone(), found.place, found.value.clone()));
        let path: Vec<String> = setting.split('.').map(str::to_owned).collect();
        if found.is_some() && kept != Kept::Note {
            self.translation.carried = self.translation.carried.saturating_sub(1);
        }
        match found {
            Some((file, place, value)) => self.remark(&file, Some(place), &path, Some(&value), why, kept),
            None => self.remark("", None, &path, None, why, kept),
        }
    }

    /// Says that SPIRE would refuse the file. What is missing is reported at the block in which it is missing.
    pub fn refuse(&mut self, setting: &str, message: &str) {
        let mut known = setting;
        let (file, place) = loop {
            match (self.find(known), known.rsplit_once('.')) {
                (Some(found), _) => break (found.file.clone(), Some(found.value.place)),
                (None, Some((above, _))) => known = above,
                (None, None) => break (String::new(), None),
            }
        };
        self.mistake(&file, place, &[setting.to_owned()], message);
    }

    fn finish(mut self, file: &str) -> Result<Translation, Vec<Mistake>> {
        let named = |name: &mut String| {
            if name.is_empty() {
                file.clone_into(name);
            }
        };
        self.mistakes.iter_mut().for_each(|mistake| named(&mut mistake.file));
        let translation = &mut self.translation;
        for remark in translation.left.iter_mut().chain(&mut translation.moot).chain(&mut translation.notes) {
            named(&mut remark.file);
        }
        let text = output::write(self.table, file, &self.settings, &self.translation);
        if self.mistakes.is_empty()
            && let Err(error) = (self.table.validate)(&text)
        {
            self.mistakes = refusals(file, &self.settings, error);
        }
        if self.mistakes.is_empty() {
            self.translation.text = text;
            return Ok(self.translation);
        }
        self.mistakes.sort_by_key(|mistake| mistake.place);
        Err(self.mistakes)
    }
}

/// What our validation says of the result, at the places in SPIRE's file where the values come from.
fn refusals(file: &str, settings: &[Setting], error: ConfigError) -> Vec<Mistake> {
    let ConfigError::Invalid { problems, .. } = error else {
        return vec![Mistake { file: file.to_owned(), place: None, message: error.to_string() }];
    };
    problems
        .into_iter()
        .map(|problem| {
            let from = settings
                .iter()
                .find(|setting| {
                    problem
                        .key
                        .strip_prefix(&setting.key.replace('"', ""))
                        .is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
                })
                .and_then(|setting| setting.from.as_ref());
            match from {
                Some((file, place, setting)) => Mistake {
                    file: file.clone(),
                    place: Some(*place),
                    message: format!("{setting}, here {}: {}", problem.key, problem.message),
                },
                None => Mistake {
                    file: file.to_owned(),
                    place: None,
                    message: format!("{}: {}", problem.key, problem.message),
                },
            }
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Left,
    Moot,
    Note,
}

/// Whether the pattern is the path, or, if `longer`, goes on below it.
fn fits(pattern: &str, path: &[String], longer: bool) -> bool {
    let mut parts = pattern.split('.');
    let begins =
        path.iter().all(|key| parts.next().is_some_and(|part| part == "*" || part.eq_ignore_ascii_case(key)));
    begins && parts.next().is_some() == longer
}

/// Repeated lists and blocks are joined, of all else the last one counts: so does SPIRE.
fn together(items: &[&Item]) -> Value {
    let lists: Option<Vec<&[Value]>> = items
        .iter()
        .map(|item| match &item.value.kind {
            Kind::List(values) => Some(values.as_slice()),
            Kind::Object(_) => Some(std::slice::from_ref(&item.value)),
            _ => None,
        })
        .collect();
    let last = items.last().map(|item| item.value.clone());
    match (lists, last) {
        (Some(lists), Some(last)) if lists.len() > 1 => {
            Value { place: last.place, kind: Kind::List(lists.into_iter().flatten().cloned().collect()) }
        }
        (_, Some(last)) => last,
        (_, None) => Value { place: Place { line: 1, column: 1 }, kind: Kind::List(Vec::new()) },
    }
}

/// Whether a value says what holds without it.
fn is_off(kind: &Kind) -> bool {
    match kind {
        Kind::Bool(value) => !value,
        Kind::Text(text) => text.is_empty() || text == "false",
        Kind::Integer(number) => *number == 0,
        Kind::List(values) => values.is_empty(),
        Kind::Float(_) | Kind::Object(_) => false,
    }
}

fn truth(value: &Value) -> Result<bool, String> {
    match &value.kind {
        Kind::Bool(value) => Ok(*value),
        Kind::Integer(0) => Ok(false),
        Kind::Integer(1) => Ok(true),
        // What SPIRE reads as a truth value.
        Kind::Text(text) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(format!("{text:?} is not true or false")),
        },
        _ => Err("must be true or false".to_owned()),
    }
}

fn text(value: &Value) -> Result<String, String> {
    match &value.kind {
        Kind::Text(text) => Ok(text.clone()),
        Kind::Integer(number) => Ok(number.to_string()),
        _ => Err("must be a text in double quotes".to_owned()),
    }
}

fn table(keys: &[(&str, Form)], object: &Object) -> Result<Toml, String> {
    let mut table = toml::Table::new();
    for item in &object.items {
        let known = keys.iter().find(|(key, _)| key.eq_ignore_ascii_case(&item.key));
        let (key, form) =
            known.ok_or_else(|| format!("SPIRE has no such setting as {:?} there", item.key))?;
        if table.contains_key(*key) {
            continue;
        }
        let items: Vec<&Item> = object.all(key).collect();
        if let Some(value) = form.write(&together(&items)).map_err(|message| format!("{key}: {message}"))? {
            table.insert((*key).to_owned(), value);
        }
    }
    Ok(Toml::Table(table))
}

impl Form {
    /// The value in our form; `None` when it says nothing.
    fn write(self, value: &Value) -> Result<Option<Toml>, String> {
        Ok(Some(match self {
            Self::Text => Toml::String(text(value)?),
            Self::Lower => Toml::String(text(value)?.to_ascii_lowercase()),
            Self::Bool => Toml::Boolean(truth(value)?),
            Self::Integer => Toml::Integer(match &value.kind {
                Kind::Integer(number) => *number,
                Kind::Text(text) => text.parse().map_err(|_| format!("{text:?} is not a whole number"))?,
                _ => return Err("must be a whole number".to_owned()),
            }),
            Self::Texts => match &value.kind {
                Kind::List(values) => Toml::Array(
                    values.iter().map(|value| text(value).map(Toml::String)).collect::<Result<_, _>>()?,
                ),
                _ => return Err("must be a list of texts in brackets".to_owned()),
            },
            Self::Tables(keys) => {
                let none = value.kind == Kind::List(Vec::new());
                let objects =
                    value.objects().or_else(|| none.then(Vec::new)).ok_or("must be blocks in braces")?;
                Toml::Array(objects.into_iter().map(|object| table(keys, object)).collect::<Result<_, _>>()?)
            }
            Self::Duration => {
                let text = text(value)?;
                if text.is_empty() {
                    return Ok(None);
                }
                match go_duration::parse(&text)? {
                    duration if duration.is_zero() => return Ok(None),
                    duration => Toml::String(HumanDuration(duration).to_string()),
                }
            }
        }))
        .map(|value| value.filter(|value| value.as_str() != Some("")))
    }
}
