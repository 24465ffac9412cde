//! Tables: a line of headings, columns as wide as their widest cell, cut where the terminal ends.

use super::output::printable;

/// Two spaces between columns.
const GAP: usize = 2;
/// A column that gives way keeps at least this.
const LEAST: usize = 8;

/// Where a cell's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// What a cell's colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Good,
    Bad,
    Faint,
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    heading: &'static str,
    align: Align,
    /// Gives way when the terminal is too narrow.
    gives: bool,
}

impl Column {
    pub const fn left(heading: &'static str) -> Self {
        Self { heading, align: Align::Left, gives: false }
    }
    pub const fn right(heading: &'static str) -> Self {
        Self { heading, align: Align::Right, gives: false }
    }
    /// May be cut, the widest of them first.
    pub const fn gives(self) -> Self {
        Self { gives: true, ..self }
    }
}

/// A cell.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    pub fn new(text: impl AsRef<str>) -> Self {
        Self { text: printable(text.as_ref()).replace('\n', " "), paint: Paint::Plain }
    }
    pub fn paint(self, paint: Paint) -> Self {
        Self { paint, ..self }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// A table in the making.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// As many cells as there are columns.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let mut cells: Vec<Cell> = cells.into_iter().collect();
        cells.resize_with(self.columns.len(), || Cell::new(""));
        self.rows.push(cells);
    }

    /// The lines, each with its end.
    pub fn render(&self, width: Option<usize>, colour: bool) -> String {
        let widths = self.widths(width);
        let headings: Vec<Cell> =
            self.columns.iter().map(|column| Cell::new(column.heading).paint(Paint::Faint)).collect();
        let mut text = String::new();
        for cells in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (at, (cell, column)) in cells.iter().zip(&self.columns).enumerate() {
                let cut = cut(&cell.text, widths[at]);
                let pad = " ".repeat(widths[at] - cut.chars().count());
                let painted = paint(&cut, cell.paint, colour);
                match column.align {
                    Align::Left => line += &format!("{painted}{pad}"),
                    Align::Right => line += &format!("{pad}{painted}"),
                }
                line += &" ".repeat(GAP);
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    fn widths(&self, width: Option<usize>) -> Vec<usize> {
        let of_column = |at: usize| {
            let cells = self.rows.iter().map(|row| row[at].text.chars().count());
            cells.chain([self.columns[at].heading.len()]).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(of_column).collect();
        let Some(width) = width else { return widths };
        let mut over = (widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)).saturating_sub(width);
        while over > 0 {
            let giving = (0..widths.len()).filter(|at| self.columns[*at].gives && widths[*at] > LEAST);
            let Some(widest) = giving.max_by_key(|at| widths[*at]) else { break };
            widths[widest] -= 1;
            over -= 1;
        }
        widths
    }
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

fn paint(text: &str, paint: Paint, colour: bool) -> String {
    let code = match paint {
        _ if !colour || text.is_empty() => return text.to_owned(),
        Paint::Plain => return text.to_owned(),
        Paint::Good => 32,
        Paint::Bad => 31,
        Paint::Faint => 2,
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[Column::left("ID"), Column::left("IMAGE").gives(), Column::right("SIZE")]);
        table.row(["0123".into(), "registry.example/team/app:1.0".into(), "2.2 MB".into()]);
        table.row(["4567".into(), "busybox".into(), Cell::new("10 GB").paint(Paint::Bad)]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = "ID    IMAGE                            SIZE\n\
                    0123  registry.example/team/app:1.0  2.2 MB\n\
                    4567  busybox                         10 GB\n";
        assert_eq!(table().render(None, false), text);
        assert_eq!(table().render(Some(80), false), text);
    }

    #[test]
    fn the_widest_column_that_may_gives_way_on_a_narrow_terminal() {
        let text = table().render(Some(30), false);
        assert!(text.lines().all(|line| line.chars().count() <= 30), "{text}");
        assert!(text.contains("0123  registry.exampl…  2.2 MB"), "{text}");
        // Below the least there is no good answer; nothing is lost to the left of it.
        assert!(table().render(Some(5), false).contains("0123  registr…  2.2 MB"));
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let text = table().render(None, true);
        assert!(text.contains("\u{1b}[31m10 GB\u{1b}[0m"), "{text}");
        assert!(text.contains("busybox                         \u{1b}"), "{text}");
    }

    #[test]
    fn a_cell_is_one_line() {
        let mut table = Table::new(&[Column::left("A")]);
        table.row([Cell::new("a\nb\u{1b}[1m")]);
        assert_eq!(table.render(None, false), "A\na b\u{fffd}[1m\n");
    }
}
