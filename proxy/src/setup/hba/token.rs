//! The words of pg_hba.conf and pg_ident.conf, as hba.c cuts them (`next_token`, `next_field_expand`): logical lines
//! with their continuations, fields parted by blanks, lists within a field parted by commas. Each word knows the bytes
//! of the file that it stands on, so that it can be replaced and all else kept.

use std::ops::Range;
use std::path::Path;

use crate::setup::files::NotUnderstood;
use crate::setup::version::{Major, Thing, V14, V16, has};

/// Before 14 a longer line was cut into two.
const LONGEST_LINE: usize = 8_190;
/// Before 16 a longer word was an error.
const LONGEST_TOKEN: usize = 254;

/// One word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// Without its quotes.
    pub(crate) text: Vec<u8>,
    /// Whether it began with a quote, which makes a keyword a plain name.
    pub(crate) quoted: bool,
    /// Where it stands in the file, quotes and continuations included.
    pub(crate) span: Range<usize>,
}

impl Token {
    pub(crate) fn is_keyword(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword.as_bytes()
    }
}

/// One record with its fields; comments and blank lines have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Of its first physical line, counted from one.
    pub(crate) number: usize,
    /// All its physical lines with their line ends.
    pub(crate) span: Range<usize>,
    /// Each field is a list of at least one word.
    pub(crate) fields: Vec<Vec<Token>>,
}

/// A text as lines: together their spans are the whole text.
pub(crate) fn lines(file: &Path, text: &[u8], major: Major) -> Result<Vec<Line>, NotUnderstood> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut number = 1;
    while start < text.len() {
        let logical = Logical::read(text, start, has(major, Thing::HbaContinuation));
        let fault = |why: &str| NotUnderstood::new(file, number, why);
        if logical.ends_in_continuation {
            return Err(fault("the file ends in a line that `\\` continues"));
        }
        if logical.bytes.iter().any(|(byte, _)| *byte == 0) {
            return Err(fault("a zero byte"));
        }
        if major < V14 && logical.bytes.len() > LONGEST_LINE {
            return Err(fault("the line is too long for this version of PostgreSQL"));
        }
        let fields = fields(&logical.bytes);
        let mut tokens = fields.iter().flatten();
        if major < V16 && tokens.any(|token| token.text.len() > LONGEST_TOKEN) {
            return Err(fault("a word is too long for this version of PostgreSQL"));
        }
        let span = start..logical.end;
        start = span.end;
        let count = logical.physical_lines;
        found.push(Line {
            number,
            span,
            fields,
        });
        number += count;
    }
    Ok(found)
}

/// A line after its continuations were joined: its bytes, each with its place in the file.
struct Logical {
    bytes: Vec<(u8, usize)>,
    end: usize,
    physical_lines: usize,
    ends_in_continuation: bool,
}

impl Logical {
    fn read(text: &[u8], start: usize, continues: bool) -> Self {
        let mut logical = Self {
            bytes: Vec::new(),
            end: start,
            physical_lines: 0,
            ends_in_continuation: false,
        };
        // A backslash counts only beyond the last one that was taken away (hba.c, tokenize_auth_file).
        let mut joined_at = 0;
        loop {
            let rest = text.get(logical.end..).unwrap_or_default();
            let Some(physical) = rest.split_inclusive(|byte| *byte == b'\n').next() else {
                logical.ends_in_continuation = true;
                return logical;
            };
            let places = logical.end..;
            logical.bytes.extend(physical.iter().copied().zip(places));
            logical.end += physical.len();
            logical.physical_lines += 1;
            while matches!(logical.bytes.last(), Some((b'\n' | b'\r', _))) {
                logical.bytes.pop();
            }
            let backslash = matches!(logical.bytes.last(), Some((b'\\', _)));
            if !(continues && backslash && logical.bytes.len() > joined_at) {
                return logical;
            }
            logical.bytes.pop();
            joined_at = logical.bytes.len();
        }
    }
}

fn fields(line: &[(u8, usize)]) -> Vec<Vec<Token>> {
    let mut rest = line;
    let mut fields = Vec::new();
    while let Some(field) = next_field(&mut rest) {
        fields.push(field);
    }
    fields
}

/// One field: words with commas directly behind all but the last.
fn next_field(rest: &mut &[(u8, usize)]) -> Option<Vec<Token>> {
    let mut field = Vec::new();
    while let Some((token, comma)) = next_token(rest) {
        field.push(token);
        if !comma {
            break;
        }
    }
    (!field.is_empty()).then_some(field)
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

/// One word, and whether a comma ended it. Quotes may stand anywhere in it; two of them inside quotes are one.
fn next_token(rest: &mut &[(u8, usize)]) -> Option<(Token, bool)> {
    while let [(byte, _), after @ ..] = *rest
        && (is_blank(*byte) || *byte == b',')
    {
        *rest = after;
    }
    let start = rest.first().map(|(_, place)| *place)?;
    let mut token = Token {
        text: Vec::new(),
        quoted: false,
        span: start..start,
    };
    let (mut in_quotes, mut was_quote, mut saw_quote) = (false, false, false);
    while let [(byte, place), after @ ..] = *rest {
        match byte {
            byte if is_blank(*byte) && !in_quotes => break,
            b'#' if !in_quotes => {
                *rest = &[];
                break;
            }
            b',' if !in_quotes => {
                *rest = after;
                return Some((token, true));
            }
            b'"' => {
                if was_quote {
                    token.text.push(b'"');
                }
                was_quote = in_quotes && !was_quote;
                in_quotes = !in_quotes;
                saw_quote = true;
                token.quoted |= token.text.is_empty();
            }
            other => {
                token.text.push(*other);
                was_quote = false;
            }
        }
        token.span.end = place + 1;
        *rest = after;
    }
    (saw_quote || !token.text.is_empty()).then_some((token, false))
}

/// A name as one word that is nothing but that name; none if no such word exists.
pub(crate) fn quote(name: &str, major: Major) -> Option<String> {
    let fits = name.len() <= LONGEST_TOKEN || major >= V16;
    // A regular expression stays one, quoted or not (hba.c, regcomp_auth_token).
    let regex = has(major, Thing::HbaRegexAndInclude) && name.starts_with('/');
    if name.is_empty() || !fits || regex || name.contains(['\n', '\r', '\0']) {
        return None;
    }
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    let keyword = [
        "all",
        "sameuser",
        "samerole",
        "samegroup",
        "replication",
        "samehost",
        "samenet",
    ]
    .contains(&name);
    if plain && !keyword {
        return Some(name.to_owned());
    }
    // A backslash before the closing quote continues no line: the quote stands behind it.
    Some(format!("\"{}\"", name.replace('"', "\"\"")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::setup::version::{V13, V15, V18};

    fn words(text: &str, major: Major) -> Vec<String> {
        let lines = lines(Path::new("/h"), text.as_bytes(), major).unwrap();
        let shown = lines
            .iter()
            .filter(|line| !line.fields.is_empty())
            .map(|line| {
                let fields = line.fields.iter().map(|field| {
                    let tokens = field.iter().map(|token| {
                        let text = String::from_utf8_lossy(&token.text);
                        if token.quoted {
                            format!("<{text}>")
                        } else {
                            text.into_owned()
                        }
                    });
                    tokens.collect::<Vec<_>>().join("+")
                });
                format!("{} {}", line.number, fields.collect::<Vec<_>>().join(" "))
            });
        shown.collect()
    }

    #[test]
    fn words_are_cut_as_hba_c_cuts_them() {
        for (text, expected) in [
            ("local all all trust", vec!["1 local all all trust"]),
            ("\n# x\n  local\tall  all\r\n", vec!["3 local all all"]),
            ("a,b, c d", vec!["1 a+b+c d"]),
            ("a ,b", vec!["1 a b"]),
            (",,a,", vec!["1 a"]),
            ("\"a b\"\"c\" d#e", vec!["1 <a b\"c> d"]),
            ("a\"b c\"d", vec!["1 ab cd"]),
            ("\"\" x", vec!["1 <> x"]),
            ("\"a#b\" # \"", vec!["1 <a#b>"]),
            ("\"open all", vec!["1 <open all>"]),
            ("ldapprefix=\"cn=\"", vec!["1 ldapprefix=cn="]),
            ("a \\\n b\nc", vec!["1 a b", "3 c"]),
            ("# x \\\nlocal all\nb", vec!["3 b"]),
            ("a\\\n\\\nb", vec!["1 ab"]),
            ("a \\\r\nb", vec!["1 a b"]),
        ] {
            assert_eq!(words(text, V18), expected, "{text:?}");
        }
        assert_eq!(
            words("a \\\nb", V13),
            ["1 a \\", "2 b"],
            "before 14 nothing continues"
        );
        assert!(lines(Path::new("/h"), b"a\nb \\", V18).is_err());
        assert!(lines(Path::new("/h"), b"a\0", V18).is_err());
    }

    proptest! {
        #[test]
        fn lines_are_the_whole_text(text in "[a-z\"#,\\\\ \r\n]{0,80}") {
            if let Ok(lines) = lines(Path::new("/h"), text.as_bytes(), V18) {
                let mut end = 0;
                for line in &lines {
                    prop_assert_eq!(line.span.start, end);
                    end = line.span.end;
                    for token in line.fields.iter().flatten() {
                        prop_assert!(token.span.end <= line.span.end && token.span.start >= line.span.start);
                    }
                }
                prop_assert_eq!(end, text.len());
            }
        }

        #[test]
        fn a_quoted_name_is_that_name(name in "\\PC{1,20}", after in "[a-z]{1,3}") {
            for major in [V13, V15, V18] {
                let Some(word) = quote(&name, major) else { continue };
                let text = format!("local {word} {after}");
                let lines = lines(Path::new("/h"), text.as_bytes(), major).unwrap();
                let fields = &lines[0].fields;
                prop_assert_eq!(fields.len(), 3);
                prop_assert_eq!(&fields[1][0].text, &name.clone().into_bytes());
                let span = fields[1][0].span.clone();
                prop_assert_eq!(&text[span], &word);
            }
        }
    }
}
