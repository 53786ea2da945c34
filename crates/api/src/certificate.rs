//! The certificate of the TCP port: self-signed, made once, and known to
//! clients by its fingerprint.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

/// The names that it is for, besides those of the host.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file cannot be read or written.
    #[error("{doing} {file}: {source}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// It is no certificate with its key.
    #[error(
        "{file} does not hold a certificate and its key: {reason}; remove it, and a new one is made"
    )]
    Unfit {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// None could be made.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// A certificate and its key.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// The one in a file (PEM, certificate and key, for its owner only), made
    /// if the file does not exist; `names` are this host's.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn load_or_make(file: &Path, names: &[String]) -> Result<Self, CertificateError> {
        match fs::read(file) {
            Ok(pem) => Self::read(file, &pem),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let pem = make(names)?;
                write(file, pem.as_bytes()).map_err(|source| CertificateError::File {
                    doing: "writing",
                    file: file.to_owned(),
                    source,
                })?;
                Self::read(file, pem.as_bytes())
            }
            Err(source) => Err(CertificateError::File {
                doing: "reading",
                file: file.to_owned(),
                source,
            }),
        }
    }

    fn read(file: &Path, pem: &[u8]) -> Result<Self, CertificateError> {
        let unfit = |reason: String| CertificateError::Unfit {
            file: file.to_owned(),
            reason,
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let chain = chain.map_err(|e| unfit(e.to_string()))?;
        if chain.is_empty() {
            return Err(unfit("it has no certificate".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| unfit(e.to_string()))?;
        let certificate = Self { chain, key };
        // A key of another certificate is found here, not at the first client.
        certificate.server().map_err(|e| unfit(e.to_string()))?;
        Ok(certificate)
    }

    /// SHA-256 of the certificate, as openssl prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let der = self.chain.first().map_or(&[][..], |c| c.as_ref());
        let mut text = String::new();
        for (n, byte) in Sha256::digest(der).iter().enumerate() {
            let colon = if n == 0 { "" } else { ":" };
            let _ = write!(text, "{colon}{byte:02X}");
        }
        text
    }

    /// The certificate as clients take it in their list of trusted ones.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn server(&self) -> io::Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(self.chain.clone(), self.key.clone_key())
            })
            .map_err(io::Error::other)?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(server))
    }
}

fn make(names: &[String]) -> Result<String, rcgen::Error> {
    let mut all: Vec<String> = NAMES.map(str::to_owned).to_vec();
    for name in names {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    let mut parameters = CertificateParams::new(all)?;
    parameters
        .distinguished_name
        .push(DnType::CommonName, "holm");
    let key = KeyPair::generate()?;
    let certificate = parameters.self_signed(&key)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

/// Writes a file for its owner only, whole or not at all.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = file.with_extension("new");
    let mut new = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    fs::rename(&beside, file)?;
    let directory = file.parent().filter(|d| !d.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("api.pem");
        let names = ["box.example".to_owned(), "localhost".to_owned()];
        let made = Certificate::load_or_make(&file, &names).unwrap();
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Certificate::load_or_make(&file, &[]).unwrap();
        assert_eq!(made.fingerprint(), again.fingerprint());
        assert_eq!(made.fingerprint().len(), 32 * 3 - 1);
    }

    #[test]
    fn what_is_none_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("api.pem");
        let other = make(&[]).unwrap();
        let (_, key) = other.split_at(other.find("-----BEGIN PRIVATE").unwrap());
        let mine = make(&[]).unwrap();
        let (certificate, _) = mine.split_at(mine.find("-----BEGIN PRIVATE").unwrap());
        for bad in ["", "x", certificate, key, &format!("{certificate}{key}")] {
            fs::write(&file, bad).unwrap();
            let error = Certificate::load_or_make(&file, &[]).err().unwrap();
            assert!(matches!(error, CertificateError::Unfit { .. }), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), bad, "left as it is");
        }
    }
}
