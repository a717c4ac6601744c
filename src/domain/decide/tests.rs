//! The decision (docs/contract.md), row by row, example by example, and as properties of any state.

use proptest::prelude::*;

use super::*;

const NOON: i64 = 1_577_880_000_000; // 2020-01-01T12:00:00Z
const MINUTE: i64 = 60_000;

fn at(minutes: i64) -> Timestamp {
    Timestamp::from_millis(NOON + minutes * MINUTE)
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// A refreshable token that expires and is reserved at these minutes after noon.
fn token(expires_at: impl Into<Option<i64>>, reserved_until: impl Into<Option<i64>>) -> TokenState {
    TokenState {
        expires_at: expires_at.into().map(at),
        reserved_until: reserved_until.into().map(at),
        granted_lifetime: None,
        refreshable: true,
        in_doubt: false,
        reported: false,
    }
}

/// A demand at noon for five minutes, with thirty seconds to answer it.
fn demand() -> Demand {
    Demand { received_at: at(0), lifetime: minutes(5), deadline: at(0).plus(Duration::from_secs(30)) }
}

fn policy(opportunistic: bool) -> Policy {
    Policy {
        opportunistic,
        opportunistic_window: None,
        old_token_grace: Lifespan::NONE,
        required_while_reserved: RequiredWhileReserved::Refresh,
    }
}

/// Handed out as it is, where nothing else is to be said.
fn served() -> Decision {
    Decision::Serve { reserved: false, notices: vec![] }
}

/// The same, though an opportunistic refresh is due.
fn held() -> Decision {
    Decision::Serve { reserved: true, notices: vec![] }
}

#[test]
fn every_row_of_the_table() {
    let unrefreshable = |token: TokenState| TokenState { refreshable: false, ..token };
    let rows = [
        ("none", None, true, Decision::TokenNotFound),
        ("none, no opportunism", None, false, Decision::TokenNotFound),
        ("valid, no opportunism", Some(token(60, None)), false, served()),
        ("valid, no opportunism, reserved", Some(token(60, 30)), false, served()),
        ("never expires, no opportunism", Some(token(None, None)), false, served()),
        ("valid, reserved", Some(token(60, 30)), true, held()),
        ("never expires, reserved", Some(token(None, 1)), true, held()),
        ("valid, not reserved", Some(token(60, None)), true, Decision::Refresh(Cause::Opportunistic)),
        ("valid, reservation over", Some(token(60, -1)), true, Decision::Refresh(Cause::Opportunistic)),
        ("valid, reservation ends now", Some(token(60, 0)), true, Decision::Refresh(Cause::Opportunistic)),
        (
            "never expires, not reserved",
            Some(token(None, None)),
            true,
            Decision::Refresh(Cause::Opportunistic),
        ),
        ("valid, no refresh token", Some(unrefreshable(token(60, None))), true, served()),
        ("valid, no refresh token, reserved", Some(unrefreshable(token(60, 30))), true, held()),
        ("valid to the millisecond", Some(token(5, None)), false, served()),
        ("too short", Some(token(4, None)), false, Decision::Refresh(Cause::Required)),
        ("too short, opportunism", Some(token(4, None)), true, Decision::Refresh(Cause::Required)),
        ("too short, reserved", Some(token(4, 3)), true, Decision::Refresh(Cause::Required)),
        ("expired", Some(token(-1, None)), false, Decision::Refresh(Cause::Required)),
        ("too short, no refresh token", Some(unrefreshable(token(4, None))), true, Decision::NotRefreshable),
        ("expired, no refresh token", Some(unrefreshable(token(-1, 3))), false, Decision::NotRefreshable),
    ];
    for (name, token, opportunistic, expected) in rows {
        let decision = decide(token.as_ref(), at(0), &demand(), &policy(opportunistic));
        assert_eq!(decision, expected, "{name}");
    }
}

#[test]
fn a_pair_that_may_be_dead_is_refreshed_before_it_is_handed_out_unless_somebody_holds_it() {
    let doubtful = |token: TokenState| TokenState { in_doubt: true, ..token };
    let unrefreshable = TokenState { refreshable: false, ..doubtful(token(60, None)) };
    let lives_on = Policy { old_token_grace: Lifespan::Unlimited, ..policy(false) };
    let refreshed = Decision::Refresh(Cause::Opportunistic);
    for (name, token, policy, expected) in [
        ("nobody holds it", doubtful(token(60, None)), policy(false), refreshed.clone()),
        ("nobody holds it any more", doubtful(token(60, 0)), policy(true), refreshed),
        ("somebody holds it", doubtful(token(60, 1)), policy(false), served()),
        ("somebody holds it, opportunism", doubtful(token(60, 1)), policy(true), held()),
        ("no refresh token", unrefreshable, policy(false), served()),
        ("a refresh kills nothing", doubtful(token(60, None)), lives_on, served()),
        ("too short anyway", doubtful(token(4, None)), lives_on, Decision::Refresh(Cause::Required)),
    ] {
        assert_eq!(decide(Some(&token), at(0), &demand(), &policy), expected, "{name}");
    }
}

/// Issued at 00:00, expires at 02:00, default lifetime; minutes are counted from 00:00.
#[test]
fn a_reservation_that_the_old_token_outlives_stands_against_no_refresh() {
    let ten_minutes = Policy { old_token_grace: Lifespan::secs(600), ..policy(true) };
    let lives_on = Policy { old_token_grace: Lifespan::Unlimited, ..policy(true) };
    let wait = Policy { required_while_reserved: RequiredWhileReserved::GrantRemaining, ..ten_minutes };
    let refreshed = Decision::Refresh(Cause::Opportunistic);
    let short = Decision::Serve { reserved: false, notices: vec![Notice::LifetimeShort] };
    for (name, token, policy, expected) in [
        ("ends with the old token", token(60, 10), ten_minutes, refreshed.clone()),
        ("ends before", token(60, 1), ten_minutes, refreshed),
        ("ends after", token(60, 11), ten_minutes, held()),
        ("nothing is to be won", token(60, 1), lives_on, held()),
        ("too short, ends with the old token", token(4, 10), wait, Decision::Refresh(Cause::Required)),
        ("too short, ends after", token(4, 11), wait, short),
    ] {
        assert_eq!(decide(Some(&token), at(0), &demand(), &policy), expected, "{name}");
    }
}

#[test]
fn a_token_that_somebody_reported_is_refreshed_once_nobody_holds_it() {
    let reported = |token: TokenState| TokenState { reported: true, ..token };
    let unrefreshable = TokenState { refreshable: false, ..reported(token(None, None)) };
    let lives_on = Policy { old_token_grace: Lifespan::Unlimited, ..policy(false) };
    let refreshed = Decision::Refresh(Cause::Reported);
    let warned = |reserved| Decision::Serve { reserved, notices: vec![Notice::TokenReported] };
    for (name, token, policy, expected) in [
        ("nobody holds it", reported(token(60, None)), policy(false), refreshed.clone()),
        ("it never expires", reported(token(None, 0)), policy(true), refreshed.clone()),
        ("somebody holds it", reported(token(60, 1)), policy(false), warned(false)),
        ("somebody holds it, opportunism", reported(token(60, 1)), policy(true), warned(true)),
        ("a refresh harms nobody", reported(token(60, 1)), lives_on, refreshed),
        ("nothing to check it with", unrefreshable, policy(false), Decision::NotRefreshable),
    ] {
        assert_eq!(decide(Some(&token), at(0), &demand(), &policy), expected, "{name}");
    }
}

#[test]
fn every_worked_example() {
    let github = policy(false);
    let bitbucket_server = policy(true);
    for (now, policy, reserved_until, expected) in [
        (60, github, None, served()),
        (180, github, None, Decision::Refresh(Cause::Required)),
        (60, bitbucket_server, None, Decision::Refresh(Cause::Opportunistic)),
        (60, bitbucket_server, Some(90), held()),
        (60, bitbucket_server, Some(63), held()),
    ] {
        let demand = Demand { received_at: at(now), ..demand() };
        let decision = decide(Some(&token(120, reserved_until)), at(now), &demand, &policy);
        assert_eq!(decision, expected, "at {now} min, reserved until {reserved_until:?}");
    }
}

#[test]
fn an_opportunistic_refresh_waits_for_the_window_where_there_is_one() {
    let policy = Policy { opportunistic_window: Some(minutes(30)), ..policy(true) };
    let decide = |token: TokenState| decide(Some(&token), at(0), &demand(), &policy);
    assert_eq!(decide(token(31, None)), served());
    assert_eq!(decide(token(31, 10)), served(), "before the window a reservation changes nothing");
    assert_eq!(decide(token(None, None)), served(), "what never expires is never in the window");
    assert_eq!(decide(token(30, None)), Decision::Refresh(Cause::Opportunistic));
    assert_eq!(decide(token(30, 10)), held());
}

#[test]
fn a_request_for_more_than_the_provider_grants_counts_as_one_for_half_of_that() {
    let demand = Demand { lifetime: minutes(600), ..demand() };
    let granted = |expires_at| TokenState { granted_lifetime: Some(minutes(60)), ..token(expires_at, None) };
    let clamped = Decision::Serve { reserved: false, notices: vec![Notice::LifetimeClamped] };
    assert_eq!(decide(Some(&granted(30)), at(0), &demand, &policy(false)), clamped);
    assert_eq!(
        decide(Some(&granted(29)), at(0), &demand, &policy(false)),
        Decision::Refresh(Cause::Required)
    );
    let exactly = Demand { lifetime: minutes(60), ..demand };
    assert_eq!(decide(Some(&granted(60)), at(0), &exactly, &policy(false)), served());
    assert_eq!(
        decide(Some(&granted(59)), at(0), &exactly, &policy(false)),
        Decision::Refresh(Cause::Required)
    );
    let unknown = token(30, None);
    assert_eq!(decide(Some(&unknown), at(0), &demand, &policy(false)), Decision::Refresh(Cause::Required));
}

#[test]
fn a_required_refresh_under_a_reservation_does_what_the_provider_says() {
    let held = token(4, 3);
    let short = Decision::Serve { reserved: false, notices: vec![Notice::LifetimeShort] };
    let patient = Demand { deadline: at(10), ..demand() };
    for (rule, demand, expected) in [
        (RequiredWhileReserved::Refresh, patient, Decision::Refresh(Cause::Required)),
        (RequiredWhileReserved::GrantRemaining, patient, short.clone()),
        (RequiredWhileReserved::Wait, patient, Decision::WaitForReservation(at(3))),
        (RequiredWhileReserved::Wait, demand(), short),
    ] {
        let policy = Policy { required_while_reserved: rule, ..policy(true) };
        assert_eq!(decide(Some(&held), at(0), &demand, &policy), expected, "{rule:?}");
        for gone in [token(4, None), token(4, 0), token(-1, 3)] {
            let decision = decide(Some(&gone), at(0), &demand, &policy);
            assert_eq!(decision, Decision::Refresh(Cause::Required), "{rule:?}: nobody holds a living token");
        }
    }
}

#[test]
fn a_request_that_waited_past_its_own_lifetime_gets_no_expired_token() {
    let brief = Demand { lifetime: Duration::from_secs(1), ..demand() };
    let expired_while_waiting = token(1, None);
    let decision = decide(Some(&expired_while_waiting), at(2), &brief, &policy(false));
    assert_eq!(decision, Decision::Refresh(Cause::Required));
}

prop_compose! {
    fn any_token()(
        expires_at in proptest::option::of(-300i64..300),
        reserved_until in proptest::option::of(-300i64..300),
        granted in proptest::option::of(1u64..300),
        refreshable: bool,
    ) -> TokenState {
        TokenState { granted_lifetime: granted.map(minutes), refreshable, ..token(expires_at, reserved_until) }
    }
}

prop_compose! {
    fn any_demand()(lifetime in 1u64..86_400, patience in 0u64..600) -> Demand {
        Demand {
            received_at: at(0),
            lifetime: Duration::from_secs(lifetime),
            deadline: at(0).plus(Duration::from_secs(patience)),
        }
    }
}

prop_compose! {
    fn any_policy()(
        opportunistic: bool,
        window in proptest::option::of(0u64..300),
        rule in prop_oneof![
            Just(RequiredWhileReserved::Refresh),
            Just(RequiredWhileReserved::Wait),
            Just(RequiredWhileReserved::GrantRemaining),
        ],
        old_token_grace in prop_oneof![
            Just(Lifespan::NONE), Just(Lifespan::secs(600)), Just(Lifespan::Unlimited),
        ],
    ) -> Policy {
        Policy {
            opportunistic,
            opportunistic_window: window.map(minutes),
            old_token_grace,
            required_while_reserved: rule,
        }
    }
}

proptest! {
    #[test]
    fn nothing_is_refreshed_opportunistically_while_it_is_reserved_for_longer_than_the_old_token_works(
        token in any_token(), waited in 0i64..10, demand in any_demand(), policy in any_policy(),
    ) {
        let now = at(waited);
        let decision = decide(Some(&token), now, &demand, &policy);
        if token.reserved_until.is_some_and(|until| until > policy.reservations_stand_from(now)) {
            prop_assert_ne!(&decision, &Decision::Refresh(Cause::Opportunistic));
            if policy.kills_old_token() {
                prop_assert_ne!(&decision, &Decision::Refresh(Cause::Reported));
            }
        }
    }

    #[test]
    fn an_expired_token_is_never_served(
        token in any_token(), waited in 0i64..10, demand in any_demand(), policy in any_policy(),
    ) {
        let now = at(waited);
        if let Decision::Serve { .. } = decide(Some(&token), now, &demand, &policy) {
            prop_assert!(token.expires_at.is_none_or(|expires_at| expires_at > now));
        }
    }

    #[test]
    fn a_token_without_a_refresh_token_is_never_refreshed(
        token in any_token(), demand in any_demand(), policy in any_policy(),
    ) {
        let token = TokenState { refreshable: false, ..token };
        let decision = decide(Some(&token), at(0), &demand, &policy);
        prop_assert!(!matches!(decision, Decision::Refresh(_) | Decision::WaitForReservation(_)));
    }

    #[test]
    fn a_served_token_lives_as_long_as_asked_or_the_requester_is_warned(
        token in any_token(), demand in any_demand(), policy in any_policy(),
    ) {
        if let Decision::Serve { notices, .. } = decide(Some(&token), at(0), &demand, &policy) {
            let lives = token.expires_at.is_none_or(|expires_at| expires_at >= demand.until());
            prop_assert!(lives || !notices.is_empty());
        }
    }

    #[test]
    fn without_opportunism_a_token_that_lives_long_enough_is_left_alone(
        token in any_token(), demand in any_demand(), policy in any_policy(),
    ) {
        let policy = Policy { opportunistic: false, ..policy };
        let lives = token.expires_at.is_none_or(|expires_at| expires_at >= demand.until());
        if lives {
            let served_as_it_is =
                matches!(decide(Some(&token), at(0), &demand, &policy), Decision::Serve { reserved: false, .. });
            prop_assert!(served_as_it_is);
        }
    }

    #[test]
    fn a_refresh_is_required_exactly_when_the_token_is_too_short(
        token in any_token(), demand in any_demand(), policy in any_policy(),
    ) {
        if decide(Some(&token), at(0), &demand, &policy) == Decision::Refresh(Cause::Required) {
            prop_assert!(!is_valid(&token, at(0), &demand));
        }
    }

    #[test]
    fn waiting_for_a_reservation_ends_within_the_requests_time(
        token in any_token(), demand in any_demand(), policy in any_policy(),
    ) {
        if let Decision::WaitForReservation(until) = decide(Some(&token), at(0), &demand, &policy) {
            prop_assert!(until < demand.deadline);
            prop_assert!(until > at(0));
        }
    }
}
