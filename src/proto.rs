//! The generated code of `proto/pairdb/v1`. Nothing is written by hand here: the comments are those
//! of the `.proto` files.

#![expect(clippy::all, reason = "generated: its style is not ours")]

tonic::include_proto!("pairdb.v1");

/// The descriptors of all services, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("pairdb");
