//! Keys, ends that have them, and what is said between them.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use migration_ipc::crypto::{
    Key, KeyPair, Keyring, Pattern, Protocol, Provider, SharedKey, StaticKeys, Suite,
};
use migration_ipc::messages::{AgentStarted, ConfigurationUpdate, UserAction};
use migration_ipc::protocol::Sensitive;
use migration_ipc::transport::memory::{MemoryConnector, MemoryStream};
use migration_ipc::transport::{BoxFuture, IdentifyError, IdentifyWhen, Stream};
use migration_ipc::{
    ConnectError, ConnectionConfig, Encryption, IpcClient, IpcClientBuilder, IpcServer,
    IpcServerBuilder, MessageDispatcher, MessagePayload, PeerIdentity, Reply, Sender,
    SensitivePolicy, State,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::common::*;

pub(crate) const KEY: &str = "2026-11";

pub(crate) const SECRET: &str = "hunter2-is-no-word-that-comes-by-chance";

/// The same shared key at both ends.
pub(crate) fn keyring() -> Keyring {
    keyring_of(KEY, 7)
}

pub(crate) fn keyring_of(name: &str, byte: u8) -> Keyring {
    Keyring::new(
        name.parse().unwrap(),
        Key::Shared(SharedKey::new([byte; 32])),
    )
}

/// The keyrings of the two ends for each protocol: the client's and the service's.
pub(crate) fn keyrings(protocol: Protocol) -> [Keyring; 2] {
    match protocol.pattern {
        Pattern::NnPsk0 => [keyring(), keyring()],
        Pattern::Kk => {
            let provider = Provider::default();
            let [client, service] = [(); 2].map(|()| KeyPair::generate(&provider).unwrap());
            let ring = |pair: KeyPair, peer| {
                let keys = StaticKeys {
                    private: pair.private,
                    peer,
                };
                Keyring::new(KEY.parse().unwrap(), keys.into())
            };
            let (of_client, of_service) = (client.public, service.public);
            [ring(client, of_service), ring(service, of_client)]
        }
    }
}

pub(crate) fn offered() -> Encryption {
    Encryption::offered(keyring())
}

pub(crate) fn required() -> Encryption {
    Encryption::required(keyring())
}

/// What a handler of these tests was called with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn note(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }
}

/// A payload with a secret, which either end may send.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Unlock {
    pub(crate) archive: String,
    pub(crate) password: Sensitive<String>,
}

impl MessagePayload for Unlock {
    const TYPE: &'static str = "UNLOCK";
    const SENDER: Sender = Sender::Any;
    const SENSITIVE: bool = true;
}

pub(crate) fn unlock(archive: &str) -> Unlock {
    Unlock {
        archive: archive.to_owned(),
        password: Sensitive::new(SECRET.to_owned()),
    }
}

async fn on_action(
    action: UserAction,
    State(heard): State<Heard>,
) -> Option<Reply<ConfigurationUpdate>> {
    heard.note(&action.action);
    (action.action == "ask").then(|| Reply(ConfigurationUpdate::new("answer", json!(SECRET))))
}

async fn on_update(update: ConfigurationUpdate, State(heard): State<Heard>) {
    heard.note(&update.key);
}

async fn on_unlock(unlock: Unlock, State(heard): State<Heard>) -> Option<Reply<Unlock>> {
    assert_eq!(unlock.password.expose(), SECRET);
    heard.note(&unlock.archive);
    (unlock.archive == "ask").then_some(Reply(unlock))
}

pub(crate) fn service_of(heard: &Heard) -> MessageDispatcher {
    MessageDispatcher::builder(heard.clone())
        .handle(|_: AgentStarted| async {})
        .handle(on_action)
        .handle(on_unlock)
        .build()
        .unwrap()
}

pub(crate) fn agent_of(heard: &Heard) -> MessageDispatcher {
    MessageDispatcher::builder(heard.clone())
        .handle(on_update)
        .handle(on_unlock)
        .build()
        .unwrap()
}

/// A service with this setup, and what its handlers hear.
pub(crate) async fn service(
    set_up: impl FnOnce(IpcServerBuilder) -> IpcServerBuilder,
) -> (IpcServer, MemoryConnector, Heard) {
    let heard = Heard::default();
    let (server, connector) = serve_with(service_of(&heard), set_up).await;
    (server, connector, heard)
}

pub(crate) fn agent(heard: &Heard) -> IpcClientBuilder {
    IpcClient::builder(agent_of(heard)).announce(&AgentStarted::new("", "1.0.0", "1"))
}

/// An agent without a need to hear anything, connected to this service.
pub(crate) async fn connect(
    connector: &MemoryConnector,
    set_up: impl FnOnce(IpcClientBuilder) -> IpcClientBuilder,
) -> Result<IpcClient, ConnectError> {
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = set_up(agent(&Heard::default()));
    tokio::time::timeout(LONG_PATIENCE, client.connect_over(stream))
        .await
        .expect("connecting is not stuck")
}

/// Sensitive messages go over encrypted connections alone.
pub(crate) fn guarded() -> ConnectionConfig {
    ConnectionConfig {
        sensitive: SensitivePolicy::Encrypted,
        ..ConnectionConfig::default()
    }
}

/// Tampers with no byte, and keeps all of them.
#[derive(Debug)]
pub(crate) struct Tapped {
    stream: MemoryStream,
    tape: Tape,
}

/// What went over a connection, in both directions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tape(Arc<Mutex<[Vec<u8>; 2]>>);

impl Tape {
    pub(crate) fn tap(&self, stream: MemoryStream) -> Tapped {
        Tapped {
            stream,
            tape: self.clone(),
        }
    }

    /// Whether this text is anywhere in it.
    pub(crate) fn has(&self, text: &str) -> bool {
        let tape = self.0.lock().unwrap();
        let has = |bytes: &Vec<u8>| {
            bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        tape.iter().any(has)
    }

    /// Everything that went out.
    pub(crate) fn sent(&self) -> Vec<u8> {
        self.0.lock().unwrap()[0].clone()
    }
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.tape.0.lock().unwrap()[1].extend_from_slice(&buffer.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = &polled {
            self.tape.0.lock().unwrap()[0].extend_from_slice(&bytes[..*count]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Stream for Tapped {
    fn identify_when(&self) -> IdentifyWhen {
        self.stream.identify_when()
    }

    fn identify(&self) -> BoxFuture<'static, Result<PeerIdentity, IdentifyError>> {
        self.stream.identify()
    }
}

pub(crate) const SUITES: [Suite; 2] = [Suite::ChaChaPoly, Suite::AesGcm];
