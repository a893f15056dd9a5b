//! Signatures on certificates and CRLs, each verified once. Peers show the same few certificates at every connection, and
//! whether a signature is right depends on nothing but the key, the bytes and the signature itself: webpki looks at
//! dates, names, trust and revocation anew every time. Signatures of handshakes, which are new each time, do not come here.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use tokio_rustls::rustls::crypto::WebPkiSupportedAlgorithms;
use tokio_rustls::rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm,
};

/// Right signatures that are remembered, the latest ones. A chain of one certificate and a CRL take two, so this suffices
/// for more nodes than a CA of this kind has.
const REMEMBERED: usize = 256;

/// The same algorithms, of which those for certificates and CRLs remember what they found right. Lives as long as the
/// process, as rustls wants it of algorithms.
pub(super) fn remembering(algorithms: WebPkiSupportedAlgorithms) -> WebPkiSupportedAlgorithms {
    let all = algorithms.all.iter().map(|&inner| {
        let remembering = Box::leak(Box::new(Remembering {
            inner,
            right: Mutex::default(),
        }));
        &*remembering as &dyn SignatureVerificationAlgorithm
    });
    WebPkiSupportedAlgorithms {
        all: Box::leak(all.collect()),
        mapping: algorithms.mapping,
    }
}

#[derive(Debug)]
struct Remembering {
    inner: &'static dyn SignatureVerificationAlgorithm,
    /// Digests of what was verified, the latest at the end. What was wrong is never remembered.
    right: Mutex<VecDeque<Digest>>,
}

impl Remembering {
    fn is_known(&self, digest: &Digest) -> bool {
        // Whole at every moment, so a panic elsewhere does not spoil it.
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        right.iter().any(|known| known.as_ref() == digest.as_ref())
    }

    fn remember(&self, digest: Digest) {
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.len() == REMEMBERED {
            right.pop_front();
        }
        right.push_back(digest);
    }
}

/// All that a verdict depends on beside the algorithm. No two of them are alike: each part goes with its length.
fn digest(parts: [&[u8]; 3]) -> Digest {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish()
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let digest = digest([public_key, message, signature]);
        if self.is_known(&digest) {
            return Ok(());
        }
        self.inner
            .verify_signature(public_key, message, signature)?;
        self.remember(digest);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.inner.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.inner.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.inner.fips()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio_rustls::rustls::pki_types::alg_id;

    use super::*;

    /// Holds a signature right that is the message, and counts how often it was asked.
    #[derive(Debug, Default)]
    struct Echo(AtomicUsize);

    impl SignatureVerificationAlgorithm for Echo {
        fn verify_signature(
            &self,
            _: &[u8],
            message: &[u8],
            signature: &[u8],
        ) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            (message == signature).then_some(()).ok_or(InvalidSignature)
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_P256
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_SHA256
        }
    }

    fn echo() -> (&'static Echo, &'static dyn SignatureVerificationAlgorithm) {
        let echo = &*Box::leak(Box::<Echo>::default());
        let one: &'static [&'static dyn SignatureVerificationAlgorithm] =
            Box::leak(Box::new([echo as &dyn SignatureVerificationAlgorithm]));
        let algorithms = WebPkiSupportedAlgorithms {
            all: one,
            mapping: &[],
        };
        (echo, remembering(algorithms).all[0])
    }

    /// Whether key, message and signature go together, and whether the algorithm itself was asked.
    fn verdict(
        (echo, algorithm): (&Echo, &dyn SignatureVerificationAlgorithm),
        [key, message, signature]: [&str; 3],
    ) -> (bool, bool) {
        let before = echo.0.load(Ordering::Relaxed);
        let [key, message, signature] = [key, message, signature].map(str::as_bytes);
        let right = algorithm.verify_signature(key, message, signature).is_ok();
        (right, echo.0.load(Ordering::Relaxed) > before)
    }

    #[test]
    fn a_right_signature_is_verified_once_and_a_wrong_one_each_time() {
        let echo = echo();
        let of = |signature| verdict(echo, ["key", "right", signature]);
        assert_eq!(of("right"), (true, true));
        assert_eq!(of("right"), (true, false));
        assert_eq!(of("wrong"), (false, true));
        assert_eq!(of("wrong"), (false, true));
    }

    #[test]
    fn whatever_differs_in_one_byte_is_verified_by_itself() {
        let echo = echo();
        assert_eq!(verdict(echo, ["key", "right", "right"]), (true, true));
        assert_eq!(verdict(echo, ["kez", "right", "right"]), (true, true));
        for other in [
            ["key", "righu", "right"],
            // The same bytes in a row, cut elsewhere.
            ["key", "rightr", "ight"],
            ["keyr", "ight", "right"],
        ] {
            assert_eq!(verdict(echo, other), (false, true), "{other:?}");
        }
    }

    #[test]
    fn many_signatures_take_no_more_room_and_the_latest_stay() {
        let echo = echo();
        let of = |number: usize| verdict(echo, ["key", &number.to_string(), &number.to_string()]);
        for number in 0..2 * REMEMBERED {
            assert_eq!(of(number), (true, true));
        }
        for number in REMEMBERED..2 * REMEMBERED {
            assert_eq!(of(number), (true, false));
        }
        assert_eq!(of(0), (true, true));
    }
}
