//! Serving an endpoint, alone.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use migration_ipc_transport::{
    Access, Audience, BindError, BindOptions, Endpoint, IdentifyWhen, Privilege, bind,
};
use rustix::process::{getegid, geteuid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::support::{Player, Scratch, leave_stale_socket, mode, reach, serve, within};

#[tokio::test]
async fn bytes_and_identities_cross_both_ways() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    assert_eq!(listener.endpoint(), &endpoint);
    let mut client = reach(&endpoint).await.unwrap();
    let mut server = within(listener.accept()).await.unwrap();

    client.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    within(server.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"ping");

    for end in [&server, &client] {
        assert_eq!(end.identify_when(), IdentifyWhen::Now);
        let peer = end.identify().await.unwrap();
        let own_uid = geteuid();
        assert_eq!(peer.account().as_str(), own_uid.as_raw().to_string());
        assert_eq!(peer.process_id(), Some(std::process::id()));
        assert!(peer.is_operator());
        let expected = if own_uid.is_root() {
            Privilege::Administrator
        } else {
            Privilege::ServiceAccount
        };
        assert_eq!(peer.privilege(), expected);
    }

    let identify = server.identify();
    drop(server);
    assert!(
        identify.await.is_ok(),
        "the future does not need the stream"
    );
    assert_eq!(
        within(client.read(&mut bytes)).await.unwrap(),
        0,
        "the end of the stream"
    );
}

#[tokio::test]
async fn a_thousand_clients_are_accepted() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    let mut clients = JoinSet::new();
    // Twenty at a time keep within a low limit of descriptors.
    for _ in 0..50 {
        for _ in 0..20 {
            let endpoint = endpoint.clone();
            clients.spawn(async move {
                let mut stream = reach(&endpoint).await.unwrap();
                stream.read_u8().await.unwrap()
            });
        }
        for _ in 0..20 {
            let mut stream = within(listener.accept()).await.unwrap();
            stream.write_u8(7).await.unwrap();
        }
        while let Some(byte) = within(clients.join_next()).await {
            assert_eq!(byte.unwrap(), 7);
        }
    }
}

#[tokio::test]
async fn a_dropped_accept_loses_no_client() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    assert!(futures_util::poll!(listener.accept()).is_pending());
    let _client = reach(&endpoint).await.unwrap();
    within(listener.accept()).await.unwrap();
}

/// A client may write and leave before it is accepted; what it said counts.
#[tokio::test]
async fn a_client_that_left_before_it_was_accepted_is_heard_and_known() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    let mut client = reach(&endpoint).await.unwrap();
    client.write_all(b"bye").await.unwrap();
    drop(client);
    let mut server = within(listener.accept()).await.unwrap();
    assert!(server.identify().await.is_ok());
    let mut heard = Vec::new();
    within(server.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"bye");
}

#[tokio::test]
async fn the_end_of_a_listener_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let listener = serve(&scratch.endpoint()).await.unwrap();
    assert_eq!(
        scratch.names().len(),
        2,
        "a socket and its lock: {:?}",
        scratch.names()
    );
    drop(listener);
    assert_eq!(scratch.names(), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_put_in_the_sockets_place_is_not_removed() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let listener = serve(&endpoint).await.unwrap();
    for name in scratch.names() {
        fs::remove_file(scratch.join(&name)).unwrap();
        fs::write(scratch.join(&name), "another's").unwrap();
    }
    drop(listener);
    assert_eq!(scratch.names().len(), 2);
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    leave_stale_socket(&endpoint);
    fs::write(scratch.join("s.sock.lock"), "").unwrap();
    let mut listener = serve(&endpoint).await.unwrap();
    let _client = reach(&endpoint).await.unwrap();
    within(listener.accept()).await.unwrap();
}

/// A killed service takes nothing along but its lock.
#[tokio::test]
async fn a_killed_service_is_replaced() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut player = Player::start("serve", &endpoint.to_string(), |_| {});
    assert_eq!(player.line(), "serving");
    drop(player);
    assert_eq!(scratch.names().len(), 2);
    serve(&endpoint).await.unwrap();
}

#[tokio::test]
async fn a_live_service_is_named_and_unhurt() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut player = Player::start("serve", &endpoint.to_string(), |_| {});
    assert_eq!(player.line(), "serving");
    let error = serve(&endpoint).await.unwrap_err();
    let BindError::InUse {
        holder: Some(holder),
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(holder.process_id(), Some(player.id()));
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("{endpoint} is already served by account ")),
        "{text}"
    );
    assert!(
        text.contains(&format!("(process {})", player.id())),
        "{text}"
    );
    reach(&endpoint).await.unwrap();
}

/// It has the lock, and no socket yet.
#[tokio::test]
async fn a_service_that_is_just_starting_is_noticed() {
    let scratch = Scratch::new();
    let lock = fs::File::create(scratch.join("s.sock.lock")).unwrap();
    lock.lock().unwrap();
    let error = serve(&scratch.endpoint()).await.unwrap_err();
    assert!(
        matches!(error, BindError::InUse { holder: None, .. }),
        "{error:?}"
    );
    lock.unlock().unwrap();
    serve(&scratch.endpoint()).await.unwrap();
}

/// A service of .NET takes no lock.
#[tokio::test]
async fn a_live_service_without_a_lock_is_noticed() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let _other = StdListener::bind(endpoint.address()).unwrap();
    let error = serve(&endpoint).await.unwrap_err();
    assert!(
        matches!(
            error,
            BindError::InUse {
                holder: Some(_),
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(scratch.names(), ["s.sock"], "the lock is given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_start_at_once_exactly_one_serves() {
    const RACERS: usize = 8;
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    for _ in 0..50 {
        leave_stale_socket(&endpoint);
        let start = Arc::new(Barrier::new(RACERS));
        let mut racers = JoinSet::new();
        for _ in 0..RACERS {
            let (endpoint, start) = (endpoint.clone(), Arc::clone(&start));
            racers.spawn(async move {
                start.wait().await;
                serve(&endpoint).await
            });
        }
        // Whoever won is held until all have tried.
        let results = within(racers.join_all()).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
        }
    }
}

/// A lock file that is removed at the end must not let two in: one locks the removed file, the
/// other a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn services_that_come_and_go_never_overlap() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let serving = Arc::new(AtomicUsize::new(0));
    let served = Arc::new(AtomicUsize::new(0));
    let mut racers = JoinSet::new();
    for _ in 0..8 {
        let (endpoint, serving, served) =
            (endpoint.clone(), Arc::clone(&serving), Arc::clone(&served));
        racers.spawn(async move {
            for _ in 0..200 {
                if let Ok(listener) = serve(&endpoint).await {
                    assert_eq!(serving.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                    served.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    assert_eq!(serving.fetch_sub(1, Ordering::SeqCst), 1);
                    drop(listener);
                }
            }
        });
    }
    within(racers.join_all()).await;
    assert!(served.load(Ordering::SeqCst) > 0);
    assert_eq!(scratch.names(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_no_socket_is_never_removed() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let path = endpoint.address();
    let target = scratch.join("target");

    fs::write(path, "precious").unwrap();
    let error = serve(&endpoint).await.unwrap_err();
    assert!(
        error.to_string().contains("s.sock is not a socket"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(path).unwrap(), "precious");
    fs::remove_file(path).unwrap();

    symlink(&target, path).unwrap();
    let error = serve(&endpoint).await.unwrap_err();
    assert!(
        matches!(error, BindError::Occupied { .. }),
        "a dangling link: {error:?}"
    );
    leave_stale_socket(&crate::support::endpoint(&target));
    let error = serve(&endpoint).await.unwrap_err();
    assert!(
        matches!(error, BindError::Occupied { .. }),
        "a link to a socket: {error:?}"
    );
    assert!(target.exists());
}

#[tokio::test]
async fn a_lock_file_that_is_a_link_is_refused() {
    let scratch = Scratch::new();
    symlink(scratch.join("target"), scratch.join("s.sock.lock")).unwrap();
    let error = serve(&scratch.endpoint()).await.unwrap_err();
    assert!(
        error.to_string().contains("s.sock.lock is a symbolic link"),
        "{error}"
    );
    assert!(!scratch.join("target").exists());
}

#[tokio::test]
async fn the_mode_follows_the_options() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let group = getegid().as_raw();
    let by_number = BindOptions::new().access(Access::Groups(vec![group.to_string()]));
    let table = [
        (BindOptions::new(), 0o666),
        (BindOptions::new().audience(Audience::Operators), 0o600),
        (by_number.clone(), 0o660),
        (by_number.audience(Audience::Operators), 0o600),
    ];
    for (options, expected) in table {
        let _listener = within(bind(&endpoint, &options)).await.unwrap();
        assert_eq!(mode(endpoint.address()), expected, "{options:?}");
        assert_eq!(fs::metadata(endpoint.address()).unwrap().gid(), group);
    }
}

#[tokio::test]
async fn a_group_that_does_not_exist_is_an_error() {
    let scratch = Scratch::new();
    for (group, problem) in [
        ("no such group", "does not exist"),
        ("4294967295", "is no group id"),
    ] {
        let options = BindOptions::new().access(Access::Groups(vec![group.to_owned()]));
        let error = within(bind(&scratch.endpoint(), &options))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[tokio::test]
async fn the_umask_has_no_say() {
    let scratch = Scratch::new();
    let path = scratch.join("made/s.sock");
    let mut player = Player::start("serve with a closed umask", path.to_str().unwrap(), |_| {});
    assert_eq!(player.line(), "serving");
    assert_eq!(mode(&path), 0o666);
    let expected = if geteuid().is_root() { 0o755 } else { 0o700 };
    assert_eq!(mode(path.parent().unwrap()), expected);
}

#[tokio::test]
async fn a_listener_outlives_a_shortage_of_descriptors() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut player = Player::start("run out of descriptors", &endpoint.to_string(), |_| {});
    assert_eq!(player.line(), "recovered");
}

#[tokio::test]
async fn a_bare_name_is_served_where_dotnet_looks() {
    let name = format!("mig-test-{}", std::process::id());
    let endpoint = Endpoint::parse(&name).unwrap();
    let mut listener = serve(&endpoint).await.unwrap();
    let folder = std::env::var_os("TMPDIR").unwrap_or_else(|| "/tmp".into());
    let as_dotnet = std::path::Path::new(&folder).join(format!("CoreFxPipe_{name}"));
    let _client = std::os::unix::net::UnixStream::connect(&as_dotnet).unwrap();
    within(listener.accept()).await.unwrap();
    drop(listener);
    assert!(!as_dotnet.exists());
}
