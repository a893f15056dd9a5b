//! What has come is judged as a whole, by the loader that the daemon uses, and only then put in its place: first both
//! CAs are trusted, then the pair is swapped, then the old CA goes. Each step is one rename, and after each of them,
//! wherever the machine may die, a daemon starts.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use certs_tool::report::Date;
use protocol::certificate::{Certificate, Crl};
use protocol::node::Certificates;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use tempfile::Builder;

use super::candidate::Candidate;
use super::trust::{Ca, Trust, Trusted, judge, subject};
use super::unwritten;
use crate::config::IdentityFiles;
use crate::node::{certificate_to_pem, to_pem};
use crate::problem::Problem;
use crate::replace::{PREFIX, replace, sync_directory};
use crate::tls::{Credentials, merge};

type List = CertificateRevocationListDer<'static>;

/// What was put in place.
pub(super) struct Installed {
    /// The CAs trusted from now on, if others than before.
    pub(super) trust: Option<Vec<String>>,
    /// Until when the new certificate counts, if there is one.
    pub(super) until: Option<Date>,
    /// Which CAs came besides, and are not trusted.
    pub(super) left_out: Option<Problem>,
}

/// Judges and puts in place: CAs and CRLs, and with a `candidate` its certificate and key.
pub(super) fn install(
    files: &IdentityFiles,
    now: &Credentials,
    came: &Certificates,
    candidate: Option<&Candidate>,
    trust: &Trust,
) -> Result<Installed, Vec<Problem>> {
    let one = |problem: Problem| vec![problem];
    let before = now.authorities();
    let Trusted { cas, left_out } = judge(before, came, trust).map_err(one)?;
    let mut both = before.to_vec();
    both.extend(cas.iter().filter(|ca| !before.contains(ca)).cloned());
    let lists = merge(&both, now.crls(), parse(&came.crl).map_err(one)?).crls;
    let own_lists = of_these(&lists, &cas);

    let staging = stage(files, &cas, &own_lists, came, candidate)?;
    let judged = Credentials::load(&staging.files, None).map_err(|problems| {
        let mut problems = problems.into_iter();
        let why = problems.next().map(|problem| problem.one_line());
        one(useless(why.unwrap_or_default()))
    })?;
    let until = candidate
        .map(|_| judge_leaf(now, &judged.credentials))
        .transpose()
        .map_err(one)?;

    let write = || -> Result<(), (&Path, io::Error)> {
        let crl = files.crl.as_deref();
        let put_lists = |lists: &[List]| match crl {
            Some(path) => {
                put_changed(path, lists, |list| to_pem(list)).map_err(|error| (path, error))
            }
            None => Ok(()),
        };
        let put_cas = |cas: &[Ca]| {
            put_changed(&files.ca, cas, |ca| certificate_to_pem(ca))
                .map_err(|error| (files.ca.as_path(), error))
        };
        // A CRL that no CA asks for does no harm, a CA without its CRL would.
        if both.len() > before.len() {
            put_lists(&lists)?;
            put_cas(&both)?;
        }
        if let Some(candidate) = candidate {
            replace(&files.cert, came.certificate.as_bytes(), &files.cert)
                .map_err(|error| (&*files.cert, error))?;
            swap_key(files, &candidate.key).map_err(|error| (&*files.key, error))?;
        }
        put_cas(&cas)?;
        put_lists(&own_lists)
    };
    write().map_err(|(path, error)| one(unwritten(path, &error)))?;
    let changed = cas.iter().collect::<HashSet<_>>() != before.iter().collect::<HashSet<_>>();
    Ok(Installed {
        trust: changed.then(|| cas.iter().map(subject).collect()),
        until,
        left_out,
    })
}

/// Puts the next key in the place of the one before. Until then it counts where it lies, with the request behind it.
pub(super) fn swap_key(files: &IdentityFiles, key: &str) -> io::Result<()> {
    replace(&files.key, key.as_bytes(), &files.key)?;
    let next = files.next_key();
    fs::remove_file(&next)?;
    sync_directory(&next)
}

/// Writes these if the file holds others; what a person wrote between them stays otherwise.
fn put_changed<T>(path: &Path, new: &[T], pem: impl Fn(&T) -> String) -> io::Result<()>
where
    T: PemObject + Eq + std::hash::Hash,
{
    let held: Vec<T> = T::pem_slice_iter(&fs::read(path)?).flatten().collect();
    if held.iter().collect::<HashSet<_>>() == new.iter().collect::<HashSet<_>>() {
        return Ok(());
    }
    let text: String = new.iter().map(pem).collect();
    replace(path, text.as_bytes(), path)
}

/// The new certificate says who we are, as the one before did, and for longer.
fn judge_leaf(now: &Credentials, new: &Credentials) -> Result<Date, Problem> {
    let (old, new) = (now.identity(), new.identity());
    if !new.same_names(old) {
        return Err(useless(format!("it is for {new}, and this node is {old}")));
    }
    if new.not_after() < old.not_after() {
        return Err(useless("it ends before the one that there is".to_owned()));
    }
    Ok(Date::from_unix(new.not_after()))
}

struct Staging {
    files: IdentityFiles,
    _directory: tempfile::TempDir,
}

/// All of it as it will be, in a directory that nobody else may enter.
fn stage(
    files: &IdentityFiles,
    cas: &[Ca],
    lists: &[List],
    came: &Certificates,
    candidate: Option<&Candidate>,
) -> Result<Staging, Vec<Problem>> {
    let failed = |error: io::Error| vec![unwritten(&files.cert, &error)];
    let place = files.cert.parent().unwrap_or_else(|| Path::new("."));
    let directory = Builder::new()
        .prefix(PREFIX)
        // Whatever the umask is.
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(place)
        .map_err(failed)?;
    let path = |name: &str| directory.path().join(name);
    let mut staged = IdentityFiles {
        ca: path("ca"),
        crl: files.crl.as_ref().map(|_| path("crl")),
        ..files.clone()
    };
    let text: String = cas.iter().map(|ca| certificate_to_pem(ca)).collect();
    fs::write(&staged.ca, text).map_err(failed)?;
    if let Some(crl) = &staged.crl {
        let text: String = lists.iter().map(|list| to_pem(list)).collect();
        fs::write(crl, text).map_err(failed)?;
    }
    if let Some(candidate) = candidate {
        (staged.cert, staged.key) = (path("cert"), path("key"));
        replace(&staged.key, candidate.key.as_bytes(), &files.key).map_err(failed)?;
        fs::write(&staged.cert, &came.certificate).map_err(failed)?;
    }
    Ok(Staging {
        files: staged,
        _directory: directory,
    })
}

fn of_these(lists: &[List], cas: &[Ca]) -> Vec<List> {
    let cas: Vec<Certificate> = cas
        .iter()
        .filter_map(|ca| Certificate::parse(ca).ok())
        .collect();
    let is_theirs = |list: &&List| {
        Crl::parse(list).is_ok_and(|list| cas.iter().any(|ca| list.is_issued_by(ca)))
    };
    lists.iter().filter(is_theirs).cloned().collect()
}

pub(super) fn parse<T: PemObject>(pem: &str) -> Result<Vec<T>, Problem> {
    T::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| useless(error.to_string()))
}

pub(super) fn useless(why: String) -> Problem {
    Problem::new(
        "K21",
        "what came from the CA's host cannot be used; nothing was changed",
        why,
        "look there: pgtlsproxy check, certs-tool list",
    )
}
