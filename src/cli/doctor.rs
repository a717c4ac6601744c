//! `tokenkeeper doctor`

use serde::Serialize;
use tokenkeeper::app::checks;
use tokenkeeper::domain::finding::{Finding, Verdict};
use tokenkeeper::domain::problem::Problem;
use tokenkeeper::settings::Settings;

use super::ending::chain;
use super::output::Output;
use super::{Ending, Failure};

/// Checks everything that a worker needs, without starting one
///
/// Looks at the database (reach, rights, migrations, clock, connections), the broker (version, alarms, queues), the dead
/// letters, the parked pairs, each provider, the spool folder, the flag file, the audit log, and who may ask. Changes nothing
/// and spends no token: a provider is asked to refresh a token that nobody
/// has, and must refuse it. Each check has a time limit of its own.
///
/// One line for each check: ✓ good, ! works and should be looked at, ✗ a problem, ? could not be looked at.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper doctor
  tokenkeeper doctor --json | jq -r '.[] | select(.verdict == \"problem\") | .next'

Exit codes:
  0  no problem
  1  a problem
  2  no problem was found, and something could not be looked at; or the settings are wrong, and nothing was looked at")]
pub(crate) struct Arguments {
    /// Prints a JSON array
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(
    settings: Result<Settings, Failure>,
    arguments: Arguments,
) -> Result<Ending, Failure> {
    let mut output = Output::new();
    let settings = match settings {
        // Whoever reads JSON gets it in any case.
        Err(Failure::Usage(error)) if arguments.json => {
            let (what, next) = (chain(&error), "correct the settings");
            let finding = Finding::wrong("settings", Problem::new(what, "", next));
            output.json(&[Shown::from(&finding)])?;
            return Ok(Ending::NotLooked);
        }
        settings => settings?,
    };
    let findings = checks::run(&settings).await;
    if arguments.json {
        output.json(&findings.iter().map(Shown::from).collect::<Vec<_>>())?;
    } else {
        let width = findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or_default();
        for Finding { check, verdict } in &findings {
            let (sign, told) = in_a_line(verdict);
            output.line(format_args!("{sign} {check:width$}  {told}"))?;
        }
    }
    Ok(ending(&findings))
}

fn in_a_line(verdict: &Verdict) -> (char, String) {
    match verdict {
        Verdict::Good(how) => ('✓', how.clone()),
        Verdict::Warning(problem) => ('!', problem.to_string()),
        Verdict::Wrong(problem) => ('✗', problem.to_string()),
        Verdict::NotLooked(why) => ('?', format!("could not look: {why}")),
    }
}

fn ending(findings: &[Finding]) -> Ending {
    let any = |is: fn(&Verdict) -> bool| findings.iter().any(|finding| is(&finding.verdict));
    if any(|verdict| matches!(verdict, Verdict::Wrong(_))) {
        Ending::Bad
    } else if any(|verdict| matches!(verdict, Verdict::NotLooked(_))) {
        Ending::NotLooked
    } else {
        Ending::Good
    }
}

/// A finding in `--json`.
#[derive(Serialize)]
struct Shown<'a> {
    check: &'a str,
    /// `good`, `warning`, `problem` or `not_looked`.
    verdict: &'static str,
    /// How it is, or what is wrong, or why nobody could look.
    what: &'a str,
    cause: Option<&'a str>,
    /// The next command or change.
    next: Option<&'a str>,
}

impl<'a> From<&'a Finding> for Shown<'a> {
    fn from(Finding { check, verdict }: &'a Finding) -> Self {
        let (verdict, what, problem): (_, _, Option<&Problem>) = match verdict {
            Verdict::Good(how) => ("good", how, None),
            Verdict::Warning(problem) => ("warning", &problem.what, Some(problem)),
            Verdict::Wrong(problem) => ("problem", &problem.what, Some(problem)),
            Verdict::NotLooked(why) => ("not_looked", why, None),
        };
        let cause = problem.map(|problem| problem.cause.as_str()).filter(|cause| !cause.is_empty());
        Self { check, verdict, what, cause, next: problem.map(|problem| problem.next.as_str()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_counts_more_than_what_could_not_be_looked_at() {
        let problem = || Problem::new("what", "", "next");
        let [good, warning] = [Finding::good("a", "b"), Finding::warning("a", problem())];
        let [wrong, not_looked] = [Finding::wrong("a", problem()), Finding::not_looked("a", "b")];
        assert_eq!(ending(&[good.clone(), warning]), Ending::Good);
        assert_eq!(ending(&[good, not_looked.clone()]), Ending::NotLooked);
        assert_eq!(ending(&[not_looked, wrong]), Ending::Bad);
    }
}
