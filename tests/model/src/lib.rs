//! The protocol of reserving and refreshing (docs/contract.md, The database protocol and Invariants) as a model that a checker explores: every
//! interleaving of three workers, a user who logs in, a provider, and whatever may fail, within bounds that make it
//! finite. `cargo test -p tokenkeeper-model` needs no server and prints how many states it saw.
//!
//! One action is one atomic step: one SQL statement, named as in `src/store/` ([`Step`]), or one call of the provider.
//! What a worker decides between two of them happens with the first. Between any two, anybody else may act.
//!
//! | in the model | in the code |
//! |---|---|
//! | `src/statements.rs`, one method a statement | `src/store.rs`, `src/store/lease.rs`, `src/store/pair.rs` |
//! | [`state::Phase`], the program counter of a worker | `src/requests/token.rs`, `src/refresh/flight.rs` |
//! | [`state::View`], what a worker loaded | `Entry` |
//! | [`Rules`], the guards, one switch each | the `filter`s of those statements |
//!
//! # What may fail
//!
//! - A worker crashes before any step. What it had in memory is gone, and the broker delivers its request again.
//! - A worker is frozen, at any step and for any time: it is not scheduled while [`Action::Tick`] lets leases and
//!   reservations run out, and goes on with what it loaded long ago.
//! - The database takes a statement and the answer is lost. (A statement that does nothing is one that comes later.)
//! - The provider is not reached; acts, and the answer is lost, or is a pair that cannot be read; does not act, and nobody can
//!   know.
//! - A worker must stop while the database does not take a pair: it parks it, and another one stores it, or crashes.
//!
//! Providers differ in what they do with a refresh token that was used ([`RefreshTokens`]); each refresh kills the access
//! token before it, the worst case.
//!
//! # What must hold
//!
//! [`properties`] are invariants 1 to 4 of docs/contract.md, said so that they hold where a worker may be frozen:
//!
//! - *At most one refresh in flight*: never two workers that hold, each by its own reckoning, a live lease of one
//!   generation. A flight whose pair was replaced by a login or by a thawed worker's store may still run beside the next.
//! - *Never lost*: whoever is killed between the provider's answer and the store takes the pair along. Nothing else does.
//! - And a fifth, which is what the attempt record is for: a token whose successor was lost is known for it, and not
//!   handed out unless somebody holds it already.
//!
//! The guards in [`Rules`] are taken away in `tests/protocol.rs`, and the property named there must break. Three are a
//! second lock, which breaks nothing alone within these bounds: the generation in *take the lease* and in *give up*
//! (what follows is guarded by it, and holders' names are used once), and the live lease in *reserve* (the attempt record
//! goes with it). These are less obvious than they look, because a worker may have loaded the row long before it writes (it waited for a permit,
//! or was frozen):
//!
//! - *Reserve* must refuse what became doubtful or interrupted after it was loaded: a lease can be taken, lost and
//!   given up in between, and leaves the generation as it was.
//! - *Take the lease* must refuse where an attempt was recorded, or the refresh token condemned, since the entry was
//!   loaded. Else the new flight believes its own "certain" failures, clears the record, and calls dead what may be dead.
//! - *Renew* must refuse a lease that ran out, even where nobody took it: the token may have been reserved since.
//! - A *login* that is repeated is no step: the statement stores nothing then (`NewPair::is_older_than`). So each login here is
//!   another one.
//! - *Store* over a generation that moved compares when pairs of the same **login** were asked for, not of the same
//!   refresh token: the pair there may have been refreshed once more before the newest of its siblings is stored.
//! - *Store* by a flight that lost its lease leaves the lease and the attempt record of the one that has it.
//!
//! # Where it ends
//!
//! - [`Protocol::acts_at_once`]: a call acts while its lease lives. Frozen between the check and the provider for longer
//!   than the lease, a provider that accepts an old refresh token again may act on the earlier request last, and then
//!   "asked later" is not "issued later". Nothing in the database can see that; a test shows the trace. Where refresh
//!   tokens work once, everything holds all the same.
//! - Not modelled: expiry dates (whether a token is too short for a request is free, which allows more), joining within
//!   one process (one flight), skewed clocks (one clock is another test), the broker (a request is delivered again).
//! - The bounds: three workers, two or three requests, calls and faults. Time has no bound.

pub mod properties;
pub mod protocol;
pub mod provider;
pub mod rules;
pub mod state;
mod statements;
mod step;
mod trace;

pub use self::protocol::Protocol;
pub use self::provider::RefreshTokens;
pub use self::rules::{Rules, SameLine};
pub use self::step::{Action, Answer, Step};
pub use self::trace::Trace;
