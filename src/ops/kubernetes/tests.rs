//! A pod asks fake API servers on loopback.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::cluster::net::TokioNet;

const CA: &[u8] = include_bytes!("../../../tests/data/tls/ca.pem");
const SERVER: &[u8] = include_bytes!("../../../tests/data/tls/server.pem");
const SERVER_KEY: &[u8] = include_bytes!("../../../tests/data/tls/server.key");

fn settings(api: &str, dir: &Path) -> config::Kubernetes {
    config::Kubernetes {
        enabled: true,
        api: api.to_owned(),
        pod_name: "pairdb-3".to_owned(),
        service_account_dir: dir.to_owned(),
        timeout: Duration::from_secs(5),
        ..config::Config::default().kubernetes
    }
}

/// The files that the kubelet puts into a pod.
fn service_account(ca: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, bytes) in [("token", &b"secret\n"[..]), ("namespace", b"data"), ("ca.crt", ca)] {
        std::fs::write(dir.path().join(name), bytes).expect("written");
    }
    dir
}

fn pod(api: &str, dir: &Path) -> Pod {
    Pod::of(&settings(api, dir), |_| None).expect("it can be asked").expect("it is looked at")
}

fn set(replicas: u64) -> String {
    format!(
        "{{\"kind\":\"StatefulSet\",\"metadata\":{{\"name\":\"pairdb\"}},\
             \"spec\":{{\"replicas\":{replicas},\"serviceName\":\"pairdb\"}}}}"
    )
}

/// Answers one request; gives its head.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    status: &str,
    body: &str,
) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a request"));
    }
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.expect("answered");
    stream.flush().await.expect("answered");
    String::from_utf8(head).expect("text")
}

/// A server that gives these answers, one a connection, and the requests it got.
async fn server(answers: Vec<(&'static str, String)>) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let api = format!("http://{}", listener.local_addr().expect("bound"));
    let task = tokio::spawn(async move {
        let mut heads = String::new();
        for (status, body) in answers {
            let (stream, _) = listener.accept().await.expect("a connection");
            heads += &answer(stream, status, &body).await;
        }
        heads
    });
    (api, task)
}

#[test]
fn a_pod_beyond_its_set_leaves_and_any_other_returns() {
    let fate = |json: &str, ordinal| {
        serde_json::from_str::<StatefulSet>(json).expect("a set").fate_of(ordinal)
    };
    let leaves = |ordinal, replicas| Fate::Leaves { ordinal, replicas };
    assert_eq!(fate(&set(3), 2), Fate::Returns);
    assert_eq!(fate(&set(3), 3), leaves(3, 3));
    assert_eq!(fate(&set(0), 0), leaves(0, 0));
    // One replica, if the set does not say.
    let unsaid = "{\"metadata\":{},\"spec\":{}}";
    assert_eq!((fate(unsaid, 0), fate(unsaid, 1)), (Fate::Returns, leaves(1, 1)));
    let shifted = "{\"metadata\":{},\"spec\":{\"replicas\":2,\"ordinals\":{\"start\":5}}}";
    assert_eq!((fate(shifted, 6), fate(shifted, 7)), (Fate::Returns, leaves(7, 2)));
    assert_eq!(fate(shifted, 4), leaves(4, 2));
    let deleted = "{\"metadata\":{\"deletionTimestamp\":\"2026-01-01T00:00:00Z\"},\
                   \"spec\":{\"replicas\":0}}";
    assert_eq!(fate(deleted, 4), Fate::Returns, "the whole set goes");
}

#[tokio::test]
async fn the_set_is_asked_for_with_the_service_account_and_again_after_a_failure() {
    let dir = service_account(CA);
    let (api, served) =
        server(vec![("500 Internal Server Error", "{}".into()), ("200 OK", set(3))]).await;
    let fate = pod(&api, dir.path()).fate(&TokioNet).await.expect("answered");
    assert_eq!(fate, Fate::Leaves { ordinal: 3, replicas: 3 });
    let heads = served.await.expect("served").to_lowercase();
    let line = "get /apis/apps/v1/namespaces/data/statefulsets/pairdb http/1.1";
    assert_eq!(heads.matches(line).count(), 2, "{heads}");
    assert!(heads.contains("authorization: bearer secret\r\n"), "{heads}");
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_and_never_a_reason_to_leave() {
    let dir = service_account(CA);
    for (status, body) in [
        ("403 Forbidden", "{\"message\":\"not allowed\"}"),
        ("404 Not Found", "{}"),
        ("200 OK", "not json"),
        ("200 OK", "{\"kind\":\"Status\"}"),
        ("200 OK", "{\"metadata\":{},\"spec\":{\"replicas\":-1}}"),
    ] {
        let answers = vec![(status, body.to_owned()); ATTEMPTS as usize];
        let (api, served) = server(answers).await;
        let error = pod(&api, dir.path()).fate(&TokioNet).await.expect_err(body);
        assert!(matches!(error, Error::Answer { .. }), "{error}");
        served.await.expect("served");
    }
    let empty = tempfile::tempdir().expect("a directory");
    let error =
        pod("http://127.0.0.1:1", empty.path()).fate(&TokioNet).await.expect_err("no files");
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

/// The API server may hang: the pod has other things to do in the time it has left.
#[tokio::test]
async fn a_server_that_says_nothing_is_waited_for_no_longer_than_allowed() {
    let dir = service_account(CA);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let api = format!("http://{}", listener.local_addr().expect("bound"));
    let timeout = Duration::from_millis(50);
    let silent = Pod { timeout, ..pod(&api, dir.path()) };
    let began = tokio::time::Instant::now();
    let error = silent.fate(&TokioNet).await.expect_err("no answer");
    assert!(matches!(error, Error::Ask { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
    drop(listener);
}

/// Over TLS the server must be the one that the service account's CA vouches for.
#[tokio::test]
async fn the_server_is_checked_against_the_ca_of_the_service_account() {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(SERVER).map(|one| one.expect("PEM")).collect();
    let key = PrivateKeyDer::from_pem_slice(SERVER_KEY).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they fit");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let api = format!("https://{}", listener.local_addr().expect("bound"));
    let served = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            // Who does not trust the certificate ends the handshake.
            if let Ok(stream) = acceptor.accept(stream).await {
                answer(stream, "200 OK", &set(9)).await;
            }
        }
    });
    let trusted = service_account(CA);
    let fate = pod(&api, trusted.path()).fate(&TokioNet).await.expect("trusted");
    assert_eq!(fate, Fate::Returns);
    // The server's own certificate is no CA of it; nothing at all is none either.
    for ca in [SERVER, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let other = service_account(ca);
        let error = pod(&api, other.path()).fate(&TokioNet).await.expect_err("not trusted");
        assert!(matches!(error, Error::Ask { .. }), "{error}");
    }
    served.abort();
}

#[test]
fn a_pod_is_known_by_its_name_and_the_server_by_the_environment() {
    let dir = Path::new("/nowhere");
    let environment = |name: &str| match name {
        "HOSTNAME" => Some("my-db-12".to_owned()),
        "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
        "KUBERNETES_SERVICE_PORT" => Some("6443".to_owned()),
        _ => None,
    };
    let unsaid = config::Kubernetes { pod_name: String::new(), ..settings("", dir) };
    let found = Pod::of(&unsaid, environment).expect("known").expect("looked at");
    assert_eq!((found.stateful_set.as_str(), found.ordinal), ("my-db", 12));
    assert_eq!(found.api.to_string(), "https://[fd00::1]:6443/");
    let off = config::Kubernetes { enabled: false, ..unsaid.clone() };
    assert!(Pod::of(&off, environment).expect("off").is_none());
    assert!(Pod::of(&unsaid, |_| None).is_err(), "nothing is known");
    for name in ["pairdb", "pairdb-", "-3", "pairdb-x", "pairdb-+3", "pairdb-99999999999999999999"]
    {
        let named = config::Kubernetes { pod_name: name.to_owned(), ..unsaid.clone() };
        assert!(Pod::of(&named, environment).is_err(), "{name}");
    }
    // The token must not cross a network in plain text.
    for api in ["http://10.0.0.1", "http://localhost.evil", "ftp://127.0.0.1", "127.0.0.1:80"] {
        assert!(Pod::of(&settings(api, dir), |_| None).is_err(), "{api}");
    }
}
