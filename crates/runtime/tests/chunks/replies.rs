//! Replies that are longer than a frame.

use std::time::Duration;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::transport::Listener;
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    AccountLimits, Capability, CapabilitySet, ConnectionConfig, DispatcherBuilder, HandlerError,
    IpcClient, IpcServer, Items, MessageDispatcher, MessagePayload, Reply, Request, RequestError,
    SendError, Sender, ServerLimits, State, StreamingRequest,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::stage::*;
use crate::common::*;

/// Asks for a list of this length.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Fetch {
    bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct List {
    text: String,
}

/// The same, with items before.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Stream {
    bytes: usize,
}

impl MessagePayload for Fetch {
    const TYPE: &'static str = "FETCH";
    const SENDER: Sender = Sender::Any;
}

impl MessagePayload for Stream {
    const TYPE: &'static str = "STREAM";
    const SENDER: Sender = Sender::Any;
}

impl MessagePayload for List {
    const TYPE: &'static str = "LIST";
    const SENDER: Sender = Sender::Any;
}

impl Request for Fetch {
    type Reply = List;
}

impl StreamingRequest for Stream {
    type Item = List;
    type Reply = List;
}

fn list(bytes: usize) -> List {
    List {
        text: long_text(bytes),
    }
}

async fn on_fetch(fetch: Fetch) -> Reply<List> {
    Reply(list(fetch.bytes))
}

async fn on_stream(stream: Stream, mut items: Items<List>) -> Result<Reply<List>, HandlerError> {
    items.send(list(10)).await?;
    Ok(Reply(list(stream.bytes)))
}

async fn on_action(action: UserAction, State(seen): State<Seen>) {
    seen.push(action.action);
}

/// Handlers that answer with lists, one after the other, and note the actions between them.
fn lists(seen: &Seen) -> DispatcherBuilder<Seen> {
    MessageDispatcher::builder(seen.clone())
        .handle(|_: AgentStarted| async {})
        .handle(on_action)
        .handle(on_stream)
}

async fn lists_service() -> (IpcServer, MemoryConnector, Seen) {
    let seen = Seen::default();
    let (server, connector) = serve(lists(&seen).handle(on_fetch).build().unwrap()).await;
    (server, connector, seen)
}

/// A peer that speaks bytes, may ask, and takes replies in chunks.
async fn asker(connector: &MemoryConnector) -> WirePeer {
    let mut hello = chunk_hello(16 * MIB as u64);
    let capabilities = hello["capabilities"].as_array_mut().unwrap();
    capabilities.extend(["requests".into(), "batch".into()]);
    let mut peer = WirePeer::connect(connector, user("1000")).await;
    peer.send("HELLO", hello).await;
    assert_eq!(peer.receive().await["type"], "HELLO");
    peer
}

/// Asks for a list under the id `long`, and takes it but for its end, which is more than the pipe holds:
/// the rest is in the lane or the pipe, and nobody reads it. Gives what came, and how long all of it is.
async fn with_the_end_on_its_way(connector: &MemoryConnector) -> (WirePeer, String, usize) {
    let mut peer = asker(connector).await;
    ask(&mut peer, "long", json!({"bytes": MIB + 100 * 1024}), 5_000).await;
    let begin = peer.receive_type("CHUNKS_BEGIN").await["payload"].take();
    let size = usize::try_from(begin["bytes"].as_u64().unwrap()).unwrap();
    let mut body = String::new();
    peer.take(1, 0, MIB).await;
    peer.receive_pieces(MIB, &mut body).await;
    peer.take(1, 0, size).await;
    settle().await;
    (peer, body, size)
}

/// Sends a request with this deadline.
async fn ask(peer: &mut WirePeer, id: &str, payload: Value, deadline: u64) {
    let mut request = envelope(id, "FETCH", payload);
    request["deadline"] = deadline.into();
    peer.write(&frame(&request.to_string())).await;
}

/// Takes the whole body of this transfer; whatever else comes is returned.
async fn take_all(peer: &mut WirePeer, begin: &Value) -> (Value, Vec<Value>) {
    let transfer = u32::try_from(begin["transfer"].as_u64().unwrap()).unwrap();
    let size = usize::try_from(begin["bytes"].as_u64().unwrap()).unwrap();
    peer.take(transfer, 0, size).await;
    let mut body = String::new();
    let others = peer.receive_pieces(size, &mut body).await;
    assert_eq!(begin["sha256"], digest(body.as_bytes()));
    (serde_json::from_str(&body).unwrap(), others)
}

#[tokio::test(start_paused = true)]
async fn either_side_is_answered_with_what_does_not_fit_a_frame() {
    let (server, connector, seen) = lists_service().await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = IpcClient::builder(lists(&seen).handle(on_fetch).build().unwrap())
        .announce(&AgentStarted::new("", "1.0.0", "1"))
        .connect_over(stream)
        .await
        .unwrap();
    let agent = only_connection(&server).await;
    for asker in [client.connection(), &agent] {
        // One byte over a frame, and much.
        for bytes in [10, MIB - 200, MIB, 5 * MIB, 15 * MIB] {
            let answer = within(asker.request(Fetch { bytes }).into_future())
                .await
                .unwrap();
            assert!(answer == list(bytes), "{bytes} bytes are others");
        }
    }
    // Many at once, in both directions.
    let many = |asker: &migration_ipc::IpcConnection| {
        let asker = asker.clone();
        futures_util::future::join_all((1..=12).map(move |half| {
            asker
                .request(Fetch {
                    bytes: half * MIB / 2,
                })
                .into_future()
        }))
    };
    let (ours, theirs) =
        within(async { tokio::join!(many(client.connection()), many(&agent)) }).await;
    for (answer, half) in ours.into_iter().chain(theirs).zip((1..=12).cycle()) {
        assert!(answer.unwrap() == list(half * MIB / 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_in_pieces_says_what_it_answers_and_what_is_said_meanwhile_passes_it() {
    let (_server, connector, seen) = lists_service().await;
    let mut peer = asker(&connector).await;
    let id = peer.send("FETCH", json!({"bytes": 3 * MIB})).await;
    let begin = peer.receive_type("CHUNKS_BEGIN").await["payload"].take();
    peer.take(1, 0, MIB).await;
    let mut first = String::new();
    peer.receive_pieces(MIB, &mut first).await;

    let behind = peer.send("USER_ACTION", action("behind")).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["originalMessageId"], behind);
    assert_eq!(seen.take(), ["behind"]);

    let size = usize::try_from(begin["bytes"].as_u64().unwrap()).unwrap();
    peer.take(1, 0, size).await;
    let others = peer.receive_pieces(size, &mut first).await;
    assert_eq!(others, Vec::<Value>::new());
    let reply: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(
        (&reply["type"], &reply["inReplyTo"]),
        (&"LIST".into(), &id.into())
    );
    assert_eq!(reply["payload"]["text"], long_text(3 * MIB));
    // It is the one answer.
    assert!(peer.is_silent_for(Duration::from_secs(20)).await);
}

#[tokio::test(start_paused = true)]
async fn handlers_go_on_beside_long_replies() {
    let (_server, connector, seen) = lists_service().await;
    let mut peer = asker(&connector).await;
    for bytes in [2 * MIB, 3 * MIB] {
        peer.send("FETCH", json!({"bytes": bytes})).await;
    }
    let beside = peer.send("USER_ACTION", action("beside")).await;
    let (mut begun, mut answers) = (Vec::new(), Vec::new());
    while begun.len() < 2 || answers.is_empty() {
        let mut message = peer.receive().await;
        match message["type"].as_str().unwrap() {
            "CHUNKS_BEGIN" => begun.push(message["payload"].take()),
            _ => answers.push(message["payload"]["originalMessageId"].take()),
        }
    }
    assert_eq!((answers, seen.len()), (vec![beside.into()], 1));
    for (begin, bytes) in begun.iter().zip([2 * MIB, 3 * MIB]).rev() {
        let (reply, _) = take_all(&mut peer, begin).await;
        assert_eq!(reply["payload"]["text"], long_text(bytes));
    }
}

/// What the peer says of the replies that it takes comes behind whatever it has sent before: if that
/// were not read and handled meanwhile, no long reply would come to its end.
#[tokio::test(start_paused = true)]
async fn long_replies_go_on_while_more_than_an_inbox_arrives() {
    let (_server, connector, seen) = lists_service().await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    // One, and so much that nothing further would be begun beside it.
    for bytes in [&[3 * MIB][..], &[8 * MIB, 8 * MIB]] {
        let fetching = bytes.iter().map(|bytes| {
            let fetch = Fetch { bytes: *bytes };
            client.request(fetch).into_future()
        });
        let fetching = futures_util::future::join_all(fetching);
        let reporting = async {
            for _ in 0..30 {
                let action = UserAction::new("", long_text(MIB - 1000));
                client.send(action).await.unwrap();
            }
        };
        let (replies, ()) = within(async { tokio::join!(fetching, reporting) }).await;
        for (reply, bytes) in replies.into_iter().zip(bytes) {
            assert!(reply.unwrap() == list(*bytes));
        }
        eventually("all is handled", || seen.len() == 30).await;
        seen.take();
    }
}

/// What an account may hold in memory is no reason not to read what it takes of its replies. What is on
/// its way to all of its connections has a bound of its own.
#[tokio::test(start_paused = true)]
async fn long_replies_of_one_account_have_a_bound_and_wait_for_no_memory() {
    let seen = Seen::default();
    let account = AccountLimits {
        memory: 16 * MIB,
        ..AccountLimits::default()
    };
    let dispatcher = lists(&seen).handle(on_fetch).build().unwrap();
    let (_server, connector) = serve_with(dispatcher, |server| {
        server.limits(ServerLimits {
            account,
            ..ServerLimits::default()
        })
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let stream = connector.connect(user("1000")).await.unwrap();
        clients.push(client().connect_over(stream).await.unwrap());
    }
    for client in &clients {
        let fetch = Fetch { bytes: 7 * MIB };
        let reply = within(client.request(fetch).into_future()).await;
        assert!(reply.unwrap() == list(7 * MIB));
    }
    let over = Fetch { bytes: 9 * MIB };
    let error = within(clients[0].request(over).into_future()).await;
    let text = error.unwrap_err().to_string();
    assert!(text.contains("over the limit of 8388608"), "{text}");

    // One that takes nothing has all of it, and the others of the account have none.
    let mut idle = asker(&connector).await;
    idle.send("FETCH", json!({"bytes": 7 * MIB})).await;
    idle.receive_type("CHUNKS_BEGIN").await;
    let fetch = Fetch { bytes: 3 * MIB };
    let error = within(clients[0].request(fetch).into_future()).await;
    let text = error.unwrap_err().to_string();
    assert!(text.contains("too much is on its way already"), "{text}");
    drop(idle);
    let again = async {
        while clients[0].request(fetch).await.is_err() {
            settle().await;
        }
    };
    within(again).await;
}

/// Who says goodbye while the last piece is on its way has the reply, and no failure.
#[tokio::test(start_paused = true)]
async fn who_leaves_when_its_reply_is_on_the_way_is_answered_once() {
    let (_server, connector, _) = lists_service().await;
    let (mut peer, mut body, size) = with_the_end_on_its_way(&connector).await;
    peer.send("GOODBYE", json!({"reason": "done"})).await;
    settle().await;
    assert_eq!(
        peer.receive_pieces(size, &mut body).await,
        Vec::<Value>::new()
    );
    assert_eq!(peer.receive_to_end().await, Vec::<Value>::new());
}

/// So much of them, and no more, is kept for a peer that asks and takes nothing.
#[tokio::test(start_paused = true)]
async fn while_much_is_on_its_way_nothing_further_is_handled() {
    let (_server, connector, seen) = lists_service().await;
    let mut peer = asker(&connector).await;
    let limit = ConnectionConfig::default().limits.chunked_bytes;
    for _ in 0..20 {
        peer.send("FETCH", json!({"bytes": limit / 4})).await;
    }
    peer.send("USER_ACTION", action("behind")).await;
    let mut begun = 0;
    let quiet = Duration::from_millis(100);
    while let Ok(message) = tokio::time::timeout(quiet, peer.receive()).await {
        begun += usize::from(message["type"] == "CHUNKS_BEGIN");
    }
    assert_eq!((begun, seen.len()), (4, 0));

    // They are given up, and the next ones have their turn.
    let mut failed = 0;
    loop {
        let message = peer.receive().await;
        match message["payload"]["success"].as_bool() {
            Some(false) => failed += 1,
            Some(true) => break,
            None if message["type"] == "HEARTBEAT" => {
                peer.send("HEARTBEAT", heartbeat(1)).await;
            }
            None => {}
        }
    }
    assert!((16..=20).contains(&failed), "{failed}");
    assert_eq!(seen.take(), ["behind"]);
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_in_chunks_is_told_that_the_reply_is_too_long() {
    let (_server, connector, seen) = lists_service().await;
    let without = CapabilitySet::all().without(Capability::Chunks);
    let limits = migration_ipc::ConnectionLimits {
        chunked_bytes: 2 * MIB,
        ..Default::default()
    };
    let (narrow, narrow_connector) =
        serve_with(lists(&seen).handle(on_fetch).build().unwrap(), |server| {
            server.connection_config(ConnectionConfig {
                limits,
                ..Default::default()
            })
        })
        .await;
    let unable = ConnectionConfig {
        capabilities: without,
        ..Default::default()
    };
    let modest = ConnectionConfig {
        limits,
        ..Default::default()
    };
    // As much as the asker takes, and no more than who is asked would take itself.
    let usual = ConnectionConfig::default();
    for (connector, config, limit) in [
        (&connector, unable, MIB),
        (&connector, modest, 2 * MIB),
        (&narrow_connector, usual, 2 * MIB),
    ] {
        let stream = connector.connect(user("1000")).await.unwrap();
        let client = client()
            .connection_config(config)
            .connect_over(stream)
            .await
            .unwrap();
        let fits = within(client.request(Fetch { bytes: limit - 200 }).into_future()).await;
        assert!(fits.is_ok());
        let error = within(client.request(Fetch { bytes: 3 * MIB }).into_future())
            .await
            .unwrap_err();
        let RequestError::Rejected(rejection) = error else {
            panic!("{error}");
        };
        let told = format!("over the limit of {limit}");
        assert!(rejection.error.contains(&told), "{}", rejection.error);
        within(client.send_acknowledged(UserAction::new("", "next")))
            .await
            .unwrap();
    }
    assert_eq!(seen.take(), ["next", "next", "next"]);
    drop(narrow);
}

/// What comes of a request whose reply is begun, and on every message of whose transfer the peer does
/// this, and after how long.
async fn failing(on: impl AsyncFn(&mut WirePeer, u32, &str)) -> (Value, Duration) {
    let (_server, connector, seen) = lists_service().await;
    let mut peer = asker(&connector).await;
    let id = peer.send("FETCH", json!({"bytes": 3 * MIB})).await;
    let began = tokio::time::Instant::now();
    let mut answer = loop {
        let message = peer.receive().await;
        let message_type = message["type"].as_str().unwrap();
        match message_type {
            "CHUNKS_BEGIN" | "piece" => {
                let transfer = match message_type {
                    "piece" => &message["transfer"],
                    _ => &message["payload"]["transfer"],
                };
                let transfer = u32::try_from(transfer.as_u64().unwrap()).unwrap();
                on(&mut peer, transfer, message_type).await;
            }
            "HEARTBEAT" | "CHUNKS_END" => {}
            _ => break message,
        }
    };
    let took = began.elapsed();
    assert_eq!(answer["payload"]["originalMessageId"], id);
    assert_eq!(answer["payload"]["success"], false);
    assert_eq!(answer["payload"]["code"], "handler_failed");
    let error = answer["payload"]["error"].take();
    assert!(
        error
            .as_str()
            .unwrap()
            .starts_with("handled, but the reply was not sent: "),
        "{error}"
    );
    peer.send("USER_ACTION", action("next")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    assert_eq!(seen.take(), ["next"]);
    (error, took)
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_is_not_taken_is_a_failure_of_its_request() {
    let (_, took) = failing(async |peer, transfer, _| peer.end(transfer, "too_large").await).await;
    assert_eq!(took, Duration::ZERO);
    let (_, took) = failing(async |peer, transfer, _| peer.end(transfer, "busy").await).await;
    assert!((60..66).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_stalls_is_a_failure_of_its_request() {
    let (_, took) = failing(async |_, _, _| {}).await;
    assert_eq!(took.as_secs(), 60);
    // Little by little is no better than not at all.
    let taken = std::sync::atomic::AtomicUsize::new(0);
    let drip = async |peer: &mut WirePeer, transfer, _: &str| {
        tokio::time::sleep(Duration::from_secs(9)).await;
        let to = taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        peer.take(transfer, 0, to).await;
    };
    let (_, took) = failing(drip).await;
    assert!((60..80).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_gets_no_more_of_its_reply() {
    for cancels in [true, false] {
        let (_server, connector, _) = lists_service().await;
        let mut peer = asker(&connector).await;
        ask(&mut peer, "long", json!({"bytes": 3 * MIB}), 5_000).await;
        peer.receive_type("CHUNKS_BEGIN").await;
        peer.take(1, 0, MIB).await;
        peer.receive_pieces(MIB, &mut String::new()).await;
        assert!(peer.is_silent_for(Duration::from_secs(3)).await);
        if cancels {
            peer.send("CANCEL", json!({"requestId": "long"})).await;
        }
        let end = peer.receive_of_transfer().await;
        assert_eq!(end["type"], "CHUNKS_END");
        assert_eq!(end["payload"]["code"], "abandoned");
        let answer = peer.receive_acknowledgment().await;
        assert_eq!(answer["originalMessageId"], "long");
        assert_eq!(answer["success"], false);
        assert!(peer.is_silent_for(Duration::from_secs(20)).await);
    }
}

/// Once all of a reply is on its way, it is the answer, and there is no second one.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_when_its_reply_is_on_the_way_is_answered_once() {
    let (_server, connector, _) = lists_service().await;
    let (mut peer, mut body, size) = with_the_end_on_its_way(&connector).await;
    peer.send("CANCEL", json!({"requestId": "long"})).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(
        peer.receive_pieces(size, &mut body).await,
        Vec::<Value>::new()
    );
    let reply: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(reply["inReplyTo"], "long");
    assert!(peer.is_silent_for(Duration::from_secs(15)).await);
}

/// Whoever is told of a reply has it.
#[tokio::test(start_paused = true)]
async fn a_batch_is_answered_behind_its_long_replies() {
    let (_server, connector, _) = lists_service().await;
    let mut peer = asker(&connector).await;
    let fetch = |id: &str| envelope(id, "FETCH", json!({"bytes": 2 * MIB}));
    let messages = [
        fetch("one"),
        envelope("two", "USER_ACTION", action("x")),
        fetch("three"),
    ];
    peer.send("BATCH", json!({"messages": messages})).await;
    let mut begun = Vec::new();
    for _ in 0..2 {
        begun.push(peer.receive_type("CHUNKS_BEGIN").await["payload"].take());
    }
    let mut replied = Vec::new();
    for begin in &begun {
        let (mut reply, others) = take_all(&mut peer, begin).await;
        assert_eq!(others, Vec::<Value>::new(), "not before all is told");
        replied.push(reply["inReplyTo"].take());
    }
    replied.sort_by_key(Value::to_string);
    assert_eq!(replied, ["one", "three"]);
    let outcomes = peer.receive_type("BATCH_OUTCOMES").await["payload"]["outcomes"].take();
    let expected = json!([{"success": true, "replied": true}, {"success": true},
                          {"success": true, "replied": true}]);
    assert_eq!(outcomes, expected);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_stops_sends_a_long_reply_to_its_end() {
    let (server, connector, _) = lists_service().await;
    let mut peer = asker(&connector).await;
    peer.send("FETCH", json!({"bytes": 3 * MIB})).await;
    let begin = peer.receive_type("CHUNKS_BEGIN").await["payload"].take();
    let stopping = tokio::spawn(async move { server.stop(Duration::from_secs(20)).await });
    settle().await;
    let (reply, _) = take_all(&mut peer, &begin).await;
    assert_eq!(reply["payload"]["text"], long_text(3 * MIB));
    peer.receive_type("GOODBYE").await;
    drop(peer);
    within(stopping).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_ends_a_long_reply_and_tells_who_asked() {
    // Who answers is there no more.
    let (mut listener, connector) = listen();
    let stream = connector.connect(user("1000")).await.unwrap();
    let connecting = tokio::spawn(client().connect_over(stream));
    let mut service = WirePeer::over_boxed(listener.accept().await.unwrap());
    let hello = service.receive().await;
    service
        .reply(&hello, "HELLO", chunk_hello(16 * MIB as u64))
        .await;
    let client = connecting.await.unwrap().unwrap();
    let asking = tokio::spawn(client.request(Fetch { bytes: MIB }).into_future());
    let request = service.receive_type("FETCH").await;
    let mut reply = envelope("r", "LIST", json!({"text": long_text(2 * MIB)}));
    reply["inReplyTo"] = request["id"].clone();
    let reply = reply.to_string().into_bytes();
    service.begin(1, &reply).await;
    service.send_pieces(1, &reply, (0, MIB / 8), MIB / 4).await;
    drop(service);
    let error = within(asking).await.unwrap().unwrap_err();
    assert!(
        matches!(error, RequestError::Unknown(SendError::Lost(_))),
        "{error:?}"
    );

    // Who asked is there no more.
    let (server, connector, _) = lists_service().await;
    let mut peer = asker(&connector).await;
    peer.send("FETCH", json!({"bytes": 3 * MIB})).await;
    peer.receive_type("CHUNKS_BEGIN").await;
    drop(peer);
    eventually("nothing is left", || server.connections().all().is_empty()).await;
}

/// It goes behind the items, which pieces would not. What is long belongs into the items.
#[tokio::test(start_paused = true)]
async fn the_last_reply_of_a_stream_has_to_fit_a_frame() {
    let (_server, connector, _) = lists_service().await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    for (bytes, is_taken) in [(MIB - 200, true), (2 * MIB, false)] {
        let mut stream = within(client.request_stream(Stream { bytes }).into_future())
            .await
            .unwrap();
        assert_eq!(within(stream.next()).await.unwrap().unwrap(), list(10));
        assert!(within(stream.next()).await.is_none());
        let end = within(stream.finish()).await;
        assert_eq!(end.is_ok(), is_taken, "{bytes} bytes");
    }
}
