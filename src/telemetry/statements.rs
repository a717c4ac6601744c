//! Statements that many requests share, and how many share each.

use std::fmt::Display;

use metrics::{counter, describe_counter};
use tokio::time::Instant;

use super::label;
use super::repeated::Repeated;

const STATEMENTS: &str = "tokenkeeper_database_statements_total";
const ROWS: &str = "tokenkeeper_database_statement_rows_total";
const SPLIT: &str = "tokenkeeper_database_groups_split_total";

label! {
    /// Label `statement`.
    pub enum GroupedStatement {
        /// Finds the entries of requests, and reserves those that need no decision.
        Claim = "claim",
        /// Finds the entries that a claim did not reserve.
        Find = "find",
        Reserve = "reserve",
        TakeLease = "take_lease",
        StorePair = "store_pair",
    }
}

pub fn grouped_statement(statement: GroupedStatement, rows: usize) {
    counter!(STATEMENTS, "statement" => statement.name()).increment(1);
    counter!(ROWS, "statement" => statement.name()).increment(rows as u64);
}

/// A statement for many rows failed and is repeated for each row.
pub fn group_split(statement: GroupedStatement, rows: usize, error: &dyn Display) {
    static TOLD: Repeated = Repeated::new();
    counter!(SPLIT, "statement" => statement.name()).increment(1);
    if let Some(kept_back) = TOLD.lets_through(error, Instant::now()) {
        tracing::warn!(
            statement = statement.name(), rows, %error, kept_back,
            "a statement for many rows failed; it is repeated for each row"
        );
    }
}

pub(super) fn describe() {
    describe_counter!(STATEMENTS, "Statements for requests for stored tokens.");
    describe_counter!(ROWS, "Rows of those statements: divided by statements, how many requests share one.");
    describe_counter!(SPLIT, "Statements for many rows that failed and were repeated for each row.");
    for statement in GroupedStatement::ALL {
        for name in [STATEMENTS, ROWS, SPLIT] {
            counter!(name, "statement" => statement.name()).absolute(0);
        }
    }
}
