//! What this test program does when another test starts it as a process of its own.

use std::env;
use std::time::Duration;

use migration_ipc_transport::Endpoint;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use tokio::net::UnixSocket;
use tokio::time::timeout;

use crate::support::{reach, serve, within};

#[tokio::test]
#[ignore = "started by other tests, in a process of its own"]
async fn play() {
    let Ok(role) = env::var("MIG_TEST_ROLE") else {
        return;
    };
    let text = env::var("MIG_TEST_ENDPOINT").expect("set together");
    let endpoint = match text.as_str() {
        "" => Endpoint::client_default().expect("a default"),
        text => Endpoint::parse(text).expect("an endpoint"),
    };
    match role.as_str() {
        "serve" => serve_until_killed(&endpoint).await,
        "serve with a closed umask" => {
            umask(Mode::from_raw_mode(0o077));
            serve_until_killed(&endpoint).await;
        }
        "connect" => match reach(&endpoint).await {
            Ok(stream) => {
                eprintln!(
                    "served by {}",
                    stream.identify().await.expect("identified").account()
                );
                wait_to_be_killed().await;
            }
            Err(error) => eprintln!("{error}"),
        },
        "run out of descriptors" => run_out_of_descriptors(&endpoint).await,
        role => panic!("no role {role:?}"),
    }
}

async fn serve_until_killed(endpoint: &Endpoint) {
    match serve(endpoint).await {
        Ok(mut listener) => {
            eprintln!("serving");
            loop {
                let stream = listener.accept().await.expect("accepted");
                eprintln!("accepted {}", stream.identify().await.expect("identified"));
            }
        }
        Err(error) => eprintln!("{error}"),
    }
}

async fn wait_to_be_killed() {
    std::future::pending().await
}

/// The limit of descriptors is the process's, so this cannot share one with other tests.
async fn run_out_of_descriptors(endpoint: &Endpoint) {
    const CLIENTS: usize = 3;
    let mut listener = serve(endpoint).await.expect("served");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| UnixSocket::new_stream().unwrap())
        .collect();

    let before = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(0),
            ..before
        },
    )
    .unwrap();
    let mut connected = Vec::new();
    for client in clients {
        connected.push(client.connect(endpoint.address()).await.unwrap());
    }
    tokio::time::pause();
    // An hour of virtual time: long enough for any number of attempts.
    let starved = timeout(Duration::from_secs(3600), listener.accept()).await;
    assert!(
        starved.is_err(),
        "nothing can be accepted, and that ends nothing: {starved:?}"
    );
    setrlimit(Resource::Nofile, before).unwrap();
    for _ in 0..CLIENTS {
        within(listener.accept()).await.expect("accepted after all");
    }
    eprintln!("recovered");
}
