//! What each capability is tried with, and how a transcript shows that it was used.

use std::time::Duration;

use migration_ipc::transport::BoxFuture;
use migration_ipc::{
    Answer, Batch, Capability, CapabilitySet, Fate, IpcConnection, MailOptions, Receipt,
    RequestError, SendError, SendOptions, limits,
};
use migration_ipc_protocol::extensions::BodyKind;
use serde_json::Value;
use tokio::time::sleep;

use crate::asked::{Count, ask};
use crate::common::*;
use crate::talk::{Log, Talk, act, update};
use crate::transcript::{Body, Direction};

/// One capability.
pub(crate) struct Probe {
    pub(crate) capability: Capability,
    /// Part of the conversation, and what comes of it whether the capability was negotiated or not.
    pub(crate) exercise: for<'a> fn(&'a Talk) -> BoxFuture<'a, ()>,
    /// What the frames of one side have of the capability: everything of it where it was used, and
    /// nothing where it was not.
    pub(crate) signs: fn(&Direction) -> Vec<bool>,
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
        signs: |side| {
            // A hello and the outcomes of a batch have it anyway.
            vec![side.messages().any(|message| {
                let kind = &message["type"];
                message.get("inReplyTo").is_some() && kind != "HELLO" && kind != "BATCH_OUTCOMES"
            })]
        },
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Credit,
        exercise: |talk| Box::pin(a_row_of_messages(talk)),
        signs: |side| vec![side.has("CREDIT")],
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::ErrorCodes,
        exercise: |talk| Box::pin(failures(talk)),
        signs: |side| vec![answers(side).any(|answer| answer.get("code").is_some())],
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Goodbye,
        exercise: |_| Box::pin(async {}),
        signs: |side| vec![side.has("GOODBYE")],
        shown_by: Shown::ByWhoCloses,
    },
    Probe {
        capability: Capability::Backlog,
        exercise: |talk| Box::pin(handlers_that_take_long(talk)),
        signs: |side| {
            vec![
                side.messages()
                    .any(|message| message["payload"].get("oldestUnhandledMs").is_some()),
            ]
        },
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Durable,
        exercise: |talk| Box::pin(outbox_and_mail(talk)),
        signs: |side| vec![side.has_member("seq")],
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Requests,
        exercise: |talk| Box::pin(requests(talk)),
        signs: |side| {
            let members = ["deadline", "items", "item"].map(|name| side.has_member(name));
            let types = ["ITEMS", "CANCEL"].map(|name| side.has(name));
            [members.as_slice(), &types].concat()
        },
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::NoAck,
        exercise: |talk| Box::pin(a_row_of_messages(talk)),
        signs: |side| vec![side.has_member("ack")],
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::AckRanges,
        exercise: |talk| Box::pin(answers_to_many(talk)),
        signs: |side| vec![side.has("ACKNOWLEDGMENTS")],
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Batch,
        exercise: |talk| Box::pin(batches(talk)),
        signs: |side| vec![side.has("BATCH"), side.has("BATCH_OUTCOMES")],
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Lz4,
        exercise: |talk| Box::pin(what_can_be_compressed(talk)),
        signs: |side| {
            let mut bodies = side.bodies.iter();
            vec![bodies.any(|body| body.kind == BodyKind::Compressed)]
        },
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Chunks,
        exercise: |talk| Box::pin(large_messages(talk)),
        signs: |side| {
            vec![
                side.bodies.iter().any(Body::is_piece),
                side.has("CHUNKS_BEGIN"),
                side.has("CHUNKS_TAKE"),
            ]
        },
        shown_by: Shown::ByBoth,
    },
    Probe {
        capability: Capability::Encryption,
        exercise: |talk| Box::pin(secrecy(talk)),
        signs: |side| {
            let (clear, sealed) = side.bodies.split_at(side.in_the_clear);
            let first = sealed.first();
            vec![
                clear
                    .iter()
                    .all(|body| body.is("HELLO") || body.is("ENCRYPTED")),
                !side.encrypted.is_empty(),
                first.is_some_and(|body| body.is("ENCRYPTION_CONFIRM")),
            ]
        },
        shown_by: Shown::ByBoth,
    },
];

/// What was said of single messages that were handled, or not.
fn answers(side: &Direction) -> impl Iterator<Item = &Value> {
    let list = |message_type, member: &'static str| {
        side.payloads(message_type)
            .filter_map(move |payload| payload[member].as_array())
            .flatten()
    };
    side.payloads("ACKNOWLEDGMENT")
        .chain(list("ACKNOWLEDGMENTS", "failed"))
        .chain(list("BATCH_OUTCOMES", "outcomes"))
}

/// All of them.
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

async fn requests(talk: &Talk) {
    ask_over(talk, &talk.at_client, &talk.to_service).await;
    ask_over(talk, &talk.at_service, &talk.to_client).await;
}

/// A request, a stream of more items than are granted at first, and a request that is given up.
async fn ask_over(talk: &Talk, connection: &IpcConnection, log: &Log) {
    let asking = connection
        .request(ask("ask"))
        .within(Duration::from_secs(60));
    if has(talk, Capability::InReplyTo) {
        log.expect("ask");
        assert_eq!(asking.await.unwrap().name, "ask");
    } else {
        let error = asking.await.unwrap_err();
        assert!(matches!(error, RequestError::NotNegotiated), "{error:?}");
    }

    let counting = connection.request_stream(Count { to: 5 }).window(2);
    if !has(talk, Capability::Requests) {
        let error = counting.await.unwrap_err();
        assert!(matches!(error, RequestError::NotNegotiated), "{error:?}");
        return;
    }
    log.expect("count");
    let mut stream = counting.await.unwrap();
    for number in 1..=5 {
        let item = stream.next().await.unwrap().unwrap();
        assert_eq!(item.name, number.to_string());
    }
    assert!(stream.next().await.is_none());
    assert_eq!(stream.finish().await.unwrap().name, "counted");

    log.expect("heed");
    tokio::select! {
        told = connection.request(ask("heed")) => panic!("{told:?}"),
        () = log.catch_up() => log.expect("heeded"),
    }
    log.catch_up().await;
}

/// Many wait at once.
async fn answers_to_many(talk: &Talk) {
    let names = ["1 of 3", "2 of 3", "3 of 3"];
    for name in names {
        talk.to_service.expect(name);
        talk.to_client.expect(name);
    }
    let [one, two, three] = names.map(|name| talk.at_client.send_acknowledged(act(name)));
    let answers = tokio::join!(one, two, three);
    for answer in [answers.0, answers.1, answers.2] {
        assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
    }
    let [one, two, three] = names.map(|name| talk.at_service.send_acknowledged(update(name)));
    let answers = tokio::join!(one, two, three);
    for answer in [answers.0, answers.1, answers.2] {
        talk.check_agents_answer(&answer);
    }
}

/// Long, and always the same.
async fn what_can_be_compressed(talk: &Talk) {
    let name = "x".repeat(5000);
    talk.to_service.expect(&name);
    talk.at_client.send(act(&name)).await.unwrap();
    talk.to_client.expect(&name);
    talk.at_service.send(update(&name)).await.unwrap();
    talk.catch_up().await;
}

/// One that goes in pieces to whoever takes them, and one that does not go otherwise.
async fn large_messages(talk: &Talk) {
    let name = "large ".repeat(20_000);
    talk.to_service.expect(&name);
    let answer = talk.at_client.send_large(act(&name)).unwrap().await;
    assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
    talk.to_client.expect(&name);
    let answer = talk.at_service.send_large(update(&name)).unwrap().await;
    talk.check_agents_answer(&answer);
    talk.catch_up().await;

    let longer = "x".repeat(limits::MAX_BODY);
    let sendings = [
        talk.at_client.send_large(act(&longer)),
        talk.at_service.send_large(update(&longer)),
    ];
    for sending in sendings {
        match (sending, has(talk, Capability::Chunks)) {
            // Nothing is sent of what is not polled.
            (Ok(_), true) | (Err(SendError::NoChunks { .. }), false) => {}
            (other, _) => panic!("{other:?}"),
        }
    }
}

async fn secrecy(talk: &Talk) {
    for connection in [&talk.at_client, &talk.at_service] {
        let encrypts = has(talk, Capability::Encryption);
        assert_eq!(connection.is_encrypted(), encrypts);
    }
}
