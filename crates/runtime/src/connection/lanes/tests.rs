use super::*;

fn filled(lanes: &mut Lanes) -> Vec<u8> {
    let mut out = Vec::new();
    lanes.fill(&mut out, |_| {});
    out
}

#[test]
fn control_overtakes_what_was_queued_before_it() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    lanes.push(LaneKind::Normal, b"first");
    lanes.push(LaneKind::Control, b"ack");
    assert_eq!(filled(&mut lanes), b"ackfirst");
    assert!(lanes.is_empty());
}

#[test]
fn a_write_holds_whole_frames_up_to_its_limit() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    let frame = vec![7; MAX_WRITE / 3];
    for _ in 0..4 {
        lanes.push(LaneKind::Normal, &frame);
    }
    assert_eq!(filled(&mut lanes).len(), 3 * frame.len());
    assert_eq!(filled(&mut lanes).len(), frame.len());
    assert!(filled(&mut lanes).is_empty());
}

#[test]
fn a_frame_over_the_write_limit_goes_alone() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    lanes.push(LaneKind::Normal, &vec![1; MAX_WRITE * 2]);
    lanes.push(LaneKind::Normal, b"next");
    assert_eq!(filled(&mut lanes).len(), MAX_WRITE * 2);
    assert_eq!(filled(&mut lanes), b"next");
}

#[test]
fn credit_stops_the_normal_lane_and_never_control() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Messages(1));
    lanes.push(LaneKind::Normal, b"a");
    lanes.push(LaneKind::Normal, b"b");
    assert_eq!(filled(&mut lanes), b"a");
    lanes.push(LaneKind::Control, b"c");
    assert_eq!(filled(&mut lanes), b"c");
    lanes.grant(5);
    assert_eq!(filled(&mut lanes), b"b");
}

#[test]
fn a_batch_uses_the_credit_of_its_messages_and_owes_what_is_not_there() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Messages(2));
    lanes.push(LaneKind::Normal, b"a");
    lanes.push_batch(b"BATCH", 5);
    lanes.push(LaneKind::Normal, b"b");
    assert_eq!(lanes.queued_messages(LaneKind::Normal), 7);
    let mut out = Vec::new();
    assert_eq!(lanes.fill(&mut out, |_| {}), 6);
    assert_eq!(out, b"aBATCH");
    lanes.grant(4);
    assert_eq!(filled(&mut lanes), b"", "that made up for the batch");
    lanes.grant(1);
    assert_eq!(filled(&mut lanes), b"b");
    lanes.push_batch(b"NEXT", 3);
    assert_eq!(filled(&mut lanes), b"", "a batch needs one to go");
    lanes.grant(1);
    assert_eq!(filled(&mut lanes), b"NEXT");
    assert_eq!(lanes.queued_messages(LaneKind::Normal), 0);
}

#[test]
fn messages_are_counted_whether_frames_go_together_or_one_by_one() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    let large = vec![7; MAX_WRITE];
    let mut out = Vec::new();
    for frame in [&large[..], b"small"] {
        lanes.push_batch(frame, 3);
        lanes.push(LaneKind::Normal, frame);
    }
    let mut sent = Vec::new();
    while !lanes.is_empty() {
        out.clear();
        sent.push(lanes.fill(&mut out, |_| {}));
    }
    assert_eq!(sent, [3, 1, 4]);
}

#[test]
fn nothing_but_the_preamble_leaves_before_the_peer_is_known() {
    let mut lanes = Lanes::new();
    lanes.push(LaneKind::Control, b"hello");
    lanes.push(LaneKind::Normal, b"x");
    assert_eq!(filled(&mut lanes), b"hello");
    lanes.grant(9);
    assert!(
        filled(&mut lanes).is_empty(),
        "a grant before the hello means nothing"
    );
}

#[test]
fn items_need_no_credit_and_take_turns_with_messages() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Messages(1));
    lanes.push(LaneKind::Normal, &[b'm'; MAX_WRITE]);
    for _ in 0..3 {
        lanes.push(LaneKind::Items, &[b'i'; MAX_WRITE]);
    }
    lanes.push(LaneKind::Control, b"c");
    assert_eq!(filled(&mut lanes), b"c", "control goes before items");
    let mut firsts = String::new();
    while !lanes.is_empty() {
        firsts.push(char::from(filled(&mut lanes)[0]));
    }
    assert_eq!(firsts, "miii");
    lanes.push(LaneKind::Normal, b"no credit left");
    lanes.push(LaneKind::Items, b"item");
    assert_eq!(filled(&mut lanes), b"item");
}

#[test]
fn pieces_need_no_credit_and_go_behind_everything_else() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Messages(1));
    lanes.push_parts(LaneKind::Pieces, &[b"p", b"1"]);
    lanes.push_parts(LaneKind::Pieces, &[b"p", b"2"]);
    lanes.push(LaneKind::Normal, b"a");
    lanes.push(LaneKind::Normal, b"b");
    lanes.push(LaneKind::Control, b"c");
    assert_eq!(filled(&mut lanes), b"cap1p2");
    assert!(!lanes.is_empty());
}

#[test]
fn a_stream_of_messages_does_not_stop_pieces() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    lanes.push(LaneKind::Pieces, &[1; MAX_WRITE / 2]);
    let mut writes = 0;
    while lanes.queued_messages(LaneKind::Pieces) > 0 {
        lanes.push(LaneKind::Normal, &[2; MAX_WRITE]);
        filled(&mut lanes);
        writes += 1;
    }
    assert_eq!(writes, 2);
}

#[test]
fn a_write_ends_behind_the_last_frame_in_the_clear() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    lanes.push(LaneKind::Normal, b"message");
    lanes.push(LaneKind::Control, &vec![1; MAX_WRITE]);
    lanes.push(LaneKind::Control, b"marker");
    lanes.end_clear();
    lanes.push(LaneKind::Control, b"sealed");
    assert_eq!(filled(&mut lanes).len(), MAX_WRITE);
    assert!(!lanes.take_boundary_left(), "it waits");
    assert_eq!(filled(&mut lanes), b"marker");
    assert!(lanes.take_boundary_left());
    assert!(!lanes.take_boundary_left(), "once");
    assert_eq!(filled(&mut lanes), b"sealedmessage");
}

#[test]
fn a_place_has_left_once_its_frame_is_in_a_write() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Messages(2));
    let places = [b"a", b"b", b"c"].map(|frame| {
        let place = lanes.next_place(LaneKind::Normal);
        lanes.push(LaneKind::Normal, frame);
        place
    });
    let left = |lanes: &Lanes| places.map(|place| lanes.has_left(place));
    let written = |lanes: &Lanes| places.map(|place| lanes.is_written(place));
    assert_eq!(left(&lanes), [false, false, false]);
    filled(&mut lanes);
    assert_eq!(left(&lanes), [true, true, false]);
    assert_eq!(written(&lanes), [false, false, false]);
    lanes.finish_write();
    assert_eq!(written(&lanes), [true, true, false]);
    lanes.clear();
    lanes.trim();
    assert_eq!(left(&lanes), [true, true, false]);
    assert_eq!(written(&lanes), [true, true, false]);
}

/// Lanes of messages that all have this many frames, each of its lane's own letter.
fn loaded(frames: usize, length: usize) -> Lanes {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    for (lane, letter) in [
        (LaneKind::High, b'h'),
        (LaneKind::Normal, b'n'),
        (LaneKind::Bulk, b'b'),
    ] {
        for _ in 0..frames {
            lanes.push(lane, &vec![letter; length]);
        }
    }
    lanes
}

fn count(bytes: &[u8], letter: u8) -> usize {
    bytes.iter().filter(|byte| **byte == letter).count()
}

#[test]
fn lanes_share_by_their_weights_while_all_of_them_have_something() {
    let mut lanes = loaded(10_000, 1000);
    let mut out = Vec::new();
    while count(&out, b'h') < 9_000_000 {
        out.extend(filled(&mut lanes));
    }
    let share = |letter| count(&out, letter) * 210 / out.len();
    // In parts of 210: 16, 4 and 1 of 21.
    assert!((158..=162).contains(&share(b'h')), "{}", share(b'h'));
    assert!((38..=42).contains(&share(b'n')), "{}", share(b'n'));
    assert!((8..=12).contains(&share(b'b')), "{}", share(b'b'));
}

#[test]
fn the_share_counts_bytes_and_not_messages() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    // Bulk in frames over the limit of a write, high in small ones.
    for _ in 0..4 {
        lanes.push(LaneKind::Bulk, &vec![b'b'; 2 * MAX_WRITE]);
    }
    for _ in 0..100_000 {
        lanes.push(LaneKind::High, &[b'h'; 100]);
    }
    let mut out = Vec::new();
    while count(&out, b'b') < 4 * 2 * MAX_WRITE {
        out.extend(filled(&mut lanes));
    }
    let ratio = count(&out, b'h') / (3 * 2 * MAX_WRITE);
    assert_eq!(ratio, 16, "until the last of four bulk frames begins");
}

#[test]
fn a_lane_that_was_empty_saves_nothing_up() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    for _ in 0..10_000 {
        lanes.push(LaneKind::Bulk, &[b'b'; 1000]);
    }
    for _ in 0..50 {
        filled(&mut lanes);
    }
    for _ in 0..10_000 {
        lanes.push(LaneKind::Normal, &[b'n'; 1000]);
    }
    let mut out = Vec::new();
    for _ in 0..10 {
        out.extend(filled(&mut lanes));
    }
    let (normal, bulk) = (count(&out, b'n'), count(&out, b'b'));
    assert!(bulk > 0, "bulk is not made to pay for when it was alone");
    assert!((3 * bulk..=5 * bulk).contains(&normal), "{normal} {bulk}");
}

#[test]
fn order_holds_within_each_lane() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    let mut next = [0_u32; LaneKind::COUNT];
    let mut seen = [0_u32; LaneKind::COUNT];
    for _ in 0..2000 {
        for _ in 0..random.usize(0..8) {
            let lane = LaneKind::ALL[random.usize(0..LaneKind::COUNT)];
            let number = &mut next[lane.index()];
            let mut frame = vec![u8::try_from(lane.index()).unwrap()];
            frame.extend(number.to_le_bytes());
            frame.resize(random.usize(5..20_000), 0);
            let length = u32::try_from(frame.len()).unwrap();
            lanes.push(lane, &[&length.to_le_bytes()[..], &frame].concat());
            *number += 1;
        }
        let out = filled(&mut lanes);
        let mut rest = &out[..];
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
            let (frame, after) = after.split_at(length);
            let lane = usize::from(frame[0]);
            let number = u32::from_le_bytes(*frame[1..].first_chunk().unwrap());
            assert_eq!(number, seen[lane]);
            seen[lane] += 1;
            rest = after;
        }
    }
    assert!(seen.iter().all(|seen| *seen > 1000));
}

#[test]
fn lanes_share_credit_in_the_same_turns() {
    let mut lanes = loaded(1000, 4096);
    lanes.set_credit(SendCredit::Messages(0));
    let mut out = Vec::new();
    for _ in 0..210 {
        lanes.grant(1);
        out.extend(filled(&mut lanes));
    }
    let messages = |letter| count(&out, letter) / 4096;
    assert_eq!(
        [messages(b'h'), messages(b'n'), messages(b'b')],
        [160, 40, 10]
    );
}

/// A few urgent messages do not wait for bulk to get what it is due in the long run.
#[test]
fn what_is_urgent_goes_first_in_each_round() {
    let mut lanes = loaded(3, 1000);
    let out = filled(&mut lanes);
    let letters: Vec<u8> = out.chunks(1000).map(|frame| frame[0]).collect();
    assert_eq!(letters, b"hhhnnnbbb");
}

/// A service that answers a flood while it sends a large message had an answer for every write,
/// and the large message, which never fitted behind it, never left.
#[test]
fn messages_get_into_every_second_write_however_much_control_there_is() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    lanes.push(LaneKind::Bulk, &vec![b'b'; 2 * MAX_WRITE]);
    lanes.push(LaneKind::Normal, b"n");
    let mut out = Vec::new();
    for _ in 0..4 {
        for _ in 0..MAX_WRITE / 100 + 1 {
            lanes.push(LaneKind::Control, &[b'c'; 100]);
        }
        out.extend(filled(&mut lanes));
    }
    assert_eq!(count(&out, b'n'), 1);
    assert_eq!(count(&out, b'b'), 2 * MAX_WRITE);
    assert!(lanes.frames_left() > 2);
}

#[test]
fn what_leaves_is_told_with_its_numbers() {
    let mut lanes = Lanes::new();
    lanes.push(LaneKind::Control, b"hello");
    let mut told = Vec::new();
    let mut tell = |lanes: &mut Lanes| {
        let mut out = Vec::new();
        lanes.fill(&mut out, |departure| {
            let Departure {
                place,
                frames,
                number,
            } = departure;
            told.push((place.lane, place.ordinal, frames, number));
        });
    };
    tell(&mut lanes);
    lanes.set_credit(SendCredit::Unlimited);
    lanes.push(LaneKind::Normal, b"n");
    lanes.push(LaneKind::Normal, b"n");
    lanes.push(LaneKind::Control, b"c");
    tell(&mut lanes);
    tell(&mut lanes);
    lanes.push(LaneKind::Normal, b"n");
    tell(&mut lanes);
    let expected = [
        (LaneKind::Control, 0, 1, 1),
        (LaneKind::Control, 1, 1, 2),
        (LaneKind::Normal, 0, 2, 3),
        (LaneKind::Normal, 2, 1, 5),
    ];
    assert_eq!(told, expected);
    assert_eq!(lanes.frames_left(), 5);
}

#[test]
fn an_idle_lane_keeps_no_memory() {
    let mut lanes = Lanes::new();
    lanes.set_credit(SendCredit::Unlimited);
    for _ in 0..1000 {
        lanes.push(LaneKind::Normal, &[0; 1000]);
    }
    while !lanes.is_empty() {
        filled(&mut lanes);
    }
    lanes.trim();
    assert_eq!(lanes.lane(LaneKind::Normal).map(Lane::capacity), Some(0));
}
