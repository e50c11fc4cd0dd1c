//! `mail` and `dead-letters`: what is kept for users who are absent, and what was refused.

use clap::{Args, Subcommand};
use migration_ipc::IpcClient;
use migration_ipc::storage::Direction;

use super::connect::{ask, connect};
use super::kept_messages::{
    Change, KeptChange, KeptChangeRequest, KeptLine, KeptOutcome, KeptPage, KeptRequest, Shelf,
};
use super::table::table;
use crate::address::Address;
use crate::cli::{Exit, Failure, print, visible};

/// Look after messages for users who are absent.
#[derive(Debug, Args)]
pub(crate) struct MailCommand {
    #[command(subcommand)]
    action: MailAction,
}

#[derive(Debug, Subcommand)]
enum MailAction {
    /// Show what is kept, in the order in which it will be delivered.
    List(List),
    /// Remove messages; one that is on its way at this moment may still arrive.
    Drop(Numbers),
}

/// Look after messages that were refused, or have expired.
#[derive(Debug, Args)]
pub(crate) struct DeadLettersCommand {
    #[command(subcommand)]
    action: DeadLetterAction,
}

#[derive(Debug, Subcommand)]
enum DeadLetterAction {
    /// Show what was refused, and why.
    List(List),
    /// Try messages again: those for agents become mail, those from agents are handled once more.
    Requeue(Numbers),
    /// Remove messages.
    Drop(Numbers),
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    address: Address,

    /// Print one JSON object per line, with the payloads
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Numbers {
    #[command(flatten)]
    address: Address,

    /// The numbers that `list` shows
    #[arg(value_name = "NUMBER", required = true)]
    numbers: Vec<u64>,
}

impl MailCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.action {
            MailAction::List(list) => list.run(Shelf::Mail).await,
            MailAction::Drop(numbers) => numbers.run(Shelf::Mail, Change::Drop).await,
        }
    }
}

impl DeadLettersCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let shelf = Shelf::DeadLetters;
        match self.action {
            DeadLetterAction::List(list) => list.run(shelf).await,
            DeadLetterAction::Requeue(numbers) => numbers.run(shelf, Change::Requeue).await,
            DeadLetterAction::Drop(numbers) => numbers.run(shelf, Change::Drop).await,
        }
    }
}

impl List {
    async fn run(self, shelf: Shelf) -> Result<(), Failure> {
        let client = connect(&self.address).await?;
        let mut rows = vec![heading(shelf)];
        let mut after = Some(0);
        while let Some(begin) = after {
            let request = KeptRequest {
                shelf,
                after: begin,
            };
            let page: KeptPage = ask(&client, request).await?;
            for line in page.messages {
                if self.json {
                    print(serde_json::to_string(&line)?)?;
                } else {
                    rows.push(row(shelf, &line));
                }
            }
            after = page.next;
        }
        client.disconnect().await;
        if !self.json {
            print(table(&rows))?;
        }
        Ok(())
    }
}

impl Numbers {
    async fn run(self, shelf: Shelf, change: Change) -> Result<(), Failure> {
        let client = connect(&self.address).await?;
        let changed = change_all(&client, shelf, change, &self.numbers).await;
        client.disconnect().await;
        changed
    }
}

/// Changes one after the other; those that cannot be changed do not keep the others from it.
async fn change_all(
    client: &IpcClient,
    shelf: Shelf,
    change: Change,
    numbers: &[u64],
) -> Result<(), Failure> {
    let mut result = Ok(());
    for &number in numbers {
        let request = KeptChangeRequest {
            shelf,
            number,
            change,
        };
        let changed = match ask(client, request).await {
            Ok(KeptChange {
                outcome: KeptOutcome::Unknown,
            }) => Err(Failure::new(Exit::Failed, format!("there is no {number}"))),
            Ok(KeptChange { outcome }) => Ok(print(format_args!("{number}: {outcome}"))?),
            Err(failure) if failure.exit == Exit::Refused => {
                let text = format!("{number}: {}", failure.error);
                Err(Failure::new(Exit::Failed, text))
            }
            Err(failure) => return Err(failure),
        };
        result = result.and(changed);
    }
    result
}

fn heading(shelf: Shelf) -> Vec<String> {
    let columns: &[&str] = match shelf {
        Shelf::Mail => &["NUMBER", "USER", "TYPE", "TIME", "EXPIRES"],
        Shelf::DeadLetters => &["NUMBER", "USER", "TYPE", "TIME", "DIRECTION", "WHY"],
    };
    columns.iter().map(|&column| column.to_owned()).collect()
}

fn row(shelf: Shelf, line: &KeptLine) -> Vec<String> {
    let mut row = vec![
        line.number.to_string(),
        visible(&line.user).into_owned(),
        visible(&line.message_type).into_owned(),
        line.time.to_string(),
    ];
    match shelf {
        Shelf::Mail => row.push(line.expires.map_or("-".to_owned(), |at| at.to_string())),
        Shelf::DeadLetters => {
            let direction = match line.direction {
                Some(Direction::FromAgent) => "from agent",
                Some(Direction::ToAgent) => "to agent",
                None => "-",
            };
            let why = line.error.as_deref().unwrap_or_default();
            row.extend([direction.to_owned(), visible(why).into_owned()]);
        }
    }
    row
}
