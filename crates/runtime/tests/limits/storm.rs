//! Many agents that die and come back at the same moment.

use super::*;

const AGENTS: usize = 200;
const DEATHS: usize = 5;

/// A power failure of a terminal server, say: nobody said goodbye, and everybody is back at once.
#[tokio::test(start_paused = true)]
async fn two_hundred_agents_that_are_killed_and_come_back_at_once_are_all_served() {
    let (server, connector, _) = serving(AccountLimits::default()).await;
    let bystander = bystander(&connector, Duration::from_secs(1)).await;
    for _ in 0..DEATHS {
        let agents = (0..AGENTS).map(|number| {
            let connector = connector.clone();
            async move {
                let mut peer = WirePeer::connect(&connector, user(&number.to_string())).await;
                peer.hello("agent", 16).await;
                peer.send("USER_ACTION", action("x")).await;
                peer.receive_type("ACKNOWLEDGMENT").await;
                // Killed in the middle of a frame.
                peer.write(&[100, 0, 0]).await;
                peer
            }
        });
        let agents = within(futures_util::future::join_all(agents)).await;
        assert_eq!(agents.len(), AGENTS);
        drop(agents);
    }
    within(bystander).await.unwrap();
    eventually("nothing of them is left", || {
        server.connections().counts().total() == 0
    })
    .await;
}
