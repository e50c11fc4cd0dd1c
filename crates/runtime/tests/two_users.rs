//! Two users of one machine: processes under two user ids talk to one service, and neither can
//! speak for the other. Linux and macOS, as root; anybody else sees that it was skipped.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use common::*;
use migration_ipc::messages::{
    AgentStarted, BackupProgress, Category, ConfigurationUpdate, OverallStatus, Percent,
    StatusUpdate,
};
use migration_ipc::{
    AccountId, Endpoint, IpcClient, IpcServer, MessageDispatcher, MessagePayload, Peer, Role,
    SendError, Sender,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const ALICE: u32 = 60_001;
/// Over the limit of a signed number.
const BOB: u32 = 4_294_967_290;

/// Whether other users can be played here. Says so if not: a test that was skipped shows nothing.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root can start processes of other users");
    }
    root
}

/// What only operators may send.
#[derive(Debug, Serialize, Deserialize)]
struct Order {}

impl MessagePayload for Order {
    const TYPE: &'static str = "ORDER";
    const SENDER: Sender = Sender::Operator;
}

// --- the service ---------------------------------------------------------------------------------

async fn on_progress(progress: BackupProgress, peer: Peer) {
    assert_eq!(progress.user_id, peer.account().as_str());
}

/// A service that every user can reach.
async fn start(place: &Place) -> IpcServer {
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.folder(), mode).unwrap();
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .handle(on_progress)
        .handle(|_: StatusUpdate| async {})
        .handle(|_: Order| async {})
        .build()
        .unwrap();
    IpcServer::builder(dispatcher)
        .endpoint_with(place.endpoint(), development())
        .start()
        .await
        .unwrap()
}

fn account(uid: u32) -> AccountId {
    AccountId::new(uid.to_string())
}

#[tokio::test]
async fn one_that_names_the_others_account_is_refused() {
    if !is_root() {
        return;
    }
    let place = Place::new("two");
    let server = start(&place).await;
    let mut alice = Player::start("announce", ALICE, &place, &ALICE.to_string()).await;
    assert_eq!(alice.line().await, "announced");
    let mut bob = Player::start("announce", BOB, &place, &ALICE.to_string()).await;
    let refused =
        format!("refused: the message names the account {ALICE}, but it comes from {BOB}");
    assert_eq!(bob.line().await, refused);

    let of_alice = server.connections().by_user(&account(ALICE));
    assert_eq!(of_alice.len(), 1);
    assert_eq!(of_alice[0].peer().process_id(), Some(alice.process.id()));
    assert!(server.connections().by_user(&account(BOB)).is_empty());
    // What is Alice's reaches her, and nobody else.
    let status = StatusUpdate::new(OverallStatus::Waiting, vec![], vec![], 2);
    assert_eq!(
        server
            .send_to_user(&account(ALICE), status)
            .unwrap()
            .accepted
            .len(),
        1
    );
    assert_eq!(alice.line().await, "received STATUS_UPDATE");
}

#[tokio::test]
async fn each_may_speak_for_itself_by_any_of_its_names() {
    if !is_root() {
        return;
    }
    let place = Place::new("each");
    let server = start(&place).await;
    let mut alice = Player::start("announce", ALICE, &place, "").await;
    assert_eq!(alice.line().await, "announced");
    let mut bob = Player::start("announce", BOB, &place, "no such user").await;
    assert_eq!(bob.line().await, "announced");
    let mut root = Player::start("announce", 0, &place, "root").await;
    assert_eq!(root.line().await, "announced");
    for uid in [ALICE, BOB, 0] {
        assert_eq!(
            server.connections().by_user(&account(uid)).len(),
            1,
            "{uid}"
        );
    }
}

#[tokio::test]
async fn one_that_keeps_naming_the_other_is_disconnected() {
    if !is_root() {
        return;
    }
    let place = Place::new("keeps");
    let server = start(&place).await;
    let mut bob = Player::start("pretend", BOB, &place, "root").await;
    for _ in 0..4 {
        let said = bob.line().await;
        assert!(said.contains("names the account 0"), "{said}");
    }
    assert_eq!(bob.line().await, "disconnected");
    eventually("he is gone", || server.connections().counts().total() == 0).await;
}

#[tokio::test]
async fn neither_is_an_operator() {
    if !is_root() {
        return;
    }
    let place = Place::new("operator");
    let _server = start(&place).await;
    let mut alice = Player::start("operate", ALICE, &place, "").await;
    let said = alice.line().await;
    assert!(said.contains("only administrators"), "{said}");
    let mut root = Player::start("operate", 0, &place, "").await;
    assert_eq!(root.line().await, "operating");
}

/// What each process has received is searched as bytes.
#[tokio::test]
async fn what_is_meant_for_one_reaches_no_process_of_the_other() {
    if !is_root() {
        return;
    }
    let place = Place::new("meant");
    let server = start(&place).await;
    let mut alice = Player::start("puppet", ALICE, &place, "").await;
    let mut bob = Player::start("puppet", BOB, &place, "").await;
    let mut root = Player::start("puppet", 0, &place, "").await;
    root.say(&envelope("h", "HELLO", hello("operator", 100)));
    assert!(root.line().await.contains("HELLO"));
    for (puppet, uid) in [(&mut alice, ALICE), (&mut bob, BOB)] {
        // Both name the same session.
        puppet.announce(uid, "1").await;
    }
    let update = |mark: &str| ConfigurationUpdate::new(mark, json!(1));
    for number in 0..50 {
        for uid in [ALICE, BOB] {
            let meant = update(&format!("for-{uid}-{number}"));
            server.send_to_user(&account(uid), meant).unwrap();
        }
    }
    server.broadcast(&update("for-all")).unwrap();
    for (puppet, own, other) in [(&mut alice, ALICE, BOB), (&mut bob, BOB, ALICE)] {
        let mut count = 0;
        loop {
            let line = puppet.line().await;
            assert!(!line.contains(&format!("for-{other}-")), "{own}: {line}");
            count += usize::from(line.contains(&format!("for-{own}-")));
            if line.contains("for-all") {
                break;
            }
        }
        assert_eq!(count, 50, "{own}");
    }
    // The operator announced nothing, so nothing is addressed to it, and it hears the next answer.
    root.say(&envelope("q", "NO_SUCH_TYPE", json!({})));
    let answer = root.line().await;
    assert!(answer.contains("\"originalMessageId\":\"q\""), "{answer}");
}

/// Who one is decides, and what one says that one is: by user id, role and type of message.
#[tokio::test]
async fn each_may_send_what_its_user_and_role_allow_and_nothing_else() {
    if !is_root() {
        return;
    }
    let place = Place::new("may");
    let _server = start(&place).await;
    let status = serde_json::to_value(StatusUpdate::new(OverallStatus::Waiting, vec![], vec![], 2));
    let progress = progress(1);
    let messages = [
        ("BACKUP_PROGRESS", progress),
        ("ORDER", json!({})),
        ("STATUS_UPDATE", status.unwrap()),
    ];
    let table = [
        (ALICE, None, [true, false, false]),
        (ALICE, Some("agent"), [true, false, false]),
        (BOB, None, [true, false, false]),
        (0, None, [true, false, false]),
        (0, Some("agent"), [true, false, false]),
        (0, Some("operator"), [false, true, false]),
    ];
    for (uid, role, allowed) in table {
        let mut puppet = Player::start("puppet", uid, &place, "").await;
        if let Some(role) = role {
            puppet.say(&envelope("h", "HELLO", hello(role, 100)));
            assert!(puppet.line().await.contains("HELLO"));
        }
        for ((message_type, payload), allowed) in messages.iter().zip(allowed) {
            puppet.say(&envelope("m", message_type, payload.clone()));
            let answer: Value = serde_json::from_str(&puppet.line().await).unwrap();
            let payload = &answer["payload"];
            assert_eq!(payload["success"], allowed, "{uid} {role:?} {message_type}");
        }
    }
    for uid in [ALICE, BOB] {
        let mut puppet = Player::start("puppet", uid, &place, "").await;
        puppet.say(&envelope("h", "HELLO", hello("operator", 100)));
        let answer = puppet.line().await;
        assert!(answer.contains("only administrators"), "{answer}");
    }
}

/// Bob knows the ids of what Alice was sent, and answers in her place.
#[tokio::test]
async fn one_cannot_answer_what_the_other_was_asked() {
    if !is_root() {
        return;
    }
    let place = Place::new("answer");
    let server = start(&place).await;
    let mut alice = Player::start("puppet", ALICE, &place, "").await;
    let mut bob = Player::start("puppet", BOB, &place, "").await;
    alice.announce(ALICE, "1").await;
    bob.announce(BOB, "1").await;
    let to_alice = server.connections().by_user(&account(ALICE)).remove(0);
    let asked = ConfigurationUpdate::new("asked", json!(1));
    let asking = tokio::spawn(async move { to_alice.send_acknowledged(asked).await });
    let message: Value = serde_json::from_str(&alice.line().await).unwrap();
    let answer = envelope("a", "ACKNOWLEDGMENT", acknowledgment(&message));
    bob.say(&answer);
    // What Bob sends next is answered, so that his answer has arrived.
    bob.announce(BOB, "2").await;
    assert!(!asking.is_finished(), "it waits for Alice");
    alice.say(&answer);
    assert!(within(asking).await.unwrap().is_ok());
}

// --- the users -----------------------------------------------------------------------------------

/// A process of this test program under another user id, which plays a role and says what happens.
/// It is killed in the end.
struct Player {
    process: Child,
    said: Option<Lines<BufReader<ChildStderr>>>,
}

impl Player {
    async fn start(role: &str, uid: u32, place: &Place, name: &str) -> Self {
        // On Linux a name that any user can follow, wherever the program lies.
        let program = if cfg!(target_os = "linux") {
            PathBuf::from("/proc/self/exe")
        } else {
            std::env::current_exe().unwrap()
        };
        let mut process = Command::new(program)
            .args(["play", "--exact", "--ignored", "--nocapture"])
            .env("MIG_TEST_ROLE", role)
            .env("MIG_TEST_ENDPOINT", place.endpoint().to_string())
            .env("MIG_TEST_NAME", name)
            .current_dir("/")
            .uid(uid)
            .gid(uid)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stderr.take().unwrap()).lines();
        Self {
            process,
            said: Some(said),
        }
    }

    /// Makes a puppet send a message.
    fn say(&mut self, message: &Value) {
        let stdin = self.process.stdin.as_mut().unwrap();
        writeln!(stdin, "{message}").unwrap();
    }

    /// Makes a puppet announce itself, as a plain agent.
    async fn announce(&mut self, uid: u32, session: &str) {
        let announcement = agent_started(&uid.to_string(), session);
        self.say(&envelope("m", "AGENT_STARTED", announcement));
        let answer = self.line().await;
        assert!(answer.contains("\"success\":true"), "{answer}");
    }

    /// The next line that it says, while the service goes on.
    async fn line(&mut self) -> String {
        let mut said = self.said.take().unwrap();
        let reading = tokio::task::spawn_blocking(move || (said.next(), said));
        let (line, said) = within(reading).await.unwrap();
        self.said = Some(said);
        line.expect("it says something").unwrap()
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        self.process.wait().unwrap();
    }
}

/// Plays a role; see [`Player`]. Ends with its standard input.
#[tokio::test]
#[ignore = "started by the tests of this program"]
async fn play() {
    let Ok(role) = std::env::var("MIG_TEST_ROLE") else {
        return;
    };
    let endpoint = Endpoint::parse(&std::env::var("MIG_TEST_ENDPOINT").unwrap()).unwrap();
    if role == "puppet" {
        tokio::task::spawn_blocking(move || be_a_puppet(&endpoint))
            .await
            .unwrap();
        return;
    }
    let name = std::env::var("MIG_TEST_NAME").unwrap();
    let (dispatcher, mut incoming) = MessageDispatcher::into_channel(8);
    let client = IpcClient::builder(dispatcher).endpoint(endpoint);
    tokio::spawn(async move {
        while let Some((message, _)) = incoming.recv().await {
            eprintln!("received {}", message.message_type);
        }
    });
    let _client = match role.as_str() {
        "announce" => {
            let announcement = AgentStarted::new(name, "1.0.0", "1");
            let mut client = client.announce(&announcement).connect().await.unwrap();
            match client.announced().await {
                Ok(()) => eprintln!("announced"),
                Err(SendError::Rejected(rejection)) => eprintln!("refused: {}", rejection.error),
                Err(error) => eprintln!("{error}"),
            }
            Some(client)
        }
        "pretend" => {
            let client = client.connect().await.unwrap();
            for _ in 0..4 {
                let half = Percent::of(1, 2);
                let progress = BackupProgress::new(&*name, Category::Files, half, 1, 2);
                match client.send_acknowledged(progress).await {
                    Ok(answer) => eprintln!("{answer:?}"),
                    Err(error) => eprintln!("{error}"),
                }
            }
            client.closed().await;
            eprintln!("disconnected");
            None
        }
        "operate" => match client.role(Role::Operator).connect().await {
            Ok(client) => {
                eprintln!("operating");
                Some(client)
            }
            Err(error) => {
                eprintln!("{error}");
                None
            }
        },
        other => panic!("no role {other}"),
    };
    let wait = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(wait).await.unwrap().unwrap();
}

/// Sends each line of its input as a frame, and says each frame that it receives as a line.
fn be_a_puppet(endpoint: &Endpoint) {
    let mut sending = UnixStream::connect(endpoint.address()).unwrap();
    let mut receiving = sending.try_clone().unwrap();
    let listening = std::thread::spawn(move || {
        let mut length = [0; 4];
        while receiving.read_exact(&mut length).is_ok() {
            let mut body = vec![0; u32::from_le_bytes(length) as usize];
            receiving.read_exact(&mut body).unwrap();
            eprintln!("{}", String::from_utf8_lossy(&body));
        }
    });
    for line in std::io::stdin().lines() {
        sending.write_all(&frame(&line.unwrap())).unwrap();
    }
    sending.shutdown(std::net::Shutdown::Both).unwrap();
    listening.join().unwrap();
}
