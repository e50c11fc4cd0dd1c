//! The configurations.

use migration_ipc::{Capability, CapabilitySet, message_types};

use crate::probes::{PROBES, Shown, all};
use crate::talk::{End, Meeting, Service, Talk};
use crate::transcript::Transcript;

const ENDS: [End; 2] = [End::Client, End::Service];

/// Holds the whole conversation, and checks that each capability shows if, and only if, it was
/// negotiated.
async fn hold(meeting: Meeting) -> Transcript {
    let talk = Talk::begin(meeting).await;
    let negotiated = talk.negotiated.unwrap_or_default();
    talk.greet().await;
    for probe in PROBES {
        (probe.exercise)(&talk).await;
    }
    let transcript = talk.end().await;
    for probe in PROBES {
        let name = probe.capability.as_str();
        for end in ENDS {
            let side = match end {
                End::Client => &transcript.client,
                End::Service => &transcript.service,
            };
            let signs = (probe.signs)(side);
            let may = negotiated.contains(probe.capability);
            let must = may
                && match probe.shown_by {
                    Shown::ByBoth => true,
                    Shown::ByWhoCloses => end == meeting.closes,
                };
            let (all, any) = (!signs.contains(&false), signs.contains(&true));
            assert!(
                all || !must,
                "{end:?} does not use {name} ({signs:?}): {meeting:?}"
            );
            assert!(may || !any, "{end:?} uses {name} ({signs:?}): {meeting:?}");
        }
    }
    transcript
}

/// Both ways to come to the same: one side has these alone, and the other one everything.
async fn hold_with(capabilities: CapabilitySet) {
    for these in ENDS {
        let (client, service) = match these {
            End::Client => (capabilities, all()),
            End::Service => (all(), capabilities),
        };
        let closers = match capabilities.contains(Capability::Goodbye) {
            true => ENDS.as_slice(),
            // Without a goodbye it makes no difference who closes.
            false => &[these],
        };
        for &closes in closers {
            hold(Meeting {
                client: Some(client),
                service: Service::New(service),
                closes,
            })
            .await;
        }
    }
}

/// The set with everything that its members need.
fn with_needs(capabilities: CapabilitySet) -> CapabilitySet {
    let needs = capabilities
        .iter()
        .flat_map(|capability| capability.needs().iter().copied());
    let more = capabilities.iter().chain(needs).collect();
    if more == capabilities {
        more
    } else {
        with_needs(more)
    }
}

#[test]
fn every_capability_has_a_probe() {
    assert_eq!(PROBES.len(), Capability::ALL.len());
    assert_eq!(all(), CapabilitySet::all());
}

#[tokio::test(start_paused = true)]
async fn every_pair_of_capabilities_is_active_and_nothing_else_is() {
    let mut held = Vec::new();
    for (number, one) in all().iter().enumerate() {
        for other in all().iter().skip(number + 1) {
            let pair = with_needs([one, other].into_iter().collect());
            // What needs others makes some pairs the same.
            if !held.contains(&pair) {
                hold_with(pair).await;
                held.push(pair);
            }
        }
    }
    assert!(held.len() > PROBES.len(), "{} sets", held.len());
}

#[tokio::test(start_paused = true)]
async fn every_capability_is_active_alone() {
    for capability in all().iter() {
        hold_with(with_needs([capability].into_iter().collect())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn all_capabilities_are_active_together() {
    hold_with(all()).await;
}

/// One has these, the other one those: nothing is in use that one of them has not.
#[tokio::test(start_paused = true)]
async fn what_only_one_side_has_is_not_used() {
    for capability in all().iter() {
        let without = all().without(capability).complete();
        hold_with(without).await;
    }
    hold_with(CapabilitySet::EMPTY).await;
}

/// The types, and the members of the envelope, that every peer knows.
fn check_plain(transcript: &Transcript) {
    let both = [&transcript.client, &transcript.service];
    for message in both.into_iter().flat_map(|side| side.messages()) {
        let kind = message["type"].as_str().unwrap();
        if kind == message_types::HELLO {
            continue;
        }
        assert!(message_types::PLAIN.contains(&kind), "{message}");
        for member in message.as_object().unwrap().keys() {
            let plain = ["id", "type", "timestamp", "payload"];
            assert!(plain.contains(&member.as_str()), "{message}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_no_hello_gets_the_plain_wire() {
    for closes in ENDS {
        let transcript = hold(Meeting {
            client: None,
            service: Service::New(all()),
            closes,
        })
        .await;
        check_plain(&transcript);
        let hellos = [&transcript.client, &transcript.service].map(|side| side.has("HELLO"));
        assert_eq!(hellos, [false, false]);
    }
}

/// What such a service gets, and sends.
async fn check_service(service: Service) {
    for closes in ENDS {
        let transcript = hold(Meeting {
            client: Some(all()),
            service,
            closes,
        })
        .await;
        check_plain(&transcript);
        let hellos = transcript
            .client
            .bodies
            .iter()
            .filter(|body| body.is("HELLO"))
            .count();
        assert_eq!(hellos, 1);
        assert!(transcript.client.bodies[0].is("HELLO"), "and then no other");
        assert!(!transcript.service.has("HELLO"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_ignores_the_hello_gets_the_plain_wire_behind_it() {
    check_service(Service::IgnoresHellos).await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_refuses_the_hello_gets_the_plain_wire_behind_it() {
    check_service(Service::RefusesHellos).await;
}
