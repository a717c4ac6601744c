//! The honest publisher: what everyday life asks for, at hosts that are well.

use anyhow::Result;
use serde_json::Value;

use super::hosts::Place;
use crate::{
    options::Options,
    stage::{Stage, User},
    upstream::{Ask, By},
};

/// Requests a second, where nothing else is asked for.
const RATE: u32 = 100;

/// How many of [`GROUPS`]'s opportunistically refreshed users the hostile publisher goes for.
const VICTIMS: usize = 20;

/// Users of one kind.
struct Plan {
    name: &'static str,
    place: Place,
    users: usize,
    /// Of a hundred requests.
    share: u32,
    lifetime_secs: u64,
    way: Way,
}

/// What is published for a group.
#[derive(Clone, Copy)]
enum Way {
    Request,
    WorkspaceStart,
    /// Logs the user in again.
    Store,
}

const fn plan(
    name: &'static str,
    place: Place,
    users: usize,
    share: u32,
    lifetime_secs: u64,
    way: Way,
) -> Plan {
    Plan { name, place, users, share, lifetime_secs, way }
}

/// Tokens live for two minutes at the Bitbucket Server and for one at GitHub, so that there is always something to
/// refresh.
const GROUPS: [Plan; 7] = [
    // Always held by somebody: hot hand-outs.
    plan("hot-bitbucket", Place::BitbucketServer, 20, 65, 30, Way::Request),
    plan("hot-github", Place::GitHub, 10, 5, 20, Way::Request),
    // Held for a moment: each request may be an opportunistic refresh.
    plan(VICTIMS_GROUP, Place::BitbucketServer, 200, 12, 1, Way::Request),
    // For longer than most of the tokens live on: required refreshes.
    plan("needy-bitbucket", Place::BitbucketServer, 60, 5, 90, Way::Request),
    plan("needy-github", Place::GitHub, 100, 6, 40, Way::Request),
    plan("workspaces", Place::BitbucketServer, 40, 4, 60, Way::WorkspaceStart),
    plan("logins", Place::GitHub, 50, 3, 0, Way::Store),
];

const VICTIMS_GROUP: &str = "now-and-then";

struct Group {
    plan: &'static Plan,
    users: Vec<User>,
}

/// The honest publisher, its users, and what it asks next.
pub(super) struct Honest {
    groups: Vec<Group>,
    users: Vec<User>,
    random: fastrand::Rng,
    rate: u32,
}

impl Honest {
    /// Logs its users in.
    pub(super) async fn log_in(stage: &mut Stage, options: &Options) -> Result<Self> {
        static PLANS: [Plan; GROUPS.len()] = GROUPS;
        let mut groups = Vec::new();
        for plan in &PLANS {
            let users = stage.log_in_at(plan.place.index(), plan.name, plan.users).await?;
            groups.push(Group { plan, users });
        }
        let users = stage.users.clone();
        let random = fastrand::Rng::with_seed(options.seed);
        Ok(Self { groups, users, random, rate: options.rate.unwrap_or(RATE) })
    }

    /// Requests a second.
    pub(super) fn rate(&self) -> u32 {
        self.rate
    }

    /// All its users.
    pub(super) fn users(&self) -> &[User] {
        &self.users
    }

    /// Those whom the hostile publisher goes for.
    pub(super) fn victims(&self) -> Vec<User> {
        let group = self.groups.iter().find(|group| group.plan.name == VICTIMS_GROUP);
        group.map_or_else(Vec::new, |group| group.users[..VICTIMS].to_vec())
    }

    /// Publishes for so long.
    pub(super) async fn send(&mut self, stage: &Stage, secs: u32) {
        let (rate, count) = (self.rate, (self.rate * secs) as usize);
        stage.upstream.send_steadily(count, rate, || self.next(stage)).await;
    }

    fn next(&mut self, stage: &Stage) -> Ask {
        let mut chance = self.random.u32(..100);
        let group = self.groups.iter().find(|group| {
            let hit = chance < group.plan.share;
            chance = chance.saturating_sub(group.plan.share);
            hit
        });
        let group = group.unwrap_or(&self.groups[0]);
        let user = &group.users[self.random.usize(..group.users.len())];
        let ask = stage.ask(user, group.plan.lifetime_secs);
        match group.plan.way {
            Way::Request => ask,
            Way::WorkspaceStart => Ask { by: By::WorkspaceStart, ..ask },
            Way::Store => {
                let scm = stage.scm_of(user);
                let body: Value = scm.token_store_body(&scm.authorize(&user.name));
                Ask { by: By::TokenStore(body.to_string().into()), ..ask }
            }
        }
    }
}
