//! A login on another device (RFC 8628).

use std::time::Duration;

use tokenkeeper::domain::clock::{Clock, SystemClock};
use tokenkeeper::domain::provider::Provider;
use tokenkeeper::oauth::TokenClient;
use tokenkeeper::oauth::login::{LoggedIn, Logins};
use tokio::time::timeout;

use super::code::{no_pair, nobody_came};
use crate::cli::Failure;
use crate::cli::output::Output;
use crate::cli::relative::date_and_distance;

pub(super) async fn log_in(
    client: &TokenClient,
    provider: &Provider,
    scopes: &[String],
    patience: Duration,
) -> Result<LoggedIn, Failure> {
    let logins = Logins::at(client, provider);
    let device = logins.begin_device(scopes).await.map_err(|error| no_pair(provider, &error))?;
    let now = SystemClock.now();
    let mut output = Output::new();
    output.line("Open this page on any device, type the code, and authorise there:")?;
    output.line(format_args!("  page  {}", device.page()))?;
    output.line(format_args!("  code  {}", device.user_code()))?;
    if let Some(page) = device.page_with_code() {
        output.line(format_args!("  both  {page}"))?;
    }
    let until = now.plus(device.expires_in().min(patience));
    output.line(format_args!("Waiting until {}", date_and_distance(until, now)))?;
    let finished = timeout(patience, logins.finish_device(&device)).await;
    let finished = finished.map_err(|_| nobody_came(provider, patience))?;
    Ok(finished.map_err(|error| no_pair(provider, &error))?)
}
