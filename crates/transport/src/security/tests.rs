//! Every preset against every kind of token, and what texts are refused.

use super::*;

fn account(number: u32) -> Sid {
    format!("S-1-5-21-1-2-3-{number}").parse().unwrap()
}

fn developer() -> Sid {
    account(1009)
}

/// Whom the tests know, by name.
fn token(name: &str) -> Token {
    let person = |number| {
        Token::new(account(number))
            .group(Sid::everyone())
            .group(Sid::users())
            .group(Sid::authenticated_users())
    };
    let alice = || person(1001).group(Sid::interactive());
    let administrator = || {
        person(500)
            .group(Sid::administrators())
            .integrity(IntegrityLevel::HIGH)
            .taking_ownership()
    };
    let package = "S-1-15-2-1-2-3-4-5-6-7".parse().unwrap();
    match name {
        "SYSTEM" => Token::new(Sid::system())
            .group(Sid::administrators())
            .group(Sid::authenticated_users())
            .integrity(IntegrityLevel::SYSTEM)
            .taking_ownership(),
        "administrator" => administrator().group(Sid::interactive()),
        "administrator over the network" => administrator().group(Sid::network()),
        "filtered administrator" => person(500)
            .group_used(Sid::administrators(), GroupUse::DenyOnly)
            .group(Sid::interactive()),
        "user" => alice(),
        "user over the network" => person(1001).group(Sid::network()),
        "service" => person(1002)
            .group(Sid::service())
            .integrity(IntegrityLevel::SYSTEM),
        "task" => person(1003).group(Sid::batch()),
        "guest" => Token::new(account(501))
            .group(Sid::everyone())
            .group(Sid::guests())
            .group(Sid::authenticated_users())
            .group(Sid::interactive()),
        "anonymous" => Token::new(Sid::anonymous())
            .group(Sid::everyone())
            .integrity(IntegrityLevel::UNTRUSTED),
        "sandbox" => alice().integrity(IntegrityLevel::LOW),
        "app container" => alice()
            .integrity(IntegrityLevel::LOW)
            .app_container(package),
        // As a broker may start one: the label alone would let it in.
        "app container of medium integrity" => alice().app_container(package),
        "restricted" => alice().restricted_to(vec![Sid::users()]),
        "developer" => Token::new(developer())
            .group(Sid::authenticated_users())
            .group(Sid::interactive()),
        other => panic!("who is {other}?"),
    }
}

/// A letter for each thing that a token may do: connect, add an instance, change the list, take
/// ownership.
fn allowed(security: &PipeSecurity, token: &Token) -> String {
    PipeAction::ALL
        .into_iter()
        .filter(|&action| security.allows(token, action))
        .map(|action| match action {
            PipeAction::Connect => 'c',
            PipeAction::AddInstance => 'i',
            PipeAction::ChangeDacl => 'd',
            PipeAction::TakeOwnership => 'o',
        })
        .collect()
}

/// What each token may do with a pipe of each preset: `authenticated`, `interactive`, `user` (1001),
/// `operators`, `development`. The privilege of administrators to take the ownership of anything is
/// stronger than any list.
const TABLE: &[(&str, [&str; 5])] = &[
    ("SYSTEM", ["cido", "cido", "cido", "cido", "cido"]),
    ("administrator", ["cido", "cido", "cido", "cido", "cido"]),
    (
        "administrator over the network",
        ["o", "o", "o", "cido", "cido"],
    ),
    ("filtered administrator", ["c", "c", "", "", "c"]),
    ("user", ["c", "c", "c", "", "c"]),
    ("user over the network", ["", "", "", "", "c"]),
    ("service", ["c", "", "", "", "c"]),
    ("task", ["c", "", "", "", "c"]),
    ("guest", ["", "", "", "", ""]),
    ("anonymous", ["", "", "", "", ""]),
    ("sandbox", ["", "", "", "", ""]),
    ("app container", ["", "", "", "", ""]),
    ("app container of medium integrity", ["", "", "", "", ""]),
    ("restricted", ["", "", "", "", ""]),
    ("developer", ["c", "c", "", "", "cido"]),
];

#[test]
fn each_preset_lets_each_token_do_what_the_table_says_and_nothing_else() {
    let presets = [
        PipeDescriptor::authenticated(),
        PipeDescriptor::interactive(),
        PipeDescriptor::user(account(1001)),
        PipeDescriptor::operators(),
        PipeDescriptor::development(developer()),
    ];
    for (name, expected) in TABLE {
        let token = token(name);
        let actual = presets
            .each_ref()
            .map(|preset| allowed(preset.security(), &token));
        assert_eq!(actual, *expected, "{name}");
    }
}

#[test]
fn a_preset_is_the_text_that_windows_gets() {
    assert_eq!(
        PipeDescriptor::authenticated().to_string(),
        "O:S-1-5-18D:P(D;;0x1f01ff;;;S-1-5-7)(D;;0x1f01ff;;;S-1-5-32-546)(D;;0x1f01ff;;;S-1-5-2)\
         (A;;0x1f01ff;;;S-1-5-18)(A;;0x1f01ff;;;S-1-5-32-544)(A;;0x12019b;;;S-1-5-11)\
         S:(ML;;NWNR;;;S-1-16-8192)"
    );
    assert_eq!(
        PipeDescriptor::operators().to_string(),
        "O:S-1-5-18D:P(D;;0x1f01ff;;;S-1-5-7)(D;;0x1f01ff;;;S-1-5-32-546)\
         (A;;0x1f01ff;;;S-1-5-18)(A;;0x1f01ff;;;S-1-5-32-544)S:(ML;;NWNR;;;S-1-16-8192)"
    );
    assert_eq!(
        PipeDescriptor::development(developer()).to_string(),
        "O:S-1-5-21-1-2-3-1009D:P(D;;0x1f01ff;;;S-1-5-7)(D;;0x1f01ff;;;S-1-5-32-546)\
         (A;;0x1f01ff;;;S-1-5-18)(A;;0x1f01ff;;;S-1-5-32-544)\
         (A;;0x1f01ff;;;S-1-5-21-1-2-3-1009)(A;;0x12019b;;;S-1-5-11)S:(ML;;NWNR;;;S-1-16-8192)"
    );
    assert_eq!(CLIENT_RIGHTS & CREATE_PIPE_INSTANCE, 0);
}

#[test]
fn a_preset_survives_being_written_and_read() {
    for preset in [
        PipeDescriptor::authenticated(),
        PipeDescriptor::interactive(),
        PipeDescriptor::user(account(1001)),
        PipeDescriptor::operators(),
        PipeDescriptor::development(developer()),
    ] {
        assert_eq!(preset.to_string().parse(), Ok(preset));
    }
}

#[test]
fn a_text_with_names_means_what_windows_takes_it_for() {
    let text = "O:SYG:SYD:P(D;;FA;;;NU)(D;;FA;;;AN)(D;;FA;;;BG)(A;;FA;;;SY)(A;;GA;;;BA)\
                (A;;0x12019b;;;IU)(A;;FRDC;;;AU)S:(ML;;NWNR;;;ME)";
    let read: PipeDescriptor = text.parse().unwrap();
    assert_eq!(
        read.to_string(),
        "O:S-1-5-18D:P(D;;0x1f01ff;;;S-1-5-2)(D;;0x1f01ff;;;S-1-5-7)(D;;0x1f01ff;;;S-1-5-32-546)\
         (A;;0x1f01ff;;;S-1-5-18)(A;;0x1f01ff;;;S-1-5-32-544)(A;;0x12019b;;;S-1-5-4)\
         (A;;0x12008b;;;S-1-5-11)S:(ML;;NWNR;;;S-1-16-8192)"
    );
    let unlabelled: PipeDescriptor = "O:SYD:P(A;;FA;;;SY)".parse().unwrap();
    assert_eq!(unlabelled.security().label, Some(Label::MEDIUM));
    let low: PipeDescriptor = "O:SYD:P(A;;FA;;;SY)S:(ML;;NW;;;LW)".parse().unwrap();
    assert_eq!(
        low.security().label.map(|label| label.level),
        Some(IntegrityLevel::LOW)
    );
}

/// `GW` is the trap: for a pipe it means the right to add instances too.
#[test]
fn a_text_that_makes_somebody_a_second_master_of_the_pipe_is_refused() {
    for (entry, rights) in [
        ("(A;;GRGW;;;AU)", 0x4),
        ("(A;;FA;;;AU)", 0xc_0004),
        ("(A;;0x12019f;;;IU)", 0x4),
        ("(A;;LC;;;BU)", 0x4),
        ("(A;;0x12019bWD;;;AU)", 0),
        ("(A;;0x5019b;;;AU)", 0x4_0000),
        ("(A;;WO;;;S-1-5-21-1-2-3-1001)", 0x8_0000),
        ("(A;;0x40000000;;;WD)", 0x4000_0000),
    ] {
        let text = format!("O:SYD:P(D;;FA;;;NU)(A;;FA;;;SY)(A;;FA;;;BA){entry}");
        let error = text.parse::<PipeDescriptor>().unwrap_err();
        match error {
            DescriptorError::OtherMaster { rights: given, .. } => {
                assert_eq!(given, rights, "{entry}");
                assert!(error.to_string().contains("0x12019b"), "advice: {error}");
            }
            DescriptorError::Syntax { .. } => assert_eq!(rights, 0, "{entry}: {error}"),
            error => panic!("{entry}: {error}"),
        }
    }
    let own = "O:S-1-5-21-1-2-3-1009D:P(A;;FA;;;S-1-5-21-1-2-3-1009)";
    own.parse::<PipeDescriptor>().unwrap();
}

#[test]
fn a_text_without_owner_protection_or_list_is_refused() {
    let read = |text: &str| text.parse::<PipeDescriptor>().unwrap_err();
    assert_eq!(read(""), DescriptorError::NoOwner);
    assert_eq!(read("D:P(A;;FA;;;SY)"), DescriptorError::NoOwner);
    assert_eq!(read("O:SY"), DescriptorError::NoList);
    assert_eq!(read("O:SYD:(A;;FA;;;SY)"), DescriptorError::NotProtected);
}

#[test]
fn what_is_not_understood_is_refused_with_its_place() {
    for text in [
        "O:",
        "O:ZZ",
        "O:SYO:BAD:P(A;;FA;;;SY)",
        "O:S-1-5-D:P(A;;FA;;;SY)",
        "O:SYD:PNO_ACCESS_CONTROL",
        "O:SYD:P(A;;FA;;;SY",
        "O:SYD:P(A;OICI;FA;;;SY)",
        "O:SYD:P(OA;;FA;;;SY)",
        "O:SYD:P(XA;;FA;;;SY;(a==1))",
        "O:SYD:P(A;;F;;;SY)",
        "O:SYD:P(A;;QQ;;;SY)",
        "O:SYD:P(A;;0x;;;SY)",
        "O:SYD:P(A;;0x1ffffffff;;;SY)",
        "O:SYD:P(A;;FÄ;;;SY)",
        "O:SYD:P(A;;FA;;;SY)S:",
        "O:SYD:P(A;;FA;;;SY)S:(AU;SA;FA;;;WD)",
        "O:SYD:P(A;;FA;;;SY)S:(ML;;NW;;;SY)",
        "O:SYD:P(A;;FA;;;SY)S:(ML;;NW;;;LW)(ML;;NW;;;ME)",
        "ÄÖ:SY",
        "nonsense",
    ] {
        let error = text.parse::<PipeDescriptor>().unwrap_err();
        assert!(
            matches!(error, DescriptorError::Syntax { .. }),
            "{text}: {error}"
        );
    }
}

fn security(dacl: &[Ace]) -> PipeSecurity {
    PipeSecurity {
        owner: Sid::system(),
        dacl: Some(dacl.to_vec()),
        label: None,
    }
}

#[test]
fn the_first_entry_that_speaks_of_a_right_decides_it() {
    let (user, users) = (token("user"), Sid::users());
    let denies = Ace::Deny(CLIENT_RIGHTS, account(1001));
    let allows = Ace::Allow(CLIENT_RIGHTS, users);
    let granted = |dacl: &[Ace]| security(dacl).granted(&user);
    assert_eq!(granted(&[denies.clone(), allows.clone()]), 0);
    assert_eq!(granted(&[allows.clone(), denies]), CLIENT_RIGHTS);
    let some = Ace::Deny(0x3, Sid::interactive());
    assert_eq!(granted(&[some, allows]), CLIENT_RIGHTS & !0x3);
    assert_eq!(granted(&[]), 0, "an empty list");
    let without = PipeSecurity {
        dacl: None,
        ..security(&[])
    };
    assert_eq!(allowed(&without, &user), "cido", "no list");
}

#[test]
fn a_group_that_only_denies_grants_nothing_and_a_disabled_one_does_nothing() {
    let allows = security(&[Ace::Allow(FULL_RIGHTS, Sid::administrators())]);
    let denies = security(&[
        Ace::Deny(FULL_RIGHTS, Sid::administrators()),
        Ace::Allow(FULL_RIGHTS, Sid::users()),
    ]);
    for (group_use, granted, denied) in [
        (GroupUse::Enabled, FULL_RIGHTS, 0),
        (GroupUse::DenyOnly, 0, 0),
        (GroupUse::Disabled, 0, FULL_RIGHTS),
    ] {
        let token = token("user").group_used(Sid::administrators(), group_use);
        assert_eq!(allows.granted(&token), granted, "{group_use:?}");
        assert_eq!(denies.granted(&token), denied, "{group_use:?}");
    }
}

#[test]
fn an_owner_may_change_the_list_unless_the_list_speaks_of_owners() {
    let mut own = security(&[]);
    own.owner = account(1001);
    let user = token("user");
    assert_eq!(allowed(&own, &user), "d");
    own.dacl = Some(vec![Ace::Allow(0x2, Sid::owner_rights())]);
    assert_eq!(allowed(&own, &user), "");
    own.owner = Sid::administrators();
    own.dacl = Some(Vec::new());
    assert_eq!(allowed(&own, &token("administrator")), "do");
    assert_eq!(allowed(&own, &token("filtered administrator")), "");
}

#[test]
fn a_label_binds_those_below_it_whatever_the_list_says() {
    let everybody = |label| PipeSecurity {
        label,
        ..security(&[Ace::Allow(FULL_RIGHTS, Sid::everyone())])
    };
    let sandbox = token("sandbox");
    // Windows' default: a sandbox cannot write, but it can open the pipe for reading and occupy an
    // instance.
    assert_eq!(everybody(None).granted(&sandbox) & 0x1, 0x1);
    assert_eq!(allowed(&everybody(None), &sandbox), "");
    let labelled = everybody(Some(Label::MEDIUM));
    assert_eq!(labelled.granted(&sandbox) & 0x7, 0);
    assert_eq!(allowed(&labelled, &token("user")), "cido");
    let of_high = everybody(Some(Label {
        level: IntegrityLevel::HIGH,
        policy: 1,
    }));
    assert_eq!(allowed(&of_high, &token("user")), "");
    assert_eq!(allowed(&of_high, &token("administrator")), "cido");
}

#[test]
fn an_app_container_needs_an_entry_of_its_own() {
    let container = token("app container of medium integrity");
    let everyone = Ace::Allow(CLIENT_RIGHTS, Sid::everyone());
    let packages = Ace::Allow(CLIENT_RIGHTS, Sid::all_application_packages());
    assert_eq!(
        allowed(&security(std::slice::from_ref(&everyone)), &container),
        ""
    );
    assert_eq!(
        allowed(&security(std::slice::from_ref(&packages)), &container),
        ""
    );
    assert_eq!(allowed(&security(&[everyone, packages]), &container), "c");
}
