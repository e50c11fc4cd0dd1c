//! Peers that do what no peer should. Each case runs beside a client that completes all its round
//! trips, unhurt; each leaves one line in the log, which names peer and cause, and a count.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::time::Duration;

use common::*;
use migration_ipc::messages::{BackupStarted, UserAction};
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    Answer, DisconnectReason, EventStream, HandlerOptions, IpcServer, MessageDispatcher,
};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const ROUND_TRIPS: u32 = 100;

/// A server, a bystander at its round trips, and a peer that is about to misbehave.
struct Scene {
    watch: Watch,
    server: IpcServer,
    events: EventStream,
    connector: MemoryConnector,
    bystander: JoinHandle<()>,
    begun: Instant,
}

impl Scene {
    /// The bystander spreads its round trips over this time.
    async fn lasting(time: Duration) -> Self {
        let watch = Watch::begin();
        let dispatcher = MessageDispatcher::builder(())
            .handle(|_: UserAction| async {})
            .handle_with(HandlerOptions::new(), |_: BackupStarted| async {})
            .build()
            .unwrap();
        let (server, connector) = serve(dispatcher).await;
        let stream = connector.connect(user("bystander")).await.unwrap();
        let client = client().connect_over(stream).await.unwrap();
        let bystander = tokio::spawn(async move {
            for _ in 0..ROUND_TRIPS {
                let asked = Instant::now();
                let answer = client.send_acknowledged(UserAction::new("", "work")).await;
                assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
                assert!(
                    asked.elapsed() < Duration::from_millis(100),
                    "it was held up"
                );
                tokio::time::sleep(time / ROUND_TRIPS).await;
            }
            client.disconnect().await;
        });
        Self {
            events: server.events(),
            watch,
            server,
            connector,
            bystander,
            begun: Instant::now(),
        }
    }

    async fn begin() -> Self {
        Self::lasting(Duration::from_millis(100)).await
    }

    /// A peer that misbehaves, as the user `mallory`.
    async fn peer(&self) -> WirePeer {
        WirePeer::connect(&self.connector, user("mallory")).await
    }

    /// The end of the peer's connection, which comes before the bystander's.
    async fn end(&mut self) -> DisconnectReason {
        next_end(&mut self.events).await.reason
    }

    /// Checks the log for exactly one line, which names the peer and this cause, and the counter.
    async fn leaves_one_line(self, cause: &str, counter: &str, reason: &str) {
        let Self {
            watch,
            server,
            bystander,
            ..
        } = self;
        tokio::time::timeout(LONG_PATIENCE, bystander)
            .await
            .unwrap()
            .expect("the bystander is unhurt");
        let warnings = watch.warnings();
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        assert!(warnings[0].contains("account mallory"), "{}", warnings[0]);
        assert!(warnings[0].contains(cause), "{}", warnings[0]);
        assert_eq!(watch.counter(counter, reason), 1, "{counter} {reason}");
        eventually("nothing is left", || {
            server.connections().counts().identified <= 1
        })
        .await;
    }
}

// --- lengths that no frame has -------------------------------------------------------------------

async fn a_length_that_ends_the_connection(length: i32, cause: &str) {
    let mut scene = Scene::begin().await;
    let mut peer = scene.peer().await;
    peer.write(&length.to_le_bytes()).await;
    assert_eq!(peer.receive_or_end().await, None);
    assert!(matches!(scene.end().await, DisconnectReason::Framing(_)));
    scene
        .leaves_one_line(cause, "ipc_disconnects_total", "framing")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_length_0_ends_its_connection_at_once() {
    a_length_that_ends_the_connection(0, "an empty frame").await;
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_negative_length_ends_its_connection_at_once() {
    a_length_that_ends_the_connection(-1, "negative length -1").await;
    a_length_that_ends_the_connection(i32::MIN, "negative length -2147483648").await;
}

#[tokio::test(start_paused = true)]
async fn a_frame_over_the_limit_ends_its_connection_at_once() {
    a_length_that_ends_the_connection(1_048_577, "1048577 bytes, over the limit of 1048576").await;
    a_length_that_ends_the_connection(i32::MAX, "2147483647 bytes").await;
}

// --- bodies that are no messages -----------------------------------------------------------------

/// Whether the peer sent something sensible before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    AMessage,
}

/// Sends the body, which can be answered or not, and then a message to show that it lives on.
async fn a_body_that_is_refused(body: &[u8], answered: Option<&str>, cause: &str, reason: &str) {
    for before in [Before::Nothing, Before::AMessage] {
        let scene = Scene::begin().await;
        let mut peer = scene.peer().await;
        if before == Before::AMessage {
            peer.send("USER_ACTION", action("x")).await;
            assert_eq!(peer.receive_acknowledgment().await["success"], true);
        }
        peer.write(&frame_of_bytes(body)).await;
        if let Some(id) = answered {
            let answer = peer.receive_acknowledgment().await;
            assert_eq!(answer["originalMessageId"], id);
            assert_eq!(answer["success"], false);
            let error = answer["error"].as_str().unwrap();
            assert!(error.starts_with("Malformed message: "), "{error}");
        }
        let id = peer.send("USER_ACTION", action("x")).await;
        assert_eq!(peer.receive_acknowledgment().await["originalMessageId"], id);
        scene
            .leaves_one_line(cause, "ipc_refusals_total", reason)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_json_is_refused() {
    a_body_that_is_refused(b"GET / HTTP/1.1", None, "not_json", "not_json").await;
    a_body_that_is_refused(br#"{"id":"a","type":"X"#, Some("a"), "not_json", "not_json").await;
    a_body_that_is_refused(b"[]", None, "an envelope", "not_an_envelope").await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_utf8_is_refused() {
    let body = b"{\"id\":\"a\",\"type\":\"\xff\"}";
    a_body_that_is_refused(body, Some("a"), "not_utf8", "not_utf8").await;
    a_body_that_is_refused(b"\xff\xfe", None, "not_utf8", "not_utf8").await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_deep_is_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let body = format!(r#"{{"id":"a","type":"USER_ACTION","ignored":{deep}}}"#);
    a_body_that_is_refused(body.as_bytes(), Some("a"), "too_deep", "too_deep").await;
    a_body_that_is_refused(
        "[".repeat(1_000_000).as_bytes(),
        None,
        "too_deep",
        "too_deep",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_with_a_member_twice_is_refused() {
    let twice = br#"{"id":"a","type":"X","type":"Y","timestamp":"2024-01-01T12:00:00Z"}"#;
    a_body_that_is_refused(
        twice,
        Some("a"),
        "duplicate field `type`",
        "not_an_envelope",
    )
    .await;
    // Which of two ids it has nobody can say.
    let ids = br#"{"id":"a","id":"b","type":"X","timestamp":"2024-01-01T12:00:00Z"}"#;
    a_body_that_is_refused(ids, None, "duplicate field `id`", "not_an_envelope").await;
    // In the form that most messages have, to its last member but one.
    let behind = br#"{"id":"a","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","payload":{"action":"x"},"payload":{"action":"y"}}"#;
    a_body_that_is_refused(
        behind,
        Some("a"),
        "duplicate field `payload`",
        "not_an_envelope",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_payload_with_a_member_twice_is_refused() {
    let scene = Scene::begin().await;
    let mut peer = scene.peer().await;
    let body = r#"{"id":"a","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z",
                   "payload":{"action":"x","action":"y"}}"#;
    peer.write(&frame(body)).await;
    let answer = peer.receive_acknowledgment().await;
    let error = answer["error"].as_str().unwrap();
    assert!(
        error.starts_with("Failed to deserialize payload"),
        "{error}"
    );
    scene
        .leaves_one_line(
            "duplicate field `action`",
            "ipc_refusals_total",
            "bad_payload",
        )
        .await;
}

/// What a peer wrote cannot forge lines of the log.
#[tokio::test(start_paused = true)]
async fn what_a_peer_wrote_stays_in_its_line_of_the_log() {
    let scene = Scene::begin().await;
    let mut peer = scene.peer().await;
    let forged = "x\n2024-01-01T00:00:00Z  WARN all is well\u{1b}[2J";
    let body = json!({"id": "a", "type": "X", "timestamp": forged, forged: 1});
    peer.write(&frame(&body.to_string())).await;
    peer.receive_acknowledgment().await;
    scene
        .leaves_one_line("not_an_envelope", "ipc_refusals_total", "not_an_envelope")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_goes_on_sending_what_is_no_message_is_disconnected() {
    let mut scene = Scene::begin().await;
    let mut peer = scene.peer().await;
    let id = peer.send("USER_ACTION", action("x")).await;
    peer.write(&frame("nonsense").repeat(50)).await;
    let answers = peer.receive_to_end().await;
    assert_eq!(
        answers.len(),
        1,
        "what came before is answered: {answers:?}"
    );
    assert_eq!(answers[0]["payload"]["originalMessageId"], id);
    assert_eq!(scene.end().await, DisconnectReason::TooManyMalformed);
    scene.bystander.await.unwrap();
    assert_eq!(scene.watch.counter("ipc_refusals_total", "not_json"), 4);
    assert_eq!(
        scene
            .watch
            .counter("ipc_disconnects_total", "too_many_malformed"),
        1
    );
    assert_eq!(
        scene.watch.warnings().len(),
        5,
        "{:#?}",
        scene.watch.warnings()
    );
}

/// Answered mistakes are no reason to disconnect: a new version of a peer may make many.
#[tokio::test(start_paused = true)]
async fn a_peer_whose_mistakes_can_be_answered_stays_connected() {
    let scene = Scene::begin().await;
    let mut peer = scene.peer().await;
    for number in 0..50 {
        peer.write(&frame(
            &json!({"id": format!("a{number}"), "type": 7}).to_string(),
        ))
        .await;
        let answer = peer.receive_acknowledgment().await;
        assert_eq!(answer["originalMessageId"], format!("a{number}"));
    }
    assert_eq!(
        scene.watch.counter("ipc_refusals_total", "not_an_envelope"),
        50
    );
    scene.bystander.await.unwrap();
}

// --- peers that take their time ------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_has_60_s() {
    let mut scene = Scene::lasting(Duration::from_secs(90)).await;
    let mut peer = scene.peer().await;
    assert_eq!(peer.receive_or_end().await, None);
    assert_eq!(scene.begun.elapsed().as_secs(), 60);
    assert_eq!(scene.end().await, DisconnectReason::HandshakeTimeout);
    scene
        .leaves_one_line(
            "no whole first frame",
            "ipc_disconnects_total",
            "handshake_timeout",
        )
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_first_frame_has_30_s_from_its_first_byte() {
    let mut scene = Scene::lasting(Duration::from_secs(90)).await;
    let mut peer = scene.peer().await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    peer.write(&[8]).await;
    assert_eq!(peer.receive_or_end().await, None);
    assert_eq!(scene.begun.elapsed().as_secs(), 80);
    assert_eq!(scene.end().await, DisconnectReason::HandshakeTimeout);
    scene
        .leaves_one_line(
            "no whole first frame",
            "ipc_disconnects_total",
            "handshake_timeout",
        )
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_one_byte_a_second_has_30_s_for_a_frame() {
    let mut scene = Scene::lasting(Duration::from_secs(90)).await;
    let mut peer = scene.peer().await;
    // The first frame is in time, the second is not.
    peer.send("USER_ACTION", action("x")).await;
    peer.receive_acknowledgment().await;
    let (_, frame) = peer.frame("USER_ACTION", action("x"));
    let mut written = 0;
    while peer.try_write(&frame[written..=written]).await.is_ok() {
        written += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!((30..=31).contains(&written), "{written}");
    assert_eq!(scene.end().await, DisconnectReason::FrameTimeout);
    scene
        .leaves_one_line(
            "did not arrive whole in time",
            "ipc_disconnects_total",
            "frame_timeout",
        )
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_costs_a_bounded_amount_and_ends() {
    let mut scene = Scene::lasting(Duration::from_secs(90)).await;
    let mut peer = scene.peer().await;
    let (_, message) = peer.frame("USER_ACTION", action("x"));
    let flood = async {
        let mut written = 0;
        while peer.try_write(&message).await.is_ok() {
            written += message.len();
        }
        written
    };
    let written = tokio::time::timeout(LONG_PATIENCE, flood).await.unwrap();
    // The connection, both ways; the inbox; answers up to their limit, each the size of a message.
    assert!(
        written < 2 * CAPACITY + 64 * 1024 + 2 * 256 * 1024,
        "{written}"
    );
    assert_eq!(scene.end().await, DisconnectReason::SlowReader);
    assert_eq!(scene.begun.elapsed().as_secs(), 30);
    scene
        .leaves_one_line("does not read", "ipc_disconnects_total", "slow_reader")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanishes_in_the_middle_of_a_frame_leaves_nothing() {
    for cut in [1, 3, 4, 5, 100] {
        let mut scene = Scene::begin().await;
        let mut peer = scene.peer().await;
        let (_, frame) = peer.frame("USER_ACTION", action("x"));
        peer.write(&frame[..cut]).await;
        drop(peer);
        assert_eq!(scene.end().await, DisconnectReason::TruncatedFrame);
        scene
            .leaves_one_line(
                "in the middle of a frame",
                "ipc_disconnects_total",
                "truncated_frame",
            )
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_only_connects_and_leaves_is_nobodys_fault() {
    let mut scene = Scene::begin().await;
    for _ in 0..100 {
        drop(scene.peer().await);
        assert_eq!(scene.end().await, DisconnectReason::ClosedByPeer);
    }
    scene.bystander.await.unwrap();
    assert_eq!(scene.watch.warnings(), Vec::<String>::new());
}

// --- what is odd and allowed ---------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn unknown_members_are_ignored() {
    let scene = Scene::begin().await;
    let mut peer = scene.peer().await;
    let mut message = envelope("a", "USER_ACTION", action("x"));
    message["later"] = json!({"payload": [1, {"id": "b"}], "type": null});
    message["payload"]["alsoLater"] = json!([[]]);
    peer.write(&frame(&message.to_string())).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    scene.bystander.await.unwrap();
    assert_eq!(scene.watch.warnings(), Vec::<String>::new());
}
