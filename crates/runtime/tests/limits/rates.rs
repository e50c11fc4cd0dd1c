//! Messages and bytes each second, over all connections of an account.

use migration_ipc::{DisconnectReason, Rate};
use serde_json::json;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// Messages of a flood that one read takes at most.
const ONE_READ: usize = CAPACITY / 100;

fn messages(per_second: u64) -> AccountLimits {
    AccountLimits {
        messages: Rate::PerSecond(per_second),
        burst: Duration::from_secs(1),
        patience: 10 * MINUTE,
        ..AccountLimits::default()
    }
}

async fn handled_in(time: Duration, limits: AccountLimits) -> usize {
    let (_server, connector, handled) = serving(limits).await;
    let bystander = bystander(&connector, time).await;
    let floods: Vec<_> = (0..3).map(|_| flood(&connector, "mallory")).collect();
    tokio::time::timeout(LONG_PATIENCE, bystander)
        .await
        .unwrap()
        .expect("the bystander is unhurt");
    for flood in floods {
        assert!(!flood.is_finished(), "it was held back and not ended");
        flood.abort();
    }
    handled.count()
}

#[tokio::test(start_paused = true)]
async fn an_account_that_floods_is_held_to_its_messages_per_second() {
    let handled = handled_in(MINUTE, messages(1000)).await;
    // On average; a burst before, and a read beyond.
    assert!(handled <= 61_000 + ONE_READ, "{handled}");
    assert!(handled >= 55_000, "the rate is used: {handled}");
}

#[tokio::test(start_paused = true)]
async fn an_account_that_floods_is_held_to_its_bytes_per_second() {
    let limits = AccountLimits {
        bytes: Rate::PerSecond(100_000),
        messages: Rate::Unlimited,
        ..messages(1)
    };
    let handled = handled_in(MINUTE, limits).await;
    let each = flood_message().len();
    assert!(handled * each <= 61 * 100_000 + CAPACITY, "{handled}");
    assert!(handled * each >= 55 * 100_000, "{handled}");
}

#[tokio::test(start_paused = true)]
async fn an_account_over_its_rate_for_too_long_is_disconnected_and_may_come_again_after_a_pause() {
    let limits = AccountLimits {
        patience: MINUTE,
        ..messages(1000)
    };
    let (server, connector, _) = serving(limits).await;
    let mut events = server.events();
    let begun = Instant::now();
    let flooding = flood(&connector, "mallory");
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::OverRate
    );
    let took = begun.elapsed();
    assert!(took >= MINUTE && took < 2 * MINUTE, "{took:?}");
    within(flooding).await.unwrap();
    // Connecting again is no pause.
    tokio::time::timeout(MINUTE, flood(&connector, "mallory"))
        .await
        .expect("it ends at once")
        .unwrap();
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::OverRate
    );
    tokio::time::sleep(MINUTE).await;
    let mut peer = WirePeer::connect(&connector, user("mallory")).await;
    peer.send("USER_ACTION", action("x")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
}

/// The limit is the account's: another connection of it waits too, and is blamed for nothing that
/// it could not do meanwhile.
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_held_back_is_not_timed_out_and_hears_from_us() {
    let (server, connector, _) = serving(messages(1)).await;
    let mut events = server.events();
    let mut quiet = WirePeer::connect(&connector, user("mallory")).await;
    // From its first heartbeat on a plain peer is judged by its silence.
    quiet.send("HEARTBEAT", heartbeat(1)).await;
    quiet.receive_acknowledgment().await;
    let (_, late) = quiet.frame("USER_ACTION", action("late"));
    let (begin, rest) = late.split_at(10);
    quiet.write(begin).await;
    settle().await;
    let busy = WirePeer::connect(&connector, user("mallory")).await;
    let (mut answers, mut busy, message) = busy.split_for_flood();
    assert!(busy.put(&message.repeat(400)).await);
    let answers = tokio::spawn(async move { while answers.take_some().await {} });
    settle().await;
    let silent = WirePeer::connect(&connector, user("mallory")).await;
    quiet.write(rest).await;
    let mut heartbeats = 0;
    let begun = Instant::now();
    let answer = loop {
        let message = quiet.receive().await;
        if message["type"] == "ACKNOWLEDGMENT" {
            break message;
        }
        assert_eq!(message["type"], "HEARTBEAT");
        heartbeats += 1;
    };
    assert_eq!(answer["payload"]["success"], json!(true));
    let waited = begun.elapsed().as_secs();
    assert!((390..=410).contains(&waited), "{waited}");
    assert!(heartbeats >= 13, "every 30 s: {heartbeats}");
    let ended = tokio::time::timeout(Duration::from_millis(1), next_end(&mut events)).await;
    assert!(ended.is_err(), "{ended:?}");
    answers.abort();
    drop((silent, busy));
}

#[tokio::test(start_paused = true)]
async fn operators_are_held_to_no_rate() {
    let (_server, connector, handled) = serving(messages(1)).await;
    let mut peer = WirePeer::connect(&connector, administrator()).await;
    let begun = Instant::now();
    for _ in 0..100 {
        peer.send("USER_ACTION", action("x")).await;
        peer.receive_acknowledgment().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(handled.count(), 100);
}

/// Unlimited means that nothing is counted. Time, which is virtual, stands still while anybody can
/// go on.
#[tokio::test(start_paused = true)]
async fn without_a_rate_nobody_is_held_back() {
    let (_server, connector, handled) = serving(AccountLimits::default()).await;
    let begun = Instant::now();
    let flooding = flood(&connector, "mallory");
    for _ in 0..1_000_000 {
        if handled.count() > 10_000 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(handled.count() > 10_000);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    flooding.abort();
}
