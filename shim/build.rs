//! Builds the monitor static and lays it at `$OUT_DIR/crisp-monitor`, for the server to embed: `crisp` is one file that works alone.

#[path = "monitor/static_build.rs"]
mod static_build;

use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = env::var("OUT_DIR")?;
    let out = Path::new(&out);
    let monitor = Path::new("monitor");
    for watched in ["src", "Cargo.toml", "static_build.rs"] {
        println!("cargo::rerun-if-changed={}", monitor.join(watched).display());
    }
    println!("cargo::rerun-if-changed=../Cargo.toml");
    println!("cargo::rerun-if-changed=build.rs");
    let built = static_build::build(&Path::new(&env::var("CARGO_MANIFEST_DIR")?).join(".."), &out.join("monitor"))?;
    fs::copy(built, out.join("crisp-monitor"))?;
    Ok(())
}
