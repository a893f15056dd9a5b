//! Private keys and the passphrase that may lie on the CA's: PKCS#8, scrypt and AES-256-CBC (RFC 5958, 7914, 8018).
//!
//! A passphrase comes from a terminal, a file or a descriptor, never from the command line, where every user sees it.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pkcs8::der::pem::PemLabel;
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use rcgen::KeyPair;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::profile::KeyAlgorithm;
use crate::report::Failure;

/// The longest passphrase, in bytes.
const PASSPHRASE_AT_MOST: u64 = 1024;

/// N = 2^14, r = 8, p = 5: one of the settings that OWASP recommends, and the most that OpenSSL 3 will read.
const SCRYPT: (u8, u32, u32) = (14, 8, 5);

/// Bytes from the system's random number generator.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A passphrase, wiped when dropped.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// From bytes as they were given; a line's end does not count.
    pub fn new(mut bytes: Zeroizing<Vec<u8>>) -> Result<Self, Failure> {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        if bytes.is_empty() || bytes.len() as u64 > PASSPHRASE_AT_MOST {
            return Err(Failure::new(
                format!("a passphrase of {} bytes is not accepted", bytes.len()),
                format!("it must have 1 to {PASSPHRASE_AT_MOST} bytes"),
                "",
            ));
        }
        Ok(Self(bytes))
    }
}

/// Where a passphrase comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassphraseSource {
    /// The terminal.
    Prompt,
    /// The first bytes of a file.
    File(PathBuf),
    /// An open descriptor of this process.
    Descriptor(u32),
}

impl PassphraseSource {
    /// Asks for the passphrase of an existing key.
    pub fn ask(&self, of: &Path) -> Result<Passphrase, Failure> {
        match self {
            Self::Prompt => prompt(&format!("Passphrase of {}: ", of.display())),
            _ => self.read(),
        }
    }

    /// Asks for the passphrase of a key that is being made: at a terminal, twice.
    pub fn choose(&self, of: &Path) -> Result<Passphrase, Failure> {
        if *self != Self::Prompt {
            return self.read();
        }
        let first = prompt(&format!("New passphrase for {}: ", of.display()))?;
        let second = prompt("Once more: ")?;
        if first.0 != second.0 {
            return Err(Failure::new(
                "the two passphrases differ",
                "",
                "run the command again",
            ));
        }
        Ok(first)
    }

    fn read(&self) -> Result<Passphrase, Failure> {
        let path = match self {
            Self::File(path) => path.clone(),
            Self::Descriptor(number) => PathBuf::from(format!("/dev/fd/{number}")),
            Self::Prompt => PathBuf::from("/dev/tty"),
        };
        let failed = |error: io::Error| Failure::file("read the passphrase from", &path, &error);
        let file = File::open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() && metadata.permissions().mode() & 0o007 != 0 {
            return Err(Failure::new(
                format!(
                    "the passphrase in {} can be read by everybody",
                    path.display()
                ),
                "it protects nothing so",
                format!("chmod 600 {}", path.display()),
            ));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(PASSPHRASE_AT_MOST as usize + 4));
        file.take(PASSPHRASE_AT_MOST + 3)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        Passphrase::new(bytes)
    }
}

fn prompt(text: &str) -> Result<Passphrase, Failure> {
    let nobody = || {
        Failure::new(
            "a key has a passphrase, and there is no terminal to ask for it",
            "",
            "give --passphrase-file FILE or --passphrase-fd NUMBER",
        )
    };
    if !io::stderr().is_terminal() {
        return Err(nobody());
    }
    let line = rpassword::prompt_password(text).map_err(|_| nobody())?;
    Passphrase::new(Zeroizing::new(line.into_bytes()))
}

/// Makes a key.
pub(crate) fn generate(algorithm: KeyAlgorithm) -> Result<Zeroizing<KeyPair>, Failure> {
    let key = match algorithm {
        KeyAlgorithm::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyAlgorithm::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyAlgorithm::Rsa3072 => {
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_3072)
        }
    };
    key.map(Zeroizing::new)
        .map_err(|error| Failure::new("cannot make a key", error.to_string(), ""))
}

/// A key as PEM, under a passphrase if one is given.
pub(crate) fn to_pem(
    key: &KeyPair,
    passphrase: Option<&Passphrase>,
) -> Result<Zeroizing<String>, Failure> {
    let failed = |why: String| Failure::new("cannot encode the key", why, "");
    let info = PrivateKeyInfoRef::try_from(key.serialized_der())
        .map_err(|error| failed(error.to_string()))?;
    let Some(passphrase) = passphrase else {
        let document =
            SecretDocument::encode_msg(&info).map_err(|error| failed(error.to_string()))?;
        return document
            .to_pem("PRIVATE KEY", LineEnding::LF)
            .map_err(|error| failed(error.to_string()));
    };
    let salt: [u8; 16] = random().map_err(|error| failed(error.to_string()))?;
    let iv: [u8; 16] = random().map_err(|error| failed(error.to_string()))?;
    let (log_n, r, p) = SCRYPT;
    let cost = scrypt::Params::new(log_n, r, p).map_err(|error| failed(error.to_string()))?;
    let scheme = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv);
    let scheme = scheme.map_err(|error| failed(error.to_string()))?;
    let encrypted = info
        .encrypt_with_params(scheme, &passphrase.0)
        .map_err(|error| failed(error.to_string()))?;
    let pem = encrypted.to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF);
    pem.map_err(|error| failed(error.to_string()))
}

/// Whether a passphrase lies on this key.
pub(crate) fn is_encrypted(bytes: &[u8]) -> bool {
    let mark = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    bytes.windows(mark.len()).any(|window| window == mark)
}

/// Reads a key in PEM (PKCS#8, PKCS#1, SEC1, or encrypted PKCS#8) or DER; a passphrase is asked for only if there is one on it.
pub(crate) fn from_bytes(
    bytes: &[u8],
    path: &Path,
    passphrase: impl FnOnce() -> Result<Passphrase, Failure>,
) -> Result<Zeroizing<KeyPair>, Failure> {
    let unreadable = |why: String| {
        Failure::new(
            format!("{} holds no key that is read here", path.display()),
            why,
            "",
        )
    };
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    if is_encrypted(bytes) {
        let (_, document) =
            SecretDocument::from_pem(text).map_err(|error| unreadable(error.to_string()))?;
        let encrypted: EncryptedPrivateKeyInfoRef<'_> = document
            .decode_msg()
            .map_err(|error: pkcs8::der::Error| unreadable(error.to_string()))?;
        let passphrase = passphrase()?;
        let wrong = || {
            Failure::new(
                format!("wrong passphrase for {}", path.display()),
                "the key could not be decrypted with it",
                "",
            )
        };
        let plain = encrypted.decrypt(&passphrase.0).map_err(|_| wrong())?;
        // One wrong passphrase in 256 leaves padding that looks right, and rubbish before it.
        return KeyPair::try_from(plain.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| wrong());
    }
    let der = if text.contains("-----BEGIN") {
        PrivateKeyDer::from_pem_slice(bytes).map_err(|error| unreadable(error.to_string()))?
    } else {
        let der = PrivateKeyDer::try_from(bytes).map_err(|error| unreadable(error.to_owned()))?;
        der.clone_key()
    };
    let der = Zeroizing::new(der);
    KeyPair::try_from(&*der)
        .map(Zeroizing::new)
        .map_err(|error| unreadable(error.to_string()))
}
