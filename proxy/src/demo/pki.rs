//! Certificates for the two nodes, by the library of certs-tool, as an administrator would make them.

use std::path::Path;

use certs_tool::authority::{Authority, NewAuthority, NewNode};
use certs_tool::report::Failure;
use certs_tool::store::Existing;

use super::account::Account;
use crate::problem::Problem;

/// Makes `pki/ca.crt`, `pki/ca.crl`, and key and certificate of `db1` and `standby1` below `root`.
pub(super) fn make(root: &Path, account: &Account) -> Result<(), Problem> {
    let directory = root.join("pki");
    let make = || -> Result<(), Failure> {
        let authority = Authority::create(&directory, &NewAuthority::default(), Existing::Keep)?;
        for (name, san) in [
            ("db1", "db1.example.com"),
            ("standby1", "standby1.example.com"),
        ] {
            authority.issue(&NewNode::new(name, &[san])?, &directory, Existing::Keep)?;
        }
        Ok(())
    };
    make()
        .map_err(|failure| Problem::new("C23", failure.what(), failure.why(), failure.way_out()))?;
    for file in [
        "",
        "ca.crt",
        "ca.crl",
        "db1.crt",
        "db1.key",
        "standby1.crt",
        "standby1.key",
    ] {
        account.give(&directory.join(file))?;
    }
    Ok(())
}
