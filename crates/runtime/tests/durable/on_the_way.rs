//! Mail that is on its way to an agent, or was: it may have been handled.

use std::time::Duration;

use migration_ipc::{Fate, MailOptions, SendError};
use serde_json::json;

use crate::common::*;
use crate::mailbox::*;
use crate::service::*;

/// Longer than it takes until expired mail is looked for.
const A_LOOK: Duration = Duration::from_secs(61);

fn short() -> MailOptions {
    MailOptions::new().time_to_live(Duration::from_secs(1))
}

/// The look for expired mail made a dead letter of what the agent was handling at that moment: its
/// receipt said that it had never left, and an operator who sent it again had it handled twice.
#[tokio::test(start_paused = true)]
async fn mail_that_an_agent_is_handling_does_not_expire() {
    let service = Service::new().await;
    let mut peer = agent(&service).await;
    let handled = mail_with(&service, "a", short()).await;
    let behind_it = mail_with(&service, "b", short()).await;
    let (_, message) = take(&mut peer).await;
    tokio::time::sleep(A_LOOK).await;
    assert!(matches!(behind_it.try_fate(), Some(Fate::Expired)));
    assert!(handled.try_fate().is_none());
    peer.acknowledge(&message).await;
    assert!(matches!(handled.fate().await, Fate::Handled));
    settle().await;
    assert_eq!(waiting(&service).await, 0);
    let letters = service.dead_letters().await;
    assert_eq!(letters.len(), 1, "only of what never left");
}

/// The same when the agent has gone: nobody knows whether it was handled.
#[tokio::test(start_paused = true)]
async fn mail_whose_answer_was_lost_ends_as_unknown() {
    let service = Service::new().await;
    let mut peer = agent(&service).await;
    let expired = mail_with(&service, "a", short()).await;
    take(&mut peer).await;
    drop(peer);
    tokio::time::sleep(A_LOOK).await;
    assert!(matches!(
        expired.fate().await,
        Fate::Unknown(SendError::Lost(_))
    ));
    let mut peer = agent(&service).await;
    let dropped = mail(&service, "b").await;
    take(&mut peer).await;
    drop(peer);
    settle().await;
    let mailbox = mailbox(&service);
    let number = mailbox.mail(0, 1).await.unwrap()[0].number;
    mailbox.drop_mail(number).await.unwrap();
    assert!(matches!(
        dropped.fate().await,
        Fate::Unknown(SendError::Lost(_))
    ));
}

/// Dropped by an operator, it still held up all that came after it, for as long as its agent was
/// connected and did not answer.
#[tokio::test(start_paused = true)]
async fn mail_that_is_dropped_while_an_agent_has_it_holds_nothing_up() {
    let service = Service::new().await;
    let mut peer = agent(&service).await;
    let dropped = mail(&service, "a").await;
    let next = mail(&service, "b").await;
    let (_, message) = take(&mut peer).await;
    let mailbox = mailbox(&service);
    let number = message["seq"].as_u64().unwrap();
    assert!(mailbox.drop_mail(number).await.unwrap().is_some());
    assert!(matches!(
        dropped.fate().await,
        Fate::Unknown(SendError::Unanswered)
    ));
    let (key, message) = take(&mut peer).await;
    assert_eq!(key, "b");
    peer.acknowledge(&message).await;
    assert!(matches!(next.fate().await, Fate::Handled));
}

/// The time for its answer ran while it waited for credit. Then it counted as sent, and was removed,
/// although nothing of it had been written.
#[tokio::test(start_paused = true)]
async fn mail_that_waits_for_credit_is_kept_until_it_is_written() {
    let service = Service::new().await;
    let mut peer = WirePeer::connect(&service.connector, user("1000")).await;
    peer.hello("agent", 0).await;
    announce(&mut peer, "1").await;
    let receipt = mail(&service, "a").await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(receipt.try_fate().is_none());
    assert_eq!(waiting(&service).await, 1);
    peer.send("CREDIT", json!({"messages": 1})).await;
    let (_, message) = take(&mut peer).await;
    peer.acknowledge(&message).await;
    assert!(matches!(receipt.fate().await, Fate::Handled));
}

/// An agent that announced itself while the disk could not be read got its mail when the next message
/// was posted to its user, or when it announced itself again: perhaps never.
#[tokio::test(start_paused = true)]
async fn mail_that_could_not_be_read_is_looked_for_again() {
    let service = Service::new().await;
    mail(&service, "a").await;
    service.disk.set_read_only(true);
    let sender = service.server.sender();
    let refused = sender
        .send_to(
            &user("1000").account().clone(),
            &update("b"),
            MailOptions::new(),
        )
        .await;
    assert!(
        refused.is_err(),
        "and the store is opened again for each read"
    );
    let mut peer = plain_agent(&service).await;
    assert!(peer.is_silent_for(Duration::from_secs(1)).await);
    service.disk.set_read_only(false);
    assert_eq!(take(&mut peer).await.0, "a");
}
