//! What really happened: the replies held against the SCMs' own records. Knows the contract, and nothing of the
//! worker's code.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use anyhow::Result;
use tokenkeeper_testkit::scm::{RefreshEvent, SimulatedScm};

use crate::{
    stage::Stage,
    upstream::{Answered, By, Letter, RequestId, Sent},
};

/// The contract counts whole seconds, from a moment before the SCM's.
const EXPIRY_SLACK_MS: i64 = 1_500;

/// An answered request comes again where its ack was lost with the connection, and is handled again: for as long the need that it
/// had may still be one.
const REDELIVERY_MS: i64 = 2_000;

/// Reservations end by the database's clock, which each worker knows but for half a round trip, in whole milliseconds.
const CLOCK_SLACK_MS: i64 = 20;

/// What a scenario's load came to.
pub(crate) struct Findings {
    pub(crate) requests: usize,
    pub(crate) answered: usize,
    /// First answers that were errors, by their code.
    pub(crate) errors: BTreeMap<String, usize>,
    pub(crate) dead_lettered: usize,
    /// Neither answered nor in the dead letters.
    pub(crate) lost: Vec<RequestId>,
    /// New pairs that the SCMs issued.
    pub(crate) refreshes: usize,
    /// New pairs that no reply says it refreshed for.
    pub(crate) extra_refreshes: usize,
    /// Opportunistic refreshes inside a live reservation, each described.
    pub(crate) broken_reservations: Vec<String>,
    /// Users for whom two refreshes were in flight at once.
    pub(crate) overlapping: Vec<String>,
    /// Everything that lay in the dead letters, also what others published.
    pub(crate) letters: Vec<Letter>,
}

impl Findings {
    /// Waits until the load is settled, then judges it.
    pub(crate) async fn of(stage: &Stage) -> Result<Self> {
        let letters = stage.upstream.dead_letters().await?;
        let dead: HashSet<_> = letters.iter().filter_map(|letter| letter.request).collect();
        let requests = stage.upstream.book().requests();
        let mut errors = BTreeMap::new();
        for sent in &requests {
            if let Some(Answered::Failed(failed)) = sent.answers.first().map(|answer| &answer.what) {
                *errors.entry(failed.code.clone()).or_default() += 1;
            }
        }
        let unanswered: Vec<_> = requests.iter().filter(|sent| sent.answers.is_empty()).collect();
        let lost = unanswered.iter().map(|sent| sent.id).filter(|id| !dead.contains(id)).collect();
        let mut findings = Self {
            requests: requests.len(),
            answered: requests.len() - unanswered.len(),
            errors,
            dead_lettered: unanswered.iter().filter(|sent| dead.contains(&sent.id)).count(),
            lost,
            refreshes: 0,
            extra_refreshes: 0,
            broken_reservations: Vec::new(),
            overlapping: Vec::new(),
            letters,
        };
        for scm in &stage.scms {
            findings.add(scm, &requests);
        }
        for user in &stage.users {
            if stage.scm_of(user).max_overlap(&user.name) > 1 {
                findings.overlapping.push(user.name.to_string());
            }
        }
        Ok(findings)
    }

    fn add(&mut self, scm: &SimulatedScm, requests: &[Sent]) {
        let host = HostView::new(scm, requests);
        for event in scm.log() {
            if event.rotated {
                self.refreshes += 1;
                let claims = event.new_pair.and_then(|pair| host.pairs.get(&pair));
                let claimed = claims.is_some_and(|pair| pair.required || pair.opportunistic);
                self.extra_refreshes += usize::from(!claimed);
            }
            self.broken_reservations.extend(host.broken_reservation(&event));
        }
    }
}

/// What the replies of one host say.
struct HostView<'a> {
    pairs: HashMap<u64, PairView>,
    users: HashMap<&'a str, Vec<&'a Sent>>,
}

/// What replies say about one pair.
#[derive(Default)]
struct PairView {
    /// When a reply had come, and until when it reserved this pair.
    held: Vec<(i64, i64)>,
    expires_at_ms: Option<i64>,
    /// Some reply says that this pair came from a required refresh.
    required: bool,
    opportunistic: bool,
}

impl<'a> HostView<'a> {
    fn new(scm: &SimulatedScm, requests: &'a [Sent]) -> Self {
        let mut view = Self { pairs: HashMap::new(), users: HashMap::new() };
        let host = scm.host();
        let asks = requests.iter().filter(|sent| !matches!(sent.ask.by, By::TokenStore(_)));
        for sent in asks.filter(|sent| *sent.ask.host == *host) {
            view.users.entry(&sent.ask.user).or_default().push(sent);
            for answer in &sent.answers {
                let Answered::Granted(granted) = &answer.what else { continue };
                let Some(number) = scm.number_of(&granted.token) else { continue };
                let pair = view.pairs.entry(number).or_default();
                pair.held.extend(granted.reserved_until_ms.map(|until| (answer.at_ms, until)));
                pair.expires_at_ms = granted.expires_at_ms;
                pair.required |= granted.refresh == "required";
                pair.opportunistic |= granted.refresh == "opportunistic";
            }
        }
        view
    }

    /// Says so where this refresh was not needed and came while the pair that it replaces was held.
    fn broken_reservation(&self, event: &RefreshEvent) -> Option<String> {
        let at_ms = event.started_at_ms;
        let pair = self.pairs.get(&event.pair?)?;
        let (told_ms, until_ms) = *pair
            .held
            .iter()
            .find(|(told_ms, until_ms)| *told_ms <= at_ms && at_ms < *until_ms - CLOCK_SLACK_MS)?;
        let user = event.user.as_deref()?;
        let new_pair = event.new_pair.and_then(|number| self.pairs.get(&number));
        let required = new_pair.is_some_and(|pair| pair.required);
        let opportunistic = new_pair.is_some_and(|pair| pair.opportunistic);
        if required || (!opportunistic && self.may_be_needed(user, pair, at_ms)) {
            return None;
        }
        Some(format!(
            "{user}: told at {told_ms} of a reservation until {until_ms}, refreshed at {at_ms}{}",
            if opportunistic { ", opportunistically" } else { ", and no request needed it" },
        ))
    }

    /// Whether a request was under way that this pair did not live long enough for.
    fn may_be_needed(&self, user: &str, pair: &PairView, at_ms: i64) -> bool {
        let Some(expires_at_ms) = pair.expires_at_ms else { return false };
        self.users.get(user).into_iter().flatten().any(|sent| {
            let lifetime_ms = i64::try_from(sent.ask.lifetime_secs * 1000).unwrap_or(i64::MAX);
            let over = sent.answers.last().is_some_and(|answer| answer.at_ms + REDELIVERY_MS < at_ms);
            sent.asked_at_ms <= at_ms && !over && at_ms + lifetime_ms + EXPIRY_SLACK_MS >= expires_at_ms
        })
    }
}

/// Where an SCM's record of a user ends.
pub(crate) struct LastRefresh {
    /// The refresh that issued the newest pair.
    pub(crate) event: Option<RefreshEvent>,
}

impl LastRefresh {
    pub(crate) fn of(scm: &SimulatedScm, user: &Arc<str>) -> Self {
        let latest = scm.latest_pair(user).map(|pair| pair.number);
        let event = scm.log().into_iter().rev().find(|event| event.new_pair == latest && latest.is_some());
        Self { event }
    }
}
