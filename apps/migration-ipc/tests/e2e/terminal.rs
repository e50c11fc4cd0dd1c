//! `agent` with its user at a terminal.

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::harness::{Running, Sandbox, until};

/// An agent and the keyboard of its terminal. What it prints goes to a terminal too, so tests
/// look at what the service knows.
struct Seat {
    sandbox: Sandbox,
    keyboard: File,
    agent: Running,
    _service: Running,
}

impl Seat {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        sandbox.write("docs/a.txt", "alpha");
        let service = sandbox.service(&[]);
        let keyboard =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let screen = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let screen = File::from(screen);

        let arguments = sandbox.agent_arguments("s1", &[]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = sandbox.command(&arguments);
        command.stdin(Stdio::from(screen.try_clone().unwrap()));
        let agent = Running::start_at(&sandbox, "agent", command, screen);
        until("the agent is there", || sandbox.user("s1").is_some());
        Self {
            sandbox,
            keyboard: File::from(keyboard),
            agent,
            _service: service,
        }
    }

    fn type_line(&mut self, line: &str) {
        self.keyboard
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    fn request(&self) {
        let request = r#"{"deadline":"2099-01-01T12:00:00Z"}"#;
        assert_eq!(
            self.sandbox
                .send(&["--all", "BACKUP_REQUEST", request])
                .code,
            Some(0)
        );
    }

    fn until_delays(&self, delays: u32, deadline: &str) {
        until(&format!("{delays} delays"), || {
            let user = self.sandbox.user("s1").unwrap();
            user["delaysUsed"] == delays && user["deadline"] == deadline
        });
    }
}

#[test]
fn the_user_delays_and_then_starts() {
    let mut seat = Seat::new();
    seat.request();
    seat.type_line("what?");
    seat.type_line("d 2");
    seat.until_delays(1, "2099-01-01T14:00:00Z");
    assert_eq!(seat.sandbox.user("s1").unwrap()["state"], "delayed");
    seat.type_line("s");
    seat.sandbox.until_state("s1", "completed");
    assert!(seat.sandbox.path("backups/s1/a.txt").is_file());
}

#[test]
fn the_fourth_delay_calls_support_staff() {
    let mut seat = Seat::new();
    seat.request();
    for (delays, deadline) in [
        (1, "2099-01-01T13:00:00Z"),
        (2, "2099-01-01T14:00:00Z"),
        (3, "2099-01-01T15:00:00Z"),
    ] {
        seat.type_line("d 1");
        seat.until_delays(delays, deadline);
    }
    seat.type_line("d 1");
    until("an escalation", || {
        seat.sandbox.user("s1").unwrap()["escalations"][0]["reason"] == "max_delays_exceeded"
    });
    seat.until_delays(3, "2099-01-01T15:00:00Z");
    seat.type_line("s");
    seat.sandbox.until_state("s1", "completed");
}

#[test]
fn a_closed_terminal_declines() {
    let Seat {
        sandbox,
        keyboard,
        agent,
        _service,
    } = Seat::new();
    let request = r#"{"deadline":"2099-01-01T12:00:00Z"}"#;
    assert_eq!(
        sandbox.send(&["--all", "BACKUP_REQUEST", request]).code,
        Some(0)
    );
    drop(keyboard);
    until("the service knows", || {
        sandbox.user("s1").unwrap()["lastAction"]["text"] == "backup_declined"
    });
    drop(agent);
}
