//! Files of PostgreSQL's that are not as a package leaves them: links that its OS user has made, names that PostgreSQL
//! passes over, lines that it refuses.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and one that cannot be run says so"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use testbed::setup::{Prepared, configuration};
use testbed::{Scratch, give_to_postgres, put};

#[test]
fn a_link_to_what_postgresql_cannot_read_gives_nothing_away() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root reads what others cannot");
        return;
    }
    const SECRET: &str = "what_root_alone_may_read";
    let primary = Prepared::careful(15, "");
    let roots = Scratch::new("roots");
    std::os::unix::fs::chown(roots.path(), Some(0), Some(0)).unwrap();
    let secret = roots.path().join("secret");
    fs::write(&secret, format!("{SECRET}\n")).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();

    let (data, dir) = (primary.node.data(), primary.dir());
    let (ident, own) = (data.join("pg_ident.conf"), data.join("his"));
    fs::rename(&ident, &own).unwrap();
    symlink(&secret, &ident).unwrap();
    let ended = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        // Once everything is planned and nothing written, he puts his own file back.
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) && !dir.join("setup").exists() {
                std::hint::spin_loop();
            }
            fs::rename(&own, &ident).unwrap();
        });
        let said = primary.setup(&[]);
        ended.store(true, Ordering::Relaxed);
        said
    });
    for directory in [&data, &dir.join("setup")] {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            assert!(!text.contains(SECRET), "{}: {said:?}", path.display());
        }
    }
    let said = said.failed();
    assert!(
        said.contains("pg_ident.conf") && said.contains("OS user postgres cannot read it"),
        "{said}"
    );

    // What he can read himself, as configuration management leaves it, is taken as before.
    let managed = roots.path().join("postgresql.conf");
    fs::rename(data.join("postgresql.conf"), &managed).unwrap();
    symlink("his.conf", data.join("postgresql.conf")).unwrap();
    fs::rename(&managed, data.join("his.conf")).unwrap();
    fs::write(roots.path().join("more.conf"), "work_mem = '5MB'\n").unwrap();
    symlink(roots.path().join("more.conf"), data.join("more.conf")).unwrap();
    primary.node.append_conf("include 'more.conf'");
    primary.setup(&[]).well();
    let text = fs::read_to_string(data.join("his.conf")).unwrap();
    assert!(text.contains("include 'pgtlsproxy.conf'"), "{text}");
}

#[test]
fn a_directory_named_like_a_configuration_file_is_passed_over() {
    let mut primary = Prepared::careful(15, "include_dir = 'more'");
    let more = primary.node.data().join("more");
    fs::create_dir_all(more.join("old.conf")).unwrap();
    fs::write(more.join("one.conf"), "work_mem = '5MB'\n").unwrap();
    for path in [&more, &more.join("old.conf"), &more.join("one.conf")] {
        give_to_postgres(path);
    }
    primary.node.start();
    assert_eq!(primary.node.query("show work_mem"), "5MB");
    primary.setup(&[]).well();
}

#[test]
fn a_line_that_postgresql_refuses_is_named_before_anything_changes() {
    for major in [15, 18] {
        println!("PostgreSQL {major}");
        let mut primary = Prepared::careful(major, "");
        primary.node.start();
        // Loaded or not, it stands there; it takes more than the words of a line to see that it is wrong.
        let hba = primary.node.data().join("pg_hba.conf");
        let text = fs::read_to_string(&hba).unwrap() + "host all all 192.0.2.0/24 ldap\n";
        put(text, &hba);
        give_to_postgres(&hba);
        let before = configuration(&primary.node);
        let said = primary.setup(&[]).failed();
        let named = format!("{} line 3 is refused by PostgreSQL", hba.display());
        assert!(said.contains(&named), "{said}");
        assert!(!said.contains("fault of setup"), "{said}");
        assert_eq!(configuration(&primary.node), before);
    }
}
