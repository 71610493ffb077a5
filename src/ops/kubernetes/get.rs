//! One GET to the API server: HTTP/1.1, over TLS unless it is on loopback.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::codegen::http::{Request, Uri, header};

use crate::cluster::net::{Net, Stream};

/// Largest answer taken: a StatefulSet is a few kilobytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// A connection for one request.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    host: String,
}

/// Whether the address is one that may be asked.
pub(super) fn check(api: &Uri) -> Result<(), String> {
    let host = api.host().unwrap_or_default();
    match api.scheme_str() {
        Some("https") if !host.is_empty() => Ok(()),
        Some("http") if is_loopback(host) => Ok(()),
        Some("http") => Err(format!("kubernetes.api is {api}: the token goes over https only")),
        _ => Err(format!("kubernetes.api is {api}: it must begin with https://")),
    }
}

/// Whether the token is sealed on its way.
pub(super) fn is_tls(api: &Uri) -> bool {
    api.scheme_str() == Some("https")
}

fn is_loopback(host: &str) -> bool {
    bare(host).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// An IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

impl Connection {
    /// Connects; with certificates of a CA over TLS.
    pub async fn open(net: &dyn Net, api: &Uri, ca: Option<&[u8]>) -> Result<Self, String> {
        let host = api.host().unwrap_or_default();
        let port = api.port_u16().unwrap_or(if is_tls(api) { 443 } else { 80 });
        let address = format!("{host}:{port}");
        let stream = net.connect(&address).await.map_err(|error| error.to_string())?;
        let stream: Box<dyn Stream> = match ca {
            None => stream,
            Some(ca) => {
                let name = ServerName::try_from(bare(host).to_owned());
                let name = name.map_err(|error| error.to_string())?;
                let connector = TlsConnector::from(Arc::new(client_config(ca)?));
                let sealed = connector.connect(name, stream).await;
                Box::new(sealed.map_err(|error| error.to_string())?)
            }
        };
        Ok(Self { stream, host: address })
    }

    /// Status and body of the answer.
    pub async fn get(self, path: &str, token: &str) -> Result<(u16, Bytes), String> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(self.stream)).await.map_err(|e| e.to_string())?;
        let request = Request::get(path)
            .header(header::HOST, self.host)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("pairdb/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let asking = async {
            let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        // The connection moves the bytes; it ends when the answer is here and nobody asks more.
        let mut connection = std::pin::pin!(connection);
        let mut asking = std::pin::pin!(asking);
        let mut open = true;
        loop {
            tokio::select! {
                answer = &mut asking => return answer,
                // What broke it is what the request ends with.
                _ = &mut connection, if open => open = false,
            }
        }
    }
}

fn client_config(ca: &[u8]) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(|error| format!("ca.crt: {error}"))?;
        roots.add(certificate).map_err(|error| format!("ca.crt: {error}"))?;
    }
    if roots.is_empty() {
        return Err("ca.crt holds no certificate".to_owned());
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
