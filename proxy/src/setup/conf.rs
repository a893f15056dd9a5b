//! postgresql.conf and what it includes: which value a server takes, and from which line. The grammar is that of
//! PostgreSQL's guc-file.l (documentation, 19.1.2); postgresql.auto.conf and recovery.conf share it. Pure but for
//! [`Files`]; lines that it does not understand are reported with file and line, never skipped.

use std::path::{Path, PathBuf};

use protocol::escape::escape;

use super::files::{Files, NotUnderstood, Place, configuration_files, relative_to};
use super::version::{Major, Thing, V12, has};

/// guc-file.l gives up beyond this.
const DEEPEST_INCLUDE: usize = 10;

/// One `name = value`, as a server reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    /// In lower case: names are compared without it.
    pub(crate) name: String,
    /// Without quotes and escapes.
    pub(crate) value: Vec<u8>,
    pub(crate) place: Place,
}

/// All assignments in the order in which a server reads them. The last one wins.
#[derive(Debug, Default)]
pub(crate) struct Settings(pub(super) Vec<Assignment>);

impl Settings {
    /// What counts for a setting, if any file sets it.
    pub(crate) fn effective(&self, name: &str) -> Option<&Assignment> {
        self.0.iter().rfind(|assignment| assignment.name == name)
    }
}

/// Reads `postgresql.conf`, all that it includes, and last, if the major has one, `postgresql.auto.conf` of the data
/// directory.
pub(crate) fn read(
    files: &dyn Files,
    main: &Path,
    data_directory: &Path,
    major: Major,
) -> Result<Settings, NotUnderstood> {
    let mut settings = Settings::default();
    read_file(files, main, major, &mut settings, &mut Vec::new())?;
    let auto = data_directory.join("postgresql.auto.conf");
    if has(major, Thing::AutoConf) && files.read(&auto).is_ok() {
        read_file(files, &auto, major, &mut settings, &mut Vec::new())?;
    }
    Ok(settings)
}

/// `open` holds the files that are being read, outermost first.
fn read_file(
    files: &dyn Files,
    path: &Path,
    major: Major,
    settings: &mut Settings,
    open: &mut Vec<PathBuf>,
) -> Result<(), NotUnderstood> {
    let fault = |line, why: String| NotUnderstood::new(path, line, why);
    let text = files
        .read(path)
        .map_err(|error| fault(0, error.to_string()))?;
    open.push(path.to_owned());
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let number = index + 1;
        let Some((name, value)) = parse_line(line).map_err(|why| fault(number, why.to_owned()))?
        else {
            continue;
        };
        let Some(include) = Include::of(&name, major) else {
            settings.0.push(Assignment {
                name,
                value,
                place: Place {
                    file: path.to_owned(),
                    line: number,
                },
            });
            continue;
        };
        if value.is_empty() {
            return Err(fault(
                number,
                "it includes a file without a name".to_owned(),
            ));
        }
        // PostgreSQL counts depth from 12 on together with a file that includes itself; both end in an error.
        if open.len() > DEEPEST_INCLUDE {
            return Err(fault(
                number,
                "files include each other more than 10 deep".to_owned(),
            ));
        }
        let target = relative_to(path, &value, major);
        if major >= V12 && target == *path {
            return Err(fault(number, "the file includes itself".to_owned()));
        }
        let listed = match include {
            Include::Directory => configuration_files(files, &target)
                .map_err(|error| fault(number, format!("{}: {error}", shown(&target))))?,
            Include::File | Include::FileIfExists => vec![target],
        };
        for included in listed {
            if let Err(error) = files.read(&included) {
                match include {
                    Include::FileIfExists => continue,
                    _ => return Err(fault(number, format!("{}: {error}", shown(&included)))),
                }
            }
            read_file(files, &included, major, settings, open)?;
        }
    }
    open.pop();
    Ok(())
}

fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

#[derive(Clone, Copy)]
enum Include {
    File,
    FileIfExists,
    Directory,
}

impl Include {
    fn of(name: &str, major: Major) -> Option<Self> {
        match name {
            "include" => Some(Self::File),
            "include_if_exists" if has(major, Thing::IncludeIfExists) => Some(Self::FileIfExists),
            "include_dir" if has(major, Thing::IncludeDir) => Some(Self::Directory),
            _ => None,
        }
    }
}

/// One line without its line feed: nothing, or a name and its value.
pub(crate) fn parse_line(line: &[u8]) -> Result<Option<(String, Vec<u8>)>, &'static str> {
    let mut lexer = Lexer { rest: line };
    let Some(first) = lexer.next()? else {
        return Ok(None);
    };
    let Token::Name(name) = first else {
        return Err("a line must begin with the name of a setting");
    };
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let mut second = lexer.next()?;
    if matches!(second, Some(Token::Equals)) {
        second = lexer.next()?;
    }
    let value = match second {
        Some(Token::Name(text)) if !text.contains(&b'.') => text.to_vec(),
        Some(Token::Word(text)) => text.to_vec(),
        Some(Token::Quoted(text)) => unquote(text)?,
        // A qualified name is no value; guc-file.l's tokens say so.
        Some(Token::Name(_) | Token::Equals) => return Err("the value needs quotes"),
        None => return Err("the value is missing"),
    };
    match lexer.next()? {
        None => Ok(Some((name, value))),
        Some(_) => Err("there is more than one value; put quotes around it"),
    }
}

enum Token<'a> {
    /// An identifier, or two with a dot between.
    Name(&'a [u8]),
    /// Any other word that may stand unquoted as a value.
    Word(&'a [u8]),
    /// What stands between single quotes, still with its escapes.
    Quoted(&'a [u8]),
    Equals,
}

/// The longest of guc-file.l's patterns at each place, as flex chooses.
struct Lexer<'a> {
    rest: &'a [u8],
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>, &'static str> {
        while let [b' ' | b'\t' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
        match self.rest {
            [] | [b'#', ..] => Ok(None),
            [b'=', rest @ ..] => {
                self.rest = rest;
                Ok(Some(Token::Equals))
            }
            [b'\'', rest @ ..] => self.quoted(rest).map(Some),
            [first, ..] if is_letter(*first) => Ok(Some(self.word())),
            [b'0'..=b'9' | b'+' | b'-' | b'.', ..] => self.number().map(Some),
            _ => Err("a character that must stand in quotes"),
        }
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn quoted(&mut self, inside: &'a [u8]) -> Result<Token<'a>, &'static str> {
        let mut at = 0;
        loop {
            match inside.get(at..).unwrap_or_default() {
                [b'\\', _, ..] | [b'\'', b'\'', ..] => at += 2,
                [b'\'', ..] => {
                    self.take(at + 2);
                    return Ok(Token::Quoted(inside.get(..at).unwrap_or_default()));
                }
                [b'\\'] | [] => return Err("a quote that does not end on its line"),
                [_, ..] => at += 1,
            }
        }
    }

    fn word(&mut self) -> Token<'a> {
        let count = |test: fn(u8) -> bool, from: usize| {
            let rest = self.rest.get(from..).unwrap_or_default();
            rest.iter().take_while(|byte| test(**byte)).count()
        };
        let unquoted = count(
            |byte| is_letter_or_digit(byte) || b"-._:/".contains(&byte),
            0,
        );
        let mut name = count(is_letter_or_digit, 0);
        if self.rest.get(name) == Some(&b'.')
            && self.rest.get(name + 1).is_some_and(|byte| is_letter(*byte))
        {
            name += 1 + count(is_letter_or_digit, name + 1);
        }
        if name == unquoted {
            Token::Name(self.take(name))
        } else {
            Token::Word(self.take(unquoted))
        }
    }

    /// INTEGER with its unit, or REAL, whichever is longer.
    fn number(&mut self) -> Result<Token<'a>, &'static str> {
        let at = |index: usize| self.rest.get(index).copied().unwrap_or(b' ');
        let run = |from: usize, test: fn(&u8) -> bool| {
            let rest = self.rest.get(from..).unwrap_or_default();
            from + rest.iter().take_while(|byte| test(byte)).count()
        };
        let sign = usize::from(matches!(at(0), b'+' | b'-'));
        let digits = run(sign, u8::is_ascii_digit);
        let mut integer = 0;
        if digits > sign {
            integer = run(digits, u8::is_ascii_alphabetic);
        }
        if at(sign) == b'0' && at(sign + 1) == b'x' && at(sign + 2).is_ascii_hexdigit() {
            let hex = run(sign + 2, u8::is_ascii_hexdigit);
            integer = integer.max(run(hex, u8::is_ascii_alphabetic));
        }
        let mut real = 0;
        if at(digits) == b'.' {
            real = run(digits + 1, u8::is_ascii_digit);
            if matches!(at(real), b'e' | b'E') {
                let sign = real + 1 + usize::from(matches!(at(real + 1), b'+' | b'-'));
                let exponent = run(sign, u8::is_ascii_digit);
                if exponent > sign {
                    real = exponent;
                }
            }
        }
        match integer.max(real) {
            0 => Err("a character that must stand in quotes"),
            length => Ok(Token::Word(self.take(length))),
        }
    }
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_letter_or_digit(byte: u8) -> bool {
    is_letter(byte) || byte.is_ascii_digit()
}

/// What GUC_scanstr makes of the inside of a quoted value.
fn unquote(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut value = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b'\'' {
            // The lexer lets only pairs through.
            bytes.next();
            value.push(b'\'');
            continue;
        }
        if byte != b'\\' {
            value.push(byte);
            continue;
        }
        let plain = match bytes.next() {
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(digit @ b'0'..=b'7') => {
                let mut number = u32::from(digit - b'0');
                for _ in 0..2 {
                    let Some(digit) = bytes.next_if(|next| matches!(next, b'0'..=b'7')) else {
                        break;
                    };
                    number = number * 8 + u32::from(digit - b'0');
                }
                (number & 0xff) as u8
            }
            Some(other) => other,
            None => break,
        };
        if plain == 0 {
            return Err("a value cannot hold a zero byte");
        }
        value.push(plain);
    }
    if value.contains(&0) {
        return Err("a value cannot hold a zero byte");
    }
    Ok(value)
}

/// A value as it may stand in postgresql.conf or recovery.conf, whatever it holds but a zero byte. Quotes are doubled,
/// as ALTER SYSTEM writes them.
pub(crate) fn quote(value: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in value {
        match byte {
            b'\'' => quoted.extend(b"''"),
            b'\\' => quoted.extend(b"\\\\"),
            b'\n' => quoted.extend(b"\\n"),
            b'\r' => quoted.extend(b"\\r"),
            b'\t' => quoted.extend(b"\\t"),
            other => quoted.push(*other),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// `name = 'value'`, one a line.
pub(crate) fn render(settings: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in settings {
        text.extend(name.as_bytes());
        text.extend(b" = ");
        text.extend(quote(value));
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests;
