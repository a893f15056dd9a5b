//! Reads the configuration and every file that it names: the same for a start, a reload and a command.

use std::path::PathBuf;
use std::sync::Arc;

use protocol::identity::Fingerprint;

use super::started::Started;
use crate::config::{Config, IdentityFiles, Source};
use crate::problem::Problem;
use crate::tls::{Credentials, Loaded};
use crate::watch::Look;

/// Everything that a start or a reload needs, read and judged by the same code.
pub(crate) struct Checked {
    pub(crate) config: Config,
    /// What of it only a start takes.
    pub(super) configured: Started,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) warnings: Vec<Problem>,
    /// Warnings that come by the passing of time alone: the daemon asks for them again and again.
    pub(crate) aging: Vec<Problem>,
}

/// What came of reading everything, and what the files held just before.
pub(crate) struct Reading {
    pub(crate) look: Look,
    pub(crate) result: Result<Checked, Vec<Problem>>,
}

/// What a running process keeps at a reload.
pub(super) struct InUse {
    /// Our certificate.
    pub(super) certificate: Fingerprint,
    /// Where CRLs from other nodes are kept, whatever is configured by now: those that come go there.
    pub(super) kept_crl: Option<PathBuf>,
}

/// Reads `source` and the files it names, or says everything that is wrong. `in_use` is our certificate, where a daemon
/// runs.
pub(crate) fn read(source: &Source, in_use: Option<Fingerprint>) -> Reading {
    reading(source, in_use, |_| {})
}

/// The same for a reload.
pub(super) fn read_again(source: &Source, in_use: InUse) -> Reading {
    let InUse {
        certificate,
        kept_crl,
    } = in_use;
    reading(source, Some(certificate), |identity| {
        // Without `identity.crl` nothing is revoked any more.
        identity.kept_crl = identity.crl.as_ref().and(kept_crl);
    })
}

fn reading(
    source: &Source,
    in_use: Option<Fingerprint>,
    keep: impl FnOnce(&mut IdentityFiles),
) -> Reading {
    // Looked at before they are read: what changes in between is found changed at the next look.
    let mut look = Look::at(source.path());
    let result = Config::load(source).and_then(|mut config| {
        let configured = Started::of(&config);
        keep(&mut config.identity);
        let paths = config.identity.paths();
        let files = Look::at(paths.iter().map(PathBuf::as_path));
        look = look.clone().and(files);
        let Loaded {
            credentials,
            mut warnings,
            aging,
        } = Credentials::load(&config.identity, in_use)?;
        warnings.extend(config.warnings.iter().cloned());
        Ok(Checked {
            config,
            configured,
            credentials: Arc::new(credentials),
            warnings,
            aging,
        })
    });
    Reading { look, result }
}

/// The same for a command, which reads once.
pub(crate) fn load(source: &Source) -> Result<Checked, Vec<Problem>> {
    read(source, None).result
}
