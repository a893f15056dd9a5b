//! The systemd timer that calls `pgtlsproxy renew`, and its service: written by `setup` and `join`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::directories::USUAL;

const SERVICE: &str = include_str!("pgtlsproxy-renew.service");
const TIMER: &str = include_str!("pgtlsproxy-renew.timer");
/// What the timer calls.
pub(crate) const SERVICE_UNIT: &str = "pgtlsproxy-renew.service";
/// What is to be enabled.
pub(crate) const TIMER_UNIT: &str = "pgtlsproxy-renew.timer";
/// Where an administrator's units are, and a package's.
const OWN: &str = "/etc/systemd/system";
const PACKAGED: &str = "/usr/lib/systemd/system";

/// The units that the usual node of a host with systemd lacks, or has otherwise, and what belongs in them. Changes of a
/// person stand in files beside them, which are left alone.
pub(crate) fn missing_units(directory: &Path) -> Vec<(PathBuf, String)> {
    let usual = directory == Path::new(USUAL) && Path::new("/run/systemd/system").is_dir();
    let Ok(program) = std::env::current_exe() else {
        return Vec::new();
    };
    let is_missing = |(path, text): &(PathBuf, String)| {
        fs::read_to_string(path).map_or(true, |now| now != *text)
    };
    if !usual || Path::new(PACKAGED).join(TIMER_UNIT).exists() {
        return Vec::new();
    }
    units(&program, directory)
        .into_iter()
        .filter(is_missing)
        .collect()
}

/// Whether systemd knows the timer.
pub(crate) fn timer_is_installed() -> bool {
    [OWN, PACKAGED]
        .map(|place| Path::new(place).join(TIMER_UNIT).exists())
        .contains(&true)
}

fn units(program: &Path, directory: &Path) -> [(PathBuf, String); 2] {
    let service = SERVICE
        .replace("@PROGRAM@", &program.display().to_string())
        .replace("@DIR@", &directory.display().to_string());
    [
        (Path::new(OWN).join(SERVICE_UNIT), service),
        (Path::new(OWN).join(TIMER_UNIT), TIMER.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_be_filled_in() {
        for (path, text) in units(Path::new("/usr/bin/pgtlsproxy"), Path::new(USUAL)) {
            assert!(
                !text.contains('@') || text.contains("~@privileged"),
                "{path:?}"
            );
            assert!(
                !text.contains("@PROGRAM@") && !text.contains("@DIR@"),
                "{text}"
            );
        }
    }
}
