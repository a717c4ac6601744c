//! The guards of the statements on `token_entry` (docs/contract.md, The database protocol), each rule once.
//!
//! A rule is a condition of the query builder. A statement that the query builder cannot write (`unnest … WITH ORDINALITY`,
//! rows of values) takes the rule as text from the macro beside it: there the row is called `entry`, and the macro's
//! arguments are the expressions to compare with. What a worker asks of a loaded entry stands here as well.

use sea_orm::{ColumnTrait, Condition};
use tokenkeeper_entity::token_entry::Column;

use super::Entry;
use crate::domain::clock::Timestamp;

/// Nobody refreshes the token at `now`: there is no lease, or it ran out.
pub(super) fn lease_is_free(now: Timestamp) -> Condition {
    Condition::any().add(Column::LeaseUntil.is_null()).add(Column::LeaseUntil.lte(now.as_millis()))
}

/// The text of [`lease_is_free`].
macro_rules! lease_is_free_sql {
    ($now:literal) => {
        concat!("(entry.lease_until IS NULL OR entry.lease_until <= ", $now, ")")
    };
}

/// Nobody holds the token for longer than `then`. So a reservation until `then` would not shorten an existing one. And a refresh
/// is safe now, if the old token works until `then`.
pub(super) fn not_reserved_beyond(then: Timestamp) -> Condition {
    Condition::any().add(Column::ReservedUntil.is_null()).add(Column::ReservedUntil.lte(then.as_millis()))
}

/// The text of [`not_reserved_beyond`].
macro_rules! not_reserved_beyond_sql {
    ($then:literal) => {
        concat!("(entry.reserved_until IS NULL OR entry.reserved_until <= ", $then, ")")
    };
}

/// The text of [`Entry::is_ordinary`].
macro_rules! is_ordinary_sql {
    () => {
        "entry.attempt_fingerprint IS NULL AND entry.failed_at IS NULL AND entry.reported_at IS NULL"
    };
    // The planner cannot take an index on one of these columns for it, where the row's key is the way to go.
    (without_index) => {
        "num_nulls(entry.attempt_fingerprint, entry.failed_at, entry.reported_at) = 3"
    };
}

/// The text of [`Entry::is_unmoved`].
macro_rules! is_unmoved_sql {
    ($id:literal, $generation:literal) => {
        concat!("entry.id = ", $id, " AND entry.generation = ", $generation)
    };
}

pub(super) use {is_ordinary_sql, is_unmoved_sql, lease_is_free_sql, not_reserved_beyond_sql};

impl Entry {
    /// Whether somebody refreshes it now.
    pub fn has_live_lease(&self, now: Timestamp) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.until > now)
    }

    /// Whether no refresh of this pair is in doubt or has failed, and nobody reported it. Statements that many requests
    /// share are for such entries alone.
    pub(super) const fn is_ordinary(&self) -> bool {
        !self.is_in_doubt() && self.record.failed_at.is_none() && self.record.reported_at.is_none()
    }

    /// The guard of every write: this row, with the pair that was loaded.
    pub(super) fn is_unmoved(&self) -> Condition {
        Condition::all().add(Column::Id.eq(self.id)).add(Column::Generation.eq(self.generation))
    }

    /// The guard of what hands the token out or begins a refresh: no refresh of this pair has begun or failed since it
    /// was loaded, and nobody has reported it.
    ///
    /// The generation does not tell. A lease can be taken, lost and given up in between, and leaves the generation as it
    /// was; but the pair may be dead now, or its refresh token refused.
    pub(super) fn is_as_decided_on(&self) -> Condition {
        let is_at = |column: Column, at: Option<i64>| at.map_or_else(|| column.is_null(), |at| column.eq(at));
        let attempt = Column::AttemptFingerprint;
        self.is_unmoved()
            .add(self.attempt.as_deref().map_or_else(|| attempt.is_null(), |sent| attempt.eq(sent)))
            .add(is_at(Column::FailedAt, self.record.failed_at))
            .add(is_at(Column::ReportedAt, self.record.reported_at))
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::sea_query::{PostgresQueryBuilder, Query};
    use tokenkeeper_entity::token_entry::Entity as TokenEntry;

    use super::*;

    /// A condition as it is written in a statement that calls the row `entry`.
    fn text(condition: Condition) -> String {
        let query = Query::select().column(Column::Id).from(TokenEntry).cond_where(condition).to_owned();
        let sql =
            query.to_string(PostgresQueryBuilder).replace("\"token_entry\".", "entry.").replace('"', "");
        sql.split_once(" WHERE ").unwrap().1.to_owned()
    }

    fn in_brackets(sql: &str) -> String {
        format!("({sql})")
    }

    #[test]
    fn a_rule_says_the_same_as_text_and_as_a_condition() {
        let then = Timestamp::from_millis(5);
        assert_eq!(in_brackets(&text(lease_is_free(then))), lease_is_free_sql!("5"));
        assert_eq!(in_brackets(&text(not_reserved_beyond(then))), not_reserved_beyond_sql!("5"));
    }
}
