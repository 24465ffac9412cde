//! Compiles `proto/api.proto` with protox, so that no protoc is needed, and generates messages, clients and servers.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/api.proto");
    let set = protox::compile(["proto/api.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Its Debug is written by hand in src/redact.rs and shows no secret; prost knows nothing of `debug_redact`.
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(set)?;
    Ok(())
}
