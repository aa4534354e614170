//! Bars on stderr for what takes a while; silent unless somebody looks.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use linkspan_initrd::Event;

use crate::options::Global;

/// What is done within this time needs no spinner.
const SHORT: Duration = Duration::from_millis(300);

/// Makes bars, or invisible ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    visible: bool,
}

impl Progress {
    pub(crate) fn new(global: &Global) -> Self {
        Self { visible: io::stderr().is_terminal() && !global.quiet && !global.json }
    }

    /// Something without a known amount; it goes away with the value. What is done soon is not
    /// shown.
    pub(crate) fn spinner(self, message: impl Into<String>) -> Bar {
        let bar = self.bar();
        bar.set_style(style("{spinner} {msg} ({elapsed})"));
        bar.set_message(message.into());
        if self.visible {
            bar.set_draw_target(ProgressDrawTarget::hidden());
            let (later, shown) = (bar.downgrade(), ProgressDrawTarget::stderr());
            tokio::spawn(async move {
                tokio::time::sleep(SHORT).await;
                if let Some(bar) = later.upgrade().filter(|bar| !bar.is_finished()) {
                    bar.set_draw_target(shown);
                    bar.enable_steady_tick(Duration::from_millis(100));
                }
            });
        }
        Bar(bar)
    }

    /// The making of a layer image.
    pub(crate) fn layer(self) -> Bar {
        Bar(self.bar())
    }

    /// Blobs that come in and layers that are made: a bar for each, one after the other.
    pub(crate) fn transfer(self, verb: &'static str) -> Transfer {
        Transfer { bar: Bar(self.bar()), verb, what: String::new() }
    }

    /// What the image builder does.
    pub(crate) fn image(self) -> impl FnMut(Event) {
        let bar = Bar(self.bar());
        move |event| match event {
            Event::Started { step, total } => bar.begin(step.to_string(), total),
            Event::Advanced { bytes, .. } => bar.0.inc(bytes),
            Event::Finished { .. } => bar.0.reset(),
        }
    }

    fn bar(self) -> ProgressBar {
        match self.visible {
            true => ProgressBar::new_spinner(),
            false => ProgressBar::hidden(),
        }
    }
}

/// One bar; cleared when dropped.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    fn begin(&self, message: String, total: Option<u64>) {
        match total {
            Some(total) => {
                self.0
                    .set_style(style("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}"));
                self.0.set_length(total);
            }
            None => self.0.set_style(style("{spinner} {msg} {bytes} {bytes_per_sec}")),
        }
        self.0.set_message(message);
        self.0.set_position(0);
    }

    /// A layer has got this far.
    pub(crate) fn layer_at(&self, path: &str, bytes: u64, total: Option<u64>, entries: u64) {
        if self.0.message().is_empty() {
            self.begin(format!("making an image of {path}"), total);
        }
        self.0.set_position(bytes);
        if total.is_some_and(|total| bytes >= total) {
            self.0.set_message(format!("making an image of {path} ({entries} files)"));
        }
    }
}

/// Transfers, one after the other.
#[derive(Debug)]
pub(crate) struct Transfer {
    bar: Bar,
    verb: &'static str,
    what: String,
}

impl Transfer {
    /// One has got this far.
    pub(crate) fn at(&mut self, what: &str, bytes: u64, total: Option<u64>) {
        if self.what != what {
            what.clone_into(&mut self.what);
            let short = what.strip_prefix("sha256:").map_or(what, |digits| &digits[..12]);
            let template = match total {
                Some(_) => "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                None => "{spinner} {msg} {bytes} {bytes_per_sec}",
            };
            self.bar.0.reset();
            self.bar.0.set_style(style(template));
            if let Some(total) = total {
                self.bar.0.set_length(total);
            }
            self.bar.0.set_message(format!("{} {short}", self.verb));
        }
        self.bar.0.set_position(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
