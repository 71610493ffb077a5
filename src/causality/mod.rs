//! Rows and their causal history.
