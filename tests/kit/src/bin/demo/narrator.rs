//! How the story looks: seconds at the left, who acts, a tick where something was checked.

use std::{
    env,
    fmt::Debug,
    io::{self, IsTerminal, Write},
    time::Instant,
};

use anyhow::{Result, bail};

/// How wide the story is.
const COLUMNS: usize = 100;
/// Before the text of a line: seconds, who, and the tick.
const MARGIN: usize = 22;
/// Before what a scene is about: seconds.
const INDENT: usize = 7;

/// Who acts in a line.
#[derive(Clone, Copy)]
pub(crate) enum Actor {
    /// Who runs tokenkeeper.
    Operator,
    /// The login flow: it publishes `token.store`.
    Login,
    /// Whoever needs a token: it publishes `token.request` and `workspace.start`.
    Requester,
    /// The workers.
    Tokenkeeper,
    /// The simulated source-code host.
    Scm,
    /// `git`, as a workspace runs it.
    Git,
}

impl Actor {
    const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Login => "login",
            Self::Requester => "requester",
            Self::Tokenkeeper => "tokenkeeper",
            Self::Scm => "SCM",
            Self::Git => "git",
        }
    }

    const fn style(self) -> Style {
        match self {
            Self::Operator | Self::Login | Self::Requester => Style::Cyan,
            Self::Tokenkeeper => Style::Bold,
            Self::Scm => Style::Magenta,
            Self::Git => Style::Yellow,
        }
    }
}

/// Tells the story, and checks what it claims.
pub(crate) struct Narrator {
    out: io::Stdout,
    coloured: bool,
    began: Instant,
    scenes: usize,
    checks: usize,
}

impl Narrator {
    /// The clock of the story starts here.
    pub(crate) fn start() -> Self {
        let out = io::stdout();
        let coloured = out.is_terminal() && takes_colours();
        Self { out, coloured, began: Instant::now(), scenes: 0, checks: 0 }
    }

    /// Text before the first scene or after the last.
    pub(crate) fn paragraph(&mut self, text: &str) -> Result<()> {
        self.lines(0, text, Style::Plain)
    }

    /// The heading of the next scene, and what it is about.
    pub(crate) fn scene(&mut self, title: &str, what_for: &str) -> Result<()> {
        self.scenes += 1;
        let heading = format!("── {} ── {title} ", self.scenes);
        let rule = "─".repeat(COLUMNS.saturating_sub(heading.chars().count()));
        let (heading, rule) = (self.styled(&heading, Style::Bold), self.styled(&rule, Style::Dim));
        self.line(&format!("\n{heading}{rule}"))?;
        self.lines(INDENT, what_for, Style::Dim)
    }

    /// Something that happens.
    pub(crate) fn tell(&mut self, who: Actor, text: &str) -> Result<()> {
        self.entry(who, " ", Style::Plain, text)
    }

    /// Something that is true. Where it is not, the story ends, and says what was `seen` instead.
    pub(crate) fn claim(&mut self, who: Actor, holds: bool, text: &str, seen: &dyn Debug) -> Result<()> {
        if !holds {
            self.entry(who, "✗", Style::Red, text)?;
            bail!("this did not come out as told: {text}\nseen instead: {seen:?}");
        }
        self.checked(who, text)
    }

    /// Something that is true, because the story would have ended before this line if it were not.
    pub(crate) fn checked(&mut self, who: Actor, text: &str) -> Result<()> {
        self.checks += 1;
        self.entry(who, "✓", Style::Green, text)
    }

    /// A line as it is.
    pub(crate) fn line(&mut self, line: &str) -> Result<()> {
        writeln!(self.out, "{line}")?;
        Ok(self.out.flush()?)
    }

    /// How many claims were checked so far, and how many seconds that took.
    pub(crate) fn score(&self) -> (usize, f64) {
        (self.checks, self.began.elapsed().as_secs_f64())
    }

    fn entry(&mut self, who: Actor, mark: &str, style: Style, text: &str) -> Result<()> {
        let mark = self.styled(mark, style);
        let seconds = self.styled(&format!("{:5.2}", self.began.elapsed().as_secs_f64()), Style::Dim);
        let name = self.styled(&format!("{:<11}", who.name()), who.style());
        let mut head = format!("{seconds}  {name}  {mark} ");
        for line in wrapped(text, COLUMNS - MARGIN) {
            self.line(&format!("{head}{line}"))?;
            head = " ".repeat(MARGIN);
        }
        Ok(())
    }

    fn lines(&mut self, indent: usize, text: &str, style: Style) -> Result<()> {
        for line in wrapped(text, COLUMNS - indent) {
            self.line(&format!("{:indent$}{}", "", self.styled(&line, style)))?;
        }
        Ok(())
    }

    fn styled(&self, text: &str, style: Style) -> String {
        match style.code().filter(|_| self.coloured) {
            Some(code) => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            None => text.to_owned(),
        }
    }
}

#[derive(Clone, Copy)]
enum Style {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Magenta,
    Cyan,
}

impl Style {
    /// The parameter of "select graphic rendition" (ECMA-48).
    const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Dim => Some("2"),
            Self::Red => Some("1;31"),
            Self::Green => Some("32"),
            Self::Yellow => Some("33"),
            Self::Magenta => Some("35"),
            Self::Cyan => Some("36"),
        }
    }
}

/// <https://no-color.org>, and terminals that say they cannot.
fn takes_colours() -> bool {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_some_and(|terminal| terminal != "dumb")
}

/// The text in lines of at most `width` characters, broken at blanks.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
