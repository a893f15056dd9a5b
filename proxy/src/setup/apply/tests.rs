use super::super::block;
use super::super::plan::FileChange;
use super::*;

pub(super) fn change(path: &Path, text: &str) -> FileChange {
    FileChange {
        path: path.to_owned(),
        new: text.as_bytes().to_vec(),
    }
}

pub(super) fn own() -> Rights {
    Rights {
        mode: 0o640,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
    }
}

#[test]
fn every_byte_and_mode_comes_back() {
    let place = tempfile::tempdir().unwrap();
    let (old, new) = (place.path().join("hba"), place.path().join("own.conf"));
    fs::write(&old, "first\r\n").unwrap();
    fs::set_permissions(&old, Permissions::from_mode(0o604)).unwrap();
    let state = place.path().join("state");
    for text in ["second\n", "third\n"] {
        let mut journal = Journal::open(&state).unwrap();
        journal.write(&change(&old, text), own()).unwrap();
        journal.write(&change(&new, text), own()).unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), text);
        assert_eq!(Rights::of(&old).unwrap().mode, 0o604);
        assert_eq!(Rights::of(&new).unwrap().mode, 0o640);
    }
    let undone = Journal::open(&state).unwrap().undone().unwrap();
    assert_eq!(
        undone,
        [Undone::Removed(new.clone()), Undone::Restored(old.clone())]
    );
    assert_eq!(fs::read_to_string(&old).unwrap(), "first\r\n");
    assert_eq!(Rights::of(&old).unwrap().mode, 0o604);
    assert!(!new.exists() && Journal::open(&state).unwrap().is_empty());
}

#[test]
fn what_others_changed_since_stays() {
    let place = tempfile::tempdir().unwrap();
    let (hba, own_file) = (place.path().join("hba"), place.path().join("own.conf"));
    fs::write(&hba, "a\n").unwrap();
    let with = |text: &str| {
        String::from_utf8(block::insert(text.as_bytes(), 0, &[b"ours".to_vec()])).unwrap()
    };
    let mut journal = Journal::open(&place.path().join("state")).unwrap();
    journal.write(&change(&hba, &with("a\n")), own()).unwrap();
    journal.write(&change(&own_file, "x = 1\n"), own()).unwrap();
    fs::write(&hba, with("a\n") + "theirs\n").unwrap();
    fs::write(&own_file, "x = 1\ntheirs = 2\n").unwrap();
    let undone = journal.undone().unwrap();
    assert_eq!(
        undone,
        [Undone::Left(own_file), Undone::BlockTaken(hba.clone())]
    );
    assert_eq!(fs::read_to_string(&hba).unwrap(), "a\ntheirs\n");
}

#[test]
fn a_change_of_others_between_two_runs_stays() {
    let place = tempfile::tempdir().unwrap();
    let hba = place.path().join("hba");
    let with = |text: &str| {
        String::from_utf8(block::insert(text.as_bytes(), 0, &[b"ours".to_vec()])).unwrap()
    };
    fs::write(&hba, "a\n").unwrap();
    let mut journal = Journal::open(&place.path().join("state")).unwrap();
    journal.write(&change(&hba, &with("a\n")), own()).unwrap();
    fs::write(&hba, with("a\n") + "theirs\n").unwrap();
    journal
        .write(&change(&hba, &with("a\ntheirs\n")), own())
        .unwrap();
    journal.undone().unwrap();
    assert_eq!(fs::read_to_string(&hba).unwrap(), "a\ntheirs\n");
}

#[test]
fn a_kill_before_the_file_was_replaced_is_undone_as_well() {
    let place = tempfile::tempdir().unwrap();
    let (hba, state) = (place.path().join("hba"), place.path().join("state"));
    fs::write(&hba, "a\n").unwrap();
    let mut journal = Journal::open(&state).unwrap();
    journal.write(&change(&hba, "b\n"), own()).unwrap();
    drop(journal);
    // As if the last step had not happened.
    fs::write(&hba, "a\n").unwrap();
    let undone = Journal::open(&state).unwrap().undone().unwrap();
    assert_eq!(undone, [Undone::Unchanged(hba)]);
}

#[test]
fn no_link_of_another_user_leads_root_to_its_own_files() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can be led astray");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (data, etc) = (place.path().join("data"), place.path().join("etc"));
    for directory in [&data, &etc] {
        fs::create_dir(directory).unwrap();
    }
    std::os::unix::fs::chown(&data, Some(65534), None).unwrap();
    let (hba, crontab) = (data.join("pg_hba.conf"), etc.join("crontab"));
    fs::write(&crontab, "root's\n").unwrap();
    std::os::unix::fs::symlink(&crontab, &hba).unwrap();
    let mut journal = Journal::open(&place.path().join("node/state")).unwrap();
    let refused = journal.write(&change(&hba, "his\n"), own()).unwrap_err();
    assert_eq!(refused.id, "G26");
    assert_eq!(fs::read_to_string(&crontab).unwrap(), "root's\n");
    assert!(journal.is_empty());
    fs::remove_file(&hba).unwrap();
    journal.write(&change(&hba, "ours\n"), own()).unwrap();
    // Root's own links are root's business.
    let link = etc.join("link");
    std::os::unix::fs::symlink(&crontab, &link).unwrap();
    journal.write(&change(&link, "ours\n"), own()).unwrap();
    assert_eq!(fs::read_to_string(&crontab).unwrap(), "ours\n");
}

#[test]
fn what_its_owner_cannot_read_is_neither_kept_nor_put_back() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root reads what others cannot");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (data, secret) = (place.path().join("data"), place.path().join("secret"));
    fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(65534), None).unwrap();
    let hba = data.join("pg_hba.conf");
    fs::write(&hba, "before\n").unwrap();
    let mut journal = Journal::open(&place.path().join("node/state")).unwrap();
    journal.write(&change(&hba, "ours\n"), own()).unwrap();
    // A second name of a file, where the kernel lets him make one; it looks as setup left his.
    fs::write(&secret, "ours\n").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(&hba).unwrap();
    fs::hard_link(&secret, &hba).unwrap();
    for refused in [
        journal.write(&change(&hba, "next\n"), own()).unwrap_err(),
        journal.undone().unwrap_err(),
    ] {
        assert!(refused.why.contains("cannot read it"), "{refused}");
    }
    assert_eq!(fs::read_to_string(&hba).unwrap(), "ours\n");
    let kept = fs::read_to_string(place.path().join("node/state/0.original"));
    assert_eq!(kept.unwrap(), "before\n");
}

#[test]
fn undo_writes_nowhere_that_another_user_has_led_to_since() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can be led astray");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (his, etc) = (place.path().join("his"), place.path().join("etc"));
    let data = his.join("data");
    fs::create_dir_all(&data).unwrap();
    fs::create_dir(&etc).unwrap();
    for directory in [&his, &data] {
        std::os::unix::fs::chown(directory, Some(65534), None).unwrap();
    }
    let hba = data.join("pg_hba.conf");
    fs::write(&hba, "before\n").unwrap();
    let mut journal = Journal::open(&place.path().join("node/state")).unwrap();
    journal.write(&change(&hba, "ours\n"), own()).unwrap();
    // He makes root's file look as setup left his, and leads the name of the directory there.
    fs::write(etc.join("pg_hba.conf"), "ours\n").unwrap();
    fs::rename(&data, his.join("old")).unwrap();
    std::os::unix::fs::symlink(&etc, &data).unwrap();
    assert_eq!(journal.undone().unwrap_err().id, "G26");
    let text = fs::read_to_string(etc.join("pg_hba.conf")).unwrap();
    assert_eq!(text, "ours\n");
    // Once it leads to his own again, the same journal puts it back.
    fs::remove_file(&data).unwrap();
    fs::rename(his.join("old"), &data).unwrap();
    assert_eq!(journal.undone().unwrap(), [Undone::Restored(hba.clone())]);
    assert_eq!(fs::read_to_string(&hba).unwrap(), "before\n");
}
