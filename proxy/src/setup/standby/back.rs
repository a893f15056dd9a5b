//! The way back: what was moved aside returns to its place, and the standby's copy is moved aside in its stead. Nothing is
//! deleted but copies that never got their place.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::apply::{Journal, Stage, StandbyCopy};
use super::super::find::Cluster;
use super::super::passfile;
use super::super::server::runs;
use super::node::Node;
use super::place::{self, beside};
use super::upstream::Upstream;
use super::{backup, elsewhere, part, power};
use crate::problem::Problem;

/// A directory that was moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Moved {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
}

/// Stops the standby, and drops the slot that was made for it: it would keep WAL for nobody.
pub(crate) fn stop(directory: &Path, journal: &Journal, cluster: &Cluster) -> Result<(), Problem> {
    if runs(cluster) {
        eprintln!("stopping {}", cluster.label);
        power::stop(cluster)?;
    }
    let Some(slot) = journal.copy().and_then(|copy| copy.slot.as_ref()) else {
        return Ok(());
    };
    let passfile = directory.join(passfile::NAME);
    let dropped = Node::load(directory).map(|node| {
        let upstream = Upstream {
            psql: cluster.program("psql"),
            owner: cluster.owner.clone(),
            conninfo: node.conninfo(&node.role),
            passfile: passfile.exists().then_some(passfile),
        };
        (upstream.drop_slot(slot), node.upstream())
    });
    match dropped {
        Ok((Ok(()), upstream)) => eprintln!("dropped replication slot {slot} at {upstream}"),
        _ => eprintln!(
            "The primary could not be asked; if it has a slot {slot}, that keeps WAL there: SELECT pg_drop_replication_slot('{slot}')"
        ),
    }
    Ok(())
}

/// Takes away a copy that never got its place, and says whether there was one.
pub(crate) fn discard(journal: &mut Journal, data: &Path) -> Result<bool, Problem> {
    let unfinished = |copy: &&StandbyCopy| matches!(copy.stage, Stage::Copying | Stage::Copied);
    let Some(copy) = journal.copy().filter(unfinished).cloned() else {
        return Ok(false);
    };
    if copy.staging == data || !copy.staging.exists() {
        return Ok(false);
    }
    let parts = copy.made.iter().filter(|(path, _)| *path != copy.staging);
    for (path, _) in parts {
        backup::clear(path, &copy.made)?;
        part::remove_empty(path);
    }
    backup::clear(&copy.staging, &copy.made)?;
    part::remove_empty(&copy.staging);
    Ok(true)
}

/// Moves it all back. The last that went aside comes first, each step can be taken again, and no link of one data directory
/// ever leads into the other's parts.
pub(crate) fn bring_back(journal: &mut Journal, data: &Path) -> Result<Vec<Moved>, Problem> {
    let mut moved = Vec::new();
    let aside = journal.copy().map(|copy| copy.aside.clone());
    for directory in aside.iter().flatten().map(|(aside, _)| aside.as_path()) {
        part::sweep(directory);
    }
    part::sweep(data);
    while let Some(mut copy) = journal.copy().cloned() {
        let Some((aside, place)) = copy.aside.pop() else {
            break;
        };
        let old = copy.aside.iter().rev().find(|(_, place)| place == data);
        let mut go = |from: &Path, to: &Path| {
            place::rename(from, to)?;
            eprintln!("moved {} to {}", from.display(), to.display());
            moved.push(Moved {
                from: from.to_owned(),
                to: to.to_owned(),
            });
            Ok::<(), Problem>(())
        };
        if aside.exists() {
            if place.exists() {
                let free = free_name(&place);
                lead(data, &place, &free)?;
                go(&place, &free)?;
            }
            if let Some((old, _)) = old {
                lead(old, &aside, &place)?;
            }
            go(&aside, &place)?;
        }
        journal.note_copy(copy)?;
    }
    Ok(moved)
}

/// Leads the links of a data directory that lead to `from` to `to`.
fn lead(data: &Path, from: &Path, to: &Path) -> Result<(), Problem> {
    let links = elsewhere::links(data);
    let mut links = links.iter().filter(|(_, target)| target == from);
    links.try_for_each(|(link, _)| part::relink(link, to))
}

/// What a person types for the same, the server being stopped.
pub(crate) fn commands(copy: &StandbyCopy, data: &Path) -> Vec<String> {
    let quoted = |path: &Path| quote(&path.to_string_lossy());
    let mut commands = Vec::new();
    for (index, (aside, place)) in copy.aside.iter().enumerate().rev() {
        let before = copy.aside.get(..index).unwrap_or_default();
        let old = before.iter().rev().find(|(_, place)| place == data);
        let mut steps = Vec::new();
        let mut lead = |directory: &Path, from: &Path, to: &Path| {
            for (link, _) in elsewhere::links(directory)
                .iter()
                .filter(|(_, at)| at == from)
            {
                steps.push(format!("ln -sfn {} {}", quoted(to), quoted(link)));
            }
        };
        let free = free_name(place);
        if place != data {
            lead(data, place, &free);
        }
        if let Some((old, _)) = old {
            lead(old, aside, place);
        }
        if place.exists() {
            steps.push(format!("mv {} {}", quoted(place), quoted(&free)));
        }
        steps.push(format!("mv {} {}", quoted(aside), quoted(place)));
        commands.push(steps.join(" && "));
    }
    commands
}

fn free_name(place: &Path) -> PathBuf {
    let plain = beside(place, ".standby");
    let mut names = std::iter::once(plain.clone())
        .chain((2_u32..).map(|number| beside(place, &format!(".standby.{number}"))));
    names
        .find(|path| path.symlink_metadata().is_err())
        .unwrap_or(plain)
}

/// For a shell.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(quote("/srv/15/main.2"), "/srv/15/main.2");
        assert_eq!(quote("/srv/it's here"), r"'/srv/it'\''s here'");
    }

    /// A data directory with a tablespace, aside and in its place.
    fn moved(place: &Path) -> (Journal, StandbyCopy) {
        let (data, space) = (place.join("data"), place.join("space"));
        let (aside, space_aside) = (place.join("data.1"), place.join("space.1"));
        for (directory, space, name) in [(&data, &space, "new"), (&aside, &space_aside, "old")] {
            fs::create_dir_all(directory.join("pg_tblspc")).unwrap();
            fs::create_dir(space).unwrap();
            fs::write(directory.join(name), "").unwrap();
            fs::write(space.join(name), "").unwrap();
            std::os::unix::fs::symlink(space, directory.join("pg_tblspc/1")).unwrap();
        }
        let mut journal = Journal::open(&place.join("state")).unwrap();
        let copy = StandbyCopy {
            stage: Stage::Streamed,
            staging: place.join("data.new"),
            aside: vec![(aside, data), (space_aside, space)],
            slot: None,
            made: Vec::new(),
        };
        journal.note_copy(copy.clone()).unwrap();
        (journal, copy)
    }

    #[track_caller]
    fn is_back(place: &Path) {
        for (directory, name) in [("data", "old"), ("data.standby", "new")] {
            let directory = place.join(directory);
            assert!(directory.join(name).exists(), "{}", directory.display());
            let through_its_link = directory.join("pg_tblspc/1").join(name);
            assert!(through_its_link.exists(), "{}", directory.display());
        }
    }

    #[test]
    fn all_comes_back_by_itself_or_by_the_commands_that_are_shown() {
        let place = tempfile::tempdir().unwrap();
        let data = place.path().join("data");
        let (mut journal, _) = moved(place.path());
        assert_eq!(bring_back(&mut journal, &data).unwrap().len(), 4);
        is_back(place.path());

        let place = tempfile::tempdir().unwrap();
        let (_journal, copy) = moved(place.path());
        for command in commands(&copy, &place.path().join("data")) {
            let status = std::process::Command::new("sh")
                .args(["-c", &command])
                .status();
            assert!(status.unwrap().success(), "{command}");
        }
        is_back(place.path());
    }
}
