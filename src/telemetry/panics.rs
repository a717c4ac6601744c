//! Panics of tasks. They do not end the process, so they are counted. After some, `/readyz` fails.

use std::panic;

use metrics::{counter, describe_counter};

use super::label;
use crate::domain::plain::plain_words;

const PANICS: &str = "tokenkeeper_panics_total";

label! {
    /// Label `in`.
    pub enum Panicking {
        /// The message returns to the queue.
        Message = "message",
        /// The requesters are answered with `internal`.
        Refresh = "refresh",
        /// A service that the worker needs: it is not ready any more.
        Service = "service",
    }
}

pub fn panicked(what: Panicking) {
    counter!(PANICS, "in" => what.name()).increment(1);
    match what {
        Panicking::Message => {
            tracing::error!(
                "panic in the handling of a message; the message returns to the queue; please report this bug"
            );
        }
        Panicking::Refresh => {
            tracing::error!(
                "panic in a refresh; its requesters are answered with `internal`; please report this bug"
            );
        }
        Panicking::Service => {}
    }
}

/// Logs each panic where it happens, in the format of the log. Otherwise the standard library prints it. Its text may show the
/// value that it was about, so only plain words of it are logged (invariant 6).
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let text = plain_words(panic.payload_as_str().unwrap_or("no text"));
        let place = panic.location().map(tracing::field::display);
        tracing::error!(place, "panic: {text}");
    }));
}

pub fn service_ended(name: &'static str) {
    tracing::error!(
        service = name,
        "a service of this worker ended by a bug; the worker is not ready; restart it"
    );
}

pub(super) fn describe() {
    describe_counter!(PANICS, "Panics in a message, a refresh or a service.");
    for what in Panicking::ALL {
        counter!(PANICS, "in" => what.name()).absolute(0);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn the_text_of_a_panic_is_told_without_the_value_that_it_is_about() {
        let token = || String::from("gho_16C7e42F292c6912é");
        let panics: [fn(String); 3] = [
            |token| drop(token[..token.len() - 1].to_owned()),
            |token| std::hint::black_box(Err::<(), _>(token)).unwrap(),
            |token| assert_eq!(token, "another"),
        ];
        for panics in panics {
            let payload = catch_unwind(|| panics(token())).unwrap_err();
            let text = payload.downcast_ref::<String>().unwrap();
            assert!(text.contains("16C7e42F292c6912"), "the standard library shows it: {text}");
            let told = plain_words(text);
            assert!(!told.contains("16C7e42F292c6912"), "{told}");
            assert!(["byte", "called", "assertion"].iter().any(|word| told.contains(word)), "{told}");
        }
        let bounds = "index out of bounds: the len is 3 but the index is 5";
        assert_eq!(plain_words(bounds), bounds);
    }
}
