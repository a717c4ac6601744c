//! The flags of one version of the file, evaluated by OpenFeature.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use open_feature::{
    Client, EvaluationContext, EvaluationContextFieldValue, EvaluationDetails, EvaluationError,
    EvaluationErrorCode, EvaluationReason, EvaluationResult, OpenFeature, StructValue,
};
use open_feature_flagd::error::FlagdError;
use open_feature_flagd::{FlagdOptions, FlagdProvider, ResolverType};
use tempfile::TempDir;

use super::cache::Cache;
use super::definition::Checked;
use super::{
    DEFAULT_LIFETIME, DEFAULT_MINUTES, DEFAULT_REFRESH, FlagsError, OPPORTUNISTIC_TOKEN_REFRESH,
    WORKSPACE_START_LIFETIME, lifetime_of,
};

pub(super) struct FlagSet {
    opportunistic_token_refresh: Rule<bool>,
    workspace_start_minutes: Rule<i64>,
}

/// A flag without targeting has one value, so it is evaluated only once.
enum Rule<T> {
    Same(T),
    PerUser(PerUser<T>),
}

/// A flag with targeting.
struct PerUser<T> {
    flag: &'static str,
    default: T,
    evaluator: Arc<Evaluator>,
    /// `None`: the rule may answer differently next time.
    cache: Option<Cache<T>>,
    /// A rule that fails may fail for every request, so it is logged once.
    is_logged: AtomicBool,
}

/// An OpenFeature client with a flagd provider of its own.
struct Evaluator {
    client: Client,
    /// The file that the provider watches. Fields drop in order, so it is deleted after the provider stops.
    _copy: TempDir,
}

/// The user that rules are tried with when a file is loaded, so that a failing rule is refused at once.
const SAMPLE_USER: &str = "sample-user";

impl FlagSet {
    pub(super) const fn defaults() -> Self {
        Self {
            opportunistic_token_refresh: Rule::Same(DEFAULT_REFRESH),
            workspace_start_minutes: Rule::Same(DEFAULT_MINUTES),
        }
    }

    /// The flags in `text`, which was checked before. `file` is for errors.
    pub(super) async fn load(file: &Path, text: &str, checked: &Checked) -> Result<Self, FlagsError> {
        let evaluator = Arc::new(Evaluator::start(file, text).await?);
        let wrong = |flag: &str, reason| FlagsError::Definition {
            file: file.to_owned(),
            place: format!("flags.{flag}.targeting"),
            reason,
        };
        let refresh = PerUser::new(OPPORTUNISTIC_TOKEN_REFRESH, DEFAULT_REFRESH, &evaluator, checked);
        let minutes = PerUser::new(WORKSPACE_START_LIFETIME, DEFAULT_MINUTES, &evaluator, checked);
        let sample_refresh = refresh.evaluate(SAMPLE_USER).await;
        let sample_minutes = minutes.evaluate(SAMPLE_USER).await;
        Ok(Self {
            opportunistic_token_refresh: Rule::new(sample_refresh, refresh)
                .map_err(|reason| wrong(OPPORTUNISTIC_TOKEN_REFRESH, reason))?,
            workspace_start_minutes: Rule::new(sample_minutes, minutes)
                .map_err(|reason| wrong(WORKSPACE_START_LIFETIME, reason))?,
        })
    }

    pub(super) async fn opportunistic_token_refresh(&self, user_id: &str) -> bool {
        self.opportunistic_token_refresh.value(user_id).await
    }

    pub(super) async fn workspace_start_lifetime(&self, user_id: &str) -> Duration {
        lifetime_of(self.workspace_start_minutes.value(user_id).await).unwrap_or(DEFAULT_LIFETIME)
    }

    /// For how many users the answer of `opportunistic_token_refresh` is cached.
    #[cfg(test)]
    pub(super) fn cached_users(&self) -> usize {
        match &self.opportunistic_token_refresh {
            Rule::PerUser(PerUser { cache: Some(cache), .. }) => cache.len(),
            Rule::PerUser(_) | Rule::Same(_) => 0,
        }
    }
}

impl<T: Value> Rule<T> {
    fn new(sample: EvaluationResult<EvaluationDetails<T>>, rule: PerUser<T>) -> Result<Self, String> {
        match sample {
            Ok(EvaluationDetails { value, reason: Some(EvaluationReason::Static), .. }) => {
                Ok(Self::Same(value))
            }
            Ok(_) => Ok(Self::PerUser(rule)),
            // The flag is missing from the file, or disabled there.
            Err(error) if error.code == EvaluationErrorCode::FlagNotFound => Ok(Self::Same(rule.default)),
            Err(error) => Err(error.message.unwrap_or_else(|| error.code.to_string())),
        }
    }

    async fn value(&self, user_id: &str) -> T {
        match self {
            Self::Same(value) => *value,
            Self::PerUser(rule) => rule.value(user_id).await,
        }
    }
}

impl<T: Value> PerUser<T> {
    fn new(flag: &'static str, default: T, evaluator: &Arc<Evaluator>, checked: &Checked) -> Self {
        Self {
            flag,
            default,
            evaluator: Arc::clone(evaluator),
            cache: checked.cacheable.contains(&flag).then(Cache::<T>::empty),
            is_logged: AtomicBool::new(false),
        }
    }

    async fn value(&self, user_id: &str) -> T {
        if let Some(value) = self.cache.as_ref().and_then(|cache| cache.get(user_id)) {
            return value;
        }
        let value = match Box::pin(self.evaluate(user_id)).await {
            Ok(details) => details.value,
            Err(error) => {
                self.log(user_id, &error);
                self.default
            }
        };
        if let Some(cache) = &self.cache {
            cache.put(user_id, value);
        }
        value
    }

    async fn evaluate(&self, user_id: &str) -> EvaluationResult<EvaluationDetails<T>> {
        let mut context = EvaluationContext::default().with_targeting_key(user_id);
        if self.cache.is_some() {
            // Replaces the provider's own `$flagd`, which holds the time as well: a cached answer cannot follow it.
            let flagd = StructValue::default().with_field("flagKey", self.flag);
            context.add_custom_field("$flagd", EvaluationContextFieldValue::Struct(Arc::new(flagd)));
        }
        T::details(&self.evaluator.client, self.flag, &context).await
    }

    fn log(&self, user_id: &str, error: &EvaluationError) {
        if !self.is_logged.swap(true, Ordering::Relaxed) {
            let flag = self.flag;
            let error = error.message.clone().unwrap_or_else(|| error.code.to_string());
            tracing::warn!(
                flag,
                user_id,
                error,
                "the targeting rule of a flag failed; the flag's default is used"
            );
        }
    }
}

/// The type of a flag's value.
trait Value: Copy + Send + Sync {
    async fn details(
        client: &Client,
        flag: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<EvaluationDetails<Self>>;
}

impl Value for bool {
    async fn details(
        client: &Client,
        flag: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<EvaluationDetails<Self>> {
        client.get_bool_details(flag, Some(context), None).await
    }
}

impl Value for i64 {
    async fn details(
        client: &Client,
        flag: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<EvaluationDetails<Self>> {
        client.get_int_details(flag, Some(context), None).await
    }
}

impl Evaluator {
    async fn start(file: &Path, text: &str) -> Result<Self, FlagsError> {
        let failed = |reason: String| FlagsError::Provider { file: file.to_owned(), reason };
        let io_failed = |error: std::io::Error| failed(error.to_string());
        let copy = tempfile::Builder::new().prefix("tokenkeeper-flags-").tempdir().map_err(io_failed)?;
        let source = copy.path().join("flags.json");
        tokio::fs::write(&source, text).await.map_err(io_failed)?;
        let provider = FlagdProvider::new(options(&source)).await.map_err(|error| match error {
            // Only the provider checks references between rules.
            FlagdError::Parse(reason) => {
                FlagsError::Definition { file: file.to_owned(), place: "flags".to_owned(), reason }
            }
            error => failed(error.to_string()),
        })?;
        let mut api = OpenFeature::default();
        api.set_provider(provider).await;
        Ok(Self { client: api.create_client(), _copy: copy })
    }
}

/// Sets every option: the provider's defaults read `FLAGD_…` variables, which may be meant for another program.
fn options(source: &Path) -> FlagdOptions {
    FlagdOptions {
        resolver_type: ResolverType::File,
        source_configuration: Some(source.to_string_lossy().into_owned()),
        // The provider's cache grows with the number of users.
        cache_settings: None,
        host: String::new(),
        port: 0,
        target_uri: None,
        tls: false,
        cert_path: None,
        deadline_ms: 0,
        retry_backoff_ms: 0,
        retry_backoff_max_ms: 0,
        retry_grace_period: 0,
        selector: None,
        socket_path: None,
        stream_deadline_ms: 0,
        keep_alive_time_ms: 0,
        offline_poll_interval_ms: None,
        provider_id: None,
    }
}
