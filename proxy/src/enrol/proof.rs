//! Proofs of an invitation's secret: HMAC-SHA256 over the TLS session's exporter and what is said, each direction with
//! a label of its own. A secret of 256 random bits cannot be guessed from one.

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign, verify};
use protocol::hex::{Hex, from_hex};

use super::token::Secret;
use crate::tls::BINDING;

/// Who proves.
#[derive(Clone, Copy)]
pub(super) enum Prover {
    /// Whoever joins, over its request.
    Joiner,
    /// Whoever invited, over what it grants.
    Inviter,
}

impl Prover {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Joiner => b"pgtlsproxy-node/1 enrol joiner\0",
            Self::Inviter => b"pgtlsproxy-node/1 enrol inviter\0",
        }
    }
}

/// The invitation's name towards the daemon: it tells nothing of the secret.
pub(super) fn invitation_id(secret: &Secret) -> String {
    let tag = sign(&key(secret), b"pgtlsproxy-node/1 enrol id\0");
    Hex(tag.as_ref().get(..8).unwrap_or_default()).to_string()
}

/// The proof, in hexadecimal.
pub(super) fn prove(
    secret: &Secret,
    prover: Prover,
    binding: &[u8; BINDING],
    said: &[u8],
) -> String {
    Hex(sign(&key(secret), &message(prover, binding, said)).as_ref()).to_string()
}

/// Whether the proof is right; takes the same time whatever is wrong with it.
pub(super) fn is_proof(
    secret: &Secret,
    prover: Prover,
    binding: &[u8; BINDING],
    said: &[u8],
    proof: &str,
) -> bool {
    from_hex(proof)
        .is_some_and(|tag| verify(&key(secret), &message(prover, binding, said), &tag).is_ok())
}

fn key(secret: &Secret) -> Key {
    Key::new(HMAC_SHA256, secret.as_bytes())
}

/// Label and exporter have fixed lengths, so nothing can be moved from one to the other.
fn message(prover: Prover, binding: &[u8; BINDING], said: &[u8]) -> Vec<u8> {
    [prover.label(), binding, said].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_secret_session_direction_and_words_only() {
        let (secret, other) = (Secret::random().unwrap(), Secret::random().unwrap());
        let (here, there) = ([1; BINDING], [2; BINDING]);
        let proof = prove(&secret, Prover::Joiner, &here, b"request");
        assert!(is_proof(&secret, Prover::Joiner, &here, b"request", &proof));
        assert!(!is_proof(&other, Prover::Joiner, &here, b"request", &proof));
        assert!(!is_proof(
            &secret,
            Prover::Inviter,
            &here,
            b"request",
            &proof
        ));
        assert!(!is_proof(
            &secret,
            Prover::Joiner,
            &there,
            b"request",
            &proof
        ));
        assert!(!is_proof(
            &secret,
            Prover::Joiner,
            &here,
            b"another",
            &proof
        ));
        for wrong in ["", "zz", "0", &proof[2..], &proof.replace(['0', '1'], "2")] {
            assert!(
                !is_proof(&secret, Prover::Joiner, &here, b"request", wrong),
                "{wrong}"
            );
        }
        assert_ne!(invitation_id(&secret), invitation_id(&other));
    }
}
