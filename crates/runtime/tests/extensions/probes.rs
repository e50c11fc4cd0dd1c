//! What each capability is tried with, and how a transcript shows that it was used.

use std::time::Duration;

use migration_ipc::transport::BoxFuture;
use migration_ipc::{
    Answer, Batch, Capability, CapabilitySet, Fate, MailOptions, Receipt, SendError, SendOptions,
};
use tokio::time::sleep;

use crate::common::*;
use crate::talk::{Talk, act, update};
use crate::transcript::Direction;

/// One capability.
pub(crate) struct Probe {
    pub(crate) capability: Capability,
    /// Part of the conversation, and what comes of it whether the capability was negotiated or not.
    pub(crate) exercise: for<'a> fn(&'a Talk) -> BoxFuture<'a, ()>,
    /// Whether the frames of one side show that it used the capability.
    pub(crate) evidence: fn(&Direction) -> bool,
    pub(crate) shown_by: Shown,
}

/// Who uses a capability in this conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    ByBoth,
    ByWhoCloses,
}

pub(crate) const PROBES: &[Probe] = &[
    Probe {
        capability: Capability::InReplyTo,
        exercise: |talk| Box::pin(replies(talk)),
        evidence: |side| {
            // A hello and the outcomes of a batch have it anyway.
            side.messages().any(|message| {
                let kind = &message["type"];
                message.get("inReplyTo").is_some() && kind != "HELLO" && kind != "BATCH_OUTCOMES"
            })
        },
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Credit,
        exercise: |talk| Box::pin(a_row_of_messages(talk)),
        evidence: |side| side.has("CREDIT"),
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::ErrorCodes,
        exercise: |talk| Box::pin(failures(talk)),
        evidence: |side| {
            side.messages()
                .any(|message| message["payload"].get("code").is_some())
        },
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Goodbye,
        exercise: |_| Box::pin(async {}),
        evidence: |side| side.has("GOODBYE"),
        shown_by: Shown::ByWhoCloses,
    },
    Probe {
        capability: Capability::Backlog,
        exercise: |talk| Box::pin(handlers_that_take_long(talk)),
        evidence: |side| {
            side.messages()
                .any(|message| message["payload"].get("oldestUnhandledMs").is_some())
        },
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Durable,
        exercise: |talk| Box::pin(outbox_and_mail(talk)),
        evidence: |side| side.has_member("seq"),
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Batch,
        exercise: |talk| Box::pin(batches(talk)),
        evidence: |side| side.has("BATCH") && side.has("BATCH_OUTCOMES"),
        shown_by: Shown::ByBoth,
    },
];

/// Capabilities without a probe. They are not offered here, so that they cannot hide behind others.
pub(crate) const WITHOUT_PROBE: &[Capability] = &[
    Capability::Requests,
    Capability::NoAck,
    Capability::AckRanges,
    Capability::Lz4,
    Capability::Chunks,
    Capability::Encryption,
];

/// All that can be shown.
pub(crate) fn all() -> CapabilitySet {
    PROBES.iter().map(|probe| probe.capability).collect()
}

fn has(talk: &Talk, capability: Capability) -> bool {
    talk.negotiated
        .is_some_and(|negotiated| negotiated.contains(capability))
}

/// With `inReplyTo` a reply goes to whoever asked; without, it is a message of its own.
async fn replies(talk: &Talk) {
    let correlated = has(talk, Capability::InReplyTo);
    talk.to_service.expect("reply");
    if !correlated {
        talk.to_client.expect("answer");
    }
    let answer = talk.at_client.send_acknowledged(act("reply")).await;
    check_reply(&answer, correlated);
    talk.to_client.expect("reply");
    if !correlated {
        talk.to_service.expect("answer");
    }
    let answer = talk.at_service.send_acknowledged(update("reply")).await;
    check_reply(&answer, correlated);
    talk.catch_up().await;
}

fn check_reply(answer: &Result<Answer, SendError>, correlated: bool) {
    match (answer, correlated) {
        (Ok(Answer::Replied(_)), true) | (Err(SendError::Unanswered), false) => {}
        (other, _) => panic!("{other:?}"),
    }
}

/// More than an inbox holds.
async fn a_row_of_messages(talk: &Talk) {
    for number in 0..10 {
        let name = format!("row {number}");
        talk.to_service.expect(&name);
        talk.at_client.send(act(&name)).await.unwrap();
        talk.to_client.expect(&name);
        talk.at_service.send(update(&name)).await.unwrap();
    }
    talk.catch_up().await;
}

async fn failures(talk: &Talk) {
    let codes = has(talk, Capability::ErrorCodes);
    let check = |answer: Result<Answer, SendError>| match answer {
        Err(SendError::Rejected(rejection)) => {
            assert_eq!(rejection.error, "failed");
            assert_eq!(rejection.code.is_some(), codes);
        }
        other => panic!("{other:?}"),
    };
    talk.to_service.expect("fail");
    check(talk.at_client.send_acknowledged(act("fail")).await);
    talk.to_client.expect("fail");
    let answer = talk.at_service.send_acknowledged(update("fail")).await;
    match talk.negotiated {
        Some(_) => check(answer),
        None => talk.check_agents_answer(&answer),
    }
}

/// Longer than a heartbeat's interval.
async fn handlers_that_take_long(talk: &Talk) {
    talk.to_service.expect("wait");
    talk.at_client.send(act("wait")).await.unwrap();
    talk.to_client.expect("wait");
    talk.at_service.send(update("wait")).await.unwrap();
    talk.catch_up().await;
    sleep(Duration::from_secs(100)).await;
    talk.gate.admit(2);
    eventually("they have ended", || talk.gate.waiting() == 0).await;
}

async fn outbox_and_mail(talk: &Talk) {
    talk.to_service.expect("durable");
    let receipt = talk.client.send_durable(act("durable")).await.unwrap();
    assert!(matches!(fate(&receipt).await, Fate::Handled));
    let together = ["together 1", "together 2"];
    for name in together {
        talk.to_service.expect(name);
    }
    let options = SendOptions::new().durable();
    let receipts = talk.client.send_batch(together.map(act), options).await;
    for receipt in receipts.unwrap() {
        assert!(matches!(fate(&receipt).await, Fate::Handled));
    }
    talk.to_client.expect("mail");
    let agent = talk.at_service.peer().account().clone();
    let receipt = talk
        .server
        .sender()
        .send_to(&agent, &update("mail"), MailOptions::new())
        .await
        .unwrap();
    match (fate(&receipt).await, talk.negotiated) {
        (Fate::Handled, Some(_)) | (Fate::Sent, None) => {}
        (other, negotiated) => panic!("{other} with {negotiated:?}"),
    }
}

async fn fate(receipt: &Receipt) -> &Fate {
    tokio::time::timeout(LONG_PATIENCE, receipt.fate())
        .await
        .expect("the receipt resolves")
}

/// The results have the same form whether there was one frame or several.
async fn batches(talk: &Talk) {
    let names = ["first", "fail", "third", "fourth", "fifth", "sixth"];
    let (mut to_service, mut to_client) = (Batch::new(), Batch::new());
    for name in names {
        talk.to_service.expect(name);
        to_service.push(act(name)).unwrap();
        talk.to_client.expect(name);
        to_client.push(update(name)).unwrap();
    }
    let check = |answers: Vec<Result<Answer, SendError>>| {
        assert_eq!(answers.len(), names.len());
        for (name, answer) in names.iter().zip(answers) {
            match (*name, answer) {
                ("fail", Err(SendError::Rejected(rejection))) => {
                    assert_eq!(rejection.error, "failed");
                }
                (name, Ok(Answer::Handled)) if name != "fail" => {}
                other => panic!("{other:?}"),
            }
        }
    };
    check(talk.at_client.send_batch(to_service).await.unwrap());
    let answers = talk.at_service.send_batch(to_client).await.unwrap();
    match talk.negotiated {
        Some(_) => check(answers),
        None => answers
            .iter()
            .for_each(|answer| talk.check_agents_answer(answer)),
    }
}
