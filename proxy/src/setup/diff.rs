//! What will change in a file, for people: a unified diff.

use std::path::Path;

use similar::TextDiff;

/// The change from `old` to `new`, in the form that `patch` takes; empty if there is none.
pub(crate) fn unified(path: &Path, old: Option<&[u8]>, new: &[u8]) -> String {
    let before = String::from_utf8_lossy(old.unwrap_or_default());
    let after = String::from_utf8_lossy(new);
    let name = path.display().to_string();
    let old_name = if old.is_some() {
        name.as_str()
    } else {
        "/dev/null"
    };
    TextDiff::from_lines(&*before, &*after)
        .unified_diff()
        .header(old_name, &name)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_shown_with_what_is_around_it() {
        let diff = unified(Path::new("/h"), Some(b"a\nb\nc\n"), b"a\nx\nb\nc\n");
        assert_eq!(diff, "--- /h\n+++ /h\n@@ -1,3 +1,4 @@\n a\n+x\n b\n c\n");
        assert_eq!(unified(Path::new("/h"), Some(b"a\n"), b"a\n"), "");
        assert!(unified(Path::new("/h"), None, b"a\n").starts_with("--- /dev/null\n+++ /h\n"));
    }
}
