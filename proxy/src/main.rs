//! `pgtlsproxy`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgtlsproxy::main()
}
