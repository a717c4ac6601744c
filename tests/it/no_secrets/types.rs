//! Types that hold a secret can be neither printed nor serialised by mistake: each assertion here is one that does not compile
//! where it is wrong.

use std::fmt::Display;

use serde::Serialize;
use static_assertions::{assert_impl_all, assert_not_impl_any};
use tokenkeeper::domain::sealed_box::SecretKey;
use tokenkeeper::domain::secret::{AuditKey, KeyRing, RingKey, SecretString};
use tokenkeeper::oauth::IssuedPair;
use tokenkeeper::settings::{AdminToken, ConnectionUrl, Settings};
use tokenkeeper::store::NewPair;

assert_not_impl_any!(SecretString: Display, Serialize);
assert_not_impl_any!(KeyRing: Display, Serialize);
assert_not_impl_any!(RingKey: Display, Serialize);
assert_not_impl_any!(AuditKey: Display, Serialize);
assert_not_impl_any!(SecretKey: Display, Serialize);
assert_not_impl_any!(NewPair: Display, Serialize);
assert_not_impl_any!(ConnectionUrl: Display, Serialize);
assert_not_impl_any!(AdminToken: Display, Serialize);
assert_not_impl_any!(Settings: Display, Serialize);
assert_not_impl_any!(IssuedPair: Display, Serialize);
assert_not_impl_any!(tokenkeeper::domain::provider::Provider: Display, Serialize);
assert_not_impl_any!(tokenkeeper::domain::provider::ProviderRecord: Display, Serialize);
assert_not_impl_any!(tokenkeeper::contract::StoreRequest: Display, Serialize);
assert_not_impl_any!(tokenkeeper::contract::StoredPair: Display, Serialize);
assert_not_impl_any!(tokenkeeper::contract::Request: Display, Serialize);
// A reply is made to be serialised: its token is in there. It is never printed.
assert_not_impl_any!(tokenkeeper::contract::GrantedToken: Display);
assert_not_impl_any!(tokenkeeper::contract::TokenValue: Display);
// Two traits that the others would be of no use without: the assertions see what there is.
assert_impl_all!(String: Display, Serialize);
