//! Who holds which keys of a tenant, as some node said. No waiting, no network.

use std::collections::BTreeMap;

use crate::proto;
use crate::store::TenantId;
use crate::store::key::{partition_key, token_of};

/// Most nodes, partition bits and holders taken: what a server says is not trusted with memory.
const NODES_MAX: usize = 4096;
const PARTITION_BITS_MAX: u32 = 16;

/// The holders of the partitions of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ring {
    /// The layout's epoch.
    pub epoch: u64,
    tenant: TenantId,
    delimiter: Vec<u8>,
    partition_bits: u32,
    /// Where they are reached; none for those that are down or not known.
    nodes: Vec<Option<String>>,
    /// How many hold each partition.
    replicas: usize,
    holders: Vec<u32>,
}

impl Ring {
    /// The ring that an answer describes; `None` if it does not make sense.
    pub fn of(answer: proto::TopologyResponse) -> Option<Self> {
        let replicas = answer.replicas as usize;
        let partitions = 1_usize.checked_shl(answer.partition_bits)?;
        let makes_sense = answer.partition_bits <= PARTITION_BITS_MAX
            && answer.nodes.len() <= NODES_MAX
            && answer.holders.len() == partitions.checked_mul(replicas)?
            && answer.holders.iter().all(|holder| (*holder as usize) < answer.nodes.len());
        let address = |node: proto::ServingNode| {
            (node.up && !node.address.is_empty()).then(|| format!("http://{}", node.address))
        };
        makes_sense.then(|| Self {
            epoch: answer.epoch,
            tenant: TenantId(answer.tenant_id),
            delimiter: answer.partition_delimiter.to_vec(),
            partition_bits: answer.partition_bits,
            nodes: answer.nodes.into_iter().map(address).collect(),
            replicas,
            holders: answer.holders,
        })
    }

    /// Whether all of its nodes were up when it was told.
    pub fn is_whole(&self) -> bool {
        self.nodes.iter().all(Option::is_some)
    }

    /// Where the holders of a key that are up are reached, best first.
    pub fn holders(&self, key: &[u8]) -> impl Iterator<Item = &str> {
        let delimiter = (!self.delimiter.is_empty()).then_some(&self.delimiter[..]);
        let token = token_of(self.tenant, partition_key(key, delimiter));
        let partition = token.checked_shr(u64::BITS - self.partition_bits).unwrap_or(0) as usize;
        let from = partition * self.replicas;
        let holders = &self.holders[from..from + self.replicas];
        holders.iter().filter_map(|holder| self.nodes[*holder as usize].as_deref())
    }

    /// All nodes that are up.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().flatten().map(String::as_str)
    }

    /// Puts keys together by the nodes that they go to: few groups, each to a node that holds all
    /// of it, cheap nodes before dear ones. Keys that nobody is known to hold are left over.
    pub fn groups<'k>(
        &self,
        keys: impl Iterator<Item = &'k [u8]>,
        cost: impl Fn(&str) -> u64,
    ) -> (Vec<(&str, Vec<usize>)>, Vec<usize>) {
        let mut held: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut left: Vec<bool> = Vec::new();
        let mut over = Vec::new();
        for (place, key) in keys.enumerate() {
            let mut is_held = false;
            for node in self.holders(key) {
                held.entry(node).or_default().push(place);
                is_held = true;
            }
            left.push(is_held);
            if !is_held {
                over.push(place);
            }
        }
        let mut groups = Vec::new();
        while let Some((node, places)) = held
            .iter_mut()
            .filter_map(|(node, places)| {
                places.retain(|place| left[*place]);
                (!places.is_empty()).then_some((*node, places))
            })
            .max_by_key(|(node, places)| (places.len(), std::cmp::Reverse(cost(node))))
        {
            let places = std::mem::take(places);
            places.iter().for_each(|place| left[*place] = false);
            groups.push((node, places));
        }
        (groups, over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four partitions, two holders each, four nodes; the last one is down.
    fn answer() -> proto::TopologyResponse {
        let node = |n: usize| proto::ServingNode {
            node_id: n.to_string(),
            address: format!("node-{n}:8080"),
            up: n < 3,
        };
        proto::TopologyResponse {
            epoch: 5,
            tenant_id: 1,
            partition_delimiter: b":".to_vec().into(),
            partition_bits: 2,
            nodes: (0..4).map(node).collect(),
            replicas: 2,
            holders: vec![0, 1, 1, 2, 2, 0, 3, 1],
        }
    }

    fn key_in(partition: u64) -> Vec<u8> {
        let key = |n: u32| format!("key-{n}").into_bytes();
        (0..).map(key).find(|key| token_of(TenantId(1), key) >> 62 == partition).expect("some")
    }

    #[test]
    fn a_key_goes_to_the_holders_of_its_partition_that_are_up() {
        let ring = Ring::of(answer()).expect("it makes sense");
        let holders = |key: &[u8]| ring.holders(key).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(holders(&key_in(1)), ["http://node-1:8080", "http://node-2:8080"]);
        assert_eq!(holders(&key_in(3)), ["http://node-1:8080"], "the other one is down");
        let whole = [&key_in(2)[..], b":more"].concat();
        assert_eq!(holders(&whole), holders(&key_in(2)), "beside its partition key");
    }

    /// The store and the client must agree where a key is, or every request takes a detour.
    #[test]
    fn the_client_finds_the_partition_that_the_store_does() {
        let ring = Ring::of(answer()).expect("it makes sense");
        let tenant = crate::store::Tenant {
            id: TenantId(1),
            name: "t".to_owned(),
            created_at_ms: 0,
            mode: crate::store::Mode::Siblings,
            partition_delimiter: Some(b":".to_vec()),
            default_ttl_ms: None,
            max_ttl_ms: None,
            replication_factor: 2,
            retention: crate::store::Retention::default(),
        };
        for n in 0..100 {
            let key = format!("user{}:{n}", n % 7);
            let partition = (tenant.token(key.as_bytes()) >> 62) as usize;
            let first = ring.nodes[ring.holders[partition * 2] as usize].as_deref();
            assert_eq!(ring.holders(key.as_bytes()).next(), first.or(Some("http://node-1:8080")));
        }
    }

    #[test]
    fn a_batch_falls_into_few_groups_each_to_a_node_that_holds_all_of_it() {
        let ring = Ring::of(answer()).expect("it makes sense");
        let keys = [key_in(0), key_in(1), key_in(2), key_in(3)];
        let (groups, over) = ring.groups(keys.iter().map(Vec::as_slice), |_| 1);
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0], ("http://node-1:8080", vec![0, 1, 3]));
        assert_eq!(groups[1].1, vec![2]);
        assert!(over.is_empty());
        let cheap = |node: &str| u64::from(node != "http://node-0:8080");
        let (groups, _) = ring.groups([&keys[2][..]].into_iter(), cheap);
        assert_eq!(groups, [("http://node-0:8080", vec![0])]);
        let down = proto::TopologyResponse { nodes: vec![Default::default(); 4], ..answer() };
        let ring = Ring::of(down).expect("it makes sense");
        let (groups, over) = ring.groups(keys.iter().map(Vec::as_slice), |_| 1);
        assert_eq!((groups.len(), over), (0, vec![0, 1, 2, 3]));
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_no_ring() {
        for broken in [
            proto::TopologyResponse { holders: vec![0; 7], ..answer() },
            proto::TopologyResponse { holders: vec![4; 8], ..answer() },
            proto::TopologyResponse { partition_bits: 63, ..answer() },
            proto::TopologyResponse { partition_bits: 64, ..answer() },
            proto::TopologyResponse { replicas: u32::MAX, ..answer() },
        ] {
            assert_eq!(Ring::of(broken), None);
        }
    }
}
