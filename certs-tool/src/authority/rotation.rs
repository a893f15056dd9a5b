//! One CA follows another while everything streams: trust first, then leaves, then the old one goes.
//!
//! The files themselves say how far it is, and each step is done by one rename, so that it can be killed anywhere and
//! run again:
//!
//! | stage | ca.crt, ca.crl | ca.key | beside it | the step that leads there |
//! |---|---|---|---|---|
//! | none | one CA | signs | | |
//! | trust | both | the old one signs | ca-next.key | `start`: ca.crt is renamed, after everything else is there |
//! | leaves | both | the new one signs | ca-old.key | `switch`: ca-next.key is renamed to ca.key |
//! | none | the new CA | the new one signs | | `finish`: the ledger notes it, ca.crt is renamed, ca-old.key goes |

use std::fs;
use std::path::{Path, PathBuf};

use protocol::certificate::Certificate;
use serde::Serialize;

use super::{
    Authority, CA_CERTIFICATE, CA_KEY, Ca, NEXT_KEY, NewAuthority, OLD_KEY, id, read_bundle,
};
use crate::contents;
use crate::key;
use crate::ledger::{Entry, Event, Ledger, LockedLedger};
use crate::report::{Date, Failure};
use crate::store::{self, Existing, NewFile, Readers};
use crate::verify::Encoded;

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// There is none.
    None,
    /// Both CAs are to be trusted everywhere; the old one signs.
    Trust,
    /// The new one signs; the nodes get its certificates.
    Leaves,
    /// Dropping the old one was begun and not ended.
    Finishing,
    /// Dropping the new one was begun and not ended.
    Aborting,
}

/// A rotation as it stands, read without any key.
#[derive(Debug)]
pub struct Rotation {
    /// How far it is.
    pub stage: Stage,
    /// The CA that there was; the only one where there is no rotation.
    pub old: Certificate,
    /// The CA that is to follow.
    pub new: Option<Certificate>,
    /// Every node whose certificate counts.
    pub nodes: Vec<NodeState>,
}

/// Where a node stands in a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// When its newest certificate ends.
    pub not_after: Date,
    /// Whether this was made for a request, so that its next one must be asked for.
    pub by_request: bool,
    /// Whether it is of the new CA.
    pub is_new: bool,
}

impl Rotation {
    /// Reads how the rotation of this directory stands.
    pub fn read(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(CA_CERTIFICATE);
        if !path.exists() {
            return Err(Failure::new(
                format!("there is no CA in {}", directory.display()),
                "",
                "`certs-tool ca init` makes one; --dir says where it is",
            ));
        }
        let bundle = read_bundle(&store::read(&path)?, &path)?;
        let ledger = Ledger::read(directory)?;
        Self::of(directory, &bundle, &ledger)
    }

    fn of(directory: &Path, bundle: &[Encoded], ledger: &Ledger) -> Result<Self, Failure> {
        // A CA that somebody else put into the bundle is not in the ledger and none of ours to rotate.
        let mut own: Vec<(usize, &Certificate)> = bundle
            .iter()
            .filter_map(|(ca, _)| Some((ledger.age_of_authority(&id(ca))?, ca)))
            .collect();
        own.sort_by_key(|(age, _)| *age);
        let is_dropped = |ca: &Certificate| ledger.dropped(&id(ca)).is_some();
        let (old, new, stage) = match (&*own, bundle) {
            ([(_, old), (_, new)], _) => {
                let stage = if is_dropped(old) {
                    Stage::Finishing
                } else if is_dropped(new) {
                    Stage::Aborting
                } else if directory.join(NEXT_KEY).exists() {
                    Stage::Trust
                } else {
                    Stage::Leaves
                };
                ((*old).clone(), Some((*new).clone()), stage)
            }
            // A CA that openssl made is not in the ledger until it is rotated.
            ([(_, ca)], _) => ((*ca).clone(), None, Stage::None),
            ([], [(ca, _), ..]) => (ca.clone(), None, Stage::None),
            _ => {
                return Err(Failure::new(
                    format!(
                        "{} holds {} CAs of this ledger",
                        directory.join(CA_CERTIFICATE).display(),
                        own.len()
                    ),
                    "a rotation has two, the old and the new one",
                    "put a backup of ca.crt in its place",
                ));
            }
        };
        let now = Date::now();
        let new_id = new.as_ref().map(id);
        // A certificate that has a successor which counts needs no other.
        let nodes = ledger.counting(now).into_iter().map(|issued| NodeState {
            is_new: Some(&issued.ca) == new_id.as_ref(),
            by_request: issued.event.is_by_request(),
            not_after: issued.record.not_after,
            name: issued.record.name,
        });
        Ok(Self {
            stage,
            old,
            new,
            nodes: nodes.collect(),
        })
    }

    /// The nodes that would be cut off if the old CA were dropped.
    pub fn hanging(&self) -> impl Iterator<Item = &NodeState> {
        self.nodes.iter().filter(|node| !node.is_new)
    }
}

impl Authority {
    /// Makes the CA that is to follow, and the bundle in which both are trusted. The old one still signs.
    pub fn start_rotation(self, new: &NewAuthority) -> Result<Stage, Failure> {
        let mut ledger = self.lock()?;
        match self.rotation(&ledger)?.stage {
            Stage::None => {}
            stage @ (Stage::Trust | Stage::Leaves) => return Ok(stage),
            stage @ (Stage::Finishing | Stage::Aborting) => return Err(interrupted(stage)),
        }
        let (next, certificate_pem) = Ca::create(new)?;
        let subject = next.certificate.subject();
        if self.bundle.iter().any(|(ca, _)| ca.subject() == subject) {
            return Err(Failure::new(
                format!("a CA of the name {subject} is there already"),
                "a CRL is found by the name of its CA alone: certificates of each would be judged by the list of the other",
                "give another --name, or none: then it gets one that no other CA has",
            ));
        }
        // Under the passphrase of the old one, so that whoever runs this is asked once.
        let key = key::to_pem(
            &next.key,
            new.passphrase.as_ref().or(self.passphrase.as_ref()),
        )?;
        let at = Date::now();
        let made = |ca: &Ca, crl| Entry {
            event: Event::Authority,
            at,
            ca: ca.id(),
            crl,
            certificate: Some(ca.record()),
        };
        let mut entries = Vec::new();
        if ledger.age_of_authority(&self.signing.id()).is_none() {
            entries.push(made(&self.signing, ledger.crl_number(&self.signing.id())));
        }
        entries.push(made(&next, 0));
        ledger.add(entries)?;
        self.write(NEXT_KEY, key.as_bytes(), Readers::Owner)?;
        let mut bundle = self.seen.bundle.to_vec();
        if !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
        bundle.extend(certificate_pem.as_bytes());
        let both = Self {
            bundle: self
                .bundle
                .iter()
                .cloned()
                .chain([(next.certificate.clone(), next.der.clone())])
                .collect(),
            other: Some(next),
            ..self
        };
        // A CRL that no CA asks for does no harm, a CA without its CRL would.
        both.enter(&mut ledger, Vec::new())?;
        both.write_crls(&ledger, None)?;
        both.write(CA_CERTIFICATE, &bundle, Readers::Everybody)?;
        Ok(Stage::Trust)
    }

    /// From now on the new CA signs; the old one signs only its CRL.
    pub fn switch_rotation(self) -> Result<Stage, Failure> {
        let ledger = self.lock()?;
        match self.rotation(&ledger)?.stage {
            Stage::Trust => {}
            Stage::Leaves => return Ok(Stage::Leaves),
            Stage::None => return Err(not_begun()),
            stage @ (Stage::Finishing | Stage::Aborting) => return Err(interrupted(stage)),
        }
        let [key, next, old] = [CA_KEY, NEXT_KEY, OLD_KEY].map(|name| self.directory.join(name));
        // What may lie there is a second name of ca.key, of a run that was killed between the next two steps.
        store::remove(&old)?;
        if fs::hard_link(&key, &old).is_err() {
            self.write(OLD_KEY, &self.seen.key, Readers::Owner)?;
        }
        store::rename(&next, &key)?;
        Ok(Stage::Leaves)
    }

    /// Drops the old CA. Refused while a node would be cut off by it.
    pub fn finish_rotation(self) -> Result<Stage, Failure> {
        let mut ledger = self.lock()?;
        let rotation = self.rotation(&ledger)?;
        match rotation.stage {
            Stage::Leaves => refuse_hanging(&rotation)?,
            Stage::Finishing => {}
            Stage::None => {
                // Left by a run that was killed at the very end.
                store::remove(&self.directory.join(OLD_KEY))?;
                return Ok(Stage::None);
            }
            Stage::Trust => {
                return Err(Failure::new(
                    "the old CA still signs",
                    "ca.crt and ca.crl go to every node first, then the new CA signs, then every node gets its certificate",
                    "certs-tool ca rotate switch",
                ));
            }
            Stage::Aborting => return Err(interrupted(Stage::Aborting)),
        }
        self.drop_ca(&mut ledger, &rotation.old, OLD_KEY)
    }

    /// Drops the new CA, as long as it has signed nothing.
    pub fn abort_rotation(self) -> Result<Stage, Failure> {
        let mut ledger = self.lock()?;
        let rotation = self.rotation(&ledger)?;
        match (rotation.stage, &rotation.new) {
            (Stage::Trust | Stage::Aborting, Some(new)) => self.drop_ca(&mut ledger, new, NEXT_KEY),
            (Stage::None, _) => {
                store::remove(&self.directory.join(NEXT_KEY))?;
                Ok(Stage::None)
            }
            _ => Err(Failure::new(
                "it is too late to go back",
                "the new CA signs already, and nodes may hold its certificates",
                "go on with it: certs-tool ca rotate",
            )),
        }
    }

    /// Noted first, since a ledger that says it is repeated, and a key that is gone is not.
    fn drop_ca(
        mut self,
        ledger: &mut LockedLedger,
        dropped: &Certificate,
        key: &str,
    ) -> Result<Stage, Failure> {
        let ca = id(dropped);
        if ledger.dropped(&ca).is_none() {
            ledger.add(vec![Entry {
                event: Event::Dropped,
                at: Date::now(),
                crl: ledger.crl_number(&ca),
                ca: ca.clone(),
                certificate: None,
            }])?;
        }
        self.bundle.retain(|(certificate, _)| id(certificate) != ca);
        self.other = None;
        let bundle = self
            .bundle
            .iter()
            .map(|(_, der)| contents::to_pem("CERTIFICATE", der));
        let bundle = bundle.collect::<Result<String, Failure>>()?;
        self.write(CA_CERTIFICATE, bundle.as_bytes(), Readers::Everybody)?;
        self.enter(ledger, Vec::new())?;
        self.write_crls(ledger, None)?;
        store::remove(&self.directory.join(key))?;
        Ok(Stage::None)
    }

    /// Notes that every CA of the ledger but this one is nobody's any more.
    pub(super) fn drop_replaced(&self, ledger: &mut LockedLedger) -> Result<(), Failure> {
        let own = self.signing.id();
        let mut replaced: Vec<String> = Vec::new();
        for Entry { ca, .. } in ledger.entries() {
            if *ca != own && !replaced.contains(ca) && ledger.dropped(ca).is_none() {
                replaced.push(ca.clone());
            }
        }
        if replaced.is_empty() {
            return Ok(());
        }
        let noted = replaced.into_iter().map(|ca| Entry {
            event: Event::Dropped,
            at: Date::now(),
            crl: ledger.crl_number(&ca),
            ca,
            certificate: None,
        });
        let noted = noted.collect();
        ledger.add(noted)
    }

    fn rotation(&self, ledger: &Ledger) -> Result<Rotation, Failure> {
        Rotation::of(&self.directory, &self.bundle, ledger)
    }

    fn write(&self, name: &str, content: &[u8], readers: Readers) -> Result<(), Failure> {
        let path: PathBuf = self.directory.join(name);
        let file = NewFile {
            path,
            content,
            readers,
        };
        store::write_all(&[file], Existing::Replace)
    }
}

fn refuse_hanging(rotation: &Rotation) -> Result<(), Failure> {
    let names: Vec<&str> = rotation.hanging().map(|node| node.name.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let shown = names.iter().take(8).map(protocol::escape::escape);
    let shown = shown.collect::<Vec<String>>().join(", ");
    Err(Failure::new(
        format!("{} still hang on the old CA: {shown}", names.len()),
        "every node that trusts only the new CA would refuse them",
        "`certs-tool renew NAME` for each, or `revoke`; `certs-tool ca rotate` shows which must ask by request",
    ))
}

fn interrupted(stage: Stage) -> Failure {
    let verb = if stage == Stage::Aborting {
        "abort"
    } else {
        "finish"
    };
    Failure::new(
        "a CA is half dropped",
        format!("`certs-tool ca rotate {verb}` was stopped on its way"),
        format!("certs-tool ca rotate {verb}"),
    )
}

fn not_begun() -> Failure {
    Failure::new(
        "no rotation was begun",
        "there is one CA, and it signs",
        "certs-tool ca rotate start",
    )
}
