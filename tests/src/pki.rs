//! Certificates: good ones by `certs-tool`, as a user makes them; deliberately bad ones by `openssl`, since
//! `certs-tool` refuses to make them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::files::{Scratch, give_to_postgres};
use crate::process::run;
use crate::programs::certs_tool;

/// A certificate authority of a test.
#[derive(Debug)]
pub struct Pki {
    dir: Arc<Scratch>,
}

/// A node's certificate and key, with the CA that it trusts. The files live as long as it or its [`Pki`].
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, as PEM.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CA that it trusts.
    pub ca: PathBuf,
    dir: Arc<Scratch>,
}

/// One thing wrong with a certificate.
#[derive(Clone, Copy, Debug)]
pub enum Wrong {
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// Only for e-mail.
    Purpose,
    /// X.509 version 1.
    Version1,
    /// No subject alternative name.
    NoName,
    /// Made out to another host.
    OtherName,
    /// Signed by itself.
    SelfSigned,
}

const OPENSSL_CONF: &str = "
[ca]
default_ca = test
[test]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
default_days = 30
unique_subject = no
policy = any
[any]
commonName = supplied
[good]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1
[other_name]
extendedKeyUsage = serverAuth, clientAuth
authorityKeyIdentifier = keyid
subjectAltName = DNS:elsewhere.test
[no_name]
extendedKeyUsage = serverAuth, clientAuth
authorityKeyIdentifier = keyid
[purpose]
extendedKeyUsage = emailProtection
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1
";

impl Pki {
    /// A new CA.
    #[expect(clippy::new_without_default, reason = "it runs programs")]
    pub fn new() -> Self {
        let pki = Self {
            dir: Arc::new(Scratch::new("pki")),
        };
        pki.certs_tool(&["ca", "init"]).unwrap();
        fs::write(pki.path("openssl.cnf"), OPENSSL_CONF).unwrap();
        fs::write(pki.path("index.txt"), "").unwrap();
        pki
    }

    /// Runs `certs-tool` in the CA's directory.
    pub fn certs_tool(&self, arguments: &[&str]) -> Result<String, String> {
        run(Command::new(certs_tool())
            .arg("--dir")
            .arg(self.dir.path())
            .args(arguments))
    }

    /// A good certificate for a node on this machine: CN `name`, SANs `name.test`, localhost and 127.0.0.1.
    pub fn issue(&self, name: &str) -> Identity {
        self.issue_for(name, &[&format!("{name}.test"), "localhost", "127.0.0.1"])
    }

    /// A good certificate with these SANs; it replaces an earlier one of that name.
    pub fn issue_for(&self, name: &str, sans: &[&str]) -> Identity {
        let out = self.dir.path().to_str().unwrap();
        let mut arguments = vec!["issue", name, "--force", "--out", out];
        for san in sans {
            arguments.extend(["--san", san]);
        }
        self.certs_tool(&arguments).unwrap();
        self.identity(name)
    }

    /// As [`Pki::issue`], valid from and until these moments, in seconds from now.
    pub fn issue_for_seconds(&self, name: &str, from: i64, until: i64) -> Identity {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let at = |seconds: i64| format!("@{}", now.as_secs() as i64 + seconds);
        let (not_before, not_after) = (at(from), at(until));
        let san = format!("{name}.test");
        let arguments = [
            &[
                "issue",
                name,
                "--force",
                "--out",
                self.dir.path().to_str().unwrap(),
            ][..],
            &["--san", &san, "--san", "localhost", "--san", "127.0.0.1"],
            &["--not-before", &not_before, "--not-after", &not_after],
        ];
        self.certs_tool(&arguments.concat()).unwrap();
        self.identity(name)
    }

    /// A certificate that is bad in one way, with a good key.
    pub fn issue_wrong(&self, name: &str, wrong: Wrong) -> Identity {
        let (key, csr, crt) = (
            format!("{name}.key"),
            format!("{name}.csr"),
            format!("{name}.crt"),
        );
        let subject = format!("/CN={name}");
        let new_key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &key,
        ];
        if let Wrong::SelfSigned = wrong {
            let extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1";
            self.openssl(
                &[
                    "req", "-x509", "-subj", &subject, "-addext", extensions, "-out", &crt,
                ],
                &new_key,
            );
            return self.identity(name);
        }
        self.openssl(&["req", "-new", "-subj", &subject, "-out", &csr], &new_key);
        let by_ca = [
            "ca", "-batch", "-notext", "-cert", "ca.crt", "-keyfile", "ca.key", "-in", &csr,
            "-out", &crt,
        ];
        let how: &[&str] = match wrong {
            Wrong::Expired => &[
                "-extensions",
                "good",
                "-startdate",
                "20200101000000Z",
                "-enddate",
                "20210101000000Z",
            ],
            Wrong::NotYetValid => &[
                "-extensions",
                "good",
                "-startdate",
                "20990101000000Z",
                "-enddate",
                "20991231000000Z",
            ],
            Wrong::Purpose => &["-extensions", "purpose"],
            Wrong::NoName => &["-extensions", "no_name"],
            Wrong::OtherName => &["-extensions", "other_name"],
            Wrong::Version1 | Wrong::SelfSigned => &[],
        };
        self.openssl(&by_ca, how);
        self.identity(name)
    }

    /// Revokes all that was issued under this name.
    pub fn revoke(&self, name: &str) {
        self.certs_tool(&["revoke", name]).unwrap();
    }

    /// The CA's list of what is revoked.
    pub fn crl(&self) -> PathBuf {
        self.path("ca.crl")
    }

    /// The CA's certificate.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.crt")
    }

    fn identity(&self, name: &str) -> Identity {
        Identity {
            cert: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
            ca: self.ca(),
            dir: Arc::clone(&self.dir),
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn openssl(&self, command: &[&str], more: &[&str]) {
        let mut openssl = Command::new("openssl");
        openssl
            .current_dir(self.dir.path())
            .env("OPENSSL_CONF", self.path("openssl.cnf"));
        run(openssl.args(command).args(more)).unwrap();
    }
}

impl Identity {
    /// The `[identity]` table of a configuration file.
    pub fn toml(&self) -> String {
        let [cert, key, ca] = [&self.cert, &self.key, &self.ca].map(|path| path.display());
        format!("[identity]\ncert = \"{cert}\"\nkey = \"{key}\"\nca = \"{ca}\"\n")
    }

    /// As [`Identity::toml`], with a CRL.
    pub fn toml_with_crl(&self, crl: &Path) -> String {
        format!("{}crl = \"{}\"\n", self.toml(), crl.display())
    }

    /// Puts another certificate and key in place of these, as a renewal does: each file is renamed into place.
    pub fn renew_as(&self, other: &Self) {
        for (to, from) in [(&self.cert, &other.cert), (&self.key, &other.key)] {
            let new = to.with_extension("new");
            fs::copy(from, &new).unwrap();
            fs::rename(new, to).unwrap();
        }
    }

    /// A copy of the files in a directory that this test may change.
    pub fn copied_to(&self, dir: &Path) -> Self {
        self.copy_to(dir)
    }

    /// The options of libpq for this identity.
    pub fn conninfo(&self) -> String {
        let [cert, key, ca] = [&self.cert, &self.key, &self.ca].map(|path| path.display());
        format!("sslcert={cert} sslkey={key} sslrootcert={ca}")
    }

    /// A copy of the files in another directory.
    pub(crate) fn copy_to(&self, dir: &Path) -> Self {
        let [cert, key, ca] = [&self.cert, &self.key, &self.ca].map(|file| {
            let copy = dir.join(file.file_name().unwrap());
            fs::copy(file, &copy).unwrap();
            give_to_postgres(&copy);
            copy
        });
        Self {
            cert,
            key,
            ca,
            dir: Arc::clone(&self.dir),
        }
    }

    /// The certificate and what follows it in its file.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(&self.cert)
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(&self.key).unwrap()
    }
}
