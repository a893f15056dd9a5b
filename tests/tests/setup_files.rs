//! Files of PostgreSQL's that are not as a package leaves them: links that its OS user has made.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and one that cannot be run says so"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use testbed::Scratch;
use testbed::setup::Prepared;

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
