//! The certificate: the server's own, made at its first start, or files that may be renewed while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use repo_core::store::server::Fingerprint;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Tls;
use crate::token::replace_private;

/// Where certificate and key are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// A certificate that was read.
pub(crate) struct Identity {
    pub(crate) config: Arc<ServerConfig>,
    /// Of the first certificate: what clients pin.
    pub(crate) fingerprint: Fingerprint,
}

impl Files {
    /// Those of the configuration; the server's own are made when they are missing.
    pub(crate) fn find(tls: &Tls, state: &Path) -> Result<Self, String> {
        if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
            return Ok(Self { certificate: certificate.clone(), key: key.clone() });
        }
        let folder = state.join("tls");
        let files = Self { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
        if !files.certificate.exists() {
            files.make(&tls.names)?;
        }
        Ok(files)
    }

    fn make(&self, names: &[String]) -> Result<(), String> {
        let cannot = |error: &dyn std::fmt::Display| format!("cannot make a certificate: {error}");
        let names = if names.is_empty() { vec!["localhost".to_owned()] } else { names.to_vec() };
        let key = rcgen::KeyPair::generate().map_err(|error| cannot(&error))?;
        let mut params = rcgen::CertificateParams::new(names).map_err(|error| cannot(&error))?;
        params.distinguished_name.push(rcgen::DnType::CommonName, "cairn-server");
        let certificate = params.self_signed(&key).map_err(|error| cannot(&error))?;
        let folder = self.key.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|error| cannot(&error))?;
        // The key first: a certificate says that both are there.
        replace_private(&self.key, key.serialize_pem().as_bytes()).map_err(|error| cannot(&error))?;
        replace_private(&self.certificate, certificate.pem().as_bytes()).map_err(|error| cannot(&error))
    }

    /// Reads them.
    pub(crate) fn read(&self) -> Result<Identity, String> {
        let cannot = |path: &Path, error: &dyn std::fmt::Display| format!("cannot use {}: {error}", path.display());
        let bytes = fs::read(&self.certificate).map_err(|error| cannot(&self.certificate, &error))?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| cannot(&self.certificate, &error))?;
        let first = chain.first().ok_or_else(|| cannot(&self.certificate, &"there is no certificate in it"))?;
        let fingerprint = Fingerprint::of(first);
        let bytes = fs::read(&self.key).map_err(|error| cannot(&self.key, &error))?;
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| cannot(&self.key, &error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, key);
        let mut config = config.map_err(|error| cannot(&self.key, &error))?;
        // One request at a time on a connection: what an object costs is known, and nothing stands behind another one.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Identity { config: Arc::new(config), fingerprint })
    }

    /// When they were changed last; others mean that they are to be read again.
    pub(crate) fn changed(&self) -> [Option<SystemTime>; 2] {
        [&self.certificate, &self.key].map(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_servers_own_certificate_is_made_once_and_its_key_is_private() {
        let state = tempfile::tempdir().unwrap();
        let first = Files::find(&Tls::default(), state.path()).unwrap().read().unwrap().fingerprint;
        let again = Files::find(&Tls::default(), state.path()).unwrap().read().unwrap().fingerprint;
        assert_eq!(first, again);
        let key = fs::metadata(state.path().join("tls/key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Files::find(&Tls::default(), other.path()).unwrap().read().unwrap().fingerprint, first);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let [a, b] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for state in [&a, &b] {
            Files::find(&Tls::default(), state.path()).unwrap();
        }
        fs::copy(b.path().join("tls/key.pem"), a.path().join("tls/key.pem")).unwrap();
        let error = Files::find(&Tls::default(), a.path()).unwrap().read().err().unwrap();
        assert!(error.contains("key.pem"), "{error}");
    }
}
