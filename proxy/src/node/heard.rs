//! Which node has shown which CRLs: so that whoever removes a node can be told who knows of it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use protocol::identity::{Fingerprint, Identity};
use rustls_pki_types::CertificateRevocationListDer;

/// Nodes that are remembered; the CA has made a certificate for each.
const MOST: usize = 1024;
/// CRLs of one node, of as many CAs.
const MOST_CRLS: usize = 16;

/// What nodes have shown since the start of this process, by their common name.
#[derive(Default)]
pub(crate) struct Heard(Mutex<HashMap<String, Vec<Fingerprint>>>);

impl Heard {
    /// A node has shown these, the newest that it has.
    pub(super) fn note(&self, node: &Identity, crls: &[CertificateRevocationListDer<'_>]) {
        let Some(name) = node.common_name() else {
            return;
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MOST || known.contains_key(name) {
            let shown = crls.iter().take(MOST_CRLS);
            known.insert(
                name.to_owned(),
                shown.map(|der| Fingerprint::of(der)).collect(),
            );
        }
    }

    /// Every node that was heard of, by name, and whether it has shown all of `crls`.
    pub(crate) fn of(&self, crls: &[CertificateRevocationListDer<'_>]) -> Vec<(String, bool)> {
        let wanted: Vec<_> = crls.iter().map(|der| Fingerprint::of(der)).collect();
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut nodes: Vec<_> = known
            .iter()
            .map(|(name, shown)| {
                let all = wanted.iter().all(|crl| shown.contains(crl));
                (name.clone(), all)
            })
            .collect();
        nodes.sort_unstable();
        nodes
    }
}
