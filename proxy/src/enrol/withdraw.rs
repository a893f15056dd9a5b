//! An invitation is taken back: nobody waits any longer, and the rule that was written for it goes, unless the node has
//! joined.

use std::path::Path;

use certs_tool::profile::NodeName;
use protocol::identity::IdentityPattern;

use super::CONFIG;
use super::dismiss::{Going, Which, dismiss};
use super::host::own;
use super::invite::{control_socket, valid_names};
use super::rules::MARK;
use crate::config::Source;
use crate::control::{Ask, Daemon, Invitation, Reply};
use crate::problem::Problem;
use crate::reload::{Checked, load};

/// What was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Withdrawn {
    pub(crate) invitations: usize,
    pub(crate) rules: usize,
    /// The node has joined: its rule stays.
    pub(crate) joined: bool,
}

/// Takes back the invitations of this name, and the rule that was written for one.
pub(crate) fn withdraw(
    directory: &Path,
    pki: &Path,
    name: &NodeName,
) -> Result<Withdrawn, Vec<Problem>> {
    let checked = load(&Source::File(directory.join(CONFIG)))?;
    let socket = control_socket(&checked.config, directory).map_err(|problem| vec![problem])?;
    let asked = Ask::Withdraw {
        name: name.to_string(),
    };
    let invitations = match Daemon::ask(&socket, asked)?.reply()? {
        Reply::WithdrawnMany { invitations } => invitations,
        _ => 0,
    };
    let joined = has_joined(pki, name)?;
    let rules = if joined {
        0
    } else {
        take_rule_back(directory, &checked, name, Which::Marked)?
    };
    Ok(Withdrawn {
        invitations,
        rules,
        joined,
    })
}

/// Whether the ledger has a certificate of it that counts.
pub(super) fn has_joined(pki: &Path, name: &NodeName) -> Result<bool, Vec<Problem>> {
    let names = valid_names(pki).map_err(|problem| vec![problem])?;
    Ok(names.iter().any(|known| known == name.as_str()))
}

/// Takes the rule out, and has that loaded; how many they were.
pub(super) fn take_rule_back(
    directory: &Path,
    checked: &Checked,
    name: &NodeName,
    which: Which,
) -> Result<usize, Vec<Problem>> {
    let identities: Vec<IdentityPattern> = format!("cn:{name}").parse().into_iter().collect();
    let going = Going {
        identities: &identities,
        which,
        own: own(checked.credentials.identity()),
    };
    let rules = dismiss(directory, &going)?;
    if rules > 0 {
        let socket = control_socket(&checked.config, directory).map_err(|problem| vec![problem])?;
        Daemon::ask(&socket, Ask::Reload)?.reply()?;
    }
    Ok(rules)
}

/// Names whose rule was written for an invitation that waits no longer, and who have not joined: what a command leaves
/// that was killed.
pub(crate) fn left_over(
    directory: &Path,
    pki: &Path,
    waiting: &[Invitation],
) -> Result<Vec<String>, Vec<Problem>> {
    let Ok(text) = std::fs::read_to_string(directory.join(CONFIG)) else {
        return Ok(Vec::new());
    };
    let joined = valid_names(pki).map_err(|problem| vec![problem])?;
    let invited = text.split(MARK).skip(1).filter_map(|rule| {
        let line = rule
            .lines()
            .find(|line| line.trim_start().starts_with("identity"))?;
        let (_, name) = line.split_once("cn:")?;
        Some(name.trim_end().trim_end_matches(['"', '\'']).to_owned())
    });
    Ok(invited
        .filter(|name| !joined.contains(name))
        .filter(|name| !waiting.iter().any(|invitation| invitation.name == *name))
        .collect())
}
