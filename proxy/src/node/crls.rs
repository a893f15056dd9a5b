//! The CRLs that came from other nodes: judged against our CAs, kept in the state directory, and loaded by a reload
//! together with `identity.crl`. The newest number of each CA wins, whichever way it came.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use protocol::escape::escape;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use tempfile::NamedTempFile;
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::flood::Flood;
use crate::reload::ReloadHandle;
use crate::tls::{Credentials, Merged, merge};

type Crl = CertificateRevocationListDer<'static>;

/// Keeps what is newer than what we have.
pub(crate) struct Keeper {
    /// None: nothing is taken from other nodes.
    path: Option<PathBuf>,
    reload: ReloadHandle,
    flood: Flood,
    /// One at a time reads what is kept and writes it anew.
    turn: Mutex<()>,
}

impl Keeper {
    pub(crate) fn new(path: Option<PathBuf>, reload: ReloadHandle) -> Self {
        Self {
            path,
            reload,
            flood: Flood::new(),
            turn: Mutex::default(),
        }
    }

    /// Takes what is newer and signed by a CA of ours, and gives the newest of both sides. It counts in handshakes
    /// after the reload that this asks for.
    pub(crate) async fn take(
        &self,
        credentials: &Credentials,
        offered: Vec<Crl>,
        from: &str,
    ) -> Vec<Crl> {
        let own = credentials.crls().to_vec();
        let Some(path) = self
            .path
            .clone()
            .filter(|_| !own.is_empty() && !offered.is_empty())
        else {
            return own;
        };
        let _turn = self.turn.lock().await;
        let authorities = credentials.authorities().to_vec();
        let judged = tokio::task::spawn_blocking(move || {
            // What came a moment ago may be newer than what is loaded.
            let kept = read(&path).unwrap_or_default();
            let have = merge(&authorities, &own, kept).crls;
            let merged = merge(&authorities, &have, offered);
            let written = match merged.taken.as_slice() {
                [] => Ok(()),
                _ => write(&path, &merged.crls),
            };
            (merged, written, path)
        });
        let Ok((merged, written, path)) = judged.await else {
            return credentials.crls().to_vec();
        };
        let Merged {
            crls,
            taken,
            refused,
            foreign,
        } = merged;
        for why in refused.into_iter().chain(foreign) {
            if self.flood.admit("node", "K06") {
                warn!(from, why, "a CRL from another node is not believed [K06]");
            }
        }
        match written {
            Ok(()) if taken.is_empty() => {}
            Ok(()) => {
                info!(
                    from,
                    crl = taken.join(", "),
                    "a newer CRL came from another node"
                );
                self.reload.ask_without_waiting();
            }
            Err(error) => warn!(
                path = %path.display(),
                %error,
                "a newer CRL cannot be kept (node.state must be writable for this process) [K09]"
            ),
        }
        crls
    }
}

/// Reads PEM as it came from a node.
pub(crate) fn from_pem(texts: &[String]) -> Result<Vec<Crl>, String> {
    texts
        .iter()
        .map(|text| {
            CertificateRevocationListDer::from_pem_slice(text.as_bytes())
                .map_err(|error| escape(error.to_string()))
        })
        .collect()
}

/// One CRL as PEM (RFC 7468).
pub(crate) fn to_pem(crl: &[u8]) -> String {
    armoured("X509 CRL", crl)
}

/// One certificate as PEM.
pub(crate) fn certificate_to_pem(certificate: &[u8]) -> String {
    armoured("CERTIFICATE", certificate)
}

fn armoured(label: &str, der: &[u8]) -> String {
    const COLUMNS: usize = 64;
    let text = Base64::encode_string(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(COLUMNS));
        pem.push_str(line);
        pem.push('\n');
        rest = next;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

fn read(path: &Path) -> Option<Vec<Crl>> {
    let pem = fs::read(path).ok()?;
    CertificateRevocationListDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .ok()
}

/// The old file or the new one, whole, whatever happens.
fn write(path: &Path, crls: &[Crl]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = NamedTempFile::with_prefix_in(".ca.crl.", directory)?;
    for crl in crls {
        file.write_all(to_pem(crl).as_bytes())?;
    }
    file.as_file()
        .set_permissions(Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca.crl");
        let crls: Vec<Crl> = [1_usize, 47, 48, 49, 300]
            .map(|length| vec![7; length].into())
            .to_vec();
        write(&path, &crls).unwrap();
        assert_eq!(read(&path).unwrap(), crls);
        let texts: Vec<String> = crls.iter().map(|crl| to_pem(crl)).collect();
        assert_eq!(from_pem(&texts).unwrap(), crls);
        assert!(from_pem(&["x".to_owned()]).is_err());
    }
}
