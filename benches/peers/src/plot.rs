//! The plots: throughput beside the best other engine, and tail latencies.

use std::path::Path;

use plotters::prelude::*;

use crate::outcome::Outcome;
use crate::report::Group;
use crate::store::{EngineName, Failure, Result};

const ROW_PIXELS: u32 = 34;

fn color(engine: EngineName) -> RGBColor {
    match engine {
        EngineName::Pairdb => RGBColor(0x1b, 0x6c, 0xa8),
        EngineName::Rocksdb => RGBColor(0xd9, 0x8e, 0x04),
        EngineName::RocksdbMmap => RGBColor(0x8a, 0x5a, 0x00),
        EngineName::Fjall => RGBColor(0x5a, 0x9a, 0x5a),
    }
}

/// Writes throughput.svg and latency.svg.
pub fn draw(groups: &[Group], dir: &Path) -> Result<()> {
    if groups.is_empty() {
        return Ok(());
    }
    let relative = |group: &Group, engine| {
        let others = group.engines.iter().filter(|(name, _)| *name != EngineName::Pairdb);
        let best = others
            .map(|(name, _)| group.median(*name, |one| one.ops_per_s))
            .fold(f64::NAN, f64::max);
        group.median(engine, |one| one.ops_per_s) / best
    };
    bars(
        groups,
        &dir.join("throughput.svg"),
        "operations a second, the best other engine = 1 (more is better)",
        &relative,
    )?;
    let tail = |group: &Group, engine| group.median(engine, |one: &Outcome| one.p99_us);
    bars(groups, &dir.join("latency.svg"), "p99 latency, microseconds (less is better)", &tail)
}

/// A row for each workload, a bar for each engine, on a logarithmic scale.
fn bars(
    groups: &[Group],
    path: &Path,
    caption: &str,
    figure: &dyn Fn(&Group, EngineName) -> f64,
) -> Result<()> {
    let failure = |error: DrawingAreaErrorKind<_>| -> Failure { format!("{error:?}").into() };
    let finite = |group: &Group, engine| Some(figure(group, engine)).filter(|x| x.is_finite());
    let all = || {
        groups.iter().flat_map(|group| {
            group.engines.iter().filter_map(move |(engine, _)| finite(group, *engine))
        })
    };
    let least = all().fold(f64::INFINITY, f64::min).min(0.5) * 0.8;
    let greatest = all().fold(0.0, f64::max).max(2.0) * 1.25;
    let rows = groups.len() as f64;
    let height = ROW_PIXELS * groups.len() as u32 + 120;
    let area = SVGBackend::new(path, (1000, height)).into_drawing_area();
    area.fill(&WHITE).map_err(failure)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(caption, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(170)
        .build_cartesian_2d((least..greatest).log_scale(), 0.0..rows)
        .map_err(failure)?;
    // Ticks stand in the middle of a row, two for each row; those between rows have no name.
    let name = |y: &f64| {
        let row = rows - 0.5 - y;
        let is_middle = (row - row.round()).abs() < 0.01 && row > -0.5;
        let group = is_middle.then(|| groups.get(row.round() as usize)).flatten();
        group.map(|group| group.name.clone()).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(4 * groups.len() + 1)
        .y_label_formatter(&name)
        .draw()
        .map_err(failure)?;
    let engines: Vec<EngineName> = groups[0].engines.iter().map(|(engine, _)| *engine).collect();
    let bar_height = 0.8 / engines.len() as f64;
    for (index, &engine) in engines.iter().enumerate() {
        let boxes = groups.iter().enumerate().filter_map(|(row, group)| {
            let top = rows - row as f64 - 0.1 - index as f64 * bar_height;
            let value = finite(group, engine)?;
            Some(Rectangle::new([(least, top), (value, top - bar_height)], color(engine).filled()))
        });
        chart.draw_series(boxes).map_err(failure)?.label(engine.as_str()).legend(move |(x, y)| {
            Rectangle::new([(x, y - 5), (x + 12, y + 5)], color(engine).filled())
        });
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
        .map_err(failure)?;
    area.present().map_err(failure)
}
