//! Cold pulls, each by a new server with its root on a fresh file system. Servers take turns, so that a slow minute is
//! everybody's.

use super::{Figures, disk::Disk, ms, p50};
use crate::{
    bigimage,
    fail::Res,
    server::{Kind, Opts, Server},
    world::World,
};
use std::time::Instant;

/// Measures both forms of the big image for these kinds of servers.
pub(super) async fn cold(world: &World, rounds: usize, kinds: &mut [(Kind, &mut Figures)]) -> Res {
    for (row, image) in [("cold pull, gzip", bigimage::GZIP), ("cold pull, zstd", bigimage::ZSTD)] {
        let mut times = vec![Vec::new(); kinds.len()];
        for _ in 0..rounds {
            for ((kind, _), times) in kinds.iter().zip(&mut times) {
                times.push(once(world, *kind, image).await?);
            }
        }
        for ((_, out), times) in kinds.iter_mut().zip(times) {
            out.insert(row, p50(times));
        }
    }
    Ok(())
}

async fn once(world: &World, kind: Kind, image: &str) -> Res<f64> {
    let disk = Disk::fresh(&world.dir, "pull").await?;
    let server = Server::start(world, &Opts { root: Some(disk.mount.join("root")), ..Opts::new(kind) }).await?;
    rustix::fs::sync();
    let cri = server.cri().await?;
    let t = Instant::now();
    cri.pull(&world.image(image)).await?;
    let took = ms(t);
    server.finish().await.map(|()| took)
}
