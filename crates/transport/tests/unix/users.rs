//! Several users on one machine: real processes under other user ids.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use migration_ipc_transport::{BindError, ConnectError, Privilege};
use tokio::io::AsyncReadExt as _;

use crate::support::{
    ALICE, BOB, Player, Scratch, endpoint, give_to, is_root, reach, serve, set_mode, within,
};

#[tokio::test]
async fn each_client_is_known_as_the_user_that_it_is() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    for uid in [ALICE, BOB] {
        let mut client = Player::start_as(uid, "connect", &endpoint);
        let stream = within(listener.accept()).await.unwrap();
        let peer = stream.identify().await.unwrap();
        assert_eq!(peer.account().as_str(), uid.to_string());
        assert_eq!(peer.privilege(), Privilege::Ordinary);
        assert_eq!(peer.process_id(), Some(client.id()));
        assert_eq!(client.line(), "served by 0");
        // What it was when it connected, not what it is.
        drop(client);
        assert_eq!(stream.identify().await.unwrap(), peer);
    }
}

#[tokio::test]
async fn root_is_an_administrator_to_a_users_service() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    give_to(scratch.path(), ALICE);
    let endpoint = scratch.endpoint();
    let mut service = Player::start_as(ALICE, "serve", &endpoint);
    assert_eq!(service.line(), "serving");
    // Naming an endpoint in a folder that only Alice can write to is trusting Alice.
    let stream = reach(&endpoint).await.unwrap();
    assert_eq!(
        stream.identify().await.unwrap().account().as_str(),
        ALICE.to_string()
    );
    assert_eq!(
        service.line(),
        format!("accepted account 0 (process {})", std::process::id())
    );
}

#[tokio::test]
async fn a_socket_that_is_closed_to_a_user_is_an_error_that_says_so() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let _listener = serve(&endpoint).await.unwrap();
    set_mode(endpoint.address(), 0o600);
    let said = Player::start_as(ALICE, "connect", &endpoint).line();
    assert!(
        said.starts_with(&format!("this account may not connect to {endpoint} (")),
        "{said}"
    );
}

/// In a shared folder anybody can be first with a name, so there a client trusts only root and its
/// own user.
#[tokio::test]
async fn an_impostor_in_a_shared_folder_is_not_trusted() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    set_mode(scratch.path(), 0o1777);
    let endpoint = scratch.endpoint();
    let mut impostor = Player::start_as(ALICE, "serve", &endpoint);
    assert_eq!(impostor.line(), "serving");
    let error = reach(&endpoint).await.unwrap_err();
    let ConnectError::Untrusted { server, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(server.account().as_str(), ALICE.to_string());
    let mut herself = Player::start_as(ALICE, "connect", &endpoint);
    assert_eq!(herself.line(), format!("served by {ALICE}"));
}

/// Nobody named the per-user default, so there it does not help an impostor that it made the folder.
#[tokio::test]
async fn an_impostor_at_the_per_user_default_is_not_trusted() {
    if !is_root() {
        return;
    }
    if Path::new("/run/migration-ipc").exists() {
        eprintln!("SKIPPED: this machine has a system endpoint, which is everybody's default");
        return;
    }
    let scratch = Scratch::new();
    set_mode(scratch.path(), 0o1777);
    let folder = scratch.join(&format!("migration-ipc-{BOB}"));
    fs::create_dir(&folder).unwrap();
    give_to(&folder, ALICE);
    let mut impostor = Player::start_as(ALICE, "serve", &endpoint(&folder.join("service.sock")));
    assert_eq!(impostor.line(), "serving");
    let mut bob = Player::start("connect", "", |command| {
        command
            .uid(BOB)
            .gid(BOB)
            .env_remove("XDG_RUNTIME_DIR")
            .env("TMPDIR", scratch.path());
    });
    let said = bob.line();
    assert!(
        said.contains(&format!("served by account {ALICE}")),
        "{said}"
    );
    assert!(said.contains("nothing was sent"), "{said}");
}

/// What an agent says is for its service alone, the first byte included.
#[tokio::test]
async fn a_client_sends_not_one_byte_to_an_impostor() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    set_mode(scratch.path(), 0o1777);
    let endpoint = scratch.endpoint();
    let mut impostor = Player::start_as(ALICE, "be an impostor", &endpoint);
    assert_eq!(impostor.line(), "serving");
    for _ in 0..3 {
        let error = reach(&endpoint).await.unwrap_err();
        assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
        assert_eq!(impostor.line(), "heard 0 bytes");
    }
}

#[tokio::test]
async fn a_squatter_is_named_to_the_service_and_trusted_by_no_client() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    set_mode(scratch.path(), 0o1777);
    let endpoint = scratch.endpoint();
    let mut squatter = Player::start_as(ALICE, "be an impostor", &endpoint);
    assert_eq!(squatter.line(), "serving");
    let error = serve(&endpoint).await.unwrap_err();
    let BindError::InUse {
        holder: Some(holder),
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(holder.account().as_str(), ALICE.to_string());
    assert_eq!(holder.process_id(), Some(squatter.id()));
    assert_eq!(squatter.line(), "heard 0 bytes");
    let said = Player::start_as(BOB, "connect", &endpoint).line();
    assert!(
        said.contains(&format!("served by account {ALICE}")),
        "{said}"
    );
}

/// A link of somebody else leads to a service that the client trusts, but does not mean.
#[tokio::test]
async fn in_a_shared_folder_a_link_to_a_trusted_service_is_not_followed() {
    if !is_root() {
        return;
    }
    let (shared, other) = (Scratch::new(), Scratch::new());
    set_mode(shared.path(), 0o1777);
    let named = shared.endpoint();
    std::os::unix::fs::symlink(other.endpoint().address(), named.address()).unwrap();
    let mut listener = serve(&other.endpoint()).await.unwrap();
    let said = Player::start_as(BOB, "connect", &named).line();
    assert!(said.contains("s.sock is a symbolic link"), "{said}");
    assert!(said.contains("nothing was sent"), "{said}");
    let mut heard = Vec::new();
    let mut stream = within(listener.accept()).await.unwrap();
    within(stream.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"");

    // Nor is one, dangling or not, that stands where root is to serve.
    let error = serve(&named).await.unwrap_err();
    assert!(matches!(error, BindError::Occupied { .. }), "{error:?}");
    drop(listener);
    let error = serve(&named).await.unwrap_err();
    assert!(matches!(error, BindError::Occupied { .. }), "{error:?}");
    assert!(!other.endpoint().address().exists());
}

/// The folder is root's, so its entries are.
#[tokio::test]
async fn a_user_can_neither_remove_nor_replace_the_socket() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    let socket = endpoint.address();
    let before = fs::symlink_metadata(socket).unwrap().ino();
    let try_as_alice = |program: &str, paths: &[&Path]| {
        let mut command = Command::new(program);
        command.arg("-f").args(paths).uid(ALICE).gid(ALICE);
        let ended = command.stdin(Stdio::null()).output().unwrap();
        assert!(!ended.status.success(), "{program}: {ended:?}");
    };
    let aside = scratch.join("aside");
    try_as_alice("rm", &[socket]);
    try_as_alice("mv", &[socket, &aside]);
    try_as_alice("ln", &[Path::new("/dev/null"), &aside]);
    assert_eq!(fs::symlink_metadata(socket).unwrap().ino(), before);
    assert_eq!(scratch.names().len(), 2, "the socket and the lock");
    let _client = reach(&endpoint).await.unwrap();
    within(listener.accept()).await.unwrap();
}

/// The kernel's copy of what connected counts.
#[tokio::test]
async fn a_client_that_gives_up_its_rights_is_still_what_connected() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    let role = "connect as root and become Alice";
    let mut client = Player::start(role, &endpoint.to_string(), |_| {});
    let mut stream = within(listener.accept()).await.unwrap();
    assert_eq!(client.line(), format!("now {ALICE}"));
    let mut heard = [0; 10];
    within(stream.read_exact(&mut heard)).await.unwrap();
    let peer = stream.identify().await.unwrap();
    assert_eq!(peer.account().as_str(), "0");
    assert_eq!(peer.privilege(), Privilege::Administrator);
}

#[tokio::test]
async fn a_socket_that_was_handed_on_is_still_that_of_who_connected() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    let connected = std::os::unix::net::UnixStream::connect(endpoint.address()).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "id -u"]).uid(ALICE).gid(ALICE);
    let status = command.stdout(OwnedFd::from(connected)).status();
    assert!(status.unwrap().success());
    drop(command);
    let mut stream = within(listener.accept()).await.unwrap();
    let mut heard = String::new();
    within(stream.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard.trim(), ALICE.to_string(), "Alice has written");
    let peer = stream.identify().await.unwrap();
    assert_eq!(peer.account().as_str(), "0", "and root has connected");
}

/// Its process id may be another's by the time that it is logged. (Before Linux 6.16 the kernel
/// does not tell the process of a client that is gone, and the client is refused; before 6.5 it
/// tells of none.)
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_is_gone_is_known_by_its_account_and_by_no_process_id() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    let mut alice = Player::start_as(ALICE, "connect", &endpoint);
    assert_eq!(alice.line(), "served by 0");
    // Killed and waited for.
    drop(alice);
    let bob = Player::start_as(BOB, "connect", &endpoint);
    let mut peer = within(listener.accept()).await.unwrap().identify().await;
    let first = peer.unwrap();
    if first.account().as_str() == ALICE.to_string() {
        assert_eq!(first.process_id(), None);
        peer = within(listener.accept()).await.unwrap().identify().await;
        let second = peer.unwrap();
        assert_eq!(second.account().as_str(), BOB.to_string());
        assert_eq!(second.process_id(), Some(bob.id()));
    } else {
        assert_eq!(first.process_id(), Some(bob.id()));
    }
}
