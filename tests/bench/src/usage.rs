//! What processes use, as the kernel tells it: processor time, memory, bytes over sockets. Measured the same way for the
//! echo worker and for tokenkeeper, from the outside.

use std::{collections::HashMap, fs, process};

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::figures::float;

/// The kernel counts processor time in these (`USER_HZ`, 100 on every platform that Linux has today), in seconds.
const TICK: f64 = 0.01;

/// The processes of a broker and of database servers. Everybody's on this machine: run nothing else beside.
const BROKER: &[&str] = &["beam.smp"];
const DATABASES: &[&str] = &["postgres", "mariadbd", "mysqld"];

/// What was used up to now.
pub(crate) struct Usage {
    workers: HashMap<u32, u64>,
    broker: HashMap<u32, u64>,
    databases: HashMap<u32, u64>,
    load: HashMap<u32, u64>,
    socket_bytes: Option<u64>,
}

/// What was used between two times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// Processor time, in seconds.
    pub(crate) worker: f64,
    pub(crate) broker: f64,
    pub(crate) databases: f64,
    pub(crate) load: f64,
    /// What the workers sent and received; none where `ss` does not tell.
    pub(crate) socket_bytes: Option<f64>,
}

impl Usage {
    /// Looks at these workers, and at the servers of this machine.
    pub(crate) async fn now(workers: &[u32]) -> Result<Self> {
        let socket_bytes = socket_bytes(workers).await;
        let (mut broker, mut databases) = (HashMap::new(), HashMap::new());
        for folder in fs::read_dir("/proc").context("list processes")?.flatten() {
            let Some(id) = folder.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // It may have ended by now.
            let Some(stat) = Stat::read(id) else { continue };
            if BROKER.contains(&stat.name.as_str()) {
                broker.insert(id, stat.ticks);
            } else if DATABASES.contains(&stat.name.as_str()) {
                databases.insert(id, stat.ticks);
            }
        }
        let of = |ids: &[u32]| ids.iter().filter_map(|id| Some((*id, Stat::read(*id)?.ticks))).collect();
        Ok(Self { workers: of(workers), broker, databases, load: of(&[process::id()]), socket_bytes })
    }

    /// What was used since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Spent {
        Spent {
            worker: seconds(&self.workers, &earlier.workers),
            broker: seconds(&self.broker, &earlier.broker),
            databases: seconds(&self.databases, &earlier.databases),
            load: seconds(&self.load, &earlier.load),
            socket_bytes: self
                .socket_bytes
                .zip(earlier.socket_bytes)
                .map(|(now, then)| float(now.saturating_sub(then))),
        }
    }
}

/// How much memory processes hold, in MiB: now, and at most so far.
pub(crate) fn memory_mib(ids: &[u32]) -> Result<(f64, f64)> {
    let (mut now, mut most) = (0, 0);
    for id in ids {
        let status = fs::read_to_string(format!("/proc/{id}/status")).context("read a worker's memory")?;
        now += kib(&status, "VmRSS:").context("there is no VmRSS")?;
        most += kib(&status, "VmHWM:").context("there is no VmHWM")?;
    }
    Ok((float(now) / 1024.0, float(most) / 1024.0))
}

fn kib(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

/// A process that came in between has its whole time counted; one that ended, none.
fn seconds(now: &HashMap<u32, u64>, earlier: &HashMap<u32, u64>) -> f64 {
    let ticks = now.iter().map(|(id, ticks)| ticks.saturating_sub(earlier.get(id).copied().unwrap_or(0)));
    float(ticks.sum()) * TICK
}

struct Stat {
    name: String,
    ticks: u64,
}

impl Stat {
    fn read(id: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
    }

    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.rsplit_once(") ")?;
        let (_, name) = before.split_once('(')?;
        // Fields 14 and 15 of the line, utime and stime: 12th and 13th after the name.
        let mut times = after.split_ascii_whitespace().skip(11);
        let ticks = times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?;
        Some(Self { name: name.to_owned(), ticks })
    }
}

/// Sent and received over all TCP connections of these processes that are open.
async fn socket_bytes(ids: &[u32]) -> Option<u64> {
    // The rest of a connection stands on a line of its own; -O puts both into one.
    let output =
        Command::new("ss").args(["-tinpHO"]).output().await.ok().filter(|output| output.status.success())?;
    Some(bytes_of(&String::from_utf8_lossy(&output.stdout), ids))
}

fn bytes_of(listing: &str, ids: &[u32]) -> u64 {
    let owned = |line: &&str| ids.iter().any(|id| line.contains(&format!("pid={id},")));
    let bytes = |line: &str| -> u64 {
        let counts = line.split_ascii_whitespace().filter_map(|word| {
            word.strip_prefix("bytes_sent:").or_else(|| word.strip_prefix("bytes_received:"))
        });
        counts.filter_map(|count| count.parse::<u64>().ok()).sum()
    };
    listing.lines().filter(owned).map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_time_of_a_process_with_blanks_and_brackets_in_its_name_is_read() {
        let line = "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 5 0 1000 1 2 3";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.name.as_str(), stat.ticks), ("a (b) c", 300));
    }

    #[test]
    fn bytes_are_those_of_the_processes_asked_for() {
        let listing = "ESTAB 0 0 127.0.0.1:1 127.0.0.1:2 users:((\"w\",pid=7,fd=9)) cubic bytes_sent:10 bytes_acked:9 bytes_received:5\n\
                       ESTAB 0 0 127.0.0.1:2 127.0.0.1:1 users:((\"x\",pid=77,fd=9)) cubic bytes_sent:100 bytes_received:50\n";
        assert_eq!(
            (bytes_of(listing, &[7]), bytes_of(listing, &[7, 77]), bytes_of(listing, &[1])),
            (15, 165, 0)
        );
    }
}
