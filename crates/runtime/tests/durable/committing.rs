//! The answer follows the commit.

use std::time::Duration;

use crate::common::*;
use crate::service::*;

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_puts_its_messages_off() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    service.disk.set_read_only(true);
    let answer = act(&mut peer, 1, "a").await;
    service.disk.set_read_only(false);
    assert_eq!(answer, "s1 busy");
    assert_eq!(service.effects_of("a").await, 0);
    assert_eq!(act(&mut peer, 2, "b").await, "s2 busy", "1 comes first");
    assert_eq!(act(&mut peer, 1, "a").await, "s1 handled");
    assert_eq!(act(&mut peer, 2, "b").await, "s2 handled");
    assert_eq!(service.entered.take(), ["a", "a", "b"]);
    assert_eq!(service.effects_of("a").await, 1);
}

/// Else each message would pay for a sync of its own.
#[tokio::test(start_paused = true)]
async fn the_next_handler_starts_while_a_commit_is_under_way() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    let delay =
        serde_json::json!({"userId": "", "reason": "other", "requestedDelay": 1, "delaysUsed": 7});
    let both = [
        numbered(1, None, "USER_ACTION", action("7")),
        numbered(2, None, "DELAY_REQUEST", delay),
    ];
    peer.write(&both.concat()).await;
    assert_eq!(told(&peer.receive().await), "s1 handled");
    assert_eq!(told(&peer.receive().await), "s2 handled");
    assert_eq!(service.entered.take(), ["7", "stored before: false"]);
}

#[tokio::test(start_paused = true)]
async fn many_messages_share_one_sync() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    act(&mut peer, 1, "first").await;
    let before = service.disk.counts();
    let messages: Vec<_> = (2..=101)
        .map(|seq| numbered(seq, None, "USER_ACTION", action("a")))
        .collect();
    peer.write(&messages.concat()).await;
    for seq in 2..=101 {
        assert_eq!(told(&peer.receive().await), format!("s{seq} handled"));
    }
    let syncs = service.disk.counts().file_syncs - before.file_syncs;
    assert!(syncs <= 4, "{syncs} syncs for 100 messages");
    assert_eq!(service.effects_of("a").await, 100);
}

#[tokio::test(start_paused = true)]
async fn answers_keep_the_order_of_their_messages() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    let (plain, unstored) = peer.frame("NO_SUCH_TYPE", action("x"));
    let messages = [
        numbered(1, None, "USER_ACTION", action("a")),
        unstored,
        numbered(2, None, "USER_ACTION", action("refuse")),
        numbered(1, None, "USER_ACTION", action("a")),
        numbered(3, None, "BACKUP_COMPLETED", completed()),
    ];
    peer.write(&messages.concat()).await;
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(told(&peer.receive().await));
    }
    let expected = [
        "s1 handled".to_owned(),
        format!("{plain} no_handler"),
        "s2 handler_failed".to_owned(),
        // It came while the first was still being stored: nobody can say yet how that ends.
        "s1 busy".to_owned(),
        "s3 busy".to_owned(),
    ];
    assert_eq!(answers, expected);
}

#[tokio::test(start_paused = true)]
async fn a_silent_type_is_answered_when_it_is_durable() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    peer.send("BACKUP_PROGRESS", progress(1)).await;
    assert!(peer.is_silent_for(Duration::from_secs(5)).await);
    let answer = ask(&mut peer, 1, "BACKUP_PROGRESS", progress(1)).await;
    assert_eq!(answer, "s1 handled");
}

/// Stop: handlers finish, their effects are committed, the answers are written, then goodbye.
#[tokio::test(start_paused = true)]
async fn a_service_that_stops_commits_and_answers_first() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    let messages: Vec<_> = (1..=50)
        .map(|seq| numbered(seq, None, "USER_ACTION", action("a")))
        .collect();
    peer.write(&messages.concat()).await;
    let reading = tokio::spawn(async move {
        let messages = peer.receive_to_end().await;
        let handled = messages
            .iter()
            .filter(|message| message["payload"]["success"] == true)
            .count();
        assert_eq!(messages.last().unwrap()["type"], "GOODBYE");
        u8::try_from(handled).unwrap()
    });
    let disk = service.disk.clone();
    let report = service.stop().await;
    assert_eq!(report.unhandled_messages, 0);
    let handled = reading.await.unwrap();
    let service = Service::on(disk.restart()).await;
    assert_eq!(service.effects_of("a").await, handled);
}
