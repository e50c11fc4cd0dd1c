//! Payloads that are encrypted in the outbox, and what becomes of those that nobody can open.

use std::sync::Arc;
use std::time::Duration;

use migration_ipc::keys::{KeyBytes, KeyKind, KeyProtection, ParsedKey};
use migration_ipc::protocol::Sensitive;
use migration_ipc::storage::outbox::{Outbox, OutboxOptions};
use migration_ipc::{
    AtRest, ClientStartError, Fate, IpcMessage, LockedBy, LockedMessages, MessageFactory,
    MessagePayload, OutboxFailure, OutboxId, OutboxKey, Overflow, ReconnectingIpcClient,
    ReconnectingIpcClientBuilder, SendError, SendOptions, Sender, StreamName, keys,
};
use migration_ipc_testkit::disk::SimDisk;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::common::*;
use crate::stage::*;

const SEGMENT: &str = "outbox-0000000000000001.log";

/// In every payload of this type, and of [`act`] where it is asked for.
const SECRET: &str = "hunter2";

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Unlock {
    archive: String,
    password: Sensitive<String>,
}

impl MessagePayload for Unlock {
    const TYPE: &'static str = "UNLOCK";
    const SENDER: Sender = Sender::Agent;
    const SENSITIVE: bool = true;

    fn latest_key(&self) -> String {
        format!("{}:{}", self.archive, self.password.expose())
    }
}

fn unlock(archive: &str) -> Unlock {
    Unlock {
        archive: archive.to_owned(),
        password: Sensitive::new(SECRET.to_owned()),
    }
}

fn key(byte: u8) -> OutboxKey {
    OutboxKey::new(&KeyBytes::new([byte; 32]))
}

fn with_key(site: &Site, disk: &SimDisk, byte: u8) -> ReconnectingIpcClientBuilder {
    site.durable_client(disk).outbox_key(key(byte))
}

fn stream(name: &str) -> SendOptions {
    SendOptions::new()
        .durable()
        .stream(StreamName::new(name).unwrap())
}

/// Whether a text is anywhere on the disk.
fn is_on(disk: &SimDisk, text: &str) -> bool {
    disk.files().iter().any(|(name, _)| {
        let content = disk.content(name).unwrap();
        content
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    })
}

/// What comes next, acknowledged.
async fn take(peer: &mut WirePeer, message_type: &str) -> Value {
    let message = peer.receive_type(message_type).await;
    peer.acknowledge(&message).await;
    message
}

/// Accepts these and stops, with nobody there to send them to.
async fn keep(client: ReconnectingIpcClient, archives: &[(&str, &str)]) {
    for (name, archive) in archives {
        let sent = client.send_with(unlock(archive), stream(name)).await;
        drop(sent.unwrap());
    }
    client.stop(Duration::ZERO).await;
}

/// The records of a log, and the log that has these in their place.
fn records(disk: &SimDisk) -> (OutboxId, Vec<Vec<u8>>) {
    let fork: Arc<SimDisk> = Arc::new(disk.fork());
    let fresh = OutboxId::from_bytes([8; 16]);
    let (outbox, _) = Outbox::open(fork, OutboxOptions::default(), fresh).unwrap();
    let records = outbox.waiting().map(|seq| outbox.read(seq).unwrap());
    (outbox.id(), records.collect())
}

fn log_of(id: OutboxId, records: &[Vec<u8>]) -> SimDisk {
    let disk = SimDisk::new(1);
    let (mut outbox, _) =
        Outbox::open(Arc::new(disk.clone()), OutboxOptions::default(), id).unwrap();
    // As they were accepted: each with a sync of its own.
    for record in records {
        outbox.append(record).unwrap();
        outbox.sync().unwrap();
    }
    disk
}

/// Where the head of a record ends and the payload begins.
fn split(record: &[u8]) -> (&[u8], &[u8]) {
    let end = record.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    record.split_at(end)
}

// --- what is encrypted ---------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_secret_is_nowhere_in_the_outbox_and_arrives_as_it_was() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = with_key(&site, &disk, 1)
        .overflow::<Unlock>(Overflow::KeepLatest)
        .start()
        .await
        .unwrap();
    client.send_durable(unlock("first")).await.unwrap();
    client.send_durable(act("in the clear")).await.unwrap();
    assert!(!is_on(&disk, SECRET));
    assert!(!is_on(&disk, "first"));
    assert!(is_on(&disk, "UNLOCK"), "the head is in the clear");
    assert!(is_on(&disk, "in the clear"), "and what is no secret");

    disk.crash();
    drop(client);
    let disk = disk.restart();
    let client = with_key(&site, &disk, 1).start().await.unwrap();
    let report = client.outbox_report().unwrap();
    assert_eq!((report.waiting, report.locked.as_slice()), (2, &[][..]));
    let mut fates = client.restored().unwrap();
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    let message = take(&mut peer, "UNLOCK").await;
    assert_eq!(message["payload"]["password"], SECRET);
    assert_eq!(message["payload"]["archive"], "first");
    take(&mut peer, "USER_ACTION").await;
    for _ in 0..2 {
        assert!(within(fates.recv()).await.unwrap().fate.is_handled());
    }
}

/// As `a_secret_is_nowhere...` would pass if nothing were ever written.
#[tokio::test(start_paused = true)]
async fn without_a_key_a_secret_is_kept_as_it_is() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    client.send_durable(unlock("first")).await.unwrap();
    assert!(is_on(&disk, SECRET));
}

#[tokio::test(start_paused = true)]
async fn a_message_in_memory_is_not_encrypted_and_needs_no_key() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site
        .durable_client(&disk)
        .at_rest(AtRest::Sensitive)
        .start()
        .await
        .unwrap();
    client.send(unlock("first")).await.unwrap();
    let refused = client.send_durable(unlock("first")).await.unwrap_err();
    let said = refused.to_string();
    assert!(
        said.contains("UNLOCK") && said.contains("outbox_key"),
        "{said}"
    );
    assert!(
        matches!(&refused, SendError::NotStored(failure) if matches!(**failure, OutboxFailure::NoKey { .. }))
    );
    client.send_durable(act("no secret")).await.unwrap();
    assert_eq!(client.outstanding(), 2, "what was refused holds no room");
}

#[tokio::test(start_paused = true)]
async fn everything_is_encrypted_if_that_is_asked_for() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let refused = site
        .durable_client(&disk)
        .at_rest(AtRest::All)
        .start()
        .await;
    assert!(matches!(refused, Err(ClientStartError::NoOutboxKey)));
    let client = with_key(&site, &disk, 1)
        .at_rest(AtRest::All)
        .start()
        .await
        .unwrap();
    let batch = [act("alpha"), act("beta")];
    client
        .send_batch(batch, SendOptions::new().durable())
        .await
        .unwrap();
    assert!(!is_on(&disk, "alpha") && !is_on(&disk, "beta"));
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    assert_eq!(names(&actions(&mut peer, 2).await), ["alpha", "beta"]);
}

#[tokio::test(start_paused = true)]
async fn a_ready_made_message_is_encrypted_if_the_client_knows_its_type_to_be_sensitive() {
    let site = Site::default();
    for (knows, expected) in [(true, false), (false, true)] {
        let disk = SimDisk::new(1);
        let mut client = with_key(&site, &disk, 1);
        if knows {
            client = client.durable::<Unlock>();
        }
        let client = client.start().await.unwrap();
        let message: IpcMessage = MessageFactory::create(&unlock("first")).unwrap();
        let sent = client.send_messages(vec![message], SendOptions::new().durable());
        drop(sent.await.unwrap());
        assert_eq!(is_on(&disk, SECRET), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn keep_latest_knows_its_rivals_of_earlier_runs() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let limits = migration_ipc::QueueLimits {
        messages: 1,
        bytes: 100_000,
    };
    let start = async |disk: &SimDisk| {
        with_key(&site, disk, 1)
            .overflow::<Unlock>(Overflow::KeepLatest)
            .outbox_limits(limits)
            .start()
            .await
            .unwrap()
    };
    let client = start(&disk).await;
    client.send_durable(unlock("a")).await.unwrap();
    client.stop(Duration::ZERO).await;
    let client = start(&disk).await;
    let mut fates = client.restored().unwrap();
    let other = client.send_durable(unlock("b")).await;
    assert!(matches!(other, Err(SendError::Full)), "another key");
    client.send_durable(unlock("a")).await.unwrap();
    let fate = within(fates.recv()).await.unwrap().fate;
    assert!(matches!(fate, Fate::Superseded), "{fate}");
}

// --- what cannot be opened -----------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn with_another_key_messages_wait_in_their_streams_until_theirs_is_there() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = with_key(&site, &disk, 1).start().await.unwrap();
    client.send_with(act("before"), stream("a")).await.unwrap();
    keep(client, &[("a", "one"), ("b", "two")]).await;

    for builder in [with_key(&site, &disk, 2), site.durable_client(&disk)] {
        let client = builder.start().await.unwrap();
        let locked = &client.outbox_report().unwrap().locked;
        assert_eq!(locked.len(), 1, "{locked:?}");
        assert_eq!(locked[0].key, key(1).id());
        assert_eq!(
            (locked[0].by, locked[0].messages),
            (LockedBy::MissingKey, 2)
        );
        client.stop(Duration::ZERO).await;
    }
    let client = with_key(&site, &disk, 2).start().await.unwrap();
    let mut fates = client.restored().unwrap();
    let behind = client.send_with(act("behind"), stream("a")).await.unwrap();
    client.send_with(act("beside"), stream("c")).await.unwrap();
    client.send_with(unlock("new"), stream("d")).await.unwrap();
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    let first = take(&mut peer, "USER_ACTION").await;
    assert_eq!(first["payload"]["action"], "before", "it is ahead of them");
    assert!(within(fates.recv()).await.unwrap().fate.is_handled());
    let beside = take(&mut peer, "USER_ACTION").await;
    assert_eq!(beside["payload"]["action"], "beside");
    assert_eq!(take(&mut peer, "UNLOCK").await["payload"]["archive"], "new");
    assert!(peer.is_silent_for(SOON).await);
    assert_eq!(label(&behind), "pending");
    assert_eq!(client.outstanding(), 3);

    // The stop does not wait for what cannot be sent.
    let began = tokio::time::Instant::now();
    let stopping = client.stop(Duration::from_secs(3600));
    let closing = async {
        drop(peer.receive_type("GOODBYE").await);
        drop(peer);
    };
    let (remaining, ()) = tokio::join!(stopping, closing);
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(remaining.kept, 3);
    drop(listener);

    let client = with_key(&site, &disk, 3)
        .former_outbox_key(key(2))
        .former_outbox_key(key(1))
        .start()
        .await
        .unwrap();
    assert_eq!(client.outbox_report().unwrap().locked, []);
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    assert_eq!(take(&mut peer, "UNLOCK").await["payload"]["archive"], "one");
    assert_eq!(take(&mut peer, "UNLOCK").await["payload"]["archive"], "two");
    let behind = take(&mut peer, "USER_ACTION").await;
    assert_eq!(behind["payload"]["action"], "behind");
}

#[tokio::test(start_paused = true)]
async fn what_is_locked_neither_expires_nor_makes_way() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = with_key(&site, &disk, 1)
        .overflow::<Unlock>(Overflow::DropOldest)
        .start()
        .await
        .unwrap();
    let options = SendOptions::new()
        .durable()
        .time_to_live(Duration::from_secs(60));
    client.send_with(unlock("one"), options).await.unwrap();
    client.stop(Duration::ZERO).await;
    let limits = migration_ipc::QueueLimits {
        messages: 1,
        bytes: 100_000,
    };
    let client = site
        .durable_client(&disk)
        .overflow::<Unlock>(Overflow::DropOldest)
        .outbox_limits(limits)
        .start()
        .await
        .unwrap();
    let refused = client.send_durable(unlock("two")).await;
    assert!(matches!(refused, Err(SendError::Full)), "{refused:?}");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(client.outstanding(), 1);
    client.stop(Duration::ZERO).await;
    let client = with_key(&site, &disk, 1).start().await.unwrap();
    assert_eq!(client.outbox_report().unwrap().waiting, 1);
}

/// Whoever can write to the disk puts the payload of one message into the record of another.
#[tokio::test(start_paused = true)]
async fn payloads_that_were_exchanged_are_not_sent() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = with_key(&site, &disk, 1).start().await.unwrap();
    keep(client, &[("a", "one"), ("b", "two"), ("c", "six")]).await;
    let (id, kept) = records(&disk);
    let ((head_a, body_a), (head_b, body_b)) = (split(&kept[0]), split(&kept[1]));
    assert_eq!(log_of(id, &kept).content(SEGMENT), disk.content(SEGMENT));
    let exchanged = [
        [head_a, body_b].concat(),
        [head_b, body_a].concat(),
        kept[2].clone(),
    ];
    let disk = log_of(id, &exchanged);
    let client = with_key(&site, &disk, 1).start().await.unwrap();
    let locked = &client.outbox_report().unwrap().locked;
    assert_eq!((locked[0].by, locked[0].messages), (LockedBy::Change, 2));
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    assert_eq!(take(&mut peer, "UNLOCK").await["payload"]["archive"], "six");
    assert!(peer.is_silent_for(SOON).await);
    assert_eq!(client.outstanding(), 2);
}

/// The same while the client runs, which had opened all of them when it started.
#[tokio::test(start_paused = true)]
async fn a_payload_that_is_exchanged_meanwhile_holds_up_its_stream_and_stays() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = with_key(&site, &disk, 1).start().await.unwrap();
    keep(
        client,
        &[("a", "one"), ("a", "two"), ("a", "six"), ("b", "ten")],
    )
    .await;
    let (id, kept) = records(&disk);
    let (head, _) = split(&kept[1]);
    let (_, foreign) = split(&kept[2]);
    let mut changed = kept.clone();
    changed[1] = [head, foreign].concat();
    let changed = log_of(id, &changed);

    let client = with_key(&site, &disk, 1).start().await.unwrap();
    assert_eq!(client.outbox_report().unwrap().locked, []);
    let (before, after) = (
        disk.content(SEGMENT).unwrap(),
        changed.content(SEGMENT).unwrap(),
    );
    for (place, (before, after)) in before.iter().zip(&after).enumerate() {
        // In the file that is open.
        disk.flip(SEGMENT, place, before ^ after);
    }
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    assert_eq!(take(&mut peer, "UNLOCK").await["payload"]["archive"], "one");
    assert_eq!(take(&mut peer, "UNLOCK").await["payload"]["archive"], "ten");
    assert!(peer.is_silent_for(SOON).await);
    assert_eq!(client.outstanding(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_locked_is_dropped_only_if_that_is_asked_for() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = with_key(&site, &disk, 1).start().await.unwrap();
    keep(client, &[("a", "one"), ("a", "two")]).await;
    let client = with_key(&site, &disk, 2)
        .locked_messages(LockedMessages::Drop)
        .start()
        .await
        .unwrap();
    let mut fates = client.restored().unwrap();
    for _ in 0..2 {
        let fate = within(fates.recv()).await.unwrap().fate;
        let Fate::Unknown(SendError::NotStored(failure)) = &fate else {
            panic!("{fate}");
        };
        let said = failure.to_string();
        assert!(said.contains(&key(1).id().to_string()), "{said}");
    }
    assert!(within(fates.recv()).await.is_none());
    client.send_with(unlock("new"), stream("a")).await.unwrap();
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    assert_eq!(take(&mut peer, "UNLOCK").await["payload"]["archive"], "new");
    client.stop(Duration::ZERO).await;
    let client = with_key(&site, &disk, 1).start().await.unwrap();
    assert_eq!(client.outbox_report().unwrap().waiting, 0);
}

// --- versions ------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn what_was_kept_in_the_clear_is_sent_by_a_client_with_a_key() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    keep(client, &[("a", "one")]).await;
    let client = with_key(&site, &disk, 1)
        .at_rest(AtRest::All)
        .start()
        .await
        .unwrap();
    client.send_with(unlock("two"), stream("a")).await.unwrap();
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    for archive in ["one", "two"] {
        let message = take(&mut peer, "UNLOCK").await;
        assert_eq!(message["payload"]["archive"], archive);
        assert_eq!(message["payload"]["password"], SECRET);
    }
}

/// The same rule makes a program that knows nothing of sealed records refuse these.
#[tokio::test(start_paused = true)]
async fn a_record_of_a_later_version_is_a_clear_error_and_left_as_it_is() {
    let site = Site::default();
    let id = OutboxId::from_bytes([8; 16]);
    let disk = log_of(id, &[b"3M{}\n{}".to_vec()]);
    let before = disk.content(SEGMENT);
    let error = site.durable_client(&disk).start().await.unwrap_err();
    assert!(error.to_string().contains("version Some('3')"), "{error}");
    assert_eq!(disk.content(SEGMENT), before);
}

// --- the key file --------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_key_file_is_made_when_it_is_needed_first_and_used_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.key");
    let site = Site::default();
    let disk = SimDisk::new(1);
    let start = async || {
        let client = site.durable_client(&disk).outbox_key_file(&path);
        client.start().await
    };
    keep(start().await.unwrap(), &[("a", "one")]).await;
    let made = keys::read_key_file(&path).unwrap();
    assert_eq!((made.len(), made[0].kind), (1, KeyKind::Outbox));
    assert!(!is_on(&disk, SECRET));

    keep(start().await.unwrap(), &[("a", "two")]).await;
    assert_eq!(keys::read_key_file(&path).unwrap(), made);

    // Another key in its place would be found out only when the old one is looked for.
    let aside = folder.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    let gone = start().await.unwrap_err();
    assert!(
        matches!(
            gone,
            ClientStartError::Outbox(OutboxFailure::KeyFileGone { messages: 2, .. })
        ),
        "{gone}"
    );
    assert!(!path.exists());
    std::fs::rename(&aside, &path).unwrap();
    let client = start().await.unwrap();
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    for archive in ["one", "two"] {
        let message = take(&mut peer, "UNLOCK").await;
        assert_eq!(message["payload"]["archive"], archive);
    }
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_key_file_with_two_keys_seals_with_the_first_and_opens_with_both() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.key");
    let parsed = |name: &str, kind, byte| ParsedKey {
        name: name.to_owned(),
        kind,
        bytes: KeyBytes::new([byte; 32]),
    };
    let write = |path: &std::path::Path, keys: &[ParsedKey]| {
        keys::write_key_file(path, keys, KeyProtection::strongest()).unwrap();
    };
    write(
        &path,
        &[
            parsed("lab", KeyKind::Shared, 9),
            parsed("2026", KeyKind::Outbox, 2),
            parsed("2025", KeyKind::Outbox, 1),
        ],
    );
    let site = Site::default();
    let disk = SimDisk::new(1);
    keep(
        with_key(&site, &disk, 1).start().await.unwrap(),
        &[("a", "old")],
    )
    .await;
    let client = site.durable_client(&disk).outbox_key_file(&path);
    keep(client.start().await.unwrap(), &[("a", "new")]).await;
    let client = with_key(&site, &disk, 2).start().await.unwrap();
    let locked = &client.outbox_report().unwrap().locked;
    assert_eq!((locked[0].messages, locked[0].key), (1, key(1).id()));
    client.stop(Duration::ZERO).await;
    let client = site.durable_client(&disk).outbox_key_file(&path);
    let client = client.start().await.unwrap();
    assert_eq!(client.outbox_report().unwrap().locked, []);
    client.stop(Duration::ZERO).await;

    let other = folder.path().join("other.key");
    write(&other, &[parsed("lab", KeyKind::Shared, 9)]);
    let refused = site.durable_client(&disk).outbox_key_file(&other);
    let error = refused.start().await.unwrap_err();
    assert!(
        matches!(
            error,
            ClientStartError::Outbox(OutboxFailure::NoKeyInFile(_))
        ),
        "{error}"
    );
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_key_file_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.key");
    let site = Site::default();
    let disk = SimDisk::new(1);
    let start = async || {
        let client = site.durable_client(&disk).outbox_key_file(&path);
        client.start().await
    };
    start().await.unwrap().stop(Duration::ZERO).await;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = start().await.unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("its mode is 0644") && said.contains("chmod 600"),
        "{said}"
    );
    assert!(said.contains(&path.display().to_string()), "{said}");
}
