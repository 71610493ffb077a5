//! What the store sees of the cluster's tenants.

use parking_lot::Mutex;

use crate::cluster::layout::tests::formed;
use crate::store::Outcome;
use crate::store::environment::ManualClock;

use super::*;

/// Consensus of one: applies at once, and shows its document to nobody.
#[derive(Debug)]
struct Alone(Mutex<Document>);

impl Proposer for Alone {
    fn propose(&self, command: Command) -> store::Result<Answer> {
        Ok(self.0.lock().apply(&command))
    }
}

#[derive(Debug)]
struct NoLeader;

impl Proposer for NoLeader {
    fn propose(&self, _: Command) -> store::Result<Answer> {
        Err(Error::Refused { reason: "NO_LEADER", message: "nobody leads".to_owned() })
    }
}

fn catalog() -> (LayoutCatalog, Arc<Alone>) {
    let document = formed(&[1, 2, 3]);
    let alone = Arc::new(Alone(Mutex::new(document.clone())));
    let clock = Arc::new(ManualClock::new(42));
    (LayoutCatalog::new(&document, Arc::clone(&alone) as _, clock), alone)
}

#[test]
fn tenants_are_looked_up_in_the_document() {
    let (catalog, _) = catalog();
    let tenant = catalog.get("default").unwrap();
    assert_eq!(catalog.by_id(tenant.id).unwrap(), tenant);
    assert_eq!((catalog.list(), catalog.version()), (vec![tenant], 1));
    assert_eq!(catalog.get("nobody").unwrap_err().reason(), "UNKNOWN_TENANT");
    assert_eq!(catalog.get("No").unwrap_err().reason(), "INVALID_TENANT_NAME");
    assert_eq!(catalog.by_id(TenantId(9)).unwrap_err().reason(), "UNKNOWN_TENANT_ID");
}

/// The document may reach this node later than the answer, and an older one in between.
#[test]
fn a_tenant_can_be_used_where_it_was_created_before_the_document_arrives() {
    let (catalog, alone) = catalog();
    let other = Command::CreateTenant { spec: TenantSpec::new("other"), now_ms: 1 };
    alone.propose(other).unwrap();
    let between = alone.0.lock().clone();
    let created = catalog.create(TenantSpec::new("mine")).unwrap();
    assert_eq!((created.id, created.created_at_ms), (TenantId(3), 42));
    assert_eq!(catalog.get("mine").unwrap(), created);
    catalog.adopt(&between);
    assert_eq!(catalog.list().len(), 3, "default, other, mine");
    assert_eq!(catalog.by_id(created.id).unwrap(), created);
    let last = alone.0.lock().clone();
    catalog.adopt(&last);
    catalog.adopt(&between);
    assert_eq!((catalog.version(), catalog.list().len()), (3, 3), "it does not go back");
}

#[test]
fn an_alteration_shows_with_its_document() {
    let (catalog, alone) = catalog();
    let change = TenantChange { max_ttl_ms: Some(Some(9)), ..TenantChange::default() };
    assert_eq!(catalog.alter("default", change).unwrap().max_ttl_ms, Some(9));
    catalog.adopt(&alone.0.lock());
    assert_eq!(catalog.get("default").unwrap().max_ttl_ms, Some(9));
}

#[test]
fn refusals_keep_the_names_that_clients_know() {
    let (catalog, _) = catalog();
    let reason = |result: store::Result<Arc<Tenant>>| result.unwrap_err().reason();
    assert_eq!(reason(catalog.create(TenantSpec::new("default"))), "TENANT_EXISTS");
    assert_eq!(reason(catalog.create(TenantSpec::new("No"))), "INVALID_TENANT_NAME");
    assert_eq!(reason(catalog.alter("nobody", TenantChange::default())), "UNKNOWN_TENANT");
    let ttl = TenantChange { max_ttl_ms: Some(Some(0)), ..TenantChange::default() };
    assert_eq!(reason(catalog.alter("default", ttl)), "INVALID_TTL");
    let factor = TenantChange { replication_factor: Some(1), ..TenantChange::default() };
    assert_eq!(reason(catalog.alter("default", factor)), "REPLICATION_FACTOR_FIXED");
    assert_eq!(error_of("t", "TOO_MANY_TENANTS", String::new()).reason(), "TOO_MANY_TENANTS");
    assert_eq!(error_of("t", "FROM_A_LATER_VERSION", String::new()).reason(), "REFUSED");
}

#[test]
fn without_a_leader_nothing_is_changed_and_everything_is_still_found() {
    let document = formed(&[1]);
    let clock = Arc::new(ManualClock::new(1));
    let catalog = LayoutCatalog::new(&document, Arc::new(NoLeader), clock);
    let error = catalog.create(TenantSpec::new("t")).unwrap_err();
    assert_eq!((error.reason(), error.outcome()), ("NO_LEADER", Outcome::NotApplied));
    assert_eq!(catalog.list().len(), 1);
}
