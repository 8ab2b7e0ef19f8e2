//! How errors of connections read: the whole chain in a line, each link once, and what to do.

use std::error::Error;

/// Why a server most likely can't be reached, where the error itself does not tell a person what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No program has the port.
    NobodyListens,
    /// No machine is called so.
    NoSuchHost,
    /// It was spoken to in TLS, and answered in clear.
    NotTls,
    /// It was spoken to in clear, and answered something else than HTTP/2.
    NotHttp2,
    /// Its certificate is signed by somebody whom nobody here trusts.
    UnknownAuthority,
    /// Its certificate is an authority's, which signs others and is none of a server.
    AuthorityItself,
    /// Its certificate is for other names.
    OtherName,
    /// Its certificate has run out, or is not valid yet.
    NotInForce,
    /// It serves only who shows a certificate.
    WantsCertificate,
    /// It does not take the certificate that it was shown.
    RefusesCertificate,
    /// It takes the connection and closes it.
    Closes,
}

/// What the libraries beneath say of each. The first that is found counts.
const SAID: &[(&str, Cause)] = &[
    ("Connection refused", Cause::NobodyListens),
    ("dns error", Cause::NoSuchHost),
    ("failed to lookup address", Cause::NoSuchHost),
    ("InvalidContentType", Cause::NotTls),
    ("frame with invalid size", Cause::NotHttp2),
    ("UnknownIssuer", Cause::UnknownAuthority),
    // It calls itself as an authority does that is known, and is signed by another.
    ("BadSignature", Cause::UnknownAuthority),
    ("CaUsedAsEndEntity", Cause::AuthorityItself),
    ("certificate not valid for name", Cause::OtherName),
    ("NotValidForName", Cause::OtherName),
    ("certificate expired", Cause::NotInForce),
    ("certificate not valid yet", Cause::NotInForce),
    ("CertificateRequired", Cause::WantsCertificate),
    ("fatal alert: UnknownCA", Cause::RefusesCertificate),
    ("fatal alert: BadCertificate", Cause::RefusesCertificate),
    ("fatal alert: CertificateUnknown", Cause::RefusesCertificate),
    ("fatal alert: CertificateExpired", Cause::RefusesCertificate),
    ("fatal alert: DecryptError", Cause::RefusesCertificate),
    // What speaks TLS says so to who does not only now and then; else it only goes.
    ("connection closed", Cause::Closes),
    ("broken pipe", Cause::Closes),
    ("Broken pipe", Cause::Closes),
    ("Connection reset by peer", Cause::Closes),
];

// === impl Cause ===

impl Cause {
    /// What an error means, by its text.
    pub fn of(text: &str) -> Option<Self> {
        SAID.iter().find(|(said, _)| text.contains(said)).map(|(_, cause)| *cause)
    }

    /// What to do where a topology names the server.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::NobodyListens => "is it started, and is the port right?",
            Self::NoSuchHost => "is the name of the host right?",
            Self::NotTls => "it does not speak TLS: take `http://`",
            Self::NotHttp2 => "is the port right, or does it speak TLS, as `https://`?",
            Self::Closes => {
                "it closes the connection: where that lasts, does it speak TLS, as `https://`?"
            }
            Self::UnknownAuthority => "name its authority with `caFile` of `backendTLS`",
            Self::AuthorityItself => {
                "its certificate is an authority's: make it one with `CA:FALSE`"
            }
            Self::OtherName => "take a host that its certificate names",
            Self::NotInForce => "give it a certificate that is in force, and look at the clocks",
            Self::WantsCertificate => "give `backendTLS` a `certFile` and a `keyFile`",
            Self::RefusesCertificate => {
                "`certFile` of `backendTLS` must be signed by the authority that it trusts"
            }
        }
    }
}

/// An error and those behind it in one line, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    append_sources(&mut text, error);
    text
}

/// A status as people read it: its message, not its code, what is behind it, and what to do where that is
/// known.
pub fn message(status: &tonic::Status) -> String {
    let mut text = said(status);
    // A node further down may have said it already.
    if let Some(remedy) = Cause::of(&text).map(Cause::remedy).filter(|it| !text.contains(it)) {
        text.push_str("; ");
        text.push_str(remedy);
    }
    text
}

/// A status as it is: its message, not its code, and what is behind it.
pub fn said(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    append_sources(&mut text, status);
    text
}

fn append_sources(text: &mut String, error: &dyn Error) {
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
}
