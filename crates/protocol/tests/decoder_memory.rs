//! How much memory the frame decoder takes, as the allocator counts it. Each thread has a
//! count of its own, so tests do not disturb each other.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use migration_ipc_protocol::limits::{DECODER_SLACK, LENGTH_PREFIX, MAX_BODY};
use migration_ipc_protocol::{
    Envelope, EnvelopeHead, FrameDecoder, MessageId, MessageSerializer, MessageType,
};
use migration_ipc_testkit::memory::{CountingAllocator, held_by_thread, measured};
use proptest::collection::vec;
use proptest::prelude::*;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn prefix(length: usize) -> [u8; LENGTH_PREFIX] {
    u32::try_from(length).expect("a length fits").to_le_bytes()
}

/// Feeds one piece and drops what comes out.
fn feed(decoder: &mut FrameDecoder, mut piece: &[u8]) {
    while let Ok(Some(_)) = decoder.decode(&mut piece) {}
}

#[test]
fn a_promise_costs_nothing() {
    let mut decoder = FrameDecoder::new();
    let ((), usage) = measured(|| {
        feed(&mut decoder, &prefix(MAX_BODY));
        feed(&mut decoder, b"{");
    });
    assert!(
        usage.peak <= 2 * (LENGTH_PREFIX + 1 + DECODER_SLACK),
        "{usage:?}"
    );
    assert!(usage.held <= LENGTH_PREFIX + 1 + DECODER_SLACK, "{usage:?}");
}

#[test]
fn a_length_that_no_frame_has_costs_nothing() {
    for bad in [
        [0; 4],
        [0xff; 4],
        [0xff, 0xff, 0xff, 0x7f],
        prefix(MAX_BODY + 1),
    ] {
        let mut decoder = FrameDecoder::new();
        let ((), usage) = measured(|| feed(&mut decoder, &bad));
        assert_eq!((usage.allocations, usage.held), (0, 0), "{bad:?}");
    }
}

#[test]
fn whole_frames_cost_nothing() {
    let mut wire = prefix(300).to_vec();
    wire.resize(LENGTH_PREFIX + 300, b'x');
    let wire = wire.repeat(50);
    let mut decoder = FrameDecoder::new();
    let ((), usage) = measured(|| feed(&mut decoder, &wire));
    assert_eq!(usage.allocations, 0);
}

#[test]
fn an_idle_decoder_holds_nothing() {
    let mut wire = prefix(MAX_BODY).to_vec();
    wire.resize(LENGTH_PREFIX + MAX_BODY, b'x');
    let mut decoder = FrameDecoder::new();
    let ((), usage) = measured(|| {
        wire.chunks(1000)
            .for_each(|piece| feed(&mut decoder, piece))
    });
    assert_eq!(usage.held, 0);
}

#[test]
fn the_rest_of_a_large_input_does_not_keep_its_room() {
    let mut wire = prefix(60_000).to_vec();
    wire.resize(LENGTH_PREFIX + 60_000, b'x');
    wire.extend_from_slice(&prefix(10));
    let mut decoder = FrameDecoder::new();
    let ((), usage) = measured(|| {
        decoder.retain(&wire);
        feed(&mut decoder, &[]);
        feed(&mut decoder, b"x");
    });
    assert!(usage.held <= DECODER_SLACK, "{usage:?}");
    assert_eq!(decoder.buffered(), LENGTH_PREFIX + 1);
}

#[test]
fn our_messages_are_written_and_read_without_an_allocation() {
    let id = MessageId::new("0190163d-8694-739b-aea5-966c26f8ad91").expect("a short id");
    let head = EnvelopeHead {
        in_reply_to: Some(&id),
        ..EnvelopeHead::new(
            &id,
            "HEARTBEAT",
            "2024-06-14T09:30:12.3456789Z".parse().expect("a good time"),
        )
    };
    let mut wire = Vec::with_capacity(1024);
    let (written, usage) = measured(|| MessageSerializer::encode(&mut wire, head, &[1, 2, 3]));
    written.expect("the message is small");
    assert_eq!(usage.allocations, 0);

    let mut decoder = FrameDecoder::new();
    let (read, usage) = measured(|| {
        let body = decoder.decode(&mut wire.as_slice()).ok().flatten();
        let envelope = body.and_then(|body| Envelope::parse(body).ok())?;
        Some((MessageType::new(&envelope.message_type), envelope.id))
    });
    let written = (MessageType::from_static("HEARTBEAT"), id.clone());
    assert_eq!(read, Some(written));
    assert_eq!(usage.allocations, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever arrives in whatever pieces: the decoder holds no more than what has arrived and the
    /// slack.
    #[test]
    fn memory_follows_what_arrived(
        frames in vec(prop_oneof![1..2_000_usize, Just(MAX_BODY)], 1..4),
        pieces in vec(1..20_000_usize, 1..40),
    ) {
        let mut wire = Vec::new();
        for length in frames {
            wire.extend_from_slice(&prefix(length));
            wire.resize(wire.len() + length, b'x');
        }
        let mut decoder = FrameDecoder::new();
        let mut arrived = 0;
        let mut held = 0_usize;
        let mut rest = wire.as_slice();
        for size in pieces {
            let (piece, later) = rest.split_at(size.min(rest.len()));
            rest = later;
            arrived += piece.len();
            let buffered_before = decoder.buffered();
            let before = held_by_thread();
            let ((), usage) = measured(|| feed(&mut decoder, piece));
            held = (held + held_by_thread()).wrapping_sub(before);
            prop_assert!(held <= decoder.buffered() + DECODER_SLACK);
            prop_assert!(held <= arrived + DECODER_SLACK);
            prop_assert!(usage.peak <= buffered_before + piece.len() + DECODER_SLACK);
        }
    }
}
