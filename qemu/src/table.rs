//! Tables for people: aligned columns, no frames, nothing cut.

/// Renders `rows` under `head`; every column as wide as its widest cell, two spaces between, no trailing blanks.
pub fn render<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0).max(head[i].len());
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut out = line(head);
    for row in rows {
        out.push_str(&line(std::array::from_fn(|i| row[i].as_str())));
    }
    out
}

/// Seconds with one decimal, minutes when there are some: `4.2 s`, `3 min 05 s`.
pub fn seconds(duration: std::time::Duration) -> String {
    let s = duration.as_secs_f64();
    if s < 99.95 { format!("{s:.1} s") } else { format!("{} min {:02} s", s as u64 / 60, s as u64 % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn columns_align_and_nothing_trails() {
        let rows = [["a1".into(), "p1 p2".into()], ["node-long".into(), "p1".into()]];
        assert_eq!(render(["NODE", "PORTS"], &rows), "NODE       PORTS\na1         p1 p2\nnode-long  p1\n");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(4230)), "4.2 s");
        assert_eq!(seconds(Duration::from_secs(185)), "3 min 05 s");
    }
}
