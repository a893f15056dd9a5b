use super::*;

const CA: &[u8] = include_bytes!("../../../testdata/ca.der");
const NODE: &[u8] = include_bytes!("../../../testdata/node.der");
const CRL: &[u8] = include_bytes!("../../../testdata/ca.crl.der");
const DAY: i64 = 86_400;

fn certificate(der: &[u8]) -> Certificate {
    Certificate::parse(der).unwrap()
}

/// A moment at which everything in `testdata` is valid and young.
fn young() -> i64 {
    certificate(NODE).not_before() + 10 * DAY
}

fn ids(faults: &[Fault]) -> Vec<&'static str> {
    faults.iter().map(Fault::id).collect()
}

#[test]
fn each_fault_of_a_node_is_found_and_nothing_else() {
    for (name, der, expected) in [
        ("node", NODE, &[][..]),
        (
            "x.509 v1",
            include_bytes!("../../../testdata/v1.der"),
            &["T04"],
        ),
        (
            "self-signed",
            include_bytes!("../../../testdata/self-signed.der"),
            &["T05"],
        ),
        ("the CA", CA, &["T06"]),
        (
            "only for clients",
            include_bytes!("../../../testdata/only-client.der"),
            &["T07"],
        ),
        (
            "only for servers",
            include_bytes!("../../../testdata/only-server.der"),
            &["T08"],
        ),
        (
            "no digitalSignature",
            include_bytes!("../../../testdata/no-signing.der"),
            &["T09"],
        ),
        (
            "no SAN",
            include_bytes!("../../../testdata/no-san.der"),
            &["T10"],
        ),
        (
            "RSA 1024",
            include_bytes!("../../../testdata/rsa1024.der"),
            &["T11"],
        ),
        (
            "a curve of its own",
            include_bytes!("../../../testdata/secp256k1.der"),
            &["T11"],
        ),
        (
            "SHA-1",
            include_bytes!("../../../testdata/sha1.der"),
            &["T12"],
        ),
    ] {
        assert_eq!(
            ids(&faults(&certificate(der), Use::Node, young())),
            expected,
            "{name}"
        );
    }
}

#[test]
fn dates_are_judged_at_the_time_given() {
    let node = certificate(NODE);
    let (begin, end) = (node.not_before(), node.not_after());
    for (now, expected) in [
        (begin - 1, &["T02"][..]),
        (begin, &[]),
        (begin + (end - begin) / 2, &[]),
        (end - (end - begin) / 3 + 2, &["T03"]),
        (end, &["T03"]),
        (end + 1, &["T01"]),
        (i64::MIN, &["T02"]),
        (i64::MAX, &["T01"]),
    ] {
        assert_eq!(ids(&faults(&node, Use::Node, now)), expected, "{now}");
    }
    let expired = faults(&node, Use::Node, end + 3 * DAY + 5).remove(0);
    assert!(!expired.is_warning());
    assert_eq!(
        expired.to_string(),
        format!(
            "the certificate of CN=db1 (serial {}) expired on 2036-11-21 10:00:00 UTC, 3 days ago",
            node.serial()
        )
    );
    assert_eq!(expired.way_out(), "on the CA's host: certs-tool renew db1");
}

#[test]
fn ed25519_is_a_warning_where_postgresql_shows_it() {
    let ca = certificate(include_bytes!("../../../testdata/ed25519-ca.der"));
    let node = certificate(include_bytes!("../../../testdata/ed25519.der"));
    assert_eq!(ids(&faults(&ca, Use::Ca, young())), ["T13"]);
    assert_eq!(ids(&faults(&node, Use::Node, young())), [""; 0]);
    let found = faults(&node, Use::PostgresItself, young());
    assert_eq!(ids(&found), ["T13"]);
    assert!(found[0].is_warning());
}

#[test]
fn postgresql_itself_need_not_be_a_client() {
    let server = certificate(include_bytes!("../../../testdata/only-server.der"));
    assert_eq!(ids(&faults(&server, Use::PostgresItself, young())), [""; 0]);
}

#[test]
fn a_ca_file_must_hold_cas() {
    let (ca, node) = (certificate(CA), certificate(NODE));
    let v1 = certificate(include_bytes!("../../../testdata/v1-ca.der"));
    assert_eq!(
        ids(&bundle_faults(std::slice::from_ref(&ca), young())),
        [""; 0]
    );
    assert_eq!(
        ids(&bundle_faults(&[v1], young())),
        [""; 0],
        "a root of version 1 is taken by its file"
    );
    assert_eq!(ids(&bundle_faults(&[ca, node.clone()], young())), ["T14"]);
    assert_eq!(ids(&bundle_faults(&[node], young())), ["T14", "T16"]);
    assert_eq!(ids(&bundle_faults(&[], young())), ["T16"]);
}

#[test]
fn crls_and_cas_must_fit() {
    let crl = Crl::parse(CRL).unwrap();
    let (ca, namesake) = (
        certificate(CA),
        certificate(include_bytes!("../../../testdata/namesake-ca.der")),
    );
    let now = crl.this_update() + DAY;
    let one = std::slice::from_ref(&crl);
    assert_eq!(
        ids(&crl_faults(one, std::slice::from_ref(&ca), now)),
        [""; 0]
    );
    assert_eq!(
        ids(&crl_faults(&[], std::slice::from_ref(&ca), now)),
        [""; 0]
    );
    assert_eq!(
        ids(&crl_faults(one, std::slice::from_ref(&namesake), now)),
        ["T21", "T20"]
    );
    let both = crl_faults(one, &[ca.clone(), namesake], now);
    assert_eq!(ids(&both), ["T21", "T27"]);
    assert!(both[1].is_warning() && both[1].to_string().contains("CN=Test CA"));
    assert_eq!(
        ids(&crl_faults(one, &[ca.clone(), ca.clone()], now)),
        [""; 0]
    );
    let end = crl.next_update().unwrap();
    assert_eq!(
        ids(&crl_faults(one, std::slice::from_ref(&ca), end - DAY)),
        ["T19"]
    );
    let expired = crl_faults(one, std::slice::from_ref(&ca), end + 1);
    assert_eq!(ids(&expired), ["T18"]);
    assert!(
        expired[0].to_string().contains("CN=Test CA expired on"),
        "{}",
        expired[0]
    );
    assert!(crl.revokes(&certificate(include_bytes!(
        "../../../testdata/only-client.der"
    ))));
    assert!(!crl.revokes(&certificate(NODE)));
}

#[test]
fn a_chain_is_followed_through_intermediates() {
    let (ca, node) = (certificate(CA), certificate(NODE));
    let namesake = certificate(include_bytes!("../../../testdata/namesake-ca.der"));
    let middle = certificate(include_bytes!("../../../testdata/middle-ca.der"));
    let below = certificate(include_bytes!("../../../testdata/below-middle.der"));
    let self_signed = certificate(include_bytes!("../../../testdata/self-signed.der"));
    let cas = std::slice::from_ref(&ca);
    assert_eq!(leads_to(&node, &[], cas), None);
    assert_eq!(leads_to(&below, std::slice::from_ref(&middle), cas), None);
    assert_eq!(
        leads_to(&below, &[namesake.clone(), middle.clone()], cas),
        None
    );
    let lost = leads_to(&below, &[], cas).unwrap();
    assert!(
        lost.to_string()
            .contains("its issuer CN=Middle CA is not in it"),
        "{lost}"
    );
    let other_key = leads_to(&node, &[], &[namesake]).unwrap();
    assert!(
        other_key.to_string().contains("same name and another key"),
        "{other_key}"
    );
    assert_eq!(leads_to(&self_signed, &[], cas).unwrap().id(), "T05");
    // A circle of intermediates ends.
    assert!(leads_to(&below, &[below.clone(), middle.clone(), middle], &[]).is_some());
}

#[test]
fn a_strangers_names_are_not_made_into_a_command() {
    let hostile = certificate(include_bytes!("../../../testdata/hostile.der"));
    let fault = faults(&hostile, Use::Node, hostile.not_after() + 1).remove(0);
    assert_eq!(fault.way_out(), "on the CA's host: certs-tool renew NAME");
    let early = faults(&hostile, Use::Node, hostile.not_before() - 1).remove(0);
    assert_eq!(
        early.way_out(),
        "check the clock of this host; if it is right: certs-tool issue NAME --san ... --force"
    );
    assert!(!fault.to_string().contains(char::is_control));
}

#[test]
fn every_fault_has_an_id_of_its_own_and_a_way_out() {
    let which = || Which::of(&certificate(NODE));
    let moment = Moment { at: 0, now: 0 };
    let text = String::new;
    let all = [
        Fault::Expired(which(), moment),
        Fault::NotYetValid(which(), moment),
        Fault::ExpiresSoon(which(), moment),
        Fault::OldVersion(which(), 1),
        Fault::SelfSigned(which()),
        Fault::CaAsNode(which()),
        Fault::NotForServers(which()),
        Fault::NotForClients(which()),
        Fault::NotForHandshakes(which()),
        Fault::NoNames(which()),
        Fault::UnusableKey(which(), KeyAlgorithm::Rsa(1024)),
        Fault::UnusableSignature(which(), Signature::Unknown),
        Fault::Ed25519(which()),
        Fault::NotACa(which()),
        Fault::CaMayNotSign(which()),
        Fault::NoCa,
        Fault::NoPath {
            leaf: which(),
            missing: text(),
            namesake: false,
        },
        Fault::CrlExpired {
            issuer: text(),
            next_update: moment,
        },
        Fault::CrlExpiresSoon {
            issuer: text(),
            next_update: moment,
        },
        Fault::ForeignCrl {
            issuer: text(),
            namesake: true,
        },
        Fault::NoCrl(which()),
        Fault::CaMayNotSignCrls(which()),
        Fault::SameName(which()),
    ];
    let mut seen = ids(&all);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all.len());
    assert!(
        all.iter()
            .all(|fault| !fault.way_out().is_empty() && !fault.to_string().is_empty())
    );
}

#[test]
fn damaged_input_is_an_error_and_never_a_panic() {
    for der in [NODE, CA, CRL] {
        for position in 0..der.len() {
            assert!(
                Certificate::parse(&der[..position]).is_err()
                    && Crl::parse(&der[..position]).is_err()
            );
            for value in [0x00, 0x30, 0x7f, 0x80, 0xff] {
                let mut damaged = der.to_vec();
                damaged[position] = value;
                if let Ok(certificate) = Certificate::parse(&damaged) {
                    faults(&certificate, Use::Node, 0);
                }
                let _ = Crl::parse(&damaged);
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_are_an_answer_too(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
        let _ = (Certificate::parse(&bytes), Crl::parse(&bytes), KeyAlgorithm::parse(&bytes));
    }
}
