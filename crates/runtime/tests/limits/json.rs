//! Limits of JSON below those of the wire.

use migration_ipc::ConnectionConfig;
use serde_json::{Value, json};

use super::*;

/// Sends an action with these details; whether it is handled, and the text of the refusal.
async fn sent(peer: &mut WirePeer, details: Value) -> Result<(), String> {
    let payload = json!({"action": "x", "details": details});
    peer.send("USER_ACTION", payload).await;
    let answer = peer.receive_acknowledgment().await;
    if answer["success"] == true {
        return Ok(());
    }
    Err(answer["error"].as_str().unwrap().to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_server_can_ask_for_less_than_the_wire_allows() {
    let mut config = ConnectionConfig::default();
    config.limits.json_depth = 10;
    config.limits.json_values = 100;
    let dispatcher = MessageDispatcher::builder(Handled::default())
        .handle(on_action)
        .build()
        .unwrap();
    let (_server, connector) =
        serve_with(dispatcher, |server| server.connection_config(config)).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    // The first message goes the long way, the others the usual one.
    for _ in 0..2 {
        let deep = |levels| (0..levels).fold(json!(1), |inner, _| json!({ "a": inner }));
        // The envelope and the payload are two levels.
        assert_eq!(sent(&mut peer, deep(8)).await, Ok(()));
        let refused = sent(&mut peer, deep(9)).await.unwrap_err();
        assert!(refused.contains("deeper than 10 levels"), "{refused}");
        assert_eq!(sent(&mut peer, json!({"a": vec![0; 80]})).await, Ok(()));
        let refused = sent(&mut peer, json!({"a": vec![0; 100]}))
            .await
            .unwrap_err();
        assert!(refused.contains("more than 100 values"), "{refused}");
    }
}
