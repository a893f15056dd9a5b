//! `pgtlsproxy setup primary`: gather, plan, show or apply.
#![expect(clippy::print_stdout, reason = "a command's output")]

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use super::secret;
use crate::cli::{SetupCommand, SetupPrimary};
use crate::problem::Problem;
use crate::setup::{
    self, Facts, FileChange, Journal, LoginBy, PrimaryReport, ReportedFile, Rights, Server,
    Sidecar, SqlEntry, Theirs, Wanted, Wishes,
};

/// Where a proxy listens unless told.
const PROXY_PORT: u16 = 5443;

pub(super) fn run(command: &SetupCommand) -> Result<ExitCode, Vec<Problem>> {
    match command {
        SetupCommand::Primary(flags) => primary(flags).map(|()| ExitCode::SUCCESS),
        SetupCommand::Standby(flags) => super::standby::run(flags),
        SetupCommand::Undo(flags) => super::undo::run(flags).map(|()| ExitCode::SUCCESS),
    }
}

fn one(problem: Problem) -> Vec<Problem> {
    vec![problem]
}

fn primary(flags: &SetupPrimary) -> Result<(), Vec<Problem>> {
    let wanted = match (&flags.pgdata, &flags.cluster) {
        (Some(data), _) => Wanted::DataDirectory(data),
        (None, Some(label)) => Wanted::Debian(label),
        (None, None) => Wanted::Any,
    };
    let cluster = setup::find(wanted).map_err(one)?;
    let server = Server::reached(&cluster, !flags.external_tls).map_err(one)?;
    let files = Theirs::of(&cluster.owner);
    let facts = setup::gather(&files, &cluster, server.as_ref(), &flags.role).map_err(one)?;
    let (host, port) = public(flags.public.as_deref()).map_err(one)?;
    let mut name = flags
        .name
        .clone()
        .unwrap_or_else(|| host.split('.').next().unwrap_or(&host).to_owned());
    if flags.external_tls {
        // A key belongs to one OS user: a proxy beside it has its own.
        name.push_str("-postgresql");
    }
    let directory = std::path::absolute(&flags.dir).unwrap_or_else(|_| flags.dir.clone());
    let port = match (port, flags.external_tls) {
        (Some(port), _) => port,
        (None, false) => PROXY_PORT,
        (None, true) => facts.port(),
    };
    let sidecar = Sidecar {
        directory: &directory,
        name: &name,
        host: &host,
        port,
    };
    let wishes = Wishes {
        role: flags.role.clone(),
        os_user: flags.os_user.clone(),
        standbys: flags.standby.clone(),
        logical: flags.logical.clone(),
        rewind: flags.rewind,
        slot_sync: flags.slot_sync,
        fix_trust: flags.fix_trust,
        slot: flags.slot,
        login: login(flags, &facts, &sidecar).map_err(one)?,
    };
    let certificates = sidecar.missing_certificates();
    let mut report = PrimaryReport {
        format: setup::FORMAT,
        cluster: cluster.label.clone(),
        version: cluster.major.to_string(),
        running: server.is_some(),
        dry_run: flags.dry_run,
        ..PrimaryReport::default()
    };
    let plan = setup::plan_primary(&files, &facts, &wishes)?;
    // With PostgreSQL's own TLS there is no proxy.
    let mut own: Vec<FileChange> = Vec::new();
    let mut key_owner = &wishes.os_user;
    let mut proxy = Some(&*wishes.os_user);
    if let LoginBy::Certificate(tls) = &wishes.login {
        key_owner = &cluster.owner.name;
        proxy = None;
        report.standbys = setup::needs(&wishes, tls, &host, port);
    } else {
        own.extend(sidecar.configuration_change(&facts, &wishes).map_err(one)?);
        own.extend(setup::unit_changes(&directory, &cluster, &wishes.os_user).map_err(one)?);
    }
    for warning in &plan.warnings {
        eprintln!("pgtlsproxy: {warning}");
    }
    report.warnings.clone_from(&plan.warnings);
    report.files = plan
        .files
        .iter()
        .chain(&own)
        .map(ReportedFile::of)
        .collect();
    report.changed = !(plan.is_empty() && own.is_empty() && certificates.is_empty());
    report.restart_needed.clone_from(&plan.restart_for);
    if server.is_none() {
        eprintln!(
            "PostgreSQL {} ({}) does not run: role and slots are made when it does; run this again then.",
            cluster.major, cluster.label
        );
    }
    if !report.changed {
        eprintln!("{}: nothing to do", cluster.label);
        return show(flags.json, &report);
    }
    let (now, later): (Vec<_>, Vec<_>) = plan.sql.iter().partition(|change| !change.after_restart);
    let words = |changes: &[&setup::SqlChange]| -> Vec<String> {
        changes.iter().map(|change| change.what.clone()).collect()
    };
    report.steps = [certificates, words(&now)].concat();
    report.later = words(&later);
    if flags.dry_run {
        if flags.json {
            return show(true, &report);
        }
        for file in &report.files {
            print!("{}", file.diff);
        }
        for step in report.steps.iter().chain(&report.later) {
            println!("# {step}");
        }
        if !plan.restart_for.is_empty() {
            println!("# restart for {}", plan.restart_for.join(", "));
        }
        return Ok(());
    }

    let mut journal = Journal::open(&flags.dir.join("setup")).map_err(one)?;
    journal.note_cluster(&cluster.data).map_err(one)?;
    if !flags.external_tls {
        setup::ensure_user(&flags.dir, &wishes.os_user).map_err(one)?;
    }
    sidecar
        .make_certificates(key_owner, proxy, &mut journal)
        .map_err(one)?;
    if let LoginBy::Certificate(tls) = &wishes.login {
        setup::check_readable(&cluster, tls).map_err(one)?;
    }
    let postgres = rights(&cluster.config_file, 0o644);
    setup::apply_files(
        &mut journal,
        &plan.files,
        postgres,
        &cluster,
        &facts.config_file,
        server.as_ref(),
    )
    .map_err(one)?;
    for change in &own {
        journal
            .write(change, rights(&flags.dir, 0o644))
            .map_err(one)?;
        eprintln!("wrote {}", change.path.display());
    }
    if !flags.external_tls && setup::by_systemd(&flags.dir) {
        let changed = own.iter().map(|change| &*change.path);
        setup::start_unit(changed).map_err(one)?;
    }
    if let Some(server) = &server {
        tell(&mut journal, server, &now).map_err(one)?;
        if !plan.restart_for.is_empty() && flags.restart {
            setup::restart(&cluster).map_err(one)?;
            eprintln!("restarted {}", cluster.label);
            tell(&mut journal, server, &later).map_err(one)?;
            report.restarted = true;
            report.restart_needed.clear();
            report.steps.append(&mut report.later);
        }
    }
    if !report.restart_needed.is_empty() {
        eprintln!(
            "PostgreSQL must be restarted for {}: do so, or run this again with --restart.",
            plan.restart_for.join(", ")
        );
        if !report.later.is_empty() {
            eprintln!("Slots can be made only after that: run this again then.");
        }
    }
    show(flags.json, &report)
}

fn tell(
    journal: &mut Journal,
    server: &Server,
    changes: &[&setup::SqlChange],
) -> Result<(), Problem> {
    for change in changes {
        if let Some(undo) = &change.undo {
            journal.note_sql(SqlEntry {
                what: change.what.clone(),
                undo: undo.clone(),
            })?;
        }
        server.query(&change.sql)?;
        eprintln!("{}", change.what);
    }
    Ok(())
}

/// What belongs on standard output: for programs everything, for a person what he has to carry to the standbys.
fn show(json: bool, report: &PrimaryReport) -> Result<(), Vec<Problem>> {
    if json {
        println!("{}", setup::json(report).map_err(one)?);
    } else {
        for standby in &report.standbys {
            print!("{}", standby.text());
        }
    }
    Ok(())
}

/// The owner of this file or directory, for a new one beside it.
fn rights(path: &Path, mode: u32) -> Rights {
    use std::os::unix::fs::MetadataExt;
    let (uid, gid) = fs::metadata(path).map_or((0, 0), |metadata| (metadata.uid(), metadata.gid()));
    Rights { mode, uid, gid }
}

/// A password is asked for only where one is to be given to the role.
fn login(flags: &SetupPrimary, facts: &Facts, sidecar: &Sidecar<'_>) -> Result<LoginBy, Problem> {
    if flags.external_tls {
        return Ok(LoginBy::Certificate(sidecar.tls(&flags.from)?));
    }
    if !flags.password {
        return Ok(LoginBy::OsUser);
    }
    let Some(running) = facts.running.as_ref().filter(|found| !found.in_recovery) else {
        return Ok(LoginBy::Password(None));
    };
    if running.has_password {
        eprintln!(
            "Role {} has a password; it stays (`\\password {0}` in psql changes it).",
            flags.role
        );
    }
    let needed = !running.has_password && !flags.dry_run;
    Ok(LoginBy::Password(
        needed.then(secret::password).transpose()?,
    ))
}

/// Host and port, where one is given.
fn public(given: Option<&str>) -> Result<(String, Option<u16>), Problem> {
    let wrong = |text: &str| {
        Problem::new(
            "G17",
            format!("`{text}` is no HOST:PORT"),
            "--public is what standbys dial",
            "for example --public db1.example.com:5443",
        )
    };
    let Some(text) = given else {
        let name = nix::unistd::gethostname().map_err(|_| wrong(""))?;
        return Ok((name.to_string_lossy().into_owned(), None));
    };
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => {
            let port = port.parse().map_err(|_| wrong(text))?;
            Ok((host.trim_matches(['[', ']']).to_owned(), Some(port)))
        }
        None if !text.is_empty() => Ok((text.to_owned(), None)),
        _ => Err(wrong(text)),
    }
}
