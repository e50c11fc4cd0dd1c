//! Both sides crash while durable messages flow; the model is the plain list of what was accepted.

use std::time::Duration;

use migration_ipc::keys::KeyBytes;
use migration_ipc::{AtRest, Backoff, OutboxKey, ReconnectingIpcClient, SendOptions, StreamName};
use migration_ipc_testkit::disk::SimDisk;

use crate::common::*;
use crate::stage::*;

fn quick() -> Backoff {
    Backoff {
        base: Duration::from_millis(200),
        cap: Duration::from_secs(1),
        first: Duration::from_millis(100),
        ..Backoff::default()
    }
    .unlimited()
}

async fn begin(site: &Site, disk: &SimDisk) -> ReconnectingIpcClient {
    begin_with(site, disk, AtRest::default()).await
}

async fn begin_with(site: &Site, disk: &SimDisk, at_rest: AtRest) -> ReconnectingIpcClient {
    site.durable_client(disk)
        .backoff(quick())
        .outbox_key(OutboxKey::new(&KeyBytes::new([7; 32])))
        .at_rest(at_rest)
        .start()
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_accepted_message_takes_effect_once_and_in_order_whoever_crashes() {
    for seed in 0..10 {
        // With the last ones everything is encrypted on the disk.
        let at_rest = if seed < 6 {
            AtRest::default()
        } else {
            AtRest::All
        };
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let site = Site::default();
        let mut disk = SimDisk::new(seed);
        let mut service = Recorder::on(site.open(), SimDisk::new(1000 + seed)).await;
        let mut client = begin_with(&site, &disk, at_rest).await;
        // What was accepted, by stream; and what a crash interrupted, which may be there or not.
        let mut accepted = [Vec::new(), Vec::new()];
        for number in 0..200 {
            let stream = random.usize(..2);
            let options = SendOptions::new()
                .durable()
                .stream(StreamName::new(["a", "b"][stream]).unwrap());
            let name = format!("{stream}:{number}");
            client.send_with(act(&name), options).await.unwrap();
            accepted[stream].push(name);
            match random.u8(..) {
                0..5 => {
                    disk.crash();
                    drop(client);
                    disk = disk.restart();
                    client = begin_with(&site, &disk, at_rest).await;
                }
                5..10 => {
                    let disk = service.crash();
                    service = Recorder::on(site.open(), disk).await;
                }
                10..13 => {
                    service.server.stop(Duration::from_secs(1)).await;
                    drop(service.owner.close().await);
                    service = Recorder::on(site.open(), service.disk).await;
                }
                13..40 => {
                    let pause = Duration::from_millis(random.u64(..300));
                    tokio::time::sleep(pause).await;
                }
                _ => {}
            }
        }
        eventually("everything is answered", || client.outstanding() == 0).await;
        let log = service.log().await;
        for (stream, expected) in accepted.iter().enumerate() {
            let prefix = format!("{stream}:");
            let found: Vec<_> = log
                .iter()
                .filter(|name| name.starts_with(&prefix))
                .collect();
            assert!(
                found.iter().copied().eq(expected),
                "{found:?}\n{expected:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_outbox_is_sent_after_a_restart() {
    const MESSAGES: usize = 5000;
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = begin(&site, &disk).await;
    for batch in 0..MESSAGES / 1000 {
        let messages = (0..1000).map(|number| act(batch * 1000 + number));
        let sent = client.send_batch(messages, SendOptions::new().durable());
        drop(sent.await.unwrap());
    }
    disk.crash();
    drop(client);
    let disk = disk.restart();
    let client = begin(&site, &disk).await;
    assert_eq!(client.outstanding(), MESSAGES);
    let mut fates = client.restored().unwrap();
    let service = Recorder::on(site.open(), SimDisk::new(2)).await;
    let mut handled = 0;
    while let Some(restored) = within(fates.recv()).await {
        assert!(restored.fate.is_handled(), "{}", restored.fate);
        handled += 1;
    }
    assert_eq!(handled, MESSAGES);
    let log = service.log().await;
    let numbers = log.iter().map(|name| name.parse::<usize>().unwrap());
    assert!(numbers.eq(0..MESSAGES));
}
