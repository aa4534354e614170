//! Shows how far the image builder is: bars on a terminal, a line a step elsewhere.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use linkspan_initrd::Event;

/// The step that is under way.
#[derive(Default)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Takes one report.
    pub(crate) fn report(&mut self, event: Event) {
        match event {
            Event::Started { step, total } => {
                if !std::io::stderr().is_terminal() {
                    eprintln!("  {step}");
                    return;
                }
                let template = match total {
                    Some(_) => "  {msg:24} {bar:30} {bytes:>10} of {total_bytes} {elapsed}",
                    None => "  {msg:24} {spinner} {bytes:>10} {elapsed}",
                };
                let style =
                    ProgressStyle::with_template(template).expect("a template that is ours");
                let bar = ProgressBar::no_length().with_finish(ProgressFinish::AndLeave);
                if let Some(total) = total {
                    bar.set_length(total);
                }
                bar.set_style(style);
                bar.set_message(step.to_string());
                // Some steps know of no middle.
                bar.enable_steady_tick(Duration::from_millis(200));
                self.bar = Some(bar);
            }
            Event::Advanced { bytes, .. } => {
                if let Some(bar) = &self.bar {
                    bar.inc(bytes);
                }
            }
            Event::Finished { .. } => {
                if let Some(bar) = self.bar.take() {
                    bar.finish();
                }
            }
        }
    }
}
