//! `agent` with its user at a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::harness::{Running, Sandbox, until};

const REQUEST: &str = r#"{"deadline":"2099-01-01T12:00:00Z"}"#;

/// An agent, the keyboard of its terminal, and what its screen has shown.
struct Seat {
    sandbox: Sandbox,
    keyboard: File,
    screen: Arc<Mutex<String>>,
    agent: Running,
    service: Running,
}

/// An agent at a terminal of its own.
fn sit_down(sandbox: &Sandbox) -> (File, Arc<Mutex<String>>, Running) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let keyboard = openpt(flags).unwrap();
    grantpt(&keyboard).unwrap();
    unlockpt(&keyboard).unwrap();
    let name = ptsname(&keyboard, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = File::from(rustix::fs::open(name, flags, Mode::empty()).unwrap());

    let arguments = sandbox.agent_arguments("s1", &[]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = sandbox.command(&arguments);
    command.stdin(Stdio::from(terminal.try_clone().unwrap()));
    let agent = Running::start_at(sandbox, "agent", command, terminal);
    let keyboard = File::from(keyboard);
    let screen = watch(keyboard.try_clone().unwrap());
    (keyboard, screen, agent)
}

impl Seat {
    /// An agent whose user has been asked.
    fn asked() -> Self {
        let sandbox = Sandbox::new();
        sandbox.write("docs/a.txt", "alpha");
        let service = sandbox.service(&[]);
        let (keyboard, screen, agent) = sit_down(&sandbox);
        let seat = Self {
            sandbox,
            keyboard,
            screen,
            agent,
            service,
        };
        until("the agent is there", || seat.sandbox.user("s1").is_some());
        assert_eq!(
            seat.sandbox
                .send(&["--all", "BACKUP_REQUEST", REQUEST])
                .code,
            Some(0)
        );
        seat.until_shown("[s]tart now");
        seat
    }

    /// Kills everybody, and starts both again.
    fn kill_both(self) -> Self {
        self.agent.kill();
        self.service.kill();
        let service = self.sandbox.service(&[]);
        let (keyboard, screen, agent) = sit_down(&self.sandbox);
        Self {
            sandbox: self.sandbox,
            keyboard,
            screen,
            agent,
            service,
        }
    }

    fn type_line(&mut self, line: &str) {
        self.keyboard
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    fn until_shown(&self, text: &str) {
        until(&format!("the screen shows `{text}`"), || {
            self.screen.lock().unwrap().contains(text)
        });
    }

    /// Delays by an hour, and waits until everybody knows the new deadline.
    fn delay(&mut self, delays: u32, deadline: &str) {
        self.type_line("d 1");
        self.until_shown(&format!("is requested until {deadline}"));
        self.has(delays, deadline);
    }

    fn has(&self, delays: u32, deadline: &str) {
        let user = self.sandbox.user("s1").unwrap();
        assert_eq!(user["delaysUsed"], delays);
        assert_eq!(user["deadline"], deadline);
    }
}

/// Collects what a terminal shows, until it is gone.
fn watch(mut terminal: File) -> Arc<Mutex<String>> {
    let screen = Arc::new(Mutex::new(String::new()));
    let shown = Arc::clone(&screen);
    thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(read @ 1..) = terminal.read(&mut part) {
            shown
                .lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&part[..read]));
        }
    });
    screen
}

#[test]
fn the_user_delays_and_then_starts() {
    let mut seat = Seat::asked();
    seat.type_line("what?");
    seat.delay(1, "2099-01-01T13:00:00Z");
    assert_eq!(seat.sandbox.user("s1").unwrap()["state"], "delayed");
    seat.type_line("s");
    seat.until_shown("The backup is complete");
    assert!(seat.sandbox.path("backups/s1/a.txt").is_file());
    seat.type_line("s");
    seat.until_shown("nothing to decide");
}

#[test]
fn a_delay_survives_the_death_of_both_sides() {
    let mut seat = Seat::asked();
    seat.delay(1, "2099-01-01T13:00:00Z");
    let mut seat = seat.kill_both();
    seat.until_shown("is requested until 2099-01-01T13:00:00Z");
    assert_eq!(seat.sandbox.user("s1").unwrap()["state"], "delayed");
    seat.has(1, "2099-01-01T13:00:00Z");
    // The user is not asked, and may choose all the same.
    seat.type_line("what?");
    seat.delay(2, "2099-01-01T14:00:00Z");
    let shown = seat.screen.lock().unwrap().clone();
    assert_eq!(shown.matches("[s]tart now").count(), 1, "{shown}");
    seat.type_line("s");
    seat.until_shown("The backup is complete");
}

#[test]
fn a_delay_asked_for_without_the_service_is_granted_when_both_are_back() {
    let mut seat = Seat::asked();
    seat.service.kill_now();
    seat.until_shown("The service is not there");
    seat.type_line("d 1");
    let kept = seat
        .sandbox
        .path(".local/share/migration-ipc/sessions/s1/delay.json");
    until("the agent remembers it", || kept.exists());
    let seat = seat.kill_both();
    seat.until_shown("is requested until 2099-01-01T13:00:00Z");
    seat.has(1, "2099-01-01T13:00:00Z");
    assert_eq!(seat.sandbox.user("s1").unwrap()["state"], "delayed");
    assert_eq!(
        seat.sandbox.user("s1").unwrap()["lastAction"]["text"],
        "backup_delayed"
    );
    let shown = seat.screen.lock().unwrap().clone();
    assert!(!shown.contains("[s]tart now"), "{shown}");
}

#[test]
fn the_fourth_delay_calls_support_staff() {
    let mut seat = Seat::asked();
    seat.delay(1, "2099-01-01T13:00:00Z");
    seat.delay(2, "2099-01-01T14:00:00Z");
    seat.delay(3, "2099-01-01T15:00:00Z");
    seat.type_line("d 1");
    seat.until_shown("Support staff was called (max_delays_exceeded)");
    let escalations = &seat.sandbox.user("s1").unwrap()["escalations"];
    assert_eq!(escalations[0]["reason"], "max_delays_exceeded");
    seat.has(3, "2099-01-01T15:00:00Z");
    seat.type_line("s");
    seat.until_shown("The backup is complete");
}

#[test]
fn the_user_declines() {
    let mut seat = Seat::asked();
    seat.type_line("n");
    until("the service knows", || {
        seat.sandbox.user("s1").unwrap()["lastAction"]["text"] == "backup_declined"
    });
    assert!(!seat.sandbox.path("backups/s1").exists());
    assert!(!seat.agent.has_ended());
}

#[test]
fn the_end_of_the_input_declines() {
    let mut seat = Seat::asked();
    // What Ctrl-D sends at the beginning of a line.
    seat.keyboard.write_all(b"\x04").unwrap();
    until("the service knows", || {
        seat.sandbox.user("s1").unwrap()["lastAction"]["text"] == "backup_declined"
    });
}
