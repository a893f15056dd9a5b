//! A CA with all it knows in one file, its keys under a passphrase: written, read, restored.
//!
//! The format is what every host can open without this program: a tar archive of the CA's own files. A key in it is
//! PKCS#8 under PBES2 (scrypt, AES-256), which `openssl pkey` reads; the rest is public anyway. Encryption alone would
//! not do: a ledger without its revocations would go unnoticed. So SHA256SUMS names the digest of every file, and the
//! CA's own key signs it. The signature is verified with the key that the passphrase opened, hence whoever does not know
//! the passphrase can neither change a file nor put another CA into its place; and since the archive is made the same
//! from the same files, every other byte of it is compared too. What nobody can notice is an older backup of this CA.

use std::io::Read;
use std::path::{Path, PathBuf};

use protocol::certificate::Crl;
use protocol::escape::escape;
use protocol::identity::Fingerprint;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::authority::{
    Authority, CA_CERTIFICATE, CA_CRL, CA_KEY, Ca, NEXT_KEY, OLD_KEY, read_bundle,
};
use crate::key::{self, Passphrase, PassphraseSource};
use crate::ledger::{Entry, Event, LEDGER, Ledger, LockedLedger};
use crate::report::{Date, Failure};
use crate::store::{self, Existing, NewFile, Readers};
use crate::verify::has_signed;

const README: &str = "README";
const ABOUT: &str = "backup.json";
const SUMS: &str = "SHA256SUMS";
const SIGNATURE: &str = "SHA256SUMS.sig";

/// More than any ledger will reach.
const FILE_AT_MOST: u64 = 16 << 20;

/// How far a restored CA jumps ahead with its CRL numbers: those that it gave out after the backup must not come again,
/// since of two CRLs the one with the higher number counts.
const CRL_NUMBERS_SKIPPED: u64 = 1000;

const HOW_TO: &str = "\
The backup of a CA of pgtlsproxy. `certs-tool ca restore FILE` verifies all of it and puts it in place. By hand:

  tar xf FILE && sha256sum -c SHA256SUMS
  openssl x509 -in ca.crt -noout -pubkey > ca.pub
  openssl dgst -sha256 -verify ca.pub -signature SHA256SUMS.sig SHA256SUMS    (a P-384 CA: -sha384)
  openssl pkey -in ca.key -out ca.plain.key                                   (asks for the passphrase)

During a rotation there are two CAs: ca.crt holds both, ca.key belongs to the one that signs.
";

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    format: u32,
    made: Date,
    /// The keys that lay on the disk without a passphrase, and will do so again.
    plain_keys: Vec<String>,
}

/// A backup whose parts belong together.
pub(crate) struct Backup {
    files: Vec<File>,
    about: About,
    cas: Vec<(String, Ca)>,
}

type File = (String, Zeroizing<Vec<u8>>);

impl Backup {
    /// Gathers what the CA of this directory consists of, in one moment between two changes.
    pub(crate) fn make(directory: &Path, source: &PassphraseSource) -> Result<Self, Failure> {
        let authority = Authority::open(directory, || source.ask(&directory.join(CA_KEY)))?;
        let passphrase = match authority.passphrase() {
            Some(passphrase) => passphrase.clone(),
            None => source.choose(Path::new("the backup"))?,
        };
        // With a fresh CRL, lest one be missing that a killed run has not written any more.
        let _unchanged = authority.renewed_crls(None)?;
        let mut files = Vec::new();
        let mut plain_keys = Vec::new();
        for name in [CA_KEY, NEXT_KEY, OLD_KEY] {
            let path = directory.join(name);
            if !path.exists() {
                continue;
            }
            let bytes = store::read_secret(&path)?;
            if key::is_encrypted(&bytes) {
                files.push((name.to_owned(), bytes));
            } else {
                let key = key::from_bytes(&bytes, &path, || Ok(passphrase.clone()))?;
                let pem = key::to_pem(&key, Some(&passphrase))?;
                files.push((name.to_owned(), Zeroizing::new(pem.as_bytes().to_vec())));
                plain_keys.push(name.to_owned());
            }
        }
        for name in [CA_CERTIFICATE, CA_CRL, LEDGER] {
            files.push((name.to_owned(), store::read(&directory.join(name))?));
        }
        let about = About {
            format: 1,
            made: Date::now(),
            plain_keys,
        };
        let json = serde_json::to_vec(&about);
        let json =
            json.map_err(|error| Failure::new("cannot write JSON", error.to_string(), ""))?;
        files.insert(0, (README.to_owned(), HOW_TO.as_bytes().to_vec().into()));
        files.insert(1, (ABOUT.to_owned(), json.into()));
        let sums = sums(&files);
        let signature = authority.sign_bytes(sums.as_bytes())?;
        files.push((SUMS.to_owned(), sums.into_bytes().into()));
        files.push((SIGNATURE.to_owned(), signature.into()));
        // What could not be restored is no backup.
        Self::of(files, || Ok(passphrase))
    }

    /// Reads a backup and verifies all of it.
    pub(crate) fn decode(
        archive: &[u8],
        path: &Path,
        source: &PassphraseSource,
    ) -> Result<Self, Failure> {
        let files = unpack(archive).ok_or_else(|| no_backup(path))?;
        if encode(&files)? != archive {
            return Err(altered(
                "the archive has parts that this program did not write",
            ));
        }
        Self::of(files, || source.ask(path))
    }

    fn of(
        files: Vec<File>,
        passphrase: impl FnOnce() -> Result<Passphrase, Failure>,
    ) -> Result<Self, Failure> {
        let file = |name: &str| -> Result<&[u8], Failure> {
            let found = files.iter().find(|(known, _)| known == name);
            found
                .map(|(_, content)| content.as_slice())
                .ok_or_else(|| altered(&format!("there is no {name} in it")))
        };
        let (content, attest) = files.split_at(files.len().saturating_sub(2));
        let order: Vec<&str> = attest.iter().map(|(name, _)| name.as_str()).collect();
        if order != [SUMS, SIGNATURE] || sums(content).as_bytes() != file(SUMS)? {
            return Err(altered(
                "the digests in SHA256SUMS are not those of the files",
            ));
        }
        let about: About = serde_json::from_slice(file(ABOUT)?)
            .map_err(|error| altered(&format!("{ABOUT}: {error}")))?;
        if about.format != 1 {
            return Err(altered("it was made by another version of certs-tool"));
        }
        let bundle = read_bundle(file(CA_CERTIFICATE)?, Path::new(CA_CERTIFICATE))?;
        let (mut ask, mut given) = (Some(passphrase), None);
        let mut cas = Vec::new();
        for (name, bytes) in content.iter().filter(|(name, _)| name.ends_with(".key")) {
            let key = key::from_bytes(bytes, Path::new(name), || {
                if let Some(ask) = ask.take() {
                    given = Some(ask()?);
                }
                given
                    .clone()
                    .ok_or_else(|| altered("a key is not under the passphrase"))
            })?;
            // A key without its CA is left of a rotation that is over.
            if let Some(ca) = Ca::of(&bundle, key) {
                cas.push((name.clone(), ca));
            } else if name == CA_KEY {
                return Err(altered("ca.key does not belong to ca.crt"));
            }
        }
        let Some((_, signing)) = cas.iter().find(|(name, _)| name == CA_KEY) else {
            return Err(altered("there is no ca.key in it"));
        };
        if !has_signed(signing.der(), file(SUMS)?, file(SIGNATURE)?) {
            return Err(altered("the CA's signature of SHA256SUMS is wrong"));
        }
        let ledger = Ledger::parse(file(LEDGER)?, |line, why| {
            altered(&format!("line {line} of the ledger: {}", escape(why)))
        })?;
        for (_, ca) in &cas {
            crl_belongs(ca, file(CA_CRL)?, &ledger)?;
        }
        Ok(Self { about, cas, files })
    }

    /// The archive.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Failure> {
        encode(&self.files)
    }

    /// The CA that signs.
    pub(crate) fn ca(&self) -> String {
        let signing = self.cas.iter().find(|(name, _)| name == CA_KEY);
        signing.map_or_else(String::new, |(_, ca)| {
            ca.certificate().subject().to_string()
        })
    }

    /// When it was made.
    pub(crate) fn made(&self) -> Date {
        self.about.made
    }

    /// Puts the CA into this directory, which must have none. The key comes last: without it there is no CA, and a
    /// restore that was killed before is simply run again.
    pub(crate) fn restore(&self, directory: &Path) -> Result<(), Failure> {
        let mut wanted: Vec<(PathBuf, Zeroizing<Vec<u8>>, Readers)> = Vec::new();
        for (name, content) in self.files.iter().rev() {
            let path = directory.join(name);
            match &**name {
                LEDGER => wanted.push((path, self.ledger(content)?, Readers::Everybody)),
                CA_CERTIFICATE | CA_CRL => wanted.push((path, content.clone(), Readers::Everybody)),
                CA_KEY | NEXT_KEY | OLD_KEY => {
                    let Some((_, ca)) = self.cas.iter().find(|(known, _)| known == name) else {
                        continue;
                    };
                    let plain = self.about.plain_keys.contains(name);
                    let key = if plain {
                        ca.key_pem()?
                    } else {
                        content.clone()
                    };
                    wanted.push((path, key, Readers::Owner));
                }
                _ => {}
            }
        }
        store::make_directory(directory)?;
        let _lock = LockedLedger::open(directory)?;
        wanted.retain(|(path, content, _)| store::read(path).ok().as_ref() != Some(content));
        for (path, ..) in &wanted {
            if std::fs::symlink_metadata(path).is_ok() {
                return Err(Failure::new(
                    format!("{} exists already, and is another", path.display()),
                    "a restore overwrites nothing; nothing was changed",
                    "--dir NEW restores elsewhere",
                ));
            }
        }
        let files: Vec<NewFile<'_>> = wanted
            .iter()
            .map(|(path, content, readers)| NewFile {
                path: path.clone(),
                content,
                readers: *readers,
            })
            .collect();
        store::write_all(&files, Existing::Keep)
    }

    /// The ledger, ahead of every CRL number that may have been given out since.
    fn ledger(&self, backed_up: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let ledger = Ledger::parse(backed_up, |_, why| altered(&why))?;
        let mut text = Zeroizing::new(backed_up.to_vec());
        for (_, ca) in &self.cas {
            let entry = Entry {
                event: Event::Crl,
                at: self.about.made,
                crl: ledger
                    .crl_number(&ca.id())
                    .saturating_add(CRL_NUMBERS_SKIPPED),
                ca: ca.id(),
                certificate: None,
            };
            let line = serde_json::to_vec(&entry);
            text.extend(
                line.map_err(|error| {
                    Failure::new("cannot write the ledger", error.to_string(), "")
                })?,
            );
            text.push(b'\n');
        }
        Ok(text)
    }
}

/// In the notation of `sha256sum`.
fn sums(files: &[File]) -> String {
    let lines = files
        .iter()
        .map(|(name, content)| format!("{}  {name}\n", Fingerprint::of(content)));
    lines.collect()
}

/// The same archive from the same files.
fn encode(files: &[File]) -> Result<Vec<u8>, Failure> {
    let failed =
        |error: std::io::Error| Failure::new("cannot make the archive", error.to_string(), "");
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        archive
            .append_data(&mut header, name, &***content)
            .map_err(failed)?;
    }
    archive.into_inner().map_err(failed)
}

fn unpack(archive: &[u8]) -> Option<Vec<File>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(archive).entries().ok()?.take(16) {
        let entry = entry.ok()?;
        let name = entry.path().ok()?.to_str()?.to_owned();
        let mut content = Zeroizing::new(Vec::new());
        entry.take(FILE_AT_MOST).read_to_end(&mut content).ok()?;
        files.push((name, content));
    }
    Some(files)
}

/// The CA's CRL is there, is its own, and revokes what the ledger says.
fn crl_belongs(ca: &Ca, pem: &[u8], ledger: &Ledger) -> Result<(), Failure> {
    let subject = ca.certificate().subject();
    let own = CertificateRevocationListDer::pem_slice_iter(pem)
        .flatten()
        .find_map(|der| {
            let crl = Crl::parse(&der)
                .ok()
                .filter(|crl| crl.is_issued_by(ca.certificate()))?;
            let (_, x509) = X509Certificate::from_der(ca.der()).ok()?;
            let (_, list) = CertificateRevocationList::from_der(&der).ok()?;
            list.verify_signature(x509.public_key()).ok()?;
            Some(crl)
        });
    let Some(crl) = own else {
        return Err(altered(&format!("there is no CRL of {subject} in it")));
    };
    let mut listed: Vec<String> = crl.revoked().iter().map(ToString::to_string).collect();
    let revoked = ledger.revoked_by(&ca.id()).into_iter();
    let mut revoked: Vec<String> = revoked.map(|(serial, _)| serial.to_owned()).collect();
    listed.sort();
    revoked.sort();
    if listed == revoked {
        Ok(())
    } else {
        Err(altered(&format!(
            "the CRL of {subject} and the ledger disagree on what is revoked"
        )))
    }
}

fn altered(why: &str) -> Failure {
    Failure::new(
        "the backup is damaged or was changed",
        why,
        "take another one; nothing was restored",
    )
}

fn no_backup(path: &Path) -> Failure {
    Failure::new(
        format!("{} is no backup of a CA", path.display()),
        "it is no tar archive, or a damaged one",
        "`certs-tool ca backup FILE` makes one; nothing was restored",
    )
}
