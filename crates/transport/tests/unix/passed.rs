//! Sockets that the service manager passes: a real process gets a real third descriptor.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use crate::support::{ALICE, Player, Scratch, endpoint, give_to, is_root, reach, set_mode};

const TO_IT: &str = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=test.socket";
const ROLE: &str = "serve what was passed";

#[tokio::test]
async fn a_passed_socket_is_served_and_left_in_its_place() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let manager = UnixListener::bind(endpoint.address()).unwrap();
    // A client that comes before the service waits for it, and the second for the second service.
    for _ in 0..2 {
        let _client = reach(&endpoint).await.unwrap();
        let mut service = Player::start_with(manager.try_clone().unwrap(), TO_IT, ROLE, &endpoint);
        assert_eq!(service.line(), "serving, and children inherit 0");
        let said = service.line();
        assert!(said.starts_with("accepted account "), "{said}");
        assert_eq!(service.line(), "ended");
        assert_eq!(scratch.names(), ["s.sock"], "neither removed nor locked");
    }
}

#[tokio::test]
async fn a_passed_descriptor_that_is_something_else_is_an_error_that_says_what() {
    let scratch = Scratch::new();
    let expected = scratch.endpoint();
    let at = |name: &str| scratch.join(name);
    let (connected, _peer) = UnixStream::pair().unwrap();
    let elsewhere = UnixListener::bind(at("elsewhere")).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let table: [(OwnedFd, &str); 5] = [
        (elsewhere.into(), "is at "),
        (
            UnixDatagram::bind(at("datagrams")).unwrap().into(),
            "is not a stream socket",
        ),
        (connected.into(), "does not listen"),
        (tcp.into(), "is not a Unix socket"),
        (
            File::open("/dev/null").unwrap().into(),
            "is not a Unix socket",
        ),
    ];
    for (passed, problem) in table {
        let said = Player::start_with(passed, TO_IT, ROLE, &expected).line();
        let problem = format!("descriptor 3 (test.socket) {problem}");
        assert!(said.contains(&problem), "{said}");
        assert!(!expected.address().exists());
    }
}

#[tokio::test]
async fn variables_that_make_no_sense_are_an_error() {
    let scratch = Scratch::new();
    for count in ["x", "-1", "1000000"] {
        let listen = format!("LISTEN_PID=$$ LISTEN_FDS={count}");
        let nothing = File::open("/dev/null").unwrap();
        let said = Player::start_with(nothing, &listen, ROLE, &scratch.endpoint()).line();
        assert!(said.contains("LISTEN_FDS must be a number"), "{said}");
    }
}

/// A parent that was given sockets does not give them to its children.
#[tokio::test]
async fn what_was_passed_to_another_process_is_left_alone() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    for listen in ["LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_FDS=1"] {
        let other = UnixListener::bind(scratch.join("other")).unwrap();
        let mut service = Player::start_with(other, listen, ROLE, &endpoint);
        let said = service.line();
        assert!(said.starts_with("serving"), "{said}");
        assert!(scratch.join("s.sock.lock").exists(), "a socket of its own");
        drop(service);
        std::fs::remove_file(scratch.join("other")).unwrap();
    }
}

#[tokio::test]
async fn a_passed_socket_in_a_folder_that_others_can_change_is_refused() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let manager = UnixListener::bind(endpoint.address()).unwrap();
    set_mode(scratch.path(), 0o777);
    let passed = || manager.try_clone().unwrap();
    let said = Player::start_with(passed(), TO_IT, ROLE, &endpoint).line();
    assert!(said.contains("has mode 0777"), "{said}");
    if !is_root() {
        return;
    }
    set_mode(scratch.path(), 0o755);
    give_to(scratch.path(), ALICE);
    let said = Player::start_with(passed(), TO_IT, ROLE, &endpoint).line();
    assert!(said.contains(&format!("belongs to uid {ALICE}")), "{said}");
}

/// The name of an endpoint is a path, not where a link at that path leads.
#[tokio::test]
async fn a_passed_socket_is_told_by_the_path_that_it_was_bound_to() {
    let scratch = Scratch::new();
    let manager = UnixListener::bind(scratch.join("real")).unwrap();
    std::os::unix::fs::symlink(scratch.join("real"), scratch.join("s.sock")).unwrap();
    let named = endpoint(&scratch.join("s.sock"));
    let said = Player::start_with(manager, TO_IT, ROLE, &named).line();
    assert!(said.contains("real; make its ListenStream"), "{said}");
}
