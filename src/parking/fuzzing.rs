//! Fuzzing: files of the spool folder.

#![allow(clippy::missing_panics_doc, reason = "to panic is how a fuzzer reports")]

use super::spool::read_pair;
use crate::domain::secret::fuzzing::{MARK, assert_untold};

/// The input is a file of the spool folder.
pub fn spool_files(input: &[u8]) {
    match read_pair(input) {
        Ok(pair) => {
            let written = pair.encode();
            let again = read_pair(&written).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(again.encode(), written);
            assert_eq!(
                (&again.host, again.entry_id, again.generation),
                (&pair.host, pair.entry_id, pair.generation)
            );
        }
        Err(error) => assert_untold(&format!("{error} {error:?}"), MARK),
    }
}
