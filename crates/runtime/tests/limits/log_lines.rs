//! What a peer can do to the log.

use serde_json::json;

use super::*;

/// The bound of the audit log for one account in one minute.
const AUDIT_RECORDS: usize = 30;

fn left_out(watch: &Watch) -> u64 {
    let number = |line: &String| {
        let (_, rest) = line.split_once("left_out=")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    watch.warnings().iter().filter_map(number).sum()
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_malformed_messages_leave_a_bounded_number_of_lines_and_their_count() {
    const MESSAGES: u64 = 10_000;
    let watch = Watch::begin();
    let (server, connector, _) = serving(AccountLimits::default()).await;
    let bystander = bystander(&connector, Duration::from_millis(10)).await;
    // Connecting again is no way to more of them.
    for connection in 0..10 {
        let mut peer = WirePeer::connect(&connector, user("mallory")).await;
        for number in 0..MESSAGES / 10 {
            // Half of them in the envelope, half in the payload.
            let body = if number % 2 == 0 {
                json!({"id": format!("a{number}"), "type": 7})
            } else {
                envelope("a", "USER_ACTION", json!({"action": [connection]}))
            };
            peer.write(&frame(&body.to_string())).await;
            assert_eq!(peer.receive_acknowledgment().await["success"], false);
        }
    }
    let lines = AccountLimits::default().log_lines as usize;
    assert_eq!(watch.warnings().len(), lines + 1, "and that there are more");
    bystander.await.unwrap();

    // The next line comes with the count of those that were left out.
    tokio::time::sleep(AccountLimits::default().log_interval).await;
    let mut peer = WirePeer::connect(&connector, user("mallory")).await;
    peer.write(&frame(&json!({"id": "b", "type": 7}).to_string()))
        .await;
    peer.receive_acknowledgment().await;
    let warnings = watch.warnings();
    assert_eq!(warnings.len(), lines + 3, "{warnings:#?}");
    assert_eq!(left_out(&watch), MESSAGES - lines as u64);
    drop(peer);
    within(server.stop(PATIENCE)).await;
}

/// Whoever is turned away has no connection, and an account all the same.
#[tokio::test(start_paused = true)]
async fn connections_that_are_refused_or_broken_leave_a_bounded_number_of_lines() {
    let watch = Watch::begin();
    let account = AccountLimits {
        connections: 1,
        ..AccountLimits::default()
    };
    let (server, connector, _) = serving(account).await;
    let first = WirePeer::connect(&connector, user("mallory")).await;
    for _ in 0..1000 {
        drop(connector.connect(user("mallory")).await.unwrap());
    }
    settle().await;
    drop(first);
    settle().await;
    for _ in 0..1000 {
        let mut peer = WirePeer::connect(&connector, user("mallory")).await;
        // A length that no frame has.
        peer.write(&[0; 4]).await;
        assert_eq!(peer.receive_or_end().await, None);
        settle().await;
    }
    let lines = account.log_lines as usize;
    let (audit, others): (Vec<_>, Vec<_>) = watch
        .warnings()
        .into_iter()
        .partition(|line| line.contains("migration_ipc::audit"));
    // Whoever is refused is in the audit log alone, which has a bound of its own.
    assert!(
        (1..=AUDIT_RECORDS).contains(&audit.len()),
        "{}",
        audit.len()
    );
    assert_eq!(others.len(), lines + 1);
    within(server.stop(PATIENCE)).await;
    // In the end the rest is told.
    settle().await;
    assert_eq!(left_out(&watch), 1000 - lines as u64);
}

/// One account's noise hides nothing of another.
#[tokio::test(start_paused = true)]
async fn each_account_has_lines_of_its_own() {
    let watch = Watch::begin();
    let (_server, connector, _) = serving(AccountLimits::default()).await;
    for (account, messages) in [("mallory", 100), ("alice", 1)] {
        let mut peer = WirePeer::connect(&connector, user(account)).await;
        for _ in 0..messages {
            peer.write(&frame(&json!({"id": "a", "type": 7}).to_string()))
                .await;
            peer.receive_acknowledgment().await;
        }
    }
    let of_alice = |line: &&String| line.contains("account alice");
    assert_eq!(watch.warnings().iter().filter(of_alice).count(), 1);
}
