//! What reverting a migration drops.

use std::fmt;

/// A table, or a column of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dropped {
    /// The whole table.
    Table(String),
    /// One column.
    Column { table: String, column: String },
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(table) => write!(f, "table {table}"),
            Self::Column { table, column } => write!(f, "column {table}.{column}"),
        }
    }
}

/// The columns that a migration drops when it is reverted, and whose data is nowhere else.
const COLUMNS: [(&str, &str, &[&str]); 7] = [
    ("add_attempt", "token_entry", &["attempt_fingerprint", "refreshed_at"]),
    ("add_refusing_since", "auth_provider", &["refusing_since"]),
    ("add_overrides_attempts_and_reports", "auth_provider", &["overrides", "spare_client_secrets_sealed"]),
    ("add_overrides_attempts_and_reports", "token_entry", &["attempted_at", "reported_at"]),
    ("add_issued_at", "token_entry", &["issued_at"]),
    ("add_record_mac", "token_entry", &["record_mac"]),
    ("add_formats", "worker", &["reads_format", "seals_in_format"]),
];

/// What is lost when the migration of this name (`m…_NNNNNN_WHAT`) is reverted. A migration called `create_TABLE` drops that
/// table.
pub fn dropped_by(migration: &str) -> Vec<Dropped> {
    let what = migration.splitn(3, '_').nth(2).unwrap_or(migration);
    if let Some(table) = what.strip_prefix("create_") {
        return vec![Dropped::Table(table.to_owned())];
    }
    COLUMNS
        .iter()
        .filter(|(name, _, _)| *name == what)
        .flat_map(|(_, table, columns)| {
            columns
                .iter()
                .map(|column| Dropped::Column { table: (*table).to_owned(), column: (*column).to_owned() })
        })
        .collect()
}
