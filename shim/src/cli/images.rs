//! `crisp images`.

use crisp_cri_proto::v1;
use serde::Serialize;

use super::args::Images;
use super::client::Client;
use super::error::Result;
use super::output::{Cell, Column, Out, Table, short, size};

/// An image.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    tags: Vec<String>,
    digests: Vec<String>,
    size: u64,
    pinned: bool,
}

/// Lists images.
pub async fn images(client: &mut Client, args: &Images, out: Out) -> Result {
    let image = args.image.clone().map(|image| v1::ImageSpec { image, ..v1::ImageSpec::default() });
    let request = v1::StreamImagesRequest { filter: Some(v1::ImageFilter { image }) };
    let mut parts = client.images.stream_images(request).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(part) = parts.message().await? {
        rows.extend(part.images.into_iter().map(row));
    }
    rows.sort_by(|a, b| (a.tags.is_empty(), &a.tags, &a.digests).cmp(&(b.tags.is_empty(), &b.tags, &b.digests)));
    if args.quiet {
        let ids: String = rows.iter().map(|row| format!("{}\n", short(&row.id))).collect();
        return out.text(&ids);
    }
    out.list(&rows, table)
}

fn row(image: v1::Image) -> Row {
    let v1::Image { id, repo_tags, repo_digests, size, uid: _, username: _, spec: _, pinned } = image;
    Row { id, tags: repo_tags, digests: repo_digests, size, pinned }
}

fn table(rows: &[Row]) -> Table {
    let columns =
        [Column::left("IMAGE").gives(), Column::left("TAG").gives(), Column::left("ID"), Column::right("SIZE")];
    let mut table = Table::new(&columns);
    for row in rows {
        let mut names: Vec<(&str, &str)> = row.tags.iter().filter_map(|tag| tag.rsplit_once(':')).collect();
        if names.is_empty() {
            let digest = row.digests.first().and_then(|digest| digest.split_once('@'));
            names.push((digest.map_or("<none>", |(name, _)| name), "<none>"));
        }
        for (name, tag) in names {
            table.row([familiar(name).into(), tag.into(), Cell::new(short(&row.id)), size(row.size).into()]);
        }
    }
    table
}

/// As people write it: without what docker.io's names may leave out.
fn familiar(name: &str) -> &str {
    let bare = name.strip_prefix("docker.io/").unwrap_or(name);
    bare.strip_prefix("library/").filter(|_| bare.len() < name.len()).unwrap_or(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_line_for_each_of_its_names() {
        let image = |tags: &[&str], digest: &str| Row {
            id: "sha256:0123456789abcdef".into(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            digests: vec![digest.to_owned()],
            size: 2_220_000,
            pinned: false,
        };
        let rows =
            [image(&["docker.io/library/busybox:1", "localhost:5000/a:2"], ""), image(&[], "quay.io/x/y@sha256:ff")];
        let text = table(&rows).render(None, false);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["busybox", "1", "0123456789ab", "2.2", "MB"]);
        assert_eq!(lines[2][..2], ["localhost:5000/a", "2"]);
        assert_eq!(lines[3][..2], ["quay.io/x/y", "<none>"]);
    }

    #[test]
    fn only_docker_ios_names_are_shortened() {
        assert_eq!(familiar("docker.io/library/busybox"), "busybox");
        assert_eq!(familiar("docker.io/me/app"), "me/app");
        assert_eq!(familiar("quay.io/library/app"), "quay.io/library/app");
    }
}
