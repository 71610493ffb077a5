//! Any commands in any order: the document stays one, and a refusal changes nothing.

use proptest::prelude::*;

use super::*;

const NODES: u128 = 7;

/// A command as it is proposed: epochs are as the proposer knew them, here relative to the truth.
fn command(document: &Document, draw: &(u8, u128, u128, u64)) -> Command {
    let (kind, a, b, behind) = draw;
    let (a, b, epoch) = (*a % NODES + 1, *b % NODES + 1, document.epoch.saturating_sub(*behind));
    let node = node(a);
    match kind % 20 {
        0 => form(&[a, b]),
        1 => Command::Join { epoch, members: members(&[a, b]) },
        2 => Command::Change {
            epoch,
            change: Change { leaves: nodes(&[a]), joins: members(&[b]), ..Change::default() },
        },
        3 => {
            Command::Change { epoch, change: Change { removes: nodes(&[a]), ..Change::default() } }
        }
        4 => Command::Change {
            epoch,
            change: Change { weights: BTreeMap::from([(node, b as u32)]), ..Change::default() },
        },
        5 => Command::Abort { epoch },
        6 => Command::GiveUp { nodes: nodes(&[a, b]), epoch },
        7 => Command::Cleared { node, epoch },
        8 => Command::Left { node, digest: "digest".to_owned() },
        9 => {
            let replication_factor = b as u8;
            let name = format!("t{a}");
            Command::CreateTenant {
                spec: TenantSpec { replication_factor, ..TenantSpec::new(name) },
                now_ms: *behind,
            }
        }
        10 => {
            let replication_factor = Some(b as u8);
            alter("default", TenantChange { replication_factor, ..TenantChange::default() })
        }
        13 => Command::Change {
            epoch,
            change: Change {
                zones: BTreeMap::from([(node, format!("z{}", b % 3))]),
                factors: BTreeMap::from([(TenantId(a as u32 % 3), b as u8)]),
                ..Change::default()
            },
        },
        14 => Command::Change {
            epoch,
            change: Change { replaces: [(node, names(b))].into(), ..Change::default() },
        },
        15 => {
            let removes = nodes(&[a, b]);
            let mut accepts_loss = Partitions::new();
            for (partition, factor, _) in document.lost_by(&removes) {
                accepts_loss.entry(factor).or_default().insert(partition);
            }
            let joins = BTreeMap::from([(NodeId(a + 20), member(""))]);
            Command::Change {
                epoch,
                change: Change { removes, accepts_loss, joins, ..Change::default() },
            }
        }
        11 | 12 => Command::Fenced { node, epoch },
        _ => Command::Synced { node, epoch },
    }
}

/// Of a node that may join, or nobody's, or none.
fn names(n: u128) -> String {
    ["", "node", "other"][n as usize % 3].to_owned()
}

fn history() -> impl Strategy<Value = Vec<(u8, u128, u128, u64)>> {
    let behind = prop_oneof![9 => Just(0_u64), 1 => 0..3_u64];
    prop::collection::vec((any::<u8>(), 0..NODES, 0..NODES, behind), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_document_obeys_the_rules_and_commands_mean_the_same_once_stored(
        draws in history()
    ) {
        let mut document = Document::empty();
        document.apply(&form(&[1, 2, 3]));
        let mut retired = BTreeSet::new();
        for draw in &draws {
            let command = command(&document, draw);
            let before = document.clone();
            let answer = document.apply(&command);
            let stored = serde_json::to_vec(&command).expect("it has a form");
            let mut again: Document =
                serde_json::from_slice(&serde_json::to_vec(&before).expect("it has a form"))
                    .expect("what was written can be read");
            let repeated = again.apply(&serde_json::from_slice(&stored).expect("as above"));
            prop_assert_eq!((&again, &repeated), (&document, &answer));
            if let Err(why) = document.check() {
                return Err(TestCaseError::fail(format!("{why} after {command:?}")));
            }
            if let Answer::Refused { reason, .. } = &answer {
                prop_assert_eq!(&document, &before, "{}", reason);
                let shouts = |c: char| c.is_ascii_uppercase() || c == '_';
                prop_assert!(reason.chars().all(shouts), "{reason}");
            }
            let grew = document.version - before.version;
            prop_assert!(grew <= 2 && (grew > 0) == (document != before), "{command:?}");
            prop_assert!(document.epoch - before.epoch <= 1);
            let owned = (&before.owners, &before.next_owners);
            let owns = (&document.owners, &document.next_owners);
            prop_assert_eq!(document.epoch != before.epoch, owned != owns);
            for (node, member) in &document.members {
                let gone = member.state.is_gone();
                prop_assert!(gone || !retired.contains(node), "{node} came back");
                if gone {
                    retired.insert(*node);
                }
            }
        }
    }

    /// Documents come from disks and other nodes: what is not one says so, and `apply` does not
    /// panic on what passed.
    #[test]
    fn a_damaged_document_is_refused_or_harmless(
        draws in history(), at in any::<usize>(), byte in any::<u8>()
    ) {
        let mut document = Document::empty();
        document.apply(&form(&[1, 2, 3]));
        for draw in &draws {
            let command = command(&document, draw);
            document.apply(&command);
        }
        let mut bytes = serde_json::to_vec(&document).expect("it has a form");
        let at = at % bytes.len();
        bytes[at] = byte;
        let Ok(mut damaged) = serde_json::from_slice::<Document>(&bytes) else { return Ok(()) };
        if damaged.check().is_ok() {
            for draw in &draws {
                let command = command(&damaged, draw);
                damaged.apply(&command);
            }
        }
    }
}
