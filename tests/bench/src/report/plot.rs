//! The ratios to echo, as a picture: one bar a system, in groups by load, with a mark where the target is. Readable on
//! light and on dark paper.

use std::fmt::Write as _;

use anyhow::Result;

use super::Row;

/// Sizes in pixels.
const LABELS: f64 = 330.0;
/// How long a bar is whose ratio is 1.
const ECHO: f64 = 420.0;
/// The longest ratio that has room.
const LONGEST: f64 = 1.3;
const NUMBERS: f64 = 60.0;
const BAR: f64 = 14.0;
const LINE: f64 = 20.0;
const GROUP: f64 = 34.0;
const TOP: f64 = 60.0;

const STYLE: &str = "
  .paper { fill: #ffffff } text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 } .group { font-weight: 600 } .quiet { fill: #59636e }
  .bar { fill: #2a78d6 } .missed { fill: #c2542d } .echo { stroke: #59636e; stroke-width: 1; stroke-dasharray: 3 3 }
  .target { stroke: #1f2328; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } text { fill: #e6edf3 } .quiet { fill: #9198a1 } .bar { fill: #4c97ee }
    .missed { fill: #e0764f } .echo { stroke: #9198a1 } .target { stroke: #e6edf3 }
  }
";

/// Draws it.
pub(super) fn svg(rows: &[Row]) -> Result<String> {
    let (mut bars, mut y, mut group) = (String::new(), TOP, None);
    for (row, ratio) in rows.iter().filter_map(|row| Some((row, row.ratio?))) {
        if group != Some((row.scenario, &row.load)) {
            group = Some((row.scenario, &row.load));
            y += GROUP - LINE;
            text(&mut bars, "group", 16.0, y, &format!("{}, {}", row.scenario, row.load))?;
            y += LINE;
        }
        bar(&mut bars, y, row, ratio)?;
        y += LINE;
    }
    let (width, height) = (LABELS + ECHO * LONGEST + NUMBERS, y + 24.0);
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n\
         <style>{STYLE}</style>\n<rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n"
    );
    text(&mut picture, "title", 16.0, 26.0, "Throughput as a share of a bare echo worker's")?;
    let legend = "dashed: echo itself; mark: target; another colour: target missed";
    text(&mut picture, "quiet", 16.0, 46.0, legend)?;
    let echo = LABELS + ECHO;
    writeln!(
        picture,
        "<line class=\"echo\" x1=\"{echo}\" x2=\"{echo}\" y1=\"{TOP}\" y2=\"{}\"/>",
        y - LINE / 2.0
    )?;
    picture.push_str(&bars);
    picture.push_str("</svg>\n");
    Ok(picture)
}

fn bar(to: &mut String, y: f64, row: &Row, ratio: f64) -> Result<()> {
    text(to, "", 32.0, y, &row.system)?;
    let missed = row.target.is_some_and(|target| ratio < target);
    let (class, length) = (if missed { "bar missed" } else { "bar" }, ECHO * ratio.clamp(0.0, LONGEST));
    let top = y - BAR + 3.0;
    writeln!(
        to,
        "<rect class=\"{class}\" x=\"{LABELS}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\"/>"
    )?;
    if let Some(target) = row.target {
        let (x, above, below) = (LABELS + ECHO * target, top - 3.0, top + BAR + 3.0);
        writeln!(
            to,
            "<line class=\"target\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{above:.1}\" y2=\"{below:.1}\"/>"
        )?;
    }
    text(to, "", LABELS + ECHO * LONGEST + 8.0, y, &format!("{ratio:.2}"))
}

fn text(to: &mut String, class: &str, x: f64, y: f64, words: &str) -> Result<()> {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    Ok(writeln!(to, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>")?)
}
