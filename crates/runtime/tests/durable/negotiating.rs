//! Who may number messages, and what the two ends tell each other of their outboxes.

use serde_json::json;

use crate::common::*;
use crate::service::*;

fn capabilities(answer: &serde_json::Value) -> Vec<&str> {
    let names = answer["payload"]["capabilities"].as_array().unwrap();
    names.iter().map(|name| name.as_str().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_service_with_a_store_says_what_it_has_seen_and_names_its_own_outbox() {
    let service = Service::new().await;
    let (mut peer, answer) = service.numbering("1000", OUTBOX).await;
    assert!(capabilities(&answer).contains(&"durable"));
    assert_eq!(answer["payload"]["seen"], 0);
    assert_eq!(answer["payload"]["outbox"], "09".repeat(16));
    act(&mut peer, 41, "a").await;
    let service = service.restart().await;
    let (_peer, answer) = service.numbering("1000", OUTBOX).await;
    assert_eq!(answer["payload"]["seen"], 41);
    let (_peer, answer) = service.numbering("1000", &"f".repeat(32)).await;
    assert_eq!(answer["payload"]["seen"], 0);
    let (_peer, answer) = service.numbering("1001", OUTBOX).await;
    assert_eq!(
        answer["payload"]["seen"], 0,
        "another account's outbox is another one"
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_without_a_store_offers_no_numbers() {
    let (_server, connector) = serve(dispatcher(&Entered::default())).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("HELLO", numbering_hello(OUTBOX)).await;
    let answer = peer.receive().await;
    assert!(!capabilities(&answer).contains(&"durable"));
    assert_eq!(answer["payload"].get("seen"), None);
    assert_eq!(answer["payload"].get("outbox"), None);
}

/// Whoever cannot tell "later" from "no" would give up what is only put off.
#[tokio::test(start_paused = true)]
async fn who_does_not_understand_codes_or_replies_may_not_number() {
    let service = Service::new().await;
    for missing in ["errorCodes", "inReplyTo"] {
        let mut hello = numbering_hello(OUTBOX);
        let names = hello["capabilities"].as_array_mut().unwrap();
        names.retain(|name| name != missing);
        let mut peer = WirePeer::connect(&service.connector, user("1000")).await;
        peer.send("HELLO", hello).await;
        assert!(!capabilities(&peer.receive().await).contains(&"durable"));
    }
}

#[tokio::test(start_paused = true)]
async fn without_negotiation_numbers_mean_nothing() {
    let service = Service::new().await;
    let mut plain = WirePeer::connect(&service.connector, user("1000")).await;
    let mut new = WirePeer::connect(&service.connector, user("1000")).await;
    new.hello("agent", 100).await;
    for peer in [&mut plain, &mut new] {
        for (seq, stream) in [
            (json!(1), None),
            (json!(1), None),
            (json!(0), None),
            (json!("x"), Some("ä")),
        ] {
            peer.write(&numbered(seq, stream, "USER_ACTION", action("a")))
                .await;
            let answer = peer.receive_acknowledgment().await;
            assert_eq!(answer["success"], true);
        }
    }
    assert_eq!(service.entered.take(), ["a"; 8]);
}
