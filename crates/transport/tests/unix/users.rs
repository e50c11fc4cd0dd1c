//! Several users on one machine: real processes under other user ids.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;

use migration_ipc_transport::{ConnectError, Privilege};

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
