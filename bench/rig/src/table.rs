//! Medians and ratios, as a table of Markdown.
#![expect(clippy::print_stdout, reason = "figures are what this program is for")]

use clap::ValueEnum;

use crate::compare::Reports;
use crate::modes::Mode;
use crate::peers::PeerName;
use crate::report::Report;

/// One figure of a mode.
struct Figure {
    mode: Mode,
    name: &'static str,
    decimals: usize,
    read: fn(&Report) -> Option<f64>,
}

const FIGURES: [Figure; 13] = [
    Figure {
        mode: Mode::RoundTrip,
        name: "A: round trip, median, µs",
        decimals: 1,
        read: |report| report.p50,
    },
    Figure {
        mode: Mode::RoundTrip,
        name: "A: round trip, 99 of 100, µs",
        decimals: 1,
        read: |report| report.p99,
    },
    Figure {
        mode: Mode::Stream,
        name: "B: stream, thousand/s",
        decimals: 0,
        read: thousands,
    },
    Figure {
        mode: Mode::Stream,
        name: "B: processor, s per million",
        decimals: 2,
        read: |report| report.cpu,
    },
    Figure {
        mode: Mode::Window,
        name: "W: 1,024 in flight, thousand/s",
        decimals: 0,
        read: thousands,
    },
    Figure {
        mode: Mode::Window,
        name: "W: processor, s per million",
        decimals: 2,
        read: |report| report.cpu,
    },
    Figure {
        mode: Mode::FanIn,
        name: "C: 1,000 clients, thousand/s",
        decimals: 0,
        read: thousands,
    },
    Figure {
        mode: Mode::FanIn,
        name: "C: processor, s per million",
        decimals: 1,
        read: |report| report.cpu,
    },
    Figure {
        mode: Mode::FanIn,
        name: "C: memory of the server, MiB",
        decimals: 1,
        read: |report| report.rss.map(|kib| crate::report::as_f64(kib) / 1024.0),
    },
    Figure {
        mode: Mode::Broadcast,
        name: "D: broadcast to 1,000, thousand/s",
        decimals: 0,
        read: thousands,
    },
    Figure {
        mode: Mode::Durable,
        name: "E: durable, thousand/s",
        decimals: 1,
        read: thousands,
    },
    Figure {
        mode: Mode::Durable,
        name: "E: syncs of the sender for one message",
        decimals: 4,
        read: |report| report.syncs,
    },
    Figure {
        mode: Mode::Durable,
        name: "E: processor, s per million",
        decimals: 1,
        read: |report| report.cpu,
    },
];

pub(crate) fn thousands(report: &Report) -> Option<f64> {
    report.rate.map(|rate| rate / 1e3)
}

/// Prints every figure that was measured, and each one's ratio to that of the others.
pub(crate) fn print(reports: &Reports) {
    let peers = PeerName::value_variants();
    let others = peers.split_last().map_or(&[][..], |(_, others)| others);
    let mut header = vec!["".to_owned()];
    header.extend(peers.iter().map(|peer| peer.as_str().to_owned()));
    header.extend(
        others
            .iter()
            .map(|other| format!("project / {}", other.as_str())),
    );
    print_row(&header);
    print_row(&vec!["---".to_owned(); header.len()]);
    for figure in &FIGURES {
        let medians: Vec<Option<f64>> = peers
            .iter()
            .map(|&peer| median(reports, figure, peer))
            .collect();
        if medians.iter().all(Option::is_none) {
            continue;
        }
        let project = medians.last().copied().flatten();
        let mut row = vec![figure.name.to_owned()];
        row.extend(medians.iter().map(|median| cell(*median, figure.decimals)));
        row.extend(medians[..others.len()].iter().map(|other| {
            let ratio = project.zip(*other).map(|(project, other)| project / other);
            cell(ratio, 2)
        }));
        print_row(&row);
    }
}

fn median(reports: &Reports, figure: &Figure, peer: PeerName) -> Option<f64> {
    let mut values: Vec<f64> = reports
        .get(&(figure.mode, peer))?
        .iter()
        .filter_map(figure.read)
        .collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

pub(crate) fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

pub(crate) fn print_row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}
