//! The rows of the table, and what they should come to.

use std::fmt;

use clap::ValueEnum as _;

use super::{Measure, Reports, Setting, Side};
use crate::report::Report;
use crate::table::{cell, print_row, thousands};

/// What the ratio of a row should come to.
#[derive(Clone, Copy, Debug)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "at most {most:.2}"),
            Self::AtLeast(least) => write!(f, "at least {least:.2}"),
        }
    }
}

/// A row of the table.
struct Figure {
    measure: Measure,
    name: &'static str,
    decimals: usize,
    read: fn(&Report) -> Option<f64>,
    target: Option<Target>,
}

const FIGURES: [Figure; 17] = [
    Figure {
        measure: Measure::Request,
        name: "R: acknowledged message / request and its reply, µs",
        decimals: 1,
        read: |report| report.p50,
        target: Some(Target::AtMost(1.15)),
    },
    Figure {
        measure: Measure::Request,
        name: "R: processor, µs each",
        decimals: 2,
        read: |report| report.cpu,
        target: None,
    },
    Figure {
        measure: Measure::Encrypted,
        name: "S: messages of 335 bytes / with ChaCha20-Poly1305, thousand/s",
        decimals: 0,
        read: thousands,
        target: Some(Target::AtLeast(0.60)),
    },
    Figure {
        measure: Measure::Encrypted,
        name: "S: processor, µs each",
        decimals: 2,
        read: |report| report.cpu,
        target: None,
    },
    Figure {
        measure: Measure::EncryptedAesGcm,
        name: "G: messages of 335 bytes / with AES-256-GCM, thousand/s",
        decimals: 0,
        read: thousands,
        target: Some(Target::AtLeast(0.60)),
    },
    Figure {
        measure: Measure::EncryptedAesGcm,
        name: "G: processor, µs each",
        decimals: 2,
        read: |report| report.cpu,
        target: None,
    },
    Figure {
        measure: Measure::Manifests,
        name: "Z: manifests of 64 KiB / compressed, thousand/s",
        decimals: 2,
        read: thousands,
        target: Some(Target::AtLeast(1.00)),
    },
    Figure {
        measure: Measure::Manifests,
        name: "Z: processor, µs each",
        decimals: 0,
        read: |report| report.cpu,
        target: None,
    },
    Figure {
        measure: Measure::SmallMessages,
        name: "Y: messages of 335 bytes / compressed, thousand/s",
        decimals: 0,
        read: thousands,
        target: None,
    },
    Figure {
        measure: Measure::SmallMessages,
        name: "Y: processor, µs each",
        decimals: 2,
        read: |report| report.cpu,
        target: None,
    },
    Figure {
        measure: Measure::AckRanges,
        name: "K: 1,024 in flight, acknowledged one by one / in ranges, thousand/s",
        decimals: 0,
        read: thousands,
        target: None,
    },
    Figure {
        measure: Measure::AckRanges,
        name: "K: processor, µs each",
        decimals: 2,
        read: |report| report.cpu,
        target: None,
    },
    Figure {
        measure: Measure::NoAck,
        name: "L: messages of a silent type / that say so, thousand/s",
        decimals: 0,
        read: thousands,
        target: None,
    },
    Figure {
        measure: Measure::NoAck,
        name: "L: processor, µs each",
        decimals: 2,
        read: |report| report.cpu,
        target: None,
    },
    Figure {
        measure: Measure::Connecting,
        name: "N: from nothing to the first answer, plain / with a hello, µs",
        decimals: 1,
        read: |report| report.p50,
        target: None,
    },
    Figure {
        measure: Measure::Connecting,
        name: "N: connections with one round trip each, thousand/s",
        decimals: 2,
        read: thousands,
        target: None,
    },
    Figure {
        measure: Measure::Afterwards,
        name: "M: round trip on a plain connection / after a hello, µs",
        decimals: 1,
        read: |report| report.p50,
        target: Some(Target::AtMost(1.05)),
    },
];

/// Prints what was measured, as a table of Markdown.
pub(super) fn print(reports: &Reports) {
    print_row(
        &[
            "",
            "without",
            "with",
            "with / without",
            "target",
            "least and most in a run",
        ]
        .map(str::to_owned),
    );
    print_row(&vec!["---".to_owned(); 6]);
    for &measure in Measure::value_variants() {
        let of = |side| reports.get(&Setting { measure, side });
        let (Some(without), Some(with)) = (of(Side::Without), of(Side::With)) else {
            continue;
        };
        for figure in FIGURES.iter().filter(|figure| figure.measure == measure) {
            print_figure(figure, without, with);
        }
    }
}

fn print_figure(figure: &Figure, without: &[Report], with: &[Report]) {
    let read = |reports: &[Report]| sorted(reports.iter().filter_map(figure.read));
    // Beside each other within a run, whatever else the machine does meanwhile.
    let pairs = without.iter().zip(with);
    let ratios = sorted(
        pairs.filter_map(|(without, with)| Some((figure.read)(with)? / (figure.read)(without)?)),
    );
    let spread = match (ratios.first(), ratios.last()) {
        (Some(least), Some(most)) => format!("{least:.2} to {most:.2}"),
        _ => "-".to_owned(),
    };
    print_row(&[
        figure.name.to_owned(),
        cell(median(&read(without)), figure.decimals),
        cell(median(&read(with)), figure.decimals),
        cell(median(&ratios), 2),
        figure
            .target
            .map_or_else(|| "-".to_owned(), |target| target.to_string()),
        spread,
    ]);
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}
