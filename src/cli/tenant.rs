//! `pairdb tenant`

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::args::{Connect, duration, encode};
use super::failure::{Failure, say};
use super::scan::escape;
use crate::client::Admin;
use crate::ops::config::Value as _;
use crate::proto;
use crate::store::tenant::REPLICATION_FACTOR_MAX;

/// Create, show and change tenants
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a tenant
    Create {
        /// Its name: 1 to 63 of a-z, 0-9 and -
        name: String,
        /// How concurrent writes are kept; fixed at creation
        #[arg(long, value_enum, default_value = "siblings")]
        mode: Mode,
        /// Keys with the same bytes before the first of these are kept together, in order; fixed at
        /// creation
        #[arg(long, value_name = "TEXT", default_value = "")]
        partition_delimiter: String,
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        connect: Connect,
    },
    /// List all tenants
    List {
        #[command(flatten)]
        connect: Connect,
    },
    /// Show a tenant
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        connect: Connect,
    },
    /// Change the settings that are given
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        connect: Connect,
    },
}

#[derive(Debug, clap::Args)]
struct Settings {
    /// Time to live of writes that name none; 0 for ever
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    default_ttl: Option<Duration>,
    /// Greatest time to live of a write; 0 for the node's limit
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    max_ttl: Option<Duration>,
    /// Copies in a cluster; where there are several nodes, rows move until it is so
    #[arg(long, value_name = "COUNT", value_parser = replicas())]
    replication_factor: Option<u32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Siblings,
    LastWriteWins,
}

/// A number of copies, for clap: to a node 0 would be none given.
fn replicas() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(REPLICATION_FACTOR_MAX))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    match args.verb {
        Verb::Create { name, mode, partition_delimiter, settings, connect } => {
            let mode = match mode {
                Mode::Siblings => proto::TenantMode::Siblings,
                Mode::LastWriteWins => proto::TenantMode::LastWriteWins,
            };
            let tenant = proto::Tenant {
                name,
                id: 0,
                mode: mode.into(),
                partition_delimiter: partition_delimiter.into(),
                default_ttl_ms: settings.default_ttl.map_or(0, millis),
                max_ttl_ms: settings.max_ttl.map_or(0, millis),
                replication_factor: settings.replication_factor.unwrap_or(0),
            };
            let call = async |admin: &mut Admin, request| admin.create_tenant(request).await;
            let request = proto::CreateTenantRequest { tenant: Some(tenant) };
            let made = connect.admin_client()?.admin_call(request, call).await;
            let made = made.map_err(Failure::of_change)?;
            show(&connect, made.tenant)
        }
        Verb::List { connect } => {
            let call = async |admin: &mut Admin, request| admin.list_tenants(request).await;
            let request = proto::ListTenantsRequest {};
            let tenants = connect.admin_client()?.admin_call(request, call).await?.tenants;
            let text: Vec<&str> = tenants.iter().map(|tenant| tenant.name.as_str()).collect();
            let json: Vec<Value> = tenants.iter().map(to_json).collect();
            connect.print(&text.join("\n"), &json.into())
        }
        Verb::Show { name, connect } => {
            let call = async |admin: &mut Admin, request| admin.get_tenant(request).await;
            let request = proto::GetTenantRequest { name };
            let found = connect.admin_client()?.admin_call(request, call).await?;
            show(&connect, found.tenant)
        }
        Verb::Set { name, settings, connect } => {
            let call = async |admin: &mut Admin, request| admin.set_tenant(request).await;
            let request = proto::SetTenantRequest {
                name,
                default_ttl_ms: settings.default_ttl.map(millis),
                max_ttl_ms: settings.max_ttl.map(millis),
                replication_factor: settings.replication_factor,
            };
            let set = connect.admin_client()?.admin_call(request, call).await;
            let set = set.map_err(Failure::of_change)?;
            if set.transition_epoch > 0 {
                say(format_args!(
                    "the number of copies changes with the layout of epoch {}; layout show \
                     tells how far it is",
                    set.transition_epoch
                ));
            }
            show(&connect, set.tenant)
        }
    }
}

fn show(connect: &Connect, tenant: Option<proto::Tenant>) -> Result<(), Failure> {
    let tenant = tenant.ok_or_else(|| Failure::error("the answer holds no tenant"))?;
    let ttl = |ms: u64| match ms {
        0 => "none".to_owned(),
        ms => Duration::from_millis(ms).show(),
    };
    let text = format!(
        "name                 {}\nid                   {}\nmode                 {}\n\
         partition_delimiter  {}\ndefault_ttl          {}\nmax_ttl              {}\n\
         replication_factor   {}",
        tenant.name,
        tenant.id,
        mode_name(&tenant),
        escape(&tenant.partition_delimiter),
        ttl(tenant.default_ttl_ms),
        ttl(tenant.max_ttl_ms),
        tenant.replication_factor
    );
    connect.print(&text, &to_json(&tenant))
}

fn mode_name(tenant: &proto::Tenant) -> &'static str {
    match tenant.mode() {
        proto::TenantMode::LastWriteWins => "last_write_wins",
        proto::TenantMode::Siblings | proto::TenantMode::Unspecified => "siblings",
    }
}

fn to_json(tenant: &proto::Tenant) -> Value {
    let delimiter = std::str::from_utf8(&tenant.partition_delimiter).map(ToOwned::to_owned);
    json!({
        "name": tenant.name,
        "id": tenant.id,
        "mode": mode_name(tenant),
        "partition_delimiter": delimiter.unwrap_or_else(|_| encode(&tenant.partition_delimiter)),
        "default_ttl_ms": tenant.default_ttl_ms,
        "max_ttl_ms": tenant.max_ttl_ms,
        "replication_factor": tenant.replication_factor,
    })
}
