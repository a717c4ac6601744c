//! Asks before something is lost.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::Context;
use tokenkeeper::domain::escape;
use tokenkeeper::domain::problem::Problem;

use super::Failure;

// No documentation: clap would take it for that of the command that has this option.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Confirmation {
    /// Does not ask for confirmation
    #[arg(long)]
    yes: bool,
}

impl Confirmation {
    /// Whether to go on. `loss` is a sentence without its full stop that says what will be lost. A person at a terminal is
    /// asked.
    ///
    /// # Errors
    /// [`Failure::Usage`]: nobody can be asked, and `--yes` was not passed.
    pub(super) fn given(self, loss: &str) -> Result<bool, Failure> {
        if self.yes {
            return Ok(true);
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage(Problem::new(loss, "", "pass --yes to confirm").into()));
        }
        let mut stderr = io::stderr();
        write!(stderr, "{}.\nType yes to continue: ", escape::line(loss))?;
        stderr.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
        let is_confirmed = answer.trim() == "yes";
        if !is_confirmed {
            writeln!(stderr, "Nothing was changed.")?;
        }
        Ok(is_confirmed)
    }
}
