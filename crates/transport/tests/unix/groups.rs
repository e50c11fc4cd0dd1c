//! Who may connect where several groups may: real processes with real groups.

use std::os::unix::process::CommandExt as _;

use migration_ipc_transport::{Access, BindOptions, Endpoint, Listener, bind};

use crate::support::{ALICE, BOB, Player, Scratch, is_root, mode, reach, within};

const STAFF: u32 = 61_001;
const BACKUP: u32 = 61_002;
const OTHERS: u32 = 61_003;

async fn serve_for(groups: &[u32], endpoint: &Endpoint) -> Box<dyn Listener> {
    let groups = groups.iter().map(ToString::to_string).collect();
    let options = BindOptions::new().access(Access::Groups(groups));
    within(bind(endpoint, &options)).await.unwrap()
}

fn start_with_groups(groups: &[u32], endpoint: &Endpoint) -> Player {
    let groups: Vec<_> = groups.iter().map(ToString::to_string).collect();
    Player::start(
        "connect with these groups",
        &endpoint.to_string(),
        |command| {
            command.env("MIG_TEST_GROUPS", groups.join(","));
        },
    )
}

async fn next_process(listener: &mut Box<dyn Listener>) -> Option<u32> {
    let stream = within(listener.accept()).await.unwrap();
    stream.identify().await.unwrap().process_id()
}

#[tokio::test]
async fn of_several_groups_a_member_of_any_may_connect_and_nobody_else() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve_for(&[STAFF, BACKUP], &endpoint).await;
    assert_eq!(mode(endpoint.address()), 0o666, "a mode names one group");

    // These wait first, and are not the first that are accepted.
    let mut bob = Player::start_as(BOB, "connect", &endpoint);
    assert_eq!(bob.line(), "served by 0");
    let mut alice = start_with_groups(&[OTHERS], &endpoint);
    assert_eq!(alice.line(), "connected");

    let by_primary = Player::start("connect", &endpoint.to_string(), |command| {
        command.uid(BOB).gid(STAFF);
    });
    assert_eq!(next_process(&mut listener).await, Some(by_primary.id()));
    let by_another = start_with_groups(&[OTHERS, BACKUP], &endpoint);
    assert_eq!(next_process(&mut listener).await, Some(by_another.id()));
    // More than are asked for at first.
    let many: Vec<_> = (70_000..70_200).chain([BACKUP]).collect();
    let by_the_last = start_with_groups(&many, &endpoint);
    assert_eq!(next_process(&mut listener).await, Some(by_the_last.id()));
    // root needs no group.
    let _root = reach(&endpoint).await.unwrap();
    assert_eq!(next_process(&mut listener).await, Some(std::process::id()));
}

#[tokio::test]
async fn of_one_group_the_kernel_lets_nobody_else_connect() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve_for(&[STAFF], &endpoint).await;
    assert_eq!(mode(endpoint.address()), 0o660);
    let said = Player::start_as(ALICE, "connect", &endpoint).line();
    assert!(said.starts_with("this account may not connect"), "{said}");
    let member = start_with_groups(&[STAFF], &endpoint);
    assert_eq!(next_process(&mut listener).await, Some(member.id()));
}

#[tokio::test]
async fn no_group_at_all_is_an_error() {
    let scratch = Scratch::new();
    let options = BindOptions::new().access(Access::Groups(Vec::new()));
    let error = within(bind(&scratch.endpoint(), &options))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("name at least one"), "{error}");
}
