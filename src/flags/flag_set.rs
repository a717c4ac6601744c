//! The flags of one version of the file, evaluated through OpenFeature.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use open_feature::{
    Client, EvaluationContext, EvaluationDetails, EvaluationErrorCode, EvaluationReason, EvaluationResult,
    OpenFeature,
};
use open_feature_flagd::error::FlagdError;
use open_feature_flagd::{FlagdOptions, FlagdProvider, ResolverType};
use tempfile::TempDir;

use super::{
    DEFAULT_LIFETIME, DEFAULT_MINUTES, DEFAULT_REFRESH, FlagsError, OPPORTUNISTIC_TOKEN_REFRESH,
    WORKSPACE_START_LIFETIME, lifetime_of,
};

/// What one version of the flag file says.
pub(super) struct FlagSet {
    opportunistic_token_refresh: Rule<bool>,
    workspace_start_minutes: Rule<i64>,
}

/// How a flag is decided. One without targeting has one value, so it is evaluated once and not a request.
enum Rule<T> {
    Same(T),
    PerUser {
        evaluator: Arc<Evaluator>,
        /// A rule that fails may fail for every request: it is told once.
        told: AtomicBool,
    },
}

/// An OpenFeature client with a flagd provider of its own.
struct Evaluator {
    client: Client,
    /// What the provider reads and watches. Removed after it, in the order of these fields.
    _copy: TempDir,
}

/// Stands for any user when a file is loaded: a rule that fails for it is told then, not at night.
const SAMPLE_USER: &str = "sample-user";

impl FlagSet {
    pub(super) const fn defaults() -> Self {
        Self {
            opportunistic_token_refresh: Rule::Same(DEFAULT_REFRESH),
            workspace_start_minutes: Rule::Same(DEFAULT_MINUTES),
        }
    }

    /// Flags as `text`, which was checked, defines them; `file` is for errors.
    pub(super) async fn load(file: &Path, text: &str) -> Result<Self, FlagsError> {
        let evaluator = Arc::new(Evaluator::start(file, text).await?);
        let wrong = |flag: &str, reason| FlagsError::Definition {
            file: file.to_owned(),
            place: format!("flags.{flag}.targeting"),
            reason,
        };
        let refresh = evaluator.boolean(OPPORTUNISTIC_TOKEN_REFRESH, SAMPLE_USER).await;
        let minutes = evaluator.integer(WORKSPACE_START_LIFETIME, SAMPLE_USER).await;
        Ok(Self {
            opportunistic_token_refresh: Rule::new(refresh, DEFAULT_REFRESH, &evaluator)
                .map_err(|reason| wrong(OPPORTUNISTIC_TOKEN_REFRESH, reason))?,
            workspace_start_minutes: Rule::new(minutes, DEFAULT_MINUTES, &evaluator)
                .map_err(|reason| wrong(WORKSPACE_START_LIFETIME, reason))?,
        })
    }

    pub(super) async fn opportunistic_token_refresh(&self, user_id: &str) -> bool {
        let flag = OPPORTUNISTIC_TOKEN_REFRESH;
        match &self.opportunistic_token_refresh {
            Rule::Same(value) => *value,
            Rule::PerUser { evaluator, told } => {
                value_or(DEFAULT_REFRESH, evaluator.boolean(flag, user_id).await, flag, user_id, told)
            }
        }
    }

    pub(super) async fn workspace_start_lifetime(&self, user_id: &str) -> Duration {
        let flag = WORKSPACE_START_LIFETIME;
        let minutes = match &self.workspace_start_minutes {
            Rule::Same(value) => *value,
            Rule::PerUser { evaluator, told } => {
                value_or(DEFAULT_MINUTES, evaluator.integer(flag, user_id).await, flag, user_id, told)
            }
        };
        lifetime_of(minutes).unwrap_or(DEFAULT_LIFETIME)
    }
}

impl<T> Rule<T> {
    fn new(
        sample: EvaluationResult<EvaluationDetails<T>>,
        default: T,
        evaluator: &Arc<Evaluator>,
    ) -> Result<Self, String> {
        match sample {
            Ok(EvaluationDetails { value, reason: Some(EvaluationReason::Static), .. }) => {
                Ok(Self::Same(value))
            }
            Ok(_) => Ok(Self::PerUser { evaluator: Arc::clone(evaluator), told: AtomicBool::new(false) }),
            // Not in the file, or disabled in it.
            Err(error) if error.code == EvaluationErrorCode::FlagNotFound => Ok(Self::Same(default)),
            Err(error) => Err(error.message.unwrap_or_else(|| error.code.to_string())),
        }
    }
}

fn value_or<T>(
    default: T,
    evaluated: EvaluationResult<EvaluationDetails<T>>,
    flag: &str,
    user_id: &str,
    told: &AtomicBool,
) -> T {
    match evaluated {
        Ok(details) => details.value,
        Err(error) => {
            if !told.swap(true, Ordering::Relaxed) {
                let error = error.message.unwrap_or_else(|| error.code.to_string());
                tracing::warn!(
                    flag,
                    user_id,
                    error,
                    "the targeting rule of a flag fails; its default is used"
                );
            }
            default
        }
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
            // What the check leaves to the provider: references between rules.
            FlagdError::Parse(reason) => {
                FlagsError::Definition { file: file.to_owned(), place: "flags".to_owned(), reason }
            }
            error => failed(error.to_string()),
        })?;
        let mut api = OpenFeature::default();
        api.set_provider(provider).await;
        Ok(Self { client: api.create_client(), _copy: copy })
    }

    async fn boolean(&self, flag: &str, user_id: &str) -> EvaluationResult<EvaluationDetails<bool>> {
        self.client.get_bool_details(flag, Some(&context(user_id)), None).await
    }

    async fn integer(&self, flag: &str, user_id: &str) -> EvaluationResult<EvaluationDetails<i64>> {
        self.client.get_int_details(flag, Some(&context(user_id)), None).await
    }
}

fn context(user_id: &str) -> EvaluationContext {
    EvaluationContext::default().with_targeting_key(user_id)
}

/// Every option is given: the provider's own defaults read `FLAGD_…` variables, which are another program's.
fn options(source: &Path) -> FlagdOptions {
    FlagdOptions {
        resolver_type: ResolverType::File,
        source_configuration: Some(source.to_string_lossy().into_owned()),
        // A cache would be keyed by user and grow with them.
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
