use super::table::Row;
use super::*;

#[test]
fn versions_are_read_however_they_are_spelled() {
    for (text, expected) in [
        ("9.6", Some(V9_6)),
        ("9.6.24", Some(V9_6)),
        ("15", Some(V15)),
        ("15\n", Some(V15)),
        ("15.18 (Debian 15.18-0+deb12u1)", Some(V15)),
        ("18beta1", Some(V18)),
        ("8.4", None),
        ("9", None),
        ("", None),
        ("fifteen", None),
    ] {
        assert_eq!(text.parse().ok(), expected, "{text}");
    }
    assert_eq!(Major::of_number(90_603), Some(V9_6));
    assert_eq!(Major::of_number(100_023), Some(V10));
    assert_eq!(Major::of_number(180_004), Some(V18));
    for major in ALL {
        assert_eq!(major.to_string().parse(), Ok(major));
    }
}

/// The table as docs/setup.md shows it.
fn shown() -> String {
    let row = |row: &Row| {
        let value = row
            .value
            .map_or_else(|| "gone".to_owned(), |value| format!("`{value}`"));
        format!(
            "| {:?} | {} | {value} | {} |\n",
            row.thing, row.since, row.source
        )
    };
    TABLE.iter().map(row).collect()
}

#[test]
fn the_manual_shows_the_table() {
    let manual = include_str!("../../../../docs/setup.md");
    assert!(
        manual.contains(&shown()),
        "docs/setup.md must hold:\n{}",
        shown()
    );
}

#[test]
fn the_table_answers_for_each_major() {
    type Answers = [(Major, Option<&'static str>)];
    let cases: &[(Thing, &Answers)] = &[
        (
            Thing::KeepWal,
            &[
                (V9_1, Some("wal_keep_segments")),
                (V12, Some("wal_keep_segments")),
                (V13, Some("wal_keep_size")),
                (V18, Some("wal_keep_size")),
            ],
        ),
        (
            Thing::TriggerFile,
            &[
                (V11, Some("trigger_file")),
                (V12, Some("promote_trigger_file")),
                (V15, Some("promote_trigger_file")),
                (V16, None),
            ],
        ),
        (
            Thing::Slots,
            &[(V9_3, None), (V9_4, Some("max_replication_slots"))],
        ),
        (
            Thing::WalLevel,
            &[(V9_5, Some("hot_standby")), (V9_6, Some("replica"))],
        ),
        (
            Thing::StandbyMarker,
            &[(V11, Some("recovery.conf")), (V12, Some("standby.signal"))],
        ),
    ];
    for (thing, answers) in cases {
        for (major, expected) in *answers {
            assert_eq!(wants(*major, *thing), *expected, "{thing:?} of {major}");
        }
    }
    for pair in TABLE.windows(2) {
        let in_order = pair[0].thing != pair[1].thing || pair[0].since < pair[1].since;
        assert!(in_order, "{:?} since {}", pair[1].thing, pair[1].since);
    }
}

#[test]
fn pg_basebackup_is_called_with_what_it_knows() {
    let source = BackupSource {
        host: "/run/pgtlsproxy",
        port: 5442,
        user: "replicator",
        slot: Some("standby1"),
    };
    let end = |program, server| {
        let arguments = basebackup_arguments(program, server, source, "/d");
        assert!(
            !arguments
                .iter()
                .any(|argument| argument == "-R" || argument == "-d")
        );
        arguments.get(13..).unwrap_or_default().join(" ")
    };
    for (program, server, expected) in [
        (V9_1, V9_1, "-x"),
        (V9_2, V9_2, "-X stream"),
        (V9_3, V9_2, "-X fetch"),
        (V9_5, V9_5, "-X stream"),
        (V9_6, V9_6, "-X stream -S standby1"),
        (V18, V10, "-X stream -S standby1"),
    ] {
        assert_eq!(end(program, server), expected, "{program} of {server}");
    }
}
