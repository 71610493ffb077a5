//! The `pairdb` binary.

fn main() {}
