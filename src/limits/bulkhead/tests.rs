use super::*;

const REQUESTS: Queue = Queue::Messages(MessageKind::TokenRequest);

fn bulkhead(quota: usize) -> (Bulkhead, Instant) {
    let quotas =
        Quotas { token_requests: quota, workspace_starts: 1, token_stores: 1, token_reports: 1, suspects: 1 };
    (Bulkhead::new(quotas), Instant::now())
}

fn host() -> Resource {
    Resource::Host("git.example.org".to_owned())
}

fn waiter<'a>(publisher: &'a str, user_id: &'a str) -> Waiter<'a> {
    Waiter { queue: REQUESTS, publisher: Some(publisher), user_id: Some(user_id) }
}

/// Each for a publisher and a user of its own.
fn enter(bulkhead: &Bulkhead, number: usize, now: Instant) -> Result<WaitSlot, TooManyWaiting> {
    let name = number.to_string();
    bulkhead.enter(host(), waiter(&name, &name), now)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn nobody_is_left(bulkhead: &Bulkhead) -> bool {
    let waits = bulkhead.waits();
    waits.resources.is_empty() && waits.charged.is_empty()
}

#[test]
fn those_over_the_quota_may_wait_until_the_oldest_wait_is_old_enough() {
    let (bulkhead, begin) = bulkhead(2);
    let mut within_quota: Vec<WaitSlot> =
        (0..2).map(|number| enter(&bulkhead, number, begin).unwrap()).collect();
    let mut over_quota = enter(&bulkhead, 2, begin + ms(400)).unwrap();
    assert_eq!(over_quota.state, SlotState::OverQuota);
    let stalled = begin + STALLED_AFTER;
    assert_eq!(over_quota.check(stalled - ms(1)), Ok(Some(stalled)));
    assert_eq!(over_quota.check(stalled), Err(TooManyWaiting));
    assert!(within_quota.iter_mut().all(|slot| slot.check(stalled) == Ok(None)));
    assert_eq!(enter(&bulkhead, 3, stalled).err(), Some(TooManyWaiting));
    let elsewhere = Resource::Host("elsewhere.example.org".to_owned());
    assert!(bulkhead.enter(elsewhere, waiter("4", "4"), stalled).is_ok());
    let start = Waiter { queue: Queue::Messages(MessageKind::WorkspaceStart), ..waiter("5", "5") };
    assert!(bulkhead.enter(host(), start, stalled).is_ok(), "another queue has a share of its own");
    drop((within_quota, over_quota));
    assert!(nobody_is_left(&bulkhead));
}

#[test]
fn one_over_the_quota_moves_up_when_a_place_is_free_and_the_oldest_wait_that_is_left_decides() {
    let (bulkhead, begin) = bulkhead(2);
    let first = enter(&bulkhead, 1, begin).unwrap();
    let second = enter(&bulkhead, 2, begin + ms(300)).unwrap();
    let mut third = enter(&bulkhead, 3, begin + ms(400)).unwrap();
    let mut fourth = enter(&bulkhead, 4, begin + ms(500)).unwrap();
    drop(first);
    assert_eq!(third.check(begin + ms(1_100)), Ok(Some(begin + ms(300) + STALLED_AFTER)));
    assert_eq!((third.state, fourth.state), (SlotState::WithinQuota, SlotState::OverQuota));
    drop(second);
    assert_eq!(fourth.check(begin + ms(9_000)), Ok(None));
    drop((third, fourth));
    assert!(nobody_is_left(&bulkhead));
}

#[test]
fn a_flight_that_nobody_waits_for_keeps_its_host_stalled() {
    let (bulkhead, begin) = bulkhead(1);
    let flight = bulkhead.flight_began("git.example.org", begin);
    let later = begin + ms(5_000);
    let _seated = enter(&bulkhead, 1, later).unwrap();
    assert_eq!(enter(&bulkhead, 2, later).err(), Some(TooManyWaiting));
    drop(flight);
    assert!(enter(&bulkhead, 3, later).is_ok());
}

#[test]
fn one_user_gets_half_of_a_stalled_hosts_quota_and_the_other_half_is_for_others() {
    let (bulkhead, begin) = bulkhead(4);
    let mut slow: Vec<WaitSlot> =
        (0..4).map(|_| bulkhead.enter(host(), waiter("ci", "jdoe"), begin).unwrap()).collect();
    let stalled = begin + STALLED_AFTER;
    slow.retain_mut(|slot| slot.check(stalled).is_ok());
    assert_eq!(slow.len(), 2);
    assert_eq!(bulkhead.enter(host(), waiter("ci", "jdoe"), stalled).err(), Some(TooManyWaiting));
    let _other = bulkhead.enter(host(), waiter("ci", "alice"), stalled).expect("another user has room");
}

#[test]
fn an_isolated_message_waits_for_nothing_that_is_stalled() {
    let (bulkhead, begin) = bulkhead(4);
    let isolated = Waiter { queue: Queue::Isolated, ..waiter("ci", "jdoe") };
    let suspect = Waiter { queue: Queue::Suspects, ..waiter("ci", "jdoe") };
    let mut waiting = bulkhead.enter(host(), isolated, begin).expect("nothing is stalled yet");
    let mut beside = bulkhead.enter(host(), suspect, begin).expect("nothing is stalled yet");
    let stalled = begin + STALLED_AFTER;
    assert_eq!((waiting.check(stalled), beside.check(stalled)), (Err(TooManyWaiting), Ok(None)));
    assert_eq!(bulkhead.enter(host(), isolated, stalled).err(), Some(TooManyWaiting));
}

#[test]
fn one_publisher_gets_one_share_over_all_that_is_stalled() {
    let (bulkhead, begin) = bulkhead(2);
    let at = |name: &str| Resource::ReplyQueue(name.to_owned());
    let mut slots: Vec<WaitSlot> = (0..4)
        .map(|number| {
            let user = number.to_string();
            bulkhead.enter(at(&user), waiter("flood", &user), begin).unwrap()
        })
        .collect();
    let stalled = begin + STALLED_AFTER;
    slots.retain_mut(|slot| slot.check(stalled).is_ok());
    assert_eq!(slots.len(), 2, "in whatever queues they wait");
    assert!(
        bulkhead.enter(at("fresh"), waiter("flood", "u"), stalled).is_ok(),
        "what is not stalled is free"
    );
    assert!(bulkhead.enter(at("0"), waiter("honest", "u"), stalled).is_ok());
}

#[test]
fn messages_without_a_publisher_share_one() {
    let (bulkhead, begin) = bulkhead(1);
    let nobody = Waiter { queue: REQUESTS, publisher: None, user_id: None };
    let mut first = bulkhead.enter(host(), nobody, begin).unwrap();
    let other = Resource::ReplyQueue("replies".to_owned());
    let mut second = bulkhead.enter(other, nobody, begin).unwrap();
    let stalled = begin + STALLED_AFTER;
    assert_eq!((first.check(stalled), second.check(stalled)), (Ok(None), Err(TooManyWaiting)));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_what_it_is_for_with_its_time_or_for_others() {
    let (bulkhead, _) = bulkhead(1);
    let begin = Instant::now();
    let mut slot = enter(&bulkhead, 1, begin).unwrap();
    let mut over_quota = enter(&bulkhead, 2, begin).unwrap();
    let never = std::future::pending::<()>;
    assert!(matches!(over_quota.wait(begin + ms(60_000), never()).await, Waited::TooManyWaiting));
    assert_eq!(begin.elapsed(), STALLED_AFTER);
    assert!(matches!(slot.wait(begin + ms(10_000), never()).await, Waited::TimedOut));
    assert_eq!(begin.elapsed(), ms(10_000));
    assert!(matches!(slot.wait(begin + ms(60_000), async { 7 }).await, Waited::Completed(7)));
}
