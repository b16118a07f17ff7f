//! The ratios as a picture: a panel for each workload, a bar for each contestant, on a logarithmic scale that begins at
//! the limit. Plain SVG with two sets of colours, so that it can be read on light and on dark pages.

use crate::contestant::Kind;
use crate::figure::Figure;
use crate::placement::Placement;
use crate::workload::{self, Unit, Workload};
use std::fmt::Write;

const COLUMNS: usize = 3;
const PANEL: f64 = 400.0;
const NAMES: f64 = 168.0;
const BARS: f64 = 158.0;
const LINE: f64 = 17.0;
const HEAD: f64 = 46.0;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}
.title{font-weight:600}
.small{font-size:11px;fill:#59636e}
.forkserver{fill:#1f6feb}
.peer{fill:#9aa4af}
.limit{stroke:#cf222e;stroke-width:1.5}
@media(prefers-color-scheme:dark){
text{fill:#e6edf3}
.small{fill:#9198a1}
.forkserver{fill:#58a6ff}
.peer{fill:#6e7681}
.limit{stroke:#ff7b72}
}";

struct Panel<'a> {
    workload: &'a Workload,
    placement: Placement,
    bars: Vec<&'a Figure>,
}

/// The whole picture.
pub fn of(about: &str, figures: &[Figure]) -> String {
    let panels = panels(figures);
    let mut body = String::new();
    let mut top = 40.0;
    for row in panels.chunks(COLUMNS) {
        for (column, panel) in row.iter().enumerate() {
            panel.draw(&mut body, 16.0 + PANEL * column as f64, top);
        }
        let longest = row.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
        top += HEAD + LINE * longest as f64 + 18.0;
    }
    let width = 16.0 + PANEL * COLUMNS as f64;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {top}\" role=\"img\">\n\
         <title>forkserver and its peers as multiples of the kernel's limit</title>\n\
         <style>{STYLE}</style>\n\
         <text x=\"16\" y=\"22\" class=\"small\">Multiples of the kernel's limit (red line), \
         less is better; logarithmic; {}</text>\n{body}</svg>\n",
        escape(about)
    )
}

/// What is shown: each workload in its first placement, and a call across cores, too.
fn panels(figures: &[Figure]) -> Vec<Panel<'_>> {
    let mut panels = Vec::new();
    for workload in workload::ALL {
        let placements = match workload.id {
            "W1" => &workload.placements[..2],
            _ => &workload.placements[..1],
        };
        for &placement in placements {
            let bars = bars(figures, workload, placement);
            if !bars.is_empty() && workload.unit != Unit::Calls {
                panels.push(Panel {
                    workload,
                    placement,
                    bars,
                });
            }
        }
    }
    panels
}

fn bars<'a>(figures: &'a [Figure], workload: &Workload, placement: Placement) -> Vec<&'a Figure> {
    let here = |one: &&Figure| one.workload == workload.id && one.placement == placement;
    let of_limit = |one: &&Figure| one.against == workload.limit && one.kind != Kind::Limit;
    let mut bars: Vec<_> = figures.iter().filter(here).filter(of_limit).collect();
    bars.sort_by(|a, b| a.ratio.middle.total_cmp(&b.ratio.middle));
    bars
}

impl Panel<'_> {
    fn draw(&self, body: &mut String, left: f64, top: f64) {
        let (title, limit) = (escape(self.workload.title), escape(self.workload.limit));
        let _ = writeln!(
            body,
            "<text x=\"{left}\" y=\"{}\" class=\"title\">{} {title}</text>\n\
             <text x=\"{left}\" y=\"{}\" class=\"small\">{}; 1 = {limit}</text>",
            top + 14.0,
            self.workload.id,
            top + 30.0,
            self.placement.name()
        );
        let most = self
            .bars
            .iter()
            .map(|bar| bar.ratio.middle)
            .fold(2.0, f64::max);
        let least = self
            .bars
            .iter()
            .map(|bar| bar.ratio.middle)
            .fold(1.0, f64::min);
        let place = |ratio: f64| BARS * (ratio / least).ln() / (most / least).ln();
        let (zero, first) = (left + NAMES, top + HEAD - 8.0);
        for (n, bar) in self.bars.iter().enumerate() {
            let y = first + LINE * n as f64;
            let (begin, end) = (
                place(bar.ratio.middle.min(1.0)),
                place(bar.ratio.middle.max(1.0)),
            );
            let _ = writeln!(
                body,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"11\" class=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" class=\"small\">{}</text>",
                zero - 6.0,
                y + 10.0,
                escape(&bar.contestant),
                zero + begin,
                y,
                (end - begin).max(1.0),
                bar.kind.name(),
                zero + end + 5.0,
                y + 10.0,
                shown(bar.ratio.middle)
            );
        }
        let x = zero + place(1.0);
        let last = first + LINE * self.bars.len() as f64;
        let _ = writeln!(
            body,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{last:.1}\" class=\"limit\"/>",
            first - 3.0
        );
    }
}

fn shown(ratio: f64) -> String {
    match ratio {
        ratio if ratio < 10.0 => format!("{ratio:.2}"),
        ratio => format!("{ratio:.0}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::tests::figure;

    #[test]
    fn each_contestant_has_a_bar_and_the_limit_a_line() {
        let mut figures = vec![
            figure("forkserver", Kind::Forkserver, [1.0, 1.1, 1.2]),
            figure("a & b", Kind::Peer, [3.0, 4.0, 5.0]),
        ];
        for figure in &mut figures {
            figure.against = "blocking ping-pong".into();
        }
        let svg = of("a machine", &figures);
        assert_eq!(svg.matches("<rect").count(), 2);
        assert_eq!(svg.matches("<line").count(), 1);
        assert!(svg.contains("a &amp; b") && svg.ends_with("</svg>\n"));
    }
}
