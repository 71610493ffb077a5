//! Whether a pod that is told to end is to come back.
//!
//! A SIGTERM does not say why it was sent: a restart, an upgrade and a smaller `spec.replicas` look
//! alike. So the pod asks the API server for its StatefulSet and compares its own ordinal with what
//! is wanted: at or beyond that it will not be started again, and must hand over what it holds.
//!
//! 1. Off unless `kubernetes.enabled` is set.
//! 2. What is not known for certain is a restart: the data stays on the volume, nothing is lost.
//! 3. Every wait has a bound, and so has every answer.
//! 4. The token goes over TLS only, checked against the service account's CA. Plain HTTP is spoken
//!    to loopback alone.
//! 5. Token and CA are read each time: the kubelet rotates them.

mod get;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tonic::codegen::http::Uri;

use super::config;
use crate::cluster::net::Net;
use get::Connection;

/// Times that the API server is asked.
const ATTEMPTS: u32 = 3;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(500);

/// Why it is not known what becomes of the pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The settings or the surroundings lack something.
    #[error("{0}")]
    Surroundings(String),
    /// A file of the service account cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The API server cannot be asked.
    #[error("cannot ask the API server at {api}: {why}")]
    Ask {
        /// Where.
        api: String,
        /// Why.
        why: String,
    },
    /// It answered something else than a StatefulSet.
    #[error("the API server answered {status}: {body}")]
    Answer {
        /// The status of HTTP.
        status: u16,
        /// The beginning of its answer.
        body: String,
    },
}

/// What becomes of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is to be started again, or its whole set is being deleted.
    Returns,
    /// Its set is to be smaller, without it.
    Leaves {
        /// Its place in the set.
        ordinal: u64,
        /// How many pods the set is to have.
        replicas: u64,
    },
}

/// A pod of a StatefulSet.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    /// The API server.
    api: Uri,
    service_account_dir: PathBuf,
    stateful_set: String,
    ordinal: u64,
    timeout: Duration,
}

/// What of a StatefulSet counts.
#[derive(Debug, Deserialize)]
struct StatefulSet {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Spec {
    /// One, if it is not said.
    replicas: Option<u64>,
    ordinals: Option<Ordinals>,
}

#[derive(Debug, Deserialize)]
struct Ordinals {
    #[serde(default)]
    start: u64,
}

/// Whether what is set can be used. What is left to the surroundings is not looked at: they are
/// the pod's.
///
/// # Errors
/// [`Error::Surroundings`] names what cannot.
pub(super) fn check(settings: &config::Kubernetes) -> Result<(), Error> {
    if !settings.pod_name.is_empty() {
        place(&settings.pod_name)?;
    }
    if !settings.api.is_empty() {
        url(&settings.api)?;
    }
    Ok(())
}

/// The StatefulSet of a pod, and its place in it.
fn place(pod: &str) -> Result<(String, u64), Error> {
    let split = pod.rsplit_once('-').and_then(|(set, ordinal)| {
        let is_ordinal = !set.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
        Some((set.to_owned(), ordinal.parse().ok().filter(|_| is_ordinal)?))
    });
    split.ok_or_else(|| {
        let what = format!("{pod:?} is no pod of a StatefulSet: set kubernetes.pod_name");
        Error::Surroundings(what)
    })
}

/// Where the API server is.
fn url(api: &str) -> Result<Uri, Error> {
    let invalid = || Error::Surroundings(format!("kubernetes.api is {api:?}: no URL of it"));
    let api: Uri = api.parse().map_err(|_| invalid())?;
    get::check(&api).map_err(Error::Surroundings)?;
    Ok(api)
}

impl Pod {
    /// The pod that the settings and the environment tell of; `None` if it is not to be looked at.
    ///
    /// # Errors
    /// [`Error::Surroundings`]: the name is none of a StatefulSet's pod, or the API server is not
    /// known.
    pub fn of(
        settings: &config::Kubernetes,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, Error> {
        if !settings.enabled {
            return Ok(None);
        }
        let given = |setting: &str, variable: &str| match setting {
            "" => environment(variable).unwrap_or_default(),
            setting => setting.to_owned(),
        };
        let pod = given(&settings.pod_name, "HOSTNAME");
        let (stateful_set, ordinal) = place(&pod)?;
        let api = match settings.api.as_str() {
            "" => in_cluster(&environment).ok_or_else(|| {
                let what = "the API server is not in the environment: set kubernetes.api";
                Error::Surroundings(what.to_owned())
            })?,
            api => api.to_owned(),
        };
        let api = url(&api)?;
        let service_account_dir = settings.service_account_dir.clone();
        let timeout = settings.timeout;
        Ok(Some(Self { api, service_account_dir, stateful_set, ordinal, timeout }))
    }

    /// What becomes of the pod, as the API server says now. Asks a few times.
    ///
    /// # Errors
    /// See [`Error`]: the last one.
    pub async fn fate(&self, net: &dyn Net) -> Result<Fate, Error> {
        let mut attempt = 1;
        loop {
            let late = || self.cannot_ask(format!("no answer within {:?}", self.timeout));
            let asked = tokio::time::timeout(self.timeout, self.ask(net)).await;
            match asked.unwrap_or_else(|_| Err(late())) {
                Ok(fate) => return Ok(fate),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(error) => tracing::info!(%error, attempt, "asking again"),
            }
            attempt += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn ask(&self, net: &dyn Net) -> Result<Fate, Error> {
        let namespace = text(&self.file("namespace")?);
        let token = text(&self.file("token")?);
        let ca = match get::is_tls(&self.api) {
            true => Some(self.file("ca.crt")?),
            false => None,
        };
        let path =
            format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/{}", self.stateful_set);
        let connection = Connection::open(net, &self.api, ca.as_deref()).await;
        let answer = match connection {
            Ok(connection) => connection.get(&path, &token).await,
            Err(why) => Err(why),
        };
        let (status, body) = answer.map_err(|why| self.cannot_ask(why))?;
        if status != 200 {
            return Err(Error::Answer { status, body: beginning(&body) });
        }
        let set: StatefulSet = serde_json::from_slice(&body).map_err(|error| {
            let body = format!("{error} in {}", beginning(&body));
            Error::Answer { status, body }
        })?;
        Ok(set.fate_of(self.ordinal))
    }

    fn file(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.service_account_dir.join(name);
        read(&path).map_err(|source| Error::Read { path, source })
    }

    fn cannot_ask(&self, why: String) -> Error {
        Error::Ask { api: self.api.to_string(), why }
    }
}

impl StatefulSet {
    fn fate_of(&self, ordinal: u64) -> Fate {
        let replicas = self.spec.replicas.unwrap_or(1);
        let start = self.spec.ordinals.as_ref().map_or(0, |ordinals| ordinals.start);
        let is_wanted = ordinal >= start && ordinal - start < replicas;
        // A set that is deleted as a whole leaves its volumes: who deletes it knows why.
        match is_wanted || self.metadata.deletion_timestamp.is_some() {
            true => Fate::Returns,
            false => Fate::Leaves { ordinal, replicas },
        }
    }
}

/// Where a pod finds the API server.
fn in_cluster(environment: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let host = environment("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())?;
    let port = environment("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
    match host.contains(':') {
        true => Some(format!("https://[{host}]:{port}")),
        false => Some(format!("https://{host}:{port}")),
    }
}

/// A service account's file is small; whatever else is there is none.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    const BYTES_MAX: u64 = 1 << 20;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.trim_ascii()).into_owned()
}

fn beginning(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned()
}

#[cfg(test)]
mod tests;
