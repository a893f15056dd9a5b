use std::ops::RangeInclusive;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::*;

fn aging(serial: &str, problem: Option<&'static str>) -> Vec<(Validity, Option<Problem>)> {
    let validity = Validity {
        of: Of::Own,
        name: "dns:db1".to_owned(),
        serial: serial.to_owned(),
        not_before: 0,
        not_after: 1,
    };
    vec![(
        validity,
        problem.map(|id| Problem::new(id, "ends", "", "renew")),
    )]
}

#[test]
fn a_warning_is_told_when_it_begins_and_once_a_day() {
    let begin = SystemTime::UNIX_EPOCH + DAY;
    let told = |health: &Health| {
        let state = health.state();
        state.aging.values().next().map(|notice| notice.told)
    };
    let health = Health::default();
    let hour = Duration::from_secs(3600);
    health.own(aging("1", None), begin);
    assert!(health.warnings().is_empty());
    health.own(aging("1", Some("T03")), begin);
    assert_eq!(told(&health), Some(begin));
    health.own(aging("1", Some("T03")), begin + hour * 23);
    assert_eq!(told(&health), Some(begin));
    health.own(aging("1", Some("T03")), begin + DAY);
    assert_eq!(told(&health), Some(begin + DAY));
    assert_eq!(health.warnings()[0].since, begin);
    assert_eq!(health.own_warnings().len(), 1);
    // It has expired: that is another warning, and told at once.
    health.own(aging("1", Some("T01")), begin + DAY + hour);
    assert_eq!(told(&health), Some(begin + DAY + hour));
    health.own(aging("2", None), begin + DAY + hour);
    assert!(health.warnings().is_empty());
    assert_eq!(health.validities()[0].serial, "2");
}
fn peer(days: RangeInclusive<i64>) -> PeerCertificate {
    let mut params = CertificateParams::new(vec!["standby".to_owned()]).unwrap();
    let at = |day: &i64| date_time_ymd(2020, 1, 1) + DAY * u32::try_from(*day).unwrap();
    (params.not_before, params.not_after) = (at(days.start()), at(days.end()));
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    PeerCertificate::of([certificate].into_iter().collect()).unwrap()
}

#[test]
fn the_certificate_that_was_issued_last_stands_for_a_peer() {
    let at = |day: u32| SystemTime::from(date_time_ymd(2020, 1, 1) + DAY * day);
    let (old, new) = (peer(0..=90), peer(70..=160));
    let health = Health::default();
    let known = |peer: &PeerCertificate| {
        let known = health.peers();
        assert_eq!(known.len(), 1);
        known[0].fingerprint() == peer.identity.fingerprint()
    };
    health.met(&old, at(71));
    assert!(known(&old) && health.warnings().len() == 1);
    health.met(&new, at(71));
    assert!(known(&new) && health.warnings().is_empty());
    // Sessions with both go on.
    for _ in 0..2 {
        health.met(&old, at(72));
        assert!(known(&new) && health.warnings().is_empty());
        health.met(&new, at(72));
    }
    // The old one's are left; it is no news that it ends.
    health.met(&old, at(73));
    health.forget_the_gone(at(73));
    assert!(known(&new) && health.warnings().is_empty());
}
