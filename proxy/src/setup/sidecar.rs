//! The proxy's own side of a node: its certificate, its configuration.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use certs_tool::authority::{Authority, CA_CERTIFICATE, CA_CRL, CA_KEY, NewAuthority, NewNode};
use certs_tool::report::Failure;
use certs_tool::store::Existing;
use nix::unistd::{User, chown};
use protocol::escape::escape;

use super::allow::{self, string};
use super::apply::{Journal, cannot};
use super::facts::Facts;
use super::plan::{FileChange, Wishes};
use super::tls::Tls;
use crate::directories;
use crate::problem::Problem;

/// Where the CA is, in the node's directory.
const PKI: &str = "pki";

/// Where and as what the proxy runs.
#[derive(Debug)]
pub(crate) struct Sidecar<'a> {
    /// Its directory: configuration, certificate, CA.
    pub(crate) directory: &'a Path,
    /// The name of this node, in its certificate.
    pub(crate) name: &'a str,
    /// What standbys dial.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
}

impl Sidecar<'_> {
    pub(crate) fn configuration(&self) -> PathBuf {
        self.directory.join("pgtlsproxy.toml")
    }

    /// Its configuration: written whole where there is none; else only rules of standbys that have none are added.
    pub(crate) fn configuration_change(
        &self,
        facts: &Facts,
        wishes: &Wishes,
    ) -> Result<Option<FileChange>, Problem> {
        let path = self.configuration();
        let known = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            // What cannot be read now is somebody's work all the same.
            Err(error) => return Err(cannot("read", &path, &error)),
        };
        let mut text = known.clone().unwrap_or_else(|| self.head(facts, wishes));
        let rules = allow::missing(&text, wishes).map_err(|why| {
            Problem::new(
                "G16",
                format!("{} has no place for a rule that is clear", path.display()),
                why,
                format!(
                    "add [[server.allow]] for {:?} to the right one by hand",
                    wishes.standbys
                ),
            )
        })?;
        if known.is_some() && rules.is_empty() {
            return Ok(None);
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&rules);
        Ok(Some(FileChange {
            path,
            new: text.into_bytes(),
        }))
    }

    /// Up to the rules, which stand at the end, where more are added.
    fn head(&self, facts: &Facts, wishes: &Wishes) -> String {
        let socket = facts.socket.as_path();
        let run = directories::run(self.directory);
        let quoted = |path: &Path| string(&path.to_string_lossy());
        format!(
            "# Written by `pgtlsproxy setup`; docs/configuration.md explains every key.\n\
             [identity]\ncert = {}\nkey = {}\nca = {}\ncrl = {}\n\n\
             [admin]\nsocket = {}\n\n[control]\nsocket = {}\n\n[node]\nstate = {}\n\n{}\
             [[server]]\nlisten = \"0.0.0.0:{}\"\npostgres = {}\n",
            string(&format!("{}.crt", self.name)),
            string(&format!("{}.key", self.name)),
            quoted(&self.trust(CA_CERTIFICATE)),
            quoted(&self.trust(CA_CRL)),
            quoted(&run.join("status.sock")),
            quoted(&run.join("control.sock")),
            quoted(&directories::state(self.directory)),
            self.client(facts, wishes),
            self.port,
            quoted(socket),
        )
    }

    /// What PostgreSQL itself is to show and trust, for connections from these networks.
    pub(crate) fn tls(&self, from: &[String]) -> Result<Tls, Problem> {
        let network = |text: &String| {
            let address = text.split_once('/').map_or(&**text, |(address, _)| address);
            let named = ["all", "samenet", "samehost"].contains(&&**text);
            let numeric = text.contains('/') && address.parse::<std::net::IpAddr>().is_ok();
            (named || numeric).then(|| text.clone()).ok_or_else(|| {
                Problem::new(
                    "G24",
                    format!("`{}` is no network", escape(text)),
                    "--from takes ADDRESS/BITS",
                    "for example --from 203.0.113.7/32",
                )
            })
        };
        let from = match from {
            [] => vec!["all".to_owned()],
            given => given.iter().map(network).collect::<Result<_, _>>()?,
        };
        let file = |name: &str| self.directory.join(name);
        // They may not be made yet.
        let known = |name: &str| fs::read(file(PKI).join(name)).unwrap_or_default();
        Ok(Tls {
            known_ca: known(CA_CERTIFICATE),
            known_crl: known(CA_CRL),
            certificate: file(&format!("{}.crt", self.name)),
            key: file(&format!("{}.key", self.name)),
            ca: file(PKI).join(CA_CERTIFICATE),
            crl: file(PKI).join(CA_CRL),
            from,
        })
    }

    /// By which this node follows when roles have swapped: first the first standby; `setup standby --from` turns it.
    fn client(&self, facts: &Facts, wishes: &Wishes) -> String {
        let Some(standby) = wishes.standbys.first() else {
            return String::new();
        };
        let owner = fs::metadata(&facts.data).ok().and_then(|metadata| {
            let uid = std::os::unix::fs::MetadataExt::uid(&metadata);
            User::from_uid(uid.into()).ok().flatten()
        });
        let owner = owner.map_or_else(|| "postgres".to_owned(), |user| user.name);
        format!(
            "# For when another node is the primary: `pgtlsproxy setup standby --from HOST:PORT` says which.\n\
             [[client]]\nlisten = {}\nconnect = [{}]\nallow_os_users = [{}]\n\n",
            string(&directories::run(self.directory).to_string_lossy()),
            string(&format!("{standby}:{}", self.port)),
            string(&owner),
        )
    }

    /// What [`Self::make_certificates`] will make, in words; empty if all is there.
    pub(crate) fn missing_certificates(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.pki().join(CA_KEY).exists() && !self.directory.join(CA_CERTIFICATE).exists() {
            missing.push(format!("make a CA in {}", self.pki().display()));
        }
        if !self.directory.join(format!("{}.crt", self.name)).exists() {
            missing.push(format!(
                "issue a certificate for {} (dns:{})",
                self.name, self.host
            ));
        }
        missing
    }

    /// Beside the CA its own files, so that a revocation counts here at once; elsewhere those that were copied here.
    fn trust(&self, name: &str) -> PathBuf {
        if self.directory.join(name).exists() {
            PathBuf::from(name)
        } else {
            Path::new(PKI).join(name)
        }
    }

    fn pki(&self) -> PathBuf {
        self.directory.join(PKI)
    }

    /// The CA if there is none, and this node's certificate if it has none. What exists is never replaced, but for the parts
    /// that a run left which was killed while it made them: nobody has seen anything of those. The key is its owner's; what
    /// the proxy needs besides is its OS user's, if this is its certificate.
    pub(crate) fn make_certificates(
        &self,
        key_owner: &str,
        proxy: Option<&str>,
        journal: &mut Journal,
    ) -> Result<(), Problem> {
        let pki = self.pki();
        let existing = if journal.note_certificates(true)? {
            Existing::Replace
        } else {
            Existing::Keep
        };
        let whole = [CA_KEY, CA_CERTIFICATE, CA_CRL]
            .iter()
            .all(|name| pki.join(name).exists());
        let make = || -> Result<(), Failure> {
            if !self.directory.join(format!("{}.crt", self.name)).exists() {
                let unfinished = existing == Existing::Replace && !whole;
                let authority = if pki.join(CA_KEY).exists() && !unfinished {
                    let locked = || {
                        Err(Failure::new(
                            "the CA's key has a passphrase",
                            "",
                            "`certs-tool issue` asks for it; then run this again",
                        ))
                    };
                    Authority::open(&pki, locked)?
                } else {
                    Authority::create(&pki, &NewAuthority::default(), existing)?
                };
                let node = NewNode::new(self.name, &[self.host])?;
                authority.issue(&node, self.directory, existing)?;
            }
            Ok(())
        };
        make().map_err(|failure| {
            Problem::new("G13", failure.what(), failure.why(), failure.way_out())
        })?;
        journal.note_certificates(false)?;
        let certificate = self.directory.join(format!("{}.crt", self.name));
        let public = [
            (pki.clone(), 0o755),
            (pki.join(CA_CERTIFICATE), 0o644),
            (pki.join(CA_CRL), 0o644),
            (certificate, 0o644),
        ];
        let key = self.directory.join(format!("{}.key", self.name));
        let give = || -> std::io::Result<()> {
            // Readable for the proxy, whatever the umask of who runs setup.
            for (path, mode) in public.iter().filter(|(path, _)| path.exists()) {
                fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
            }
            let hand_over = |path: &Path, to: &str| -> std::io::Result<()> {
                if let Ok(Some(user)) = User::from_name(to) {
                    chown(path, Some(user.uid), Some(user.gid))?;
                }
                Ok(())
            };
            hand_over(&key, key_owner)?;
            let Some(proxy) = proxy else { return Ok(()) };
            for directory in [
                directories::run(self.directory),
                directories::state(self.directory),
            ] {
                fs::create_dir_all(&directory)?;
                hand_over(&directory, proxy)?;
            }
            Ok(())
        };
        give().map_err(|error| {
            Problem::new(
                "G05",
                format!(
                    "cannot make what OS user {key_owner} needs in {}",
                    self.directory.display()
                ),
                error.to_string(),
                "run setup as root",
            )
        })
    }
}
