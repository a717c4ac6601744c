//! A steady load: who asks when, for how long.

use anyhow::Result;

use crate::{
    options::Options,
    stage::{Stage, User},
    upstream::Ask,
};

/// Steady, and the same with the same seed.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub(super) rate: u32,
    seed: u64,
}

impl Load {
    pub(super) fn new(options: &Options) -> Self {
        Self { rate: options.rate(), seed: options.seed }
    }

    /// The same with another rate.
    pub(super) fn at(self, rate: u32) -> Self {
        Self { rate, ..self }
    }

    pub(super) fn describe(self, users: usize) -> String {
        format!("{users} users, {}/s", self.rate)
    }

    /// So many requests. Most ask for a moment, so that reservations end and opportunistic refreshes are due all the
    /// time; some hold on to their token.
    pub(super) async fn send(self, stage: &Stage, users: &[User], count: usize) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        stage.upstream.send_steadily(count, self.rate, || ask(stage, users, &mut random)).await;
    }

    /// Requests until `work` is done.
    pub(super) async fn until_done<T>(
        self,
        stage: &Stage,
        users: &[User],
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            () = self.send(stage, users, usize::MAX) => anyhow::bail!("the load ended"),
            done = work => done,
        }
    }
}

fn ask(stage: &Stage, users: &[User], random: &mut fastrand::Rng) -> Ask {
    let user = &users[random.usize(..users.len())];
    let lifetime_secs = if random.u8(..10) == 0 { random.u64(5..=12) } else { random.u64(1..=3) };
    stage.ask(user, lifetime_secs)
}
