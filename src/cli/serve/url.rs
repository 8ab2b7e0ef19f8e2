//! Addresses that a node listens at: etcd's URLs, and what kine takes in their place.

use std::str::FromStr;

/// Where something is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) is_tls: bool,
    pub(super) host: String,
}

/// An address as kine takes it: it need not say whether it is TLS, which the certificate says then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listen {
    is_tls: Option<bool>,
    host: String,
}

const FORM: &str = "expected http://HOST:PORT or https://HOST:PORT";

// === impl Url ===

impl Url {
    /// Where an etcd is served that says nothing of it.
    pub(super) fn usual() -> Self {
        Self { is_tls: false, host: "127.0.0.1:2379".to_owned() }
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (is_tls, host) = match text.split_once("://") {
            Some(("http", host)) => (false, host),
            Some(("https", host)) => (true, host),
            Some(("unix" | "unixs", _)) => return Err(no_sockets()),
            _ => return Err(FORM.to_owned()),
        };
        Ok(Self { is_tls, host: host_and_port(host)? })
    }
}

// === impl Listen ===

impl Listen {
    /// The address, with TLS where it says so, or does not say and there is a certificate.
    pub(super) fn url(&self, has_certificate: bool) -> Url {
        Url { is_tls: self.is_tls.unwrap_or(has_certificate), host: self.host.clone() }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (is_tls, host) = match text.split_once("://") {
            None => (None, text),
            Some(("tcp", host)) => (None, host),
            Some(("http", host)) => (Some(false), host),
            Some(("https", host)) => (Some(true), host),
            Some(("unix", _)) => return Err(no_sockets()),
            Some(_) => return Err(format!("expected HOST:PORT; or {FORM}")),
        };
        Ok(Self { is_tls, host: host_and_port(host)? })
    }
}

fn no_sockets() -> String {
    "sockets of Unix are not served: take http://127.0.0.1:2379 here, and the same as the address at the client"
        .to_owned()
}

/// `HOST:PORT`; without a host, all addresses of the machine, as in Go.
fn host_and_port(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    if text.contains(['/', '@']) {
        return Err(FORM.to_owned());
    }
    match text.rsplit_once(':') {
        Some((host, _)) if host.starts_with('[') != host.ends_with(']') => {
            Err(format!("the port is missing: {FORM}"))
        }
        Some((_, port)) if port.parse::<u16>().is_err() => {
            Err(format!("the port `{port}` is no number up to 65535: {FORM}"))
        }
        Some(("", port)) => Ok(format!("0.0.0.0:{port}")),
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("the port is missing: {FORM}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_etcd_and_kine_write_them() {
        let url = |text: &str| text.parse::<Url>().map(|url| (url.is_tls, url.host));
        assert_eq!(url("http://a:1"), Ok((false, "a:1".to_owned())));
        assert_eq!(url("https://[::1]:1/"), Ok((true, "[::1]:1".to_owned())));
        let listen = |text: &str, has_certificate| {
            let listen: Listen = text.parse().expect("it is an address");
            let url = listen.url(has_certificate);
            (url.is_tls, url.host)
        };
        assert_eq!(listen("0.0.0.0:2369", false), (false, "0.0.0.0:2369".to_owned()));
        assert_eq!(listen("tcp://0.0.0.0:2369", true), (true, "0.0.0.0:2369".to_owned()));
        assert_eq!(listen("http://a:1", true), (false, "a:1".to_owned()));
        assert_eq!(listen(":8080", false), (false, "0.0.0.0:8080".to_owned()));
        for (text, said) in [
            ("127.0.0.1:1", "expected http://HOST:PORT"),
            ("http://127.0.0.1", "the port is missing"),
            ("http://[::1]", "the port is missing"),
            ("http://127.0.0.1:99999", "no number up to 65535"),
            ("unix://kine.sock", "sockets of Unix are not served"),
            ("http://a:1/v3", "expected http://HOST:PORT"),
        ] {
            let refused = url(text).expect_err(text);
            assert!(refused.contains(said), "{text}: {refused}");
        }
    }
}
