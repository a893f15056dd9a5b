//! `ca init`: a new CA.

use std::path::Path;

use crate::authority::{Authority, CA_CERTIFICATE, CA_CRL, CA_KEY, NewAuthority};
use crate::cli::CaInit;
use crate::report::{Date, Failure};
use crate::store;

pub(super) fn init(directory: &Path, arguments: &CaInit) -> Result<(), Failure> {
    let [certificate, key, crl] = [CA_CERTIFICATE, CA_KEY, CA_CRL].map(|name| directory.join(name));
    // Before anybody has thought of a passphrase.
    store::refuse_existing([&*key, &*certificate, &*crl], arguments.force.existing())?;
    let passphrase = arguments
        .passphrase()
        .map(|source| source.choose(&key))
        .transpose()?;
    let new = NewAuthority {
        name: arguments.name.clone(),
        key_algorithm: arguments.key_alg,
        period: arguments.period.period(),
        passphrase,
    };
    let authority = Authority::create(directory, &new, arguments.force.existing())?;
    let until = Date::from_unix(authority.certificate().not_after()).day();
    eprintln!(
        "CA {}, valid until {until}:",
        authority.certificate().subject()
    );
    eprintln!("  {}  (for every node)", certificate.display());
    eprintln!("  {}  (for every node)", crl.display());
    eprintln!("  {}  (secret; stays here)", key.display());
    Ok(())
}
