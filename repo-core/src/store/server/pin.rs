//! The one certificate that a server is known by.

use std::sync::Arc;

use data_encoding::{HEXLOWER, HEXUPPER};
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::error::{Error, Result};

/// SHA-256 of a certificate's DER.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// That of a certificate.
    pub fn of(der: &[u8]) -> Self {
        let digest = aws_lc_rs_digest(der);
        Self(digest)
    }

    /// Reads 64 hexadecimal digits, also with `sha256:` before them, or with colons between them as openssl prints them.
    ///
    /// # Errors
    /// `Invalid` when it is something else.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text).replace(':', "").to_ascii_uppercase();
        let bytes = HEXUPPER.decode(digits.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        let wrong = || Error::invalid(format!("{text:?} is no fingerprint: sha256: and 64 hexadecimal digits are"));
        bytes.map(Self).ok_or_else(wrong)
    }
}

fn aws_lc_rs_digest(der: &[u8]) -> [u8; 32] {
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, der);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", HEXLOWER.encode(&self.0))
    }
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What a wrong certificate's error says; told apart by it from a network that fails.
pub(super) const WRONG: &str = "another certificate than the pinned one";

/// Takes one certificate, or writes down which one is shown. That whoever shows it has its key is checked as for any other.
#[derive(Debug)]
pub(super) struct Pin {
    expected: Option<Fingerprint>,
    pub(super) shown: Mutex<Option<Fingerprint>>,
    provider: Arc<CryptoProvider>,
}

impl Pin {
    pub(super) fn new(expected: Option<Fingerprint>) -> Arc<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        Arc::new(Self { expected, shown: Mutex::new(None), provider })
    }

    /// TLS that takes it.
    pub(super) fn tls(self: &Arc<Self>) -> ClientConfig {
        ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has the usual versions")
            .dangerous()
            .with_custom_certificate_verifier(self.clone())
            .with_no_client_auth()
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let shown = Fingerprint::of(end_entity);
        *self.shown.lock() = Some(shown);
        match self.expected {
            Some(expected) if expected != shown => Err(rustls::Error::General(format!("{WRONG} is shown: {shown}"))),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_programs_print_them() {
        let fingerprint = Fingerprint::of(b"");
        // FIPS 180-4: the digest of nothing.
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(fingerprint.to_string(), text);
        let digits = text.trim_start_matches("sha256:").to_uppercase();
        let colons: Vec<_> = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect();
        for same in [text.to_owned(), digits.clone(), colons.join(":")] {
            assert_eq!(Fingerprint::parse(&same).unwrap(), fingerprint);
        }
        for other in ["", "sha256:", "md5:00", &digits[1..], "zz"] {
            assert!(Fingerprint::parse(other).is_err(), "{other}");
        }
    }
}
