//! Replays the service transcripts of the folder `golden` against a running server, in memory and
//! over the operating system's endpoint. `golden/replay.py` does the same in another language.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod service;
mod transcript;

use migration_ipc::transport::{self, Stream};
use migration_ipc::{IpcServer, MessageDispatcher};

use common::*;
use transcript::{Case, Replay};

const FILES: [(&str, &str); 4] = [
    (
        "answers",
        include_str!("../../../../golden/service/answers.json"),
    ),
    (
        "dotnet",
        include_str!("../../../../golden/service/dotnet.json"),
    ),
    (
        "errors",
        include_str!("../../../../golden/service/errors.json"),
    ),
    (
        "grouping",
        include_str!("../../../../golden/service/grouping.json"),
    ),
];

fn dispatcher() -> MessageDispatcher {
    service::dispatcher("2030-01-02T03:04:05Z".parse().unwrap()).unwrap()
}

async fn replay_all(user: &str, connect: impl AsyncFn() -> Box<dyn Stream>) {
    let mut failures = Vec::new();
    let mut cases = 0;
    for (file, text) in FILES {
        let all: Vec<Case<'_>> = serde_json::from_str(text).expect("the form that is documented");
        for case in all {
            cases += 1;
            let replay = Replay::new(connect().await, user);
            if let Err(difference) = replay.run(&case).await {
                failures.push(format!("{file}: {}: {difference}", case.name));
            }
        }
    }
    assert!(cases > 30, "the transcripts are there");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn the_transcripts_hold_in_memory() {
    let (_server, connector) = serve(dispatcher()).await;
    let connect = async || {
        let stream = connector.connect(user("tester")).await.unwrap();
        Box::new(stream) as Box<dyn Stream>
    };
    replay_all("tester", connect).await;
}

#[tokio::test]
async fn the_transcripts_hold_over_the_systems_endpoint() {
    let place = Place::new("golden");
    let _server = IpcServer::builder(dispatcher())
        .endpoint_with(place.endpoint(), development())
        .start()
        .await
        .unwrap();
    let connect = async || place.open(PATIENCE).await.unwrap();
    let this_account = connect().await.identify().await.unwrap().account().clone();
    let name = transport::account_name(&this_account).await.unwrap();
    replay_all(name.as_deref().unwrap_or(this_account.as_str()), connect).await;
}

/// Every file of the folder is replayed.
#[cfg(unix)]
#[test]
fn no_transcript_is_forgotten() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/service");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort_unstable();
    assert_eq!(files, FILES.map(|(name, _)| format!("{name}.json")));
}
