//! A hostile client in another language attacks the service, as one account; as another account a
//! bystander completes all its round trips, under each attack.

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Running, Sandbox, report, until};

/// Accounts that need no entry in the account database. What one has sent too much is held against it
/// for a while, so each attack has its own, from this one on.
const FIRST_ATTACKER: u32 = 54401;
const BYSTANDER: &str = "54332";

/// How long an attack may take to be under way.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the service may hold at its peak, in KiB: what one account may hold, as values rather than as
/// bytes, and what the service itself takes.
const MOST_RESIDENT: u64 = 256 * 1024;

const ROUND_TRIPS: &str = "50";

const CONNECTIONS_PER_USER: usize = 64;

/// A service for everybody, and the attacks; `None` where they cannot be.
struct Scene {
    sandbox: Sandbox,
    service: Running,
    /// Whether attacker and bystander are accounts of their own.
    accounts: Accounts,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Accounts {
    Two,
    /// All are the service's own, which is held to no limits of an account.
    One,
}

impl Scene {
    fn new(configuration: &str) -> Option<Self> {
        let has_python = Command::new("python3").arg("--version").output().is_ok();
        if !has_python {
            report("SKIPPED: there is no python3 to be hostile with");
            return None;
        }
        let accounts = if rustix::process::geteuid().is_root() {
            Accounts::Two
        } else {
            report("attacker and bystander are one account: only root can be two others");
            Accounts::One
        };
        let sandbox = Sandbox::new();
        fs::set_permissions(sandbox.path(""), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(sandbox.path("run")).unwrap();
        fs::set_permissions(sandbox.path("run"), Permissions::from_mode(0o755)).unwrap();
        // The sources may be closed to others.
        fs::copy(script(), sandbox.path("hostile.py")).unwrap();
        fs::set_permissions(sandbox.path("hostile.py"), Permissions::from_mode(0o644)).unwrap();
        let configuration = sandbox.write("service.toml", configuration);
        let mut command = sandbox.command(&["service", "--until-stdin-ends"]);
        command
            .args(["--endpoint", &sandbox.text("run/service.sock")])
            .args(["--data-dir", &sandbox.text("service-data")])
            .arg("--config")
            .arg(configuration)
            .stdin(Stdio::piped());
        let service = Running::start(&sandbox, "service", command);
        let scene = Self {
            sandbox,
            service,
            accounts,
        };
        until("the service answers", || scene.operator_gets_in());
        Some(scene)
    }

    fn operator_gets_in(&self) -> bool {
        let endpoint = self.sandbox.text("run/service.sock");
        self.sandbox.run(&["status", "--endpoint", &endpoint]).code == Some(0)
    }

    fn python(&self, arguments: &[&str], account: &str) -> Command {
        let mut command = Command::new("python3");
        command
            .arg(self.sandbox.path("hostile.py"))
            .arg(self.sandbox.path("run/service.sock"))
            .args(arguments)
            .current_dir("/");
        if self.accounts == Accounts::Two {
            command.arg(account);
        }
        command
    }

    fn attacks(&self) -> Vec<String> {
        let mut command = Command::new("python3");
        command
            .arg(self.sandbox.path("hostile.py"))
            .args(["", "list"]);
        let output = command.output().unwrap().stdout;
        let names = String::from_utf8(output).unwrap();
        names.lines().map(str::to_owned).collect()
    }

    /// The bystander's times, once it has completed everything.
    #[track_caller]
    fn bystander(&self, during: &str) -> Value {
        let command = self.python(&["bystander", ROUND_TRIPS], BYSTANDER);
        let finished = Running::start(&self.sandbox, "bystander", command).wait();
        assert_eq!(finished.code, Some(0), "{during}: {}", finished.errors);
        serde_json::from_str(&finished.output).unwrap()
    }

    /// The most memory that the service has held so far, in KiB.
    fn peak(&self) -> Option<u64> {
        let id = self.service.id().as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }
}

/// An attack that is under way; ended when dropped.
struct Attack {
    child: Child,
    errors: PathBuf,
}

impl Attack {
    #[track_caller]
    fn begin(scene: &Scene, name: &str, account: u32) -> Self {
        let errors = scene.sandbox.path(&format!("attack-{name}.err"));
        let mut child = scene
            .python(&["attack", name], &account.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let attack = Self { child, errors };
        let (said, first_line) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            // Nobody listens any more when it took too long.
            let _ = said.send(line);
        });
        let line = first_line.recv_timeout(PATIENCE);
        assert_eq!(
            line.as_deref(),
            Ok("under way\n"),
            "{name}: {}",
            attack.errors()
        );
        attack
    }

    fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap()
    }

    /// Ends it, and checks that everything was answered as it should be.
    #[track_caller]
    fn end(mut self, name: &str) -> String {
        drop(self.child.stdin.take());
        let mut code = None;
        until("the attack ends", || {
            code = self.child.try_wait().unwrap().map(|status| status.code());
            code.is_some()
        });
        assert_eq!(code, Some(Some(0)), "{name}: {}", self.errors());
        self.errors()
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        // It has usually ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/hostile.py")
}

#[test]
fn a_bystander_completes_all_its_round_trips_under_each_attack() {
    let Some(mut scene) = Scene::new("") else {
        return;
    };
    let quiet = scene.bystander("without an attack");
    report(format_args!("quiet: {quiet}"));
    let attacks = scene.attacks();
    assert!(attacks.len() > 20, "{attacks:?}");
    for (account, name) in (FIRST_ATTACKER..).zip(attacks) {
        let attack = Attack::begin(&scene, &name, account);
        let times = scene.bystander(&name);
        assert!(scene.operator_gets_in(), "{name}: an operator gets in");
        attack.end(&name);
        assert!(
            !scene.service.has_ended(),
            "{name}: {}",
            scene.service.log()
        );
        let peak = scene.peak().unwrap_or_default();
        report(format_args!("{name}: {times}, at most {peak} KiB"));
        assert!(peak < MOST_RESIDENT, "{name}: the service held {peak} KiB");
    }
    assert!(!scene.service.log().contains("panicked"));
}

/// How many records of one account the audit log has in a minute.
const AUDIT_RECORDS: usize = 30;

/// What is asserted of the attacker needs an account that is held to limits.
#[test]
fn a_thousand_connections_of_one_account_leave_room_for_another_account() {
    let Some(scene) = Scene::new("") else { return };
    let attack = Attack::begin(&scene, "flood_of_connections", FIRST_ATTACKER);
    scene.bystander("a thousand connections");
    assert!(scene.operator_gets_in());
    let errors = attack.end("flood_of_connections");
    if scene.accounts == Accounts::One {
        report("SKIPPED: that the flood was cut down, which needs another account");
        return;
    }
    let log = scene.service.log();
    assert!(log.contains("account_limit"), "{log}");
    let refused: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("account_limit"))
        .collect();
    // In each of the at most two minutes that the flood may touch.
    assert!(refused.len() <= 2 * AUDIT_RECORDS, "{}", refused.len());
    let open = errors.trim().trim_start_matches("open: ");
    report(format_args!("{open} of 1000 connections stayed open"));
    let open: usize = open.parse().unwrap();
    assert!(open <= CONNECTIONS_PER_USER, "{open}");
}

#[test]
fn the_messages_per_second_of_one_account_are_no_loss_of_another() {
    const PER_SECOND: u64 = 500;
    let configuration = format!("[limits]\nmessages_per_second = {PER_SECOND}\n");
    let Some(scene) = Scene::new(&configuration) else {
        return;
    };
    if scene.accounts == Accounts::One {
        report("SKIPPED: only root can show this with two accounts");
        return;
    }
    let endpoint = scene.sandbox.text("run/service.sock");
    let received = || {
        let status = ["status", "--json", "--endpoint", &endpoint];
        let status: Value = serde_json::from_str(&scene.sandbox.run(&status).output).unwrap();
        status["traffic"]["types"]["USER_ACTION"]["received"]["messages"]
            .as_u64()
            .unwrap_or_default()
    };
    let attack = Attack::begin(&scene, "flood_of_messages", FIRST_ATTACKER);
    let (begun, before) = (std::time::Instant::now(), received());
    for _ in 0..5 {
        scene.bystander("a flood of messages");
    }
    let handled = received() - before;
    let seconds = begun.elapsed().as_secs() + 1;
    attack.end("flood_of_messages");
    let bystanders = 5 * ROUND_TRIPS.parse::<u64>().unwrap();
    // Its rate; a burst of two seconds; and a read of each connection beyond it.
    let most = bystanders + PER_SECOND * (seconds + 2) + 6 * 1024;
    report(format_args!(
        "{handled} messages in {seconds} s; at most {most}"
    ));
    assert!(handled <= most, "{handled} > {most} in {seconds} s");
    let _ = std::io::stderr().flush();
}
