//! Figures as a picture: a panel for each measure, a line or a bar for each agent.

use plotters::prelude::*;

use super::{Measure, Report, Sample};

/// Pixels of a panel.
const PANEL: (u32, u32) = (560, 300);

/// Pixels above the panels.
const HEAD: i32 = 40;

const COLUMNS: usize = 2;

/// Told apart by those who see no red or no green, too.
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

const FONT: &str = "sans-serif";

type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;

pub(super) fn svg(report: &Report) -> Result<String, String> {
    let mut text = String::new();
    draw(report, &mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn draw(report: &Report, out: &mut String) -> Drawn {
    let taken: Vec<Measure> =
        Measure::ALL.into_iter().filter(|&measure| !report.samples(measure).is_empty()).collect();
    let rows = taken.len().div_ceil(COLUMNS).max(1);
    let size = (PANEL.0 * COLUMNS as u32, HEAD.unsigned_abs() + PANEL.1 * rows as u32);
    let root = SVGBackend::with_string(out, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, rest) = root.split_vertically(HEAD);
    legend(report, &head)?;
    for (measure, panel) in taken.iter().zip(rest.split_evenly((rows, COLUMNS))) {
        match measure.is_stream() {
            true => bars(*measure, &report.samples(*measure), report, &panel)?,
            false => curves(*measure, &report.samples(*measure), report, &panel)?,
        }
    }
    root.present()?;
    Ok(())
}

fn colour(report: &Report, name: &str) -> RGBColor {
    let at = report.agents.iter().position(|agent| agent.name == name).unwrap_or(0);
    COLOURS[at % COLOURS.len()]
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn legend(report: &Report, area: &Area<'_>) -> Drawn {
    let mut x = 20;
    for agent in &report.agents {
        let colour = colour(report, &agent.name);
        area.draw(&Rectangle::new([(x, 14), (x + 16, 30)], colour.filled()))?;
        area.draw(&Text::new(agent.name.clone(), (x + 24, 14), (FONT, 18)))?;
        x += 60 + 10 * agent.name.chars().count() as i32;
    }
    Ok(())
}

/// The share of operations that took no longer, over time.
fn curves(
    measure: Measure,
    samples: &[(&str, &Sample)],
    report: &Report,
    area: &Area<'_>,
) -> Drawn {
    let points: Vec<_> = samples.iter().map(|(_, sample)| sample.distribution()).collect();
    let all = || points.iter().flatten().map(|(micros, _)| *micros as f64 / 1000.0);
    let least = all().fold(f64::INFINITY, f64::min).max(0.001);
    let most = all().fold(0.0, f64::max).max(least * 2.0);
    let mut chart = ChartBuilder::on(area)
        .caption(measure.text(), (FONT, 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(44)
        .build_cartesian_2d((least * 0.8..most * 1.2).log_scale(), 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc("milliseconds")
        .y_desc("% done by then")
        .x_labels(6)
        .x_label_formatter(&|x| milliseconds(*x))
        .label_style((FONT, 12))
        .draw()?;
    for ((name, sample), points) in samples.iter().zip(points) {
        let colour = colour(report, name);
        let mut line = Vec::new();
        let mut before = 0.0;
        for (micros, share) in points {
            let x = (micros as f64 / 1000.0).max(least);
            line.extend([(x, before), (x, share * 100.0)]);
            before = share * 100.0;
        }
        line.push((most * 1.2, 100.0));
        let latency = sample.latency();
        let label = format!(
            "{name}: {} per s, p50 {} p99 {} max {} ms",
            per_second(sample.rate()),
            milliseconds(latency.p50 as f64 / 1000.0),
            milliseconds(latency.p99 as f64 / 1000.0),
            milliseconds(latency.max as f64 / 1000.0),
        );
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .label_font((FONT, 12))
        .draw()?;
    Ok(())
}

/// MiB per second.
fn bars(measure: Measure, samples: &[(&str, &Sample)], report: &Report, area: &Area<'_>) -> Drawn {
    let most = samples.iter().map(|(_, sample)| sample.mib_per_second()).fold(1.0, f64::max);
    let count = samples.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(measure.text(), (FONT, 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..count, 0.0..most * 1.2)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc("MiB per second")
        .label_style((FONT, 12))
        .draw()?;
    for (at, (name, sample)) in samples.iter().enumerate() {
        let (at, rate) = (at as f64, sample.mib_per_second());
        let colour = colour(report, name);
        chart.draw_series([Rectangle::new(
            [(at + 0.25, 0.0), (at + 0.75, rate)],
            colour.filled(),
        )])?;
        let text = format!("{name}: {rate:.0}");
        chart.draw_series([Text::new(text, (at + 0.27, rate + most * 0.08), (FONT, 14))])?;
    }
    Ok(())
}

/// Three digits or more.
fn per_second(rate: f64) -> String {
    match rate {
        ..10.0 => format!("{rate:.2}"),
        ..100.0 => format!("{rate:.1}"),
        _ => format!("{rate:.0}"),
    }
}

pub(super) fn milliseconds(value: f64) -> String {
    match value {
        ..0.1 => format!("{value:.3}"),
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
