//! TLS per host: whom to trust, what to show, in rustls' terms.
//!
//! Trusted are the machine's own certificates and, beside them, the `ca` of a host. Nothing is installed process-wide:
//! each configuration names its crypto provider.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use super::Error;
use crate::digest::{Digest, Hasher};

/// Largest certificate or key file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What a host's configuration says about TLS. The files' contents are in it: equal values make equal connections.
#[derive(Clone, Default)]
pub(super) struct Tls {
    ca: Vec<CertificateDer<'static>>,
    client: Option<Identity>,
    skip_verify: bool,
}

/// A client certificate: chain and key, both PEM and known to parse.
#[derive(Clone)]
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key_pem: Vec<u8>,
}

impl Tls {
    /// Reads what a `hosts.toml` names: `ca` files, pairs of certificate and key.
    pub(super) fn load(ca: &[PathBuf], pairs: &[(PathBuf, PathBuf)], skip_verify: bool) -> Result<Self, Error> {
        let mut tls = Self { skip_verify, ..Self::default() };
        for path in ca {
            tls.ca.append(&mut certificates(path)?);
        }
        if let [_, (second, _), ..] = pairs {
            let reason = "a second client certificate for one host is not served: give one".to_owned();
            return Err(Error::Config { path: second.clone(), reason });
        }
        if let Some((cert, key)) = pairs.first() {
            let key_pem = read(key)?;
            PrivateKeyDer::from_pem_slice(&key_pem)
                .map_err(|e| Error::Config { path: key.clone(), reason: format!("no private key in PEM form: {e}") })?;
            tls.client = Some(Identity { chain: certificates(cert)?, key_pem });
        }
        Ok(tls)
    }

    /// Reads docker's layout: `*.crt` are CAs, `*.cert` with `*.key` of the same name is the client's.
    pub(super) fn from_docker_dir(dir: &Path) -> Result<Self, Error> {
        let entries = fs::read_dir(dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let entries = entries.map_err(|e| Error::Config { path: dir.to_owned(), reason: e.to_string() })?;
        let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        let having = |extension: &'static str| {
            paths.iter().filter(move |path| path.extension().is_some_and(|found| found == extension))
        };
        let ca: Vec<PathBuf> = having("crt").cloned().collect();
        let pairs: Vec<(PathBuf, PathBuf)> =
            having("cert").map(|cert| (cert.clone(), cert.with_extension("key"))).collect();
        Self::load(&ca, &pairs, false)
    }

    /// Nothing but the machine's own settings.
    pub(super) fn is_default(&self) -> bool {
        self.ca.is_empty() && self.client.is_none() && !self.skip_verify
    }

    /// The same trust without the client's certificate: for a host that a registry points to.
    pub(super) fn without_client(&self) -> Self {
        Self { client: None, ..self.clone() }
    }

    /// Names the settings, so that equal ones share connections.
    pub(super) fn fingerprint(&self) -> Digest {
        let mut hasher = Hasher::sha256();
        let mut add = |part: &[u8]| {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        };
        add(&[u8::from(self.skip_verify), u8::from(self.client.is_some())]);
        self.ca.iter().for_each(|cert| add(cert));
        add(b"client");
        if let Some(client) = &self.client {
            client.chain.iter().for_each(|cert| add(cert));
            add(&client.key_pem);
        }
        hasher.finish()
    }

    /// The configuration for a client that speaks HTTP/1.1. `machine` reads the machine's trusted certificates.
    pub(super) fn client_config(
        &self,
        machine: impl FnOnce() -> Vec<CertificateDer<'static>>,
    ) -> Result<ClientConfig, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = if self.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(NoVerification(provider)))
        } else {
            let mut roots = RootCertStore::empty();
            // One odd certificate of the machine's must not keep all others from being used; a configured one must parse.
            roots.add_parsable_certificates(machine());
            for cert in &self.ca {
                roots.add(cert.clone())?;
            }
            builder.with_root_certificates(roots)
        };
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some(Identity { chain, key_pem }) => {
                let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|e| rustls::Error::General(e.to_string()))?;
                builder.with_client_auth_cert(chain.clone(), key)?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca.len())
            .field("client", &self.client.is_some())
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |reason: String| Error::Config { path: path.to_owned(), reason };
    let certs = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(format!("not certificates in PEM form: {e}")))?;
    if certs.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    Ok(certs)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let bad = |reason: String| Error::Config { path: path.to_owned(), reason };
    let size = fs::metadata(path).map_err(|e| bad(e.to_string()))?.len();
    if size > MAX_FILE {
        return Err(bad(format!("it is larger than {MAX_FILE} bytes")));
    }
    fs::read(path).map_err(|e| bad(e.to_string()))
}

/// `skip_verify`: any certificate will do. The handshake's signatures are still checked: they cost nothing.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
