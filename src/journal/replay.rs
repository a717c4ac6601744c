//! Replays the journal by hand, for an operator.

use tokio::time::timeout;
use uuid::Uuid;

use super::apply::{Applying, Done};
use crate::broker::{BrokerError, JournalReader, Publisher, ReadFrom};
use crate::domain::clock::Timestamp;
use crate::settings::Broker;
use crate::store::{JournalRecord, Store};
use crate::telemetry;

/// Records that are applied together.
const PAGE: usize = 1_000;

/// Applies all records since a date. With `dry_run` it only counts what would be done.
///
/// # Errors
/// Broker or database are away. Nothing is lost by doing it again.
pub async fn replay(
    settings: &Broker,
    name: &str,
    publisher: &Publisher,
    store: Store,
    since: Option<Timestamp>,
    dry_run: bool,
) -> anyhow::Result<Done> {
    let from = since.map_or(ReadFrom::First, ReadFrom::Date);
    let mut reader = JournalReader::open(settings, name, from).await?;
    let applying = if dry_run { Applying::new(store.clone()).dry() } else { Applying::new(store.clone()) };
    let end = Uuid::new_v4().to_string().into_bytes();
    publisher.append(&end).await?;
    let (mut page, mut done) = (Vec::new(), Done::default());
    loop {
        let record = timeout(settings.operation_timeout, reader.next()).await.unwrap_or_else(|_| {
            let action = "read the journal".to_owned();
            Err(BrokerError::Timeout { action, after: settings.operation_timeout })
        })?;
        if record.body == end {
            break;
        }
        let Some(record) = JournalRecord::decode(&record.body) else { continue };
        match store.open_journal(&record) {
            Ok(stored) => page.push((record.host, stored)),
            Err(error) => {
                telemetry::journal_not_applied(&record.host, &error);
                done.left += 1;
            }
        }
        if page.len() == PAGE {
            done.add(applying.apply(std::mem::take(&mut page)).await?);
        }
    }
    done.add(applying.apply(page).await?);
    reader.close().await;
    Ok(done)
}
