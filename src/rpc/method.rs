//! The calls that the layer before the services knows, by path.

/// What a call competes with, and what its failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Answered from the store at once.
    Read,
    /// Changes rows: its errors carry an outcome.
    Write,
    /// Lives long and bounds itself: no cap on its time, no place of the gate.
    Stream,
    /// Upkeep: may take minutes, bounded by a pool of its own.
    Admin,
    /// Health, reflection and what does not exist.
    Other,
}

macro_rules! methods {
    ($($variant:ident $service:literal $name:literal $class:ident,)*) => {
        /// A call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Method {
            $(#[doc = concat!("`", $service, "/", $name, "`")] $variant,)*
            /// Any other path.
            Other,
        }

        impl Method {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)* Self::Other];

            /// The call of an HTTP path.
            pub fn of_path(path: &str) -> Self {
                match path {
                    $(concat!("/pairdb.v1.", $service, "/", $name) => Self::$variant,)*
                    _ => Self::Other,
                }
            }

            /// The service and the call, as metrics and logs name them.
            pub fn names(self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$variant => ($service, $name),)*
                    Self::Other => ("other", "other"),
                }
            }

            /// Its class.
            pub fn class(self) -> Class {
                match self {
                    $(Self::$variant => Class::$class,)*
                    Self::Other => Class::Other,
                }
            }
        }
    };
}

methods! {
    Read "KeyValue" "Read" Read,
    Write "KeyValue" "Write" Write,
    Delete "KeyValue" "Delete" Write,
    BatchRead "KeyValue" "BatchRead" Read,
    BatchWrite "KeyValue" "BatchWrite" Write,
    Pipeline "KeyValue" "Pipeline" Stream,
    Scan "KeyValue" "Scan" Stream,
    GetKeyRange "KeyValue" "GetKeyRange" Read,
    Topology "KeyValue" "Topology" Read,
    Replicate "Replica" "Replicate" Write,
    Repair "Replica" "Repair" Write,
    StreamKeys "Replica" "StreamKeys" Stream,
    Exchange "Peer" "Exchange" Stream,
    CreateTenant "Admin" "CreateTenant" Admin,
    GetTenant "Admin" "GetTenant" Admin,
    ListTenants "Admin" "ListTenants" Admin,
    SetTenant "Admin" "SetTenant" Admin,
    Flush "Admin" "Flush" Admin,
    Compact "Admin" "Compact" Admin,
    Checkpoint "Admin" "Checkpoint" Admin,
    Scrub "Admin" "Scrub" Admin,
    NodeStatus "Admin" "NodeStatus" Admin,
    ClusterStatus "Admin" "ClusterStatus" Admin,
    Ring "Admin" "Ring" Admin,
    ExplainKey "Admin" "ExplainKey" Admin,
    ListHints "Admin" "ListHints" Admin,
    RepairPartitions "Admin" "RepairPartitions" Admin,
    PlanLayout "Admin" "PlanLayout" Admin,
    CommitLayout "Admin" "CommitLayout" Admin,
    AbortLayout "Admin" "AbortLayout" Admin,
    DrainNode "Admin" "DrainNode" Stream,
    VerifyCertificate "Admin" "VerifyCertificate" Admin,
    SetTransferRate "Admin" "SetTransferRate" Admin,
    ReplicateData "Admin" "ReplicateData" Stream,
    StopNode "Admin" "StopNode" Admin,
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn every_call_of_the_protocol_is_known_to_the_layer() {
        // A call that is missing here would escape limits, deadlines and metrics.
        let set = prost_types::FileDescriptorSet::decode(crate::proto::FILE_DESCRIPTOR_SET)
            .expect("the build wrote it");
        let mut calls = 0;
        for file in set.file.iter().filter(|file| file.package() == "pairdb.v1") {
            for service in &file.service {
                for call in &service.method {
                    calls += 1;
                    let path = format!("/pairdb.v1.{}/{}", service.name(), call.name());
                    let method = Method::of_path(&path);
                    assert_ne!(method, Method::Other, "{path}");
                    let streams = call.server_streaming() || call.client_streaming();
                    assert_eq!(method.class() == Class::Stream, streams, "{path}");
                }
            }
        }
        assert_eq!(calls, Method::ALL.len() - 1);
    }

    #[test]
    fn methods_are_numbered_in_order() {
        for (at, method) in Method::ALL.iter().enumerate() {
            assert_eq!(*method as usize, at);
        }
    }
}
