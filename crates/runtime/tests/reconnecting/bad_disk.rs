//! Outboxes on disks that fail, are damaged, or belong to somebody else.

use std::sync::Arc;
use std::time::Duration;

use migration_ipc::storage::disk::Disk;
use migration_ipc::storage::outbox::{Outbox, OutboxOptions};
use migration_ipc::{ClientStartError, Fate, OutboxId, SendError, SendOptions};
use migration_ipc_testkit::disk::SimDisk;

use crate::common::*;
use crate::stage::*;

const SEGMENT: &str = "outbox-0000000000000001.log";

/// Ten accepted messages, and nobody to send them to.
async fn ten(site: &Site, disk: &SimDisk) {
    let client = site.durable_client(disk).start().await.unwrap();
    for number in 0..10 {
        client.send_durable(act(number)).await.unwrap();
    }
    client.stop(Duration::ZERO).await;
}

/// Where a record with this text is in the segment.
fn place_of(disk: &SimDisk, text: &str) -> usize {
    let content = disk.content(SEGMENT).unwrap();
    let places = content.windows(text.len());
    places
        .into_iter()
        .position(|window| window == text.as_bytes())
        .expect("the text is there")
}

#[tokio::test(start_paused = true)]
async fn a_sync_that_fails_is_an_error_to_the_sender_and_loses_nothing() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    client.send_durable(act("before")).await.unwrap();
    disk.fail_sync(0);
    let failed = client.send_durable(act("failed")).await;
    assert!(matches!(failed, Err(SendError::NotStored(_))), "{failed:?}");
    client.send_durable(act("after")).await.unwrap();
    assert_eq!(client.outstanding(), 2, "what was refused holds no room");
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    assert_eq!(names(&actions(&mut peer, 2).await), ["before", "after"]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_on_disk_whole_or_not_at_all() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    disk.fail_sync(0);
    let batch = (0..10).map(act);
    let failed = client.send_batch(batch, SendOptions::new().durable()).await;
    assert!(matches!(failed, Err(SendError::NotStored(_))));
    // More than one sync takes: found out half-way.
    let large = (0..10).map(|_| act("x".repeat(1_000_000)));
    let failed = client.send_batch(large, SendOptions::new().durable()).await;
    assert!(matches!(failed, Err(SendError::NotStored(_))));
    client.send_durable(act("only")).await.unwrap();
    client.stop(Duration::ZERO).await;
    let client = site.durable_client(&disk).start().await.unwrap();
    assert_eq!(client.outbox_report().unwrap().waiting, 1);
}

#[tokio::test(start_paused = true)]
async fn a_flipped_byte_costs_one_message_and_is_reported() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    ten(&site, &disk).await;
    let place = place_of(&disk, "\"action\":\"4\"");
    disk.flip(SEGMENT, place, 0x40);
    let client = site.durable_client(&disk).start().await.unwrap();
    let report = client.outbox_report().unwrap();
    assert_eq!(report.waiting, 9);
    assert_eq!(report.damaged.len(), 1, "{report:?}");
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    let messages = actions(&mut peer, 9).await;
    assert_eq!(
        names(&messages),
        ["0", "1", "2", "3", "5", "6", "7", "8", "9"]
    );
}

/// The byte flips after the outbox was opened.
#[tokio::test(start_paused = true)]
async fn a_message_that_is_damaged_meanwhile_is_told_and_holds_up_nobody() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    ten(&site, &disk).await;
    let client = site.durable_client(&disk).start().await.unwrap();
    let mut fates = client.restored().unwrap();
    disk.flip(SEGMENT, place_of(&disk, "\"action\":\"4\""), 0x40);
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    assert_eq!(actions(&mut peer, 9).await.len(), 9);
    let restored = within(fates.recv()).await.unwrap();
    assert!(
        matches!(restored.fate, Fate::NotSent(SendError::NotStored(_))),
        "{}",
        restored.fate
    );
}

#[tokio::test(start_paused = true)]
async fn an_outbox_of_a_newer_version_is_set_aside() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    ten(&site, &disk).await;
    let mut content = disk.content(SEGMENT).unwrap();
    for header in [0, 64] {
        content[header + 8] = 2;
        let checksum = crc32(&content[header..header + 12]);
        content[header + 12..header + 16].copy_from_slice(&checksum.to_le_bytes());
    }
    disk.put(SEGMENT, &content);
    let client = site.durable_client(&disk).start().await.unwrap();
    let report = client.outbox_report().unwrap();
    assert_eq!((report.waiting, report.set_aside.len()), (0, 1));
    let aside = &report.set_aside[0].files[0];
    assert_eq!(disk.content(aside), Some(content), "left as it was");
    client.send_durable(act("new")).await.unwrap();
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// A record that is whole and says nothing that this version understands is no reason to lose it.
#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_understood_is_named_and_kept() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let fresh = OutboxId::from_bytes([1; 16]);
    let seam: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut outbox, _) = Outbox::open(seam, OutboxOptions::default(), fresh).unwrap();
    outbox.append(b"9Xsomething else").unwrap();
    outbox.sync().unwrap();
    drop(outbox);
    match site.durable_client(&disk).start().await {
        Err(ClientStartError::Outbox(error)) => {
            let text = error.to_string();
            assert!(
                text.contains("message 1") && text.contains("version"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
    let seam: Arc<dyn Disk> = Arc::new(disk);
    let (outbox, _) = Outbox::open(seam, OutboxOptions::default(), fresh).unwrap();
    assert_eq!(outbox.read(1).unwrap(), b"9Xsomething else");
}

#[tokio::test(start_paused = true)]
async fn a_read_only_folder_is_a_clear_error() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    disk.set_read_only(true);
    match site.durable_client(&disk).start().await {
        Err(error @ ClientStartError::Outbox(_)) => {
            assert!(error.to_string().contains("outbox"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

/// A `send` that is dropped while the disk is at work leaves its message there, once.
#[tokio::test(start_paused = true)]
async fn a_dropped_send_leaves_its_message_whole_or_absent() {
    use futures_util::FutureExt;
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    let mut unpolled = 0;
    for number in 0..20 {
        let mut sending = Box::pin(client.send_durable(act(number)));
        if number % 2 == 0 {
            unpolled += 1;
        } else {
            assert!(
                (&mut sending).now_or_never().is_none(),
                "the disk is awaited"
            );
        }
        drop(sending);
    }
    client.send_durable(act("last")).await.unwrap();
    client.stop(Duration::ZERO).await;
    let client = site.durable_client(&disk).start().await.unwrap();
    assert_eq!(client.outbox_report().unwrap().waiting, 21 - unpolled);
}

/// The folder was put back to an older state, so messages needed new numbers, and the disk was full:
/// the outbox tried without a pause, and a sender behind them waited for ever.
#[tokio::test(start_paused = true)]
async fn a_disk_that_gives_no_new_numbers_is_an_error_to_the_sender() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    client.send_durable(act("older")).await.unwrap();
    disk.limit_room(Some(0));
    let mut listener = site.open();
    let mut peer = accept_seen(&mut listener, Kind::Durable, 41).await;
    settle().await;
    for _ in 0..3 {
        let failed = within(client.send_durable(act("newer"))).await;
        assert!(matches!(failed, Err(SendError::NotStored(_))), "{failed:?}");
    }
    let writes = disk.counts().full;
    assert!(writes < 10, "{writes}");
    disk.limit_room(None);
    client.send_durable(act("newest")).await.unwrap();
    let messages = actions(&mut peer, 2).await;
    assert_eq!(names(&messages), ["older", "newest"]);
    assert!(messages[0]["seq"].as_u64().unwrap() >= 42);
}

/// Nothing can record that a message is settled, so no more than a window goes out; the rest does
/// when there is room again, without anybody sending anything.
#[tokio::test(start_paused = true)]
async fn a_full_disk_holds_up_what_is_beyond_the_window_until_there_is_room() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    let batch = (0..2000).map(act);
    let durable = SendOptions::new().durable();
    client.send_batch(batch, durable).await.unwrap();
    disk.limit_room(Some(0));
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    for message in &actions(&mut peer, 1024).await {
        peer.acknowledge(message).await;
    }
    assert!(peer.is_silent_for(Duration::from_secs(20)).await);
    let tries = disk.counts().full;
    assert!(tries < 50, "the disk is left alone: {tries}");
    disk.limit_room(None);
    let rest = actions(&mut peer, 976).await;
    assert_eq!(rest[0]["seq"], 1025);
}
