//! What there is: the row, the provider, the workers and the parked pairs. Time is relative (ticks left), so it needs
//! no bound.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

/// How many workers there are.
pub const WORKERS: usize = 3;

/// A pair, numbered in the order in which the provider issued them. 0 is what the row begins with.
pub type PairId = u8;

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The token entry in the database.
    pub row: Row,
    /// The pairs the provider has issued, by [`PairId`].
    pub issued: Vec<Issued>,
    /// The workers, sorted: which of them does what makes no difference.
    pub workers: [Worker; WORKERS],
    /// The durable queue of pairs that a stopping worker could not store.
    pub parked: Vec<Parked>,
    /// Requests that nobody has in hand.
    pub queued: u8,
    /// How many more faults may happen.
    pub faults: u8,
    /// How many more calls of the provider may be begun.
    pub calls: u8,
    /// Whether the user may still log in.
    pub login: bool,
    /// The newest pair went with a crash or a lost answer between the provider and the row: nobody can have it.
    pub newest_lost: bool,
    /// What was broken on the way here.
    pub broken: Broken,
}

/// What a step can break that the state after it does not show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "one flag a property")]
pub struct Broken {
    /// An opportunistic lease was taken under a live reservation.
    pub lease_under_reservation: bool,
    /// The provider acted on an opportunistic refresh and so killed a token that was reserved.
    pub reserved_token_killed: bool,
    /// A reply named a token that was not stored, or not reserved as it said.
    pub reply_untrue: bool,
    /// An older pair was stored over a newer one.
    pub newer_overwritten: bool,
    /// A token was handed out of which the row says that it may be dead.
    pub doubtful_handed_out: bool,
    /// A refresh token was sent once more by the flight that knew it to be spent.
    pub spent_sent_again: bool,
}

/// The token entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Row {
    /// Column `generation`.
    pub generation: u8,
    /// The pair in its sealed columns.
    pub pair: PairId,
    /// Column `reserved_until`: ticks left.
    pub reserved: u8,
    /// Columns `lease_holder`, `lease_until`.
    pub lease: Option<Lease>,
    /// Column `attempt_fingerprint`: the refresh token that was, or is about to be, sent.
    pub attempt: Option<PairId>,
    /// The failure that condemned a refresh token.
    pub failure: Option<Failure>,
    /// Columns `refreshed_from`, `refreshed_at`; none after a login.
    pub refreshed: Option<Refreshed>,
}

/// The lease in the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Whose it is.
    pub holder: Holder,
    /// Ticks left.
    pub left: u8,
}

/// Who took a lease. Each flight has a name of its own, so once it is over nobody goes by it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The flight of this worker.
    Worker(u8),
    /// The flight that parked this pair.
    Parked(PairId),
    /// A flight that is over.
    Nobody,
}

/// A failure that condemns a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Failure {
    /// The refresh token that was sent.
    pub fingerprint: PairId,
    /// Whether an answer had been lost before (`refresh_interrupted`).
    pub interrupted: bool,
}

/// From what a pair was obtained, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Refreshed {
    /// The refresh token that was sent.
    pub from: PairId,
    /// When it was sent.
    pub asked: u8,
}

/// A pair as the provider remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Issued {
    /// The refresh token it was issued for; none: a login.
    pub parent: Option<PairId>,
    /// Which login it descends from.
    pub login: u8,
}

/// A pair on its way into the row, with what its store is guarded by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    /// The pair.
    pub pair: PairId,
    /// The generation it replaces.
    pub generation: u8,
    /// The login it descends from, as it was loaded.
    pub login: u8,
    /// The refresh token that was sent.
    pub from: PairId,
    /// When it was sent.
    pub asked: u8,
    /// Ticks left until which it is reserved for the one who asked.
    pub until: u8,
}

/// A parked pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Parked {
    /// The pair.
    pub held: Held,
    /// Whether a worker has it in hand. It stays in the queue until that worker acks.
    pub delivered: bool,
}

/// One worker with the one request it has in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Worker {
    /// What it does next.
    pub phase: Phase,
    /// What it is asked for.
    pub request: Request,
    /// For traces only.
    pub name: Name,
}

/// The name of a worker: the same to every comparison, so that states that differ by it alone are one.
#[derive(Debug, Clone, Copy)]
pub struct Name(pub char);

impl PartialEq for Name {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Name {}
impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Name {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}
impl Hash for Name {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// What a requester needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    /// Ticks left until which the token must work; 0: nobody waits any more.
    pub until: u8,
    /// The generation whose token does not live that long, where one does not.
    pub too_short: Option<u8>,
}

impl Request {
    /// No request.
    pub const NONE: Self = Self { until: 0, too_short: None };
}

/// The entry as a worker loaded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    /// Its generation.
    pub generation: u8,
    /// Its pair.
    pub pair: PairId,
    /// The login its pair descends from (column `login_fingerprint`).
    pub login: u8,
    /// Its refresh token.
    pub refresh_token: PairId,
}

/// Why a token is refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// It is valid, and nobody holds it.
    Opportunistic,
    /// It does not live as long as requested.
    Required,
}

/// A flight under its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flight {
    /// The entry that is refreshed.
    pub view: View,
    /// Why.
    pub cause: Cause,
    /// Whether the provider may have acted on an earlier call, this flight's or another's.
    pub doubt: bool,
    /// Whether the provider acted on this flight's last call, with an answer that could not be read.
    pub unreadable: bool,
    /// Ticks left of the lease, by the worker's own reckoning.
    pub left: u8,
}

/// The program counter of a worker, and what it remembers: the step named is the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing in hand.
    Idle,
    /// Load and decide; again, where it waited for a lease.
    Load {
        /// It met a live lease.
        waited: bool,
    },
    /// `Store::reserve`, then the reply.
    Reserve {
        /// What is handed out.
        view: View,
        /// By the last look: no further round.
        last: bool,
    },
    /// `Store::take_lease`.
    TakeLease {
        /// What is refreshed.
        view: View,
        /// Why.
        cause: Cause,
        /// What was loaded had an attempt record.
        doubt: bool,
    },
    /// Call the provider, or give up where that was tried.
    Call {
        /// Under this lease.
        flight: Flight,
        /// A call has failed already.
        tried: bool,
    },
    /// The request was sent; the provider has not acted yet.
    Asked {
        /// Under this lease.
        flight: Flight,
        /// When.
        asked: u8,
    },
    /// The provider refused the refresh token: `Store::give_up`.
    Refused {
        /// Under this lease.
        flight: Flight,
    },
    /// `Store::store_pair`.
    StorePair {
        /// What is stored.
        held: Held,
        /// The lease, by the worker's own reckoning.
        left: u8,
        /// It comes from the parked pairs.
        parked: bool,
    },
    /// The store found the generation moved: look which pair is there now.
    LookAgain {
        /// What could not be stored.
        held: Held,
        /// It comes from the parked pairs.
        parked: bool,
    },
    /// A parked pair is settled: ack it.
    AckParked {
        /// Which.
        held: Held,
        /// It was stored just now; else it was dropped as stale.
        stored: bool,
    },
}
