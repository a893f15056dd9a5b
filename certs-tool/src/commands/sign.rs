//! `sign`: a certificate for somebody else's key.

use std::path::Path;

use crate::authority::NewNode;
use crate::cli::Sign;
use crate::commands::{open, print_whole, show_new};
use crate::profile::KeyAlgorithm;
use crate::report::{Date, Failure};
use crate::request::Request;
use crate::store;

pub(super) fn run(directory: &Path, arguments: Sign) -> Result<(), Failure> {
    let bytes = store::read_argument(&arguments.request)?;
    let request = Request::parse(&bytes, &arguments.request)?;
    let (period, existing) = (arguments.period.period(), arguments.force.existing());
    let passphrase = arguments.given.source_or_prompt();
    let node = NewNode {
        name: arguments.name,
        names: arguments.names.san,
        key_algorithm: KeyAlgorithm::default(),
        period,
    };
    show_wishes(&request, &node);
    let authority = open(directory, &passphrase)?;
    if arguments.stdout {
        let signed = authority.sign_unwritten(&request, &node)?;
        let until = Date::from_unix(signed.certificate.not_after()).day();
        eprintln!(
            "Certificate for {}, valid until {until}.",
            signed.certificate.identity()
        );
        return print_whole(&signed.pem);
    }
    let out = arguments.out.as_deref().unwrap_or(directory);
    let made = authority.sign(&request, &node, out, existing)?;
    show_new(&made, &authority);
    Ok(())
}

fn show_wishes(request: &Request, node: &NewNode) {
    let wanted = if request.names().is_empty() {
        "no names".to_owned()
    } else {
        request.names().join(" ")
    };
    let given: Vec<String> = node.all_names().iter().map(ToString::to_string).collect();
    eprintln!("The request asks for {} with {wanted}.", request.subject());
    if request.names() != given {
        eprintln!("It gets {} with {}.", node.name, given.join(" "));
    }
    if !request.ignored().is_empty() {
        eprintln!("Asked for and ignored: {}.", request.ignored().join(", "));
    }
}
