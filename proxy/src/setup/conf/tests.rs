use proptest::prelude::*;

use super::super::files::memory::Memory;
use super::super::version::{V9_1, V9_3, V18};
use super::*;

fn value(line: &str) -> Result<Option<(String, String)>, &'static str> {
    let parsed = parse_line(line.as_bytes())?;
    Ok(parsed.map(|(name, value)| (name, String::from_utf8(value).unwrap())))
}

#[test]
fn lines_are_read_as_guc_file_l_reads_them() {
    for (line, name, expected) in [
        ("port = 5432", "port", "5432"),
        ("Port 5432", "port", "5432"),
        ("port=5432#glued", "port", "5432"),
        ("  search_path='a, \"b\"' # x\r", "search_path", "a, \"b\""),
        ("a'b'", "a", "b"),
        ("x = 'it''s \\x41\\101 \\q\\''", "x", "it's x41A q'"),
        ("x = '\\t\\n\\r\\\\'", "x", "\t\n\r\\"),
        ("wal_sender_timeout=0x7530", "wal_sender_timeout", "0x7530"),
        ("wal_sender_timeout = 10min", "wal_sender_timeout", "10min"),
        ("a = -1.5e3", "a", "-1.5e3"),
        ("log_directory = a/b", "log_directory", "a/b"),
        ("my.setting = on", "my.setting", "on"),
        ("ä = ö", "ä", "ö"),
        ("x = ''", "x", ""),
    ] {
        let expected = Some((name.to_owned(), expected.to_owned()));
        assert_eq!(value(line), Ok(expected), "{line}");
    }
    for line in ["", "   ", "# port = 1", "\t\r"] {
        assert_eq!(value(line), Ok(None), "{line}");
    }
    for line in [
        "port",
        "port =",
        "= 1",
        "port = 1 min",
        "a = 1.5GB",
        "a = a b",
        "a = a+b",
        "a/b = 1",
        "a = b.c",
        "a = 'open",
        "a = 'b' 'c'",
        "a = 'b\\",
        "1 = 2",
        "\u{feff}port = 1 2",
        "a == b",
        "a = '\\0'",
        "x = 'a'''b",
        "a.b.c = 1",
        "a = (",
    ] {
        assert!(value(line).is_err(), "{line}");
    }
}

#[test]
fn the_last_one_wins_over_all_that_is_included() {
    let files = Memory::of(&[
        (
            "/etc/pg/postgresql.conf",
            "port = 1\ninclude_dir 'conf.d'\nwork_mem = '1MB'\ninclude_if_exists = 'no.conf'\n",
        ),
        ("/etc/pg/conf.d/B.conf", "port = 2\nwork_mem = 2MB"),
        (
            "/etc/pg/conf.d/a.conf",
            "PORT = 3\ninclude '/etc/pg/more'\n",
        ),
        ("/etc/pg/conf.d/.hidden.conf", "port = 4\n"),
        ("/etc/pg/conf.d/c.txt", "port = 5\n"),
        ("/etc/pg/more", "wal_level = logical\n"),
        ("/data/postgresql.auto.conf", "wal_level = 'replica'\n"),
    ]);
    let at = |major| {
        read(
            &files,
            Path::new("/etc/pg/postgresql.conf"),
            Path::new("/data"),
            major,
        )
    };
    let settings = at(V18).unwrap();
    let effective = |name: &str| {
        let found = settings.effective(name).unwrap();
        format!("{} {}", String::from_utf8_lossy(&found.value), found.place)
    };
    assert_eq!(effective("port"), "3 /etc/pg/conf.d/a.conf line 1");
    assert_eq!(effective("work_mem"), "1MB /etc/pg/postgresql.conf line 3");
    assert_eq!(
        effective("wal_level"),
        "replica /data/postgresql.auto.conf line 1"
    );
    let settings = at(V9_3).unwrap();
    assert_eq!(settings.effective("wal_level").unwrap().value, b"logical");
    let settings = at(V9_1).unwrap();
    assert_eq!(
        settings.effective("port").unwrap().value,
        b"1",
        "9.1 has no include_dir"
    );
}

#[test]
fn a_line_that_is_not_understood_is_named() {
    for (text, expected) in [
        ("port = 1\nwork_mem = 1 MB\n", "/p line 2"),
        ("include 'missing'\n", "/p line 1"),
        ("\ninclude 'p'\n", "/p line 2"),
        ("include = ''\n", "/p line 1"),
    ] {
        let files = Memory::of(&[("/p", text)]);
        let fault = read(&files, Path::new("/p"), Path::new("/data"), V18).unwrap_err();
        assert_eq!(fault.place.to_string(), expected);
    }
    let endless = Memory::of(&[("/p", "include q"), ("/q", "include p")]);
    assert!(read(&endless, Path::new("/p"), Path::new("/data"), V9_1).is_err());
}

proptest! {
    #[test]
    fn what_is_quoted_is_read_back(value in prop::collection::vec(1_u8.., 0..80)) {
        let line = render(&[("primary_conninfo", &value)]);
        let line = line.strip_suffix(b"\n").unwrap();
        prop_assert_eq!(parse_line(line), Ok(Some(("primary_conninfo".to_owned(), value))));
    }

    #[test]
    fn no_line_makes_it_panic(line in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = parse_line(&line);
    }
}
