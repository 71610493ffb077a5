//! The services of a node, called over loopback as clients call them.

mod admin;
mod edges;
mod key_value;
mod node;
mod pipeline;
mod replica;
mod stall;
mod unwritable;
