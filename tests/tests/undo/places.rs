//! Data directories of which parts lie elsewhere: tablespaces, WAL, mount points, links.

use std::os::unix::fs::symlink;

use testbed::Disk;

use super::*;

/// The old server runs and has its data, and nothing lies beside.
#[track_caller]
fn is_untouched(standby: &Host) {
    assert_eq!(standby.node.query("select n from before"), "1");
    assert_eq!(beside(standby), [""; 0]);
}

#[test]
fn tablespaces_in_the_way_are_named_and_mapped_and_come_back() {
    for major in programs::majors() {
        println!("PostgreSQL {major}");
        let (primary, mut standby) = joined(major, &["--rewind"]);
        running(&mut standby);
        let (far, here) = (Scratch::new("far"), Scratch::new("here"));
        let make = |host: &Host, place: &Path| {
            let location = place.join("space");
            fs::create_dir(&location).unwrap();
            let mut chown = Command::new("chown");
            run(chown.arg("--reference").arg(place).arg(&location)).unwrap();
            let location = location.display().to_string();
            host.node
                .query(&format!("create tablespace space location '{location}'"));
            host.node
                .query("create table spread tablespace space as select 7 as n");
            location
        };
        let (at_primary, at_standby) = (make(&primary, far.path()), make(&standby, here.path()));
        let refused = standby.setup_standby(&["--replace"]).unwrap_err();
        for expected in [
            "[V20]",
            &at_primary,
            "--tablespace-mapping OLD=NEW",
            "space at /",
        ] {
            assert!(refused.contains(expected), "{expected}: {refused}");
        }
        is_untouched(&standby);
        assert_eq!(standby.node.query("select n from spread"), "7");
        assert!(!here.path().join("space.pgtlsproxy-new").exists());

        standby.node.query("update spread set n = 8");
        standby.node.stop(Stop::Fast);
        let before = (tree(&standby.node.data()), tree(here.path()));
        let mapping = format!("{at_primary}={at_standby}");
        let said = standby
            .setup_standby(&["--replace", "--tablespace-mapping", &mapping])
            .unwrap();
        assert!(said.contains("It streams"), "{said}");
        standby.node.catch_up_with(&primary.node);
        assert_eq!(standby.node.query("select n from spread"), "7");
        // The old directory is whole: its tablespace went with it.
        let aside = standby.node.socket_dir().join(&beside(&standby)[0]);
        let links = fs::read_dir(aside.join("pg_tblspc")).unwrap();
        let links: Vec<_> = links
            .map(|link| fs::read_link(link.unwrap().path()).unwrap())
            .collect();
        assert!(
            links[0]
                .to_string_lossy()
                .starts_with(&format!("{at_standby}.2")),
            "{links:?}"
        );

        let said = standby.undo_with(&["--bring-back"]).unwrap();
        same_tree(&tree(&standby.node.data()), &before.0);
        let mut now = tree(here.path());
        now.retain(|path, _| !path.starts_with("space.standby"));
        same_tree(&now, &before.1);
        standby.node.start();
        assert_eq!(standby.node.query("select n from spread"), "8", "{said}");
    }
}

#[test]
fn wal_elsewhere_stays_elsewhere_and_comes_back() {
    for major in programs::majors() {
        let Some(disk) = Disk::mount(400 << 10) else {
            println!("left out: nothing can be mounted here");
            return;
        };
        println!("PostgreSQL {major}");
        let (primary, mut standby) = joined(major, &[]);
        let (data, wal) = (standby.node.data(), disk.path().join("wal"));
        let pg_wal = data.join("pg_wal");
        run(Command::new("cp").arg("-a").arg(&pg_wal).arg(&wal)).unwrap();
        fs::remove_dir_all(&pg_wal).unwrap();
        symlink(&wal, &pg_wal).unwrap();
        run(Command::new("chown")
            .args(["-h", "--reference"])
            .arg(&data)
            .arg(&pg_wal))
        .unwrap();
        let before = (tree(&data), tree(&wal));
        let said = standby.setup_standby(&["--replace"]).unwrap();
        primary.node.wait_for_standby("standby1");
        assert_eq!(fs::read_link(&pg_wal).unwrap(), wal, "{said}");
        let aside = standby.node.socket_dir().join(&beside(&standby)[0]);
        assert_ne!(fs::read_link(aside.join("pg_wal")).unwrap(), wal);
        standby.undo_with(&["--bring-back"]).unwrap();
        same_tree(&tree(&data), &before.0);
        same_tree(&tree(&wal), &before.1);

        // One that leads to nothing would have root make a directory there, and give it away.
        fs::remove_file(&pg_wal).unwrap();
        let roots = tempfile::tempdir().unwrap();
        symlink(roots.path().join("x.service.d"), &pg_wal).unwrap();
        let refused = standby.setup_standby(&["--replace"]).unwrap_err();
        assert!(
            refused.contains("[V21]") && refused.contains("does not exist"),
            "{refused}"
        );
        assert_eq!(fs::read_dir(roots.path()).unwrap().count(), 0);

        // A disk that is nothing but WAL cannot be moved aside.
        fs::remove_file(&pg_wal).unwrap();
        let disk = Disk::mount(400 << 10).unwrap();
        let top = disk.path();
        run(Command::new("cp").arg("-a").arg(wal.join(".")).arg(top)).unwrap();
        symlink(top, &pg_wal).unwrap();
        standby.node.start();
        standby.node.query("create table before as select 1 as n");
        fs::remove_dir_all(standby.node.socket_dir().join("data.standby")).unwrap();
        let refused = standby.setup_standby(&["--replace"]).unwrap_err();
        let way_out = format!("--waldir {}/standby1", top.display());
        assert!(
            refused.contains("[V07]") && refused.contains(&way_out),
            "{refused}"
        );
        is_untouched(&standby);
        let told = top.join("standby1");
        standby
            .setup_standby(&["--replace", "--waldir", told.to_str().unwrap()])
            .unwrap();
        primary.node.wait_for_standby("standby1");
        assert_eq!(fs::read_link(&pg_wal).unwrap(), told);
        // A new WAL directory that is taken is refused before anything moves.
        stop(&standby);
        standby.undo_with(&["--bring-back"]).unwrap();
        assert_eq!(fs::read_link(&pg_wal).unwrap(), top);
        standby.node.start();
        fs::remove_dir_all(standby.node.socket_dir().join("data.standby")).unwrap();
        let refused = standby
            .setup_standby(&["--replace", "--waldir", told.to_str().unwrap()])
            .unwrap_err();
        assert!(
            refused.contains("[V20]") && refused.contains("not empty"),
            "{refused}"
        );
        is_untouched(&standby);
    }
}

/// A mount over a directory; it and the server in it go on drop.
struct Mounted(PathBuf);

impl Mounted {
    fn over(path: &Path, options: &[&str]) -> Option<Self> {
        run(Command::new("mount").args(options).arg(path)).ok()?;
        Some(Self(path.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.0.join("postmaster.pid")).unwrap_or_default();
        if let Some(pid) = pid.lines().next() {
            let _ = Command::new("kill").args(["-QUIT", pid]).status();
        }
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_data_directory_that_is_a_mount_point_is_refused_full_and_filled_empty() {
    let (primary, mut standby) = joined(15, &[]);
    let data = standby.node.data();
    // As a volume often is: a bind mount of the same file system.
    let Some(mounted) = Mounted::over(&data, &["--bind", data.to_str().unwrap()]) else {
        println!("left out: nothing can be mounted here");
        return;
    };
    running(&mut standby);
    let config = own_files(&standby);
    standby
        .setup_standby(&["--replace", "--from", "db9.example.com:5443"])
        .unwrap_err();
    let refused = standby.setup_standby(&["--replace"]).unwrap_err();
    for expected in ["[V07]", "cannot be moved aside", "--pgdata", "lost+found"] {
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
    assert_eq!(timeless(own_files(&standby)), timeless(config));
    is_untouched(&standby);
    standby.node.stop(Stop::Fast);
    drop(mounted);

    // Something mounted inside it would cover what the new one has there.
    let inside = Mounted::over(
        &data.join("pg_wal"),
        &["--bind", data.join("pg_wal").to_str().unwrap()],
    )
    .unwrap();
    standby.node.start();
    let refused = standby.setup_standby(&["--replace"]).unwrap_err();
    assert!(
        refused.contains("[V07]") && refused.contains("pg_wal, inside the data"),
        "{refused}"
    );
    is_untouched(&standby);
    standby.node.stop(Stop::Fast);
    drop(inside);

    // An empty disk, as mkfs leaves it.
    let own = fs::read_to_string(data.join("postgresql.conf")).unwrap();
    let old = standby.node.socket_dir().join("data.old");
    fs::rename(&data, &old).unwrap();
    fs::create_dir(&data).unwrap();
    let _mounted = Mounted::over(&data, &["-t", "tmpfs", "-o", "size=400m", "none"]).unwrap();
    fs::create_dir(data.join("lost+found")).unwrap();
    run(Command::new("chown")
        .arg("--reference")
        .arg(&old)
        .arg(&data))
    .unwrap();
    let shown = standby.setup_standby(&["--dry-run"]).unwrap();
    assert!(
        shown.contains("the primary's comes with the copy and is not known here"),
        "{shown}"
    );
    // The copy has the primary's port and socket, which is taken on this machine.
    let refused = standby.setup_standby(&[]).unwrap_err();
    assert!(refused.contains("[V09]"), "{refused}");
    assert!(data.join("standby.signal").exists() && !data.join("pgtlsproxy-new").exists());
    let lines = own.lines().filter(|line| {
        let names = [
            "port = ",
            "unix_socket_directories = ",
            "listen_addresses = ",
        ];
        names.iter().any(|name| line.starts_with(name))
    });
    standby
        .node
        .append_conf(&lines.collect::<Vec<_>>().join("\n"));
    let said = standby.setup_standby(&[]).unwrap();
    assert!(said.contains("It streams"), "{said}");
    primary.node.wait_for_standby("standby1");
    stop(&standby);
}

#[test]
fn a_copy_that_was_killed_on_its_way_up_into_a_mount_point_gets_there() {
    let (primary, mut standby) = joined(15, &[]);
    let (data, old) = (
        standby.node.data(),
        standby.node.socket_dir().join("data.old"),
    );
    fs::rename(&data, &old).unwrap();
    fs::create_dir(&data).unwrap();
    let Some(_mounted) = Mounted::over(&data, &["-t", "tmpfs", "-o", "size=400m", "none"]) else {
        println!("left out: nothing can be mounted here");
        return;
    };
    run(Command::new("chown")
        .arg("--reference")
        .arg(&old)
        .arg(&data))
    .unwrap();
    let mut child = standby.standby_command(&[]);
    let mut child = child.stdin(Stdio::null()).spawn().unwrap();
    testbed::wait_until("the copy to be on its way up", || {
        data.join("standby.signal").exists() || child.try_wait().unwrap().is_some()
    });
    let _ = child.kill();
    child.wait().unwrap();
    // As if it had come no farther than this.
    let (inside, state) = (
        data.join("pgtlsproxy-new"),
        standby.dir().join("setup/journal.json"),
    );
    if !inside.join("PG_VERSION").exists() {
        fs::create_dir_all(&inside).unwrap();
        run(Command::new("chown")
            .arg("--reference")
            .arg(&old)
            .arg(&inside))
        .unwrap();
        for name in ["base", "global", "PG_VERSION"] {
            fs::rename(data.join(name), inside.join(name)).unwrap();
        }
        let text = fs::read_to_string(&state).unwrap();
        let text = text.replace("\"stage\": \"Placed\"", "\"stage\": \"Copied\"");
        fs::write(&state, text).unwrap();
    }
    let text = fs::read_to_string(&state).unwrap();
    assert!(text.contains("\"stage\": \"Copied\""), "{text}");
    let own = fs::read_to_string(old.join("postgresql.conf")).unwrap();
    let conf = if data.join("postgresql.conf").exists() {
        &data
    } else {
        &inside
    };
    let lines = own.lines().rev().take(4).collect::<Vec<_>>().join("\n");
    let text = fs::read_to_string(conf.join("postgresql.conf")).unwrap();
    fs::write(conf.join("postgresql.conf"), format!("{text}\n{lines}\n")).unwrap();
    let said = standby.setup_standby(&[]).unwrap();
    assert!(said.contains("It streams"), "{said}");
    assert!(!inside.exists());
    primary.node.wait_for_standby("standby1");
    stop(&standby);
}

#[test]
fn a_data_directory_behind_a_link_is_replaced_where_it_is() {
    let (primary, mut standby) = joined(15, &[]);
    let (data, place) = (standby.node.data(), Scratch::new("disk"));
    let real = place.path().join("real");
    run(Command::new("mv").arg(&data).arg(&real)).unwrap();
    symlink(&real, &data).unwrap();
    let before = tree(&real);
    let said = standby.setup_standby(&["--replace"]).unwrap();
    primary.node.wait_for_standby("standby1");
    assert_eq!(fs::read_link(&data).unwrap(), real, "{said}");
    standby.undo_with(&["--bring-back"]).unwrap();
    same_tree(&tree(&real), &before);
    standby.node.start();
    standby.node.stop(Stop::Fast);

    // One that leads nowhere is told, not replaced.
    fs::rename(&real, place.path().join("elsewhere")).unwrap();
    let refused = standby.setup_standby(&[]).unwrap_err();
    assert!(
        refused.contains("[V05]") && refused.contains("leads nowhere"),
        "{refused}"
    );
    assert_eq!(fs::read_link(&data).unwrap(), real);
}
