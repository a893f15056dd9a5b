//! Text of a peer made safe for a log, a terminal, or between double quotes.

/// The longest text that [`escape`] makes of a peer's bytes.
const MAX_SHOWN: usize = 256;

/// A peer's bytes as they may stand in a log, on a terminal or between double quotes: what is not UTF-8, controls
/// characters or text direction, or is invisible, is written as an escape; quotes and backslashes are, too, so that two
/// names never look the same. At most 256 bytes and three dots.
#[must_use]
pub fn escape(text: impl AsRef<[u8]>) -> String {
    let text = text.as_ref();
    // Nearly all names are such; below, each character is a string of its own.
    if text.len() <= MAX_SHOWN && text.iter().all(is_shown_as_it_is) {
        return String::from_utf8_lossy(text).into_owned();
    }
    let mut shown = String::new();
    for chunk in text.utf8_chunks() {
        let invalid = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}"));
        for piece in chunk.valid().chars().map(escape_char).chain(invalid) {
            if shown.len().saturating_add(piece.len()) > MAX_SHOWN {
                shown.push_str("...");
                return shown;
            }
            shown.push_str(&piece);
        }
    }
    shown
}

fn is_shown_as_it_is(byte: &u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

fn escape_char(c: char) -> String {
    match c {
        '"' | '\\' => format!("\\{c}"),
        '\n' => "\\n".into(),
        '\r' => "\\r".into(),
        '\t' => "\\t".into(),
        c if is_treacherous(c) => c.escape_unicode().to_string(),
        c => c.into(),
    }
}

/// Text for people that may quote what others wrote: characters that would play tricks on a terminal are written as
/// escapes, quotes and backslashes stay. At most `most` bytes and three dots.
#[must_use]
pub fn visible(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        let before = shown.len();
        if is_treacherous(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
        if shown.len() > most {
            shown.truncate(before);
            shown.push_str("...");
            break;
        }
    }
    shown
}

/// Control characters, and those that reorder, hide or break text without being seen.
#[must_use]
pub fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_for_people_keeps_its_quotes_and_has_an_end() {
        assert_eq!(visible("cn = \"a\"", 64), "cn = \"a\"");
        assert_eq!(visible("a\x1b[2J\nb", 64), "a\\u{1b}[2J\\u{a}b");
        assert_eq!(visible("abc", 3), "abc");
        assert_eq!(visible("ab\u{e4}", 3), "ab...");
        assert_eq!(visible("ab\n", 4), "ab...");
    }

    #[test]
    fn names_of_peers_cannot_play_tricks() {
        let cases: &[(&[u8], &str)] = &[
            (b"standby1", "standby1"),
            (b" ~", " ~"),
            (b"\x7f", "\\u{7f}"),
            ("st\u{e4}ndby".as_bytes(), "st\u{e4}ndby"),
            (b"a\nLOG:  fine", "a\\nLOG:  fine"),
            (b"\x1b[2J", "\\u{1b}[2J"),
            (b"a\xff\xfeb", "a\\xff\\xfeb"),
            (b"a\" \\", "a\\\" \\\\"),
            ("\u{202e}gpj.exe".as_bytes(), "\\u{202e}gpj.exe"),
            ("a\u{200b}b\u{2028}".as_bytes(), "a\\u{200b}b\\u{2028}"),
            (b"\0", "\\u{0}"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(escape(bytes), *shown);
        }
    }

    #[test]
    fn names_of_peers_are_cut() {
        assert_eq!(escape([b'a'; 256]).len(), 256);
        assert_eq!(escape([b'a'; 257]), "a".repeat(256) + "...");
        assert!(escape([0xff; 10_000]).len() <= MAX_SHOWN + 3);
    }
}
