//! postgresql.conf: generated files against `pg_file_settings`, which tells how the server reads them.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use testbed::Node;

use super::{each_major, rows, runner, write};
use crate::setup::conf;
use crate::setup::files::Disk;
use crate::setup::version::Major;

/// A line as an administrator, or nobody in his right mind, might write it.
fn line() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("work_mem"),
        Just("Work_Mem"),
        Just("log_line_prefix"),
        Just("ARCHIVE_COMMAND"),
        Just("my.thing"),
        Just("wal_sender_timeout"),
        Just("_x.y9"),
    ];
    let quoted = prop::collection::vec(
        prop_oneof![
            "[a-zA-Z0-9 %#=,./-]{1,6}".prop_map(String::from),
            Just("''".to_owned()),
            Just("\\'".to_owned()),
            Just("\\\\".to_owned()),
            Just("\\n".to_owned()),
            Just("\\t".to_owned()),
            Just("\\q".to_owned()),
            "\\\\1[0-7]{0,3}",
            Just("é世".to_owned()),
            Just("\"".to_owned()),
        ],
        0..5,
    )
    .prop_map(|parts| format!("'{}'", parts.concat()));
    let unquoted = prop_oneof![
        "[a-z][a-z0-9_]{0,6}",
        "[0-9]{1,5}(kB|MB|min|s|)",
        "0x[0-9a-fA-F]{1,4}",
        "-?[0-9]{0,2}\\.[0-9]{0,2}(e[0-9])?",
        "[a-z][a-z0-9_.:/-]{0,6}",
        Just("on".to_owned()),
        Just("é".to_owned()),
    ];
    let odd = prop_oneof!["[-a-z0-9.+'\\\\ =#:/é]{1,8}"];
    let value = prop_oneof![4 => quoted, 4 => unquoted, 1 => odd];
    let equals = prop_oneof![
        Just(" = "),
        Just("="),
        Just(" "),
        Just("\t= "),
        Just("= "),
        Just("")
    ];
    let comment = prop_oneof![4 => Just(""), 1 => Just(" # ' comment"), 1 => Just("#glued")];
    let setting = (name, equals, value, comment)
        .prop_map(|(name, equals, value, comment)| format!("{name}{equals}{value}{comment}"));
    let include = prop_oneof![
        Just("include 'sub/one.conf'"),
        Just("include_dir='sub'"),
        Just("include_if_exists 'nowhere.conf'"),
        Just("Include = 'sub/../sub/one.conf' # again"),
        Just("include_dir 'sub/.'"),
    ];
    let broken = prop_oneof![
        Just("include 'nowhere.conf'"),
        Just("include 'main.conf'"),
        Just("include ''"),
        Just("include_dir 'nowhere'"),
        Just("work_mem = 1 MB"),
        Just("work_mem ="),
        Just("= 1"),
        Just("a b c"),
    ];
    let nothing = prop_oneof![
        Just(""),
        Just("   "),
        Just("# work_mem = '9MB"),
        Just("\t#")
    ];
    prop_oneof![
        20 => setting,
        2 => include.prop_map(str::to_owned),
        1 => broken.prop_map(str::to_owned),
        4 => nothing.prop_map(str::to_owned),
    ]
}

fn text(most: usize) -> impl Strategy<Value = String> {
    let end = prop_oneof![9 => Just("\n"), 1 => Just("\r\n")];
    (prop::collection::vec(line(), 0..most), end, any::<bool>()).prop_map(|(lines, end, last)| {
        let mut text = lines.join(end);
        if last {
            text.push_str(end);
        }
        text
    })
}

#[test]
fn settings_are_read_as_the_server_reads_them() {
    each_major(|node, major| {
        let data = node.data();
        node.append_conf("include 'gen/main.conf'");
        write(&data.join("gen/main.conf"), "");
        let node = node.started();
        node.query("alter system set work_mem = '7MB'");
        let errors = Cell::new(0);
        let outcome = runner(300).run(&(text(8), text(3), text(3)), |(main, one, two)| {
            // What includes the main file again would only show the same error many times over.
            let [one, two] = [one, two].map(|text| text.replace("include", "# include"));
            write(&data.join("gen/main.conf"), main);
            write(&data.join("gen/sub/one.conf"), one);
            write(&data.join("gen/sub/B.conf"), two);
            write(&data.join("gen/sub/.hidden.conf"), "broken broken broken\n");
            write(&data.join("gen/sub/README"), "broken broken broken\n");
            errors.set(errors.get() + u32::from(compare(&node, major)?));
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
        let errors = errors.get();
        println!("{errors} of 300 files are faulty");
        assert!(
            (10..290).contains(&errors),
            "the generator lost its way: {errors}"
        );
    });
}

/// Whether both find a fault, on the same line; else they must agree in everything.
fn compare(node: &Node, major: Major) -> Result<bool, TestCaseError> {
    let data = node.data();
    let seen = rows(node, "select * from pg_file_settings order by seqno");
    // A value that does not suit its setting is another matter: the reader knows nothing of types.
    let faulty = |row: &&serde_json::Value| {
        row["error"].as_str().is_some_and(|error| {
            error != "setting could not be applied"
                && !error.starts_with("unrecognized configuration parameter")
        })
    };
    let first_fault = seen.iter().find(faulty);
    let ours = match conf::read(&Disk, &data.join("postgresql.conf"), &data, major) {
        Ok(ours) => ours,
        Err(fault) => {
            let Some(row) = first_fault else {
                return Err(TestCaseError::fail(format!(
                    "no fault for the server: {fault:?}"
                )));
            };
            prop_assert_eq!(row["sourcefile"].as_str(), fault.place.file.to_str());
            // What is missing at the end of a last line without its line end, the server finds one line earlier.
            let text = std::fs::read_to_string(&fault.place.file).unwrap();
            let cut_short = !text.ends_with('\n') && fault.place.line == text.lines().count();
            let lines = [
                Some(fault.place.line as u64),
                (fault.place.line as u64).checked_sub(u64::from(cut_short)),
            ];
            prop_assert!(
                lines.contains(&row["sourceline"].as_u64()),
                "{:?}: {}",
                fault,
                row
            );
            return Ok(true);
        }
    };
    prop_assert!(first_fault.is_none(), "not found: {}", first_fault.unwrap());
    prop_assert_eq!(seen.len(), ours.0.len());
    let mut last_applied = BTreeMap::new();
    for (theirs, own) in seen.iter().zip(&ours.0) {
        prop_assert_eq!(
            theirs["name"].as_str().unwrap().to_ascii_lowercase(),
            own.name.clone()
        );
        prop_assert_eq!(
            theirs["setting"].as_str().unwrap(),
            String::from_utf8_lossy(&own.value)
        );
        prop_assert_eq!(
            theirs["sourcefile"].as_str().unwrap(),
            own.place.file.to_str().unwrap()
        );
        prop_assert_eq!(
            theirs["sourceline"].as_u64().unwrap(),
            own.place.line as u64
        );
        if theirs["applied"].as_bool().unwrap() {
            last_applied.insert(&own.name, own);
        }
    }
    // The view compares names letter by letter, and calls each spelling applied; of these the last one counts.
    for (name, own) in last_applied {
        prop_assert_eq!(ours.effective(name), Some(own));
    }
    Ok(false)
}

/// Every setting that the table names exists in the servers of the run, and those that it calls gone do not.
#[test]
fn the_table_of_versions_agrees_with_real_servers() {
    use crate::setup::version::{TABLE, Thing, wants};
    each_major(|node, major| {
        let node = node.started();
        for thing in [
            Thing::KeepWal,
            Thing::SlotBound,
            Thing::Slots,
            Thing::SocketDirectory,
            Thing::SlotSync,
            Thing::TriggerFile,
        ] {
            let names = TABLE
                .iter()
                .filter(|row| row.thing == thing)
                .filter_map(|row| row.value);
            for name in names {
                let exists = node.query(&format!(
                    "select count(*) from pg_settings where name = '{name}'"
                )) == "1";
                // Before 12 it belongs to recovery.conf, and is no setting of the server.
                let expected = wants(major, thing) == Some(name) && name != "trigger_file";
                assert_eq!(exists, expected, "{name} in {major}");
            }
        }
        let view = "select 1 from pg_views where viewname = 'pg_hba_file_rules'";
        assert!(wants(major, Thing::HbaView).is_some() && node.query(view) == "1");
    });
}
