//! Cold pulls, each by a new server with its root on a file system of its own, made a moment before: ext4 does not use inodes
//! again for minutes after they were freed, and looks for others at a cost that would be what is measured. Servers take turns,
//! so that a slow minute is everybody's.

use super::{Figures, ms, p50};
use crate::{
    bigimage,
    fail::Res,
    server::{Kind, Opts, Server},
    sh,
    world::{self, World},
};
use std::{fs, time::Instant};

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
    let (disk, mount) = (world.dir.join("pull.img"), world.dir.join("pull"));
    fs::File::create(&disk)?.set_len(8 << 30)?;
    fs::create_dir_all(&mount)?;
    let (disk_arg, mount_arg) = (disk.to_string_lossy(), mount.to_string_lossy());
    sh::cmd("mkfs.ext4", &["-q", "-F", &disk_arg], 60).await?;
    sh::cmd("mount", &["-o", "loop", &disk_arg, &mount_arg], 60).await?;
    let took = async {
        let server = Server::start(world, &Opts { root: Some(mount.join("root")), ..Opts::new(kind) }).await?;
        rustix::fs::sync();
        let cri = server.cri().await?;
        let t = Instant::now();
        cri.pull(&world.image(image)).await?;
        let took = ms(t);
        server.finish().await.map(|()| took)
    };
    let took = took.await;
    world::unmount_below(&mount);
    fs::remove_file(&disk)?;
    took
}
