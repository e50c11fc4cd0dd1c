//! What a good programmer writes in an afternoon: tokio, a length-delimited codec, serde_json, one
//! task that reads, one that writes, a flush per message. No identity, no back-pressure from
//! handlers, no heartbeats, no metrics.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use migration_ipc::messages::BackupProgress;
use migration_ipc::{RawValue, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};
use uuid::Uuid;

use crate::message::{consume, progress};
use crate::peer::{Arrivals, Peer};

/// Messages that wait for the task that writes.
const QUEUE: usize = 1024;

/// Answered with an acknowledgment.
const CALL: &str = "BACKUP_PROGRESS";
/// Not answered.
const SAMPLE: &str = "PROGRESS_SAMPLE";
const COUNT: &str = "COUNT_REQUEST";
const TRIGGER: &str = "TRIGGER";
const ACKNOWLEDGMENT: &str = "ACKNOWLEDGMENT";

#[derive(Debug, Serialize)]
struct Outgoing<'a, P> {
    id: &'a str,
    #[serde(rename = "type")]
    message_type: &'a str,
    timestamp: String,
    payload: P,
}

#[derive(Debug, Deserialize)]
struct Incoming {
    id: String,
    #[serde(rename = "type")]
    message_type: String,
    payload: Box<RawValue>,
}

impl Incoming {
    fn read(body: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(body)
    }

    fn progress(&self) -> serde_json::Result<BackupProgress> {
        serde_json::from_str(self.payload.get())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Acknowledgment {
    original: String,
    handled: u64,
}

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .little_endian()
        .length_field_length(4)
        .new_codec()
}

fn encode<P: Serialize>(id: &str, message_type: &str, payload: P) -> serde_json::Result<Bytes> {
    let timestamp = Timestamp::from(SystemTime::now()).to_string();
    let message = Outgoing {
        id,
        message_type,
        timestamp,
        payload,
    };
    serde_json::to_vec(&message).map(Bytes::from)
}

fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// A queue, and the task that writes what comes through it.
fn start_writer(half: OwnedWriteHalf) -> mpsc::Sender<Bytes> {
    let (sender, mut queue) = mpsc::channel::<Bytes>(QUEUE);
    tokio::spawn(async move {
        let mut frames = FramedWrite::new(half, codec());
        while let Some(body) = queue.recv().await {
            frames.send(body).await?;
        }
        io::Result::Ok(())
    });
    sender
}

#[derive(Debug, Default)]
struct Server {
    handled: AtomicU64,
    clients: Mutex<Vec<mpsc::Sender<Bytes>>>,
}

impl Server {
    fn handle(&self, message: &Incoming) -> Result<()> {
        consume(&message.progress()?);
        self.handled.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn acknowledgment(&self, message: Incoming) -> Result<Bytes> {
        let acknowledgment = Acknowledgment {
            original: message.id,
            handled: self.handled.load(Ordering::Relaxed),
        };
        Ok(encode(&new_id(), ACKNOWLEDGMENT, acknowledgment)?)
    }

    fn add_client(&self, queue: mpsc::Sender<Bytes>) {
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(queue);
    }

    fn clients(&self) -> Vec<mpsc::Sender<Bytes>> {
        let clients = self.clients.lock();
        clients.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves until the future is dropped.
pub(crate) async fn serve(listener: UnixListener) -> Result<()> {
    let server = Arc::new(Server::default());
    loop {
        let (stream, _) = listener.accept().await?;
        let (reading, writing) = stream.into_split();
        let answers = start_writer(writing);
        server.add_client(answers.clone());
        tokio::spawn(serve_client(Arc::clone(&server), reading, answers));
    }
}

async fn serve_client(
    server: Arc<Server>,
    reading: OwnedReadHalf,
    answers: mpsc::Sender<Bytes>,
) -> Result<()> {
    let mut frames = FramedRead::new(reading, codec());
    while let Some(body) = frames.next().await {
        let message = Incoming::read(&body?)?;
        match message.message_type.as_str() {
            CALL => {
                server.handle(&message)?;
                answers.send(server.acknowledgment(message)?).await?;
            }
            SAMPLE => server.handle(&message)?,
            COUNT => answers.send(server.acknowledgment(message)?).await?,
            TRIGGER => {
                let sample = encode(&new_id(), SAMPLE, progress(0))?;
                for client in server.clients() {
                    client.send(sample.clone()).await?;
                }
            }
            other => anyhow::bail!("unexpected {other}"),
        }
    }
    Ok(())
}

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<Acknowledgment>>>>;

#[derive(Clone, Debug)]
pub(crate) struct Client {
    queue: mpsc::Sender<Bytes>,
    waiting: Waiting,
}

impl Client {
    async fn request<P: Serialize>(
        &self,
        message_type: &str,
        payload: P,
    ) -> Result<Acknowledgment> {
        let id = new_id();
        let (sender, answer) = oneshot::channel();
        let body = encode(&id, message_type, payload)?;
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, sender);
        self.queue.send(body).await?;
        answer.await.context("the server is gone")
    }
}

async fn read(reading: OwnedReadHalf, waiting: Waiting, arrivals: Arrivals) -> Result<()> {
    let mut frames = FramedRead::new(reading, codec());
    while let Some(body) = frames.next().await {
        let message = Incoming::read(&body?)?;
        if message.message_type == ACKNOWLEDGMENT {
            let answer: Acknowledgment = serde_json::from_str(message.payload.get())?;
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(caller) = waiting.remove(&answer.original) {
                // A caller that stopped waiting needs no answer.
                drop(caller.send(answer));
            }
        } else {
            consume(&message.progress()?);
            arrivals.add();
        }
    }
    Ok(())
}

impl Peer for Client {
    async fn connect(endpoint: &str, arrivals: Arrivals) -> Result<Self> {
        let (reading, writing) = UnixStream::connect(endpoint).await?.into_split();
        let client = Self {
            queue: start_writer(writing),
            waiting: Waiting::default(),
        };
        tokio::spawn(read(reading, Arc::clone(&client.waiting), arrivals));
        Ok(client)
    }

    async fn call(&self, number: u64) -> Result<()> {
        self.request(CALL, progress(number)).await?;
        Ok(())
    }

    async fn send(&self, number: u64) -> Result<()> {
        let body = encode(&new_id(), SAMPLE, progress(number))?;
        Ok(self.queue.send(body).await?)
    }

    async fn handled(&self) -> Result<u64> {
        Ok(self.request(COUNT, ()).await?.handled)
    }

    async fn trigger(&self) -> Result<()> {
        let body = encode(&new_id(), TRIGGER, ())?;
        Ok(self.queue.send(body).await?)
    }
}
