//! The chart of a sweep: miss ratio over memory size, as SVG.

use plotters::prelude::*;

/// A point: memory in bytes, the share of requests that missed, and of those that memory missed.
pub type Point = (u64, f64, f64);

const WIDTH: u32 = 900;
const HEIGHT: u32 = 540;
const MEBIBYTE: f64 = (1u64 << 20) as f64;

/// Draws the points, in the order of their sizes, as an SVG document. With a disk the misses of memory are
/// a second line.
pub fn draw(title: &str, points: &[Point], has_disk: bool) -> Result<String, String> {
    let mut svg = String::new();
    draw_into(&mut svg, title, points, has_disk).map_err(|why| why.to_string())?;
    Ok(svg)
}

fn draw_into(
    svg: &mut String,
    title: &str,
    points: &[Point],
    has_disk: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let mebibytes = |bytes: u64| bytes as f64 / MEBIBYTE;
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Err("no size was replayed".into());
    };
    // A single point needs some width too.
    let (low, high) = (mebibytes(first.0) / 1.2, mebibytes(last.0) * 1.2);
    let highest = points.iter().map(|(_, miss, above)| if has_disk { *above } else { *miss });
    let top = (highest.fold(0.0, f64::max) * 105.0).clamp(1.0, 100.0);
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(20)
        .x_label_area_size(50)
        .y_label_area_size(60)
        .build_cartesian_2d((low..high).log_scale(), 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("memory in MiB")
        .y_desc("misses in percent of the requests")
        .x_label_formatter(&|mebibytes| short(*mebibytes))
        .y_label_formatter(&|percent| format!("{percent:.0}"))
        .draw()?;
    let mut line = |name: &str, color: RGBColor, values: Vec<(f64, f64)>| {
        let dots: Vec<_> = values.iter().map(|at| Circle::new(*at, 4, color.filled())).collect();
        let series = chart.draw_series(LineSeries::new(values, color.stroke_width(2)))?;
        series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
        chart.draw_series(dots).map(drop)
    };
    let of = |value: fn(&Point) -> f64| -> Vec<_> {
        points.iter().map(|point| (mebibytes(point.0), value(point) * 100.0)).collect()
    };
    if has_disk {
        line("missed by memory", RGBColor(120, 120, 120), of(|point| point.2))?;
    }
    line("missed", RGBColor(0, 90, 170), of(|point| point.1))?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}

/// A number to two digits or so.
fn short(number: f64) -> String {
    if number >= 10.0 { format!("{number:.0}") } else { format!("{number:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_an_svg_document() {
        let points = [(1 << 20, 0.5, 0.7), (4 << 20, 0.25, 0.4), (64 << 20, 0.01, 0.02)];
        let svg = draw("a <b> & c", &points, true).expect("draws");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("a &lt;b&gt; &amp; c"), "{svg}");
        assert_eq!(svg.matches("stroke-width=\"2\"").count(), 2, "{svg}");
        assert_eq!(svg.matches("<circle").count(), 6);
    }

    #[test]
    fn few_points_are_drawn_and_none_refused() {
        assert!(draw("one", &[(1, 0.0, 0.0)], false).is_ok());
        assert!(draw("none", &[], false).is_err());
    }
}
