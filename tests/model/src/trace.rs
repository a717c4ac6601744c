//! A path through the model, to be read.

use std::fmt::{self, Display, Formatter};

use crate::state::State;
use crate::step::Action;

/// The states on a path, each with what happened then.
#[derive(Debug, Clone)]
pub struct Trace(pub Vec<(State, Option<Action>)>);

impl Display for Trace {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (state, action) in &self.0 {
            match action {
                Some(Action::Worker(at, step)) => {
                    writeln!(f, "  {} {step:?}", state.workers[usize::from(*at)].name.0)?;
                }
                Some(action) => writeln!(f, "  {action:?}")?,
                None => writeln!(f, "  = {:?}", state.row)?,
            }
        }
        Ok(())
    }
}
