//! Who encrypts, who does not, and who is refused.

use std::sync::{Arc, Mutex};

use migration_ipc::crypto::{Protocol, Suite};
use migration_ipc::messages::UserAction;
use migration_ipc::transport::memory;
use migration_ipc::{
    AuditRecord, AuditSink, Capability, ConnectError, ConnectionConfig, DisconnectReason,
    Encryption, SendError, ServiceKind,
};
use serde_json::{Value, json};

use crate::common::*;
use crate::noise::{NoisePeer, hello_with};
use crate::stage::*;

fn ended(connected: Result<impl Sized, ConnectError>) -> DisconnectReason {
    match connected.map(drop) {
        Err(ConnectError::Ended(reason)) => reason,
        other => panic!("the connection ended otherwise: {other:?}"),
    }
}

/// What a demand and an offer of either side come to. A client that only offers announces itself in
/// the clear, and a service that demands encryption heeds nothing of the kind.
#[tokio::test(start_paused = true)]
async fn the_table_of_demands() {
    let ways = [
        ("none", None),
        ("offered", Some(offered())),
        ("required", Some(required())),
    ];
    let mut table = Vec::new();
    for (of_service, at_service) in &ways {
        for (of_client, at_client) in &ways {
            let (_server, connector, _) = service(|server| match at_service {
                Some(encryption) => server.encryption(encryption.clone()),
                None => server,
            })
            .await;
            let connected = connect(&connector, |client| match at_client {
                Some(encryption) => client.encryption(encryption.clone()),
                None => client,
            })
            .await;
            let outcome = match connected {
                Ok(mut client) => match client.announced().await {
                    Ok(()) if client.connection().is_encrypted() => "encrypted",
                    Ok(()) => "clear",
                    Err(SendError::Rejected(rejection)) => {
                        assert!(rejection.error.contains("demand it too"), "{rejection:?}");
                        "announcement refused"
                    }
                    Err(error) => panic!("{error}"),
                },
                Err(ConnectError::Ended(reason)) => reason.label(),
                Err(error) => panic!("{error}"),
            };
            table.push((*of_service, *of_client, outcome));
        }
    }
    let expected = [
        ("none", "none", "clear"),
        ("none", "offered", "clear"),
        ("none", "required", "not_encrypted"),
        ("offered", "none", "clear"),
        ("offered", "offered", "encrypted"),
        ("offered", "required", "encrypted"),
        ("required", "none", "refused"),
        ("required", "offered", "announcement refused"),
        ("required", "required", "encrypted"),
    ];
    assert_eq!(table, expected);
}

#[tokio::test(start_paused = true)]
async fn a_service_answers_in_the_suite_of_its_client() {
    for protocol in Protocol::ALL {
        let [of_client, of_service] = keyrings(protocol);
        let encryption = Encryption::offered(of_service).with_suite(Suite::AesGcm);
        let (_server, connector, _) = service(|server| server.encryption(encryption)).await;
        let client = connect(&connector, |client| {
            client.encryption(Encryption::required(of_client).with_suite(protocol.suite))
        })
        .await
        .unwrap();
        assert!(client.connection().is_encrypted(), "{protocol}");
    }
}

// --- refusals ------------------------------------------------------------------------------------

#[derive(Debug, Clone, Default)]
struct Notes(Arc<Mutex<Vec<AuditRecord>>>);

impl AuditSink for Notes {
    fn record(&self, record: &AuditRecord) {
        self.0.lock().unwrap().push(record.clone());
    }
}

impl Notes {
    fn refusals(&self) -> Vec<String> {
        let notes = self.0.lock().unwrap();
        notes
            .iter()
            .filter(|record| record.event.name() == "encryption_refused")
            .map(|record| {
                let account = record.subject.as_ref().map(|it| it.account.to_string());
                format!("{}: {}", account.unwrap_or_default(), record.event)
            })
            .collect()
    }
}

/// The client is told that the key is of no use, and not why; the operator is told why, and nobody the key.
#[tokio::test(start_paused = true)]
async fn a_client_without_the_right_key_is_refused_logged_and_audited() {
    let [static_client, _] = keyrings(Protocol::ALL[2]);
    let cases = [
        (keyring_of(KEY, 9), "unreadable"),
        (keyring_of("2025-01", 7), "unknown_key"),
        (static_client, "other_kind"),
    ];
    for (keyring, reason) in cases {
        let watch = Watch::begin();
        let notes = Notes::default();
        let (_server, connector, heard) =
            service(|server| server.encryption(offered()).audit(notes.clone())).await;
        let name = keyring.default_name().clone();
        let connected = connect(&connector, |client| {
            client.encryption(Encryption::offered(keyring))
        })
        .await;
        match ended(connected) {
            DisconnectReason::Refused(text) => {
                assert!(text.contains("the same key"), "{text}");
                assert!(!text.contains(reason), "{text}");
            }
            other => panic!("{other}"),
        }
        settle().await;
        assert_eq!(notes.refusals(), [format!("1000: key {name}: {reason}")]);
        let log = watch.warnings().join("\n");
        assert!(log.contains(name.as_str()) && log.contains(reason), "{log}");
        assert!(
            !log.contains(&"09".repeat(8)) && !log.contains(&"07".repeat(8)),
            "{log}"
        );
        assert_eq!(heard.all(), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn the_codes_of_refusals_are_those_of_the_protocol() {
    let (_server, connector, _) = service(|server| server.encryption(required())).await;
    let mut without = WirePeer::connect(&connector, user("1000")).await;
    let answer = without.hello("agent", 10).await;
    assert_eq!(answer["payload"]["refused"]["code"], "encryption");
    assert_eq!(without.receive_to_end().await, Vec::<Value>::new());

    let (opening, _) = keyring_of(KEY, 9).initiate(Suite::default()).unwrap();
    let wrong = |change: fn(&mut Value)| {
        let mut payload = hello_with(&opening);
        change(&mut payload);
        payload
    };
    let hellos = [
        wrong(|_| {}),
        wrong(|hello| hello["encryption"]["protocol"] = json!("Noise_NN_25519_ChaChaPoly_SHA256")),
        wrong(|hello| hello["encryption"]["message"] = json!("00")),
        wrong(|hello| hello["encryption"]["message"] = json!("x".repeat(96))),
        wrong(|hello| hello["encryption"]["key"] = json!("k".repeat(3000))),
        wrong(|hello| hello["encryption"]["key"] = Value::Null),
    ];
    for hello in hellos {
        let mut peer = WirePeer::connect(&connector, user("1000")).await;
        peer.send("HELLO", hello.clone()).await;
        let answer = peer.receive().await;
        assert_eq!(answer["payload"]["refused"]["code"], "key", "{hello}");
        assert_eq!(peer.receive_to_end().await, Vec::<Value>::new());
    }
    // What is no handshake at all is a hello that cannot be read.
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send(
        "HELLO",
        wrong(|hello| hello["encryption"] = json!({"message": 5})),
    )
    .await;
    assert_eq!(peer.receive_to_end().await, Vec::<Value>::new());
}

#[tokio::test(start_paused = true)]
async fn a_plain_client_is_told_that_encryption_is_demanded() {
    let notes = Notes::default();
    let (server, connector, heard) =
        service(|server| server.encryption(required()).audit(notes.clone())).await;
    let mut events = server.events();
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("USER_ACTION", action("in the clear")).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["success"], false);
    assert!(answer["error"].as_str().unwrap().contains("encryption"));
    assert_eq!(peer.receive_to_end().await, Vec::<Value>::new());
    drop(peer);
    let end = next_end(&mut events).await;
    assert_eq!(end.reason.label(), "not_encrypted");
    assert_eq!(notes.refusals(), ["1000: not_offered"]);
    assert_eq!(heard.all(), Vec::<String>::new());
}

/// A plain peer of a service that offers encryption sees the wire of before, and so does a new one
/// that does not ask for it.
#[tokio::test(start_paused = true)]
async fn peers_without_encryption_see_no_trace_of_it() {
    let (_server, connector, heard) = service(|server| server.encryption(offered())).await;
    let mut plain = WirePeer::connect(&connector, user("1000")).await;
    plain.send("USER_ACTION", action("plain")).await;
    let answer = plain.receive().await;
    assert_eq!(answer["type"], "ACKNOWLEDGMENT");
    assert_eq!(answer["payload"]["success"], true);
    let mut new = WirePeer::connect(&connector, user("1000")).await;
    let answer = new.hello("agent", 10).await;
    assert_eq!(
        answer["payload"],
        json!({"protocol": {"min": 1, "max": 1}, "role": "agent", "credit": 1024,
               "capabilities": ["inReplyTo", "credit", "errorCodes", "goodbye"]})
    );
    new.send("USER_ACTION", action("new")).await;
    assert_eq!(new.receive_acknowledgment().await["success"], true);
    assert_eq!(heard.all(), ["plain", "new"]);
}

// --- clients of other services -------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_client_that_offers_announces_itself_at_once_and_one_that_demands_does_not() {
    for (encryption, announced) in [(offered(), true), (required(), false)] {
        let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
        let connecting = agent(&Heard::default()).encryption(encryption);
        let connecting = tokio::spawn(connecting.connect_over(at_client));
        let mut peer = NoisePeer::over(at_service);
        let hellos = peer.agree_as_service(&keyring(), |_| {}).await;
        peer.send("ENCRYPTION_CONFIRM", hellos.confirm()).await;
        let in_the_clear = peer.take_marker().await;
        assert_eq!(in_the_clear.len(), usize::from(announced));
        let confirm = peer.receive().await;
        assert_eq!(confirm["type"], "ENCRYPTION_CONFIRM");
        assert_eq!(confirm["payload"], hellos.confirm());
        if !announced {
            assert_eq!(peer.receive().await["type"], "AGENT_STARTED");
        }
        let client = within(connecting).await.unwrap().unwrap();
        assert!(client.connection().is_encrypted());
    }
}

/// Whatever a service without encryption does, a client that demands it says nothing but its hello.
#[tokio::test(start_paused = true)]
async fn a_client_that_demands_encryption_falls_back_for_nobody() {
    for kind in ["plain", "silent", "new", "talkative"] {
        let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
        let connecting = agent(&Heard::default()).encryption(required());
        let connecting = tokio::spawn(connecting.connect_over(at_client));
        let mut peer = WirePeer::over(at_service);
        let hello = peer.receive().await;
        match kind {
            "plain" => peer.acknowledge(&hello).await,
            "new" => peer.answer_hello(&hello, 100).await,
            "talkative" => drop(peer.send("HEARTBEAT", heartbeat(1)).await),
            _ => {}
        }
        let reason = ended(within(connecting).await.unwrap());
        assert!(
            matches!(&reason, DisconnectReason::NotEncrypted(text) if text.contains("demands")),
            "{kind}: {reason}"
        );
        assert_eq!(peer.receive_to_end().await, Vec::<Value>::new(), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_offer_is_no_hindrance_with_services_that_have_none() {
    for kind in ["plain", "silent", "new"] {
        let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
        let connecting = agent(&Heard::default()).encryption(offered());
        let connecting = tokio::spawn(connecting.connect_over(at_client));
        let mut peer = WirePeer::over(at_service);
        let hello = peer.receive().await;
        assert_eq!(peer.receive().await["type"], "AGENT_STARTED");
        match kind {
            "plain" => peer.acknowledge(&hello).await,
            "new" => peer.answer_hello(&hello, 100).await,
            _ => {}
        }
        let client = within(connecting).await.unwrap().unwrap();
        assert!(!client.connection().is_encrypted());
        client.send(UserAction::new("", "x")).await.unwrap();
        assert_eq!(peer.receive().await["type"], "USER_ACTION", "{kind}");
    }
}

/// A slow service that was taken for a plain one turns out to encrypt.
#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_late_encrypts_what_follows() {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let connecting = agent(&Heard::default()).encryption(offered());
    let connecting = tokio::spawn(connecting.connect_over(at_client));
    let client = within(connecting).await.unwrap().unwrap();
    assert_eq!(client.service_kind(), ServiceKind::Plain);
    client.send(UserAction::new("", "clear")).await.unwrap();
    let mut peer = NoisePeer::over(at_service);
    let hellos = peer.agree_as_service(&keyring(), |_| {}).await;
    peer.send("ENCRYPTION_CONFIRM", hellos.confirm()).await;
    let types: Vec<Value> = peer
        .take_marker()
        .await
        .iter()
        .map(|message| message["type"].clone())
        .collect();
    assert_eq!(types, ["AGENT_STARTED", "USER_ACTION"]);
    assert_eq!(peer.receive().await["type"], "ENCRYPTION_CONFIRM");
    eventually("encrypted", || client.connection().is_encrypted()).await;
    client.send(UserAction::new("", "sealed")).await.unwrap();
    assert_eq!(
        peer.receive_type("USER_ACTION").await["payload"]["action"],
        "sealed"
    );
}

// --- configurations ------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_demand_that_cannot_be_met_is_a_mistake_of_the_program() {
    let (_server, connector, _) = service(|server| server.encryption(offered())).await;
    let mut without = ConnectionConfig::default();
    without.capabilities = without.capabilities.without(Capability::Encryption);
    let leaves_out = connect(&connector, |client| {
        client.encryption(required()).connection_config(without)
    });
    assert!(matches!(leaves_out.await, Err(ConnectError::Config(_))));
    let says_nothing = connect(&connector, |client| {
        client.encryption(required()).without_hello()
    });
    assert!(matches!(says_nothing.await, Err(ConnectError::Config(_))));
    let sensitive_announcement = connect(&connector, |client| {
        let client = client.encryption(offered()).connection_config(guarded());
        client.announce(&unlock("announcement"))
    });
    assert!(matches!(
        sensitive_announcement.await,
        Err(ConnectError::Config(_))
    ));
    // Left out, an offer is none.
    let client = connect(&connector, |client| {
        client.encryption(offered()).connection_config(without)
    });
    assert!(!client.await.unwrap().connection().is_encrypted());
}
