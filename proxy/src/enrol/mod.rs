//! How a node comes: `invite` on a node beside the CA, `join` on the new one (design, section 6). Both are commands;
//! the daemon between them carries a request and an answer, and knows neither the secret nor the CA's key.
//!
//! One token carries where to go, which CA to expect there, and a secret that counts once. Each side proves the secret
//! over the exporter of the TLS session that it sees itself (RFC 9266), so that whoever stands between two sessions
//! can pass on nothing that is believed, and learns nothing that is of use.

mod dismiss;
mod host;
mod install;
mod invite;
mod join;
mod listed;
mod members;
mod proof;
mod rules;
mod token;
mod withdraw;

use certs_tool::report::Failure;

use crate::problem::Problem;

pub(crate) use dismiss::{Going, Which, dismiss, without};
pub(crate) use host::own as rule_name;
pub(crate) use invite::{Invite, Opened, control_socket, pending};
pub(crate) use join::{Join, Member};
pub(crate) use listed::nodes;
pub(crate) use members::admit_nodes;
pub(crate) use rules::Written;
pub(crate) use withdraw::{left_over, withdraw};

/// The configuration's name in its directory.
const CONFIG: &str = "pgtlsproxy.toml";
/// Beside it: whoever changes files of the node has its turn.
const LOCK: &str = ".lock";
/// For whoever holds a token that gets nothing.
const ANOTHER: &str = "ask for a new one: pgtlsproxy invite NAME, on the node that made this one";

/// A failure of the CA's library, as this program's.
fn of_failure(failure: &Failure) -> Problem {
    let way_out = match failure.way_out() {
        "" => "mend that and run the command again",
        way_out => way_out,
    };
    Problem::new("E20", failure.what(), failure.why(), way_out)
}
