//! How much memory compressed bodies take, as the allocator counts it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use migration_ipc_protocol::extensions::{Decompressor, compress_frame};
use migration_ipc_protocol::limits::{LENGTH_PREFIX, MAX_BODY};
use migration_ipc_testkit::memory::{CountingAllocator, measured};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What a decompressor may keep.
const KEPT: usize = 80 * 1024;

/// A body of this many spaces, compressed.
fn spaces(length: usize) -> Vec<u8> {
    let mut frame = u32::try_from(length).unwrap().to_le_bytes().to_vec();
    frame.resize(LENGTH_PREFIX + length, b' ');
    let mut wire = Vec::new();
    assert!(compress_frame(&frame, &mut wire));
    wire.split_off(LENGTH_PREFIX)
}

fn naming(length: usize, mut body: Vec<u8>) -> Vec<u8> {
    body[1..5].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
    body
}

#[test]
fn a_promise_that_cannot_be_kept_costs_nothing() {
    let body = spaces(1000);
    for length in [0, body.len() * 255, MAX_BODY, MAX_BODY + 1, 0xffff_ffff] {
        let body = naming(length, body.clone());
        let mut decompressor = Decompressor::new();
        let (opened, usage) = measured(|| decompressor.open(&body).is_ok());
        assert!(!opened);
        assert_eq!((usage.allocations, usage.held), (0, 0), "{length}");
    }
}

#[test]
fn a_body_takes_no_more_than_it_names() {
    let bomb = spaces(MAX_BODY);
    for (body, opens) in [
        (bomb.clone(), true),
        (naming(1000, bomb), false),
        (naming(2000, spaces(1000)), false),
        (spaces(1000), true),
    ] {
        let length = u32::from_le_bytes(body[1..5].try_into().unwrap());
        let mut decompressor = Decompressor::new();
        let (opened, usage) = measured(|| decompressor.open(&body).is_ok());
        assert_eq!(opened, opens);
        assert!(usage.peak <= usize::try_from(length).unwrap(), "{usage:?}");
    }
}

#[test]
fn the_buffer_is_used_again() {
    let body = spaces(60_000);
    let mut decompressor = Decompressor::new();
    decompressor.open(&body).unwrap();
    let (opened, usage) = measured(|| {
        (0..100).all(|_| {
            let opened = decompressor.open(&body).is_ok();
            decompressor.trim();
            opened
        })
    });
    assert!(opened);
    assert_eq!(usage.allocations, 0);
}

#[test]
fn what_a_large_body_took_is_given_back() {
    let body = spaces(MAX_BODY);
    let ((), usage) = measured(|| {
        let mut decompressor = Decompressor::new();
        decompressor.open(&body).unwrap();
        decompressor.trim();
        std::mem::forget(decompressor);
    });
    assert!(usage.held <= KEPT, "{usage:?}");
}

#[test]
fn compressing_takes_a_tenth_more_than_the_frame_and_a_small_table() {
    let mut frame = u32::try_from(MAX_BODY).unwrap().to_le_bytes().to_vec();
    frame.resize(LENGTH_PREFIX + MAX_BODY, b' ');
    let ((), usage) = measured(|| {
        let mut wire = Vec::new();
        assert!(compress_frame(&frame, &mut wire));
    });
    assert!(usage.peak <= MAX_BODY / 10 * 11 + 64 * 1024, "{usage:?}");
    assert_eq!(usage.held, 0);
}
