//! What this test program does when another test starts it as a process of its own.

use std::env;
use std::io::Read as _;
use std::os::unix::net::UnixListener as StdListener;
use std::time::Duration;

use migration_ipc_transport::{Activation, BindOptions, Endpoint, bind};
use nix::unistd::{Uid, setuid};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit, umask};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixSocket;
use tokio::time::timeout;

use crate::support::{ALICE, reach, serve, set_mode, within};

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
        "be an impostor" => be_an_impostor(&endpoint),
        "serve what was passed" => serve_what_was_passed(&endpoint).await,
        "connect as root and become Alice" => {
            let mut stream = reach(&endpoint).await.expect("connected");
            setuid(Uid::from_raw(ALICE)).expect("root may");
            stream.write_all(b"still here").await.expect("written");
            eprintln!("now {}", geteuid().as_raw());
            wait_to_be_killed().await;
        }
        #[cfg(target_os = "linux")]
        "connect with these groups" => {
            let groups = env::var("MIG_TEST_GROUPS").expect("set together");
            let groups = groups
                .split(',')
                .map(|group| group.parse().expect("a number"));
            let groups: Vec<_> = groups.map(nix::unistd::Gid::from_raw).collect();
            nix::unistd::setgroups(&groups).expect("root may");
            nix::unistd::setgid(nix::unistd::Gid::from_raw(ALICE)).expect("root may");
            setuid(Uid::from_raw(ALICE)).expect("root may");
            let _stream = reach(&endpoint).await.expect("connected");
            eprintln!("connected");
            wait_to_be_killed().await;
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

/// Serves as a program of an attacker would: a socket that everybody may connect to, without a lock.
fn be_an_impostor(endpoint: &Endpoint) {
    let listener = StdListener::bind(endpoint.address()).expect("bound");
    set_mode(endpoint.address(), 0o666);
    eprintln!("serving");
    loop {
        let (mut stream, _) = listener.accept().expect("accepted");
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).expect("read");
        eprintln!("heard {} bytes", heard.len());
    }
}

/// Serves one client and ends.
async fn serve_what_was_passed(endpoint: &Endpoint) {
    let options = BindOptions::new().activation(Activation::IfPassed);
    match bind(endpoint, &options).await {
        Ok(mut listener) => {
            let list = std::process::Command::new("ls")
                .args(["-l", "/proc/self/fd"])
                .output();
            let list = String::from_utf8(list.expect("listed").stdout).expect("text");
            let inherited = list.lines().filter(|line| line.contains("socket:"));
            eprintln!("serving, and children inherit {}", inherited.count());
            let stream = listener.accept().await.expect("accepted");
            eprintln!("accepted {}", stream.identify().await.expect("identified"));
            drop(listener);
            eprintln!("ended");
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
