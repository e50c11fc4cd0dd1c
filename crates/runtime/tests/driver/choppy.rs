//! Two ends of this crate over a connection that cuts bytes anywhere and is ready at random: what
//! was sent arrives once, whole and in order, both ways.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use fastrand::Rng;
use migration_ipc::messages::{ConfigurationUpdate, UserAction};
use migration_ipc::transport::memory::{self, MemoryStream};
use migration_ipc::transport::{BoxFuture, IdentifyError, IdentifyWhen, Stream};
use migration_ipc::{
    Answer, ConnectionConfig, IpcClient, IpcConnection, IpcServer, MessageDispatcher, PeerIdentity,
    Reply, State,
};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::common::*;

const MESSAGES: u64 = 60;
const SEEDS: u64 = 30;

/// Moves a few bytes at a time, and now and then none.
#[derive(Debug)]
struct Choppy {
    stream: MemoryStream,
    random: Rng,
}

impl Choppy {
    /// How many bytes move now; `None` for "not ready", with the promise to be so soon.
    fn now(&mut self, cx: &mut Context<'_>) -> Option<usize> {
        let ready = self.random.u8(..4) > 0;
        if !ready {
            cx.waker().wake_by_ref();
        }
        ready.then(|| self.random.usize(1..64))
    }
}

impl AsyncRead for Choppy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(most) = self.now(cx) else {
            return Poll::Pending;
        };
        let mut few = [0; 64];
        let mut piece = ReadBuf::new(&mut few[..most]);
        let result = Pin::new(&mut self.stream).poll_read(cx, &mut piece);
        buffer.put_slice(piece.filled());
        result
    }
}

impl AsyncWrite for Choppy {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(most) = self.now(cx) else {
            return Poll::Pending;
        };
        let piece = &bytes[..most.min(bytes.len())];
        Pin::new(&mut self.stream).poll_write(cx, piece)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Stream for Choppy {
    fn identify_when(&self) -> IdentifyWhen {
        self.stream.identify_when()
    }

    fn identify(&self) -> BoxFuture<'static, Result<PeerIdentity, IdentifyError>> {
        self.stream.identify()
    }
}

/// What one end received, and a source of its own accidents.
#[derive(Debug, Clone)]
struct End {
    received: Arc<Mutex<Vec<u64>>>,
    random: Arc<Mutex<Rng>>,
}

impl End {
    fn new(random: &mut Rng) -> Self {
        Self {
            received: Arc::default(),
            random: Arc::new(Mutex::new(random.fork())),
        }
    }

    fn roll(&self, sides: u64) -> u64 {
        self.random.lock().unwrap().u64(..sides)
    }

    /// Some handlers take their time.
    async fn take(&self, number: &Value) {
        if self.roll(3) == 0 {
            tokio::time::sleep(Duration::from_millis(self.roll(20))).await;
        }
        self.received.lock().unwrap().push(number.as_u64().unwrap());
    }
}

async fn on_action(
    action: UserAction,
    State(end): State<End>,
) -> Option<Reply<ConfigurationUpdate>> {
    let number = &action.details["number"];
    end.take(number).await;
    (end.roll(4) == 0).then(|| Reply(ConfigurationUpdate::new("reply", number.clone())))
}

async fn on_update(update: ConfigurationUpdate, State(end): State<End>) {
    // A reply to what was no question is a message like any other.
    if update.key != "reply" {
        end.take(&update.value).await;
    }
}

fn tight(random: &mut Rng) -> ConnectionConfig {
    let mut config = ConnectionConfig::default();
    config.limits.inbox_messages = random.usize(1..6);
    config.limits.outbound_messages = random.usize(1..6);
    config.limits.in_flight = random.usize(1..6);
    config
}

/// Sends all numbers, some as questions.
async fn send_actions(client: &IpcClient, mut random: Rng) {
    for number in 0..MESSAGES {
        let padding = "x".repeat(random.usize(..300));
        let action = UserAction::new("", padding).with_detail("number", number);
        if random.bool() {
            client.send(action).await.unwrap();
        } else {
            match client.send_acknowledged(action).await.unwrap() {
                Answer::Handled => {}
                Answer::Replied(reply) => {
                    let reply: ConfigurationUpdate = reply.payload().unwrap();
                    assert_eq!(reply.value, json!(number), "the reply is to this question");
                }
            }
        }
    }
}

async fn send_updates(connection: &IpcConnection, mut random: Rng) {
    for number in 0..MESSAGES {
        let key = "k".repeat(random.usize(..300));
        let update = ConfigurationUpdate::new(key, json!(number));
        if random.bool() {
            connection.send(update).await.unwrap();
        } else {
            connection.send_acknowledged(update).await.unwrap();
        }
    }
}

async fn converse(seed: u64) {
    let mut random = Rng::with_seed(seed);
    let (service, agent) = (End::new(&mut random), End::new(&mut random));
    let capacity = random.usize(1..500);
    let (at_service, at_agent) = memory::pair(administrator(), user("1000"), capacity);
    let mut choppy = |stream| Choppy {
        stream,
        random: random.fork(),
    };
    let (at_service, at_agent) = (choppy(at_service), choppy(at_agent));

    let dispatcher = MessageDispatcher::builder(service.clone())
        .handle(on_action)
        .build()
        .unwrap();
    let (listener, hand_over) = handed();
    let server = IpcServer::builder(dispatcher)
        .listener(listener)
        .connection_config(tight(&mut random))
        .start()
        .await
        .unwrap();
    hand_over.send(Box::new(at_service)).await.unwrap();
    let dispatcher = MessageDispatcher::builder(agent.clone())
        .handle(on_update)
        .build()
        .unwrap();
    let client = IpcClient::builder(dispatcher)
        .connection_config(tight(&mut random))
        .connect_over(at_agent)
        .await
        .unwrap();
    let connection = only_connection(&server).await;

    let (actions, updates) = (random.fork(), random.fork());
    tokio::join!(
        send_actions(&client, actions),
        send_updates(&connection, updates)
    );
    // What was sent last without a question is on its way still: the end waits for it.
    let all: Vec<u64> = (0..MESSAGES).collect();
    eventually("the agent has everything", || {
        *agent.received.lock().unwrap() == all
    })
    .await;
    client.disconnect().await;
    let report = server.stop(PATIENCE).await;
    assert_eq!((report.unsent_messages, report.unhandled_messages), (0, 0));
    assert_eq!(*service.received.lock().unwrap(), all);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_arrives_once_and_in_order_however_the_bytes_are_cut() {
    for seed in 0..SEEDS {
        let conversation = tokio::time::timeout(LONG_PATIENCE, converse(seed));
        assert!(conversation.await.is_ok(), "seed {seed} got stuck");
    }
}
