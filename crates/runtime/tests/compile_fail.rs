//! What the compiler says to a wrong handler. The `.stderr` files beside the cases show that it
//! helps; `TRYBUILD=overwrite cargo test -p migration-ipc --test compile_fail` writes them anew.
//! Compilers word things differently, so this runs where the toolchain is the one in use here.
#![cfg(not(windows))]

#[test]
fn a_wrong_handler_is_explained() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
