//! What makes a server a standby, in words of its version: `standby.signal` and settings from 12 on, `recovery.conf`
//! before. Pure.

use super::super::conf;
use super::super::conninfo::Conninfo;
use super::super::version::{Major, Thing, V10, V12, wants};
use super::upstream::NOT_LOWER;

/// Where and as whom it follows.
#[derive(Debug)]
pub(super) struct Following<'a> {
    pub(super) major: Major,
    pub(super) conninfo: Conninfo,
    pub(super) slot: Option<&'a str>,
    /// A file that promotes, before 16.
    pub(super) trigger: String,
    /// Of the primary.
    pub(super) settings: &'a [(&'static str, String)],
}

impl Following<'_> {
    /// The file that says that it is a standby, and its content.
    pub(super) fn marker(&self) -> (&'static str, Vec<u8>) {
        let name = wants(self.major, Thing::StandbyMarker).unwrap_or("standby.signal");
        if self.major >= V12 {
            return (name, Vec::new());
        }
        let mut lines: Vec<(&str, String)> = vec![("standby_mode", "on".to_owned())];
        lines.extend(self.source());
        lines
            .extend(wants(self.major, Thing::TriggerFile).map(|name| (name, self.trigger.clone())));
        let pairs: Vec<(&str, &[u8])> = lines
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect();
        let mut text = b"# Written by `pgtlsproxy setup standby`.\n".to_vec();
        text.extend(conf::render(&pairs));
        (name, text)
    }

    /// Settings for our own file.
    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = Vec::new();
        if self.major >= V12 {
            settings.extend(self.source());
        }
        // A standby that cannot be asked cannot be seen to stream.
        if self.major < V10 {
            settings.push(("hot_standby", "on".to_owned()));
        }
        settings
    }

    /// Those of the primary that are higher here than `now`.
    pub(super) fn not_lower(
        &self,
        now: impl Fn(&str) -> Option<u64>,
    ) -> Vec<(&'static str, String)> {
        let higher = |(name, value): &(&'static str, String)| {
            let needed: u64 = value.parse().ok()?;
            let counts = self.major >= V12 || *name != "max_wal_senders";
            let here = now(name).unwrap_or_else(|| default(self.major, name));
            (counts && here < needed).then(|| (*name, value.clone()))
        };
        self.settings.iter().filter_map(higher).collect()
    }

    fn source(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![("primary_conninfo", self.conninfo.to_string())];
        settings.extend(self.slot.map(|slot| ("primary_slot_name", slot.to_owned())));
        if let Some(name) = wants(self.major, Thing::FollowTimeline) {
            settings.push((name, "latest".to_owned()));
        }
        settings
    }
}

/// What a server takes where no file says anything (documentation, 19.3 to 19.12).
pub(in super::super) fn default(major: Major, name: &str) -> u64 {
    match name {
        "max_connections" => 100,
        "max_worker_processes" => 8,
        "max_wal_senders" if major >= V10 => 10,
        "max_locks_per_transaction" => 64,
        _ => 0,
    }
}

/// The settings of [`NOT_LOWER`] as `pg_controldata` of the copy shows them: those of the primary.
pub(in super::super) fn of_controldata(text: &str) -> Vec<(&'static str, String)> {
    let value = |name: &str| {
        // `max_prepared_xacts setting:`, `max_locks_per_xact setting:`
        let shown = name
            .replace("transactions", "xacts")
            .replace("transaction", "xact");
        let line = text.lines().find_map(|line| {
            let (label, value) = line.split_once(" setting:")?;
            (label == shown).then_some(value.trim())
        })?;
        line.parse::<u64>().ok().map(|number| number.to_string())
    };
    NOT_LOWER
        .into_iter()
        .filter_map(|name| Some((name, value(name)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::documented::recovery_settings;
    use super::super::super::version::{ALL, V9_1, V9_4, V9_6, V11, V15, V18};
    use super::*;

    fn following(major: Major) -> Following<'static> {
        Following {
            major,
            conninfo: Conninfo::default()
                .with("host", "/run/pgtlsproxy")
                .with("user", "it's"),
            slot: (major >= V9_4).then_some("s"),
            trigger: "/run/promote".to_owned(),
            settings: &[],
        }
    }

    #[test]
    fn each_version_is_told_in_its_own_words() {
        let text = |major| String::from_utf8(following(major).marker().1).unwrap();
        let old =
            "standby_mode = 'on'\nprimary_conninfo = 'host=/run/pgtlsproxy user=''it\\\\''s'''\n";
        for major in ALL {
            let (name, content) = following(major).marker();
            if major >= V12 {
                assert_eq!((name, content.len()), ("standby.signal", 0), "{major}");
                let settings = following(major).settings();
                assert_eq!(settings[0].1, "host=/run/pgtlsproxy user='it\\'s'");
                assert_eq!(settings[1], ("primary_slot_name", "s".to_owned()));
                assert_eq!(settings.len(), 2, "{major}");
            } else {
                assert_eq!(name, "recovery.conf");
                assert!(text(major).contains(old), "{}", text(major));
                assert_eq!(text(major).contains("primary_slot_name"), major >= V9_4);
                if let Some(known) = recovery_settings(major) {
                    let text = text(major);
                    for line in text.lines().filter(|line| !line.starts_with('#')) {
                        let name = line.split(' ').next().unwrap();
                        assert!(known.contains(name), "{major} does not know {name}");
                    }
                }
                assert!(text(major).ends_with(
                    "recovery_target_timeline = 'latest'\ntrigger_file = '/run/promote'\n"
                ));
            }
        }
        assert_eq!(
            following(V9_6).settings(),
            [("hot_standby", "on".to_owned())]
        );
        assert_eq!(
            following(V9_1).settings(),
            [("hot_standby", "on".to_owned())]
        );
    }

    #[test]
    fn a_standby_has_no_less_than_its_primary() {
        let primary = [
            ("max_connections", "300".to_owned()),
            ("max_worker_processes", "8".to_owned()),
            ("max_wal_senders", "20".to_owned()),
        ];
        let of = |major| Following {
            settings: &primary,
            ..following(major)
        };
        let here = |name: &str| (name == "max_connections").then_some(200);
        let expected = vec![
            ("max_connections", "300".to_owned()),
            ("max_wal_senders", "20".to_owned()),
        ];
        assert_eq!(of(V18).not_lower(here), expected);
        assert_eq!(of(V15).not_lower(|_| Some(1000)), []);
        assert_eq!(of(V11).not_lower(here), expected[..1]);
    }

    #[test]
    fn controldata_tells_the_primarys_settings() {
        let text = "max_connections setting:              60\nmax_worker_processes setting:         8\n\
                    max_prepared_xacts setting:           3\nmax_locks_per_xact setting:           64\n";
        let found = of_controldata(text);
        let expected = [
            ("max_connections", "60"),
            ("max_worker_processes", "8"),
            ("max_prepared_transactions", "3"),
            ("max_locks_per_transaction", "64"),
        ];
        assert_eq!(
            found,
            expected.map(|(name, value)| (name, value.to_owned()))
        );
    }
}
