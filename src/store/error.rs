//! What can go wrong between us and a row, and whether another try is worth it.

use sea_orm::sqlx::error::DatabaseError;
use sea_orm::sqlx::sqlite::SqliteError;
use sea_orm::{DbErr, RuntimeErr, sqlx};

use super::database::{Fault, in_words};
use crate::domain::secret::OpenError;

/// A failed operation of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The statement failed.
    #[error("cannot {action}: {}", in_words(source))]
    Database { action: &'static str, source: DbErr },
    /// The database did not answer in time. Worth another try.
    #[error("the database does not answer in time")]
    NoAnswer,
    /// An encrypted column cannot be opened. The operator must check the keys.
    #[error("cannot decrypt {what}: {source}")]
    Sealed { what: String, source: OpenError },
    /// Somebody without the key changed a row, or put an old state of it back.
    #[error(
        "{what} was not written by tokenkeeper: somebody changed the row, or put a part of an older one back"
    )]
    Changed { what: String },
    /// A row holds a value that no version of this program writes.
    #[error("{what} is not readable: {reason}")]
    Corrupt { what: String, reason: String },
}

impl StoreError {
    pub(super) fn database(action: &'static str) -> impl FnOnce(DbErr) -> Self {
        move |source| Self::Database { action, source }
    }

    /// Whether the error is about what stands in a row.
    pub const fn is_of_contents(&self) -> bool {
        match self {
            Self::Sealed { .. } | Self::Changed { .. } | Self::Corrupt { .. } => true,
            Self::Database { .. } | Self::NoAnswer => false,
        }
    }

    /// Whether the error is about the database and not about a row: any other statement would fail, too.
    pub(super) fn is_of_no_row(&self) -> bool {
        use sqlx::Error::{PoolClosed, WorkerCrashed};
        match self {
            Self::Database { source: DbErr::ConnectionAcquire(_) | DbErr::Conn(_), .. } => true,
            Self::Database {
                source:
                    source @ (DbErr::Exec(RuntimeErr::SqlxError(error))
                    | DbErr::Query(RuntimeErr::SqlxError(error))),
                ..
            } => matches!(**error, PoolClosed | WorkerCrashed) || Fault::of(source).is_of_server(),
            Self::Database { .. }
            | Self::NoAnswer
            | Self::Sealed { .. }
            | Self::Changed { .. }
            | Self::Corrupt { .. } => false,
        }
    }

    /// Whether the statement met a server that answers and takes no writes.
    pub fn is_of_wrong_server(&self) -> bool {
        match self {
            Self::Database { source, .. } => Fault::of(source).is_of_wrong_server(),
            Self::NoAnswer | Self::Sealed { .. } | Self::Changed { .. } | Self::Corrupt { .. } => false,
        }
    }

    /// Whether the same call may succeed a moment later. A refused value is refused again.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database { source, .. } => !is_refusal(source),
            Self::NoAnswer => true,
            Self::Sealed { .. } | Self::Changed { .. } | Self::Corrupt { .. } => false,
        }
    }
}

/// Whether the database refuses the values of the statement: too long, or against a constraint.
fn is_refusal(error: &DbErr) -> bool {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) => {
            error.as_database_error().is_some_and(is_refused)
        }
        _ => false,
    }
}

fn is_refused(error: &dyn DatabaseError) -> bool {
    let Some(code) = error.code() else { return false };
    if error.try_downcast_ref::<SqliteError>().is_some() {
        // sqlite.org/rescode.html: TOOBIG, CONSTRAINT and MISMATCH, in the lowest byte of an extended code.
        return code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, 18..=20));
    }
    // SQLSTATE, which PostgreSQL, MariaDB and MySQL share: data exception, integrity constraint violation.
    code.starts_with("22") || code.starts_with("23")
}
