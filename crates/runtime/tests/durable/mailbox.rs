//! Mail: kept for a user, delivered to the user's agent.

use std::time::Duration;

use migration_ipc::messages::{ConfigurationUpdate, OverallStatus, StatusUpdate};
use migration_ipc::{
    AccountId, Fate, MailError, MailOptions, Mailbox, Receipt, RequeueError, Requeued, SendError,
};
use serde_json::{Value, json};

use crate::common::*;
use crate::service::*;

fn account(name: &str) -> AccountId {
    AccountId::new(name)
}

pub(crate) fn update(key: &str) -> ConfigurationUpdate {
    ConfigurationUpdate::new(key, json!(1))
}

pub(crate) async fn mail(service: &Service, key: &str) -> Receipt {
    mail_with(service, key, MailOptions::new()).await
}

pub(crate) async fn mail_with(service: &Service, key: &str, options: MailOptions) -> Receipt {
    let sender = service.server.sender();
    sender
        .send_to(&account("1000"), &update(key), options)
        .await
        .unwrap()
}

pub(crate) fn mailbox(service: &Service) -> Mailbox {
    service.server.sender().mailbox().unwrap()
}

/// How many messages wait.
pub(crate) async fn waiting(service: &Service) -> usize {
    mailbox(service).mail(0, 100).await.unwrap().len()
}

pub(crate) async fn announce(peer: &mut WirePeer, session: &str) {
    let payload = agent_started("", session);
    peer.send("AGENT_STARTED", payload).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
}

/// An agent of the user that numbers, or one that does not.
pub(crate) async fn agent(service: &Service) -> WirePeer {
    let mut peer = service.peer().await;
    announce(&mut peer, "1").await;
    peer
}

pub(crate) async fn plain_agent(service: &Service) -> WirePeer {
    let mut peer = WirePeer::connect(&service.connector, user("1000")).await;
    announce(&mut peer, "1").await;
    peer
}

/// The next piece of mail.
pub(crate) async fn take(peer: &mut WirePeer) -> (String, Value) {
    let message = peer.receive_type("CONFIGURATION_UPDATE").await;
    (
        message["payload"]["key"].as_str().unwrap().to_owned(),
        message,
    )
}

async fn refuse(peer: &mut WirePeer, message: &Value, code: &str) {
    let mut answer = acknowledgment(message);
    answer["success"] = false.into();
    answer["error"] = "no".into();
    answer["code"] = code.into();
    peer.send("ACKNOWLEDGMENT", answer).await;
}

#[tokio::test(start_paused = true)]
async fn mail_waits_for_its_user_across_a_restart_and_comes_in_order() {
    let service = Service::new().await;
    mail(&service, "a").await;
    mail(&service, "b").await;
    let mut other = service.numbering("1001", OUTBOX).await.0;
    announce(&mut other, "1").await;
    assert!(other.is_silent_for(Duration::from_secs(10)).await);
    let service = service.crash().await;
    assert_eq!(waiting(&service).await, 2);
    let mut peer = agent(&service).await;
    let receipt = mail(&service, "c").await;
    let mut last = 0;
    for expected in ["a", "b", "c"] {
        let (key, message) = take(&mut peer).await;
        assert_eq!(key, expected);
        let seq = message["seq"].as_u64().unwrap();
        assert!(seq > last, "numbers grow");
        last = seq;
        assert!(receipt.try_fate().is_none());
        peer.acknowledge(&message).await;
    }
    assert!(receipt.fate().await.is_handled());
    assert_eq!(waiting(&service).await, 0);
}

#[tokio::test(start_paused = true)]
async fn mail_to_a_plain_agent_is_removed_once_it_is_written() {
    let service = Service::new().await;
    let receipt = mail(&service, "a").await;
    assert!(receipt.try_fate().is_none());
    let mut peer = plain_agent(&service).await;
    let (_, message) = take(&mut peer).await;
    assert_eq!(
        message.get("seq"),
        None,
        "a plain agent sees the plain wire"
    );
    assert!(matches!(receipt.fate().await, Fate::Sent));
    assert_eq!(waiting(&service).await, 0);
}

#[tokio::test(start_paused = true)]
async fn mail_that_is_not_answered_comes_again_under_its_id_and_number() {
    let service = Service::new().await;
    let receipt = mail(&service, "a").await;
    let mut peer = agent(&service).await;
    let (_, first) = take(&mut peer).await;
    // However long its handler takes: the answer is sure to come.
    assert!(!service_ended(&mut peer, Duration::from_secs(80)).await);
    assert!(receipt.try_fate().is_none());
    drop(peer);
    let mut peer = agent(&service).await;
    let (_, second) = take(&mut peer).await;
    assert_eq!(
        (&first["id"], &first["seq"]),
        (&second["id"], &second["seq"])
    );
    peer.reply(&second, "USER_ACTION", action("x")).await;
    assert!(matches!(receipt.fate().await, Fate::Replied(_)));
    assert_eq!(waiting(&service).await, 0);
}

/// Whether anything but heartbeats came.
async fn service_ended(peer: &mut WirePeer, time: Duration) -> bool {
    let reading = async { while peer.receive().await["type"] == "HEARTBEAT" {} };
    tokio::time::timeout(time, reading).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn refused_mail_is_a_dead_letter_and_busy_mail_comes_again() {
    let service = Service::new().await;
    let mut peer = agent(&service).await;
    let refused = mail(&service, "a").await;
    let handled = mail(&service, "b").await;
    let (_, message) = take(&mut peer).await;
    refuse(&mut peer, &message, "handler_failed").await;
    for expected in ["b", "b"] {
        assert!(handled.try_fate().is_none());
        let (key, message) = take(&mut peer).await;
        assert_eq!(key, expected);
        refuse(&mut peer, &message, "busy").await;
    }
    let (_, message) = take(&mut peer).await;
    peer.acknowledge(&message).await;
    assert!(handled.fate().await.is_handled());
    assert!(matches!(refused.fate().await, Fate::Rejected(rejection) if rejection.error == "no"));
    let letters = mailbox(&service).dead_letters(0, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(&*letters[0].letter.text, "no");
    // An operator has it sent once more.
    let again = mailbox(&service).requeue(letters[0].number).await.unwrap();
    assert_eq!(again, Requeued::Mailed);
    let (key, message) = take(&mut peer).await;
    assert_eq!(key, "a");
    peer.acknowledge(&message).await;
    settle().await;
    assert_eq!(waiting(&service).await, 0);
    assert!(service.dead_letters().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn mail_expires() {
    let service = Service::new().await;
    let options = MailOptions::new().time_to_live(Duration::ZERO);
    let receipt = mail_with(&service, "a", options).await;
    let mut peer = agent(&service).await;
    assert!(matches!(receipt.fate().await, Fate::Expired));
    assert!(peer.is_silent_for(Duration::from_secs(20)).await);
    assert_eq!(service.dead_letters().await.len(), 1);
    // Without an agent it is found too.
    drop(peer);
    settle().await;
    let receipt = mail_with(&service, "b", options).await;
    let fate = tokio::time::timeout(Duration::from_secs(61), receipt.fate());
    assert!(matches!(fate.await.unwrap(), Fate::Expired));
    let long = mail_with(
        &service,
        "c",
        options.time_to_live(Duration::from_secs(3600)),
    )
    .await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(long.try_fate().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_operator_drops_mail_and_dead_letters() {
    let service = Service::new().await;
    let dropped = mail(&service, "a").await;
    let kept = mail(&service, "b").await;
    let mailbox = mailbox(&service);
    let listed = mailbox.mail_of(&account("1000"), 0, 10).await.unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(mailbox.mail(listed[0].number, 10).await.unwrap().len(), 1);
    assert!(mailbox.drop_mail(listed[0].number).await.unwrap().is_some());
    assert!(mailbox.drop_mail(listed[0].number).await.unwrap().is_none());
    assert!(matches!(
        dropped.fate().await,
        Fate::NotSent(SendError::Dropped)
    ));
    let mut peer = agent(&service).await;
    assert_eq!(take(&mut peer).await.0, "b");
    assert!(kept.try_fate().is_none());
    act(&mut peer, 1, "refuse").await;
    let number = mailbox.dead_letters(0, 1).await.unwrap()[0].number;
    assert!(mailbox.drop_dead_letter(number).await.unwrap().is_some());
    assert!(mailbox.drop_dead_letter(number).await.unwrap().is_none());
    assert!(matches!(
        mailbox.requeue(number).await,
        Err(RequeueError::Unknown(unknown)) if unknown == number
    ));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_of_an_agent_is_given_to_its_handler_again() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    announce(&mut peer, "7").await;
    let strict = numbered(1, None, "USER_ACTION", action("strict"));
    peer.write(&strict).await;
    let refusal = peer.receive_type("ACKNOWLEDGMENT").await;
    assert_eq!(told(&refusal), "s1 handler_failed");
    drop(peer);
    service.entered.take();
    let mailbox = mailbox(&service);
    let number = mailbox.dead_letters(0, 1).await.unwrap()[0].number;
    let refused = mailbox.requeue(number).await;
    assert!(matches!(refused, Err(RequeueError::Refused { text, .. }) if &*text == "too strict"));
    assert_eq!(service.dead_letters().await.len(), 1, "it stays");
    service.entered.be_lenient();
    service.disk.set_read_only(true);
    assert!(mailbox.requeue(number).await.is_err());
    service.disk.set_read_only(false);
    assert_eq!(mailbox.requeue(number).await.unwrap(), Requeued::Handled);
    assert!(service.dead_letters().await.is_empty());
    assert_eq!(service.effects_of("strict").await, 1);
    let seen = r#"1000 Some(SessionId("7")) true"#;
    assert_eq!(service.entered.take(), ["strict", seen].repeat(3));
    // Its sender was told long ago, and is told the same again.
    let mut peer = service.peer().await;
    assert_eq!(act(&mut peer, 1, "strict").await, "s1 handler_failed");
}

#[tokio::test(start_paused = true)]
async fn mail_goes_to_the_agent_that_was_there_first_in_its_spelling() {
    let service = Service::new().await;
    let mut first = service.peer().await;
    first
        .send("AGENT_STARTED", agent_started(r"CORP\ann", "1"))
        .await;
    first.receive_acknowledgment().await;
    let mut second = agent(&service).await;
    let request = migration_ipc::messages::BackupCompleted::new("1000", true, []);
    let sender = service.server.sender();
    sender
        .send_to(&account("1000"), &request, MailOptions::new())
        .await
        .unwrap();
    let message = first.receive_type("BACKUP_COMPLETED").await;
    assert_eq!(message["payload"]["userId"], r"CORP\ann");
    assert!(second.is_silent_for(Duration::from_secs(5)).await);
    drop(first);
    let message = second.receive_type("BACKUP_COMPLETED").await;
    assert_eq!(message["payload"]["userId"], "1000");
}

#[tokio::test(start_paused = true)]
async fn mail_among_the_effects_of_a_handler_is_delivered() {
    let service = Service::new().await;
    let mut peer = agent(&service).await;
    for _ in 0..2 {
        peer.write(&numbered(1, None, "USER_ACTION", action("mail")))
            .await;
    }
    assert_eq!(take(&mut peer).await.0, "mailed");
    assert_eq!(waiting(&service).await, 1, "one message, one piece of mail");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_kept_is_an_error() {
    let (server, _connector) = serve(dispatcher(&Entered::default())).await;
    assert!(server.sender().mailbox().is_none());
    let status = StatusUpdate::new(OverallStatus::Waiting, vec![], vec![], 1);
    let to = account("1000");
    let usual = MailOptions::new();
    let sent = server.sender().send_to(&to, &status, usual).await;
    assert!(matches!(sent, Err(MailError::NotStored(_))));
    let service = Service::new().await;
    let sender = service.server.sender();
    let huge = ConfigurationUpdate::new("x".repeat(2_000_000), json!(1));
    let sent = sender.send_to(&to, &huge, usual).await;
    assert!(matches!(sent, Err(MailError::Encode(_))));
    service.disk.set_read_only(true);
    let sent = sender.send_to(&to, &status, usual).await;
    assert!(matches!(sent, Err(MailError::NotStored(_))));
    service.disk.set_read_only(false);
    assert_eq!(waiting(&service).await, 0);
}

/// Threat: somebody else gets a user's mail, or makes it go away.
#[tokio::test(start_paused = true)]
async fn mail_reaches_an_agent_of_its_user_and_nobody_else() {
    let service = Service::new().await;
    let (mut mallory, _) = service.numbering("1001", OUTBOX).await;
    announce(&mut mallory, "1").await;
    // Of the same account, and not announced.
    let mut lane = service.peer().await;
    let receipt = mail(&service, "secret").await;
    for peer in [&mut mallory, &mut lane] {
        assert!(peer.is_silent_for(Duration::from_secs(5)).await);
    }
    let mut alice = agent(&service).await;
    let (key, message) = take(&mut alice).await;
    assert_eq!(key, "secret");
    // Mallory knows its id, and says that it was handled.
    mallory.acknowledge(&message).await;
    refuse(&mut mallory, &message, "handler_failed").await;
    settle().await;
    assert_eq!(waiting(&service).await, 1);
    assert!(service.dead_letters().await.is_empty());
    alice.acknowledge(&message).await;
    assert!(receipt.fate().await.is_handled());
    assert_eq!(waiting(&service).await, 0);
    assert!(mallory.is_silent_for(Duration::from_secs(5)).await);
}
