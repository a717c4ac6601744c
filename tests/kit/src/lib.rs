//! What tokenkeeper's tests and its demo stand on: the other side of every wire the worker has.
//!
//! | module | stands in for |
//! |---|---|
//! | [`scm`] | a source-code host: token endpoint, API and `git` over HTTP, all checking the same tokens |
//! | [`database`] | an operator's database, empty and for one test alone |
//! | [`queues`] | upstream: it publishes requests and reads replies and dead letters |
//! | [`proxy`] | the network between a worker and a server, when it fails |
//! | [`program`] | an operator: runs the real `tokenkeeper` binary, its commands and its workers |
//! | [`servers`] | a PostgreSQL and a RabbitMQ of one's own, to be broken or to speak TLS |
//! | [`authority`] | a certificate authority, made on the spot |
//! | [`schema`] | a client generated from the published JSON Schemas: what it would take |
//! | [`http`] | an HTTP client for a test's own questions |
//! | [`leaks`] | somebody who looks for secrets where none may be, in any form that they can be read back from |
//! | [`wait`] | patience: waiting for a condition instead of sleeping |
//!
//! The kit knows tokenkeeper's contract and nothing of its code, so that a mistake in the one cannot hide in
//! the other. Everything here panics when it cannot do what it was asked: that is how a test fails, so
//! `# Panics` sections would stand on every function.
#![allow(clippy::expect_used, clippy::missing_panics_doc)]
// Its tests and programs are written against this interface alone.
#![warn(missing_docs)]

pub mod authority;
pub mod database;
pub mod http;
pub mod leaks;
pub mod program;
pub mod proxy;
pub mod queues;
pub mod schema;
pub mod scm;
pub mod servers;
pub mod wait;
