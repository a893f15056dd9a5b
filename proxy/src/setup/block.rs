//! The one marked block that `setup` puts into a file that belongs to somebody else: found, taken out, put in. Everything
//! outside the marks stays as it is, byte by byte, and new lines end as the others do.

/// Opens the block.
pub(crate) const BEGIN: &str = "# pgtlsproxy begin";
/// Closes it.
pub(crate) const END: &str = "# pgtlsproxy end";

/// What is wrong with a file's marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unpaired {
    /// The line of the mark that has no other, counted from one.
    pub(crate) line: usize,
}

/// The text without the block, if it has one; what was in it is gone.
pub(crate) fn without(text: &[u8]) -> Result<Vec<u8>, Unpaired> {
    let mut kept = Vec::with_capacity(text.len());
    let mut open = None;
    for (index, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let number = index + 1;
        match (line.trim_ascii(), open) {
            (mark, None) if mark == BEGIN.as_bytes() => open = Some(number),
            (mark, Some(_)) if mark == END.as_bytes() => open = None,
            (mark, _) if mark == END.as_bytes() || mark == BEGIN.as_bytes() => {
                return Err(Unpaired { line: number });
            }
            (_, None) => kept.extend(line),
            (_, Some(_)) => {}
        }
    }
    match open {
        None => Ok(kept),
        Some(line) => Err(Unpaired { line }),
    }
}

/// The block of a text, if it has one: where it begins, which is the same place without it, and what is in it.
pub(crate) fn find(text: &[u8]) -> Option<(usize, &[u8])> {
    let mut at = 0;
    let mut inside = None;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let next = at + line.len();
        match (line.trim_ascii(), inside) {
            (mark, None) if mark == BEGIN.as_bytes() => inside = Some((at, next)),
            (mark, Some((begin, first))) if mark == END.as_bytes() => {
                return Some((begin, text.get(first..at)?));
            }
            _ => {}
        }
        at = next;
    }
    None
}

/// The text with a block of these lines before the byte `at`, which must be the beginning of a line or the end of the
/// text. A last line without its line end gets one.
pub(crate) fn insert(text: &[u8], at: usize, lines: &[Vec<u8>]) -> Vec<u8> {
    let (before, after) = text.split_at(at.min(text.len()));
    let end_of_line = line_end(text);
    let mut new = before.to_vec();
    if !before.is_empty() && !before.ends_with(b"\n") {
        new.extend(end_of_line);
    }
    let begin = BEGIN.as_bytes();
    let inside = lines.iter().map(Vec::as_slice);
    for line in std::iter::once(begin).chain(inside).chain([END.as_bytes()]) {
        new.extend(line);
        new.extend(end_of_line);
    }
    new.extend(after);
    new
}

/// How the lines of a text end: as its first one does.
fn line_end(text: &[u8]) -> &'static [u8] {
    let first = text.split_inclusive(|byte| *byte == b'\n').next();
    if first.is_some_and(|line| line.ends_with(b"\r\n")) {
        b"\r\n"
    } else {
        b"\n"
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn marks_without_their_other_are_named() {
        for (text, line) in [
            ("a\n# pgtlsproxy begin\nb\n", 2),
            ("a\n# pgtlsproxy end\n", 2),
            (
                "# pgtlsproxy begin\n# pgtlsproxy begin\n# pgtlsproxy end\n",
                2,
            ),
        ] {
            assert_eq!(without(text.as_bytes()), Err(Unpaired { line }), "{text}");
        }
    }

    #[test]
    fn a_block_ends_its_lines_as_the_file_does() {
        let new = insert(b"a\r\nb\r\n", 3, &[b"x".to_vec()]);
        assert_eq!(
            new,
            b"a\r\n# pgtlsproxy begin\r\nx\r\n# pgtlsproxy end\r\nb\r\n"
        );
        let new = insert(b"a", 1, &[]);
        assert_eq!(new, b"a\n# pgtlsproxy begin\n# pgtlsproxy end\n");
    }

    proptest! {
        #[test]
        fn what_is_put_in_comes_out(lines in prop::collection::vec("[a-z #\\\\]{0,9}\r?\n", 0..6), at in 0_usize..7) {
            let text = lines.concat();
            let at = lines.iter().take(at).map(String::len).sum();
            let new = insert(text.as_bytes(), at, &[b"local all all peer".to_vec()]);
            prop_assert_eq!(without(&new), Ok(text.into_bytes()));
        }
    }
}
