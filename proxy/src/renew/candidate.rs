//! The next key and the request for it. The key lies beside the one in use (`KEY.next`) from before it is asked for
//! until it takes that one's place, so that the same request can be made again and no answer is in vain: as long as the
//! certificate is due, or another CA signs than the one that made it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use certs_tool::profile::NodeName;
use certs_tool::report::Date;
use certs_tool::{request, succession};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::install;
use super::{leaf_of, of_failure, unwritten};
use crate::config::IdentityFiles;
use crate::health::unix;
use crate::problem::Problem;
use crate::replace::{PREFIX, replace};

/// What stands between a key and the request behind it in its file.
const REQUEST: &str = "-----BEGIN CERTIFICATE REQUEST-----";

/// A key for which there is no certificate yet.
pub(super) struct Candidate {
    pub(super) key: Zeroizing<String>,
    /// As PEM.
    pub(super) request: String,
    /// By the key in use, in hexadecimal.
    pub(super) signature: String,
    /// Since when it is asked for, in Unix seconds.
    pub(super) since: i64,
}

impl Candidate {
    /// The one that waits already, else a new one.
    pub(super) fn take(files: &IdentityFiles, leaf: &CertificateDer<'_>) -> Result<Self, Problem> {
        let path = files.next_key();
        let (key, request, since) = match read(&path) {
            Some(kept) => kept,
            None => {
                let failed = |failure| of_failure(&failure);
                // Names do not count in it: they are those of the certificate.
                let name: NodeName = "renewal".parse().map_err(|why: String| {
                    Problem::new("K17", "no request can be made", why, "report this")
                })?;
                let (key, request) = request::make(&name).map_err(failed)?;
                let both = Zeroizing::new(format!("{}{request}", *key));
                replace(&path, both.as_bytes(), &files.key)
                    .map_err(|error| unwritten(&path, &error))?;
                (key, request, Date::now().unix())
            }
        };
        let own = [files.key.clone(), path].into_iter().find_map(|path| {
            let key = Zeroizing::new(fs::read(path).ok()?);
            succession::is_key_of(&key, leaf).then_some(key)
        });
        let own = own.ok_or_else(|| {
            Problem::new(
                "K18",
                format!("{} cannot be used", files.key.display()),
                format!(
                    "the request is signed with it; it cannot be read, or is not the key of {}",
                    files.cert.display()
                ),
                "run this as root; pgtlsproxy check says whether they belong together",
            )
        })?;
        let signature =
            succession::sign_over(&request, &own).map_err(|failure| of_failure(&failure))?;
        Ok(Self {
            key,
            request,
            signature,
            since,
        })
    }

    /// Takes away one that waits, where nothing is due: the files were replaced by hand since it was made, and it would
    /// be refused for ever.
    pub(super) fn give_up(files: &IdentityFiles) -> Result<(), Problem> {
        let path = files.next_key();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unwritten(&path, &error)),
            _ => Ok(()),
        }
    }
}

/// Ends what a run that was killed has begun: a certificate that lies in its place already gets its key; what was
/// only half written goes. Nobody else is at it.
pub(super) fn tidy(files: &IdentityFiles) -> io::Result<()> {
    let next = files.next_key();
    let text = fs::read_to_string(&next).map(Zeroizing::new);
    if let (Ok(text), Some(leaf)) = (text, leaf_of(&files.cert)) {
        let key = text
            .split_once(REQUEST)
            .map_or(text.as_str(), |(key, _)| key);
        if succession::is_key_of(key.as_bytes(), &leaf) {
            install::swap_key(files, key)?;
        }
    }
    let paths = files.paths();
    for directory in paths.iter().filter_map(|path| path.parent()) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                let path = entry.path();
                // It may be a directory; what cannot be removed does no harm.
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
        }
    }
    Ok(())
}

/// Key, request, and since when. What cannot be read is made anew.
fn read(path: &Path) -> Option<(Zeroizing<String>, String, i64)> {
    let text = Zeroizing::new(fs::read_to_string(path).ok()?);
    let (key, request) = text.split_at(text.find(REQUEST)?);
    let since = fs::metadata(path).and_then(|metadata| metadata.modified());
    Some((
        Zeroizing::new(key.to_owned()),
        request.to_owned(),
        unix(since.unwrap_or_else(|_| SystemTime::now())),
    ))
}
