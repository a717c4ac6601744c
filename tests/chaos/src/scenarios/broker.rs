//! The broker stopped, restarted, starved; queues deleted, channels closed, connections cut.

use std::time::Duration;

use anyhow::{Context, Result};
use tokenkeeper_testkit::program::Worker;
use tokenkeeper_testkit::scm::{Dialect, ScmOptions, SimulatedScm};
use tokenkeeper_testkit::servers::Servers;
use tokio::time::{Instant, sleep};

use super::{Play, SETTLED_AFTER, load::Load};
use crate::{
    options::Options,
    report::Row,
    stage::{Host, Stage, User},
    standing::{Standing, Violence},
    truth::Findings,
};

const WORKERS: usize = 2;
const USERS: usize = 100;
const RECOVERY_MS: i64 = 10_000;
/// Load before and after a fault.
const AROUND: Duration = Duration::from_secs(2);
const SETTLING: Duration = Duration::from_secs(60);
/// Requests that workers have in hand while their queue goes.
const IN_HAND: usize = 4;
/// How long a worker that is told to stop goes on with what it has in hand.
const GRACE: Duration = Duration::from_secs(3);
/// What it may take beyond that to end: what it has in hand cannot be given back to a broker that does not listen.
const ENDING: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Stopped,
    Restarted,
    MemoryAlarm,
    StopInAlarm,
    ConnectionsCut,
    QueueDeleted,
    ChannelClosed,
}

impl Fault {
    const ALL: [Self; 7] = [
        Self::Stopped,
        Self::Restarted,
        Self::MemoryAlarm,
        Self::StopInAlarm,
        Self::ConnectionsCut,
        Self::QueueDeleted,
        Self::ChannelClosed,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "broker-stopped",
            Self::Restarted => "broker-restarted",
            Self::MemoryAlarm => "broker-alarm",
            Self::StopInAlarm => "broker-alarm-stop",
            Self::ConnectionsCut => "broker-cut",
            Self::QueueDeleted => "broker-queue-deleted",
            Self::ChannelClosed => "broker-channel-closed",
        }
    }

    fn words(self, options: &Options) -> String {
        match self {
            Self::Stopped => format!("broker stopped for {} s", options.outage().as_secs()),
            Self::Restarted => "broker restarted".to_owned(),
            Self::MemoryAlarm => format!("memory alarm for {} s", alarm(options).as_secs()),
            Self::StopInAlarm => "memory alarm, and a worker told to stop meanwhile".to_owned(),
            Self::ConnectionsCut => "connections cut".to_owned(),
            Self::QueueDeleted => "queue deleted, and so the consumers cancelled".to_owned(),
            Self::ChannelClosed => "channels closed with 406 (consumer timeout)".to_owned(),
        }
    }
}

fn alarm(options: &Options) -> Duration {
    Duration::from_secs(options.scaled(10, 4))
}

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let load = Load::new(options);
    let mut rows = Vec::new();
    for fault in Fault::ALL {
        let words = fault.words(options);
        progress.say(&words);
        if fault == Fault::ChannelClosed {
            servers.rabbitmq.limit_unacked(Duration::from_secs(2)).await?;
        }
        let scm = SimulatedScm::start(ScmOptions {
            token_lifetime: Duration::from_secs(30),
            ..ScmOptions::new(Dialect::BitbucketServer)
        })
        .await;
        let hosts = vec![Host { scm, overrides: "".into() }];
        let grace = GRACE.as_secs().to_string();
        let settings: &[_] = match fault {
            Fault::StopInAlarm => &[("TOKENKEEPER__WORKER__GRACE_PERIOD_SECS", grace.as_str())],
            _ => &[],
        };
        let mut stage = Stage::open(servers, folder, fault.name(), hosts, settings).await?;
        let users = stage.log_in(USERS, true).await?;
        let waiting = stage.log_in(IN_HAND, false).await?;
        let mut workers = stage.start_workers(WORKERS).await?;
        let book = stage.upstream.book();
        let mut ended_in_time = None;
        let back_ms = match fault {
            Fault::QueueDeleted => delete_queue(&stage, &users, &waiting, load).await?,
            Fault::ChannelClosed => close_channels(&stage, &users, &waiting, load).await?,
            _ => {
                let breaking = async {
                    sleep(AROUND).await;
                    let back_ms = match (fault, workers.first_mut()) {
                        (Fault::StopInAlarm, Some(worker)) => {
                            ended_in_time = Some(stop_in_alarm(worker, servers, options).await?);
                            stage.now_ms()
                        }
                        _ => strike(fault, servers, &stage, options).await?,
                    };
                    sleep(AROUND).await;
                    anyhow::Ok(back_ms)
                };
                progress.during(book, 0, load.until_done(&stage, &users, breaking)).await?
            }
        };
        progress.during(book, 0, stage.upstream.settle(SETTLED_AFTER)).await;
        let findings = Findings::of(&stage).await?;
        let everybody = stage.users.clone();
        let standing = Standing::look(&stage, &everybody, &Violence::default()).await;
        drop(workers);
        if fault == Fault::ChannelClosed {
            servers.rabbitmq.unlimit_unacked().await?;
        }
        let mut row = Row::new("broker", words, load.describe(everybody.len()), &findings, &standing);
        let recovery_ms = first_answer_after(&stage, fault, back_ms);
        row.recovered_in(recovery_ms);
        row.promise("answers within 10 s of its return", recovery_ms.is_some_and(|ms| ms < RECOVERY_MS));
        if let Some(ended_in_time) = ended_in_time {
            row.promise("the worker that is told to stop exits 0 soon after its grace period", ended_in_time);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Tells a worker to stop while nothing that it has in hand can be answered; gives back whether it did.
async fn stop_in_alarm(worker: &mut Worker, servers: &mut Servers, options: &Options) -> Result<bool> {
    let broker = &mut servers.rabbitmq;
    broker.raise_memory_alarm().await?;
    sleep(alarm(options)).await;
    let told = Instant::now();
    let status = worker.stop().await?;
    let took = told.elapsed();
    broker.clear_memory_alarm().await?;
    Ok(status.success() && took < GRACE + ENDING)
}

/// Breaks the broker; gives back when it was well again.
async fn strike(fault: Fault, servers: &mut Servers, stage: &Stage, options: &Options) -> Result<i64> {
    let broker = &mut servers.rabbitmq;
    match fault {
        Fault::Stopped => broker.pause(options.outage()).await?,
        Fault::Restarted => broker.restart().await?,
        Fault::MemoryAlarm => {
            broker.raise_memory_alarm().await?;
            sleep(alarm(options)).await;
            broker.clear_memory_alarm().await?;
        }
        Fault::ConnectionsCut => broker.cut_connections().await?,
        Fault::StopInAlarm | Fault::QueueDeleted | Fault::ChannelClosed => {}
    }
    Ok(stage.now_ms())
}

/// Deletes the queue of requests while workers have some of it in hand and nothing is left in it.
async fn delete_queue(stage: &Stage, users: &[User], waiting: &[User], load: Load) -> Result<i64> {
    let gate = hold(stage, waiting).await?;
    stage.upstream.delete_queue("token-requests").await?;
    let deleted_ms = stage.now_ms();
    gate.release();
    let count = load.rate as usize * 5;
    load.send(stage, users, count).await;
    Ok(deleted_ms)
}

/// Lets the broker lose patience with messages that are in hand and not acked.
async fn close_channels(stage: &Stage, users: &[User], waiting: &[User], load: Load) -> Result<i64> {
    let gate = hold(stage, waiting).await?;
    sleep(Duration::from_secs(5)).await;
    let closed_ms = stage.now_ms();
    gate.release();
    let count = load.rate as usize * 5;
    load.send(stage, users, count).await;
    Ok(closed_ms)
}

/// Has workers take a request of each of these users in hand, and hold on to it.
async fn hold(stage: &Stage, waiting: &[User]) -> Result<tokenkeeper_testkit::scm::RefreshGate> {
    let scm = stage.scms.first().context("there is one")?;
    let gate = scm.hold_refreshes();
    for user in waiting {
        stage.upstream.send(stage.ask(user, 10));
    }
    gate.wait_for_parked(1).await;
    let taken = async {
        while stage.upstream.queue_depth("token-requests").await? > 0 {
            sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(SETTLING, taken).await.context("workers do not take requests")??;
    Ok(gate)
}

/// Where the fault takes the queue or the channel, what was in hand is answered all the same, and says nothing.
fn first_answer_after(stage: &Stage, fault: Fault, back_ms: i64) -> Option<i64> {
    let only_later = matches!(fault, Fault::QueueDeleted | Fault::ChannelClosed);
    let requests = stage.upstream.book().requests();
    let counted = requests.iter().filter(|sent| !only_later || sent.asked_at_ms >= back_ms);
    let answers = counted.flat_map(|sent| &sent.answers).map(|answer| answer.at_ms);
    answers.filter(|at_ms| *at_ms >= back_ms).min().map(|at_ms| at_ms - back_ms)
}
