//! The work of one client.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use migration_ipc::{Answer, Endpoint, IpcClient, IpcClientBuilder, MessageDispatcher, Trust};

use super::{Measure, Setting, Side};
use crate::manifest::{self, Manifest};
use crate::message::{Count, CountRequest, Question, Sample, progress};
use crate::modes::{call_with_window, with_latencies};
use crate::project::Client;
use crate::report::{Latencies, Meter, Report};

pub(super) async fn run(
    setting: Setting,
    endpoint: String,
    count: u64,
    server: Option<u32>,
) -> Result<Report> {
    let work = Work {
        setting,
        endpoint: Endpoint::parse(&endpoint)?,
        count,
        server,
    };
    match setting.measure {
        Measure::Request => work.round_trips().await,
        Measure::Manifests => work.manifests().await,
        Measure::SmallMessages | Measure::Encrypted | Measure::EncryptedAesGcm | Measure::NoAck => {
            work.small_messages().await
        }
        Measure::AckRanges => work.window().await,
        Measure::Connecting => work.connecting().await,
        Measure::Afterwards => work.round_trips().await,
    }
}

struct Work {
    setting: Setting,
    endpoint: Endpoint,
    count: u64,
    server: Option<u32>,
}

impl Work {
    fn client(&self) -> Result<IpcClientBuilder> {
        let mut client = IpcClient::builder(MessageDispatcher::empty())
            .endpoint(self.endpoint.clone())
            .trust(Trust::OwnAccount)
            .connection_config(self.setting.config());
        let says_hello = match self.setting.measure {
            Measure::Connecting | Measure::Afterwards => self.setting.side == Side::With,
            Measure::Request
            | Measure::Manifests
            | Measure::SmallMessages
            | Measure::Encrypted
            | Measure::EncryptedAesGcm
            | Measure::AckRanges
            | Measure::NoAck => true,
        };
        if !says_hello {
            client = client.without_hello();
        }
        if let Some(encryption) = self.setting.encryption()? {
            client = client.encryption(encryption);
        }
        Ok(client)
    }

    async fn round_trips(&self) -> Result<Report> {
        let client = self.client()?.connect().await?;
        for number in 0..(self.count / 10).max(1000) {
            self.round_trip(&client, number).await?;
        }
        let mut latencies = Latencies::with_capacity(self.count);
        let meter = Meter::start(self.server);
        for number in 0..self.count {
            let start = Instant::now();
            self.round_trip(&client, number).await?;
            latencies.add(start.elapsed());
        }
        let report = meter.finish(self.count);
        Ok(with_latencies(report, latencies))
    }

    async fn round_trip(&self, client: &IpcClient, number: u64) -> Result<()> {
        match (self.setting.measure, self.setting.side) {
            (Measure::Request, Side::With) => {
                black_box(client.request(Question(progress(number))).await?.handled);
            }
            _ => {
                client.send_acknowledged(progress(number)).await?;
            }
        }
        Ok(())
    }

    async fn manifests(&self) -> Result<Report> {
        let client = self.client()?.connect().await?;
        let manifest = Manifest::of_length(manifest::USUAL);
        for _ in 0..(self.count / 10).max(1) {
            client.send(manifest.clone()).await?;
        }
        let before = handled(&client).await?;
        let meter = Meter::start(self.server);
        for _ in 0..self.count {
            client.send(manifest.clone()).await?;
        }
        self.finish(meter, before, handled(&client).await?)
    }

    async fn small_messages(&self) -> Result<Report> {
        let client = self.client()?.connect().await?;
        for number in 0..(self.count / 10).max(1) {
            client.send(Sample(progress(number))).await?;
        }
        let before = handled(&client).await?;
        let meter = Meter::start(self.server);
        for number in 0..self.count {
            client.send(Sample(progress(number))).await?;
        }
        self.finish(meter, before, handled(&client).await?)
    }

    async fn window(&self) -> Result<Report> {
        let client = Client::from(self.client()?.connect().await?);
        call_with_window(&client, (self.count / 10).max(1)).await?;
        let meter = Meter::start(self.server);
        call_with_window(&client, self.count).await?;
        Ok(meter.finish(self.count))
    }

    fn finish(&self, meter: Meter, before: u64, after: u64) -> Result<Report> {
        let report = meter.finish(self.count);
        ensure!(
            after - before == self.count,
            "the server handled {} messages of {}",
            after - before,
            self.count
        );
        Ok(report)
    }

    async fn connecting(&self) -> Result<Report> {
        for number in 0..(self.count / 10).max(1) {
            self.connect_once(number).await?;
        }
        let mut latencies = Latencies::with_capacity(self.count);
        let meter = Meter::start(self.server);
        for number in 0..self.count {
            let start = Instant::now();
            let client = self.connect_once(number).await?;
            latencies.add(start.elapsed());
            drop(client);
        }
        let report = meter.finish(self.count);
        Ok(with_latencies(report, latencies))
    }

    async fn connect_once(&self, number: u64) -> Result<IpcClient> {
        let client = self.client()?.connect().await?;
        client.send_acknowledged(progress(number)).await?;
        Ok(client)
    }
}

/// How many messages the server has handled.
async fn handled(client: &IpcClient) -> Result<u64> {
    match client.send_acknowledged(CountRequest {}).await? {
        Answer::Replied(reply) => Ok(reply.payload::<Count>()?.handled),
        Answer::Handled => bail!("the server did not say how many messages it has handled"),
    }
}
