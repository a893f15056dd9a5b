//! Where a node's daemon has its sockets and what it keeps. The usual node has the system's places, which its unit makes;
//! a second one on the same host, in a directory of its own, has everything in there.

use std::path::{Path, PathBuf};

/// Where the usual node's configuration is.
pub(crate) const USUAL: &str = "/etc/pgtlsproxy";

/// For sockets.
pub(crate) fn run(node: &Path) -> PathBuf {
    in_its_place(node, "/run/pgtlsproxy", "run")
}

/// For what the daemon keeps: CRLs that came from other nodes.
pub(crate) fn state(node: &Path) -> PathBuf {
    in_its_place(node, "/var/lib/pgtlsproxy", "state")
}

fn in_its_place(node: &Path, usual: &str, within: &str) -> PathBuf {
    if node == Path::new(USUAL) {
        PathBuf::from(usual)
    } else {
        std::path::absolute(node)
            .unwrap_or_else(|_| node.to_owned())
            .join(within)
    }
}
