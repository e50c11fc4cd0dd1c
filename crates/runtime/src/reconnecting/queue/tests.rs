use std::time::Duration;

use migration_ipc_protocol::MessageId;

use super::*;
use crate::delivery::receipt;

const LIMITS: QueueLimits = QueueLimits {
    messages: 4,
    bytes: 1000,
};

fn rivals(key: &str) -> Rivals {
    (MessageType::from_static("T"), key.into())
}

fn entry(bytes: u32, key: Option<&str>) -> Entry<()> {
    Entry {
        body: (),
        bytes,
        stream: None,
        rivals: key.map(|key| Box::new(rivals(key))),
        expires: None,
        awaited: Awaited::Receipt(receipt(MessageId::new("m").unwrap()).1),
        history: History::default(),
        company: None,
    }
}

/// Puts a message in as senders do; says which ones made way, or `None` when there was no room.
fn push(
    queue: &mut Queue<()>,
    number: u64,
    entry: Entry<()>,
    overflow: Overflow,
) -> Option<Vec<u64>> {
    let demand = Demand {
        messages: 1,
        bytes: u64::from(entry.bytes),
        rivals: entry.rivals.as_deref().into_iter().collect(),
    };
    let admission = queue.admit(&demand, overflow);
    match admission {
        Admission::Admitted(displaced) => {
            queue.insert(number, entry);
            Some(displaced.into_iter().map(|(number, _)| number).collect())
        }
        Admission::Full | Admission::TooMuch => None,
    }
}

/// Four messages with the keys `a`, `b`, `a` and none.
fn full() -> Queue<()> {
    let mut queue = Queue::new(LIMITS);
    for (number, key) in (1..).zip([Some("a"), Some("b"), Some("a"), None]) {
        assert_eq!(
            push(&mut queue, number, entry(10, key), Overflow::Wait),
            Some(vec![])
        );
    }
    queue
}

fn order(queue: &Queue<()>) -> Vec<u64> {
    queue.sendable(u64::MAX).map(|(number, _)| number).collect()
}

#[test]
fn a_full_queue_admits_by_the_policy() {
    let cases = [
        (Overflow::Wait, "a", None, vec![1, 2, 3, 4]),
        (Overflow::Reject, "a", None, vec![1, 2, 3, 4]),
        (Overflow::DropOldest, "a", Some(vec![1]), vec![2, 3, 4, 5]),
        // The survivor takes the newest's place.
        (Overflow::KeepLatest, "a", Some(vec![1, 3]), vec![2, 4, 5]),
        (Overflow::KeepLatest, "c", None, vec![1, 2, 3, 4]),
        (Overflow::DropOldest, "c", None, vec![1, 2, 3, 4]),
    ];
    for (overflow, key, displaced, left) in cases {
        let mut queue = full();
        assert_eq!(
            push(&mut queue, 5, entry(10, Some(key)), overflow),
            displaced,
            "{overflow:?} {key}"
        );
        assert_eq!(order(&queue), left, "{overflow:?} {key}");
        assert_eq!(queue.messages(), left.len());
    }
}

#[test]
fn nothing_is_displaced_while_there_is_room() {
    let mut queue = Queue::new(LIMITS);
    for number in 1..=4 {
        let displaced = push(
            &mut queue,
            number,
            entry(10, Some("a")),
            Overflow::KeepLatest,
        );
        assert_eq!(displaced, Some(vec![]));
    }
}

#[test]
fn bytes_are_bounded_too_and_as_many_make_way_as_it_takes() {
    let mut queue = Queue::new(LIMITS);
    for number in 1..=3 {
        push(&mut queue, number, entry(300, Some("")), Overflow::Wait).unwrap();
    }
    let large = entry(500, Some(""));
    assert_eq!(push(&mut queue, 4, large, Overflow::Wait), None);
    let large = entry(500, Some(""));
    assert_eq!(
        push(&mut queue, 4, large, Overflow::DropOldest),
        Some(vec![1, 2])
    );
    assert_eq!(
        push(&mut queue, 5, entry(1001, Some("")), Overflow::DropOldest),
        None
    );
    assert_eq!(order(&queue), [3, 4], "what can never fit displaces nobody");
}

#[test]
fn what_is_under_way_holds_its_room_and_makes_way_for_nobody() {
    let mut queue = full();
    let first = queue.take(1).unwrap();
    assert_eq!(push(&mut queue, 5, entry(10, None), Overflow::Reject), None);
    let displaced = push(&mut queue, 5, entry(10, Some("a")), Overflow::DropOldest);
    assert_eq!(displaced, Some(vec![3]));
    queue.release(1, u64::from(first.bytes));
    assert_eq!(
        push(&mut queue, 6, entry(10, None), Overflow::Reject),
        Some(vec![])
    );
}

#[test]
fn what_is_put_back_takes_its_old_place() {
    let mut queue = full();
    let taken: Vec<_> = [1, 2, 3]
        .map(|number| (number, queue.take(number).unwrap()))
        .into();
    assert_eq!(order(&queue), [4]);
    for (number, entry) in taken.into_iter().rev() {
        queue.insert(number, entry);
    }
    assert_eq!(order(&queue), [1, 2, 3, 4]);
}

#[test]
fn a_stream_that_is_put_off_holds_up_no_other() {
    let mut queue = Queue::new(LIMITS);
    let name = Some(StreamName::new("slow").unwrap());
    for number in 1..=4 {
        let stream = if number % 2 == 0 { name.clone() } else { None };
        let entry = Entry {
            stream,
            ..entry(10, None)
        };
        push(&mut queue, number, entry, Overflow::Wait).unwrap();
    }
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    queue.put_off(name, later);
    assert_eq!(order(&queue), [1, 3]);
    assert_eq!(queue.next_event(), Some(later));
    queue.resume(now);
    assert_eq!(order(&queue), [1, 3]);
    queue.resume(later);
    assert_eq!(order(&queue), [1, 2, 3, 4]);
}

#[test]
fn messages_expire_in_the_order_of_their_times() {
    let mut queue = Queue::new(LIMITS);
    let now = Instant::now();
    for (number, seconds) in [(1, 30), (2, 10), (3, 20)] {
        let entry = Entry {
            expires: Some(now + Duration::from_secs(seconds)),
            ..entry(10, None)
        };
        push(&mut queue, number, entry, Overflow::Wait).unwrap();
    }
    let mut expired = |seconds| {
        let now = now + Duration::from_secs(seconds);
        queue.expired(now).map(|(number, _)| number)
    };
    assert_eq!(expired(9), None);
    assert_eq!(expired(20), Some(2));
    assert_eq!(expired(20), Some(3));
    assert_eq!(expired(20), None);
    queue.take(1).unwrap();
    assert_eq!(queue.next_event(), None, "what is taken does not expire");
}

/// It may have been handled: nobody could say truthfully that it was not sent.
#[test]
fn what_was_attempted_neither_makes_way_nor_expires() {
    let mut queue = full();
    let mut attempted = queue.take(1).unwrap();
    attempted.history.attempted = true;
    attempted.expires = Some(Instant::now());
    queue.insert(1, attempted);
    assert_eq!(queue.next_event(), None);
    let displaced = push(&mut queue, 5, entry(10, Some("a")), Overflow::KeepLatest);
    assert_eq!(displaced, Some(vec![3]));
    assert_eq!(order(&queue), [1, 2, 4, 5]);
}

#[test]
fn numbers_above_the_window_are_not_sent_yet() {
    let queue = full();
    let sendable: Vec<_> = queue.sendable(3).map(|(number, _)| number).collect();
    assert_eq!(sendable, [1, 2]);
}

#[test]
fn what_is_withheld_holds_up_its_stream_and_no_other() {
    let mut queue = Queue::new(LIMITS);
    let entries = [
        ("a", Confidence::Sensitive),
        ("b", Confidence::Open),
        ("a", Confidence::Open),
        ("b", Confidence::Sensitive),
    ];
    for (number, (stream, confidence)) in (1..).zip(entries) {
        let mut entry = entry(10, None);
        entry.stream = StreamName::new(stream).ok();
        entry.history.confidence = confidence;
        push(&mut queue, number, entry, Overflow::Wait).unwrap();
    }
    assert_eq!(order(&queue), [1, 2, 3, 4]);
    queue.withhold(Withheld::Sensitive);
    assert_eq!(order(&queue), [2]);
    // In memory, where there is one order, the others go ahead.
    assert_eq!(queue.pop_sendable().map(|(number, _)| number), Some(2));
    assert_eq!(queue.pop_sendable().map(|(number, _)| number), Some(3));
    assert!(queue.pop_sendable().is_none());
    queue.withhold(Withheld::Nothing);
    assert_eq!(order(&queue), [1, 4]);
}
