//! Tests that look at the product as a whole: `tests/dependencies.rs` holds the architecture's arrows,
//! `tests/e2e/` boots clusters of the built image. This library is empty on purpose.
