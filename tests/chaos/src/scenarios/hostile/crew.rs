//! The three workers: one whose connections poison cuts, one whose process it kills, one that is left alone by it.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use tokenkeeper_testkit::{
    program::Worker,
    proxy::{FaultProxy, Marker, Then},
};
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};

use super::{becomes_true, poison};
use crate::{scenarios::soak::resident_kib, stage::Stage};

pub(super) struct Crew {
    alone: Worker,
    cut: Worker,
    killed: Worker,
    cutting: FaultProxy,
    killing: FaultProxy,
    /// Where the admin endpoint of each of the three is now.
    admin: [watch::Sender<SocketAddr>; 3],
}

/// What came of it.
#[derive(Default)]
pub(super) struct Suffered {
    /// When a process was killed: epoch milliseconds.
    pub(super) kills: Vec<i64>,
    /// How often a connection was cut.
    pub(super) cuts: usize,
    /// What the two that were not killed had in memory when they had warmed up.
    baseline_kib: [Option<u64>; 2],
}

/// The memory of one worker, when it had warmed up and at the end, in KiB.
pub(super) struct Memory {
    pub(super) worker: &'static str,
    pub(super) before: Option<u64>,
    pub(super) after: Option<u64>,
}

impl Crew {
    /// Starts the workers on the broker at `url`.
    pub(super) async fn start(stage: &mut Stage, url: &str) -> Result<Self> {
        let cutting = FaultProxy::start_for_url(url, 5672).await;
        let killing = FaultProxy::start_for_url(url, 5672).await;
        cutting.watch_for(Marker::new(poison::CUTS, Then::Cut));
        killing.watch_for(Marker::new(poison::KILLS, Then::Mute));
        let alone = stage.start_worker().await?;
        stage.set("AMQP_URL", cutting.url(url));
        let cut = stage.start_worker().await?;
        // Last, since it is the one that is started again.
        stage.set("AMQP_URL", killing.url(url));
        let killed = stage.start_worker().await?;
        let admin = [&alone, &cut, &killed].map(|worker| watch::Sender::new(worker.admin()));
        Ok(Self { alone, cut, killed, cutting, killing, admin })
    }

    /// Where the admin endpoint of each is, also when it has moved.
    pub(super) fn admin(&self) -> Vec<watch::Receiver<SocketAddr>> {
        self.admin.iter().map(watch::Sender::subscribe).collect()
    }

    /// Kills the third worker each time poison goes to it, and starts it again, until told to stop. Looks at the memory
    /// of the others when they have warmed up.
    pub(super) async fn suffer(
        &mut self,
        stage: &Stage,
        warm_up: Duration,
        mut stopped: oneshot::Receiver<()>,
    ) -> Result<Suffered> {
        let mut suffered = Suffered::default();
        let mut poisoned = self.killing.marked();
        let mut warm = Box::pin(sleep(warm_up));
        let mut is_warm = false;
        loop {
            tokio::select! {
                biased;
                _ = &mut stopped => break,
                () = &mut warm, if !is_warm => {
                    is_warm = true;
                    suffered.baseline_kib = [&self.alone, &self.cut].map(resident);
                }
                _ = poisoned.changed() => {
                    // What comes while it is being started may be meant for the one that was.
                    poisoned.mark_unchanged();
                    suffered.kills.push(stage.now_ms());
                    self.killed.kill().await?;
                    let name = format!("worker-3-after-{}", suffered.kills.len());
                    self.killed = stage.launch_worker(&name).await?;
                    self.admin[2].send_replace(self.killed.admin());
                }
            }
        }
        suffered.cuts = *self.cutting.marked().borrow();
        Ok(suffered)
    }

    /// Whether each says that it is ready, within this time; and what the others say.
    pub(super) async fn is_ready(&self, patience: Duration) -> Result<(), String> {
        for (name, worker) in [("worker 1", &self.alone), ("worker 2", &self.cut), ("worker 3", &self.killed)]
        {
            let mut said = String::new();
            let ready = becomes_true(patience, async || match worker.get("readyz").await {
                Ok((200, _)) => true,
                Ok((status, text)) => {
                    said = format!("{status} {}", text.trim_end());
                    false
                }
                Err(error) => {
                    said = format!("{error:#}");
                    false
                }
            });
            if !ready.await {
                return Err(format!("{name}: {said}"));
            }
        }
        Ok(())
    }

    /// What each has in memory, beside what it had. The one that was killed is held against the others.
    pub(super) fn memory(&self, suffered: &Suffered) -> Vec<Memory> {
        let [alone, cut] = suffered.baseline_kib;
        [
            ("worker 1", &self.alone, alone),
            ("worker 2", &self.cut, cut),
            ("worker 3", &self.killed, alone.max(cut)),
        ]
        .map(|(worker, process, before)| Memory { worker, before, after: resident(process) })
        .into()
    }
}

/// Nothing where it has ended.
fn resident(worker: &Worker) -> Option<u64> {
    resident_kib(&format!("/proc/{}", worker.id().ok()?)).ok()
}
