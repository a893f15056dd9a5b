//! A record of pg_hba.conf as hba.c's parse_hba_line reads it (documentation, 20.1), and the file with all that it
//! includes. What PostgreSQL would refuse, and what only it can judge, is reported with file and line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use protocol::escape::escape;

use super::token::{Line, Token, lines};
use crate::setup::files::{Files, NotUnderstood, Place, configuration_files, relative_to};
use crate::setup::version::{Major, Thing, V9_4, V10, V18, has};

/// hba.c's own limit (conffiles.h, CONF_FILE_MAX_DEPTH).
const DEEPEST_INCLUDE: usize = 10;

/// Which connections a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
    HostGssEnc,
    HostNoGssEnc,
}

/// The address field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    All,
    SameHost,
    SameNet,
    /// Any mask: its ones need not stand together.
    Net {
        address: IpAddr,
        mask: IpAddr,
    },
    /// A host name, or the end of one after a dot.
    Name(Vec<u8>),
}

/// A word of a database or user list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) text: Vec<u8>,
    pub(crate) quoted: bool,
    /// What follows the `/`, where that makes it a regular expression, quoted or not.
    pub(crate) regex: Option<Vec<u8>>,
}

impl Word {
    pub(crate) fn is_keyword(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword.as_bytes()
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) place: Place,
    /// The line of the main file from which it comes: its own, or that of an include.
    pub(crate) top_line: usize,
    pub(crate) transport: Transport,
    pub(crate) databases: Vec<Word>,
    pub(crate) users: Vec<Word>,
    /// None for `local`.
    pub(crate) address: Option<Address>,
    pub(crate) method: String,
    /// The bytes of its file on which the method stands.
    pub(crate) method_span: Range<usize>,
    /// `name=value`.
    pub(crate) options: Vec<String>,
}

/// All records in the order in which a server tries them.
pub(crate) fn read(
    files: &dyn Files,
    path: &Path,
    major: Major,
) -> Result<Vec<Rule>, NotUnderstood> {
    let mut reader = Reader {
        files,
        major,
        rules: Vec::new(),
        open: Vec::new(),
    };
    reader.file(path, None)?;
    Ok(reader.rules)
}

struct Reader<'a> {
    files: &'a dyn Files,
    major: Major,
    rules: Vec<Rule>,
    open: Vec<PathBuf>,
}

impl Reader<'_> {
    fn file(&mut self, path: &Path, top_line: Option<usize>) -> Result<(), NotUnderstood> {
        let fault = |line, why: String| NotUnderstood::new(path, line, why);
        let text = self
            .files
            .read(path)
            .map_err(|error| fault(0, error.to_string()))?;
        if self.open.len() > DEEPEST_INCLUDE {
            return Err(fault(
                0,
                "files include each other more than 10 deep".to_owned(),
            ));
        }
        self.open.push(path.to_owned());
        for line in lines(path, &text, self.major)? {
            let top = top_line.unwrap_or(line.number);
            let wrong = |why: String| fault(line.number, why);
            if line.fields.is_empty() {
                continue;
            }
            match self.included(path, &line).map_err(wrong)? {
                Some(included) => {
                    for file in included {
                        self.file(&file, Some(top))?;
                    }
                }
                None => {
                    let place = Place {
                        file: path.to_owned(),
                        line: line.number,
                    };
                    let rule = self.rule(place, top, &line).map_err(wrong)?;
                    self.rules.push(rule);
                }
            }
        }
        self.open.pop();
        Ok(())
    }

    /// The files that this line includes, if it is such a line.
    fn included(&self, path: &Path, line: &Line) -> Result<Option<Vec<PathBuf>>, String> {
        let [directive, argument] = line.fields.as_slice() else {
            return Ok(None);
        };
        let (Some(directive), Some(argument)) = (directive.first(), argument.first()) else {
            return Ok(None);
        };
        if !has(self.major, Thing::HbaRegexAndInclude) {
            return Ok(None);
        }
        let target = relative_to(path, &argument.text, self.major);
        let unreadable = |path: &Path, error: std::io::Error| {
            format!("{}: {error}", escape(path.as_os_str().as_encoded_bytes()))
        };
        match directive.text.as_slice() {
            b"include" => Ok(Some(vec![target])),
            b"include_if_exists" => {
                let exists = self.files.read(&target).is_ok();
                Ok(Some(exists.then_some(target).into_iter().collect()))
            }
            b"include_dir" => configuration_files(self.files, &target)
                .map(Some)
                .map_err(|error| unreadable(&target, error)),
            _ => Ok(None),
        }
    }

    fn rule(&self, place: Place, top_line: usize, line: &Line) -> Result<Rule, String> {
        let mut fields = line.fields.iter().map(Vec::as_slice);
        let transport = self.transport(single(fields.next(), "the connection type")?)?;
        let databases = fields.next().ok_or("the database is missing")?;
        let users = fields.next().ok_or("the user is missing")?;
        let address = match transport {
            Transport::Local => None,
            _ => Some(address(&mut fields)?),
        };
        let method = single(fields.next(), "the authentication method")?;
        let options = fields
            .flatten()
            .map(|option| String::from_utf8_lossy(&option.text).into_owned())
            .collect::<Vec<_>>();
        if let Some(option) = options.iter().find(|option| !option.contains('=')) {
            return Err(format!("the option `{}` has no value", escape(option)));
        }
        Ok(Rule {
            databases: self.words(&place.file, databases, 0)?,
            users: self.words(&place.file, users, 0)?,
            place,
            top_line,
            transport,
            address,
            method: self.method(transport, method)?,
            method_span: method.span.clone(),
            options,
        })
    }

    fn transport(&self, token: &Token) -> Result<Transport, String> {
        let gss = has(self.major, Thing::HbaGssEncryption);
        Ok(match token.text.as_slice() {
            b"local" => Transport::Local,
            b"host" => Transport::Host,
            b"hostssl" => Transport::HostSsl,
            b"hostnossl" => Transport::HostNoSsl,
            b"hostgssenc" if gss => Transport::HostGssEnc,
            b"hostnogssenc" if gss => Transport::HostNoGssEnc,
            other => return Err(format!("`{}` is no connection type", escape(other))),
        })
    }

    fn method(&self, transport: Transport, token: &Token) -> Result<String, String> {
        let method = String::from_utf8_lossy(&token.text).into_owned();
        let local = transport == Transport::Local;
        let fits = match method.as_str() {
            "trust" | "reject" | "password" | "md5" | "ident" | "ldap" | "radius" | "pam"
            | "bsd" => true,
            "scram-sha-256" => self.major >= V10,
            "peer" => local,
            "gss" => !local,
            "krb5" => self.major < V9_4,
            "cert" => transport == Transport::HostSsl,
            "oauth" => self.major >= V18,
            _ => return Err(format!("`{}` is no authentication method", escape(&method))),
        };
        if fits {
            Ok(method)
        } else {
            Err(format!(
                "the authentication method `{method}` does not fit this line"
            ))
        }
    }

    /// The words of a list, those of an `@file` in its place.
    fn words(&self, file: &Path, tokens: &[Token], depth: usize) -> Result<Vec<Word>, String> {
        let mut words = Vec::new();
        for token in tokens {
            let name = match token.text.strip_prefix(b"@") {
                Some(name) if !token.quoted && !name.is_empty() => name,
                _ => {
                    let regex = token.text.strip_prefix(b"/");
                    let regex = regex.filter(|_| has(self.major, Thing::HbaRegexAndInclude));
                    words.push(Word {
                        regex: regex.map(<[u8]>::to_vec),
                        text: token.text.clone(),
                        quoted: token.quoted,
                    });
                    continue;
                }
            };
            let path = relative_to(file, name, self.major);
            let shown = escape(path.as_os_str().as_encoded_bytes());
            if depth >= DEEPEST_INCLUDE {
                return Err(format!(
                    "{shown}: files include each other more than 10 deep"
                ));
            }
            let text = self
                .files
                .read(&path)
                .map_err(|error| format!("{shown}: {error}"))?;
            let listed = lines(&path, &text, self.major)
                .map_err(|fault| format!("{}: {}", fault.place, fault.why))?;
            let tokens: Vec<Token> = listed
                .into_iter()
                .flat_map(|line| line.fields)
                .flatten()
                .collect();
            words.extend(self.words(&path, &tokens, depth + 1)?);
        }
        Ok(words)
    }
}

fn single<'a>(field: Option<&'a [Token]>, what: &str) -> Result<&'a Token, String> {
    match field {
        Some([token]) => Ok(token),
        Some(_) => Err(format!("{what} is a list")),
        None => Err(format!("{what} is missing")),
    }
}

/// One or two fields: `all`, `samehost`, `samenet`, a name, ADDRESS/BITS, or ADDRESS and MASK.
fn address<'a>(fields: &mut impl Iterator<Item = &'a [Token]>) -> Result<Address, String> {
    let token = single(fields.next(), "the address")?;
    for (keyword, address) in [
        ("all", Address::All),
        ("samehost", Address::SameHost),
        ("samenet", Address::SameNet),
    ] {
        if token.is_keyword(keyword) {
            return Ok(address);
        }
    }
    let text = String::from_utf8_lossy(&token.text);
    let (host, bits) = match text.split_once('/') {
        Some((host, bits)) => (host, Some(bits)),
        None => (&*text, None),
    };
    let Some(address) = numeric(host)? else {
        return match bits {
            None => Ok(Address::Name(token.text.clone())),
            Some(_) => Err("a host name has no mask".to_owned()),
        };
    };
    let mask = match bits {
        Some(bits) => {
            mask_of(address, bits).ok_or_else(|| format!("`/{}` is no mask", escape(bits)))?
        }
        None => {
            let mask = single(fields.next(), "the mask of the address")?;
            let text = String::from_utf8_lossy(&mask.text);
            numeric(&text)?.ok_or_else(|| format!("`{}` is no mask", escape(&*text)))?
        }
    };
    if address.is_ipv4() != mask.is_ipv4() {
        return Err("address and mask are of different kinds".to_owned());
    }
    Ok(Address::Net { address, mask })
}

/// A numeric address; none if it is a name. getaddrinfo also takes shortened and octal forms, which this room leaves to
/// it.
fn numeric(text: &str) -> Result<Option<IpAddr>, String> {
    if let Ok(address) = text.parse() {
        return Ok(Some(address));
    }
    let number_like = text
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit() || b".xX".contains(&byte))
        && text.starts_with(|c: char| c.is_ascii_digit());
    if number_like || text.contains(':') {
        return Err(format!(
            "`{}` is an unusual spelling of an address",
            escape(text)
        ));
    }
    Ok(None)
}

/// pg_sockaddr_cidr_mask.
fn mask_of(address: IpAddr, bits: &str) -> Option<IpAddr> {
    let digits = bits.strip_prefix('+').unwrap_or(bits);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let bits: u32 = digits.parse().ok()?;
    match address {
        IpAddr::V4(_) => {
            let zeros = 32_u32.checked_sub(bits)?;
            Some(Ipv4Addr::from(u32::MAX.checked_shl(zeros).unwrap_or(0)).into())
        }
        IpAddr::V6(_) => {
            let zeros = 128_u32.checked_sub(bits)?;
            Some(Ipv6Addr::from(u128::MAX.checked_shl(zeros).unwrap_or(0)).into())
        }
    }
}

impl Address {
    /// Whether a connection from `peer`, a loopback address, fits; none if only name servers know.
    pub(crate) fn admits(&self, peer: IpAddr) -> Option<bool> {
        match self {
            Self::All | Self::SameHost | Self::SameNet => Some(true),
            Self::Net { address, mask } => Some(match (address, mask, peer) {
                (IpAddr::V4(address), IpAddr::V4(mask), IpAddr::V4(peer)) => {
                    (address.to_bits() ^ peer.to_bits()) & mask.to_bits() == 0
                }
                (IpAddr::V6(address), IpAddr::V6(mask), IpAddr::V6(peer)) => {
                    (address.to_bits() ^ peer.to_bits()) & mask.to_bits() == 0
                }
                _ => false,
            }),
            Self::Name(name) => name.eq_ignore_ascii_case(b"localhost").then_some(true),
        }
    }
}
