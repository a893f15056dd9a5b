use super::*;

const NAMES: &[u8] = include_bytes!("../../testdata/names.der");
const CONTROL: &[u8] = include_bytes!("../../testdata/control.der");
const TWO_COMMON_NAMES: &[u8] = include_bytes!("../../testdata/two-cn.der");
const OPENSSL_FINGERPRINT: &str = "4F:02:33:BD:5C:2C:61:11:FB:66:8B:85:C2:B9:6F:2E:\
                                   4D:69:84:5F:54:97:32:98:DF:E3:A5:BC:DB:34:63:6C";

fn pattern(text: &str) -> IdentityPattern {
    text.parse().unwrap()
}

fn with_dns(names: &[&str]) -> Identity {
    Identity::with_dns(names)
}

#[test]
fn reads_every_kind_of_name() {
    let identity = Identity::parse(NAMES).unwrap();
    assert_eq!(identity.common_name(), Some("db1"));
    assert_eq!(identity.dns(), ["DB1.example.com", "*.wild.example.com"]);
    let addresses: Vec<String> = identity.ip().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "10.0.0.2", "2001:db8::1"]);
    assert_eq!(identity.uri(), ["spiffe://site/db1"]);
    assert_eq!(identity.serial().len(), 20);
    assert_eq!(identity.not_after() - identity.not_before(), 3650 * 86400);
    assert_eq!(identity.to_string(), "dns:DB1.example.com");
}

#[test]
fn patterns_match_as_written() {
    let identity = Identity::parse(NAMES).unwrap();
    for (text, expected) in [
        ("cn:db1", true),
        ("cn:DB1", false),
        ("cn:*", true),
        ("dns:db1.example.com", true),
        ("dns:*.example.com", true),
        ("dns:db1.*.com", true),
        ("dns:*.*.*", true),
        ("dns:example.com", false),
        ("dns:*.com", false),
        ("dns:*", false),
        ("dns:a.wild.example.com", false),
        ("dns:*.wild.example.com", true),
        ("ip:10.0.0.1", true),
        ("ip:::ffff:10.0.0.1", true),
        ("ip:10.0.0.2", true),
        ("ip:2001:db8:0::1", true),
        ("ip:10.0.0.3", false),
        ("uri:spiffe://site/db1", true),
        ("uri:spiffe://site/DB1", false),
        ("uri:spiffe://site/", false),
    ] {
        assert_eq!(pattern(text).matches(&identity), expected, "{text}");
    }
}

#[test]
fn a_fingerprint_is_taken_with_and_without_colons() {
    let identity = Identity::parse(NAMES).unwrap();
    let plain = OPENSSL_FINGERPRINT.replace(':', "");
    for text in [OPENSSL_FINGERPRINT, &plain, &plain.to_lowercase()] {
        assert!(
            pattern(&format!("sha256:{text}")).matches(&identity),
            "{text}"
        );
    }
    assert_eq!(identity.fingerprint().to_string(), plain.to_lowercase());
    let other = format!("sha256:{}", plain.replace('4', "5"));
    assert!(!pattern(&other).matches(&identity));
}

#[test]
fn a_star_in_the_peers_certificate_is_text() {
    let wild = with_dns(&["*.example.com"]);
    assert!(!pattern("dns:db1.example.com").matches(&wild));
    assert!(!pattern("dns:db1.*.com").matches(&wild));
    assert!(pattern("dns:*.example.com").matches(&wild));
    assert!(!pattern("dns:*.example.com").matches(&with_dns(&[".example.com", "example.com"])));
}

#[test]
fn dns_and_common_name_are_not_mixed() {
    let identity = with_dns(&["db1"]);
    assert!(pattern("dns:db1").matches(&identity));
    assert!(!pattern("cn:db1").matches(&identity));
}

#[test]
fn of_several_common_names_none_counts() {
    let identity = Identity::parse(TWO_COMMON_NAMES).unwrap();
    assert_eq!(identity.common_name(), None);
    assert!(identity.to_string().starts_with("sha256:"));
    assert!(!pattern("cn:db1").matches(&identity));
    assert!(!pattern("cn:Users").matches(&identity));
}

#[test]
fn patterns_are_shown_as_they_are_read() {
    let fingerprint = format!("sha256:{}", "0a".repeat(32));
    for text in [
        "cn:db 1",
        "dns:*.example.com",
        "ip:2001:db8::1",
        "uri:spiffe://a/b",
        &fingerprint,
    ] {
        assert_eq!(pattern(text).to_string(), text);
        assert_eq!(pattern(&pattern(text).to_string()), pattern(text));
    }
}

#[test]
fn a_wrong_pattern_says_what_to_write() {
    let long = format!("sha256:{}", "0".repeat(66));
    let ragged = format!("sha256:0:{}", "0".repeat(63));
    for (text, part) in [
        ("db1.example.com", "`dns:db1.example.com`"),
        ("2001:db8::1", "`ip:2001:db8::1`"),
        ("spiffe://site/db1", "`uri:spiffe://site/db1`"),
        ("DNS:db1", "dns:"),
        ("", "cn:, dns:, ip:"),
        ("dns:", "must follow the colon"),
        ("dns:db*.example.com", "one whole label"),
        ("cn:**", "one whole label"),
        ("dns:db1..com", "not a DNS name"),
        ("dns:db1.example.com.", "not a DNS name"),
        ("dns:bücher.example", "xn--"),
        ("dns:10.0.0.1", "`ip:10.0.0.1`"),
        ("ip:10.0.0.0/8", "no network"),
        ("uri:spiffe://*/db1", "compared whole"),
        ("sha256:12", "64 hexadecimal digits"),
        (&long, "64 hexadecimal digits"),
        (&ragged, "64 hexadecimal digits"),
        ("sha256:++", "64 hexadecimal digits"),
    ] {
        let error = text.parse::<IdentityPattern>().unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn same_names_survive_a_renewal_and_nothing_else() {
    let mut renewed = with_dns(&["b.example.com", "A.example.com"]);
    renewed.fingerprint = Fingerprint([8; 32]);
    assert!(renewed.same_names(&with_dns(&["a.example.com", "b.example.com"])));
    assert!(!renewed.same_names(&with_dns(&["a.example.com"])));
    let mut other = with_dns(&[]);
    other.fingerprint = Fingerprint([8; 32]);
    assert!(
        !other.same_names(&with_dns(&[])),
        "two strangers without a name are not one"
    );
    assert!(other.same_names(&other));
}

#[test]
fn what_a_peer_wrote_cannot_reach_a_terminal() {
    let shown = Identity::parse(CONTROL).unwrap().to_string();
    assert_eq!(shown, r"cn:a\u{1b}[31m\u{202e}b");
    assert_eq!(escape("a\nb\\c\u{200b}'\"é"), r#"a\nb\\c\u{200b}'\"é"#);
    assert!(escape("x".repeat(100_000)).len() < 300);
}

#[test]
fn damaged_certificates_are_errors() {
    for cut in 0..NAMES.len() {
        assert!(Identity::parse(&NAMES[..cut]).is_err(), "cut at {cut}");
    }
    let mut longer = NAMES.to_vec();
    longer.push(0);
    assert_eq!(
        Identity::parse(&longer),
        Err(CertificateError::TrailingBytes)
    );
    for position in 0..NAMES.len() {
        for value in [0x00, 0x7f, 0x80, 0xff] {
            let mut damaged = NAMES.to_vec();
            damaged[position] = value;
            // Any answer will do, as long as there is one.
            if let Ok(identity) = Identity::parse(&damaged) {
                assert!(!identity.to_string().contains(char::is_control));
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_pattern_that_reads_back_or_an_error(text in "(cn|dns|ip|uri|sha256)?:?\\PC{0,80}") {
        if let Ok(pattern) = text.parse::<IdentityPattern>() {
            // What is shown is escaped, and so the same only where nothing had to be.
            if escape(&text) == text {
                proptest::prop_assert_eq!(pattern.to_string().parse(), Ok(pattern));
            }
        }
    }
}
