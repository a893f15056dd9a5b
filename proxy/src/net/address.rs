//! Addresses as they stand in the configuration, parsed once: where to listen, which PostgreSQL, which far proxy.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The port in the name of the socket that a client tunnel makes in a directory: `.s.PGSQL.5442`.
const DEFAULT_SOCKET_PORT: u16 = 5442;
/// `sun_path` holds 108 bytes with its terminator (unix(7)).
const LONGEST_SOCKET_PATH: usize = 107;

/// Where a tunnel accepts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenAddress {
    Tcp(SocketAddr),
    /// The socket's full path, named as libpq expects it: `DIRECTORY/.s.PGSQL.PORT`.
    Unix(PathBuf),
}

impl ListenAddress {
    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// Whether the system chooses the port.
    pub(crate) fn is_any_port(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.port() == 0)
    }

    /// The same address with a relative socket path seen from `base`.
    pub(crate) fn based_on(self, base: &Path) -> Self {
        match self {
            Self::Unix(path) => Self::Unix(base.join(path)),
            tcp => tcp,
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            let path = Path::new(text);
            let named = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(".s.PGSQL."));
            let socket = if named {
                path.to_owned()
            } else {
                path.join(format!(".s.PGSQL.{DEFAULT_SOCKET_PORT}"))
            };
            checked_socket_path(socket).map(Self::Unix)
        } else {
            text.parse().map(Self::Tcp).map_err(|_| {
                format!("`{text}` is neither IP:PORT nor a directory for a Unix socket")
            })
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// The local PostgreSQL behind a server tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PostgresAddress {
    Tcp(Target),
    Unix(PathBuf),
}

impl PostgresAddress {
    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(target) => is_loopback_host(&target.host),
            Self::Unix(_) => true,
        }
    }

    /// The same address with a relative socket path seen from `base`.
    pub(crate) fn based_on(self, base: &Path) -> Self {
        match self {
            Self::Unix(path) => Self::Unix(base.join(path)),
            tcp => tcp,
        }
    }
}

impl FromStr for PostgresAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            checked_socket_path(PathBuf::from(text)).map(Self::Unix)
        } else {
            text.parse().map(Self::Tcp)
        }
    }
}

impl fmt::Display for PostgresAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(target) => target.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A name or address and a port; names are resolved at each dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not HOST:PORT ([ADDRESS]:PORT for IPv6)");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let bare_ipv6 = host.contains(':') && !text.starts_with('[');
        if host.is_empty() || port == 0 || bare_ipv6 {
            return Err(wrong());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Whether what `host` names stays on this host; a name other than `localhost` is not trusted to.
fn is_loopback_host(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

fn checked_socket_path(path: PathBuf) -> Result<PathBuf, String> {
    let length = path.as_os_str().len();
    if length > LONGEST_SOCKET_PATH {
        return Err(format!(
            "the socket path {} has {length} bytes, more than the {LONGEST_SOCKET_PATH} that the system allows",
            path.display()
        ));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_becomes_the_socket_that_libpq_looks_for() {
        assert_eq!(
            "/run/pgtlsproxy".parse(),
            Ok(ListenAddress::Unix("/run/pgtlsproxy/.s.PGSQL.5442".into()))
        );
        assert_eq!(
            "/tmp/.s.PGSQL.6000".parse(),
            Ok(ListenAddress::Unix("/tmp/.s.PGSQL.6000".into()))
        );
        assert!("/".repeat(120).parse::<ListenAddress>().is_err());
    }

    #[test]
    fn targets_are_host_and_port() {
        let target: Target = "[::1]:5443".parse().unwrap();
        assert_eq!((target.host.as_str(), target.port), ("::1", 5443));
        assert_eq!(target.to_string(), "[::1]:5443");
        for wrong in ["db1", "db1:", ":5443", "::1:5443", "db1:0", "db1:99999"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
