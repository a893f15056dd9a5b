//! `request`: a key that stays here, and a request for its certificate.

use std::path::Path;

use crate::cli::Request;
use crate::commands::print_whole;
use crate::report::Failure;
use crate::store::{self, NewFile, Readers};
use crate::{key, profile};

pub(super) fn run(directory: &Path, arguments: &Request) -> Result<(), Failure> {
    let out = arguments.out.as_deref().unwrap_or(directory);
    let [key_path, request_path] =
        ["key", "csr"].map(|end| out.join(format!("{}.{end}", arguments.name)));
    store::make_directory(out)?;
    store::refuse_existing([&*key_path], arguments.force.existing())?;
    if !arguments.stdout {
        store::refuse_existing([&*request_path], arguments.force.existing())?;
    }
    let failed =
        |error: rcgen::Error| Failure::new("cannot make the request", error.to_string(), "");
    let key = key::generate(arguments.key_alg)?;
    let params = profile::request(
        &arguments.name,
        &profile::all_names(&arguments.name, &arguments.names.san),
    )?;
    let request = params
        .serialize_request(&*key)
        .and_then(|request| request.pem())
        .map_err(failed)?;
    let pem = key::to_pem(&key, None)?;
    let key_file = NewFile {
        path: key_path.clone(),
        content: pem.as_bytes(),
        readers: Readers::Owner,
    };
    if arguments.stdout {
        store::write_all(&[key_file], arguments.force.existing())?;
        eprintln!("Key for {}:", arguments.name);
        eprintln!("  {}  (secret; stays here)", key_path.display());
        return print_whole(&request);
    }
    let request_file = NewFile {
        path: request_path.clone(),
        content: request.as_bytes(),
        readers: Readers::Everybody,
    };
    store::write_all(&[key_file, request_file], arguments.force.existing())?;
    eprintln!("Request for {}:", arguments.name);
    eprintln!(
        "  {}  (for the CA's host: certs-tool sign)",
        request_path.display()
    );
    eprintln!("  {}  (secret; stays here)", key_path.display());
    Ok(())
}
