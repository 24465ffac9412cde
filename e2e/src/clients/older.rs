//! The basic life cycle by a client built on another crate with an older contract (`older.rs`, a program of its own).

use super::opts;
use crate::{
    fail::{Res, skip},
    images,
    server::{Kind, Server},
    sh,
    world::World,
};
use tokio::process::Command;

/// Runs that program.
pub(crate) async fn life_cycle(world: &World, kind: Kind) -> Res<String> {
    let program = std::env::current_exe()?.with_file_name("crisp-e2e-older");
    if !program.exists() {
        return skip("crisp-e2e-older is not built (cargo build -p crisp-e2e --features older; needs protoc)");
    }
    let server = Server::start(world, &opts(world, kind)).await?;
    let logs = server.dir.join("older");
    let out = sh::run(
        Command::new(program)
            .arg(&server.sock)
            .arg(world.image(images::BUSYBOX))
            .arg(logs)
            .arg(format!("{}/older", world.cgroup)),
        60,
    )
    .await?;
    server.finish().await?;
    Ok(out.trim().to_owned())
}
