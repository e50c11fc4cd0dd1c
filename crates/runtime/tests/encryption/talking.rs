//! What two ends say to each other arrives, whatever they encrypt with and however it is cut.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::crypto::{Protocol, REKEY_AFTER};
use migration_ipc::messages::{ConfigurationUpdate, UserAction};
use migration_ipc::transport::memory;
use migration_ipc::{
    Answer, Capability, ConnectionLimits, Encryption, IpcServer, MessageDispatcher, Role,
    ServiceKind, State,
};
use migration_ipc_testkit::faults::{FaultKind, FaultPlan, Seed, SimNetwork};
use serde_json::json;

use crate::common::*;
use crate::noise::NoisePeer;
use crate::stage::*;

#[tokio::test(start_paused = true)]
async fn both_ends_talk_with_every_protocol_and_nothing_of_it_is_on_the_wire() {
    for protocol in Protocol::ALL {
        let [of_client, of_service] = keyrings(protocol);
        let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
        let (listener, hand_over) = handed();
        let at_service_heard = Heard::default();
        let server = IpcServer::builder(service_of(&at_service_heard))
            .listener(listener)
            .encryption(Encryption::required(of_service))
            .start()
            .await
            .unwrap();
        hand_over.send(Box::new(at_service)).await.unwrap();

        let (tape, heard) = (Tape::default(), Heard::default());
        let encryption = Encryption::required(of_client).with_suite(protocol.suite);
        let mut client = agent(&heard)
            .encryption(encryption)
            .connect_over(tape.tap(at_client))
            .await
            .unwrap();
        client.announced().await.unwrap();
        assert!(client.connection().is_encrypted(), "{protocol}");
        assert!(
            matches!(client.service_kind(), ServiceKind::New(both) if both.contains(Capability::Encryption))
        );

        client.send_acknowledged(unlock("mail")).await.unwrap();
        let ask = UserAction::new("", "ask").with_detail("why", SECRET);
        match client.send_acknowledged(ask).await.unwrap() {
            Answer::Replied(reply) => {
                let update: ConfigurationUpdate = reply.payload().unwrap();
                assert_eq!(update.value, json!(SECRET));
            }
            Answer::Handled => panic!("it replies"),
        }
        let connection = only_connection(&server).await;
        assert!(connection.is_encrypted());
        connection.send_acknowledged(unlock("down")).await.unwrap();
        assert_eq!(at_service_heard.all(), ["mail", "ask"]);
        assert_eq!(heard.all(), ["down"]);

        assert!(
            tape.has("HELLO") && tape.has(protocol.as_str()),
            "the hello is in the clear"
        );
        for hidden in [
            SECRET,
            "UNLOCK",
            "USER_ACTION",
            "AGENT_STARTED",
            "ACKNOWLEDGMENT",
        ] {
            assert!(!tape.has(hidden), "{hidden} with {protocol}");
        }
        client.disconnect().await;
        let report = within(server.stop(PATIENCE)).await;
        assert_eq!((report.unsent_messages, report.unhandled_messages), (0, 0));
    }
}

/// A service and an agent over a network that cuts bytes anywhere, and delivers them late.
#[tokio::test(start_paused = true)]
async fn what_was_sent_arrives_once_and_in_order_however_the_records_are_cut() {
    for seed in 0..20 {
        let plan = FaultPlan::calm()
            .with(FaultKind::Split, 0.9)
            .with(FaultKind::Delay, 0.2);
        let network = SimNetwork::new(Seed::new(seed), plan);
        let (at_service, at_agent) = (network.host(administrator()), network.host(user("1000")));
        let heard = Heard::default();
        let server = IpcServer::builder(service_of(&heard))
            .listener(at_service.listen())
            .encryption(offered())
            .start()
            .await
            .unwrap();
        let stream = at_agent.connect(Duration::from_secs(1)).await.unwrap();
        let at_agent_heard = Heard::default();
        let client = agent(&at_agent_heard)
            .encryption(if seed % 2 == 0 { required() } else { offered() })
            .connect_over(stream)
            .await
            .unwrap();
        assert!(client.connection().is_encrypted(), "seed {seed}");
        let connection = only_connection(&server).await;
        let numbers = 0..40;
        let expected: Vec<String> = numbers.clone().map(|number| number.to_string()).collect();
        for number in numbers {
            let padding = "x".repeat(number * 97 % 3000);
            let action = UserAction::new("", number.to_string()).with_detail("padding", padding);
            client.send(action).await.unwrap();
            let update = ConfigurationUpdate::new(number.to_string(), json!("y"));
            connection.send(update).await.unwrap();
        }
        let arriving = async {
            while heard.all() != expected || at_agent_heard.all() != expected {
                settle().await;
            }
        };
        let arrived = tokio::time::timeout(LONG_PATIENCE, arriving).await;
        assert!(
            arrived.is_ok(),
            "seed {seed}: {:?} and {:?}, {}",
            heard.all(),
            at_agent_heard.all(),
            network.counts(),
        );
        assert!(network.counts().of(FaultKind::Split) > 0);
        client.disconnect().await;
        within(server.stop(PATIENCE)).await;
    }
}

/// A message of the greatest length takes many records, and a full lane many writes.
#[tokio::test(start_paused = true)]
async fn messages_of_every_length_pass() {
    let (server, connector, heard) = service(|server| server.encryption(offered())).await;
    let client = connect(&connector, |client| client.encryption(offered()))
        .await
        .unwrap();
    for length in [0, 65_000, 65_519, 65_520, 131_100, 1_000_000] {
        let action =
            UserAction::new("", length.to_string()).with_detail("padding", "x".repeat(length));
        client.send_acknowledged(action).await.unwrap();
    }
    assert_eq!(heard.all().len(), 6);
    drop(client);
    within(server.stop(PATIENCE)).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_goes_on_over_a_change_of_keys() {
    let (_server, connector, heard) = service(|server| {
        let mut config = guarded();
        config.limits = ConnectionLimits::default();
        server.encryption(required()).connection_config(config)
    })
    .await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let mut peer = NoisePeer::as_client(stream, &keyring()).await;
    // Heartbeats are not answered and take no handler: a record each, from the confirmation on.
    for number in 1..REKEY_AFTER + 10 {
        peer.send("HEARTBEAT", heartbeat(number)).await;
    }
    peer.send("USER_ACTION", action("behind the boundary"))
        .await;
    let answer = peer.receive_type("ACKNOWLEDGMENT").await;
    assert_eq!(answer["payload"]["success"], true);
    assert_eq!(heard.all(), ["behind the boundary"]);
}

/// The marker, the confirmation and a message in one write, behind a message in the clear.
#[tokio::test(start_paused = true)]
async fn layers_change_in_the_middle_of_a_write() {
    let (_server, connector, heard) = service(|server| server.encryption(offered())).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let mut peer = NoisePeer::over(stream);
    let hellos = peer.agree_as_client(&keyring(), SUITES[0]).await;
    let mut bytes = peer.message("USER_ACTION", action("in the clear"));
    bytes.extend(peer.message("ENCRYPTED", json!({})));
    peer.seal_from_here();
    bytes.extend(peer.message("ENCRYPTION_CONFIRM", hellos.confirm()));
    bytes.extend(peer.message("USER_ACTION", action("sealed")));
    peer.write(&bytes).await;
    for _ in 0..2 {
        peer.receive_type("ACKNOWLEDGMENT").await;
    }
    assert_eq!(heard.all(), ["in the clear", "sealed"]);
}

/// The same when the service does not read at that moment: its inbox is full.
#[tokio::test(start_paused = true)]
async fn layers_change_behind_messages_that_are_kept_back() {
    let (gate, heard) = (Gate::closed(), Arc::new(Mutex::new(Vec::new())));
    let at_handler = (gate.clone(), Arc::clone(&heard));
    let dispatcher =
        MessageDispatcher::builder(at_handler)
            .handle(
                |action: UserAction,
                 State((gate, heard)): State<(Gate, Arc<Mutex<Vec<String>>>)>| async move {
                    gate.pass().await;
                    heard.lock().unwrap().push(action.action);
                },
            )
            .build()
            .unwrap();
    let (_server, connector) = serve_with(dispatcher, |server| {
        let mut config = guarded();
        config.limits.inbox_messages = 1;
        server.encryption(offered()).connection_config(config)
    })
    .await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let mut peer = NoisePeer::over(stream);
    let hellos = peer.agree_as_client(&keyring(), SUITES[1]).await;
    let mut bytes = Vec::new();
    for _ in 0..5 {
        bytes.extend(peer.message("USER_ACTION", action("clear")));
    }
    bytes.extend(peer.message("ENCRYPTED", json!({})));
    peer.seal_from_here();
    bytes.extend(peer.message("ENCRYPTION_CONFIRM", hellos.confirm()));
    for _ in 0..5 {
        bytes.extend(peer.message("USER_ACTION", action("sealed")));
    }
    peer.write(&bytes).await;
    settle().await;
    assert_eq!(gate.waiting(), 1);
    gate.open();
    for _ in 0..10 {
        peer.receive_type("ACKNOWLEDGMENT").await;
    }
    assert_eq!(
        *heard.lock().unwrap(),
        [["clear"; 5], ["sealed"; 5]].concat()
    );
}

/// A frame that does not end has a time limit, and so has a record.
#[tokio::test(start_paused = true)]
async fn a_record_that_does_not_end_is_not_waited_for_for_ever() {
    let (server, connector, _) = service(|server| server.encryption(required())).await;
    let mut events = server.events();
    let stream = connector.connect(user("1000")).await.unwrap();
    let mut peer = NoisePeer::as_client(stream, &keyring()).await;
    let bytes = peer.message("USER_ACTION", action("x"));
    peer.write(&bytes[..bytes.len() - 1]).await;
    let end = next_end(&mut events).await;
    assert_eq!(end.reason.label(), "frame_timeout");
}

#[tokio::test(start_paused = true)]
async fn operators_and_agents_without_an_announcement_encrypt_too() {
    let (server, connector, _) = service(|server| server.encryption(required())).await;
    let stream = connector.connect(administrator()).await.unwrap();
    let operator = client()
        .role(Role::Operator)
        .encryption(required())
        .connect_over(stream)
        .await
        .unwrap();
    assert!(operator.connection().is_encrypted());
    let connection = only_connection(&server).await;
    eventually("the service knows too", || connection.is_encrypted()).await;
}
