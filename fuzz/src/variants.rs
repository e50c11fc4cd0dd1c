//! How often each variant of the decoder's errors was reached.

use std::sync::atomic::{AtomicU64, Ordering};

use migration_ipc_protocol::extensions::RequestHeadError;
use migration_ipc_protocol::{
    AckMemberError, DeliveryHeadError, EnvelopeErrorKind, FrameError, ItemMemberError, PayloadError,
};

/// One variant of an error.
struct Variant {
    name: &'static str,
    reached: AtomicU64,
}

const fn variant(name: &'static str) -> Variant {
    Variant {
        name,
        reached: AtomicU64::new(0),
    }
}

static VARIANTS: [Variant; 18] = [
    variant("FrameError::Empty"),
    variant("FrameError::Negative"),
    variant("FrameError::TooLong"),
    variant("EnvelopeErrorKind::NotUtf8"),
    variant("EnvelopeErrorKind::TooDeep"),
    variant("EnvelopeErrorKind::TooManyValues"),
    variant("EnvelopeErrorKind::NotJson"),
    variant("EnvelopeErrorKind::NotAnEnvelope"),
    variant("PayloadError::Missing"),
    variant("PayloadError::NotAnObject"),
    variant("PayloadError::Invalid"),
    variant("DeliveryHeadError::Seq"),
    variant("DeliveryHeadError::Stream"),
    variant("DeliveryHeadError::StreamAlone"),
    variant("RequestHeadError::Deadline"),
    variant("RequestHeadError::Items"),
    variant("AckMemberError"),
    variant("ItemMemberError"),
];

fn note(place: usize) {
    VARIANTS[place].reached.fetch_add(1, Ordering::Relaxed);
}

// A variant that is added does not compile before it has a place above.

pub fn note_frame(error: FrameError) {
    note(match error {
        FrameError::Empty => 0,
        FrameError::Negative(_) => 1,
        FrameError::TooLong { .. } => 2,
    });
}

pub fn note_envelope(kind: EnvelopeErrorKind) {
    note(match kind {
        EnvelopeErrorKind::NotUtf8 => 3,
        EnvelopeErrorKind::TooDeep => 4,
        EnvelopeErrorKind::TooManyValues => 5,
        EnvelopeErrorKind::NotJson => 6,
        EnvelopeErrorKind::NotAnEnvelope => 7,
    });
}

pub fn note_payload(error: &PayloadError) {
    note(match error {
        PayloadError::Missing => 8,
        PayloadError::NotAnObject => 9,
        PayloadError::Invalid(_) => 10,
    });
}

pub fn note_delivery(error: DeliveryHeadError) {
    note(match error {
        DeliveryHeadError::Seq => 11,
        DeliveryHeadError::Stream(_) => 12,
        DeliveryHeadError::StreamAlone => 13,
    });
}

pub fn note_request(error: RequestHeadError) {
    note(match error {
        RequestHeadError::Deadline => 14,
        RequestHeadError::Items => 15,
    });
}

pub fn note_ack(AckMemberError: AckMemberError) {
    note(16);
}

pub fn note_item(ItemMemberError: ItemMemberError) {
    note(17);
}

/// Every variant and how often it was reached since the program began.
pub fn counts() -> impl Iterator<Item = (&'static str, u64)> {
    VARIANTS
        .iter()
        .map(|variant| (variant.name, variant.reached.load(Ordering::Relaxed)))
}
