//! Logs, on standard error.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, for programs.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogSettings {
    /// How log lines on standard error look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// What is logged: error, warn, info, debug or trace, or directives such as
    /// `info,migration_ipc=debug` [default: info for service and agent, else warn]
    #[arg(long, global = true, value_name = "LEVEL", value_parser = parse_filter)]
    log_level: Option<String>,
}

fn parse_filter(text: &str) -> Result<String, String> {
    match text.parse::<EnvFilter>() {
        Ok(_) if !text.trim().is_empty() => Ok(text.to_owned()),
        Ok(_) => Err("use error, warn, info, debug or trace".to_owned()),
        Err(error) => Err(format!("{error}; use error, warn, info, debug or trace")),
    }
}

impl LogSettings {
    /// Begins to log. `default_level` counts unless a level was given.
    pub(crate) fn install(&self, default_level: &str) {
        let filter = EnvFilter::new(self.log_level.as_deref().unwrap_or(default_level));
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => {
                let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
                logs.with_ansi(colours).init();
            }
            LogFormat::Json => logs.json().init(),
        }
    }
}
