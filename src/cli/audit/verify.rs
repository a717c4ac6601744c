//! `tokenkeeper audit verify`

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use tokenkeeper::domain::problem::of_system;
use tokenkeeper::settings::Settings;
use tokenkeeper::telemetry::audit::{Fault, LONGEST_LINE, TornLine, Verifier, Why};

use crate::cli::output::{Output, note};
use crate::cli::{Ending, Failure};

/// Says whether the chain of an audit log is unbroken
///
/// Wants a log that was written with `audit.chain = true`, and the encryption keys of its time. Says the first line that was
/// changed, removed, inserted or moved, with its number and the cause. Lines that were cut off at the end of the last file
/// are not missed by it: compare the last sequence number with the metric `tokenkeeper_audit_chain_sequence`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper audit verify tokenkeeper-audit.jsonl
  tokenkeeper audit verify audit.jsonl.2 audit.jsonl.1 audit.jsonl
  zcat audit.jsonl.1.gz | tokenkeeper audit verify -

Exit codes:
  0  unbroken
  1  broken
  2  it could not be looked at: a file cannot be read, a key is missing, or there is no line")]
pub(crate) struct Arguments {
    /// Audit logs of one worker, the oldest first; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
}

/// Why the look ended at a line.
enum Stop {
    Fault(Fault),
    Unreadable(io::Error),
}

pub(crate) fn run(settings: &Settings, arguments: &Arguments) -> Result<Ending, Failure> {
    let keys = settings.key_ring()?;
    let mut verifier = Verifier::new(&keys);
    let mut output = Output::new();
    for file in &arguments.files {
        let looked = open(file).map_err(Stop::Unreadable).and_then(|lines| look(lines, &mut verifier, file));
        match looked {
            Ok(()) => {}
            Err(Stop::Unreadable(error)) => {
                note(format_args!("could not look: {file}: {}", of_system(&error)));
                return Ok(Ending::NotLooked);
            }
            Err(Stop::Fault(Fault { line, why: Why::UnknownKey(key) })) => {
                note(format_args!("could not look: {file}, line {line}: {key}"));
                return Ok(Ending::NotLooked);
            }
            Err(Stop::Fault(Fault { line, why })) => {
                output.line(format_args!("{file}, line {line}: broken: {why}"))?;
                return Ok(Ending::Bad);
            }
        }
    }
    let Some((first, last)) = verifier.range() else {
        note("could not look: there is no line");
        return Ok(Ending::NotLooked);
    };
    if first > 1 {
        note(format_args!(
            "the {} lines before sequence number {first} are in none of these files",
            first - 1
        ));
    }
    output.line(format_args!("unbroken: sequence numbers {first} to {last}"))?;
    Ok(Ending::Good)
}

fn open(file: &str) -> io::Result<Box<dyn BufRead>> {
    Ok(if file == "-" { Box::new(io::stdin().lock()) } else { Box::new(BufReader::new(File::open(file)?)) })
}

/// Takes the lines of a file. Holds one of them at a time.
fn look(mut lines: impl BufRead, verifier: &mut Verifier<'_>, file: &str) -> Result<(), Stop> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let most = LONGEST_LINE as u64 + 1;
        lines.by_ref().take(most).read_until(b'\n', &mut line).map_err(Stop::Unreadable)?;
        let taken = match line.strip_suffix(b"\n") {
            Some(line) => verifier.take(line),
            None if line.is_empty() => return verifier.end_of_file().map_err(Stop::Fault),
            None if line.len() > LONGEST_LINE => Err(verifier.too_long()),
            None => verifier.take_unfinished(&line),
        };
        if let Some(TornLine(line)) = taken.map_err(Stop::Fault)? {
            note(format_args!("{file}, line {line}: unfinished: its writer was killed, or still writes"));
        }
    }
}
