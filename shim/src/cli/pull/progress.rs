//! How a pull goes, for an eye: a bar for each layer that comes; lines where there is no terminal.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::api::v1::pull_event::Event;
use crate::api::v1::{Layer, LayerState, Resolved};
use crate::cli::output::{printable, short, size};

/// Where news of a pull go. Dropped half-way it leaves a clean terminal.
#[derive(Debug)]
pub struct Progress {
    kind: Kind,
    since: Instant,
    /// By digest: place in the image, compressed size.
    layers: HashMap<String, (usize, u64)>,
    /// Compressed bytes of layers that came.
    came: u64,
}

#[derive(Debug)]
enum Kind {
    Quiet,
    Lines,
    /// The head, and below it the layers by their place in the image.
    Bars {
        all: MultiProgress,
        head: ProgressBar,
        layers: BTreeMap<usize, ProgressBar>,
    },
}

impl Progress {
    /// Bars if standard error is a terminal, else lines.
    pub fn new() -> Self {
        let kind = if io::stderr().is_terminal() {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(15));
            let head = all.add(ProgressBar::new_spinner().with_style(style("{spinner} {msg}")));
            Kind::Bars { all, head, layers: BTreeMap::new() }
        } else {
            Kind::Lines
        };
        Self::of(kind)
    }

    /// Says nothing.
    pub fn quiet() -> Self {
        Self::of(Kind::Quiet)
    }

    fn of(kind: Kind) -> Self {
        Self { kind, since: Instant::now(), layers: HashMap::new(), came: 0 }
    }

    /// It is asked for.
    pub fn begin(&mut self, image: &str) {
        match &self.kind {
            Kind::Quiet => {}
            Kind::Lines => eprintln!("pulling {}", printable(image)),
            Kind::Bars { head, .. } => {
                head.enable_steady_tick(Duration::from_millis(100));
                head.set_message(format!("pulling {}", printable(image)));
            }
        }
    }

    /// Something happened.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Resolved(Resolved { digest: _, layers }) => {
                let placed = layers.iter().enumerate().map(|(at, layer)| (layer.digest.clone(), (at, layer.size)));
                self.layers = placed.collect();
            }
            Event::Layer(layer) => self.layer(layer),
            Event::Resolving(_) | Event::Done(_) => {}
        }
    }

    fn layer(&mut self, layer: &Layer) {
        let (place, of_layer) = self.layers.get(&layer.digest).copied().unwrap_or((usize::MAX, layer.total));
        let state = layer.state();
        if state == LayerState::Done {
            self.came += of_layer;
        }
        match &mut self.kind {
            Kind::Quiet => {}
            Kind::Lines if state == LayerState::Done => eprintln!("layer {} {}", short(&layer.digest), size(of_layer)),
            Kind::Lines => {}
            Kind::Bars { all, layers, .. } => {
                if state == LayerState::Present {
                    return;
                }
                let line = 1 + layers.range(..place).count();
                let bar = layers.entry(place).or_insert_with(|| {
                    let bar = all.insert(line, ProgressBar::new(of_layer).with_style(style(WAITING)));
                    bar.set_prefix(short(&layer.digest).to_owned());
                    bar
                });
                draw(bar, layer, of_layer);
            }
        }
    }

    /// The image is there.
    pub fn end(&mut self, image: &str) {
        self.clear();
        let what = match (self.layers.len(), self.came) {
            (0, _) | (_, 0) => format!("{image} is up to date"),
            (_, came) => format!("pulled {image}, {} in {:.1} s", size(came), self.since.elapsed().as_secs_f64()),
        };
        if !matches!(self.kind, Kind::Quiet) {
            eprintln!("{}", printable(&what));
        }
    }

    fn clear(&mut self) {
        if let Kind::Bars { all, head, layers } = &self.kind {
            layers.values().for_each(ProgressBar::finish_and_clear);
            head.finish_and_clear();
            // Nothing is left to be drawn; without a terminal there is nothing to fail.
            let _ = all.clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

const WAITING: &str = "  {prefix}  waiting";
const LOADING: &str =
    "  {prefix}  {bar:28}  {decimal_bytes:>10} / {decimal_total_bytes:<10} {decimal_bytes_per_sec:>12}";
const UNPACKING: &str = "  {prefix}  unpacking {decimal_total_bytes}";
const DONE: &str = "  {prefix}  done {decimal_total_bytes}";

fn draw(bar: &ProgressBar, layer: &Layer, of_layer: u64) {
    match layer.state() {
        LayerState::Downloading if layer.bytes < of_layer => {
            if bar.position() == 0 {
                bar.set_style(style(LOADING));
                bar.set_position(layer.bytes);
                // The rate is one from here on: what came before the first news came in no time.
                bar.reset_eta();
                bar.enable_steady_tick(Duration::from_millis(250));
            }
            bar.set_position(layer.bytes);
        }
        LayerState::Downloading | LayerState::Unpacking => {
            bar.disable_steady_tick();
            bar.set_position(of_layer);
            bar.set_style(style(UNPACKING));
        }
        LayerState::Done => {
            bar.disable_steady_tick();
            bar.set_style(style(DONE));
            bar.finish();
        }
        LayerState::Queued | LayerState::Present | LayerState::Unspecified => {}
    }
}

/// Templates are constants: the fallback is for the compiler only.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_well_formed() {
        for template in [WAITING, LOADING, UNPACKING, DONE] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn what_came_is_counted_and_what_was_there_is_not() {
        let mut progress = Progress::quiet();
        let size = |digest: &str, size| crate::api::v1::LayerSize { digest: digest.into(), size };
        let layers = vec![size("a", 10), size("b", 20)];
        progress.event(&Event::Resolved(Resolved { digest: "m".into(), layers }));
        let layer =
            |digest: &str, state: LayerState| Layer { digest: digest.into(), state: state.into(), bytes: 0, total: 0 };
        progress.event(&Event::Layer(layer("a", LayerState::Present)));
        progress.event(&Event::Layer(layer("b", LayerState::Unpacking)));
        progress.event(&Event::Layer(layer("b", LayerState::Done)));
        assert_eq!((progress.layers.len(), progress.came), (2, 20));
    }
}
