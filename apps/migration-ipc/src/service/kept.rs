//! Mail and dead letters, as operators ask for them.

use migration_ipc::storage::StoreError;
use migration_ipc::{HandlerError, Mailbox, Peer, Reply, RequeueError, Requeued, State};

use super::handlers::Office;
use crate::operator::{
    Change, KeptChange, KeptChangeRequest, KeptLine, KeptOutcome, KeptPage, KeptRequest, Shelf,
};

/// How many messages a page has at most, and how many bytes, at most by one message more: half of
/// what a message may have.
const PAGE_MESSAGES: usize = 256;
const PAGE_BYTES: usize = 512 * 1024;

pub(crate) async fn on_kept_request(
    request: KeptRequest,
    State(office): State<Office>,
) -> Result<Reply<KeptPage>, HandlerError> {
    Ok(Reply(page(&office.mailbox()?, request).await?))
}

pub(crate) async fn on_change_request(
    request: KeptChangeRequest,
    peer: Peer,
    State(office): State<Office>,
) -> Result<Reply<KeptChange>, HandlerError> {
    let mailbox = office.mailbox()?;
    let KeptChangeRequest { number, .. } = request;
    let action = match (request.shelf, request.change) {
        (Shelf::Mail, Change::Drop) => "drop_mail",
        (Shelf::Mail, Change::Requeue) => "requeue_mail",
        (Shelf::DeadLetters, Change::Drop) => "drop_dead_letter",
        (Shelf::DeadLetters, Change::Requeue) => "requeue_dead_letter",
    };
    let whose = owner(&mailbox, request.shelf, number).await?;
    peer.audit(action, number, format_args!("user {whose}"));
    let dropped = |found: bool| {
        if found {
            KeptOutcome::Dropped
        } else {
            KeptOutcome::Unknown
        }
    };
    let outcome = match (request.shelf, request.change) {
        (Shelf::Mail, Change::Drop) => dropped(mailbox.drop_mail(number).await?.is_some()),
        (Shelf::DeadLetters, Change::Drop) => {
            dropped(mailbox.drop_dead_letter(number).await?.is_some())
        }
        (Shelf::Mail, Change::Requeue) => {
            return Err(HandlerError::new("mail is delivered by itself"));
        }
        (Shelf::DeadLetters, Change::Requeue) => match mailbox.requeue(number).await {
            Ok(Requeued::Mailed) => KeptOutcome::Mailed,
            Ok(Requeued::Handled) => KeptOutcome::Handled,
            Err(RequeueError::Unknown(_)) => KeptOutcome::Unknown,
            Err(error) => return Err(error.into()),
        },
    };
    Ok(Reply(KeptChange { outcome }))
}

/// The account that a message is for, or came from.
async fn owner(mailbox: &Mailbox, shelf: Shelf, number: u64) -> Result<String, StoreError> {
    let before = number.saturating_sub(1);
    let found: Option<KeptLine> = match shelf {
        Shelf::Mail => mailbox.mail(before, 1).await?.pop().map(KeptLine::from),
        Shelf::DeadLetters => mailbox
            .dead_letters(before, 1)
            .await?
            .pop()
            .map(KeptLine::from),
    };
    let found = found.filter(|line| line.number == number);
    Ok(found.map_or_else(|| "unknown".to_owned(), |line| line.user))
}

async fn page(mailbox: &Mailbox, request: KeptRequest) -> Result<KeptPage, StoreError> {
    let found: Vec<KeptLine> = match request.shelf {
        Shelf::Mail => {
            let mail = mailbox.mail(request.after, PAGE_MESSAGES).await?;
            mail.into_iter().map(KeptLine::from).collect()
        }
        Shelf::DeadLetters => {
            let letters = mailbox.dead_letters(request.after, PAGE_MESSAGES).await?;
            letters.into_iter().map(KeptLine::from).collect()
        }
    };
    let is_full = found.len() == PAGE_MESSAGES;
    let mut messages = Vec::with_capacity(found.len());
    let mut bytes = 0;
    let mut found = found.into_iter().peekable();
    while let Some(line) = found.next() {
        let number = line.number;
        bytes += serde_json::to_string(&line).map_or(0, |json| json.len());
        messages.push(line);
        if bytes >= PAGE_BYTES || (is_full && found.peek().is_none()) {
            let next = Some(number);
            return Ok(KeptPage { messages, next });
        }
    }
    Ok(KeptPage {
        messages,
        next: None,
    })
}
