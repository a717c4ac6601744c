//! What the protocol's statements are guarded by, one switch a guard, so that each can be taken away.

/// The guards of the protocol. [`Rules::KEPT`] has them all; a mutant lacks one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one switch a guard is what a table of mutants is made of")]
pub struct Rules {
    /// Reserve: only the generation that was loaded.
    pub reserve_same_generation: bool,
    /// Reserve: not under a live lease.
    pub reserve_no_live_lease: bool,
    /// Reserve: not where a refresh is in doubt, unless the token is reserved already.
    pub reserve_not_in_doubt: bool,
    /// Claim: not under a live lease.
    pub claim_no_live_lease: bool,
    /// Claim: not where a refresh is in doubt.
    pub claim_not_in_doubt: bool,
    /// Claim: not where a refresh failed.
    pub claim_none_failed: bool,
    /// Serve what is known: only the generation that was loaded.
    pub known_same_generation: bool,
    /// Serve what is known: not under a live lease.
    pub known_no_live_lease: bool,
    /// Serve what is known: not where a refresh is in doubt.
    pub known_not_in_doubt: bool,
    /// Serve what is known: not where a refresh failed.
    pub known_none_failed: bool,
    /// Take the lease: only the generation that was loaded.
    pub lease_same_generation: bool,
    /// Take the lease: not while another one lives.
    pub lease_no_live_lease: bool,
    /// Take the lease opportunistically: not under a live reservation.
    pub lease_no_live_reservation: bool,
    /// Take the lease: not where an attempt was recorded since the entry was loaded.
    pub lease_same_doubt: bool,
    /// Take the lease: not where the refresh token was condemned since the entry was loaded.
    pub lease_not_condemned: bool,
    /// Take the lease: leaves the record that an attempt is under way.
    pub lease_records_attempt: bool,
    /// Renew: only one's own lease.
    pub renew_own_lease: bool,
    /// Renew: only a lease that still lives; one that ran out may have let others in.
    pub renew_live_lease: bool,
    /// Call the provider: only while one's lease lives, by one's own reckoning.
    pub call_under_live_lease: bool,
    /// Call the provider: not in a flight whose pair came and could not be read.
    pub unreadable_ends_flight: bool,
    /// Store: only over the generation that was loaded.
    pub store_same_generation: bool,
    /// Store over a generation that moved: only a pair that was asked for later, of the same login.
    pub store_compares: bool,
    /// Store over a generation that moved: where it is the newer one. Without, what finds it moved is dropped.
    pub store_over_older: bool,
    /// What [`Rules::store_over_older`] takes for the same line of pairs.
    pub same_line: SameLine,
    /// Store: leaves the lease and the attempt record of another flight alone.
    pub store_spares_others_lease: bool,
    /// A worker that must stop parks the pair it holds.
    pub stop_parks: bool,
    /// Give up: only one's own lease.
    pub give_up_own_lease: bool,
    /// Give up: only the generation that was loaded.
    pub give_up_same_generation: bool,
    /// Give up: leaves the attempt record where the provider may have acted.
    pub give_up_keeps_doubt: bool,
    /// Whoever meets an attempt record refreshes before handing out, unless the token is reserved.
    pub load_heeds_doubt: bool,
    /// The last look of a request that waited too long heeds it too.
    pub last_look_heeds_doubt: bool,
}

/// Which pairs are compared by when they were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameLine {
    /// Those obtained from the same refresh token.
    RefreshToken,
    /// Those that descend from the same login.
    Login,
}

impl Rules {
    /// The protocol.
    pub const KEPT: Self = Self {
        reserve_same_generation: true,
        reserve_no_live_lease: true,
        reserve_not_in_doubt: true,
        claim_no_live_lease: true,
        claim_not_in_doubt: true,
        claim_none_failed: true,
        known_same_generation: true,
        known_no_live_lease: true,
        known_not_in_doubt: true,
        known_none_failed: true,
        lease_same_generation: true,
        lease_no_live_lease: true,
        lease_no_live_reservation: true,
        lease_same_doubt: true,
        lease_not_condemned: true,
        lease_records_attempt: true,
        renew_own_lease: true,
        renew_live_lease: true,
        call_under_live_lease: true,
        unreadable_ends_flight: true,
        store_same_generation: true,
        store_compares: true,
        store_over_older: true,
        same_line: SameLine::Login,
        store_spares_others_lease: true,
        stop_parks: true,
        give_up_own_lease: true,
        give_up_same_generation: true,
        give_up_keeps_doubt: true,
        load_heeds_doubt: true,
        last_look_heeds_doubt: true,
    };
}
