//! `token.report`: a host rejected a token that was handed out. The provider is asked for a new one as soon as nobody holds it.
//!
//! A report may be wrong or malicious. So it never ends a token that somebody holds.

use std::sync::Arc;
use std::time::Duration;

use super::refusal::Refusal;
use super::token::Ask;
use super::{Handler, TimeFrame};
use crate::contract::{
    Echo, ErrorBody, ErrorReply, ReportReply, ReportRequest, ReportResult, TokenDigest, Warning,
};
use crate::domain::provider::Provider;
use crate::limits::bulkhead::Queue;
use crate::store::{Found, Guarded};
use crate::telemetry;
use crate::telemetry::audit::{self, Asker};

impl Handler {
    /// Records a report, and refreshes the token if that harms nobody.
    pub(super) async fn report(
        &self,
        request: &ReportRequest,
        time: TimeFrame,
        asker: Asker<'_>,
        queue: Queue,
    ) -> ReportReply {
        let (user_id, host) = (request.user_id.as_str(), request.host.as_str());
        // A report reserves nothing.
        let lifetime = Duration::ZERO;
        let ask = Ask { user_id, host, lifetime, seal_to: None, time, asker, queue };
        let taken = async {
            let provider = self.in_time(time, || self.provider_for(&ask)).await?;
            let result = self
                .in_time(time, || self.try_report(&ask, Arc::clone(&provider), request.token_sha256))
                .await?;
            telemetry::token_reported(&provider.host, result);
            audit::reported(asker, user_id, host, result.name());
            Ok::<_, ErrorBody>(result)
        };
        match taken.await {
            Ok(result) => ReportReply::Ok { result, warnings: Vec::new() },
            Err(error) => {
                audit::refused(asker, Some(user_id), Some(host), error.code);
                ReportReply::Error(ErrorReply::new(Echo::of_user(user_id, host), error))
            }
        }
    }

    async fn try_report(
        &self,
        ask: &Ask<'_>,
        provider: Arc<Provider>,
        digest: TokenDigest,
    ) -> Result<ReportResult, Refusal> {
        let Found::Entry(entry) = self.store.find(ask.user_id, provider.id).await? else {
            return Ok(ReportResult::NotCurrent);
        };
        if !digest.is_of(&self.store.open_access_token(&entry)?) {
            return Ok(ReportResult::NotCurrent);
        }
        match self.store.report(&entry, self.clock.now()).await? {
            Guarded::Done => {}
            Guarded::Moved => return Ok(ReportResult::NotCurrent),
        }
        if !entry.state.refreshable {
            return Ok(ReportResult::Withdrawn);
        }
        // Like a request for no time at all: the token is refreshed now, or somebody holds it.
        let grant = self.try_hand_out(ask, provider).await?;
        // Without the warning the token is another one by now.
        let is_held = grant.reply.warnings.contains(&Warning::TokenReported);
        Ok(if is_held { ReportResult::Held } else { ReportResult::Refreshed })
    }
}
