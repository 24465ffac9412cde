//! Builds the monitor static and lays it at `$OUT_DIR/crisp-monitor`, for the server to embed: `crisp` is one file that works alone.
//! Generates the second service, `crisp.v1`, from its proto.

#[path = "monitor/static_build.rs"]
mod static_build;

use std::path::Path;
use std::{env, fs};

use sha2::{Digest, Sha256};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    monitor()?;
    proto()
}

fn monitor() -> Result<(), Box<dyn std::error::Error>> {
    let out = env::var("OUT_DIR")?;
    let out = Path::new(&out);
    let monitor = Path::new("monitor");
    for watched in ["src", "Cargo.toml", "static_build.rs"] {
        println!("cargo::rerun-if-changed={}", monitor.join(watched).display());
    }
    println!("cargo::rerun-if-changed=../Cargo.toml");
    let built = static_build::build(&Path::new(&env::var("CARGO_MANIFEST_DIR")?).join(".."), &out.join("monitor"))?;
    let program = fs::read(built)?;
    let hash: String = Sha256::digest(&program).iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=CRISP_MONITOR_SHA256={hash}");
    fs::write(out.join("crisp-monitor"), program)?;
    Ok(())
}

fn proto() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let set = protox::compile(["crisp/v1/crisp.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Their Debug is written by hand in src/api/mod.rs and shows no secret.
        .skip_debug([".crisp.v1.Credentials"])
        .compile_fds(set)?;
    Ok(())
}
