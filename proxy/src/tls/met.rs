//! The certificates of those whom we are connected with, each kept once: a peer has many sessions, and thousands of
//! them shall not keep thousands of copies.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use protocol::identity::Fingerprint;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::PeerCertificate;

/// Certificates that somebody still holds, by the fingerprint of the leaf.
#[derive(Default)]
pub(super) struct Met(Mutex<HashMap<Fingerprint, Weak<PeerCertificate>>>);

impl Met {
    /// What a chain says, the leaf first; the same value as before while somebody holds that.
    pub(super) fn again(
        &self,
        chain: Arc<[CertificateDer<'static>]>,
    ) -> io::Result<Arc<PeerCertificate>> {
        // Whole at every moment, so a panic elsewhere does not spoil it.
        let mut met = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = chain.first()
            && let Some(known) = met.get(&Fingerprint::of(leaf)).and_then(Weak::upgrade)
            && known.chain == chain
        {
            return Ok(known);
        }
        let peer = Arc::new(PeerCertificate::of(chain)?);
        // A new one is rare: time to forget those that are gone.
        met.retain(|_, known| known.strong_count() > 0);
        met.insert(peer.identity.fingerprint(), Arc::downgrade(&peer));
        Ok(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(names: &[&str]) -> Arc<[CertificateDer<'static>]> {
        let made = names.iter().map(|name| {
            let made = rcgen::generate_simple_self_signed(vec![(*name).to_owned()]).unwrap();
            CertificateDer::from(made.cert.der().to_vec())
        });
        made.collect()
    }

    #[test]
    fn one_certificate_is_kept_once_and_forgotten_when_nobody_holds_it() {
        let met = Met::default();
        let (one, other) = (chain(&["one"]), chain(&["other"]));
        let first = met.again(Arc::clone(&one)).unwrap();
        let copy: Arc<[_]> = one.iter().cloned().collect();
        assert!(Arc::ptr_eq(&first, &met.again(copy).unwrap()));
        drop(first);
        let _other = met.again(other).unwrap();
        assert_eq!(met.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn the_same_leaf_behind_another_chain_is_another() {
        let met = Met::default();
        let long = chain(&["leaf", "intermediate"]);
        let short: Arc<[_]> = long.iter().take(1).cloned().collect();
        let first = met.again(long).unwrap();
        let second = met.again(short).unwrap();
        assert_eq!((first.chain.len(), second.chain.len()), (2, 1));
    }

    #[test]
    fn nothing_shown_is_an_error() {
        assert!(Met::default().again(Arc::default()).is_err());
    }
}
