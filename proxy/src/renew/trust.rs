//! Which CAs are trusted from now on: those that are trusted already, whoever put them there, and those that one of them
//! vouches for; and no longer those that our CA has dropped. Nothing goes because nobody spoke of it: a CA that ours
//! does not know, a partner's say, is the business of whoever put it on this host.

use certs_tool::report::Date;
use certs_tool::succession::{drops, vouches};
use protocol::certificate::Certificate;
use protocol::identity::Fingerprint;
use protocol::node::Certificates;
use rustls_pki_types::CertificateDer;

use super::install::{parse, useless};
use crate::problem::Problem;

pub(super) type Ca = CertificateDer<'static>;

/// No node trusts more, even in a rotation; and no more words of CAs are looked at.
const MOST: usize = 16;

/// Why CAs are believed that came with a certificate.
pub(super) enum Trust {
    /// They lie on this host.
    Ours,
    /// Those that are trusted already, and those that one of them vouches for.
    Vouched,
}

/// What came of it.
pub(super) struct Trusted {
    pub(super) cas: Vec<Ca>,
    /// Which CAs came besides, and are not trusted.
    pub(super) left_out: Option<Problem>,
}

/// Fails where the CA that signs now is not trusted: nothing that it makes would be of use here.
pub(super) fn judge(before: &[Ca], came: &Certificates, trust: &Trust) -> Result<Trusted, Problem> {
    let now = Date::now();
    let offered: Vec<Ca> = parse(&came.ca)?;
    if offered.len() > MOST {
        return Err(useless(format!("{} CAs came", offered.len())));
    }
    let vouchers = || came.vouchers.iter().take(MOST);
    let is_believed = |ca: &Ca| match trust {
        Trust::Ours => true,
        Trust::Vouched => {
            before.contains(ca)
                || vouchers().any(|voucher| before.iter().any(|by| vouches(voucher, by, ca, now)))
        }
    };
    let (believed, strangers): (Vec<Ca>, Vec<Ca>) = offered.into_iter().partition(is_believed);
    let signs = |ca: &&Ca| Fingerprint::of(ca).to_string() == came.signing;
    if let Some(ca) = strangers.iter().find(signs) {
        return Err(stranger(&subject(ca)));
    }
    let mut cas = before.to_vec();
    cas.extend(believed.into_iter().filter(|ca| !before.contains(ca)));
    let words = || came.dropped.iter().take(MOST);
    let is_dropped =
        |ca: &Ca| words().any(|word| cas.iter().any(|by| by != ca && drops(word, by, ca, now)));
    let kept: Vec<Ca> = cas.iter().filter(|ca| !is_dropped(ca)).cloned().collect();
    if kept.len() > MOST {
        return Err(useless(format!(
            "with it {} CAs would be trusted",
            kept.len()
        )));
    }
    let names: Vec<String> = strangers.iter().map(subject).collect();
    Ok(Trusted {
        cas: kept,
        left_out: (!names.is_empty()).then(|| stranger(&names.join("; ")).warning()),
    })
}

pub(super) fn subject(ca: &Ca) -> String {
    Certificate::parse(ca).map_or_else(|_| "unreadable".to_owned(), |ca| ca.subject().to_string())
}

fn stranger(names: &str) -> Problem {
    Problem::new(
        "K19",
        format!("another CA came ({names}), and is not trusted"),
        "no CA that is trusted here vouches for it: this host missed a rotation, somebody added it there by hand, or \
         somebody pretends",
        "compare it with ca.crt on the CA's host, and copy that by hand if it is the same",
    )
}

#[cfg(test)]
mod tests {
    use certs_tool::authority::{Authority, CA_CERTIFICATE, NewAuthority};
    use certs_tool::report::Failure;
    use certs_tool::store::Existing;
    use protocol::node::Word;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn a_ca_comes_and_goes_on_the_word_of_ours_and_a_partners_stays() {
        let place = tempfile::tempdir().unwrap();
        let [ours, partners] = ["ours", "partners"].map(|name| place.path().join(name));
        for dir in [&ours, &partners] {
            Authority::create(dir, &NewAuthority::default(), Existing::Keep).unwrap();
        }
        let open = || Authority::open(&ours, || Err(Failure::new("none", "", ""))).unwrap();
        let told = || {
            let authority = open();
            Certificates {
                ca: std::fs::read_to_string(ours.join(CA_CERTIFICATE)).unwrap(),
                signing: Fingerprint::of(authority.signing_der()).to_string(),
                vouchers: authority.vouchers().unwrap(),
                dropped: authority.dropped().unwrap(),
                ..Certificates::default()
            }
        };
        let partner = Ca::from_pem_file(partners.join(CA_CERTIFICATE)).unwrap();
        let old = open().signing_der().clone();
        let before = [old.clone(), partner.clone()];
        let judged = |before: &[Ca], came: &Certificates| judge(before, came, &Trust::Vouched);

        assert_eq!(judged(&before, &told()).unwrap().cas, before);
        open().start_rotation(&NewAuthority::default()).unwrap();
        let both = judged(&before, &told()).unwrap().cas;
        assert_eq!((both.len(), &both[..2]), (3, &before[..]));
        let new = both[2].clone();
        open().switch_rotation().unwrap();
        open().finish_rotation().unwrap();
        let last = told();
        assert_eq!(
            judged(&both, &last).unwrap().cas,
            [partner.clone(), new.clone()]
        );
        // One that was away meanwhile.
        assert_eq!(judged(&before, &last).err().unwrap().id, "K19");

        let silent = Certificates::default();
        assert_eq!(judged(&both, &silent).unwrap().cas, both);
        let word = &last.dropped[0];
        let of_partner = Word {
            ca: Fingerprint::of(&partner).to_string(),
            ..word.clone()
        };
        let forged = Certificates {
            dropped: vec![of_partner],
            ..last.clone()
        };
        assert_eq!(judged(&both, &forged).unwrap().cas, both);
        let by_stranger = judge(std::slice::from_ref(&partner), &last, &Trust::Ours);
        assert_eq!(by_stranger.unwrap().cas, [partner, new]);
    }
}
