//! How an etcd or a node is connected to.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hyper_util::client::legacy::connect::HttpConnector;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::address::Login;
use super::unverified::AnyCertificate;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);

/// That the host is gone is found out by TCP, also while nothing is under way: it has to say that it got what
/// was sent, or a probe where nothing was, within the last of these.
const PROBE_AFTER: Duration = Duration::from_secs(2);
const PROBE_EVERY: Duration = Duration::from_secs(1);
const SILENT_TIME_MAX: Duration = Duration::from_secs(5);

const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Where an etcd is, who asks, and how that is protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// `http://host:port` or `https://host:port` each; at least one.
    pub urls: Vec<String>,
    /// Who asks, where the etcd wants to know.
    pub login: Option<Login>,
    /// The authority that signed its certificate; the system's where none is given.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Whether any certificate is taken, whoever signed it and for whatever name.
    pub is_unverified: bool,
}

/// How a server is connected to. Reads the files that protect the connection.
pub fn endpoint(url: &str, address: &Address) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| error.to_string())?;
    let mut endpoint = endpoint
        .connect_timeout(CONNECT_TIME_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    if url.starts_with("https://") {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let mut tls = match &address.ca_file {
            _ if address.is_unverified => ClientTlsConfig::new(),
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &address.identity {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        let with_tls = match address.is_unverified {
            true => endpoint.tls_config_with_verifier(tls, Arc::new(AnyCertificate::new())),
            false => endpoint.tls_config(tls),
        };
        endpoint = with_tls.map_err(|error| error.to_string())?;
    }
    Ok(endpoint)
}

/// A connection that is opened when it is needed, TLS and all within `CONNECT_TIME_MAX`.
pub fn connect(endpoint: &Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(connector())
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    // TLS comes on top of it.
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIME_MAX));
    connector.set_keepalive(Some(PROBE_AFTER));
    connector.set_keepalive_interval(Some(PROBE_EVERY));
    #[cfg(target_os = "linux")]
    connector.set_tcp_user_timeout(Some(SILENT_TIME_MAX));
    connector
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_host_that_is_gone_is_found_out_by_its_silence() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let url = format!("http://{address}").parse().expect("it is an address");
        let stream = connector().oneshot(url).await.expect("the listener takes it").into_inner();
        let socket = socket2::SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().expect("it is known"), Some(SILENT_TIME_MAX));
        assert!(socket.keepalive().expect("it is known"));
        assert_eq!(socket.tcp_keepalive_time().expect("it is known"), PROBE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().expect("it is known"), PROBE_EVERY);
    }
}
