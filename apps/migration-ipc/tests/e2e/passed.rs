//! A service whose socket the service manager has made.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use rustix::process::{Signal, kill_process};

use crate::harness::{PROGRAM, Running, Sandbox, until};

/// The service with this socket as its third descriptor, as systemd starts it.
fn start(sandbox: &Sandbox, socket: &UnixListener, endpoint: &str) -> Running {
    let data = sandbox.text("service-data");
    let script = "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=migration-ipc.socket; \
                  exec \"$0\" \"$@\" 3<&0 </dev/null";
    let mut command = Command::new("sh");
    command
        .args(["-c", script, PROGRAM, "service", "--development"])
        .args(["--endpoint", endpoint, "--data-dir", &data])
        .env("TMPDIR", sandbox.temporary())
        .stdin(OwnedFd::from(socket.try_clone().unwrap()));
    Running::start(sandbox, "service", command)
}

fn answers(sandbox: &Sandbox) -> bool {
    let status = ["status", "--endpoint", &sandbox.endpoint()];
    sandbox.run(&status).code == Some(0)
}

#[test]
fn the_service_serves_a_passed_socket_and_leaves_it_in_its_place() {
    let sandbox = Sandbox::new();
    let endpoint = sandbox.endpoint();
    let socket = UnixListener::bind(&endpoint).unwrap();
    for _ in 0..2 {
        let service = start(&sandbox, &socket, &endpoint);
        until("the service answers", || answers(&sandbox));
        assert!(service.log().contains("that the service manager passed"));
        kill_process(service.id(), Signal::TERM).unwrap();
        assert_eq!(service.wait().code, Some(0));
        assert!(Path::new(&endpoint).exists());
        assert!(!sandbox.path("service.sock.lock").exists());
    }
}

#[test]
fn the_service_ends_if_the_passed_socket_is_not_at_its_endpoint() {
    let sandbox = Sandbox::new();
    let elsewhere = sandbox.text("elsewhere.sock");
    let socket = UnixListener::bind(&elsewhere).unwrap();
    let ended = start(&sandbox, &socket, &sandbox.endpoint()).wait();
    assert_ne!(ended.code, Some(0));
    let expected = format!("descriptor 3 (migration-ipc.socket) is at {elsewhere}");
    assert!(ended.errors.contains(&expected), "{}", ended.errors);
}
