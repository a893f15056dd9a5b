//! What is signed so that the next key, and the next CA, need no person: a request is signed over with the key that the
//! node has, and a CA says which one follows it. Each is believed for its signature, whoever carries it.
//!
//! What is signed begins with a label, which no certificate and no CRL does (they are a SEQUENCE), so that one can never
//! be taken for the other.

use std::path::Path;

use protocol::hex::{Hex, from_hex};
use protocol::identity::Fingerprint;
use protocol::node::{Node, Nodes, Word};
use rcgen::{KeyPair, SigningKey};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::key;
use crate::report::{Date, Failure};
use crate::verify::{belongs_to, has_signed};

const REQUEST: &[u8] = b"pgtlsproxy renewal 1: request\0";
const NEXT_CA: &[u8] = b"pgtlsproxy renewal 1: next CA\0";
const DROPPED: &[u8] = b"pgtlsproxy renewal 1: no CA\0";
const NODES: &[u8] = b"pgtlsproxy members 2: nodes\0";

/// The signature of a request for the next certificate by the key of this one, in PEM; in hexadecimal.
pub fn sign_over(request: &str, key_pem: &[u8]) -> Result<String, Failure> {
    let key = read_key(key_pem)?;
    let signature = key.sign(&[REQUEST, request.as_bytes()].concat());
    signature
        .map(|signature| Hex(&signature).to_string())
        .map_err(|error| Failure::new("cannot sign the request", error.to_string(), ""))
}

/// Whether whoever holds the key of this certificate has signed the request.
pub fn is_signed_over(request: &str, certificate: &CertificateDer<'_>, signature: &str) -> bool {
    let message = [REQUEST, request.as_bytes()].concat();
    from_hex(signature).is_some_and(|signature| has_signed(certificate, &message, &signature))
}

/// Whether this key, in PEM, is the one of the certificate.
pub fn is_key_of(key_pem: &[u8], certificate: &CertificateDer<'_>) -> bool {
    read_key(key_pem).is_ok_and(|key| belongs_to(&key, certificate))
}

/// Whether the CA `by`, which is trusted, says that `ca` follows it.
pub fn vouches(word: &Word, by: &CertificateDer<'_>, ca: &CertificateDer<'_>, now: Date) -> bool {
    is_given(NEXT_CA, word, by, ca, now)
}

/// The word of the CA with this key that `ca` follows it.
pub(crate) fn vouch(
    by: &CertificateDer<'_>,
    key: &KeyPair,
    ca: &CertificateDer<'_>,
    until: Date,
) -> Result<Word, Failure> {
    give(NEXT_CA, by, key, Fingerprint::of(ca), until)
}

/// Whether the CA `by`, which is trusted, says that `ca` is to be trusted no longer.
pub fn drops(word: &Word, by: &CertificateDer<'_>, ca: &CertificateDer<'_>, now: Date) -> bool {
    is_given(DROPPED, word, by, ca, now)
}

/// The word of the CA with this key that `ca` is to be trusted no longer.
pub(crate) fn drop_word(
    by: &CertificateDer<'_>,
    key: &KeyPair,
    ca: Fingerprint,
    until: Date,
) -> Result<Word, Failure> {
    give(DROPPED, by, key, ca, until)
}

fn is_given(
    label: &[u8],
    word: &Word,
    by: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    now: Date,
) -> bool {
    let (by_print, ca_print) = (Fingerprint::of(by), Fingerprint::of(ca));
    word.by == by_print.to_string()
        && word.ca == ca_print.to_string()
        && now.unix() <= word.until
        && from_hex(&word.signature).is_some_and(|signature| {
            let message = message(label, by_print, ca_print, word.until);
            has_signed(by, &message, &signature)
        })
}

fn give(
    label: &[u8],
    by: &CertificateDer<'_>,
    key: &KeyPair,
    ca: Fingerprint,
    until: Date,
) -> Result<Word, Failure> {
    let by = Fingerprint::of(by);
    let signature = key
        .sign(&message(label, by, ca, until.unix()))
        .map_err(|error| Failure::new("cannot sign", error.to_string(), ""))?;
    Ok(Word {
        ca: ca.to_string(),
        by: by.to_string(),
        until: until.unix(),
        signature: Hex(&signature).to_string(),
    })
}

/// Whether the CA `by`, which is trusted, says that these are its nodes.
pub fn lists(nodes: &Nodes, by: &CertificateDer<'_>, now: Date) -> bool {
    let print = Fingerprint::of(by);
    nodes.by == print.to_string()
        && now.unix() <= nodes.until
        && from_hex(&nodes.signature).is_some_and(|signature| {
            has_signed(by, &list(print, nodes.until, &nodes.nodes), &signature)
        })
}

/// The word of the CA with this key that these are its nodes.
pub(crate) fn sign_list(
    by: &CertificateDer<'_>,
    key: &KeyPair,
    nodes: Vec<Node>,
    until: Date,
) -> Result<Nodes, Failure> {
    let by = Fingerprint::of(by);
    let signature = key
        .sign(&list(by, until.unix(), &nodes))
        .map_err(|error| Failure::new("cannot sign", error.to_string(), ""))?;
    Ok(Nodes {
        nodes,
        by: by.to_string(),
        until: until.unix(),
        signature: Hex(&signature).to_string(),
    })
}

/// Each text has its length before it, and each list its own, so nothing can be moved from one to another.
fn list(by: Fingerprint, until: i64, nodes: &[Node]) -> Vec<u8> {
    let mut message = [NODES, by.as_bytes(), &until.to_be_bytes()].concat();
    let mut put = |length: usize, bytes: &[u8]| {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        message.extend(length.to_be_bytes());
        message.extend(bytes);
    };
    for node in nodes {
        put(node.name.len(), node.name.as_bytes());
        let kinds = [node.logical, node.ordinary].map(u8::from);
        put(node.identities.len(), &kinds);
        for identity in &node.identities {
            put(identity.len(), identity.as_bytes());
        }
    }
    message
}

/// All parts behind the label have fixed lengths, so nothing can be moved from one to another.
fn message(label: &[u8], by: Fingerprint, ca: Fingerprint, until: i64) -> Vec<u8> {
    [label, by.as_bytes(), ca.as_bytes(), &until.to_be_bytes()].concat()
}

fn read_key(pem: &[u8]) -> Result<Zeroizing<KeyPair>, Failure> {
    key::from_bytes(pem, Path::new("the key"), || {
        Err(Failure::new(
            "the key has a passphrase",
            "the proxy starts without a person and reads no such key",
            "",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, CA_KEY, NewAuthority, NewNode};
    use crate::store::Existing;

    #[test]
    fn what_is_signed_holds_for_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let dir = place.path().join(name);
            Authority::create(&dir, &NewAuthority::default(), Existing::Keep).unwrap()
        };
        let (old, new) = (make("old"), make("new"));
        let der = |authority: &Authority| authority.signing_der().clone();
        let key = read_key(&std::fs::read(place.path().join("old").join(CA_KEY)).unwrap()).unwrap();
        let until = Date::now().plus(60);
        let voucher = vouch(&der(&old), &key, &der(&new), until).unwrap();
        assert!(vouches(&voucher, &der(&old), &der(&new), Date::now()));
        assert!(
            !vouches(&voucher, &der(&new), &der(&old), Date::now()),
            "backwards"
        );
        assert!(
            !vouches(&voucher, &der(&old), &der(&new), until.plus(1)),
            "late"
        );
        let longer = Word {
            until: until.unix() + 1,
            ..voucher
        };
        assert!(!vouches(&longer, &der(&old), &der(&new), Date::now()));

        let gone = drop_word(&der(&new), &key, Fingerprint::of(&der(&old)), until);
        assert!(
            !drops(&gone.unwrap(), &der(&new), &der(&old), Date::now()),
            "by another key"
        );
        let gone = drop_word(&der(&old), &key, Fingerprint::of(&der(&new)), until).unwrap();
        assert!(drops(&gone, &der(&old), &der(&new), Date::now()));
        assert!(!drops(&gone, &der(&old), &der(&old), Date::now()));
        assert!(!drops(&gone, &der(&old), &der(&new), until.plus(1)), "late");
        assert!(
            !vouches(&gone, &der(&old), &der(&new), Date::now()),
            "the one is never taken for the other"
        );

        let node = |name: &str, identities: &[&str], ordinary: bool| Node {
            name: name.to_owned(),
            identities: identities.iter().map(ToString::to_string).collect(),
            logical: false,
            ordinary,
        };
        let listed = vec![
            node("db1", &["dns:a", "dns:b"], false),
            node("standby1", &[], false),
        ];
        let nodes = sign_list(&der(&old), &key, listed.clone(), until).unwrap();
        assert!(lists(&nodes, &der(&old), Date::now()));
        assert!(!lists(&nodes, &der(&new), Date::now()), "of another CA");
        assert!(!lists(&nodes, &der(&old), until.plus(1)), "late");
        let others = [
            [&listed[..], &[node("evil", &[], false)]].concat(),
            vec![node("db1standby1", &[], false)],
            vec![listed[0].clone()],
            vec![node("db1", &["dns:a", "dns:b"], true), listed[1].clone()],
            vec![node("db1", &["dns:adns:b"], false), listed[1].clone()],
            vec![
                node("db1", &["dns:a"], false),
                node("standby1", &["dns:b"], false),
            ],
        ];
        for nodes_now in others {
            let other = Nodes {
                nodes: nodes_now.clone(),
                ..nodes.clone()
            };
            assert!(!lists(&other, &der(&old), Date::now()), "{nodes_now:?}");
        }

        let out = place.path().join("node");
        let node = NewNode::new("db1", &[]).unwrap();
        let made = old.issue(&node, &out, Existing::Keep).unwrap();
        let pem = std::fs::read(made.key_path.unwrap()).unwrap();
        let bundle = crate::authority::read_bundle(
            &std::fs::read(&made.certificate_path).unwrap(),
            &made.certificate_path,
        );
        let (_, leaf) = bundle.unwrap().remove(0);
        let signature = sign_over("request", &pem).unwrap();
        assert!(is_key_of(&pem, &leaf) && !is_key_of(&pem, &der(&old)));
        assert!(is_signed_over("request", &leaf, &signature));
        assert!(!is_signed_over("another", &leaf, &signature));
        assert!(!is_signed_over("request", &der(&old), &signature));
        for wrong in ["", "0", "zz", "ü"] {
            assert!(!is_signed_over("request", &leaf, wrong), "{wrong}");
        }
    }
}
