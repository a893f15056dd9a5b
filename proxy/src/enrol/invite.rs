//! The inviting end: writes the rule, makes the token, waits for who comes with it, and signs. The secret and the CA's
//! key are in this process alone; the daemon carries what it does not understand.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs_tool::authority::{Authority, CA_CRL, NewNode};
use certs_tool::key::PassphraseSource;
use certs_tool::ledger::Ledger;
use certs_tool::profile::{AltName, KeyAlgorithm, NodeName, Period};
use certs_tool::report::Date;
use certs_tool::request::Request;
use certs_tool::store::Existing;
use protocol::escape::escape;
use protocol::hex::from_hex;
use protocol::node::{Answer, Certificates, Enrol, Enrolled, Grant, Refused};
use protocol::policy::{Names, Policy};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::dismiss::Which;
use super::host::{endpoints, own, pin};
use super::listed::{nodes, policies};
use super::proof::{Prover, invitation_id, is_proof, prove};
use super::rules::{self, Rule, Written};
use super::token::{Secret, Token};
use super::withdraw::{has_joined, take_rule_back};
use super::{CONFIG, of_failure};
use crate::config::{Config, Source};
use crate::control::{Ask, Daemon, Invitation, Over, Reply, Verdict};
use crate::interrupt::Interrupt;
use crate::net::Target;
use crate::node::to_pem;
use crate::problem::Problem;
use crate::reload::{Checked, load};
use crate::renew::tell;
use crate::tls::merge;

/// Wrong proofs until the invitation is void.
const ATTEMPTS: u32 = 3;
/// The longest that an invitation may wait.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What is wanted.
pub(crate) struct Invite {
    pub(crate) name: NodeName,
    pub(crate) names: Vec<AltName>,
    pub(crate) from: Option<Vec<String>>,
    /// Where the new node reaches this one; empty: as this node's certificate and listener say.
    pub(crate) public: Vec<Target>,
    pub(crate) valid: Duration,
    /// Where the configuration is.
    pub(crate) directory: PathBuf,
    /// Where the CA is.
    pub(crate) pki: PathBuf,
    pub(crate) passphrase: PassphraseSource,
    pub(crate) replication: Option<Vec<String>>,
    pub(crate) ordinary: Option<bool>,
    /// Whether certificates that this name has may be revoked when the node has joined.
    pub(crate) replace: bool,
}

/// An invitation that waits in the daemon.
pub(crate) struct Opened {
    invite: Invite,
    daemon: Daemon,
    authority: Authority,
    checked: Checked,
    secret: Secret,
    token: Zeroizing<String>,
    expires: i64,
    /// What became of the rule.
    pub(crate) rule: Written,
}

/// Who has joined.
pub(crate) struct Joined {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) certificate: PathBuf,
}

/// The invitations that wait in the daemon of this directory.
pub(crate) fn pending(directory: &Path) -> Result<Vec<Invitation>, Vec<Problem>> {
    let config = Config::load(&Source::File(directory.join(CONFIG)))?;
    let socket = control_socket(&config, directory).map_err(|problem| vec![problem])?;
    match Daemon::ask(&socket, Ask::Invitations)?.reply()? {
        Reply::Invitations { invitations } => Ok(invitations),
        other => Err(vec![unexpected(&other)]),
    }
}

impl Opened {
    /// Writes the rule, has it reloaded, and registers the invitation.
    pub(crate) fn open(invite: Invite) -> Result<Self, Vec<Problem>> {
        let one = |problem: Problem| vec![problem];
        let failure = |failure| vec![of_failure(&failure)];
        if invite.valid < Duration::from_secs(1) || invite.valid > LONGEST {
            return Err(one(Problem::new(
                "E25",
                "--valid is out of bounds",
                "an invitation waits for 1 second to 7 days",
                "give a time such as 15m",
            )));
        }
        let checked = load(&Source::File(invite.directory.join(CONFIG)))?;
        let socket = control_socket(&checked.config, &invite.directory).map_err(one)?;
        let path = invite.pki.join(certs_tool::authority::CA_KEY);
        let authority =
            Authority::open(&invite.pki, || invite.passphrase.ask(&path)).map_err(failure)?;
        let members = others(&invite).map_err(one)?;
        let (endpoints, server_name) = endpoints(&invite.public, &checked).map_err(one)?;
        let pin = pin(&checked.credentials).map_err(one)?;
        // Before anything is changed: a daemon that does not run can invite nobody.
        Daemon::ask(&socket, Ask::Invitations)?.reply()?;

        let rule = Rule {
            identity: format!("cn:{}", invite.name),
            from: invite.from.clone(),
            replication: invite.replication.clone(),
            ordinary: invite.ordinary,
        };
        let others: Vec<Rule> = members.into_iter().map(Rule::of).collect();
        let rule = rules::admit(&invite.directory, &rule, &others)?;
        if rule != Written::AsItWas {
            Daemon::ask(&socket, Ask::Reload)?.reply()?;
        }

        let valid = i64::try_from(invite.valid.as_secs()).unwrap_or(i64::MAX);
        let expires = Date::now().unix().saturating_add(valid);
        let token = Token {
            name: invite.name.to_string(),
            endpoints,
            server_name,
            pin,
            expires,
            secret: Secret::random().map_err(one)?,
        };
        let invitation = Invitation {
            id: invitation_id(&token.secret),
            name: token.name.clone(),
            expires,
        };
        let mut daemon = Daemon::ask(&socket, Ask::Invite(invitation))?;
        match daemon.reply()? {
            Reply::Waiting => daemon.wait_patiently()?,
            other => return Err(one(unexpected(&other))),
        }
        Ok(Self {
            invite,
            daemon,
            authority,
            checked,
            token: token.encode().map_err(one)?,
            secret: token.secret,
            expires,
            rule,
        })
    }

    /// The line for the new node.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Until when it waits.
    pub(crate) fn expires(&self) -> Date {
        Date::from_unix(self.expires)
    }

    /// Waits until the node has joined or the time is over; `told` hears of who tried in vain. Where nobody has joined,
    /// the rule goes that was written for it.
    pub(crate) fn wait(mut self, told: impl FnMut(&Problem)) -> Result<Joined, Vec<Problem>> {
        let interrupt = self
            .daemon
            .hanging_up()
            .and_then(|hang_up| Interrupt::then(hang_up).map_err(|problem| vec![problem]))?;
        let joined = self.wait_for_the_node(told);
        let Err(problems) = joined else {
            self.tell_the_others();
            return joined;
        };
        let mut problems = if interrupt.came() {
            vec![Problem::new(
                "M19",
                "the invitation is taken back",
                "this command was interrupted",
                format!("run it again: pgtlsproxy invite {}", self.invite.name),
            )]
        } else {
            problems
        };
        if let Err(more) = self.take_rule_back() {
            problems.extend(more);
        }
        Err(problems)
    }

    /// The nodes that joined earlier hear of the new one when they ask the next time. What fails here, the timer of
    /// `pgtlsproxy renew` makes good.
    fn tell_the_others(&self) {
        let Invite { directory, .. } = &self.invite;
        let told = self.as_it_is().and_then(|checked| {
            let socket = control_socket(&checked.config, directory);
            tell(
                &self.authority,
                &checked,
                &socket.map_err(|problem| vec![problem])?,
            )
        });
        for problem in told.err().into_iter().flatten() {
            eprintln!("warning: {}", problem.warning());
        }
    }

    /// The configuration with the rule that was written, and whatever was changed while the invitation waited.
    fn as_it_is(&self) -> Result<Checked, Vec<Problem>> {
        load(&Source::File(self.invite.directory.join(CONFIG)))
    }

    fn take_rule_back(&self) -> Result<(), Vec<Problem>> {
        let Invite {
            name,
            directory,
            pki,
            ..
        } = &self.invite;
        if self.rule == Written::Added && !has_joined(pki, name)? {
            take_rule_back(directory, &self.checked, name, Which::Added)?;
        }
        Ok(())
    }

    fn wait_for_the_node(
        &mut self,
        mut told: impl FnMut(&Problem),
    ) -> Result<Joined, Vec<Problem>> {
        let again = format!("run it again: pgtlsproxy invite {}", self.invite.name);
        let mut attempts = 0;
        loop {
            let (enrol, binding, address) = match self.daemon.reply()? {
                Reply::Enrol {
                    enrol,
                    binding,
                    address,
                } => (enrol, binding, escape(&address)),
                Reply::Late => {
                    return Err(vec![Problem::new(
                        "E26",
                        format!("{} has not joined in time", self.invite.name),
                        "the invitation's time is over",
                        again,
                    )]);
                }
                Reply::Withdrawn => {
                    return Err(vec![Problem::new(
                        "M06",
                        format!("the invitation of {} was withdrawn", self.invite.name),
                        "another command took it back",
                        again,
                    )]);
                }
                other => return Err(vec![unexpected(&other)]),
            };
            let judged = self.judge(&enrol, &binding);
            let (answer, over) = match &judged {
                Ok((enrolled, _)) => (Answer::Enrolled(enrolled.clone()), Some(Over::Used)),
                Err(problem) => {
                    attempts += 1;
                    let void = (attempts >= ATTEMPTS).then_some(Over::Void);
                    (Answer::Refused(Refused::from(problem)), void)
                }
            };
            self.daemon.say(&Verdict { answer, over })?;
            let Reply::Sent { sent } = self.daemon.reply()? else {
                return Err(vec![Problem::new(
                    "E27",
                    "the daemon says something else",
                    "",
                    again,
                )]);
            };
            match (judged, over) {
                (Ok((_, certificate)), _) if sent => {
                    let name = self.invite.name.to_string();
                    return Ok(Joined {
                        name,
                        address,
                        certificate,
                    });
                }
                (Ok(_), _) => {
                    return Err(vec![Problem::new(
                        "E28",
                        format!("{} may not have its certificate", self.invite.name),
                        format!("{address} was gone before the answer"),
                        format!(
                            "if it says so too: pgtlsproxy invite --replace {}",
                            self.invite.name
                        ),
                    )]);
                }
                (Err(problem), over) => {
                    told(&Problem::new(
                        problem.id,
                        format!("{address} tried in vain: {}", problem.what),
                        problem.why,
                        "if that was not you, see who it is",
                    ));
                    if over.is_some() {
                        return Err(vec![Problem::new(
                            "E29",
                            "the invitation is void",
                            format!("{ATTEMPTS} attempts were wrong"),
                            again,
                        )]);
                    }
                }
            }
        }
    }

    /// First the proof, then the request; of the request only the key.
    fn judge(&self, enrol: &Enrol, binding: &str) -> Result<(Enrolled, PathBuf), Problem> {
        let proven = from_hex(binding)
            .and_then(|binding| binding.try_into().ok())
            .filter(|binding| {
                let said = enrol.request.as_bytes();
                is_proof(&self.secret, Prover::Joiner, binding, said, &enrol.proof)
            });
        let Some(binding) = proven else {
            return Err(Problem::new(
                "E18",
                "the proof of the token is wrong",
                "the secret is another, or somebody stands between the two hosts and passes on what is said",
                format!(
                    "compare the address with the inviting node's, and {}",
                    super::ANOTHER
                ),
            ));
        };
        let failure = |failure| of_failure(&failure);
        let request =
            Request::parse(enrol.request.as_bytes(), Path::new("the request")).map_err(failure)?;
        // What may fail is done before the certificate exists, but for its CRL, which is made with it.
        others(&self.invite)?;
        let checked = self.as_it_is().map_err(|mut problems| problems.remove(0))?;
        let like_ours = self.like_ours(&checked);
        let members = self.members(&checked, &like_ours)?;
        let ca = read(&self.checked.config.identity.ca)?;
        let name = &self.invite.name;
        if valid_names(&self.invite.pki)?.contains(&name.to_string()) {
            self.authority.revoke(name.as_str()).map_err(failure)?;
        }
        let node = NewNode {
            name: name.clone(),
            names: self.invite.names.clone(),
            key_algorithm: KeyAlgorithm::default(),
            period: Period::default(),
        };
        let made = self
            .authority
            .admit(&request, &node, &self.invite.pki, Existing::Replace)
            .map_err(failure)?;
        let grant = Grant {
            certificates: Certificates {
                certificate: read(&made.certificate_path)?,
                ca,
                crl: self.crls()?,
                ..Certificates::default()
            },
            members,
            ..like_ours
        };
        let grant = serde_json::to_string(&grant).map_err(|error| {
            Problem::new(
                "E27",
                "the grant cannot be written",
                error.to_string(),
                "report this",
            )
        })?;
        let proof = prove(&self.secret, Prover::Inviter, &binding, grant.as_bytes());
        Ok((Enrolled { grant, proof }, made.certificate_path))
    }

    /// Whom the new node lets in from the beginning: those that may here what it would let them do. The others it hears of
    /// from the CA, with what they may.
    fn members(&self, checked: &Checked, granted: &Grant) -> Result<Vec<String>, Problem> {
        let joined = self.authority.joined();
        let joined = joined.map_err(|failure| of_failure(&failure))?;
        let mut members: Vec<String> = nodes(&joined, checked)
            .into_iter()
            .filter(|node| node.name != self.invite.name.as_str())
            .filter(|node| node.logical && (node.ordinary || granted.ordinary.is_none()))
            .map(|node| format!("cn:{}", node.name))
            .collect();
        let own = own(checked.credentials.identity());
        members.extend(own.filter(|own| !members.contains(own)));
        Ok(members)
    }

    /// What our own rules let the new node do, so that it lets others do the same when roles have swapped.
    fn like_ours(&self, checked: &Checked) -> Grant {
        let identity = format!("cn:{}", self.invite.name);
        let mut grant = Grant::default();
        for rule in policies(&checked.config).flat_map(Policy::rules) {
            if rule.identity.to_string() != identity {
                continue;
            }
            if let Names::Only(users) = &rule.users {
                grant.role = grant.role.or_else(|| users.first().cloned());
            }
            if let (true, Names::Only(databases)) = (rule.ordinary, &rule.databases) {
                grant.ordinary = databases.first().cloned();
            }
        }
        grant
    }

    /// The newest CRL of each CA: the CA's directory has one for its own, this node's file one for every other.
    fn crls(&self) -> Result<String, Problem> {
        let credentials = &self.checked.credentials;
        let pem = read(&self.authority.directory().join(CA_CRL))?;
        let fresh: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes())
            .flatten()
            .collect();
        let merged = merge(credentials.authorities(), credentials.crls(), fresh);
        Ok(merged.crls.iter().map(|crl| to_pem(crl)).collect())
    }
}

/// Where the daemon of this configuration listens for commands.
pub(crate) fn control_socket(config: &Config, directory: &Path) -> Result<PathBuf, Problem> {
    config.control.clone().ok_or_else(|| {
        Problem::new(
            "E19",
            format!(
                "{} opens no control socket",
                directory.join(CONFIG).display()
            ),
            "the invitation waits in the running daemon, which is reached through it",
            "add [control] socket = \"/run/pgtlsproxy/control.sock\", and restart pgtlsproxy",
        )
    })
}

/// Who has a certificate that counts, by the ledger, oldest first.
pub(super) fn valid_names(pki: &Path) -> Result<Vec<String>, Problem> {
    let ledger = Ledger::read(pki).map_err(|failure| of_failure(&failure))?;
    let counting = ledger.counting(Date::now()).into_iter();
    Ok(counting.map(|issued| issued.record.name).collect())
}

/// Every other node, as rules have it; fails where the invited name is a node's and may not be.
fn others(invite: &Invite) -> Result<Vec<String>, Problem> {
    let mut names = valid_names(&invite.pki)?;
    if let Some(known) = names.iter().position(|name| *name == invite.name.as_str()) {
        if !invite.replace {
            return Err(Problem::new(
                "E09",
                format!("{} is a node already", invite.name),
                "the ledger has a valid certificate of that name",
                format!(
                    "if its host was made anew: pgtlsproxy invite --replace {}",
                    invite.name
                ),
            ));
        }
        names.remove(known);
    }
    Ok(names.into_iter().map(|name| format!("cn:{name}")).collect())
}

fn read(path: &Path) -> Result<String, Problem> {
    fs::read_to_string(path).map_err(|error| {
        Problem::new(
            "E20",
            format!("{} cannot be read", path.display()),
            error.to_string(),
            "run this as root",
        )
    })
}

fn unexpected(reply: &Reply) -> Problem {
    Problem::new(
        "E27",
        "the daemon says something that was not asked",
        escape(format!("{reply:?}")),
        "it is of another version: restart it (systemctl restart pgtlsproxy)",
    )
}
