//! Statements that many requests share, and how many share them.

use std::fmt::Display;

use metrics::{counter, describe_counter};

const STATEMENTS: &str = "tokenkeeper_database_statements_total";
const ROWS: &str = "tokenkeeper_database_statement_rows_total";
const SPLIT: &str = "tokenkeeper_database_groups_split_total";

/// A statement of the way from a delivery to its reply: label `statement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupedStatement {
    /// Finds the entries of requests, and reserves them where that is plain.
    Claim,
    /// Finds the entries of requests that a claim for many did not reserve.
    Find,
    /// Reserves entries that were decided on.
    Reserve,
    /// Takes the leases of flights.
    TakeLease,
    /// Stores the pairs that refreshes brought.
    StorePair,
}

impl GroupedStatement {
    const ALL: [Self; 5] = [Self::Claim, Self::Find, Self::Reserve, Self::TakeLease, Self::StorePair];

    const fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Find => "find",
            Self::Reserve => "reserve",
            Self::TakeLease => "take_lease",
            Self::StorePair => "store_pair",
        }
    }
}

/// A statement runs for that many rows.
pub fn grouped_statement(statement: GroupedStatement, rows: usize) {
    counter!(STATEMENTS, "statement" => statement.name()).increment(1);
    counter!(ROWS, "statement" => statement.name()).increment(rows as u64);
}

/// A statement for many failed, and is done again for each of them alone.
pub fn group_split(statement: GroupedStatement, rows: usize, error: &dyn Display) {
    counter!(SPLIT, "statement" => statement.name()).increment(1);
    tracing::warn!(statement = statement.name(), rows, %error, "a statement for many failed; now one for each");
}

pub(super) fn describe() {
    describe_counter!(STATEMENTS, "Statements that requests for stored tokens took.");
    describe_counter!(ROWS, "Rows that those statements were for; by statement, how many share one.");
    describe_counter!(SPLIT, "Statements for many rows that failed and were done again for each alone.");
    for statement in GroupedStatement::ALL {
        for name in [STATEMENTS, ROWS, SPLIT] {
            counter!(name, "statement" => statement.name()).absolute(0);
        }
    }
}
